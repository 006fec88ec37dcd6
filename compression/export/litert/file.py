"""A .tflite file under construction, by the schema that ai-edge-litert carries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ALIGNED = 16
"""Where a buffer may begin (schema.fbs: ``force_align: 16``)."""
_SHARED = 1024
"""Bytes of a constant, up to which equal ones are one tensor."""

_TYPES = {
    "float32": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8, "int16": schema.TensorType.INT16, "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64, "bool": schema.TensorType.BOOL, "uint8": schema.TensorType.UINT8,
    "float64": schema.TensorType.FLOAT64, "int4": schema.TensorType.INT4,
}  # fmt: skip
"""Of tensors, by their names in numpy; two values of int4 are in a byte, the first in its lower half."""


@dataclass(frozen=True)
class Grid:
    """Signed codes: a value is (code - zero) * scale. ``kind``: the integers that hold them."""

    scale: float
    zero: int
    kind: str = "int8"


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Remembers lists of zeros: where each was written, by its identity."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.zeros: dict[int, int] = {}


@dataclass
class _Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer that begins where the schema wants it, which the generated code does not see to."""

    content: bytes = b""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Write it."""
        if self.content:
            builder.StartVector(1, len(self.content), ALIGNED)
            builder.head -= len(self.content)
            builder.Bytes[builder.head : builder.head + len(self.content)] = self.content
            held = builder.EndVector()
        schema.BufferStart(builder)
        if self.content:
            schema.BufferAddData(builder, held)
        return int(schema.BufferEnd(builder))


class _Scales(schema.QuantizationParametersT):  # type: ignore[misc]
    """A tensor's grid; tensors of a layer whose zeros are all 0 share the list of them."""

    def __init__(self, scales: NDArray[np.float32], zeros: NDArray[np.int64], axis: int) -> None:
        super().__init__()
        self.scale, self.zeroPoint, self.quantizedDimension = scales, zeros, axis

    def Pack(self, builder: flatbuffers.Builder) -> int:
        """Write it."""
        assert isinstance(builder, _Builder)
        known = builder.zeros
        place = id(self.zeroPoint)
        if place not in known:
            known[place] = builder.CreateNumpyVector(self.zeroPoint)
        scales = builder.CreateNumpyVector(self.scale)
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scales)
        schema.QuantizationParametersAddZeroPoint(builder, known[place])
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return int(schema.QuantizationParametersEnd(builder))


@dataclass
class File:
    """Tensors, and the operations between them, in the order in which they run.

    owner: for which node of the graph the next ones are, -1: for none; sizes: by owner the bytes of what was
    written for it, once there is a file; tensor_counts, operator_counts: how many there are.
    """

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [_Buffer()])
    operators: list[Any] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    owner: int = -1
    sizes: Counter[int] = field(default_factory=Counter)
    tensor_counts: Counter[int] = field(default_factory=Counter)
    operator_counts: Counter[int] = field(default_factory=Counter)
    _constants: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _held: dict[bytes, int] = field(default_factory=dict)

    def tensor(self, shape: Sequence[int], kind: str, grid: Grid | None = None, name: str = "") -> int:
        """A tensor that an operation makes, or that comes from outside."""
        made = schema.TensorT()
        made.shape, made.type, made.name = np.array(shape, dtype=np.int32), _TYPES[kind], name or None
        if grid is not None:
            made.quantization = _Scales(
                np.full(1, grid.scale, np.float32), np.full(1, grid.zero, np.int64), 0
            )
        self.tensor_counts[self.owner] += 1
        self.tensors.append(self._owned(made))
        return len(self.tensors) - 1

    def _owned(self, made: Any) -> Any:
        """A part of the file, whose bytes are counted when it is written."""
        owner, write = self.owner, made.Pack

        def counted(builder: flatbuffers.Builder) -> int:
            before = builder.Offset()
            place: int = write(builder)
            self.sizes[owner] += builder.Offset() - before + 4  # and where it is listed
            return place

        made.Pack = counted
        return made

    def constant(self, array: NDArray[Any], grid: Grid | None = None) -> int:
        """A constant; equal small ones are one tensor."""
        key = (array.dtype.str, array.shape, array.tobytes(), grid)
        if array.nbytes <= _SHARED and key in self._constants:
            return self._constants[key]
        made = self.tensor(array.shape, array.dtype.name, grid)
        self._hold(made, array.tobytes())
        if array.nbytes <= _SHARED:
            self._constants[key] = made
        return made

    def weight(self, array: NDArray[Any]) -> int:
        """What is trained, in floats; each use has a tensor, which all hold the same numbers."""
        made = self.tensor(array.shape, array.dtype.name)
        self._hold(made, array.tobytes())
        return made

    def codes_of(
        self, array: NDArray[Any], scales: NDArray[np.float32], zeros: NDArray[np.int64], axis: int, kind: str
    ) -> int:
        """Codes of what is trained, with a scale for each index along an axis."""
        made = self.tensor(array.shape, kind)
        self.tensors[made].quantization = _Scales(scales, zeros, axis)
        self._hold(made, packed(array) if kind == "int4" else array.tobytes())
        return made

    def _hold(self, tensor: int, content: bytes) -> None:
        """Weights that several operations read are held once: they have more than one dimension."""
        made = self.tensors[tensor]
        once = len(made.shape) > 1
        if once and content in self._held:
            made.buffer = self._held[content]
            return
        made.buffer = len(self.buffers)
        self.buffers.append(self._owned(_Buffer(content=content)))
        if once:
            self._held[content] = made.buffer

    def add(self, op: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        """An operation, by its name in the schema. ``options``: a table of the schema; -1 among the inputs:
        left out."""
        code = getattr(schema.BuiltinOperator, op)
        made = schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        made.inputs = np.array(inputs, dtype=np.int32)
        made.outputs = np.array(outputs, dtype=np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            made.builtinOptionsType, made.builtinOptions = getattr(schema.BuiltinOptions, kind), options
        self.operator_counts[self.owner] += 1
        self.operators.append(self._owned(made))

    def content(
        self, inputs: Sequence[int], outputs: Sequence[int], description: str, metadata: dict[str, bytes]
    ) -> bytes:
        """The file."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)
        model = schema.ModelT()
        model.version, model.description = 3, description
        model.subgraphs = [graph]
        model.operatorCodes = [_operator_code(code) for code in self.codes]
        model.metadata = []
        for name, said in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(self.buffers)
            self.buffers.append(_Buffer(content=said))
            model.metadata.append(entry)
        model.buffers = self.buffers
        held = sum(len(buffer.content) for buffer in self.buffers)
        builder = _Builder(held + 1024 * (len(self.tensors) + 8))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


_VERSIONS = {schema.BuiltinOperator.BROADCAST_TO: 2}
"""Of operations that have no first version (LiteRT, kernels/register.cc)."""


def _operator_code(code: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode = code, min(code, 127)
    made.version = _VERSIONS.get(code, 1)
    return made


def packed(codes: NDArray[np.int8]) -> bytes:
    """Codes of 4 bits, two in a byte."""
    flat = np.zeros(-(-codes.size // 2) * 2, dtype=np.uint8)
    flat[: codes.size] = codes.reshape(-1).view(np.uint8) & 15
    return bytes(flat[::2] | flat[1::2] << 4)
