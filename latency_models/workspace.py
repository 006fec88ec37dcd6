"""What the optimised nodes of a kernel take in memory, from their keys: tensors and working buffers.

The rules are onnxruntime's own (1.31): what its kernels allocate while they run was read off a counting
allocator, node by node, and agrees with its sources.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

ALIGNMENT = 256
"""onnxruntime's arena hands out multiples of so many bytes."""

_ALIASES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_IN_PLACE = (
    "Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Clip", "Softmax", "QLinearSigmoid", "Sqrt",
)  # fmt: skip
_WINDOWED = (
    "Conv", "FusedConv", "QLinearConv", "MaxPool", "AveragePool", "NhwcMaxPool", "QLinearAveragePool",
)  # fmt: skip
_OPERAND = re.compile(r"(=?)(\w+)\[([\dx]*)\](?::(-?\d+))?")
_INTEGERS = re.compile(r"=(-?\d+(?:\|-?\d+)*)(?=,|$)")
_ATTRIBUTE = re.compile(r" (\w+)=([-\d|]+)(?= |$)")
_BYTE_TYPES = ("u8", "s8")
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
    integers: tuple[int, ...]  # values of the first small integer constant

    def of(self, name: str, default: int, count: int = 2) -> tuple[int, ...]:
        return self.numbers.get(name, (default,) * count)


Kept = tuple[bool, tuple[int, ...]]
"""What a freed buffer may be given to: tensors of elements as wide (True: 4 bytes) and of this very shape."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one kernel, in bytes.

    handed_bytes, handed: the tensor that it hands on (0, None: that which it read). reading_bytes: the most
    that is alive while one of its nodes runs, of what the nodes make and what they read from other kernels.
    making_bytes: the same of what they make. local: bytes of the tensors that stay within it, by their kind.
    workspace_bytes: the most that one node takes for itself. in_place: a node may write over what it reads.
    """

    handed_bytes: int = 0
    handed: Kept | None = None
    reading_bytes: int = 0
    making_bytes: int = 0
    local: tuple[tuple[Kept, int], ...] = ()
    workspace_bytes: int = 0
    in_place: bool = False


@dataclass
class _Tensor:
    kept: Kept
    size: int
    first: int  # node that makes it
    last: int  # node that reads it last
    handed: bool = False

    def alive(self, node: int) -> bool:
        return self.first <= node and (self.handed or node <= self.last)


def footprint(part: Sequence[str], elements: int) -> Footprint:
    """Of the optimised nodes of a kernel whose output has so many elements. Keys hold no names: which node
    reads what is told by types and sizes, the newest tensor first."""
    tensors: list[_Tensor] = []
    read = [0] * len(part)
    for index, key in enumerate(part):
        source = None
        alias = _read(key).op in _ALIASES
        for wide, shape in _operands(key):
            found = _maker(tensors, wide, math.prod(shape), oldest=alias)
            if found is not None:
                found.last = index
                source = source or found
            elif not alias:
                read[index] += _rounded(math.prod(shape) * (4 if wide else 1))
        size = made_bytes(key)
        if _writes_over_input(key):
            if source is not None and source.size == size:
                source.kept = _kept(key)
                continue
            read[index] -= size if read[index] >= size else 0
        tensors += [_Tensor(_kept(key), size, index, index) for _ in range(_outputs(key) if size else 0)]
    workspace = max(map(workspace_bytes, part), default=0)
    if not tensors:
        return Footprint(reading_bytes=max(read, default=0), workspace_bytes=workspace)
    handed = next((t for t in reversed(tensors) if math.prod(t.kept[1]) == elements), tensors[-1])
    handed.handed = True
    making = [sum(t.size for t in tensors if t.alive(index)) for index in range(len(part))]
    local: dict[Kept, int] = {}
    for index in range(len(part)):
        now: dict[Kept, int] = {}
        for tensor in tensors:
            if tensor.alive(index) and tensor is not handed:
                now[tensor.kept] = now.get(tensor.kept, 0) + tensor.size
        local |= {kept: max(size, local.get(kept, 0)) for kept, size in now.items()}
    return Footprint(
        handed.size,
        handed.kept,
        max(made + other for made, other in zip(making, read, strict=True)),
        max(making),
        tuple(local.items()),
        workspace,
        any(map(_writes_over_input, part)),
    )


def _maker(tensors: list[_Tensor], wide: bool, elements: int, oldest: bool) -> _Tensor | None:
    order = tensors if oldest else reversed(tensors)
    return next((t for t in order if t.kept[0] == wide and math.prod(t.kept[1]) == elements), None)


def _operands(key: str) -> list[tuple[bool, tuple[int, ...]]]:
    node = _read(key)
    return [(kind not in _BYTE_TYPES, shape) for kind, shape in zip(node.types, node.shapes, strict=True)]


@cache
def _kept(key: str) -> Kept:
    node = _read(key)
    return (_made_type(node) not in _BYTE_TYPES, _shape_made(node) if node.shapes else ())


def _outputs(key: str) -> int:
    """All outputs but those of a split are one."""
    node = _read(key)
    return len(node.integers) or 1 if node.op == "Split" else 1


@cache
def made_bytes(key: str) -> int:
    """Bytes of each output of a node, rounded up as the arena does; 0 where it hands on what it read."""
    node = _read(key)
    return _rounded(_made(node) * (1 if _made_type(node) in _BYTE_TYPES else 4))


@cache
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
    wide = groups == 1 and weights[0] >= _BLOCK and weights[1] % 4 == 0
    if wide or (depthwise and groups % _BLOCK == 0):
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
        return _with(read, node.of("axis", 0, 1)[0], max(node.integers, default=1))
    if node.op == "Transpose":
        return tuple(read[axis] for axis in node.numbers.get("perm", range(len(read))[::-1]))
    if node.op == "ReorderInput":
        return _with(read, 1, -(-read[1] // _BLOCK) * _BLOCK)
    if node.op == "ReorderOutput":
        return _with(read, 1, node.of("channels", read[1], 1)[0])
    if node.op == "ReduceMean":
        return (read[0], read[-1])
    return max(node.shapes, key=math.prod)


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return tuple(size if place == axis % len(shape) else old for place, old in enumerate(shape))


def _weights(node: _Node) -> tuple[int, ...]:
    """Their shape; integer operations have a scale and a zero point before them."""
    if node.op.startswith("Q"):
        return node.constants[2]
    return next((shape for shape in node.constants if len(shape) > 1), node.shapes[-1])


def _windows(node: _Node, sizes: tuple[int, ...]) -> list[int]:
    pads, window = node.of("pads", 0, 4), node.of("kernel_shape", 1)
    strides, dilations = node.of("strides", 1), node.of("dilations", 1)
    return [
        (size + pads[i] + pads[i + len(sizes)] - dilations[i] * (window[i] - 1) - 1) // strides[i] + 1
        for i, size in enumerate(sizes)
    ]


def _made_type(node: _Node) -> str:
    if node.op == "DequantizeLinear" or (node.op == "QGemm" and len(node.constants) < 7):
        return "f32"
    return "u8" if node.op == "QuantizeLinear" else node.types[0]


def _writes_over_input(key: str) -> bool:
    node = _read(key)
    return node.op in _IN_PLACE or (node.op in ("Conv", "FusedConv") and len(node.shapes) > 1)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x") if size)


@cache
def _read(key: str) -> _Node:
    name, _, rest = key.partition("(")
    operands, _, attributes = rest.rpartition(")")
    integers = _INTEGERS.search(operands)
    found = [match.groups() for match in _OPERAND.finditer(operands)]
    tensors = [(kind, _shape(shape)) for constant, kind, shape, _ in found if not constant]
    return _Node(
        name.rpartition(".")[2],
        tuple(kind for kind, _ in tensors),
        tuple(shape for _, shape in tensors),
        tuple(_shape(shape) for constant, _, shape, _ in found if constant),
        {name: tuple(map(int, value.split("|"))) for name, value in _ATTRIBUTE.findall(attributes)},
        tuple(map(int, integers[1].split("|"))) if integers else (),
    )
