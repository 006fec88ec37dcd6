"""How much the front has won: accuracy times how many times each cost was halved."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leanfront.search.objectives import objective, signs
from leanfront.search.run.front import non_dominated


def hypervolume(
    values: NDArray[np.float64], objectives: Sequence[str], baseline: Mapping[str, float]
) -> float | None:
    """The hypervolume of points between the uncompressed network's costs and so far below its accuracy as
    that counts (``Objective.reach``: 0.10 of a share).

    Accuracy is counted in units of that, each cost in halvings (log2): a network as accurate as the
    uncompressed one at half its latency dominates 1. The same front of a resumed or longer search can be
    compared; other objectives make other numbers.

    Args:
        values: (n, k), accuracies and costs in the order of ``objectives``.
        objectives: their names.
        baseline: objective -> value of the uncompressed network. None is returned where one is missing.
    """
    if not _known(baseline, objectives):
        return None
    lost = np.empty((len(values), len(objectives)))
    for column, name in enumerate(objectives):
        row = objective(name)
        if row.source == "score":
            reach = row.reach(baseline[name])
            lost[:, column] = (baseline[name] - reach - values[:, column]) / reach
        else:
            lost[:, column] = row.sign * np.log2(values[:, column] / baseline[name])
    inside = np.unique(lost[(lost < 0.0).all(axis=1)], axis=0)
    if not len(inside):
        return 0.0
    return volume_below_zero(inside)


def _known(baseline: Mapping[str, float], objectives: Sequence[str]) -> bool:
    """Whether the uncompressed network's values are known; a score may be 0, a cost is not."""
    known = {name: baseline.get(name) for name in objectives}
    return all(v is not None and (v or objective(n).source == "score") for n, v in known.items())


def volume_below_zero(points: NDArray[np.float64]) -> float:
    """The volume that the boxes between each of ``points`` (n, k), all of them below 0, and the origin cover
    together; k up to 4.

    The first two coordinates make a grid, the third is how deep each of its cells is, and the fourth is
    swept: from the least on, each point deepens the cells that it covers.
    """
    n, k = points.shape
    if k > 4:
        raise ValueError(f"the hypervolume of {k} objectives is not computed: there may be 4 at most")
    whole = np.hstack([points, np.full((n, 4 - k), -1.0)])
    whole = whole[np.argsort(whole[:, 3], kind="stable")]
    rows, columns = (np.unique(whole[:, axis]) for axis in (0, 1))
    heights, widths = (np.diff(np.append(axis, 0.0)) for axis in (rows, columns))
    corners = np.searchsorted(rows, whole[:, 0]), np.searchsorted(columns, whole[:, 1])
    depth = np.zeros((len(rows), len(columns)))
    levels = np.unique(whole[:, 3])
    total = 0.0
    for level, thickness in zip(levels, np.diff(np.append(levels, 0.0)), strict=True):
        new = whole[:, 3] == level
        np.minimum.at(depth, (corners[0][new], corners[1][new]), whole[new, 2])
        depth = np.minimum.accumulate(np.minimum.accumulate(depth, axis=0), axis=1)
        total -= float(heights @ depth @ widths) * float(thickness)
    return total


def growth(
    values: NDArray[np.float64], objectives: Sequence[str], baseline: Mapping[str, float], points: int
) -> list[tuple[int, float]]:
    """(how many, their hypervolume) of the first of ``values`` (n, k), up to ``points`` times, spread evenly,
    all of them last. Other arguments as of ``hypervolume``; empty without a baseline."""
    if not _known(baseline, objectives):
        return []  # before it is measured a task's own objectives may not be known either
    less = values * signs(objectives)
    member = np.zeros(0, dtype=np.int64)
    found: list[tuple[int, float]] = []
    begin = 0
    for end in sorted({round(len(values) * (point + 1) / points) for point in range(points)} - {0}):
        known = np.concatenate([member, np.arange(begin, end)])
        member, begin = known[non_dominated(less[known])], end
        found.append((end, hypervolume(values[member], objectives, baseline) or 0.0))
    return found
