"""A table of files and labels: a CSV file with a line for each image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanfront.search.readers.cache import cached, content_key
from leanfront.search.readers.decoding import decoded
from leanfront.search.readers.images import Images, TaskError


def read_csv(
    path: Path | str,
    split: str | None = None,
    *,
    file: str = "file",
    label: str | Sequence[str] = "label",
    split_column: str = "split",
    numbers: bool = False,
    channels: int = 3,
) -> Images:
    """Reads the images that a CSV file names, with a line of column names first, and their labels.

    split: only lines that have it in split_column; file: the column of paths, relative to the CSV file;
    label: the column of labels, or several; channels: 3 decodes to RGB, 1 to grey.

    One column of whole numbers, 0 and up, holds class numbers; of text, names of classes, numbered in sorted
    order; of other numbers, or with numbers=True, it is what a regression learns: float32 (N,), without
    classes. Several columns are float32 (N, k). What they are follows from all lines, whatever the split.
    The decoded images are cached (see search.readers.cache).

    Raises TaskError for a missing file, column, value or image, a split that no line has, and images of
    different size.
    """
    path = Path(path)
    lines = _lines(path)
    columns = (label,) if isinstance(label, str) else tuple(label)
    for column in (file, *columns, *((split_column,) if split is not None else ())):
        if column not in lines[0]:
            raise TaskError(
                f"A table of images has a column {column!r} as asked for, but {path} has "
                f"{', '.join(map(repr, lines[0]))}; name its own with file=, label= or split_column="
            )
    labels, classes = _labels(lines, columns, numbers, path)
    chosen = [n for n, line in enumerate(lines) if split is None or line[split_column] == split]
    if not chosen:
        known = sorted({line[split_column] or "" for line in lines})[:8]
        raise TaskError(
            f"A split is a value of column {split_column!r}, but no line of {path} has {split!r}; it has "
            f"{', '.join(map(repr, known))}"
        )
    names = [str(lines[n][file] or "") for n in chosen]
    states = [_state(path, number, name) for number, name in zip(chosen, names, strict=True)]
    digits = labels[chosen].tobytes().hex()
    key = content_key([str(channels), *classes, str(labels.shape[1:]), digits, *states])

    def build() -> Images:
        images, _ = decoded(names, lambda name: (path.parent / name).read_bytes(), path, channels)
        return Images(images, labels[chosen], classes, tuple(names))

    return cached(key, build)


def _lines(path: Path) -> list[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError as problem:
        raise TaskError(
            f"A table of images is a CSV file, but {path} does not exist; correct the path"
        ) from (problem)
    except (OSError, ValueError, csv.Error) as problem:
        raise TaskError(
            f"A table of images is a CSV file in UTF-8, but {path} cannot be read as one ({problem}); save "
            "it again"
        ) from problem
    if not lines:
        raise TaskError(
            f"A table of images has a line of column names and a line for each image, but {path} has none; "
            "add some"
        )
    return lines


def _labels(
    lines: list[dict[str, str | None]], columns: tuple[str, ...], numbers: bool, path: Path
) -> tuple[NDArray[np.int64] | NDArray[np.float32], tuple[str, ...]]:
    """The labels of all lines, and their classes, none where they are numbers."""
    texts = [[(line[column] or "").strip() for column in columns] for line in lines]
    for number, row in enumerate(texts):
        if "" in row:
            raise TaskError(
                f"Each image of a table has a label, but line {number + 2} of {path} has none in column "
                f"{columns[row.index('')]!r}; add it"
            )
    if len(columns) == 1 and not numbers:
        column = [row[0] for row in texts]
        if all(text.isdecimal() for text in column):
            classes = np.asarray(column, dtype=np.int64)
            return classes, tuple(str(number) for number in range(int(classes.max()) + 1))
        if not all(map(_is_number, column)):
            names = tuple(sorted(set(column)))
            place = {name: number for number, name in enumerate(names)}
            return np.asarray([place[text] for text in column], dtype=np.int64), names
    for number, row in enumerate(texts):
        for column_name, text in zip(columns, row, strict=True):
            if not _is_number(text):
                raise TaskError(
                    f"Labels that are not classes are numbers, but line {number + 2} of {path} has {text!r} "
                    f"in column {column_name!r}; correct it"
                )
    values = np.asarray(texts, dtype=np.float64).astype(np.float32)
    return (values[:, 0] if len(columns) == 1 else values), ()


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _state(path: Path, number: int, name: str) -> str:
    """What changes when a file does."""
    try:
        status = (path.parent / name).stat()
    except (OSError, ValueError) as problem:
        raise TaskError(
            f"Each file of a table is there, but line {number + 2} of {path} names {name!r}, which is not; "
            "correct it: paths are relative to the table"
        ) from problem
    return f"{name} {status.st_size} {status.st_mtime_ns}"
