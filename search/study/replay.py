"""Optuna's journal storage, quick to open when it is long."""

from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal._storage import JournalStorageReplayResult

_distribution = cache(json_to_distribution)
"""One object for each distribution: a study has a few dozen, and a line for each parameter of each trial."""


class QuickJournal(JournalStorage):
    """Optuna's JournalStorage; parameters, which are most of a journal, are replayed as ``_Replay`` does."""

    def _sync_with_backend(self) -> None:
        if not isinstance(self._replay_result, _Replay):  # the first time: nothing is read yet
            self._replay_result = _Replay(self._worker_id_prefix)
        super()._sync_with_backend()


class _Replay(JournalStorageReplayResult):
    """Optuna's replay with one difference: a parameter is added to a running trial in place.

    Optuna copies the trial for each of its parameters, reads each distribution anew and compares it, choice
    by choice, with that of the first trial. Who holds a running trial here sees its later parameters.
    """

    def __init__(self, worker_id_prefix: str) -> None:
        super().__init__(worker_id_prefix)
        self._first: dict[tuple[int, str], BaseDistribution] = {}

    def _apply_set_trial_param(self, log: dict[str, Any]) -> None:
        trial_id, name = log["trial_id"], log["param_name"]
        if not self._trial_exists_and_updatable(trial_id, log):
            return
        distribution = _distribution(log["distribution"])
        first = self._first.setdefault((self._trial_id_to_study_id[trial_id], name), distribution)
        if first is not distribution:
            try:
                check_distribution_compatibility(first, distribution)
            except ValueError:
                if self._is_issued_by_this_worker(log):
                    raise
                return
        trial = self._trials[trial_id]
        value = distribution.to_external_repr(log["param_value_internal"])
        trial.params = {**trial.params, name: value}
        trial.distributions = {**trial.distributions, name: distribution}
