"""What onnxruntime really runs: the nodes of a model after its optimiser, each with a key of its own.

The optimiser fuses layers with what follows, turns QDQ into integer kernels, and inserts reorders and
transposes where layouts change. Two nodes with equal keys take equally long: the key holds operation,
attributes, element types and shapes, and the values of small integer constants (axes, pads), but no weights.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from latency_models.cost import TableError
from latency_models.measure import CPU, Feed, random_feed, session

_SHORT = {"float32": "f32", "float16": "f16", "float64": "f64", "uint8": "u8", "int8": "s8"}
_SMALL = 16  # constants with so many values or fewer are kept as they are


@dataclass(frozen=True)
class Operand:
    """One input of a node: a tensor, a constant, or nothing (an optional input left out)."""

    element_type: int  # of onnx.TensorProto; 0: nothing
    shape: tuple[int, ...]
    constant: bool
    value: bytes | None = None  # a small constant, serialized
    fill: int | None = None  # the one value that an 8-bit constant (a zero point) holds throughout


@dataclass(frozen=True)
class FusedNode:
    """A node of an optimised graph. ``owner``: the kernel of the network that it is part of, "" if none."""

    key: str
    owner: str
    proto: NodeProto
    operands: tuple[Operand, ...]


def fused_nodes(
    model: bytes, owners: Mapping[str, str], threads: int = 1, provider: str = CPU
) -> tuple[FusedNode, ...]:
    """The nodes that onnxruntime runs for a model, in order.

    Args:
        model: serialized ONNX, as it would be given to a session.
        owners: name of a node of ``model`` -> the kernel that it belongs to. Nodes without an entry belong
            to the kernel that made what they read.
        threads: of the session; the optimiser does not depend on it, the memory of it does.
        provider: execution provider.

    Raises:
        TableError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="leanfront-") as folder:
        saved = Path(folder) / "optimised.onnx"
        opened = session(model, threads, provider, save=str(saved))
        feed = random_feed(opened)
        del opened
        optimised = onnx.load_model(str(saved))
    values = _values(optimised, feed, threads, provider)
    owner_of = _tensor_owners(onnx.load_model_from_string(model), owners)
    constants = {tensor.name: tensor for tensor in optimised.graph.initializer}
    nodes = []
    for node in optimised.graph.node:
        owner = _owner(node, owner_of, owners)
        for output in node.output:
            owner_of.setdefault(output, owner)
        operands = tuple(_operand(name, values, constants) for name in node.input)
        nodes.append(FusedNode(_key(node, operands), owner, node, operands))
    return tuple(nodes)


def _values(
    optimised: onnx.ModelProto, feed: Feed, threads: int, provider: str
) -> Mapping[str, NDArray[Any]]:
    """Every tensor of the optimised graph. onnx's shape inference does not know onnxruntime's own
    operations, so the graph is run once with all tensors as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(optimised)
    del shown.graph.output[:]
    names = [name for node in shown.graph.node for name in node.output if name]
    shown.graph.output.extend(ValueInfoProto(name=name) for name in names)
    opened = session(shown.SerializeToString(), threads, provider, optimise=False)
    return {**feed, **dict(zip(names, opened.run(names, feed), strict=True))}


def _tensor_owners(model: onnx.ModelProto, owners: Mapping[str, str]) -> dict[str, str]:
    """Tensor of the model before optimisation -> kernel."""
    found = {value.name: owners.get(value.name, "") for value in model.graph.input}
    for node in model.graph.node:
        owner = owners.get(node.name) or next((found[name] for name in node.input if name in found), None)
        if owner is not None:  # None: computed from constants alone
            found.update(dict.fromkeys(node.output, owner))
    return found


def _owner(node: NodeProto, owner_of: Mapping[str, str], owners: Mapping[str, str]) -> str:
    """By what it makes, else by the node or tensor that onnxruntime named it after, else by what it reads."""
    if node.output[0] in owner_of:
        return owner_of[node.output[0]]
    named_after = re.sub(r"(_nchwc|_token_\d+|_transformed|_quant)+$", "", node.name)
    if named_after in owners:
        return owners[named_after]
    return next((owner_of[name] for name in (named_after, *node.input) if name in owner_of), "")


def _operand(name: str, values: Mapping[str, NDArray[Any]], constants: Mapping[str, TensorProto]) -> Operand:
    if not name:
        return Operand(0, (), constant=True)
    if name in constants:
        tensor = constants[name]
        size = 1
        for dimension in tensor.dims:
            size *= dimension
        value = tensor.SerializeToString() if size <= _SMALL else None
        return Operand(tensor.data_type, tuple(tensor.dims), True, value, _fill(tensor))
    if name not in values:
        raise TableError(f"the optimised graph reads {name!r}, which nothing in it makes")
    array = values[name]
    return Operand(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, constant=False)


def _fill(tensor: TensorProto) -> int | None:
    """Zero points decide which kernel runs: onnxruntime has one of its own for weights around zero."""
    if len(tensor.dims) != 1 or tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8):
        return None
    values = numpy_helper.to_array(tensor)
    return int(values[0]) if values.size and (values == values[0]).all() else None


def _key(node: NodeProto, operands: tuple[Operand, ...]) -> str:
    operation = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    attributes = sorted(f"{a.name}={_attribute(a)}" for a in node.attribute)
    # a fused ReLU is a comparison while the result is in a register, and comes and goes with the quantizers
    attributes = [attribute for attribute in attributes if attribute != "activation=Relu"]
    shown = ", ".join(map(_operand_text, operands))
    return f"{operation}({shown})" + "".join(f" {attribute}" for attribute in attributes)


def _operand_text(operand: Operand) -> str:
    if operand.element_type == 0:
        return "-"
    kind = helper.tensor_dtype_to_np_dtype(operand.element_type).name
    kind = _SHORT.get(kind, kind)
    shape = "x".join(map(str, operand.shape))
    if not operand.constant:
        return f"{kind}[{shape}]"
    if kind == "int64" and operand.value is not None:
        values = numpy_helper.to_array(TensorProto.FromString(operand.value)).reshape(-1)
        return f"={'|'.join(map(str, values))}"
    zero_point = "" if operand.fill is None else f":{operand.fill}"
    return f"={kind}[{shape}]{zero_point}"


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return "|".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
