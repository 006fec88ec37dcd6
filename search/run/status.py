"""How a search stands, from the files of its run folder."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from leanfront.search.objectives import objective
from leanfront.search.run.front import front_rows, objective_values
from leanfront.search.run.hypervolume import growth, hypervolume
from leanfront.search.run.run_folder import PAUSE_SECONDS, STATES, RunFolder, TrialRow, trained_to_the_end
from leanfront.search.run.run_lock import is_held

CURVE_POINTS = 24
_RATE_TRIALS = 50
NO_REASON = "no reason was recorded"


def status(run: RunFolder) -> dict[str, Any]:
    """The JSON object of ``leanfront status``, which docs/commands.md describes.

    hypervolume: run.hypervolume, of the front. seconds_left: 0 when no search runs, None when it has no
    end or nobody can say yet.

    Raises:
        RunError: a file cannot be read.
    """
    rows = run.trials()
    environment = run.environment()
    objectives = run.config().search.objectives
    front = front_rows(rows, objectives)
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    alive = is_held(run.locks / "search") or bool(run.live_workers())
    if not alive:
        counts["running"] = 0
    budget = environment.get("budget") or {}
    baseline = environment.get("baseline") or {}
    rate = trials_per_hour(rows)
    failed = [row for row in rows if row.state == "failed"]
    return {
        "run": str(run.path),
        **({"metric": metric["name"]} if (metric := environment.get("metric")) else {}),
        **counts,
        "heirs": sum(row.is_heir for row in rows),
        "trials_per_hour": rate,
        "front_size": len(front),
        "hypervolume": hypervolume(objective_values(front, objectives), objectives, baseline),
        "hypervolume_curve": hypervolume_curve(rows, objectives, baseline),
        "seconds_left": _seconds_left(rows, budget, rate) if alive else 0.0,
        "alive": alive,
        "next": next_step(
            alive, _used_up(rows, budget), bool(front), any(run.exported.glob("*")), usual_drop(run)
        ),
        "why_failed": why_failed(failed),
        "failures": [{"trial": row.trial, "reason": row.reason} for row in failed],
    }


def hypervolume_curve(
    rows: Sequence[TrialRow],
    objectives: Sequence[str],
    baseline: Mapping[str, float],
    points: int = CURVE_POINTS,
) -> list[float]:
    """The hypervolume after equal shares of the complete trials, in the order they finished; the last is
    today's. Empty without a baseline or before the first complete trial."""
    complete = sorted((row for row in rows if row.state == "complete"), key=lambda row: row.finished)
    grown = growth(objective_values(complete, objectives), objectives, baseline, points)
    return [volume for _, volume in grown]


def trials_per_hour(rows: Sequence[TrialRow]) -> float | None:
    """Trials trained to the end in an hour, of all workers together: over the last fifty, pauses left out.
    None before the first."""
    done = [row for row, _ in searched(rows)]
    counted = [place for place, row in enumerate(done) if _trained(row)][-_RATE_TRIALS:]
    if not counted:
        return None
    seconds = max(spent for _, spent in searched(done[counted[0] : counted[-1] + 1]))
    return 3600.0 * len(counted) / max(seconds, 1.0)


def searched(rows: Iterable[TrialRow]) -> list[tuple[TrialRow, float]]:
    """Trials in the order they began, with the seconds of search until each had finished, pauses left out;
    without those that do not have both times."""
    began = datetime.fromisoformat
    ordered = sorted(
        (row for row in rows if row.started and row.finished),
        key=lambda row: (began(row.started), began(row.finished)),
    )
    found = []
    first = last = began(ordered[0].started) if ordered else datetime.min
    paused = 0.0
    for row in ordered:
        idle = (began(row.started) - last).total_seconds()
        paused += idle if idle > PAUSE_SECONDS else 0.0
        last = max(last, began(row.finished))
        found.append((row, (began(row.finished) - first).total_seconds() - paused))
    return found


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds: 3725 is "1:02:05"."""
    if seconds is None:
        return "unknown"
    left = round(seconds)
    return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


def why_failed(failed: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Reasons of failed trials, the commonest first; those that differ only in their numbers are one.

    Each has ``trials`` (how many), ``last`` (the number of the last one) and its ``reason``.
    """
    kinds = sorted(alike_but_for_numbers(failed), key=lambda alike: (-len(alike), -alike[-1].trial))
    return [
        {"trials": len(alike), "last": alike[-1].trial, "reason": alike[-1].reason or NO_REASON}
        for alike in kinds
    ]


def alike_but_for_numbers(rows: Iterable[TrialRow]) -> list[list[TrialRow]]:
    """Trials by their reasons; those that differ only in their numbers are one."""
    kinds: dict[str, list[TrialRow]] = {}
    for row in rows:
        kinds.setdefault(re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "0", row.reason), []).append(row)
    return list(kinds.values())


def next_step(alive: bool, used_up: bool, has_front: bool, exported: bool, drop: float = 0.01) -> str:
    """The command to give next, RUN standing for the run folder."""
    if alive:
        return "leanfront front RUN" if has_front else "leanfront status RUN --follow"
    if not used_up:
        return "leanfront search RUN/config.toml --run RUN"
    if not has_front:
        return "leanfront search RUN/config.toml --run RUN --hours 1"
    return "leanfront report RUN" if exported else f"leanfront pick RUN --max-drop {drop:.2g}"


def usual_drop(run: RunFolder) -> float:
    """What a run may lose where nobody says how much."""
    baseline = run.environment().get("baseline") or {}
    return objective("accuracy").usual_drop(baseline.get("accuracy") or 0.0)


def _used_up(rows: Sequence[TrialRow], budget: Mapping[str, Any]) -> bool:
    """Whether the search has had all its trials or all its time."""
    if budget.get("trials") is not None and _trained_count(rows) >= int(budget["trials"]):
        return True
    return budget.get("deadline") is not None and time.time() > float(budget["deadline"])


def _trained(row: TrialRow) -> bool:
    return trained_to_the_end(row.state, row.accuracy is not None, row.is_heir or row.known_from is not None)


def _trained_count(rows: Sequence[TrialRow]) -> int:
    return sum(map(_trained, rows))


def _seconds_left(rows: Sequence[TrialRow], budget: Mapping[str, Any], rate: float | None) -> float | None:
    ends = []
    if budget.get("deadline") is not None:
        ends.append(max(0.0, float(budget["deadline"]) - time.time()))
    if budget.get("trials") is not None and rate is not None:
        ends.append(max(0, int(budget["trials"]) - _trained_count(rows)) * 3600.0 / rate)
    return min(ends) if ends else None
