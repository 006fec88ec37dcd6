"""Which channels must be cut together.

Every channel of every layer has a number. Numbers are moved through the network as its values are: an
operation that moves values moves the numbers with the same operator, one that joins tensors value by value
makes their numbers one class, one that spans channels says that they stay. In the end a class is a channel
that can be cut, wherever its values lie.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.sizes import CREATED, arguments, called, resized
from leanfront.compression.graph.operations import Operation
from leanfront.compression.layers import LayerKind

Shape = tuple[int, ...]
STAYS = 0
"""The number of everything that cannot be cut."""

LARGEST_PARAMETER = 2**22
"""Values of a parameter of the model's own above which its channels lie along one dimension (a table that is
looked up), or stay."""


class Numbers:
    """The numbers of channels, and which of them are one."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def new(self, shape: Shape | int) -> Tensor:
        """Numbers that nothing has yet."""
        size = (shape,) if isinstance(shape, int) else shape
        made = torch.arange(self.count, self.count + math.prod(size)).reshape(size)
        self.count += math.prod(size)
        return made

    def join(self, one: Tensor, other: Tensor) -> None:
        """Make numbers one, place by place; the smaller tensor is repeated."""
        a, b = np.broadcast_arrays(one.numpy(), other.numpy())
        differ = a != b
        if differ.any():
            keys = np.unique(a[differ] * np.int64(2**31) + b[differ])
            self._pairs.append((keys // 2**31, keys % 2**31))

    def stay(self, numbers: Tensor) -> None:
        """Say that these channels cannot be cut."""
        self.join(numbers, torch.tensor(STAYS))

    def classes(self) -> NDArray[np.int64]:
        """Of each number the smallest that is one with it; ``STAYS`` where it cannot be cut."""
        nothing = np.zeros(0, dtype=np.int64)
        one = np.concatenate([nothing, *(a for a, _ in self._pairs)])
        other = np.concatenate([nothing, *(b for _, b in self._pairs)])
        return one_of_each(self.count, one, other)


def one_of_each(count: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of ``count`` numbers, pairs of which are the same, the smallest that each is the same as."""
    root = np.arange(count)
    while True:
        before = root.copy()
        low = np.minimum(root[one], root[other])
        np.minimum.at(root, root[one], low)
        np.minimum.at(root, root[other], low)
        root = root[root]
        if (root == before).all():
            return root


@dataclass(frozen=True)
class Flow:
    """A tensor on its way, with a batch of one: its shape, the dimension of its channels, and their numbers.

    A parameter of the model's own may have its channels along any dimension, so each of its values has a
    number: ``numbers`` then has its whole shape (``wild``). ``fixed``: there is nothing to cut in it,
    whatever its dimension of channels.
    """

    shape: Shape
    axis: int
    numbers: Tensor
    wild: bool = False
    fixed: bool = False

    @property
    def from_end(self) -> int:
        """The dimension of channels counted from the end, negative: tensors meet aligned so."""
        return self.axis - len(self.shape)

    @property
    def aligned(self) -> Tensor:
        """The numbers with as many dimensions as the tensor."""
        if self.wild or not self.shape:
            return self.numbers
        return self.numbers.reshape([-1 if d == self.axis else 1 for d in range(len(self.shape))])

    @property
    def whole(self) -> Tensor:
        """The number of each value."""
        return self.aligned.expand(self.shape)


def default_axis(shape: Shape) -> int:
    """Images (N, C, H, W) and vectors (N, C) have channels second, sequences (N, T, C) last."""
    return 1 if len(shape) in (2, 4, 5) else max(len(shape) - 1, 0)


def parameter_axis(shape: Shape) -> int:
    """Which dimension of a parameter is likely that of channels: the only one above size 1, or as above."""
    large = [axis for axis, size in enumerate(shape) if size > 1]
    return large[0] if len(large) == 1 else default_axis(shape)


def spatial(shape: Shape, axis: int) -> Shape:
    """Sizes beside the channels; the batch is left out where it is the first."""
    sizes = tuple(size for index, size in enumerate(shape) if index != axis)
    return sizes[1:] if len(shape) > 1 and axis != 0 and shape[0] == 1 else sizes


class Follower:
    """Follows the numbers of channels through one operation after the other."""

    def __init__(self) -> None:
        self.numbers = Numbers()

    # --- where numbers come from

    def stayed(self, shape: Shape, axis: int | None = None) -> Flow:
        """A tensor whose channels cannot be cut."""
        axis = default_axis(shape) if axis is None else axis
        numbers = self.numbers.new(shape[axis] if shape else 1)
        self.numbers.stay(numbers)
        return Flow(shape, axis, numbers, fixed=True)

    def parameter(self, shape: Shape) -> Flow:
        """A parameter or buffer of the model's own."""
        if not shape or math.prod(shape) > LARGEST_PARAMETER:
            axis = parameter_axis(shape)
            return (
                Flow(shape, axis, self.numbers.new(shape[axis]))
                if len(shape) == 2
                else self.stayed(shape, axis)
            )
        return Flow(shape, parameter_axis(shape), self.numbers.new(shape), wild=True)

    def opaque(self, inputs: Sequence[Flow], shape: Shape) -> Flow:
        """What nothing is known of: all that it reads stays."""
        for flow in inputs:
            self.numbers.stay(flow.numbers)
        return self.stayed(shape)

    def along(self, flow: Flow, axis: int) -> Flow:
        """A tensor as something sees it that has channels along ``axis``; other channels stay."""
        if flow.wild:
            return self.settled(flow.whole, axis)
        if flow.axis == axis:
            return flow
        if not flow.fixed:
            self.numbers.stay(flow.numbers)
        return self.stayed(flow.shape, axis)

    def settled(self, whole: Tensor, axis: int) -> Flow:
        """A tensor with a number for each value as one with channels along ``axis``: the values of a channel
        are cut together."""
        shape = tuple(whole.shape)
        first = whole
        for d in range(len(shape)):
            if d != axis:
                first = first.narrow(d, 0, 1)
        self.numbers.join(whole, first)
        return Flow(shape, axis, first.reshape(-1).clone())

    # --- layers and norms

    def layer(self, kind: LayerKind, module: nn.Module, read: Flow, shape: Shape) -> tuple[Flow, Flow, bool]:
        """What a layer reads, as it sees it; what it puts out; and whether it loses whole groups."""
        if kind.looked_up:
            self.numbers.stay(read.numbers)
            return read, Flow(shape, len(shape) - 1, self.numbers.new(shape[-1])), False
        read = self.along(read, kind.channel_axis(len(read.shape)))
        inputs, outputs = kind.channels(module)
        made = Flow(shape, kind.channel_axis(len(shape)), self.numbers.new(outputs))
        groups = int(getattr(module, "groups", 1))
        if groups == 1:
            return read, made, False
        inside, outside = inputs // groups, outputs // groups
        whole = groups >= min(inside, outside)
        ins, outs = read.numbers.reshape(groups, inside), made.numbers.reshape(groups, outside)
        if whole:  # all channels of a group go, or none
            self.numbers.join(ins, ins[:, :1])
            self.numbers.join(outs, ins[:, :1])
        else:  # as many in each group, at the same places
            self.numbers.join(ins, ins[:1])
            self.numbers.join(outs, outs[:1])
        return read, made, whole

    def norm(self, module: nn.Module, read: Flow) -> tuple[Flow, bool]:
        """What a norm puts out, and whether it has its parameters along the channels."""
        rank = len(read.shape)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            over = len(module.normalized_shape)
            read = self.along(read, rank - 1) if read.wild else read
            if read.axis < rank - over:
                return read, False
            if over == 1:
                return read, True
            self.numbers.stay(read.numbers)
            return read, False
        read = self.along(read, 1)
        if isinstance(module, nn.GroupNorm):
            channels, groups = read.shape[1], module.num_groups
            if 1 < groups < channels:
                numbers = read.numbers.reshape(groups, -1)
                self.numbers.join(numbers, numbers[:1])
        elif not isinstance(module, _BatchNorm):
            self.numbers.stay(read.numbers)
        return read, True

    # --- operators

    def operation(
        self, row: Operation, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any],
        flows: Mapping[fx.Node, Flow], shape: Shape,
    ) -> Flow:  # fmt: skip
        """What an operator puts out, a tensor of ``shape``. ``args``: as it was called, with a batch of one;
        ``flows``: the tensors on their way."""
        inputs = [flows[source] for source in node.all_input_nodes if source in flows]
        rule = _BY_TARGET.get(str(node.target)) or _RULES.get(row.channels)
        made = rule(self, node, arguments(node, args, kwargs), flows, shape) if rule and inputs else None
        if made is None:
            return self.opaque(inputs, shape) if inputs else self.created(node, shape)
        return replace(made, fixed=True) if all(flow.fixed for flow in inputs) else made

    def created(self, node: fx.Node, shape: Shape) -> Flow:
        """A tensor that is made of sizes: with channels that can be cut, where they are written."""
        if node.target in CREATED and shape:
            axis = default_axis(shape)
            return Flow(shape, axis, self.numbers.new(shape[axis]))
        return self.stayed(shape)


Bound = Mapping[str, Any]
Flows = Mapping[fx.Node, Flow]
Rule = Callable[[Follower, fx.Node, Bound, Flows, Shape], Flow | None]


def _inputs(node: fx.Node, flows: Flows) -> list[Flow]:
    return [flows[source] for source in node.all_input_nodes if source in flows]


def _met(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """Tensors value by value, the smaller ones repeated."""
    inputs = _inputs(node, flows)
    try:
        together = np.broadcast_shapes(*(flow.shape for flow in inputs))
    except ValueError:  # not value by value, after all
        return None
    return _joined(self, inputs, shape) if together == shape else None


def _joined(self: Follower, inputs: Sequence[Flow], shape: Shape) -> Flow | None:
    settled = [flow for flow in inputs if not flow.wild and flow.shape]
    rank = len(shape)
    if not settled:
        return _wild_joined(self, inputs, shape)
    free = [flow for flow in settled if not flow.fixed] or settled
    axes = {flow.from_end for flow in free if flow.shape[flow.axis] > 1}
    if len(axes) > 1 and free is not settled:
        return None
    if len(axes) > 1:
        return self.stayed(shape)
    first = max(free, key=lambda flow: (flow.shape[flow.axis], math.prod(flow.shape)))
    axis = rank + first.from_end
    if shape[axis] != first.shape[first.axis]:
        return None  # channels that are repeated along others
    if first.fixed:  # a parameter that meets what has nothing to cut has nothing to cut
        for flow in inputs:
            self.numbers.stay(flow.numbers)
        return self.stayed(shape, axis)
    for flow in inputs:
        place = axis - rank + len(flow.shape)
        size = flow.shape[place] if place >= 0 else 1
        if flow is first or (size == 1 and (flow.wild or flow.fixed)):
            continue
        if size == 1:  # repeated along the channels: its own lie elsewhere
            self.numbers.stay(flow.numbers)
        elif flow.fixed:
            self.numbers.stay(first.numbers)
        else:
            self.numbers.join(_over(flow.aligned, rank), _over(first.aligned, rank))
    return Flow(shape, axis, first.numbers)


def _wild_joined(self: Follower, inputs: Sequence[Flow], shape: Shape) -> Flow | None:
    """Parameters with parameters, and numbers."""
    largest = max(inputs, key=lambda flow: math.prod(flow.shape))
    if not largest.wild:
        return self.stayed(shape)
    for flow in inputs:
        if flow is not largest and flow.wild:
            self.numbers.join(_over(flow.whole, len(shape)), _over(largest.whole, len(shape)))
    return Flow(shape, parameter_axis(shape), torch.broadcast_to(largest.whole, shape), wild=True)


def _over(numbers: Tensor, rank: int) -> Tensor:
    return numbers.reshape((1,) * (rank - numbers.dim()) + tuple(numbers.shape))


def _dims(bound: Bound, rank: int) -> set[int] | None:
    dims = next((bound[name] for name in ("dim", "dims", "axis") if name in bound), None)
    if dims is None:
        return None
    listed = [dims] if isinstance(dims, int) else list(dims)
    return {int(d) % rank for d in listed} if rank else set()


def _reduced(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """What goes along some dimensions, which stay (softmax, sums so far) or go: not those of channels."""
    inputs = _inputs(node, flows)
    if len(inputs) != 1:
        return None
    flow, dims = inputs[0], _dims(bound, len(inputs[0].shape))
    if flow.wild or dims is None or flow.axis in dims:
        return None
    if len(shape) == len(flow.shape):
        return Flow(shape, flow.axis, flow.numbers)
    return Flow(shape, flow.axis - sum(d < flow.axis for d in dims), flow.numbers)


def _each_channel(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """Operations on each channel of an image alone; further tensors have a value for each channel."""
    first, *others = _inputs(node, flows)
    if first.wild or len(shape) != len(first.shape) or len(shape) < 2:
        return None
    read = self.along(first, 1)
    if shape[1] != first.shape[1]:
        return None
    for other in others:
        if other.shape == (shape[1],):
            self.numbers.join(other.numbers, read.numbers)
        elif math.prod(other.shape) != 1:
            return None
    return Flow(shape, 1, read.numbers)


def _contracted(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """Products: letters of the dimensions of both tensors, and of the result, as einsum has them."""
    letters = _letters(node, bound, flows)
    if letters is None:
        return None
    inputs, result = letters
    numbers: dict[str, Tensor] = {}
    for flow, own in inputs:
        if flow.wild:
            return None
        letter = own[flow.axis]
        if flow.fixed:
            continue
        if flow.shape[flow.axis] == 1:
            self.numbers.stay(flow.numbers)
            continue
        for other, theirs in inputs:
            place = theirs.find(letter)
            if other is flow or place < 0:
                continue
            if other.fixed:
                self.numbers.stay(flow.numbers)
            elif other.axis != place:
                return None
        if letter in numbers:
            self.numbers.join(numbers[letter], flow.numbers)
        numbers[letter] = flow.numbers
    there = [letter for letter in numbers if letter in result]
    for letter in there[1:]:
        self.numbers.stay(numbers[letter])
    if not there:
        return self.stayed(shape)
    axis = result.index(there[0])
    return Flow(shape, axis, numbers[there[0]]) if shape[axis] == len(numbers[there[0]]) else None


def _letters(node: fx.Node, bound: Bound, flows: Flows) -> tuple[list[tuple[Flow, str]], str] | None:
    name = str(node.target)
    if name == "aten.einsum.default":
        left, arrow, result = bound["equation"].replace(" ", "").partition("->")
        operands = [flows[n] for n in bound["tensors"] if n in flows]
        owns = left.split(",")
        if not arrow or "." in left or len(owns) != len(operands) or len(node.all_input_nodes) != len(owns):
            return None
        if any(len(set(own)) != len(own) for own in owns):
            return None
        return list(zip(operands, owns, strict=True)), result
    inputs = _inputs(node, flows)
    if name not in ("aten.matmul.default", "aten.bmm.default", "aten.mm.default") or len(inputs) != 2:
        return None
    one, other = inputs
    if min(len(one.shape), len(other.shape)) < 2:
        return None
    batch = "abcdefgh"[: max(len(one.shape), len(other.shape)) - 2]
    owns = [batch[len(batch) - len(flow.shape) + 2 :] for flow in inputs]
    return [(one, owns[0] + "mk"), (other, owns[1] + "kn")], batch + "mn"


def _moved(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """The places of channels are moved by the operator itself."""
    read, *others = node.all_input_nodes
    if read not in flows or any(other in flows and other.op != "get_attr" for other in others):
        return None
    flow = flows[read]
    if flow.wild:
        moved = _called(node, bound, flow.numbers)
        fits = moved is not None and tuple(moved.shape) == shape
        return Flow(shape, parameter_axis(shape), moved, wild=True) if fits and moved is not None else None
    places = replace(flow, numbers=torch.arange(len(flow.numbers)))
    moved = _called(node, bound, places.whole)
    if moved is None or tuple(moved.shape) != shape or not moved.numel():
        return None
    moved = _compact(moved)
    axis = _moved_axis(flow, moved, shape)
    line = moved
    for d in range(moved.dim()):
        if d != axis:
            line = line.narrow(d, 0, 1)
    numbers = flow.numbers[moved]
    if line.numel() < moved.numel():  # the values of a channel are cut together
        self.numbers.join(numbers, flow.numbers[line])
    line = line.reshape(-1).expand(shape[axis]) if shape else line.reshape(-1)
    made = Flow(shape, axis, flow.numbers[line])
    return made if _runs_cut(node, bound, flow, moved, line, made) else None


def _compact(moved: Tensor) -> Tensor:
    """With size 1 in the dimensions along which nothing differs."""
    for d in range(moved.dim()):
        first = moved.narrow(d, 0, 1)
        if moved.shape[d] > 1 and bool((moved == first).all()):
            moved = first
    return moved


def _called(node: fx.Node, bound: Bound, numbers: Tensor) -> Tensor | None:
    """An operator on numbers in place of values."""
    first = next(iter(bound))
    try:
        moved = called(node, {**bound, first: numbers})
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    return moved if isinstance(moved, Tensor) else None


def _looked_up(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """Rows of a table (tokens, positions): the channels are its columns."""
    table = flows.get(node.args[0])  # type: ignore[arg-type]
    if table is None or len(table.shape) != 2 or shape[-1:] != table.shape[1:]:
        return None
    return Flow(shape, len(shape) - 1, self.along(table, 1).numbers)


def _concatenated(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    given = [source for source in node.args[0] if isinstance(source, fx.Node)]  # type: ignore[union-attr]
    if len(given) != len(node.args[0]) or any(source not in flows for source in given):  # type: ignore[arg-type]
        return None
    inputs = [flows[source] for source in given]
    dim = bound.get("dim", 0) % len(shape)
    axes = {flow.axis for flow in inputs if not flow.wild}
    if len(axes) > 1:
        return None
    axis = axes.pop() if axes else dim
    settled = [self.along(flow, axis) for flow in inputs]
    if axis == dim:
        return Flow(shape, axis, torch.cat([flow.numbers for flow in settled]))
    for other in settled[1:]:
        self.numbers.join(settled[0].numbers, other.numbers)
    return Flow(shape, axis, settled[0].numbers)


def _stacked(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    given: Any = node.args[0]
    inputs = [flows[source] for source in given if source in flows]
    if len(inputs) != len(given) or len({flow.axis for flow in inputs}) > 1 or any(f.wild for f in inputs):
        return None
    dim = bound.get("dim", 0) % len(shape)
    for other in inputs[1:]:
        self.numbers.join(inputs[0].numbers, other.numbers)
    return Flow(shape, inputs[0].axis + (dim <= inputs[0].axis), inputs[0].numbers)


def _padded(self: Follower, node: fx.Node, bound: Bound, flows: Flows, shape: Shape) -> Flow | None:
    """Beside the channels nothing changes; channels of zeros are channels, too."""
    flow = _inputs(node, flows)[0]
    rank = len(shape)
    if flow.wild or "pad" not in bound:
        return None
    pads = list(bound["pad"])
    place = 2 * (rank - 1 - flow.axis)
    before, after = pads[place : place + 2] if place < len(pads) else (0, 0)
    if (before, after) == (0, 0):
        return Flow(shape, flow.axis, flow.numbers)
    if min(before, after) < 0 or bound.get("mode", "constant") != "constant":
        return None
    more = self.numbers.new(before), self.numbers.new(after)
    return Flow(shape, flow.axis, torch.cat([more[0], flow.numbers, more[1]]))


ALTERNATIVES = 4
"""Parts of channels (heads of an attention) above which whole ones are cut rather than a share of each."""


def _moved_axis(flow: Flow, moved: Tensor, shape: Shape) -> int:
    """The dimension along which channels can be cut after a move: where several remain, the first of at least
    ``ALTERNATIVES`` (whole heads), else the longest (as many in each head)."""
    varying = [d for d in range(moved.dim()) if moved.shape[d] > 1]
    if not varying:  # a single channel: where it may be
        same = len(shape) == len(flow.shape) and shape[flow.axis] == flow.shape[flow.axis]
        return flow.axis if same else default_axis(shape)
    if len(varying) == 1:
        return varying[0]
    whole = [d for d in varying if moved.shape[d] >= ALTERNATIVES]
    return whole[0] if whole else max(varying, key=lambda d: moved.shape[d])


def _runs_cut(node: fx.Node, bound: Bound, read: Flow, moved: Tensor, line: Tensor, made: Flow) -> bool:
    """Whether the operator, with its sizes changed, moves what is left of the channels after any cut to where
    it has to be: tried on a cut drawn at random.

    moved: the places in ``read`` of what is put out, compact; line: those along the channels of ``made``.
    """
    if node.target in TURNS or len(read.numbers) < 2 or read.fixed:
        return True
    same = torch.from_numpy(np.unique(read.numbers.numpy(), return_inverse=True)[1].reshape(-1))
    shown = line.reshape([-1 if d == made.axis else 1 for d in range(len(made.shape))])
    one, other = torch.broadcast_tensors(same[moved], same[shown])  # type: ignore[no-untyped-call]
    pairs = np.unique(torch.stack([one.reshape(-1), other.reshape(-1)]).numpy(), axis=1)
    classes = torch.from_numpy(one_of_each(len(same), pairs[0], pairs[1]))
    inside, outside = classes[same], classes[same[line]]
    stays = torch.rand(len(same), generator=torch.Generator().manual_seed(0)) < 0.6
    kept = stays[inside], stays[outside]
    if bool(kept[0].all()) or not bool(kept[0].any()) or not bool(kept[1].any()):
        return True
    changed = resized(node, bound, (read.axis, kept[0]), (made.axis, kept[1]))
    before = Flow(read.shape, read.axis, inside)
    left = tuple(int(kept[0].sum()) if d == read.axis else size for d, size in enumerate(read.shape))
    again = _called(node, changed, Flow(left, read.axis, before.numbers[kept[0]]).whole)
    whole = classes[same[moved]].expand(made.shape)
    if again is None or again.dim() != whole.dim():
        return False
    wanted = whole.index_select(made.axis, kept[1].nonzero().reshape(-1))
    return again.shape == wanted.shape and bool((again == wanted).all())


_RULES: Mapping[str, Rule] = {
    "meet": _met,
    "along": _reduced,
    "reduced": _reduced,
    "each": _each_channel,
    "moved": _moved,
    "joined": _concatenated,
    "padded": _padded,
    "contracted": _contracted,
    "looked up": _looked_up,
}
"""What a row says of channels -> the rule."""

_BY_TARGET: Mapping[str, Rule] = {"aten.stack.default": _stacked, "aten.prelu.default": _each_channel}
"""Operators whose channels go another way than those of their row."""

TURNS = {torch.ops.aten.transpose.int, torch.ops.aten.permute.default, torch.ops.aten.swapaxes.default}
"""Operators that have nothing to change when channels are cut."""
