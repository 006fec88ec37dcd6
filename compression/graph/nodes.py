"""The parts of a network, and how they are connected: shapes and names, no weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from leanfront.compression.graph.operations import named, operation

LAYER_OPS = named(lambda row: row.layer)
"""Operations that compute with weights which a policy may cut and quantize."""


@dataclass(frozen=True)
class LayerShape:
    """What a layer computes, for a batch of one: the key of a latency table. No name in it.

    Kernel and stride are (height, width); a linear layer has kernel and stride (1, 1) and as output
    height and width the number of positions it is applied to (1 x 1 for a plain classifier). Of a table that
    is looked up the rows are its input channels, the columns its output channels; of weights that something
    else computes with it is the other way round.
    """

    op: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    out_height: int = 1
    out_width: int = 1

    @property
    def weight_count(self) -> int:
        """Weights without the bias."""
        return self.in_channels // self.groups * self.out_channels * math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference (batch 1)."""
        if operation(self.op).weight_only:
            return 0
        positions = self.out_height * self.out_width
        if self.op == "conv_transpose2d":  # every input position meets every weight once
            positions //= math.prod(self.stride)
        return self.weight_count * positions

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered on its own."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    def at(self, spatial: tuple[int, ...]) -> "LayerShape":
        """The same where what comes out has these sizes beside its channels: of a further use of a layer."""
        if self.op == "linear" or len(spatial) != 2:
            return replace(self, out_height=math.prod(spatial), out_width=1)
        return replace(self, out_height=spatial[0], out_width=spatial[1])

    def __str__(self) -> str:
        kind = "depthwise" if self.depthwise else self.op
        whole = self.op == "linear" or operation(self.op).weight_only
        window = "" if whole else f" {self.kernel[0]}x{self.kernel[1]}"
        stride = f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        groups = f" groups {self.groups}" if self.groups > 1 and not self.depthwise else ""
        return (
            f"{kind}{window}{stride}{groups} {self.in_channels}->{self.out_channels}"
            f" @{self.out_height}x{self.out_width}"
        )


@dataclass(frozen=True)
class Zipped:
    """What the weights of a layer take in a zipped file, as they were measured by zipping them.

    each: of a pattern of zeros ("" of none) and bits of a weight (32, 16: floats) the bits that it is stored
    in, the shares of zeros, ascending from 0, and the bytes that a weight takes at each. rest: of a file of
    the network in floats, and in integers, the share of its size that all but weights has when zipped.
    """

    each: tuple[tuple[str, int, int, tuple[float, ...], tuple[float, ...]], ...]
    rest: tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """One layer with weights, however often it is used; ``shape`` is that of its first use. ``group`` names
    the channels that must be cut together with its outputs; None: its outputs cannot be cut (network outputs,
    shapes that are not followed). ``whole_groups``: a grouped convolution that loses whole groups of
    channels, a depthwise one among them; another one loses as many in each group. ``zipped``: what its
    weights take in a zipped file, where somebody has asked. ``given``: this use reads what follows from the
    network's inputs, and not only what the network holds."""

    name: str
    shape: LayerShape
    group: str | None = None
    bias: bool = True
    whole_groups: bool = False
    zipped: Zipped | None = field(default=None, compare=False, repr=False)
    given: bool = field(default=True, compare=False, repr=False)

    @property
    def weight_only(self) -> bool:
        """Whether a policy says how its weights are stored alone, and what comes out are floats."""
        return operation(self.shape.op).weight_only

    @property
    def looked_up(self) -> bool:
        """Whether it is a table, of which rows are read by number."""
        return operation(self.shape.op).looked_up

    @property
    def groups_apart(self) -> bool:
        """Whether it is a transposed convolution in groups, as long as it has been one before a cut: its
        weight has the channels of each group apart, (in, out of one group, ...)."""
        return self.shape.op == "conv_transpose2d" and (self.whole_groups or self.shape.groups > 1)

    def with_channels(self, in_channels: int, out_channels: int) -> "Layer":
        """The same layer with so many channels."""
        shape = self.shape
        groups = in_channels * shape.groups // shape.in_channels if self.whole_groups else shape.groups
        if shape.depthwise:
            groups = out_channels
        changed = replace(shape, in_channels=in_channels, out_channels=out_channels, groups=groups)
        return replace(self, shape=changed)


@dataclass(frozen=True)
class Segment:
    """Channels of one tensor that are cut alike. ``repeat``: features per channel, above 1 after a flatten.

    ``block``: a group may have several blocks of channels, of which other tensors have only some (the halves
    of a split, say); each keeps its share of what the group keeps.
    """

    group: str | None
    size: int
    repeat: int = 1
    block: int = 0


@dataclass(frozen=True)
class Spelling:
    """How a kind of file spells integers, as far as its size depends on it; a dialect says it.

    kind: "onnx", or the name of a dialect of other files. narrowest_weight: bits of the narrowest type that
    weights are stored in (those of 1 bit lie in bytes). centred: the zeros of tensors and weights are signed
    0s, and biases are floats; else tensors have zero points of their own, and biases are codes. guards,
    clips: what keeps layers from being fused is written, see ``policy.guards.Guarded``.
    """

    kind: str = "onnx"
    narrowest_weight: int = 2
    centred: bool = False
    guards: bool = True
    clips: bool = True


@dataclass(frozen=True)
class Written:
    """Bytes that an operation takes in a file, as they were measured in one.

    fixed: its nodes, and the constants that it alone reads, in floats; each: of those for each channel of its
    output. coded, narrow: what it takes more where its tensor is held in integers, of 8 bits and of fewer.
    shared: name of what it reads together with others -> bytes of it. values: that bear a name; in a
    flatbuffer tensors, of a file in integers, as operators. spelling: of the file. at_run_time: what it takes
    more than with decoded weights where it quantizes what it reads while it runs.
    """

    fixed: int
    each: int
    coded: int
    narrow: int
    shared: tuple[tuple[str, int], ...] = ()
    values: int = 1
    spelling: Spelling = Spelling()
    operators: int = 0
    at_run_time: int = 0


@dataclass(frozen=True)
class Node:
    """One operation and the tensor that it puts out.

    ``name`` names both. ``channels`` are the segments of the output's channel dimension, ``spatial`` its
    sizes after that. ``layer`` is set where the operation is a layer: of each node that uses it. ``norm``: of
    nodes that are one batch norm its name, "" where it is used once. ``detail`` says which operation an op
    "other" really is. ``held_bytes``, ``channel_bytes``: what it stores in a file, beside the weights of
    layers, in all and for each channel of its output. ``macs``: multiply-accumulates of what has weights and
    is no layer (a recurrent one, say), batch 1. ``written``: what it takes in a file, where that was measured
    (``export.measured_sizes``); it says more than ``held_bytes`` and ``channel_bytes``.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    channels: tuple[Segment, ...]
    spatial: tuple[int, ...] = ()
    layer: str | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    detail: str = ""
    norm: str = ""
    held_bytes: int = 0
    channel_bytes: int = 0
    macs: int = 0
    written: Written | None = field(default=None, repr=False)  # says nothing of what it is

    @cached_property
    def width(self) -> int:
        """Channels (features) of the output tensor."""
        return sum(segment.size * segment.repeat for segment in self.channels)

    @property
    def source(self) -> str:
        """The node whose tensor it reads first; itself where it reads none."""
        return self.inputs[0] if self.inputs else self.name

    @property
    def elements(self) -> int:
        """Elements of the output tensor, batch 1."""
        return self.width * math.prod(self.spatial)


@dataclass(frozen=True)
class Graph:
    """Layers and connections in the order of execution. ``outputs`` are node names."""

    nodes: tuple[Node, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]

    @cached_property
    def node(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def layer(self) -> Mapping[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def uses(self) -> Mapping[str, tuple[str, ...]]:
        """Layer -> names of the nodes that are it, in order of execution: each computes with its weights."""
        found: dict[str, list[str]] = {layer.name: [] for layer in self.layers}
        for node in self.nodes:
            if node.layer is not None:
                found[node.layer].append(node.name)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def used(self, node: Node) -> Layer | None:
        """The layer that a node is, with the sizes of this use; None where it is none."""
        if node.layer is None:
            return None
        layer = self.layer[node.layer]
        if node.name in self.without_inputs:
            layer = replace(layer, given=False)
        again = self.uses[node.layer][0] != node.name
        return replace(layer, shape=layer.shape.at(node.spatial)) if again else layer

    @cached_property
    def without_inputs(self) -> frozenset[str]:
        """Nodes that depend on nothing that is given (layers that read places or masks which the network
        holds): engines compute them when they load a file, in floats, and run no kernel for them."""
        moved: set[str] = set()
        for node in self.nodes:
            if operation(node.op).given or not moved.isdisjoint(node.inputs):
                moved.add(node.name)
        return frozenset(self.node.keys() - moved)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Node name -> names of the nodes that read its output."""
        readers: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                readers[source].append(node.name)
        return {name: tuple(names) for name, names in readers.items()}
