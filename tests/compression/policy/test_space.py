from functools import cache

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.compression.policy.technique import SpaceError
from leanfront.hw_profiles import load_profile
from tests.residual_networks import RESIDUAL, traced_network


def network(first: int = 16, second: int = 12) -> Network:
    """Two convolutions and, reading the same tensor as the second, a third; then a classifier."""

    def conv(name, source, channels_in, channels_out, group):
        shape = LayerShape("conv2d", channels_in, channels_out, (3, 3), (1, 1), 1, 8, 8)
        node = Node(name, "conv2d", (source,), (Segment(group, channels_out),), (8, 8), layer=name)
        return node, Layer(name, shape, group)

    parts = [
        conv("a", "x", 3, first, "a"),
        conv("b", "a", first, second, "b"),
        conv("c", "a", first, second, "b"),
    ]
    nodes = [
        Node("x", "input", (), (Segment(None, 3),), (8, 8)),
        *(node for node, _ in parts),
        Node("sum", "add", ("b", "c"), (Segment("b", second),), (8, 8)),
        Node("pool", "global_avgpool", ("sum",), (Segment("b", second),), (1, 1)),
        Node("fc", "linear", ("pool",), (Segment(None, 10),), layer="fc"),
    ]
    layers = [layer for _, layer in parts] + [Layer("fc", LayerShape("linear", second, 10))]
    return Network(tuple(nodes), tuple(layers), ("fc",))


def space(
    sparsity=(0.0, 0.25, 0.5),
    weight_bits=(4, 8, 32),
    activation_bits=(8, 32),
    multiple=1,
    depth=True,
    **sizes,
) -> Space:
    profile = load_profile("toy").model_copy(update={"channel_multiple": multiple})
    return Space(network(**sizes), profile, sparsity, weight_bits, activation_bits, depth)


def test_pairs_are_those_the_profile_runs():
    assert space().pairs == ((4, 8), (4, 32), (8, 8), (8, 32), (32, 32))  # not (32, 8)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ({"weight_bits": (3, 8), "activation_bits": (32,)}, ["weight_bits", "3", "toy"]),
        ({"weight_bits": (32,), "activation_bits": (8, 32)}, ["activation_bits", "8"]),
        ({"weight_bits": (16,), "activation_bits": (8,)}, ["weight_bits", "16"]),
    ],
)
def test_bits_that_the_profile_cannot_run(bits, words):
    with pytest.raises(SpaceError) as error:
        space(**bits)
    for word in [*words, load_profile("toy").supported_sentence]:
        assert word in str(error.value)


def test_levels_are_what_is_really_cut_each_once():
    # 12 channels in steps of 8: none cut, or 4 of them; 16 in steps of 8: none, or half
    levels = space(sparsity=(0.0, 0.1, 0.25, 0.5, 0.9), multiple=8).levels
    assert levels == {"a": (0.0, 0.5), "b": (0.0, 0.333333)}
    assert space(sparsity=(0.3, 0.31)).levels == {"a": (0.3125,), "b": (0.333333,)}


def test_the_size_is_the_number_of_different_policies():
    small = space(sparsity=(0.0, 0.5), weight_bits=(4, 8, 32), activation_bits=(8, 32))
    # a and fc: 5 pairs each; b and c read one tensor: 2 x 2 at 8 bits, 3 x 3 at 32; two groups of 2 levels;
    # with b left out c has 2 or 3 widths
    assert small.size == 4 * 5 * 5 * (4 + 9 + 2 + 3)
    assert space((0.0, 0.5), (4, 8, 32), (8, 32), depth=False).size == 4 * 5 * 5 * (4 + 9)
    rng = np.random.default_rng(0)
    assert len({small.random(rng).digest for _ in range(30_000)}) == small.size


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), multiple=st.sampled_from([1, 4, 8]), changes=st.integers(1, 6))
def test_every_policy_fits_and_is_found_again(seed, multiple, changes):
    where = space(multiple=multiple)
    rng = np.random.default_rng(seed)
    for policy in (where.random(rng), where.mutated(where.random(rng), rng, changes)):
        policy.check(where.network)
        there = policy.there().values()
        assert all((p.weight_bits, p.activation_bits) in where.pairs for p in there)
        assert all(count % multiple == 0 or count == 12 for count in where.channels(policy).values())
        fixed = optuna.trial.FixedTrial(where.params_of(policy))
        assert where.suggest(fixed) == policy


def test_a_policy_keeps_its_channels_whatever_the_multiple_then_is():
    where = space(multiple=8)
    policy = where.random(np.random.default_rng(1))
    assert policy.channels(where.network, 8) == policy.channels(where.network, 1)


def test_seeds_start_uncompressed_and_are_in_the_space():
    where = space()
    seeds = where.seeds()
    assert seeds[0] == Policy.uniform(where.network, LayerPolicy())
    assert seeds[1] == Policy.uniform(where.network, LayerPolicy(0.0, 8, 8))
    assert len(set(seeds)) == len(seeds)
    for policy in seeds:
        where.params_of(policy)


def test_half_precision_is_a_pair_and_a_seed_where_the_part_has_it():
    where = space(weight_bits=(8, 16, 32), activation_bits=(8, 16, 32))
    assert (16, 16) in where.pairs
    assert (16, 32) not in where.pairs
    assert Policy.uniform(where.network, LayerPolicy(0.0, 16, 16)) in where.seeds()
    pipeline = Space(network(), load_profile("zynq-7020"), [0.0], [1, 2], [2, 3])
    assert pipeline.pairs == ((1, 2), (1, 3), (2, 2), (2, 3))


def test_seeds_of_a_space_without_floats_or_without_cuts():
    integers = space(weight_bits=(8,), activation_bits=(8,))
    assert {p.weight_bits for policy in integers.seeds() for p in policy.there().values()} == {8}
    uncut = space(sparsity=(0.0,), depth=False)
    assert all(p.sparsity == 0 for policy in uncut.seeds() for p in policy.values())
    assert [len(levels) for levels in uncut.levels.values()] == [1, 1]


def test_what_is_not_in_the_space_has_no_parameters():
    where = space(weight_bits=(8,), activation_bits=(8,))
    with pytest.raises(ValueError, match="bits"):
        where.params_of(Policy.uniform(where.network, LayerPolicy()))
    with pytest.raises(ValueError, match="keep"):
        where.params_of(Policy.uniform(where.network, LayerPolicy(0.75, 8, 8)))


def test_one_decision_for_a_group_and_one_for_a_layer():
    study = optuna.create_study()
    trial = study.ask()
    space().suggest(trial)
    decisions = {"sparsity/a", "sparsity/b", "bits/a", "bits/b", "bits/c", "bits/fc"}
    assert set(trial.params) == decisions | {"branch/b"}
    trial = study.ask()
    space(depth=False).suggest(trial)
    assert set(trial.params) == decisions


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(list(RESIDUAL)), seed=st.integers(0, 2**32 - 1))
def test_branches_that_are_left_out_are_found_again(name, seed):
    where = residual_space(name)
    rng = np.random.default_rng(seed)
    for policy in (where.random(rng), where.mutated(where.random(rng), rng, 3)):
        policy.check(where.network)
        assert where.suggest(optuna.trial.FixedTrial(where.params_of(policy))) == policy
    codes = np.array([rng.integers(len(decision.values), size=4) for decision in where.decisions])
    batch = where.batch(codes)
    one_by_one = [
        where.policy({d.name: d.values[code] for d, code in zip(where.decisions, column, strict=True)})
        for column in codes.T
    ]
    same = PolicyBatch.of(where.network, one_by_one, where.multiple)
    assert (same.channels == batch.channels).all()
    assert (same.weight_bits == batch.weight_bits).all()
    assert (same.activation_bits == batch.activation_bits).all()
    assert same.left_out is None or (same.left_out == batch.left_out).all()
    assert (same.widths == batch.widths).all()
    assert (same.bits == batch.bits).all()
    assert (same.integer == batch.integer).all()
    assert (same.size_bytes() == batch.size_bytes()).all()


@cache
def residual_space(name, sparsity=(0.0, 0.5), weight_bits=(4, 8, 32), activation_bits=(8, 32)) -> Space:
    traced = traced_network(name).network
    return Space(traced, load_profile("toy"), sparsity, weight_bits, activation_bits)


@pytest.mark.parametrize("name", ["OptionA", "Sequence", "Around", "Nested"])
def test_the_size_counts_what_differs_with_branches(name):
    bits = ((8, 32), (8, 32)) if name != "Nested" else ((32,), (32,))
    where = residual_space(name, (0.0,), *bits)
    if name == "Nested":  # two within a third, and another: (2 x 2 + 1) x 2
        assert where.size == 10
    rng = np.random.default_rng(0)
    assert len({where.random(rng).digest for _ in range(20 * where.size)}) == where.size


def test_few_seeds_leave_branches_out():
    where = residual_space("Residual")
    shallower = [len(policy.left_out(where.network)) for policy in where.seeds()]
    assert shallower[-1:] == [1]
    assert not any(shallower[:-1])


@pytest.mark.parametrize("name", ["Residual", "Inverted", "Nested"])
def test_what_is_nearest_to_a_policy_of_another_space(name: str) -> None:
    network = traced_network(name).network
    wide = Space(network, load_profile("this-machine"), [0.0, 0.1, 0.25, 0.5, 0.75], [2, 4, 8, 32], [8, 32])
    narrow = Space(network, load_profile("raspberry-pi-4"), [0.0, 0.5], [8, 32], [8, 32], depth=False)
    rng = np.random.default_rng(0)
    for _ in range(30):
        there = narrow.random(rng)
        assert narrow.nearest(there) == there
        policy = wide.random(rng)
        near = narrow.nearest(policy)
        narrow.params_of(near)  # raises for what the space has not
        for layer, own in near.items():
            if layer in policy.absent or network.layer[layer].weight_only:
                continue
            wanted = policy[layer]
            assert (own.weight_bits, own.activation_bits) in ((8, 8), (32, 32))
            first = narrow.first_readers.get(layer, layer)
            if first == layer:
                assert own.activation_bits == wanted.activation_bits
            assert abs(own.sparsity - wanted.sparsity) <= 0.3
