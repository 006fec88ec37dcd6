"""Layers of a float32 file in float16, and what lies between two of them."""

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leanfront.compression.export.onnx_writer import nodes_read
from leanfront.compression.graph import Network, kernels
from leanfront.compression.policy import Policy

_FOLLOWS = {
    "Add", "AveragePool", "Clip", "Concat", "Elu", "Flatten", "Gelu", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Sigmoid", "Slice",
    "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
}  # fmt: skip
"""What is computed in float16 where all that it reads is: nothing that sums over many values."""
_NUMBERS = frozenset({("Gather", 1)})
"""Inputs of types of ONNX that are numbers of rows, and no floats."""


def nodes_in_halves(network: Network, policy: Policy) -> frozenset[str]:
    """Names of the nodes of a file that compute a layer of 16 bits: one for each of its uses."""
    wanted = {name for name, layer in policy.there().items() if layer.weight_bits == 16}
    return frozenset(k.label for k in kernels(network) if k.layer is not None and k.layer.name in wanted)


def with_halves(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy whose nodes of these names compute in float16: what they read is cast, unless it is in float16
    already, and what they put out is cast back for whoever reads it in float32."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    halves = _Halves(made.graph)
    nodes = [new for node in model.graph.node for new in halves.written(node, node.name in names)]
    del made.graph.node[:]
    made.graph.node.extend(nodes_read(nodes, {value.name for value in made.graph.output}))
    read = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in (*model.graph.initializer, *halves.stored.values()) if tensor.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


class _Halves:
    """What there is in float16: values, and constants that were stored so."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._narrow: dict[str, str] = {}  # value in float32 -> the same in float16
        self.stored: dict[str, TensorProto] = {}

    def written(self, node: onnx.NodeProto, wanted: bool) -> Iterator[onnx.NodeProto]:
        """A node as the file has it. ``wanted``: it is to compute in float16, whatever it reads."""
        sources = [name for name in node.input if name and name not in self._constants]
        follows = node.op_type in _FOLLOWS and sources and all(name in self._narrow for name in sources)
        if not (wanted or follows):
            yield node
            return
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self._constants:
                copied.input[place] = self._constant(name)
            elif (node.op_type, place) in _NUMBERS:
                continue
            elif name and name not in self._narrow:
                self._narrow[name] = f"{name}:16"
                yield helper.make_node("Cast", [name], [self._narrow[name]], to=TensorProto.FLOAT16)
            if name in self._narrow:
                copied.input[place] = self._narrow[name]
        for place, name in enumerate(node.output):
            self._narrow[name] = copied.output[place] = f"{name}:16"
        yield copied
        for name in node.output:
            yield helper.make_node("Cast", [self._narrow[name]], [name], to=TensorProto.FLOAT)

    def _constant(self, name: str) -> str:
        """Floats in float16; sizes and the like as they are."""
        tensor = self._constants[name]
        if tensor.data_type != TensorProto.FLOAT:
            return name
        half = f"{name}:16"
        if half not in self.stored:
            with np.errstate(over="ignore"):
                values = numpy_helper.to_array(tensor).astype(np.float16)
            self.stored[half] = numpy_helper.from_array(values, half)
        return half
