"""A promise with a confidence is kept as often as it says, although the best of many is chosen."""

import numpy as np
import pytest

from benchmarks.promises import Setting, drawn, picks, ramp

BEYOND = Setting("all just beyond 0.03", 500, ramp(0.0301, 0.04, 20))


def test_two_hundred_picks_of_networks_that_are_all_just_beyond_the_limit() -> None:
    assert picks(BEYOND, 0.03, None, 200).broken > 0.5  # what the split shows is what was chosen for
    assert picks(BEYOND, 0.03, 0.9, 200, considered=1).broken > 0.1  # a bound for one network is not enough
    assert picks(BEYOND, 0.03, 0.9, 200).broken <= 0.1


def test_two_hundred_picks_of_networks_around_the_limit() -> None:
    around = Setting("around", 500, ramp(-0.03, 0.02, 20))
    assert picks(around, 0.01, None, 200).broken > 0.1
    sure = picks(around, 0.01, 0.9, 200)
    assert sure.broken <= 0.1
    assert sure.picked > 0.5  # a promise that is never given is no promise


def test_the_drops_are_those_of_the_setting() -> None:
    setting = Setting("one", 200_000, (0.05,))
    uncompressed, (other,) = drawn(setting, np.random.default_rng(0))
    assert float(uncompressed.mean() - other.mean()) == pytest.approx(0.05, abs=0.002)
