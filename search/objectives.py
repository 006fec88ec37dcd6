"""What a network is judged by: its accuracy, each cost, and what a task registers: one row each."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from leanfront.hw_profiles.near import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from leanfront.compression.graph import Network
    from leanfront.compression.policy import Policy
    from leanfront.compression.policy.batch import PolicyBatch
    from leanfront.latency_models.cost import Cost, CostArrays

_PREFIXED: Mapping[str, tuple[tuple[float, str], ...]] = {
    "ms": ((1.0, "ms"), (1e-3, "us")),
    "mJ": ((1.0, "mJ"), (1e-3, "uJ")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
}
"""Unit -> the sizes that it is printed in, the largest first."""


class ObjectiveError(ValueError):
    """An objective that cannot be registered, or that has no number for a network."""


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    name: its column in trials.csv, a cost's ends in the unit. title: what people call it. better: which way.
    scale: "times" is above 0 and counts as a ratio to the uncompressed network's; "share" is between 0 and 1,
    told in points; "steps" is any number, of which differences count. source: known from a "score" after
    training, or before it, from a field of "cost" or from "value". limit: may stand in [limits]. value: of a
    network that is cut already, its policy and its cost, a number above 0. values: the same of many policies,
    (n,), which the sampler cascade needs.

    Of a score alone: turned: less of it is better, so that it is kept with its sign changed, in every column
    and every sum, and turned back where people read it. span: from the least to the most that it can be,
    where both are known.
    """

    name: str
    title: str = ""
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    scale: Literal["times", "share", "steps"] = "times"
    source: Literal["score", "cost", "value"] = "value"
    limit: bool = False
    value: "Callable[[Network, Policy, Cost], float] | None" = None
    values: "Callable[[PolicyBatch, CostArrays], NDArray[np.float64]] | None" = None
    turned: bool = False
    span: float | None = None

    @property
    def sign(self) -> float:
        """1 where less is better, else -1: times a value, so that less is better."""
        return 1.0 if self.better == "lower" else -1.0

    @property
    def label(self) -> str:
        """What people call it."""
        return self.title or self.name

    @property
    def heading(self) -> str:
        """Of a column: its name, of a score what people call it."""
        return self.label if self.source == "score" else self.name

    def of(self, network: "Network", policy: "Policy", cost: "Cost") -> float:
        """Of a network that is cut already; raises ObjectiveError where that is no number above 0."""
        if self.source == "cost":
            return float(getattr(cost, self.name))
        found = self.value(network, policy, cost) if self.value is not None else None
        if not isinstance(found, int | float) or not 0 < found < math.inf:
            raise ObjectiveError(f"objective {self.name!r} must be a number above 0, but it is {found!r}")
        return float(found)

    def column(self, batch: "PolicyBatch", costs: "CostArrays") -> "NDArray[np.float64]":
        """Of many policies, (n,); raises ObjectiveError where it is made for one at a time."""
        if self.source == "cost":
            found: NDArray[np.float64] = getattr(costs, self.name)
            return found
        if self.values is None:
            raise ObjectiveError(
                f"sampler cascade prices a million policies at once, and objective {self.name!r} says `value`"
                " of one: register it with `values`, too, or set search.sampler to tpe"
            )
        return self.values(batch, costs)

    def own(self, value: float) -> float:
        """A kept value of a score as it is."""
        return -value if self.turned else value

    def reach(self, uncompressed: float) -> float:
        """How far below the uncompressed network's a score counts: a tenth of what it can be at all, or of
        the uncompressed network's where that has no end."""
        return REACH * (abs(uncompressed) or 1.0) if self.span is None else REACH * self.span

    @property
    def drawn_unit(self) -> str:
        """In which a report draws a score: percent of a share."""
        return "%" if self.scale == "share" else self.unit

    @property
    def factor(self) -> float:
        """Times a kept value of a score: what a report draws."""
        size = 100.0 if self.scale == "share" else 1.0
        return -size if self.turned else size

    @property
    def drop_unit(self) -> str:
        """In which a report counts a drop: points of a share."""
        return "points" if self.scale == "share" else self.unit

    def usual_drop(self, uncompressed: float) -> float:
        """The most that is lost where nobody says how much: a tenth of its reach, a point of a share."""
        return self.reach(uncompressed) / 10

    def amount(self, difference: float) -> str:
        """A difference of scores, such as what was lost."""
        return f"{self.number(difference)} {self.unit}".rstrip()

    def change(self, difference: float) -> str:
        """How a score has changed, with its sign: "-0.25 points" of a share."""
        if self.scale == "share":
            return f"{100 * difference:+.2f} points"
        own = self.own(difference)
        return f"{'+' if own > 0 else ''}{self.amount(own)}"

    def interval(self, ends: Sequence[float]) -> str:
        """The kept ends of a score's interval, as it is."""
        low, high = sorted(map(self.own, ends))
        return f"{self.number(low)} .. {self.number(high)}"

    def number(self, value: float) -> str:
        """A value or a difference of scores without its unit: four digits after the point where it has no
        unit and is never far from 1, else four in all."""
        near = self.span is not None and self.span <= 2 and not self.unit
        return f"{value:.4f}" if near else f"{value:.4g}"

    def shown(self, value: float) -> str:
        """A kept value with its unit, three significant digits: 0.0123 of latency_ms is "12.3 us"."""
        if self.source == "score":
            return f"{self.number(self.own(value))} {self.unit}".rstrip()
        sizes = _PREFIXED.get(self.unit, ((1.0, self.unit),))
        size, unit = next((pair for pair in sizes if value >= pair[0]), sizes[-1])
        whole = unit == "B" or (not unit and value == round(value))
        text = f"{value:.0f}" if whole else _digits(value / size)
        return f"{text} {unit}".rstrip()


def _bops(network: "Network", policy: "Policy", cost: "Cost") -> float:
    from leanfront.compression.policy.batch import PolicyBatch

    return float(PolicyBatch.one(network, policy).bops()[0])


def _zipped(network: "Network", policy: "Policy", cost: "Cost") -> float:
    from leanfront.compression.policy.batch import PolicyBatch

    return float(_all_zipped(PolicyBatch.one(network, policy))[0])


def _all_zipped(batch: "PolicyBatch", costs: object = None) -> "NDArray[np.float64]":
    from leanfront.compression.policy.zipped import zipped_bytes

    try:
        return zipped_bytes(batch)
    except ValueError as error:
        raise ObjectiveError(str(error)) from error


_TABLE: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective("accuracy", "accuracy", better="higher", scale="share", source="score", span=1.0),
        Objective("latency_ms", "latency", "ms", source="cost", limit=True),
        Objective("size_bytes", "size", "bytes", source="cost", limit=True),
        Objective("energy_mj", "energy", "mJ", source="cost", limit=True),
        Objective("peak_memory_bytes", "peak memory", "bytes", source="cost", limit=True),
        Objective("bops", "bit operations", value=_bops, values=lambda batch, costs: batch.bops()),
        Objective("zipped_bytes", "zipped size", "bytes", limit=True, value=_zipped, values=_all_zipped),
    )
}
_OURS = tuple(_TABLE)
COSTS = tuple(row.name for row in _TABLE.values() if row.source == "cost")
"""The fields of a Cost, in the order in which they are shown."""
REACH = 0.10
"""Share of a score's span: so far below the uncompressed network's it counts."""
ACCURACY = _TABLE["accuracy"]
"""The row of the score, where it is the share of examples that are right, or another between 0 and 1."""
LIMITS = tuple(row.name for row in _TABLE.values() if row.limit)


def objective(name: str) -> Objective:
    """The row of that name; raises ObjectiveError where there is none, with the nearest."""
    if name not in _TABLE:
        hint, known = did_you_mean(name, _TABLE), ", ".join(_TABLE)
        raise ObjectiveError(
            f"no objective is called {name!r}; {hint}there are {known}, and what the task registers"
        )
    return _TABLE[name]


def names() -> tuple[str, ...]:
    """All that may be an objective, accuracy first."""
    return tuple(_TABLE)


def register_objective(row: Objective) -> None:
    """Make an objective of a task's own known: call it where the task's file is loaded, as often as you like.

    Raises:
        ObjectiveError: its name is one of ours or no name for a column, or it has no ``value``.
    """
    if row.name in _OURS or not row.name.isidentifier():
        raise ObjectiveError(
            f"an objective's name is a word of letters, digits and _ that is none of {', '.join(_OURS)},"
            f" not {row.name!r}"
        )
    if row.source != "value" or row.value is None or row.scale != "times":
        raise ObjectiveError(
            f"objective {row.name!r} needs value=function(network, policy, cost), a number above 0, and no"
            " other source or scale"
        )
    _TABLE[row.name] = row


def registered(objectives: Iterable[str]) -> list[dict[str, str]]:
    """Those objectives that are a task's own, as plain values: what a run folder keeps of them."""
    rows = [objective(name) for name in objectives if name not in _OURS]
    return [{"name": r.name, "title": r.title, "unit": r.unit, "better": r.better} for r in rows]


def remember(kept: Iterable[Mapping[str, Any]]) -> None:
    """Make known what a run folder has kept: enough to show its results without its task. What a task has
    registered here stays; what another run folder has kept under the same name does not."""
    for row in (Objective(**fields) for fields in kept):
        if row.name not in _OURS and (row.name not in _TABLE or _TABLE[row.name].value is None):
            _TABLE[row.name] = row


def scored_by(kept: Mapping[str, Any] | None) -> None:
    """Make known what networks are scored by, as ``search.scores.described`` says it and a run folder keeps
    it; None: by a score of each example, as all were in run folders that do not say."""
    if kept is None or kept["share"]:
        row = ACCURACY
    else:
        low, high = kept["bounds"]
        span = None if low is None or high is None else high - low
        turned = not kept["higher_is_better"]
        row = replace(
            ACCURACY, title=kept["name"], unit=kept["unit"], scale="steps", turned=turned, span=span
        )
    _TABLE["accuracy"] = row


def check_drop(max_drop: float | None) -> None:
    """Raise ObjectiveError for a limit of what may be lost that is more than there is."""
    row = objective("accuracy")
    if max_drop is not None and row.span is not None and max_drop > row.span:
        raise ObjectiveError(
            f"the most that may be lost is in the unit of {row.label}, which can lose {row.span:g} at most,"
            f" but {max_drop:g} came; give a smaller limit, such as {row.span / 100:g}"
        )


def costs_of(
    objectives: Iterable[str], network: "Callable[[], Network]", policy: "Policy", cost: "Cost"
) -> dict[str, float]:
    """All costs, and what else of these objectives is known before training. ``network``: cut already."""
    known = {name: getattr(cost, name) for name in COSTS}
    rows = [row for row in map(objective, objectives) if row.source == "value"]
    return known | {row.name: row.of(network(), policy, cost) for row in rows}


def costs_among(objectives: Iterable[str]) -> tuple[str, ...]:
    """Those that are known before training."""
    return tuple(name for name in objectives if objective(name).source != "score")


def oriented(values: Mapping[str, float], objectives: Iterable[str]) -> tuple[float, ...]:
    """Values of these objectives, those of which more is better with their sign changed."""
    return tuple(objective(name).sign * float(values[name]) for name in objectives)


def signs(objectives: Sequence[str]) -> "NDArray[np.float64]":
    """(k,): what turns values of these objectives so that less is better."""
    import numpy as np

    return np.array([objective(name).sign for name in objectives])


def quantity(name: str, value: float | None) -> str:
    """A value of an objective with its unit, "?" where it is not known."""
    return "?" if value is None else objective(name).shown(value)


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"
