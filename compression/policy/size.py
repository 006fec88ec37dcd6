"""Size of the file that an export writes, without writing it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression.policy.kernels import Kernel, kernels
from compression.policy.network import Network
from compression.policy.policy import Policy
from compression.policy.precision import SAME_RANGE_OPS, Precision

# Fitted to exported files of a dozen kinds of network: bytes besides the values of weights and biases.
FILE_BYTES = 180
NAME_COPIES = 3  # a layer's name stands at its node, at its output and where that is read
CONVOLUTION_BYTES = 150  # with its attributes: kernel, strides, pads, dilations
LINEAR_BYTES = 90
CODED_WEIGHT_BYTES = 57  # the node that decodes it, and the stored scales
INTEGER_BIAS_BYTES = 52
ZERO_POINTS_BYTES = 46  # those of an integer linear layer
UNPACKING_BYTES = 89
BATCHNORM_BYTES = 228
ACTIVATION_BYTES = 22
OTHER_BYTES = 40
QUANTIZER_BYTES = 90
MOVED_QUANTIZER_BYTES = 78  # behind an operation that keeps the range, whose grid is stored already
CLIP_BYTES = 33


def storage_bits(weight_bits: int) -> int:
    """Bits that one weight takes in the file: 2, 4, 8 or 32 (3 bits are stored in 4, 5 to 7 in 8)."""
    return next(bits for bits in (2, 4, 8, 32) if weight_bits <= bits)


def size_bytes(network: Network, policy: Policy) -> int:
    """Bytes of the ONNX file of a network that has already been cut to the policy.

    Weights at their storage bits, biases and scales at 4 bytes a channel, and the measured overhead per
    node and stored tensor. Norms that cannot be folded into a layer count 16 bytes a channel.
    """
    fused = kernels(network)
    bits, integer = Precision(fused).of(policy)
    layers = [(row, kernel.layer.name) for row, kernel in enumerate(fused) if kernel.layer is not None]

    def column(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64).reshape(-1, 1)

    found = FileSize(fused).of(
        column([kernel.output.width for kernel in fused]),
        column(bits),
        column([policy[name].weight_bits for _, name in layers]),
        column([integer[row] for row, _ in layers]),
    )
    return int(found[0])


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
        self._read = np.array([index[k.inputs[0]] for _, k, _ in layers], dtype=np.int64)
        self._depthwise = np.array([shape.depthwise for shape in shapes], dtype=np.bool_)
        self._groups = column([shape.groups for shape in shapes])
        self._grouped = (self._groups[:, 0] > 1) & ~self._depthwise
        self._windows = column([math.prod(shape.kernel) for shape in shapes])
        self._linear = column([shape.op == "linear" for shape in shapes])
        names = [NAME_COPIES * len(layer.name) for _, _, layer in layers]
        self._named = column(names) + np.where(self._linear, LINEAR_BYTES, CONVOLUTION_BYTES)
        self._norms = [row for row, k in enumerate(kernels) if k.op == "batchnorm"]
        others = sum(k.layer is None and k.op not in ("batchnorm", "input") for k in kernels)
        self._constant = FILE_BYTES + BATCHNORM_BYTES * len(self._norms) + OTHER_BYTES * others
        self._constant += ACTIVATION_BYTES * sum(bool(k.activation) for k in kernels)
        self._moved = column([k.op in SAME_RANGE_OPS for k in kernels])

    def of(
        self,
        widths: NDArray[np.int64],
        bits: NDArray[np.int64],
        weight_bits: NDArray[np.int64],
        integer: NDArray[Any],
    ) -> NDArray[np.int64]:
        """(n,) bytes. ``widths`` and ``bits``: (kernels, n), of their outputs. ``weight_bits`` and ``integer``
        (does it compute in integers?): (layers, n), in order of the kernels."""
        out, read = widths[self._rows], widths[self._read]
        read[self._depthwise] = 1
        read[self._grouped] //= self._groups[self._grouped]
        stored = _STORAGE_BITS[weight_bits]
        values = (read * out * self._windows * stored + 7 >> 3) + 4 * out  # and the bias
        codes = (stored < 32) * (CODED_WEIGHT_BYTES + 4 * out)
        zero_points = self._linear * (ZERO_POINTS_BYTES + 5 * out)
        in_integers = INTEGER_BIAS_BYTES + 4 * out + zero_points + (stored < 8) * UNPACKING_BYTES
        layers = self._named + values + codes + integer * in_integers
        quantizers = _QUANTIZER_BYTES[self._moved, bits]
        norms = 16 * widths[self._norms].sum(axis=0)
        return np.asarray(self._constant + norms + layers.sum(axis=0) + quantizers.sum(axis=0))


def quantizer_bytes(moved: bool, bits: int) -> int:
    """What quantizes a tensor; ``moved``: behind an operation that keeps the range."""
    if bits > 8:
        return 0
    return (MOVED_QUANTIZER_BYTES if moved else QUANTIZER_BYTES) + (CLIP_BYTES if bits < 8 else 0)


_STORAGE_BITS = np.array([0, *(storage_bits(bits) for bits in range(1, 33))])
_QUANTIZER_BYTES = np.array([[quantizer_bytes(moved, bits) for bits in range(33)] for moved in (False, True)])
