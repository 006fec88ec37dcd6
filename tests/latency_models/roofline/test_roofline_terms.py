"""Each term of the roofline, on layers whose cost is known on paper; many policies against one by one."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.published_rows import Row, roofline_of, work
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, Roofline, load_profile, profile_names
from leanfront.latency_models.roofline.model import RooflineModel, sparse_gain

TOY = load_profile("toy")
ROOFLINES = [name for name in profile_names() if load_profile(name).model == "roofline"]


def toy(**numbers: object) -> HardwareProfile:
    """The toy part with other numbers in its roofline."""
    assert TOY.roofline is not None
    return TOY.model_copy(update={"roofline": TOY.roofline.model_copy(update=numbers)})


def chain(*shapes: LayerShape, side: int = 10) -> Network:
    """Layers one after the other; all but the last can be cut."""
    nodes = [Node("x", "input", (), (Segment(None, shapes[0].in_channels),), (side, side))]
    layers = []
    for index, shape in enumerate(shapes):
        group = f"l{index}" if index < len(shapes) - 1 else None
        name = f"l{index}"
        out = (Segment(group, shape.out_channels),)
        nodes.append(Node(name, "conv2d", (nodes[-1].name,), out, (side, side), layer=name))
        layers.append(Layer(name, shape, group, bias=False))
    return Network(tuple(nodes), tuple(layers), (nodes[-1].name,))


def conv(read: int, out: int, kernel: int = 1, groups: int = 1, side: int = 10) -> LayerShape:
    return LayerShape("conv2d", read, out, (kernel, kernel), groups=groups, out_height=side, out_width=side)


def uniform(network: Network, bits: int) -> Policy:
    return Policy.uniform(network, LayerPolicy(0.0, bits, bits))


def ms(profile: HardwareProfile, network: Network, bits: int = 32) -> float:
    return RooflineModel(profile).cost(network, uniform(network, bits)).latency_ms


# 100 -> 100 channels, 1x1, 10x10, float32: 1 ms of arithmetic, 0.12 ms of traffic, 0.01 ms for the kernel
DENSE = chain(conv(100, 100))


def test_overlap_0_adds_arithmetic_and_traffic() -> None:
    assert ms(toy(overlap=1.0), DENSE) == pytest.approx(ms(TOY, DENSE)) == pytest.approx(1.01)
    assert ms(toy(overlap=0.0), DENSE) == pytest.approx(1.13)
    assert ms(toy(overlap=0.5), DENSE) == pytest.approx(1.07)


def test_efficiencies_are_shares_of_the_peaks() -> None:
    assert ms(toy(efficiency={"32": 0.5}), DENSE) == pytest.approx(2.01)
    assert ms(toy(overlap=0.0, bandwidth_efficiency=0.25), DENSE) == pytest.approx(1.01 + 0.48)
    depthwise = chain(conv(100, 100, 3, groups=100))  # 90,000 multiply-accumulates, 83,600 bytes
    assert ms(TOY, depthwise) == pytest.approx(0.01 + 0.09)
    assert ms(toy(depthwise_efficiency={"32": 0.1}), depthwise) == pytest.approx(0.01 + 0.9)
    assert ms(toy(depthwise_efficiency={"32": 0.1}), DENSE) == pytest.approx(1.01)


def test_channels_are_computed_in_multiples() -> None:
    part = toy(alignment={"32": (16, 64)})
    assert ms(part, DENSE) == pytest.approx(0.01 + 112 * 128 * 100 / 1e6)
    grouped = chain(conv(100, 100, groups=25))  # 4 input channels to a group are computed as 16
    assert ms(part, grouped) == pytest.approx(0.01 + 16 * 128 * 100 / 1e6)


def test_the_channels_of_an_image_are_packed_with_the_taps() -> None:
    image, wide = chain(conv(3, 64, 7)), chain(conv(5, 64, 7))
    whole, packed = (toy(alignment={"32": (16, 1)}, packed_channel_count=n) for n in (None, 4))
    assert ms(whole, image) == pytest.approx(0.01 + 49 * 16 * 64 * 100 / 1e6)
    assert ms(packed, image) == pytest.approx(0.01 + 208 * 64 * 100 / 1e6)  # 49 taps x 4 = 196, to 16s
    assert ms(packed, wide) == ms(whole, wide)
    assert ms(packed, chain(conv(3, 64))) == ms(whole, chain(conv(3, 64)))  # 16 at the least
    groups = chain(conv(64, 64, 3, groups=16))  # of four channels each, which are no image
    assert ms(packed, groups) == ms(whole, groups)


def test_a_byte_of_a_sum_takes_its_time_whatever_computes() -> None:
    deep = chain(conv(100, 100, 3, side=2), side=2)  # 900 products of 4 bytes; 0.36 ms of arithmetic
    assert ms(TOY, deep) == pytest.approx(0.01 + 0.3632)  # weights over memory take longer
    assert ms(toy(sum_byte_ns=50.0), deep) == pytest.approx(ms(TOY, deep))
    assert ms(toy(sum_byte_ns=200.0), deep) == pytest.approx(0.01 + 3600 * 200e-6)
    vector = chain(conv(100, 100, side=1), side=1)
    assert ms(toy(sum_byte_ns=200.0), vector) == ms(TOY, vector)


def added(activation: bool = False, twice: bool = False) -> Network:
    """The sum of what a layer makes and of what it reads, after an activation or with a second reader."""
    base = chain(conv(100, 100))
    channels, made = base.nodes[-1].channels, "l0"
    nodes = list(base.nodes)
    if activation:
        nodes.append(Node("act", "gelu", ("l0",), channels, (10, 10)))
        made = "act"
    nodes.append(Node("sum", "add", (made, "x"), channels, (10, 10)))
    if twice:
        nodes.append(Node("more", "add", ("sum", "l0"), channels, (10, 10)))
    return Network(tuple(nodes), base.layers, (nodes[-1].name,))


def test_a_layer_adds_what_its_part_fuses() -> None:
    part = toy(fused_sums=True)
    assert ms(TOY, added()) == pytest.approx(1.01 + 0.01 + 0.12)
    assert ms(part, added()) == pytest.approx(1.01 + 0.04)  # the other operand is read
    assert ms(part, added(), 16) == pytest.approx(ms(TOY, added(), 16) - 0.01 - 0.04)
    assert ms(part, added(), 8) == ms(TOY, added(), 8)  # rounded before it is added
    for network in (added(activation=True), added(twice=True)):
        assert ms(part, network) == ms(TOY, network)
    policies = [uniform(added(), bits) for bits in (8, 16, 32)]
    batch = RooflineModel(part).costs(PolicyBatch.of(added(), policies)).latency_ms
    assert list(batch) == pytest.approx([ms(part, added(), bits) for bits in (8, 16, 32)])


def test_outputs_take_the_time_of_whole_waves_of_tiles() -> None:
    part = toy(multiprocessor_count=3, tile_position_count=64, tile_channel_count=32)
    # 100 positions, 100 channels: 2 x 4 tiles of 2048 outputs, in 3 waves of 3
    assert ms(part, DENSE) == pytest.approx(0.01 + 9 * 2048 * 100 / 1e6)
    many = toy(multiprocessor_count=9, tile_position_count=64, tile_channel_count=32)  # split along the sum
    assert ms(many, DENSE) == pytest.approx(0.01 + 8 * 2048 * 100 / 1e6)
    one = chain(conv(100, 100, side=1), side=1)  # a single vector: no tiles; 40,800 bytes
    assert ms(part, one) == ms(TOY, one)
    depthwise = chain(conv(100, 100, 3, groups=100))
    assert ms(part, depthwise) == ms(TOY, depthwise)
    aligned = toy(
        multiprocessor_count=3, tile_position_count=64, tile_channel_count=32, alignment={"32": (16, 8)}
    )
    assert ms(aligned, DENSE) == pytest.approx(0.01 + 9 * 2048 * 112 / 1e6)


@pytest.mark.parametrize("name", [name for name in ROOFLINES if name.startswith("jetson")])
@pytest.mark.parametrize("side", [7, 14, 56])
def test_a_wider_layer_is_never_faster_on_a_gpu(name: str, side: int) -> None:
    profile = load_profile(name)
    network = chain(conv(64, 512, 3, side=side), conv(512, 256, side=side), side=side)
    widths = np.arange(8, 513, 8)[None, :]
    for bits in (8, 16, 32):
        pairs = np.full((2, widths.shape[1]), bits)
        found = RooflineModel(profile).costs(PolicyBatch(network, widths, pairs, pairs)).latency_ms
        assert (np.diff(found) >= 0).all()
        assert found[-1] > found[0]


def test_a_part_of_the_tiling_is_refused() -> None:
    assert TOY.roofline is not None
    with pytest.raises(ValueError, match="give all of multiprocessor_count, tile_position_count and"):
        Roofline.model_validate({**TOY.roofline.model_dump(), "tile_channel_count": 64})


def test_windows_and_values_are_handled_in_memory() -> None:
    wide = chain(conv(10, 10, 3))  # 9e4 windows' values; 1000 + 1000 + 900 values besides
    base = ms(toy(overlap=0.0), wide)
    assert ms(toy(overlap=0.0, im2col_passes=2.0), wide) - base == pytest.approx(2 * 9000 * 4 / 1e6)
    assert ms(toy(overlap=0.0, value_ns=1.0), wide) - base == pytest.approx(2900e-6)
    both = toy(overlap=0.0, im2col_passes=2.0, value_ns=1.0)
    assert ms(both, wide) - base == pytest.approx(0.072 + (2900 + 2 * 9000) * 1e-6)
    assert ms(toy(overlap=0.0, im2col_passes=2.0), DENSE) == pytest.approx(1.13)  # 1x1: no windows


def test_the_image_is_converted_by_its_bits() -> None:
    part = toy(image_value_ns={"32": 10.0, "8": 1.0})
    assert ms(part, DENSE) - ms(TOY, DENSE) == pytest.approx(10_000 * 10e-6)
    assert ms(part, DENSE, 8) - ms(TOY, DENSE, 8) == pytest.approx(10_000 * 1e-6)
    assert ms(part, DENSE, 16) == pytest.approx(ms(TOY, DENSE, 16))  # not listed: free


def test_tensors_of_layers_cross_memory_in_several_passes() -> None:
    # 80,000 bytes of tensors, 40,000 of weights: 0.12 ms
    base = ms(toy(overlap=0.0), DENSE)
    assert ms(toy(overlap=0.0, tensor_passes=2.5), DENSE) - base == pytest.approx(1.5 * 80_000 / 1e6)
    pooled = Network(
        (*DENSE.nodes, Node("pool", "maxpool", ("l0",), (Segment("l0", 100),), (5, 5))),
        DENSE.layers,
        ("pool",),
    )
    alone = ms(toy(overlap=0.0, tensor_passes=2.5), pooled) - ms(toy(overlap=0.0), pooled)
    assert alone == pytest.approx(1.5 * 80_000 / 1e6)  # a pool reads what it reads once


def gathering(height: int, width: int) -> Network:
    """A layer, and one that reads 40 channels of a size from nowhere."""
    first = chain(conv(10, 10))
    size = (height, width)
    source = Node("l1.input", "input", (), (Segment(None, 40),), size)
    last = Node("l1", "conv2d", ("l1.input",), (Segment(None, 10),), size, layer="l1")
    shape = LayerShape("conv2d", 40, 10, (1, 1), (1, 1), 1, height, width)
    return Network(
        (*first.nodes, source, last), (*first.layers, Layer("l1", shape, None, bias=False)), ("l1",)
    )


@pytest.mark.parametrize(("size", "joined"), [((10, 10), 0), ((5, 5), 0), ((20, 11), 0), ((4, 525), 84_000)])
def test_a_head_that_joins_maps_costs_for_each_value(size: tuple[int, int], joined: int) -> None:
    network = gathering(*size)
    more = ms(toy(gathered_passes=1.0, joined_value_ns=3.0), network) - ms(toy(gathered_passes=1.0), network)
    assert more == pytest.approx(joined * 3e-6)


def test_only_the_head_of_a_yolo_joins_maps() -> None:
    for name, values in (("yolo11n_640", 16 * 4 * 8400), ("yolov8s_640", 16 * 4 * 8400), ("resnet50_224", 0)):
        row = Row("jetson-orin-nano", name, "int8", 1.0, None, None, "")
        assert work(row, roofline_of(row.device)).joined_values.sum() == values, name


def test_tensors_that_a_table_does_not_list_are_gathered() -> None:
    network = gathering(10, 10)
    more = ms(toy(gathered_passes=3.0), network) - ms(TOY, network)
    assert more == pytest.approx(0.01 + 3 * 4000 * 4 / 1e6)
    rows = RooflineModel(toy(gathered_passes=3.0)).layers(network, uniform(network, 32))
    assert [row.name for row in rows] == ["l0", "l1.input", "l1"]


def test_a_change_of_precision_costs_a_kernel_and_its_traffic() -> None:
    network = chain(conv(10, 10), conv(10, 10), conv(10, 10))
    part = toy(conversion_overhead_ms=0.5)

    def extra(*bits: int) -> float:
        policy = Policy.of({f"l{i}": LayerPolicy(0.0, b, b) for i, b in enumerate(bits)})
        cost = RooflineModel(part).cost(network, policy).latency_ms
        return cost - RooflineModel(TOY).cost(network, policy).latency_ms

    assert extra(32, 32, 32) == extra(16, 16, 16) == extra(8, 8, 8) == 0
    assert extra(32, 8, 8) == pytest.approx(0.5 + 1000 * (4 + 1) / 1e6)  # what l0 makes is quantized
    assert extra(8, 8, 32) == pytest.approx(0.5 + 1000 * (1 + 4) / 1e6)  # what l2 reads is decoded
    assert extra(32, 8, 32) == pytest.approx(2 * (0.5 + 5000 / 1e6))
    assert extra(16, 16, 32) == pytest.approx(0.5 + 1000 * (2 + 4) / 1e6)


def test_half_precision_tensors_take_two_bytes() -> None:
    network = chain(conv(10, 10), conv(10, 10))
    cost = RooflineModel(TOY).cost(network, uniform(network, 16))
    assert cost.peak_memory_bytes == 2 * 1000 * 2
    assert RooflineModel(TOY).cost(network, uniform(network, 32)).peak_memory_bytes == 2 * 1000 * 4


def test_activations_that_the_part_fuses_are_free() -> None:
    base = chain(conv(100, 100))
    silu = Node("act", "silu", ("l0",), base.nodes[-1].channels, (10, 10))
    network = Network((*base.nodes, silu), base.layers, ("act",))
    assert ms(TOY, network) == pytest.approx(1.01 + 0.01 + 0.08)
    assert ms(toy(fused_activations=("silu",)), network) == pytest.approx(1.01)
    assert ms(toy(fused_activations=("gelu",)), network) == pytest.approx(ms(TOY, network))


def test_2_4_sparsity_gains_what_was_measured_and_never_2() -> None:
    for name in ROOFLINES:
        roofline = load_profile(name).roofline
        assert roofline is not None
        gain = sparse_gain(LayerPolicy(0.5, 8, 8, "2:4"), roofline)
        assert gain == (roofline.two_four_gain or 1.0)
        assert 1.0 <= gain <= 1.47
    part = toy(two_four_gain=1.35)
    policy = Policy.uniform(DENSE, LayerPolicy(0.5, 32, 32, "2:4"))
    assert RooflineModel(part).cost(DENSE, policy).latency_ms == pytest.approx(0.01 + 1 / 1.35)
    assert RooflineModel(TOY).cost(DENSE, policy).latency_ms == pytest.approx(1.01)  # no unit for it


def test_zeros_are_priced_alike_one_by_one_and_in_batches() -> None:
    """What a cut leaves in no whole groups of four gains nothing."""
    part = toy(two_four_gain=1.35, unstructured_break_even=0.5, unstructured_floor=0.1)
    network = chain(conv(3, 16), conv(16, 16), conv(16, 20), conv(20, 8))
    names = network.layer_names
    two_four, few, most = (("2:4", 0.5),), (("unstructured", 0.3),), (("unstructured", 0.9),)
    policies = [
        Policy.of({name: LayerPolicy(cut if i < 3 else 0.0, more=more[i]) for i, name in enumerate(names)})
        for cut, more in (
            (0.0, ((), (), (), ())),
            (0.0, (few, (), two_four, two_four)),
            (0.0, (most, most, (*most, *two_four), two_four)),
            (0.5, (most, (), two_four, two_four)),  # 8 -> 10 -> 8: the last reads 10
            (0.5, ((), (), (), few)),
        )
    ]  # fmt: skip
    model = RooflineModel(part)
    together = model.costs(PolicyBatch.of(network, policies))
    alone = [model.cost(policy.cut(network), policy) for policy in policies]
    assert together.latency_ms == pytest.approx([cost.latency_ms for cost in alone])
    assert together.energy_mj == pytest.approx([cost.energy_mj for cost in alone])
    kernels = [{one.name: one.latency_ms for one in model.layers(p.cut(network), p)} for p in policies]
    gain = {k: (kernels[0][k] - 0.01) / (kernels[2][k] - 0.01) for k in names}
    nine = 1 / (0.1 + 0.9 * 0.1 / 0.5)
    assert [gain[name] for name in names] == pytest.approx([nine, nine, nine, 1.35])
    dense = Policy.of({name: LayerPolicy(0.5 if i < 3 else 0.0) for i, name in enumerate(names)})
    cut = {one.name: one.latency_ms for one in model.layers(dense.cut(network), dense)}
    assert kernels[3]["l3"] == cut["l3"]
    assert kernels[3]["l2"] < cut["l2"]
    assert kernels[4]["l3"] > cut["l3"]  # slower than dense below the break-even


def test_unstructured_sparsity_pays_beyond_its_break_even() -> None:
    roofline = load_profile("x86-avx512-vnni").roofline
    assert roofline is not None

    def gain(sparsity: float) -> float:
        return sparse_gain(LayerPolicy(sparsity, 32, 32, "unstructured"), roofline)

    assert gain(roofline.unstructured_break_even or 0.0) == pytest.approx(1.0)
    assert gain(0.4) < gain(0.5) < 1.0 < gain(0.6) < gain(0.7) < gain(0.9)
    assert gain(0.0) == 1.0  # dense
    # whole ResNet-50 networks with DeepSparse (IST-DASLab/spdy): not what the two numbers were read from
    assert gain(0.5) == pytest.approx(0.92, rel=0.1)
    assert gain(0.7) == pytest.approx(1.48, rel=0.1)


def test_waiting_for_memory_takes_another_power() -> None:
    part = toy(overlap=0.0, memory_power_w=0.5).model_copy(update={"power_w": 2.0})
    assert RooflineModel(part).cost(DENSE, uniform(DENSE, 32)).energy_mj == pytest.approx(2 * 1 + 0.5 * 0.13)


@pytest.mark.parametrize("name", ROOFLINES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_many_policies_at_once_cost_what_each_costs(name: str, seed: int) -> None:
    profile = load_profile(name)
    network = chain(conv(3, 24, 3), conv(24, 24, 3, groups=24), conv(24, 40), conv(40, 10, 3))
    layers = list(network.layers)
    layers[1] = replace(layers[1], group="l0")  # a depthwise layer is cut with its input
    nodes = list(network.nodes)
    nodes[2] = replace(nodes[2], channels=(Segment("l0", 24),))
    network = Network(tuple(nodes), tuple(layers), network.outputs)
    rng = np.random.default_rng(seed)
    policies = []
    for _ in range(5):
        cut = {group: float(rng.choice([0.0, 0.25, 0.5])) for group in ("l0", "l2")}
        pairs = [profile.supported[i] for i in rng.integers(0, len(profile.supported), 4)]
        policies.append(
            Policy.of(
                {
                    layer.name: LayerPolicy(cut.get(layer.group or "", 0.0), *pair)
                    for layer, pair in zip(network.layers, pairs, strict=True)
                }
            )
        )
    multiple = profile.channel_multiple
    model = RooflineModel(profile)
    found = model.costs(PolicyBatch.of(network, policies, multiple))
    for index, policy in enumerate(policies):
        cost = model.cost(network.resized(policy.channels(network, multiple)), policy)
        assert found.latency_ms[index] == pytest.approx(cost.latency_ms)
        assert found.energy_mj[index] == pytest.approx(cost.energy_mj)
        assert found.size_bytes[index] == pytest.approx(cost.size_bytes)
        assert found.peak_memory_bytes[index] == pytest.approx(cost.peak_memory_bytes)
        assert found.fits[index] == cost.fits


@pytest.mark.parametrize("name", ROOFLINES)
def test_ten_thousand_policies_a_second(name: str) -> None:
    profile = load_profile(name)
    network = chain(conv(3, 64, 3), *(conv(64, 64, 3) for _ in range(30)))
    rng = np.random.default_rng(0)
    pairs = np.array(profile.supported)[rng.integers(0, len(profile.supported), (31, 2000))]
    channels = rng.choice([16, 32, 48, 64], (len(network.groups), 2000))
    seconds = []
    for _ in range(3):
        batch = PolicyBatch(network, channels, pairs[..., 0], pairs[..., 1])
        started = time.perf_counter()
        RooflineModel(profile).costs(batch)
        seconds.append(time.perf_counter() - started)
    assert 2000 / min(seconds) > 10_000


@pytest.mark.parametrize("name", ROOFLINES)
def test_a_profile_says_calibrated_only_where_nothing_in_its_model_is_assumed(name: str) -> None:
    profile = load_profile(name)
    statuses = {s.status for path, s in profile.sources.items() if path.startswith("roofline")}
    assert RooflineModel(profile).kind == (
        "calibrated" if "calibrated" in statuses and "assumed" not in statuses else "modelled"
    )
