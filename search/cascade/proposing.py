"""The policy that promises to raise the hypervolume most, given what was seen so far."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.cascade.cheap_front import children
from search.cascade.encoding import Codes, Encoding, keys
from search.cascade.gain import Landscape, strewn
from search.cascade.gaussian import Array, Hyperparameters
from search.cascade.surrogate import MOST_POINTS, Prior, Seen, Surrogate

CANDIDATES = 256
ROUNDS = 3
_PARENTS = 32
_PLACES = 256
_FLOOR_OF_DIVERGENCE = float(np.log(1.5))
"""In the start, before anything is trained: divergences beyond this (nats) count as nothing reached."""


@dataclass(frozen=True)
class Objectives:
    """What is searched, as the proposing sees it.

    log_costs: codes (decisions, n) -> (n, k) logarithms of costs over the baseline's, infinite where a limit
    is broken. low: (k,) the lowest there are. floor: log shortfall of accuracy that counts as nothing
    reached. rungs: their number.
    """

    encoding: Encoding
    log_costs: Callable[[Codes], Array]
    low: Array
    floor: float
    rungs: int


@dataclass(frozen=True)
class Proposal:
    """Codes (decisions,), the gain expected, and what the surrogate expects at the last rung."""

    codes: Codes
    gain: float
    mean: float
    deviation: float
    hyperparameters: Mapping[int, Hyperparameters]


def propose(
    objectives: Objectives,
    prior: Prior,
    seen: Sequence[Seen],
    taken: Collection[bytes],
    pending: Codes,
    archive: Codes,
    target: int,
    rng: np.random.Generator,
    known: Mapping[int, Hyperparameters] | None = None,
) -> Proposal | None:
    """The best of some hundred candidates by expected gain of hypervolume at the rung ``target``.

    Args:
        seen: scored policies, at whatever rung.
        taken: keys of policies that must not come again: at their end, or with another worker.
        pending: (decisions, p) what other workers are at; taken to come out as predicted.
        archive: (decisions, m) policies to start from beside those seen, such as the cheap front.
        known: hyperparameters that need not be looked for again.

    None: no candidate is new and within the limits.
    """
    encoding = objectives.encoding
    seen = nearest_the_front(seen, target, objectives.low)
    surrogate = Surrogate(prior, seen, objectives.rungs, known)
    low = _within_reach(objectives, surrogate, seen, archive, target)
    landscape = _landscape(objectives, surrogate, seen, pending, target, low)
    waiting = [s.codes for s in seen if target not in s.scores]
    best = [s.codes for s in seen if s.scores]
    parents = np.hstack([archive, np.stack([*best, *waiting], axis=1)] if best else [archive])
    candidates = np.hstack([parents, encoding.random(_PARENTS, rng)])
    found: Proposal | None = None
    looked_at: set[bytes] = set()
    for _ in range(ROUNDS):
        candidates = np.hstack([candidates, children(parents, encoding, CANDIDATES, rng)])
        candidates = encoding.canonical(candidates)
        fresh = []
        for index, key in enumerate(keys(candidates)):
            if key not in taken and key not in looked_at:
                looked_at.add(key)
                fresh.append(index)
        candidates = candidates[:, fresh]
        log_costs = objectives.log_costs(candidates)
        allowed = np.isfinite(log_costs).all(axis=1)
        candidates, log_costs = candidates[:, allowed], log_costs[allowed]
        if candidates.shape[1] == 0:
            candidates = encoding.random(CANDIDATES, rng)
            continue
        mean, deviation = surrogate.predict(candidates, target)
        gains = landscape.expected_gain(log_costs, mean, deviation)
        order = np.argsort(-gains, kind="stable")
        first = order[0]
        if found is None or gains[first] > found.gain:
            found = Proposal(
                candidates[:, first],
                float(gains[first]),
                float(mean[first]),
                float(deviation[first]),
                surrogate.hyperparameters,
            )
        parents = candidates[:, order[:_PARENTS]]
        candidates = parents[:, :0]
    return found


def _landscape(
    objectives: Objectives,
    surrogate: Surrogate,
    seen: Sequence[Seen],
    pending: Codes,
    target: int,
    low: Array,
) -> Landscape:
    """What the front reaches: as the surrogate sees what was scored, which takes out some of its noise."""
    reached = [s for s in seen if target in s.scores]
    codes = [s.codes for s in reached]
    there = np.stack(codes, axis=1) if codes else pending[:, :0]
    costs = [s.log_costs for s in reached]
    log_costs = np.array(costs).reshape(len(costs), len(objectives.low))
    if pending.shape[1]:
        there = np.hstack([there, pending])
        log_costs = np.vstack([log_costs, objectives.log_costs(pending)])
    shortfalls = surrogate.predict(there, target)[0] if there.shape[1] else np.zeros(0)
    return Landscape(strewn(low), _floor(objectives, target), log_costs, shortfalls)


def _floor(objectives: Objectives, target: int) -> float:
    return objectives.floor if target == objectives.rungs - 1 else _FLOOR_OF_DIVERGENCE


def _within_reach(
    objectives: Objectives, surrogate: Surrogate, seen: Sequence[Seen], archive: Codes, target: int
) -> Array:
    """(k,): the lowest log costs at which a policy may still come out above the floor of accuracy: the box
    that points are strewn over must not be mostly out of reach."""
    codes = np.hstack([archive, np.stack([s.codes for s in seen], axis=1)]) if seen else archive
    log_costs = objectives.log_costs(codes)
    mean, deviation = surrogate.predict(codes, target)
    likely = mean - 2.0 * deviation < _floor(objectives, target)
    likely &= np.isfinite(log_costs).all(axis=1)
    if not likely.any():
        return objectives.low
    return np.asarray(np.maximum(objectives.low, np.minimum(log_costs[likely].min(axis=0) * 1.05, -1e-3)))


def nearest_the_front(seen: Sequence[Seen], target: int, low: Array) -> Sequence[Seen]:
    """At most MOST_POINTS of what was seen: those that reached the rung ``target`` before others, and of
    each kind those nearest the front of their rung. ``low``: (k,) the lowest log costs there are."""
    if len(seen) <= MOST_POINTS:
        return seen
    last = np.array([max(s.scores) for s in seen])
    values = np.array([s.scores[rung] for s, rung in zip(seen, last, strict=True)])
    costs = np.array([s.log_costs for s in seen])
    points = strewn(low, _PLACES)
    within = np.ones((len(seen), len(points)), dtype=np.bool_)
    for column in range(points.shape[1]):
        within &= costs[:, column, None] <= points[None, :, column]
    behind = np.full(len(seen), np.inf)
    for rung in np.unique(last):
        here = last == rung
        best = np.where(within[here], values[here, None], np.inf).min(axis=0)
        # how far behind the best at the place where it comes nearest
        behind[here] = np.where(within[here], values[here, None] - best, np.inf).min(axis=1)
    order = np.lexsort((behind, last < target))
    return [seen[index] for index in sorted(order[:MOST_POINTS])]
