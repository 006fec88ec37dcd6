"""One trial: what a policy costs, whether that is allowed, and how accurate the network then is."""

import errno
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compression.policy import Policy
from search.config import LimitsSection
from search.space import Space

if TYPE_CHECKING:
    from latency_models.cost import Cost, CostModel

COSTS = ("latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes")


class ScoreLike(Protocol):
    """What a scorer says of a policy; accuracies are fractions, the interval holds 95 %."""

    @property
    def accuracy(self) -> float: ...  # noqa: D102
    @property
    def accuracy_ci(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def seconds_training(self) -> float: ...  # noqa: D102
    @property
    def seconds_scoring(self) -> float: ...  # noqa: D102


class ScorerLike(Protocol):
    """Trains and scores what a policy makes of the network; ``search.score.Scorer`` is the real one."""

    def score(self, policy: Policy, checkpoint: Path | None) -> ScoreLike:
        """Cut, quantize, fine-tune shortly and score on the search split; raises when that fails."""
        ...


@dataclass(frozen=True)
class Problem:
    """What is searched. ``baseline_accuracy``: of the uncompressed network on the search split."""

    space: Space
    cost_model: "CostModel"
    scorer: ScorerLike
    objectives: tuple[str, ...]
    limits: LimitsSection
    baseline_accuracy: float

    def cost(self, policy: Policy) -> "Cost":
        """What a policy costs; raises what the cost model raises when it does not know."""
        return self.cost_model.cost(self.space.resized(policy), policy)


@dataclass(frozen=True)
class Result:
    """What came of a trial. ``state``: complete, infeasible, failed or pruned; ``reason``: why not complete.

    ``constraints``: name of a limit -> how far over it (as a share of the limit; of ``max_drop``: as a
    difference of accuracies); 0 and below is within.
    """

    state: str
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, for the journal."""
        return {"state": self.state, "reason": self.reason, **self.values}


def priced(problem: Problem, policy: Policy) -> Result:
    """The costs of a policy, without any training: "running" when it may go on, or else "infeasible".

    A cost that the model does not know raises TableError: an unknown cost is an error, never 0.
    """
    cost = problem.cost(policy)
    values = {name: float(getattr(cost, name)) for name in COSTS}
    limits = problem.limits.costs
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


def scored(problem: Problem, policy: Policy, price: Result, checkpoint: Path | None) -> Result:
    """Train and score a policy whose price is known. What goes wrong becomes a "failed" result.

    A trial that fails must not end the search; only KeyboardInterrupt and the like come out of it, and a
    full disk, which is no fault of the policy (OSError).
    """
    started = time.perf_counter()
    try:
        score = problem.scorer.score(policy, checkpoint)
    except Exception as error:
        if "no space left" in str(error).lower():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        return Result("failed", _why(error), {**price.values, **_seconds(started)}, price.constraints)
    values = {**price.values, **_seconds(started)}
    values["seconds_training"] = float(score.seconds_training)
    values["seconds_scoring"] = float(score.seconds_scoring)
    if not math.isfinite(score.accuracy):
        return Result("failed", f"accuracy is {score.accuracy}", values, price.constraints)
    low, high = score.accuracy_ci
    values |= {"accuracy": float(score.accuracy), "accuracy_low": float(low), "accuracy_high": float(high)}
    most = problem.limits.max_drop
    if most is None:
        return Result("complete", "", values, price.constraints)
    drop = problem.baseline_accuracy - score.accuracy
    constraints = {**price.constraints, "max_drop": drop - most}
    if drop > most:
        reason = f"accuracy drop {drop:.4f} is over max_drop {most:g}"
        return Result("infeasible", reason, values, constraints)
    return Result("complete", "", values, constraints)


def _seconds(started: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - started}


def _why(error: Exception) -> str:
    """One line: the message, with the kind of error unless the scorer foresaw it."""
    message = " ".join(str(error).split())
    lower = message.lower()
    if isinstance(error, MemoryError) or "out of memory" in lower or "can't allocate memory" in lower:
        return f"out of memory{': ' + message if message else ''}"[:500]
    kind = type(error).__name__
    return (message if kind == "TrialFailed" and message else f"{kind}: {message}")[:500]
