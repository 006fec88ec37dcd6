"""An .onnx file as a Network, with the bits that its layers already have. No torch, no weights loaded."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto, NodeProto

from leanfront.compression.capture.onnx_dynamic import without_integer_lstms, without_run_time_grids
from leanfront.compression.capture.onnx_graph import Graph, OnnxError, graph_of, read_model
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.graph.branches import FILLED
from leanfront.compression.graph.operations import by_onnx, operation
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.dynamic import BITS, DYNAMIC
from leanfront.compression.policy.policy import ACTIVATION_BITS, WEIGHT_BITS

__all__ = ["OnnxError", "OnnxNetwork", "network_of", "read_onnx"]

SIMPLE_OPS = {kind: row.name for kind, row in by_onnx.items()}
"""ONNX operations that are the same thing in every setting. Others are decided in ``_operation``."""

LOWEST = -1e38
"""No float is below: our exports put Max(x, LOWEST or less) where an engine must not fuse across it."""

PASSED_THROUGH = ("QuantizeLinear", "DequantizeLinear")
LAYERS = {"Conv": "conv2d", "ConvTranspose": "conv_transpose2d", "Gemm": "linear", "MatMul": "linear"}


@dataclass(frozen=True)
class OnnxNetwork:
    """A network read from a file, and the policy that it follows already (32 bits: float)."""

    network: Network
    policy: Policy


def read_onnx(path: Path) -> OnnxNetwork:
    """Read an .onnx file: shapes by onnx's shape inference at batch 1. No layer has a channel group.

    Operations that are not known get op "other" with the ONNX name as detail. QuantizeLinear and
    DequantizeLinear vanish; what they say is in the policy.

    Raises:
        OnnxError: not there, not ONNX, data outside its folder, sizes other than the batch left open, or no
            layers.
    """
    return network_of(read_model(path), str(path))


def network_of(model: ModelProto, where: str = "the model") -> OnnxNetwork:
    """The same for a model in memory; ``where`` names it in errors."""
    plain, dynamic = without_run_time_grids(without_integer_lstms(model))
    graph = graph_of(plain, where)
    reader = _Reader(graph, dynamic)
    for node in graph.nodes:
        reader.add(node)
    if not reader.layers:
        raise OnnxError(f"{where} has no Conv, Gemm or MatMul with constant weights: nothing to cost")
    outputs = tuple(dict.fromkeys(reader.alias.get(name, name) for name in graph.outputs))
    return OnnxNetwork(
        network=Network(tuple(reader.nodes.values()), tuple(reader.layers.values()), outputs),
        policy=Policy.of(reader.policy),
    )


class _Reader:
    """Builds the network node by node, in the order of the file (ONNX demands that it is topological)."""

    def __init__(self, graph: Graph, dynamic: Collection[str] = ()) -> None:
        """``dynamic``: names of the nodes of layers whose tensors are quantized at run time."""
        self.graph = graph
        self.dynamic = dynamic
        self.axis = _channel_axes(graph)
        self.nodes: dict[str, Node] = {}
        self.layers: dict[str, Layer] = {}
        self.policy: dict[str, LayerPolicy] = {}
        self.alias: dict[str, str] = {}  # a tensor that is passed through -> the tensor that it is
        for name in graph.inputs:
            self.nodes[name] = self._node(name, "input", ())

    def add(self, node: NodeProto) -> None:
        """Take in one ONNX node."""
        graph = self.graph
        if all(graph.is_constant(name) for name in node.output if name):
            return
        tensors = [self.alias.get(name, name) for name in node.input if not graph.is_constant(name)]
        inputs = tuple(name for name in tensors if name in self.nodes)
        if node.op_type in PASSED_THROUGH or graph.clipped_bits(node):
            self.alias[node.output[0]] = tensors[0]
        elif is_layer(graph, node):
            self._add_layer(node, inputs[0])
        elif self._is_bias(node, inputs):
            self.alias[node.output[0]] = inputs[0]
            layer = self.layers[self.nodes[inputs[0]].layer or ""]
            self.layers[layer.name] = replace(layer, bias=True)
        else:
            op, detail = _operation(graph, node, inputs)
            for output in filter(None, node.output):
                if graph.read_somewhere(output):
                    self.nodes[output] = self._other(output, op, detail, node, inputs)

    def _node(self, name: str, op: str, inputs: tuple[str, ...]) -> Node:
        shape = self.graph.shape(name)
        if not shape:
            return Node(name, op, inputs, (Segment(None, 1),))
        axis = self.axis.get(name, 1 if len(shape) in (2, 4) else len(shape) - 1)
        spatial = tuple(size for index, size in enumerate(shape) if index != axis)
        if len(shape) > 1 and shape[0] == 1 and axis != 0:  # the batch
            spatial = spatial[1:]
        return Node(name, op, inputs, (Segment(None, shape[axis]),), spatial)

    def _other(self, name: str, op: str, detail: str, node: NodeProto, inputs: tuple[str, ...]) -> Node:
        kernel = stride = (1, 1)
        form = operation(op).form
        if form == "window":
            window = _pair(self.graph.attributes(node).get("kernel_shape"), (1, 1))
            kernel, stride = window, _pair(self.graph.attributes(node).get("strides"), (1, 1))
        elif form == "global":
            height, width = (1, *self.graph.shape(inputs[0])[2:])[-2:]
            kernel = stride = (height, width)
        plain = self._node(name, op, inputs)
        return replace(plain, kernel=kernel, stride=stride, detail=detail)

    def _add_layer(self, node: NodeProto, source: str) -> None:
        graph = self.graph
        shape = _layer_shape(graph, node)
        name = self._layer_name(node)
        if self.nodes[source].width != shape.in_channels:
            raise OnnxError(
                f"{graph.where}: layer {name!r} has weights for {shape.in_channels} input channels, but reads"
                f" tensor {source!r} with {self.nodes[source].width}"
            )
        output = node.output[0]
        bias = len(node.input) > 2 and bool(node.input[2])
        self.layers[name] = Layer(name, shape, None, bias)
        bits = _bits(graph, node)
        at_run_time = node.name in self.dynamic and (bits.weight_bits, shape.op) == (BITS[0], "linear")
        self.policy[name] = LayerPolicy(0.0, *BITS, more=((DYNAMIC, 1.0),)) if at_run_time else bits
        self.nodes[output] = replace(self._node(output, shape.op, (source,)), layer=name)

    def _layer_name(self, node: NodeProto) -> str:
        """The module that its weight or bias is named after (policies name modules), or the node's name."""
        named = next(
            (module for stored in self._stored_names(node) if (module := _module(stored))),
            node.name or node.output[0],
        )
        name, count = named, 1
        while name in self.layers:  # one weight read twice
            count += 1
            name = f"{named}#{count}"
        return name

    def _stored_names(self, node: NodeProto) -> list[str]:
        """The stored weight of a layer, and of a linear layer the bias, which the next node may add.

        Exporters transpose the weights of linear layers and rename them. The biases of convolutions do not
        help: with a batch norm folded in they are new, and equal ones are merged.
        """
        weight = self.graph.root(node.input[1])
        if LAYERS[node.op_type] != "linear":
            return [weight]
        readers = self.graph.readers(node.output[0])
        added = readers[0].input if len(readers) == 1 and readers[0].op_type == "Add" else ()
        constants = [name for name in (*node.input[2:3], *added) if name and self.graph.is_constant(name)]
        biases = [self.graph.root(name) for name in constants]
        return [weight, *(name for name in biases if len(self.graph.readers(name)) == 1)]

    def _is_bias(self, node: NodeProto, inputs: tuple[str, ...]) -> bool:
        """Whether the node adds a constant vector to a layer without bias that nothing else reads."""
        if node.op_type != "Add" or len(inputs) != 1 or len(node.input) != 2:
            return False
        source = self.nodes[inputs[0]]
        layer = self.layers.get(source.layer or "")
        if layer is None or layer.bias or len(self.graph.readers(inputs[0])) != 1:
            return False
        (constant,) = [name for name in node.input if self.graph.is_constant(name)]
        return layer.shape.op == "linear" and math.prod(self.graph.shape(constant)) == source.width


def is_layer(graph: Graph, node: NodeProto) -> bool:
    """Whether the node is a convolution of images or sequences, or a product with a constant matrix."""
    if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
        return False
    if graph.is_constant(node.input[0]) or not graph.is_constant(node.input[1]):
        return False
    rank = len(graph.shape(node.input[1]))
    if node.op_type == "Gemm":
        return not graph.attributes(node).get("transA", 0)
    return rank == 2 if node.op_type == "MatMul" else rank in (3, 4)


def _layer_shape(graph: Graph, node: NodeProto) -> LayerShape:
    attributes = graph.attributes(node)
    weight, output = graph.shape(node.input[1]), graph.shape(node.output[0])
    if LAYERS[node.op_type] == "linear":
        transposed = node.op_type == "Gemm" and attributes.get("transB", 0)
        features = weight[::-1] if transposed else weight
        return LayerShape("linear", features[0], features[1], out_height=math.prod(output[:-1]))
    groups = attributes.get("group", 1)
    kernel = (1, *weight[2:])[-2:]  # a sequence is an image of height 1
    strides = (1, *(attributes.get("strides") or [1] * (len(weight) - 2)))[-2:]
    height, width = (1, *output[2:])[-2:]
    transposed = node.op_type == "ConvTranspose"  # weights: (in, out per group), else (out, in per group)
    channels = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    return LayerShape(
        LAYERS[node.op_type],
        channels[0],
        channels[1],
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        groups,
        height,
        width,
    )


def _bits(graph: Graph, node: NodeProto) -> LayerPolicy:
    weight_bits = graph.bits(node.input[1])
    activation_bits = graph.bits(node.input[0])
    if weight_bits == 32:
        activation_bits = 32  # a float layer reads what was quantized for others
    elif activation_bits == 32 and weight_bits <= 8 and not operation(LAYERS[node.op_type]).integer:
        activation_bits = 8  # no file holds what such a layer reads in integers for it: as ours are made
    if weight_bits not in WEIGHT_BITS or activation_bits not in ACTIVATION_BITS:
        raise OnnxError(
            f"{graph.where}: layer {node.name!r} has weights of {weight_bits} and activations of"
            f" {activation_bits} bits; known are weights {WEIGHT_BITS} and activations {ACTIVATION_BITS}"
        )
    return LayerPolicy(weight_bits=weight_bits, activation_bits=activation_bits)


def _module(stored: str) -> str:
    """``layer1.0.conv1`` of ``layer1.0.conv1.weight`` and ``layer1.0.conv1.weight_quantized``, or nothing."""
    for field in (".weight", ".bias"):
        module, found, _ = stored.partition(field)
        if found:
            return module
    return ""


def _operation(graph: Graph, node: NodeProto, inputs: tuple[str, ...]) -> tuple[str, str]:
    """(op, detail) of a node that is no layer."""
    detail = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    if node.domain not in ("", "ai.onnx"):
        return "other", detail
    if node.op_type == "Clip":
        low, high = (_bound(graph, node, index, key) for index, key in ((1, "min"), (2, "max")))
        if low == 0.0 and high in (6.0, None):
            return ("relu6" if high == 6.0 else "relu"), detail
    if node.op_type == "Max" and len(inputs) == 1:
        bounds = [graph.scalar(name) for name in node.input if graph.is_constant(name)]
        if all(bound is not None and bound <= LOWEST for bound in bounds):
            return "identity", detail
    if node.op_type == "ReduceMean":
        rank = len(graph.shape(inputs[0]))
        axes = graph.integers(node, "axes", 1)
        spatial = axes is not None and {axis % rank for axis in axes} == {2, 3} and rank == 4
        return ("global_avgpool" if spatial else "mean"), detail
    if node.op_type == "Resize":
        mode = graph.attributes(node).get("mode", b"nearest")
        return ("upsample_nearest" if mode == b"nearest" else "upsample"), detail
    if node.op_type == "MatMul" and len(inputs) == 2:
        return "matmul", detail  # two tensors, as in attention
    if node.op_type == "Pad" and len(node.input) > 2 and node.input[2] and graph.scalar(node.input[2]) != 0.0:
        return "pad", FILLED
    if node.op_type in LAYERS:
        return "other", f"{detail} that is no layer"
    return SIMPLE_OPS.get(node.op_type, "other"), detail


def _bound(graph: Graph, node: NodeProto, index: int, key: str) -> float | None:
    if len(node.input) > index and node.input[index]:
        return graph.scalar(node.input[index])
    value = graph.attributes(node).get(key)
    return None if value is None else float(value)


def _pair(value: list[int] | None, default: tuple[int, int]) -> tuple[int, int]:
    sizes = (1, *value)[-2:] if value else default
    return (sizes[0], sizes[1])


def _channel_axes(graph: Graph) -> dict[str, int]:
    """Tensor -> axis of its channels, where a layer says so: 1 around convolutions, the last around linears.

    Raises:
        OnnxError: a convolution and a linear layer read the same tensor along different axes.
    """
    axes: dict[str, int] = {}
    through: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in PASSED_THROUGH and not graph.is_constant(node.input[0]):
            through[node.output[0]] = through.get(node.input[0], node.input[0])
    for node in graph.nodes:
        if not is_layer(graph, node):
            continue
        read = through.get(node.input[0], node.input[0])
        for name in (read, node.output[0]):
            axis = len(graph.shape(name)) - 1 if LAYERS[node.op_type] == "linear" else 1
            if axes.setdefault(name, axis) != axis:
                raise OnnxError(
                    f"{graph.where}: tensor {name!r} has its channels along two axes, for a convolution and"
                    " for a matrix product; put a Transpose between them"
                )
    return axes
