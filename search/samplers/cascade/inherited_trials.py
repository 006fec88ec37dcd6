"""Which networks to make from one that was just trained: cut further, or held in other bits.

An heir takes over the trained weights and is scored without any training of its own, in a fraction of the
time of a trial. What it loses beside the trained network grows with the sensitivities of what is changed; how
fast (the rate) is learned from the heirs that were scored. Heirs are taken one after the other by the
expected gain in hypervolume, each with those before it as if they had come out as expected.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

from leanfront.search.samplers.cascade.encoding import Codes, keys
from leanfront.search.samplers.cascade.expected_hypervolume import FrontSurface
from leanfront.search.samplers.cascade.gaussian import Array
from leanfront.search.samplers.cascade.surrogate import SOFT
from leanfront.search.samplers.cascade.warm_start import Knowledge
from leanfront.search.samplers.cascade.zero_cost_front import children

MOST = 8
"""Heirs of one trained network, at most."""
_ROUNDS, _CANDIDATES, _PARENTS = 4, 256, 32
_RATE, _WEIGHT = 0.35, 0.2
"""Accuracy lost per nat of summed sensitivities, and for how many nats that counts before any heir was
scored. Of 60 heirs on VGG-11: 0.17 to 0.5."""
_DOUBT = 0.3
"""Standard deviation of what is lost, as a share of it."""
_LEAST_GAIN = 0.0001
"""What an heir must promise, as a share of the hypervolume that there is."""


def rate(losses: Sequence[tuple[float, float]]) -> float:
    """Accuracy lost per nat, of (summed sensitivities added, accuracy lost) of each heir so far."""
    added, lost = np.array([(_WEIGHT, _RATE * _WEIGHT), *losses]).sum(axis=0)
    return max(float(lost / added), 0.1 * _RATE)


def choose(
    knowledge: Knowledge,
    surface: FrontSurface,
    trained: Codes,
    shortfall: float,
    per_nat: float,
    taken: Collection[bytes],
    rng: np.random.Generator,
) -> Codes:
    """(decisions, n): heirs in the order in which they should be scored, at most MOST.

    Args:
        knowledge: what is searched.
        surface: what the front reaches.
        trained: (decisions,) the codes of the trained network.
        shortfall: its log shortfall.
        per_nat: accuracy lost per nat of sensitivities added.
        taken: keys of policies that must not come again.
        rng: draws the candidates.
    """
    lost = np.exp(shortfall)
    prior = knowledge.prior
    (own,) = prior.sensitivities(trained[:, None]).sum(axis=1)

    def expected(codes: Codes) -> tuple[Array, Array]:
        """Mean and standard deviation of log shortfalls, (n,) and (n,)."""
        loses = per_nat * np.maximum(prior.sensitivities(codes).sum(axis=1) - own, 0.0)
        return np.log(np.maximum(lost + loses, 0.5 * SOFT)), _DOUBT * loses / (lost + loses)

    codes, log_costs = _candidates(knowledge, surface, trained, expected, taken, rng)
    mean, deviation = expected(codes)
    chosen: list[int] = []
    for _ in range(min(MOST, codes.shape[1])):
        gains = surface.expected_hypervolume(log_costs, mean, deviation)
        gains[chosen] = 0.0
        best = int(gains.argmax())
        if gains[best] <= max(_LEAST_GAIN * surface.volume(), 1e-9):
            break
        chosen.append(best)
        surface = surface.with_one_more(log_costs[best], float(mean[best]))
    return codes[:, chosen]


def _candidates(
    knowledge: Knowledge,
    surface: FrontSurface,
    trained: Codes,
    expected: Callable[[Codes], tuple[Array, Array]],
    taken: Collection[bytes],
    rng: np.random.Generator,
) -> tuple[Codes, Array]:
    """Codes (decisions, n) of possible heirs, evolved from ``trained``, and their log costs (n, k)."""
    encoding = knowledge.encoding
    looked_at = {*taken, *keys(trained[:, None])}
    parents = trained[:, None]
    found: list[tuple[Codes, Array]] = [(parents[:, :0], np.zeros((0, len(knowledge.low))))]
    for _ in range(_ROUNDS):
        codes = encoding.canonical(children(parents, encoding, _CANDIDATES, rng))
        codes = codes[:, encoding.keep_nothing_else(codes, trained)]  # what is gone does not come back
        codes, log_costs = knowledge.fresh(codes, looked_at)
        found.append((codes, log_costs))
        gains = surface.expected_hypervolume(log_costs, *expected(codes))
        parents = np.hstack([trained[:, None], codes[:, np.argsort(-gains, kind="stable")[:_PARENTS]]])
    all_codes, all_costs = zip(*found, strict=True)
    return np.hstack(all_codes), np.vstack(all_costs)
