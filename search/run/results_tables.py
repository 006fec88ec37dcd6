"""trials.csv and front.csv, made again from the journal after every trial."""

import json
import time
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import COLUMNS, DiskFull, RunFolder, TrialRow
from leanfront.search.run.run_lock import locked

_SHARE_OF_TIME = 0.02
"""Writing the tables takes at most about this share of a search's time, however long they get."""


class ResultsTables:
    """Keeps the tables of one run up to date. Rows of finished trials never change and are kept."""

    def __init__(self, run: RunFolder, study: optuna.Study) -> None:
        self._run = run
        self._study = study
        self._objectives = run.config().search.objectives
        self._finished: dict[int, TrialRow] = {}
        self._next_write = 0.0

    def rows(self) -> list[TrialRow]:
        """All trials that have begun, in order."""
        rows = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.WAITING:
                continue
            row = self._finished.get(trial.number)
            if row is None:
                row = row_of(trial, self._objectives)
                if trial.state.is_finished():
                    self._finished[trial.number] = row
            rows.append(row)
        return rows

    def write(self, force: bool = False) -> list[TrialRow]:
        """Write both tables, unless they were written a moment ago and are long; the front.

        Checkpoints and scores of trials that others dominate are removed: nothing is ever picked from them.

        Raises:
            RunError: they cannot be written.
        """
        if not force and time.monotonic() < self._next_write:
            return []
        self._run.locks.mkdir(exist_ok=True)
        started = time.monotonic()
        with locked(self._run.locks / "tables"):  # so that no older state replaces a newer one
            rows = self.rows()
            front = front_rows(rows, self._objectives)
            try:
                self._run.write_trials(rows)
                self._run.write_trials(front, "front.csv")
            except DiskFull:  # they are made from the journal again, which waits for space
                if force:
                    raise
                return []
        self._drop_checkpoints(rows, front)
        ended = time.monotonic()
        self._next_write = ended + (ended - started) / _SHARE_OF_TIME
        return front

    def _drop_checkpoints(self, rows: Sequence[TrialRow], front: Sequence[TrialRow]) -> None:
        needed = {row.trial for row in front}
        dominated = {row.trial for row in rows if row.state != "running"} - needed
        for path in (*self._run.checkpoints.iterdir(), *self._run.scores.glob("*.npz")):
            if path.stem.isdigit() and int(path.stem) in dominated:
                path.unlink(missing_ok=True)


def row_of(trial: FrozenTrial, objectives: Sequence[str]) -> TrialRow:
    """A trial of the study as a line of trials.csv, with what it is worth in a task's own objectives."""
    result = dict(trial.user_attrs.get("result") or {})
    if trial.state == TrialState.RUNNING:
        result = {"state": "running"}
    elif not result:  # told by something else than this search
        state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
        result = {"state": state}
    if "rung" in result:
        result["rung"] = float(result["rung"])  # as it is read back
    if "rungs" in result:
        result["rungs"] = json.dumps(result["rungs"], separators=(",", ":"))
    known = {name: value for name, value in result.items() if name in COLUMNS}
    if more := {name: float(result[name]) for name in objectives if name in result and name not in COLUMNS}:
        known["more"] = more
    return TrialRow(
        trial=trial.number,
        started=trial.datetime_start.isoformat(timespec="seconds") if trial.datetime_start else "",
        finished=trial.datetime_complete.isoformat(timespec="seconds") if trial.datetime_complete else "",
        worker=str(trial.user_attrs.get("worker", "")),
        policy=str(trial.user_attrs.get("policy", "")),
        **known,
    )
