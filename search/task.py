"""The user's side of a search: the network, its data, its loss and its score, from one Python file."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

from leanfront.search.readers.images import TaskError as TaskError
from leanfront.search.scores import Metric, as_metric, reported


@runtime_checkable
class Data(Protocol):
    """Examples that can be had by index, a whole batch at a time."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Any, Any]:
        """The examples at indices (N,) int64: inputs as the model takes them (a tensor (N, ...), scaled; a
        tuple of arguments, a dictionary of keywords), and targets as loss and score take them.

        With a generator the inputs carry training augmentation drawn from it; with None they carry none.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Images held in one array, as the readers return them, with crop and flip for training.

    images: (N, C, H, W), either uint8 (scaled to 0..1 here) or floats (taken as scaled already), perhaps a
    memory map; labels: (N,) integers; mean, std: one number per channel, applied after scaling; pad: pixels
    of zeros on each side before a random crop back to H x W; flip: mirror half of the images left to right.
    Pad and flip act only where batch() is given a generator. Raises TaskError when the parts do not fit
    together.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        _require(
            self.images.ndim == 4 and (self.images.dtype == np.uint8 or self.images.dtype.kind == "f"),
            f"Images are a uint8 or float array (N, C, H, W), but {self.images.dtype} {self.images.shape} "
            "came; convert it",
        )
        _require(
            self.labels.shape == self.images.shape[:1] and self.labels.dtype.kind in "iu",
            f"Labels are one integer per image, ({len(self.images)},), but {self.labels.dtype} "
            f"{self.labels.shape} came; give class numbers from 0",
        )
        channels = self.images.shape[1]
        _require(
            len(self.mean) == len(self.std) == channels and min(self.std) > 0,
            f"Mean and std have one number per channel ({channels}), std above 0, but {self.mean} and "
            f"{self.std} came; correct them",
        )
        _require(self.pad >= 0, f"Padding is a number of pixels, 0 or more, but {self.pad} came; correct it")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """See Data.batch; the inputs are float32, the targets int64."""
        rows = indices.numpy()
        pixels = np.asarray(self.images)[rows]
        if generator is not None and self.pad:
            pixels = _random_crop(pixels, self.pad, generator)
        inputs = torch.from_numpy(pixels)
        if generator is not None and self.flip:
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(3), inputs)
        full_scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        std = torch.tensor(self.std).view(-1, 1, 1)
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        inputs = (inputs.to(torch.float32) * (1 / (full_scale * std))).sub_(mean / std)
        return inputs, torch.from_numpy(np.asarray(self.labels)[rows].astype(np.int64))


def _random_crop(pixels: NDArray[Any], pad: int, generator: torch.Generator) -> NDArray[Any]:
    count, _, height, width = pixels.shape
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).numpy()
    windows = sliding_window_view(
        np.pad(pixels, ((0, 0), (0, 0), (pad, pad), (pad, pad))), (height, width), (2, 3)
    )
    cropped: NDArray[Any] = windows[np.arange(count), :, top, left]
    return cropped


@dataclass(frozen=True, eq=False)
class DatasetData:
    """A map-style torch Dataset of (input, target) pairs, read one example at a time.

    The dataset does its own augmentation. Whatever it draws from torch's global generator is seeded here,
    from the generator given or with a constant where that is None, so runs repeat; the caller's random state
    is untouched. Data for scoring must therefore come from a dataset without random transforms.
    """

    dataset: Dataset[Any]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # as_data refuses a dataset without a length

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Any, Any]:
        """See Data.batch. Raises TaskError when an example is not a pair of inputs and a target."""
        seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            examples = [self.dataset[index] for index in indices.tolist()]
        for example in examples:
            _require(
                isinstance(example, (tuple, list))
                and len(example) == 2
                and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example[0])),
                f"An example is a pair (inputs, target), but {type(self.dataset).__name__} gave "
                f"{_shown(example)}; add a transform such as ToTensor",
            )
        flat = [[leaf for leaf in pytree.tree_leaves(one[0]) if isinstance(leaf, Tensor)] for one in examples]
        for leaves in zip(*flat, strict=True):
            shapes = sorted({tuple(leaf.shape) for leaf in leaves})
            _require(
                len(shapes) == 1,
                f"All inputs of a batch have one shape, but {shapes[:3]} came; add a resize transform",
            )
        inputs = default_collate([example[0] for example in examples])
        return _single(inputs), _together([example[1] for example in examples])


def _together(targets: list[Any]) -> Any:
    """Targets of several examples: numbers, lists of numbers and arrays are tensors, in containers or not."""
    if isinstance(targets[0], Mapping):
        return {name: _together([target[name] for target in targets]) for name in targets[0]}
    if isinstance(targets[0], tuple):
        return tuple(_together(list(parts)) for parts in zip(*targets, strict=True))
    return torch.stack([torch.as_tensor(target) for target in targets])


def _single(inputs: Any) -> Any:
    """Floats of single precision; class numbers and ids as they are."""
    return pytree.tree_map_only(
        Tensor,
        lambda tensor: (
            tensor.float() if tensor.is_floating_point() or tensor.dtype == torch.uint8 else tensor
        ),
        inputs,
    )


def as_data(source: object) -> Data:
    """Data as it is, a map-style torch Dataset wrapped; raises TaskError for anything else, or if empty."""
    if isinstance(source, Data) and not isinstance(source, type):
        data: Data = source
    elif isinstance(source, Dataset) and hasattr(source, "__len__"):
        data = DatasetData(source)
    else:
        raise TaskError(
            "Data is an ArrayData, an object with __len__ and batch(indices, generator), or a torch Dataset "
            f"with a length, but {type(source).__name__} came; wrap it in one of these"
        )
    _require(
        len(data) > 0,
        f"Data has at least one example, but a {type(source).__name__} is empty; check its source",
    )
    return data


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output (N, K) is the target (N,), else 0; float32 (N,)."""
    return (outputs.argmax(dim=1) == targets).to(torch.float32)


@dataclass(frozen=True, eq=False)
class Task:
    """What a search works on: a trained network and three splits of data.

    model: any module that torch.export captures; example_input: what it takes, with a batch of one: a tensor,
    a tuple of arguments, or a dictionary of keywords; train: what it may learn from; search: what policies
    are scored on, unseen in training; test: scored once, at the end; loss: (outputs, targets) -> scalar;
    score: (outputs, targets) -> (N,), one number in 0..1 per example, higher is better, so that a confidence
    interval can be given; classes: how many, None for the width of the output.

    metric: a ``Metric`` of all outputs and targets of a split, or an object of torchmetrics, instead of the
    score; report: name -> what else is told of the picked network's test split, a metric or a function
    (outputs, targets) -> float.

    part: name of a submodule that alone is compressed and exported; it is trained and scored inside of the
    whole model, whose other weights stay as they are. distil: (student's outputs, teacher's outputs) ->
    scalar (of a part, its own outputs, a list with those of each call), instead of what follows from their
    kind: softmax for classes, sigmoid for yes and no, least squares over the teacher's variance for numbers.
    training_loss: (model, inputs, targets) -> scalar, for a model that computes its own loss while it trains;
    instead of loss(model(inputs), targets).

    Raises TaskError for anything of the wrong kind.
    """

    model: nn.Module
    example_input: Any
    train: Data | Dataset[Any]
    search: Data | Dataset[Any]
    test: Data | Dataset[Any]
    loss: Callable[[Any, Any], Tensor] = cross_entropy
    score: Callable[[Any, Any], Tensor] = top1
    classes: int | None = None
    part: str | None = None
    distil: Callable[[Any, Any], Tensor] | None = None
    training_loss: Callable[[nn.Module, Any, Any], Tensor] | None = None
    metric: Metric | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(
            isinstance(self.model, nn.Module),
            f"A task's model is a torch nn.Module, but {_shown(self.model)} came; give the network object "
            "itself",
        )
        tensors = [leaf for leaf in pytree.tree_leaves(self.example_input) if isinstance(leaf, Tensor)]
        images = isinstance(self.example_input, Tensor)
        _require(
            bool(tensors)
            and not any(tensor.dtype == torch.uint8 for tensor in tensors)
            and (not images or (self.example_input.ndim > 1 and len(self.example_input) == 1)),
            "A task's example_input is what the model takes, with a batch of one: a tensor (1, ...), a tuple "
            f"of arguments or a dictionary of keywords, but {_shown(self.example_input)} came; give for "
            "instance torch.zeros(1, 3, 32, 32)",
        )
        for split in ("train", "search", "test"):
            try:
                as_data(getattr(self, split))
            except TaskError as problem:
                raise TaskError(f"In the task's {split}: {problem}") from None
        for name, arguments in _FUNCTIONS.items():
            given = getattr(self, name)
            _require(
                callable(given) or (given is None and name in ("distil", "training_loss")),
                f"A task's {name} is a function of ({arguments}), but {_shown(given)} came; give a function",
            )
        if self.metric is not None:
            object.__setattr__(self, "metric", as_metric(self.metric))
            _require(
                self.score is top1,
                f"A task is scored in one way, but both score and metric came ({_shown(self.score)}); leave"
                " one of them out",
            )
        _require(
            isinstance(self.report, Mapping),
            f"A task's report is a mapping of names to metrics, but {_shown(self.report)} came; give for"
            " instance"
            ' {"sensitivity": function}',
        )
        object.__setattr__(self, "report", reported(self.report))
        _require(
            self.part is None or isinstance(self.part, str),
            f"A task's part is the name of a submodule, but {_shown(self.part)} came; give its name",
        )
        _require(
            self.classes is None or (type(self.classes) is int and self.classes >= 2),
            f"A task's classes is a whole number from 2, or None, but {_shown(self.classes)} came; correct "
            "it",
        )


_FUNCTIONS = {
    "loss": "outputs, targets",
    "score": "outputs, targets",
    "distil": "student's outputs, teacher's outputs",
    "training_loss": "model, inputs, targets",
}
"""What each function of a task takes."""


def check_labels(data: object, classes: int, split: str) -> None:
    """Raises TaskError when an array of labels holds one outside 0 .. classes - 1.

    Data that is not held in arrays is not read for this.
    """
    if not isinstance(data, ArrayData) or not len(data.labels):
        return
    lowest, highest = int(data.labels.min()), int(data.labels.max())
    _require(
        lowest >= 0 and highest < classes,
        f"Labels are class numbers, 0 to {classes - 1} for this model, but the {split} data holds "
        f"{lowest if lowest < 0 else highest}; correct the labels or the width of the model's output",
    )


def load_task(path: Path, options: Mapping[str, object]) -> Task:
    """Runs `task(**options)` of the user's Python file; modules beside the file can be imported by it.

    Raises TaskError, also for whatever the user's code raises: with its file, line and exception, chained.
    """
    path = Path(path).resolve()
    _require(
        path.is_file(), f"A task is a Python file, but {path} is not there; correct the path of the task"
    )
    name = f"leanfront_task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"A task is a Python file, but {path} does not end in .py; rename it")
    module = importlib.util.module_from_spec(spec)
    with _user_code(path), _no_bytecode():
        sys.modules[name] = module  # dataclasses and pickle look a class's module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    function = getattr(module, "task", None)
    if not callable(function):
        raise TaskError(
            f"A task file defines `def task(**options) -> Task`, but {path} has no function task; add it"
        )
    _check_options(path, inspect.signature(function), options)
    with _user_code(path):
        task = function(**options)
    if not isinstance(task, Task):
        raise TaskError(
            f"The function task returns a leanfront.Task, but that of {path} returned {_shown(task)}; "
            "return a Task"
        )
    return task


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Leave no __pycache__ beside the user's files."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _check_options(path: Path, signature: inspect.Signature, options: Mapping[str, object]) -> None:
    parameters = signature.parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option in known or takes_any:
            continue
        near = difflib.get_close_matches(option, known, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        raise TaskError(
            f"A task's options are the arguments of its function, but task of {path} takes no {option!r}; "
            f"{advice}it takes {', '.join(known) or 'none'}"
        )
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    _require(
        not missing,
        f"Each argument without a default must be given, but task of {path} got no {', '.join(missing)}; "
        "add it to the task's options",
    )


@contextmanager
def _user_code(path: Path) -> Iterator[None]:
    """Runs the user's code with its folder importable, and turns what it raises into TaskError."""
    sys.path.insert(0, str(path.parent))
    try:
        yield
    except TaskError:
        raise
    except FileNotFoundError as problem:
        raise TaskError(f"The task needs a file that is not there: {problem} (in {path})") from problem
    except ImportError as problem:
        if (
            problem.name not in _BEFORE or problem.path
        ):  # a module of the user's own that was found has a path
            raise _failed(problem, path) from problem
        raise TaskError(
            f"A task imports from leanfront, but {path} imports {problem.name}, as tasks of version 0.1 did;"
            " write `from leanfront import ArrayData, Task` and `from leanfront.readers import ...`"
        ) from problem
    except Exception as problem:
        raise _failed(problem, path) from problem
    finally:
        with suppress(ValueError):  # the user's code may have taken it out itself
            sys.path.remove(str(path.parent))


_BEFORE = {"search", "search.task", "search.readers"}
"""What tasks imported in version 0.1."""


def _failed(problem: Exception, path: Path) -> TaskError:
    """The user's own code raised: where."""
    frames = traceback.extract_tb(problem.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
    if isinstance(problem, SyntaxError) and problem.filename == str(path):
        line = problem.lineno
    where = f"{path}, line {line}" if line else str(path)
    return TaskError(
        f"The task's own code must run, but it failed in {where}: {type(problem).__name__}: {problem}"
    )


def load_state(model: nn.Module, path: Path | str) -> None:
    """Loads a state dict into the model: .safetensors, or anything else by torch.load with weights_only.

    Nothing is loaded unless all of it fits. Raises TaskError, naming the first key that does not fit.
    """
    path = Path(path)
    _require(
        path.is_file(),
        f"Weights are loaded from a file, but {path} is not there; correct the path or make it",
    )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # damaged files make the two loaders raise a dozen types
        raise TaskError(
            "Weights are a whole .safetensors file or a state dict that loads without running code, but "
            f"{path} is neither; save it again with torch.save(model.state_dict(), path)"
        ) from problem
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TaskError(
            f"Weights are a state dict, names with tensors, but {path} holds {_shown(state)}; "
            "save it again with torch.save(model.state_dict(), path)"
        )
    wanted = model.state_dict()
    problems = [f"it has no {key!r}" for key in wanted if key not in state]
    problems += [f"the model has no {key!r}" for key in state if key not in wanted]
    problems += [
        f"{key!r} is {tuple(state[key].shape)} where the model has {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TaskError(
            f"Weights must fit the model, but with {path} {problems[0]}{more}; give the model's own weights"
        )
    model.load_state_dict(state)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TaskError(message)


def _shown(value: object) -> str:
    """A value in a few words: tensors by shape, containers by what they hold, others by type and value."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(repr(key) for key in list(value)[:3]) or 'nothing'}"
    if isinstance(value, (tuple, list)):
        return (
            f"a {type(value).__name__} of {', '.join(type(item).__name__ for item in value[:3]) or 'nothing'}"
        )
    return f"{type(value).__name__} {value!r:.40}"
