"""The working buffers that optimised nodes take beside the tensors, from their keys.

The rules are onnxruntime's own (1.31): what its kernels allocate while they run was read off a counting
allocator, node by node, and agrees with its sources.
"""

import math
from functools import cache

from leanfront.latency_models.benchmark.optimised_node import Node, read_node, rounded

_BLOCK = 16  # output channels of onnxruntime's integer convolutions, and channels of its depthwise ones
_POOLED_AT_ONCE = 512  # output positions that NhwcMaxPool lists the inputs of


@cache
def workspace_bytes(key: str) -> int:
    """Bytes of the buffers that a node takes while it runs.

    Integer convolutions: pointers to the inputs of each output (8 bytes each) in the kernels for 16 and more
    output channels, inputs and outputs in multiples of 4, and for depthwise ones; else the sums in int32, and
    the inputs of each output as bytes. Transposed convolutions: a float for each weight that each input
    position meets.
    """
    node = read_node(key)
    if node.op == "QLinearConv":
        return _integer_convolution(node)
    if node.op == "NhwcMaxPool":
        positions = math.prod(node.shape) // node.shapes[0][-1]
        return rounded(8 * math.prod(node.of("kernel_shape", 1)) * min(positions, _POOLED_AT_ONCE))
    if node.op == "ConvTranspose" and node.constants:
        positions = math.prod(node.shapes[0][2:])
        return rounded(4 * math.prod(node.constants[0][1:]) * positions)
    return 0


def _integer_convolution(node: Node) -> int:
    weights = node.constants[2] if len(node.constants) > 2 else ()
    if len(weights) < 3:
        return 0
    groups, window = node.of("group", 1, 1)[0], math.prod(weights[2:])
    positions = math.prod(node.shape) // weights[0]
    pointers = 8 * window * positions if window > 1 else 0
    depthwise = groups > 1 and weights[1] == 1 and weights[0] == groups
    wide = groups == 1 and weights[0] >= _BLOCK and weights[0] % 4 == weights[1] % 4 == 0
    if wide or (depthwise and groups % _BLOCK == 0):
        return rounded(pointers)
    if depthwise:
        return rounded(4 * weights[0] * positions) + rounded(pointers)
    plain = window == 1 and all(stride == 1 for stride in node.of("strides", 1))
    inputs = 0 if plain else window * weights[1] * positions
    return rounded(4 * weights[0] * positions) + rounded(inputs)
