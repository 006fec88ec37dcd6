"""What onnxruntime really runs: the nodes of a model after its optimiser, each with a key of its own.

The optimiser fuses layers with what follows, turns QDQ into integer kernels, and inserts reorders and
transposes where layouts change. Two nodes with equal keys take equally long: the key holds operation,
attributes, element types and shapes, and the values of small integer constants (axes, pads), but no weights.
"""

import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from leanfront.latency_models.benchmark.timing import CPU, Feed, random_feed, session
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table import onnx_protobuf
from leanfront.latency_models.kernel_table.onnx_protobuf import Node, Tensor

_SHORT = {"float32": "f32", "float16": "f16", "float64": "f64", "uint8": "u8", "int8": "s8"}
_SMALL = 16  # constants with so many values or fewer are kept as they are


@dataclass(frozen=True)
class Operand:
    """One input of a node: a tensor, a constant, or nothing (an optional input left out)."""

    element_type: int  # of TensorProto; 0: nothing
    shape: tuple[int, ...]
    constant: bool
    value: bytes | None = None  # a small constant, as its TensorProto
    fill: int | None = None  # the one value that an 8-bit constant (a zero point) holds throughout


@dataclass(frozen=True)
class FusedNode:
    """A node of an optimised graph. ``owner``: the kernel of the network that it is part of, "" if none."""

    key: str
    owner: str
    proto: Node
    operands: tuple[Operand, ...]


def fused_nodes(
    model: bytes,
    owners: Mapping[str, str],
    threads: int = 1,
    provider: str = CPU,
    disabled: Sequence[str] = (),
) -> tuple[FusedNode, ...]:
    """The nodes that onnxruntime runs for a model, in order.

    Args:
        model: serialized ONNX, as it would be given to a session.
        owners: name of a node of ``model`` -> the kernel that it belongs to. Nodes without an entry belong
            to the kernel that made what they read.
        threads: of the session; the optimiser does not depend on it, the memory of it does.
        provider: execution provider.
        disabled: optimisers of onnxruntime that are left out.

    Raises:
        TableError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="leanfront-") as folder:
        saved = Path(folder) / "optimised.onnx"
        opened = session(model, threads, provider, save=str(saved), disabled=disabled)
        feed = random_feed(opened)
        del opened
        optimised = saved.read_bytes()
    graph = onnx_protobuf.graph_of(optimised)
    found = [Node.read(message) for message in onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_NODES)]
    values = _values(optimised, found, feed, threads, provider)
    owner_of = _tensor_owners(onnx_protobuf.graph_of(model), owners)
    readers, read = _readers(onnx_protobuf.graph_of(model), owner_of, owners)
    constants = {
        c.name: c for c in map(Tensor.read, onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_CONSTANTS))
    }
    owner_of_node = []
    for node in found:
        owner_of_node.append(_owner(node, owner_of, owners, readers, read))
        for output in node.output:
            owner_of.setdefault(output, owner_of_node[-1])
    for index in reversed(range(len(found))):  # what is computed from constants alone belongs to its reader
        reads = (i for i in range(index + 1, len(found)) if set(found[i].input) & set(found[index].output))
        owner_of_node[index] = owner_of_node[index] or next((owner_of_node[i] for i in reads), "")
    nodes = []
    for index, node in enumerate(found):  # python 3.9, as on devices, knows no zip(strict=)
        operands = tuple(_operand(name, values, constants) for name in node.input)
        nodes.append(FusedNode(_key(node, operands), owner_of_node[index], node, operands))
    return tuple(nodes)


def _values(
    optimised: bytes, nodes: list[Node], feed: Feed, threads: int, provider: str
) -> Mapping[str, NDArray[Any]]:
    """Every tensor of the optimised graph. Shape inference does not know onnxruntime's own operations, so
    the graph is run once with all tensors as outputs."""
    names = [name for node in nodes for name in node.output if name]
    outputs = [onnx_protobuf.field(1, name) for name in names]
    graph = onnx_protobuf.replaced(onnx_protobuf.graph_of(optimised), onnx_protobuf.GRAPH_OUTPUTS, outputs)
    opened = session(onnx_protobuf.with_graph(optimised, graph), threads, provider, optimise=False)
    found = opened.run(names, feed)
    return {**feed, **{name: found[index] for index, name in enumerate(names)}}


def _tensor_owners(graph: bytes, owners: Mapping[str, str]) -> dict[str, str]:
    """Tensor of the graph before optimisation -> kernel."""
    inputs = [
        name
        for value in onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_INPUTS)
        for name in onnx_protobuf.texts(value, 1)
    ]
    found = {name: owners.get(name, "") for name in inputs}
    for node in map(Node.read, onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_NODES)):
        owner = owners.get(node.name) or next((found[name] for name in node.input if name in found), None)
        if owner is not None:  # None: computed from constants alone
            found.update(dict.fromkeys(node.output, owner))
    return found


def _readers(
    graph: bytes, owner_of: Mapping[str, str], owners: Mapping[str, str]
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """(constant of the graph before optimisation -> kernels that read it, also through nodes that compute
    from constants alone, such as weights that are dequantized; kernel -> kernels whose tensors it reads)"""
    readers: dict[str, set[str]] = {}
    read: dict[str, set[str]] = {}
    for node in reversed(
        [Node.read(message) for message in onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_NODES)]
    ):
        owner = owners.get(node.name) or owner_of.get(node.output[0])
        reading = {owner} if owner is not None else readers.get(node.output[0], set())
        for name in filter(None, node.input):
            if name not in owner_of:
                readers.setdefault(name, set()).update(reading)
            elif owner is not None and owner_of[name] != owner:
                read.setdefault(owner, set()).add(owner_of[name])
    return readers, read


def _owner(
    node: Node,
    owner_of: Mapping[str, str],
    owners: Mapping[str, str],
    readers: Mapping[str, set[str]],
    read: Mapping[str, set[str]],
) -> str:
    """By the layer that onnxruntime named the node after (a fused addition keeps the layer's name), else by
    the one kernel that reads its constants, by what it makes, by what it is named after or reads."""
    named_after = re.sub(r"(/\w+Fusion|_nchwc|_token_\d+|_transformed|_quant)+$", "", node.name)
    if named_after in owners:
        return owners[named_after]
    constants = [readers[name] for name in node.input if name in readers]
    sources = {owner_of[name] for name in node.input if name in owner_of}
    if constants:
        kernels = set.intersection(*constants)
        if len(kernels) > 1:  # layers with equal weights: the one that reads what the node reads
            kernels = {kernel for kernel in kernels if sources & (read.get(kernel, set()) | {kernel})}
        if len(kernels) == 1:
            return next(iter(kernels))
    if node.output[0] in owner_of:
        return owner_of[node.output[0]]
    return next((owner_of[name] for name in (named_after, *node.input) if name in owner_of), "")


def _operand(name: str, values: Mapping[str, NDArray[Any]], constants: Mapping[str, Tensor]) -> Operand:
    if not name:
        return Operand(0, (), constant=True)
    if name in constants:
        tensor = constants[name]
        value = tensor.raw if tensor.size <= _SMALL else None
        return Operand(tensor.element_type, tensor.shape, True, value, _fill(tensor))
    if name not in values:
        raise TableError(f"the optimised graph reads {name!r}, which nothing in it makes")
    array = values[name]
    return Operand(onnx_protobuf.element_type_of(array), array.shape, constant=False)


def _fill(tensor: Tensor) -> int | None:
    """Zero points decide which kernel runs: onnxruntime has one of its own for weights around zero. Those of
    an LSTM are there for each of its directions."""
    vector = len(tensor.shape) == 1 or tensor.shape[:-1] in ((1,), (2,))
    if not vector or tensor.element_type not in (onnx_protobuf.INT8, onnx_protobuf.UINT8):
        return None
    values = tensor.values.reshape(-1)
    return int(values[0]) if values.size and (values == values[0]).all() else None


def _key(node: Node, operands: tuple[Operand, ...]) -> str:
    operation = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    attributes = sorted(f"{a.name}={_attribute(a.value)}" for a in node.attribute)
    # a fused ReLU is a comparison while the result is in a register, and comes and goes with the quantizers
    attributes = [attribute for attribute in attributes if attribute != "activation=Relu"]
    shown = ", ".join(map(_operand_text, operands))
    return f"{operation}({shown})" + "".join(f" {attribute}" for attribute in attributes)


def _operand_text(operand: Operand) -> str:
    if operand.element_type == 0:
        return "-"
    kind = onnx_protobuf.ELEMENT_NAMES[operand.element_type]
    kind = _SHORT.get(kind, kind)
    shape = "x".join(map(str, operand.shape))
    if not operand.constant:
        return f"{kind}[{shape}]"
    if kind == "int64" and operand.value is not None:
        values = Tensor.read(operand.value).values.reshape(-1)
        return f"={'|'.join(map(str, values))}"
    zero_point = "" if operand.fill is None else f":{operand.fill}"
    return f"={kind}[{shape}]{zero_point}"


def _attribute(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Tensor):  # what it holds may decide what is computed
        return hashlib.sha256(value.renamed("")).hexdigest()[:12]
    if isinstance(value, list):
        return "|".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
