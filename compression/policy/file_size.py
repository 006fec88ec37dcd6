"""Size of the file that an export writes, without writing it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.operations import operation

# Fitted to exported files of a dozen kinds of network: bytes besides the values of weights and biases.
FILE_BYTES = 180
NAME_COPIES = 3  # a layer's name stands at its node, at its output and where that is read
CONVOLUTION_BYTES = 150  # with its attributes: kernel, strides, pads, dilations
LINEAR_BYTES = 90
PRODUCT_BYTES = 66  # a product at each position, and the addition behind it, which bears no name
CODED_WEIGHT_BYTES = 57  # the node that decodes it, and the stored scales
INTEGER_BIAS_BYTES = 52
ZERO_POINTS_BYTES = 46  # those of an integer linear layer
UNPACKING_BYTES = 89
ACTIVATION_BYTES = 22
STORED_TENSOR_BYTES = 47  # its name where it is read, its shape, its type
QUANTIZER_BYTES = 90
MOVED_QUANTIZER_BYTES = 78  # behind an operation that keeps the range, whose grid is stored already
CLIP_BYTES = 33
LARGE = 4096
"""Bytes of a constant, up to which equal ones are stored once."""


def storage_bits(weight_bits: int) -> int:
    """Bits that one weight takes in the file: 2, 4, 8 or 32 (3 bits are stored in 4, 5 to 7 in 8)."""
    return next(bits for bits in (2, 4, 8, 32) if weight_bits <= bits)


class FileSize:
    """The size of a network's file under many policies."""

    def __init__(self, kernels: tuple[Kernel, ...]) -> None:
        """``kernels``: of the network, cut or not: only channels differ."""
        index = {kernel.name: row for row, kernel in enumerate(kernels)}
        layers = [(row, k, k.layer) for row, k in enumerate(kernels) if k.layer is not None]
        shapes = [layer.shape for _, _, layer in layers]

        def column(values: Sequence[int]) -> NDArray[np.int64]:
            return np.array(values, dtype=np.int64).reshape(-1, 1)

        self._rows = np.array([row for row, _, _ in layers], dtype=np.int64)
        self._windows = column([math.prod(shape.kernel) for shape in shapes])
        linear = column([shape.op == "linear" for shape in shapes])
        self._linear = linear * len(_FIXED_BYTES[0])
        self._products = np.flatnonzero(linear)
        per_channel = [_channel_bytes(k) for k in kernels]
        self._stored = [row for row, each in enumerate(per_channel) if each]
        self._stored_bytes = column([per_channel[row] for row in self._stored])
        self._own = np.array([_own_bytes(k) for k in kernels], dtype=np.int64)
        self._constant = FILE_BYTES + int(self._own.sum())
        written = [row for row, k in enumerate(kernels) if operation(k.op).written or operation(k.op).given]
        self._tensors = np.array(written, dtype=np.int64)
        moved = [row for row in written if operation(kernels[row].op).same_range]
        self._moved = np.array(moved, dtype=np.int64)
        self._joins = [
            (row, [index[name] for name in kernel.inputs])
            for row, kernel in enumerate(kernels)
            if operation(kernel.op).adds
        ]

    def of(
        self, widths: NDArray[np.int64], reduced: NDArray[np.int64], bits: NDArray[np.int16],
        weight_bits: NDArray[np.int64], integer: NDArray[Any],
    ) -> NDArray[np.int64]:  # fmt: skip
        """Bytes of each of n files.

        Args:
            widths: (kernels, n) channels of their outputs; 0: left out, as is an addition that reads it.
            reduced: (layers, n) input channels that each output channel is computed from; layers in order of
                the kernels, also below.
            bits: (kernels, n) of their outputs; 0 where they are left out.
            weight_bits: (layers, n).
            integer: (kernels, n) whether it computes in integers.
        """
        out = widths[self._rows]
        weights = reduced * out
        weights *= self._windows
        weights *= _STORAGE_BITS.take(weight_bits)
        weights += 7
        weights >>= 3
        kind = self._linear + 2 * weight_bits + integer[self._rows]
        weights += _FIXED_BYTES.take(kind)
        weights += _CHANNEL_BYTES.take(kind) * out
        total = self._constant + weights.sum(axis=0)
        total += self._quantizers(bits)
        if len(self._products) > 1:
            total -= _shared_bytes(out[self._products] * integer[self._rows[self._products]])
        if self._stored:
            total += (self._stored_bytes * widths[self._stored]).sum(axis=0)
        gone = widths == 0
        if left_out := np.flatnonzero(gone.any(axis=1)).tolist():
            for row in left_out:
                total -= self._own[row] * gone[row]
            for row, inputs in self._joins:
                alias = gone[inputs].any(axis=0) & ~gone[row]
                total -= alias * (self._own[row] + _QUANTIZER_BYTES.take(bits[row]))
        return np.asarray(total)

    def _quantizers(self, bits: NDArray[np.int16]) -> NDArray[np.int64]:
        """(n,): bytes of what quantizes the tensors."""
        coded = (bits <= 8) & (bits > 0)
        narrow = coded & (bits < 8)
        count, moved, clipped = (
            flags.sum(axis=0, dtype=np.int64)
            for flags in (coded[self._tensors], coded[self._moved], narrow[self._tensors])
        )
        less = QUANTIZER_BYTES - MOVED_QUANTIZER_BYTES
        return np.asarray(QUANTIZER_BYTES * count - less * moved + CLIP_BYTES * clipped)


def _shared_bytes(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,): bytes of zero points that integer linear layers share with another one, as equal constants are
    stored once, unless they are large. ``widths``: (layers, n), 0 where a layer is no integer one."""
    width = np.sort(np.minimum(widths, LARGE + 1).T.astype(np.int16), axis=1)
    repeated = width[:, 1:] * (width[:, 1:] == width[:, :-1])
    return np.asarray(_SHARED_BYTES.take(repeated).sum(axis=1))


def _own_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel besides weights, channels and quantizers."""
    own = kernel.held_bytes + (ACTIVATION_BYTES if kernel.activation else 0)
    if kernel.layer is not None:
        name = len(kernel.layer.name)
        if kernel.layer.shape.op != "linear":
            return own + CONVOLUTION_BYTES + NAME_COPIES * name
        return own + (PRODUCT_BYTES + name if kernel.output.spatial else LINEAR_BYTES + NAME_COPIES * name)
    row = operation(kernel.op)
    if not row.written:
        return own
    own += row.file_bytes + (0 if row.stored else len(kernel.nodes[0].name))  # a constant's is a number
    return own + STORED_TENSOR_BYTES * (row.parameters or _said_channel_bytes(kernel) // 4)


def _channel_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel for each channel of its output, besides those of a layer. Norms that are folded into
    a layer have none."""
    row = operation(kernel.op)
    if row.parameters:
        return 4 * row.parameters
    said = _said_channel_bytes(kernel)
    if row.stored and not (said or kernel.held_bytes):
        return 4 * math.prod(kernel.output.spatial)
    return said


def _said_channel_bytes(kernel: Kernel) -> int:
    return sum(node.channel_bytes for node in kernel.nodes if not operation(node.op).parameters)


def quantizer_bytes(moved: bool, bits: int) -> int:
    """What quantizes a tensor; ``moved``: behind an operation that keeps the range. 0 bits: no tensor."""
    if bits > 8 or bits == 0:
        return 0
    return (MOVED_QUANTIZER_BYTES if moved else QUANTIZER_BYTES) + (CLIP_BYTES if bits < 8 else 0)


def _layer_bytes(linear: bool, weight_bits: int, integer: bool) -> tuple[int, int]:
    """Bytes of a layer besides its weights, and bytes per output channel: its bias and scales."""
    fixed, per_channel = 0, 4
    if weight_bits <= 8:
        fixed, per_channel = CODED_WEIGHT_BYTES, 8
    if integer:
        fixed += INTEGER_BIAS_BYTES + linear * ZERO_POINTS_BYTES
        fixed += UNPACKING_BYTES * (storage_bits(weight_bits) < 8)
        per_channel += 4 + linear * 5
    return fixed, per_channel


_SHARED_BYTES = np.array(
    [
        sum(each * width + ZERO_POINTS_BYTES // 2 for each in (1, 4) if 0 < each * width <= LARGE)
        for width in range(LARGE + 2)
    ]
)
"""Of the zero points of a layer so wide: those of its weights, and of its bias."""
_STORAGE_BITS = np.array([0, *(storage_bits(bits) for bits in range(1, 33))])
_FIXED_BYTES, _CHANNEL_BYTES = (
    np.array(
        [
            [_layer_bytes(linear, bits, integer) for bits in range(33) for integer in (False, True)]
            for linear in (False, True)
        ]
    )
    .transpose(2, 0, 1)
    .copy()
)
_QUANTIZER_BYTES = np.array([quantizer_bytes(False, bits) for bits in range(33)])
