"""Decoded images kept as .npy files in the user's cache folder: decoded once, memory shared by workers."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.kernel_table.table import cache_folder as cache_folder
from leanfront.search.readers.images import Images

READER_VERSION = 1  # part of every key: raise it when a reader decodes differently or the files here change


def content_key(parts: Iterable[str]) -> str:
    """32 hex digits that stand for these parts, in this order, and for this version of the readers."""
    digest = hashlib.blake2b(f"leanfront images {READER_VERSION}".encode(), digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def cached(key: str, build: Callable[[], Images]) -> Images:
    """The images stored under `key`, memory-mapped read-only; built and stored first when absent or damaged.

    A cache that cannot be written costs a warning and the time to decode again, never the run.
    """
    entry = cache_folder() / f"images-{key}"
    if (found := _load(entry)) is not None:
        return found
    built = build()
    try:
        _store(entry, built)
    except OSError as problem:
        warnings.warn(f"Decoded images could not be kept in {entry.parent}: {problem}", stacklevel=2)
        return built
    return _load(entry) or built


def _load(entry: Path) -> Images | None:
    try:
        about: dict[str, Any] = json.loads((entry / "about.json").read_text("utf-8"))
        images: NDArray[np.uint8] = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        labels: NDArray[np.int64] = np.load(entry / "labels.npy", allow_pickle=False)
        if about["crc"] != [_crc(images), _crc(labels)]:
            return None
        names = None if about["names"] is None else tuple(about["names"])
        return Images(images, labels, tuple(about["classes"]), names, tuple(about["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None  # absent or damaged: both are answered by building it


def _store(entry: Path, images: Images) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
    try:
        np.save(beside / "images.npy", images.images)
        np.save(beside / "labels.npy", images.labels)
        about = {
            "classes": images.classes,
            "names": images.names,
            "skipped": images.skipped,
            "crc": [_crc(images.images), _crc(images.labels)],
        }
        (beside / "about.json").write_text(json.dumps(about), "utf-8")
        # What stands there is damaged, or another worker has just finished the same: that one is as good as
        # ours.
        if _load(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)
            beside.rename(entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _crc(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
