"""Size of the file that an export writes, without writing it."""

from compression.policy.kernels import kernels
from compression.policy.network import Layer, Network
from compression.policy.policy import LayerPolicy, Policy
from compression.policy.precision import SAME_RANGE_OPS, tensor_bits

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
    total = FILE_BYTES
    for kernel in fused:
        if kernel.layer is not None:
            total += _layer_bytes(kernel.layer, policy[kernel.layer.name])
        elif kernel.op == "batchnorm":
            total += BATCHNORM_BYTES + 16 * kernel.output.width
        elif kernel.op != "input":
            total += OTHER_BYTES
        total += ACTIVATION_BYTES if kernel.activation else 0
        if bits[kernel.name] <= 8:
            total += MOVED_QUANTIZER_BYTES if kernel.op in SAME_RANGE_OPS else QUANTIZER_BYTES
            total += CLIP_BYTES if bits[kernel.name] < 8 else 0
    return total


def _layer_bytes(layer: Layer, layer_policy: LayerPolicy) -> int:
    shape = layer.shape
    linear = shape.op == "linear"
    stored = storage_bits(layer_policy.weight_bits)
    total = (LINEAR_BYTES if linear else CONVOLUTION_BYTES) + NAME_COPIES * len(layer.name)
    total += -(-shape.weight_count * stored // 8)
    total += 4 * shape.out_channels  # the bias
    if stored < 32:
        total += CODED_WEIGHT_BYTES + 4 * shape.out_channels
    if layer_policy.integer:
        total += INTEGER_BIAS_BYTES + 4 * shape.out_channels  # the scales of the bias
        total += ZERO_POINTS_BYTES + 5 * shape.out_channels if linear else 0
        total += UNPACKING_BYTES if stored < 8 else 0
    return total
