"""The same weights around another zero point, where that runs faster.

onnxruntime has one kernel for int8 weights around zero and another for all others. They compute the same;
which is faster depends on the processor and on the layer's size.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leanfront.compression.policy.precision import SHIFTED_ZERO_POINT


def shifted(model: onnx.ModelProto, layers: Collection[str]) -> onnx.ModelProto:
    """A copy of an exported model in which the int8 weights of some convolutions, by name, are stored around
    ``SHIFTED_ZERO_POINT``: it puts out the same numbers.

    Raises:
        ValueError: a name is not that of a convolution with integer weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    producer = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = {node.name: node for node in graph.node if node.op_type == "Conv"}
    before: dict[str, onnx.NodeProto] = {}  # output of a node -> what has to run before that
    for name in layers:
        decoded = producer.get(convolutions[name].input[1]) if name in convolutions else None
        if decoded is None or decoded.op_type != "DequantizeLinear":
            raise ValueError(
                f"{name!r} is no convolution with integer weights; there are {list(convolutions)}"
            )
        codes, scales = decoded.input[0], decoded.input[1]
        count = numpy_helper.to_array(constants[scales]).size
        zero = _constant(graph, f"{name}.zero_point", np.full(count, SHIFTED_ZERO_POINT, dtype=np.int8))
        if codes in constants:
            moved = numpy_helper.to_array(constants[codes]) + np.array(SHIFTED_ZERO_POINT, dtype=np.int8)
            codes = _constant(graph, f"{name}.codes", moved)
        else:  # packed: decoded as floats, then cast
            cast = producer[codes]
            step = _constant(graph, f"{name}.shift", np.array(SHIFTED_ZERO_POINT, dtype=np.float32))
            add = helper.make_node("Add", [cast.input[0], step], [f"{name}.shifted"], name=f"{name}.shift")
            before[codes] = add
            cast.input[0] = add.output[0]
        decoded.input[:] = [codes, scales, zero]
    nodes = [one for node in graph.node for one in (before.get(node.output[0]), node) if one is not None]
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return result


def _constant(graph: onnx.GraphProto, name: str, values: NDArray[Any]) -> str:
    tensor = numpy_helper.from_array(values, name)
    assert tensor.data_type in (TensorProto.INT8, TensorProto.FLOAT)
    graph.initializer.append(tensor)
    return name
