"""Networks with recurrent layers on this machine: measured, predicted, and faster where they quantize at run
time."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.walk import random_builder
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.measured.building import cost_model
from leanfront.latency_models.measured.validation import validate
from tests.latencies import error_in_common_units, small_tables
from tests.variants import some


class Gestures(nn.Module):
    """Vectors, a recurrent layer, and a class."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.inside, self.recurrent = nn.Linear(8, 64), recurrent
        self.head = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.recurrent(self.inside(x).relu())[0].mean(1))
        return found


def traced(kind: type[nn.RNNBase]) -> Traced:
    torch.manual_seed(0)
    return trace(Gestures(kind(64, 128, batch_first=True)).eval(), torch.zeros(1, 24, 8))


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tables(monkeypatch, tmp_path, 10, 16)


@pytest.mark.parametrize("kind", some([nn.LSTM, nn.GRU], 1))
def test_they_are_measured_and_predicted(kind: type[nn.RNNBase]) -> None:
    made, profile = traced(kind), load_profile("this-machine")
    space = Space(made.network, profile, [0.0, 0.5], [8, 32], [8, 32], dynamic=True)
    model = cost_model(space, partial(random_builder, made), profile, 1)
    rng = np.random.default_rng(0)
    policies = [space.random(rng) for _ in range(20)]
    costs = [model.cost(space.resized(policy), policy) for policy in policies]
    assert {cost.kind for cost in costs} <= {"measured", "calibrated"}
    found = validate(model, space, 6)  # type: ignore[arg-type]
    assert error_in_common_units((row.predicted_ms, row.measured_ms) for row in found.rows) < 0.25
    if kind is nn.LSTM:
        floats, codes, dynamic = (
            model.cost(made.network, policy).latency_ms for policy in of_its_matrices(made)
        )
        assert codes == pytest.approx(floats, rel=0.1)  # decoded when the file is loaded
        assert dynamic < 0.7 * floats


def of_its_matrices(made: Traced) -> list[Policy]:
    """In floats, in codes, and in codes that are multiplied with codes."""
    network, found = made.network, []
    for layer in (LayerPolicy(), LayerPolicy(0.0, 8, 32), LayerPolicy(0.0, 8, 32, more=(("dynamic", 1.0),))):
        matrices = dict.fromkeys(network.weight_only, layer)
        found.append(Policy.of({name: LayerPolicy() for name in network.layer} | matrices))
    return found
