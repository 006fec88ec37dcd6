"""Size of the file that an export writes, without writing it."""

from compression.policy.kernels import kernels
from compression.policy.network import Network
from compression.policy.policy import Policy
from compression.policy.precision import SAME_RANGE_OPS, tensor_bits

# Measured on exported files: what one node and one stored tensor take besides their values.
FILE_BYTES = 180
NODE_BYTES = 36
TENSOR_BYTES = 18
ATTRIBUTE_BYTES = 100  # kernel, strides, pads, dilations of a convolution


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
            layer_policy = policy[kernel.layer.name]
            shape = kernel.layer.shape
            stored = storage_bits(layer_policy.weight_bits)
            total += -(-shape.weight_count * stored // 8)
            named = NODE_BYTES + 2 * len(kernel.layer.name)
            total += named + (ATTRIBUTE_BYTES if shape.op != "linear" else 0) + 2 * TENSOR_BYTES
            total += 4 * shape.out_channels  # the bias
            if stored < 32:
                total += 4 * shape.out_channels + TENSOR_BYTES + NODE_BYTES
                total += NODE_BYTES if stored < 8 or not layer_policy.integer else 0
            if layer_policy.integer:  # the scales of the bias, and its node
                total += 4 * shape.out_channels + TENSOR_BYTES + NODE_BYTES
                if shape.op == "linear":
                    total += 5 * shape.out_channels + 2 * TENSOR_BYTES
        elif kernel.op == "batchnorm":
            total += NODE_BYTES + 4 * (4 * kernel.output.width + TENSOR_BYTES)
        elif kernel.op != "input":
            total += NODE_BYTES + 20
        total += NODE_BYTES if kernel.activation else 0
        if bits[kernel.name] <= 8:
            total += 2 * NODE_BYTES + (0 if kernel.op in SAME_RANGE_OPS else 2 * TENSOR_BYTES)
    return total
