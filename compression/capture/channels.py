"""Which channels must be cut together: channels are followed through every operation, and joined where
tensors meet. Whatever cannot be followed freezes the channels that it reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from leanfront.compression.graph import Node, Segment

KEEPS_CHANNELS = (
    "relu", "relu6", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu",
    "elementwise", "identity", "identity_arithmetic",
)  # fmt: skip
"""Operations on each value alone."""

KEEPS_IMAGE_CHANNELS = ("batchnorm", "maxpool", "avgpool", "global_avgpool", "upsample")
"""Operations that treat each channel alone, when channels are the second dimension."""

BINARY = ("add", "sub", "mul", "div")


class ChannelGroups:
    """Groups of coupled channels while a network is walked. A frozen group cannot be cut."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._layers: dict[str, None] = {}
        self._frozen: set[str] = set()

    def new(self, name: str, layer: bool = True) -> str:
        """A group of its own for a layer's outputs, or a parameter's channels; returns its key."""
        key = name if layer else f"parameter {name}"
        self._parent[key] = key
        if layer:
            self._layers[key] = None
        return key

    def join(self, one: tuple[Segment, ...], other: tuple[Segment, ...]) -> None:
        """Couple two tensors channel by channel; tensors whose segments differ are frozen instead."""
        if [(s.size, s.repeat) for s in one] != [(s.size, s.repeat) for s in other]:
            self.freeze((*one, *other))
            return
        for a, b in zip(one, other, strict=True):
            if a.group is None or b.group is None:
                self.freeze((a, b))
                continue
            first, second = self._root(a.group), self._root(b.group)
            if first != second:
                self._parent[second] = first
                if second in self._frozen:
                    self._frozen.add(first)

    def freeze(self, segments: tuple[Segment, ...]) -> None:
        """Say that these channels must stay."""
        self._frozen.update(self._root(s.group) for s in segments if s.group is not None)

    def names(self) -> dict[str, str]:
        """Key of each layer and parameter -> name of its group, which is its first layer.

        Left out: frozen groups, and parameters that no layer is coupled with.
        """
        roots = {key: self._root(key) for key in self._parent}
        first: dict[str, str] = {}
        for layer in self._layers:
            first.setdefault(roots[layer], layer)
        return {key: first[root] for key, root in roots.items() if root in first and root not in self._frozen}

    def _root(self, key: str) -> str:
        while self._parent[key] != key:
            key = self._parent[key]
        return key


@dataclass(frozen=True)
class Flow:
    """A tensor on its way: its node, its whole shape at batch 1, and the dimension of its channels."""

    node: Node
    shape: tuple[int, ...]
    axis: int

    @property
    def channels(self) -> tuple[Segment, ...]:
        """The segments of the channel dimension."""
        return self.node.channels

    @property
    def from_end(self) -> int:
        """The channel dimension counted from the end, negative: shapes are aligned so where tensors meet."""
        return self.axis - len(self.shape)


Channels = tuple[tuple[Segment, ...], int]
"""Segments of a tensor's channel dimension, and which dimension that is."""


def default_axis(shape: tuple[int, ...]) -> int:
    """Images (N, C, H, W) and vectors (N, C) have channels second, sequences (N, T, C) last."""
    return 1 if len(shape) in (2, 4) else max(len(shape) - 1, 0)


def parameter_axis(shape: tuple[int, ...]) -> int:
    """Which dimension of a parameter is likely that of channels: the only one above size 1, or as above."""
    large = [axis for axis, size in enumerate(shape) if size > 1]
    return large[0] if len(large) == 1 else default_axis(shape)


def spatial(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Sizes beside the channels; the batch is left out where it is the first."""
    sizes = tuple(size for index, size in enumerate(shape) if index != axis)
    return sizes[1:] if len(shape) > 1 and axis != 0 and shape[0] == 1 else sizes


def followed(
    graph: fx.GraphModule,
    op: str,
    node: fx.Node,
    inputs: tuple[Flow, ...],
    shape: tuple[int, ...],
    groups: ChannelGroups,
) -> Channels:
    """Channels of what an operation without weights (or a norm) puts out; joins or freezes what it couples.

    Sizes in the arguments of reshapes that count channels are freed, so that the graph runs after a cut.
    """

    def by_rule() -> Channels | None:
        if not inputs:
            return None
        first = inputs[0]
        same_size = len(shape) == len(first.shape) and shape[first.axis] == first.shape[first.axis]
        if op in KEEPS_CHANNELS:
            return (first.channels, first.axis) if same_size and len(inputs) == 1 else None
        if op in KEEPS_IMAGE_CHANNELS and op != "global_avgpool":
            return (first.channels, 1) if same_size and first.axis == 1 else None
        if op == "layernorm":
            module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            over_channels = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
            return (first.channels, first.axis) if over_channels and first.from_end == -1 else None
        if op in BINARY:
            return _met(inputs, shape, groups)
        if op == "concat":
            return _concatenated(node, inputs, shape, groups)
        if op in ("mean", "global_avgpool"):
            return _reduced(node, first, shape)
        if op in ("reshape", "flatten"):
            return _reshaped(node, first, shape)
        if op == "expand":
            return _expanded(node, first, shape)
        if op == "transpose":
            return _transposed(node, first)
        if op == "slice":
            return _sliced(node, first)
        return None

    if (found := by_rule()) is not None:
        return found
    for source in inputs:
        groups.freeze(source.channels)
    axis = default_axis(shape)
    return (Segment(None, shape[axis] if shape else 1),), axis


def _met(inputs: tuple[Flow, ...], shape: tuple[int, ...], groups: ChannelGroups) -> Channels | None:
    """Two tensors, value by value, the smaller one repeated where it has size 1."""
    first, *others = sorted(inputs, key=lambda flow: -math.prod(flow.shape))
    if len(shape) != len(first.shape) or shape[first.axis] != first.shape[first.axis]:
        return None
    for other in others:
        size = other.shape[first.from_end] if len(other.shape) >= -first.from_end else 1
        if size == 1:
            groups.freeze(other.channels)  # repeated along our channels: its own lie elsewhere
        elif other.from_end == first.from_end:
            groups.join(first.channels, other.channels)
        else:
            return None
    return first.channels, first.axis


def _concatenated(
    node: fx.Node, inputs: tuple[Flow, ...], shape: tuple[int, ...], groups: ChannelGroups
) -> Channels | None:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    axes = {flow.axis for flow in inputs}
    if not isinstance(dim, int) or len(axes) > 1:
        return None
    axis = axes.pop()
    if dim % len(shape) == axis:
        return tuple(segment for flow in inputs for segment in flow.channels), axis
    for other in inputs[1:]:
        groups.join(inputs[0].channels, other.channels)
    return inputs[0].channels, axis


def reduced_dimensions(node: fx.Node, rank: int) -> set[int] | None:
    """The dimensions that a mean is over, or None if they are not written down."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if isinstance(dims, int):
        dims = (dims,)
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    return {int(d) % rank for d in dims}


def _reduced(node: fx.Node, first: Flow, shape: tuple[int, ...]) -> Channels | None:
    if len(shape) == len(first.shape):
        return (first.channels, first.axis) if shape[first.axis] == first.shape[first.axis] else None
    dims = reduced_dimensions(node, len(first.shape))
    if dims is None or first.axis in dims:
        return None
    return first.channels, first.axis - sum(d < first.axis for d in dims)


def _reshaped(node: fx.Node, first: Flow, shape: tuple[int, ...]) -> Channels | None:
    """Kept where the channel dimension stays whole, or where all values of a channel stay together."""
    if node.op == "call_method" and node.target == "unflatten":
        return None
    width, before = first.shape[first.axis], math.prod(first.shape[: first.axis])
    sized = node.target in ("reshape", "view", torch.reshape)
    for axis, size in enumerate(shape):
        if size == width and width > 1 and math.prod(shape[:axis]) == before:
            return (first.channels, axis) if not sized or _free_size(node, axis, shape) else None
    if first.axis == 1 and len(shape) == 2 and first.shape[0] == shape[0]:
        if sized:  # with the number of features written down, it would not run after a cut
            node.op, node.target, node.args, node.kwargs = (
                "call_function",
                torch.flatten,
                (node.args[0], 1),
                {},
            )
        repeat = math.prod(first.shape[2:])
        return tuple(replace(segment, repeat=segment.repeat * repeat) for segment in first.channels), 1
    return None


def _free_size(node: fx.Node, axis: int, shape: tuple[int, ...]) -> bool:
    """Let torch find out the channels of a reshape (-1); whether that can be done."""
    given = node.args[1:] if len(node.args) > 1 else tuple(node.kwargs.values())
    listed = len(given) == 1 and isinstance(given[0], list | tuple)
    sizes = list(given[0] if listed else given)  # type: ignore[arg-type]
    if len(sizes) != len(shape) or node.kwargs:
        return False
    if sizes[axis] == -1:
        return True
    if -1 in sizes:
        other = sizes.index(-1)
        if other == 0:
            return False  # the batch
        sizes[other] = shape[other]
    sizes[axis] = -1
    node.args = (node.args[0], tuple(sizes)) if listed else (node.args[0], *sizes)
    return True


def _expanded(node: fx.Node, first: Flow, shape: tuple[int, ...]) -> Channels | None:
    sizes = list(node.args[1:])
    if len(sizes) != len(first.shape) or len(shape) != len(first.shape):
        return None
    if shape[first.axis] != first.shape[first.axis]:
        return None
    sizes[first.axis] = -1
    node.args = (node.args[0], *sizes)
    return first.channels, first.axis


def _transposed(node: fx.Node, first: Flow) -> Channels | None:
    rank, given = len(first.shape), node.args[1:]
    if node.target in ("permute", torch.permute):
        listed = len(given) == 1 and isinstance(given[0], list | tuple)
        order: Sequence[object] = given[0] if listed else given  # type: ignore[assignment]
        if len(order) != rank or not all(isinstance(d, int) for d in order):
            return None
        places = [int(d) % rank for d in order]  # type: ignore[call-overload]
    else:
        if len(given) != 2 or not all(isinstance(d, int) for d in given):
            return None
        places = list(range(rank))
        one, other = (int(d) % rank for d in given)  # type: ignore[arg-type]
        places[one], places[other] = other, one
    return first.channels, places.index(first.axis)


def _sliced(node: fx.Node, first: Flow) -> Channels | None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if not all(isinstance(item, int | slice) for item in index):
        return None
    if len(index) > first.axis and index[first.axis] != slice(None):
        return None
    return first.channels, first.axis - sum(isinstance(item, int) for item in index[: first.axis])
