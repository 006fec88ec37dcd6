"""Bit operations are those that qonnx counts in the file."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.template import Template, template
from leanfront.compression.export.walk import Walk
from leanfront.compression.export.weights import random_weights
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.grids import stand_in_grids
from leanfront.latency_models.cost import Cost
from leanfront.search.gate.policies import drawn
from leanfront.search.objectives import ObjectiveError, costs_of, names, objective
from tests.networks import ALL, traced_network

PAIRS = [
    (2, 2),
    (2, 4),
    (3, 5),
    (4, 4),
    (5, 4),
    (8, 4),
    (2, 8),
    (3, 8),
    (4, 8),
    (8, 8),
    (32, 32),
    (16, 16),
    (4, 32),
]
NETWORKS = ["Residual", "Depthwise", "Sequence", "Dense"]


@cache
def captured(name: str) -> tuple[Traced, Template]:
    traced = traced_network(name)
    return traced, template(traced)


def counted(name: str, policy: Policy) -> tuple[float, float]:
    """What qonnx's own analysis says of a policy's file: bit operations, bits of weights."""
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.inference_cost import inference_cost

    traced, graph = captured(name)
    network, dialect = policy.cut(traced.network), dialect_of("qonnx")
    walk = Walk(graph, network, policy, dialect)
    walk.weights = random_weights(network, policy)
    walk.grids = walk.held(stand_in_grids(walk.kernels, policy))
    content = dialect.finished(walk.model(), network, policy)
    found = inference_cost(ModelWrapper(onnx.load_from_string(content)), discount_sparsity=False)
    total = found["total_cost"]
    return total["total_bops"], total["total_mem_w_bits"]


def ours(name: str, policies: list[Policy]) -> list[tuple[float, float]]:
    batch = PolicyBatch.of(captured(name)[0].network, policies)
    bits = np.where(batch.weight_bits > 8, 32, batch.weight_bits)
    return list(zip(batch.bops().tolist(), (batch.weight_counts * bits).sum(axis=0).tolist(), strict=True))


def policies(name: str, count: int) -> list[Policy]:
    rng = np.random.default_rng(0)
    return [drawn(captured(name)[0].network, rng, PAIRS, (0.25, 0.5)) for _ in range(count)]


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_qonnx(name: str) -> None:
    chosen = policies(name, 3)
    assert ours(name, chosen) == [counted(name, policy) for policy in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_qonnx_for_many_policies(name: str) -> None:
    chosen = policies(name, 200)
    assert ours(name, chosen) == [counted(name, policy) for policy in chosen]


def test_a_known_answer() -> None:
    # 3 x 8 weights at 64 positions, 8 x 12 at 16, 12 x 16 at 4, 64 x 10: all in 3 bits times 8
    network = captured("Chain")[0].network
    macs = 3 * 8 * 9 * 64 + 8 * 12 * 9 * 16 + 12 * 16 * 4 + 64 * 10
    batch = PolicyBatch.of(
        network, [Policy.uniform(network, LayerPolicy(0.0, *bits)) for bits in ((3, 8), (32, 32), (16, 16))]
    )
    assert batch.bops().tolist() == [macs * 24, macs * 1024, macs * 1024]


@pytest.mark.parametrize("name", ALL)
def test_one_policy_has_what_many_have(name: str) -> None:
    network = captured(name)[0].network
    row, chosen = objective("bops"), policies(name, 8)
    column = row.column(PolicyBatch.of(network, chosen), None)  # type: ignore[arg-type]
    cost = Cost(1.0, 1.0, 1, 1)
    for policy, value in zip(chosen, column, strict=True):
        assert costs_of(["accuracy", "bops"], lambda p=policy: p.cut(network), policy, cost)["bops"] == value


def test_it_is_an_objective_of_ours() -> None:
    assert "bops" in names()
    assert objective("bops").shown(3.1e9) == "3.10 G"
    with pytest.raises(ObjectiveError):
        objective("bobs")


def test_each_use_of_a_layer_counts_with_its_own_size() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.pool(self.conv(x).relu()))  # type: ignore[no-any-return]

    network = trace(Twice().eval(), torch.zeros(1, 4, 8, 8)).network
    batch = PolicyBatch.of(network, [Policy.uniform(network, LayerPolicy(0.0, 4, 8))])
    assert batch.bops().tolist() == [4 * 4 * 9 * (64 + 16) * 4 * 8]
