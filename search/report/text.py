"""How the report says things: numbers with their units, the result in a sentence, what to run next."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pandas as pd

from leanfront.search.objectives import objective, quantity
from leanfront.search.report.data import RunData

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def cost_text(value: float | None, cost: str) -> str:
    """A cost with its unit, as ``leanfront front`` writes it; a dash where it is unknown."""
    return DASH if value is None or math.isnan(value) else quantity(cost, value)


def plain(text: str) -> str:
    """Text that plotly shows as it is: its labels understand a few tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def score_text(value: float | None) -> str:
    """A score, a share as percent with two decimals; a dash where it is unknown."""
    score = objective("accuracy")
    if value is None or math.isnan(value):
        return DASH
    return f"{score.factor * value:.2f} %" if score.scale == "share" else score.shown(value)


def interval_text(low: float, high: float) -> str:
    """From the lower end to the higher, as people read the score."""
    score = objective("accuracy")
    digits = ".2f" if score.scale == "share" else ".4g"
    return " to ".join(f"{end:{digits}}" for end in sorted((score.factor * low, score.factor * high)))


def points(drop: float) -> str:
    """A drop, that of a share in points; a gain has a minus, as a drop below zero. A dash where it is
    unknown."""
    if math.isnan(drop):
        return DASH
    text = f"{100 * drop:.2f}" if objective("accuracy").scale == "share" else f"{drop:.4g}"
    return text.replace("-0.00", "0.00").replace("-", MINUS)


def _with_unit(text: str) -> str:
    return f"{text} {objective('accuracy').drop_unit}".rstrip()


def ratio(baseline: float | None, value: float) -> str:
    """How many times the baseline's cost is larger; a dash where one is unknown."""
    if not baseline or not value or math.isnan(baseline) or math.isnan(value):
        return DASH
    return f"{baseline / value:.1f}{TIMES}"


def duration(hours: float) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"


def amount(drop: float) -> str:
    """A drop in words: of a share 0.01 is "1 point", 0.005 is "0.5 points"."""
    score = objective("accuracy")
    if score.scale != "share":
        return score.amount(drop)
    return f"{100 * drop:g} point{'' if math.isclose(drop, 0.01) else 's'}"


def points_of_drop(drop: float) -> str:
    """0.01 is "1 point of drop"; of what is no share "a drop of 0.01 in AUC"."""
    score = objective("accuracy")
    return (
        f"{amount(drop)} of drop" if score.scale == "share" else f"a drop of {amount(drop)} in {score.label}"
    )


def headline(data: RunData) -> str:
    """The result of the run in one sentence, and one for each picked network that lost more than it may."""
    return " ".join([_result(data), *_broken(data)])


def _broken(data: RunData) -> list[str]:
    broken = [(name, each) for name, each in data.verifications if (each.get("limit") or {}).get("broken")]
    return [
        f"Trial {name}, which was picked, loses {_with_unit(points(each['test']['drop']))} on the test split"
        f" ({' to '.join(map(points, each['test']['drop_ci']))}), beyond the limit of"
        f" {points_of_drop(each['limit']['max_drop'])}."
        for name, each in broken
    ]


def _result(data: RunData) -> str:
    baseline = data.baseline
    if data.complete.empty:
        counts = data.trials.state.value_counts()
        told = ", ".join(f"{counts[state]} {state}" for state in counts.index) or "none was started"
        return f"No trial is complete yet ({told}), so there is no front to show."
    if baseline.get("accuracy") is None or not baseline.get("latency_ms"):
        return (
            f"{len(data.front)} of {len(data.complete)} complete trials are on the front; no baseline known."
        )
    budget = data.max_drop
    drop = baseline["accuracy"] - data.front.accuracy
    within = data.front[drop <= budget + 1e-9]
    if within.empty:
        nearest = data.front.loc[drop.idxmin()]
        return (
            f"No network within {points_of_drop(budget)} yet: the nearest, trial {nearest.trial}, loses"
            f" {_with_unit(points(drop.min()))} and is {_gain(baseline, nearest, 'latency_ms')}"
            f" and {_gain(baseline, nearest, 'size_bytes')}."
        )
    fastest = within.loc[within.latency_ms.idxmin()]
    start = f"At no more than {points_of_drop(budget)}: {_gain(baseline, fastest, 'latency_ms')}"
    if not baseline.get("size_bytes") or within.size_bytes.isna().all():
        return f"{start} (trial {fastest.trial})."
    smallest = within.loc[within.size_bytes.idxmin()]
    if smallest.trial == fastest.trial or smallest.size_bytes >= 0.98 * fastest.size_bytes:
        return f"{start} and {_gain(baseline, fastest, 'size_bytes')} in one network, trial {fastest.trial}."
    return (
        f"{start} (trial {fastest.trial}, {_gain(baseline, fastest, 'size_bytes')}), or"
        f" {_gain(baseline, smallest, 'size_bytes')} (trial {smallest.trial},"
        f" {_gain(baseline, smallest, 'latency_ms')})."
    )


def _gain(baseline: Any, row: pd.Series, cost: str) -> str:
    better, worse = ("faster", "slower") if cost == "latency_ms" else ("smaller", "larger")
    if not baseline.get(cost) or not row[cost] > 0:
        return f"of unknown {objective(cost).label}"
    times = baseline[cost] / row[cost]
    if times >= 1.05:
        return f"{times:.1f}{TIMES} {better}"
    return f"{1 / times:.1f}{TIMES} {worse}" if times <= 0.95 else f"no {better}"


def next_steps(data: RunData) -> list[tuple[str, str]]:
    """What to do now: (why, command). The first is the one to take."""
    here = Path.cwd()
    path = data.path.absolute()
    path = path.relative_to(here) if path.is_relative_to(here) else path
    run = shlex.quote(str(path))
    status = ("See what the trials are doing, and why those that failed did:", f"leanfront status {run}")
    config = shlex.quote(str(path / "config.toml"))
    more = (
        "Search on, here for one hour; it resumes this run:",
        f"leanfront search {config} --run {run} --hours 1",
    )
    if data.complete.empty:
        return [status, more]
    budget = data.max_drop
    baseline = data.baseline.get("accuracy")
    if baseline is None:
        return [more, status]
    nearest = baseline - data.front.accuracy.max()
    if nearest > budget + 1e-9:
        steps = 100 / objective("accuracy").reach(baseline)  # a tenth of a point is one
        enough = f"leanfront pick {run} --max-drop {math.ceil(round(nearest * steps, 6)) / steps:g}"
        return [more, ("Or take the nearest; the long fine-tune may win some of it back:", enough)]
    pick = f"leanfront pick {run} --max-drop {budget:g}"
    why = "Take the fastest: long fine-tune, one score on the test split, export, check in onnxruntime:"
    return [(why, pick), ("Or the smallest:", f"{pick} --prefer size_bytes"), more]


def without_credentials(text: str) -> str:
    """The text with user and password cut out of every URL."""
    return re.sub(r"://[^/\s\"'@]+@", "://…@", text)
