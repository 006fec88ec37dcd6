"""Rows of text on stdout: as a table, as JSON, as CSV."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_json(value: Any) -> None:
    """JSON, indented."""
    print(json.dumps(value, indent=1, default=str))


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV with the keys of the first row as its header; nothing when there are no rows."""
    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)


def print_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    """A table with the keys of the first row as its header; on a pipe it is as wide as it needs to be."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in rows[0] if rows else ():
        table.add_column(
            name, justify="left" if name in ("what", "why", "layer", "shape", "group") else "right"
        )
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
