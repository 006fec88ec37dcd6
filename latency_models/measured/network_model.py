"""An ONNX model with random weights from a Network and a policy: to be timed where there is no export.

Needs nothing but shapes and connections, so it serves layer tables and files whose bits are changed. What a
Network does not say (paddings beyond what the sizes tell, axes of transposes, constants) is filled in with
what takes about as long. Operations that shapes do not describe at all are an error.
"""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leanfront.compression.graph import Kernel, Network, Node, kernels
from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.policy import Policy, integer_kernels, tensor_bits
from leanfront.compression.policy.grids import ActivationGrid, stand_in_grids, with_moved
from leanfront.latency_models.cost import TableError

_UNARY = {
    "relu": "Relu", "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "sigmoid": "Sigmoid",
    "tanh": "Tanh", "leaky_relu": "LeakyRelu", "gelu": "Gelu", "softmax": "Softmax", "identity": "Identity",
}  # fmt: skip
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "identity_arithmetic": "Mul"}
_ELEMENTWISE = ("Neg", "Abs", "Exp", "Log", "Sqrt", "Erf", "Reciprocal", "Elu", "Softplus")
_BESIDE = ("DequantizeLinear", "QuantizeLinear", "Reshape", "Max")
_MOVES = ("reshape", "flatten", "transpose", "slice", "pad")


def network_model(network: Network, policy: Policy) -> bytes:
    """Serialized ONNX model (opset 21, batch 1) of a network that is already resized to the policy.

    Raises:
        TableError: an operation that shapes alone do not describe; it is named.
    """
    return _Builder(network, policy).model()


def tensor_shape(node: Node) -> tuple[int, ...]:
    """Shape of a node's tensor: vectors (1, C), sequences (1, T, C), images (1, C, H, W)."""
    if len(node.spatial) == 1:
        return (1, node.spatial[0], node.width)
    return (1, node.width, *node.spatial)


class _Builder:
    def __init__(self, network: Network, policy: Policy) -> None:
        self.network, self.policy = network, policy
        self.kernels = kernels(network)
        self.bits = tensor_bits(self.kernels, policy)
        self.integer = integer_kernels(self.kernels, policy)
        self.by_name = {kernel.name: kernel for kernel in self.kernels}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.value: dict[str, tuple[str, tuple[int, ...]]] = {}  # kernel -> tensor and its shape
        self.grids = with_moved(stand_in_grids(self.kernels, policy), self.kernels, self.bits)
        self.rng = np.random.default_rng(0)
        self.count = 0
        self.current = ""  # the kernel that is being written: its first operation bears its name

    def model(self) -> bytes:
        for kernel in self.kernels:
            self.current = kernel.name
            name, shape = self._kernel(kernel)
            if kernel.op == ALIAS:
                self.value[kernel.name] = (name, shape)
                continue
            if kernel.name in self.grids:
                name = self._quantized(name, self.grids[kernel.name])
            self.value[kernel.name] = (name, shape)
        read = {source for kernel in self.kernels for source in kernel.inputs}
        ends = [kernel.name for kernel in self.kernels if kernel.name not in read]
        outputs = [helper.make_tensor_value_info(self.value[n][0], TensorProto.FLOAT, None) for n in ends]
        graph = helper.make_graph(self.nodes, "network", self.inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return bytes(model.SerializeToString())

    def _kernel(self, kernel: Kernel) -> tuple[str, tuple[int, ...]]:
        head, shape = kernel.nodes[0], tensor_shape(kernel.output)
        if kernel.op == ALIAS:
            return self.value[kernel.inputs[0]]
        if kernel.op in ("input", "constant"):
            return self._input(shape), shape
        if kernel.layer is not None:
            name, shape = self._layer(kernel)
        else:
            name = self._operation(kernel, head, shape)
        if kernel.activation:
            name = self._activation(kernel.activation, name)
        return name, shape

    def _layer(self, kernel: Kernel) -> tuple[str, tuple[int, ...]]:
        assert kernel.layer is not None
        layer, output = kernel.layer.shape, kernel.output
        if layer.op == "linear":
            positions = max(layer.out_height * layer.out_width, 1)
            if positions == 1 and not output.spatial:
                read = self._read(kernel, 0, (1, layer.in_channels))
                weight, bias = self._weights((layer.out_channels, layer.in_channels), 0, kernel)
                return self._node("Gemm", [read, weight, bias], transB=1), (1, layer.out_channels)
            read = self._read(kernel, 0, (1, positions, layer.in_channels))
            weight, bias = self._weights((layer.in_channels, layer.out_channels), 1, kernel)
            product = self._node("MatMul", [read, weight])
            return self._node("Add", [product, bias]), (1, positions, layer.out_channels)
        source = self.by_name[kernel.inputs[0]].output
        transposed = layer.op == "conv_transpose2d"
        size = self._image(source, layer.out_height, layer.out_width, layer.stride, transposed)
        read = self._read(kernel, 0, (1, layer.in_channels, *size))
        if transposed:
            weight_shape = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel)
        else:
            weight_shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
        weight, bias = self._weights(weight_shape, 1 if transposed else 0, kernel)
        out = (layer.out_height, layer.out_width)
        window: dict[str, Any] = {
            "kernel_shape": list(layer.kernel),
            "strides": list(layer.stride),
            "dilations": [1, 1],
        }
        if layer.groups > 1:
            window["group"] = layer.groups
        if transposed:
            window["output_shape"] = list(out)
        else:
            window["pads"] = _pads(size, out, layer.kernel, layer.stride)
        name = self._node("ConvTranspose" if transposed else "Conv", [read, weight, bias], **window)
        return name, (1, layer.out_channels, *out)

    def _image(
        self, source: Node, height: int, width: int, stride: tuple[int, int], transposed: bool
    ) -> tuple[int, int]:
        if len(source.spatial) == 2:
            return (source.spatial[0], source.spatial[1])
        if transposed:
            return (max(1, height // stride[0]), max(1, width // stride[1]))
        return (height * stride[0], width * stride[1])

    def _operation(self, kernel: Kernel, node: Node, shape: tuple[int, ...]) -> str:
        op = kernel.op
        if op in _BINARY:
            reads = [self._read(kernel, i, shape) for i in range(len(kernel.inputs))]
            if len(reads) == 1:
                reads.append(self._constant(np.full(shape[1:], 0.5, np.float32)))
            return self._node(_BINARY[op], reads)
        if op == "concat":
            reads = [self._read(kernel, i, self._own(kernel, i)) for i in range(len(kernel.inputs))]
            shapes = [self._own(kernel, i) for i in range(len(kernel.inputs))]
            axis = next((a for a in range(1, len(shape)) if len({s[a] for s in shapes}) > 1), 0)
            if axis == 0:
                axis = next((a for a in range(1, len(shape)) if sum(s[a] for s in shapes) == shape[a]), 1)
            return self._node("Concat", reads, axis=axis)
        read = self._read(kernel, 0, self._own(kernel, 0))
        before = self._own(kernel, 0)
        if op in ("maxpool", "avgpool") and len(shape) == 4 and len(before) == 4:
            window = {"kernel_shape": list(node.kernel), "strides": list(node.stride),
                      "pads": _pads(before[2:], shape[2:], node.kernel, node.stride)}  # fmt: skip
            return self._node("MaxPool" if op == "maxpool" else "AveragePool", [read], **window)
        if op in ("global_avgpool", "mean") and len(before) > 2:
            if len(before) == 4:
                read = self._node("GlobalAveragePool", [read])
                return read if shape == (*before[:2], 1, 1) else self._reshaped(read, shape)
            axes = self._constant(np.arange(1, len(before) - 1))
            return self._reshaped(self._node("ReduceMean", [read, axes], keepdims=0), shape)
        if op in ("upsample", "upsample_nearest") and len(shape) == len(before):
            scales = self._constant(np.array([a / b for a, b in zip(shape, before, strict=True)], np.float32))
            mode = "nearest" if op == "upsample_nearest" else "linear"
            return self._node("Resize", [read, "", scales], mode=mode)
        if op in _MOVES:
            return self._moved(op, read, before, shape)
        if op in ("layernorm", "groupnorm", "batchnorm"):
            return self._normalised(op, read, before)
        if op == "elementwise" and node.detail in _ELEMENTWISE:
            return self._node(node.detail, [read])
        if op == "elementwise":
            return self._node("Abs", [read])
        if op in _UNARY or op in ("relu6", "silu"):
            return self._activation(op, read)
        what = node.detail or op
        raise TableError(
            f"operation {what!r} ({node.name}) cannot be timed from its shape alone; cost the .onnx"
            " file as it is, without other bits or sparsity"
        )

    def _moved(self, op: str, read: str, before: tuple[int, ...], shape: tuple[int, ...]) -> str:
        if (
            op == "transpose"
            and len(before) == len(shape)
            and sorted(before) == sorted(shape)
            and len(shape) > 2
        ):
            return self._reshaped(self._node("Transpose", [read], perm=[0, *range(2, len(shape)), 1]), shape)
        if (
            op == "slice"
            and len(before) == len(shape)
            and all(a <= b for a, b in zip(shape, before, strict=True))
        ):
            steps = [max(1, b // a) for a, b in zip(shape, before, strict=True)]
            ends = [a * step for a, step in zip(shape, steps, strict=True)]
            axes = list(range(len(shape)))
            lists = [[0] * len(shape), ends, axes, steps]
            return self._node("Slice", [read, *[self._constant(np.array(values)) for values in lists]])
        if (
            op == "pad"
            and len(before) == len(shape)
            and all(a >= b for a, b in zip(shape, before, strict=True))
        ):
            grown = [a - b for a, b in zip(shape, before, strict=True)]
            pads = [g // 2 for g in grown] + [g - g // 2 for g in grown]
            return self._node("Pad", [read, self._constant(np.array(pads))])
        return self._reshaped(read, shape) if math.prod(before) == math.prod(shape) else self._input(shape)

    def _normalised(self, op: str, read: str, before: tuple[int, ...]) -> str:
        width = before[-1] if len(before) == 3 and op == "layernorm" else before[1] if len(before) > 1 else 1
        ones = self._constant(np.ones(width, np.float32))
        if op == "layernorm" and len(before) == 3:
            return self._node("LayerNormalization", [read, ones, ones], axis=-1)
        if op == "batchnorm":
            return self._node("BatchNormalization", [read, ones, ones, ones, ones])
        return self._node("InstanceNormalization", [read, ones, ones])

    def _activation(self, op: str, read: str) -> str:
        if op == "relu6":
            low, high = self._constant(np.float32(0.0)), self._constant(np.float32(6.0))
            return self._node("Clip", [read, low, high])
        if op == "silu":
            return self._node("Mul", [read, self._node("Sigmoid", [read])])
        return self._node(_UNARY[op], [read])

    def _own(self, kernel: Kernel, index: int) -> tuple[int, ...]:
        return self.value[kernel.inputs[index]][1]

    def _read(self, kernel: Kernel, index: int, shape: tuple[int, ...]) -> str:
        """The tensor that a kernel reads, in the shape it needs; a new input where it does not fit at all."""
        source = kernel.inputs[index]
        name, own = self.value[source]
        if kernel.layer is not None and kernel.name not in self.integer and self.bits[source] <= 8:
            floor = self._constant(np.float32(-3e38))  # keeps onnxruntime from making it an integer layer
            name = self._node("Max", [name, floor]) if self.bits[kernel.name] <= 8 else name
        if own == shape:
            return name
        return self._reshaped(name, shape) if math.prod(own) == math.prod(shape) else self._input(shape)

    def _quantized(self, name: str, grid: ActivationGrid) -> str:
        scale = self._constant(np.float32(grid.scale))
        zero = self._constant(np.uint8(grid.zero_point))
        codes = self._node("QuantizeLinear", [name, scale, zero])
        return self._node("DequantizeLinear", [codes, scale, zero])

    def _weights(self, shape: tuple[int, ...], axis: int, kernel: Kernel) -> tuple[str, str]:
        channels = shape[axis]
        if kernel.name not in self.integer:
            weight = self.rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
            return self._constant(weight), self._constant(np.zeros(channels, np.float32))
        scales = self.rng.uniform(0.9e-3, 1.1e-3, channels).astype(np.float32)
        codes = self._constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        weights = [codes, self._constant(scales)]
        step = np.float32(self.grids[kernel.inputs[0]].scale)
        bias = [self._constant(np.zeros(channels, np.int32)), self._constant(scales * step)]
        if kernel.op == "linear":  # as an export writes them
            weights.append(self._constant(np.zeros(channels, np.int8)))
            bias.append(self._constant(np.zeros(channels, np.int32)))
        return (
            self._node("DequantizeLinear", weights, axis=axis),
            self._node("DequantizeLinear", bias, axis=0),
        )

    def _reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        return self._node("Reshape", [name, self._constant(np.array(shape))])

    def _input(self, shape: tuple[int, ...]) -> str:
        name = f"input{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def _constant(self, value: NDArray[Any] | np.generic) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.count += 1
        name = f"n{self.count}"
        named = "" if op in _BESIDE else self.current
        self.nodes.append(helper.make_node(op, inputs, [name], name=named, **attributes))
        self.current = self.current if op in _BESIDE else ""
        return name


def _pads(
    before: tuple[int, ...], after: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int]
) -> list[int]:
    """Paddings with which a window turns sizes ``before`` into ``after``, begins first."""
    total = [max(0, (a - 1) * s + k - b) for b, a, k, s in zip(before, after, kernel, stride, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]
