"""Addresses of storages, their passwords, servers that are away, leases, and who owns a run folder."""

import json
import os
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

import leanfront.search.run.run_lock
import leanfront.search.study.storage
from leanfront.search.config import ConfigError, load_config, parse_config
from leanfront.search.run.run_folder import RunError, make_run, registered
from leanfront.search.run.run_lock import BEAT, Taken, Watch, leased, owned
from leanfront.search.storage_url import StorageURLError, parse_url, storage_url, without_password
from leanfront.search.study.loop import Budget, search_loop
from leanfront.search.study.run_search import with_storage
from leanfront.search.study.storage import PatientStorage, StorageLost, open_storage
from leanfront.search.study.study import open_study, recover
from leanfront.search.trial.promotion import INTERRUPTED
from tests.search.study.test_study import Scorer, configuration, problem_of
from tests.search.study.test_study import search as searched

printable = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
POSTGRES = "postgresql://me@db.lan:5432/nights"


@pytest.fixture(autouse=True)
def no_storage_of_the_caller(monkeypatch):
    monkeypatch.delenv("LEANFRONT_STORAGE", raising=False)


@pytest.mark.parametrize(
    ("url", "text", "secrets"),
    [
        (POSTGRES, POSTGRES, {}),
        ("postgresql://me:s%40cret@db.lan/nights", "postgresql://me@db.lan/nights", {"password": "s@cret"}),
        ("postgresql://me@h/d?password=geheim&sslmode=require", "postgresql://me@h/d?sslmode=require",
         {"password": "geheim"}),
        ("postgresql://[::1]:5433/d", "postgresql://[::1]:5433/d", {}),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql", {}),
        ("grpc://head:13000", "grpc://head:13000", {}),
    ],
)  # fmt: skip
def test_an_address_is_taken_apart(url, text, secrets):
    parsed = parse_url(url)
    assert (parsed.text, parsed.secrets) == (text, secrets)
    assert parse_url(parsed.text).text == text
    assert not any(secret in repr(parsed) for secret in secrets.values())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite:///x.db", "address like postgresql://"),
        ("db.lan", "address like"),
        ("postgresql://me:sec/ret@h/d", "address like"),
        ("postgresql://me:1/sec@h/d", "special characters"),
        ("postgresql://h/d#sec", "special characters"),
        ("grpc://me:sec@h:1", "nothing more"),
        ("grpc://h:1/d", "nothing more"),
        ("grpc://", "nothing more"),
    ],
)
def test_what_is_no_address(url, why):
    with pytest.raises(StorageURLError, match=why) as error:
        parse_url(url)
    assert "sec" not in str(error.value)


@given(before=printable, after=printable)
def test_no_error_says_a_password(before, after):
    url = f"postgresql://me:{before}geheim{after}@db.lan/nights"
    with pytest.raises(StorageURLError) as refused:
        without_password(url)
    assert "geheim" not in str(refused.value)
    with suppress(StorageURLError):
        parsed = parse_url(url)
        assert "geheim" not in parsed.text + repr(parsed)


@pytest.mark.parametrize("value", ["postgresql://me:geheim@h/d", "postgresql://h/d?password=geheim"])
def test_a_configuration_with_a_password_is_refused_without_saying_it(tmp_path, value):
    (tmp_path / "task.py").touch()
    file = tmp_path / "search.toml"
    for storage in (json.dumps(value), json.dumps([value])):
        file.write_text(f'[task]\nfile = "task.py"\n[search]\nstorage = {storage}\n')
        with pytest.raises(ConfigError, match=r"search\.storage must") as refused:
            load_config(file)
        assert "geheim" not in str(refused.value)
    file.write_text('[task]\nfile = "task.py"\n')
    with pytest.raises(ConfigError, match="LEANFRONT_STORAGE") as refused:
        load_config(file, [f"search.storage={value}"])
    assert "geheim" not in str(refused.value)


def test_which_storage_is_meant(monkeypatch):
    config = parse_config({"task": {"file": "t.py"}})
    assert with_storage(config, None, None).search.storage is None
    assert with_storage(config, None, POSTGRES).search.storage == POSTGRES
    monkeypatch.setenv("LEANFRONT_STORAGE", POSTGRES.replace("me@", "me:geheim@"))
    assert with_storage(config, None, "grpc://h:1").search.storage == POSTGRES
    assert with_storage(config, "grpc://h:1", None).search.storage == "grpc://h:1"
    opened = storage_url(POSTGRES)
    assert opened is not None
    assert opened.secrets == {"password": "geheim"}
    other = storage_url("postgresql://me@elsewhere/nights")
    assert other is not None
    assert other.secrets == {}
    monkeypatch.setenv("LEANFRONT_STORAGE", "postgresql://me:gehe/im@h/d")
    with pytest.raises(StorageURLError, match="LEANFRONT_STORAGE must be") as error:
        storage_url(None)
    assert "gehe" not in str(error.value)


def test_trials_stay_where_they_are(tmp_path):
    run = searched(tmp_path / "run", 2).run
    with pytest.raises(RunError, match=r"study\.journal and stay there"):
        make_run(run.path, configuration(search={"storage": POSTGRES}))


def test_two_runs_have_two_studies(tmp_path):
    one, two = (make_run(tmp_path / name / "run", configuration()) for name in "ab")
    assert one.study_name() == one.study_name()
    assert one.study_name() != two.study_name()
    one.update_environment(profile="toy")
    assert one.environment()["study"] == one.study_name()


@pytest.mark.parametrize("url", ["postgresql://me@127.0.0.1:1/d", "grpc://127.0.0.1:1"])
def test_a_server_that_is_not_there_is_said_in_one_sentence(tmp_path, url, monkeypatch):
    pytest.importorskip("grpc" if url.startswith("grpc") else "psycopg")
    monkeypatch.setattr(leanfront.search.study.storage, "_SECONDS_TO_CONNECT", 1)
    with pytest.raises(RunError, match=rf"cannot open the storage {url}: .*; is its server running\?"):
        open_storage(parse_url(url), tmp_path / "journal")


class Away:
    """An operation of a storage that fails so often before it works."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def wrapped(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = cause
    return error


def test_a_server_that_comes_back_is_waited_for(monkeypatch):
    monkeypatch.setattr(leanfront.search.study.storage, "_PAUSE_SECONDS", 0.01)
    gone = OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    said: list[str] = []
    lost = wrapped(PendingRollbackError("Can't reconnect until invalid transaction is rolled back."))
    operation = Away(gone, wrapped(gone), ConnectionRefusedError(), lost)
    assert leanfront.search.study.storage._patiently(operation, POSTGRES, said.append)() == "answer"
    assert [line.partition(POSTGRES)[2][:15] for line in said] == [" does not answe", " answers again"]
    assert "server closed the connection" in said[0]
    monkeypatch.setattr(leanfront.search.study.storage, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(StorageLost, match="did not answer"):
        leanfront.search.study.storage._patiently(Away(*[gone] * 100), POSTGRES, said.append)()
    refused = OperationalError("", {}, Exception('FATAL: password authentication failed for user "me"'))
    with pytest.raises(OperationalError):
        leanfront.search.study.storage._patiently(Away(refused), POSTGRES, said.append)()
    wrong = Away(wrapped(IntegrityError("INSERT", {}, Exception("duplicate key"))))
    with pytest.raises(StorageInternalError):
        leanfront.search.study.storage._patiently(wrong, POSTGRES, said.append)()
    assert wrong.calls == 1


def test_a_trial_that_was_finished_although_no_answer_came_is_finished(monkeypatch):
    monkeypatch.setattr(leanfront.search.study.storage, "_PAUSE_SECONDS", 0.01)
    gone = OperationalError("UPDATE", {}, Exception("connection lost"))
    operation = Away(gone, UpdateFinishedTrialError())
    operation.__name__ = "set_trial_state_values"  # type: ignore[attr-defined]
    assert leanfront.search.study.storage._patiently(operation, POSTGRES, lambda text: None)() is True
    with pytest.raises(UpdateFinishedTrialError):
        leanfront.search.study.storage._patiently(
            Away(UpdateFinishedTrialError()), POSTGRES, lambda text: None
        )()


def test_every_operation_of_a_storage_waits_for_its_server(tmp_path, monkeypatch):
    monkeypatch.setattr(leanfront.search.study.storage, "_PAUSE_SECONDS", 0.01)
    inner = optuna.storages.InMemoryStorage()
    away = OperationalError("SELECT 1", {}, Exception("server closed the connection"))
    said: list[str] = []
    patient = PatientStorage(inner, POSTGRES, said.append)  # type: ignore[abstract]
    public = [name for name in vars(BaseStorage) if not name.startswith("_")]
    assert {name for name in public if getattr(PatientStorage, name) is getattr(BaseStorage, name)} == set()
    study = optuna.create_study(storage=patient, study_name="s")
    for name in ("create_new_trial", "set_trial_user_attr", "set_trial_state_values", "get_all_trials"):
        operation, failures = getattr(inner, name), iter([away])

        def once(*given, operation=operation, failures=failures, **named):
            for error in failures:
                raise error
            return operation(*given, **named)

        monkeypatch.setattr(inner, name, once)
    trial = study.ask()
    trial.set_user_attr("worker", "me")
    study.tell(trial, 0.5)
    assert [(found.value, found.user_attrs) for found in study.trials] == [(0.5, {"worker": "me"})]
    assert [line.endswith("answers again") for line in said] == [False, True] * 4


def test_a_lease_is_renewed_until_its_trial_ends(monkeypatch):
    monkeypatch.setattr(leanfront.search.run.run_lock, "BEAT_SECONDS", 0.02)
    study = optuna.create_study()
    trial = study.ask()
    watch = Watch()
    with leased(partial(trial.set_user_attr, BEAT)):
        time.sleep(0.2)
        beats = study.trials[0].user_attrs[BEAT]
        assert beats >= 3
        assert not watch.has_run_out(study.trials[0])
    after = study.trials[0].user_attrs[BEAT]
    time.sleep(0.1)
    assert study.trials[0].user_attrs[BEAT] == after
    assert not watch.has_run_out(study.trials[0])
    monkeypatch.setattr(leanfront.search.run.run_lock, "LEASE_SECONDS", 0.05)
    time.sleep(0.1)
    assert watch.has_run_out(study.trials[0])
    assert not Watch().has_run_out(study.trials[0])  # who has only now begun to look cannot know


def test_a_worker_on_another_machine_is_lost_when_its_lease_has_run_out(tmp_path, monkeypatch):
    done = searched(tmp_path / "run", 2)
    study = open_study(done.run, configuration().search)
    trial = study.ask()
    trial.set_user_attr("worker", "worker-elsewhere-7-0123abcd-fedcba")
    watch = Watch()
    monkeypatch.setattr(leanfront.search.run.run_lock, "LEASE_SECONDS", 0.2)
    for beat in range(4):
        assert recover(study, done.run, watch) == []
        time.sleep(0.1)
        trial.set_user_attr(BEAT, beat)
    assert recover(study, done.run, watch) == []
    time.sleep(0.3)
    assert recover(study, done.run, watch) == [trial.number]


def test_a_search_waits_for_the_last_trials_of_others_and_takes_over_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(leanfront.search.run.run_lock, "LEASE_SECONDS", 0.5)
    folder = tmp_path / "run"
    searched(folder, 3)
    study = open_study(make_run(folder, configuration()), configuration().search)
    study.ask().set_user_attr("worker", "worker-elsewhere-7-0123abcd-fedcba")
    done = searched(folder, 4)
    assert (done.count("complete"), done.count("running"), done.ended) == (4, 0, "4 trials are done")
    assert [row.reason for row in done.rows if row.state == "pruned"] == [INTERRUPTED]


def test_a_worker_whose_trial_was_taken_back_drops_it_and_goes_on(tmp_path):
    config = configuration()
    run = make_run(tmp_path / "run", config)
    other = open_study(run, config.search)

    class Sleeper(Scorer):
        def start(self, policy):
            if len(self.calls) == 1:  # as if this machine had slept for an hour, and another had looked
                number = max(trial.number for trial in other.get_trials(states=(TrialState.RUNNING,)))
                other.tell(number, state=TrialState.FAIL)
            return super().start(policy)

    problem = problem_of(config, Sleeper())
    with registered(run) as worker:
        ended = search_loop(problem, open_study(run, config.search), run, Budget(5), worker)
    assert ended == "5 trials are done"
    states = [row.state for row in run.trials()]
    assert (states.count("complete"), states.count("failed"), states.count("running")) == (5, 1, 0)
    assert "trial 1 was taken back" in run.log_file.read_text()


def left_behind(run, host: str) -> Path:
    path = run.locks / "search"
    path.write_text(json.dumps({"host": host, "process": 77, "since": "2026-01-01T22:00:00"}))
    return path


def test_what_a_killed_search_left_is_explained_and_taken_over(tmp_path):
    run = make_run(tmp_path / "run", configuration())
    path = left_behind(run, os.uname().nodename)
    said: list[str] = []
    with owned(run.path, path, said.append):
        owner = json.loads(path.read_text())
        assert owner["process"] == os.getpid()
    assert len(said) == 1
    assert "process 77" in said[0]
    assert "since 2026-01-01T22:00:00 ended without a word" in said[0]
    said.clear()
    with owned(run.path, path, said.append):
        assert said == []  # the one before ended as it should


def test_a_search_on_another_machine_is_watched_before_it_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(leanfront.search.run.run_lock, "LEASE_SECONDS", 0.5)
    run = make_run(tmp_path / "run", configuration())
    path = left_behind(run, "elsewhere")
    said: list[str] = []
    alive = threading.Timer(0.1, os.utime, [path])  # it renews its lease
    alive.start()
    with (
        pytest.raises(Taken, match=r"process 77 on elsewhere since .* already works on"),
        owned(run.path, path),
    ):
        pass
    alive.join()
    with owned(run.path, path, said.append):
        pass
    assert "waiting" in said[0]
    assert "takes over" in said[1]
