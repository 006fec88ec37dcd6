"""Fused kernels: what an inference engine really runs, as groups of a network's nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

from leanfront.compression.graph.nodes import Graph, Layer, LayerShape, Node
from leanfront.compression.graph.operations import operation


@dataclass(frozen=True)
class Kernel:
    """One fused operation: a layer with its batch norm and activation, or another op with its activation.

    ``name`` is the name of the last node, and so of the tensor that comes out; ``inputs`` are the names of
    the kernels (or network inputs) whose tensors go in. ``layer`` has the sizes of this use of it, ``use``
    counts the uses of one layer from 1.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    layer: Layer | None = None
    activation: str = ""
    use: int = 1

    @property
    def label(self) -> str:
        """What it is called in files and tables: as its layer, a further use of that with its number."""
        if self.layer is None:
            return self.name
        return self.layer.name if self.use == 1 else f"{self.layer.name}@{self.use}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates with weights that are no layer's, see ``Node``."""
        return sum(node.macs for node in self.nodes)

    @property
    def computes(self) -> bool:
        """Whether it is known how it is computed with weights: as a layer, or it says its ``macs``."""
        return operation(self.op).layer or self.macs > 0

    @property
    def held_bytes(self) -> int:
        """What it stores besides the weights of its layer, and norms, see ``Node``."""
        return sum(node.held_bytes for node in self.nodes if not operation(node.op).parameters)

    @property
    def output(self) -> Node:
        """The node whose tensor comes out."""
        return self.nodes[-1]

    @property
    def shape(self) -> LayerShape | None:
        """The layer's shape, where there is a layer."""
        return self.layer.shape if self.layer else None


def kernels(network: Graph) -> tuple[Kernel, ...]:
    """Fuse batch norms and activations into the operation before them, where it alone feeds them.

    Identities (dropout in eval mode) vanish. Network inputs are kernels of op "input". Every tensor
    between two kernels is the output of exactly one of them. ReLU and ReLU6 fuse into any operation with
    arithmetic, the other activations stay kernels of their own, as in onnxruntime's CPU provider. A layer
    that is used several times has one weight: a batch norm goes into it only if it is behind each use.
    """
    folds = _norms_of_several_uses(network)
    done: dict[str, str] = {}  # node -> the kernel that holds it, by the kernel's first node
    members: dict[str, list[Node]] = {}
    for node in network.nodes:
        if operation(node.op).fuses:
            (source,) = node.inputs[:1]
            head = done[source]
            last = members[head][-1]
            alone = network.consumers[source] == (node.name,) and source not in network.outputs
            layer = members[head][0].layer
            several = layer is not None and len(network.uses[layer]) > 1 and operation(node.op).parameters
            alone = alone and (not several or (source == head and node.name in folds))
            if last.name == source and alone and fuses(members[head], node):
                members[head].append(node)
                done[node.name] = head
                continue
        members[node.name] = [node]
        done[node.name] = node.name
    output_of = {head: nodes[-1].name for head, nodes in members.items()}
    return tuple(
        Kernel(
            name=nodes[-1].name,
            op=nodes[0].op,
            inputs=tuple(output_of[done[source]] for source in nodes[0].inputs),
            nodes=tuple(nodes),
            layer=network.used(nodes[0]),
            activation=next((n.op for n in nodes[1:] if operation(n.op).activation), ""),
            use=1 + network.uses[nodes[0].layer].index(nodes[0].name) if nodes[0].layer else 1,
        )
        for nodes in members.values()
    )


def _norms_of_several_uses(network: Graph) -> frozenset[str]:
    """Batch norms behind layers that are used several times that can be folded into their weights: the same
    parameters are behind each use, and nowhere else."""
    norms: dict[str, set[str]] = {}
    for node in network.nodes:
        if node.norm:
            norms.setdefault(node.norm, set()).add(node.name)
    found: set[str] = set()
    for uses in network.uses.values():
        alone = all(len(network.consumers[use]) == 1 and use not in network.outputs for use in uses)
        if len(uses) > 1 and alone:
            behind = {network.consumers[use][0] for use in uses}
            if behind in norms.values():
                found |= behind
    return frozenset(found)


def fuses(kernel: Sequence[Node], node: Node) -> bool:
    """Whether a node that alone reads what a kernel makes becomes part of it."""
    head, wanted = operation(kernel[0].op), operation(node.op).fuses
    if wanted == "anything":
        return not head.given
    if any(operation(member.op).activation for member in kernel):
        return False
    return head.layer or (wanted == "arithmetic" and head.takes_activation)
