"""What a trial leaves in memory goes when the trial ends."""

import gc
import resource
import sys
import weakref
from pathlib import Path

import pytest

from benchmarks.scale import FreeCandidate, FreeCost, FreeScorer, configuration, space_of
from leanfront.search.run.run_folder import make_run, registered
from leanfront.search.study.loop import Budget, give_back, search_loop
from leanfront.search.study.study import open_study
from leanfront.search.trial.trial import Problem


class Weights:
    """Refers to itself, as a traced module and its graph do: only garbage collection frees it."""

    def __init__(self) -> None:
        self.module = self


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_trial_is_freed_when_it_ends(tmp_path: Path) -> None:
    made: list[weakref.ref[Weights]] = []
    alive: list[int] = []

    class Scorer(FreeScorer):
        def start(self, policy: object) -> FreeCandidate:
            alive.append(sum(weights() is not None for weights in made))
            made.append(weakref.ref(Weights()))
            return FreeCandidate()

    config = configuration()
    run = make_run(tmp_path / "run", config)
    problem = Problem(space_of(config, 5), FreeCost(), Scorer(), config.search.objectives, config.limits, 0.9)
    gc.disable()  # else it might come by itself
    try:
        with registered(run) as worker:
            search_loop(problem, open_study(run, config.search), run, Budget(trials=5), worker)
    finally:
        gc.enable()
    assert alive == [0] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap, Linux's /proc")
def test_a_scattered_heap_is_given_back() -> None:
    blocks = [bytes(2000) for _ in range(100_000)]
    last = bytes(2000)  # on top of the heap: keeps glibc from giving it back by itself
    full = resident_bytes()
    del blocks[::2], blocks[::5]
    survivors = blocks[::100]
    del blocks
    give_back()
    assert full - resident_bytes() > 100e6
    assert len(survivors) + len(last) > 0
