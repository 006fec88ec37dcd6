"""An optimised node, read from its key: the tensor that it makes, its element width and memory layout."""

import math
import re
from dataclasses import dataclass
from functools import cache

ALIGNMENT = 256
"""onnxruntime's arena hands out multiples of so many bytes."""

ALIASES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
"""Operations that hand on the tensor that they read, in another shape."""

_WINDOWED = (
    "Conv", "FusedConv", "QLinearConv", "MaxPool", "AveragePool", "NhwcMaxPool", "QLinearAveragePool",
)  # fmt: skip
_OPERAND = re.compile(r"(=?)(\w+)\[([\dx]*)\](?::(-?\d+))?")
_INTEGERS = re.compile(r"=(-?\d+(?:\|-?\d+)*)(?=,|$)")
_ATTRIBUTE = re.compile(r" (\w+)=([-\d|]+)(?= |$)")
_BYTE_TYPES = ("u8", "s8")
_BLOCK = 16  # channels in a block of onnxruntime's blocked layout

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """An optimised node. Shapes are of batch 1."""

    op: str
    blocked: bool  # an operation of the blocked layout
    types: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of the tensors that it reads
    constants: tuple[Shape, ...]  # shapes
    numbers: dict[str, tuple[int, ...]]  # attributes
    integers: tuple[tuple[int, ...], ...]  # values of the small integer constants

    def of(self, name: str, default: int, count: int = 2) -> tuple[int, ...]:
        """An attribute of integers."""
        return self.numbers.get(name, (default,) * count)

    def reads_wide(self) -> list[bool]:
        """Of each tensor that it reads: are its elements 4 bytes wide, not 1?"""
        return [kind not in _BYTE_TYPES for kind in self.types]

    def makes_wide(self) -> bool:
        """Are the elements that it makes 4 bytes wide, not 1?"""
        return _made_type(self) not in _BYTE_TYPES

    def outputs(self) -> int:
        """All outputs but those of a split are one."""
        return len(self.integers[0]) if self.op == "Split" and self.integers else 1

    def reads_blocked(self, shape: Shape) -> bool | None:
        """Is what it reads in the blocked layout? None: that is as it comes."""
        if self.blocked:
            return self.op != "ReorderInput" and len(shape) > 1 and shape[1] % _BLOCK == 0
        return None

    def makes_blocked(self) -> bool | None:
        """Is what it makes in the blocked layout? None: as what it read."""
        return self.op != "ReorderOutput" if self.blocked else None

    @property
    def shape(self) -> Shape:
        """Of an output."""
        return _shape_made(self) if self.shapes else ()


@cache
def read_node(key: str) -> Node:
    """The node that a key (``fused_graph``) names."""
    name, _, rest = key.partition("(")
    operands, _, attributes = rest.rpartition(")")
    found = [match.groups() for match in _OPERAND.finditer(operands)]
    tensors = [(kind, _shape(shape)) for constant, kind, shape, _ in found if not constant]
    return Node(
        name.rpartition(".")[2],
        ".nchwc." in name,
        tuple(kind for kind, _ in tensors),
        tuple(shape for _, shape in tensors),
        tuple(_shape(shape) for constant, _, shape, _ in found if constant),
        {name: tuple(map(int, value.split("|"))) for name, value in _ATTRIBUTE.findall(attributes)},
        tuple(tuple(map(int, values.split("|"))) for values in _INTEGERS.findall(operands)),
    )


def made_bytes(node: Node) -> int:
    """Bytes of each output of a node, rounded up as the arena does; 0 where it hands on what it read."""
    if not node.shapes or node.op in ALIASES:
        return 0
    return rounded(math.prod(node.shape) * (4 if node.makes_wide() else 1))


def rounded(size: int) -> int:
    """Bytes as the arena hands them out."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shape_made(node: Node) -> tuple[int, ...]:
    """The shape of an output; those of operations that are not listed have the shape of the largest input."""
    read = node.shapes[0]
    last = bool(node.of("channels_last", 0, 1)[0]) or node.op == "NhwcMaxPool"
    if node.op in _WINDOWED:
        channels = _weights(node)[0] if "Conv" in node.op else read[-1] if last else read[1]
        sizes = _windows(node, read[1:-1] if last else read[2:])
        return (read[0], *sizes, channels) if last else (read[0], channels, *sizes)
    if "GlobalAveragePool" in node.op:
        return (read[0], 1, 1, read[-1]) if last else (*read[:2], 1, 1)
    if node.op == "ConvTranspose":
        edges = zip(read[2:], node.of("strides", 1), node.of("kernel_shape", 1), strict=True)
        spatial = tuple((size - 1) * stride + edge for size, stride, edge in edges)
        return (read[0], _weights(node)[1], *spatial)
    if node.op in ("Gemm", "FusedGemm", "QGemm"):
        weights = _weights(node)
        return (read[-2], weights[0 if node.of("transB", 0, 1)[0] else 1])
    if node.op in ("MatMul", "FusedMatMul", "QLinearMatMul"):
        others = [*node.shapes[1:], *(shape for shape in node.constants if len(shape) > 1)]
        return (*read[:-1], others[0][-1]) if others else read
    if node.op in ("Concat", "QLinearConcat"):
        axis = node.of("axis", 1, 1)[0]
        return _with(read, axis, sum(shape[axis] for shape in node.shapes))
    if node.op == "Split":
        return _with(read, node.of("axis", 0, 1)[0], max(node.integers[0], default=1) if node.integers else 1)
    if node.op == "Transpose":
        return tuple(read[axis] for axis in node.numbers.get("perm", range(len(read))[::-1]))
    if node.op == "ReorderInput":
        return _with(read, 1, -(-read[1] // _BLOCK) * _BLOCK)
    if node.op == "ReorderOutput":
        return _with(read, 1, node.of("channels", read[1], 1)[0])
    if node.op == "ReduceMean":
        return (read[0], read[-1])
    if node.op in ("Slice", "Pad", "Reshape", "Squeeze", "Unsqueeze"):
        return _reshaped(node, read)
    return max(node.shapes, key=math.prod)


def _reshaped(node: Node, read: Shape) -> Shape:
    """Of operations that say their output's shape in small constants; as read where these are not there."""
    values = node.integers
    if node.op == "Slice" and len(values) > 1:
        begins, ends = values[:2]
        axes, steps = (
            values[2] if len(values) > 2 else range(len(begins)),
            values[3] if len(values) > 3 else (),
        )
        for place, axis in enumerate(axes):
            step = steps[place] if steps else 1
            read = _with(read, axis, len(range(*slice(begins[place], ends[place], step).indices(read[axis]))))
        return read
    if node.op == "Pad" and values and len(values[0]) == 2 * len(read):
        return tuple(size + values[0][i] + values[0][i + len(read)] for i, size in enumerate(read))
    if node.op == "Reshape" and values:
        wanted = tuple(size or read[place] for place, size in enumerate(values[0]))
        known = math.prod(size for size in wanted if size > 0)
        return tuple(math.prod(read) // known if size < 0 else size for size in wanted)
    if node.op == "Squeeze" and values:
        return tuple(size for place, size in enumerate(read) if place not in values[0])
    if node.op == "Unsqueeze" and values:
        sizes = iter(read)
        count = len(read) + len(values[0])
        return tuple(1 if place in values[0] else next(sizes) for place in range(count))
    return read


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return tuple(size if place == axis % len(shape) else old for place, old in enumerate(shape))


def _weights(node: Node) -> tuple[int, ...]:
    """Their shape; integer operations have a scale and a zero point before them."""
    if node.op.startswith("Q"):
        return node.constants[2]
    return next((shape for shape in node.constants if len(shape) > 1), node.shapes[-1])


def _windows(node: Node, sizes: tuple[int, ...]) -> list[int]:
    pads, window = node.of("pads", 0, 4), node.of("kernel_shape", 1)
    strides, dilations = node.of("strides", 1), node.of("dilations", 1)
    return [
        (size + pads[i] + pads[i + len(sizes)] - dilations[i] * (window[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]


def _made_type(node: Node) -> str:
    if node.op == "DequantizeLinear" or (node.op == "QGemm" and len(node.constants) < 7):
        return "f32"
    return "u8" if node.op == "QuantizeLinear" else node.types[0]


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x") if size)
