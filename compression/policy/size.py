"""Size of the file that an export writes, without writing it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from compression.policy.kernels import Kernel, kernels
from compression.policy.network import Layer, Network
from compression.policy.policy import LayerPolicy, Policy
from compression.policy.precision import SAME_RANGE_OPS, computes_in_integers, tensor_bits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Count = TypeVar("Count", int, "NDArray[np.int64]")

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
    bits = tensor_bits(fused, policy)
    width = {kernel.name: kernel.output.width for kernel in fused}
    return FILE_BYTES + sum(
        kernel_bytes(
            kernel,
            [width[name] for name in (kernel.name, *kernel.inputs)],
            policy.get(kernel.layer.name) if kernel.layer else None,
            bits[kernel.name],
        )
        for kernel in fused
    )


def kernel_bytes(
    kernel: Kernel, widths: Sequence[int], layer_policy: LayerPolicy | None, tensor_bits: int
) -> int:
    """Bytes of a file that one kernel and its output's quantizer take.

    ``widths``: channels of its output and of its inputs, after the cut. ``tensor_bits``: those of its output.
    """
    if kernel.layer is not None and layer_policy is not None:
        shape, out = kernel.layer.shape, widths[0]
        weights = widths[1] // (out if shape.depthwise else shape.groups) * out * math.prod(shape.kernel)
        stored = storage_bits(layer_policy.weight_bits)
        total = layer_bytes(
            kernel.layer, weights, out, stored, computes_in_integers(kernel.layer, layer_policy)
        )
    else:
        total = operation_bytes(kernel, widths[0])
    total += ACTIVATION_BYTES if kernel.activation else 0
    return total + quantizer_bytes(kernel.op in SAME_RANGE_OPS, tensor_bits)


def quantizer_bytes(moved: bool, bits: int) -> int:
    """What quantizes a tensor; ``moved``: behind an operation that keeps the range."""
    if bits > 8:
        return 0
    return (MOVED_QUANTIZER_BYTES if moved else QUANTIZER_BYTES) + (CLIP_BYTES if bits < 8 else 0)


def operation_bytes(kernel: Kernel, width: Count) -> Count:
    """An operation that is no layer; ``width`` as a number or an array of them."""
    if kernel.op == "batchnorm":
        return BATCHNORM_BYTES + 16 * width
    return width * 0 + (0 if kernel.op == "input" else OTHER_BYTES)


def layer_bytes(layer: Layer, weights: Count, out_channels: Count, stored: Count, integer: Any) -> Count:
    """A layer of so many weights and output channels, cut, with weights stored in so many bits each and
    computing in integers or not; numbers or arrays of them."""
    linear = layer.shape.op == "linear"
    named = (LINEAR_BYTES if linear else CONVOLUTION_BYTES) + NAME_COPIES * len(layer.name)
    values = -(-weights * stored // 8) + 4 * out_channels  # and the bias
    codes = (stored < 32) * (CODED_WEIGHT_BYTES + 4 * out_channels)
    zero_points = linear * (ZERO_POINTS_BYTES + 5 * out_channels)
    in_integers = INTEGER_BIAS_BYTES + 4 * out_channels + zero_points + (stored < 8) * UNPACKING_BYTES
    total: Count = named + values + codes + integer * in_integers
    return total
