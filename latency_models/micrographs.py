"""A model that runs one node of an optimised graph many times, so that the node can be timed alone."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from latency_models.fused_graph import FusedNode, Operand

DOMAINS = (
    ("", 21),
    ("ai.onnx.ml", 5),
    ("com.microsoft", 1),
    ("com.microsoft.nchwc", 1),
    ("com.ms.internal.nhwc", 21),
)
_TILE = 4093
_MOST_COPIES = 16
_MOST_BYTES = 8_000_000  # of constants


def copies(node: FusedNode, target_us: float = 60.0) -> int:
    """How many copies of a node to put into a micrograph: enough that the call's overhead does not matter."""
    moved = sum(4 * math.prod(operand.shape) for operand in node.operands)
    weights = [o.shape for o in node.operands if o.constant and len(o.shape) >= 2]
    positions = max((math.prod(o.shape[1:]) for o in node.operands if not o.constant), default=1)
    macs = math.prod(weights[0]) * positions / max(weights[0][-3:-2] or (1,)) / 16 if weights else 0
    expected_us = 0.5 + moved / 2e4 + macs / 1e6
    stored = sum(4 * math.prod(operand.shape) for operand in node.operands if operand.constant)
    most = min(_MOST_COPIES, max(1, int(_MOST_BYTES / (stored + 1))))
    return max(1, min(most, round(target_us / expected_us)))


def micrograph(node: FusedNode, number: int) -> bytes:
    """A model with ``number`` copies of the node, all reading the same inputs, each with its own constants.

    To be opened without optimisation. With ``number`` 0 it shows what calling it costs by itself.
    """
    nodes, constants = [], []
    tensors = {i: o for i, o in enumerate(node.operands) if not o.constant}
    for copy in range(number):
        proto = NodeProto()
        proto.CopyFrom(node.proto)
        proto.name = f"copy{copy}"
        del proto.input[:], proto.output[:]
        for index, operand in enumerate(node.operands):
            if operand.element_type == 0:
                proto.input.append("")
            elif index in tensors:
                proto.input.append(f"in{index}")
            else:
                proto.input.append(f"constant{copy}.{index}")
                constants.append(_constant(operand, proto.input[index]))
        proto.output.extend(f"out{copy}.{i}" if name else "" for i, name in enumerate(node.proto.output))
        nodes.append(proto)
    # something tiny is asked for, so that fetching results costs nothing
    nodes.append(helper.make_node("Identity", ["tick"], ["tock"], name="tick"))
    one = [1]
    graph = helper.make_graph(
        nodes,
        "micrograph",
        [helper.make_tensor_value_info(f"in{i}", o.element_type, o.shape) for i, o in tensors.items()]
        + [helper.make_tensor_value_info("tick", TensorProto.FLOAT, one)],
        [helper.make_tensor_value_info("tock", TensorProto.FLOAT, one)],
        constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in DOMAINS]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _tiled(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Values repeated to fill a shape: drawing millions of weights takes longer than timing them."""
    return np.resize(values, shape)


def _constant(operand: Operand, name: str) -> TensorProto:
    if operand.value is not None:
        tensor: TensorProto = TensorProto.FromString(operand.value)
    else:
        generator = np.random.default_rng(0)
        kind = helper.tensor_dtype_to_np_dtype(operand.element_type)
        if operand.fill is not None:
            values = np.full(operand.shape, operand.fill, dtype=kind)
        elif kind.kind == "f":
            values = _tiled(generator.standard_normal(_TILE).astype(kind), operand.shape)
            if len(operand.shape) <= 1:  # scales must be positive
                values = np.abs(values) + kind.type(0.01)
        else:
            low, high = (-127, 128) if kind == np.int8 else (0, 100)
            values = _tiled(generator.integers(low, high, _TILE).astype(kind), operand.shape)
        tensor = numpy_helper.from_array(values, name)
    tensor.name = name
    return tensor
