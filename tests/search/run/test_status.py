"""What leanfront status says: rate, growth of the front, reasons of failures, the next command."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leanfront.search.cli.app import app
from leanfront.search.cli.status_text import follow, sparkline
from leanfront.search.config import parse_config
from leanfront.search.run.run_folder import RunFolder, TrialRow, make_run
from leanfront.search.run.run_lock import try_lock
from leanfront.search.run.status import (
    clock,
    hypervolume_curve,
    next_step,
    status,
    trials_per_hour,
    why_failed,
)
from leanfront.search.study.progress import log_line

BASELINE = {"accuracy": 1.0, "latency_ms": 1.0}
OBJECTIVES = ("accuracy", "latency_ms")
START = datetime(2026, 1, 1, 22)


def trial(number: int, state: str = "complete", begun: float | None = None, seconds: float = 10.0, **fields):
    started = START + timedelta(seconds=seconds * number if begun is None else begun)
    times = {"started": started.isoformat(), "finished": (started + timedelta(seconds=seconds)).isoformat()}
    values = {"accuracy": 0.95, "latency_ms": 0.5} if state == "complete" else {}
    return TrialRow(number, state, **{"seconds": seconds, **times, **values, **fields})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = make_run(tmp_path / "run", parse_config({"task": {"file": "/nowhere/task.py"}}))
    made.update_environment(baseline=BASELINE, budget={"trials": 4, "deadline": None, "workers": 1})
    return made


def test_the_curve_is_that_of_the_front_so_far() -> None:
    rows = [
        trial(0, accuracy=0.95, latency_ms=0.5),  # half of the ten points that count, one halving
        trial(1, "failed"),
        trial(2, accuracy=0.95, latency_ms=0.5**0.25),  # dominated
        trial(3, accuracy=0.975, latency_ms=0.5**0.5),  # a quarter higher over half a halving
        trial(4, accuracy=0.925, latency_ms=0.25),  # a quarter high over another halving
    ]
    expected = [0.5, 0.5, 0.5 + 0.125, 0.5 + 0.125 + 0.25]
    assert hypervolume_curve(rows, OBJECTIVES, BASELINE) == pytest.approx(expected)
    assert hypervolume_curve(rows, OBJECTIVES, BASELINE, points=2) == pytest.approx(expected[1::2])
    late = [replace(row, finished="2027-01-01T00:00:00") if row.trial == 0 else row for row in rows]
    first = hypervolume_curve(late, OBJECTIVES, BASELINE)[0]
    assert first == pytest.approx(0.5 * 0.25)  # trial 2 finished first
    assert hypervolume_curve(rows, OBJECTIVES, {}) == hypervolume_curve([], OBJECTIVES, BASELINE) == []


def test_the_rate_counts_all_workers_and_no_pauses() -> None:
    one_worker = [trial(number) for number in range(20)]
    assert trials_per_hour(one_worker) == pytest.approx(360)
    two = one_worker + [trial(20 + number, begun=10.0 * number) for number in range(20)]
    assert trials_per_hour(two) == pytest.approx(720)
    resumed = one_worker + [trial(20 + number, begun=40_000 + 10.0 * number) for number in range(20)]
    assert trials_per_hour(resumed) == pytest.approx(360)
    slower = [trial(number) for number in range(100)]
    slower += [trial(100 + number, begun=1000 + 20.0 * number, seconds=20.0) for number in range(60)]
    assert trials_per_hour(slower) == pytest.approx(180)  # only the last fifty count
    refused = [*one_worker, trial(20, "infeasible", begun=5000)]
    assert trials_per_hour(refused) == pytest.approx(360)
    assert trials_per_hour([]) is None


def test_failures_that_differ_in_their_numbers_are_one() -> None:
    failed = [trial(n, "failed", reason=f"the loss became nan at step {n} of 64") for n in range(3)]
    failed.insert(1, trial(7, "failed", reason="out of memory"))
    assert why_failed(failed) == [
        {"trials": 3, "last": 2, "reason": "the loss became nan at step 2 of 64"},
        {"trials": 1, "last": 7, "reason": "out of memory"},
    ]


@pytest.mark.parametrize(
    ("alive", "used_up", "front", "exported", "command"),
    [
        (True, False, False, False, "status RUN --follow"),
        (True, False, True, False, "front RUN"),
        (False, False, True, False, "search RUN/config.toml --run RUN"),
        (False, True, False, False, "search RUN/config.toml --run RUN --hours 1"),
        (False, True, True, False, "pick RUN --max-drop 0.01"),
        (False, True, True, True, "report RUN"),
    ],
)
def test_the_next_command(alive: bool, used_up: bool, front: bool, exported: bool, command: str) -> None:
    assert next_step(alive, used_up, front, exported) == f"leanfront {command}"


def test_the_table_of_a_stopped_search(run: RunFolder) -> None:
    run.write_trials([trial(0), trial(1, accuracy=0.975), trial(2, "failed", reason="out of memory")])
    answer = CliRunner().invoke(app, ["status", str(run.path)], env={"COLUMNS": "200"})
    assert answer.exit_code == 0
    assert " ▁█" in answer.output
    assert [row.split() for row in answer.output.splitlines() if "out of memory" in row] == [
        ["1", "2", "out", "of", "memory"]
    ]
    hint = answer.output.splitlines()[-1]
    assert hint == f"next: leanfront search {run.path}/config.toml --run {run.path}"  # 3 of 4 trials are done
    run.write_trials([*run.trials(), trial(3)])
    assert status(run)["next"] == "leanfront pick RUN --max-drop 0.01"


def test_time_left_is_what_the_rate_says(run: RunFolder) -> None:
    run.write_trials([trial(0), trial(1)])
    assert status(run)["seconds_left"] == 0.0
    held = try_lock(run.locks / "search")
    assert held is not None
    answer = status(run)
    assert answer["alive"]
    assert answer["seconds_left"] == pytest.approx(20.0)
    run.update_environment(budget={"trials": 4, "deadline": time.time() + 5, "workers": 1})
    assert status(run)["seconds_left"] == pytest.approx(5, abs=2)


def test_follow_prints_what_changes_until_the_search_ends(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    held = try_lock(run.locks / "search")
    assert held is not None
    run.write_trials([trial(0)])
    steps = [
        lambda: None,
        lambda: run.write_trials([trial(0), trial(1)]),
        lambda: os.close(held),
    ]
    follow(run, "runs/x", wait=lambda seconds: steps.pop(0)())
    printed = capsys.readouterr().out.splitlines()
    changes = [text for text in printed if "hypervolume 0" in text]
    assert [text.split()[1:3] for text in changes] == [["1", "complete"], ["2", "complete"]]
    assert changes[0].endswith("0:00:30 left")
    assert printed[-1] == "next: leanfront search runs/x/config.toml --run runs/x"


def test_follow_prints_no_json(run: RunFolder) -> None:
    answer = CliRunner().invoke(app, ["status", str(run.path), "--follow", "--format", "json"])
    assert answer.exit_code == 2
    assert "leave --format out" in answer.output


def test_a_line_of_the_log_is_read_by_programs() -> None:
    text = log_line(trial(5, "failed", latency_ms=0.0123, worker="worker-a-1", reason='lost "x" at step 3'))
    pairs = dict(pair.split("=", 1) for pair in shlex.split(text))
    assert pairs == {
        "trial": "5",
        "state": "failed",
        "latency_ms": "0.0123",
        "seconds": "10",
        "worker": "worker-a-1",
        "reason": 'lost "x" at step 3',
    }


def test_small_texts() -> None:
    assert sparkline([0.1, 0.2, 0.3]) == "▁▅█"
    assert sparkline([0.5, 0.5]) == "██"
    assert sparkline([]) == ""
    assert clock(3725) == "1:02:05"
    assert clock(None) == "unknown"


def test_status_needs_neither_torch_nor_pandas(run: RunFolder) -> None:
    run.write_trials([trial(0)])
    code = "import sys; from leanfront.search.cli.app import app;"
    code += "app(['status', sys.argv[1]], standalone_mode=False);"
    code += "print([name for name in ('torch', 'pandas') if name in sys.modules])"
    line_ = [sys.executable, "-c", code, str(run.path)]
    done = subprocess.run(line_, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
