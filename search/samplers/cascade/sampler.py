"""Cascade. Its proposer is one of Optuna's samplers: storages, workers and dashboards work with it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.search.objectives import objective
from leanfront.search.run.run_folder import RunFolder
from leanfront.search.samplers.cascade.acquisition import Proposal, front_surface, propose
from leanfront.search.samplers.cascade.encoding import Codes, keys
from leanfront.search.samplers.cascade.gaussian import Hyperparameters
from leanfront.search.samplers.cascade.inherited_trials import choose, rate
from leanfront.search.samplers.cascade.surrogate import (
    Observation,
    Surrogate,
    accuracy_of,
    log_divergence,
    shortfall,
)
from leanfront.search.samplers.cascade.warm_start import Knowledge, knowledge_of, start_of, too_few
from leanfront.search.samplers.registry import Sampler, register
from leanfront.search.trial import sensitivity
from leanfront.search.trial.promotion import HOPELESS, IDLE, UNKNOWN, UNTRAINED, was_hopeless
from leanfront.search.trial.trial import WEIGHTS_OF, Log, Problem, is_heir

_SURE = 2.0
"""Standard deviations beyond which a policy is not trained further: one in fifty is given up wrongly."""
_LEFT = 0.5
"""Share of the gain it promised that a policy must still promise when more is known of it."""
_REFIT = 1.2
"""Hyperparameters are looked for again when there is so much more to fit."""


@cache
def _algebra() -> ThreadpoolController:
    """The libraries for matrices. On one thread a proposal is twice as fast: it is many small products, and
    threads that wait for the next cost more than they save (2 cores, 5,000 trials: 37 ms, else 64 to 131)."""
    return ThreadpoolController().select(user_api="blas")


@dataclass
class _Read:
    """What the sampler has read of a study. Finished trials never change and are read once.

    leading: so many trials, the first of all, were read. trained: codes and accuracy of trials that were
    trained to the end. losses: of each heir, how much its policy has more of summed sensitivities than its
    parent's, and how much accuracy it has less.
    """

    seen: dict[bytes, Observation] = field(default_factory=dict)
    final: set[bytes] = field(default_factory=set)
    trials: set[int] = field(default_factory=set)
    leading: int = 0
    trained: dict[int, tuple[Codes, float]] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)


@register("cascade")
class Cascade(Sampler):
    """Learns from every rung: the sensitivities, and the front of a million policies by them, come first."""

    def __init__(self) -> None:
        self.knowledge: Knowledge | None = None
        self._proposer: CascadeSampler | None = None

    def rungs(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """All."""
        return images

    def before_search(self, problem: Problem, run: RunFolder, write: bool, log: Log) -> dict[str, Any]:
        """Measure the sensitivities and rank a million policies, or read both."""
        found = sensitivity.measure(problem.scorer, problem.space, log)
        if write:
            sensitivity.write_csv(run.path / "sensitivities.csv", problem.space, found)
        started = time.perf_counter()
        self.start = start_of(problem)
        self.knowledge = knowledge_of(problem, found.divergence, self.start, run.path / "cheap_front.npy")
        if (seconds := time.perf_counter() - started) > 1:
            log(f"ranked a million policies by cost and sensitivity in {seconds:.0f} s")
        return {"sensitivities": sensitivity.summary(found)}

    def warning(self, trials: int | None) -> str:
        """That its surrogate will have too little to learn from."""
        return "" if self.knowledge is None else too_few(trials, self.knowledge)

    def seeds(self, space: Space) -> Sequence[Policy]:
        """It has a start of its own, but for what everybody would try first."""
        return [anchor(space)]

    def proposer(self, seed: int) -> BaseSampler:
        """As ``CascadeSampler``."""
        if self.knowledge is None:
            return super().proposer(seed)
        self._proposer = CascadeSampler(self.knowledge, seed)
        return self._proposer

    def expected_accuracy(self, policy: Policy) -> float | None:
        """As ``CascadeSampler``."""
        return None if self._proposer is None else self._proposer.expected_accuracy(policy)

    def given_up(self, policy: Policy, reached: Mapping[str, Any]) -> str:
        """As ``CascadeSampler``."""
        return "" if self._proposer is None else self._proposer.given_up(policy, reached)

    def inherited(self, study: optuna.Study, policy: Policy, accuracy: float) -> Sequence[Policy]:
        """As ``CascadeSampler``."""
        return () if self._proposer is None else self._proposer.inherited(study, policy, accuracy)


def anchor(space: Space) -> Policy:
    """Nothing cut, 8 bits where the space has them, else the widest that are not float."""
    integers = [pair for pair in space.pairs if max(pair) <= 8]
    return space.uniform(0.0, (8, 8) if (8, 8) in integers else max(integers, default=max(space.pairs)))


class CascadeSampler(BaseSampler):
    """Proposes whole policies by the expected gain in hypervolume.

    A policy that was scored at the first rung alone may be proposed again: it then goes on from there.
    """

    def __init__(self, knowledge: Knowledge, seed: int = 0) -> None:
        self.knowledge = knowledge
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)
        self._read = _Read()
        self._surrogate: Surrogate | None = None
        self._proposal: Proposal | None = None
        self._hyperparameters: dict[int, Hyperparameters] = {}
        self._fitted_at = 0

    def reseed_rng(self) -> None:
        """Optuna calls it in every new thread."""
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All decisions with a choice, from the first trial on."""
        return dict(self._distributions)

    @cached_property
    def _distributions(self) -> dict[str, BaseDistribution]:
        return {
            decision.name: CategoricalDistribution(decision.texts)
            if decision.scale == "category"
            else IntDistribution(0, len(decision.values) - 1)
            for decision in self.knowledge.space.decisions
            if len(decision.values) > 1
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the policy that promises most."""
        with _algebra().limit(limits=1):
            codes = self._propose(study, trial)
        params = self.knowledge.encoding.params(codes)
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A parameter that is none of the space's decisions: at random."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def given_up(self, policy: Policy, reached: Mapping[str, Any]) -> str:
        """Why a policy that stands like this after a rung (rung, images, accuracy, divergence) should not go
        on, as far as trials have shown, or "": it will hardly come out above the floor of accuracy, or, the
        policy that was proposed last, it will win little of what it promised then."""
        knowledge = self.knowledge
        if self._surrogate is None:
            return ""
        accuracy = knowledge.baseline["accuracy"]
        scores = scores_of({"rungs": [reached]}, accuracy, knowledge.images, knowledge.unit)
        ((rung, score),) = scores.items()
        codes = knowledge.encoding.of(policy)
        mean, deviation = self._surrogate.after(codes, rung, score)
        if mean - _SURE * deviation > knowledge.limit:
            return HOPELESS
        proposal = self._proposal_of(codes)
        if proposal is None:
            return ""
        log_costs = knowledge.log_costs(codes[:, None])
        (gain,) = proposal.surface.expected_hypervolume(log_costs, np.array([mean]), np.array([deviation]))
        return IDLE if gain < _LEFT * proposal.gain else ""

    def expected_accuracy(self, policy: Policy) -> float | None:
        """At the last rung, of the policy that was proposed last; None of any other, and in the start."""
        proposal = self._proposal_of(self.knowledge.encoding.of(policy))
        if proposal is None:
            return None
        unit = self.knowledge.unit
        return unit * accuracy_of(proposal.mean, self.knowledge.baseline["accuracy"] / unit)

    def _proposal_of(self, codes: Codes) -> Proposal | None:
        """The last proposal, if it was for the last rung and of this policy, (decisions,)."""
        proposal = self._proposal
        if proposal is None or keys(proposal.codes[:, None]) != keys(codes[:, None]):
            return None
        return proposal

    def inherited(self, study: optuna.Study, policy: Policy, accuracy: float) -> list[Policy]:
        """What to make from the weights of a policy's network that was just trained to this accuracy."""
        with _algebra().limit(limits=1):
            return self._inherited(study, policy, accuracy)

    def _inherited(self, study: optuna.Study, policy: Policy, accuracy: float) -> list[Policy]:
        knowledge, encoding = self.knowledge, self.knowledge.encoding
        pending = self._take_in(study.get_trials(deepcopy=False), None)
        seen = list(self._read.seen.values())
        own = encoding.of(policy)
        unit = knowledge.unit
        reached = float(shortfall(accuracy / unit, knowledge.baseline["accuracy"] / unit))
        surface = front_surface(knowledge, seen, pending, self._hyperparameters)
        surface = surface.with_one_more(knowledge.log_costs(own[:, None])[0], reached)
        codes = choose(
            knowledge,
            surface,
            own,
            reached,
            rate(self._read.losses),
            self._read.final | set(keys(pending)),
            self._rng,
        )
        batch = encoding.batch(codes)
        return [batch.policy(index) for index in range(codes.shape[1])]

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> NDArray[np.int64]:
        knowledge = self.knowledge
        encoding = knowledge.encoding
        trials = study.get_trials(deepcopy=False)
        pending = self._take_in(trials, trial.number)
        seen = list(self._read.seen.values())
        last = knowledge.rungs - 1
        begun = any(last in s.scores for s in seen) or sum(0 in s.scores for s in seen) >= knowledge.start
        target = last if begun else 0
        if len(seen) > _REFIT * self._fitted_at:
            self._hyperparameters, self._fitted_at = {}, len(seen)

        def found_for(rung: int) -> Proposal | None:
            taken = self._read.final | set(keys(pending))
            return propose(
                knowledge,
                seen,
                taken if rung == last else taken | set(self._read.seen),  # in the start once is enough
                pending,
                rung,
                self._rng,
                self._hyperparameters,
            )

        found = found_for(target)
        if found is None and target < last:  # limits leave fewer policies than the start wants
            target, found = last, found_for(last)
        self._proposal = found if target == last else None
        if found is None:
            return encoding.random(1, self._rng)[:, 0]
        self._surrogate = found.surrogate
        self._hyperparameters = {**found.surrogate.hyperparameters}
        return found.codes

    def _take_in(self, trials: Sequence[FrozenTrial], own: int | None) -> Codes:
        """Read trials that have finished since; the codes of those that are running, (decisions, p)."""
        encoding, read = self.knowledge.encoding, self._read
        pending = []
        while read.leading < len(trials) and trials[read.leading].number in read.trials:
            read.leading += 1
        for trial in trials[read.leading :]:
            if trial.number in read.trials or trial.number == own:
                continue
            codes = self._codes(trial)
            if codes is None:
                if trial.state.is_finished():
                    read.trials.add(trial.number)
                continue
            if not trial.state.is_finished():
                pending.append(codes)
                continue
            read.trials.add(trial.number)
            self._note(codes, trial)
        if not pending:
            return np.zeros((len(encoding.sizes), 0), dtype=np.int64)
        return encoding.canonical(np.stack(pending, axis=1))

    def _note(self, codes: NDArray[np.int64], trial: FrozenTrial) -> None:
        result = trial.user_attrs.get("result") or {}
        if result.get("reason") in UNKNOWN:
            return
        canonical = self.knowledge.encoding.canonical(codes[:, None])
        (key,) = keys(canonical)
        accuracy, unit = self.knowledge.baseline["accuracy"], self.knowledge.unit
        scores = scores_of(result, accuracy, self.knowledge.images, unit)
        untrained = None
        if "accuracy" in result and (is_heir(result) or result.get("reason") == UNTRAINED):
            untrained = float(shortfall(result["accuracy"] / unit, accuracy / unit))
        if is_heir(result):
            self._learn_loss(canonical, result)
        elif self.knowledge.rungs - 1 in scores and "accuracy" in result:
            self._read.trained[trial.number] = canonical, result["accuracy"]
        given_up = was_hopeless(result.get("reason"))
        if given_up or trial.state != TrialState.PRUNED or max(scores, default=-1) != 0:
            self._read.final.add(key)  # complete, refused, failed, or it fell behind after training
        if (scores or untrained is not None) and all(name in result for name in self.knowledge.costs):
            costs = [
                objective(name).sign * np.log(result[name] / self.knowledge.baseline[name])
                for name in self.knowledge.costs
            ]
            before = self._read.seen.get(key)
            scores = {**(before.scores if before else {}), **scores}
            self._read.seen[key] = Observation(canonical[:, 0], scores, np.array(costs), untrained)

    def _learn_loss(self, codes: Codes, result: Mapping[str, Any]) -> None:
        parent = self._read.trained.get(int(result.get(WEIGHTS_OF, -1)))
        if parent is not None and "accuracy" in result:
            own, theirs = self.knowledge.prior.sensitivities(np.hstack([codes, parent[0]])).sum(axis=1)
            if own > theirs:
                lost = float(parent[1] - result["accuracy"]) / self.knowledge.unit
                self._read.losses.append((float(own - theirs), lost))

    def _codes(self, trial: FrozenTrial) -> NDArray[np.int64] | None:
        """(decisions,) from the parameters of a trial; None where it has not all of them."""
        given = {**(trial.system_attrs.get("fixed_params") or {}), **trial.params}
        chosen = [d for d in self.knowledge.space.decisions if len(d.values) > 1]
        if any(decision.name not in given for decision in chosen):
            return None
        codes = np.zeros(len(self.knowledge.space.decisions), dtype=np.int64)
        codes[self.knowledge.encoding.movable] = [d.code(given[d.name]) for d in chosen]
        return codes


def scores_of(
    result: Mapping[str, Any], baseline: float, images: Sequence[int], unit: float = 1.0
) -> dict[int, float]:
    """Rung -> log shortfall, of what a trial has in its journal. ``images``: trained on at each rung; another
    sampler's trials, of the same run, have the last one alone. ``unit``: of the score."""
    scores: dict[int, float] = {}
    if is_heir(result):  # an heir says nothing of what training does to its policy
        return scores
    reached = result.get("rungs") or ()
    for rung in reached:
        if rung["images"] in images:
            untrained = rung["images"] == 0 and len(images) > 1
            score = (
                log_divergence(rung["divergence"])
                if untrained
                else shortfall(rung["accuracy"] / unit, baseline / unit)
            )
            scores[images.index(rung["images"])] = float(score)
    if not reached and "accuracy" in result:  # scored without rungs
        scores[len(images) - 1] = float(shortfall(result["accuracy"] / unit, baseline / unit))
    return scores
