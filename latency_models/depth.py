"""Costs of policies that leave branches out, where each network that is left has to be looked at."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy.batch import PolicyBatch
from leanfront.latency_models.cost import CostArrays


def costs_by_depth(batch: PolicyBatch, costs: Callable[[PolicyBatch], CostArrays]) -> CostArrays:
    """What ``costs`` says of policies of one network, asked for each set of branches that some leave out."""
    parts = list(batch.by_depth())
    if len(parts) == 1:
        return costs(parts[0][1])
    found = [costs(part) for _, part in parts]
    placed = [np.broadcast_to(one.placed, len(one.latency_ms)) for one in found]
    order = np.argsort(np.concatenate([columns for columns, _ in parts]))

    def joined(name: str) -> NDArray[np.float64]:
        return np.asarray(np.concatenate([getattr(one, name) for one in found])[order])

    return CostArrays(
        latency_ms=joined("latency_ms"),
        energy_mj=joined("energy_mj"),
        size_bytes=joined("size_bytes"),
        modelled=joined("modelled").astype(np.bool_),
        memory=lambda: joined("peak_memory_bytes"),
        memory_bytes=found[0].memory_bytes,
        placed=np.concatenate(placed)[order],
    )
