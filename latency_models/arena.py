"""The memory that onnxruntime allocates for one inference, from the footprints of a network's kernels.

With memory patterns, its default, onnxruntime plans all tensors of a network in one block and allocates that
whole, then the working buffers of single operations and the outputs beside it. A tensor takes the buffer of
an earlier one of exactly its shape; such a buffer is not given back in between. So of each shape as many
buffers are held, at any time, as were needed at once before and will be needed at once again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compression.policy import Kernel
from latency_models.memory import lifetimes
from latency_models.workspace import Footprint, Kept

GAPS = 1.05
"""Planned blocks are larger than the tensors in them: 1.0 to 1.2 times, seen on eight policies each of
ResNet-20, MobileNetV2, a vision transformer and a U-Net."""

_AT_ONCE = 4096  # policies: their arrays fit a processor's cache

Array = NDArray[np.float64]


class Arena:
    """Peak memory of one network under any policy.

    Footprints are known by numbers: ``number`` gives them out.
    """

    def __init__(self, kernels: tuple[Kernel, ...], outputs: tuple[str, ...]) -> None:
        index = {kernel.name: i for i, kernel in enumerate(kernels)}
        alive = lifetimes(kernels, outputs)
        count = len(kernels)
        self._sources = [[index[name] for name in kernel.inputs] for kernel in kernels]
        self._last = [int(np.flatnonzero(row).max()) if row.any() else i for i, row in enumerate(alive.T)]
        self._returned = [any(node.name in outputs for node in kernel.nodes) for kernel in kernels]
        self._others = (
            alive.copy()
        )  # of the tensors alive, those that a kernel's own footprint does not count
        self._dying = np.zeros(count)  # share of a kernel's inputs that nothing reads after it
        for i, sources in enumerate(self._sources):
            dying = {s for s in sources if self._last[s] == i and self._sources[s]}
            self._others[i, [i, *dying]] = 0.0
            self._dying[i] = len(dying) / max(1, len(set(sources)))
        self._joined = [max(sources) if len(sources) > 1 else None for sources in self._sources]
        self._overwritten = [self._written_over(i) for i in range(count)]
        self._dying_shares = self._dying.tolist()
        self._footprints: list[Footprint] = []
        self._rows: list[tuple[int, int, int, int, tuple[tuple[int, int], ...], int, bool]] = []
        self._numbers: dict[Footprint, int] = {}
        self._kinds: dict[Kept | None, int] = {None: 0}

    def _written_over(self, join: int) -> int | None:
        """The tensor that a layer writes its output over when an addition behind it is done within it: the
        addition's other operand, where nothing reads that afterwards."""
        sources = set(self._sources[join])
        if len(sources) != 2:
            return None
        other = min(sources)
        free = self._last[other] == join and self._sources[other] and not self._returned[other]
        return other if free else None

    def number(self, footprint: Footprint) -> int:
        """The number of a footprint, the same for equal ones."""
        if footprint not in self._numbers:
            self._numbers[footprint] = len(self._footprints)
            self._footprints.append(footprint)
            for kept in (footprint.handed, *(kept for kept, _ in footprint.local)):
                self._kinds.setdefault(kept, len(self._kinds))
            self._rows.append(
                (
                    footprint.handed_bytes,
                    self._kinds[footprint.handed],
                    footprint.reading_bytes,
                    footprint.making_bytes,
                    tuple((self._kinds[kept], size) for kept, size in footprint.local),
                    footprint.workspace_bytes,
                    footprint.in_place or footprint.handed is None,
                )
            )
        return self._numbers[footprint]

    def peak_bytes(self, numbers: Sequence[int]) -> int:
        """Of one policy. ``numbers``: of its kernels' footprints, in order."""
        handed: list[int] = []
        kinds: list[int] = []
        own: list[float] = []
        lines: dict[int, int] = {0: 0}  # kind of tensor -> row of what is used of it over time
        width = len(numbers) + 1
        places: list[int] = []
        sizes: list[int] = []
        workspace = returned = 0
        over: list[
            tuple[int, int, int]
        ] = []  # from kernel, to kernel, bytes that another tensor holds already
        for i, number in enumerate(numbers):
            made, kind, reading, making, local, working, in_place = self._rows[number]
            source = self._joined[i]
            if source is not None and not kind:  # done by the kernel before it, into the tensor that it made
                made, kind = handed[source], kinds[source]
                own.append(made)
                other = self._overwritten[i]
                if other is not None and self._rows[numbers[source]][6] and kinds[other] == kind and made:
                    over.append((source, i, made))
                    line = lines[kind] * width
                    places += (line + source, line + i + 1)
                    sizes += (-made, made)
            else:
                own.append(making + self._dying_shares[i] * (reading - making))
            if self._returned[i]:
                own[i] -= made
                returned += made
                made = 0
            handed.append(made)
            kinds.append(kind)
            workspace = max(workspace, working)
            for place, size in local:
                line = lines.setdefault(place, len(lines)) * width + i
                places += (line, line + 1)
                sizes += (size, -size)
            if made:
                first = i + 1 if in_place and source is not None else i
                line = lines.setdefault(kind, len(lines)) * width
                places += (line + first, line + self._last[i] + 1)
                sizes += (made, -made)
        level = self._others @ np.array(handed, dtype=np.float64) + own
        for begin, end, size in over:
            level[begin:end] -= size
        used = np.bincount(places, sizes, len(lines) * width).reshape(-1, width).cumsum(axis=1).T[:-1]
        level += (_held(used) - used).sum(axis=1)
        return int(np.rint(GAPS * level.max() + max(workspace, returned)))

    def peaks_bytes(self, numbers: NDArray[np.int64]) -> Array:
        """Of many policies, the same numbers: (kernels, n) -> (n,)."""
        parts = [numbers[:, at : at + _AT_ONCE] for at in range(0, numbers.shape[1], _AT_ONCE)]
        return np.concatenate([self._peaks_bytes(np.ascontiguousarray(part)) for part in parts])

    def _peaks_bytes(self, numbers: NDArray[np.int64]) -> Array:
        of = self._footprints
        handed_bytes = np.array([f.handed_bytes for f in of], dtype=np.float64)
        reading = np.array([f.reading_bytes for f in of], dtype=np.float64)
        making = np.array([f.making_bytes for f in of], dtype=np.float64)
        working = np.array([f.workspace_bytes for f in of], dtype=np.float64)
        kind_of = np.array([self._kinds[f.handed] for f in of], dtype=np.int64)
        in_place = np.array([f.in_place or f.handed is None for f in of])
        count, n = numbers.shape
        handed, own = np.zeros((count, n)), np.empty((count, n))
        kinds = np.zeros((count, n), dtype=np.int64)
        late = np.zeros((count, n), dtype=np.bool_)
        returned, beside = np.zeros(n), np.zeros(n)
        over: dict[int, NDArray[np.bool_]] = {}  # join -> policies where its other operand is written over
        present: list[NDArray[np.int64]] = []
        for i, row in enumerate(numbers):
            present.append(np.flatnonzero(np.bincount(row, minlength=len(of))))
            kinds[i] = kind_of[row]
            own[i] = (making + self._dying[i] * (reading - making))[row]
            made = handed_bytes[row]
            if self._returned[i]:
                own[i] -= made
                returned += made
            else:
                handed[i] = made
            if len(self._sources[i]) > 1:
                source = max(self._sources[i])
                fused = kinds[i] == 0
                handed[i] = np.where(fused, handed[source], handed[i])
                own[i] = np.where(fused, handed[i], own[i])
                kinds[i] = np.where(fused, kinds[source], kinds[i])
                late[i] = in_place[row]
                other = self._overwritten[i]
                if other is not None:
                    over[i] = fused & in_place[numbers[source]] & (kinds[other] == kinds[i])
            beside = np.maximum(beside, working[row])
        level = self._others @ handed + own
        for i, policies in over.items():
            level[max(self._sources[i]) : i] -= np.where(policies, handed[i], 0.0)
        for kind, where in self._where(present).items():
            self._hold(level, kind, where, numbers, handed, kinds, late, over)
        return np.asarray(np.rint(GAPS * level.max(axis=0) + np.maximum(beside, returned)))

    def _where(self, present: list[NDArray[np.int64]]) -> dict[int, dict[int, Array | None]]:
        """Kind of tensor -> kernels that may use it -> its bytes within the kernel by footprint."""
        found: dict[int, dict[int, Array | None]] = {}
        handed: list[set[int]] = []
        for i, numbers in enumerate(present):
            handed.append({self._kinds[self._footprints[number].handed] for number in numbers})
            if len(self._sources[i]) > 1 and 0 in handed[i]:
                handed[i] |= handed[max(self._sources[i])]
            for kind in handed[i] - {0}:
                found.setdefault(kind, {}).setdefault(i, None)
            for number in numbers:
                for kept, size in self._footprints[number].local:
                    uses = found.setdefault(self._kinds[kept], {})
                    sizes = uses.get(i)
                    if sizes is None:
                        sizes = uses[i] = np.zeros(len(self._footprints))
                    sizes[number] = size
        return {kind: dict(sorted(uses.items())) for kind, uses in found.items() if len(uses) > 1}

    def _hold(
        self,
        level: Array,
        kind: int,
        where: dict[int, Array | None],
        numbers: NDArray[np.int64],
        handed: Array,
        kinds: NDArray[np.int64],
        late: NDArray[np.bool_],
        over: dict[int, NDArray[np.bool_]],
    ) -> None:
        """Add what buffers of one kind hold while nobody uses them, where a policy uses them twice."""
        uses = np.zeros(numbers.shape[1], dtype=np.int16)
        for i, sizes in where.items():
            uses += kinds[i] == kind
            if sizes is not None:
                uses += (sizes > 0)[numbers[i]]
        twice = np.flatnonzero(uses > 1)
        if not len(twice):
            return
        begin, end = min(where), max(max(self._last[i], i) for i in where) + 1
        used = np.zeros((end - begin, len(twice)))
        for i, sizes in where.items():
            if sizes is not None:
                used[i - begin] += sizes[numbers[i, twice]]
            made = np.where(kinds[i, twice] == kind, handed[i, twice], 0.0)
            used[i - begin] += np.where(late[i, twice], 0.0, made)
            used[i + 1 - begin : self._last[i] + 1 - begin] += made
            if i in over:
                twice_held = np.where(over[i][twice], made, 0.0)
                used[max(self._sources[i]) - begin : i + 1 - begin] -= twice_held
        level[begin:end, twice] += (_held(used) - used)[: len(level) - begin]


def _held(used: Array) -> Array:
    """Bytes used over time (first axis) -> bytes held: as much as was used before and will be used again."""
    held = np.minimum(np.maximum.accumulate(used), np.maximum.accumulate(used[::-1])[::-1])
    return np.asarray(held)
