"""IDX files (MNIST and its kin), plain or gzipped, as Debian's dataset-fashion-mnist installs them."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanfront.search.readers.images import Images, TaskError, check_labels

MOST_BYTES = 1 << 32
"""The most that a header may promise: a gzipped file may unpack to a thousand times its size."""
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def read_fashion_mnist(split: str, folder: Path | str = FASHION_MNIST_FOLDER) -> Images:
    """Fashion-MNIST, (N, 1, 28, 28): split "train" has 60,000 images, "test" 10,000; files plain or .gz.

    Raises TaskError as read_idx does, and for another split.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise TaskError(
            f"Fashion-MNIST has the splits 'train' and 'test', but {split!r} was asked for; give one of these"
        )
    folder = Path(folder)
    paths = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        plain = folder / f"{prefixes[split]}-{kind}"
        packed = plain.with_name(f"{plain.name}.gz")
        if not plain.exists() and not packed.exists():
            raise TaskError(
                f"Fashion-MNIST needs {packed.name} in {folder}, but it is not there; "
                "run `apt install dataset-fashion-mnist`, or give the folder that has the four files"
            )
        paths.append(plain if plain.exists() else packed)
    return read_idx(paths[0], paths[1], FASHION_MNIST_CLASSES)


def read_idx(images: Path | str, labels: Path | str, classes: Sequence[str] | int) -> Images:
    """Reads one IDX file of uint8 images (N, H, W) and one of uint8 labels (N,); either may be gzipped.

    classes: their names, or how many there are (then named "0", "1", ...). The images come back as (N, 1, H,
    W). Raises TaskError for a missing, foreign or truncated file, unequal counts, a label outside the
    classes and an empty class.
    """
    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(classes)
    pixels = _read(Path(images), dimensions=3)
    targets = _read(Path(labels), dimensions=1).astype(np.int64)
    if len(pixels) != len(targets):
        raise TaskError(
            f"Each image needs one label, but {images} has {len(pixels)} images and {labels} has "
            f"{len(targets)} labels; give two files of the same split"
        )
    check_labels(targets, names, labels)
    return Images(pixels[:, None], targets, names)


def _read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, dimensions)):
                raise TaskError(
                    f"An IDX file of bytes with {dimensions} dimensions begins with 00 00 08 0{dimensions}, "
                    f"but {path} begins with {magic.hex(' ') or 'nothing'}; give the images first and the "
                    "labels second"
                )
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            if math.prod(shape) > MOST_BYTES:
                raise OSError(f"it promises {math.prod(shape)} bytes, {MOST_BYTES} are the most")
            data = file.read(math.prod(shape))
    except FileNotFoundError as problem:
        raise TaskError(
            f"IDX data is read from a file, but {path} does not exist; correct the path"
        ) from problem
    except (OSError, EOFError, zlib.error, struct.error, OverflowError, MemoryError) as problem:
        raise TaskError(
            f"An IDX file must be whole, but {path} cannot be read ({problem}); download it again"
        ) from problem
    if len(data) != math.prod(shape):
        raise TaskError(
            f"An IDX file must be whole, but {path} has {len(data)} of the {math.prod(shape)} bytes its "
            "header promises; download it again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
