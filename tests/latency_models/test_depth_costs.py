"""What networks cost that leave residual branches out."""

from functools import cache

import numpy as np
import pytest

from leanfront.compression.export.network_model import network_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.kernel_table.keys import constant_bytes_of
from leanfront.latency_models.kernel_table.table import Entry, LatencyTable, this_device
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.policy_draws import Cover, alone, draw
from leanfront.latency_models.registry import model_of
from tests.residual_networks import traced_network

NETWORKS = ("Residual", "Inverted", "OptionA")


@cache
def space_of(name: str, profile: str = "this-machine") -> Space:
    network = traced_network(name).network
    part = load_profile(profile)
    bits = sorted({pair[0] for pair in part.supported if pair[0] in (4, 8, 32)})
    activations = sorted({pair[1] for pair in part.supported if pair[1] in (8, 32)})
    return Space(network, part, (0.0, 0.5), bits, activations)


def drawn(space: Space, count: int, seed: int = 0) -> list[Policy]:
    rng = np.random.default_rng(seed)
    return [draw(space, rng) if i % 2 else space.random(rng) for i in range(count)]


def table_model(structure: Structure, keys: set[str]) -> TableModel:
    """The larger the slower."""
    table = {key: Entry(1e-4 * (1 + constant_bytes_of(key)), 0.0, 1, 1.0, 0.05, 0, "") for key in keys}
    table["call"] = Entry(0.005, 0.0, 1, 1.0, 0.05, 0, "")
    return TableModel(structure, LatencyTable(this_device(), table), load_profile("this-machine"))


@cache
def seen(name: str) -> Structure:
    space = space_of(name)
    structure = Structure(space.network, network_model)
    for policy in [*space.seeds(), *drawn(space, 60), *drawn(space, 60, seed=5)]:
        structure.observe(space.resized(policy), policy)
    return structure


@pytest.mark.parametrize(
    "name", ["Inverted", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Residual", "OptionA"))]
)
def test_a_table_prices_what_is_left_as_if_it_were_the_network(name: str) -> None:
    """Kernels of the whole network without branches, against a structure of the network that is left."""
    space, structure = space_of(name), seen(name)
    policies = [policy for policy in drawn(space, 40) if policy.left_out(space.network)][:12]
    model = table_model(structure, structure.keys())
    for policy in policies:
        network = space.resized(policy)
        alone = Structure(network, network_model)
        parts = alone.observe(network, policy)
        by_kernel = dict(zip((k.name for k in alone.kernels), parts, strict=True))
        foretold = structure.foretold(network, policy)
        assert foretold == [by_kernel.get(kernel.name, ()) for kernel in structure.kernels]
        ours = model.cost(network, policy)
        theirs = table_model(alone, structure.keys()).cost(network, policy)
        assert ours.latency_ms == pytest.approx(theirs.latency_ms)
        assert ours.size_bytes == theirs.size_bytes == size_bytes(network, policy)
        assert ours.peak_memory_bytes == theirs.peak_memory_bytes


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_prices_many_as_each(name: str) -> None:
    space, structure = space_of(name), seen(name)
    policies = drawn(space, 60, seed=5)
    model = table_model(structure, structure.keys())
    one_by_one = [model.cost(space.resized(policy), policy) for policy in policies]
    found = model.costs(PolicyBatch.of(space.network, policies, space.multiple))
    assert any(policy.left_out(space.network) for policy in policies)
    assert found.latency_ms == pytest.approx([cost.latency_ms for cost in one_by_one])
    assert found.size_bytes.tolist() == [cost.size_bytes for cost in one_by_one]
    assert found.peak_memory_bytes.tolist() == [cost.peak_memory_bytes for cost in one_by_one]


def test_a_rule_learned_without_branches_out_answers_with_them_out() -> None:
    """Of what is left out nothing has to be known."""
    space = space_of("Residual")
    structure = Structure(space.network, network_model)
    whole = [space.uniform(0.0, pair) for pair in space.pairs]
    for policy in whole:
        structure.observe(space.resized(policy), policy)
    out = space.uniform(0.0, (32, 32), space.branches)
    parts = dict(
        zip((k.name for k in structure.kernels), structure.foretold(space.resized(out), out), strict=True)
    )
    gone = {name for branch in space.branches for name in (*branch.nodes, branch.join)}
    assert {parts[name] for name in parts if name in gone} == {()}


@pytest.mark.parametrize("profile", ["toy", "raspberry-pi-4", "jetson-orin-nano", "zcu102-dpu", "zynq-7020"])
def test_computed_models_price_many_as_each(profile: str) -> None:
    space = space_of("Residual", profile)
    model = model_of(load_profile(profile))
    policies = drawn(space, 12)
    found = model.costs(PolicyBatch.of(space.network, policies, space.multiple))
    for column, policy in enumerate(policies):
        one = model.cost(space.resized(policy), policy)
        assert found.latency_ms[column] == pytest.approx(one.latency_ms)
        assert found.energy_mj[column] == pytest.approx(one.energy_mj)
        assert found.size_bytes[column] == one.size_bytes
        assert found.peak_memory_bytes[column] == pytest.approx(one.peak_memory_bytes, abs=1)
        assert found.fits[column] == one.fits
    pair = max(space.pairs)
    whole, left = space.uniform(0.0, pair), space.uniform(0.0, pair, space.branches)
    costs = [model.cost(space.resized(policy), policy).latency_ms for policy in (left, whole)]
    assert costs[0] < costs[1]


def test_what_is_measured_beforehand_leaves_every_branch_out_at_every_precision_around_it() -> None:
    space = space_of("Residual")
    cover, rng = Cover(space), np.random.default_rng(0)
    shown: dict[str, set[tuple[bool, bool]]] = {branch.name: set() for branch in space.branches}
    around = {
        "stage1.conv1.0": ("stem.0", "stage2.0.conv1.0"),
        "stage2.1.conv1.0": ("stage2.0.conv2", "head"),
    }
    for _ in range(3000):
        if cover.complete:
            break
        policy = cover.next(rng)
        cover.note(policy)
        for branch in policy.left_out(space.network):
            before, behind = around[branch.name]
            shown[branch.name].add((policy[before].integer, policy[behind].integer))
    assert cover.complete
    assert {name: len(pairs) for name, pairs in shown.items()} == dict.fromkeys(around, 4)


def test_left_out_layers_are_shown_as_such(tmp_path) -> None:
    import json
    import subprocess
    import sys

    space = space_of("Residual")
    from leanfront.compression.export.template import template
    from leanfront.compression.export.walk import random_model

    traced = traced_network("Residual")
    plain = Policy.uniform(traced.network, LayerPolicy())
    (tmp_path / "net.onnx").write_bytes(
        random_model(template(traced), traced.network, plain).SerializeToString()
    )
    policy = space.uniform(0.0, (32, 32), space.branches[:1])
    (tmp_path / "policy.json").write_text(policy.to_json())
    command = [sys.executable, "-m", "leanfront", "cost", "net.onnx", "--profile", "toy"]

    def run(*more: str) -> str:
        return subprocess.run(
            [*command, *more], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    whole = json.loads(run("--format", "json"))
    left = json.loads(run("--policy", "policy.json", "--format", "json"))
    assert left["latency_ms"] < whole["latency_ms"]
    gone = set(space.branches[0].layers)
    assert {row["name"] for row in left["layers"]}.isdisjoint(gone)
    text = run("--policy", "policy.json")
    assert all("left out" in line for line in text.splitlines() if any(name in line for name in gone))
    assert text.count("left out") == len(gone)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_branch_is_left_out_alone_and_all_together(name: str) -> None:
    """In integers and in floats; what is left without any branch is seen at several widths."""
    space = space_of(name)
    precisions: dict[frozenset[str], list[bool]] = {}
    for policy in alone(space):
        left_out = frozenset(branch.name for branch in policy.left_out(space.network))
        precisions.setdefault(left_out, []).append(any(layer.integer for layer in policy.values()))
    each = [frozenset([branch.name]) for branch in space.branches]
    assert set(precisions) == {*each, frozenset().union(*each)}
    assert all(set(found) == {True, False} for found in precisions.values())
