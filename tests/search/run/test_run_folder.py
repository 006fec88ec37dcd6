import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import leanfront.search.run.disk
from leanfront.latency_models.files import replace_file
from leanfront.search.config import parse_config
from leanfront.search.run.run_folder import (
    RunError,
    TrialRow,
    default_run,
    make_run,
    open_run,
    registered,
    sweep,
    writable,
)
from leanfront.search.run.run_lock import Taken, is_held, owned, try_lock
from leanfront.search.study.journal import cut_back, open_journal

FORK = multiprocessing.get_context("fork")


def config(**sections):
    return parse_config({"task": {"file": "/somewhere/task.py"}, **sections})


def test_a_run_folder_has_its_parts_and_can_be_opened_again(tmp_path):
    made = config(search={"trials": 3}, space={"weight_bits": [8]})
    run = make_run(tmp_path / "deep" / "run", made)
    assert run.config() == made
    assert {path.name for path in run.path.iterdir()} == {"config.toml", "checkpoints", "exported", "locks"}
    assert open_run(run.path) == make_run(run.path, made) == run


def test_a_folder_of_another_configuration_is_refused_with_the_keys(tmp_path):
    run = make_run(tmp_path / "run", config())
    make_run(run.path, config(finetune={"images": 5}))  # nothing was searched yet: nothing to lose
    run.journal.touch()
    make_run(run.path, config(finetune={"images": 5}, search={"trials": 9}))  # how long is no difference
    with pytest.raises(RunError, match=r"finetune\.images.* was 5 and is now 6.*--run"):
        make_run(run.path, config(finetune={"images": 6}))
    assert run.config().finetune.images == 5


def test_a_folder_full_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="no run folder"):
        make_run(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_search_was_killed_before_it_began_is_used(tmp_path):
    (tmp_path / ".config.toml.77").write_text("[ta")
    assert make_run(tmp_path, config()).config() == config()


@pytest.mark.parametrize("name", ["nothing", "file", "empty"])
def test_what_is_no_run_folder(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="run folder"):
        open_run(tmp_path / name)


def test_reasons_not_to_write_are_one_sentence(tmp_path):
    with pytest.raises(RunError, match="disk is full"), writable(tmp_path):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        make_run(tmp_path / "file" / "run", config())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_full_disk(tmp_path):
    with pytest.raises(RunError, match="disk is full"), writable(tmp_path):
        Path("/dev/full").write_text("x")


def test_the_default_folder_is_named_after_configuration_and_profile(tmp_path):
    (tmp_path / "vgg").mkdir()
    path = tmp_path / "vgg" / "search.toml"
    assert default_run(path, config(hardware={"profile": "toy"})) == Path("runs/vgg-toy")
    assert default_run(path.parent, config(hardware={"profile": "my/own.toml"})) == Path("runs/vgg-own")


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"))


@settings(max_examples=40, deadline=None)
@given(
    reason=text,
    worker=text,
    number=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    policy=st.dictionaries(text, st.integers()),
)
def test_trials_read_back_as_written(tmp_path_factory, reason, worker, number, policy):
    run = make_run(tmp_path_factory.mktemp("run") / "r", config())
    rows = [
        TrialRow(7, "complete", reason, number, worker=worker, policy=json.dumps(policy)),
        TrialRow(8, "running"),
    ]
    run.write_trials(rows)
    assert run.trials() == rows


def test_a_table_of_trials_that_is_none(tmp_path):
    run = make_run(tmp_path / "run", config())
    assert run.trials() == []
    run.trials_file.write_text("trial,state\n0,complete\n")
    with pytest.raises(RunError, match="no column 'reason'"):
        run.trials()
    run.write_trials([TrialRow(0, "complete", accuracy=0.5)])
    run.trials_file.write_text(run.trials_file.read_text().replace("0.5", "half"))
    with pytest.raises(RunError, match="cannot be read"):
        run.trials()


def test_what_killed_writers_left_is_swept_when_it_is_old(tmp_path):
    run = make_run(tmp_path / "run", config())
    old = [run.path / ".trials.csv.77", run.checkpoints / "5.partial"]
    for path in old:
        path.touch()
        os.utime(path, (0, 0))
    (run.path / ".front.csv.78").touch()  # by a process that writes now
    before = set(run.path.rglob("*"))
    sweep(run)
    assert before - set(run.path.rglob("*")) == set(old)


def test_environment_keeps_what_it_is_not_told(tmp_path):
    run = make_run(tmp_path / "run", config())
    assert run.environment() == {}
    run.update_environment(profile="toy", baseline={"accuracy": 0.5})
    run.update_environment(profile="other")
    assert run.environment() == {"profile": "other", "baseline": {"accuracy": 0.5}}
    run.environment_file.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        run.environment()


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "file"
    replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_searches_never_share_a_folder(tmp_path):
    run = make_run(tmp_path / "run", config())
    refused = pytest.raises(Taken, match=rf"process {os.getpid()} on .* since .*leanfront worker")
    place = run.path, run.locks / "search"
    with owned(*place), refused, owned(*place):
        pass
    with owned(*place):
        pass


def _hold(path, ready):
    descriptor = try_lock(path)
    assert descriptor is not None
    ready.set()
    time.sleep(60)


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    ready = FORK.Event()
    process = FORK.Process(target=_hold, args=(path, ready))
    process.start()
    assert ready.wait(10)
    assert is_held(path)
    assert try_lock(path) is None
    process.kill()
    process.join()
    assert not is_held(path)


def test_a_worker_is_alive_while_it_works(tmp_path):
    run = make_run(tmp_path / "run", config())
    with registered(run) as one, registered(run) as two:
        assert set(run.live_workers()) == {one, two}
    assert run.live_workers() == {}
    assert not run.is_live(one)


def study_in(path: Path) -> optuna.Study:
    return optuna.create_study(storage=open_journal(path), study_name="s", load_if_exists=True)


def filled(path: Path, trials: int = 8) -> None:
    study = study_in(path)
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1))


def test_optuna_reads_the_journal_with_its_own_backend(tmp_path):
    path = tmp_path / "journal"
    filled(path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    assert len(optuna.load_study(storage=storage, study_name="s").trials) == 8


@pytest.mark.parametrize("seed", range(25))
def test_a_journal_cut_anywhere_opens_and_loses_only_the_last_trial(tmp_path, seed):
    path = tmp_path / "journal"
    filled(path)
    whole = path.read_bytes()
    last_trials = whole.rfind(b'{"op_code":4')
    at = random.Random(seed).randrange(last_trials, len(whole))
    garbage = random.Random(seed).choice([b"", b"\0" * 100, b"\0" * 30 + b"\n", b'{"op_code":'])
    path.write_bytes(whole[:at] + garbage)
    study = study_in(path)
    complete = [trial for trial in study.trials if trial.state.is_finished()]
    assert len(complete) >= 7
    study.tell(study.ask(), 1.0)
    assert len([trial for trial in study_in(path).trials if trial.state.is_finished()]) == len(complete) + 1


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"no json", b"no json\n", b"\0" * 3_000_000, b'{"a":1}\n\0\0']
)
def test_cutting_back_ends_at_a_whole_line(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    removed = cut_back(path)
    rest = path.read_bytes()
    assert content == rest + content[len(rest) :]
    assert removed == len(content) - len(rest)
    assert rest in (b"", b'{"a":1}\n')


def test_a_long_line_is_kept(tmp_path):
    path = tmp_path / "journal"
    line = json.dumps({"a": "x" * 3_000_000}) + "\n"
    path.write_text(line + line + line[:-9])
    cut_back(path)
    assert path.read_text() == line + line


def test_what_a_killed_writer_left_does_not_spoil_the_next_line(tmp_path):
    path = tmp_path / "journal"
    filled(path, 2)
    study = study_in(path)  # open while another writer dies in the middle of a line
    with path.open("ab") as file:
        file.write(b'{"op_code":5,"trial_')
    study.tell(study.ask(), 1.0)
    assert len(study_in(path).trials) == len(study.trials) == 3


def test_a_write_that_fails_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    filled(path, 2)
    study = study_in(path)
    before = path.read_bytes()

    def broken(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        study.ask()
    monkeypatch.undo()
    assert path.read_bytes() == before
    study.tell(study.ask(), 1.0)
    assert len(study_in(path).trials) == 3


def test_a_journal_waits_for_space(tmp_path, monkeypatch):
    monkeypatch.setattr(leanfront.search.run.disk, "_SECONDS_BETWEEN_TRIES", 0.01)
    path = tmp_path / "journal"
    said: list[str] = []
    study = optuna.create_study(storage=open_journal(path, said.append))
    failures = iter([28, 122, 28])

    def full(descriptor):
        if number := next(failures, 0):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    study.tell(study.ask(), 1.0)
    assert said == ["the disk is full; waiting for space"]
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE]
