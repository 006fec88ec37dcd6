"""MedMNIST's .npz files: small images of medicine, three splits in one file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.search.readers.images import Images, TaskError, check_labels

SPLITS = ("train", "val", "test")
MOST_BYTES = 1 << 35
"""The most that a file may unpack to; the largest of MedMNIST's own, in 224x224, has 30 GB."""


def read_medmnist(path: Path | str, split: str, classes: Sequence[str] | None = None) -> Images:
    """Reads split "train", "val" or "test" of a MedMNIST .npz, uint8 (N, H, W) or (N, H, W, 3) in the file.

    The images come back as (N, 1 or 3, H, W). Labels (N, 1) are class numbers, of as many classes as any
    split has, named by classes or by their numbers; labels (N, k), of which several may be 1, come back as
    float32 (N, k) for a loss such as binary_cross_entropy_with_logits, without classes.

    Raises TaskError for a missing, foreign or damaged file, another split, and a label outside of classes.
    """
    path = Path(path)
    if split not in SPLITS:
        raise TaskError(
            f"A MedMNIST file has the splits {', '.join(SPLITS)}, but {split!r} was asked for; give one of "
            "these"
        )
    try:
        with zipfile.ZipFile(path) as packed:
            if (size := sum(entry.file_size for entry in packed.infolist())) > MOST_BYTES:
                raise OSError(f"it promises {size} bytes, {MOST_BYTES} are the most")
        with np.load(path, allow_pickle=False) as file:
            pixels, targets = file[f"{split}_images"], file[f"{split}_labels"]
            most = max(int(file[f"{each}_labels"].max()) for each in SPLITS if f"{each}_labels" in file)
    except FileNotFoundError as problem:
        raise TaskError(
            f"MedMNIST is read from a .npz file, but {path} does not exist; correct the path"
        ) from (problem)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise TaskError(
            f"A MedMNIST file is a whole .npz with {split}_images and {split}_labels, but {path} cannot be "
            f"read as one ({problem}); download it again"
        ) from problem
    return _images(pixels, targets, most, classes, path)


def _images(
    pixels: NDArray[Any], targets: NDArray[Any], most: int, classes: Sequence[str] | None, path: Path
) -> Images:
    grey = pixels.ndim == 3
    if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 4 and pixels.shape[3] == 3)):
        raise TaskError(
            f"MedMNIST's images are uint8 (N, H, W) or (N, H, W, 3), but {path} has {pixels.dtype} "
            f"{pixels.shape}; data of three dimensions needs a Dataset of your own"
        )
    if targets.dtype.kind not in "iu" or targets.ndim != 2 or len(targets) != len(pixels):
        raise TaskError(
            f"MedMNIST has a row of whole numbers for each image, ({len(pixels)}, k), but {path} has "
            f"{targets.dtype} {targets.shape}; download it again"
        )
    images = pixels[:, None] if grey else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    if targets.shape[1] > 1:
        return Images(images, targets.astype(np.float32), ())
    labels = targets[:, 0].astype(np.int64)
    names = tuple(classes) if classes is not None else tuple(str(number) for number in range(most + 1))
    check_labels(labels, names, path)
    return Images(images, labels, names)
