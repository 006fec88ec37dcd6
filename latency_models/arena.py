"""What tflite-micro's interpreter takes of a microcontroller's memory while it runs a file: its arena."""

import math

import numpy as np

from leanfront.compression.graph import operation
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.latency_models.memory import Array, peak_bytes, tensor_bytes

# Of tflite-micro as its package runs it, with pointers of 8 bytes; where they have 4 it takes less.
FIXED_BYTES = 620  # the interpreter, its allocator, the graph
TENSOR_BYTES = 24  # of TfLiteEvalTensor
OPERATOR_BYTES = 128  # NodeAndRegistration, and what a kernel keeps of an operation
END_BYTES = 64  # of a TfLiteTensor, for inputs and outputs
CHANNEL_BYTES = 8  # multiplier and shift of an output channel
ALIGNED = 16
"""Where tensors begin."""


def arena_bytes(batch: PolicyBatch) -> Array:
    """(n,): the arena of each policy's file in integers: what lives as long as the interpreter, and the most
    of the tensors that live at the same time, which its planner lays into one another's places."""
    written = [[node.written for node in kernel.nodes if node.written] for kernel in batch.kernels]
    each = [
        sum(TENSOR_BYTES * one.values + OPERATOR_BYTES * one.operators for one in parts) for parts in written
    ]
    there = batch.widths > 0
    ends = sum(operation(kernel.op).given for kernel in batch.kernels) + len(batch.network.outputs)
    kept = np.array(each, dtype=np.float64) @ there + CHANNEL_BYTES * batch.out_channels.sum(axis=0)
    tensors = tensor_bytes(batch)
    sizes = np.ceil(np.stack([tensors[row] for row in range(len(batch.kernels))]) / ALIGNED) * ALIGNED
    return np.asarray(
        FIXED_BYTES + END_BYTES * ends + kept + peak_bytes(batch, sizes, _working(batch, sizes))
    )


def _working(batch: PolicyBatch, sizes: Array) -> Array:
    """(kernels, n): what is alive besides while each kernel runs: the input in floats; of kernels of floats
    between integers what they read and make, and their weights, decoded; what a convolution reads with zeros
    around it, where it takes steps."""
    found = np.zeros(sizes.shape)
    copies = 4.0 * batch.elements * (batch.bits <= 8)
    for row, kernel in enumerate(batch.kernels):
        if operation(kernel.op).given:
            found[row] = copies[row]
            continue
        if not operation(kernel.op).same_range and not operation(kernel.op).same_tensor:
            read = sum((copies[batch.kernel_index[name]] for name in kernel.inputs), copies[row])
            if kernel.layer is not None:
                place = batch.layer_index[kernel.layer.name]
                coded = (batch.weight_bits[place] <= 8) & (batch.widths[row] > 0)
                read = read + 4.0 * batch.weight_counts[place] * coded
            made = sizes[row] * (batch.bits[row] <= 8)  # codes are made when the floats are there
            found[row] = np.maximum(read - made, 0.0) * ~batch.integer[row]
        if kernel.layer is not None and math.prod(kernel.layer.shape.kernel) > 1:
            shape = kernel.layer.shape
            if math.prod(shape.stride) > 1 and shape.op == "conv2d":
                read = sizes[batch.kernel_index[kernel.inputs[0]]]
                spatial = batch.kernels[batch.kernel_index[kernel.inputs[0]]].output.spatial
                grown = math.prod(size + 1 for size in spatial) / max(math.prod(spatial), 1)
                found[row] += np.maximum(read * grown - np.minimum(read, sizes[row]), 0.0)
    return found
