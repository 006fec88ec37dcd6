import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.policy import Layer, LayerPolicy, LayerShape, Network, Node, Policy, Segment
from hw_profiles import load_profile
from search.config import ConfigError
from search.space import Space


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
    sparsity=(0.0, 0.25, 0.5), weight_bits=(4, 8, 32), activation_bits=(8, 32), multiple=1, **sizes
) -> Space:
    profile = load_profile("toy").model_copy(update={"channel_multiple": multiple})
    return Space(network(**sizes), profile, sparsity, weight_bits, activation_bits)


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
    with pytest.raises(ConfigError) as error:
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
    # a and fc: 5 pairs each; b and c read one tensor: 2 x 2 at 8 bits, 3 x 3 at 32; two groups of 2 levels
    assert small.size == 4 * 5 * 5 * (4 + 9)
    rng = np.random.default_rng(0)
    assert len({small.random(rng).digest for _ in range(30_000)}) == small.size


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), multiple=st.sampled_from([1, 4, 8]), changes=st.integers(1, 6))
def test_every_policy_fits_and_is_found_again(seed, multiple, changes):
    where = space(multiple=multiple)
    rng = np.random.default_rng(seed)
    for policy in (where.random(rng), where.mutated(where.random(rng), rng, changes)):
        policy.check(where.network)
        assert all((p.weight_bits, p.activation_bits) in where.pairs for p in policy.values())
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


def test_seeds_of_a_space_without_floats_or_without_cuts():
    integers = space(weight_bits=(8,), activation_bits=(8,))
    assert {p.weight_bits for policy in integers.seeds() for p in policy.values()} == {8}
    uncut = space(sparsity=(0.0,))
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
    assert set(trial.params) == {"sparsity/a", "sparsity/b", "bits/a", "bits/b", "bits/c", "bits/fc"}
