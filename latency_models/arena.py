"""The memory that onnxruntime allocates for one inference, from the footprints of a network's kernels.

With memory patterns, its default, onnxruntime plans all tensors of a network in one block and allocates that
whole, then the working buffers of single operations and the outputs beside it. This is its plan
(``AllocationPlanner`` and ``MemPatternPlanner`` in its sources), played back:

1. A tensor is written over one that its node may write over and nothing reads afterwards; else it takes the
   buffer of an earlier one of exactly its shape and element width, the one freed last; else a buffer of its
   own. A buffer that will be taken again is not given back in between.
2. In order of their beginnings, each buffer goes to the smallest gap between those held that is large enough,
   or behind the last of them.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.policy import Kernel
from latency_models.footprint import Footprint, Looks

_FAR = 4
"""How many kernels up a tensor is looked for: an addition done within a layer leaves nothing of its own."""

_OUTSIDE = 0  # kind of tensors that are not in the block
_NEVER = 1 << 62  # more bytes than any gap


@dataclass(frozen=True)
class _Row:
    """A footprint with numbers for what tensors look like and for what their buffers may be given to."""

    nodes: int
    kinds: list[int]
    sizes: list[int]
    made: list[int]  # by which node
    last: list[int]
    wanted: tuple[tuple[int, tuple[int, ...], int, int], ...]
    own: dict[int, int]  # what a tensor looks like -> which one it is
    shown: dict[int, int]  # the same with those of ``late``, which come behind
    over: tuple[tuple[int, tuple[int, ...]], ...]
    together: tuple[tuple[int, ...], ...]
    workspace: int
    late: "_Row | None"


class _Tape:
    """Tensors in the order in which they are made: what they are, and the steps that make and read them."""

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows
        self.places: list[list[int]] = [[] for _ in rows]  # of the tensors of each kernel
        self.steps = 0
        self.kinds: list[int] = []
        self.sizes: list[int] = []
        self.made: list[int] = []
        self.last: list[int] = []
        self.over: dict[int, list[int]] = {}
        self.together: dict[int, range] = {}


class Arena:
    """Peak memory of one network under any policy.

    Footprints are known by numbers: ``number`` gives them out.
    """

    def __init__(self, kernels: tuple[Kernel, ...], outputs: tuple[str, ...]) -> None:
        index = {kernel.name: i for i, kernel in enumerate(kernels)}
        sources = [sorted({index[name] for name in kernel.inputs}, reverse=True) for kernel in kernels]
        self._returned = [i for i, k in enumerate(kernels) if any(node.name in outputs for node in k.nodes)]
        beside: list[list[int]] = [[] for _ in kernels]  # read where an addition is done in the layer before
        for read in sources:
            if len(read) > 1:
                beside[read[0]] += read[1:]
        self._beside = [tuple(other for other in others if other < i) for i, others in enumerate(beside)]
        self._searched: list[tuple[int, ...]] = []
        for i, read in enumerate(sources):
            near = [*read, *self._beside[i]]
            found = dict.fromkeys(near)
            for _ in range(_FAR):
                near = [source for other in near for source in sources[other]]
                found |= dict.fromkeys(near)
            self._searched.append(tuple(found))
        self._footprints: dict[Footprint, int] = {}
        self._rows: list[_Row] = []
        self._kinds: dict[object, int] = {}
        self._looks: dict[Looks, int] = {}

    def number(self, footprint: Footprint) -> int:
        """The number of a footprint, the same for equal ones."""
        if footprint not in self._footprints:
            self._footprints[footprint] = len(self._rows)
            self._rows.append(self._row(footprint))
        return self._footprints[footprint]

    def _row(self, footprint: Footprint) -> _Row:
        def look(looks: Looks) -> int:
            return self._looks.setdefault(looks, len(self._looks))

        made = footprint.made
        late = self._row(footprint.late) if footprint.late is not None else None
        own = shown = {look(looks): place for looks, place in footprint.shown}
        if late is not None:
            shown = own | {look: place + len(made) for look, place in late.shown.items()}
        return _Row(
            footprint.nodes,
            [
                self._kinds.setdefault(t.kept, len(self._kinds) + 1) if t.size_bytes else _OUTSIDE
                for t in made
            ],
            [tensor.size_bytes for tensor in made],
            [tensor.node for tensor in made],
            [tensor.last for tensor in made],
            tuple((w.node, tuple(map(look, w.looks)), w.over, w.alias) for w in footprint.wanted),
            own,
            shown,
            tuple((place, tensor.over) for place, tensor in enumerate(made) if tensor.over),
            footprint.together,
            max(footprint.workspace_bytes, late.workspace if late is not None else 0),
            late,
        )

    def peak_bytes(self, numbers: Sequence[int]) -> int:
        """Of one policy. ``numbers``: of its kernels' footprints, in order."""
        tape = _Tape([self._rows[number] for number in numbers])
        for i, row in enumerate(tape.rows):
            if row.nodes:
                self._play(i, row, tape)
        for i, row in enumerate(tape.rows):
            if row.late is not None and len(tape.places[i]) == len(row.kinds):
                self._play(i, row.late, tape)
        returned = 0
        for i in self._returned:
            tensor = next((tape.places[s][-1] for s in (i, *self._searched[i]) if tape.places[s]), None)
            if tensor is not None:
                returned += tape.sizes[tensor]
                tape.kinds[tensor] = _OUTSIDE
        working = max([row.workspace for row in tape.rows], default=0)
        return self._block(tape) + max(returned, working)

    def _play(self, i: int, row: _Row, tape: _Tape) -> None:
        """Append the tensors of a kernel, or of what it does late, and note what it reads."""
        read: list[tuple[int, int, int, int]] = []
        for node, looks, over, alias in row.wanted:
            added = over >= 0 and bool(read) and read[-1][0] == node  # the other operand of an addition
            tensor = self._find(i, row, node, looks, read, tape, self._beside[i] if added else ())
            if tensor is not None:
                read.append((node, tensor, over, alias))
        step, first, own, last = tape.steps, len(tape.kinds), tape.places[i], tape.last
        before = len(own)
        own += range(first, first + len(row.kinds))
        tape.kinds += row.kinds
        tape.sizes += row.sizes
        tape.made += [step + node for node in row.made]
        last += [step + node for node in row.last]
        tape.steps += row.nodes
        for place, others in row.over:
            tape.over[first + place] = [first + other for other in others]
        for node, tensor, over, alias in read:
            now = step + node
            if over >= 0:
                tape.over.setdefault(first + over, []).append(tensor)
            if alias >= 0:
                own[before + alias] = tensor
                now = max(now, last[first + alias])
            for one in tape.together.get(tensor, (tensor,)):
                if last[one] < now:
                    last[one] = now
        for group in row.together:
            tensors = range(first + group[0], first + group[-1] + 1)
            tape.together |= dict.fromkeys(tensors, tensors)

    def _find(
        self,
        i: int,
        row: _Row,
        node: int,
        looks: tuple[int, ...],
        read: list[tuple[int, int, int, int]],
        tape: _Tape,
        first: tuple[int, ...],
    ) -> int | None:
        """The tensor of an earlier kernel that looks like that and that the node does not read yet; kernels
        in ``first`` are asked first."""
        searched = self._searched[i] if row is tape.rows[i] else (i, *self._searched[i])
        if first:
            searched = (*first, *searched)
        for look in looks:
            for source in searched:
                other = tape.rows[source]
                place = (other.own if other.late is row else other.shown).get(look)
                if place is None:
                    continue
                known = tape.places[source]
                if place >= len(known) and other.late is not None:
                    self._play(source, other.late, tape)
                tensor = known[place]
                if not read or (node, tensor) not in [one[:2] for one in read]:
                    return tensor
        return None

    @staticmethod
    def _block(tape: _Tape) -> int:
        """Bytes of the block that all tensors are planned into."""
        return _block_bytes(*_buffers(tape))

    def peaks_bytes(self, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of many policies, the same numbers: (kernels, n) -> (n,)."""
        different, place = np.unique(numbers, axis=1, return_inverse=True)
        return np.array([self.peak_bytes(column) for column in different.T.tolist()], dtype=np.float64)[place]


def _buffers(tape: _Tape) -> tuple[list[tuple[int, int]], list[int]]:
    """The buffers that the tensors take, in order of their beginnings: (bytes, first step), last step."""
    kinds, last, made, over = tape.kinds, tape.last, tape.made, tape.over
    most = len(kinds)  # buffers; so a step times this, less a buffer, tells both
    of = [-1] * most  # tensor -> buffer
    buffers: list[tuple[int, int]] = []
    ends: list[int] = []
    known: dict[int, list[int]] = {}  # kind -> buffers: the last to end is last, of several the oldest
    for tensor, kind in enumerate(kinds):
        if kind == _OUTSIDE:
            continue
        begin, end, buffer = made[tensor], last[tensor], -1
        if kind in known:
            alike = known[kind]
            if tensor in over:
                for other in over[tensor]:
                    if kinds[other] == kind and last[other] == begin == ends[of[other]]:
                        buffer = of[other]
                        alike.remove(begin * most - buffer)
                        break
            if buffer < 0 and (place := bisect_right(alike, (begin - 1) * most)):  # ended before it begins
                buffer = -alike.pop(place - 1) % most
        else:
            alike = known[kind] = []
        if buffer < 0:
            buffer = len(ends)
            buffers.append((tape.sizes[tensor], begin))
            ends.append(end)
        else:
            ends[buffer] = end
        insort(alike, end * most - buffer)
        of[tensor] = buffer
    return buffers, ends


def _block_bytes(buffers: Sequence[tuple[int, int]], ends: Sequence[int]) -> int:
    """The size of the block that holds buffers, in order of their beginnings."""
    block = 0
    held: list[tuple[int, int, int]] = []  # (begin, end in the block, last step)
    for (size, first), last in zip(buffers, ends, strict=True):
        at, best, smallest, freed = 0, -1, _NEVER, False
        for begin, end, until in held:
            if until < first:
                freed = True
            else:
                if size <= begin - at < smallest:
                    best, smallest = at, begin - at
                at = end
        if freed:
            held = [one for one in held if one[2] >= first]
        if best >= 0:
            insort(held, (best, best + size, last))
            continue
        held.append((at, at + size, last))
        if at + size > block:
            block = at + size
    return block
