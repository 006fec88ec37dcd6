"""Numbers fitted to measured networks: known numbers come back, what no row tells about stays."""

import numpy as np
import pytest

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.measured.reference_networks import reference_networks
from leanfront.latency_models.roofline.fit import FEWEST, Measurement, fit, with_numbers
from leanfront.latency_models.roofline.model import times
from leanfront.latency_models.roofline.work import work_of

PROFILE = load_profile("jetson-orin-nano")
TRUE = {"efficiency.8": 0.3, "efficiency.16": 0.9, "overhead_ms": 0.009, "tensor_passes": 3.0}


def measured(names: list[str], noise: float = 0.0) -> list[Measurement]:
    """What a board with the true numbers takes for networks, of which the model knows all but the numbers."""
    assert PROFILE.roofline is not None
    truth, rng = with_numbers(PROFILE.roofline, TRUE), np.random.default_rng(0)
    rows = []
    for title, network, _ in reference_networks():
        if title.rpartition(" ")[0] not in names or not title.endswith("int8"):
            continue
        for precision, bits in (("int8", 8), ("fp16", 16)):
            policy = Policy.uniform(network, LayerPolicy(0.0, bits, bits))
            work = work_of(PolicyBatch.one(network, policy), PROFILE, PROFILE.roofline)
            latency_ms = float(times(work, truth).latency_ms.sum()) * float(np.exp(noise * rng.normal()))
            rows.append(Measurement(title, precision, network, policy, latency_ms, 11.0 * latency_ms))
    return rows


ALL = [f"{design} {width}" for design in ("residual", "inverted", "skips") for width in (16, 32, 64)]


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_measured_networks_are_foretold(noise: float) -> None:
    rows = measured(ALL, noise)
    found = fit(PROFILE, rows)
    truth = np.array([row.latency_ms for row in rows])
    assert found.left_out_ms is not None
    assert np.abs(found.before_ms / truth - 1).mean() > 0.3
    assert np.abs(found.after_ms / truth - 1).mean() < 0.02 + noise
    assert np.abs(found.left_out_ms / truth - 1).mean() < 0.03 + 1.5 * noise
    assert found.numbers["power_w"] == pytest.approx(11.0)
    assert found.numbers["roofline.overhead_ms"] == pytest.approx(0.009, rel=0.1)
    assert found.numbers["roofline.conversion_overhead_ms"] == found.numbers["roofline.overhead_ms"]


def test_what_no_row_tells_about_stays() -> None:
    found = fit(PROFILE, measured(ALL))
    assert PROFILE.roofline is not None
    assert not any(name.endswith(".32") for name in found.numbers)
    assert not any("macs_per_ms" in name for name in found.numbers)  # published, with an efficiency beside
    joined = found.numbers["roofline.joined_value_ns"]
    assert joined == pytest.approx(PROFILE.roofline.joined_value_ns or 0.0, rel=0.02)


def test_few_networks_say_that_they_are_few() -> None:
    rows = measured(ALL[: FEWEST - 1])
    found = fit(PROFILE, rows)
    assert found.left_out_ms is None
    truth = np.array([row.latency_ms for row in rows])
    assert np.abs(found.after_ms / truth - 1).mean() < np.abs(found.before_ms / truth - 1).mean() / 2
