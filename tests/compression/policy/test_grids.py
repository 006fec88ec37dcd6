"""One rule for the grids of stand-ins: the file that an export would be and the one made of shapes alone."""

import random

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.network_model import network_model
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import random_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes

INT8 = LayerPolicy(weight_bits=8, activation_bits=8)


class Drawn(nn.Module):
    """Steps drawn at random on images of 8 channels; activations may stay kernels of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.steps = random.Random(seed).choices(
            ("conv", "concat", "add", "pool", "average", "relu", "sigmoid", "tanh"), k=9
        )
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(16 if step == "concat" else 8, 8, 3, padding=1) for step in self.steps
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, 4)."""
        x = F.relu(self.first(x))
        before = x
        for step, layer in zip(self.steps, self.layers, strict=True):
            held = x
            match step:
                case "conv":
                    x = layer(x)
                case "concat":
                    x = layer(F.relu(torch.cat([x, before], 1)))
                case "add":
                    x = x + before
                case "pool":
                    x = F.max_pool2d(x, 3, 1, 1)
                case "average":
                    x = F.avg_pool2d(x, 3, 1, 1)
                case _:
                    x = {"relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[step](x)
            before = held
        return self.head(x.mean((2, 3)))


def grids(model: ModelProto) -> set[tuple[float, int]]:
    """(scale, zero point) of the tensors that a file holds in integers."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        (float(stored[node.input[1]]), int(stored[node.input[2]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_network_that_prices_a_file_has_its_grids(seed: int) -> None:
    traced = trace(Drawn(seed).eval(), torch.zeros(1, 3, 8, 8))
    layers = random.Random(seed)
    policy = Policy.of(
        {layer.name: layers.choice((INT8, INT8, LayerPolicy())) for layer in traced.network.layers}
    )
    try:
        policy.channels(traced.network)
    except ValueError:  # two layers read one tensor at different bits
        policy = Policy.uniform(traced.network, INT8)
    exported = random_model(template(traced), traced.network, policy)
    priced = onnx.load_model_from_string(network_model(traced.network, policy))
    assert grids(exported) == grids(priced)
    assert len({scale for scale, _ in grids(priced)}) == len(grids(priced))


def test_a_relu_of_its_own_has_zero_point_0_and_takes_no_kernel() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
            self.c = nn.Conv2d(16, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1)))

    traced = trace(Joined().eval(), torch.zeros(1, 3, 8, 8))
    policy = Policy.uniform(traced.network, INT8)
    exported = random_model(template(traced), traced.network, policy).SerializeToString()
    priced = network_model(traced.network, policy)
    for model in (exported, priced):
        zeros = [zero for _, zero in grids(onnx.load_model_from_string(model))]
        assert sorted(np.unique(zeros)) == [0, 128]
        assert "Relu" not in {node.proto.op_type for node in fused_nodes(model, {})}
    ran = [sorted(node.key for node in fused_nodes(model, {})) for model in (exported, priced)]
    assert ran[0] == ran[1]
