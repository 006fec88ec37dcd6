"""The first line of a comparison: which rows lose nothing and cost least, and what a search adds."""

from collections.abc import Mapping, Sequence
from typing import Any

from leanfront.search.objectives import COSTS, objective, quantity
from leanfront.search.run.significance import Evidence, comparable, paired_interval

NOISE = 1.02
"""Costs within this factor are alike: of latencies measured in one run that is their spread."""


def headline(
    rows: Sequence[Mapping[str, Any]], evidence: Mapping[str, Evidence | None], objectives: Sequence[str]
) -> str:
    """In one or two sentences.

    Args:
        rows: of the table, the uncompressed network first. evidence: of those that are done, their scores.
        objectives: of the configuration, accuracy first.
    """
    done = [row for row in rows if row["state"] == "done"]
    base = done[0]
    kept = [row for row in done[1:] if row["drop_low"] <= 0]
    costs = [name for name in objectives[1:] if name in COSTS and base.get(name)] or ["size_bytes"]
    score = objective("accuracy").label
    if not kept:
        least = min(done[1:], key=lambda row: row["drop"], default=None)
        if least is None:
            return "Nothing was compared with the uncompressed network"
        lost = objective("accuracy").amount(least["drop"])
        said = f"Every row loses {score} beyond noise; least loses {least['row']!r}, {lost}"
    else:
        best = []
        for name in costs:
            row = min(kept, key=lambda row: row.get(name) or float("inf"))
            if row.get(name):
                best.append(
                    f"{objective(name).label} is least with {row['row']!r} ({_amount(name, row, base)})"
                )
        said = f"Of {len(kept)} rows that lose no {score} beyond noise, " + " and ".join(best)
        if len(kept) == 1:
            known = [f"{objective(n).label} {_amount(n, kept[0], base)}" for n in costs if kept[0].get(n)]
            said = f"Only {kept[0]['row']!r} loses no {score} beyond noise: " + ", ".join(known)
    searched = [row for row in done if row["techniques"] == ["searched"]]
    if not searched:
        return said + "."
    return f"{said}. {_beside(done[1:], searched, evidence, costs)}."


def _amount(name: str, row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """A cost of a row, and how many times less it is than the uncompressed network's."""
    times = base[name] / row[name]
    than = f"{times:.1f} times less" if times >= 1 else f"{1 / times:.1f} times more"
    return f"{quantity(name, row[name])}, {than}"


def beats(
    row: Mapping[str, Any],
    other: Mapping[str, Any],
    evidence: Mapping[str, Evidence | None],
    costs: Sequence[str],
) -> bool:
    """Whether a row costs no more than another in any of ``costs`` and scores better beyond noise."""
    ahead = _ahead(row, other, evidence, costs)
    return ahead is not None and ahead[0] > 0


def matches(
    row: Mapping[str, Any],
    other: Mapping[str, Any],
    evidence: Mapping[str, Evidence | None],
    costs: Sequence[str],
) -> bool:
    """Whether a row costs no more than another in any of ``costs`` and scores as well within noise."""
    ahead = _ahead(row, other, evidence, costs)
    return ahead is not None and ahead[1] >= 0


def _ahead(
    row: Mapping[str, Any],
    other: Mapping[str, Any],
    evidence: Mapping[str, Evidence | None],
    costs: Sequence[str],
) -> tuple[float, float] | None:
    """By how much a row scores better than another, the 95 % interval; None where it costs more."""
    if not all(row.get(name) and other.get(name) and row[name] <= NOISE * other[name] for name in costs):
        return None
    ours, theirs = evidence.get(row["row"]), evidence.get(other["row"])
    if ours is None or theirs is None or not comparable(ours, theirs):
        return None
    return paired_interval(ours, theirs)


def _beside(
    rows: Sequence[Mapping[str, Any]],
    searched: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Evidence | None],
    costs: Sequence[str],
) -> str:
    """What the search adds: which rows beat one of its networks, and which of them it matches."""
    others = [row for row in rows if row not in searched and all(row.get(name) for name in costs)]
    beating = [row["row"] for row in others if any(beats(row, one, evidence, costs) for one in searched)]
    missed = [row["row"] for row in others if not any(matches(one, row, evidence, costs) for one in searched)]
    names = " and ".join(objective(name).label for name in costs)
    who = ", ".join(map(repr, beating)) or "No other row"
    first = f"{who} needs as little {names} as a network of the search and scores better beyond noise"
    rest = f", not for {', '.join(map(repr, missed))}" if missed else ""
    return (
        f"{first}. The search has a network that costs no more and is as good within noise for"
        f" {len(others) - len(missed)} of the {len(others)} other rows{rest}"
    )
