"""What policies and spaces say of tables that are looked up."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.latency_models.registry import model_of
from leanfront.search.samplers.cascade.encoding import Encoding


def network(rows: int = 1000) -> Network:
    """Five places are looked up in a table of 16 columns; a linear layer of 8 channels, and a classifier."""
    nodes = (
        Node("ids", "input", (), (Segment(None, 5),)),
        Node("table", "embedding", ("ids",), (Segment("table", 16),), (5,), layer="table"),
        Node("a", "linear", ("table",), (Segment("a", 8),), (5,), layer="a"),
        Node("b", "linear", ("a",), (Segment(None, 3),), (5,), layer="b"),
    )
    layers = (
        Layer("table", LayerShape("embedding", rows, 16, out_height=5), "table", bias=False),
        Layer("a", LayerShape("linear", 16, 8, out_height=5), "a"),
        Layer("b", LayerShape("linear", 8, 3, out_height=5)),
    )
    return Network(nodes, layers, ("b",))


def space(profile: HardwareProfile | str = "toy", weight_bits: tuple[int, ...] = (4, 8, 32)) -> Space:
    part = load_profile(profile) if isinstance(profile, str) else profile
    return Space(network(), part, (0.0, 0.5), weight_bits, (8, 32))


def test_a_space_decides_on_the_weights_of_tables_alone() -> None:
    offered = space()
    values = {decision.name: decision.values for decision in offered.decisions}
    assert values["bits/table"] == ((4, 32), (8, 32), (32, 32))
    assert values["bits/a"] == offered.pairs == ((4, 8), (4, 32), (8, 8), (8, 32), (32, 32))
    assert values["sparsity/table"] == (0.0, 0.5)
    assert offered.uniform(0.5, (4, 8))["table"] == LayerPolicy(0.5, 4, 32)
    assert offered.uniform(0.0, (8, 8))["table"] == LayerPolicy(0.0, 8, 32)
    assert offered.size == 2 * 2 * 3 * 5 * 5


def test_a_part_that_decodes_no_weights_keeps_tables_in_floats() -> None:
    whole = load_profile("toy")
    part = whole.model_copy(update={"supported": ((8, 8),)})
    offered = Space(network(), part, (0.0,), (8,), (8,))
    assert [d.values for d in offered.decisions if d.name == "bits/table"] == [((32, 32),)]
    costs = model_of(whole).cost(network(), offered.reference)
    assert costs.latency_ms > 0


def test_policies_codes_and_batches_say_the_same() -> None:
    offered = space()
    encoding = Encoding(offered)
    rng = np.random.default_rng(0)
    codes = encoding.random(200, rng)
    batch = offered.batch(codes)
    for column in range(0, 200, 7):
        values = {d.name: d.values[codes[row, column]] for row, d in enumerate(offered.decisions)}
        policy = offered.policy(values)
        assert policy["table"].weight_bits == values["bits/table"][0]
        assert batch.policy(column) == policy
        assert offered.policy({**values, **_chosen(offered, encoding.of(policy))}) == policy
    again = encoding.canonical(encoding.canonical(codes))
    assert (again == encoding.canonical(codes)).all()


def _chosen(offered: Space, codes: np.ndarray) -> dict[str, object]:
    return {d.name: d.values[code] for d, code in zip(offered.decisions, codes.tolist(), strict=True)}


def test_policies_from_before_tables_had_bits_leave_them_as_they_are() -> None:
    text = json.dumps({"a": {"sparsity": 0.5, "weight_bits": 8, "activation_bits": 8}, "b": {}})
    old = Policy.from_json(text)
    one = network()
    old.check(one)
    assert old.completed(one)["table"] == LayerPolicy()
    assert tuple(old.completed(one)) == one.layer_names
    named = Policy.of({"table": LayerPolicy(), **old})
    assert PolicyBatch.of(one, [old]).size_bytes() == PolicyBatch.of(one, [named]).size_bytes()
    assert old.cut(one) == named.cut(one)


def test_a_table_that_is_not_named_is_cut_with_its_group() -> None:
    one = network()
    nodes = [replace(n, channels=(Segment("table", 16),)) if n.name == "a" else n for n in one.nodes]
    layers = (
        one.layer["table"],
        Layer("a", LayerShape("linear", 16, 16, out_height=5), "table"),
        Layer("b", LayerShape("linear", 16, 3, out_height=5)),
    )
    joined = Network(tuple(nodes), layers, one.outputs)
    old = Policy.of({"a": LayerPolicy(0.25), "b": LayerPolicy()})
    assert old.completed(joined)["table"].sparsity == 0.25
    assert old.cut(joined).layer["table"].shape == LayerShape("embedding", 1000, 12, out_height=5)
    with pytest.raises(PolicyError, match="'b'"):
        Policy.of({"a": LayerPolicy()}).check(joined)


@pytest.mark.parametrize("bits", [(8, 8), (32, 16), (16, 16)])
def test_tables_put_out_floats(bits: tuple[int, int]) -> None:
    one = network()
    wrong = Policy.of({"table": LayerPolicy(0.0, *bits), "a": LayerPolicy(), "b": LayerPolicy()})
    with pytest.raises(PolicyError, match="'table' has weight bits alone: its activation_bits must be 32"):
        wrong.check(one)
    Policy.uniform(one, LayerPolicy(0.0, *bits)).check(one)


def test_a_lookup_costs_what_it_moves_however_many_rows_there_are() -> None:
    toy = load_profile("toy")
    rows = {
        (count, bits): model_of(toy).layers(
            network(count),
            Policy.of({"table": LayerPolicy(0.0, bits), "a": LayerPolicy(), "b": LayerPolicy()}),
        )[0]
        for count in (1000, 100_000)
        for bits in (8, 32)
    }
    assert {row.name for row in rows.values()} == {"table"}
    assert rows[1000, 8].latency_ms == rows[100_000, 8].latency_ms
    few, wide = rows[1000, 8].latency_ms, rows[1000, 32].latency_ms
    per_ms = toy.section.bandwidth_bytes_per_ms
    assert wide - few == pytest.approx(5 * 16 * 3 / per_ms)
    assert math.isfinite(few)
    assert few > 0
