"""What a network is judged by: its accuracy, each cost, and what a task registers: one row each."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
    scale: "times" is above 0 and counts as a ratio to the uncompressed network's; "share" is between 0 and 1.
    source: known from a "score" after training, or before it, from a field of "cost" or from "value". limit:
    may stand in [limits]. value: of a network that is cut already, its policy and its cost, a number above 0.
    values: the same of many policies, (n,), which the sampler cascade needs.
    """

    name: str
    title: str = ""
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"
    scale: Literal["times", "share"] = "times"
    source: Literal["score", "cost", "value"] = "value"
    limit: bool = False
    value: "Callable[[Network, Policy, Cost], float] | None" = None
    values: "Callable[[PolicyBatch, CostArrays], NDArray[np.float64]] | None" = None

    @property
    def sign(self) -> float:
        """1 where less is better, else -1: times a value, so that less is better."""
        return 1.0 if self.better == "lower" else -1.0

    @property
    def label(self) -> str:
        """What people call it."""
        return self.title or self.name

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

    def shown(self, value: float) -> str:
        """A value with its unit, three significant digits: 0.0123 of latency_ms is "12.3 us"."""
        if self.scale == "share":
            return f"{value:.4f}"
        sizes = _PREFIXED.get(self.unit, ((1.0, self.unit),))
        size, unit = next((pair for pair in sizes if value >= pair[0]), sizes[-1])
        whole = unit == "B" or (not unit and value == round(value))
        text = f"{value:.0f}" if whole else _digits(value / size)
        return f"{text} {unit}".rstrip()


_TABLE: dict[str, Objective] = {
    row.name: row
    for row in (
        Objective("accuracy", "accuracy", better="higher", scale="share", source="score"),
        Objective("latency_ms", "latency", "ms", source="cost", limit=True),
        Objective("size_bytes", "size", "bytes", source="cost", limit=True),
        Objective("energy_mj", "energy", "mJ", source="cost", limit=True),
        Objective("peak_memory_bytes", "peak memory", "bytes", source="cost", limit=True),
    )
}
_OURS = tuple(_TABLE)
COSTS = tuple(row.name for row in _TABLE.values() if row.source == "cost")
"""The fields of a Cost, in the order in which they are shown."""
LIMITS = tuple(row.name for row in _TABLE.values() if row.limit)


def objective(name: str) -> Objective:
    """The row of that name; raises ObjectiveError where there is none, with the nearest."""
    if name not in _TABLE:
        near = difflib.get_close_matches(name, _TABLE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(_TABLE)
        raise ObjectiveError(
            f"no objective is called {name!r}{hint}; there are {known}, and what the task registers"
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


def costs_of(
    objectives: Iterable[str], network: "Callable[[], Network]", policy: "Policy", cost: "Cost"
) -> dict[str, float]:
    """All costs, and what else of these objectives is known before training. ``network``: cut already."""
    known = {name: getattr(cost, name) for name in COSTS}
    rows = [objective(name) for name in objectives if name not in _OURS]
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
