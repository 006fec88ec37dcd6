import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.policy import ACTIVATION_BITS, WEIGHT_BITS
from leanfront.compression.policy.zeros import PATTERNS

layer_policies = st.builds(
    LayerPolicy,
    sparsity=st.floats(0.0, 1.0, allow_nan=False, exclude_max=True),
    weight_bits=st.sampled_from(WEIGHT_BITS),
    activation_bits=st.sampled_from(ACTIVATION_BITS),
    more=st.dictionaries(st.sampled_from([*PATTERNS, "own"]), st.sampled_from([0.0, 0.5]), max_size=2).map(
        lambda more: tuple(more.items())
    ),
)
policies = st.dictionaries(st.text(min_size=1, max_size=12), layer_policies, max_size=5).flatmap(
    lambda layers: st.builds(Policy.of, st.just(layers), st.frozensets(st.sampled_from(list(layers) or [""])))
)


def conv(name: str, before: int, after: int, group: str | None, groups: int = 1) -> Layer:
    return Layer(
        name, LayerShape("conv2d", before, after, (3, 3), groups=groups, out_height=4, out_width=4), group
    )


def network() -> Network:
    """a -> depthwise (same channels as a) -> c, and a -> d; the linear layer reads c's 4x4 positions flat."""
    shared, own, d = Segment("a", 8), Segment("c", 6), Segment(None, 5)
    nodes = (
        Node("x", "input", (), (Segment(None, 3),), (4, 4)),
        Node("n_a", "conv2d", ("x",), (shared,), (4, 4), layer="a"),
        Node("n_depth", "conv2d", ("n_a",), (shared,), (4, 4), layer="depth"),
        Node("n_c", "conv2d", ("n_depth",), (own,), (4, 4), layer="c"),
        Node("n_d", "conv2d", ("n_a",), (d,), (4, 4), layer="d"),
        Node("flat", "flatten", ("n_c",), (Segment("c", 6, 16),)),
        Node("n_fc", "linear", ("flat",), (Segment(None, 10),), layer="fc"),
    )
    layers = (
        conv("a", 3, 8, "a"), conv("depth", 8, 8, "a", groups=8), conv("c", 8, 6, "c"), conv("d", 8, 5, None),
        Layer("fc", LayerShape("linear", 96, 10)),
    )  # fmt: skip
    return Network(nodes, layers, ("n_fc", "n_d"))


def with_layers(**changes: LayerPolicy) -> Policy:
    return Policy.of({layer.name: changes.get(layer.name, LayerPolicy()) for layer in network().layers})


@given(policies)
def test_json_round_trip(policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert dict(again) == dict(policy)
    assert again.absent == policy.absent & policy.keys()
    assert json.loads(policy.to_json()) == policy.to_dict()


@given(policies, st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order(policy: Policy, shuffler: random.Random) -> None:
    items = list(policy.items())
    shuffler.shuffle(items)
    shuffled = Policy.of(dict(items), policy.absent)
    assert shuffled.digest == policy.digest
    assert len({shuffled, policy}) == 1


@given(policies, policies)
def test_different_policies_have_different_hashes(one: Policy, other: Policy) -> None:
    same = dict(one) == dict(other) and one.absent & one.keys() == other.absent & other.keys()
    assert (one.digest == other.digest) == same


def test_files_of_version_0_1_are_read_and_hash_as_then() -> None:
    """There a layer that is left out has sparsity 1.0, and its bits mean nothing."""
    written = '{"a": {"sparsity": 0.5, "weight_bits": 8}, "b": {"sparsity": 1.0, "weight_bits": 4}}'
    policy = Policy.from_json(written)
    assert policy.absent == {"b"}
    assert policy.digest == "4e677b113f3b97d6"
    assert policy == Policy.of({"a": LayerPolicy(0.5, 8), "b": LayerPolicy(0.25, 2, 8)}, {"b"})
    zeros = Policy.from_json('{"a": {"sparsity": 1.0, "pattern": "unstructured"}}')
    assert not zeros.absent
    assert zeros["a"].sparsity == 0.0
    assert zeros["a"].value("unstructured") == 1.0
    with pytest.raises(PolicyError, match="below 1"):
        LayerPolicy(1.0)


def test_numbers_that_are_equal_hash_alike() -> None:
    written = '{"a": {"sparsity": 0, "weight_bits": 8.0}, "b": {"sparsity": -0.0, "activation_bits": 8}}'
    policy = Policy.of({"a": LayerPolicy(0.0, 8), "b": LayerPolicy(activation_bits=8)})
    assert Policy.from_json(written).digest == policy.digest


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": -0.1},
        {"sparsity": 1.1},
        {"weight_bits": 9},
        {"activation_bits": 1},
        {"pattern": "none"},
        {"more": {"block": 1.5}},
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match=next(iter(fields)).replace("more", "block")):
        LayerPolicy(**fields)


def test_a_pattern_of_zeros_means_the_same_as_its_number_among_the_others() -> None:
    """Policies used to say it with ``pattern`` and ``sparsity``; the two are one policy with one hash."""
    for name, share in (("2:4", 0.5), ("unstructured", 0.8), ("block", 0.25), ("4:8", 0.5)):
        old = LayerPolicy(share, 8, 8, name)
        assert old == LayerPolicy(0.0, 8, 8, more=((name, share),))
        written = json.dumps({"a": {"sparsity": share, "weight_bits": 8, "pattern": name}})
        read = Policy.from_json(written)
        assert read == Policy.of({"a": LayerPolicy(weight_bits=8, more=((name, share),))})
        assert read.to_dict()["a"] == {
            "sparsity": 0.0, "weight_bits": 8, "activation_bits": 32, "pattern": "channel",
            "more": {name: share},
        }  # fmt: skip
    assert LayerPolicy(0.0, 8, 8, "2:4") == LayerPolicy(0.0, 8, 8)  # no zeros, no pattern


def test_zeros_that_a_pattern_cannot_have_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"'2:4' the share of zeros \(sparsity\) is 0.5, not 0.6"):
        LayerPolicy(0.6, pattern="2:4")
    with pytest.raises(PolicyError, match="said twice"):
        LayerPolicy(0.5, pattern="2:4", more=(("2:4", 0.5),))
    two_four = LayerPolicy(more=(("2:4", 0.5),))
    with_layers(c=two_four, fc=two_four).check(network())
    for name in ("a", "depth"):  # three input channels; one
        with pytest.raises(PolicyError, match=f"two of four input channels.*layer '{name}'.*leave them out"):
            with_layers(**{name: two_four}).check(network())
    everywhere = Policy.uniform(network(), LayerPolicy(0.0, 8, 8, more=(("2:4", 0.5), ("unstructured", 0.8))))
    everywhere.check(network())
    assert everywhere["a"].more == (("unstructured", 0.8),)
    assert everywhere["c"].more == (("2:4", 0.5), ("unstructured", 0.8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1"),
        ("[]", "object"),
        ('{"a": 3}', "object"),
        ('{"a": {"weight_bit": 4}}', "'weight_bit'"),
        ('{"a": {"sparsity": "much"}}', "type"),
        ('{"a": {"weight_bits": 9}}', "weight_bits"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.from_json(text)


def test_contradictions_are_refused() -> None:
    half, four = LayerPolicy(sparsity=0.5), LayerPolicy(activation_bits=4)
    for policy, said in (
        (with_layers(a=half), "group 'a'"),
        (with_layers(d=half), "'d' cannot be cut"),
        (with_layers(depth=four), "'depth' and 'd' read the same tensor"),
        (Policy.of({"a": half}), "says nothing about layer 'c'"),
        (Policy.of({**with_layers(), "z": half}), "'z'"),
    ):
        with pytest.raises(PolicyError, match=said):
            policy.channels(network())
    with_layers(a=half, depth=half, c=four).channels(network())


@pytest.mark.parametrize(
    ("sparsity", "multiple", "kept"),
    [
        (0.0, 1, 8),
        (0.5, 1, 4),
        (0.4, 1, 5),
        (0.99, 1, 1),
        (0.5, 3, 3),
        (0.9, 3, 3),
        (0.0, 3, 8),
        (0.2, 16, 8),
    ],
)
def test_channels_snap_to_the_multiple(sparsity: float, multiple: int, kept: int) -> None:
    """8 channels; at least one multiple stays, and never more than there are."""
    cut = LayerPolicy(sparsity=sparsity)
    assert with_layers(a=cut, depth=cut).channels(network(), multiple)["a"] == kept


def test_what_is_not_cut_is_not_rounded_either() -> None:
    assert Policy.uniform(network(), LayerPolicy(0.0)).channels(network(), multiple=4) == {"a": 8, "c": 6}


def test_uniform_leaves_channels_that_cannot_be_cut() -> None:
    policy = Policy.uniform(network(), LayerPolicy(0.5, 4, 8))
    assert {name: layer.sparsity for name, layer in policy.items()} == {
        "a": 0.5, "depth": 0.5, "c": 0.5, "d": 0.0, "fc": 0.0,
    }  # fmt: skip
    assert {layer.weight_bits for layer in policy.values()} == {4}
    assert policy.channels(network()) == {"a": 4, "c": 3}


@given(st.integers(1, 8), st.integers(1, 6))
def test_resized_follows_every_reader(a: int, c: int) -> None:
    cut = network().resized({"a": a, "c": c})
    shapes = {layer.name: layer.shape for layer in cut.layers}
    assert {name: (s.in_channels, s.out_channels, s.groups) for name, s in shapes.items()} == {
        "a": (3, a, 1), "depth": (a, a, a), "c": (a, c, 1), "d": (a, 5, 1), "fc": (16 * c, 10, 1),
    }  # fmt: skip
    assert cut.macs == 16 * 9 * (3 * a + a + a * c + 5 * a) + 160 * c
    assert cut.node["flat"].width == 16 * c
    assert cut.resized({}) == cut
    if (a, c) == (8, 6):
        assert cut == network()


@pytest.mark.parametrize("channels", [{"z": 1}, {"a": 0}, {"a": 9}])
def test_impossible_channels_are_refused(channels: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(channels))):
        network().resized(channels)
