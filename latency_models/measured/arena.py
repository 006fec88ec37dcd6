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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel
from leanfront.compression.graph.absent_kernels import Missing
from leanfront.compression.graph.branches import ALIAS
from leanfront.latency_models.measured.footprint import Footprint, Looks, Made

T = TypeVar("T")
_Read = tuple[int, int, int, int]
"""(node, the tensor that it reads, the one that may be written over that, the one that is the same)"""

_FAR = 4
"""How many kernels up a tensor is looked for: an addition done within a layer leaves nothing of its own."""

_OUTSIDE = 0  # kind of tensors that are not in the block
_NEVER = 1 << 62  # more bytes than any gap
_STEPS = 1 << 12
"""More than the nodes of a kernel. So much lies between the first steps of two kernels, and before those what
others do late."""
_MOST_SETS = 4096  # of branches, whose wiring is remembered
_WHOLE = Missing()
_NOTHING: dict[int, int] = {}


@dataclass(frozen=True, slots=True)
class _Row:
    """A footprint with numbers for what tensors look like and for what their buffers may be given to."""

    nodes: int
    kinds: tuple[int, ...]
    made: tuple[int, ...]  # by which node; at which step where the kernel is known
    last: tuple[int, ...]
    reads: tuple[tuple[int, int, int], ...]  # (node, over, alias) of each tensor of an earlier kernel
    looks: tuple[int, ...]  # of those, the surest
    less_sure: tuple[tuple[int, ...], ...]
    own: dict[int, int]  # what a tensor looks like -> which one it is
    shown: dict[int, int]  # the same with those of ``late``, which come behind
    over: tuple[tuple[int, tuple[int, ...]], ...]
    together: tuple[tuple[int, ...], ...]
    workspace: int
    late: "_Row | None"


class _Wiring:
    """Which kernels read which, in a network without some of its branches."""

    def __init__(self, inputs: Sequence[frozenset[int]], missing: Missing) -> None:
        """``inputs``: of each kernel of the whole network."""
        stands_for: dict[int, int] = {}
        for row, stays in missing.aliases.items():
            stands_for[row] = stands_for.get(stays, stays)
        renamed = stands_for.keys()
        self.sources = [
            tuple(read)
            if len(read) < 2 and renamed.isdisjoint(read)
            else tuple(sorted({stands_for.get(source, source) for source in read}, reverse=True))
            for read in inputs
        ]
        """Per kernel the kernels that it reads, the latest first."""
        self.beside: dict[int, tuple[int, ...]] = {}
        """Per kernel what is read where an addition is done in it."""
        gone = {*missing.absent.tolist(), *renamed}
        for row, read in enumerate(self.sources):
            if len(read) > 1 and row not in gone:
                self.beside[read[0]] = self.beside.get(read[0], ()) + read[1:]
        self._searched: dict[int, tuple[int, ...]] = {}

    def searched(self, row: int) -> tuple[int, ...]:
        """The kernels whose tensors a kernel may read, the nearest first."""
        if row not in self._searched:
            near = [*self.sources[row], *self.beside.get(row, ())]
            found = dict.fromkeys(near)
            for _ in range(_FAR):
                near = [source for other in near for source in self.sources[other]]
                found |= dict.fromkeys(near)
            self._searched[row] = tuple(found)
        return self._searched[row]


class _Tape:
    """Tensors in the order in which they are made: what they are, and the steps that make and read them."""

    def __init__(self, rows: list[_Row], wiring: _Wiring, sizes: list[int]) -> None:
        self.rows, self.wiring = rows, wiring
        self.sizes = sizes  # of each kind
        self.first = [-1] * len(rows)  # tensor of each kernel
        self.late: dict[int, int] = {}  # kernel -> first tensor of what it did late
        self.same: dict[int, int] = {}  # tensor under another shape -> that tensor
        self.steps = 0
        self.kinds: list[int] = []
        self.made: list[int] = []
        self.last: list[int] = []
        self.over: dict[int, list[int]] = {}
        self.together: dict[int, range] = {}

    def newest(self, kernel: int) -> int | None:
        """The last tensor of a kernel."""
        row, tensor = self.rows[kernel], self.first[kernel] + len(self.rows[kernel].kinds) - 1
        if kernel in self.late and row.late is not None and row.late.kinds:
            tensor = self.late[kernel] + len(row.late.kinds) - 1
        elif not row.kinds:
            return None
        return self.same.get(tensor, tensor)


class Arena:
    """Peak memory of one network under any policy.

    Footprints are known by numbers: ``number`` gives them out.
    """

    def __init__(self, kernels: tuple[Kernel, ...], outputs: tuple[str, ...]) -> None:
        index = {kernel.name: i for i, kernel in enumerate(kernels)}
        self._inputs = [frozenset([index[name] for name in kernel.inputs]) for kernel in kernels]
        self._aliases = {i: index[k.inputs[0]] for i, k in enumerate(kernels) if k.op == ALIAS}
        self._returned = [i for i, k in enumerate(kernels) if any(node.name in outputs for node in k.nodes)]
        self._wirings: dict[Missing, _Wiring] = {}
        self._footprints: dict[Footprint, int] = {}
        self._rows: list[_Row] = []
        self._placed: list[dict[int, _Row]] = [{} for _ in kernels]
        self._kinds: dict[tuple[object, int], int] = {(None, 0): _OUTSIDE}
        self._sizes = [0]
        self._looks: dict[Looks, int] = {}
        self._shared: dict[object, Any] = {}

    def number(self, footprint: Footprint) -> int:
        """The number of a footprint, the same for equal ones."""
        if footprint not in self._footprints:
            self._footprints[footprint] = len(self._rows)
            self._rows.append(self._row(footprint))
        return self._footprints[footprint]

    def _row(self, footprint: Footprint) -> _Row:
        def look(looks: Looks) -> int:
            return self._looks.setdefault(looks, len(self._looks))

        made, wanted = footprint.made, footprint.wanted
        late = self._row(footprint.late) if footprint.late is not None else None
        own = shown = {look(looks): place for looks, place in footprint.shown}
        if late is not None:
            shown = own | {look: place + len(made) for look, place in late.shown.items()}
        return _Row(
            footprint.nodes,
            tuple(map(self._kind, made)),
            tuple([tensor.node for tensor in made]),
            tuple([tensor.last for tensor in made]),
            self._once(tuple([(one.node, one.over, one.alias) for one in wanted])),
            tuple([look(one.looks[0]) for one in wanted]),
            tuple([tuple(map(look, one.looks[1:])) for one in wanted]),
            own,
            shown,
            self._once(tuple([(place, tensor.over) for place, tensor in enumerate(made) if tensor.over])),
            self._once(footprint.together),
            max(footprint.workspace_bytes, late.workspace if late is not None else 0),
            late,
        )

    def _kind(self, tensor: Made) -> int:
        key = (tensor.kept, tensor.size_bytes) if tensor.size_bytes else (None, 0)
        if key not in self._kinds:
            self._kinds[key] = len(self._sizes)
            self._sizes.append(tensor.size_bytes)
        return self._kinds[key]

    def _once(self, value: T) -> T:
        """Equal values as one object: what thousands of footprints share stays in a near cache."""
        found: T = self._shared.setdefault(value, value)
        return found

    def _at(self, kernel: int, number: int) -> _Row:
        """A row with the steps of a kernel."""
        row, step = self._rows[number], (2 * kernel + 1) * _STEPS
        made, last = (tuple([step + node for node in nodes]) for nodes in (row.made, row.last))
        placed = replace(row, made=self._once(made), last=self._once(last))
        self._placed[kernel][number] = placed
        return placed

    def _wiring(self, missing: Missing) -> _Wiring:
        if missing not in self._wirings:
            if len(self._wirings) >= _MOST_SETS:
                self._wirings.clear()
            aliases = sorted({**self._aliases, **missing.aliases}.items())
            self._wirings[missing] = _Wiring(self._inputs, Missing(missing.absent, dict(aliases)))
        return self._wirings[missing]

    def peak_bytes(self, numbers: Sequence[int], missing: Missing = _WHOLE) -> int:
        """Of one policy. ``numbers``: of its kernels' footprints, in order; ``missing``: what branches that
        are left out take with them."""
        rows = [
            known.get(number) or self._at(kernel, number)
            for kernel, (known, number) in enumerate(zip(self._placed, numbers, strict=True))
        ]
        tape = _Tape(rows, self._wiring(missing), self._sizes)
        for i, row in enumerate(rows):
            if row.nodes:
                self._play(i, row, tape)
        tape.steps = 2 * len(rows) * _STEPS
        for i, row in enumerate(rows):
            if row.late is not None and i not in tape.late:
                self._play(i, row.late, tape)
        returned = 0
        for i in self._returned:
            newest = map(tape.newest, (i, *tape.wiring.searched(i)))
            tensor = next((one for one in newest if one is not None), None)
            if tensor is not None:
                returned += self._sizes[tape.kinds[tensor]]
                tape.kinds[tensor] = _OUTSIDE
        working = max([row.workspace for row in rows], default=0)
        return self._block(tape) + max(returned, working)

    def _play(self, i: int, row: _Row, tape: _Tape) -> None:
        """Append the tensors of a kernel, or of what it does late, and note what it reads."""
        late = row is not tape.rows[i]
        if not late:
            tape.steps = 2 * i * _STEPS
        read = self._reads(i, row, tape) if row.looks else ()
        first = len(tape.kinds)
        tape.kinds += row.kinds
        if late:
            tape.late[i], step = first, tape.steps
            tape.made += [step + node for node in row.made]
            tape.last += [step + node for node in row.last]
            tape.steps += row.nodes
        else:
            tape.first[i], step = first, (2 * i + 1) * _STEPS
            tape.made += row.made
            tape.last += row.last
        for place, others in row.over:
            tape.over[first + place] = [first + other for other in others]
        last = tape.last
        for node, tensor, over, alias in read:
            now = step + node
            if over >= 0:
                tape.over.setdefault(first + over, []).append(tensor)
            if alias >= 0:
                tape.same[first + alias] = tensor
                now = max(now, last[first + alias])
            if last[tensor] < now:
                last[tensor] = now
            if tensor in tape.together:
                for one in tape.together[tensor]:
                    last[one] = max(now, last[one])
        for group in row.together:
            tensors = range(first + group[0], first + group[-1] + 1)
            tape.together |= dict.fromkeys(tensors, tensors)

    def _reads(self, i: int, row: _Row, tape: _Tape) -> list[_Read]:
        """What a kernel reads of earlier ones, or, in what it does late, of itself."""
        read: list[_Read] = []
        taken: list[int] = []  # by the node
        rows, same, before = tape.rows, tape.same, -1
        near = tape.wiring.sources[i] if row is rows[i] else (i, *tape.wiring.sources[i])
        for order, look in enumerate(row.looks):
            node, over, alias = row.reads[order]
            if node != before:
                taken, before = [], node
            tensor = -1
            if over < 0 or not taken:
                for source in near:  # mostly one of these made it
                    other = rows[source]
                    place = (other.own if source == i else other.shown).get(look)
                    if place is not None:
                        if place < len(other.kinds):
                            tensor = tape.first[source] + place
                            tensor = same.get(tensor, tensor)
                        else:
                            tensor = self._made_late(source, place, tape)
                        if tensor not in taken:
                            break
                        tensor = -1
            if tensor < 0:
                tensor = self._find(i, row, order, taken, tape)
            if tensor >= 0:
                read.append((node, tensor, over, alias))
                taken.append(tensor)
        return read

    def _made_late(self, source: int, place: int, tape: _Tape) -> int:
        """A tensor of what a kernel does late; it is done now if it was not."""
        row = tape.rows[source]
        if source not in tape.late and row.late is not None:
            self._play(source, row.late, tape)
        tensor = tape.late[source] + place - len(row.kinds)
        return tape.same.get(tensor, tensor)

    def _find(self, i: int, row: _Row, order: int, taken: Sequence[int], tape: _Tape) -> int:
        """The tensor of an earlier kernel that looks as wanted and that the node has not ``taken`` yet; -1:
        none. The other operand of an addition is looked for first among what is read beside."""
        searched = tape.wiring.searched(i)
        if row is not tape.rows[i]:
            searched = (i, *searched)
        if taken and row.reads[order][1] >= 0:
            searched = (*tape.wiring.beside.get(i, ()), *searched)
        for look in (row.looks[order], *row.less_sure[order]):
            for source in searched:
                other = tape.rows[source]
                place = (other.own if source == i else other.shown).get(look)
                if place is None:
                    continue
                if place < len(other.kinds):
                    tensor = tape.first[source] + place
                    tensor = tape.same.get(tensor, tensor)
                else:
                    tensor = self._made_late(source, place, tape)
                if tensor not in taken:
                    return tensor
        return -1

    @staticmethod
    def _block(tape: _Tape) -> int:
        """Bytes of the block that all tensors are planned into."""
        return _block_bytes(*_buffers(tape))

    def peaks_bytes(self, numbers: NDArray[np.int64], missing: Missing = _WHOLE) -> NDArray[np.float64]:
        """Of many policies that leave the same branches out, the same numbers: (kernels, n) -> (n,)."""
        different, place = np.unique(numbers, axis=1, return_inverse=True)
        peaks = [self.peak_bytes(column, missing) for column in different.T.tolist()]
        return np.array(peaks, dtype=np.float64)[place]


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
            buffers.append((tape.sizes[kind], begin))
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
