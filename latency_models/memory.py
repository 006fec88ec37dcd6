"""Peak memory of the tensors that are alive at the same time, for many policies at once."""

import math

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.batch import PolicyBatch

Array = NDArray[np.float64]


def tensor_bytes(batch: PolicyBatch) -> Array:
    """(kernels, n): bytes of each kernel's output tensor, batch 1: integers of 8 bits or fewer take one byte
    each."""
    return np.asarray(batch.elements * np.where(batch.bits <= 8, 1.0, batch.bits / 8.0))


def working_bytes(batch: PolicyBatch) -> Array:
    """(kernels, n): what an engine on a CPU takes beside the tensors while each kernel runs.

    Integer convolutions list where their inputs lie: 8 bytes per window and output position. Kernels that
    compute in floats have a float copy of what they read and make in integers, and the caller's input is in
    floats.
    """
    elements, integer = batch.elements, batch.integer
    coded = (batch.bits <= 8) & (elements > 0)
    copies = 4.0 * elements * coded
    found = np.zeros(elements.shape)
    for row, kernel in enumerate(batch.kernels):
        if operation(kernel.op).given:
            found += copies[row]
            continue
        window = math.prod(kernel.layer.shape.kernel) if kernel.layer is not None else 1
        if window > 1:
            found[row] += 8.0 * window * math.prod(kernel.output.spatial) * integer[row]
        read = [copies[batch.kernel_index[name]] for name in kernel.inputs]
        found[row] += (elements[row] > 0) * ~integer[row] * sum(read, copies[row])
    return found


def peak_bytes(batch: PolicyBatch, sizes: Array, working: Array | None = None) -> Array:
    """(n,): the largest sum of live activation tensors over the order of execution, batch 1.

    A tensor lives from the kernel that makes it to the last one that reads it; the network's inputs and
    outputs belong to the caller but count, too. Flattening and reshaping make no new tensor, nor does what is
    left of an addition whose branch is left out.

    Args:
        sizes: (kernels, n) of the tensors, 0 where a kernel is left out.
        working: (kernels, n) of what is taken besides while each kernel runs.
    """
    kernels, rows = batch.kernels, batch.kernel_index
    end, columns = len(kernels), np.arange(batch.count)
    outputs = set(batch.network.outputs)
    last: list[int | NDArray[np.int64]] = [
        end if any(node.name in outputs for node in kernel.nodes) else row
        for row, kernel in enumerate(kernels)
    ]
    changes = np.zeros((end + 2, batch.count))  # what comes to life with each kernel, less what has died
    for row in reversed(range(end)):  # whatever reads a tensor was looked at before it
        kernel = kernels[row]
        hands_on = operation(kernel.op).same_tensor and len(kernel.inputs) == 1
        stays, alias = batch.aliases.get(row, (-1, None))
        for source in [rows[name] for name in kernel.inputs]:
            read = last[row] if hands_on else row
            if alias is not None:
                read = np.where(alias, last[row] if source == stays else 0, read)
            if row in batch.absent:
                read = np.where(batch.absent[row], 0, read)
            both_known = isinstance(read, int) and isinstance(known := last[source], int)
            last[source] = max(read, known) if both_known else np.maximum(read, last[source])
        if not hands_on:
            made = sizes[row] if alias is None else sizes[row] * ~alias
            changes[row] += made
            changes[last[row] + 1, columns] -= made
    alive = np.cumsum(changes, axis=0, out=changes)[:end]
    return np.asarray((alive if working is None else alive + working).max(axis=0))
