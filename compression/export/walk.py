"""Write a policy's network as ONNX: the template's graph, with batch norms folded, as a dialect spells it."""

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx

from leanfront.compression.capture.sizes import arguments
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.deployed_form import activation_grids, layer_weights
from leanfront.compression.export.dialects import QDQ, Dialect, check_grids, layer_call
from leanfront.compression.export.onnx_writer import (
    CONTRIBUTED,
    IR_VERSION,
    OPSET,
    Writer,
    nodes_read,
    read_inside,
    rename_inside,
)
from leanfront.compression.export.recurrent_codes import Codes, codes_of, integer_lstm, steps_to
from leanfront.compression.export.template import INPUT, TENSOR, Template, template
from leanfront.compression.export.weights import LayerWeights, random_weights
from leanfront.compression.graph import Kernel, Network, Node, kernels
from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy import Policy, tensor_bits
from leanfront.compression.policy.dynamic import is_dynamic
from leanfront.compression.policy.grids import ActivationGrid, stand_in_grids, with_moved
from leanfront.compression.policy.guards import guarded
from leanfront.compression.techniques.compress import Compressed


def exported(template: Template, compressed: Compressed, dialect: Dialect = QDQ) -> onnx.ModelProto:
    """The compressed network, as trained, in ONNX of one kind."""
    return _filled(template, compressed, dialect).model()


def shown(
    template: Template, compressed: Compressed, dialect: Dialect = QDQ
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """The same file with its inner tensors put out as well, and node -> the value that is its tensor: to find
    where a file leaves its network. Nodes that the file does without (a norm that is folded into its layer)
    name the value that stands for them."""
    walk = _filled(template, compressed, dialect)
    walk.inner = True
    model = walk.model()
    made = [value for node in walk.graph.node for value in node.output]
    named = [value.removeprefix(TENSOR) for value in made if value.startswith(TENSOR)]
    values = {name: walk.value.get(walk.resolved(TENSOR + name), "") for name in named}
    there = {value.name for value in model.graph.output}
    return model, {name: value for name, value in values.items() if value in there}


def _filled(template: Template, compressed: Compressed, dialect: Dialect) -> "Walk":
    walk = Walk(template, compressed.network, compressed.policy, dialect)
    walk.weights, walk.grids = layer_weights(compressed), walk.held(activation_grids(compressed))
    check_grids(dialect, walk.grids)
    walk.parameters = {
        name: tensor.detach().cpu().numpy() for name, tensor in compressed.module.state_dict().items()
    }
    walk.calls = {node.name: node for node in compressed.module.graph.nodes if node.op == "call_function"}
    return walk


def random_model(
    template: Template, network: Network, policy: Policy, seed: int = 0, dialect: Dialect = QDQ
) -> onnx.ModelProto:
    """The graph that an export of ``policy`` has, with random weights: to be timed, not to be used.

    ``network`` is the one after the cut.
    """
    walk = Walk(template, network, policy, dialect)
    walk.weights = random_weights(network, policy, seed)
    grids = stand_in_grids(walk.kernels, policy)
    walk.grids = walk.held({name: grid.as_of(dialect.grids) for name, grid in grids.items()})
    return walk.model()


def random_builder(traced: Traced, dialect: Dialect = QDQ) -> Callable[[Network, Policy], bytes]:
    """``random_model`` of one model, as a file. The template (seconds) is made now, not within a trial."""
    graph = template(traced)

    def build(network: Network, policy: Policy) -> bytes:
        return dialect.finished(random_model(graph, network, policy, dialect=dialect), network, policy)

    return build


_SIZED = ("Reshape", "Expand", "Resize")
"""Types of ONNX that read the sizes of what they put out."""


class Walk:
    """The walk over the template's graph, node by node, which writes the file.

    weights: of each layer; grids: of each kernel whose output is held in integers; parameters: by name, what
    the network holds besides; where they are not given, the template's. inner: whether inner tensors are put
    out as well.
    """

    weights: Mapping[str, LayerWeights]
    grids: Mapping[str, ActivationGrid]
    inner = False

    def __init__(self, template: Template, network: Network, policy: Policy, dialect: Dialect) -> None:
        self.template, self.network, self.policy, self.dialect = template, network, policy, dialect
        self.parameters: Mapping[str, NDArray[np.generic]] = {}
        self.kernels = fused = kernels(network)
        self.bits = dialect.held_bits(fused, tensor_bits(fused, policy), network.outputs)
        self.guards = guarded(fused, policy)
        self.calls: Mapping[str, fx.Node] = {}
        self.graph = template.model().graph
        self.layer_of = {TENSOR + k.nodes[0].name: k for k in fused if k.layer is not None}
        # a folded batch norm, an identity and the join of a branch that is left out put out what goes in
        self.alias = {
            TENSOR + node.name: TENSOR + node.inputs[0]
            for kernel in fused
            for node in kernel.nodes[kernel.op != ALIAS :]
            if node.op in ("identity", ALIAS) or (node.op == "batchnorm" and kernel.layer is not None)
        }
        self.alias |= {TENSOR + k.name: INPUT + k.name for k in fused if operation(k.op).given}
        self.alone = [name for name, kernel in self.layer_of.items() if not kernel.inputs]
        """Weights that are read by what is no layer; in the template they bear names of its own."""
        self.alias |= {
            node.input[0]: node.output[0] for node in self.graph.node if node.output[0] in self.alone
        }
        for kernel in kernels(template.network):  # what was fused behind a join goes with it
            left = network.node.get(kernel.name)
            if left is not None and left.op == ALIAS:
                self.alias |= {TENSOR + node.name: TENSOR + kernel.name for node in kernel.nodes[:-1]}
        self.pooled = {TENSOR + k.nodes[0].name: k for k in fused if k.op == "global_avgpool"}
        self.tensor_of = {self.resolved(TENSOR + k.name): k for k in fused if k.op != ALIAS}
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.readers = {name: node.output[0] for node in reversed(self.graph.node) for name in node.input}
        self.spelled: dict[str, str] = {}  # layer -> type of ONNX; a use that computes the same may be a copy
        self.out = Writer()
        self.value: dict[str, str] = {}  # value of the template -> value of the file
        self.begun: list[tuple[int, onnx.NodeProto]] = []  # node of the template, and its first in the file
        self.padded: set[str] = set()  # floats that a node of its own has put something around
        self.stored: dict[tuple[str, tuple[int, ...]], str] = {}  # weights that several nodes read

    def held(self, grids: Mapping[str, ActivationGrid]) -> dict[str, ActivationGrid]:
        """Grids of all tensors that the policy holds in integers, from those that have a quantizer."""
        return with_moved(grids, self.kernels, self.bits)

    def resolved(self, name: str) -> str:
        """The value of the template that another name stands for."""
        while name in self.alias:
            name = self.alias[name]
        return name

    def model(self) -> onnx.ModelProto:
        """Write all that the outputs depend on."""
        for place, name in enumerate(self.template.inputs):
            self.begun.append((len(self.out.nodes), onnx.NodeProto(output=[TENSOR + name])))
            self._produced(INPUT + name, self.template.input_name(place))
        for target in self.alone:
            self.begun.append((len(self.out.nodes), onnx.NodeProto(output=[target])))
            self._layer(target, self.begun[-1][1])
        needed = self._needed()
        for node in self.graph.node:
            target = node.output[0]
            if needed.isdisjoint(node.output) or target in self.alias or target in self.alone:
                continue
            self.begun.append((len(self.out.nodes), node))
            if target in self.layer_of:
                self._layer(target, node)
            else:
                self._operation(target, node)
        return self._finished([self.value[self.resolved(TENSOR + name)] for name in self.network.outputs])

    def _produced(self, original: str, name: str) -> None:
        """Note where a tensor is, and hold it on a grid where the policy wants that."""
        kernel = self.tensor_of.get(original)
        moved = kernel is not None and operation(kernel.op).same_range
        if kernel is not None and self.bits[kernel.name] <= 8 and (self.dialect.restates or not moved):
            name = self.dialect.quantized(self.out, name, self.grids[kernel.name])
        self.value[original] = name

    def _layer(self, target: str, node: onnx.NodeProto) -> None:
        kernel = self.layer_of[target]
        layer = kernel.layer
        assert layer is not None
        op = self.spelled.setdefault(layer.name, node.op_type)
        attributes = dict(self.template.attributes[layer.name])
        if layer.shape.op == "linear":  # one weight for all its uses
            uses = self.template.network.uses[layer.name]
            op = "Gemm" if all(len(self.template.shapes[use]) == 2 for use in uses) else "MatMul"
        else:
            if "group" in attributes:  # whole groups may have gone; the last one is named, for exact sizes
                attributes["group"] = layer.shape.groups
        if layer.looked_up:
            read = self._read(node, 1)  # may be a constant
        else:
            read = self._made(node, self.resolved(TENSOR + kernel.inputs[0])) if kernel.inputs else ""
        weights, policy = self.weights[layer.name], self.policy[layer.name]
        call = layer_call(kernel, op, read, weights, policy, self.grids, self.guards, attributes)
        self._produced(target, self.dialect.layer(self.out, call))

    def _made(self, node: onnx.NodeProto, original: str) -> str:
        """The value of the file that a layer, which ``node`` is, reads; torch's exporter may have found that
        it is a constant (zeros of a size)."""
        if original not in self.value:
            array = numpy_helper.to_array(self.constants[original])
            held = _cut_constant(self.template, self.network, node, original, array, "")
            self._produced(original, self.out.own(held))
        return self.value[original]

    def _operation(self, target: str, node: onnx.NodeProto) -> None:
        out = self.out
        inputs = [self._read(node, place) for place in range(len(node.input))]
        made = self.tensor_of.get(target)
        if node.op_type == "ReduceMean" and target in self.pooled:
            self._produced(target, self._global_average(self.pooled[target], inputs[0]))
            return
        if node.op_type == "Pad" and made is not None and inputs[0] in out.codes and _pads_zeros(node):
            self.value[target] = self.dialect.padded(out, inputs[0], inputs[1], self.grids[made.name])
            return
        if node.op_type == "Transpose" and made is not None and operation(made.op).same_tensor:
            shape = list(self.template.shapes[made.name])  # dimensions of size 1 change places
            shape[self.template.axes[made.name]] = self.network.node[made.name].width
            sizes = out.constant(np.array(shape, dtype=np.int64), among=self._cuttable(made.name))
            self._produced(target, out.add("Reshape", [inputs[0], sizes], name=self._node_name(target)))
            return
        if node.op_type == "LSTM" and (matrices := self._codes_of(node)):
            for original, name in zip(
                node.output, integer_lstm(out, node, matrices[0], inputs, matrices[1]), strict=True
            ):
                self._produced(original, name)
            return
        if node.op_type == "GroupNormalization" and made is not None and not self.dialect.group_norms:
            self._produced(target, self._group_norm(made, node, inputs))
            return
        if _counts_zeros(node) and inputs[0] in out.codes and not self.dialect.pads_means:
            inputs[0] = QDQ.opaque(out, inputs[0])  # in floats, whose zero is 0
        if node.op_type == "MaxPool" and inputs[0] in self.padded and self.dialect.fused:
            # onnxruntime would pad as it pools, with the lowest of numbers where the network has zeros
            inputs[0] = QDQ.opaque(out, inputs[0])
        held = made is not None and self.bits[made.name] <= 8
        if node.op_type == "Softmax" and held and inputs[0] in out.codes and self.dialect.fused:
            # onnxruntime's kernel for integers overflows where the largest of many shares is small
            inputs[0] = QDQ.opaque(out, inputs[0])
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        relu6 = node.op_type == "Clip" and made is not None and made.output.op == "relu6"
        if relu6 and made is not None and self.dialect.clips(self.bits[made.name]):
            copied.op_type, inputs = "Relu", inputs[:1]  # the highest level is 6 or less
        if node.op_type == "Reshape" and made is not None and made.nodes[0].op == "flatten":
            flat = np.array([1, made.nodes[0].width], dtype=np.int64)
            inputs[1] = out.constant(flat, among=self._cuttable(made.name))
            del copied.attribute[:]
            copied.attribute.append(helper.make_attribute("allowzero", 1))
        outputs = [out.name() for _ in node.output]
        copied.ClearField("metadata_props")
        copied.ClearField("doc_string")
        copied.name = self._node_name(target)
        del copied.input[:], copied.output[:]
        copied.input.extend(inputs)
        copied.output.extend(outputs)
        rename_inside(copied, {name: self._inside(name) for name in read_inside(node)})
        out.nodes.append(copied)
        if _drops_dimensions(copied) and not self.dialect.drops_dimensions:
            self._squeezed(copied)
        if node.op_type == "Pad":
            self.padded.update(outputs)
        for original, name in zip(node.output, outputs, strict=True):
            self._produced(original, name)

    def _codes_of(self, node: onnx.NodeProto) -> tuple[str, list[Codes]] | None:
        """Of an LSTM that quantizes what it reads while it runs the layer that holds its first matrix, and
        the codes of both; None of another one."""
        found, first = [], ""
        for place in (1, 2):
            steps = steps_to(self.graph, node.input[place], self.resolved, self.alone)
            read = dict.fromkeys(self.resolved(name) for step in steps for name in step.input)
            layers = {name: self.layer_of[name].layer for name in read if name in self.alone}
            held = {name: layer.name for name, layer in layers.items() if layer is not None}
            if not held or not all(is_dynamic(self.policy[name]) for name in held.values()):
                return None
            first = first or next(iter(held.values()))
            weights = {name: self.weights[layer] for name, layer in held.items()}
            found.append(codes_of(self.graph, node.input[place], self.resolved, weights))
        return first, found

    def _node_name(self, target: str) -> str:
        """What a node that puts out a value of the template is called: names of layers are theirs alone, and
        torch's own of what lies between may be another node's."""
        name = target.removeprefix(TENSOR)
        return "" if name in self.network.layer or name == target else name

    def _read(self, node: onnx.NodeProto, place: int) -> str:
        """The value of the file that a node's input is; "": left out."""
        original = self.resolved(node.input[place])
        if original not in self.constants:
            return self.value.get(original, "")
        array = self.parameters.get(original)
        array = numpy_helper.to_array(self.constants[original]) if array is None else array
        among = self._counted(node, original, place, array)
        array = _cut_constant(self.template, self.network, node, original, array, self._made_for(node))
        array = self._sized(node, place, array)
        literal = array.size == 1 and original not in self.template.state
        if literal or not np.issubdtype(array.dtype, np.floating):
            return self.out.constant(array, among)
        key = (original, array.shape)
        if key not in self.stored:
            self.stored[key] = self.out.own(array)
        return self.stored[key]

    def _made_for(self, node: onnx.NodeProto) -> str:
        """The network's node whose tensor a node of the template puts out, or, where it gives a value its
        size on the way to one, computes; "" where it is none."""
        name = node.output[0]
        if name.startswith(TENSOR) or node.op_type not in _SIZED or len(node.input) < 2:
            return name.removeprefix(TENSOR) if name.startswith(TENSOR) else ""
        while not name.startswith(TENSOR) and name in self.readers:
            name = self.readers[name]
        sizes, name = self.constants.get(node.input[1]), name.removeprefix(TENSOR)
        alike = sizes is not None and [*sizes.dims] == [len(self.template.shapes.get(name, ()))]
        return name if alike else ""  # with other dimensions it counts something else

    def _inside(self, name: str) -> str:
        """The value of the file that a graph within a node reads from outside; its constants are as long as
        they are, for such an operation is opaque."""
        original = self.resolved(name)
        if original in self.constants:
            return self.out.own(numpy_helper.to_array(self.constants[original]))
        return self.value[original]

    def _cuttable(self, *names: str) -> Hashable:
        """The channels of nodes, where some can be cut; sizes and orders of channels that are cut otherwise
        are different constants, equal as they may be."""
        channels = tuple(self.template.network.node[name].channels for name in names)
        return channels if any(s.group for segments in channels for s in segments) else None

    def _counted(
        self, node: onnx.NodeProto, original: str, place: int, array: NDArray[np.generic]
    ) -> Hashable:
        """The channels that a constant of the template counts or orders, of those that can be cut."""
        whole = self.template.network
        owner = whole.node.get(self.template.owners.get(original, ""))
        if owner is not None:
            return self._cuttable(owner.name, *owner.inputs)
        made = whole.node.get(self._made_for(node))
        if made is None:
            return None
        axis, counts = self.template.axes[made.name], False
        if node.op_type == "Slice":
            counts = place in (1, 2) and self._axis_sliced(node) == axis
        elif node.op_type == "Pad":
            counts = place == 1 and bool(array.reshape(2, -1)[:, axis : axis + 1].any())
        elif node.op_type in _SIZED:
            counts = array.reshape(-1)[axis : axis + 1].tolist() == [made.width]
        return self._cuttable(made.name, *made.inputs) if counts else None

    def _sized(self, node: onnx.NodeProto, place: int, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Where a slice begins and ends, and how many channels of zeros a padding adds, after the cut."""
        made = self.network.node.get(self._made_for(node))
        if made is None or not made.inputs or node.op_type not in ("Slice", "Pad"):
            return array
        read, axis = self.network.node[made.inputs[0]], self.template.axes[made.name]
        whole = self.template.network.node
        if whole[made.name].width == made.width and whole[read.name].width == read.width:
            return array
        call = self.calls.get(made.name)
        bound = arguments(call, call.args, call.kwargs) if call is not None else {}
        if node.op_type == "Slice" and place in (1, 2) and self._axis_sliced(node) == axis:
            start = bound.get("start", 0) or 0
            return np.array([start if place == 1 else bound.get("end", start + made.width)], dtype=np.int64)
        if node.op_type == "Pad" and place == 1 and array.ndim == 1:
            rank, array = len(array) // 2, array.copy()
            pads, more = list(bound.get("pad", [])), made.width - read.width
            at = 2 * (rank - 1 - axis)
            before, after = pads[at : at + 2] if len(pads) > at else (more // 2, more - more // 2)
            if array[axis] or array[rank + axis]:
                array[axis], array[rank + axis] = before, after
        return array

    def _axis_sliced(self, node: onnx.NodeProto) -> int:
        """The dimension that a Slice is along."""
        axes = numpy_helper.to_array(self.constants[node.input[3]]) if len(node.input) > 3 else np.zeros(1)
        name = node.output[0].removeprefix(TENSOR)
        return int(axes.reshape(-1)[0]) % len(self.template.shapes[name])

    def _needed(self) -> set[str]:
        """Values that the outputs depend on; a layer depends on the one tensor that it reads."""
        producer = {output: node for node in self.graph.node for output in node.output}
        needed: set[str] = set()
        waiting = [self.resolved(TENSOR + name) for name in self.network.outputs]
        while waiting:
            name = waiting.pop()
            if name in needed or name not in producer:
                continue
            needed.add(name)
            if name not in self.layer_of:
                read = (*producer[name].input, *read_inside(producer[name]))
                waiting.extend(self.resolved(source) for source in read)
            elif operation(self.layer_of[name].op).looked_up:
                waiting.append(self.resolved(producer[name].input[1]))
            elif name not in self.alone:
                waiting.append(self.resolved(TENSOR + self.layer_of[name].inputs[0]))
        return needed

    def _global_average(self, kernel: Kernel, read: str) -> str:
        """A mean over height and width as GlobalAveragePool: onnxruntime has no integer kernel for
        ReduceMean."""
        pooled = self.out.add(
            "GlobalAveragePool", [read], name=self._node_name(TENSOR + kernel.nodes[0].name)
        )
        shape = self.template.shapes[kernel.nodes[0].name]
        if len(shape) > 2:
            return pooled
        # onnxruntime fuses the pooling only when its own output is quantized
        if kernel.name in self.grids and self.dialect.restates:
            pooled = self.dialect.quantized(self.out, pooled, self.grids[kernel.name])
        sizes = np.array([shape[0], -1], dtype=np.int64)  # images of one example, one after the other
        return self.out.add("Reshape", [pooled, self.out.constant(sizes)])

    def _squeezed(self, node: onnx.NodeProto) -> None:
        """Let a reduction that was just written keep its dimensions, and something else take them away."""
        (made,) = node.output
        node.output[0] = self.out.name()
        for attribute in node.attribute:
            if attribute.name == "keepdims":
                attribute.i = 1
        self.out.nodes.append(helper.make_node("Squeeze", [node.output[0], node.input[1]], [made]))

    def _group_norm(self, kernel: Kernel, node: onnx.NodeProto, inputs: list[str]) -> str:
        """A norm of groups of channels, each group as one channel of an InstanceNormalization.

        onnxruntime has no kernel for GroupNormalization: it runs ONNX's own definition, whose variance is the
        mean of the squares less the square of the mean, wrong in the fifth digit where the mean is far from
        0. Before opset 21 it has a gain for each group instead of each channel."""
        out, node_of = self.out, kernel.nodes[0]
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        groups, shape = int(settings["num_groups"]), list(self.template.shapes[node_of.name])
        shape[0], shape[1] = 0, self.network.node[node_of.name].width
        ones, zeros = (out.constant(np.full(groups, value, dtype=np.float32)) for value in (1, 0))
        flat = out.add("Reshape", [inputs[0], out.constant(np.array([0, groups, -1], dtype=np.int64))])
        epsilon = float(settings.get("epsilon", 1e-5))
        name = self._node_name(TENSOR + node_of.name)
        normed = out.add("InstanceNormalization", [flat, ones, zeros], name=name, epsilon=epsilon)
        sizes = out.constant(np.array(shape, dtype=np.int64), among=self._cuttable(node_of.name))
        found = out.add("Reshape", [normed, sizes])
        axes = out.constant(np.arange(1, len(shape) - 1, dtype=np.int64))
        for op, each in zip(("Mul", "Add"), inputs[1:], strict=True):
            found = out.add(op, [found, out.add("Unsqueeze", [each, axes])])
        return found

    def _finished(self, outputs: list[str]) -> onnx.ModelProto:
        """The file. ``outputs``: its values that the network puts out."""
        out, infos = self.out, []
        for index, (value, name) in enumerate(zip(outputs, self.network.outputs, strict=True)):
            put_out = "output" if index == 0 else f"output{index}"
            out.add("Identity", [value], output=put_out)
            shape = list(self.template.shapes[name])
            if shape:
                shape[self.template.axes[name]] = self.network.node[name].width
            infos.append(helper.make_tensor_value_info(put_out, self.template.kinds[name], shape))
        if self.inner:  # onnxruntime finds their types
            made = {name for node in out.nodes for name in node.output}
            values = dict.fromkeys(value for value in self.value.values() if value in made)
            infos += [onnx.ValueInfoProto(name=value) for value in values]
        nodes = nodes_read(out.nodes, {info.name for info in infos})
        read = {name for node in nodes for name in (*node.input, *read_inside(node))}
        graph = helper.make_graph(
            nodes,
            "leanfront",
            [
                helper.make_tensor_value_info(
                    self.template.input_name(place), self.template.kinds[name], self.template.shapes[name]
                )
                for place, name in enumerate(self.template.inputs)
            ],
            infos,
            [tensor for tensor in out.initializers if tensor.name in read],
        )
        return helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", out.opset),
                *([helper.make_opsetid(CONTRIBUTED, 1)] if any(node.domain for node in nodes) else []),
            ],
            ir_version=IR_VERSION if out.opset == OPSET else 13,
            producer_name="leanfront",
        )


def _cut_constant(
    template: Template,
    network: Network,
    node: onnx.NodeProto,
    name: str,
    array: NDArray[np.generic],
    made_for: str,
) -> NDArray[np.generic]:
    """A constant of the template as the cut network needs it.

    Sizes that count channels are corrected; parameters that are not the cut network's own (those of a model
    with random weights) lose what is too much. ``made_for``: see ``Walk._made_for``.
    """
    # a parameter of the model's own, or what is made of sizes alone (the state that a loop begins with)
    named = (n for n in network.nodes if n.op == "constant" and name in (n.detail, TENSOR + n.name))
    own = next(named, None)
    if own is not None:
        return array.take(range(own.width), axis=template.axes[own.name])
    owner = network.node.get(template.owners.get(name, ""))
    if owner is not None and array.ndim == 1:
        return _owned(template, network, owner, array)
    made = network.node.get(made_for)
    if made is None:
        return array
    axis, uncut = template.axes[made.name], template.network.node[made.name].width
    if operation(made.op).form == "norm" and array.shape == (uncut,) and bool((array == array[:1]).all()):
        return array[: made.width]  # the gain or shift of a norm that has none: ones, zeros
    if array.dtype != np.int64 or array.ndim != 1 or made.width == uncut:
        return array
    if node.op_type in _SIZED and len(array) > axis and array[axis] == uncut:
        array = array.copy()
        array[axis] = made.width
    return array


def _owned(
    template: Template, network: Network, owner: Node, array: NDArray[np.generic]
) -> NDArray[np.generic]:
    """The parameter of a norm, or an order of channels, for those that a node has left; that of the cut
    network fits already."""
    if array.dtype != np.int64:
        uncut = template.network.node[owner.name].width
        return array[: owner.width] if len(array) == uncut else array
    read = network.node[owner.inputs[0]].width
    fits = len(array) == owner.width and int(array.max(initial=0)) < read
    return array if fits else np.arange(owner.width) % read


def _drops_dimensions(node: onnx.NodeProto) -> bool:
    """Whether it is a sum, a mean, a maximum ... over dimensions which are gone behind it."""
    kept = [attribute.i for attribute in node.attribute if attribute.name == "keepdims"]
    return node.op_type.startswith("Reduce") and len(node.input) > 1 and kept == [0]


def _counts_zeros(node: onnx.NodeProto) -> bool:
    """Whether it takes means of windows that reach beyond a tensor, where zeros count."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    padded = any(settings.get("pads", [])) and bool(settings.get("count_include_pad"))
    return node.op_type == "AveragePool" and padded


def _pads_zeros(node: onnx.NodeProto) -> bool:
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    return len(node.input) == 2 and modes in ([], [b"constant"])
