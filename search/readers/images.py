"""The value every reader returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TaskError(ValueError):
    """The user's task, data or weights cannot be used; the message is one sentence that says what to do.

    It is here so that the readers need no torch."""


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images of one split, all of one size.

    images: uint8 (N, C, H, W), perhaps a read-only memory map; labels: int64 (N,), an index into classes, or
    float32 (N,) or (N, k), numbers, and then classes is empty; names: the file each image came from, or None
    where the format has no names; skipped: the corrupt files that were left out on request.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    classes: tuple[str, ...]
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Images:
        """The chosen images, in the order of the indices (N,), as a copy."""
        names = None if self.names is None else tuple(self.names[i] for i in indices)
        return Images(np.asarray(self.images)[indices], np.asarray(self.labels)[indices], self.classes, names)


def split_at_random(images: Images, *shares: float) -> list[Images]:
    """Parts with these shares of the images, drawn once and for all: the same images and shares give the same
    parts. Raises TaskError unless the shares are above 0, sum to 1 and leave no part empty."""
    if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise TaskError(f"Shares of a split are above 0 and sum to 1, but {shares} came; correct them")
    ends = np.round(np.cumsum(shares) * len(images)).astype(int)
    parts = np.split(np.random.default_rng(0).permutation(len(images)), ends[:-1])
    if not all(len(part) for part in parts):
        raise TaskError(
            f"Each part of a split has an image, but there are {len(images)} for {shares}; add some"
        )
    return [images.take(part) for part in parts]


def split_each_class(images: Images, count: int) -> tuple[Images, Images]:
    """Two halves: the first `count` images of each class in their stored order, and all the others.

    Raises TaskError when a class has no image left for the second half, and where there are no classes.
    """
    if not images.classes:
        raise TaskError("A split by class needs classes, but these labels are numbers; give split_at_random")
    first = np.zeros(len(images), dtype=bool)
    for label, name in enumerate(images.classes):
        of_class = np.flatnonzero(images.labels == label)
        if len(of_class) <= count:
            raise TaskError(
                f"The split takes {count} images of each class and leaves the rest, but class {name!r} has "
                f"only {len(of_class)}; add images or take fewer"
            )
        first[of_class[:count]] = True
    return images.take(np.flatnonzero(first)), images.take(np.flatnonzero(~first))


def check_labels(labels: NDArray[np.int64], classes: Sequence[str], source: object) -> None:
    """Raises TaskError, naming the source, when a label names no class or a class has no label."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
    if counts.sum() != len(labels):
        wrong = int(np.flatnonzero((labels < 0) | (labels >= len(classes)))[0])
        raise TaskError(
            f"Labels must be 0 to {len(classes) - 1} for {len(classes)} classes, but example {wrong} of "
            f"{source} has {labels[wrong]}; give all the classes or correct the label"
        )
    if not counts.all():
        empty = classes[int(np.flatnonzero(counts == 0)[0])]
        raise TaskError(
            f"Each class needs at least one example, but class {empty!r} of {source} has none; add some or "
            "remove it"
        )
