"""One trial: what a policy costs, whether that is allowed, and how accurate the network then is."""

import errno
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, RandomSampler

from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.search.config import LimitsSection
from leanfront.search.objectives import costs_of, objective
from leanfront.search.run.run_folder import PARENTS, RunFolder
from leanfront.search.trial.promotion import HARMLESS, UNTRAINED

if TYPE_CHECKING:
    import optuna

    from leanfront.latency_models.cost import Cost, CostModel
    from leanfront.search.trial.scored import Score
    from leanfront.search.trial.scorer import CandidateTraining, Scorer

Log = Callable[[str], None]
Keep = Callable[["CandidateTraining", Mapping[int, "Score"]], None]
"""Gets a network that is done, and images trained on -> its score."""

WEIGHTS_OF, WEIGHTS_FROM = PARENTS
"""In the result of an inherited trial: the trial whose trained weights it took over, of this run or of
another."""
KNOWN_FROM = "known_from"
"""In the result of a trial that another run has made: its number there."""


def is_heir(result: Mapping[str, Any]) -> bool:
    """Whether a result is of a network that took over trained weights."""
    return any(name in result for name in PARENTS)


class Sampler:
    """How a search proposes policies: a proposer, which is one of Optuna's samplers, and hooks, all of which
    do nothing here. This one proposes at random.

    ``start``: so many policies are scored at the first rung alone before any trial goes further.
    """

    start: int = 0

    def rungs(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """After how many images trials are scored, of those that ``finetune.rungs`` gives: the last alone."""
        return images[-1:]

    def before_search(self, problem: "Problem", run: RunFolder, write: bool, log: Log) -> dict[str, Any]:
        """Look at what is searched, before the first trial; each worker does. What comes back is written into
        environment.json. ``write``: files of the run may be made; else they are there."""
        return {}

    def warning(self, trials: int | None) -> str:
        """What a search of so many trials will lack, or ""."""
        return ""

    def seeds(self, space: Space) -> Sequence[Policy]:
        """What is tried first of all."""
        return space.seeds()

    def proposer(self, seed: int) -> BaseSampler:
        """What the study asks for policies; without ``before_search`` the study is only looked at."""
        return RandomSampler(seed=seed)

    def expected_accuracy(self, policy: Policy) -> float | None:
        """What is expected of a policy that was just proposed; None: nothing is."""
        return None

    def given_up(self, policy: Policy, reached: Mapping[str, Any]) -> str:
        """Why a policy that stands like this after a rung (rung, images, accuracy, divergence) is not
        trained further, or ""."""
        return ""

    def inherited(self, study: "optuna.Study", policy: Policy, accuracy: float) -> Sequence[Policy]:
        """Policies to make from the weights of a network that was just trained to this accuracy."""
        return ()


@dataclass(frozen=True)
class Problem:
    """What is searched. ``baseline_accuracy``: of the uncompressed network on the search split; ``rungs``:
    images that a trial has trained on at the end of each rung, ascending; ``baseline_costs``: of the
    uncompressed network; ``free``: digest of a policy that needs no search -> its accuracy untrained."""

    space: Space
    cost_model: "CostModel"
    scorer: "Scorer"
    objectives: tuple[str, ...]
    limits: LimitsSection
    baseline_accuracy: float
    rungs: tuple[int, ...] = (0,)
    baseline_costs: Mapping[str, float] = field(default_factory=dict)
    sampler: Sampler = field(default_factory=Sampler)
    free: Mapping[str, float] = field(default_factory=dict)

    def cost(self, policy: Policy) -> "Cost":
        """What a policy costs; raises what the cost model raises when it does not know."""
        return self.cost_model.cost(self.space.resized(policy), policy)

    def cost_as_built(self, policy: Policy) -> "Cost":
        """The same, looked at more closely where the model can; takes some tens of milliseconds."""
        return self.cost_model.as_built(self.space.resized(policy), policy)


@dataclass(frozen=True)
class Result:
    """What came of a trial. ``state``: complete, infeasible, failed or pruned; ``reason``: why not complete.

    ``constraints``: name of a limit -> how far over it (as a share of the limit; of ``max_drop``: as a
    difference of scores); 0 and below is within. ``rungs``: of each that was reached its rung,
    images, accuracy, divergence and seconds. A complete trial that needed no training has only the first.
    """

    state: str
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    rungs: tuple[Mapping[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for the journal."""
        rungs = {"rungs": list(self.rungs)} if self.rungs else {}
        return {"state": self.state, "reason": self.reason, **self.values, **rungs}


def priced(problem: Problem, policy: Policy) -> Result:
    """The costs of a policy, without any training: "running" when it may go on, or else "infeasible".

    A cost that the model does not know raises TableError: an unknown cost is an error, never 0.
    """
    result = foretold(problem, policy)
    if result.state != "running":
        return result
    return _within_limits(problem, policy, problem.cost_as_built(policy))


def foretold(problem: Problem, policy: Policy) -> Result:
    """The same in microseconds, without building the network where ``priced`` would."""
    return _within_limits(problem, policy, problem.cost(policy))


def _within_limits(problem: Problem, policy: Policy, cost: "Cost") -> Result:
    limits = problem.limits.costs
    wanted = dict.fromkeys((*problem.objectives, *limits))
    known = costs_of(wanted, lambda: problem.space.resized(policy), policy, cost)
    values = {name: float(value) for name, value in known.items()}
    constraints = {name: values[name] / limit - 1.0 for name, limit in limits.items()}
    if not cost.fits:
        constraints["fits"] = 1.0
    over = {name: excess for name, excess in constraints.items() if excess > 0}
    if not over:
        return Result("running", "", values, constraints)
    worst = max(over, key=lambda name: over[name])
    reason = (
        "does not fit the part"
        if worst == "fits"
        else f"{worst} {values[worst]:.4g} is over the limit {limits[worst]:.4g}"
    )
    return Result("infeasible", reason, values, constraints)


def scored(
    problem: Problem,
    policy: Policy,
    price: Result,
    stays: Callable[[int, "Score"], str],
    keep: Keep,
    before: Sequence[Mapping[str, float]] = (),
) -> Result:
    """Train and score a policy whose price is known, rung by rung. What goes wrong becomes a "failed" result.

    A trial that fails must not end the search; only KeyboardInterrupt and the like come out of it, and a
    full disk, which is no fault of the policy (OSError).

    Args:
        problem: what is searched.
        policy: the policy.
        price: what ``priced`` said of it.
        stays: gets a rung that is not the last and the score there; why the trial does not go on, or "".
        keep: gets the network that has reached the last rung, and images trained on -> its score.
        before: rungs that another trial of the same policy has reached: this one goes on from there.
    """
    values = dict(price.values)
    reached = list(before)

    def climbed() -> tuple[str, str]:
        scores: dict[int, Score] = {}
        complete = ""
        candidate = problem.scorer.start(policy)
        for rung, images in enumerate(problem.rungs[len(before) :], start=len(before)):
            score = candidate.score(rung)
            if not math.isfinite(score.accuracy):
                return "failed", f"accuracy is {score.accuracy}"
            scores[images] = score
            reached.append(reached_at(rung, images, score))
            values.update(_values(reached, list(scores.values())))
            if images == 0 and rung < len(problem.rungs) - 1 and _is_harmless(problem, score):
                complete, rough = UNTRAINED, score
                score = scores[images] = candidate.as_it_is()
                seconds = reached[-1]["seconds"] + score.seconds_scoring
                reached[-1] = {**reached_at(rung, images, score), "seconds": seconds}
                values.update(_values(reached, [rough, score]))
                break
            if rung < len(problem.rungs) - 1 and (reason := stays(rung, score)):
                return "pruned", f"not promoted from rung {rung}: {reason}"
        if score.accuracy < problem.free.get(policy.digest, -math.inf):  # training has made it worse
            complete, candidate = UNTRAINED, problem.scorer.start(policy)
            score = scores[images] = candidate.as_it_is()
            values.update(_values(reached, [score]))
        keep(candidate, scores)
        return "complete", complete

    return _came_of(problem, price, climbed, values, reached)


def _is_harmless(problem: Problem, score: "Score") -> bool:
    """Whether a network that was not trained has nothing to win back: close to the teacher, and what it is
    scored by, which may be something else than its classes, says so too."""
    return score.divergence < HARMLESS and score.accuracy_ci[1] >= problem.baseline_accuracy


def inherited(
    problem: Problem,
    parent: Mapping[str, float],
    trained: "CandidateTraining",
    policy: Policy,
    price: Result,
    keep: Keep,
) -> Result:
    """Score a policy whose price is known, its network made from the weights of a trained one.

    It is not trained, so it has no rungs: it says what its policy reaches at least. Errors as in ``scored``.

    Args:
        problem: what is searched.
        parent: what says which trial was trained: WEIGHTS_OF, or WEIGHTS_FROM, and its number.
        trained: its network.
        policy: the policy that inherits.
        price: what ``priced`` said of it.
        keep: gets its network, and images trained on -> its score.
    """
    values: dict[str, float] = {**price.values, **parent}

    def inherits() -> tuple[str, str]:
        candidate = trained.inherit(policy)
        score = candidate.as_it_is()
        if not math.isfinite(score.accuracy):
            return "failed", f"accuracy is {score.accuracy}"
        values.update(_worth([score]))
        keep(candidate, {problem.rungs[-1]: score})
        return "complete", ""

    return _came_of(problem, price, inherits, values)


def _came_of(
    problem: Problem,
    price: Result,
    attempt: Callable[[], tuple[str, str]],
    values: dict[str, float],
    reached: Sequence[Mapping[str, float]] = (),
) -> Result:
    """The result of an attempt, which gives its state and the reason and fills ``values`` and ``reached``; a
    complete one may be over max_drop. A full disk is not the trial's fault and is raised."""
    started = time.perf_counter()
    constraints = dict(price.constraints)
    try:
        state, reason = attempt()
    except Exception as error:
        if "no space left" in str(error).lower():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        state, reason = "failed", _why(error)
    values["seconds"] = time.perf_counter() - started
    return _held_to_drop(problem, Result(state, reason, values, constraints, tuple(reached)))


def _held_to_drop(problem: Problem, result: Result) -> Result:
    """A complete result that is over max_drop is infeasible."""
    if result.state != "complete" or (most := problem.limits.max_drop) is None:
        return result
    drop = problem.baseline_accuracy - result.values["accuracy"]
    constraints = {**result.constraints, "max_drop": drop - most}
    if drop <= most:
        return replace(result, constraints=constraints)
    row = objective("accuracy")
    reason = f"{row.label} drop {row.amount(drop)} is over max_drop {most:g}"
    return replace(result, state="infeasible", reason=reason, constraints=constraints)


def known(
    problem: Problem, policy: Policy, number: int, score: Mapping[str, float], reason: str,
    rungs: Sequence[Mapping[str, float]],
) -> Result | None:  # fmt: skip
    """The result of a policy that another run has scored, at this problem's costs and limits; None where it
    was scored at no rung and its costs are over a limit: it says nothing here.

    Args:
        number: of the trial there. score: what that found (accuracy, its interval, divergence); empty of one
            that was not promoted: it is held at the first rung, for what it was held against cost otherwise
            there. reason: why it is complete, where that is not its training.
        rungs: each that it has reached.
    """
    price = priced(problem, policy)
    values = {**price.values, KNOWN_FROM: float(number)}
    if not score:
        first = tuple(rungs[:1])
        if price.state == "infeasible" or not first:
            return None
        values |= {name: first[0][name] for name in ("rung", "accuracy", "divergence")}
        return Result("pruned", f"not promoted from rung 0: known from trial {number}", values, {}, first)
    values |= score
    if price.state == "infeasible":
        return replace(price, values={**price.values, KNOWN_FROM: float(number)})
    return _held_to_drop(problem, Result("complete", reason, values, price.constraints, tuple(rungs)))


def reached_at(rung: int, images: int, score: "Score") -> dict[str, float]:
    """What a result, and a sampler, is told of a rung."""
    return {
        "rung": rung,
        "images": images,
        "accuracy": float(score.accuracy),
        "divergence": float(score.divergence),
        "seconds": float(score.seconds_training + score.seconds_scoring),
    }


def _values(reached: Sequence[Mapping[str, float]], scores: Sequence["Score"]) -> dict[str, float]:
    """The scores of the highest rung so far, and the time that all took."""
    return {"rung": reached[-1]["rung"], **_worth(scores)}


def _worth(scores: Sequence["Score"]) -> dict[str, float]:
    """The last of a network's scores, and the time that all took."""
    low, high = scores[-1].accuracy_ci
    return {
        "accuracy": float(scores[-1].accuracy),
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "divergence": float(scores[-1].divergence),
        "seconds_training": sum(float(score.seconds_training) for score in scores),
        "seconds_scoring": sum(float(score.seconds_scoring) for score in scores),
    }


def _why(error: Exception) -> str:
    """One line: the message, with the kind of error unless the scorer foresaw it."""
    message = " ".join(str(error).split())
    lower = message.lower()
    if isinstance(error, MemoryError) or "out of memory" in lower or "can't allocate memory" in lower:
        return f"out of memory{': ' + message if message else ''}"[:500]
    kind = type(error).__name__
    return (message if kind == "TrialFailed" and message else f"{kind}: {message}")[:500]
