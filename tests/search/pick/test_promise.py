"""What a network does not lose more than: exact, for the best of many, or why nothing can be promised."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfront.search.pick.choose import Wish, choose
from leanfront.search.pick.promise import Promise
from leanfront.search.run.run_folder import RunError, TrialRow
from leanfront.search.run.significance import Scores, most_lost, told_apart


def pair(lost: int, won: int, n: int) -> tuple[Scores, Scores]:
    """Scores of n examples: ``lost`` are right in the first alone, ``won`` in the second alone."""
    one, other = np.ones(n, np.float32), np.ones(n, np.float32)
    other[:lost] = 0
    one[lost : lost + won] = 0
    return one, other


def test_the_bound_holds_as_often_as_it_says_whatever_is_true() -> None:
    """Of all 15 examples can be, with the chances that they have: no approximation."""
    n, level = 15, 0.1
    counts = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    bounds = np.array([most_lost(*pair(lost, won, n), level) for lost, won in counts])
    ways = np.array([comb(n, lost) * comb(n - lost, won) for lost, won in counts], dtype=float)
    lost, won = np.array(counts).T
    for first in np.linspace(0.01, 0.6, 9):
        for second in np.linspace(0.01, 0.39, 7):
            chances = ways * first**lost * second**won * (1 - first - second) ** (n - lost - won)
            assert chances.sum() == pytest.approx(1)
            assert chances[bounds < first - second].sum() <= level + 1e-9, (first, second)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(40, 400), st.floats(1e-4, 0.2))
def test_less_risk_and_more_losses_raise_the_bound_and_no_order_matters(
    lost: int, won: int, n: int, level: float
) -> None:
    bound = most_lost(*pair(lost, won, n), level)
    assert (lost - won) / n <= bound <= 1
    assert most_lost(*pair(lost, won, n), level / 3) >= bound
    assert most_lost(*pair(lost + 1, won, n), level) >= bound - 1e-3 / n
    one, other = pair(lost, won, n)
    order = np.random.default_rng(0).permutation(n)
    assert most_lost(one[order], other[order], level) == bound


def test_many_examples_come_near_the_normal_distribution_and_shares_of_them_are_student_s() -> None:
    bound = most_lost(*pair(600, 400, 50_000), 0.025)
    assert bound == pytest.approx(0.004 + 1.96 * np.sqrt(0.02 / 50_000), rel=0.03)
    one = np.array([0.5, 0.75, 1.0, 0.25], np.float32)
    other = np.array([0.25, 0.75, 0.5, 0.25], np.float32)  # differences of 0.25, 0, 0.5, 0
    # mean 0.1875, standard error 0.2394 / 2; t with 3 degrees of freedom at 0.95: 2.3534
    assert most_lost(one, other, 0.05) == pytest.approx(0.1875 + 2.3534 * 0.11968, abs=1e-4)
    with pytest.raises(ValueError, match="the same examples"):
        most_lost(one, other[:3], 0.05)


def test_what_a_split_tells() -> None:
    # 524 examples of which 18 are told differently: 1.96 * sqrt(18 / 524 / 524)
    assert told_apart(*pair(10, 8, 524), 0.01) == pytest.approx(0.01587, abs=1e-5)
    # whoever loses a point tells a hundredth differently, even where the plainest network tells nothing so
    assert told_apart(*pair(0, 0, 524), 0.01) == pytest.approx(1.96 * np.sqrt(0.01 / 524), rel=1e-4)
    one, other = np.array([0.5, 0.75, 1.0, 0.25], np.float32), np.array([0.25, 0.75, 0.5, 0.25], np.float32)
    assert told_apart(one, other, 0.01) == pytest.approx(1.96 * 0.11968, abs=1e-4)


SCORES = {1: pair(0, 0, 5000), 2: pair(20, 15, 5000), 3: pair(75, 40, 5000)}
FRONT = [
    TrialRow(trial, "complete", accuracy=float(other.mean()), latency_ms=1 / trial)
    for trial, (_, other) in SCORES.items()
]
"""The faster, the more is lost: 0, 0.001 and 0.007."""


def promise(confidence: float, considered: int) -> Promise:
    # the uncompressed network has all right, so that only what the others lose counts
    return Promise(
        confidence, np.ones(5000, np.float32), lambda row: SCORES.get(row.trial, (0, None))[1], considered
    )


def test_what_was_shown_is_not_what_is_promised() -> None:
    wish = Wish(max_drop=0.02)
    assert choose(FRONT, 1.0, wish).trial == 3  # loses 0.015 of 5000
    assert choose(FRONT, 1.0, wish, promise(0.9, 1)).trial == 3
    assert choose(FRONT, 1.0, wish, promise(0.99, 300)).trial == 2  # of 300 one may well look so good
    unknown = [*FRONT, TrialRow(9, "complete", accuracy=1.0, latency_ms=0.01)]
    assert choose(unknown, 1.0, wish, promise(0.9, 1)).trial == 3  # its scores were not kept


def test_where_nothing_can_be_promised_it_is_said_what_would_help() -> None:
    with pytest.raises(RunError) as failure:
        choose(FRONT[1:], 1.0, Wish(max_drop=0.005), promise(0.95, 40))
    said = str(failure.value)
    assert "surely loses at most 0.0050 of accuracy (--confidence 0.95, of 40 networks" in said
    assert "scored on 5000 examples" in said
    assert "the nearest is trial 2, which lost 0.0040 there and may lose 0.0" in said
    allowed = float(said.split("--max-drop ")[1].split(",")[0])
    assert choose(FRONT[1:], 1.0, Wish(max_drop=allowed), promise(0.95, 40)).trial == 2
    examples = int(said.split("with some ")[1].split()[0].replace(",", ""))
    assert examples > 5000
    with pytest.raises(RunError, match="which was not given"):
        choose(FRONT, 1.0, Wish(max_latency_ms=1.0), promise(0.9, 1))
