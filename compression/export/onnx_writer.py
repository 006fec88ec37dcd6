"""An ONNX file under construction: nodes, constants that are stored once, weights packed into few bits."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leanfront.compression.policy.grids import ActivationGrid
from leanfront.compression.policy.layer_size import LARGE, storage_bits

OPSET = 21  # the first with 4-bit integers; onnxruntime 1.20 and later read it
IR_VERSION = 10
CONTRIBUTED = "com.microsoft"
"""The domain of operations that onnxruntime alone has."""
_DIGITS = string.digits + string.ascii_letters


@dataclass
class Writer:
    """The file under construction. Value names are short numbers: names are a fifth of a small file. They
    have the same length, in all but large files: which name is read how often is nothing to a file's size."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    opset: int = OPSET
    count: int = 0
    shared: dict[tuple[Any, ...], str] = field(default_factory=dict)
    grids: dict[int, tuple[ActivationGrid, str, str]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)  # dequantized tensor -> its integer codes
    written: dict[tuple[str, str], str] = field(default_factory=dict)

    def name(self) -> str:
        """A name that nothing has yet."""
        digits, rest = "", self.count
        while rest or len(digits) < 2:
            rest, digit = divmod(rest, len(_DIGITS))
            digits = _DIGITS[digit] + digits
        self.count += 1
        return f".{digits}"  # no layer is named so

    def constant(self, value: NDArray[Any] | np.generic, among: Any = None) -> str:
        """A constant; equal ones are stored once, unless they are large. ``among``: only with those of the
        same, where the others are equal by chance."""
        array = np.asarray(value)
        content = array.tobytes()
        key = (array.dtype.char, array.shape, content if len(content) <= LARGE else b"", among)
        if key in self.shared and len(content) <= LARGE:
            return self.shared[key]
        name = self.shared[key] = self.name()
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.initializers.append(TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=content))
        return name

    def own(self, value: NDArray[Any]) -> str:
        """What is trained: stored for itself, also where it is equal to another (biases of zeros, before any
        training), for the size of a file must not depend on values."""
        name, kind = self.name(), helper.np_dtype_to_tensor_dtype(value.dtype)
        content = value.tobytes()
        self.initializers.append(TensorProto(name=name, data_type=kind, dims=value.shape, raw_data=content))
        return name

    def once(self, key: tuple[str, str], write: Callable[[], str]) -> str:
        """The tensor of what is written once, whoever asks for it; ``key``: what it is, and whose."""
        if key not in self.written:
            self.written[key] = write()
        return self.written[key]

    def grid(self, grid: ActivationGrid, signed: bool = False) -> tuple[str, str]:
        """Scale and zero point of a grid, stored once for all tensors that are on this one, and not on one
        that happens to be equal. A zero point of 0 is that of every tensor without negative values.
        ``signed``: of every tensor, a signed one."""
        if id(grid) not in self.grids:
            scale = np.asarray(np.float32(grid.scale))
            if signed:
                place = self.constant(np.int8(0))
            else:
                zero = np.asarray(np.uint8(grid.zero_point))
                place = self.own(zero) if grid.zero_point else self.constant(zero)
            self.grids[id(grid)] = grid, self.own(scale), place
        _, stored, place = self.grids[id(grid)]
        return stored, place

    def packed(self, codes: NDArray[np.int8], bits: int) -> str:
        """Weight codes in the smallest integers that hold them; the name of the stored tensor."""
        stored = storage_bits(bits)
        name = self.name()
        if stored == 8:
            self.initializers.append(numpy_helper.from_array(codes, name))
            return name
        if stored == 2:
            self.opset = 25  # the first with 2-bit integers
        lanes = 8 // stored
        flat = np.zeros(-(-codes.size // lanes) * lanes, dtype=np.uint8)
        flat[: codes.size] = codes.reshape(-1).astype(np.uint8) & (2**stored - 1)
        packed = np.zeros(flat.size // lanes, dtype=np.uint8)
        for lane in range(lanes):
            packed |= flat[lane::lanes] << np.uint8(lane * stored)
        kind = TensorProto.INT4 if stored == 4 else TensorProto.INT2
        self.initializers.append(
            TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=packed.tobytes())
        )
        return name

    def signs(self, codes: NDArray[np.int8], size: int) -> str:
        """Codes that are -1 or 1, stored in one bit each, as floats of this size: the bits of each byte are
        masked out, which engines do once, when they load the file."""
        packed = np.packbits(codes.reshape(-1) > 0, bitorder="little").reshape(-1, 1)
        masks = self.constant(np.uint8(1) << np.arange(8, dtype=np.uint8), among="bits of a byte")
        set_ = self.add("Cast", [self.add("BitwiseAnd", [self.own(packed), masks])], to=TensorProto.BOOL)
        values = [self.constant(np.float32(sign * size), among="sign") for sign in (1, -1)]
        made = self.add("Where", [set_, *values])
        if codes.size % 8:
            ends = [self.own(np.array([number], dtype=np.int64)) for number in (-1, 0, codes.size)]
            made = self.add("Slice", [self.add("Reshape", [made, ends[0]]), *ends[1:]])
        return self.add("Reshape", [made, self.own(np.array(codes.shape, dtype=np.int64))])

    def dequantized(self, codes: str, scale: str, zero: str) -> str:
        """DequantizeLinear behind the codes of a tensor, which are remembered."""
        name = self.add("DequantizeLinear", [codes, scale, zero])
        self.codes[name] = codes
        return name

    def add(self, op: str, inputs: list[str], name: str = "", output: str = "", **attributes: Any) -> str:
        """A node; the name of what it puts out."""
        output = output or self.name()
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def several(self, op: str, inputs: list[str], count: int) -> list[str]:
        """A node that puts out so many tensors; their names."""
        outputs = [self.name() for _ in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs))
        return outputs


def nodes_read(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that something reads: a tensor that is only moved as codes needs no float form."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input, read_inside(node))
    return kept[::-1]


def read_inside(node: onnx.NodeProto) -> list[str]:
    """Values from outside that the graphs within a node read (the body of a loop)."""
    found: dict[str, None] = {}
    for graph in _graphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            found |= dict.fromkeys(n for n in (*inner.input, *read_inside(inner)) if n and n not in own)
            own.update(inner.output)
        found |= dict.fromkeys(value.name for value in graph.output if value.name not in own)
    return list(found)


def rename_inside(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Give values from outside other names in the graphs within a node, in place."""
    for graph in _graphs(node):
        for inner in graph.node:
            inner.input[:] = [names.get(name, name) for name in inner.input]
            rename_inside(inner, names)


def _graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
