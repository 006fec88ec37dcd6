"""What a search shows while it runs: a live table on a terminal, one line a trial anywhere else."""

import json
import sys
import time
from typing import TYPE_CHECKING

from leanfront.search.objectives import COSTS, objective, quantity
from leanfront.search.run.run_folder import TrialRow
from leanfront.search.run.status import clock

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN = 12
"""Members of the front on the live display."""


def trial_line(row: TrialRow) -> str:
    """One trial as a line of text."""
    parts = [f"trial {row.trial}", row.state]
    for name in ("accuracy", "latency_ms", "size_bytes"):
        value = row.value(name)
        if value is not None:
            parts.append(f"{objective(name).label} {quantity(name, value)}")
    if row.seconds is not None:
        parts.append(f"{row.seconds:.1f} s")
    return "  ".join(parts) + (f"  ({row.reason})" if row.reason else "")


def log_line(row: TrialRow) -> str:
    """One trial as ``name=value`` pairs, the unit at the end of each name; texts with spaces are quoted."""
    numbers = ("rung", "accuracy", "divergence", *COSTS, *row.more)
    numbers += ("seconds", "seconds_training", "seconds_scoring")
    pairs = [f"trial={row.trial}", f"state={row.state}"]
    pairs += [f"{name}={value:.6g}" for name in numbers if (value := row.value(name)) is not None]
    pairs.append(f"worker={row.worker}")
    return " ".join(pairs) + (f" reason={json.dumps(row.reason, ensure_ascii=False)}" if row.reason else "")


class Progress:
    """Shows a search: ``note`` a stage, ``trial`` each finished trial; in a with block as a live table."""

    def __init__(self, objectives: tuple[str, ...], deadline: float | None, trials: int | None) -> None:
        self._objectives = objectives
        self._deadline = deadline
        self._trials = trials
        self._rows: list[TrialRow] = []
        self._note = ""
        self._live = None
        self._shown = False
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(get_renderable=self._display, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
            self._shown = True
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._shown = False

    def note(self, text: str) -> None:
        """Say what is being done."""
        self._note = text
        if not self._shown:
            print(text, flush=True)

    def earlier(self, rows: list[TrialRow]) -> None:
        """The finished trials of earlier calls, which are not shown one by one."""
        self._rows.extend(rows)

    def trial(self, row: TrialRow) -> None:
        """Show a finished trial."""
        self._rows.append(row)
        if self._live is None:
            print(trial_line(row), flush=True)
        else:
            self._note = trial_line(row)

    def _display(self) -> "RenderableType":
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        from leanfront.search.run.front import front_rows

        rows = [row for row in self._rows if not row.is_heir]
        counts = {state: sum(row.state == state for row in rows) for state in ("complete", "failed")}
        refused = len(rows) - sum(counts.values())
        parts = [f"{counts['complete']} complete", f"{counts['failed']} failed", f"{refused} not trained"]
        if len(rows) < len(self._rows):
            parts.append(f"{len(self._rows) - len(rows)} heirs")
        if self._trials is not None:
            parts.append(f"of {self._trials}")
        if self._deadline is not None:
            parts.append(f"{clock(max(0.0, self._deadline - time.time()))} left")
        columns = ("trial", *(objective(name).heading for name in self._objectives))
        table = Table(*columns, title="front so far", title_justify="left", box=box.SIMPLE_HEAD)
        front = front_rows(self._rows, self._objectives)
        for row in front[:_SHOWN]:
            table.add_row(str(row.trial), *(quantity(name, row.value(name)) for name in self._objectives))
        if len(front) > _SHOWN:
            table.caption = f"and {len(front) - _SHOWN} more"
        return Group(Text("  ".join(parts)), table, Text(self._note, style="dim", no_wrap=True))
