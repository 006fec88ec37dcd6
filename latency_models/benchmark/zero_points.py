"""Convolutions whose weights may be stored around another zero point, where that runs faster.

onnxruntime has one kernel for int8 weights around zero and another for all others. On a processor with
matrix units (AMX) the other took 0.36 to 0.83 of the time in 3x3 layers of 64 channels and more, and up to
1.8 times the time in small ones. So both are timed where it may pay, and the faster one is what a layer costs
and how it is stored.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from leanfront.compression.policy.precision import SHIFTED_ZERO_POINT
from leanfront.latency_models.kernel_table.onnx_protobuf import INT8
from leanfront.latency_models.kernel_table.table import LatencyTable

if TYPE_CHECKING:
    from leanfront.latency_models.benchmark.optimised_graph import FusedNode

_OPERATIONS = ("com.microsoft.QLinearConv", "QLinearConv")
_WEIGHT, _ZERO = 3, 5  # operands
_LEAST_PRODUCTS, _LEAST_OUT = 256, 48
"""Products added up for one output, and outputs, from which on it may pay: below, it never did."""


def shifted_key(key: str) -> str | None:
    """The key of a convolution with its weights around SHIFTED_ZERO_POINT; None where that is not offered."""
    operation, _, rest = key.partition("(")
    if operation not in _OPERATIONS:
        return None
    inside, _, attributes = rest.partition(")")
    operands = inside.split(", ")
    weight, zero = operands[_WEIGHT], operands[_ZERO]
    grouped = any(one.startswith("group=") and one != "group=1" for one in attributes.split())
    if not weight.startswith("=s8[") or zero != "=s8[]" or grouped:
        return None
    out, *products = (int(size) for size in weight[4:-1].split("x"))
    if out < _LEAST_OUT or math.prod(products) < _LEAST_PRODUCTS:
        return None
    operands[_ZERO] = f"=s8[{out}]:{SHIFTED_ZERO_POINT}"
    return f"{operation}({', '.join(operands)}){attributes}"


def with_shifted(nodes: Mapping[str, "FusedNode"]) -> dict[str, "FusedNode"]:
    """Nodes by key, and those that they could be with other zero points."""
    from leanfront.latency_models.benchmark.optimised_graph import Operand

    found = dict(nodes)
    for key, node in nodes.items():
        other = shifted_key(key)
        if other is not None and other not in found:
            operands = list(node.operands)
            out = node.operands[_WEIGHT].shape[:1]
            operands[_ZERO] = Operand(INT8, out, constant=True, fill=SHIFTED_ZERO_POINT)
            found[other] = replace(node, key=other, operands=tuple(operands))
    return found


def with_shifted_keys(keys: Iterable[str]) -> set[str]:
    """The same of keys alone."""
    found = set(keys)
    return found | {other for key in found if (other := shifted_key(key)) is not None}


def faster(key: str, table: LatencyTable) -> str:
    """The key of how a node runs faster: as it is, or around the other zero point if a table says so."""
    if key not in table:
        return key
    other = shifted_key(key)
    if other is None or other not in table:
        return key
    return other if table[other].median_ms < table[key].median_ms else key


def layers_to_shift(nodes: Iterable["FusedNode"], table: LatencyTable) -> frozenset[str]:
    """Names of the layers, as owners of nodes, that run faster with other zero points."""
    return frozenset(node.owner for node in nodes if faster(node.key, table) != node.key)
