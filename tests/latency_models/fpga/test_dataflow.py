"""Pipelines on a part of round numbers: 1 MHz, 1000 DSP blocks of one 8-bit product, 1024-byte memories."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import load_profile, profile_names
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.fpga.dataflow import STEPS_PER_DOUBLING, DataflowModel
from leanfront.latency_models.fpga.design import design_of, engines_at, least_fits
from leanfront.latency_models.fpga.fit import misfit
from leanfront.latency_models.fpga.folding import folding
from leanfront.latency_models.fpga.kernels import works
from leanfront.latency_models.fpga.pipeline import Stage, first_window, stream
from leanfront.latency_models.fpga.radiation import clock_mhz
from leanfront.latency_models.fpga.resources import (
    Held,
    multiplier_luts,
    sum_bits,
    threshold_bits,
    threshold_luts,
)
from leanfront.latency_models.layer_table import COLUMNS, read_layer_table
from leanfront.latency_models.registry import model_of
from tests.latency_models.fpga.fpga_parts import BLOCKS, chain, conv, dataflow, uniform

DATAFLOWS = [name for name in profile_names() if load_profile(name).model == "dataflow"]


def stage(inputs, cycles, positions, needed=0.0):
    return Stage(inputs, np.array([float(cycles)]), float(positions), needed)


def last(*stages, input_cycles=0.0):
    return float(stream(list(stages), np.array([input_cycles])).last.max())


def test_first_window():
    assert first_window((1, 1), (0, 0), 8, 64) == 0
    assert first_window((3, 3), (1, 1), 8, 65) == (8 + 1) / 64  # one row and one position
    assert first_window((3, 3), (0, 0), 8, 65) == (16 + 2) / 64
    assert first_window((7, 7), (0, 0), 2, 4) == 1


def test_a_pipeline_is_between_its_slowest_stage_and_the_sum():
    assert last(stage((), 100, 10)) == 100
    # the second starts when the first position (10 cycles) is there, and keeps pace from then on
    assert last(stage((), 100, 10), stage((0,), 100, 10)) == 110
    assert last(stage((), 100, 10), stage((0,), 100, 10, needed=1.0)) == 200  # it waits for everything
    assert last(stage((), 100, 10), stage((0,), 10, 10)) == 101  # the last position, and one of its own
    assert last(stage((), 100, 10), stage((0,), 400, 10)) == 410
    assert last(stage((), 100, 10), input_cycles=300) == 310


def test_branches_wait_for_each_other():
    stages = [stage((), 100, 10), stage((0,), 100, 10, needed=0.5), stage((0, 1), 100, 10)]
    times = stream(stages, np.zeros(1))
    # the long branch begins at 10 + 0.5 x 90 = 55 and gives its first position at 65; the short one at 10
    assert times.first[:, 0].tolist() == [10, 65, 75]
    assert times.waiting[2, 0] == pytest.approx((65 - 10) / (155 - 10))


@pytest.mark.parametrize(
    ("target", "multipliers", "cycles"),
    [
        (2304, 1, 2304),  # 4 positions x 16 outputs x 36 products
        (1152, 2, 1152),
        (144, 16, 144),  # 36 cycles for each position: all outputs at a time, their products one by one
        (4, 576, 4),
        (1, 576, 4),  # no faster than one cycle per position
    ],
)
def test_folding(target, multipliers, cycles):
    found = one_folding(4, 16, 2, 3, target)
    assert float(found.slots[0]) == multipliers
    assert 4 * cycles_of(found, 16, 36) == cycles


def one_folding(read, out, side, kernel, pace, packed=1.0, unrolled=np.inf):
    """Of one convolution at a pace in cycles."""
    one = np.ones(1)
    budget = np.maximum(1.0, np.floor(one * pace / side**2))
    return folding(one * out, one * read * kernel**2, one * read, one * packed, one * unrolled, budget)


def with_zeros(network, share, bits=(8, 8)):
    more = (("unstructured", share),) if share else ()
    return Policy.uniform(network, LayerPolicy(0.0, *bits, more=more))


def test_zeros_of_an_unrolled_engine_take_no_multipliers():
    network = chain(conv(4, 4, 2, 3))  # 144 products at each of 4 positions
    few = {**BLOCKS, "multiplier": {"name": "DSP", "count": 20, "macs": {"8": 1.0}}}
    few["logic"] = {"name": "LUT", "count": 1}
    found = {}
    for name in (False, True):
        model = DataflowModel(dataflow(resources=few, unrolled_zeros=name))
        for share in (0.0, 0.5, 0.9):
            policy = with_zeros(network, share)
            _, design = model.design(PolicyBatch.one(network, policy))
            assert design.fits.all()
            found[name, share] = design.cycles.max(), design.resources["DSP"][0], design.resources["RAM"][0]
    # 20 DSP blocks: 18 products at a time, 8 cycles for each position, whatever is 0
    assert {found[False, share][:2] for share in (0.0, 0.5, 0.9)} == {(32.0, 18.0)}
    assert found[True, 0.0] == found[True, 0.5] == found[False, 0.0]  # 144 and 72 do not fit at once
    # 15 of 144 weights are there, all at once; none of them in memory, where windows stay
    assert found[True, 0.9][:2] == (4.0, 15.0)
    assert found[True, 0.9][2] < found[False, 0.9][2]


def test_an_unrolled_engine_is_taken_at_any_pace_at_which_it_needs_fewer_multipliers():
    assert one_folding(4, 16, 2, 3, 8, unrolled=58).slots == 58  # 576 in two cycles: 288
    assert one_folding(4, 16, 2, 3, 8, unrolled=58).held == 0
    assert one_folding(4, 16, 2, 3, 80, unrolled=58).slots == 32  # 20 cycles for each position
    assert one_folding(4, 16, 2, 3, 80, unrolled=58).held == 1


def cycles_of(found, out, products):
    return float((np.ceil(out / found.pe) * np.ceil(products / found.simd))[0])


@given(
    st.integers(1, 64), st.integers(1, 64), st.integers(1, 16), st.sampled_from([1, 3, 5]),
    st.floats(0, 20), st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0]),
)  # fmt: skip
def test_an_engine_keeps_its_pace(read, out, side, kernel, step, packed):
    pace = 2.0**step
    found = one_folding(read, out, side, kernel, pace, packed)
    cycles = side**2 * cycles_of(found, out, read * kernel**2)
    assert cycles <= max(pace, side * side) + 1e-9  # at least a cycle per position
    assert float(found.slots[0]) * cycles >= read * out * kernel**2 * side**2 - 1e-6
    assert float(found.slots[0]) >= float((found.pe * found.simd)[0])
    slower = one_folding(read, out, side, kernel, pace * 1.3, packed)
    assert slower.slots[0] <= found.slots[0]


def test_memory_blocks():
    block = load_profile("zynq-7020").resources.memory["BRAM36"]

    def taken(values, bits, at_once):
        return float(Held.of(block, values, bits).blocks(at_once))

    assert taken(2048, 8, 1) == 0.5  # half a block: 512 words of four
    assert taken(2049, 8, 1) == 1
    assert taken(2048, 8, 4) == 0.5
    assert taken(2048, 8, 5) == 1  # two words beside each other
    assert taken(12 * 512, 3, 12) == 0.5
    assert taken(0, 8, 0) == 0
    small = dataflow().resources.memory["RAM"]  # 8 bits x 1024
    assert float(Held.of(small, 1024, 9).blocks(1)) == 2  # two beside each other for each value


@given(st.integers(1, 10**6), st.integers(1, 9), st.integers(1, 500), st.integers(1, 500))
def test_memory_never_grows_when_less_is_read_at_a_time(values, bits, one, other):
    for name in DATAFLOWS:
        for block in load_profile(name).resources.memory.values():
            held = Held.of(block, values, bits)
            few, many = sorted((one, other))
            assert held.least_blocks <= held.blocks(few) <= held.blocks(many)
            assert held.blocks(few) * block.bits >= values * bits
            assert held.blocks(many) * block.halves * max(block.shapes)[0] >= many * bits


def test_logic_of_multipliers_and_thresholds():
    assert float(multiplier_luts(8, 8)) == 64  # FINN-R: W x A
    assert float(multiplier_luts(1, 1)) == 1
    assert float(sum_bits(2, 2, 576)) == 14  # 4 bits, and 10 for 576 of them
    # 3 thresholds of 14 bits; 16 lanes compare and hold 8 channels each; a table holds 64 of them
    assert float(threshold_luts(threshold_bits(2, 14), 16, 128)) == 3 * 14 * (16 + 16)
    assert float(threshold_luts(threshold_bits(2, 14), 1, 128)) == 3 * 14 * (1 + 2)


def test_a_window_of_few_lanes_is_one_memory():
    # 2 lines of 8 positions of 64 channels fit one block; at a slow pace nothing asks for a second one
    blocks = {**BLOCKS, "multiplier": {"name": "DSP", "count": 1, "macs": {"8": 1.0}},
              "logic": {"name": "LUT", "count": 1}, "memory": {"RAM": {
                  "count": 1000, "bits": 16384, "shapes": [[8, 2048]]}}}  # fmt: skip
    network = chain(conv(64, 1, 8, kernel=3))
    cost = DataflowModel(dataflow(resources=blocks)).cost(network, uniform(network))
    assert cost.resources["RAM"] == 1 + 1  # the window, and 576 weights


def interval_ms(model, network, policy):
    """Between the inferences of a stream."""
    _, design = model.design(PolicyBatch.one(network, policy))
    return float(design.cycles.max()) / (clock_mhz(model.profile) * 1e3)


def test_all_multipliers_at_once_where_they_fit():
    network = chain(conv(4, 4, 8))
    model = DataflowModel(dataflow())
    cost = model.cost(network, uniform(network))
    assert cost.resources["DSP"] == 16
    assert interval_ms(model, network, uniform(network)) == pytest.approx(64e-3)  # a position per cycle
    assert cost.latency_ms == pytest.approx(64e-3)
    assert cost.fits


def test_folded_where_they_do_not():
    few = {**BLOCKS, "multiplier": {"name": "DSP", "count": 4, "macs": {"8": 1.0}},
           "logic": {"name": "LUT", "count": 1}}  # fmt: skip
    model = DataflowModel(dataflow(resources=few))
    network = chain(conv(4, 4, 8))
    cost = model.cost(network, uniform(network))
    assert cost.resources["DSP"] <= 4
    assert interval_ms(model, network, uniform(network)) == pytest.approx(256e-3)


def test_multipliers_without_a_dsp_block_are_made_of_logic():
    few = {**BLOCKS, "multiplier": {"name": "DSP", "count": 4, "macs": {"8": 1.0}}}
    network = chain(conv(4, 4, 8))
    cost = DataflowModel(dataflow(resources=few)).cost(network, uniform(network))
    assert cost.resources["DSP"] == pytest.approx(4)
    assert cost.resources["LUT"] == pytest.approx(12 * 64)


def test_a_transposed_convolution_computes_at_its_inputs():
    shape = LayerShape("conv_transpose2d", 4, 4, (2, 2), (2, 2), 1, 8, 8)
    network = chain(conv(4, 4, 4), shape)
    work = [w for w in works(PolicyBatch.one(network, uniform(network)), dataflow()) if w.layer][1]
    assert (work.steps, work.positions) == (16, 64)
    assert float(work.macs[0]) == shape.macs


def test_a_gap_in_a_layer_table_is_no_shortcut(tmp_path):
    table = tmp_path / "gap.csv"
    row = "{},conv2d,4,4,1,1,1,1,1,{},{},0\n"
    table.write_text(f"{','.join(COLUMNS)}\n{row.format('a', 8, 8)}{row.format('b', 4, 4)}")  # a pool between
    network = read_layer_table(table)
    ms = DataflowModel(dataflow()).cost(network, uniform(network)).latency_ms
    assert ms == pytest.approx(65e-3)  # 64 positions, and the last one of the second layer


def test_short_operands_share_a_dsp_block_or_take_none():
    network = chain(conv(4, 4, 8))
    model = DataflowModel(dataflow())
    narrow = model.cost(network, Policy.uniform(network, LayerPolicy(0.0, 2, 4)))
    assert narrow.resources["DSP"] == 0  # 6 bits together: multipliers of logic
    assert narrow.resources["LUT"] >= 16 * 8
    four = dataflow(lut_multiplier_bits=0.0)
    packed = DataflowModel(four).cost(network, Policy.uniform(network, LayerPolicy(0.0, 2, 4)))
    assert packed.resources["DSP"] == 8  # two 4-bit products in each


def test_short_operands_without_logic_go_into_dsp_blocks():
    little = {**BLOCKS, "logic": {"name": "LUT", "count": 64}}  # of 16 multipliers of 8 tables
    network = chain(conv(4, 4, 8))
    model = DataflowModel(dataflow(resources=little))
    wanted = Policy.uniform(network, LayerPolicy(0.0, 2, 4))
    cost = model.cost(network, wanted)
    assert interval_ms(model, network, wanted) == pytest.approx(64e-3)
    assert cost.fits
    assert cost.resources["DSP"] > 0
    assert cost.resources["LUT"] == pytest.approx(64)


@pytest.mark.parametrize("triplication", [1.0, 1.1, 3.0])
def test_a_part_that_is_filled_exactly_fits_however_it_is_rounded(triplication):
    network = chain(conv(4, 4, 8))
    wanted = Policy.uniform(network, LayerPolicy(0.0, 2, 4))
    for count in range(20, 190, 3):  # of 16 multipliers of 8 tables: what has no room goes into DSP blocks
        little = {**BLOCKS, "logic": {"name": "LUT", "count": count}, "usable": 0.7}
        model = DataflowModel(dataflow(resources=little, space={"triplication": {"LUT": triplication}}))
        assert interval_ms(model, network, wanted) == pytest.approx(64e-3)


def test_weights_go_into_the_kind_of_memory_with_more_room():
    # 4 weight memories, 8 bits wide and 1024 deep: a block each, of either kind
    wide = {"count": 4, "bits": 72 * 4096, "shapes": [[72, 4096]]}
    network = chain(*(conv(32, 32, 1) for _ in range(4)))
    few_dsp = {**BLOCKS, "multiplier": {"name": "DSP", "count": 4, "macs": {"8": 1.0}},
               "logic": {"name": "LUT", "count": 1}}  # fmt: skip
    for count, expected in ((1000, {"RAM": 4, "URAM": 0}), (2, {"RAM": 1, "URAM": 3})):
        memory = {"RAM": {**BLOCKS["memory"]["RAM"], "count": count}, "URAM": wide}
        cost = DataflowModel(dataflow(resources={**few_dsp, "memory": memory})).cost(
            network, uniform(network)
        )
        assert cost.fits
        assert {name: cost.resources[name] for name in expected} == expected


def test_a_larger_part_fits_what_a_smaller_one_does():
    # narrow and deep weight memories in 72-bit blocks alone would need more URAM than there is
    network = chain(conv(3, 64, 16, kernel=3), *(conv(64, 64, 16, kernel=3) for _ in range(12)))
    small, large = (model_of(load_profile(name)) for name in ("xqrku060", "xqrvc1902"))
    for bits in ((8, 8), (4, 8), (2, 4)):
        wanted = uniform(network, *bits)
        assert small.cost(network, wanted).fits
        assert large.cost(network, wanted).latency_ms <= small.cost(network, wanted).latency_ms


def test_space():
    network = chain(conv(4, 4, 8))
    space = {"triplication": {"DSP": 3.0}, "memory_ecc": 1.5, "clock_derating": 0.5, "scrub_share": 0.2}
    plain, hard = DataflowModel(dataflow()), DataflowModel(dataflow(space=space))
    before, after = (m.cost(network, uniform(network)) for m in (plain, hard))
    assert after.resources["DSP"] == 3 * before.resources["DSP"]
    assert after.resources["RAM"] == 1.5 * before.resources["RAM"]
    assert after.latency_ms == pytest.approx(before.latency_ms / 0.5 / 0.8)


def test_a_network_that_does_not_fit():
    network = chain(conv(64, 800, 2, kernel=3), conv(800, 640, 2, kernel=3), conv(640, 8, 2))
    profile = dataflow()
    cost = DataflowModel(profile).cost(network, uniform(network))
    assert not cost.fits
    weights = 64 * 800 * 9 + 800 * 640 * 9 + 640 * 8
    assert cost.resources["RAM"] >= weights / 1024
    said = misfit(profile, network, uniform(network), cost)
    assert "RAM" in said
    assert "1,000" in said
    share = int(said.split("fits with ")[1].split("%")[0]) / 100
    cut = uniform(network, sparsity=share)
    model = DataflowModel(profile)
    assert model.cost(network.resized(cut.channels(network)), cut).fits
    less = uniform(network, sparsity=share - 0.05)
    assert not model.cost(network.resized(less.channels(network)), less).fits


def test_fewer_bits_that_fit_are_named():
    network = chain(conv(256, 400, 2, kernel=3), conv(400, 8, 2))
    small = {**BLOCKS, "memory": {"RAM": {"count": 700, "bits": 8192, "shapes": [[8, 1024], [4, 2048]]}}}
    profile = dataflow(resources=small)
    cost = DataflowModel(profile).cost(network, uniform(network))
    assert not cost.fits
    assert "weights of 4 and activations of 8 bits" in misfit(profile, network, uniform(network), cost)


def test_skips_are_held_on_the_chip():
    body = [
        Node("x", "input", (), (Segment(None, 4),), (8, 8)),
        Node("a", "conv2d", ("x",), (Segment(None, 4),), (8, 8), layer="a"),
        Node("b", "conv2d", ("a",), (Segment(None, 4),), (8, 8), layer="b"),
        Node("sum", "add", ("a", "b"), (Segment(None, 4),), (8, 8)),
    ]
    layers = (Layer("a", conv(4, 4, 8)), Layer("b", conv(4, 4, 8, kernel=7)))
    with_skip = Network(tuple(body), layers, ("sum",))
    without = Network(tuple(body[:3]), layers, ("b",))
    model = DataflowModel(dataflow())
    one, other = (model.cost(n, uniform(n)) for n in (with_skip, without))
    assert one.peak_memory_bytes > other.peak_memory_bytes
    assert one.resources["RAM"] > other.resources["RAM"]


def test_layers_say_what_they_add():
    network = chain(conv(4, 8, 8, kernel=3), conv(8, 4, 8), LayerShape("linear", 4, 2))
    model = DataflowModel(dataflow())
    cost, rows = model.cost(network, uniform(network)), model.layers(network, uniform(network))
    assert sum(row.latency_ms for row in rows) == pytest.approx(cost.latency_ms)


def test_what_cannot_run_is_named():
    plain = chain(conv())
    with pytest.raises(TableError, match="32"):
        DataflowModel(dataflow()).cost(plain, uniform(plain, 32, 32))


def test_what_has_no_formula_streams_its_values():
    network = chain(conv(), after=(("other", 2, 1),))
    like = chain(conv(), after=(("softmax", 2, 1),))
    model = DataflowModel(dataflow())
    found, known = (model.cost(one, uniform(one)) for one in (network, like))
    assert found.latency_ms == known.latency_ms > 0
    assert [kernel.name for kernel in model.unknown(network)] == ["op0"]
    assert model.unknown(like) == ()


def test_weights_of_no_layer_take_multipliers_and_memory():
    plain = chain(conv(4, 4, 2), after=(("recurrent", 2, 1),))
    *nodes, last = plain.nodes
    network = replace(plain, nodes=(*nodes, replace(last, macs=4 * 4 * 1000, held_bytes=16000)))
    model = DataflowModel(dataflow())
    found, without = (model.cost(one, uniform(one)).resources for one in (network, plain))
    assert found["DSP"] > without["DSP"]
    assert found["RAM"] >= without["RAM"] + 4 * 1000 * 32 / 8192


def test_what_is_stored_besides_weights_takes_memory():
    plain = chain(conv(4, 4, 2), after=(("embedding", 2, 1),))
    *nodes, last = plain.nodes
    network = replace(plain, nodes=(*nodes, replace(last, held_bytes=100 * 1024)))
    model = DataflowModel(dataflow())
    found, without = (model.cost(one, uniform(one)).resources["RAM"] for one in (network, plain))
    assert found == without + 100


def test_a_product_of_two_tensors_waits_for_the_second():
    plain = chain(conv(4, 4, 4), after=(("matmul", 4, 1),))
    *nodes, last = plain.nodes
    network = replace(plain, nodes=(*nodes, replace(last, inputs=("layer0", "layer0"))))
    alike = replace(plain, nodes=(*nodes, replace(last, op="softmax")))
    model = DataflowModel(dataflow())
    product, values = (model.cost(one, uniform(one)) for one in (network, alike))
    assert product.latency_ms > values.latency_ms  # which starts with the first value
    assert product.resources["DSP"] > values.resources["DSP"]


@pytest.mark.parametrize("name", DATAFLOWS)
def test_fewer_bits_and_channels_never_cost_more_memory(name):
    profile = load_profile(name)
    model = model_of(profile)
    network = chain(conv(16, 32, 8, kernel=3), conv(32, 48, 8, kernel=3), conv(48, 10, 8))
    full = model.cost(network, uniform(network))
    cut = uniform(network, sparsity=0.5)
    assert model.cost(network.resized(cut.channels(network)), cut).latency_ms <= full.latency_ms * 1.1
    assert model.cost(network, uniform(network, 4, 8)).latency_ms <= full.latency_ms * 1.1


@pytest.mark.parametrize("name", DATAFLOWS)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_a_batch_costs_what_its_policies_do(name, data):
    profile = load_profile(name)
    network = chain(conv(3, 32, 8, kernel=3), conv(32, 48, 8), conv(48, 10, 8), after=(("maxpool", 4, 2),))
    model = model_of(profile)
    pairs = st.sampled_from(profile.supported)
    policies = []
    for _ in range(3):
        activations = data.draw(pairs)[1]
        policies.append(
            Policy.of(
                {
                    layer.name: LayerPolicy(
                        data.draw(st.sampled_from([0.0, 0.25, 0.5])) if layer.group else 0.0,
                        data.draw(st.sampled_from([w for w, a in profile.supported if a == activations])),
                        activations,
                    )
                    for layer in network.layers
                }
            )
        )
    found = model.costs(PolicyBatch.of(network, policies))
    for index, policy in enumerate(policies):
        alone = model.cost(network.resized(policy.channels(network)), policy)
        for field in ("latency_ms", "energy_mj", "size_bytes", "fits"):
            assert np.isclose(getattr(found, field)[index], getattr(alone, field)), field
        assert abs(found.peak_memory_bytes[index] - alone.peak_memory_bytes) < 1


@st.composite
def pipelines(draw):
    """A chain of convolutions with a skip connection, and a part that is about as large as it takes."""
    widths = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    kernel = draw(st.sampled_from([1, 3]))
    shapes = [conv(a, b, 8, kernel) for a, b in zip([3, *widths], widths, strict=False)]
    network = chain(*shapes)
    body = network.nodes
    skip = Node("skip", "conv2d", ("x",), body[-1].channels, (8, 8), layer="skip")
    joined = Node("sum", "add", (body[-1].name, "skip"), body[-1].channels, (8, 8))
    layers = (*network.layers, Layer("skip", conv(3, widths[-1], 8), None, bias=False))
    network = Network((*body, skip, joined), layers, ("sum",))
    second = {"URAM": {"count": draw(st.integers(0, 9)), "bits": 72 * 512, "shapes": [[72, 512]]}}
    ram = {"count": draw(st.integers(1, 60)), "bits": 36864, "halves": 2, "shapes": [[36, 512], [18, 1024]]}
    memory = {"RAM": ram} | (second if draw(st.booleans()) else {})
    resources = {
        "logic": {"name": "LUT", "count": draw(st.integers(1_000, 60_000))},
        "multiplier": {"name": "DSP", "count": draw(st.integers(1, 200)),
                       "macs": {"8": draw(st.sampled_from([1.0, 2.0, 3.0])), "4": 4.0}},
        "memory": memory,
    }  # fmt: skip
    numbers = {"lut_per_layer": 100.0, "lut_per_lane_bit": 17.0, "lut_per_multiplier": 1.1,
               "lut_per_adder_bit": 1.1, "dsp_per_scale": 2.0}  # fmt: skip
    pairs = st.sampled_from([(8, 8), (4, 8), (2, 4)])
    policy = Policy.of({layer.name: LayerPolicy(0.0, *draw(pairs)) for layer in layers})
    if draw(st.booleans()):
        numbers["unrolled_zeros"] = True
        shares = {layer.name: draw(st.sampled_from([0.0, 0.5, 0.9])) for layer in layers}
        policy = Policy.of(
            {name: replace(one, more=(("unstructured", shares[name]),)) for name, one in policy.items()}
        )
    return network, policy, dataflow(resources=resources, **numbers)


@settings(max_examples=60, deadline=None)
@given(pipelines())
def test_no_quicker_pace_has_a_design_that_fits(case):
    network, policy, profile = case
    model = DataflowModel(profile)
    plan, found = model.design(PolicyBatch.one(network, policy))
    last = int(np.ceil(np.log2(plan.slowest_cycles[0]) * STEPS_PER_DOUBLING)) + 1
    steps = np.arange(last + 1, dtype=np.float64)
    every = plan.part(np.zeros(last + 1, dtype=np.intp))  # the same pipeline at each pace
    pace = np.float32(2.0) ** np.float32(steps / STEPS_PER_DOUBLING)
    designs = design_of(every, engines_at(every, pace, profile), profile)
    least = least_fits(every, pace, profile)
    assert not (designs.fits & ~least).any()  # the least is never more than what it takes
    assert (np.diff(least.astype(int)) >= 0).all()  # and never grows with the pace
    assert found.fits[0] == designs.fits.any()
    first = int(np.argmax(designs.fits)) if designs.fits.any() else last
    assert found.latency_cycles[0] == pytest.approx(designs.latency_cycles[first])
    assert found.cycles[:, 0].max() == pytest.approx(designs.cycles[:, first].max())
