"""The score of a network, collected batch by batch: of each example, or of all together."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leanfront.compression.capture.program import tensors_in
from leanfront.compression.training.finetune import Diverged
from leanfront.search.run.significance import Evidence, Resampled
from leanfront.search.scores import is_list, shown, together
from leanfront.search.task import Task, TaskError
from leanfront.search.trial.in_task import on


@dataclass(frozen=True, eq=False)
class Score:
    """What a network is worth on the search images, or a part of them.

    accuracy: mean of the task's score, 0..1, or its metric, with the sign with which more is better, and its
    95 % confidence interval; divergence: mean KL(teacher || network) of the class probabilities, in nats (see
    ``scorer.evaluate``); scores: of each example, (N,), in an order that is the same for all networks, or the
    metric on resamples; settled: what its batch norms, ranges and biases were given, in a word each.
    """

    accuracy: float
    accuracy_ci: tuple[float, float]
    divergence: float
    scores: Evidence
    seconds_training: float
    seconds_scoring: float
    settled: Mapping[str, str] = field(default_factory=dict)


class Scored:
    """Takes in outputs and targets; ``evidence`` is what they are worth."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._each: list[Tensor] = []
        self._outputs: list[Any] = []
        self._targets: list[Any] = []
        self._examples = 0

    def add(self, outputs: Any, targets: Any, examples: int) -> None:
        """A batch of so many examples.

        Raises:
            TaskError: the score is not one number between 0 and 1 for each of them.
        """
        self._examples += examples
        if self._task.metric is None:
            self._each.append(_checked(asked(self._task.score, "score", outputs, targets), examples))
        else:
            self._outputs.append(on("cpu", outputs))
            self._targets.append(on("cpu", targets))

    def evidence(self, resamples: int | None = None) -> Evidence:
        """The scores (N,) in float32, or the metric and its resamples, with the sign with which more is
        better. ``resamples``: how many, as many as take about a second by default.

        Raises:
            TaskError: the metric is no number that it can be.
        """
        metric = self._task.metric
        if metric is None:
            return torch.cat(self._each).numpy()
        outputs, targets = together(self._outputs), together(self._targets)
        value = float(asked(metric.of, f"metric {metric.name}", outputs, targets))
        drawn = metric.resamples(outputs, targets, self._examples, resamples)
        return Resampled(metric.sign * value, metric.sign * drawn, self._examples)


def asked(function: Callable[[Any, Any], Any], name: str, outputs: Any, targets: Any) -> Any:
    """What a function of the user's says of outputs and targets.

    Raises:
        TaskError: it raised something, which most often says that the two do not fit each other.
    """
    try:
        return function(outputs, targets)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        if isinstance(problem, TaskError) or "memory" in str(problem).lower():
            raise
        raise TaskError(
            f"A task's {name} takes the outputs of its model and the targets of its data, but it failed with"
            f" {shown(outputs)} and {shown(targets)}: {type(problem).__name__}:"
            f" {' '.join(str(problem).split())[:300]}; make the two fit"
        ) from problem


def examples_in(inputs: Any, targets: Any) -> int:
    """How many examples a batch has: entries of a list, or the length of the first tensor that has one."""
    if is_list(targets):
        return len(targets)
    return next(len(tensor) for tensor in (*tensors_in(targets), *tensors_in(inputs)) if tensor.dim())


def _checked(scores: object, examples: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (examples,):
        came = f"{tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TaskError(
            f"A task's score is one number for each example, ({examples},), but {came} came; reduce it to"
            " that, or give what is one number for a whole split as the task's metric"
        )
    found = scores.float().cpu()
    low, high = torch.aminmax(found)
    if low < 0 or high > 1:
        raise TaskError(
            f"A task's score lies between 0 and 1, but {float(high if high > 1 else low):g} came; divide"
            " percents by 100, or give what has another unit as the task's metric"
        )
    return found


class TrialFailed(RuntimeError):
    """A policy that could not be scored: its training diverged, or it ran out of memory."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a policy may suffer into TrialFailed; a bug stays what it is."""
    try:
        yield
    except Diverged as error:
        raise TrialFailed(str(error)) from error
    except MemoryError as error:
        raise TrialFailed("out of memory") from error
    except TrialFailed:
        raise
    except RuntimeError as error:
        if "memory" in str(error).lower():
            raise TrialFailed(f"out of memory: {str(error).splitlines()[0]}") from error
        raise
