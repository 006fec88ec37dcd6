"""What the trained networks of another run leave to a search that starts from it: heirs at its own prices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from leanfront.compression.policy import Policy, PolicyError
from leanfront.compression.training.weight_inheritance import check_kept
from leanfront.search.run.disk import is_full
from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow, open_run
from leanfront.search.study.heirs import Heirs
from leanfront.search.trial.trial import WEIGHTS_FROM, WEIGHTS_OF

if TYPE_CHECKING:
    from leanfront.search.trial.scorer import CandidateTraining

MOST = 48
"""So many networks of the other run's front that are of another space leave something, at most: spread over
it."""
_STRANGE = "bequests"
_DONE = "done"
"""In place of the worker that claimed a network: what it has to leave is left."""


def announce(study: optuna.Study, other: RunFolder, strange: Sequence[TrialRow]) -> int:
    """Have the workers of a study make heirs: of each network of another run's front whose policy this space
    has not what is nearest to it here, and what the sampler wants of all.

    strange: those networks; the ones whose weights were kept count, and how many of them will leave something
    is returned.
    """
    kept = [row.trial for row in strange if other.checkpoint(row.trial).exists()]
    places = np.unique(np.linspace(0, len(kept) - 1, min(MOST, len(kept))).astype(int))
    study.set_user_attr(_STRANGE, [kept[place] for place in places])
    return len(places)


def trained_there(row: TrialRow) -> float:
    """The trial of a run that has trained the weights of one of it; of weights that this run has itself from
    another, the trial that holds them."""
    return float(row.trial if row.weights_of is None else row.weights_of)


@dataclass
class Bequests:
    """Those of one worker's search, one parent after the other, each claimed by whoever is first.

    heirs: makes them. rows: all trials so far, as ``ResultsTables.rows`` has them. note: hears what leaves
    nothing.
    """

    heirs: Heirs
    rows: Callable[[], list[TrialRow]]
    note: Callable[[str], None]
    over: bool = False

    def one(self) -> bool:
        """Let the next network leave what it has to; whether there was one.

        What cannot be read any more leaves nothing, which is noted.
        """
        waiting = None if self.over else next(self._waiting(), None)
        self.over = waiting is None
        if waiting is None:
            return False
        number, row, run = waiting
        self.heirs.study.set_user_attr(_claim(number), self.heirs.worker)
        try:
            self._leaves(row, run)
            self.heirs.study.set_user_attr(_claim(number), _DONE)
        except OSError as error:
            if not is_full(error):
                raise
        return True

    @cached_property
    def _strange(self) -> Sequence[tuple[TrialRow, RunFolder]]:
        """Networks of the other run that this space has not."""
        numbers = self.heirs.study.user_attrs.get(_STRANGE) or ()
        try:
            other = open_run(Path(self.heirs.run.environment()["started_from"]["run"]))
            there = {row.trial: row for row in other.trials()}
        except RunError as problem:
            self.note(f"nothing is inherited: {problem}")
            return ()
        return [(there[number], other) for number in numbers if number in there]

    def _waiting(self) -> Iterator[tuple[int, TrialRow, RunFolder]]:
        """Number in the other run, trial and run of all that may leave something, and are claimed by nobody:
        those of another space first, then, of what is on the front then, what was taken over."""
        if _STRANGE not in self.heirs.study.user_attrs:
            return
        found = [(row.trial, row, run) for row, run in self._strange]
        yield from filter(self._free, found)
        front = front_rows(self.rows(), self.heirs.problem.objectives)
        known = [row for row in front if row.known_from is not None]
        yield from filter(self._free, ((int(row.known_from or 0), row, self.heirs.run) for row in known))

    def _free(self, one: tuple[int, TrialRow, RunFolder]) -> bool:
        number, row, run = one
        by = self.heirs.study.user_attrs.get(_claim(number))
        # a worker that was killed has made some of them: those are known by their policies
        claimed = by is not None and (by == _DONE or not self.heirs.run.is_dead(str(by)))
        return not claimed and bool(row.policy) and run.checkpoint(row.trial).exists()

    def _leaves(self, row: TrialRow, run: RunFolder) -> None:
        policy = Policy.from_json(row.policy)
        trained = self._loaded(row, run, policy)
        if trained is None:
            return
        if run is self.heirs.run:
            self.heirs.of(trained, policy, row.accuracy or 0.0, _parent(row))
            return
        parent = {WEIGHTS_FROM: trained_there(row)}
        problem = self.heirs.problem
        try:
            nearest = problem.space.nearest(policy)
            check_kept(trained.compressed.network, problem.space.resized(nearest))
        except (ValueError, PolicyError):  # of layers that are not here, or the space cuts less
            return
        made = self.heirs.one(trained, nearest, parent)
        accuracy = row.accuracy if made is None else made.accuracy
        self.heirs.of(trained, nearest, accuracy or 0.0, parent)

    def _loaded(self, row: TrialRow, run: RunFolder, policy: Policy) -> CandidateTraining | None:
        multiple = int(run.environment().get("channel_multiple", 1))
        checkpoint = run.checkpoint(row.trial)
        try:
            return self.heirs.problem.scorer.resumed(policy, checkpoint, multiple)
        except (RuntimeError, ValueError, FileNotFoundError) as problem:  # an older version's, say
            self.note(f"{checkpoint} leaves nothing: {' '.join(str(problem).split())[:300]}")
            return None


def _claim(number: int) -> str:
    return f"bequest-{number}"


def _parent(row: TrialRow) -> Mapping[str, float]:
    """The trial that has trained a network, or what that took over."""
    if row.weights_from is not None:
        return {WEIGHTS_FROM: row.weights_from}
    return {WEIGHTS_OF: trained_there(row)}
