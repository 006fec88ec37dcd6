"""What each operation of a network takes in a file, measured in files of it written without weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import QDQ, Dialect, LayerCall, Qdq
from leanfront.compression.export.onnx_writer import Writer, nodes_read, read_inside
from leanfront.compression.export.template import TENSOR, Template, template
from leanfront.compression.export.walk import Walk, random_model
from leanfront.compression.export.weights import LayerWeights
from leanfront.compression.graph import Network, Node, Spelling, Written, kernels
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.dynamic import BITS, DYNAMIC, in_steps
from leanfront.compression.policy.file_size import NAME_BYTES, framed
from leanfront.compression.policy.grids import ActivationGrid, never_negative

_MEASURED: WeakKeyDictionary[Traced, dict[Dialect, Network]] = WeakKeyDictionary()


def measured(traced: Traced, dialect: Dialect = QDQ) -> Network:
    """The network of a traced model, where each node says what it takes in a file (``Node.written``); as it
    is, where no file can be written: whoever writes one says why. Takes as long as ``template`` (seconds)."""
    found = _MEASURED.setdefault(traced, {})
    if dialect not in found:
        try:
            found[dialect] = dialect.measured(template(traced)) or _measured(template(traced), dialect)
        except Exception:  # whatever comes out of torch or onnx
            found[dialect] = traced.network
    return found[dialect]


def _measured(graph: Template, dialect: Dialect) -> Network:
    weightless = _without_weights(dialect)
    whole = graph.network
    half = whole.resized({group: max(1, size // 2) for group, size in whole.group_sizes.items()})
    floats, fewer, coded, narrow = (
        _parts(graph, network, bits, weightless)
        for network, bits in ((whole, 32), (half, 32), (whole, 8), (whole, 4))
    )
    more = {}
    for kernel in kernels(whole):
        eight, four = (sum(p.own[n.name] - floats.own[n.name] for n in kernel.nodes) for p in (coded, narrow))
        more[kernel.name] = eight, four
    nodes, at_run_time = [], _at_run_time(graph, dialect)
    for node in whole.nodes:
        wider = node.width - half.node[node.name].width
        each = round((floats.content[node.name] - fewer.content[node.name]) / wider) if wider else 0
        fixed = floats.own[node.name] + floats.constants[node.name] - each * node.width
        shared = tuple(sorted(floats.shared[node.name].items()))
        eight, four = more.get(node.name, (0, 0))
        written = Written(
            fixed, each, eight, four, shared, floats.values[node.name], dialect.spelling,
            at_run_time=at_run_time.get(node.name, 0),
        )  # fmt: skip
        nodes.append(replace(node, written=written))
    return Network(tuple(_with_twins(nodes, _twins(graph))), whole.layers, whole.outputs)


def _at_run_time(graph: Template, dialect: Dialect) -> dict[str, int]:
    """By how many bytes a file is larger where an LSTM quantizes what it reads while it runs than where its
    matrices are codes that are decoded: both are written."""
    found: dict[str, int] = {}
    if not (dialect.dynamic and dialect.fused):
        return found
    first = {layers: name for name, layers in reversed(list(in_steps(graph.network).items()))}
    for layers, name in first.items():
        plain, coded = (
            random_model(graph, graph.network, _of_codes(graph.network, layers, number), dialect=dialect)
            for number in (0.0, 1.0)
        )
        found[name] = coded.ByteSize() - plain.ByteSize()
    return found


def _of_codes(network: Network, layers: Sequence[str], number: float) -> Policy:
    """Some layers in codes, with this number of dynamic quantization, all others in floats."""
    wanted = LayerPolicy(0.0, *BITS, more=((DYNAMIC, number),))
    return Policy.of({name: wanted if name in layers else LayerPolicy() for name in network.layer})


def _twins(graph: Template) -> dict[str, str]:
    """Nodes whose tensors a file has from another node, which the network does not read there: both compute
    the same (the mask of each attention), and torch's exporter writes it once. Each with that node."""
    found: dict[str, str] = {}
    for node in graph.model().graph.node:
        if node.op_type != "Identity":
            continue
        one, other = (name.removeprefix(TENSOR) for name in (node.input[0], node.output[0]))
        known = one in graph.network.node and other in graph.network.node
        known = known and graph.network.node[other].layer is None  # a layer is written for each use
        if known and one not in graph.network.node[other].inputs:
            found[other] = found.get(one, one)
    return found


def _with_twins(nodes: Sequence[Node], twins: Mapping[str, str]) -> Iterator[Node]:
    """The nodes of a network, where what is written once for several is shared by them: it stays in the file
    until all are left out."""
    written = {node.name: node.written for node in nodes}
    for node in nodes:
        name = twins.get(node.name, node.name)
        first = written[name]
        if name not in twins.values() or first is None or node.written is None:
            yield node
            continue
        shared = dict(node.written.shared) | dict(first.shared) | {f"for {name}": first.fixed}
        fixed = 0 if node.name == name else node.written.fixed
        yield replace(node, written=replace(node.written, fixed=fixed, shared=tuple(sorted(shared.items()))))


@dataclass
class _Parts:
    """Bytes of a file, by node of the network. own: its nodes, and what is stored for itself; constants:
    those that it alone reads; shared: what it reads with others, by name; content: values of all that it
    alone reads. values: names of values."""

    own: dict[str, int]
    constants: dict[str, int]
    content: dict[str, int]
    values: dict[str, int]
    shared: dict[str, dict[str, int]]


def _parts(graph: Template, network: Network, bits: int, weightless: Dialect) -> _Parts:
    """Of a file in which every tensor is held at so many bits, whoever wants that."""
    walk = Walk(graph, network, Policy.uniform(network, LayerPolicy()), weightless)
    everywhere = dict.fromkeys((kernel.name for kernel in walk.kernels), bits)
    walk.bits = weightless.held_bits(walk.kernels, everywhere, network.outputs)
    unsigned = never_negative(walk.kernels)
    grids = {
        name: ActivationGrid(1.0, int(name not in unsigned), bits)
        for name, held in walk.bits.items()
        if held <= 8
    }
    walk.out = out = _Weightless()
    walk.weights = dict.fromkeys(network.layer, _NO_WEIGHTS)
    walk.grids = walk.held(grids)
    model = walk.model().graph
    owners = owners_of_nodes(walk)
    zero = dict.fromkeys(network.node, 0)
    found = _Parts({**zero}, {**zero}, {**zero}, {**zero}, {name: {} for name in zero})
    made_by = {output: owners[id(node)][0] for node in out.nodes for output in node.output}
    for infos, names in ((model.input, graph.inputs), (model.output, network.outputs)):
        for info, name in zip(infos, names, strict=True):
            found.own[name] += framed(info.ByteSize())
            made_by.setdefault(info.name, name)
    readers: dict[str, dict[str, None]] = {}
    for index, node in enumerate(nodes_read(out.nodes, {info.name for info in model.output})):
        size, own = node.ByteSize(), owners[id(node)]
        for name in filter(None, (*node.input, *read_inside(node))):
            longer = len(name) - NAME_BYTES
            size -= longer
            if name in made_by and not name.startswith("."):
                found.own[made_by[name]] += longer
            readers.setdefault(name, {}).update(dict.fromkeys(own))
        size -= sum(len(name) - NAME_BYTES for name in node.output if name.startswith("."))
        if len(own) == 1:
            found.own[own[0]] += framed(size)
        for name in own[1:] and own:
            found.shared[name][f"node {index}"] = framed(size)
        found.values[own[0]] += len(node.output)
    constants = {node.detail: node.name for node in network.nodes if operation(node.op).stored}
    held = {name: constants.get(original) for (original, _), name in walk.stored.items()}
    for tensor in out.initializers:
        reading = tuple(readers.get(tensor.name, ()))
        stands = held.get(tensor.name)  # a node of the network by itself, though none of the file
        _constant(found, tensor, out.content, (stands,) if stands and reading else reading)
    return found


def _constant(
    found: _Parts, tensor: onnx.TensorProto, contents: Mapping[str, int], readers: tuple[str, ...]
) -> None:
    """Count a constant. ``readers``: nodes of the network that read it."""
    if not readers:
        return
    content = contents.get(tensor.name, len(tensor.raw_data))
    size = tensor.ByteSize() - len(tensor.name) + NAME_BYTES
    if tensor.name in contents:  # counted, not stored
        size += framed(content)
        found.own[readers[0]] += framed(size)
    elif len(readers) == 1:
        found.constants[readers[0]] += framed(size)
    else:
        for name in readers:
            found.shared[name][tensor.name] = framed(size)
    if tensor.name in contents or len(readers) == 1:
        found.content[readers[0]] += content
    found.values[readers[0]] += 1


def owners_of_nodes(walk: Walk) -> dict[int, tuple[str, ...]]:
    """Identity of a node of the file -> nodes of the network that it is written for: the one whose tensor it
    puts out, or those that it computes something for."""
    wanted: dict[str, dict[str, None]] = {}
    owners: dict[int, tuple[str, ...]] = {}
    written = walk.out.nodes
    end = len(written) - len(walk.network.outputs)
    for node, name in zip(written[end:], walk.network.outputs, strict=True):
        owners[id(node)] = (name,)
    for begin, node in reversed(walk.begun):
        named = [name.removeprefix(TENSOR) for name in node.output if name.startswith(TENSOR)]
        found = dict.fromkeys(named) or {
            owner: None for output in node.output for owner in wanted.get(output, ())
        }
        for source in (*node.input, *read_inside(node)):
            wanted.setdefault(source, {}).update(found)
        for one in written[begin:end]:
            owners[id(one)] = tuple(found)
        end = begin
    return owners


@dataclass
class _Weightless(Writer):
    """A file under construction in which what is trained has no values. content: its bytes, by name."""

    content: dict[str, int] = field(default_factory=dict)

    def own(self, value: NDArray[Any]) -> str:
        """Its name, shape and type."""
        name = self.name()
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.initializers.append(onnx.TensorProto(name=name, data_type=kind, dims=value.shape))
        self.content[name] = value.nbytes
        return name


class _Nothing(Qdq):
    """The kind of file that is measured, without weights and without what decodes them: their bytes depend
    on bits and channels."""

    name = "weightless"

    def weight(self, out: Writer, call: LayerCall) -> str:
        """A name."""
        return out.name()

    def bias(self, out: Writer, call: LayerCall) -> str:
        """A name."""
        return out.name()

    def looked_up(self, out: Writer, call: LayerCall, output: str) -> str:
        """Rows of floats."""
        return Dialect.looked_up(self, out, call, output)


def _without_weights(dialect: Dialect) -> Dialect:
    """Files of this kind without weights; of onnxruntime's, where its sizes are those."""
    if dialect.spelling == Spelling():
        return _Nothing()
    kind: type[Dialect] = type("_Nothing", (_Nothing, type(dialect)), {})
    return kind()


_NO_WEIGHTS = LayerWeights(np.zeros(0, np.float32), np.zeros((0, 0), np.float32))
