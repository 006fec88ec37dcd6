"""The measured cost model on a tiny network: small real measurements with onnxruntime."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanfront.compression.export.network_model import network_model
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.hw_profiles import load_profile
from leanfront.latency_models import TableError
from leanfront.latency_models.benchmark.fill import fill
from leanfront.latency_models.benchmark.micro_benchmark import benchmark_model
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.benchmark.timing import Reference, Timing, noise, session, time_models
from leanfront.latency_models.kernel_table.keys import constant_bytes_of, kind_of
from leanfront.latency_models.kernel_table.table import (
    Entry,
    LatencyTable,
    load_table,
    table_path,
    this_device,
)
from leanfront.latency_models.measured import lookup
from leanfront.latency_models.measured.correction import Correction, far_share
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Structure, canonical

FLOAT = LayerPolicy()
INTEGER = LayerPolicy(weight_bits=8, activation_bits=8)


def residual_network(width: int = 16, size: int = 8) -> Network:
    """conv - [conv - conv] + skip - mean - linear; the inner channels of the block can be cut."""
    stream, inner = (Segment(None, width),), (Segment("inner", width),)
    image = (size, size)

    def conv(cin: int) -> LayerShape:
        return LayerShape("conv2d", cin, width, (3, 3), out_height=size, out_width=size)

    return Network(
        nodes=(
            Node("x", "input", (), (Segment(None, 3),), image),
            Node("c0", "conv2d", ("x",), stream, image, "stem"),
            Node("r0", "relu", ("c0",), stream, image),
            Node("c1", "conv2d", ("r0",), inner, image, "block.a"),
            Node("r1", "relu", ("c1",), inner, image),
            Node("c2", "conv2d", ("r1",), stream, image, "block.b"),
            Node("sum", "add", ("c2", "r0"), stream, image),
            Node("r2", "relu", ("sum",), stream, image),
            Node("pool", "global_avgpool", ("r2",), stream, (1, 1), None, image, image),
            Node("flat", "flatten", ("pool",), stream),
            Node("y", "linear", ("flat",), (Segment(None, 10),), (), "head"),
        ),
        layers=(
            Layer("stem", conv(3)),
            Layer("block.a", conv(width), "inner"),
            Layer("block.b", conv(width)),
            Layer("head", LayerShape("linear", width, 10)),
        ),
        outputs=("y",),
    )


NETWORK = residual_network()
ALL_FLOAT = Policy.uniform(NETWORK, FLOAT)
ALL_INTEGER = Policy.uniform(NETWORK, INTEGER)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def fake_model(correction: Correction | None = None) -> TableModel:
    """Every node takes 1 us, a call 5 us."""
    structure = Structure(NETWORK, network_model)
    for policy in (ALL_FLOAT, ALL_INTEGER):
        structure.observe(NETWORK, policy)
    one_us = Entry(0.001, 0.0, 1, 1.0, 0.05, 0, "2025-01-01")
    entries = dict.fromkeys(structure.keys(), one_us) | {"call": Entry(0.005, 0.0, 1, 1.0, 0.05, 0, "")}
    return TableModel(
        structure, LatencyTable(this_device(), entries), load_profile("this-machine"), correction
    )


def by_size(structure: Structure) -> dict[str, Entry]:
    """Entries of all nodes seen, the larger the slower."""
    entries = {
        key: Entry(1e-4 * (1 + constant_bytes_of(key)), 0.0, 1, 1.0, 0.05, 0, "")
        for key in sorted(structure.keys())
    }
    return entries | {"call": Entry(0.005, 0.0, 1, 1.0, 0.05, 0, "")}


def ops(policy: Policy) -> list[str]:
    return [node.proto.op_type for node in fused_nodes(network_model(NETWORK, policy), {})]


def test_the_optimised_graph_has_the_fused_kernels_of_each_precision() -> None:
    assert ops(ALL_INTEGER).count("QLinearConv") == 3
    assert "QGemm" in ops(ALL_INTEGER)
    assert ops(ALL_FLOAT).count("Conv") == 3
    assert not any(op.startswith("Q") for op in ops(ALL_FLOAT))


def test_mixed_precision_stays_mixed() -> None:
    mixed = Policy.of(dict(ALL_INTEGER) | {"block.b": FLOAT})
    assert (ops(mixed).count("QLinearConv"), ops(mixed).count("Conv")) == (2, 1)


def test_keys_hold_shapes_but_no_names_and_no_weights() -> None:
    first = fused_nodes(network_model(NETWORK, ALL_INTEGER), {})
    renamed = onnx.load_model_from_string(network_model(NETWORK, ALL_INTEGER))
    for tensor in renamed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(tensor.dims, np.int8), tensor.name))
    assert [n.key for n in first] == [n.key for n in fused_nodes(renamed.SerializeToString(), {})]
    conv = next(n.key for n in first if "QLinearConv" in n.key)
    assert "u8[1x8x8x3]" in conv
    assert "=s8[16x3x3x3]" in conv
    assert kind_of(conv) == "integer_full_ms"


def test_weight_zero_points_are_part_of_the_key() -> None:
    """onnxruntime has another kernel for weights around zero; timed with the wrong one, sums are 1.5x off."""
    key = next(n.key for n in fused_nodes(network_model(NETWORK, ALL_INTEGER), {}) if "QGemm" in n.key)
    assert "=s8[10]:0" in key


def test_kinds_tell_windows_and_layouts_apart() -> None:
    blocked = "com.microsoft.nchwc.Conv(f32[1x16x8x8], =f32[16x16x3x3]) group=1 kernel_shape=3|3"
    assert kind_of(blocked) == "blocked_full_ms"
    assert kind_of(blocked.replace("group=1", "group=16")) == "blocked_depthwise_ms"
    assert kind_of(blocked.replace("3|3", "1|1")) == "blocked_pointwise_ms"
    assert (
        kind_of("com.microsoft.FusedConv(f32[1x3x8x8], =f32[4x3x1x1]) kernel_shape=1|1")
        == "float_pointwise_ms"
    )
    assert kind_of("com.microsoft.QGemm(u8[1x64], =s8[10x64]) transB=1") == "integer_product_ms"
    assert kind_of("Transpose(u8[1x8x8x4]) perm=0|3|1|2") == "layout_ms"
    assert kind_of("Softmax(f32[1x10]) axis=-1") == "other_ms"


def test_constant_bytes_of_a_key() -> None:
    assert constant_bytes_of("Conv(f32[1x3x8x8], =f32[16x3x3x3], =f32[16]) group=1") == 4 * (16 * 27 + 16)
    assert constant_bytes_of("QLinearConv(u8[1x8], =f32[], =u8[], =s8[16x3], =int32[16])") == 4 + 1 + 48 + 64
    assert constant_bytes_of("Slice(f32[1x8x8x8], =0|0, =4|4, =2|3)") == 0


def test_every_node_of_a_network_can_be_timed_alone() -> None:
    mixed = Policy.of(dict(ALL_INTEGER) | {"block.b": FLOAT})
    for policy in (ALL_INTEGER, ALL_FLOAT, mixed):
        for node in fused_nodes(network_model(NETWORK, policy), {}):
            session(benchmark_model(node, 3), optimise=False)


def test_owners_are_the_kernels_of_the_network() -> None:
    structure = Structure(NETWORK, network_model)
    for policy in (ALL_FLOAT, ALL_INTEGER):
        parts = dict(
            zip([k.name for k in structure.kernels], structure.observe(NETWORK, policy), strict=True)
        )
        for name in ("r0", "r1"):
            assert sum("Conv(" in key for key in parts[name]) == 1, (name, parts)
        assert any("Gemm(" in key for key in parts["y"])


def test_bits_below_eight_run_as_eight_and_float_activations_as_float() -> None:
    four = Policy.uniform(NETWORK, LayerPolicy(weight_bits=4, activation_bits=8))
    decoded = Policy.uniform(NETWORK, LayerPolicy(weight_bits=4, activation_bits=32))
    assert canonical(four) == ALL_INTEGER
    assert canonical(decoded) == ALL_FLOAT


def test_what_was_seen_is_foretold_without_building() -> None:
    built = []

    def build(network: Network, policy: Policy) -> bytes:
        built.append(policy)
        return network_model(network, policy)

    structure = Structure(NETWORK, build)
    first = structure.observe(NETWORK, ALL_INTEGER)
    assert structure.foretold(NETWORK, Policy.uniform(NETWORK, LayerPolicy(0.0, 4, 8))) == first
    assert len(built) == 1
    assert None in structure.foretold(NETWORK, ALL_FLOAT)  # no layer was seen in floats


def test_contexts_are_kept_on_disk(tmp_path: Path) -> None:
    structure = Structure(NETWORK, network_model)
    parts = structure.observe(NETWORK, ALL_INTEGER)
    structure.save(tmp_path / "contexts.jsonl")

    def never(network: Network, policy: Policy) -> bytes:
        raise AssertionError("built again")

    again = Structure(NETWORK, never)
    again.load(tmp_path / "contexts.jsonl")
    assert again.foretold(NETWORK, ALL_INTEGER) == parts
    again.load(tmp_path / "not there")
    (tmp_path / "damaged").write_text('["(0, ", 3')
    again.load(tmp_path / "damaged")


def test_cost_is_the_sum_of_known_kernels() -> None:
    model = fake_model()
    nodes = sum(len(part or ()) for part in model.structure.foretold(NETWORK, ALL_INTEGER))
    cost = model.cost(NETWORK, ALL_INTEGER)
    assert cost.latency_ms == pytest.approx(0.005 + 0.001 * nodes)
    assert cost.energy_mj == pytest.approx(cost.latency_ms * load_profile("this-machine").power_w)
    assert (cost.kind, cost.estimated) == ("measured", True)
    rows = model.layers(NETWORK, ALL_INTEGER)
    assert sum(row.latency_ms for row in rows) == pytest.approx(cost.latency_ms)
    assert {"stem", "block.a", "block.b", "head"} <= {row.name for row in rows}


def test_a_correction_changes_kind_and_sum() -> None:
    weights = {"call": 1.0, "integer_full_ms": 2.0, "integer_product_ms": 2.0, "other_ms": 1.0}
    plain, corrected = fake_model(), fake_model(Correction(weights, samples=12))
    more_ms = corrected.latency_ms(NETWORK, ALL_INTEGER) - plain.latency_ms(NETWORK, ALL_INTEGER)
    assert more_ms == pytest.approx(0.001 * 4)  # three convolutions and the linear layer
    assert corrected.cost(NETWORK, ALL_INTEGER).kind == "calibrated"


def test_a_kernel_that_was_not_measured_is_estimated_and_said_to_be() -> None:
    model = fake_model()
    cut = NETWORK.resized({"inner": 7})
    assert model.cost(cut, ALL_INTEGER).kind == "modelled"
    empty = TableModel(model.structure, LatencyTable(this_device(), {}), load_profile("this-machine"))
    with pytest.raises(TableError, match="no entry for"):
        empty.cost(NETWORK, ALL_INTEGER)


def test_far_share_begins_where_the_near_cache_is_half_full() -> None:
    assert far_share(0.4e6, 1e6) == 0.0
    assert 0.0 < far_share(0.8e6, 1e6) < 1.0
    assert far_share(3e6, 1e6) == 1.0


def test_fill_measures_what_is_missing_and_keeps_it(reference: Reference) -> None:
    structure = Structure(NETWORK, network_model)
    structure.observe(NETWORK, ALL_INTEGER)
    path = table_path(this_device())
    lines: list[str] = []
    table = fill(LatencyTable(this_device(), {}), structure.nodes, path, reference, lines.append)
    assert not table.missing([*structure.nodes, "call"])
    assert all(0 < entry.median_ms < 50 for entry in table.values())
    assert any(f"{len(structure.nodes)} of {len(structure.nodes)} kernels" in line for line in lines)
    kept = load_table(path, this_device())
    assert set(kept) == set(table)
    lines.clear()
    assert dict(fill(kept, structure.nodes, path, reference, lines.append)) == dict(kept)
    assert lines == []


def test_timings_tell_a_large_network_from_a_small_one(reference: Reference) -> None:
    models = {
        str(size): network_model(net, Policy.uniform(net, FLOAT))
        for size in (8, 48)
        if (net := residual_network(32, size))
    }
    taken = time_models(models, blocks=3, reference=reference)
    assert taken["48"].median_ms > 5 * taken["8"].median_ms
    assert all(timing.runs >= 9 and timing.spread >= 0 for timing in taken.values())


def test_a_noisy_machine_is_named() -> None:
    calm = Timing(1.0, 0.01, 100, 1.0, 0.05)
    wild = Timing(1.0, 0.30, 100, 1.0, 0.05)
    disturbed = Timing(1.0, 0.01, 100, 0.0, 0.05)
    assert noise({"a": calm, "b": calm}) is None
    assert "too noisy to tell 5%" in (noise({"a": wild, "b": wild}) or "")
    assert "1 of 2" in (noise({"a": calm, "b": disturbed}) or "")


def test_what_onnxruntime_cannot_do_is_one_sentence() -> None:
    with pytest.raises(TableError, match=r"take no more than .* threads, not 9999"):
        session(network_model(NETWORK, ALL_FLOAT), threads=9999)
    with pytest.raises(TableError, match="has no CUDAExecutionProvider; it has"):
        session(network_model(NETWORK, ALL_FLOAT), provider="CUDAExecutionProvider")
    with pytest.raises(TableError, match="cannot load the model"):
        session(b"not a model")


def strange(width: int, op: str = "other", macs: int = 0) -> Network:
    return Network(
        nodes=(
            Node("x", "input", (), (Segment(None, 4),)),
            Node("y", "linear", ("x",), (Segment(None, 4),), (), "y"),
            Node("z", op, ("y", "x"), (Segment(None, width),), detail="MyAttention", macs=macs),
        ),
        layers=(Layer("y", LayerShape("linear", 4, 4)),),
        outputs=("z",),
    )


@pytest.mark.parametrize("width", [1, 8, 20])
def test_an_operation_that_shapes_do_not_describe_is_replaced_by_one_that_moves_as_much(width: int) -> None:
    network = strange(width)
    model = network_model(network, Policy.uniform(network, FLOAT))
    opened = session(model)
    (found,) = opened.run(None, {"input0": np.ones((1, 4), np.float32)})
    assert found.shape == (1, width)
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert "Concat" in kinds  # both inputs are read
    assert ("Tile" in kinds) == (width == 20)


def test_what_multiplies_with_weights_of_its_own_is_replaced_by_as_many_products() -> None:
    network = strange(6, "recurrent", macs=6 * 50)
    graph = onnx.load_from_string(network_model(network, Policy.uniform(network, FLOAT))).graph
    shapes = [list(stored.dims) for stored in graph.initializer]
    assert [1, 50, 6] in shapes
    assert "MatMul" in [node.op_type for node in graph.node]


def test_stand_ins_make_a_cost_modelled() -> None:
    network = strange(8)
    policy = Policy.uniform(network, FLOAT)
    structure = Structure(network, network_model)
    structure.observe(network, policy)
    entries = dict.fromkeys([*structure.keys(), "call"], Entry(0.001, 0.0, 1, 1.0, 0.05, 0, ""))
    model = TableModel(structure, LatencyTable(this_device(), entries), load_profile("this-machine"))
    assert model.cost(network, policy).kind == "measured"
    assert model.unknown(network) == ()
    model.from_shapes = True
    assert model.cost(network, policy).kind == "modelled"
    assert [kernel.name for kernel in model.unknown(network)] == ["z"]
    assert {row.name: row.source for row in model.layers(network, policy)}["z"] == "modelled"


def entries_one_by_one(model: TableModel, network: Network, policy: Policy) -> list[object]:
    """By the rules themselves, without the tables made of them."""
    structure, found = model.structure, []
    state = structure.state(network, policy)
    for index, columns in enumerate(structure.width_columns):
        form = structure.form(index, structure.rule(index).pick(state))
        assert form is not None
        found.append(model._entry(index, form, tuple(state[column] for column in columns)))
    return found


@pytest.mark.parametrize("most_cells", [0, lookup.MOST_CELLS])
def test_many_policies_cost_what_each_costs(most_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths and precisions that were never built among them; with tables of entries and without."""
    monkeypatch.setattr(lookup, "MOST_CELLS", most_cells)
    structure = fake_model().structure
    for policy in (Policy.of(dict(ALL_INTEGER) | {"block.b": FLOAT}), ALL_INTEGER):
        structure.observe(NETWORK.resized({"inner": 6}), policy)
    correction = Correction({"call": 1.1, "integer_full_ms": 1.3, "far_bytes": 1e-5}, samples=12)
    table = LatencyTable(this_device(), by_size(structure))
    model = TableModel(structure, table, load_profile("this-machine"), correction)
    policies = [
        Policy.of({name: LayerPolicy(0.0 if name != "block.a" else cut, bits, bits) for name, bits in kinds})
        for cut in (0.0, 0.25, 0.5, 0.875)
        for kinds in (
            [("stem", 8), ("block.a", 8), ("block.b", 8), ("head", 8)],
            [("stem", 8), ("block.a", 8), ("block.b", 32), ("head", 32)],
            [("stem", 32), ("block.a", 32), ("block.b", 32), ("head", 32)],
        )
    ]
    costs = model.costs(PolicyBatch.of(NETWORK, policies))
    for column, policy in enumerate(policies):
        one = model.cost(NETWORK.resized(policy.channels(NETWORK)), policy)
        assert costs.latency_ms[column] == pytest.approx(one.latency_ms)
        assert costs.energy_mj[column] == pytest.approx(one.energy_mj)
        assert costs.size_bytes[column] == one.size_bytes
        assert costs.peak_memory_bytes[column] == one.peak_memory_bytes
        assert costs.fits[column] == one.fits
        assert costs.modelled[column] == (one.kind == "modelled")
        cut = NETWORK.resized(policy.channels(NETWORK))
        parts = [row.latency_ms for row in model.layers(cut, policy)]
        assert one.latency_ms == pytest.approx(sum(parts))
        assert one.size_bytes == size_bytes(cut, policy)
        assert entries_one_by_one(model, cut, policy) == model._of(cut, policy)


def test_what_is_seen_later_counts_at_once() -> None:
    """A model that was asked before a network was seen says the same as one that was made after it."""
    mixed, cut = Policy.of(dict(ALL_INTEGER) | {"block.b": FLOAT}), NETWORK.resized({"inner": 5})
    early, late = Structure(NETWORK, network_model), Structure(NETWORK, network_model)
    for structure in (early, late):
        for policy in (ALL_FLOAT, ALL_INTEGER):
            structure.observe(NETWORK, policy)
    late.observe(cut, mixed)
    table = LatencyTable(this_device(), by_size(late))
    models = [TableModel(structure, table, load_profile("this-machine")) for structure in (early, late)]
    before = models[0].features(NETWORK, ALL_INTEGER)
    early.observe(cut, mixed)
    for network, policy in ((NETWORK, ALL_INTEGER), (cut, mixed), (NETWORK, mixed)):
        assert models[0].features(network, policy) == models[1].features(network, policy)
    assert models[0].features(NETWORK, ALL_INTEGER) == before


def test_what_was_forgotten_leaves_no_rules(tmp_path: Path) -> None:
    structure = Structure(NETWORK, network_model)
    structure.observe(NETWORK, ALL_INTEGER)
    structure.save(tmp_path / "seen")
    text = json.loads((tmp_path / "seen").read_text())
    text["columns"] = [[0, 1]] * len(text["columns"])
    (tmp_path / "seen").write_text(json.dumps(text))
    structure.load(tmp_path / "seen")
    structure.forget()
    structure.observe(NETWORK, ALL_INTEGER)
    assert structure.rule(1).columns != (0, 1)


def test_a_width_between_those_measured_lies_between_their_costs() -> None:
    structure = Structure(NETWORK, network_model)
    for width in (4, 8, 16):
        structure.observe(NETWORK.resized({"inner": width}), ALL_FLOAT)
    table = LatencyTable(this_device(), by_size(structure))
    model = TableModel(structure, table, load_profile("this-machine"))
    at = {width: model.cost(NETWORK.resized({"inner": width}), ALL_FLOAT) for width in (8, 12, 16)}
    assert at[8].latency_ms < at[12].latency_ms < at[16].latency_ms
    assert (at[8].kind, at[12].kind) == ("measured", "modelled")


def test_layers_own_their_nodes_whatever_onnxruntime_fuses_them_with() -> None:
    """A convolution with an addition behind it makes the sum; a product and its bias get new names."""

    def linear(before: int, after: int) -> LayerShape:
        return LayerShape("linear", before, after, out_height=12)

    tokens = Network(
        nodes=(
            Node("x", "input", (), (Segment(None, 16),), (12,)),
            Node("norm", "layernorm", ("x",), (Segment(None, 16),), (12,)),
            Node("a", "linear", ("norm",), (Segment("a", 24),), (12,), "a"),
            Node("act", "gelu", ("a",), (Segment("a", 24),), (12,)),
            Node("b", "linear", ("act",), (Segment(None, 16),), (12,), "b"),
        ),
        layers=(Layer("a", linear(16, 24), "a"), Layer("b", linear(24, 16))),
        outputs=("b",),
    )
    for network, layers in ((tokens, ("a", "b")), (NETWORK, ("r0", "r1", "c2"))):
        for layer_policy in (FLOAT, INTEGER):
            structure = Structure(network, network_model)
            parts = structure.observe(network, Policy.uniform(network, layer_policy))
            for kernel, part in zip(structure.kernels, parts, strict=True):
                products = [key for key in part if any(op in key for op in ("Gemm(", "Conv(", "MatMul("))]
                wanted = kernel.name in layers or kernel.op == "linear"
                assert bool(products) == wanted, (kernel.name, part)


def test_weights_and_tensors_together_fit_a_measured_part() -> None:
    """As on computed parts: with all weights but no byte more for tensors, nothing fits."""
    plain = fake_model()
    free = plain.cost(NETWORK, ALL_INTEGER)
    needed = free.size_bytes + free.peak_memory_bytes
    for memory_bytes, fits in ((needed, True), (needed - 1, False), (free.size_bytes, False), (None, True)):
        part = plain.profile.model_copy(update={"memory_bytes": memory_bytes})
        model = TableModel(plain.structure, plain.table, part)
        assert model.cost(NETWORK, ALL_INTEGER).fits is fits
        assert model.costs(PolicyBatch.of(NETWORK, [ALL_INTEGER])).fits.tolist() == [fits]


def test_many_policies_may_have_precisions_that_were_never_seen() -> None:
    """Only floats were seen; the table knows the integer kernels, but not yet which kernels become them."""
    known = Structure(NETWORK, network_model)
    for policy in (ALL_FLOAT, ALL_INTEGER):
        known.observe(NETWORK, policy)
    table = LatencyTable(this_device(), by_size(known))
    structure = Structure(NETWORK, network_model)
    structure.observe(NETWORK, ALL_FLOAT)
    model = TableModel(structure, table, load_profile("this-machine"))
    policies = [ALL_FLOAT, ALL_INTEGER] * 3
    costs = model.costs(PolicyBatch.of(NETWORK, policies))
    assert costs.latency_ms == pytest.approx([model.latency_ms(NETWORK, policy) for policy in policies])
    assert costs.latency_ms[0] != costs.latency_ms[1]


def test_a_network_as_built_costs_what_its_own_nodes_cost() -> None:
    """Whatever was foretold from little that was seen; and nothing is learned from it."""
    every = [
        Policy.of({name: INTEGER if bits >> place & 1 else FLOAT for place, name in enumerate(ALL_FLOAT)})
        for bits in range(2 ** len(ALL_FLOAT))
    ]
    known = Structure(NETWORK, network_model)
    for policy in every:
        known.observe(NETWORK, policy)
    table = LatencyTable(this_device(), by_size(known))
    structure = Structure(NETWORK, network_model)
    for policy in every[::3]:
        structure.observe(NETWORK, policy)
    model = TableModel(structure, table, load_profile("this-machine"))
    wrong = 0
    for policy in every:
        of_its_nodes = 0.005 + sum(
            table[node.key].median_ms for node in fused_nodes(network_model(NETWORK, policy), {})
        )
        seen = structure.version
        built = model.as_built(NETWORK, policy)
        assert structure.version == seen
        assert built.latency_ms == pytest.approx(of_its_nodes)
        assert built == model.as_built(NETWORK, policy)
        wrong += model.cost(NETWORK, policy).latency_ms != pytest.approx(of_its_nodes)
    assert wrong > 0


def test_a_pool_between_integer_layers_stays_in_integers() -> None:
    """It moves codes: behind a ReLU they have no sign, nor have the pool's."""
    wide = (Segment(None, 16),)

    def conv(cin: int, size: int) -> LayerShape:
        return LayerShape("conv2d", cin, 16, (3, 3), out_height=size, out_width=size)

    network = Network(
        nodes=(
            Node("x", "input", (), (Segment(None, 3),), (8, 8)),
            Node("c0", "conv2d", ("x",), wide, (8, 8), "a"),
            Node("r0", "relu", ("c0",), wide, (8, 8)),
            Node("pool", "maxpool", ("r0",), wide, (4, 4), None, (2, 2), (2, 2)),
            Node("y", "conv2d", ("pool",), wide, (4, 4), "b"),
        ),
        layers=(Layer("a", conv(3, 8)), Layer("b", conv(16, 4))),
        outputs=("y",),
    )
    made = [
        n.proto.op_type for n in fused_nodes(network_model(network, Policy.uniform(network, INTEGER)), {})
    ]
    assert made.count("QLinearConv") == 2
    assert made[made.index("QLinearConv") + 1] in ("NhwcMaxPool", "MaxPool")
    assert "DequantizeLinear" not in made[: len(made) - 1 - made[::-1].index("QLinearConv")]
