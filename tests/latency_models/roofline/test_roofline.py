"""The toy profile: 1e6 MACs per ms in float32 (4e6 at 8 bits), 1e6 bytes per ms, 0.01 ms a kernel, 1 W."""

import math
from dataclasses import replace

import pytest

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.graph.operations import named
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.cost import TableError, unknown_sentence
from leanfront.latency_models.roofline.model import RooflineModel

TOY = RooflineModel(load_profile("toy"))


def one_layer(in_channels: int, out_channels: int, side: int, kernel: int = 1, bias: bool = False) -> Network:
    shape = LayerShape("conv2d", in_channels, out_channels, (kernel, kernel), out_height=side, out_width=side)
    return Network(
        nodes=(
            Node("x", "input", (), (Segment(None, in_channels),), (side, side)),
            Node("conv", "conv2d", ("x",), (Segment(None, out_channels),), (side, side), layer="conv"),
        ),
        layers=(Layer("conv", shape, None, bias),),
        outputs=("conv",),
    )


def with_node(network: Network, op: str, detail: str = "") -> Network:
    last = network.nodes[-1]
    node = Node("last", op, (last.name,), last.channels, last.spatial, detail=detail)
    return Network((*network.nodes, node), network.layers, ("last",))


def uniform(network: Network, weight_bits: int, activation_bits: int) -> Policy:
    return Policy.uniform(network, LayerPolicy(0.0, weight_bits, activation_bits))


@pytest.mark.parametrize(
    ("bits", "latency_ms"),
    [
        # 100 -> 100 channels, 1x1, 10x10: 1e6 MACs; 1e4 values in, 1e4 out, 1e4 weights
        ((32, 32), 0.01 + 1.0),  # 1e6 / 1e6 MACs, against 12e4 / 1e6 bytes
        ((16, 16), 0.01 + 0.5),
        ((8, 8), 0.01 + 0.25),
        ((4, 4), 0.01 + 0.125),
        ((2, 8), 0.01 + 0.25),  # decoded on the way: computed at 8 bits
        ((4, 32), 0.01 + 1.0),
    ],
)
def test_a_layer_bound_by_arithmetic(bits: tuple[int, int], latency_ms: float) -> None:
    network = one_layer(100, 100, 10)
    cost = TOY.cost(network, uniform(network, *bits))
    assert cost.latency_ms == pytest.approx(latency_ms)
    assert cost.energy_mj == pytest.approx(latency_ms)  # 1 W
    assert (cost.kind, cost.estimated, cost.fits) == ("modelled", True, True)


@pytest.mark.parametrize(
    ("bits", "moved_bytes"),
    [
        # 1 -> 1 channel, 1x1, 100x100: 1e4 MACs; 1e4 values in, 1e4 out, 1 weight
        ((32, 32), 80_004),
        ((16, 16), 40_002),
        ((8, 8), 20_001),  # an integer convolution puts out 8 bits
        ((4, 4), 15_000.5),  # ... even where its input has 4
        ((2, 8), 20_000.25),
        ((8, 32), 80_001),
    ],
)
def test_a_layer_bound_by_memory_traffic(bits: tuple[int, int], moved_bytes: float) -> None:
    network = one_layer(1, 1, 100)
    assert TOY.cost(network, uniform(network, *bits)).latency_ms == pytest.approx(0.01 + moved_bytes / 1e6)


def test_a_bias_is_read_at_32_bits() -> None:
    plain, biased = one_layer(1, 1, 100), one_layer(1, 1, 100, bias=True)
    policy = uniform(plain, 8, 8)
    difference = TOY.cost(biased, policy).latency_ms - TOY.cost(plain, policy).latency_ms
    assert difference == pytest.approx(4 / 1e6)


def test_moving_values_costs_their_bytes_and_a_kernel() -> None:
    network = with_node(one_layer(100, 100, 10), "maxpool")
    rows = TOY.layers(network, uniform(network, 32, 32))
    assert [row.name for row in rows] == ["conv", "last"]
    assert rows[1].latency_ms == pytest.approx(0.01 + 2 * 40_000 / 1e6)
    rows = TOY.layers(network, uniform(network, 8, 8))
    assert rows[1].latency_ms == pytest.approx(0.01 + 2 * 10_000 / 1e6)
    assert {row.source for row in rows} == {"modelled"}


def test_fused_and_renamed_tensors_are_free() -> None:
    network = one_layer(100, 100, 10)
    policy = uniform(network, 32, 32)
    alone = TOY.cost(network, policy).latency_ms
    for op in ("relu", "batchnorm", "flatten", "reshape"):
        assert TOY.cost(with_node(network, op), policy).latency_ms == pytest.approx(alone), op
    assert TOY.cost(with_node(network, "softmax"), policy).latency_ms > alone


def test_an_unknown_operation_costs_what_it_moves_and_says_so() -> None:
    network = with_node(one_layer(3, 3, 4), "other", detail="FancyAttention")
    policy = uniform(network, 32, 32)
    row = TOY.layers(network, policy)[-1]
    assert row.latency_ms == pytest.approx(0.01 + 2 * 3 * 4 * 4 * 4 / 1e6)
    assert (TOY.cost(network, policy).kind, row.source) == ("modelled", "modelled")
    assert unknown_sentence(TOY.unknown(network)) == (
        "1 operation has no formula and is priced by what it moves: FancyAttention (node last)"
    )


def test_a_calibrated_part_models_what_it_does_not_know() -> None:
    pi = RooflineModel(load_profile("raspberry-pi-4"))
    known = with_node(one_layer(3, 3, 4), "softmax")
    network = with_node(one_layer(3, 3, 4), "other", detail="FancyAttention")
    policy = uniform(network, 32, 32)
    assert pi.cost(known, policy).kind == "calibrated"
    assert pi.cost(network, policy).kind == "modelled"
    sources = {row.name: row.source for row in pi.layers(network, policy)}
    assert (sources["conv"], sources["last"]) == ("calibrated", "modelled")


def test_arithmetic_with_weights_of_no_layer_is_in_floats_and_reads_them() -> None:
    plain = with_node(one_layer(3, 3, 4), "recurrent")
    *nodes, last = plain.nodes
    network = replace(plain, nodes=(*nodes, replace(last, macs=5_000_000, held_bytes=4000)))
    policy = uniform(network, 8, 8)
    rows = [TOY.layers(one, policy)[-1].latency_ms for one in (plain, network)]
    moved = 0.01 + (1 + 4) * 3 * 4 * 4 / 1e6  # it reads integers and makes floats
    per_ms = TOY.profile.section.macs_per_ms["32"]
    assert rows[0] == pytest.approx(moved)
    assert rows[1] == pytest.approx(0.01 + max(5_000_000 / per_ms, moved - 0.01 + 4000 / 1e6))
    assert TOY.unknown(network) == ()


def test_of_a_table_as_much_is_read_as_comes_out() -> None:
    plain = with_node(one_layer(3, 3, 4), "embedding")
    *nodes, last = plain.nodes
    network = replace(plain, nodes=(*nodes, replace(last, held_bytes=10**9)))
    policy = uniform(network, 32, 32)
    rows = [TOY.layers(one, policy)[-1].latency_ms for one in (plain, network)]
    assert rows[1] - rows[0] == pytest.approx(4 * 3 * 4 * 4 / 1e6)


def test_bits_that_the_part_has_not_are_refused() -> None:
    network = one_layer(3, 3, 4)
    with pytest.raises(TableError, match="weights of 32 and activations of 8 bits; it can: weights 4 with"):
        TOY.layers(network, uniform(network, 32, 8))


def test_a_measured_profile_has_no_roofline() -> None:
    network = one_layer(3, 3, 4)
    with pytest.raises(TableError, match=r"'this-machine' has no .roofline. numbers"):
        RooflineModel(load_profile("this-machine")).layers(network, uniform(network, 32, 32))


def test_a_network_that_is_larger_than_the_memory_does_not_fit() -> None:
    network = one_layer(10_000, 30_000, 1)  # 1.2e9 bytes of float32 weights, 1e9 of memory
    assert not TOY.cost(network, uniform(network, 32, 32)).fits
    assert TOY.cost(network, uniform(network, 8, 8)).fits


def test_the_whole_is_the_sum_of_its_rows() -> None:
    network = with_node(one_layer(16, 16, 8, kernel=3), "maxpool")
    policy = uniform(network, 8, 8)
    assert TOY.cost(network, policy).latency_ms == math.fsum(
        r.latency_ms for r in TOY.layers(network, policy)
    )


@pytest.mark.parametrize("op", named(lambda row: row.work == "values"))
def test_every_known_operation_has_a_cost(op: str) -> None:
    if op in ("relu", "relu6", "batchnorm"):
        network = with_node(with_node(one_layer(4, 4, 4), "maxpool"), op)
        network = Network(
            (*network.nodes[:2], Node("pool", "maxpool", ("conv",), (Segment(None, 4),), (4, 4)),
             Node("last", op, ("pool",), (Segment(None, 4),), (4, 4))),
            network.layers, ("last",),
        )  # fmt: skip
    else:
        network = with_node(one_layer(4, 4, 4), op)
    rows = TOY.layers(network, uniform(network, 32, 32))
    assert rows[-1].latency_ms == pytest.approx(0.01 + 2 * 4 * 4 * 4 * 4 / 1e6)
