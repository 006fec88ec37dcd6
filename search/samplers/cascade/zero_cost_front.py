"""The front of a million policies, by costs and by what the surrogate says before any of them is trained."""

from collections.abc import Callable

import numpy as np

from leanfront.search.samplers.cascade.encoding import Codes, Encoding
from leanfront.search.samplers.cascade.expected_hypervolume import latin_hypercube, within
from leanfront.search.samplers.cascade.gaussian import Array

GENERATION = 8192
_CROSSED = 0.3
_CHANGES = 0.4
"""Parameter of the geometric distribution of the number of changes: 2.5 on average."""


def children(parents: Codes, encoding: Encoding, count: int, rng: np.random.Generator) -> Codes:
    """(decisions, count): parents (decisions, p) with a few decisions changed, some crossed before.

    Decisions with an order mostly move by one; the others take any value.
    """
    movable, sizes = encoding.movable, encoding.sizes
    made = parents[:, rng.integers(parents.shape[1], size=count)].copy()
    crossed = np.flatnonzero(rng.random(count) < _CROSSED)
    others = parents[:, rng.integers(parents.shape[1], size=len(crossed))]
    from_other = rng.random(others.shape) < rng.random(len(crossed))
    made[:, crossed] = np.where(from_other, others, made[:, crossed])
    changes = np.minimum(rng.geometric(_CHANGES, size=count), len(movable))
    for turn in range(int(changes.max(initial=0))):
        columns = np.flatnonzero(changes > turn)
        rows = movable[rng.integers(len(movable), size=len(columns))]
        value = rng.integers(sizes[rows])
        step = made[rows, columns] + rng.choice([-1, 1], size=len(columns))
        near = encoding.ordered[rows] & (rng.random(len(columns)) < 0.8)
        made[rows, columns] = np.where(near, np.clip(step, 0, sizes[rows] - 1), value)
    return made


class Archive:
    """For each of some points in the box of log costs the policy of least predicted shortfall within them."""

    def __init__(self, points: Array, decisions: int) -> None:
        self.points = points
        self.shortfalls: Array = np.full(len(points), np.inf)
        self.codes: Codes = np.zeros((decisions, len(points)), dtype=np.int64)

    def add(self, codes: Codes, log_costs: Array, shortfalls: Array) -> None:
        """Take in policies: codes (decisions, n), log costs (n, k), predicted log shortfalls (n,)."""
        # turned around, so that a row is a point: the least of a row is found three times as fast
        values = np.where(within(-self.points, -log_costs), shortfalls, np.inf)
        best = values.argmin(axis=1)
        found = values[np.arange(len(best)), best]
        better = found < self.shortfalls
        self.shortfalls[better] = found[better]
        self.codes[:, better] = codes[:, best[better]]

    @property
    def members(self) -> Codes:
        """(decisions, m): its policies, each once."""
        return np.unique(self.codes[:, np.isfinite(self.shortfalls)], axis=1)


def cheap_front(
    encoding: Encoding,
    costs: Callable[[Codes], Array],
    shortfall: Callable[[Codes], Array],
    low: Array,
    policies: int,
    rng: np.random.Generator,
    points: int = 256,
) -> Codes:
    """(decisions, m): of so many policies, evolved, those of least predicted shortfall for their costs.

    Args:
        costs: codes -> log costs (n, k), infinite where a limit is broken.
        shortfall: codes -> predicted log shortfall (n,).
        low: (k,) the lowest log costs looked at.
        policies: how many are scored in all.
        points: places in the box of log costs, and so the most policies that come back.
    """
    archive = Archive(latin_hypercube(low, points), len(encoding.sizes))
    first = encoding.uniform
    # random mixtures of each uniform policy with the uncompressed one: all intensities of compression
    mixed = first[:, rng.integers(first.shape[1], size=GENERATION)]
    keep = rng.random(mixed.shape) < rng.random(GENERATION)
    mixed = np.where(keep, mixed, encoding.uncompressed()[:, None])
    batch = np.hstack([first, mixed])
    done = 0
    while True:
        batch = encoding.canonical(batch)
        archive.add(batch, costs(batch), shortfall(batch))
        done += batch.shape[1]
        members = archive.members
        if done >= policies:
            return members
        count = min(GENERATION, policies - done)
        # as long as nothing keeps the limits, with branches left out, too
        batch = children(members, encoding, count, rng) if members.size else encoding.random(count, rng)
