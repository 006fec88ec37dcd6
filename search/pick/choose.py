"""Choose one point of a front: the limits first, then what is preferred."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leanfront.search.objectives import names, objective, quantity
from leanfront.search.pick.promise import Promise
from leanfront.search.run.run_folder import RunError, TrialRow
from leanfront.search.run.significance import examples_of


@dataclass(frozen=True)
class Wish:
    """What the picked network must keep to. ``max_drop``: of accuracy below the baseline's, a fraction;
    ``confidence``: the probability with which it must be kept, None for what the search split showed."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: float | None = None
    max_energy_mj: float | None = None
    prefer: str | None = None
    confidence: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Cost -> its most."""
        named = {name: getattr(self, f"max_{name}") for name in ("latency_ms", "size_bytes", "energy_mj")}
        return {name: value for name, value in named.items() if value is not None}


def choose(
    rows: Sequence[TrialRow], baseline_accuracy: float, wish: Wish, promise: Promise | None = None
) -> TrialRow:
    """The best of ``rows`` (complete trials) that meets the wish; with a ``promise``, of those that lose no
    more than the limit with its probability.

    Without any limit a drop of 0.01 is allowed (of a score that is no share: a hundredth of what it can be,
    or of the uncompressed network's). Preferred is, unless the wish says it, the highest accuracy when only
    costs are limited, and the lowest latency otherwise.

    Raises:
        RunError: there is no row, or none meets the limits (the nearest is named).
    """
    if not rows:
        raise RunError("the front is empty: no trial is complete yet; search longer, then pick")
    if wish.prefer is not None and wish.prefer not in names():
        raise RunError(f"--prefer must be one of {', '.join(names())}, not {wish.prefer!r}")
    limits = wish.limits
    default = objective("accuracy").usual_drop(baseline_accuracy)
    max_drop = default if wish.max_drop is None and not limits else wish.max_drop
    allowed = list(rows)
    for name, most in limits.items():
        kept = [row for row in allowed if _value(row, name) <= most]
        if not kept:
            nearest = min(allowed, key=lambda row: _value(row, name))
            raise RunError(
                f"no point of the front keeps {name} to {quantity(name, most)}; the nearest is trial"
                f" {nearest.trial} with {quantity(name, _value(nearest, name))}"
            )
        allowed = kept
    if promise is not None:
        allowed = _surely_within(allowed, baseline_accuracy, max_drop, promise)
    elif max_drop is not None:
        allowed = _within(allowed, baseline_accuracy, max_drop)
    prefer = wish.prefer or ("accuracy" if limits and wish.max_drop is None else "latency_ms")
    sign = objective(prefer).sign
    return min(allowed, key=lambda row: (sign * _value(row, prefer), -_value(row, "accuracy"), row.trial))


def _within(rows: Sequence[TrialRow], baseline_accuracy: float, max_drop: float) -> list[TrialRow]:
    """Those that lost no more on the search split."""
    kept = [row for row in rows if baseline_accuracy - _value(row, "accuracy") <= max_drop + 1e-9]
    if not kept:
        nearest = max(rows, key=lambda row: _value(row, "accuracy"))
        drop = baseline_accuracy - _value(nearest, "accuracy")
        row = objective("accuracy")
        raise RunError(
            f"no point of the front loses at most {row.amount(max_drop)} of {row.label} after the short"
            f" fine-tune; the nearest is trial {nearest.trial}; allow it with --max-drop {_rounded_up(drop)}"
            " (the long fine-tune wins back part of it), or search longer"
        )
    return kept


def _surely_within(
    rows: Sequence[TrialRow], baseline_accuracy: float, max_drop: float | None, promise: Promise
) -> list[TrialRow]:
    """Those that lose no more with the promise's probability."""
    if max_drop is None:
        raise RunError("--confidence is that of --max-drop, which was not given; give it, such as 0.01")
    most = {row.trial: promise.most_lost(row) for row in rows}
    kept = [row for row in rows if most[row.trial] <= max_drop + 1e-9]
    if not kept:
        nearest = min(rows, key=lambda row: (most[row.trial], row.trial))
        bound, drop = most[nearest.trial], baseline_accuracy - _value(nearest, "accuracy")
        if math.isinf(bound):
            raise RunError(
                "--confidence needs the score of each example, but of no point of the front was it kept"
            )
        needed = promise.examples_needed(drop, bound, max_drop)
        more = "" if needed is None else f", or search with some {needed:,} examples in the search split"
        row = objective("accuracy")
        raise RunError(
            f"no point of the front surely loses at most {row.amount(max_drop)} of {row.label} (--confidence"
            f" {promise.confidence:g}, of {promise.considered} networks scored on"
            f" {examples_of(promise.baseline)} examples); the nearest is trial {nearest.trial}, which lost"
            f" {row.amount(drop)} there and may lose {row.amount(bound)}; allow it with --max-drop"
            f" {_rounded_up(bound)}, lower --confidence{more}"
        )
    return kept


def _rounded_up(drop: float) -> str:
    """A limit that allows this drop: four digits after the point, or four in all where that is finer."""
    digits = max(4, 3 - math.floor(math.log10(abs(drop)))) if drop else 4
    return f"{drop + 0.5 * 10**-digits:.{digits}f}"


def _value(row: TrialRow, name: str) -> float:
    value = row.value(name)
    if value is None:
        raise RunError(f"trial {row.trial} has no {name}")
    return float(value)
