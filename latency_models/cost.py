"""What a network costs on a part, and what can say so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from compression.policy import Network, Policy

Kind = Literal["measured", "calibrated", "modelled"]
"""Where a cost is from, the surest first."""

_SUREST_FIRST: tuple[Kind, ...] = ("measured", "calibrated", "modelled")


class TableError(ValueError):
    """A cost that is not known, or a table that cannot be read. An unknown cost is never 0."""


@dataclass(frozen=True)
class Cost:
    """Cost of one inference (batch 1). ``estimated``: it rests on a number that somebody assumed.

    Costs add as for networks that run one after the other: times, energies, sizes and resources are
    summed, memory is the larger peak, and the sum is as sure as its less sure part.
    """

    latency_ms: float
    energy_mj: float
    size_bytes: int
    peak_memory_bytes: int
    fits: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "measured"
    estimated: bool = False

    def __add__(self, other: "Cost") -> "Cost":
        names = dict.fromkeys((*self.resources, *other.resources))
        return Cost(
            latency_ms=self.latency_ms + other.latency_ms,
            energy_mj=self.energy_mj + other.energy_mj,
            size_bytes=self.size_bytes + other.size_bytes,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
            fits=self.fits and other.fits,
            resources={n: self.resources.get(n, 0) + other.resources.get(n, 0) for n in names},
            kind=max(self.kind, other.kind, key=_SUREST_FIRST.index),
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True)
class LayerCost:
    """Cost of one kernel: a layer with what is fused into it, or another operation."""

    name: str
    latency_ms: float
    energy_mj: float
    source: Kind


class CostModel(Protocol):
    """What can cost a network. The network is already resized to the policy."""

    def cost(self, network: Network, policy: Policy) -> Cost:
        """The whole network; raises TableError where a cost is not known."""
        ...

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, in order of execution; raises TableError where a cost is not known."""
        ...
