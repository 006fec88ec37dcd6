"""ONNX models at the level of their bytes: as much of protobuf as measuring needs, without the onnx package.

A device that is measured has python, numpy and onnxruntime, and often nothing else. A protobuf message is a
sequence of fields, each a number, a wire type and a value (https://protobuf.dev/programming-guides/encoding);
two messages written one after the other are one with the fields of both, the later one of a field that may be
there only once. Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7
"""Element types of tensors that are named somewhere."""

ELEMENT_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
    16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz",
    21: "uint4", 22: "int4", 23: "float4_e2m1fn",
}  # fmt: skip
"""Element type -> its name, as NumPy (or ml_dtypes) calls it."""

MODEL_GRAPH, MODEL_OPSETS = 7, 8
GRAPH_NODES, GRAPH_CONSTANTS, GRAPH_INPUTS, GRAPH_OUTPUTS = 1, 5, 11, 12
TENSOR_NAME, TENSOR_RAW, TENSOR_NOTE = 8, 9, 12

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_LISTS = {4: "<f", 5: None, 7: None, 10: "<d", 11: None}  # fields of a tensor that hold its values one by one


class WireError(ValueError):
    """Bytes that are no protobuf message."""


class Field(NamedTuple):
    """One field of a message. ``value``: an integer, or the bytes. ``raw``: the whole field as it stands."""

    number: int
    value: int | bytes
    raw: bytes


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        WireError: it is cut short, or no message.
    """
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _read_varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _read_varint(message, at)
        else:
            if kind == _LENGTH:
                size, at = _read_varint(message, at)
            elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
                size = 4 if kind == _FOUR_BYTES else 8
            else:
                raise WireError(f"no protobuf message: wire type {kind}")
            if at + size > end:
                raise WireError("a protobuf message is cut short")
            value, at = message[at : at + size], at + size
        yield Field(number, value, message[start:at])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise WireError("a protobuf message is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def varint(value: int) -> bytes:
    """An integer as protobuf writes it; negative ones in two's complement of 64 bits."""
    value &= (1 << 64) - 1
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def field(number: int, value: int | str | bytes) -> bytes:
    """A field that holds an integer, or else a text or a message."""
    if isinstance(value, int):
        return varint(number << 3 | _VARINT) + varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _LENGTH) + varint(len(payload)) + payload


def signed(value: int) -> int:
    """What an int64 field holds, read as the unsigned number that ``fields`` gives."""
    return value - (1 << 64) if value >> 63 else value


def replaced(message: bytes, number: int, values: Iterable[bytes]) -> bytes:
    """A message with other values in a repeated field."""
    kept = b"".join(f.raw for f in fields(message) if f.number != number)
    return kept + b"".join(field(number, value) for value in values)


def texts(message: bytes, number: int) -> tuple[str, ...]:
    """The values of a repeated field of texts."""
    return tuple(_text(f.value) for f in fields(message) if f.number == number)


def messages(message: bytes, number: int) -> list[bytes]:
    """The values of a repeated field of messages."""
    return [f.value for f in fields(message) if f.number == number and isinstance(f.value, bytes)]


def graph_of(model: bytes) -> bytes:
    """The graph of a model.

    Raises:
        WireError: it has none.
    """
    found = messages(model, MODEL_GRAPH)
    if not found:
        raise WireError("this is no ONNX model: it has no graph")
    return b"".join(found)


def with_graph(model: bytes, graph: bytes) -> bytes:
    """A model with another graph."""
    return replaced(model, MODEL_GRAPH, [graph])


def _text(value: int | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _grouped(message: bytes) -> "dict[int, list[Any]]":
    """Number of a field -> its values, in order."""
    found: dict[int, list[Any]] = {}
    for number, value, _ in fields(message):
        found.setdefault(number, []).append(value)
    return found


def _last_text(held: "dict[int, list[Any]]", number: int) -> str:
    return _text(held.get(number, [b""])[-1])


@dataclass(frozen=True)
class Attribute:
    """An attribute of a node. ``raw``: its message."""

    name: str
    value: Any
    raw: bytes

    @staticmethod
    def read(message: bytes) -> "Attribute":
        """From an AttributeProto: a float, an integer, bytes, a Tensor, a list of these; a graph as bytes."""
        held = _grouped(message)
        name, kind = _last_text(held, 1), int(held.get(20, [0])[-1])
        values = [v for number in range(2, 12) for one in held.get(number, ()) for v in _values(number, one)]
        if kind in (6, 7, 8, 9, 10):  # lists, also of one or of none
            return Attribute(name, values, message)
        return Attribute(name, values[-1] if values else None, message)


def _values(number: int, value: int | bytes) -> list[Any]:
    if number in (2, 7) and isinstance(value, bytes):
        return _numbers(value, "<f")
    if number in (3, 8):
        return _numbers(value)
    if number in (5, 10) and isinstance(value, bytes):
        return [Tensor.read(value)]
    return [value]


def _numbers(value: int | bytes, form: str | None = None) -> list[Any]:
    """The numbers of a repeated field: one by itself, or several, as varints or in a form of struct's."""
    if isinstance(value, int):
        return [signed(value)]
    if form is not None:
        return [one for (one,) in struct.iter_unpack(form, value)]
    found, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        found.append(signed(number))
    return found


@dataclass(frozen=True)
class Node:
    """A node of a graph: what NodeProto says, the attributes in the order of the file."""

    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]
    name: str = ""
    domain: str = ""
    attribute: tuple[Attribute, ...] = ()

    @staticmethod
    def read(message: bytes) -> "Node":
        """From a NodeProto."""
        held = _grouped(message)
        inputs, outputs = (tuple(map(_text, held.get(number, ()))) for number in (1, 2))
        attributes = tuple(Attribute.read(one) for one in held.get(5, ()) if isinstance(one, bytes))
        op_type, name, domain = (_last_text(held, number) for number in (4, 3, 7))
        return Node(op_type, inputs, outputs, name, domain, attributes)

    def written(self) -> bytes:
        """As a NodeProto."""
        parts = [field(1, name) for name in self.input] + [field(2, name) for name in self.output]
        parts += [field(3, self.name), field(4, self.op_type)]
        parts += [field(5, attribute.raw) for attribute in self.attribute]
        if self.domain:
            parts.append(field(7, self.domain))
        return b"".join(parts)


@dataclass(frozen=True)
class Tensor:
    """A constant of a graph. ``raw``: its message."""

    name: str
    element_type: int
    shape: tuple[int, ...]
    raw: bytes

    @staticmethod
    def read(message: bytes) -> "Tensor":
        """From a TensorProto."""
        held = _grouped(message)
        shape = tuple(size for one in held.get(1, ()) for size in _numbers(one))
        return Tensor(_last_text(held, TENSOR_NAME), int(held.get(2, [0])[-1]), shape, message)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @cached_property
    def values(self) -> NDArray[Any]:
        """Its elements, of a type that NumPy has.

        Raises:
            WireError: another type, or not so many values as its shape says.
        """
        kind = numpy_type(self.element_type)
        held = _grouped(self.raw)
        raw = held.get(TENSOR_RAW, [b""])[-1]
        listed = [
            v for number, form in _LISTS.items() for one in held.get(number, ()) for v in _numbers(one, form)
        ]
        found = np.frombuffer(raw, kind.newbyteorder("<")) if raw else np.array(listed)
        if found.size != self.size:
            raise WireError(f"constant {self.name!r} has {found.size} values, its shape says {self.size}")
        if not raw and kind == np.float16:  # listed by their bits
            return found.astype(np.uint16).view(np.float16).reshape(self.shape)
        return found.astype(kind).reshape(self.shape)

    def renamed(self, name: str) -> bytes:
        """The message with another name."""
        return self.raw + field(TENSOR_NAME, name)


def numpy_type(element_type: int) -> np.dtype[Any]:
    """The NumPy type of an element type.

    Raises:
        WireError: NumPy has none.
    """
    try:
        return np.dtype(ELEMENT_NAMES[element_type])
    except (KeyError, TypeError):
        name = ELEMENT_NAMES.get(element_type, str(element_type))
        raise WireError(f"NumPy has no type for elements of ONNX's type {name}") from None


_ELEMENT_TYPES = {name: element_type for element_type, name in ELEMENT_NAMES.items()}


def element_type_of(array: NDArray[Any]) -> int:
    """The element type of an array."""
    return _ELEMENT_TYPES[array.dtype.name]


def tensor(values: NDArray[Any], name: str) -> bytes:
    """A TensorProto of an array."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return raw_tensor(element_type_of(values), values.shape, little.tobytes(), name)


def raw_tensor(element_type: int, shape: Sequence[int], raw: bytes, name: str) -> bytes:
    """A TensorProto whose values are given as its bytes."""
    return b"".join(
        [*[field(1, size) for size in shape], field(2, element_type), field(TENSOR_NAME, name),
         field(TENSOR_RAW, raw)]
    )  # fmt: skip


def value_info(name: str, element_type: int, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto: the name, type and shape of an input or output."""
    sizes = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, element_type) + field(2, sizes)))


def model(
    nodes: Iterable[Node],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    constants: Iterable[bytes],
    opsets: Iterable[tuple[str, int]],
    name: str,
    ir_version: int,
) -> bytes:
    """A ModelProto."""
    graph = [field(GRAPH_NODES, node.written()) for node in nodes]
    graph.append(field(2, name))
    graph += [field(GRAPH_CONSTANTS, constant) for constant in constants]
    graph += [field(GRAPH_INPUTS, value) for value in inputs]
    graph += [field(GRAPH_OUTPUTS, value) for value in outputs]
    imports = [field(MODEL_OPSETS, field(1, domain) + field(2, version)) for domain, version in opsets]
    return b"".join([field(1, ir_version), *imports, field(MODEL_GRAPH, b"".join(graph))])
