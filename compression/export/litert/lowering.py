"""From the graph of ONNX to operations of the file: one function for each operation, found by its name."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.litert.file import Grid
from leanfront.compression.export.litert.values import Layout, Tensors, Value, plain

LAYOUTS = "layouts"
"""Of a file's metadata: input or output -> the network's dimensions in the order in which the file has
them."""
NONE = schema.ActivationFunctionType.NONE
_CLIPS = {
    (0.0, math.inf): schema.ActivationFunctionType.RELU, (0.0, 6.0): schema.ActivationFunctionType.RELU6,
    (-1.0, 1.0): schema.ActivationFunctionType.RELU_N1_TO_1,
}  # fmt: skip
"""Ranges that an operation can cut its output to by itself."""


@dataclass(frozen=True)
class Landing:
    """Where the output of a node ends, with what is computed together with it: the value of the graph that it
    is, the activation, and the grid that it is put on, if the node computes in integers."""

    name: str
    activation: int
    grid: Grid | None


class Lowering(Tensors):
    """The file, node by node."""

    def __init__(self, model: onnx.ModelProto, halves: Collection[str] = ()) -> None:
        super().__init__()
        self.halves = halves
        self.graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.values: dict[str, Value] = {}
        self.shapes, self.kinds = _known(self.graph)
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.put_out = {value.name for value in self.graph.output}
        self.done: set[int] = set()
        self.opset = next(one.version for one in model.opset_import if not one.domain)

    def written(self) -> bytes:
        """The file."""
        for tensor in self.graph.initializer:
            array = numpy_helper.to_array(tensor)
            self.values[tensor.name] = constant(array, stored=_stored(tensor))
        for value in self.graph.input:
            self._input(value.name)
        for place, node in enumerate(self.graph.node):
            self.file.owner = place
            if id(node) not in self.done and not self._folded(node):
                self.write(node)
        self.file.owner = -1
        inputs = [value.name for value in self.graph.input]
        outputs = [value.name for value in self.graph.output]
        placed = [self._put_out(name) for name in outputs]
        held = {name: list(self.values[name].layout) for name in inputs}
        layouts = held | {name: list(layout) for name, (_, layout) in zip(outputs, placed, strict=True)}
        return self.file.content(
            [self.values[name].forms[self.values[name].layout, False] for name in inputs],
            [tensor for tensor, _ in placed],
            "leanfront",
            {LAYOUTS: json.dumps(layouts).encode()},
        )

    def write(self, node: onnx.NodeProto) -> None:
        """One node."""
        if any(name not in self.shapes for name in node.output if name):
            self._infer(node)
        try:
            WRITTEN[node.op_type](self, node)
        except DialectError as error:
            at = f" at {node.name!r}" if node.name else ""
            raise DialectError(f"tflite cannot run {node.op_type}{at}: {error}") from error

    def _infer(self, node: onnx.NodeProto) -> None:
        """Shapes of what a node puts out, from those that were written: ONNX does not know all of them where
        an operation (GroupNormalization) says nothing of its own."""
        known = {name: self.values[name] for name in node.input if name}
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(value.kind)), value.shape
            )
            for name, value in known.items()
        ]
        held = [
            numpy_helper.from_array(value.constant, name)
            for name, value in known.items()
            if value.constant is not None and value.scales is None
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "one", infos, outputs, held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        shapes, kinds = _known(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
        for name in node.output:
            first = self.values[node.input[0]]
            self.shapes.setdefault(name, shapes.get(name, first.shape))
            self.kinds.setdefault(name, kinds.get(name, first.kind))

    def _input(self, name: str) -> None:
        """What comes from outside, in the order in which what reads it first wants it."""
        shape, kind = self.shapes[name], self.kinds[name]
        layout = self._wanted(name)
        tensor = self.file.tensor([shape[d] for d in layout], kind, None, name)
        self.values[name] = Value(shape, kind, forms={(layout, False): tensor})

    def _wanted(self, name: str) -> Layout:
        rank, waiting = len(self.shapes[name]), [name]
        for value in waiting:  # what is read through operations that do not mind
            for node in self.readers.get(value, ()):
                if node.op_type in _CHANNELS_LAST and node.input[0] == value and rank > 2:
                    return (0, *range(2, rank), 1)
                if node.op_type in _FOLLOWING:
                    waiting += node.output
        return plain(rank)

    def _put_out(self, name: str) -> tuple[int, Layout]:
        value = self.values[name]
        layout = value.layout if value.constant is None else plain(value.rank)
        tensor = self.form(value, layout)
        copied = self.file.tensor(self.file.tensors[tensor].shape, value.kind, None, name)
        maker = next((o for o in self.file.operators if tensor in o.outputs), None)
        if maker is not None and self.file.tensors[tensor].name is None:
            self.file.tensors.pop()
            self.file.tensors[tensor].name = name
            return tensor, layout
        options = schema.ReshapeOptionsT()
        options.newShape = self.file.tensors[tensor].shape
        self.file.add("RESHAPE", [tensor, self.numbers(options.newShape.tolist())], [copied], options)
        return copied, layout

    def _folded(self, node: onnx.NodeProto) -> bool:
        """Compute what depends on constants alone; whether it did."""
        read = [self.values[name] for name in node.input if name]
        if node.op_type == "DequantizeLinear" or any(
            value.constant is None or value.scales is not None for value in read
        ):
            return False
        feed = {name: self.values[name].constant for name in node.input if name}
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feed.items()
            if array is not None
        ]
        outputs = [
            helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output
        ]
        graph = helper.make_graph([node], "constants", infos, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        found = ReferenceEvaluator(model).run(None, feed)
        for name, array in zip(node.output, found, strict=True):
            self.values[name] = constant(np.asarray(array))
        return True

    def read(self, node: onnx.NodeProto, place: int = 0) -> Value:
        """What a node reads."""
        return self.values[node.input[place]]

    def optional(self, node: onnx.NodeProto, place: int) -> Value | None:
        """The same of what may be left out."""
        there = len(node.input) > place and node.input[place]
        return self.values[node.input[place]] if there else None

    def numbers_of(self, node: onnx.NodeProto, place: int) -> list[int]:
        """A constant list of sizes that a node reads."""
        value = self.read(node, place)
        if value.constant is None:
            raise DialectError("its sizes are computed")
        return [int(number) for number in value.constant.reshape(-1)]

    def landing(self, node: onnx.NodeProto, integer: bool) -> Landing:
        """Where the output of a node ends. ``integer``: it could compute in integers, and does where its
        output is put on a grid."""
        name, activation = node.output[0], NONE
        following = self.follower(name)
        skipped = []
        if following is not None and (clip := self.clip(following)) in _CLIPS:
            activation = _CLIPS[clip]
            skipped.append(following)
            name = following.output[0]
            following = self.follower(name)
        grid = None
        if integer and following is not None and following.op_type == "QuantizeLinear":
            grid = self.grid(following)
            skipped.append(following)
            name = following.output[0]
            if activation == schema.ActivationFunctionType.RELU and grid.zero == -128:
                activation = NONE
        self.done.update(id(one) for one in skipped)
        return Landing(name, activation, grid)

    def lands_on_grid(self, node: onnx.NodeProto) -> bool:
        """Whether the output of a node is put on a grid, behind an activation or at once."""
        following = self.follower(node.output[0])
        if following is not None and self.clip(following) in _CLIPS:
            following = self.follower(following.output[0])
        return following is not None and following.op_type == "QuantizeLinear"

    def follower(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a value."""
        reading = self.readers.get(name, [])
        return reading[0] if len(reading) == 1 and name not in self.put_out else None

    def clip(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """The range that a node cuts what it reads to; None: it does something else."""
        if node.op_type == "Relu":
            return 0.0, math.inf
        if node.op_type != "Clip":
            return None
        ends = [-math.inf, math.inf]
        for place in (1, 2):
            value = self.optional(node, place)
            if value is not None:
                if value.constant is None:
                    return None
                ends[place - 1] = float(value.constant.reshape(-1)[0])
        return ends[0], ends[1]

    def grid(self, node: onnx.NodeProto) -> Grid:
        """Of a QuantizeLinear or DequantizeLinear, in signed codes."""
        scale, zero = self.read(node, 1).constant, self.read(node, 2).constant
        assert scale is not None
        assert zero is not None
        moved = 128 if zero.dtype == np.uint8 else 0
        return Grid(float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) - moved)

    def result(self, landing: Landing, shape: Sequence[int], layout: Layout, kind: str = "float32") -> int:
        """The tensor that an operation puts out."""
        value = Value(tuple(shape), kind, landing.grid)
        self.values[landing.name] = value
        return self.made(value, layout)

    def floats(self, name: str, shape: Sequence[int], layout: Layout, tensor: int) -> None:
        """Note a value that was computed in floats."""
        kind = self.kinds.get(name, "float32")
        self.values[name] = Value(tuple(shape), kind, forms={(layout, False): tensor})

    def emit(
        self, op: str, inputs: Sequence[int], shape: Sequence[int], options: Any = None, kind: str = "float32"
    ) -> int:
        """An operation within what a node computes; the tensor that it puts out."""
        made = self.make(shape, kind)
        self.file.add(op, inputs, [made], options)
        return made


def constant(array: NDArray[Any], stored: str = "int8") -> Value:
    """A constant of the graph, as numpy computes with it."""
    if array.dtype.name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    return Value(array.shape, array.dtype.name, constant=array, stored=stored)


def _stored(tensor: onnx.TensorProto) -> str:
    return "int4" if tensor.data_type == onnx.TensorProto.INT4 else "int8"


def _known(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and kinds of numbers, by name of a value."""
    shapes, kinds = {}, {}
    for info in (*graph.value_info, *graph.input, *graph.output):
        kind = info.type.tensor_type
        if kind.elem_type:
            kinds[info.name] = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        dims = kind.shape.dim
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[info.name] = tuple(d.dim_value for d in dims)
    return shapes, kinds


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name, words as words."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


Writing = Callable[[Lowering, onnx.NodeProto], None]
WRITTEN: dict[str, Writing] = {}
"""Operation of ONNX -> what writes it."""

_CHANNELS_LAST = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"}
_FOLLOWING = {
    "QuantizeLinear", "DequantizeLinear", "Pad", "BatchNormalization", "Add", "Sub", "Mul", "Div",
    "Identity", "Relu", "Clip", "Concat",
}  # fmt: skip


def writes(*names: str) -> Callable[[Writing], Writing]:
    """Decorator of what writes some operations of ONNX."""

    def register(function: Writing) -> Writing:
        WRITTEN.update(dict.fromkeys(names, function))
        return function

    return register
