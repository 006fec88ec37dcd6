"""Image files to one array of bytes: several at a time, without holding more of them than that array."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leanfront.search.readers.cache import cache_folder
from leanfront.search.readers.images import TaskError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "WEBP",
    "PPM",
    "TIFF",
)  # no decoder beyond these sees the user's files
IN_MEMORY_BYTES = 600_000_000
"""A larger array is made in a file."""
_AT_A_TIME = 256


def decoded(
    names: Sequence[str],
    read: Callable[[str], bytes],
    source: object,
    channels: int,
    skip_corrupt: bool = False,
) -> tuple[NDArray[np.uint8], list[int]]:
    """The images (n, channels, H, W) of files, and which of the names they are of: all, unless corrupt ones
    are skipped.

    names: what read takes and errors name, with source: where they are from; channels: 3 for RGB, 1 for grey.

    Raises:
        TaskError: a file is no image of 8 bits a channel, or of another size than those before it.
    """
    if channels not in (1, 3):
        raise TaskError(f"Images have 1 or 3 channels, but channels is {channels}; give one of these")
    images: NDArray[np.uint8] | None = None
    kept: list[int] = []
    one = partial(_tried, read, channels)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # decoders let others run meanwhile
        for start in range(0, len(names), _AT_A_TIME):
            part = names[start : start + _AT_A_TIME]
            for number, (name, found) in enumerate(zip(part, pool.map(one, part), strict=True), start):
                if isinstance(found, TaskError):
                    raise TaskError(f"{found} ({name} of {source})")
                if isinstance(found, Exception):
                    if skip_corrupt:
                        continue
                    raise TaskError(
                        f"Each image must be readable, but {name} of {source} is corrupt ({found}); "
                        "replace it, or read with skip_corrupt=True"
                    ) from found
                if images is None:
                    images = _room((len(names), *found.shape))
                if found.shape != images.shape[1:]:
                    raise TaskError(
                        f"All images must have one size, but {name} of {source} is {_size(found.shape)} "
                        f"where those before it are {_size(images.shape[1:])}; resize or remove it"
                    )
                images[len(kept)] = found
                kept.append(number)
    return (np.empty((0, channels, 1, 1), np.uint8) if images is None else images[: len(kept)]), kept


def _tried(read: Callable[[str], bytes], channels: int, name: str) -> NDArray[np.uint8] | Exception:
    """A file as (channels, H, W), or what is wrong with it: decoders and archives raise a dozen types."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=FORMATS) as image:
            if image.mode[0] in "IF":
                return TaskError(
                    f"Images must have 8 bits a channel, but one has mode {image.mode}; convert it"
                )
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), dtype=np.uint8)
    except Exception as problem:
        return problem
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array to fill, which need not fit into memory."""
    if np.prod(shape, dtype=np.int64) > IN_MEMORY_BYTES:
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_folder()) as file:  # gone with the array
                return np.memmap(file, np.uint8, "w+", shape=shape)
        except OSError:  # then memory must do
            pass
    return np.empty(shape, np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
