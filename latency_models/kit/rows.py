"""The CSV that a kit writes on a device: one line for everything that was found out, added when it was.

Kinds of rows: "about" (name: what of the device or the kit, text: its value), "network" (text: the network's
policy and what its kernels became, as JSON), "kernel" (name: key of an optimised node), "whole" (name: of a
whole network that was timed), "noise" (text: a sentence) and at last "end" (text: the lines before it).
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import CELLS, Entry, check_columns

COLUMNS = ("row", "name", *CELLS, "text")
KINDS = ("about", "network", "kernel", "whole", "noise", "end")
POSSIBLE_MS = (0.002, 20.0)
"""The reference convolution, 2.4 million multiply-accumulates, takes neither less nor more on anything that
runs onnxruntime: times outside are not in milliseconds."""


@dataclass(frozen=True)
class Row:
    """One line. ``entry``: of a kernel or a whole network."""

    kind: str
    name: str
    text: str = ""
    entry: Entry | None = None

    def line(self) -> str:
        """As it stands in the file, with the end of the line."""
        cells = [""] * len(CELLS) if self.entry is None else self.entry.cells()
        return csv_line([self.kind, self.name, *cells, self.text])


def csv_line(cells: Iterable[str]) -> str:
    """One line of CSV."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    return written.getvalue()


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, each checked.

    Raises:
        TableError: it cannot be read, has other columns, a damaged line, or times that cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TableError(
            f"{path} is not text; a kit's result is the CSV file that measure.py wrote"
        ) from error
    if text and not text.endswith("\n"):
        raise TableError(
            f"{path} is cut short: its last line has no end; copy it again, or go on with `python measure.py`"
            " on the device"
        )
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        check_columns(path, reader.fieldnames or (), COLUMNS, "take the file as measure.py wrote it")
        return [_row(cells, f"{path}, line {reader.line_num}") for cells in reader]
    except csv.Error as error:
        raise TableError(f"{path} is not a CSV file: {error}; copy it from the device again") from error


def _row(cells: Mapping[str, str | None], where: str) -> Row:
    if None in cells.values() or None in cells:
        raise TableError(f"{where}: the line is cut short or too long; copy the file from the device again")
    kind, name, text = str(cells["row"]), str(cells["name"]), str(cells["text"])
    if kind not in KINDS:
        raise TableError(f"{where}: a row is one of {', '.join(KINDS)}, not {kind!r}")
    if kind not in ("kernel", "whole"):
        return Row(kind, name, text)
    return Row(kind, name, text, _entry({column: str(cells[column]) for column in COLUMNS}, where))


def _entry(cells: Mapping[str, str], where: str) -> Entry:
    entry = Entry.read(cells, where, "measure on the device again")
    low, high = POSSIBLE_MS
    if not low <= entry.reference_ms <= high:
        raise TableError(
            f"{where}: reference_ms is {entry.reference_ms:g}, but 2.4 million multiply-accumulates take"
            f" {low:g} to {high:g} ms on anything: are these times in milliseconds?"
        )
    if not (math.isfinite(entry.spread) and entry.spread >= 0 and math.isfinite(entry.quiet)):
        raise TableError(f"{where}: spread must not be below 0, not {cells['spread']}; measure again")
    return entry


class ResultFile:
    """A result that is being written: what is in it stays, half a line at its end is cut off."""

    def __init__(self, path: Path) -> None:
        """Raises TableError when the file cannot be written, or is not a kit's result."""
        self.path = path
        try:
            if path.exists():
                content = path.read_bytes()
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    os.truncate(path, whole)
            if not path.exists() or path.stat().st_size == 0:
                path.write_text(csv_line(COLUMNS), encoding="utf-8")
        except OSError as error:
            raise TableError(f"cannot write {path}: {error.strerror}") from error
        self.rows = read_rows(path)

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        new = list(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(row.line() for row in new))
            file.flush()
            os.fsync(file.fileno())
        self.rows += new

    def of(self, kind: str) -> dict[str, Row]:
        """Name -> the last row of that name, of one kind."""
        return {row.name: row for row in self.rows if row.kind == kind}
