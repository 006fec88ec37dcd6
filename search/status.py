"""How a search stands, from the files of its run folder."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.front import front_rows, objective_values
from search.lock import is_held
from search.run_folder import STATES, RunFolder, TrialRow


def status(run: RunFolder) -> dict[str, Any]:
    """The JSON object that DESIGN.md fixes: counts, front_size, hypervolume, seconds_left, failures.

    hypervolume: the share that the front dominates of the box between (accuracy 1, costs 0) and (accuracy 0,
    the baseline's costs). seconds_left: 0 when no search runs, None when it has no end.

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
    return {
        "run": str(run.path),
        **counts,
        "front_size": len(front),
        "hypervolume": hypervolume(front, objectives, environment.get("baseline") or {}),
        "seconds_left": _seconds_left(rows, environment.get("budget") or {}) if alive else 0.0,
        "alive": alive,
        "failures": [{"trial": row.trial, "reason": row.reason} for row in rows if row.state == "failed"],
    }


def hypervolume(
    front: Sequence[TrialRow], objectives: Sequence[str], baseline: Mapping[str, float]
) -> float | None:
    """See ``status``; by Optuna's own function. None without a baseline."""
    costs = [name for name in objectives if name != "accuracy"]
    if any(not baseline.get(name) for name in costs):
        return None
    if not front:
        return 0.0
    from optuna._hypervolume import compute_hypervolume

    scale = np.array([1.0 if name == "accuracy" else baseline[name] for name in objectives])
    values = objective_values(front, objectives) / scale
    reference = np.array([0.0 if name == "accuracy" else 1.0 for name in objectives])
    inside = values[(values <= reference).all(axis=1)]
    return float(compute_hypervolume(inside, reference)) if len(inside) else 0.0


def _seconds_left(rows: Sequence[TrialRow], budget: Mapping[str, Any]) -> float | None:
    ends = []
    if budget.get("deadline") is not None:
        ends.append(max(0.0, float(budget["deadline"]) - time.time()))
    seconds = [row.seconds for row in rows if row.state == "complete" and row.seconds is not None]
    if budget.get("trials") is not None and seconds:
        trained = sum(
            row.state in ("complete", "failed") or (row.state == "infeasible" and row.accuracy is not None)
            for row in rows
        )
        left = max(0, int(budget["trials"]) - trained)
        ends.append(left * statistics.median(seconds) / int(budget.get("workers") or 1))
    return min(ends) if ends else None
