"""Timing on a machine that something disturbs, in simulated time."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from leanfront.latency_models.benchmark import timing
from leanfront.latency_models.benchmark.timing import Reference, noise, time_calls

KNOWN_MS, MODEL_MS = 0.048, 0.029


class Machine:
    """``slowed``: seconds -> how many times as long a call takes then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowed: Callable[[float], float]) -> None:
        self.seconds, self._slowed = 0.0, slowed
        monkeypatch.setattr(timing, "CALM_S", 10.0)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(timing.time, "sleep", self.pass_)
        monkeypatch.setattr(timing._Candidate, "block", lambda candidate, runs: self._block(candidate, runs))

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds

    def _block(self, candidate: timing._Candidate, runs: int) -> NDArray[np.float64]:
        taken = []
        for _ in range(runs):
            alone_ms = MODEL_MS if candidate.call is model else KNOWN_MS
            taken.append(alone_ms * self._slowed(self.seconds))
            self.seconds += taken[-1] / 1e3
        return np.array(taken)


def model() -> None:
    raise AssertionError("time is simulated")


def timed(reference: Reference, patience_s: float | None = None) -> timing.Timing:
    return time_calls({"model": model}, reference, 15, patience_s=patience_s)["model"]


def test_a_machine_that_is_slow_for_seconds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, lambda seconds: 1.6 if seconds < 6 else 1.0)
    found = timed(Reference(1, KNOWN_MS))
    assert found.median_ms == pytest.approx(MODEL_MS)
    assert found.reference_ms == pytest.approx(KNOWN_MS)


def test_a_machine_that_stays_slow_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda seconds: 1.6)
    reference = Reference(1, KNOWN_MS)
    assert 10 < machine.seconds < 12
    found = timed(reference)
    assert found.median_ms == pytest.approx(1.6 * MODEL_MS)
    assert found.reference_ms == pytest.approx(1.6 * KNOWN_MS)
    machine = Machine(monkeypatch, lambda seconds: 1.6)
    assert Reference(1).undisturbed_ms == pytest.approx(1.6 * KNOWN_MS)
    assert machine.seconds < 1  # nothing is known to wait for


def test_single_undisturbed_calls_are_found_where_no_block_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1 s nothing is disturbed; then all but one call in a hundred is."""
    generator = np.random.default_rng(0)
    Machine(monkeypatch, lambda seconds: 1.6 if seconds > 1 and generator.random() > 0.01 else 1.0)
    reference = Reference(1, KNOWN_MS)
    timing.time.sleep(1)
    found = timed(reference, patience_s=2.0)
    assert found.disturbed
    assert found.median_ms == pytest.approx(MODEL_MS)
    assert noise({"model": found}) is not None
