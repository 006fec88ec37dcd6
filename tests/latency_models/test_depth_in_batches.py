"""Batches whose policies leave branches out are priced as the whole network: as each network that is left."""

from dataclasses import replace
from functools import cache
from itertools import product

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pricing_depth import mobilenet_v2, resnet50, vit_b16, vit_b16_captured
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.latency_models.cost import CostArrays, costs_by_depth, costs_in_portions
from leanfront.latency_models.fpga.overlay import OverlayModel
from leanfront.latency_models.memory import peak_bytes, tensor_bytes, working_bytes
from leanfront.latency_models.roofline.model import RooflineModel
from tests.residual_networks import RESIDUAL, traced_network
from tests.variants import some

PROFILES = ("toy", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "x86-avx512-vnni")
"""With and without half precision, fused activations, conversions, tiles, passes over windows."""

SHAPES = {
    "resnet50": lambda: resnet50(32),
    "mobilenet_v2": lambda: mobilenet_v2(32),
    "vit": lambda: vit_b16(64, 48, 3, 4),
    "vit captured": lambda: vit_b16_captured(64, 48, 3, 4),
}


@cache
def network_of(name: str) -> Network:
    return SHAPES[name]() if name in SHAPES else traced_network(name).network


def drawn(network: Network, profile: HardwareProfile, count: int, seed: int) -> PolicyBatch:
    rng = np.random.default_rng(seed)
    sizes = np.array(list(network.group_sizes.values()), dtype=np.int64).reshape(-1, 1)
    channels = rng.integers(1, sizes + 1, (len(sizes), count))
    pairs = np.array(profile.supported)[rng.integers(0, len(profile.supported), (len(network.layers), count))]
    left_out = rng.random((len(network.branches), count)) < rng.choice([0.1, 0.5, 0.9], count)
    return PolicyBatch(network, channels, pairs[..., 0], pairs[..., 1]).leaving_out(left_out)


def alike(ours: CostArrays, theirs: CostArrays) -> None:
    for name in ("latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes", "fits"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(("name", "profile"), some(product([*RESIDUAL, *SHAPES], PROFILES), 13))
def test_prices_are_those_of_what_is_left(name: str, profile: str) -> None:
    model = RooflineModel(load_profile(profile))
    batch = drawn(network_of(name), model.profile, 60, seed=len(name))
    assert len(list(batch.depths())) > 1
    alike(model.costs(batch), costs_by_depth(batch, model._costs))


BETWEEN = ("relu", "relu6", "hardswish", "batchnorm", "softmax", "identity", "pad", "other")


class Blocks:
    """A random network of residual blocks, some within others; what stays may be of another tensor."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.size = rng, (4, 4)
        self.nodes = [Node("x", "input", (), (Segment(None, 3),), self.size)]
        self.layers: list[Layer] = []

    def layer(self, source: Node, group: str | None) -> Node:
        name, out = f"layer{len(self.nodes)}", 8 if group else 5
        shape = LayerShape("conv2d", source.width, out, (1, 1), out_height=4, out_width=4)
        self.layers.append(Layer(name, shape, group, bool(self.rng.integers(2))))
        self.nodes.append(Node(name, "conv2d", (source.name,), (Segment(group, out),), self.size, layer=name))
        return self.nodes[-1]

    def node(self, op: str, *reads: Node) -> Node:
        names = tuple(read.name for read in reads)
        self.nodes.append(Node(f"{op}{len(self.nodes)}", op, names, reads[0].channels, self.size))
        return self.nodes[-1]

    def perhaps(self, source: Node, share: float = 0.4) -> Node:
        return self.node(str(self.rng.choice(BETWEEN)), source) if self.rng.random() < share else source

    def block(self, source: Node, depth: int) -> Node:
        """A sum of what stays and a branch, in which there may be a block."""
        inner = self.perhaps(source)
        for _ in range(self.rng.integers(1, 3)):
            inner = self.perhaps(self.layer(inner, str(self.rng.choice(["a", "b"]))))
            if depth and self.rng.random() < 0.5:
                inner = self.block(inner, depth - 1)
        goes = self.perhaps(self.layer(inner, source.channels[0].group), 0.2)
        stays = self.perhaps(source, 0.3)
        order = (goes, stays) if self.rng.integers(2) else (stays, goes)
        return self.perhaps(self.perhaps(self.node("add", *order)), 0.2)

    def network(self) -> Network:
        last = self.perhaps(self.layer(self.nodes[0], "a"))
        for _ in range(self.rng.integers(1, 4)):
            last = self.block(last, 1)
        self.layer(last, None)
        return Network(tuple(self.nodes), tuple(self.layers), (self.nodes[-1].name,))


@pytest.mark.parametrize("profile", ["zcu102-dpu", "systolic-m32p32"])
@pytest.mark.parametrize("name", [*RESIDUAL, *SHAPES])
def test_prices_on_an_array_are_those_of_what_is_left(name: str, profile: str) -> None:
    model = OverlayModel(load_profile(profile))
    batch = drawn(network_of(name), model.profile, 60, seed=len(name))
    if profile == "systolic-m32p32" and name in ("Inverted", "mobilenet_v2"):
        pytest.skip("the array has no unit for depthwise layers")
    alike(model.costs(batch), costs_by_depth(batch, model._costs))


@pytest.mark.parametrize("profile", ["raspberry-pi-4", "jetson-orin-nano"])
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_of_any_network(profile: str, seed: int) -> None:
    network = Blocks(np.random.default_rng(seed)).network()
    model = RooflineModel(load_profile(profile))
    batch = drawn(network, model.profile, 12, seed)
    alike(model.costs(batch), costs_by_depth(batch, model._costs))


def kernel_by_kernel(model: RooflineModel, batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
    """(n,): latency and energy as the sums of what each kernel takes by itself."""
    latency_ms, energy_mj = np.zeros((2, batch.count))
    for _, _, found in model._times(model._kernels(batch)):
        latency_ms += found.latency_ms
        energy_mj += model._energy_mj(found.latency_ms, found.compute_ms)
    return latency_ms, energy_mj


def sums_up(network: Network, profile: str, seed: int) -> None:
    """Nowhere but where all policies have the same kernels."""
    model = RooflineModel(load_profile(profile))
    batch = drawn(network, model.profile, 30, seed)
    batch = batch.part(
        np.flatnonzero(~batch.other_kernels(model._kernels(batch).roofline.fused_activations or ()))
    )
    found, (latency_ms, energy_mj) = model._costs(batch), kernel_by_kernel(model, batch)
    np.testing.assert_allclose(found.latency_ms, latency_ms, rtol=1e-9)
    np.testing.assert_allclose(found.energy_mj, energy_mj, rtol=1e-9)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [*RESIDUAL, *SHAPES])
def test_what_is_added_up_before_it_is_priced_is_what_each_kernel_takes(name: str, profile: str) -> None:
    sums_up(network_of(name), profile, len(name))


@pytest.mark.parametrize("profile", PROFILES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_so_it_is_of_any_network(profile: str, seed: int) -> None:
    sums_up(Blocks(np.random.default_rng(seed)).network(), profile, seed)


@pytest.mark.parametrize("profile", PROFILES)
def test_weights_by_themselves_are_moved_in_their_own_bits(profile: str) -> None:
    wide = (Segment(None, 8),)
    matrix, shape = LayerShape("weights", 8, 8), LayerShape("linear", 8, 8)
    nodes = (
        Node("x", "input", (), wide),
        Node("w", "weights", (), wide, (8,), layer="w"),
        Node("turned", "transpose", ("w",), wide, (8,)),
        Node("a", "linear", ("x",), wide, layer="a"),
        Node("table", "softmax", ("turned",), wide, (8,), held_bytes=100),
        Node("y", "matmul", ("a", "table"), wide),
    )
    network = Network(nodes, (Layer("w", matrix, bias=False), Layer("a", shape)), ("y",))
    sums_up(network, profile, 0)
    model = RooflineModel(load_profile("toy"))
    batch = drawn(network, model.profile, 30, 0)
    whole = batch.weight_bits.copy()
    whole[0] = 32
    saved = model._costs(replace(batch, weight_bits=whole)).latency_ms - model._costs(batch).latency_ms
    np.testing.assert_allclose(saved, 64 * (32 - batch.weight_bits[0]) / 8 / 1e6)  # read once


@settings(max_examples=100, deadline=None)
@hypothesis.example(seed=68031)  # without a branch an average has no negative values
@given(seed=st.integers(0, 100_000))
def test_tensors_and_precision_of_any_network(seed: int) -> None:
    """What a measured part asks of a batch."""
    network = Blocks(np.random.default_rng(seed)).network()

    def memory(batch: PolicyBatch) -> CostArrays:
        peak = peak_bytes(batch, tensor_bytes(batch))
        held = batch.bits.sum(axis=0).astype(np.float64)
        return CostArrays(peak, held, batch.size_bytes().astype(np.float64), peak > 0, peak)

    batch = drawn(network, load_profile("raspberry-pi-4"), 12, seed)
    alike(costs_in_portions(batch, memory, 5), costs_by_depth(batch, memory))
    working = working_bytes(batch)
    assert all((working[row] >= 0).all() for row in range(len(batch.kernels)))


def kept_apart() -> Network:
    """A layer whose ReLU and a branch read it: without the branch the ReLU is part of the layer."""
    wide, size = (Segment("a", 8),), (4, 4)
    shape = LayerShape("conv2d", 8, 8, (1, 1), out_height=4, out_width=4)
    first = replace(shape, in_channels=3)
    nodes = (
        Node("x", "input", (), (Segment(None, 3),), size),
        Node("a", "conv2d", ("x",), wide, size, layer="a"),
        Node("relu", "relu", ("a",), wide, size),
        Node("b", "conv2d", ("a",), wide, size, layer="b"),
        Node("sum", "add", ("relu", "b"), wide, size),
        Node("y", "conv2d", ("sum",), (Segment(None, 8),), size, layer="y"),
    )
    layers = (Layer("a", first, "a"), Layer("b", shape, "a"), Layer("y", shape))
    return Network(nodes, layers, ("y",))


def test_where_a_branch_kept_two_kernels_apart_what_is_left_is_priced() -> None:
    network, model = kept_apart(), RooflineModel(load_profile("raspberry-pi-4"))
    assert [branch.name for branch in network.branches] == ["b"]
    batch = drawn(network, model.profile, 40, 0)
    assert batch.left_out is not None
    assert batch.other_kernels().tolist() == batch.left_out[0].tolist()
    assert 0 < batch.left_out.sum() < 40
    alike(model.costs(batch), costs_by_depth(batch, model._costs))


def test_none_of_the_usual_networks_is_priced_network_by_network() -> None:
    for name in SHAPES:
        batch = drawn(network_of(name), load_profile("raspberry-pi-4"), 200, 0)
        assert not batch.other_kernels(("hardswish", "gelu")).any()
