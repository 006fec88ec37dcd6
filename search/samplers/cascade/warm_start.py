"""What the cascade sampler knows before the first trial."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leanfront.search.config import LimitsSection
from leanfront.search.objectives import REACH, costs_among, objective
from leanfront.search.samplers.cascade.encoding import Codes, Encoding, fresh
from leanfront.search.samplers.cascade.gaussian import Array
from leanfront.search.samplers.cascade.surrogate import LEAST_TO_FIT, Prior, Surrogate, shortfall
from leanfront.search.samplers.cascade.zero_cost_front import cheap_front

if TYPE_CHECKING:
    from leanfront.compression.policy.batch import PolicyBatch
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.cost import CostArrays, CostModel
    from leanfront.search.trial.trial import Problem

CHEAP_POLICIES = 1_000_000
"""Policies that are priced and ranked before anything is scored."""
START = 48
"""Policies that are scored untrained before any is trained."""


@dataclass(frozen=True)
class Knowledge:
    """What is known before the first trial.

    divergences: decision -> divergence of each of its values alone (trial.sensitivity). baseline: objective
    -> that of the uncompressed network. images: that a trial has trained on at the end of each rung. start:
    how many policies are scored untrained at first.
    """

    space: "Space"
    cost_model: "CostModel"
    objectives: tuple[str, ...]
    limits: LimitsSection
    baseline: Mapping[str, float]
    divergences: Mapping[str, Sequence[float]]
    images: tuple[int, ...]
    start: int
    archive: Codes | None = None

    @property
    def rungs(self) -> int:
        """Their number."""
        return len(self.images)

    @property
    def costs(self) -> tuple[str, ...]:
        """The objectives that are costs."""
        return costs_among(self.objectives)

    @cached_property
    def encoding(self) -> Encoding:
        """Of the space."""
        return Encoding(self.space)

    @cached_property
    def prior(self) -> Prior:
        """The sensitivities in the order of the encoding; what was not measured counts as harmless."""
        return Prior(
            [
                self.divergences.get(name, (0.0,) * int(size))
                for name, size in zip(self.encoding.names, self.encoding.sizes, strict=True)
            ]
        )

    @property
    def unit(self) -> float:
        """Of the score: that in which its reach is 0.10, as that of a share is. All shortfalls are in it."""
        return objective("accuracy").reach(self.baseline["accuracy"]) / REACH

    @property
    def floor(self) -> float:
        """Log shortfall from which hypervolume counts: the same as where it is shown, unless a limit allows
        more."""
        return float(shortfall(-max(REACH, (self.limits.max_drop or 0.0) / self.unit), 0.0))

    @property
    def limit(self) -> float:
        """Log shortfall at the most accuracy that may be lost: beyond, nothing is won."""
        most = self.limits.max_drop
        return self.floor if most is None else float(shortfall(-most / self.unit, 0.0))

    def log_costs(self, codes: Codes) -> Array:
        """(n, k): logarithms of the costs as shares of the baseline's, infinite where a limit is broken or
        the part is too small."""
        if codes.shape[1] == 0:
            return np.zeros((0, len(self.costs)))
        batch, found, result = self._priced(codes)
        for name, most in self.limits.costs.items():
            result[objective(name).column(batch, found) > most] = np.inf
        result[~found.fits] = np.inf
        return result

    def _priced(self, codes: Codes) -> "tuple[PolicyBatch, CostArrays, Array]":
        """Policies, what they cost, and the logarithms (n, k) of that as shares of the baseline's."""
        batch = self.encoding.batch(codes)
        found = self.cost_model.costs(batch)
        columns = [
            row.sign * np.log(np.maximum(row.column(batch, found), 1e-12) / self.baseline[row.name])
            for row in map(objective, self.costs)
        ]
        return batch, found, np.stack(columns, axis=1)

    def fresh(self, codes: Codes, known: set[bytes]) -> tuple[Codes, Array]:
        """Those of some policies that keep the limits and whose keys are not yet among ``known``, to which
        they go, and their log costs (n, k)."""
        codes = fresh(codes, known)
        log_costs = self.log_costs(codes)
        allowed = np.isfinite(log_costs).all(axis=1)
        return codes[:, allowed], log_costs[allowed]

    @cached_property
    def low(self) -> Array:
        """(k,): the lowest log cost of a large sample."""
        drawn = self.encoding.random(4096, np.random.default_rng(0))
        *_, log_costs = self._priced(np.hstack([self.encoding.uniform, drawn]))
        return np.asarray(np.minimum(log_costs.min(axis=0), -1e-3))

    def cheap_front(self, policies: int = CHEAP_POLICIES, seed: int = 0) -> Codes:
        """(decisions, m): the front of so many policies by costs and sensitivities alone."""
        untaught = Surrogate(self.prior, (), self.rungs)
        return cheap_front(
            self.encoding,
            self.log_costs,
            lambda codes: untaught.predict(codes, 0)[0],
            self.low,
            policies,
            np.random.default_rng(seed),
        )

    @cached_property
    def start_codes(self) -> Codes:
        """The cheap front, made now if it was not given."""
        return self.archive if self.archive is not None else self.cheap_front()

    @cached_property
    def archive_log_costs(self) -> Array:
        """(m, k): those of the cheap front."""
        return self.log_costs(self.start_codes)


def knowledge_of(
    problem: "Problem", divergences: Mapping[str, Sequence[float]], start: int, kept: Path | None = None
) -> Knowledge:
    """What a search knows once it is prepared. The cheap front is read from ``kept``, or made and kept."""
    knowledge = Knowledge(
        space=problem.space,
        cost_model=problem.cost_model,
        objectives=problem.objectives,
        limits=problem.limits,
        baseline={"accuracy": problem.baseline_accuracy, **problem.baseline_costs},
        divergences=divergences,
        images=problem.rungs,
        start=start,
    )
    archive = _read(kept, knowledge.encoding)
    if archive is None:
        archive = knowledge.cheap_front()
        if kept is not None:
            beside = kept.with_suffix(f".{os.getpid()}.npy")
            np.save(beside, archive)
            beside.replace(kept)
    # what people try by hand is among the first that are scored
    seeds = [knowledge.encoding.of(policy) for policy in problem.space.seeds()]
    return replace(knowledge, archive=np.unique(np.hstack([archive, np.stack(seeds, axis=1)]), axis=1))


def too_few(trials: int | None, knowledge: Knowledge) -> str:
    """What a search of so few trained trials will lack; empty where they are enough, or do not end it."""
    if trials is None or trials >= LEAST_TO_FIT:
        return ""
    return (
        f"{trials} trials are fewer than the {LEAST_TO_FIT} from which what training wins back is learned:"
        f" the front will be guesses from {'untrained scores' if knowledge.start else 'sensitivities'}"
    )


def start_of(problem: "Problem") -> int:
    """How many policies are scored untrained before any is trained; none where the first rung trains."""
    if len(problem.rungs) == 1 or problem.rungs[0] > 0:
        return 0
    return min(START, problem.space.size // 4)


def _read(kept: Path | None, encoding: Encoding) -> Codes | None:
    """What was kept, if it is of this space: a configuration may change until its first trial."""
    try:
        archive = np.load(kept, allow_pickle=False) if kept is not None else None
    except (OSError, ValueError):
        return None
    if archive is None or archive.ndim != 2 or archive.shape[0] != len(encoding.sizes) or not archive.size:
        return None
    codes = archive.astype(np.int64)
    return codes if (codes < encoding.sizes[:, None]).all() else None
