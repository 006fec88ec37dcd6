"""A pair of .npy files, images and labels, which are mapped into memory and not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.search.readers.images import Images, TaskError, check_labels


def read_npy(images: Path | str, labels: Path | str, classes: Sequence[str] | int | None = None) -> Images:
    """Reads images, uint8 (N, C, H, W), (N, H, W, C) with 1 or 3 channels or (N, H, W), and their labels.

    labels: whole numbers (N,) or (N, 1) are class numbers; all else, float (N,) and any (N, k), are numbers,
    which come back as float32 without classes. classes: their names, or how many there are; by default one
    more than the largest label. The images come back as (N, C, H, W), mapped into memory read-only.

    Raises TaskError for a missing or damaged file, one of pickles, shapes that do not fit, and a label
    outside of classes.
    """
    pixels, targets = _mapped(Path(images)), np.asarray(_mapped(Path(labels)))
    pixels = _channels_first(pixels, images)
    if len(targets) != len(pixels) or targets.ndim > 2 or targets.dtype.kind not in "iufb":
        raise TaskError(
            f"Each image needs one label, a number or a row of numbers, but {images} has {len(pixels)} "
            f"images and {labels} is {targets.dtype} {targets.shape}; give two files of the same split"
        )
    column = targets.reshape(-1) if targets.size == len(targets) else targets
    if column.ndim > 1 or column.dtype.kind == "f":
        return Images(pixels, column.astype(np.float32), ())
    numbers = column.astype(np.int64)
    count = classes if isinstance(classes, int) else int(numbers.max(initial=0)) + 1
    names = tuple(str(n) for n in range(count)) if classes is None or isinstance(classes, int) else classes
    check_labels(numbers, tuple(names), labels)
    return Images(pixels, numbers, tuple(names))


def _mapped(path: Path) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as problem:
        raise TaskError(
            f"Arrays are read from .npy files, but {path} does not exist; correct the path"
        ) from (problem)
    except (OSError, ValueError, EOFError) as problem:
        raise TaskError(
            f"An array is a whole .npy file of numbers, but {path} cannot be read as one ({problem}); save "
            "it again with numpy.save"
        ) from problem
    if not isinstance(found, np.ndarray):
        raise TaskError(f"An array is one .npy file, but {path} is an archive of several; unpack it")
    return found


def _channels_first(pixels: NDArray[Any], path: Path | str) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8 and pixels.ndim == 3:
        return pixels[:, None]
    if pixels.dtype == np.uint8 and pixels.ndim == 4:
        if pixels.shape[1] in (1, 3):
            return pixels
        if pixels.shape[3] in (1, 3):
            return pixels.transpose(0, 3, 1, 2)
    raise TaskError(
        f"Images in an array are uint8 (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, or (N, H, W), but "
        f"{path} is {pixels.dtype} {pixels.shape}; other arrays go into an ArrayData as they are"
    )
