"""What the key of an optimised node says about it."""

import math
import re
from collections.abc import Mapping, Sequence

INTEGER_OPS = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearConvTranspose", "DynamicQuantizeLSTM",
)  # fmt: skip
FLOAT_OPS = (
    "Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose",
)  # fmt: skip
_OTHER_OPS: Mapping[str, tuple[str, ...]] = {
    "quantize_ms": ("QuantizeLinear", "DequantizeLinear"),
    "layout_ms": ("Transpose", "ReorderInput", "ReorderOutput"),
    "add_ms": ("Add", "QLinearAdd"),
}

KINDS = (
    *(f"{where}_{window}_ms" for where in ("integer", "float", "blocked")
      for window in ("full", "pointwise", "depthwise", "product")),
    *_OTHER_OPS, "other_ms",
)  # fmt: skip
"""Features of a network: the time of its layers by where they compute (integers, floats, floats in a blocked
layout) and by their window, and the time of what lies between them."""

_BYTES = {"f32": 4, "f16": 2, "f64": 8, "int32": 4, "int64": 8}
_SHAPE = re.compile(r"\[([\dx]*)\]")
_COUNTS = re.compile(r" (channels|group)=\d+|(?<==)-?\d+(\|-?\d+)*(?=[,)])")

_NUMBER = re.compile(r"-?\d+")
_GROUP = re.compile(r" group=(\d+)")


def without_sizes(key: str) -> str:
    """A key's operation, attributes and element types: what is left when shapes, counts of channels and
    integer constants (which hold shapes, too) are taken out."""
    return _COUNTS.sub("", _SHAPE.sub(lambda match: f"[{match[1].count('x')}]", key))


def sizes_of(key: str) -> tuple[int, ...]:
    """The sizes of all shapes in a key, in order."""
    return tuple(int(n) for shape in _SHAPE.findall(key) for n in shape.split("x") if n)


def numbers_of(key: str) -> tuple[int, ...]:
    """All that ``without_sizes`` takes out of a key, as numbers in order."""
    return tuple(int(number) for match in _places(key) for number in _NUMBER.findall(match[0]))


def _places(key: str) -> list[re.Match[str]]:
    return sorted([*_SHAPE.finditer(key), *_COUNTS.finditer(key)], key=lambda match: match.start())


def with_numbers(key: str, numbers: Sequence[int]) -> str:
    """The key with other numbers in the places of ``numbers_of``; as many of them."""
    left = iter(numbers)
    text, end = "", 0
    for match in _places(key):
        text += key[end : match.start()] + _NUMBER.sub(lambda _: str(next(left)), match[0])
        end = match.end()
    return text + key[end:]


def kind_of(key: str) -> str:
    """The feature of a network that the time of a node counts towards, one of KINDS."""
    domain, _, op = key.partition("(")[0].rpartition(".")
    if op not in INTEGER_OPS and op not in FLOAT_OPS:
        return next((kind for kind, ops in _OTHER_OPS.items() if op in ops), "other_ms")
    where = "integer" if op in INTEGER_OPS else "blocked" if domain.endswith("nchwc") else "float"
    return f"{where}_{_window(key)}_ms"


def _window(key: str) -> str:
    if "kernel_shape=" not in key:
        return "product"
    group = _GROUP.search(key)
    if group is not None and int(group[1]) > 1:
        return "depthwise"
    return "pointwise" if "kernel_shape=1|1" in key else "full"


def computes_layer(key: str) -> bool:
    """Whether a node has the weights of a layer, or is a product."""
    return kind_of(key) in KINDS[: -len(_OTHER_OPS) - 1]


def constant_bytes_of(key: str) -> int:
    """Bytes of the constants that a key names."""
    return sum(_operand_bytes(operand[1:]) for operand in _operands(key) if operand.startswith("="))


def read_bytes_of(key: str) -> int:
    """Bytes of all that a key says is read."""
    return sum(_operand_bytes(operand.removeprefix("=")) for operand in _operands(key))


def _operands(key: str) -> list[str]:
    return key.partition("(")[2].rpartition(")")[0].split(", ")


def _operand_bytes(operand: str) -> int:
    kind, shaped, shape = operand.partition("[")
    if not shaped:
        return 0
    return math.prod(int(size or 1) for size in shape.partition("]")[0].split("x")) * _BYTES.get(kind, 1)
