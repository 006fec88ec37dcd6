"""How many weights of a file are 0, counted in it."""

from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper


class Counted(NamedTuple):
    """Of constants with two dimensions or more: how many values are 0, and how many there are."""

    zeros: int
    weights: int


_WEIGHTS = frozenset(
    getattr(TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
    if hasattr(TensorProto, name)
)


_OF_GRIDS = ("QuantizeLinear", "DequantizeLinear", "Quant")
"""What reads scales and zero points behind its first input."""


def in_onnx(content: bytes) -> Counted:
    """Of an ONNX file, without scales; a code is 0 where it is its zero point."""
    graph = onnx.load_from_string(content).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    zero_of = {
        node.input[0]: constants[node.input[2]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2] in constants
    }
    scales = {name for node in graph.node if node.op_type in _OF_GRIDS for name in node.input[1:]}
    found = Counted(0, 0)
    for tensor in graph.initializer:
        if len(tensor.dims) < 2 or tensor.data_type not in _WEIGHTS or tensor.name in scales:
            continue
        points = numpy_helper.to_array(zero_of[tensor.name]) if tensor.name in zero_of else np.zeros(1)
        found = added(found, numpy_helper.to_array(tensor), points)
    return found


def added(found: Counted, values: NDArray[np.generic], points: NDArray[np.generic]) -> Counted:
    """With what is counted in one more constant, whose zero point all its channels have."""
    here = values.astype(np.float32)
    return Counted(found.zeros + int((here == np.float32(points.flat[0])).sum()), found.weights + here.size)
