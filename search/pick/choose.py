"""Choose one point of a front: the limits first, then what is preferred."""

from collections.abc import Sequence
from dataclasses import dataclass

from leanfront.search.objectives import names, objective, quantity
from leanfront.search.run.run_folder import RunError, TrialRow


@dataclass(frozen=True)
class Wish:
    """What the picked network must keep to. ``max_drop``: of accuracy below the baseline's, a fraction."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: float | None = None
    max_energy_mj: float | None = None
    prefer: str | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Cost -> its most."""
        named = {name: getattr(self, f"max_{name}") for name in ("latency_ms", "size_bytes", "energy_mj")}
        return {name: value for name, value in named.items() if value is not None}


def choose(rows: Sequence[TrialRow], baseline_accuracy: float, wish: Wish) -> TrialRow:
    """The best of ``rows`` (complete trials) that meets the wish.

    Without any limit a drop of 0.01 is allowed. Preferred is, unless the wish says it, the highest accuracy
    when only costs are limited, and the lowest latency otherwise.

    Raises:
        RunError: there is no row, or none meets the limits (the nearest is named).
    """
    if not rows:
        raise RunError("the front is empty: no trial is complete yet; search longer, then pick")
    if wish.prefer is not None and wish.prefer not in names():
        raise RunError(f"--prefer must be one of {', '.join(names())}, not {wish.prefer!r}")
    limits = wish.limits
    max_drop = 0.01 if wish.max_drop is None and not limits else wish.max_drop
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
    if max_drop is not None:
        kept = [row for row in allowed if baseline_accuracy - _value(row, "accuracy") <= max_drop + 1e-9]
        if not kept:
            nearest = max(allowed, key=lambda row: _value(row, "accuracy"))
            drop = baseline_accuracy - _value(nearest, "accuracy")
            raise RunError(
                f"no point of the front loses at most {max_drop:.4f} of accuracy after the short fine-tune;"
                f" the nearest is trial {nearest.trial}; allow it with --max-drop {drop + 5e-5:.4f}"
                " (the long fine-tune wins back part of it), or search longer"
            )
        allowed = kept
    prefer = wish.prefer or ("accuracy" if limits and wish.max_drop is None else "latency_ms")
    sign = objective(prefer).sign
    return min(allowed, key=lambda row: (sign * _value(row, prefer), -_value(row, "accuracy"), row.trial))


def _value(row: TrialRow, name: str) -> float:
    value = row.value(name)
    if value is None:
        raise RunError(f"trial {row.trial} has no {name}")
    return float(value)
