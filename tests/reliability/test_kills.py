"""Processes that are killed or hang, and journals that are cut: no finished trial is lost."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from leanfront.search.run.front import front_of
from leanfront.search.run.results_tables import ResultsTables
from leanfront.search.run.run_folder import RunFolder, open_run
from leanfront.search.study.journal import open_journal
from leanfront.search.study.study import NAME
from tests.reliability.quick import start
from tests.search.study.test_study import search as searched


def replayed(run: RunFolder) -> optuna.Study:
    """The study as Optuna's own file backend reads it."""
    return optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(run.journal))))


def logged(folder: Path) -> set[int]:
    """The trials that log.txt says are complete."""
    try:
        lines = (folder / "log.txt").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {int(line.split("trial=")[1].split()[0]) for line in lines if " state=complete " in line}


def until(condition, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.02)


def worker_processes(folder: Path) -> list[int]:
    """The living ones, by their locks."""
    if not (folder / "config.toml").exists():
        return []
    return [int(name.split("-")[-3]) for name in open_run(folder).live_workers()]


def end(process: "subprocess.Popen[str]", folder: Path) -> None:
    for number in [process.pid, *worker_processes(folder)]:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def check_whole(run: RunFolder, finished: set[int]) -> None:
    """What must be true of a run whatever happened to it."""
    rows = {row.trial: row for row in run.trials()}
    assert {number for number in finished if rows[number].state != "complete"} == set()
    assert [row for row in rows.values() if row.state == "running"] == []
    study = replayed(run)
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    assert list(rows.values()) == ResultsTables(run, study).rows()
    front = front_of(run)
    assert {trial.number for trial in study.best_trials} == {row.trial for row in front}
    assert {path.stem for path in run.checkpoints.iterdir()} == {str(row.trial) for row in front}
    assert all(path.read_text() == "weights" for path in run.checkpoints.iterdir())
    json.loads(run.environment_file.read_text())
    run.config()


@pytest.mark.slow  # for every change two of search/study/test_study.py, and of a whole search test_cli.py's
@pytest.mark.parametrize(("kills", "seed"), [(5, 6), *((200, seed) for seed in range(3))])
def test_kills_at_random_moments(tmp_path, kills, seed):
    folder, rng = tmp_path / "run", random.Random(seed)
    finished: set[int] = set()
    process = start(folder, 100_000, 2)
    try:
        for _ in range(kills):
            before = len(logged(folder))
            until(lambda before=before, process=process: len(logged(folder)) > before or process.poll())
            time.sleep(rng.uniform(0.0, 0.3))
            now = logged(folder)
            assert finished <= now
            finished = now
            victims = [process.pid, *worker_processes(folder)]
            victim = rng.choice(victims)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            if victim == process.pid or process.poll() is not None:
                process.communicate()
                process = start(folder, 100_000, 2)
    finally:
        end(process, folder)
    finished = logged(folder)
    last = start(folder, len(finished) + 5, 2)
    out, _ = last.communicate(timeout=120)
    assert last.returncode == 0, out
    check_whole(open_run(folder), finished)


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once_and_the_same_line_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, 100_000, 2)
    until(lambda: len(logged(folder)) >= 3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert worker_processes(folder) == []
    finished = logged(folder)
    last = start(folder, len(finished) + 3, 2)
    out, _ = last.communicate(timeout=60)
    assert last.returncode == 0, out
    check_whole(open_run(folder), finished)


@pytest.mark.slow  # for every change test_study.py's, of a worker that is killed at each moment of a trial
@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [
        ("kill", (), "killed its worker twice, here and as trial"),
        ("hang", ("search.trial_minutes=0.01",), "took longer than 0.01 min twice, here and as trial"),
    ],
)
def test_a_policy_that_ends_its_worker_twice_is_set_aside(tmp_path, fault, options, reason):
    folder = tmp_path / "run"
    process = start(folder, 100_000, 1, *options, QUICK_FAULT=fault)
    run = RunFolder(folder.absolute())

    def set_aside() -> bool:
        return any(row.state == "failed" for row in run.trials()) or process.poll() is not None

    try:
        until(set_aside, 120)
    finally:
        end(process, folder)
    reasons = [row.reason for row in run.trials() if row.state == "failed"]
    assert reasons, process.returncode
    assert all(reason in text for text in reasons)
    if fault == "hang":
        assert "in start" in run.log_file.read_text()  # where it hung


def test_a_journal_cut_at_50_random_bytes_loses_nothing_before_the_cut(tmp_path):
    run = searched(tmp_path / "run", 12).run
    whole = run.journal.read_bytes()
    rng = random.Random(1)
    path = tmp_path / "cut"
    for at in sorted(rng.sample(range(len(whole)), 50)):
        path.write_bytes(whole[:at])
        lines = [json.loads(line) for line in whole[:at].rpartition(b"\n")[0].splitlines()]
        told = {line["trial_id"] for line in lines if line["op_code"] == 6 and line["state"] != 0}
        study = optuna.create_study(
            study_name=NAME, storage=open_journal(path), load_if_exists=True, directions=["maximize"] * 2
        )
        finished = [trial for trial in study.get_trials() if trial.state.is_finished()]
        assert {trial._trial_id for trial in finished} == told
        study.tell(study.ask(), [0.5, 0.5])
        assert len(optuna.load_study(study_name=NAME, storage=open_journal(path)).trials) == len(study.trials)
