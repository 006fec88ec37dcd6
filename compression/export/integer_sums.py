"""Run a file of grids in onnxruntime with the sums that its own engine has: of codes, not of their floats.

TensorRT, and the designs that FINN and hls4ml build, add products of integers, which is exact. onnxruntime
computes such a file as it stands, in floats whose sums are a millionth off, and so takes a value between two
codes to another one here and there. Floats of 32 bits hold integers below 2^24 exactly: products of codes,
and the step behind the sum, are the engine's arithmetic in onnxruntime's operations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from leanfront.compression.export.onnx_writer import nodes_read

OUT_AXIS: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}
"""Product -> the dimension of its weight's output channels, as the walk writes it."""
_LAST = ("Gemm", "MatMul")
"""Products whose output has its channels last; else they are second."""
MOVES = frozenset({
    "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operations that read one tensor, and whose output has the codes that it has."""
_ON_GRID = ("DequantizeLinear", "Quant")


def with_integer_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose products of a tensor on a grid with a weight on a grid add up codes. Values that something
    reads keep their names; products of other tensors stay as they are.

    Steps and biases are applied as ``Dialect.arithmetic`` has them without ``rescales``, in that order.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    walk = _Sums(found.graph)
    nodes = [made for node in model.graph.node for made in walk.spelled(node)]
    outputs = {value.name for value in found.graph.output}
    del found.graph.node[:]
    found.graph.node.extend(nodes_read(nodes, outputs))
    read = {name for node in found.graph.node for name in node.input} | outputs
    kept = [tensor for tensor in found.graph.initializer if tensor.name in read]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)
    return found


class _Sums:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.made_by = {name: node for node in graph.node for name in node.output}

    def spelled(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """A node, or what stands for it."""
        if node.op_type not in OUT_AXIS or node.domain:
            return [node]
        step, weight = self._step(node.input[0]), self._codes(node)
        if not step or weight is None:
            return [node]
        codes, steps = weight
        name = f"{node.output[0]}/sums"
        products = onnx.NodeProto()
        products.CopyFrom(node)
        del products.input[:], products.output[:]
        products.input.extend([f"{name}/codes", self._stored(f"{name}/weight", codes)])
        products.output.append(name)
        wide = [-1] if node.op_type in _LAST else [-1] + [1] * (codes.ndim - 2)
        bias = node.input[2] if len(node.input) > 2 else ""
        scaled = f"{name}/scaled" if bias else node.output[0]
        factor = self._stored(f"{name}/step", (self.values[step].reshape(()) * steps).reshape(wide))
        made = [
            helper.make_node("Div", [node.input[0], step], [f"{name}/divided"]),
            helper.make_node("Round", [f"{name}/divided"], [f"{name}/codes"]),
            products,
            helper.make_node("Mul", [name, factor], [scaled]),
        ]
        if bias:
            shape = self._stored(f"{name}/shape", np.array(wide, dtype=np.int64))
            made.append(helper.make_node("Reshape", [bias, shape], [f"{name}/bias"]))
            made.append(helper.make_node("Add", [scaled, f"{name}/bias"], [node.output[0]]))
        return made

    def _step(self, name: str) -> str:
        """The value that is the step of a tensor's grid; "": it is on none."""
        node = self.made_by.get(name)
        while node is not None and node.op_type in MOVES and not (node.op_type == "Pad" and node.input[2:]):
            node = self.made_by.get(node.input[0])
        if node is None or node.op_type not in _ON_GRID:
            return ""
        step = node.input[1]
        return step if step in self.values and self.values[step].size == 1 else ""

    def _codes(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Codes of a product's weight, as floats, and the steps of its output channels."""
        weight = self.made_by.get(node.input[1])
        if weight is None or weight.op_type not in (*_ON_GRID, "BipolarQuant"):
            return None
        held, steps = (self.values.get(name) for name in weight.input[:2])
        if held is None or steps is None or (node.op_type == "ConvTranspose" and _groups(node) > 1):
            return None
        steps = steps.astype(np.float32).reshape(-1)
        if weight.op_type == "DequantizeLinear":
            codes = held.astype(np.float32)
        else:
            along = [1] * held.ndim
            along[OUT_AXIS[node.op_type]] = -1
            divided = held / steps.reshape(along)
            bipolar = weight.op_type == "BipolarQuant"
            codes = np.where(held < 0, -1, 1) if bipolar else np.round(divided)
        if steps.size != held.shape[OUT_AXIS[node.op_type]]:
            return None
        return codes.astype(np.float32), steps

    def _stored(self, name: str, array: NDArray[Any]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _groups(node: onnx.NodeProto) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "group"), 1)


class Summed:
    """A file in onnxruntime, with sums of integers: nothing of it is fused, which would round otherwise."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        content = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        self.inputs = {value.name for value in self._session.get_inputs()}
        self.outputs: Sequence[str] = [value.name for value in self._session.get_outputs()]

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs by name -> outputs, in their order."""
        found: list[NDArray[Any]] = self._session.run(None, dict(feed))
        return found
