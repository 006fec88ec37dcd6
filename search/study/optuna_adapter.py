"""All that the search takes from private parts of Optuna, each with a test (test_optuna_adapter.py)."""

from functools import cache

import optuna
from optuna.storages import BaseStorage, get_storage
from optuna.storages.journal import _storage
from optuna.trial import FrozenTrial

STATE_CHANGES = (0, 4, 6)
"""What of a journal's operations makes a study or a trial, or finishes one (JournalOperation)."""


def handle(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A running trial that another worker began, to write to it. ``study.tell`` takes its number, but only a
    Trial takes attributes and constraints."""
    return optuna.Trial(study, trial._trial_id)


def cached(storage: BaseStorage) -> BaseStorage:
    """A database with Optuna's cache of finished trials before it. Optuna puts it there itself where it is
    given the database alone, and not where that is wrapped."""
    return get_storage(storage)


def share_distributions() -> None:
    """Have journals replayed with one object for each distribution. A study has a few dozen of them; Optuna
    makes one for each parameter of each trial, which is most of the memory of a study."""
    read = vars(_storage)["json_to_distribution"]
    if not hasattr(read, "cache_info"):
        vars(_storage)["json_to_distribution"] = cache(read)
