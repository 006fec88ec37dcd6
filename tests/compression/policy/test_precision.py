"""Which nodes become one kernel, and which tensors are held in integers: small cases known on paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.graph import Network, kernels
from leanfront.compression.policy import LayerPolicy, Policy, integer_kernels, tensor_bits
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.policy.layer_size import storage_bits

FLOAT = LayerPolicy()
INT8 = LayerPolicy(weight_bits=8, activation_bits=8)
INT4 = LayerPolicy(weight_bits=4, activation_bits=4)


class Small(nn.Module):
    """Convolution, pooling, then a residual sum of two convolutions, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.drop = nn.Dropout()
        self.d = nn.Linear(4, 6)
        self.e = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.a(x))))
        x = F.relu(self.c(F.silu(self.b(x))) + x)
        return self.e(F.relu(self.d(self.drop(x.mean((2, 3))))))


@pytest.fixture(scope="module")
def network() -> Network:
    return trace(Small(), torch.zeros(1, 3, 4, 4)).network


def policy(network: Network, **changes: LayerPolicy) -> Policy:
    return Policy.of({layer.name: changes.get(layer.name, FLOAT) for layer in network.layers})


def bits(network: Network, **changes: LayerPolicy) -> dict[str, int]:
    found = tensor_bits(kernels(network), policy(network, **changes))
    return {name: b for name, b in found.items() if b < 32}


def test_kernels(network: Network) -> None:
    assert [(k.name, k.op, [n.op for n in k.nodes[1:]], k.activation) for k in kernels(network)] == [
        ("x", "input", [], ""),
        ("relu", "conv2d", ["batchnorm", "relu"], "relu"),
        ("pool", "maxpool", [], ""),
        ("b", "conv2d", [], ""),
        ("silu", "silu", [], ""),
        ("c", "conv2d", [], ""),
        ("relu_1", "add", ["relu"], "relu"),
        ("drop", "global_avgpool", ["identity"], ""),
        ("relu_2", "linear", ["relu"], "relu"),
        ("e", "linear", [], ""),
    ]
    inputs = {k.name: k.inputs for k in kernels(network)}
    assert inputs["relu_1"] == ("c", "pool")
    assert inputs["relu_2"] == ("drop",)


def test_a_tensor_with_two_readers_is_not_swallowed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return F.relu(self.norm(x)) + x

    found = kernels(trace(Twice(), torch.zeros(1, 3, 2, 2)).network)
    assert [k.op for k in found] == ["input", "conv2d", "batchnorm", "add"]


def test_a_tensor_that_goes_out_is_not_swallowed() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            return x, F.relu(x)

    found = kernels(trace(Inner(), torch.zeros(1, 3, 2, 2)).network)
    assert [k.op for k in found] == ["input", "conv2d", "relu"]


def test_a_norm_over_positions_is_not_swallowed() -> None:
    """On (N, T, C) a batch norm's channels are T, a linear layer's are C."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    assert [k.op for k in kernels(trace(model, torch.zeros(1, 4, 6)).network)] == ["input", "linear", "other"]


def test_float_policies_hold_floats(network: Network) -> None:
    assert bits(network) == {}
    weights_only = dict.fromkeys("abcde", LayerPolicy(weight_bits=4))
    assert bits(network, **weights_only) == {}
    assert not integer_kernels(kernels(network), policy(network, **weights_only))


def test_what_an_integer_layer_reads_and_makes_is_held_in_integers(network: Network) -> None:
    assert bits(network, a=INT8) == {"x": 8, "relu": 8, "pool": 8}  # the pooling runs on what it gets
    assert bits(network, b=INT4) == {"relu": 4, "pool": 4, "b": 8}  # its wish is seen through the pooling
    assert bits(network, a=INT8, b=INT4) == {"x": 8, "relu": 4, "pool": 4, "b": 8}
    assert bits(network, c=INT8) == {"silu": 8, "c": 8}
    assert integer_kernels(kernels(network), policy(network, c=INT8)) == {"c"}


def test_a_sum_runs_on_integers_when_all_of_it_is(network: Network) -> None:
    assert bits(network, a=INT8, c=INT8) == {
        "x": 8,
        "relu": 8,
        "pool": 8,
        "silu": 8,
        "c": 8,
        "relu_1": 8,
        "drop": 8,
    }
    ran = integer_kernels(kernels(network), policy(network, a=INT8, c=INT8))
    assert ran == {"relu", "pool", "c", "relu_1", "drop"}


def test_a_linear_layer_puts_out_floats_at_the_end_only(network: Network) -> None:
    assert bits(network, e=INT8) == {"relu_2": 8}
    assert bits(network, d=INT8) == {"drop": 8, "relu_2": 8}  # with its ReLU it is fused only so


@pytest.mark.parametrize(
    ("weight_bits", "stored"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8), (16, 16), (32, 32)]
)
def test_storage(weight_bits: int, stored: int) -> None:
    assert storage_bits(weight_bits) == stored


def test_the_size_moves_by_the_bytes_of_the_weights() -> None:
    wide = trace(
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)), torch.zeros(1, 64, 8, 8)
    ).network
    weights = 2 * 64 * 64 * 9
    sizes = {
        b: size_bytes(wide, Policy.uniform(wide, LayerPolicy(0.0, b, 8 if b < 32 else 32)))
        for b in (2, 4, 8, 32)
    }
    assert sizes[32] - sizes[8] == pytest.approx(3 * weights, rel=0.01)
    assert sizes[8] - sizes[4] == pytest.approx(weights / 2, rel=0.01)
    assert sizes[4] - sizes[2] == pytest.approx(weights / 4, abs=8)  # of how many they are, too


class Upward(nn.Module):
    """A transposed convolution between two convolutions, joined with what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 2, 2)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.b = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.cat([x, self.up(self.down(x))], 1))


def test_a_transposed_convolution_computes_in_floats() -> None:
    """It wants no integers, and puts them out only for an integer concat that an integer layer reads."""
    upward = trace(Upward(), torch.zeros(1, 3, 4, 4)).network
    assert bits(upward, up=INT8) == {}
    assert bits(upward, up=INT8, b=INT8) == {"up": 8, "cat": 8, "b": 8}
    assert bits(upward, b=INT8) == {"cat": 8, "b": 8}
    assert bits(upward, a=INT8, up=INT8, b=INT8) == {"x": 8, "a": 8, "up": 8, "cat": 8, "b": 8}
    integer = integer_kernels(kernels(upward), policy(upward, a=INT8, up=INT8, b=INT8))
    assert integer == {"a", "cat", "b"}
