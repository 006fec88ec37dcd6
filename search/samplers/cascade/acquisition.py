"""The policy that promises to raise the hypervolume most, given what was seen so far."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanfront.search.samplers.cascade.encoding import Codes
from leanfront.search.samplers.cascade.expected_hypervolume import FrontSurface, latin_hypercube, within
from leanfront.search.samplers.cascade.gaussian import Array, Hyperparameters
from leanfront.search.samplers.cascade.surrogate import MOST_POINTS, Observation, Surrogate
from leanfront.search.samplers.cascade.warm_start import Knowledge
from leanfront.search.samplers.cascade.zero_cost_front import children

CANDIDATES = 256
ROUNDS = 3
_PARENTS = 32
_PLACES = 64
_MORE_DOUBT = 0.3
_BEYOND = 1.05
"""Log costs this much lower than what is known to be within reach may be, too."""
_FLOOR_OF_DIVERGENCE = float(np.log(1.35))
"""In the start, before anything is trained: divergences beyond this (nats) count as nothing reached."""


@dataclass(frozen=True)
class Proposal:
    """Codes (decisions,), the gain expected over a surface, and what the surrogate expects of them at the
    target rung."""

    codes: Codes
    gain: float
    mean: float
    deviation: float
    surrogate: Surrogate
    surface: FrontSurface


def propose(
    knowledge: Knowledge,
    seen: Sequence[Observation],
    taken: Collection[bytes],
    pending: Codes,
    target: int,
    rng: np.random.Generator,
    known: Mapping[int, Hyperparameters] | None = None,
) -> Proposal | None:
    """The best of some hundred candidates by expected gain of hypervolume at the rung ``target``.

    Args:
        knowledge: what is searched.
        seen: scored policies, at whatever rung.
        taken: keys of policies that must not come again: at their end, or with another worker.
        pending: (decisions, p) what other workers are at; taken to come out as predicted.
        target: a rung.
        rng: draws the candidates.
        known: hyperparameters that need not be looked for again.

    None: no candidate is new and within the limits.
    """
    encoding = knowledge.encoding
    surrogate, start, surface = _picture(knowledge, seen, pending, target, known)
    # with a little more doubt, what is on the front or just behind it promises most: parents of what is new
    gains = surface.expected_hypervolume(start.log_costs, start.mean, start.deviation + _MORE_DOUBT)
    parents = start.codes[:, np.argsort(-gains, kind="stable")[:_PARENTS]]
    if not parents.size:  # nothing that is known keeps the limits
        parents = encoding.random(_PARENTS, rng)
    candidates = np.hstack([start.codes, encoding.random(_PARENTS, rng)])
    found: Proposal | None = None
    looked_at = set(taken)
    for _ in range(ROUNDS):
        candidates = np.hstack([candidates, children(parents, encoding, CANDIDATES, rng)])
        candidates, log_costs = knowledge.fresh(encoding.canonical(candidates), looked_at)
        if candidates.shape[1] == 0:
            candidates = encoding.random(CANDIDATES, rng)
            continue
        mean, deviation = surrogate.predict(candidates, target)
        gains = surface.expected_hypervolume(log_costs, mean, deviation)
        order = np.argsort(-gains, kind="stable")
        first = order[0]
        if found is None or gains[first] > found.gain:
            gain, expected, spread = (float(each[first]) for each in (gains, mean, deviation))
            found = Proposal(candidates[:, first], gain, expected, spread, surrogate, surface)
        parents = candidates[:, order[:_PARENTS]]
        candidates = parents[:, :0]
    return found


def front_surface(
    knowledge: Knowledge,
    seen: Sequence[Observation],
    pending: Codes,
    known: Mapping[int, Hyperparameters] | None = None,
) -> FrontSurface:
    """What the front reaches at the last rung; arguments as of ``propose``."""
    return _picture(knowledge, seen, pending, knowledge.rungs - 1, known)[2]


def _picture(
    knowledge: Knowledge,
    seen: Sequence[Observation],
    pending: Codes,
    target: int,
    known: Mapping[int, Hyperparameters] | None,
) -> "tuple[Surrogate, _Start, FrontSurface]":
    # heirs are on the front, and say nothing of what training does
    scored = nearest_the_front([s for s in seen if s.scores], target, knowledge.low)
    inherited = nearest_the_front([s for s in seen if not s.scores], target, knowledge.low)
    surrogate = Surrogate(knowledge.prior, scored, knowledge.rungs, known)
    start = _Start.of(knowledge, surrogate, [*scored, *inherited], pending, target)
    return surrogate, start, start.surface(knowledge)


@dataclass(frozen=True)
class _Start:
    """What proposals start from: the archive, what was seen, what is pending, with the surrogate's opinion.

    reached: (n,) which of them the front is made of. floor: log shortfall that counts as nothing reached.
    """

    codes: Codes
    log_costs: Array
    mean: Array
    deviation: Array
    reached: NDArray[np.bool_]
    floor: float
    limit: float

    @staticmethod
    def of(
        knowledge: Knowledge, surrogate: Surrogate, seen: Sequence[Observation], pending: Codes, target: int
    ) -> "_Start":
        archive = knowledge.start_codes
        costs = [s.log_costs for s in seen]
        log_costs = np.vstack(
            [
                knowledge.archive_log_costs,
                np.array(costs).reshape(len(costs), len(knowledge.low)),
                knowledge.log_costs(pending),
            ]
        )
        codes = np.hstack([archive, *(s.codes[:, None] for s in seen), pending])
        last = target == knowledge.rungs - 1
        known = np.full(len(log_costs), np.nan)
        reached = np.zeros(len(log_costs), dtype=np.bool_)
        reached[len(log_costs) - pending.shape[1] :] = True
        for place, one in enumerate(seen, start=archive.shape[1]):
            if last and one.untrained is not None:
                known[place] = one.untrained
            reached[place] = target in one.scores or np.isfinite(known[place])
        within = np.isfinite(log_costs).all(axis=1)
        codes, log_costs, reached, known = codes[:, within], log_costs[within], reached[within], known[within]
        mean, deviation = surrogate.predict(codes, target)
        mean = np.where(np.isfinite(known), known, mean)
        floor = knowledge.floor if last else _FLOOR_OF_DIVERGENCE
        limit = knowledge.limit if last else np.inf
        return _Start(codes, log_costs, mean, deviation, reached, floor, limit)

    def surface(self, knowledge: Knowledge) -> FrontSurface:
        """What the front reaches, as the surrogate sees what was scored, which takes out some of its noise.

        Its points lie where a policy may still come out above the floor of accuracy: a box that is mostly out
        of reach would leave few of them where it matters.
        """
        likely = self.mean - 2.0 * self.deviation < min(self.floor, self.limit)
        low = knowledge.low
        if likely.any():
            lowest = np.minimum(_BEYOND * self.log_costs[likely].min(axis=0), -1e-3)
            low = np.maximum(low, lowest)
        points = latin_hypercube(low)
        known = self.log_costs[self.reached], self.mean[self.reached]
        return FrontSurface(points, self.floor, *known, limit=self.limit)


def nearest_the_front(seen: Sequence[Observation], target: int, low: Array) -> Sequence[Observation]:
    """At most MOST_POINTS of what was seen: those that reached the rung ``target`` before others, and of
    each kind those nearest the front of their rung. ``low``: (k,) the lowest log costs there are."""
    if len(seen) <= MOST_POINTS:
        return seen
    last, values = np.array([s.standing for s in seen]).T
    costs = np.concatenate([s.log_costs for s in seen]).reshape(len(seen), len(low))
    points = latin_hypercube(low, _PLACES)
    reached = within(costs, points)
    behind = np.full(len(seen), np.inf)
    for rung in np.unique(last):
        here = last == rung
        best = np.where(reached[here], values[here, None], np.inf).min(axis=0)
        # how far behind the best at the place where it comes nearest
        behind[here] = np.where(reached[here], values[here, None] - best, np.inf).min(axis=1)
    order = np.lexsort((behind, last < target))
    return [seen[index] for index in sorted(order[:MOST_POINTS])]
