"""The benchmark of whole searches, on run folders made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_searches import curve, tables
from leanfront.search.config import parse_config
from leanfront.search.run.run_folder import RunFolder, TrialRow, make_run
from leanfront.search.trial.promotion import UNTRAINED

BASELINE = {"accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 1000.0}
TWO = ("latency_ms",)


def run_of(folder: Path, accuracies: list[float], log: str = "", passed: float | None = None) -> RunFolder:
    """A search begun at noon: one trial a minute, each at half the latency and half the size."""
    run = make_run(folder, parse_config({"task": {"file": "task.py"}}))
    sensitivities = None if passed is None else {"seconds": passed}
    run.update_environment(baseline=BASELINE, sensitivities=sensitivities)
    run.log_file.write_text(f"2026-01-01 12:00:00 search started: {{}}\n{log}")
    rows = [
        TrialRow(
            number,
            "complete" if accuracy > 0.84 else "infeasible",
            accuracy=accuracy,
            latency_ms=0.5,
            size_bytes=500.0,
            finished=f"2026-01-01T12:{number + 1:02d}:00",
        )
        for number, accuracy in enumerate(accuracies)
    ]
    untrained = TrialRow(len(rows), "pruned", accuracy=0.99, latency_ms=0.1, finished="2026-01-01T12:00:30")
    run.write_trials([*rows, untrained])
    return run


def test_what_was_found_after_each_trained_trial(tmp_path: Path) -> None:
    # infeasible ones count as any other: 0.83 is 3 points above the floor of 0.80
    found = curve(run_of(tmp_path / "run", [0.83, 0.82, 0.9, 0.85]), "tpe", 3, TWO)
    assert (found.sampler, found.seed) == ("tpe", 3)
    assert found.volume.tolist() == pytest.approx([0.3, 0.3, 1.0, 1.0])
    assert found.hours.tolist() == pytest.approx(np.array([1, 2, 3, 4]) / 60)


def test_what_needed_no_training_counts_as_found_and_not_as_a_trained_trial(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [0.83, 0.9, 0.85, 0.87])
    rows = [replace(row, reason=UNTRAINED) if row.trial in (1, 3) else row for row in run.trials()]
    run.write_trials(rows)
    found = curve(run, "cascade", 0, TWO)
    assert found.volume.tolist() == pytest.approx([0.3, 1.0])
    assert found.hours.tolist() == pytest.approx(np.array([1, 3]) / 60)


def test_a_pass_that_the_cache_had_counts_as_if_made_now(tmp_path: Path) -> None:
    cached = curve(run_of(tmp_path / "cached", [0.9], passed=30.0), "cascade", 0, TWO)
    assert cached.hours.tolist() == pytest.approx([1.5 / 60])
    log = "2026-01-01 12:00:30 sensitivities measured in 30 s\n"
    made = curve(run_of(tmp_path / "made", [0.9], log, passed=30.0), "cascade", 0, TWO)
    assert made.hours.tolist() == pytest.approx([1 / 60])


def test_what_cascade_needs_to_be_level(tmp_path: Path) -> None:
    runs = {
        ("cascade", 0): run_of(tmp_path / "cascade", [0.85, 0.89]),
        ("tpe", 0): run_of(tmp_path / "tpe", [0.81, 0.82, 0.83, 0.84, 0.86]),
        ("nsga2", 0): run_of(tmp_path / "nsga2", [0.9]),
    }
    lines = tables(runs)
    assert (
        sum("what tpe 0 ends with after 2 trials of 5 and 0.03 of 0.08 hours (0.400)" in x for x in lines)
        == 3
    )
    assert sum("what nsga2 0 ends with: never (0.900 of it)" in line for line in lines) == 3
