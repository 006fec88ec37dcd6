"""Weights around another zero point: the same numbers from another kernel, chosen by the latency table."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.precision import SHIFTED_ZERO_POINT
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.micro_benchmark import benchmark_model
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.benchmark.shifted_weights import shifted
from leanfront.latency_models.benchmark.timing import Reference, random_feed, session
from leanfront.latency_models.benchmark.zero_points import (
    faster,
    shifted_key,
    with_shifted,
    with_shifted_keys,
)
from leanfront.latency_models.kernel_table.table import Entry, LatencyTable, this_device
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.space_table import built
from leanfront.search.pick.pick import fastest_file
from tests.networks import built as made
from tests.networks import example, inputs


class Wide(nn.Module):
    """Two convolutions of 64 channels behind one that reads three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.a = nn.Conv2d(64, 64, 3, padding=1)
        self.b = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, 10)."""
        x = torch.relu(self.a(torch.relu(self.stem(x))))
        x = torch.relu(self.b(x))
        return cast(Tensor, self.head(x.mean((2, 3))))


TRACED = trace(Wide().eval(), torch.zeros(1, 3, 8, 8))
WIDE = TRACED.network
INTEGER = Policy.uniform(WIDE, LayerPolicy(weight_bits=8, activation_bits=8))
KEY = (
    "com.microsoft.QLinearConv(u8[1x8x8x64], =f32[], =u8[], =s8[96x64x3x3], =f32[96], =s8[], =f32[], =u8[],"
    " =int32[96]) channels_last=1 group=1"
)


def build(network: Network, policy: Policy) -> bytes:
    return bytes(random_model(template(TRACED), network, policy).SerializeToString())


def slow_around_zero(keys: set[str]) -> LatencyTable:
    """Every node takes 10 us, convolutions around the other zero point 4 us."""
    entry = Entry(0.010, 0.0, 1, 1.0, 0.05, 0, "2025-01-01")
    entries = dict.fromkeys([*keys, "call"], entry)
    fast = dataclasses.replace(entry, median_ms=0.004)
    return LatencyTable(this_device(), entries | {k: fast for k in keys if f"]:{SHIFTED_ZERO_POINT}," in k})


def wide_model() -> TableModel:
    structure = Structure(WIDE, build)
    structure.observe(WIDE, INTEGER)
    return TableModel(
        structure, slow_around_zero(with_shifted_keys(structure.keys())), load_profile("this-machine")
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_shifted_network_puts_out_the_same_numbers(bits: int) -> None:
    traced = trace(made("Chain"), example("Chain"))
    base = template(traced)
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, bits, 8)))
    data = inputs("Chain", 16, 1)
    calibrate(compressed.module, [data])
    compressed.module.eval()
    model = exported(base, compressed)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    other = shifted(model, names[1:])
    onnx.checker.check_model(other)
    stored = {t.name: numpy_helper.to_array(t) for t in other.graph.initializer}
    zeros = [
        stored[n.input[2]] for n in other.graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2
    ]
    assert sum(zero.size > 1 and (zero == SHIFTED_ZERO_POINT).all() for zero in zeros) == len(names) - 1
    for one in data[:4]:
        feed = {"input": one[None].numpy()}
        ours, theirs = (session(m.SerializeToString()).run(None, feed)[0] for m in (other, model))
        assert np.array_equal(ours, theirs)
    assert np.isfinite(ours).all()
    with pytest.raises(ValueError, match="'head' is no convolution with integer weights"):
        shifted(model, ["head"])


def test_the_optimiser_makes_the_very_kernels_that_were_timed() -> None:
    plain = build(WIDE, INTEGER)
    names = {layer.name: layer.name for layer in WIDE.layers}
    nodes = fused_nodes(plain, names)
    offered = {node.owner for node in nodes if shifted_key(node.key) is not None}
    assert offered == {"a", "b"}
    other = shifted(onnx.load_from_string(plain), offered).SerializeToString()
    wanted = [(shifted_key(node.key) if node.owner in offered else None) or node.key for node in nodes]
    assert [node.key for node in fused_nodes(other, names)] == wanted


def test_a_shifted_kernel_can_be_timed_alone() -> None:
    nodes = {node.key: node for node in fused_nodes(build(WIDE, INTEGER), {})}
    more = with_shifted(nodes)
    assert set(more) == with_shifted_keys(nodes) > set(nodes)
    for key in set(more) - set(nodes):
        opened = session(benchmark_model(more[key], 2), optimise=False)
        opened.run(None, random_feed(opened))


@pytest.mark.parametrize(
    "key",
    [
        KEY.replace("=s8[96x64x3x3]", "=s8[96x16x3x3]"),  # few products
        KEY.replace("=s8[96x64x3x3]", "=s8[32x64x3x3]"),  # few outputs
        KEY.replace("=s8[],", "=s8[96]:-1,"),  # so already
        KEY.replace("=s8[96x64x3x3]", "=u8[96x64x3x3]"),
        KEY.replace("group=1", "group=64"),
        KEY.replace("QLinearConv", "QGemm"),
        "Relu(f32[1x64])",
    ],
)
def test_what_is_not_offered(key: str) -> None:
    assert shifted_key(KEY) == KEY.replace("=s8[],", "=s8[96]:-1,")
    assert shifted_key(key) is None
    assert faster(key, slow_around_zero(with_shifted_keys([KEY, key]))) == key


def test_only_what_was_measured_to_be_faster_is_shifted() -> None:
    keys = with_shifted_keys([KEY])
    other = shifted_key(KEY)
    table = slow_around_zero(keys)
    assert faster(KEY, table) == other
    assert faster(KEY, table.only([KEY])) == KEY
    assert faster(KEY, table.with_entries({str(other): table["call"]})) == KEY


def test_a_network_is_priced_and_built_with_its_faster_kernels() -> None:
    model = wide_model()
    assert model.shifted(WIDE, INTEGER) == {"a", "b"}
    nodes = fused_nodes(built(model, WIDE, INTEGER), {})
    assert sum(f"]:{SHIFTED_ZERO_POINT}," in node.key for node in nodes) == 2
    together = model.table["call"].median_ms + sum(model.table[node.key].median_ms for node in nodes)
    assert model.cost(WIDE, INTEGER).latency_ms == pytest.approx(together)
    assert model.as_built(WIDE, INTEGER).latency_ms == pytest.approx(together)


def test_an_export_is_stored_as_the_runs_table_has_it(tmp_path: Path) -> None:
    plain = onnx.load_from_string(build(WIDE, INTEGER))
    loaded = cast(
        Any,
        SimpleNamespace(
            config=SimpleNamespace(hardware=SimpleNamespace(threads=1, provider="cpu")),
            profile=load_profile("this-machine"),
            traced=SimpleNamespace(network=WIDE),
        ),
    )
    run = cast(Any, SimpleNamespace(path=tmp_path))
    assert fastest_file(plain, loaded, run) == plain.SerializeToString()  # no table: nothing is known
    wide_model().table.save(tmp_path / "latency_table.csv")
    stored = fastest_file(plain, loaded, run)
    assert stored == shifted(plain, {"a", "b"}).SerializeToString()
    text = (tmp_path / "latency_table.csv").read_text()
    (tmp_path / "latency_table.csv").write_text(text.replace("onnxruntime", "another runtime"))
    said: list[str] = []
    assert fastest_file(plain, loaded, run, said.append) == plain.SerializeToString()
    assert len(said) == 1


def test_a_shifted_network_runs_at_least_as_fast_as_its_table_says_it_does() -> None:
    """Not slower than the other by more than noise: the choice is made by measuring on this machine."""
    from leanfront.latency_models.benchmark.fill import fill
    from leanfront.latency_models.benchmark.timing import time_models

    structure = Structure(WIDE, build)
    structure.observe(WIDE, INTEGER)
    reference = Reference()
    table = fill(LatencyTable(this_device(), {}), with_shifted(structure.nodes), None, reference)
    model = TableModel(structure, table, load_profile("this-machine"))
    models = {"chosen": built(model, WIDE, INTEGER), "plain": build(WIDE, INTEGER)}
    timings = time_models(models, 1, 9, reference=reference)
    assert timings["chosen"].median_ms < 1.3 * timings["plain"].median_ms
