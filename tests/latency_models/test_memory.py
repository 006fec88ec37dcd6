"""Peak memory of live tensors: small cases known on paper, and what onnxruntime takes."""

import numpy as np
import pytest

from leanfront.compression.export.network_model import network_model
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.latency_models.benchmark.counted_memory import counted_bytes
from leanfront.latency_models.memory import peak_bytes, tensor_bytes, working_bytes
from tests.residual_networks import traced_network


def peak(network: Network, *policies: Policy) -> list[int]:
    batch = PolicyBatch.of(network, policies)
    return [int(found) for found in peak_bytes(batch, tensor_bytes(batch))]


def image(
    name: str, op: str, inputs: tuple[str, ...], width: int, size: int, layer: str | None = None
) -> Node:
    return Node(name, op, inputs, (Segment(None, width),), (size, size), layer)


def residual() -> Network:
    """x (2 channels) -> a (8 channels) -> b (2 channels); b + x."""
    return Network(
        nodes=(
            image("x", "input", (), 2, 4),
            image("a", "conv2d", ("x",), 8, 4, "a"),
            image("b", "conv2d", ("a",), 2, 4, "b"),
            image("sum", "add", ("b", "x"), 2, 4),
        ),
        layers=(
            Layer("a", LayerShape("conv2d", 2, 8, (3, 3), out_height=4, out_width=4)),
            Layer("b", LayerShape("conv2d", 8, 2, (3, 3), out_height=4, out_width=4)),
        ),
        outputs=("sum",),
    )


def test_peak_of_a_residual_block_in_floats_is_known_on_paper() -> None:
    # while b runs: x (2), a (8) and b (2) are alive: 12 channels of 16 floats
    assert peak(residual(), Policy.uniform(residual(), LayerPolicy())) == [12 * 16 * 4]


def test_peak_in_integers_is_a_quarter() -> None:
    network = residual()
    integer = Policy.uniform(network, LayerPolicy(weight_bits=8, activation_bits=8))
    # x, a and b are held in bytes; the sum of two integer tensors is an integer tensor, too
    assert peak(network, integer) == [12 * 16]


def test_flattening_makes_no_tensor_and_outputs_stay_alive() -> None:
    network = Network(
        nodes=(
            image("x", "input", (), 4, 4),
            Node("flat", "flatten", ("x",), (Segment(None, 4, 16),)),
            Node("y", "linear", ("flat",), (Segment(None, 3),), (), "y"),
            Node("z", "linear", ("y",), (Segment(None, 5),), (), "z"),
        ),
        layers=(Layer("y", LayerShape("linear", 64, 3)), Layer("z", LayerShape("linear", 3, 5))),
        outputs=("y", "z"),
    )
    policy = Policy.uniform(network, LayerPolicy())
    assert peak(network, policy) == [(64 + 3) * 4]  # x while y runs; later only y and z


@pytest.mark.parametrize("name", ["Residual", "Inverted", "OptionA", "Nested"])
def test_what_is_left_of_a_network_without_branches_has_its_own_peak(name: str) -> None:
    """Kernels of the whole network, told what is left out, against those of the network that is left."""

    network = traced_network(name).network
    rng = np.random.default_rng(0)
    policies = []
    for _ in range(40):
        gone = {n for b in network.branches if rng.random() < 0.5 for n in b.layers}
        bits = int(rng.choice([8, 32]))
        policies.append(Policy.of({n: LayerPolicy(0.0, bits, bits) for n in network.layer_names}, gone))
    assert any(policy.left_out(network) for policy in policies)
    alone = []
    for policy in policies:
        batch = PolicyBatch.one(policy.cut(network), policy)
        alone.append(int(peak_bytes(batch, tensor_bytes(batch))[0]))
    assert peak(network, *policies) == alone


def test_what_kernels_work_in_is_known_on_paper() -> None:
    network = residual()
    mixed = Policy.of({"a": LayerPolicy(0.0, 8, 8), "b": LayerPolicy()})
    batch = PolicyBatch.of(network, [mixed, Policy.uniform(network, LayerPolicy())])
    x = 4 * 2 * 16  # the caller's floats, which an integer layer reads as bytes
    pointers = 8 * 9 * 16
    read = 4 * 8 * 16  # b computes in floats: a's bytes once more
    found = np.array([working_bytes(batch)[row] for row in range(4)])
    assert found[:, 0].tolist() == [x, x + pointers, x + read, x + x]  # the sum reads x
    assert not found[:, 1].any()
    alive = [2 * 16, 10 * 16, 10 * 16 + 4 * 2 * 16, 2 * 16 + 2 * 4 * 2 * 16]
    expected = max(map(sum, zip(alive, [x, x + pointers, x + read, x + x], strict=True)))
    assert peak_bytes(batch, tensor_bytes(batch), working_bytes(batch))[0] == expected


@pytest.mark.parametrize("bits", [8, 32])
def test_what_onnxruntime_takes_repeats_and_is_near_the_live_tensors(bits: int) -> None:
    shapes = (("a", "x", 3, 16), ("b", "a", 16, 32), ("c", "b", 32, 16))
    network = Network(
        nodes=(
            image("x", "input", (), 3, 16),
            *(image(name, "conv2d", (read,), after, 16, name) for name, read, _, after in shapes),
        ),
        layers=tuple(
            Layer(name, LayerShape("conv2d", before, after, (3, 3), out_height=16, out_width=16))
            for name, _, before, after in shapes
        ),
        outputs=("c",),
    )
    policy = Policy.uniform(network, LayerPolicy(0.0, bits, bits))
    model = network_model(network, policy)
    counted = counted_bytes(model)
    assert counted is not None
    assert counted == counted_bytes(model)
    batch = PolicyBatch.of(network, [policy])
    predicted = peak_bytes(batch, tensor_bytes(batch), working_bytes(batch))[0]
    assert 0.5 < predicted / counted < 1.5
    assert counted > 3 * 256 * 4  # the input is in it


def test_a_model_that_cannot_be_run_alone_is_not_counted() -> None:
    assert counted_bytes(b"not a model") is None
