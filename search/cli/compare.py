"""What ``leanfront compare`` prints."""

from collections.abc import Sequence
from typing import Any

from leanfront.search.cli.output import print_table
from leanfront.search.compare.compare import Compared
from leanfront.search.objectives import objective


def print_compared(compared: Compared) -> None:
    """The table, what is not in it and why, and the first line of all."""
    done = [row for row in compared.rows if row["state"] == "done"]
    print(compared.headline)
    print_table([_line(row, row is done[0]) for row in done], texts=("row",))
    for row in compared.rows:
        if row["state"] != "done":
            print(f"{row['state']}: {row['row']}: {row['reason']}")


def _line(row: dict[str, Any], base: bool) -> dict[str, Any]:
    from leanfront.search.report.compared import text  # with plotly

    score = objective("accuracy")
    costs = {name.partition("_")[0]: text(name, row.get(name)) for name in _COSTS}
    drop = "" if base else score.change(0.0 - row["drop"]).removesuffix(" points")
    change = score.drop_unit if score.scale == "share" else "change"
    return {"row": row["row"], score.label: score.shown(row["accuracy"]), change: drop, **costs}


_COSTS: Sequence[str] = ("latency_ms", "size_bytes", "zipped_bytes")
