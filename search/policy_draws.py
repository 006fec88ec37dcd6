"""Policies that cover a space: for calibrating and for validating a latency model."""

from collections.abc import Sequence

import numpy as np

from compression.policy import Policy
from search.space import Pair, Space


def draw(space: Space, rng: np.random.Generator) -> Policy:
    """One policy: an overall level of sparsity with a jitter per group, and one of several mixes of bits.

    Uniform draws of every decision would all lie near the middle of the range of latency.
    """
    overall, jitter = rng.random(), rng.choice([0.0, 0.1, 0.25])
    sparsity = {}
    for group, levels in space.levels.items():
        at = np.clip(overall + jitter * rng.standard_normal(), 0.0, 1.0)
        sparsity[group] = levels[round(float(at) * (len(levels) - 1))]
    return space.policy(sparsity, _bits(space, rng))


def _bits(space: Space, rng: np.random.Generator) -> dict[str, Pair]:
    """All integer, all float, layer by layer at random, or in runs of neighbours."""
    integers = [pair for pair in space.pairs if max(pair) <= 8]
    floats = [pair for pair in space.pairs if max(pair) > 8]
    names = [layer.name for layer in space.network.layers]
    mode = rng.choice(["integer", "float", "mixed", "runs"], p=[0.2, 0.15, 0.3, 0.35])
    share = {"integer": 1.0, "float": 0.0}.get(mode, rng.uniform(0.15, 0.95))
    if not integers or not floats:
        share = 1.0 if integers else 0.0
    keep = 0.75 if mode == "runs" else 0.0
    bits: dict[str, Pair] = {}
    integer = bool(rng.random() < share)
    for name in names:
        if rng.random() >= keep:
            integer = bool(rng.random() < share)
        choice: Sequence[Pair] = integers if integer else floats
        bits[name] = choice[int(rng.integers(len(choice)))]
    return bits


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
