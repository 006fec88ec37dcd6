"""Size of the .tflite file that an export writes, without writing it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.rows import Rows

KIND = "tflite"
"""The kind of file whose measured sizes (``Written``) are read here."""
WIDE = 2**16
"""Weights of a layer up to which it computes in integers though its output stays in floats. The kernels for
that take 0.6 ns for each; those of floats, for weights that are decoded when the file is loaded, a tenth."""
PACKED = frozenset({"linear"})
"""Layers whose kernels read weights of 4 bits. That of convolutions takes them apart whenever it runs, which
takes 2.5 times as long as with weights of 8."""
MANY = 64
"""From how many products in a sum on its rounded bias is small beside it, in steps of 4-bit weights."""

CONVERSION_BYTES = 124
"""Of a QUANTIZE or DEQUANTIZE with the tensor that it makes."""
_DECODED = np.array([0, *[116] * 8, *[80] * 8, *[0] * 16])
"""By the bits of a weight, of the DEQUANTIZE that it is read through in floats, with the tensor that it
makes."""

Counts = NDArray[np.int64]


def content_bytes(
    kernel: Kernel,
    out: Counts,
    reduced: Counts,
    weight_bits: Counts,
    integer: NDArray[Any],
    lands: NDArray[Any],
) -> tuple[Counts, Counts]:
    """(n,) each: bytes of a layer's weights, and of its bias and their scales and zeros.

    Args:
        out, reduced: output channels, and the inputs that each is computed from.
        integer: it computes in integers; lands: what it puts out is held in integers.
    """
    assert kernel.layer is not None
    shape = kernel.layer.shape
    added = reduced * math.prod(shape.kernel)
    count = added * out
    coded, half = weight_bits <= 8, weight_bits == 16
    if operation(shape.op).looked_up:
        weights = np.where(coded, count, np.where(half, 2 * count, 4 * count))
        return np.asarray(weights), np.asarray(4 * out * coded)
    four = integer & (weight_bits <= 4) & (added >= MANY) & (shape.op in PACKED)
    wide = integer & ~lands & (count <= WIDE)
    four &= lands | wide
    weights = np.where(coded, np.where(four, (count + 1) // 2, count), np.where(half, 2 * count, 4 * count))
    each = np.where(wide, 24, np.where(integer & lands, 20, np.where(coded, 16, 4)))
    return np.asarray(weights), np.asarray(each * out)


class WeightsOnce:
    """Which weights of a file are stored: those that several uses of a layer read alike are so once."""

    def __init__(self) -> None:
        self._before: dict[str, list[Counts]] = {}

    def stored(self, layer: str, weights: Counts) -> Counts:
        """(n,): bytes that a use of a layer adds, whose weights take these; 0 where a use before it reads as
        many, which are the same."""
        before = self._before.setdefault(layer, [])
        same = np.logical_or.reduce([weights == each for each in before], axis=0) if before else False
        before.append(weights)
        return np.asarray(np.where(same, 0, weights))


def decoded_bytes(weight_bits: Counts, integer: NDArray[Any]) -> Counts:
    """(n,): bytes of what decodes a layer's weights for a kernel of floats."""
    return np.asarray(_DECODED.take(weight_bits) * ~integer)


class FlatbufferSize:
    """The size of a network's .tflite file under many policies: what was measured of each operation in floats
    and in integers, the weights of layers, and a conversion wherever the two kinds of numbers meet."""

    def __init__(self, kernels: tuple[Kernel, ...]) -> None:
        """``kernels``: of the network, cut or not; all are measured."""
        index = {kernel.name: row for row, kernel in enumerate(kernels)}
        self._kernels = kernels
        self._layers = [(row, kernel) for row, kernel in enumerate(kernels) if kernel.layer is not None]
        written = [[node.written for node in kernel.nodes if node.written] for kernel in kernels]
        self._fixed = np.array([sum(one.fixed for one in each) for each in written], dtype=np.int64)
        self._each = np.array([sum(one.each for one in each) for each in written], dtype=np.int64)
        self._coded = np.array([sum(one.coded for one in each) for each in written], dtype=np.int64)
        self._able = [operation(kernel.op).integer and not operation(kernel.op).given for kernel in kernels]
        self._reads = [[index[name] for name in kernel.inputs] for kernel in kernels]

    def of(
        self, wide: Rows, reduced: NDArray[np.int64], bits: NDArray[np.int16],
        weight_bits: NDArray[np.int64], integer: NDArray[Any],
    ) -> NDArray[np.int64]:  # fmt: skip
        """Bytes of each of n files; as ``FileSize.of``. ``wide``: widths of all kernels."""
        widths = wide[:]
        there = widths > 0
        coded = self._between(bits, integer, there)
        total = self._fixed @ there + self._each @ widths + self._coded @ coded
        once = WeightsOnce()
        for place, (row, kernel) in enumerate(self._layers):
            assert kernel.layer is not None
            lands = (bits[row] <= 8) & there[row]
            weights, rest = content_bytes(
                kernel, widths[row], reduced[place], weight_bits[place], integer[row], lands
            )
            found = once.stored(kernel.layer.name, weights) + rest
            decoded = decoded_bytes(weight_bits[place], integer[row])
            total = total + (found + decoded) * there[row]
        made, read = conversions(self._kernels, self._reads, bits, integer, there)
        return np.asarray(total + CONVERSION_BYTES * (made + read).sum(axis=0))

    def _between(
        self, bits: NDArray[np.int16], integer: NDArray[Any], there: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(kernels, n): where a kernel is written as it was in the file in integers: it computes in them, or,
        where it never does, it reads or makes a tensor that is held in them."""
        held = (bits <= 8) & there
        found = integer & there
        for row, able in enumerate(self._able):
            if not able:
                found[row] = np.logical_or.reduce([held[row], *held[self._reads[row]]]) & there[row]
        return found


def conversions(
    kernels: tuple[Kernel, ...], reads: list[list[int]], bits: NDArray[np.int16], integer: NDArray[Any],
    there: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """(kernels, n) each: 1 where the output of an operation in floats is put on a grid, and where a tensor on
    one is read in floats."""
    coded = (bits <= 8) & there
    moves = np.array([operation(kernel.op).same_range for kernel in kernels])
    made = coded & ~integer & ~moves[:, None]
    read = np.zeros(coded.shape, dtype=np.bool_)
    for row, sources in enumerate(reads):
        for source in sources:
            read[source] |= coded[source] & ~integer[row] & there[row] & ~(moves[row] & coded[row])
    return made.astype(np.int64), read.astype(np.int64)
