"""How much the front has won: accuracy times how many times each cost was halved."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leanfront.search.run.front import non_dominated

DROP = 0.10
"""Accuracy counts from so far below the uncompressed network's."""


def hypervolume(
    values: NDArray[np.float64], objectives: Sequence[str], baseline: Mapping[str, float]
) -> float | None:
    """The hypervolume of points between the uncompressed network's costs and DROP below its accuracy.

    Accuracy is counted in units of DROP, each cost in halvings (log2): a network as accurate as the
    uncompressed one at half its latency dominates 1. The same front of a resumed or longer search can be
    compared; other objectives make other numbers. Computed by Optuna's own function.

    Args:
        values: (n, k), accuracies and costs in the order of ``objectives``.
        objectives: names; "accuracy" is maximised, all others are minimised.
        baseline: objective -> value of the uncompressed network. None is returned where one is missing.
    """
    if any(not baseline.get(name) for name in objectives):
        return None
    lost = np.empty((len(values), len(objectives)))
    for column, name in enumerate(objectives):
        if name == "accuracy":
            lost[:, column] = (baseline[name] - DROP - values[:, column]) / DROP
        else:
            lost[:, column] = np.log2(values[:, column] / baseline[name])
    inside = np.unique(lost[(lost < 0.0).all(axis=1)], axis=0)
    if not len(inside):
        return 0.0
    from optuna._hypervolume import compute_hypervolume

    return float(compute_hypervolume(inside, np.zeros(len(objectives))))


def growth(
    values: NDArray[np.float64], objectives: Sequence[str], baseline: Mapping[str, float], points: int
) -> list[tuple[int, float]]:
    """(how many, their hypervolume) of the first of ``values`` (n, k), up to ``points`` times, spread evenly,
    all of them last. Other arguments as of ``hypervolume``; empty without a baseline."""
    less = np.where(np.array(objectives) == "accuracy", -values, values)
    member = np.zeros(0, dtype=np.int64)
    found: list[tuple[int, float]] = []
    begin = 0
    for end in sorted({round(len(values) * (point + 1) / points) for point in range(points)} - {0}):
        known = np.concatenate([member, np.arange(begin, end)])
        member, begin = known[non_dominated(less[known])], end
        volume = hypervolume(values[member], objectives, baseline)
        if volume is None:
            return []
        found.append((end, volume))
    return found
