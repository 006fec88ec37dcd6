"""The Pareto front of a run, from its trials.csv and environment.json; neither torch nor optuna is needed."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy.policy import is_left_out
from leanfront.search.objectives import COSTS, costs_among, objective, oriented, quantity, signs
from leanfront.search.run.run_folder import COLUMNS, RunFolder, TrialRow
from leanfront.search.run.significance import (
    Evidence,
    comparable,
    load_scores,
    paired_interval,
    unpaired_interval,
)

_TERMINAL = 80
_SHOWN = ("latency_ms", "size_bytes", "energy_mj")
"""Costs that the table has whatever is searched for."""


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows of ``values`` (n, k), every column to be minimised, no other row dominates.

    A row dominates another when it is nowhere larger and somewhere smaller; equal rows are both kept.
    """
    values = np.asarray(values, dtype=float)
    kept = np.lexsort(values.T[::-1])  # whatever dominates a row stands before it
    place = 0
    while place < len(kept):
        left, row = values[kept], values[kept[place]]
        kept = kept[(left < row).any(axis=1) | (left == row).all(axis=1)]
        place += 1
    member = np.zeros(len(values), dtype=bool)
    member[kept] = True
    return member


def objective_values(rows: Sequence[TrialRow], objectives: Sequence[str]) -> NDArray[np.float64]:
    """The objectives of rows (n, k) as they are."""
    columns = [[row.value(name) for row in rows] for name in objectives]
    return np.array(columns, dtype=float).T.reshape(len(rows), len(objectives))


def front_rows(rows: Iterable[TrialRow], objectives: Sequence[str]) -> list[TrialRow]:
    """The complete trials that no other dominates, fastest first."""
    complete = [
        row
        for row in rows
        if row.state == "complete" and all(row.value(name) is not None for name in objectives)
    ]
    if not complete:
        return []
    member = non_dominated(objective_values(complete, objectives) * signs(objectives))
    front = [row for row, is_member in zip(complete, member, strict=True) if is_member]
    return sorted(front, key=lambda row: (row.latency_ms or 0.0, -(row.accuracy or 0.0), row.trial))


def front_of(run: RunFolder) -> list[TrialRow]:
    """The front of a run, fastest first; raises RunError when its files cannot be read."""
    return front_rows(run.trials(), run.config().search.objectives)


def alike(run: RunFolder, front: Sequence[TrialRow], objectives: Sequence[str]) -> dict[int, int]:
    """Trial -> a trial that costs no more in any objective and is as accurate within noise.

    Within noise: the 95 % interval of the difference holds 0, paired where the scores of both were kept. Of
    several such trials the first in ``front``.
    """
    kept: dict[int, Evidence | None] = {}

    def scores_of(row: TrialRow) -> Evidence | None:
        if row.trial not in kept:
            kept[row.trial] = load_scores(run.scores_file(row.trial))
        return kept[row.trial]

    costs = costs_among(objectives)
    price = {row.trial: oriented(row.values, costs) for row in front}
    found = {}
    for row in front:
        cheaper = (
            other
            for other in front
            if other is not row
            and all(theirs <= own for theirs, own in zip(price[other.trial], price[row.trial], strict=True))
        )
        near = next((other for other in cheaper if within_noise(row, other, scores_of)), None)
        if near is not None:
            found[row.trial] = near.trial
    return found


def within_noise(one: TrialRow, other: TrialRow, scores_of: Callable[[TrialRow], Evidence | None]) -> bool:
    """Whether two trials may be equally accurate; False where nothing is known of one of them."""
    known = (one.accuracy, one.accuracy_low, one.accuracy_high)
    others = (other.accuracy, other.accuracy_low, other.accuracy_high)
    if None in known or None in others:
        return False
    first, second = scores_of(one), scores_of(other)
    if first is not None and second is not None and comparable(first, second):
        low, high = paired_interval(first, second)
    else:
        low, high = unpaired_interval(known, others)  # type: ignore[arg-type]
    return low <= 0.0 <= high


def front_json(run: RunFolder) -> dict[str, Any]:
    """The front as the JSON object of `leanfront front --format json`: run, profile, baseline, front.

    A member that is more accurate than a cheaper one by noise alone names it: ``same_within_noise_as``.
    With costs that rest on assumed numbers also ``estimates``, which says on which; ``free`` has the
    uncompressed network rounded after training, of each kind that the part runs.
    """
    environment = run.environment()
    estimates = environment.get("estimates")
    config = run.config()
    rows = front_rows(run.trials(), config.search.objectives)
    same = alike(run, rows, config.search.objectives)
    return {
        "run": str(run.path),
        "profile": environment.get("profile", config.hardware.profile),
        **({"metric": metric} if (metric := environment.get("metric")) else {}),
        "baseline": environment.get("baseline") or {},
        "front": [
            point(row) | ({"same_within_noise_as": same[row.trial]} if row.trial in same else {})
            for row in rows
        ],
        **({"estimates": estimates} if estimates else {}),
        **({"free": free} if (free := environment.get("free")) else {}),
    }


def point(row: TrialRow) -> dict[str, Any]:
    """One trial as an object: trial, accuracy, accuracy_ci, the costs, a task's own objectives, policy."""
    return {
        "trial": row.trial,
        "accuracy": row.accuracy,
        "accuracy_ci": [row.accuracy_low, row.accuracy_high],
        **{name: row.value(name) for name in COLUMNS if name in COSTS},
        **row.more,
        "policy": json.loads(row.policy) if row.policy else {},
    }


def front_table(run: RunFolder) -> list[dict[str, str]]:
    """The front as text, one dict of columns a row, first the uncompressed network and what is free. Energy
    is left out where the table would be more than 80 wide with it and nobody searches for it."""
    answer = front_json(run)
    objectives = run.config().search.objectives
    costs = dict.fromkeys((*_SHOWN, *costs_among(objectives)))
    baseline: Mapping[str, Any] = answer["baseline"]
    layers = [layer for entry in answer["front"] for layer in entry["policy"].values()]
    others = sorted({name for layer in layers for name in layer.get("more", {})})
    entries = [("-", baseline)] if baseline else []
    entries += [(entry["name"], entry) for entry in answer.get("free", ())]
    entries += [(str(entry["trial"]), entry) for entry in answer["front"]]
    rows = [_cells(name, entry, baseline, costs, others) for name, entry in entries]
    if any("same_within_noise_as" in entry for entry in answer["front"]):
        for row, entry in zip(reversed(rows), reversed(answer["front"]), strict=False):
            row["same as"] = str(entry.get("same_within_noise_as", ""))
        for row in rows[: len(rows) - len(answer["front"])]:
            row["same as"] = ""
    if not any(row["out"] for row in rows):
        rows = _without("out", rows)
    if rows and "energy_mj" not in objectives and _width(rows) > _TERMINAL:
        rows = _without("energy", rows)
    return rows


def _without(column: str, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    return [{name: text for name, text in row.items() if name != column} for row in rows]


def _width(rows: Sequence[Mapping[str, str]]) -> int:
    """Characters of a line, two between columns."""
    return sum(max(len(text) for text in (name, *(row[name] for row in rows))) + 2 for name in rows[0]) - 2


def _cells(
    name: str,
    entry: Mapping[str, Any],
    baseline: Mapping[str, Any],
    costs: Iterable[str],
    others: Sequence[str],
) -> dict[str, str]:
    """``others``: techniques of which the mean number of the layers is told."""
    policy = entry.get("policy") or {}
    interval = entry.get("accuracy_ci") or [None, None]
    half = None if None in interval else (interval[1] - interval[0]) / 2
    there = [layer for layer in policy.values() if not is_left_out(layer)]
    out = len(policy) - len(there)
    score = objective("accuracy")
    priced_at: dict[str, str] = {}
    for number, cost in enumerate(costs):
        priced_at[objective(cost).label] = quantity(cost, entry.get(cost))
        if cost != "energy_mj":  # its column is the first to go
            priced_at["x" + " " * number] = _ratio(cost, entry, baseline)
    return {
        "trial": name,
        score.label: quantity("accuracy", entry.get("accuracy")),
        "±": score.number(half) if half else "",
        **priced_at,
        "bits": _span([layer["weight_bits"] for layer in there] or [entry.get("weight_bits", 32)]),
        "cut": _mean_percent([layer["sparsity"] for layer in there]),
        "out": str(out or ""),
        **{
            other: f"{sum(layer.get('more', {}).get(other, 0.0) for layer in there) / max(len(there), 1):.2g}"
            for other in others
        },
    }


def _ratio(name: str, entry: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    value, base = entry.get(name), baseline.get(name)
    return f"{value / base:.2f}" if value and base else ""


def _span(bits: Sequence[int]) -> str:
    return str(bits[0]) if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"


def _mean_percent(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.0f} %" if shares else "0 %"
