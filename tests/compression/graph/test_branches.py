"""Residual branches that are left out: which there are, what a policy may say, and arrays against single."""

import copy
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfront.compression.graph import Layer, Network, Node, kernels
from leanfront.compression.graph.nodes import LayerShape, Segment
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError, tensor_bits
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.precision import integer_kernels
from tests.residual_networks import RESIDUAL, traced_network

BRANCHES = {
    "Residual": {"stage1.conv1.0": "stem_2", "stage2.1.conv1.0": "relu_1"},
    "OptionA": {"inner.0": "pad"},
    "Sequence": {"b": "relu"},
    "PreActivated": {"layers.0": "stem", "layers.1": "add"},
    "Inverted": {"blocks.0.0": "stem_2", "blocks.1.0": "add"},
    "Nested": {"inner.0": "stem_2", "inner.1": "relu", "end": "stem_2", "two.0.0": "one_2"},
    "Around": {"first.0": "x"},
}


@cache
def network_of(name: str) -> Network:
    return traced_network(name).network


@pytest.mark.parametrize("name", RESIDUAL)
def test_which_branches_there_are(name: str) -> None:
    assert {branch.name: branch.stays for branch in network_of(name).branches} == BRANCHES[name]


@pytest.mark.parametrize(("bias", "found"), [("input", ["a"]), ("constant", [])])
def test_what_is_added_to_a_constant_is_no_branch(bias: str, found: list[str]) -> None:
    """As a bias of attention for each pair of places, which has the shape of the scores (Graham et al.
    2021): without the scores nothing of the input would be left."""
    channels = (Segment(None, 4),)
    nodes = (
        Node("x", "input", (), channels),
        Node("bias", bias, (), channels, detail="bias"),
        Node("twice", "mul", ("bias", "bias"), channels),
        Node("a", "linear", ("x",), channels, layer="a"),
        Node("sum", "add", ("a", "twice"), channels),
        Node("end", "softmax", ("sum",), channels),
        Node("beside", "softmax", ("x",), channels),
    )
    network = Network(nodes, (Layer("a", LayerShape("linear", 4, 4)),), ("end", "beside"))
    assert [branch.name for branch in network.branches] == found


def test_a_branch_within_another_goes_with_it() -> None:
    network = network_of("Nested")
    branch = {one.name: one for one in network.branches}
    assert branch["end"].layers == ("inner.0", "inner.1", "end")
    assert network.without([branch["end"]]) == network.without([branch["end"], branch["inner.1"]])


def drawn(network: Network, seed: int, share: float = 0.5) -> Policy:
    """Any branches out, any sparsities and bits, as far as layers may differ."""
    rng = np.random.default_rng(seed)
    out = [branch for branch in network.branches if rng.random() < share]
    gone = {name for branch in out for name in branch.layers}
    cut = {group: float(rng.choice([0.0, 0.25, 0.5])) for group in network.groups}
    source = {node.layer: node.inputs[0] for node in network.nodes if node.layer is not None}
    read = {name: int(rng.choice([4, 8, 8, 32])) for name in dict.fromkeys(source.values())}

    def of(name: str, group: str | None) -> LayerPolicy:
        bits = int(rng.choice([2, 3, 4, 8, 32]))
        return LayerPolicy(cut.get(group or "", 0.0), bits, read[source[name]])

    return Policy.of({layer.name: of(layer.name, layer.group) for layer in network.layers}, gone)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(RESIDUAL)), seed=st.integers(0, 2**32 - 1))
def test_arrays_agree_with_each_policy(name: str, seed: int) -> None:
    network = network_of(name)
    policies = [drawn(network, seed + extra) for extra in range(8)]
    batch = PolicyBatch.of(network, policies)
    sizes = batch.size_bytes()
    for column, policy in enumerate(policies):
        cut = policy.cut(network)
        fused = kernels(cut)
        bits, integer = tensor_bits(fused, policy), integer_kernels(fused, policy)
        there = {kernel.name: kernel for kernel in fused}
        for row, kernel in enumerate(batch.kernels):
            here = there.get(kernel.name)
            width = here.output.width if here else 0
            assert batch.widths[row, column] == width
            assert batch.bits[row, column] == (bits[kernel.name] if here else 0)
            assert batch.integer[row, column] == (kernel.name in integer)
        for row, layer in enumerate(network.layers):
            shape = cut.layer[layer.name].shape if layer.name in cut.layer else None
            assert batch.macs[row, column] == (shape.macs if shape else 0)
            assert batch.weight_counts[row, column] == (shape.weight_count if shape else 0)
            assert batch.out_channels[row, column] == (shape.out_channels if shape else 0)
        assert sizes[column] == size_bytes(cut, policy)
    for columns, part in batch.by_depth():
        assert part.size_bytes().tolist() == sizes[columns].tolist()
        for place, column in enumerate(columns):
            one = PolicyBatch.of(
                part.network, [Policy.of({n: policies[column][n] for n in part.network.layer})]
            )
            assert (one.bits[:, 0] == part.bits[:, place]).all()


@pytest.mark.parametrize("name", RESIDUAL)
def test_cuts_are_equal_networks(name: str) -> None:
    network = network_of(name)
    policy = drawn(network, 3, share=1.0)
    cut, looked_at = policy.cut(network), policy.cut(network)
    assert {group: cut.group_size(group) for group in cut.groups} == looked_at.group_sizes
    again = copy.deepcopy(policy.cut(network))
    assert again == cut == looked_at == Network(cut.nodes, cut.layers, cut.outputs)
    assert again.macs == cut.macs < network.macs
    assert not hasattr(cut, "nothing")


@pytest.mark.parametrize("name", RESIDUAL)
def test_kernels_that_stay_keep_their_names(name: str) -> None:
    network = network_of(name)
    whole, left = kernels(network), kernels(network.without(network.branches))
    gone = {node for branch in network.branches for node in branch.nodes}
    assert [k.name for k in left] == [k.name for k in whole if k.name not in gone]
    joins = {branch.join for branch in network.branches} - gone
    assert {k.name for k in left if k.op == "alias"} == joins


def test_bits_of_what_is_left_out_make_no_other_policy() -> None:
    network = network_of("Residual")
    gone = network.branches[0].layers
    rest = Policy.uniform(network, LayerPolicy(0.0, 8, 8))
    one = Policy.of({**rest, **dict.fromkeys(gone, LayerPolicy(0.5, 4, 8))}, gone)
    other = Policy.of(rest, gone)
    assert one == other
    assert one.there() == {name: layer for name, layer in rest.items() if name not in gone}
    assert one.digest == other.digest != rest.digest
    assert Policy.from_json(one.to_json()) == one
    assert Policy.from_json(one.to_json()).absent == set(gone)
    assert [branch.name for branch in one.left_out(network)] == ["stage1.conv1.0"]


def test_half_a_branch_is_refused() -> None:
    network = network_of("Residual")
    plain = Policy.uniform(network, LayerPolicy())
    half = Policy.of(plain, {"stage1.conv2"})
    with pytest.raises(PolicyError, match=r"whole or not at all.*stage1\.conv1\.0, stage1\.conv2"):
        half.cut(network)
    with pytest.raises(PolicyError, match=r"'stem\.0' .*no residual branch .*start with stage1"):
        Policy.of(plain, {"stem.0"}).check(network)
    zeros = Policy.of({**plain, "stage1.conv2": LayerPolicy(1.0, pattern="unstructured")})
    assert zeros.left_out(network) == ()
    zeros.check(network)


def test_layers_of_a_group_agree_among_those_that_are_there() -> None:
    network = network_of("Residual")
    (first,) = (branch for branch in network.branches if branch.name == "stage1.conv1.0")
    sparsity = {layer.name: 0.5 if layer.group else 0.0 for layer in network.layers}
    policy = Policy.of({name: LayerPolicy(share) for name, share in sparsity.items()}, first.layers)
    assert policy.channels(network)["stem.0"] == 4
    assert "stage1.conv1.0" not in policy.channels(network)
    assert policy.cut(network).layer["stem.0"].shape.out_channels == 4
