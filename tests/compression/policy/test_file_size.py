"""Bytes of a file that are not of layers: what nodes hold, and constants."""

from dataclasses import replace

import numpy as np
import pytest

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes

CHANNELS = (Segment("g", 8),)


def residual(**held: object) -> Network:
    """a - [norm - b] + : the norm is in the branch, and goes with it; ``held``: fields of the norm."""
    shape = LayerShape("linear", 8, 8, out_height=5)
    return Network(
        nodes=(
            Node("x", "input", (), (Segment(None, 8),), (5,)),
            Node("a", "linear", ("x",), CHANNELS, (5,), layer="a"),
            replace(Node("norm", "layernorm", ("a",), CHANNELS, (5,)), **held),
            Node("b", "linear", ("norm",), CHANNELS, (5,), layer="b"),
            Node("sum", "add", ("a", "b"), CHANNELS, (5,)),
            Node("y", "linear", ("sum",), (Segment(None, 8),), (5,), layer="y"),
        ),
        layers=(Layer("a", shape, "g"), Layer("b", shape, "g"), Layer("y", shape)),
        outputs=("y",),
    )


def batch(network: Network) -> PolicyBatch:
    """Uncut, cut to 3 of 8 channels, without the branch, and both."""
    whole = Policy.uniform(network, LayerPolicy())
    several = PolicyBatch.of(network, [whole] * 4)
    several = replace(several, channels=np.array([[8, 3, 8, 3]]))
    return several.leaving_out(np.array([[False, False, True, True]]))


@pytest.mark.parametrize(
    ("held", "more"),
    [
        ({"held_bytes": 1000}, [1000, 1000, 0, 0]),
        ({"channel_bytes": 8}, [64 + 94, 24 + 94, 0, 0]),  # two tensors
        ({"held_bytes": 100, "channel_bytes": 4}, [132 + 47, 112 + 47, 0, 0]),
    ],
)
def test_what_a_node_holds_is_in_the_file_unless_left_out(held: dict[str, int], more: list[int]) -> None:
    found = batch(residual(**held)).size_bytes() - batch(residual()).size_bytes()
    assert found.tolist() == more


def with_constant(**held: object) -> Network:
    network = residual()
    constant = replace(Node("where", "constant", (), CHANNELS, (5,)), **held)
    *nodes, head = network.nodes
    added = Node("placed", "add", ("sum", "where"), CHANNELS, (5,))
    return replace(network, nodes=(*nodes, constant, added, replace(head, inputs=("placed",))))


@pytest.mark.parametrize(
    ("held", "bytes_"), [({}, [160, 60]), ({"held_bytes": 7}, [7, 7]), ({"channel_bytes": 2}, [16, 6])]
)
def test_constants_have_four_bytes_a_value_unless_they_say(held: dict[str, int], bytes_: list[int]) -> None:
    nothing = batch(with_constant(held_bytes=1)).size_bytes() - 1
    found = batch(with_constant(**held)).size_bytes() - nothing
    assert found[:2].tolist() == bytes_


def test_a_norm_that_is_folded_holds_nothing_and_one_that_stays_16_bytes_a_channel() -> None:
    kept = residual(op="batchnorm", inputs=("x",), channels=(Segment(None, 8),))
    plain = residual(op="softmax", inputs=("x",), channels=(Segment(None, 8),))
    policy = Policy.uniform(kept, LayerPolicy())
    assert size_bytes(kept, policy) - size_bytes(plain, policy) == 16 * 8 + 184
    folded = residual(op="batchnorm")  # behind layer a
    alone = replace(
        folded,
        nodes=tuple(
            replace(node, inputs=tuple("norm" if name == "a" else name for name in node.inputs))
            if node.op == "add"
            else node
            for node in folded.nodes
        ),
    )
    said = replace(
        alone, nodes=tuple(replace(n, channel_bytes=16) if n.op == "batchnorm" else n for n in alone.nodes)
    )
    assert size_bytes(said, policy) == size_bytes(alone, policy)
