"""The user's side of a search: the network, its data, its loss and its score, from one Python file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from leanfront.hw_profiles.near import did_you_mean
from leanfront.search.data import ArrayData as ArrayData
from leanfront.search.data import Data as Data
from leanfront.search.data import DatasetData as DatasetData
from leanfront.search.data import as_data as as_data
from leanfront.search.data import require, shown
from leanfront.search.readers.images import TaskError as TaskError
from leanfront.search.scores import Metric, as_metric, reported


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output (N, K) is the target (N,), else 0; float32 (N,)."""
    return (outputs.argmax(dim=1) == targets).to(torch.float32)


@dataclass(frozen=True, eq=False)
class Task:
    """What a search works on: a trained network and three splits of data.

    model: any module that torch.export captures, or the path of an .onnx file, which becomes one (the task
    has the module then); example_input: what it takes, with a batch of one: a tensor,
    a tuple of arguments, or a dictionary of keywords; train: what it may learn from; search: what policies
    are scored on, unseen in training; test: scored once, at the end (all three are Data once the task is
    made); loss: (outputs, targets) -> scalar;
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

    student: a smaller network with the same inputs and outputs, which ``leanfront compare`` trains, alone and
    with the model as its teacher, beside what it makes of the model.

    Raises TaskError for anything of the wrong kind.
    """

    model: nn.Module
    example_input: Any
    train: Data | Dataset[Any] | DataLoader[Any]
    search: Data | Dataset[Any] | DataLoader[Any]
    test: Data | Dataset[Any] | DataLoader[Any]
    loss: Callable[[Any, Any], Tensor] = cross_entropy
    score: Callable[[Any, Any], Tensor] = top1
    classes: int | None = None
    part: str | None = None
    distil: Callable[[Any, Any], Tensor] | None = None
    training_loss: Callable[[nn.Module, Any, Any], Tensor] | None = None
    metric: Metric | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    student: nn.Module | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, (str, Path)):
            object.__setattr__(self, "model", _from_file(Path(self.model)))
        require(
            isinstance(self.model, nn.Module),
            f"A task's model is a torch nn.Module, or the path of an .onnx file, but {shown(self.model)} "
            "came; give the network object itself",
        )
        tensors = [leaf for leaf in pytree.tree_leaves(self.example_input) if isinstance(leaf, Tensor)]
        images = isinstance(self.example_input, Tensor)
        require(
            bool(tensors)
            and not any(tensor.dtype == torch.uint8 for tensor in tensors)
            and (not images or (self.example_input.ndim > 1 and len(self.example_input) == 1)),
            "A task's example_input is what the model takes, with a batch of one: a tensor (1, ...), a tuple "
            f"of arguments or a dictionary of keywords, but {shown(self.example_input)} came; give for "
            "instance torch.zeros(1, 3, 32, 32)",
        )
        for split in ("train", "search", "test"):
            try:
                data = as_data(getattr(self, split), self.example_input)
            except TaskError as problem:
                raise TaskError(f"In the task's {split}: {problem}") from None
            object.__setattr__(self, split, data)
        for name, arguments in _FUNCTIONS.items():
            given = getattr(self, name)
            require(
                callable(given) or (given is None and name in ("distil", "training_loss")),
                f"A task's {name} is a function of ({arguments}), but {shown(given)} came; give a function",
            )
        if self.metric is not None:
            object.__setattr__(self, "metric", as_metric(self.metric))
            require(
                self.score is top1,
                f"A task is scored in one way, but both score and metric came ({shown(self.score)}); leave"
                " one of them out",
            )
        require(
            isinstance(self.report, Mapping),
            f"A task's report is a mapping of names to metrics, but {shown(self.report)} came; give for"
            " instance"
            ' {"sensitivity": function}',
        )
        object.__setattr__(self, "report", reported(self.report))
        require(
            self.student is None or isinstance(self.student, nn.Module),
            f"A task's student is a torch nn.Module, but {shown(self.student)} came; give the network object",
        )
        require(
            self.part is None or isinstance(self.part, str),
            f"A task's part is the name of a submodule, but {shown(self.part)} came; give its name",
        )
        require(
            self.classes is None or (type(self.classes) is int and self.classes >= 2),
            f"A task's classes is a whole number from 2, or None, but {shown(self.classes)} came; correct it",
        )


def _from_file(path: Path) -> nn.Module:
    """Raises TaskError, with what is wrong with the file."""
    from leanfront.compression.capture.from_file import module_of
    from leanfront.compression.capture.onnx_graph import OnnxError

    try:
        return module_of(path)
    except OnnxError as problem:
        raise TaskError(f"A task's model may be an .onnx file, but {problem}") from problem


_FUNCTIONS = {
    "loss": "outputs, targets",
    "score": "outputs, targets",
    "distil": "student's outputs, teacher's outputs",
    "training_loss": "model, inputs, targets",
}
"""What each function of a task takes."""


def load_task(path: Path, options: Mapping[str, object]) -> Task:
    """Runs `task(**options)` of the user's Python file; modules beside the file can be imported by it.

    Raises TaskError, also for whatever the user's code raises: with its file, line and exception, chained.
    """
    path = Path(path).resolve()
    require(path.is_file(), f"A task is a Python file, but {path} is not there; correct the path of the task")
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
            f"The function task returns a leanfront.Task, but that of {path} returned {shown(task)}; "
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
        raise TaskError(
            f"A task's options are the arguments of its function, but task of {path} takes no {option!r}; "
            f"{did_you_mean(option, known)}it takes {', '.join(known) or 'none'}"
        )
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    require(
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
    require(
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
            f"Weights are a state dict, names with tensors, but {path} holds {shown(state)}; "
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
