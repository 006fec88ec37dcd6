"""Reading an .onnx file safely, and questions about its graph: shapes, constants, bits of a tensor."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    external_data_helper,
    helper,
    inliner,
    numpy_helper,
)

SMALL_BYTES = 65536
"""External tensors up to this size are loaded: shapes and axes are among them. Weights are not needed."""

SMALL = 4096
"""Computed tensors of up to so many elements are taken for sizes, axes and the like."""

LOWEST = -1e38
"""No value of a network is less."""

TYPE_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT16: 16, TensorProto.UINT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8,
    TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip
for _name in ("INT2", "UINT2"):  # newer than the oldest onnx that we support
    if hasattr(TensorProto, _name):
        TYPE_BITS[getattr(TensorProto, _name)] = 2


class OnnxError(ValueError):
    """A file that is not ONNX, or whose shapes cannot be followed."""


def read_model(path: Path) -> ModelProto:
    """The model in a file, without the weights that it keeps in other files.

    Raises:
        OnnxError: it cannot be read, is not ONNX, or names data outside its own folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise OnnxError(f"cannot read the network {path}: {error.strerror}") from error
    except DecodeError as error:
        raise OnnxError(f"{path} is not an ONNX file (or it is cut off): it cannot be decoded") from error
    if not model.graph.node or not model.opset_import:
        raise OnnxError(f"{path} is not an ONNX file: it holds no graph")
    folder = path.resolve().parent
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _load_external(tensor, folder, path)
    return model


def _tensors(model: ModelProto) -> list[TensorProto]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    held = [a.t for node in nodes for a in node.attribute if a.HasField("t")]
    return [*model.graph.initializer, *held]


def _load_external(tensor: TensorProto, folder: Path, path: Path) -> None:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    target = (folder / location).resolve()
    if not location or not target.is_relative_to(folder):
        raise OnnxError(
            f"{path} keeps tensor {tensor.name!r} in {location!r}, outside its own folder; that is not read"
        )
    if not target.is_file():
        raise OnnxError(f"{path} keeps tensor {tensor.name!r} in {location!r}, which is not there")
    if math.prod(tensor.dims) * 8 <= SMALL_BYTES:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            numpy_helper.to_array(tensor)
        except Exception as error:  # several kinds, all for a file that is too short or unreadable
            raise OnnxError(f"{path}: tensor {tensor.name!r} cannot be read from {location!r}") from error


def graph_of(model: ModelProto, where: str) -> "Graph":
    """The graph with all shapes, for a batch of one.

    Raises:
        OnnxError: the batch is fixed above one, another size is left open, or a shape cannot be inferred.
    """
    copied = ModelProto()
    copied.CopyFrom(model)
    if copied.functions:
        copied = inliner.inline_local_functions(copied)
    initializers = {tensor.name for tensor in copied.graph.initializer}
    for value in copied.graph.input:
        if value.name not in initializers:
            _fix_batch(value, where)
    del copied.graph.value_info[:]  # made for another batch, perhaps
    for value in copied.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = infer_shapes(copied)
    except Exception as error:  # InferenceError and others, by the operation
        reason = " ".join(str(error).split())
        raise OnnxError(f"{where}: the shapes cannot be inferred: {reason}") from error
    return Graph(inferred, where)


def infer_shapes(model: ModelProto) -> ModelProto:
    """A copy of the model with the shapes of all tensors that follow from its inputs.

    Exporters calculate sizes in the graph (Shape, Gather, Concat, Reshape): onnx's inference follows the
    common calculations only; where it stops, onnxscript folds them. Tensors without a shape after that depend
    on values. What is stored in 8 bits and below stays as it is: it says which bits a weight has.

    Raises:
        Exception: what onnx raises for a graph that contradicts itself.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = fixed_shapes(inferred.graph)
    if all(name in shapes for node in inferred.graph.node for name in node.output if name):
        return inferred
    from onnxscript import ir, optimizer  # a second or two

    def narrow(node: ir.Node) -> bool | None:
        first = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
        return False if first is not None and TYPE_BITS.get(int(first), 32) <= 8 else None

    held = ir.serde.deserialize_model(inferred)
    optimizer.fold_constants(
        held, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL, should_fold=narrow
    )
    return onnx.shape_inference.infer_shapes(ir.serde.serialize_model(held), strict_mode=True, data_prop=True)


def fixed_shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Tensor -> its sizes, for all tensors of which every size is known."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim):
            shapes[value.name] = tuple(size.dim_value for size in tensor.shape.dim)
    return shapes


def _fix_batch(value: ValueInfoProto, where: str) -> None:
    sizes = value.type.tensor_type.shape.dim
    for index, size in enumerate(sizes):
        if size.HasField("dim_value") and size.dim_value > 0:
            if index == 0 and size.dim_value > 1 and len(sizes) > 1:
                raise OnnxError(
                    f"{where}: input {value.name!r} has a fixed batch of {size.dim_value}; costs are for a"
                    " batch of one: export it with batch 1, or with the batch left open"
                )
        elif index == 0:
            size.dim_value = 1
        else:
            raise OnnxError(
                f"{where}: input {value.name!r} leaves its size {size.dim_param or index!r} open; only the"
                " batch may be: export it with fixed sizes"
            )


@dataclass(frozen=True)
class Graph:
    """An ONNX graph with inferred shapes."""

    model: ModelProto = field(repr=False)
    where: str

    @cached_property
    def nodes(self) -> tuple[NodeProto, ...]:
        """Nodes in the order of execution."""
        return tuple(self.model.graph.node)

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """Stored tensors, Constant nodes among them, by name."""
        stored = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                value = self.attributes(node).get("value")
                if isinstance(value, TensorProto):
                    stored[node.output[0]] = value
        return stored

    @cached_property
    def producer(self) -> dict[str, NodeProto]:
        """Tensor -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that a caller feeds."""
        return tuple(v.name for v in self.model.graph.input if v.name not in self.initializers)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that a caller gets."""
        return tuple(value.name for value in self.model.graph.output)

    @cached_property
    def _readers(self) -> dict[str, list[NodeProto]]:
        readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        return readers

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def read_somewhere(self, name: str) -> bool:
        """Whether a node or the caller reads the tensor."""
        return bool(self.readers(name)) or name in self.outputs

    @cached_property
    def _constants(self) -> set[str]:
        constants = set(self.initializers)
        for node in self.nodes:
            fixed = node.op_type in ("Constant", "Shape", "Size") or (
                bool(node.input) and all(not name or name in constants for name in node.input)
            )
            if fixed and not any(attribute.HasField("g") for attribute in node.attribute):
                constants.update(node.output)
        return constants

    def is_constant(self, name: str) -> bool:
        """Whether the tensor is the same for every input (or is not given); shapes are, here."""
        return not name or name in self._constants

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        stored = {name: tuple(tensor.dims) for name, tensor in self.initializers.items()}
        return fixed_shapes(self.model.graph) | stored

    def shape(self, name: str) -> tuple[int, ...]:
        """All sizes of a tensor; raises OnnxError if they cannot be inferred."""
        if name not in self._shapes:
            node = self.producer.get(name)
            maker = f" that {node.op_type} makes" if node else ""
            raise OnnxError(
                f"{self.where}: the shape of tensor {name!r}{maker} cannot be inferred; it is no"
                " operation of standard ONNX, or its sizes depend on values"
            )
        return self._shapes[name]

    def attributes(self, node: NodeProto) -> dict[str, Any]:
        """A node's attributes as Python values."""
        return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def root(self, name: str) -> str:
        """The stored tensor that a constant comes from, through quantizers, casts and reshapes."""
        while name not in self.initializers and name in self.producer and self.producer[name].input:
            name = self.producer[name].input[0]
        return name

    def bits(self, name: str) -> int:
        """Bits at which a tensor is held: those of the narrowest type on its way from where it was made
        through casts, quantizers and operations that only move values; for a stored tensor, from the file."""
        narrowest = 32
        moving = ("Cast", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Identity", "Squeeze",
                  "Unsqueeze", "Flatten")  # fmt: skip
        while True:
            narrowest = min(narrowest, TYPE_BITS.get(self._type(name), 32))
            if self._type(name) == TensorProto.BOOL and self.is_constant(name):
                return 1  # two values, chosen by the bits of bytes
            node = self.producer.get(name)
            if node is None or name in self.initializers or not node.input:
                return narrowest
            if levels := self.clipped_bits(node):
                return min(narrowest, levels)
            if guarded := self.guarded(node):
                name = guarded
                continue
            if not self.is_constant(name) and node.op_type not in moving:
                return narrowest
            name = node.input[0]

    def guarded(self, node: NodeProto) -> str:
        """What a Max with a number below all others hands on as it is: our files keep float layers between
        integer tensors apart so. "": it is none."""
        if node.op_type != "Max" or len(node.input) != 2:
            return ""
        stored = [name for name in node.input if self.is_constant(name)]
        below = self.scalar(stored[0]) if len(stored) == 1 else None
        lowest = below is not None and below <= LOWEST
        return next(name for name in node.input if name not in stored) if lowest else ""

    def clipped_bits(self, node: NodeProto) -> int:
        """Bits of a quantizer with fewer levels than its type has, whose range this Clip cuts; 0: not so.

        There is no type of, say, 4 bits for activations that engines compute with: such a tensor is clipped
        to 2^4 steps and quantized into 8 bits.
        """
        if node.op_type != "Clip" or len(node.input) != 3:
            return 0
        low, high = self.scalar(node.input[1]), self.scalar(node.input[2])
        made_by = self.producer.get(node.input[0])
        readers = self.readers(node.output[0])
        if made_by is not None and made_by.op_type == "QuantizeLinear":  # it cuts the codes themselves
            step: float | None = 1.0
        elif [r.op_type for r in readers] == ["QuantizeLinear"]:
            step = self.scalar(readers[0].input[1])
        else:
            return 0
        if low is None or high is None or not step:
            return 0
        levels = (high - low) / step + 1
        bits = round(math.log2(levels)) if levels > 1 else 0
        return bits if 1 < bits < 8 and math.isclose(levels, 2**bits, rel_tol=1e-3) else 0

    @cached_property
    def _types(self) -> dict[str, int]:
        graph = self.model.graph
        types = {name: int(tensor.data_type) for name, tensor in self.initializers.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            types[value.name] = int(value.type.tensor_type.elem_type)
        return types

    def _type(self, name: str) -> int:
        return self._types.get(name, TensorProto.FLOAT)

    def scalar(self, name: str) -> float | None:
        """The value of a stored number, or None where it is computed or not a single number."""
        tensor = self.initializers.get(self.root(name))
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        values = numpy_helper.to_array(tensor)
        return float(values.reshape(-1)[0]) if values.size == 1 else None

    def integers(self, node: NodeProto, attribute: str, index: int) -> list[int] | None:
        """A list that older versions of an operation keep as attribute and newer ones as input; or None."""
        value = self.attributes(node).get(attribute)
        if value is not None:
            return [int(item) for item in value]
        if len(node.input) > index and node.input[index] in self.initializers:
            stored = numpy_helper.to_array(self.initializers[node.input[index]])
            return [int(item) for item in stored.reshape(-1)]
        return None
