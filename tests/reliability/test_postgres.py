"""A study in a real PostgreSQL, and behind Optuna's gRPC proxy."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from leanfront.search.run.results_tables import ResultsTables
from leanfront.search.run.run_folder import open_run
from leanfront.search.study.study import open_study
from tests.bright import CONFIG, TASK
from tests.reliability.postgres import PASSWORD, Server, binaries, free_port
from tests.reliability.quick import ROOT, start
from tests.reliability.test_kills import end, logged, until

pytest.importorskip("psycopg")
pytest.importorskip("grpc")
BINARIES = binaries()
pytestmark = pytest.mark.skipif(BINARIES is None, reason="PostgreSQL is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    assert BINARIES is not None
    made = Server.make(BINARIES)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def with_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LEANFRONT_STORAGE", server.url_with_password)
    return server.url


def words_of_processes() -> bytes:
    """Every command line on this machine."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(lines)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_while_the_server_is_restarted_twice(
    server: Server, with_password: str, tmp_path: Path, workers: int
) -> None:
    folder, trials = tmp_path / "run", 32
    process = start(folder, trials, workers)
    try:
        for done in (6, 16):
            until(lambda done=done: len(logged(folder)) >= done or process.poll() is not None)
            assert PASSWORD.encode() not in words_of_processes()
            server.stop()
            time.sleep(1.5)
            server.start()
        out, _ = process.communicate(timeout=120)
    finally:
        end(process, folder)
    assert process.returncode == 0, out
    assert f"{trials} trials are done" in out
    run = open_run(folder)
    rows = run.trials()
    complete = [row for row in rows if row.state == "complete"]
    assert trials <= len(complete) < trials + workers
    assert {row.state for row in rows} <= {"complete", "pruned"}
    assert len({row.worker for row in complete}) >= workers
    study = open_study(run, run.config().search)
    assert ResultsTables(run, study).rows() == rows
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    assert "does not answer" in run.log_file.read_text()
    assert "answers again" in run.log_file.read_text()
    assert not run.journal.exists()
    assert run.config().search.storage == with_password
    assert PASSWORD not in out
    for path in folder.rglob("*"):
        assert path.is_dir() or PASSWORD.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_two_runs_share_a_database_and_do_not_meet(with_password: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        process = start(tmp_path / name, 3, 1)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    one, two = (open_run(tmp_path / name) for name in ("a", "b"))
    assert [len(run.trials()) for run in (one, two)] == [3, 3]
    names = set(optuna.get_all_study_names(open_study(one, one.config().search)._storage))
    assert {one.study_name(), two.study_name()} <= names


def leanfront(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "leanfront", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


PROXY = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server

run_grpc_proxy_server(get_storage(sys.argv[1]), host="localhost", port=int(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_worker_joins_from_a_copied_folder_directly_and_through_the_proxy(
    server: Server, tmp_path: Path
) -> None:
    task = tmp_path / "task"
    task.mkdir()
    (task / "task.py").write_text(TASK)
    (task / "search.toml").write_text(CONFIG)
    run, copy = tmp_path / "run", tmp_path / "copy"
    known = {"PGPASSWORD": PASSWORD}
    first = leanfront("search", task, "--run", run, "--trials", 2, "--storage", server.url, **known)
    assert first.returncode == 0, first.stderr
    shutil.copytree(run, copy)
    assert "no password supplied" in leanfront("worker", copy, "--trials", 3).stderr
    second = leanfront("worker", copy, "--trials", 3, **known)
    assert second.returncode == 0, second.stderr
    port = free_port()
    url = server.url.replace("postgresql", "postgresql+psycopg")
    proxy = subprocess.Popen([sys.executable, "-c", PROXY, url, str(port)], env=os.environ | known)
    try:
        third = leanfront("worker", copy, "--trials", 4, "--storage", f"grpc://localhost:{port}")
        assert third.returncode == 0, third.stderr
        status = leanfront("status", copy, "--format", "json")
        assert '"complete": 4' in status.stdout
        again = leanfront(
            "search", task, "--run", run, "--trials", 5, "--storage", f"grpc://localhost:{port}"
        )
        assert again.returncode == 0, again.stderr
    finally:
        proxy.kill()
        proxy.wait()
    assert sum(row.state == "complete" for row in open_run(run).trials()) == 5
    other = leanfront("search", task, "--run", tmp_path / "own", "--trials", 1)
    assert other.returncode == 0, other.stderr
    refused = leanfront("worker", tmp_path / "own", "--trials", 2, "--storage", server.url, **known)
    assert refused.returncode == 2
    assert "has no study" in refused.stderr


def test_a_password_on_the_command_line_is_refused_and_not_repeated(server: Server, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    done = leanfront("search", tmp_path, "--run", tmp_path / "run", "--storage", server.url_with_password)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "LEANFRONT_STORAGE" in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()
