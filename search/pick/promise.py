"""How much a network of the front may really lose: a bound that also holds for the best of many."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow
from leanfront.search.run.significance import Evidence, comparable, examples_of, load_scores, most_lost


@dataclass(frozen=True, eq=False)
class Promise:
    """With what probability a drop is kept.

    Of many networks that were scored the one that looks best looks better than it is. So each is held to a
    level of (1 - confidence) / considered (Bonferroni): the chance that any of them at all exceeds its bound
    is at most 1 - confidence, and whichever is chosen, for whatever reason, is one of them.

    baseline: scores of the uncompressed network on the search split; scores_of: those of a trial on the same
    examples, None where they were not kept; considered: how many networks were scored, chosen from or not.
    """

    confidence: float
    baseline: Evidence
    scores_of: Callable[[TrialRow], Evidence | None]
    considered: int

    def most_lost(self, row: TrialRow) -> float:
        """What the trial's network does not lose more than; infinite where its scores were not kept."""
        scores = self.scores_of(row)
        if scores is None or not comparable(scores, self.baseline):
            return math.inf
        return most_lost(self.baseline, scores, (1 - self.confidence) / max(self.considered, 1))

    def examples_needed(self, drop: float, most: float, max_drop: float) -> int | None:
        """In the search split, to promise ``max_drop`` of a network that lost ``drop`` and is bounded by
        ``most``: the bound comes nearer with the root of their number. None where no number is enough."""
        if not drop < max_drop or math.isinf(most):
            return None
        return math.ceil(examples_of(self.baseline) * ((most - drop) / (max_drop - drop)) ** 2)


def promise_of(run: RunFolder, confidence: float, limits: Mapping[str, float]) -> Promise:
    """The promise that a run can give: all of its trials that were scored and keep the ``limits`` of costs,
    which are known before any score, are considered.

    Raises:
        RunError: the probability is none, or the scores of the uncompressed network were not kept.
    """
    if not 0 < confidence < 1:
        raise RunError(
            f"--confidence is a probability between 0 and 1, not {confidence:g}; give one such as 0.9"
        )
    baseline = load_scores(run.scores_file("baseline"))
    if baseline is None:
        raise RunError(
            f"--confidence needs the uncompressed network's score of each example, but {run.path} has kept"
            " none; search anew, or leave it out"
        )
    return Promise(confidence, baseline, partial(_scores_of, run), considered(run, limits))


def considered(run: RunFolder, limits: Mapping[str, float]) -> int:
    """How many networks of a run were scored that keep the limits of costs."""
    return sum(
        row.accuracy is not None
        and all((cost := row.value(name)) is not None and cost <= most for name, most in limits.items())
        for row in run.trials()
    )


def _scores_of(run: RunFolder, row: TrialRow) -> Evidence | None:
    return load_scores(run.scores_file(row.trial))
