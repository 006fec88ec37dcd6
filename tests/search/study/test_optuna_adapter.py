"""What is private in Optuna and used here: it is still there, and does what it is used for."""

from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.storages.journal import _storage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from leanfront.search.study.journal import open_journal
from leanfront.search.study.optuna_adapter import STATE_CHANGES, cached, handle


def test_the_operations_after_which_the_disk_is_waited_for_are_those_that_must_not_be_lost() -> None:
    names = ("CREATE_STUDY", "CREATE_TRIAL", "SET_TRIAL_STATE_VALUES")
    assert tuple(JournalOperation[name] for name in names) == STATE_CHANGES


def test_a_trial_of_another_worker_can_be_written_to(tmp_path: Path) -> None:
    theirs = optuna.create_study(storage=open_journal(tmp_path / "journal"), study_name="s")
    theirs.ask()
    study = optuna.load_study(storage=open_journal(tmp_path / "journal"), study_name="s")
    trial = handle(study, study.trials[0])
    trial.set_user_attr("result", "lost")
    trial.set_constraint("size_bytes", 0.5)
    study.tell(trial.number, state=TrialState.FAIL)
    (found,) = theirs.trials
    assert (found.state, found.user_attrs, found.constraints) == (
        TrialState.FAIL,
        {"result": "lost"},
        {"size_bytes": 0.5},
    )


def test_a_database_is_asked_once_for_a_trial_that_is_finished(tmp_path: Path) -> None:
    database = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=cached(database))
    study.tell(study.ask(), 1.0)
    (first,), (second,) = (study.get_trials(deepcopy=False) for _ in range(2))
    assert first is second
    assert database.get_all_trials(1)[0] is not database.get_all_trials(1)[0]


def test_trials_of_a_journal_share_their_distributions(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    study = optuna.create_study(storage=open_journal(path), study_name="s")
    for _ in range(2):
        study.ask().suggest_categorical("bits/conv", ["w4a8", "w8a8"])
    one, two = open_journal(path).get_all_trials(0)
    assert one.distributions["bits/conv"] is two.distributions["bits/conv"]
    assert one.distributions["bits/conv"] is not vars(_storage)["json_to_distribution"].__wrapped__(
        optuna.distributions.distribution_to_json(one.distributions["bits/conv"])
    )
