"""Costs of policies that leave branches out, where each network that is left has to be looked at."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compression.policy import Kernel, Network, kernels
from compression.policy.batch import PolicyBatch
from compression.policy.branches import ALIAS
from latency_models.arena import Arena
from latency_models.cost import CostArrays
from latency_models.footprint import Footprint


def costs_by_depth(batch: PolicyBatch, costs: Callable[[PolicyBatch], CostArrays]) -> CostArrays:
    """What ``costs`` says of policies of one network, asked for each set of branches that some leave out."""
    parts = list(batch.by_depth())
    if len(parts) == 1:
        return costs(parts[0][1])
    found = [costs(part) for _, part in parts]
    order = np.argsort(np.concatenate([columns for columns, _ in parts]))

    def joined(name: str) -> NDArray[np.float64]:
        return np.asarray(np.concatenate([getattr(one, name) for one in found])[order])

    return CostArrays(
        latency_ms=joined("latency_ms"),
        energy_mj=joined("energy_mj"),
        size_bytes=joined("size_bytes"),
        modelled=joined("modelled").astype(np.bool_),
        memory=lambda: (joined("peak_memory_bytes"), joined("fits").astype(np.bool_)),
    )


class Arenas:
    """Peak memory of a network without any of its branches: an ``Arena`` for each network that is left.

    Footprints are known by numbers, as in ``Arena``; rows are the kernels of the whole network.
    """

    def __init__(self, network: Network) -> None:
        self._row = {kernel.name: row for row, kernel in enumerate(kernels(network))}
        self._footprints: list[Footprint] = []
        self._numbers: dict[Footprint, int] = {}
        self._made: dict[tuple[str, ...], tuple[Arena, list[int], dict[int, int]]] = {}

    def number(self, footprint: Footprint) -> int:
        """The number of a footprint, the same for equal ones."""
        if footprint not in self._numbers:
            self._numbers[footprint] = len(self._footprints)
            self._footprints.append(footprint)
        return self._numbers[footprint]

    def peak_bytes(self, network: Network, numbers: Sequence[int]) -> int:
        """Of one policy. ``network``: what it leaves; ``numbers``: of the footprints of all rows."""
        arena, rows, own = self._of(network)
        return arena.peak_bytes([self._own(arena, own, numbers[row]) for row in rows])

    def peaks_bytes(self, network: Network, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of many that leave the same network, at any widths, the same: (kernels, n) -> (n,)."""
        arena, rows, own = self._of(network)
        here = numbers[rows]
        known = np.zeros(len(self._footprints), dtype=np.int64)
        for number in np.flatnonzero(np.bincount(here.reshape(-1))).tolist():
            known[number] = self._own(arena, own, number)
        return arena.peaks_bytes(known[here])

    def _of(self, network: Network) -> tuple[Arena, list[int], dict[int, int]]:
        layers = tuple(network.layer)
        if layers not in self._made:
            there = _through_aliases(kernels(network))
            rows = [self._row[kernel.name] for kernel in there]
            self._made[layers] = Arena(there, network.outputs), rows, {}
        return self._made[layers]

    def _own(self, arena: Arena, known: dict[int, int], number: int) -> int:
        """The number that an arena has for a footprint."""
        if number not in known:
            known[number] = arena.number(self._footprints[number])
        return known[number]


def _through_aliases(fused: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """The kernels that do something, reading the tensors that aliases are names of."""
    stands_for: dict[str, str] = {}
    found = []
    for kernel in fused:
        inputs = tuple(stands_for.get(name, name) for name in kernel.inputs)
        if kernel.op == ALIAS:
            stands_for[kernel.name] = inputs[0]
        else:
            found.append(replace(kernel, inputs=inputs))
    return tuple(found)
