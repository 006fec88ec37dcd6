"""Residual branches that can be left out whole, found in the connections; the network without them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from leanfront.compression.graph.kernels import Kernel, fuses, kernels
from leanfront.compression.graph.nodes import Graph, Layer, Node, Segment
from leanfront.compression.graph.operations import operation

ALIAS = "alias"
"""Operation of what is left of an addition when its branch is left out: another name of the tensor that it
reads. Nothing is computed, stored or exported for it."""

SCALED, FILLED = "scaled", "filled"
"""Details of nodes: an addition that multiplies an operand first, a padding with other values than 0."""


@dataclass(frozen=True)
class Branch:
    """One side of an addition, which can be left out.

    name: its first layer that is in no branch within it. join: kernel (the addition and an activation fused
    behind it) that becomes an alias; merged: its nodes but the last. stays: node of the other operand.
    layers: names of the layers in the branch, in order of execution. nodes: all that goes with it.
    """

    name: str
    join: str
    stays: str
    layers: tuple[str, ...]
    nodes: frozenset[str]
    merged: tuple[str, ...]


def find_branches(network: Graph) -> tuple[Branch, ...]:
    """The branches of a network, in order of their joins; ``Network.branches`` remembers them.

    A branch ends in an addition whose two operands have the same channels and sizes; nothing else reads what
    is computed in it; there is a layer in it, other than tables, and none that is used outside, too; and the
    network's input is not. The other operand depends on an input: what is stored (a bias of attention scores)
    is no way around. An activation fused behind the addition must not change the other operand: that is the
    output of the same activation already, only moved or pooled since. The addition is no output of the
    network. Where both operands qualify, the one with more layers is the branch, or else the first. A branch
    has a layer of its own besides those of branches within it; so which branches a policy leaves out can be
    read off its layers.
    """
    order = {node.name: place for place, node in enumerate(network.nodes)}
    computed: set[str] = set()
    for node in network.nodes:
        if operation(node.op).given or not computed.isdisjoint(node.inputs):
            computed.add(node.name)
    found: list[Branch] = []
    for kernel in kernels(network):
        join = kernel.nodes[0]
        if not operation(kernel.op).adds or join.detail == SCALED or len(set(join.inputs)) != 2:
            continue
        if any(node.name in network.outputs for node in kernel.nodes):
            continue
        sides = (join.inputs, join.inputs[::-1])
        offered = [_branch(network, kernel, goes, stays, order) for goes, stays in sides if stays in computed]
        best = max((b for b in offered if b is not None), key=lambda b: len(b.layers), default=None)
        if best is None:
            continue
        within = {name for other in found if other.nodes < best.nodes for name in other.layers}
        if own := [name for name in best.layers if name not in within]:
            found.append(replace(best, name=own[0]))
    return tuple(found)


def _branch(network: Graph, join: Kernel, goes: str, stays: str, order: dict[str, int]) -> Branch | None:
    head = join.nodes[0]
    other = network.node[stays]
    same_shape = other.spatial == head.spatial == network.node[goes].spatial
    if not same_shape or not (_segments(other) == _segments(head) == _segments(network.node[goes])):
        return None
    if join.activation and not _unchanged(network, other, join.activation):
        return None
    if network.consumers[goes] != (head.name,) or goes in network.outputs:
        return None
    nodes = {goes}
    for node in reversed(network.nodes[: order[goes]]):
        readers = network.consumers[node.name]
        if readers and nodes.issuperset(readers) and node.name not in network.outputs:
            nodes.add(node.name)
    inside = [node for node in network.nodes if node.name in nodes]
    layers = tuple(dict.fromkeys(node.layer for node in inside if node.layer is not None))
    computes = any(operation(node.op).layer for node in inside)
    if not computes or any(operation(node.op).given for node in inside):
        return None
    if not all(nodes.issuperset(network.uses[name]) for name in layers):
        return None  # a layer is left out with all its uses, or stays
    merged = tuple(node.name for node in join.nodes[:-1])
    return Branch(layers[0], join.name, stays, layers, frozenset(nodes), merged)


def _segments(node: Node) -> list[Segment]:
    """The channels of a tensor, those that cannot be cut in one piece."""
    found: list[Segment] = []
    for segment in node.channels:
        if found and segment.group is None and found[-1].group is None:
            found[-1] = Segment(None, found[-1].size * found[-1].repeat + segment.size * segment.repeat)
        else:
            found.append(segment if segment.group else Segment(None, segment.size * segment.repeat))
    return found


def _unchanged(network: Graph, node: Node, activation: str) -> bool:
    """Whether an activation hands on a tensor as it is."""
    clamp, made = operation(activation), operation(node.op)
    if clamp.fuses != "arithmetic":
        return False
    if made.bounded or (made.never_negative and not clamp.bounded):
        return True
    moved = made.within_inputs and node.detail != FILLED
    summed = made.adds and node.detail != SCALED and not clamp.bounded
    sources = [network.node[name] for name in node.inputs]
    return (moved or summed) and bool(sources) and all(_unchanged(network, s, activation) for s in sources)


def rest(
    nodes: Iterable[Node], layers: Iterable[Layer], left_out: Sequence[Branch]
) -> tuple[tuple[Node, ...], tuple[Layer, ...]]:
    """What stays of the nodes and layers of a network, cut or not, without some of its branches."""
    gone = {name for branch in left_out for name in (*branch.nodes, *branch.merged)}
    absent = {name for branch in left_out for name in branch.layers}
    stays = {branch.join: branch.stays for branch in left_out}
    there = [node for node in nodes if node.name not in gone]
    return (
        tuple([_alias(node, stays[node.name]) if node.name in stays else node for node in there]),
        tuple([layer for layer in layers if layer.name not in absent]),
    )


def _alias(join: Node, stays: str) -> Node:
    return Node(join.name, ALIAS, (stays,), join.channels, join.spatial)


def fused_alone(
    network: Graph, whole: Sequence[Kernel], branches: Sequence[Branch], fusing: frozenset[str]
) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Operations that would fuse with what makes the tensor that they read, did not others read it that can
    be left out: of each the indices of the branches that it is in, and that each other reader is in.

    Args:
        whole: the kernels of the network.
        fusing: operations that a part computes with the layer before, besides what ``kernels`` fuses.
    """
    within: dict[str, list[int]] = {}
    for index, branch in enumerate(branches):
        for name in branch.nodes:
            within.setdefault(name, []).append(index)
    found: list[tuple[tuple[int, ...], list[tuple[int, ...]]]] = []
    for kernel in whole:
        readers = network.consumers[kernel.name]
        if len(readers) < 2 or kernel.name in network.outputs:
            continue
        for name in readers:
            node = network.node[name]
            alike = operation(node.op).fuses and node.inputs[0] == kernel.name and fuses(kernel.nodes, node)
            layered = node.op in fusing and operation(kernel.op).layer and not kernel.activation
            others = [tuple(within.get(other, ())) for other in readers if other != name]
            if (alike or layered) and all(others):
                found.append((tuple(within.get(name, ())), others))
    return found
