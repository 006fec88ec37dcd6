"""The lock between measuring and training, with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanfront.latency_models import TableError
from leanfront.latency_models.benchmark.measuring_lock import lock_path, measuring, training

HOLD = """
import sys, time
from leanfront.latency_models.benchmark.measuring_lock import measuring, training
what = {"measuring": measuring, "training": training}[sys.argv[1]]
with what(lambda line: print(line, flush=True)):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
print("out", flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))


def start(what: str, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, what, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_measuring_waits_for_training_and_says_so_and_new_training_waits_for_it() -> None:
    trains = start("training", 3.0)
    assert line(trains) == "in"
    second = start("training", 0.1)  # any number may train
    assert line(second) == "in"
    assert second.wait(timeout=10) == 0
    measures = start("measuring", 0.5)
    assert "to finish training a trial" in line(measures)
    late = start("training", 0.0)  # must not slip in before the one that waits to measure
    assert line(measures) == "in"
    assert trains.poll() is not None or line(trains) == "out"
    assert late.poll() is None
    assert line(measures) == "out"
    answer = line(late)
    assert "to finish measuring" in answer or answer == "in"
    for process in (trains, measures, late):
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("what", ["measuring", "training"])
def test_a_killed_process_frees_the_lock(what: str) -> None:
    holds = start(what, 60.0)
    assert line(holds) == "in"
    holds.send_signal(signal.SIGKILL)
    holds.wait(timeout=10)
    started = time.monotonic()
    with measuring():
        pass
    assert time.monotonic() - started < 1.0


def test_a_process_waits_for_others_only() -> None:
    with training(), training():
        pass
    with measuring(), measuring():
        pass
    with training(), pytest.raises(RuntimeError, match="training cannot begin measuring"), measuring():
        pass
    with measuring(), pytest.raises(RuntimeError, match="measuring cannot begin training"), training():
        pass
    with measuring():  # what went wrong left nothing behind
        pass


def test_an_error_lifts_the_lock() -> None:
    with pytest.raises(KeyError), measuring():
        raise KeyError
    other = start("training", 0.0)
    assert line(other) == "in"
    assert other.wait(timeout=10) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_without_a_cache_folder_nothing_is_measured_but_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "none"))
    with training():
        pass
    with pytest.raises(TableError, match="set LEANFRONT_CACHE to another"), measuring():
        pass
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "file"))
    with training():
        pass
    with pytest.raises(TableError, match="set LEANFRONT_CACHE to another"), measuring():
        pass
    assert lock_path("measuring").name.startswith("measuring-")
