"""What the key of an optimised node says about it."""

from collections.abc import Mapping

INTEGER_OPS = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QLinearConvTranspose",
)  # fmt: skip
FLOAT_OPS = (
    "Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose",
)  # fmt: skip

KINDS: Mapping[str, tuple[str, ...]] = {
    "integer_ms": INTEGER_OPS,
    "float_ms": FLOAT_OPS,
    "quantize_ms": ("QuantizeLinear", "DequantizeLinear"),
    "layout_ms": ("Transpose", "ReorderInput", "ReorderOutput"),
    "add_ms": ("Add", "QLinearAdd"),
}
"""Feature of a network -> the operations whose times it sums; everything else is "other_ms"."""

_BYTES = {"f32": 4, "f16": 2, "f64": 8, "int32": 4, "int64": 8}


def kind_of(key: str) -> str:
    """The feature of a network that the time of a node counts towards."""
    op = key.partition("(")[0].rpartition(".")[2]
    return next((kind for kind, ops in KINDS.items() if op in ops), "other_ms")


def constant_bytes_of(key: str) -> int:
    """Bytes of the constants that a key names."""
    total = 0
    for operand in key.partition("(")[2].rpartition(")")[0].split(", "):
        if operand.startswith("=") and "[" in operand:
            kind, _, shape = operand[1:].partition("[")
            count = 1
            for size in shape.partition("]")[0].split("x"):
                count *= int(size or 1)
            total += count * _BYTES.get(kind, 1)
    return total
