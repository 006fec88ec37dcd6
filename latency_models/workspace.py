"""What the optimised nodes of a kernel take in memory, from their keys: tensors and working buffers.

The rules are onnxruntime's own (1.31): what its kernels allocate while they run was read off a counting
allocator, node by node, and agrees with its sources.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

ALIGNMENT = 256
"""onnxruntime's arena hands out multiples of so many bytes."""

_ALIASES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_IN_PLACE = ("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Clip", "Softmax", "QLinearSigmoid", "Sqrt")
_WINDOWED = (
    "Conv", "FusedConv", "QLinearConv", "MaxPool", "AveragePool", "NhwcMaxPool", "QLinearAveragePool",
)  # fmt: skip
_OPERAND = re.compile(r"(=?)(\w+)\[([\dx]*)\](?::(-?\d+))?")
_ATTRIBUTE = re.compile(r" (\w+)=([-\d|]+)(?= |$)")
_BLOCK = 16  # output channels of onnxruntime's integer convolutions, and channels of its depthwise ones
_POOLED_AT_ONCE = 512  # output positions that NhwcMaxPool lists the inputs of


@dataclass(frozen=True)
class _Node:
    """An optimised node, read from its key. Shapes are of batch 1."""

    op: str
    types: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # of the tensors that it reads
    constants: tuple[tuple[int, ...], ...]  # shapes
    numbers: dict[str, tuple[int, ...]]  # attributes

    def of(self, name: str, default: int, count: int = 2) -> tuple[int, ...]:
        return self.numbers.get(name, (default,) * count)


@dataclass(frozen=True)
class Footprint:
    """Memory of one kernel, in bytes.

    handed_bytes: the tensor that it hands on (0: that which it read). local_bytes: what else its nodes make.
    workspace_bytes: the most that one of its nodes takes while it runs. in_place: it may write over an input.
    """

    handed_bytes: int
    local_bytes: int
    workspace_bytes: int
    in_place: bool


def footprint(part: Sequence[str], elements: int) -> Footprint:
    """Of the optimised nodes of a kernel whose output has so many elements."""
    made = [(made_bytes(key), made_elements(key), key) for key in part]
    made = [one for one in made if one[0]]
    workspace = max(map(workspace_bytes, part), default=0)
    if not made:
        return Footprint(0, 0, workspace, False)
    handed = next((one for one in reversed(made) if one[1] == elements), made[-1])
    in_place = _writes_over_input(handed[2])
    return Footprint(handed[0], sum(size for size, _, _ in made) - handed[0], workspace, in_place)


@lru_cache(maxsize=None)
def made_bytes(key: str) -> int:
    """Bytes of what a node makes, rounded up as the arena does; 0 where it hands on what it read."""
    node = _read(key)
    size = _made(node) * (1 if _made_type(node) in ("u8", "s8") else 4)
    return _rounded(size)


def made_elements(key: str) -> int:
    """Elements of what a node makes, all its outputs together."""
    return _made(_read(key))


@lru_cache(maxsize=None)
def workspace_bytes(key: str) -> int:
    """Bytes of the buffers that a node takes while it runs.

    Integer convolutions: pointers to the inputs of each output (8 bytes each) in the kernels for 16 and more
    output channels and for depthwise ones; else the sums in int32, and the inputs of each output as bytes.
    Transposed convolutions: a float for each weight that each input position meets.
    """
    node = _read(key)
    if node.op == "QLinearConv":
        return _integer_convolution(node)
    if node.op == "NhwcMaxPool":
        positions = _made(node) // node.shapes[0][-1]
        return _rounded(8 * math.prod(node.of("kernel_shape", 1)) * min(positions, _POOLED_AT_ONCE))
    if node.op == "ConvTranspose" and node.constants:
        positions = math.prod(node.shapes[0][2:])
        return _rounded(4 * math.prod(node.constants[0][1:]) * positions)
    return 0


def _integer_convolution(node: _Node) -> int:
    weights = node.constants[2] if len(node.constants) > 2 else ()
    if len(weights) < 3:
        return 0
    groups, window = node.of("group", 1, 1)[0], math.prod(weights[2:])
    positions = _made(node) // weights[0]
    pointers = 8 * window * positions if window > 1 else 0
    depthwise = groups > 1 and weights[1] == 1 and weights[0] == groups
    blocked = groups % _BLOCK == 0 if depthwise else groups == 1 and weights[0] >= _BLOCK and weights[1] % 4 == 0
    if blocked:
        return _rounded(pointers)
    if depthwise:
        return _rounded(4 * weights[0] * positions) + _rounded(pointers)
    plain = window == 1 and all(stride == 1 for stride in node.of("strides", 1))
    inputs = 0 if plain else window * weights[1] * positions
    return _rounded(4 * weights[0] * positions) + _rounded(inputs)


def _made(node: _Node) -> int:
    """Elements of an output."""
    return math.prod(_shape_made(node)) if node.shapes and node.op not in _ALIASES else 0


def _shape_made(node: _Node) -> tuple[int, ...]:
    """The shape of an output; those of operations that are not listed have the shape of the largest input."""
    read = node.shapes[0]
    last = bool(node.of("channels_last", 0, 1)[0]) or node.op == "NhwcMaxPool"
    if node.op in _WINDOWED:
        weights = node.constants[2:3] if node.op == "QLinearConv" else node.constants[:1]
        channels = weights[0][0] if "Conv" in node.op else read[-1] if last else read[1]
        sizes = _windows(node, read[1:-1] if last else read[2:])
        return (read[0], *sizes, channels) if last else (read[0], channels, *sizes)
    if "GlobalAveragePool" in node.op:
        return (read[0], 1, 1, read[-1]) if last else (*read[:2], 1, 1)
    if node.op == "ConvTranspose":
        sizes = zip(read[2:], node.of("strides", 1), node.of("kernel_shape", 1), strict=True)
        spatial = tuple((size - 1) * stride + edge for size, stride, edge in sizes)
        return (read[0], node.constants[0][1], *spatial)
    if node.op in ("Gemm", "FusedGemm", "QGemm"):
        weights = node.constants[2] if node.op == "QGemm" else (*node.shapes[1:], *node.constants)[0]
        return (read[-2], weights[0 if node.of("transB", 0, 1)[0] else 1])
    if node.op in ("MatMul", "FusedMatMul", "QLinearMatMul"):
        others = [*node.shapes[1:], *(shape for shape in node.constants if len(shape) > 1)]
        return (*read[:-1], others[0][-1]) if others else read
    if node.op in ("Concat", "QLinearConcat"):
        axis = node.of("axis", 1, 1)[0]
        return _with(read, axis, sum(shape[axis] for shape in node.shapes))
    if node.op == "Split":
        return _with(read, node.of("axis", 0, 1)[0], 1)
    if node.op == "Transpose":
        return tuple(read[axis] for axis in node.numbers["perm"])
    if node.op == "ReorderInput":
        return _with(read, 1, -(-read[1] // _BLOCK) * _BLOCK)
    if node.op == "ReorderOutput":
        return _with(read, 1, node.of("channels", read[1], 1)[0])
    if node.op == "ReduceMean":
        return (read[0], read[-1])
    return max(node.shapes, key=math.prod)


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if place == axis % len(shape) else old for place, old in enumerate(shape))


def _windows(node: _Node, sizes: tuple[int, ...]) -> list[int]:
    pads, window = node.of("pads", 0, 4), node.of("kernel_shape", 1)
    strides, dilations = node.of("strides", 1), node.of("dilations", 1)
    return [
        (size + pads[i] + pads[i + len(sizes)] - dilations[i] * (window[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]


def _made_type(node: _Node) -> str:
    if node.op == "DequantizeLinear" or node.op == "QGemm" and len(node.constants) < 7:
        return "f32"
    return "u8" if node.op == "QuantizeLinear" else node.types[0]


def _writes_over_input(key: str) -> bool:
    node = _read(key)
    return node.op in _IN_PLACE or (node.op in ("Conv", "FusedConv") and len(node.shapes) > 1)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x") if size)


@lru_cache(maxsize=None)
def _read(key: str) -> _Node:
    name, _, rest = key.partition("(")
    operands, _, attributes = rest.rpartition(")")
    found = [match.groups() for match in _OPERAND.finditer(operands)]
    tensors = [(kind, _shape(shape)) for constant, kind, shape, _ in found if not constant]
    return _Node(
        name.rpartition(".")[2],
        tuple(kind for kind, _ in tensors),
        tuple(shape for _, shape in tensors),
        tuple(_shape(shape) for constant, _, shape, _ in found if constant),
        {name: tuple(map(int, value.split("|"))) for name, value in _ATTRIBUTE.findall(attributes)},
    )
