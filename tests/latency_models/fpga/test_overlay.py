"""An array of 2 pixels x 4 x 4 channels at 1 MHz: a cycle is 0.001 ms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.compression.graph import LayerShape
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import load_profile, profile_names
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.fpga.overlay import OverlayModel
from leanfront.latency_models.registry import model_of
from tests.latency_models.fpga.fpga_parts import chain, conv, overlay, uniform

OVERLAYS = [name for name in profile_names() if load_profile(name).model == "overlay"]


def cycles(network, **changes) -> float:
    return OverlayModel(overlay(**changes)).cost(network, uniform(network)).latency_ms * 1e3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (conv(4, 4, 2), 2),  # 4 positions / 2
        (conv(5, 4, 2), 4),  # a fifth input channel takes a step of its own
        (conv(4, 5, 2), 4),  # so does a fifth output
        (conv(4, 4, 3), 5),  # 9 positions: the last pair is half empty
        (conv(4, 4, 2, kernel=3), 18),
        (conv(4, 4, 2, kernel=3, groups=4), 36),  # depthwise: 4 positions x 9, four channels at a time
        (LayerShape("linear", 8, 8), 4),  # one position in a tile of 2
    ],
)
def test_cycles_of_a_layer(shape, expected):
    assert cycles(chain(shape)) == pytest.approx(expected)


def test_kernel_columns_share_idle_lanes():
    # one input channel of 4 lanes: 3 columns fit into one step; 3 rows x 2 tiles
    assert cycles(chain(conv(1, 4, 2, kernel=3))) == pytest.approx(18)
    assert cycles(chain(conv(1, 4, 2, kernel=3)), folds_kernel_width=True) == pytest.approx(6)


def test_channels_are_padded_to_their_multiple():
    assert cycles(chain(conv(3, 4, 2)), input_multiple=8) == pytest.approx(4)


def test_efficiency_and_overheads():
    network = chain(conv(), conv())
    assert cycles(network, efficiency=0.5) == pytest.approx(8)
    assert cycles(network, layer_overhead_ms=0.01, call_overhead_ms=0.1) == pytest.approx(4 + 20 + 100)


def test_weights_ahead_or_at_use():
    network = chain(conv(4, 4, 4))  # 8 tiles of 1 cycle; 16 bytes of weights
    slow = {"bandwidth_bytes_per_ms": 1e3}  # a byte per cycle
    assert cycles(network, **slow) == pytest.approx(16)  # loading hides computing
    assert cycles(network, weights="at_use", **slow) == pytest.approx(16 + 7)  # the first tile waits
    there = {"weights": "at_use", "weight_memory_bytes": 16.0}
    assert cycles(network, **there, **slow) == pytest.approx(8)
    assert cycles(network, **{**there, "weight_memory_bytes": 15.0}, **slow) == pytest.approx(23)


def test_tensors_outside():
    network = chain(conv(4, 4, 4))
    # 64 values in, 64 out, 16 weights
    assert cycles(network, features_outside=True, bandwidth_bytes_per_ms=1e3) == pytest.approx(144)


def test_storing_bounds_short_tiles():
    assert cycles(chain(conv(4, 4, 4)), write_pixels_per_ms=1e3) == pytest.approx(16)  # 1 position per cycle


def test_pools_and_other_operations():
    network = chain(conv(4, 4, 4), after=(("maxpool", 2, 2), ("relu", 2, 1), ("global_avgpool", 1, 1)))
    # 8; 4 windows x 4 values x 4 channels; relu is fused nowhere here: 16 values; 16 values averaged
    assert cycles(network) == pytest.approx(8 + 16 * 4 + 16 + 16)


def test_squeeze_and_excite():
    squeeze = chain(conv(4, 8, 4), LayerShape("conv2d", 8, 8), conv(8, 4, 4))
    plain = cycles(squeeze)
    assert cycles(squeeze, pooled_bytes_per_ms=1e3) == pytest.approx(plain + 8 * 16)  # 8 channels x 16
    head = chain(conv(4, 8, 4), LayerShape("conv2d", 8, 8))  # nothing wide comes after it
    assert cycles(head, pooled_bytes_per_ms=1e3) == pytest.approx(cycles(head))


def test_layers_add_up_and_energy():
    network = chain(conv(4, 8, 4), conv(8, 4, 4), after=(("maxpool", 2, 2),))
    model = OverlayModel(overlay(call_overhead_ms=0.5))
    cost, rows = model.cost(network, uniform(network)), model.layers(network, uniform(network))
    assert sum(row.latency_ms for row in rows) + 0.5 == pytest.approx(cost.latency_ms)
    assert cost.energy_mj == pytest.approx(2.0 * cost.latency_ms)
    assert [row.name for row in rows] == ["layer0", "layer1", "op0"]
    parts = OverlayModel(overlay(power={"idle_w": 1.0, "mac_pj": 1e6, "outside_byte_pj": 0.0}))
    # 1 W at rest; 1 uJ for each of 1024 MACs at 8 bits
    assert parts.cost(network, uniform(network)).energy_mj == pytest.approx(
        parts.cost(network, uniform(network)).latency_ms + network.macs * 1e-3
    )


def test_what_the_array_cannot_run():
    network = chain(conv(4, 4, 2, kernel=3, groups=4))
    with pytest.raises(TableError, match=r"depthwise.*layer0"):
        cycles(network, depthwise_pixel_parallel=None)
    with pytest.raises(TableError, match=r"layer0.*32.*it can: "):
        OverlayModel(overlay()).cost(chain(conv()), uniform(chain(conv()), 32, 32))


def test_what_has_no_formula_reads_and_writes_its_values_one_after_another():
    network = chain(conv(4, 4, 2), after=(("other", 2, 1),))
    assert cycles(network) == pytest.approx(2 + 16 + 16)
    assert [kernel.name for kernel in OverlayModel(overlay()).unknown(network)] == ["op0"]
    assert OverlayModel(overlay()).unknown(chain(conv(), after=(("gelu", 2, 1),))) == ()


def _with_last(network, **fields):
    *nodes, last = network.nodes
    return replace(network, nodes=(*nodes, replace(last, **fields)))


def test_weights_of_no_layer_are_floats():
    network = _with_last(chain(conv(4, 4, 2), after=(("recurrent", 2, 1),)), macs=4 * 16, held_bytes=64)
    # 4 positions / 2, 4 products of each of 4 outputs, in (32 / 8) ** 2 passes
    assert cycles(network) == pytest.approx(2 + 2 * 16)
    slow = {"bandwidth_bytes_per_ms": 1e3}  # a byte per cycle; 16 weights of 8 bits, 16 of 32
    assert cycles(network, **slow) == pytest.approx(16 + 64)
    parts = OverlayModel(overlay(power={"idle_w": 0.0, "mac_pj": 1e6, "outside_byte_pj": 0.0}))
    # 64 of the layer at 8 bits, 64 at 32
    assert parts.cost(network, uniform(network)).energy_mj == pytest.approx(64e-3 + 4 * 64e-3)


def test_a_product_of_two_tensors_is_computed_as_a_layer_is():
    plain = chain(conv(4, 8, 2), after=(("matmul", 2, 1),))
    network = _with_last(plain, inputs=("layer0", "layer0"))
    # depth 2: 2 pairs of positions x 2 blocks of outputs x 1 step; the same for the layer
    assert cycles(network) == pytest.approx(4 + 4)
    assert OverlayModel(overlay()).unknown(network) == ()


def test_of_what_is_stored_besides_weights_all_is_read_or_what_is_looked_up():
    slow = {"bandwidth_bytes_per_ms": 1e3}
    each = {op: chain(conv(), after=((op, 2, 1),)) for op in ("other", "embedding")}
    more = {
        op: cycles(_with_last(network, held_bytes=1000), **slow) - cycles(network, **slow)
        for op, network in each.items()
    }
    assert more == {"other": pytest.approx(1000), "embedding": pytest.approx(4 * 16)}


@pytest.mark.parametrize("name", OVERLAYS)
@given(channels=st.tuples(st.integers(1, 64), st.integers(1, 64)), side=st.integers(1, 32))
def test_wider_layers_take_no_less(name, channels, side):
    model = model_of(load_profile(name))

    def ms(read, out):
        network = chain(conv(read, out, side, kernel=3))
        return model.cost(network, uniform(network)).latency_ms

    assert ms(*channels) <= ms(channels[0] + 1, channels[1]) + 1e-12
    assert ms(*channels) <= ms(channels[0], channels[1] + 1) + 1e-12


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_batch_costs_what_its_policies_do(name):
    network = chain(conv(3, 32, 8, kernel=3), conv(32, 48, 8), conv(48, 10, 8), after=(("maxpool", 4, 2),))
    model = model_of(load_profile(name))
    policies = [
        Policy.of(
            {
                layer.name: LayerPolicy(share if layer.group else 0.0, 8, 8)
                for layer, share in zip(network.layers, shares, strict=True)
            }
        )
        for shares in ((0.0, 0.0, 0.0), (0.25, 0.5, 0.0), (0.5, 0.25, 0.0))
    ]
    found = model.costs(PolicyBatch.of(network, policies, 8))
    for index, policy in enumerate(policies):
        alone = model.cost(network.resized(policy.channels(network, 8)), policy)
        for name_ in ("latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes", "fits"):
            assert np.isclose(getattr(found, name_)[index], getattr(alone, name_)), name_


def test_peak_memory_is_that_of_bytes():
    network = chain(conv(4, 8, 4))
    assert OverlayModel(overlay()).cost(network, uniform(network)).peak_memory_bytes == 16 * (4 + 8)
    assert not OverlayModel(overlay(memory_bytes=100)).cost(network, uniform(network)).fits
