"""The playback of onnxruntime's memory plan against a plain one, on footprints drawn at random."""

import numpy as np
import pytest

from leanfront.compression.graph import Branch, Layer, LayerShape, Network, Node, Segment, kernels
from leanfront.compression.graph.absent_kernels import Missing
from leanfront.latency_models.measured.arena import Arena
from leanfront.latency_models.measured.footprint import Footprint, Looks, Made, Wanted
from tests.latency_models.measured.plain_arena import PlainArena

KINDS = 5
ADDED = {"c": "a", "e": "c", "g": "c"}  # additions behind b, d and f, and what else they read


def ladder() -> Network:
    """x -> a -> b, sum with a, -> d, sum with that, ...; two outputs."""
    nodes, layers, before = [Node("x", "input", (), (Segment(None, 2),), (4, 4), None)], [], "x"
    for name in "abcdefgh":
        segment = (Segment(None, 2),)
        if name in ADDED:
            nodes.append(Node(name, "add", (before, ADDED[name]), segment, (4, 4), None))
        else:
            nodes.append(Node(name, "conv2d", (before,), segment, (4, 4), name))
            layers.append(Layer(name, LayerShape("conv2d", 2, 2, (3, 3), out_height=4, out_width=4)))
        before = name
    return Network(tuple(nodes), tuple(layers), ("e", "h"))


def look(kind: int) -> Looks:
    return (None, True, (kind,))


def drawn(rng: np.random.Generator, with_late: bool = True) -> Footprint:
    """Up to three nodes that read some tensors of earlier kernels and make one or two each."""
    made: list[Made] = []
    wanted: list[Wanted] = []
    shown: dict[Looks, int] = {}
    together: list[tuple[int, ...]] = []
    nodes = int(rng.integers(0, 4))
    for node in range(nodes):
        first, kind = len(made), int(rng.integers(KINDS))
        how = rng.choice(["plain", "plain", "over", "alias", "split"])
        for operand in range(int(rng.integers(1, 4))):
            looks = tuple(look(int(k)) for k in rng.permutation(KINDS)[: rng.integers(1, 3)])
            wanted.append(
                Wanted(
                    node,
                    looks,
                    over=first if how == "over" and operand else -1,
                    alias=first if how == "alias" and not operand else -1,
                )
            )
        inner = tuple(place for place, tensor in enumerate(made) if tensor.last == node)
        for _ in range(2 if how == "split" else 1):
            last = int(rng.integers(node, nodes))
            size = 0 if how == "alias" else 256 * (kind + 1)
            shown[look(kind)] = len(made)
            made.append(Made((True, (kind,)), size, node, last, inner if how == "over" else ()))
        if how == "split":
            together.append((first, first + 1))
    late = drawn(rng, with_late=False) if with_late and rng.random() < 0.4 else None
    return Footprint(
        nodes,
        tuple(made),
        tuple(wanted),
        tuple(shown.items()),
        tuple(together),
        int(rng.integers(4)) * 256,
        late if late is not None and late.nodes else None,
    )


@pytest.mark.parametrize("seed", range(8))
def test_peaks_are_those_of_the_plain_playback(seed: int) -> None:
    """Of a few footprints per kernel in any combination, so that what was asked before is asked again."""
    rng, network = np.random.default_rng(seed), ladder()
    fused = kernels(network)
    arena, plain = Arena(fused, network.outputs), PlainArena(fused, network.outputs)
    per_kernel = []
    for _ in fused:
        footprints = [drawn(rng) for _ in range(4)]
        per_kernel.append([arena.number(one) for one in footprints])
        assert [plain.number(one) for one in footprints] == per_kernel[-1]
    numbers = np.array([rng.choice(known, 300) for known in per_kernel])
    expected = [plain.peak_bytes(column) for column in numbers.T.tolist()]
    assert len(set(expected)) > 10
    assert arena.peaks_bytes(numbers).tolist() == expected
    assert [arena.peak_bytes(column) for column in numbers.T.tolist()] == expected


def without(network: Network, left_out: tuple[Branch, ...]) -> Missing:
    return Missing.together([Missing.of(kernels(network), branch) for branch in left_out])


@pytest.mark.parametrize("seed", range(4))
def test_branches_that_are_left_out_are_as_if_they_had_never_been(seed: int) -> None:
    """One playback for all sets of branches, against one of the network that is left."""
    rng, network = np.random.default_rng(seed), ladder()
    fused = kernels(network)
    arena = Arena(fused, network.outputs)
    assert [branch.join for branch in network.branches] == ["c", "g"]
    for left_out in (network.branches[:1], network.branches[1:], network.branches):
        there = {kernel.name: kernel for kernel in kernels(network.without(left_out))}
        alone = Arena(tuple(there.values()), network.outputs)
        missing = without(network, left_out)
        peaks = []
        for _ in range(100):
            drawn_here = [
                drawn(rng) if k.name in there and there[k.name].op != "alias" else Footprint() for k in fused
            ]
            numbers = [arena.number(one) for one in drawn_here]
            peaks.append(arena.peak_bytes(numbers, missing))
            rest = [one for k, one in zip(fused, drawn_here, strict=True) if k.name in there]
            assert peaks[-1] == alone.peak_bytes([alone.number(one) for one in rest])
        assert len(set(peaks)) > 10
