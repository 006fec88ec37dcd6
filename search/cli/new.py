"""``leanfront new``: a task file and a configuration that run, from a network and the place of its data."""

import csv
import importlib.machinery
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Annotated

import typer

from leanfront.latency_models.files import replace_file, writing
from leanfront.search.cli.output import shown
from leanfront.search.config import ConfigError

SPLITS = {
    "train": ("train", "training"),
    "search": ("val", "valid", "validation", "search", "dev"),
    "test": ("test", "testing"),
}
"""What the three splits of a task are called by others."""
LABELS = ("label", "class", "target", "y")
USUAL = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.5,), (0.5,))}
"""Channels -> the mean and standard deviation that most networks are trained with."""


@dataclass(frozen=True)
class Source:
    """How a task reads its data.

    reads: of each split that there is, the call of the reader ({data}: the path); shape: of an image,
    (channels, height, width); goal: what labels are, a key of GOALS; tolerance: how near an answer in numbers
    is right.
    """

    reader: str
    reads: Mapping[str, str]
    shape: tuple[int, int, int]
    goal: str = "classes"
    tolerance: float = 1.0


GOALS = {
    "classes": ("", "", ""),
    "numbers": (
        "from torch.nn.functional import mse_loss\n",
        """

TOLERANCE = {tolerance:.2g}  # an answer that is nearer than this is right: correct it


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs.reshape(targets.shape), targets)


def score(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs.reshape(targets.shape) - targets).abs() < TOLERANCE).float()
""",
        "        loss=loss,\n        score=score,\n",
    ),
    "answers": (
        "from torch.nn.functional import binary_cross_entropy_with_logits\n",
        '''

def score(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of an image's answers of yes and no that are right."""
    return ((outputs > 0) == (targets > 0.5)).float().mean(1)
''',
        "        loss=binary_cross_entropy_with_logits,\n        score=score,\n",
    ),
}
"""What labels are -> what a task file imports, defines and says for it."""

CONFIG = """# Every other key has a default: docs/configuration.md.
[task]
file = "task.py"

[hardware]
profile = {profile}

[search]
objectives = ["accuracy", "latency_ms", "size_bytes"]
"""


def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where task.py and search.toml go.")],
    network: Annotated[
        str,
        typer.Option("--from", metavar="NETWORK", help="An .onnx file, or module:function that makes it."),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DATA", help="A folder or .zip of images, a table, or a .npz."),
    ],
    profile: Annotated[
        str, typer.Option("--profile", metavar="PROFILE", help="The part to search for.")
    ] = "this-machine",
) -> None:
    """Write a task file and a configuration that run, to be edited."""
    from leanfront.hw_profiles import find_profile
    from leanfront.hw_profiles.loading import toml_value

    find_profile(profile)
    for file in (folder / "task.py", folder / "search.toml"):
        if file.exists():
            raise ConfigError(f"a new task goes where none is, but {file} is there; give another folder")
    wanted = _shape_of(Path(network)) if network.endswith(".onnx") else None
    source = _source_of(data, wanted)
    if wanted is not None and wanted != source.shape:
        raise ConfigError(
            f"images have the size that the network takes, {_sized(wanted)} in {network}, but those of {data}"
            f" are {_sized(source.shape)}; resize them, or write a task with a Dataset that does"
            " (docs/your-own-task.md)"
        )
    text = task_text(folder, network, data, source)
    with writing(folder / "task.py", ConfigError):
        replace_file(folder / "task.py", text)
        replace_file(folder / "search.toml", CONFIG.format(profile=toml_value(profile)))
    print(f"{shown(folder / 'task.py')}: correct MEAN and STD if the network was trained with others; then")
    print(f"  leanfront check {shown(folder)}")


def task_text(folder: Path, network: str, data: Path, source: Source) -> str:
    """The task file for a folder."""
    held = source.shape[0]
    mean, std = USUAL[held]
    imports, defines, says = GOALS[source.goal]
    reads = {split: call.format(data="HERE / data") for split, call in source.reads.items()}
    split = "" if set(reads) == set(SPLITS) else ", split_at_random"
    if network.endswith(".onnx"):
        argument = f", model: str = {json.dumps(_beside(Path(network), folder))}"
        path, model = "", "HERE / model,  # made a network by onnx2torch"
    else:
        module, _, function = network.partition(":")
        argument, path = "", _import_of(module, function, folder)
        model = f"{function}(),  # trained: it returns the network with its weights"
    tensor = ", Tensor" if source.goal != "classes" else ""
    return f'''"""The network of {network} on the data of {data.name}: edit it, then run leanfront check."""

{"import sys" + chr(10) if "sys.path" in path else ""}from pathlib import Path

import torch
{f"from torch import Tensor{chr(10)}" if tensor else ""}{imports}
from leanfront import ArrayData, Task
from leanfront.readers import {source.reader}{split}

HERE = Path(__file__).parent
{path}
# By channel, for pixels in 0..1: the usual ones; give those that the network was trained with.
MEAN, STD = {mean}, {std}
{defines.format(tolerance=source.tolerance)}

def task(data: str = {json.dumps(_beside(data, folder))}{argument}) -> Task:
{_splits(reads)}
    return Task(
        model={model}
        example_input=torch.zeros(1, *train.images.shape[1:]),
        # pad=4, flip=True: random crops and mirrored images in training, if the network was trained so
        train=ArrayData(train.images, train.labels, MEAN, STD),
        search=ArrayData(search.images, search.labels, MEAN, STD),
        test=ArrayData(test.images, test.labels, MEAN, STD),
{says}    )
'''


def _splits(reads: Mapping[str, str]) -> str:
    """The lines that make train, search and test of the splits that there are."""
    if set(reads) == set(SPLITS):
        return "\n".join(f"    {split} = {call}" for split, call in reads.items())
    if len(reads) == 1:
        (call,) = reads.values()
        return (
            "    # search and test should be images that the network was not trained on\n"
            f"    images = {call}\n    train, search, test = split_at_random(images, 0.6, 0.2, 0.2)"
        )
    held = next(call for split, call in reads.items() if split != "train")
    return f"    train = {reads['train']}\n    search, test = split_at_random({held}, 0.5, 0.5)"


def _beside(path: Path, folder: Path) -> str:
    """A path as the task file names it."""
    return os.path.relpath(path.resolve(), folder.resolve())


def _import_of(module: str, function: str, folder: Path) -> str:
    """The line that imports a function, from the folder that we are in if it is there."""
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"--from is an .onnx file or module:function, such as networks:resnet20, not {module}:{function}"
        )
    top = module.partition(".")[0]
    line = f"from {module} import {function}  # noqa: E402"
    if (Path(f"{top}.py").exists() or Path(top).is_dir()) and Path.cwd() != folder.resolve():
        return (
            f"sys.path.append(str(HERE / {json.dumps(_beside(Path(), folder))}))  # where {top} is\n{line}\n"
        )
    if Path(f"{top}.py").exists() or importlib.machinery.PathFinder.find_spec(top) is not None:
        return f"{line}\n"
    raise ConfigError(
        f"--from names a module that can be imported, but there is no {top}.py here and no {top}"
    )


def _shape_of(path: Path) -> tuple[int, int, int]:
    """(channels, height, width) that a network in an .onnx file takes."""
    from leanfront.compression.capture.onnx_graph import fixed_shapes, graph_of, read_model

    graph = graph_of(read_model(path), str(path))
    shapes = [fixed_shapes(graph.model.graph)[name] for name in graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in USUAL:
        raise ConfigError(
            f"a new task is for a network that takes images (N, 1 or 3, H, W), but {path} takes"
            f" {', '.join(map(str, shapes))}; write the task by hand (docs/your-own-task.md)"
        )
    _, channels, height, width = shapes[0]
    return channels, height, width


def _sized(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _source_of(data: Path, wanted: tuple[int, int, int] | None) -> Source:
    """The reader of what lies at a path, and how images look there. wanted: what the network takes."""
    if data.suffix == ".npz":
        return _medmnist(data)
    if data.suffix == ".csv":
        return _table(data, wanted)
    if data.is_dir() or data.suffix == ".zip":
        return _folders(data, wanted)
    raise ConfigError(
        "data are a folder or .zip of images by class, a .csv of files and labels, or a MedMNIST .npz, but"
        f" {data} is none of these; write the task by hand (docs/your-own-task.md)"
    )


def _medmnist(data: Path) -> Source:
    from leanfront.search.readers import read_medmnist

    read_medmnist(data, "val")  # says what is wrong with the file
    found = read_medmnist(data, "test")
    channels, height, width = found.images.shape[1:]
    reads = {
        ours: f'read_medmnist({{data}}, "{theirs}")'
        for ours, theirs in zip(SPLITS, ("train", "val", "test"), strict=True)
    }
    return Source(
        "read_medmnist", reads, (channels, height, width), "classes" if found.classes else "answers"
    )


def _folders(data: Path, wanted: tuple[int, int, int] | None) -> Source:
    from leanfront.search.readers.decoding import SUFFIXES

    if data.is_dir():
        files = next((path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES), None)
        names = [path.name for path in (*data.glob("*"), *data.glob("*/*")) if path.is_dir()]
        first = None if files is None else files.read_bytes()
    else:
        try:
            with zipfile.ZipFile(data) as archive:
                images = [name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES]
                names = [part for name in images for part in Path(name).parts[:-2]]
                first = archive.read(images[0]) if images else None
        except (OSError, zipfile.BadZipFile) as problem:
            raise ConfigError(f"cannot read {data}: {problem}") from problem
    if first is None:
        raise ConfigError(f"a folder of data holds images, one folder a class, but {data} has none")
    shape = _image_shape(first, wanted, str(data))
    found = {
        split: name for split, known in SPLITS.items() if (name := next((n for n in known if n in names), ""))
    }
    channels = "" if shape[0] == 3 else ", channels=1"
    if "train" not in found or len(found) == 1:
        return Source("read_image_folder", {"train": f"read_image_folder({{data}}{channels})"}, shape)
    reads = {split: f'read_image_folder({{data}}, "{name}"{channels})' for split, name in found.items()}
    return Source("read_image_folder", reads, shape)


def _table(data: Path, wanted: tuple[int, int, int] | None) -> Source:
    try:
        with data.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as problem:
        raise ConfigError(f"cannot read the table {data}: {problem}") from problem
    columns = list(lines[0]) if lines else []
    file_column = next((name for name in columns if (data.parent / (lines[0][name] or "")).is_file()), None)
    if file_column is None:
        raise ConfigError(
            f"a table has a line of column names, and a column of files, relative to it, but {data} has none"
            " of files that are there; correct it"
        )
    label = next((name for name in (*LABELS, *columns) if name in columns and name != file_column), None)
    if label is None:
        raise ConfigError(f"a table has a column of labels beside that of files, but {data} has none; add it")
    shape = _image_shape((data.parent / str(lines[0][file_column])).read_bytes(), wanted, str(data))
    given = [f"file={json.dumps(file_column)}"] if file_column != "file" else []
    given += [f"label={json.dumps(label)}"] if label != "label" else []
    given += [] if shape[0] == 3 else ["channels=1"]
    more = "".join(f", {each}" for each in given)
    values = {line["split"] or "" for line in lines} if "split" in columns else set()
    found = {s: name for s, known in SPLITS.items() if (name := next((n for n in known if n in values), ""))}
    whole = "train" not in found or len(found) == 1
    reads = {"train": f"read_csv({{data}}{more})"}
    if not whole:
        reads = {split: f'read_csv({{data}}, "{name}"{more})' for split, name in found.items()}
    spread = _spread([line[label] or "" for line in lines])
    goal = "classes" if spread is None else "numbers"
    return Source("read_csv", reads, shape, goal, (spread or 4.0) / 4)


def _spread(labels: Sequence[str]) -> float | None:
    """The standard deviation of labels that read_csv takes for numbers; None of classes."""
    if all(text.strip().isdecimal() for text in labels):
        return None
    try:
        return pstdev([float(text) for text in labels])
    except ValueError:
        return None


def _image_shape(content: bytes, wanted: tuple[int, int, int] | None, source: str) -> tuple[int, int, int]:
    """(channels, height, width) of an image, with the channels of the network, if that is known."""
    from io import BytesIO

    from PIL import Image

    from leanfront.search.readers.decoding import FORMATS

    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            channels = wanted[0] if wanted is not None else 1 if image.mode in ("1", "L", "LA") else 3
            return channels, image.height, image.width
    except Exception as problem:  # decoders raise a dozen types
        raise ConfigError(f"the first image of {source} cannot be read: {problem}; replace it") from problem
