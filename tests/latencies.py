"""Latencies that were measured while other tests ran."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median

import pytest

import leanfront.latency_models.measured.space_table


def error_in_common_units(pairs: Iterable[tuple[float, float]]) -> float:
    """Mean relative error of predicted, measured latencies after both are brought to one clock.

    A table of kernels and the networks that it is held against are measured one after the other. Where tests
    share the machine, all of one side may be half as long again as all of the other; what a cost model says
    of one network beside another holds none the less. benchmarks/ measure on a machine at rest.
    """
    ratios = [predicted / measured for predicted, measured in pairs]
    clock = median(ratios)
    assert 1 / 3 < clock < 3
    return fmean(abs(ratio / clock - 1) for ratio in ratios)


def small_tables(patched: pytest.MonkeyPatch, folder: Path, samples: int, draws: int) -> None:
    """Tables of so few networks that a test can wait for them, in a cache of its own within a folder."""
    patched.setenv("LEANFRONT_CACHE", str(folder / "cache"))
    for name, value in (("SAMPLES", samples), ("DRAWS", draws), ("SURPRISE_SECONDS", 1.0)):
        patched.setattr(leanfront.latency_models.measured.space_table, name, value)
