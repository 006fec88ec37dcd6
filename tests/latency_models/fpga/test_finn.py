"""The folding that a cost was computed with, as FINN reads it."""

import math
from itertools import product

import pytest

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile, profile_names
from leanfront.latency_models.cost import LayerEngine
from leanfront.latency_models.fpga.finn import folding, named, next_divisor
from leanfront.latency_models.registry import model_of
from tests.networks import ALL, traced_network
from tests.variants import some

DATAFLOWS = [name for name in profile_names() if load_profile(name).model == "dataflow"]


def engine(layer: str, pe: int, simd: int, **other: object) -> LayerEngine:
    rest = {
        "cycles": 1, "outputs": 16, "products": 72, "read": 8, "weight_bits": 4, "activation_bits": 4,
        "depthwise": False, "windowed": True,
    }  # fmt: skip
    return LayerEngine(layer, pe, simd, **(rest | other))  # type: ignore[arg-type]


def test_the_next_divisor() -> None:
    assert [next_divisor(12, least) for least in (1, 2, 5, 7, 12, 13)] == [1, 2, 6, 12, 12, 12]


def test_nodes_are_called_as_finn_calls_them() -> None:
    engines = [
        engine("a", 5, 3),
        engine("b", 2, 20, weight_bits=2),
        engine("c", 3, 9, depthwise=True, outputs=8, products=9),
        engine("d", 7, 64, windowed=False, outputs=10, products=64, read=64),
    ]
    found = folding(engines, load_profile("zynq-7020"))
    assert found == {
        "Defaults": {},
        "ConvolutionInputGenerator_rtl_0": {"SIMD": 4, "parallel_window": 0},
        "MVAU_rtl_0": {"PE": 8, "SIMD": 3},
        "ConvolutionInputGenerator_rtl_1": {"SIMD": 8, "parallel_window": 1},
        "MVAU_hls_0": {"PE": 2, "SIMD": 24},
        "ConvolutionInputGenerator_rtl_2": {"SIMD": 8, "parallel_window": 1},
        "VVAU_hls_0": {"PE": 4, "SIMD": 9},
        "MVAU_rtl_1": {"PE": 10, "SIMD": 64},
    }
    # DSP58 blocks have depthwise engines in RTL
    assert named(engines, load_profile("xqrvc1902"))["c"].node == "VVAU_rtl_0"


@pytest.mark.parametrize(("name", "profile"), some(product(ALL, DATAFLOWS), 17))
def test_engines_are_those_of_the_cost(name: str, profile: str) -> None:
    network = traced_network(name).network
    policy = Policy.uniform(network, LayerPolicy(0.25, 4, 8))
    cut = policy.cut(network)
    model = model_of(load_profile(profile))
    engines = model.engines(cut, policy)
    assert [one.layer for one in engines] == [layer.name for layer in cut.layers]
    for one in engines:
        shape = cut.layer[one.layer].shape
        assert one.outputs * one.products == shape.weight_count
        assert (one.weight_bits, one.activation_bits) == (4, 8)
        assert 1 <= one.pe <= one.outputs
        assert 1 <= one.simd <= one.products
        steps = shape.macs // shape.weight_count
        assert one.cycles >= steps * math.ceil(one.outputs / one.pe) * math.ceil(one.products / one.simd)
        node = named(engines, model.profile)[one.layer]
        assert one.outputs % node.pe == 0
        assert one.products % node.simd == 0
        assert node.pe >= one.pe
        assert node.simd >= one.simd
    # the slowest of them lies within the latency, which is for the whole pipeline
    cost = model.cost(cut, policy)
    assert max(one.cycles for one in engines) <= cost.latency_ms * 1e3 * 1e3  # at most 1 GHz


def test_other_parts_have_none() -> None:
    network = traced_network("Chain").network
    policy = Policy.uniform(network, LayerPolicy(0.0, 8, 8))
    assert model_of(load_profile("toy")).engines(network, policy) == ()
    assert model_of(load_profile("zcu102-dpu")).engines(network, policy) == ()
