"""What the commands have in common: options, and rows of text on stdout as a table, as JSON, as CSV."""

import csv
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

_TEXTS = ("what", "why", "layer", "shape", "group", "name", "kind", "description", "field", "from")
"""Columns that begin at the left."""


class Format(StrEnum):
    """How a table is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


FormatOption = Annotated[Format, typer.Option("--format", help="A table to read, JSON or CSV for programs.")]
NeedsOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="CONFIG", help="Measure what this search needs; its folder will do."),
]

Rows = Sequence[Mapping[str, Any]]


def show(
    format_: Format,
    answer: Callable[[], Any],
    rows: Callable[[], Rows],
    people: Callable[[], None],
) -> None:
    """Print what a command found: ``answer`` as JSON, ``rows`` as CSV, or what ``people`` prints."""
    if format_ is Format.JSON:
        print_json(answer())
    elif format_ is Format.CSV:
        print_csv(rows())
    else:
        people()


def say(line: str) -> None:
    """A line on stderr, beside what is printed for programs."""
    print(line, file=sys.stderr, flush=True)


def shown(path: Path) -> str:
    """A path as short as it can be given back to a command."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_json(value: Any) -> None:
    """JSON, indented."""
    print(json.dumps(value, indent=1, default=str))


def print_csv(rows: Rows) -> None:
    """CSV with the keys of the first row as its header; nothing when there are no rows."""
    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)


def print_table(rows: Rows, title: str | None = None, texts: Collection[str] = _TEXTS) -> None:
    """A table with the keys of the first row as its header, ``texts`` to the left; on a pipe it is as
    wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in texts else "right")
    for row in rows:
        table.add_row(*(escape(_text(value)) for value in row.values()))
    console = Console(highlight=False)
    if not console.is_terminal:
        needed = Console(width=10_000).measure(table).maximum  # a narrow console would measure itself
        console = Console(width=max(80, needed), highlight=False)
    if title:  # as a line of its own: a table's title is broken at the width of the table
        console.print(title, markup=False)
    console.print()
    console.print(table)
    console.print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " .. ".join(_text(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
