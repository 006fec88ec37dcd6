"""What the trained networks of another run leave to a search that starts from it: heirs at its own prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
"""So many networks of the other run's front leave something, at most: spread over it."""
_STRANGE, _CLAIMED = "bequests", "bequest"


def announce(study: optuna.Study, strange: Sequence[TrialRow]) -> None:
    """Have the workers of a study make heirs: of each network of another run's front whose policy this space
    has not what is nearest to it here, and what the sampler wants of all.

    strange: those networks.
    """
    places = np.unique(np.linspace(0, len(strange) - 1, min(MOST, len(strange))).astype(int))
    study.set_user_attr(_STRANGE, [strange[place].trial for place in places])


@dataclass
class Bequests:
    """Those of one worker's search, one parent after the other, each claimed by whoever is first.

    heirs: makes them. rows: all trials so far, as ``ResultsTables.rows`` has them.
    """

    heirs: Heirs
    rows: Callable[[], list[TrialRow]]
    note: Callable[[str], None]
    other: RunFolder | None = None
    _strange: dict[int, TrialRow] = field(default_factory=dict)
    _begun: bool = False

    def one(self) -> bool:
        """Let the next network leave what it has to; whether there was one.

        What cannot be read any more leaves nothing, which is noted.
        """
        if not self._begun:
            self._begin()
        if self.other is None:
            return False
        for number, row, run in self._waiting(self.other):
            key = f"{_CLAIMED}-{number}"
            if key in self.heirs.study.user_attrs:
                continue
            self.heirs.study.set_user_attr(key, self.heirs.worker)
            try:
                self._leaves(row, run)
            except OSError as error:
                if not is_full(error):
                    raise
            return True
        self.other = None
        return False

    def _begin(self) -> None:
        self._begun = True
        numbers = self.heirs.study.user_attrs.get(_STRANGE)
        if numbers is None:
            return
        try:
            self.other = open_run(Path(self.heirs.run.environment()["started_from"]["run"]))
            there = {row.trial: row for row in self.other.trials()}
        except RunError as problem:
            self.note(f"nothing is inherited: {problem}")
            self.other = None
            return
        self._strange = {number: there[number] for number in numbers if number in there}

    def _waiting(self, other: RunFolder) -> list[tuple[int, TrialRow, RunFolder]]:
        """Number in the other run, trial and run of all that may leave something: as long as there is
        something of another space to try, nothing else."""
        claimed = self.heirs.study.user_attrs
        found = [(number, row, other) for number, row in self._strange.items()]
        if all(f"{_CLAIMED}-{number}" in claimed for number, _, _ in found):
            front = front_rows(self.rows(), self.heirs.problem.objectives)
            known = [row for row in front if row.known_from is not None]
            found = [(int(row.known_from or 0), row, self.heirs.run) for row in known]
        return [each for each in found if each[1].policy and each[2].checkpoint(each[1].trial).exists()]

    def _leaves(self, row: TrialRow, run: RunFolder) -> None:
        policy = Policy.from_json(row.policy)
        trained = self._loaded(row, run, policy)
        if trained is None:
            return
        if run is self.heirs.run:
            self.heirs.of(trained, policy, row.accuracy or 0.0, _parent(row))
            return
        parent = {WEIGHTS_FROM: float(row.trial if row.weights_of is None else row.weights_of)}
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


def _parent(row: TrialRow) -> Mapping[str, float]:
    """The trial that has trained a network, or what that took over."""
    if row.weights_from is not None:
        return {WEIGHTS_FROM: row.weights_from}
    return {WEIGHTS_OF: float(row.trial if row.weights_of is None else row.weights_of)}
