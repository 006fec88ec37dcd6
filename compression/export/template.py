"""The float ONNX graph of a model, exported once; every policy's file is made from it without torch.

The graph shows each node of the traced model as a named output, so layers and tensors are found in it by
name, whatever the exporter called them. Weights are not kept: they come with each export.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import onnx
import torch
from onnx import helper
from torch import fx
from torch.fx.graph import CodeGen

from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.torch_exporter import ExportError as ExportError
from leanfront.compression.export.torch_exporter import float_graph
from leanfront.compression.graph import Network
from leanfront.compression.layers import kind_of

TENSOR = "tensor:"
"""Prefix that marks a value of the graph as the output of the traced node of the same name."""

INPUT = "input:"
"""The same for what the network reads."""


@dataclass(frozen=True)
class Template:
    """Serialized float graph whose values ``tensor:<node>`` are the outputs of the network's nodes.

    By name of a node: axes: the dimension of its channels; shapes: of its tensor, with a batch of one; kinds:
    ONNX's number for the type of its values. inputs: nodes of what the network reads, in order. attributes:
    layer -> those of its operation. owners: parameter of a norm, or order of channels -> its node. state:
    names of what the module holds, which training may change.
    """

    graph: bytes
    network: Network
    axes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, int]
    inputs: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, Any]]
    owners: Mapping[str, str]
    state: frozenset[str]

    def input_name(self, place: int) -> str:
        """What an input is called in a file."""
        return f"input{place}" if place else "input"

    def model(self) -> onnx.ModelProto:
        """The graph, to be changed freely."""
        return onnx.load_model_from_string(self.graph)


_MADE: WeakKeyDictionary[Traced, Template] = WeakKeyDictionary()


def template(traced: Traced) -> Template:
    """Export a traced model with torch.onnx (seconds), once for as long as it is there.

    Raises:
        ExportError: the exporter does not know an operation; its message is passed on.
    """
    if traced not in _MADE:
        _MADE[traced] = _exported(traced)
    return _MADE[traced]


def _exported(traced: Traced) -> Template:
    shown = copy.deepcopy(traced.module)
    inputs = tuple(node.name for node in shown.graph.nodes if node.op == "placeholder")
    kinds = {node.name: _onnx_kind(node.meta["dtype"]) for node in shown.graph.nodes if "dtype" in node.meta}
    names = _show_every_tensor(shown, traced.network)
    put_out = [TENSOR + name for name in names]
    model = float_graph(shown, traced.example.tensors, [INPUT + name for name in inputs], put_out)
    name_apart(model, put_out)
    del model.graph.output[:]
    del model.graph.value_info[:]
    return Template(
        model.SerializeToString(), traced.network, traced.axes, traced.shapes, kinds, inputs,
        {layer.name: _attributes(traced.module, layer.name) for layer in traced.network.layers},
        _owners(traced), frozenset(traced.module.state_dict()),
    )  # fmt: skip


def _onnx_kind(dtype: torch.dtype) -> int:
    kind = helper.np_dtype_to_tensor_dtype(torch.zeros((), dtype=dtype).numpy().dtype)
    return int(kind)


def _owners(traced: Traced) -> Mapping[str, str]:
    """Parameter of a norm, or order of channels -> the node that has it."""
    module = traced.module
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target not in traced.network.layer:
            own = module.get_submodule(target)  # a dropout may stand where the user's module has others in it
            held = (*own.named_parameters(recurse=False), *own.named_buffers(recurse=False))
            found |= {f"{target}.{key}": node.name for key, _ in held}
        elif node.target is torch.ops.aten.index_select.default and _along_channels(traced, node):
            orders = [source for source in node.all_input_nodes if source.op == "get_attr"]
            found |= {str(order.target): node.name for order in orders}
    return found


def _along_channels(traced: Traced, node: fx.Node) -> bool:
    """Whether an index says which channels there are, and not which positions."""
    axis = node.args[1]
    assert isinstance(axis, int)
    return axis % len(traced.shapes[node.name]) == traced.axes[node.name]


def _attributes(module: fx.GraphModule, name: str) -> Mapping[str, Any]:
    layer = module.get_submodule(name)
    kind = kind_of(layer)
    assert kind is not None
    return kind.attributes(layer)


def name_apart(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give each output the name that was asked for, in place. ``names``: of the outputs, in the order in
    which they are computed.

    torch from 2.14 on takes no-ops away (dropout outside training): of two tensors that are equal only one
    keeps its name, and the other is put out as a copy. Here they are a chain of Identity nodes again.
    """
    graph = model.graph
    copied = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    put_out = {name: value.name for name, value in zip(names, graph.output, strict=True)}
    equal: dict[str, list[str]] = {}
    for name, found in put_out.items():
        if found != name:
            equal.setdefault(copied.get(found, found), []).append(name)
    gone = {found for name, found in put_out.items() if found != name and found in copied}
    made_by = {output for node in graph.node for output in node.output}
    given = [source for source in equal if source not in made_by]  # inputs and weights
    nodes = [node for source in given for node in _chain([source, *equal.pop(source)])]
    for node in graph.node:
        if node.output[0] in gone:
            continue
        nodes.append(node)
        for place, output in enumerate(node.output):
            if output in equal:
                chain = [name for name in names if name == output or name in equal[output]]
                node.output[place] = chain[0]
                nodes += _chain(chain)
    kept = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _chain(names: Sequence[str]) -> list[onnx.NodeProto]:
    return [onnx.helper.make_node("Identity", [one], [other]) for one, other in pairwise(names)]


def _show_every_tensor(module: fx.GraphModule, network: Network) -> list[str]:
    """Make every tensor of the network an output; returns their names in order."""
    shown = [
        node
        for node in module.graph.nodes
        if node.op not in ("placeholder", "output", "get_attr") and node.name in network.node
    ]
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    output.args = (tuple(shown),)
    module.graph.set_codegen(CodeGen())  # flat inputs and outputs, however the user nests them
    module.recompile()
    return [node.name for node in shown]
