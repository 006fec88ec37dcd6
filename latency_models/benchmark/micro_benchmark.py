"""A model that runs one node of an optimised graph many times, so that the node can be timed alone."""

import math
from dataclasses import replace

import numpy as np

from leanfront.latency_models.benchmark.optimised_graph import FusedNode, Operand
from leanfront.latency_models.kernel_table import onnx_protobuf

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
    """How many copies of a node to put into a micro-benchmark: enough that a call's overhead is little."""
    moved = sum(4 * math.prod(operand.shape) for operand in node.operands)
    weights = [o.shape for o in node.operands if o.constant and len(o.shape) >= 2]
    positions = max((math.prod(o.shape[1:]) for o in node.operands if not o.constant), default=1)
    macs = math.prod(weights[0]) * positions / max(weights[0][-3:-2] or (1,)) / 16 if weights else 0
    expected_us = 0.5 + moved / 2e4 + macs / 1e6
    stored = sum(4 * math.prod(operand.shape) for operand in node.operands if operand.constant)
    most = min(_MOST_COPIES, max(1, int(_MOST_BYTES / (stored + 1))))
    return max(1, min(most, round(target_us / expected_us)))


def benchmark_model(node: FusedNode, number: int) -> bytes:
    """A model with ``number`` copies of the node, all reading the same inputs, each with its own constants.

    To be opened without optimisation. With ``number`` 0 it shows what calling it costs by itself.
    """
    nodes, constants = [], []
    tensors = {i: o for i, o in enumerate(node.operands) if not o.constant}
    for copy in range(number):
        names = []
        for index, operand in enumerate(node.operands):
            if operand.element_type == 0:
                names.append("")
            elif index in tensors:
                names.append(f"in{index}")
            else:
                names.append(f"constant{copy}.{index}")
                constants.append(_constant(operand, names[-1]))
        outputs = tuple(f"out{copy}.{i}" if name else "" for i, name in enumerate(node.proto.output))
        nodes.append(replace(node.proto, name=f"copy{copy}", input=tuple(names), output=outputs))
    # something tiny is asked for, so that fetching results costs nothing
    nodes.append(onnx_protobuf.Node("Identity", ("tick",), ("tock",), name="tick"))
    return onnx_protobuf.model(
        nodes,
        [onnx_protobuf.value_info(f"in{i}", o.element_type, o.shape) for i, o in tensors.items()]
        + [onnx_protobuf.value_info("tick", onnx_protobuf.FLOAT, (1,))],
        [onnx_protobuf.value_info("tock", onnx_protobuf.FLOAT, (1,))],
        constants,
        DOMAINS,
        "micro_benchmark",
        ir_version=10,
    )


def _constant(operand: Operand, name: str) -> bytes:
    """A TensorProto: the small constant itself, or values repeated to fill the shape (drawing millions of
    weights takes longer than timing them)."""
    if operand.value is not None:
        return onnx_protobuf.Tensor.read(operand.value).renamed(name)
    generator = np.random.default_rng(0)
    if onnx_protobuf.ELEMENT_NAMES.get(operand.element_type) in ("int4", "uint4"):  # two in a byte
        codes = generator.integers(0, 256, _TILE).astype(np.uint8)
        packed = np.resize(codes, (math.prod(operand.shape) + 1) // 2)
        return onnx_protobuf.raw_tensor(operand.element_type, operand.shape, packed.tobytes(), name)
    kind = onnx_protobuf.numpy_type(operand.element_type)
    if operand.fill is not None:
        values = np.full(operand.shape, operand.fill, dtype=kind)
    elif kind.kind == "f":
        values = np.resize(generator.standard_normal(_TILE).astype(kind), operand.shape)
        if len(operand.shape) <= 1:  # scales must be positive
            values = np.abs(values) + kind.type(0.01)
    else:
        low, high = (-127, 128) if kind == np.int8 else (0, 100)
        values = np.resize(generator.integers(low, high, _TILE).astype(kind), operand.shape)
    return onnx_protobuf.tensor(values, name)
