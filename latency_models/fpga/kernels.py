"""What each kernel of a network asks of an FPGA: channels, positions, windows, bits; for many policies."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, Network, kernels
from leanfront.compression.graph.operations import Stream, operation
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.cost import check_bits

Array = NDArray[np.float64]

FLOAT_BITS = 32
"""Of weights that no policy speaks of, and of what they are multiplied with."""


@dataclass(frozen=True, eq=False)
class Work:
    """One kernel under n policies; arrays are (n,), the rest does not depend on the policy.

    inputs: rows of the kernels that it reads.
    positions, read_positions: height x width of the output and of the first input. steps: positions at which
        all weights are used: those of the output, or in a transposed convolution of the input.
    read_width: width of the first input. padding: rows above and columns left of it, as the sizes tell.
    read: channels of the first input. reduced: those that an output is computed from: 1 in depthwise layers.
    layer: it multiplies: with weights, of a layer or of what else has some (at 32 bits), or a second tensor.
    stored: these are weights. zeros: the share of them that is 0. held_bytes: what else it stores. moved:
        elements of all that it reads and of what it writes.
    pooled: it works on one position, but what follows does not (squeeze and excite). pooled_positions: those
        that were averaged for the first of such layers, else 0.
    """

    row: int
    name: str
    op: str
    inputs: tuple[int, ...]
    positions: int
    steps: int
    read_positions: int
    read_width: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    layer: bool
    stored: bool
    depthwise: bool
    pooled: bool
    pooled_positions: int
    out: Array
    read: Array
    reduced: Array
    weight_bits: Array
    activation_bits: Array
    read_bits: Array
    out_bits: Array
    moved: Array
    held_bytes: Array
    zeros: Array

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> Array:
        """Multiply-accumulates; 0 where nothing is multiplied."""
        return self.weights * float(self.steps) if self.layer else np.zeros_like(self.out)

    @property
    def weights(self) -> Array:
        """Number of weights without the bias, or values of the second tensor."""
        return self.reduced * self.out * float(self.taps) if self.layer else np.zeros_like(self.out)

    @property
    def read_bytes(self) -> Array:
        """What of ``held_bytes`` is read: of a table as much as comes out."""
        every = operation(self.op).reads_held
        return self.held_bytes if every else np.minimum(self.held_bytes, self.out * self.positions * 4.0)

    @property
    def stream(self) -> Stream:
        """What an engine has to do."""
        return operation(self.op).stream

    @property
    def busy(self) -> bool:
        """Whether anything is computed."""
        return self.stream != "free"


def works(batch: PolicyBatch, profile: HardwareProfile) -> Iterator[Work]:
    """Every kernel in order of execution. What there is no formula for writes a result for each element.

    An integer part holds every tensor in 8 bits or fewer, also those that a CPU would hold as floats.

    Raises:
        TableError: a bit pair that the part cannot run; it is named.
    """
    check_bits(batch, profile)
    held = np.minimum(batch.bits, 8).astype(np.float64)
    widths = batch.widths.astype(np.float64)
    wide_later, squeezed = _wide_later(batch.kernels), _squeezed(batch.kernels)
    for row, kernel in enumerate(batch.kernels):
        yield _work(row, kernel, batch, held, widths, wide_later[row], squeezed[row])


def other_macs(batch: PolicyBatch) -> Array:
    """(n,): multiply-accumulates of no layer, in those of 8 bits: of two tensors, and of floats."""
    found = np.zeros(batch.count)
    for row, kernel in enumerate(batch.kernels):
        if kernel.layer is not None:
            continue
        if kernel.macs:
            found += kernel.macs * (FLOAT_BITS / 8) * (batch.widths[row] > 0)
        elif operation(kernel.op).stream == "product":
            found += batch.elements[row] * batch.depth(kernel)
    return found


def unknown(network: Network) -> tuple[Kernel, ...]:
    """As ``CostModel.unknown``, of FPGAs."""
    return tuple(
        kernel
        for kernel in kernels(network)
        if not kernel.computes and operation(kernel.op).stream in ("opaque", "layer")
    )


def squeezes(batch: PolicyBatch) -> bool:
    """Whether a layer works on one position in the middle of the network (squeeze and excite)."""
    later = zip(batch.kernels, _wide_later(batch.kernels), strict=True)
    return any(operation(kernel.op).layer and _positions(kernel) == 1 and wide for kernel, wide in later)


def _wide_later(kernels: tuple[Kernel, ...]) -> list[bool]:
    """For each kernel, whether one of more than one position comes after it."""
    found: list[bool] = []
    later = False
    for kernel in reversed(kernels):
        found.append(later)
        later = later or (operation(kernel.op).stream != "free" and _positions(kernel) > 1)
    return found[::-1]


def _squeezed(kernels: tuple[Kernel, ...]) -> list[int]:
    """For each layer on one position after wider kernels: positions of the last of these; else 0."""
    found, last = [], 0
    for kernel in kernels:
        positions = _positions(kernel)
        single = operation(kernel.op).layer and positions == 1
        found.append(last if single else 0)
        if operation(kernel.op).stream not in ("free", "mean"):
            last = positions if positions > 1 else 0 if single else last
    return found


def _positions(kernel: Kernel) -> int:
    if kernel.layer is not None:
        return kernel.layer.shape.out_height * kernel.layer.shape.out_width
    return math.prod(kernel.output.spatial)


def _padding(kernel: Kernel, before: tuple[int, ...]) -> tuple[int, int]:
    """Half of what a window needs beyond its input: (out - 1) x stride + kernel - in, rounded down."""
    window = kernel.output if kernel.shape is None else kernel.shape
    after = kernel.output.spatial
    if len(after) != 2 or len(before) != 2:
        return (0, 0)
    total = [
        (a - 1) * s + k - b for a, s, k, b in zip(after, window.stride, window.kernel, before, strict=True)
    ]
    return (max(0, total[0]) // 2, max(0, total[1]) // 2)


def _work(
    row: int,
    kernel: Kernel,
    batch: PolicyBatch,
    held: Array,
    widths: Array,
    wide_later: bool,
    squeezed: int,
) -> Work:
    inputs = tuple(batch.kernel_index[name] for name in kernel.inputs)
    source = batch.kernels[inputs[0]].output if inputs else kernel.output
    read = widths[inputs[0]] if inputs else widths[row]
    ones = np.ones(batch.count)
    positions = _positions(kernel)
    shape = kernel.shape
    taps = kernel.output.kernel if shape is None else shape.kernel
    if operation(kernel.op).stream == "mean":
        taps = (1, 1)
    product = operation(kernel.op).stream == "product"
    if kernel.layer is not None and not kernel.layer.looked_up:
        reduced = batch.reduced[batch.layer_index[kernel.layer.name]].astype(np.float64)
    elif kernel.macs:
        reduced = kernel.macs / (positions * np.maximum(widths[row], 1.0))
    elif product:
        reduced = ones * batch.depth(kernel)
    else:
        reduced = ones
    if shape is not None and shape.op == "linear" and positions == 1:
        source_positions, source_width = 1, 1
    else:
        source_positions = math.prod(source.spatial)
        source_width = source.spatial[-1] if source.spatial else 1
    steps = positions
    if shape is not None and shape.op == "conv_transpose2d":
        steps = max(1, positions // math.prod(shape.stride))
    second = held[inputs[-1]] if inputs else held[row]
    weight_bits, activation_bits = _operand_bits(kernel, batch, 8 * ones, second if product else 8 * ones)
    return Work(
        row=row,
        name=kernel.label,
        op=kernel.op,
        inputs=inputs,
        positions=positions,
        steps=steps,
        read_positions=source_positions,
        read_width=source_width,
        kernel=(taps[0], taps[1]),
        padding=_padding(kernel, source.spatial),
        layer=kernel.computes or product,
        stored=kernel.computes,
        depthwise=shape is not None and shape.depthwise,
        pooled=operation(kernel.op).layer and positions == 1 and wide_later,
        pooled_positions=squeezed,
        out=widths[row],
        read=read,
        reduced=reduced,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        read_bits=held[inputs[0]] if inputs else held[row],
        out_bits=held[row],
        moved=batch.elements[[row, *inputs]].sum(axis=0).astype(np.float64),
        held_bytes=_held_bytes(kernel, batch),
        zeros=_zeros(kernel, batch),
    )


def _zeros(kernel: Kernel, batch: PolicyBatch) -> Array:
    """(n,): the share of a layer's weights that are 0; of several patterns that of the one with most."""
    found = np.zeros(batch.count)
    if kernel.layer is not None:
        row = batch.layer_index[kernel.layer.name]
        for name in PATTERNS.keys() & batch.more.keys():
            whole = batch.reduced[row] % (PATTERNS[name].among or 1) == 0  # else the cut has left no place
            found = np.maximum(found, np.where(whole, batch.more[name][row], 0.0))
    return found


def _held_bytes(kernel: Kernel, batch: PolicyBatch) -> Array:
    """(n,): what a kernel stores that nothing is multiplied with."""
    if kernel.layer is not None and kernel.layer.looked_up:
        row = batch.layer_index[kernel.layer.name]
        return np.asarray(batch.weight_counts[row] * batch.weight_bits[row] / 8)
    return np.full(batch.count, 0.0 if kernel.macs else float(kernel.held_bytes))


def _operand_bits(kernel: Kernel, batch: PolicyBatch, tensor: Array, second: Array) -> tuple[Array, Array]:
    """Bits of the weights (or of the second tensor), and of what they are multiplied with."""
    if kernel.layer is not None and not kernel.layer.looked_up:
        index = batch.layer_index[kernel.layer.name]
        return batch.weight_bits[index].astype(np.float64), batch.activation_bits[index].astype(np.float64)
    if kernel.macs:
        return np.full_like(tensor, FLOAT_BITS), np.full_like(tensor, FLOAT_BITS)
    return second, tensor
