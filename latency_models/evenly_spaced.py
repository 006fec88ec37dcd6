"""A choice of values that lie evenly over their range."""

from collections.abc import Sequence

import numpy as np


def spread_evenly(latencies_ms: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` of the latencies that lie evenly over their range (on a logarithmic scale)."""
    order = [int(i) for i in np.argsort(latencies_ms)]
    if len(order) <= count:
        return order
    logs = np.log([latencies_ms[i] for i in order])
    chosen: list[int] = []
    free = list(range(len(order)))
    for target in np.linspace(logs[0], logs[-1], count):
        best = min(free, key=lambda i: abs(logs[i] - target))
        free.remove(best)
        chosen.append(order[best])
    return sorted(chosen)
