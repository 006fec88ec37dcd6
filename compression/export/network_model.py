"""An ONNX model with random weights from a Network and a policy: to be timed where there is no export.

Needs nothing but shapes and connections, so it serves layer tables and files whose bits are changed. What a
Network does not say (paddings beyond what the sizes tell, axes of transposes, constants) is filled in with
what takes about as long. Operations that shapes do not describe at all are replaced by ones that move as
much, and multiply as often, if that is known.
"""

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from leanfront.compression.export.dialects import QDQ, layer_call
from leanfront.compression.export.onnx_writer import IR_VERSION, OPSET, Writer
from leanfront.compression.export.weights import random_weights
from leanfront.compression.graph import Kernel, Network, Node, kernels
from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.graph.operations import Operation, operation
from leanfront.compression.policy import Policy, tensor_bits
from leanfront.compression.policy.grids import stand_in_grids, with_moved
from leanfront.compression.policy.guards import guarded

_PLAIN_UNARY = ("Neg", "Abs", "Exp", "Log", "Sqrt", "Erf", "Reciprocal", "Elu", "Softplus")
"""What is written as it was called: one input, no attributes that must be known."""


def network_model(network: Network, policy: Policy) -> bytes:
    """Serialized ONNX model (opset 21, batch 1) of a network that is already resized to the policy."""
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
        bits = tensor_bits(self.kernels, policy)
        self.grids = with_moved(stand_in_grids(self.kernels, policy), self.kernels, bits)
        self.guards = guarded(self.kernels, policy)
        self.weights = random_weights(network, policy)
        self.by_name = {kernel.name: kernel for kernel in self.kernels}
        self.out = Writer()
        self.inputs: list[onnx.ValueInfoProto] = []
        self.value: dict[str, tuple[str, tuple[int, ...]]] = {}  # kernel -> tensor and its shape
        self.current = ""  # the kernel that is being written: its first operation bears its name

    def model(self) -> bytes:
        for kernel in self.kernels:
            self.current = kernel.name
            name, shape = self._kernel(kernel)
            if kernel.name in self.grids and kernel.op != ALIAS:
                name = QDQ.quantized(self.out, name, self.grids[kernel.name])
            self.value[kernel.name] = (name, shape)
        read = {source for kernel in self.kernels for source in kernel.inputs}
        ends = [kernel.name for kernel in self.kernels if kernel.name not in read]
        outputs = [helper.make_tensor_value_info(self.value[n][0], TensorProto.FLOAT, None) for n in ends]
        graph = helper.make_graph(self.out.nodes, "network", self.inputs, outputs, self.out.initializers)
        ir_version = IR_VERSION if self.out.opset == OPSET else 13
        opset = helper.make_opsetid("", self.out.opset)
        return bytes(
            helper.make_model(graph, opset_imports=[opset], ir_version=ir_version).SerializeToString()
        )

    def _kernel(self, kernel: Kernel) -> tuple[str, tuple[int, ...]]:
        head, shape = kernel.nodes[0], tensor_shape(kernel.output)
        if kernel.op == ALIAS:
            return self.value[kernel.inputs[0]]
        if operation(kernel.op).form == "given":
            return self._input(shape), shape
        if operation(kernel.op).layer:
            name, shape = self._layer(kernel)
        else:
            name = self._operation(kernel, head, shape)
        if kernel.activation:
            name = self._activation(kernel.activation, name)
        return name, shape

    def _layer(self, kernel: Kernel) -> tuple[str, tuple[int, ...]]:
        assert kernel.layer is not None
        layer, output = kernel.layer.shape, kernel.output
        window: dict[str, Any] = {}
        if layer.op == "linear":
            positions = max(layer.out_height * layer.out_width, 1)
            each = (positions,) if positions > 1 or output.spatial else ()
            uses = [self.network.node[use] for use in self.network.uses[kernel.layer.name]]
            product = each or any(use.spatial for use in uses)  # one weight for all of them
            op, shape = "MatMul" if product else "Gemm", (1, *each, layer.out_channels)
            read = self._read(kernel, 0, (1, *each, layer.in_channels))
        else:
            source = self.by_name[kernel.inputs[0]].output
            transposed = layer.op == "conv_transpose2d"
            op, out = "ConvTranspose" if transposed else "Conv", (layer.out_height, layer.out_width)
            size = self._image(source, *out, layer.stride, transposed)
            read, shape = self._read(kernel, 0, (1, layer.in_channels, *size)), (1, layer.out_channels, *out)
            window = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride), "dilations": [1, 1]}
            if layer.groups > 1:
                window["group"] = layer.groups
            if transposed:
                window["output_shape"] = list(out)
            else:
                window["pads"] = _pads(size, out, layer.kernel, layer.stride)
        name = kernel.layer.name
        policy, guards = self.policy[name], self.guards
        call = layer_call(kernel, op, read, self.weights[name], policy, self.grids, guards, window)
        self.current = ""
        return QDQ.layer(self.out, call), shape

    def _image(
        self, source: Node, height: int, width: int, stride: tuple[int, int], transposed: bool
    ) -> tuple[int, int]:
        if len(source.spatial) == 2:
            return (source.spatial[0], source.spatial[1])
        if transposed:
            return (max(1, height // stride[0]), max(1, width // stride[1]))
        return (height * stride[0], width * stride[1])

    def _operation(self, kernel: Kernel, node: Node, shape: tuple[int, ...]) -> str:
        row = operation(kernel.op)
        form = row.form
        if kernel.macs or row.work == "product":
            return self._product(kernel, shape)
        if not form or not kernel.inputs:
            return self._stand_in(kernel, shape)
        if form == "binary":
            reads = [self._read(kernel, i, shape) for i in range(len(kernel.inputs))]
            if len(reads) == 1:
                reads.append(self.out.constant(np.full(shape[1:], 0.5, np.float32)))
            return self._node(_spelled(row, "Mul"), reads)
        if form == "concat":
            reads = [self._read(kernel, i, self._own(kernel, i)) for i in range(len(kernel.inputs))]
            shapes = [self._own(kernel, i) for i in range(len(kernel.inputs))]
            axis = next((a for a in range(1, len(shape)) if len({s[a] for s in shapes}) > 1), 0)
            if axis == 0:
                axis = next((a for a in range(1, len(shape)) if sum(s[a] for s in shapes) == shape[a]), 1)
            return self._node("Concat", reads, axis=axis)
        read = self._read(kernel, 0, self._own(kernel, 0))
        before = self._own(kernel, 0)
        if form == "window" and len(shape) == 4 and len(before) == 4:
            window = {"kernel_shape": list(node.kernel), "strides": list(node.stride),
                      "pads": _pads(before[2:], shape[2:], node.kernel, node.stride)}  # fmt: skip
            return self._node(_spelled(row), [read], **window)
        if form in ("global", "mean") and len(before) > 2:
            if len(before) == 4:
                read = self._node("GlobalAveragePool", [read])
                return read if shape == (*before[:2], 1, 1) else self._reshaped(read, shape)
            axes = self.out.constant(np.arange(1, len(before) - 1))
            return self._reshaped(self._node("ReduceMean", [read, axes], keepdims=0), shape)
        if form in ("linear", "nearest") and len(shape) == len(before):
            scales = self.out.constant(
                np.array([a / b for a, b in zip(shape, before, strict=True)], np.float32)
            )
            return self._node("Resize", [read, "", scales], mode=form)
        if form == "moved":
            return self._moved(_spelled(row, "Slice"), read, before, shape)
        if form == "norm":
            return self._normalised(_spelled(row), read, before)
        if math.prod(before) != math.prod(shape):
            return self._stand_in(kernel, shape)
        if form == "unary" and node.detail in _PLAIN_UNARY:
            return self._node(node.detail, [read])
        if form == "unary":
            return self._activation(kernel.op, read)
        return self._stand_in(kernel, shape)

    def _product(self, kernel: Kernel, shape: tuple[int, ...]) -> str:
        """As many products: with weights, or of two tensors."""
        elements = math.prod(shape)
        if kernel.macs:
            depth, columns = max(1, kernel.macs // elements), kernel.output.width
            second = self.out.constant(np.full((1, depth, columns), 0.5, np.float32))
        else:
            first = self.by_name[kernel.inputs[0]].output
            depth = first.spatial[-1] if first.spatial else first.width
            columns = max(1, elements * depth // first.elements)
            second = self._read(kernel, -1, (1, depth, columns))
        read = self._read(kernel, 0, (1, elements // columns, depth))
        return self._reshaped(self._node("MatMul", [read, second]), shape)

    def _stand_in(self, kernel: Kernel, shape: tuple[int, ...]) -> str:
        """What reads all that an operation reads, and writes as much as it does."""
        if not kernel.inputs:
            return self._input(shape)
        sizes = [math.prod(self._own(kernel, index)) for index in range(len(kernel.inputs))]
        reads = [self._read(kernel, index, (1, size)) for index, size in enumerate(sizes)]
        whole = self._node("Concat", reads, axis=1) if len(reads) > 1 else self._node("Abs", reads)
        wanted, there = math.prod(shape), sum(sizes)
        if there < wanted:
            times = self.out.constant(np.array([1, -(-wanted // there)]))
            whole = self._node("Tile", [whole, times])
        if there != wanted:
            ends = [self.out.constant(np.array([number])) for number in (0, wanted, 1)]
            whole = self._node("Slice", [whole, *ends])
        return self._reshaped(whole, shape)

    def _moved(self, op: str, read: str, before: tuple[int, ...], shape: tuple[int, ...]) -> str:
        if (
            op == "Transpose"
            and len(before) == len(shape)
            and sorted(before) == sorted(shape)
            and len(shape) > 2
        ):
            return self._reshaped(self._node("Transpose", [read], perm=[0, *range(2, len(shape)), 1]), shape)
        if (
            op == "Slice"
            and len(before) == len(shape)
            and all(a <= b for a, b in zip(shape, before, strict=True))
        ):
            steps = [max(1, b // a) for a, b in zip(shape, before, strict=True)]
            ends = [a * step for a, step in zip(shape, steps, strict=True)]
            axes = list(range(len(shape)))
            lists = [[0] * len(shape), ends, axes, steps]
            return self._node("Slice", [read, *[self.out.constant(np.array(values)) for values in lists]])
        if (
            op == "Pad"
            and len(before) == len(shape)
            and all(a >= b for a, b in zip(shape, before, strict=True))
        ):
            grown = [a - b for a, b in zip(shape, before, strict=True)]
            pads = [g // 2 for g in grown] + [g - g // 2 for g in grown]
            return self._node("Pad", [read, self.out.constant(np.array(pads))])
        return self._reshaped(read, shape) if math.prod(before) == math.prod(shape) else self._input(shape)

    def _normalised(self, op: str, read: str, before: tuple[int, ...]) -> str:
        last = op == "LayerNormalization" and len(before) == 3
        width = before[-1] if last else before[1] if len(before) > 1 else 1
        # no two norms have equal parameters, as after training: equal ones would be stored once, and what
        # onnxruntime makes of them could not be told apart
        ones = self.out.constant(np.full(width, 1.0 + 1e-3 * len(self.value), np.float32))
        if last:
            return self._node(op, [read, ones, ones], axis=-1)
        if op == "BatchNormalization":
            return self._node(op, [read, ones, ones, ones, ones])
        return self._node("InstanceNormalization", [read, ones, ones])

    def _activation(self, op: str, read: str) -> str:
        if op == "relu6":
            low, high = self.out.constant(np.float32(0.0)), self.out.constant(np.float32(6.0))
            return self._node("Clip", [read, low, high])
        if op == "silu":
            return self._node("Mul", [read, self._node("Sigmoid", [read])])
        return self._node(_spelled(operation(op)), [read])

    def _own(self, kernel: Kernel, index: int) -> tuple[int, ...]:
        return self.value[kernel.inputs[index]][1]

    def _read(self, kernel: Kernel, index: int, shape: tuple[int, ...]) -> str:
        """The tensor that a kernel reads, in the shape it needs; a new input where it does not fit at all."""
        name, own = self.value[kernel.inputs[index]]
        if own == shape:
            return name
        return self._reshaped(name, shape) if math.prod(own) == math.prod(shape) else self._input(shape)

    def _reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        return self._node("Reshape", [name, self.out.constant(np.array(shape))])

    def _input(self, shape: tuple[int, ...]) -> str:
        name = f"input{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        named = "" if op == "Reshape" else self.current
        self.current = self.current if op == "Reshape" else ""
        return self.out.add(op, inputs, name=named, **attributes)


def _spelled(row: Operation, otherwise: str = "Abs") -> str:
    """The type of ONNX that an operation is written as."""
    return row.onnx[0] if row.onnx else otherwise


def _pads(
    before: tuple[int, ...], after: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int]
) -> list[int]:
    """Paddings with which a window turns sizes ``before`` into ``after``, begins first."""
    total = [max(0, (a - 1) * s + k - b) for b, a, k, s in zip(before, after, kernel, stride, strict=True)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]
