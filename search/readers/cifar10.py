"""CIFAR-10 in any of its forms; the official batches (pickles) are read without running what they ask for."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.search.readers.cache import cached, content_key
from leanfront.search.readers.image_folder import read_image_folder
from leanfront.search.readers.images import Images, TaskError, check_labels, split_each_class

# The scaling the example networks were trained with (ImageNet's, per channel, for pixels in 0..1).
CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.229, 0.224, 0.225)
SEARCH_PER_CLASS = 500
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_BYTES = 1 << 26
"""A batch has 31 MB; what claims more is none, however little of the archive it takes."""
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


@dataclass(frozen=True, eq=False)
class Cifar10:
    """train: 50,000 images (N, 3, 32, 32); search: the first 500 test images of a class; test: the others."""

    train: Images
    search: Images
    test: Images


def read_cifar10(path: Path | str) -> Cifar10:
    """Reads cifar-10-python.tar.gz, the folder unpacked from it, or train/ and test/ folders of images (or a
    .zip).

    A trained network has seen every training image, so the search is scored on half of the test images and
    the other half is kept for the end. Raises TaskError, for missing data with where to get it.
    """
    path = Path(path)
    if not path.exists():
        raise TaskError(
            f"CIFAR-10 is needed, but {path} does not exist; download "
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and give its path as the task's option "
            "'data'"
        )
    if _has_batches(path):
        train, held_out = read_cifar10_batches(path, "train"), read_cifar10_batches(path, "test")
    else:
        train, held_out = read_image_folder(path, "train"), read_image_folder(path, "test")
        if train.classes != held_out.classes:
            differing = sorted(set(train.classes) ^ set(held_out.classes))
            raise TaskError(
                f"train and test must have the same classes, but {', '.join(differing)} of {path} is only "
                "in one; complete the data"
            )
    search, test = split_each_class(held_out, SEARCH_PER_CLASS)
    return Cifar10(train, search, test)


def _has_batches(path: Path) -> bool:
    if path.is_dir():
        return (path / "test_batch").exists() or (path / "cifar-10-batches-py").is_dir()
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))


def read_cifar10_batches(path: Path | str, split: str) -> Images:
    """Reads split "train" (50,000) or "test" (10,000) of cifar-10-python.tar.gz or of its unpacked folder.

    The images (N, 3, 32, 32) keep the order of the files and are cached (see search.readers.cache).
    Raises TaskError for a missing or truncated file, or a batch that holds anything but what the format has.
    """
    path = Path(path)
    if split not in BATCHES:
        raise TaskError(
            f"CIFAR-10 has the splits 'train' and 'test', but {split!r} was asked for; give one of these"
        )
    if path.is_dir():
        folder = path / "cifar-10-batches-py" if (path / "cifar-10-batches-py").is_dir() else path
        content = [_file_state(folder / name) for name in BATCHES[split]]
        return cached(
            content_key([split, *content]), lambda: _join(path, split, lambda n: (folder / n).read_bytes())
        )
    try:
        with path.open("rb") as file:
            content = [hashlib.file_digest(file, "blake2b").hexdigest()]
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    return cached(content_key([split, *content]), lambda: _read_tar(path, split))


def _file_state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


def _read_tar(path: Path, split: str) -> Images:
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                if (size := members[name].size) > MOST_BYTES:
                    raise tarfile.TarError(f"{name} has {size} bytes, a batch at most {MOST_BYTES}")
                file = archive.extractfile(members[name])
                assert file is not None  # only files are in `members`
                return file.read()

            return _join(path, split, read)
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as problem:
        raise _unreadable(path, problem) from problem


def _join(path: Path, split: str, read: Callable[[str], bytes]) -> Images:
    batches = [_batch(read(name), f"{name} of {path}") for name in BATCHES[split]]
    labels = np.concatenate([batch[1] for batch in batches])
    check_labels(labels, CIFAR10_CLASSES, path)
    names = tuple(name for batch in batches for name in batch[2])
    return Images(np.concatenate([batch[0] for batch in batches]), labels, CIFAR10_CLASSES, names)


def _batch(data: bytes, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    try:
        content = _BatchUnpickler(BytesIO(data), encoding="bytes").load()
        images = content[b"data"].decoded().reshape(-1, 3, 32, 32)
        labels = np.asarray(content[b"labels"], dtype=np.int64)
        names = [bytes(name).decode("ascii", "replace") for name in content[b"filenames"]]
    except Exception as problem:  # a foreign pickle can fail in any way; it cannot do anything else
        raise TaskError(
            f"A CIFAR-10 batch is a pickled dict of images, labels and names, but {source} is not "
            f"({problem}); download cifar-10-python.tar.gz again"
        ) from problem
    if not len(images) == len(labels) == len(names):
        raise TaskError(
            f"A CIFAR-10 batch has one label and name per image, but {source} has {len(images)} images, "
            f"{len(labels)} labels and {len(names)} names; download cifar-10-python.tar.gz again"
        )
    return images, labels, names


def _unreadable(path: Path, problem: Exception) -> TaskError:
    return TaskError(
        f"The CIFAR-10 batches must be there and whole, but {path} cannot be read ({problem}); download "
        "cifar-10-python.tar.gz again from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


# A pickle is a program. The format needs three of numpy's names, and even those can be misused (a dtype's
# state can turn bytes into object pointers), so the names resolve to the inert stand-ins below and numpy
# never sees the pickle.


class _Dtype:
    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and flags mean nothing for bytes


class _Array:
    state: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def decoded(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", b"u1"):
            raise ValueError("its images are not bytes")
        return np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes into old pickle protocols for bytes: codecs.encode(text, "latin1")."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]
