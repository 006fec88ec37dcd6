"""What one kernel of a network takes in memory: the tensors of its optimised nodes, and who reads them.

Keys of nodes hold no names. Which node reads which tensor is told by element width, shape and memory layout:
the newest such tensor of the kernel that nothing has read yet, else one that an earlier kernel made.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from leanfront.latency_models.benchmark.optimised_node import ALIASES, Node, Shape, made_bytes, read_node
from leanfront.latency_models.measured.workspace import workspace_bytes

_IN_PLACE = ("Relu", "Sigmoid", "Tanh", "Clip", "Softmax")
_SUMMING = ("Conv", "FusedConv")  # they add their last operand, and write over it
_HANDED_ON = ("ReorderInput", "ReorderOutput", "Transpose", "DequantizeLinear", "Slice", "Pad")
_LATE = ("DequantizeLinear", "Slice", "Pad")
"""onnxruntime orders nodes depth first from the output, those that its optimiser made before others. So on a
branch that is read further on, reorders and transposes run at once, these just before they are read."""

Kept = tuple[bool, Shape]
"""What a freed buffer may be given to: tensors of elements as wide (True: 4 bytes) and of this very shape."""

Looks = tuple[bool | None, bool, Shape | int]
"""What a tensor is known by: in the blocked layout (None: either), elements of 4 bytes, shape (or size)."""


@dataclass(frozen=True)
class Made:
    """A tensor that a node makes. node, last: the nodes that make it and read it last, by their order in the
    kernel. over: tensors of the kernel that it may be written over."""

    kept: Kept
    size_bytes: int
    node: int
    last: int
    over: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """A tensor of an earlier kernel that a node reads.

    looks: what it may be known by, the surest first. over: the tensor that may be written over it, alias: the
    tensor that is the same under another shape, both by their order in the kernel; -1: none.
    """

    node: int
    looks: tuple[Looks, ...]
    over: int = -1
    alias: int = -1


@dataclass(frozen=True)
class Footprint:
    """Memory of one kernel.

    nodes: how many there are. shown: what later kernels may know its tensors by -> which of them that is.
    together: tensors that one node makes at once (a split). workspace_bytes: the most that one node takes for
    itself. late: what it does only once somebody reads it (its own tensors and those of ``late`` are shown
    apart).
    """

    nodes: int = 0
    made: tuple[Made, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    shown: tuple[tuple[Looks, int], ...] = ()
    together: tuple[tuple[int, ...], ...] = ()
    workspace_bytes: int = 0
    late: "Footprint | None" = None


@dataclass
class _Tensor:
    kept: Kept
    size: int
    node: int
    last: int
    changed: int  # by which node, last
    blocked: bool | None
    shape: Shape  # the one it has last
    over: tuple[int, ...] = ()
    read: bool = False
    outside: bool = False  # a tensor of an earlier kernel in another shape

    def looks_like(self, looks: Looks) -> bool:
        return looks in _looks(self.blocked, self.kept[0], self.shape)


def footprint(part: Sequence[str]) -> Footprint:
    """Of the optimised nodes of a kernel."""
    found, reads = _read_through(part)
    late = _late(part, reads)
    if not late:
        return found
    now = [key for index, key in enumerate(part) if index not in late]
    return replace(_read_through(now)[0], late=_read_through([part[index] for index in sorted(late)])[0])


def _late(part: Sequence[str], reads: Sequence[Sequence[int]]) -> set[int]:
    """The nodes of a kernel that run only when somebody reads what they make. ``reads``: per node, the nodes
    of the kernel that it reads."""
    ops = [read_node(key).op for key in part]
    light = [op in _HANDED_ON for op in ops]
    ends = [index for index in range(len(part)) if not any(index in read for read in reads)]
    if all(light):
        return set(range(len(part)))
    if len(ends) < 2:
        return set()
    late = {index for index in ends if ops[index] in _LATE}
    for index in reversed(range(len(part))):
        readers = {other for other in range(len(part)) if index in reads[other]}
        if light[index] and readers and readers <= late:
            late.add(index)
    return late


def _read_through(part: Sequence[str]) -> tuple[Footprint, list[list[int]]]:
    tensors: list[_Tensor] = []
    wanted: list[Wanted] = []
    together: list[tuple[int, ...]] = []
    reads: list[list[int]] = []
    for index, key in enumerate(part):
        node = read_node(key)
        here: list[int | None] = []
        for wide, shape in zip(node.reads_wide(), node.shapes, strict=True):
            looks = tuple(_wanted(node, wide, shape))
            here.append(_found(tensors, looks, [place for place in here if place is not None]))
            if here[-1] is None:
                wanted.append(Wanted(index, looks))
            else:
                _read_at(tensors[here[-1]], index)
        reads.append([tensors[place].changed for place in here if place is not None])
        alias = node.op in ALIASES
        if alias and here and here[0] is not None:
            tensors[here[0]].shape, tensors[here[0]].read = node.shape, False
            tensors[here[0]].changed = index
            continue
        if not node.shapes:
            continue
        first, kept = len(tensors), (node.makes_wide(), node.shape)
        written_over = _written_over(node, here)
        asked = [place for place, want in enumerate(wanted) if want.node == index]
        for operand, place in zip((i for i, found in enumerate(here) if found is None), asked, strict=True):
            if alias or operand in written_over:
                want = wanted[place]
                wanted[place] = Wanted(index, want.looks, -1 if alias else first, first if alias else -1)
        over = tuple(found for i, found in enumerate(here) if i in written_over and found is not None)
        blocked = node.makes_blocked()
        if blocked is None and not alias and here and here[0] is not None:
            blocked = tensors[here[0]].blocked if node.shape == node.shapes[0] else None
        for _ in range(node.outputs()):
            tensors.append(
                _Tensor(kept, made_bytes(node), index, index, index, blocked, node.shape, over, outside=alias)
            )
        if node.outputs() > 1:
            together.append(tuple(range(first, len(tensors))))
    shown = {looks: i for i, t in enumerate(tensors) for looks in _looks(t.blocked, t.kept[0], t.shape)}
    return Footprint(
        len(part),
        tuple(Made(t.kept, t.size, t.node, t.last, t.over) for t in tensors),
        tuple(wanted),
        tuple(shown.items()),
        tuple(together),
        max(map(workspace_bytes, part), default=0),
    ), reads


def _written_over(node: Node, here: Sequence[int | None]) -> Sequence[int]:
    """Operands that a node may write its output over."""
    if node.op in _IN_PLACE:
        return range(len(here))
    return (len(here) - 1,) if node.op in _SUMMING and len(here) > 1 else ()


def _read_at(tensor: _Tensor, index: int) -> None:
    tensor.last, tensor.read = index, True


def _found(tensors: Sequence[_Tensor], looks: Sequence[Looks], taken: Sequence[int]) -> int | None:
    """The newest tensor that looks like that, those that nothing has read yet first."""
    for look in looks:
        fitting = [i for i, t in enumerate(tensors) if i not in taken and t.looks_like(look)]
        if fitting:
            return max(fitting, key=lambda i: (not tensors[i].read, i))
    return None


def _wanted(node: Node, wide: bool, shape: Shape) -> Iterator[Looks]:
    yield (node.reads_blocked(shape), wide, shape)
    yield (None, wide, math.prod(shape))


@cache
def _looks(blocked: bool | None, wide: bool, shape: Shape) -> tuple[Looks, ...]:
    layouts = (None, True, False) if blocked is None else (None, blocked)
    return (*((layout, wide, shape) for layout in layouts), (None, wide, math.prod(shape)))
