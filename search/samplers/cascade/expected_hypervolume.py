"""How much hypervolume a policy may win, when its costs are known and its accuracy is not.

The hypervolume is that of accuracy times the logarithms of the costs, down to a floor of accuracy and up to
the baseline's costs. Points are spread over the box of log costs; at each stands the smallest shortfall of
accuracy that the front has for no higher costs. A policy wins at every point that its costs do not exceed:
there the expected gain is that of one uncertain number over a threshold, which has a closed form.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from leanfront.search.samplers.cascade.gaussian import Array

POINTS = 1024
_HOPE = 0.7
"""A policy whose mean lies so many standard deviations beyond the limit or further promises nothing: fewer
than one in four of them come out within it."""
_LEAST_DEVIATION = 1e-3


def latin_hypercube(low: Array, count: int = POINTS, seed: int = 0) -> Array:
    """(count, k): points spread evenly over the box from ``low`` (k,) to 0 (Latin hypercube)."""
    rng = np.random.default_rng(seed)
    strata = np.stack([rng.permutation(count) for _ in low], axis=1)
    share = (strata + (0.5 if len(low) == 1 else rng.random((count, len(low))))) / count
    return np.asarray(low * (1.0 - share))


def within(log_costs: Array, points: Array) -> NDArray[np.bool_]:
    """(n, m): which policies (n, k) cost no more than which points (m, k) in anything."""
    reached = np.ones((len(log_costs), len(points)), dtype=np.bool_)
    for column in range(points.shape[1]):
        reached &= log_costs[:, column, None] <= points[None, :, column]
    return reached


class FrontSurface:
    """What the front reaches at each of some points in the box of log costs.

    points: (m, k) log costs. floor: log shortfall that counts as nothing reached. limit: log shortfall beyond
    which a policy wins nothing at all.
    """

    def __init__(
        self, points: Array, floor: float, log_costs: Array, shortfalls: Array, limit: float = np.inf
    ) -> None:
        """``log_costs`` (n, k) and log ``shortfalls`` (n,): policies that are known."""
        self.points, self.floor, self.limit = points, floor, limit
        better = shortfalls < min(floor, limit)
        reached = within(log_costs[better], points)
        self.best: Array = np.where(reached, shortfalls[better, None], floor).min(axis=0, initial=floor)

    @cached_property
    def _levels(self) -> tuple[Array, NDArray[np.float32]]:
        """The distinct values of ``best`` (q,), and which point has which (m, q)."""
        values, place = np.unique(self.best, return_inverse=True)
        which = np.zeros((len(self.points), len(values)), dtype=np.float32)
        which[np.arange(len(place)), place] = 1.0 / len(self.points)
        return values, which

    def with_one_more(self, log_costs: Array, shortfall: float) -> "FrontSurface":
        """With another policy that is known: log costs (k,) and log shortfall."""
        more = FrontSurface(self.points, self.floor, log_costs[None], np.array([shortfall]), self.limit)
        more.best = np.minimum(self.best, more.best)
        return more

    def volume(self) -> float:
        """Share of the box times accuracy above the floor: what the front dominates, in accuracy."""
        return float((np.exp(self.floor) - np.exp(self.best)).mean())

    def expected_hypervolume(self, log_costs: Array, mean: Array, deviation: Array) -> Array:
        """(n,): by how much policies are expected to raise ``volume``.

        Args:
            log_costs: (n, k).
            mean, deviation: (n,) of the log shortfall, normally distributed. With threshold K the gain at a
                point is E[(K - exp(L))+] = K P(d) - exp(mean + deviation^2 / 2) P(d - deviation),
                d = (log K - mean) / deviation, P the normal distribution function; what lies beyond the limit
                wins nothing, so d is cut off there.
        """
        values, which = self._levels
        share = within(log_costs, self.points).astype(np.float32) @ which
        spread = np.maximum(deviation, _LEAST_DEVIATION)[:, None]
        distance = (np.minimum(values, self.limit)[None, :] - mean[:, None]) / spread
        won = np.exp(values)[None, :] * ndtr(distance)
        won -= np.exp(mean[:, None] + 0.5 * spread**2) * ndtr(distance - spread)
        gains = (share * np.maximum(won, 0.0)).sum(axis=1)
        # Beyond the limit a rare surprise would win much: surprises would be all that is ever proposed, once
        # the rest of the front is well known.
        return np.where(mean - _HOPE * spread[:, 0] > min(self.limit, self.floor), 0.0, gains)
