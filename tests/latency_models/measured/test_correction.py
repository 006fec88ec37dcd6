import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.latency_models import TableError
from leanfront.latency_models.measured.correction import Accuracy, Correction, Sample, accuracy, fit, spearman


def samples(count: int, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    """Truth: 0.9 x integer + 1.2 x float + call + 3e-8 per far byte."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        features = {
            "call": 0.007,
            "integer_full_ms": float(rng.uniform(0.02, 0.2)),
            "float_full_ms": float(rng.uniform(0.02, 0.3)),
            "other_ms": float(rng.uniform(0.01, 0.05)),
            "nodes": float(rng.integers(20, 60)),
            "far_bytes": float(rng.choice([0.0, 1e6, 4e6])),
        }
        truth = (
            0.007 + 0.9 * features["integer_full_ms"] + 1.2 * features["float_full_ms"] + features["other_ms"]
            + 3e-8 * features["far_bytes"]
        )  # fmt: skip
        made.append(Sample(features, truth * float(1 + noise * rng.standard_normal())))
    return made


def test_without_samples_it_is_the_plain_sum() -> None:
    features = {"call": 0.01, "integer_full_ms": 0.2, "float_full_ms": 0.3, "nodes": 40.0, "far_bytes": 1e6}
    assert Correction().predict(features) == pytest.approx(0.51)
    assert Correction().accuracy is None


def test_it_finds_a_known_truth() -> None:
    correction = fit(samples(40))
    unseen = samples(30, seed=1)
    found = accuracy([correction.predict(s.features) for s in unseen], [s.measured_ms for s in unseen])
    assert found.mape < 0.01
    assert correction.weight("float_full_ms") == pytest.approx(1.2, abs=0.05)


def test_what_samples_have_little_of_is_not_blown_up() -> None:
    """Two of 40 samples have 2 kB from far memory and came out 3 % too slow: no megabyte is a millisecond."""
    made = [Sample(s.features | {"far_bytes": 0.0}, s.measured_ms) for s in samples(40)]
    made = [Sample(s.features, Correction().predict(s.features)) for s in made]
    noisy = [Sample(s.features | {"far_bytes": 2e3}, 1.03 * s.measured_ms) for s in made[:2]]
    correction = fit([*noisy, *made[2:]])
    assert abs(correction.weight("far_bytes")) * 1e6 < 0.1
    # and what is really there is found
    assert fit(samples(60)).weight("far_bytes") == pytest.approx(3e-8, rel=0.1)


def test_the_accuracy_that_it_reports_is_that_of_unseen_networks() -> None:
    noisy = fit(samples(60, noise=0.05))
    assert noisy.accuracy is not None
    assert 0.02 < noisy.accuracy.mape < 0.08  # the noise itself: mean |5 % x normal| is 4 %
    assert noisy.accuracy.n == 60


def test_json_round_trip() -> None:
    correction = fit(samples(20))
    assert Correction.from_json(correction.to_json()) == correction
    with pytest.raises(TableError, match="no correction"):
        Correction.from_json('{"weights": 3}')


def test_bad_samples_are_refused() -> None:
    with pytest.raises(TableError, match="at least 10"):
        fit(samples(9))
    with pytest.raises(TableError, match="above 0"):
        fit([*samples(12), Sample({"call": 1.0}, 0.0)])


def test_accuracy_on_paper() -> None:
    found = accuracy([1.0, 2.1, 3.0, 5.0], [1.0, 2.0, 4.0, 5.0])
    assert found == Accuracy(4, pytest.approx((0.05 + 0.25) / 4), 0.75, 1.0)  # type: ignore[arg-type]


def test_spearman_on_paper() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=30))
def test_spearman_depends_on_order_alone(pairs: list[tuple[float, float]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    stretched = [np.float64(8.0 * x) for x in a]
    assert spearman(a, b) == pytest.approx(spearman(stretched, b), abs=1e-9)
    assert -1.0 - 1e-9 <= spearman(a, b) <= 1.0 + 1e-9
