"""Networks made from the weights of one that was trained: scored as they are, and made trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import optuna

from leanfront.compression.policy import Policy
from leanfront.search.run.disk import is_full, when_there_is_space
from leanfront.search.run.results_tables import row_of
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.significance import save_scores
from leanfront.search.study.study import add, digests
from leanfront.search.trial.trial import Problem, Result, inherited, priced

if TYPE_CHECKING:
    from leanfront.search.trial.scored import Score
    from leanfront.search.trial.scorer import CandidateTraining


@dataclass(frozen=True)
class Heirs:
    """Makes them for one search.

    worker: who does. show: is told of each. over: whether there is no more time. guarded: around what may
    hang.
    """

    problem: Problem
    study: optuna.Study
    run: RunFolder
    worker: str
    show: Callable[[TrialRow], None]
    over: Callable[[], bool]
    guarded: Callable[[], AbstractContextManager[object]]

    def of(
        self, trained: CandidateTraining, policy: Policy, accuracy: float, parent: Mapping[str, float]
    ) -> None:
        """Those that the sampler wants of a policy's trained network, until there is no more time.

        accuracy: that the network has. parent: as ``trial.inherited`` has it.
        """
        for chosen in self.problem.sampler.inherited(self.study, policy, accuracy):
            if self.over():
                break
            try:
                self.one(trained, chosen, parent)
            except OSError as error:
                if not is_full(error):
                    raise
                break  # the next trial waits for space

    def one(self, trained: CandidateTraining, chosen: Policy, parent: Mapping[str, float]) -> TrialRow | None:
        """One of them, which is made a trial once it is scored: a worker that is lost before leaves nothing
        to be taken back. None where its policy was tried or is over a limit.

        Raises:
            OSError: the disk is full.
        """
        started = datetime.now()
        if chosen.digest in digests(self.study.get_trials(deepcopy=False)):
            return None
        price = price_of(self.problem, chosen)
        if price.state == "infeasible":
            return None
        name = f"inherited-{chosen.digest}"  # until it has a number
        files = self.run.checkpoint(name), self.run.scores_file(name)
        with self.guarded():
            result = inherited(self.problem, parent, trained, chosen, price, partial(keep, self.run, name))
        if chosen.digest in digests(self.study.get_trials(deepcopy=False)):  # another worker was faster
            for path in files:
                path.unlink(missing_ok=True)
            return None
        added = add(self.study, self.problem.space, chosen, self.worker, result, started)
        row = row_of(added, self.problem.objectives)
        for path in files:
            if path.exists():
                path.rename(path.with_name(f"{row.trial}{path.suffix}"))
        self.show(row)
        return row


def price_of(problem: Problem, policy: Policy) -> Result:
    """What ``priced`` says of a policy, and how long that took."""
    asked = perf_counter()
    price = priced(problem, policy)
    return replace(price, values={**price.values, "seconds_pricing": perf_counter() - asked})


def keep(run: RunFolder, name: int | str, candidate: CandidateTraining, scores: Mapping[int, Score]) -> None:
    """Write the weights of a trial's network, and the scores of each example by images trained on."""
    candidate.keep(run.checkpoint(name))
    each = {images: score.scores for images, score in scores.items()}
    when_there_is_space(lambda: save_scores(run.scores_file(name), each), run.log)
