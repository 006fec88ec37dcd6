"""Peak memory of the tensors that are alive at the same time, for many policies at once."""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, operation
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.rows import Rows

Array = NDArray[np.float64]

_BYTES = np.array([max(8, bits) / 8 for bits in range(33)])
"""Of one value, by its bits."""


class TensorBytes:
    """Bytes of each kernel's output tensor, batch 1, by its row: (n,), 0 where it is left out. Integers of 8
    bits or fewer take one byte each."""

    def __init__(self, elements: Rows, bits: NDArray[np.int16], narrow: NDArray[np.bool_]) -> None:
        """elements: of tensors. bits: (kernels, n) at which they are held. narrow: see ``narrow_rows``."""
        self._elements, self._bits, self._narrow = elements, bits, narrow.tolist()
        self._floats = Rows(4.0 * elements.values, elements.of_kernel)

    def __getitem__(self, row: int) -> Array:
        if not self._narrow[row]:
            return self._floats[row]
        return np.asarray(_BYTES.take(self._bits[row]) * self._elements[row])


def tensor_bytes(batch: PolicyBatch) -> TensorBytes:
    """Of the tensors of many policies."""
    return TensorBytes(batch.element_rows, batch.bits, narrow_rows(batch.bits))


def narrow_rows(bits: NDArray[np.int16]) -> NDArray[np.bool_]:
    """(kernels,): whose tensor some policy holds in fewer than 32 bits. ``bits``: (kernels, n), 0 where one
    is left out."""
    below = (bits - np.int16(1)).view(np.uint16)  # 0 becomes the largest number
    return np.asarray((below < 31).any(axis=1))


class WorkingBytes:
    """What an engine on a CPU takes beside the tensors while each kernel runs, by its row: (n,).

    Integer convolutions list where their inputs lie: 8 bytes per window and output position. Kernels that
    compute in floats have a float copy of what they read and make in integers, and the caller's input is in
    floats.
    """

    def __init__(self, batch: PolicyBatch) -> None:
        self._batch, self._narrow = batch, narrow_rows(batch.bits).tolist()
        given = [row for row, kernel in enumerate(batch.kernels) if operation(kernel.op).given]
        self._always = sum((self._copy(row) for row in given), np.zeros(batch.count))

    def __getitem__(self, row: int) -> Array:
        batch, kernel, found = self._batch, self._batch.kernels[row], self._always
        if operation(kernel.op).given:
            return found
        integer = batch.integer[row]
        window = math.prod(kernel.layer.shape.kernel) if kernel.layer is not None else 1
        if window > 1:
            found = found + 8.0 * window * math.prod(kernel.output.spatial) * integer
        read = [row, *(batch.kernel_index[name] for name in kernel.inputs)]
        if coded := [self._copy(one) for one in read if self._narrow[one]]:
            found = found + (batch.element_rows[row] > 0) * ~integer * sum(coded)
        return np.asarray(found)

    def _copy(self, row: int) -> Array:
        """In floats of what is held in integers."""
        return np.asarray(4.0 * self._batch.element_rows[row] * (self._batch.bits[row] <= 8))


def working_bytes(batch: PolicyBatch) -> WorkingBytes:
    """Of the kernels of many policies."""
    return WorkingBytes(batch)


class Sizes(Protocol):
    """Numbers of each kernel, by its row: an array, or what looks them up."""

    def __getitem__(self, row: int, /) -> Any:
        """(n,)."""
        ...


def peak_bytes(batch: PolicyBatch, sizes: Sizes, working: Sizes | None = None) -> Array:
    """(n,): the largest sum of live activation tensors over the order of execution, batch 1.

    A tensor lives from the kernel that makes it to the last one that reads it; the network's inputs and
    outputs belong to the caller but count, too. Flattening and reshaping make no new tensor, nor does what is
    left of an addition whose branch is left out.

    Args:
        sizes: (kernels, n) of the tensors, 0 where a kernel is left out.
        working: (kernels, n) of what is taken besides while each kernel runs.
    """
    alive, peak = np.zeros(batch.count), np.zeros(batch.count)
    deaths = _deaths(batch)
    for row, kernel in enumerate(batch.kernels):
        if not _hands_on(kernel):
            alias = batch.aliases.get(row, (-1, None))[1]
            alive += sizes[row] if alias is None else sizes[row] * ~alias
        np.maximum(peak, alive if working is None else alive + working[row], out=peak)
        for source, where in deaths.get(row, ()):
            alive -= sizes[source] if where is None else sizes[source] * where
    return peak


def _hands_on(kernel: Kernel) -> bool:
    """Whether what comes out is the tensor that goes in."""
    return operation(kernel.op).same_tensor and len(kernel.inputs) == 1


def _deaths(batch: PolicyBatch) -> dict[int, list[tuple[int, NDArray[np.bool_] | None]]]:
    """Row of a kernel -> the tensors that nobody reads after it, and where (n,); None: under all policies."""
    kernels, rows, places = batch.kernels, batch.kernel_index, batch.places
    end, outputs = len(kernels), set(batch.network.outputs)
    last: list[int | NDArray[np.int32]] = [
        end if any(node.name in outputs for node in kernel.nodes) else row
        for row, kernel in enumerate(kernels)
    ]
    ends: list[set[int]] = [{row} if isinstance(row, int) else set() for row in last]  # that it may have
    found: dict[int, list[tuple[int, NDArray[np.bool_] | None]]] = {}
    for row in reversed(range(end)):  # whatever reads a tensor was looked at before it
        kernel = kernels[row]
        hands_on = _hands_on(kernel)
        stays, alias = batch.aliases.get(row, (-1, None))
        for source in [rows[name] for name in kernel.inputs]:
            read: int | NDArray[np.int32] = last[row] if hands_on else row
            ends[source] |= ends[row] if hands_on else {row}
            if alias is not None and source == stays:  # else it is gone with the branch, and takes nothing
                read = _either(alias, last[row], read)
                ends[source] |= ends[row]
            if row in batch.absent and not places[row] <= places[source]:
                read = _either(batch.absent[row], 0, read)
            both_known = isinstance(read, int) and isinstance(known := last[source], int)
            last[source] = max(read, known) if both_known else np.maximum(read, last[source])
        if hands_on:
            continue
        where = None if alias is None else ~alias
        own = last[row]
        if isinstance(own, int):
            found.setdefault(own, []).append((row, where))
            continue
        for final in ends[row]:
            there = own == final
            if there.any():
                found.setdefault(final, []).append((row, there if where is None else there & where))
    return found


def _either(
    where: NDArray[np.bool_], one: int | NDArray[np.int32], other: int | NDArray[np.int32]
) -> NDArray[np.int32]:
    return np.where(where, np.asarray(one, dtype=np.int32), np.asarray(other, dtype=np.int32))
