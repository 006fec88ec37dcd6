"""From a torch module to a Network: shapes, connections, and which channels must be cut together."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from leanfront.compression.capture.channels import (
    Flow,
    Follower,
    Shape,
    spatial,
)
from leanfront.compression.capture.classes import Classes, classes_of
from leanfront.compression.capture.normal_form import NormalForm
from leanfront.compression.capture.only_training import only_in_training
from leanfront.compression.capture.program import Arguments, TraceError, program
from leanfront.compression.capture.sizes import arguments
from leanfront.compression.graph import Layer, Network, Node
from leanfront.compression.graph.branches import FILLED, SCALED
from leanfront.compression.graph.operations import Operation, by_aten, operation
from leanfront.compression.layers import LayerKind, kind_of, layer_shape
from leanfront.compression.layers.kinds import pair
from leanfront.compression.policy.grids import GridKind

__all__ = ["Arguments", "TraceError", "Traced", "trace"]


@dataclass(frozen=True, eq=False)
class Traced:
    """A model in the normal form, and the same as a Network. Node names are the graph's.

    example: what it was captured with. shapes: node name -> shape of its tensor in the uncut network, with a
    batch of one. axes: the dimension of its channels. classes: the class of each of its channels: what has
    the same is one channel, -1 stays. blocks: number of the block of each class; block_numbers: (group,
    block) -> its number. notes: a line for each thing with weights that is kept as it is, and why.
    grids: where the zeros of its tensors' grids may lie, by the engine that it is compressed for.
    importance: of each class how much is lost without it, as a criterion says (``techniques/criteria.py``);
    None: the L2 norm of what the weights are when it is cut.
    """

    module: fx.GraphModule
    network: Network
    example: Arguments
    shapes: Mapping[str, Shape] = field(repr=False)
    axes: Mapping[str, int] = field(repr=False)
    classes: Mapping[str, NDArray[np.int64]] = field(repr=False)
    blocks: NDArray[np.int64] = field(repr=False)
    block_numbers: Mapping[tuple[str, int], int] = field(repr=False)
    notes: tuple[str, ...] = ()
    grids: GridKind = "affine"
    importance: NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def example_input(self) -> Tensor:
        """The first tensor that it was captured with."""
        return self.example.tensors[0]


def trace(model: nn.Module, example_inputs: Any) -> Traced:
    """Capture a model and describe it as a Network. The model itself is not touched.

    Args:
        model: any module that torch.export captures.
        example_inputs: what it takes, with a batch of one: a tensor, a tuple of arguments, or a dictionary of
            keywords.

    Raises:
        TraceError: it cannot be captured, or has no layer; one sentence names the line or the weight.
    """
    example = Arguments.of(example_inputs)
    form = NormalForm(program(model, example))
    graph = form.made()
    reader = _Reader(graph)
    try:
        with torch.no_grad():
            reader.read_with(*example.tensors)
    except Exception as error:
        if reader.computing is None or _runs(program(model, example), example):
            raise
        raise TraceError(  # it was captured with a batch of two, and computed then
            "the network fits one batch size only: its code goes through the examples of a batch one by one,"
            f" or counts them{_place(reader.computing)}; write it for any batch, or compress a part without"
            ' that: part="backbone", say'
        ) from error
    if not reader.layers:
        notes = list(dict.fromkeys([*form.notes, *reader.notes]))
        why = "; ".join(notes[:2]) + (f"; and {len(notes) - 2} more" if len(notes) > 2 else "")
        raise TraceError(
            "the model has no convolution and no linear layer of its own that can be compressed"
            + (f": {why}" if why else "")
        )
    network, classes = reader.network()
    return Traced(
        graph, network, example,
        shapes={node.name: flow.shape for node, flow in reader.flows.items()},
        axes=classes.axes, classes=classes.of_node, blocks=classes.blocks,
        block_numbers=classes.block_numbers,
        notes=tuple(dict.fromkeys([*form.notes, *reader.notes, *_training_notes(model, example, graph)])),
    )  # fmt: skip


def _training_notes(model: nn.Module, example: Arguments, graph: nn.Module) -> list[str]:
    dropouts = {name for name, part in graph.named_modules() if isinstance(part, nn.Dropout)}
    names = [name for name in only_in_training(model, example) if name not in dropouts]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    said = (
        f"{shown}: what is done in training alone (a drop path, noise) is not done to the compressed network"
    )
    return [said] if names else []


def _runs(module: nn.Module, example: Arguments) -> bool:
    """Whether a module runs on an example."""
    try:
        with torch.no_grad():
            example.call(module)
    except Exception:  # whatever an operator raises
        return False
    return True


def _place(node: fx.Node) -> str:
    """The last line of the user's code that a node came from."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f" (line {lines[-1][1]} of {lines[-1][0]})" if lines else ""


class _Reader(fx.Interpreter):
    """Runs a graph with a batch of one, and notes of each node what it is."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.follower = Follower()
        self.flows: dict[fx.Node, Flow] = {}
        self.read: dict[fx.Node, Node] = {}  # still without channels
        self.layers: dict[str, tuple[Layer, fx.Node]] = {}  # with the node of the first use
        self.channels: dict[str, tuple[Tensor, Tensor]] = {}  # of a layer: those that it reads, and makes
        self.calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
        self.held: set[fx.Node] = set()  # what depends on weights alone, and is there when a file is loaded
        self.several: dict[fx.Node, Operation] = {}
        self.outputs: list[fx.Node] = []
        self.computing: fx.Node | None = None
        self.notes: list[str] = []

    def read_with(self, *inputs: Tensor) -> None:
        """Run with flat inputs, however the user nests them."""
        self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and note it."""
        with self._set_current_node(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.computing = n
            value = getattr(self, n.op)(n.target, args, kwargs)
            self.computing = None
        if n.op == "output":
            # a tensor may be put out twice, in two places of what the module returns
            self.outputs = [
                leaf
                for leaf in pytree.tree_leaves(n.args)
                if isinstance(leaf, fx.Node) and leaf in self.flows
            ]
        elif isinstance(value, Tensor):
            n.meta["shape"], n.meta["dtype"] = tuple(value.shape), value.dtype
            self._tensor(n, args, kwargs, tuple(value.shape), value)
        elif isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
            self.several[n] = by_aten.get(str(n.target), operation(""))
        return value

    def _tensor(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: Shape, value: Tensor
    ) -> None:
        follower = self.follower
        if node.op == "placeholder":
            self.flows[node], self.read[node] = follower.stayed(shape), Node(node.name, "input", (), ())
        elif node.op == "get_attr":
            self.flows[node] = follower.parameter(shape)
            whole = value.numel() * value.element_size()
            held = 0 if value.dtype is torch.float32 else whole
            if not all(user.target is torch.ops.aten.index_select.default for user in node.users):
                self.read[node] = Node(
                    node.name, "constant", (), (), detail=str(node.target), held_bytes=held
                )  # an order of channels is a part of what moves by it
        elif node.op == "call_module":
            self._module(node, self.module.get_submodule(str(node.target)), shape)
        else:
            self._function(node, args, kwargs, shape)
        sources = node.all_input_nodes
        if (
            node.op != "placeholder"
            and (sources or node.op != "call_function")
            and self.held.issuperset(sources)
        ):
            self.held.add(node)

    def _module(self, node: fx.Node, module: nn.Module, shape: Shape) -> None:
        kind = kind_of(module)
        if kind is not None and kind.alone:
            name = str(node.target)
            self.flows[node] = self.follower.stayed(shape, kind.out_axis)
            self.read[node] = Node(node.name, kind.op, (), (), layer=name)
            self.layers[name] = Layer(name, layer_shape(kind, module, shape), bias=False), node
            return
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if kind is not None:
            self._layer(node, source, kind, module, shape)
        elif isinstance(module, nn.Dropout):
            self.flows[node] = self.flows[source]
            self.read[node] = Node(node.name, "identity", (source.name,), (), detail=type(module).__name__)
        else:
            read = self.flows[source]
            made, spans = self.follower.norm(module, read)
            row = next(op for cls, op in _NORMS if isinstance(module, cls))
            affine = sum(
                p is not None for p in (getattr(module, "weight", None), getattr(module, "bias", None))
            )
            over = row != "batchnorm" or read.axis == 1 or read.fixed  # else its channels are our positions
            op = row if over else "other"
            bytes_each = 4 * affine if spans and row != "batchnorm" else 0
            fixed = (
                0
                if spans or row == "batchnorm"
                else 4 * affine * math.prod(getattr(module, "normalized_shape", ()))
            )
            self.flows[node] = Flow(shape, made.axis, made.numbers, fixed=made.fixed)
            self.read[node] = Node(
                node.name, op, (source.name,), (), detail=type(module).__name__, channel_bytes=bytes_each,
                held_bytes=fixed, norm=str(node.target) if self.calls[str(node.target)] > 1 else "",
            )  # fmt: skip

    def _layer(
        self, node: fx.Node, source: fx.Node, kind: LayerKind, module: nn.Module, shape: Shape
    ) -> None:
        name = str(node.target)
        read, made, whole = self.follower.layer(kind, module, self.flows[source], shape)
        inside, outside = self.channels.setdefault(name, (read.numbers, made.numbers))
        self.follower.numbers.join(read.numbers, inside)  # its weights have the same channels in each use
        self.follower.numbers.join(made.numbers, outside)
        if source.op != "get_attr":
            self.flows[source] = read
        self.flows[node] = made
        self.read[node] = Node(node.name, kind.op, (source.name,), (), layer=name)
        layer = Layer(name, layer_shape(kind, module, shape), None, getattr(module, "bias", None) is not None)
        self.layers.setdefault(name, (Layer(name, layer.shape, None, layer.bias, whole), node))

    def _function(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], shape: Shape
    ) -> None:
        sources = [source for source in node.all_input_nodes if source in self.flows]
        parent = next((source for source in node.all_input_nodes if source in self.several), None)
        if parent is not None:
            self._one_of_several(node, parent, shape)
            return
        row = by_aten.get(str(node.target), operation(""))
        flow = self.follower.operation(row, node, args, kwargs, self.flows, shape)
        bound = arguments(node, args, kwargs)
        op, detail = self._named(row, node, bound, [self.flows[s] for s in sources], flow)
        kernel, stride = self._window(op, bound, sources, flow)
        index = node.target is torch.ops.aten.index_select.default
        self.flows[node] = flow
        self.read[node] = Node(
            node.name, op, tuple(source.name for source in sources if source in self.read), (),
            kernel=kernel, stride=stride, detail=detail, channel_bytes=8 * index,
            macs=self._macs(node, op, shape),
        )  # fmt: skip
        self._note_kept(node, op)

    def _note_kept(self, node: fx.Node, op: str) -> None:
        """Say of weights that are left as they are, and no layer's, why."""
        weights = [each for each in self._matrices(node) if each.op != "call_function"]  # that bear a name
        if op in _KEPT and weights:
            name = str(weights[0].target).rpartition(".")[0] or str(weights[0].target)
            several = not operation(op).looked_up and any(
                len(weight.users) > 1 for weight in weights if weight.op == "get_attr"
            )
            why = _SEVERAL if several else _KEPT[op]
            if not any(note.startswith(f"{name} {why.split()[0]} ") for note in self.notes):
                self.notes.append(f"{name} {why}")

    def _matrices(self, node: fx.Node) -> list[fx.Node]:
        """The weights that an operation reads and that are no vectors."""
        return [s for s in node.all_input_nodes if s in self.held and len(self.flows[s].shape) > 1]

    def _one_of_several(self, node: fx.Node, parent: fx.Node, shape: Shape) -> None:
        """One of the tensors that an operation puts out together: the first that is read stands for it."""
        sources = [source for source in parent.all_input_nodes if source in self.flows]
        first = next(iter(parent.users)) is node
        for source in sources:
            self.follower.numbers.stay(self.flows[source].numbers)
        self.flows[node] = self.follower.stayed(shape)
        row = self.several[parent]
        self.read[node] = Node(
            node.name, (row.name or "other") if first else "other",
            tuple(source.name for source in sources), (),
            detail=_operator(parent), macs=self._macs(parent, row.name, shape) if first else 0,
        )  # fmt: skip
        self._note_kept(parent, row.name)

    def _named(
        self, row: Operation, node: fx.Node, bound: Mapping[str, Any], inputs: list[Flow], made: Flow
    ) -> tuple[str, str]:
        """The op and a word on it: one operator can mean several things."""
        op, detail, shape = row.name or "other", _operator(node), made.shape
        name = str(node.target)
        if row.layer:
            op = "convolution"
        elif name in ("aten.hardtanh.default", "aten.clamp.default"):
            op = "relu6" if list(bound.values())[1:] == [0, 6] else op
        elif name == "aten.mean.dim" and inputs[0].axis == 1 and (rank := len(inputs[0].shape)) > 2:
            dims = {int(d) % rank for d in bound.get("dim") or range(rank)}
            op = "global_avgpool" if dims == set(range(2, rank)) else op
        elif op == "avgpool" and math.prod(shape[2:]) == 1:
            op = "global_avgpool"
        elif op in ("reshape", "flatten"):
            op = "flatten" if len(shape) == 2 and shape[1] == math.prod(inputs[0].shape) else "reshape"
        elif op == "transpose" and _same_order(inputs[0].shape, bound):
            op = "reshape"
        elif op == "expand":  # at a batch of one often nothing changes
            op = "expand" if math.prod(shape) == math.prod(inputs[0].shape) else "elementwise"
        elif op == "batchnorm" and made.axis != 1:
            op = "other"
        elif op in ("add", "sub", "mul", "div") and len(inputs) == 1:
            op = "identity_arithmetic"  # with a plain number
        if op == "add" and bound.get("alpha", 1) != 1:
            detail = SCALED
        if (
            op == "pad"
            and bound.get("value") not in (None, 0)
            and bound.get("mode", "constant") == "constant"
        ):
            op, detail = "elementwise", FILLED  # values that the grid of what it reads need not hold
        return op, detail

    def _window(
        self, op: str, bound: Mapping[str, Any], sources: list[fx.Node], made: Flow
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Kernel and stride of a pooling, (1, 1) for anything else; a global pooling spans its input."""
        if op == "global_avgpool":
            size = pair((1, *_image(self.flows[sources[0]])))
            return size, size
        if op not in ("maxpool", "avgpool"):
            return (1, 1), (1, 1)
        before, after = _image(self.flows[sources[0]]), _image(made)
        fallback = pair([1, *(max(b // max(a, 1), 1) for b, a in zip(before, after, strict=True))])
        rank = len(made.shape) - 2
        kernel = _window_sizes(bound.get("kernel_size"), rank) or fallback
        return kernel, _window_sizes(bound.get("stride"), rank) or kernel

    def _macs(self, node: fx.Node, op: str, shape: Shape) -> int:
        """Multiply-accumulates of what has weights and is no layer."""
        in_steps = operation(op).in_steps
        if op != "convolution" and not in_steps:
            return 0
        weights = self._matrices(node)
        count = sum(math.prod(self.flows[s].shape) for s in weights)
        read = self.flows[node.all_input_nodes[0]].shape
        if in_steps:
            return count * max(math.prod(read[:-1]), 1)
        if "transpose" in str(node.target):
            return count * math.prod(read[2:])
        return count * (math.prod(shape[:-1]) if "linear" in str(node.target) else math.prod(shape[2:]))

    # --- the whole

    def network(self) -> tuple[Network, Classes]:
        """The network, now that all channels are known."""
        for node in self.outputs:
            self.follower.numbers.stay(self.flows[node].numbers)
        layers = sorted(
            self.layers.values(), key=lambda own: own[0].weight_only
        )  # groups bear names of others
        layer_nodes = [node for _, node in layers]
        classes = classes_of(self.follower.numbers, self.flows, layer_nodes)
        nodes = tuple(
            replace(
                read,
                channels=classes.segments[read.name],
                spatial=_beside(self.flows[node].shape, classes.axes[read.name]),
            )
            for node, read in self.read.items()
        )
        named = tuple(
            Layer(layer.name, layer.shape, classes.group[node.name], layer.bias, layer.whole_groups)
            for layer, node in self.layers.values()
        )
        return Network(nodes, named, tuple(n.name for n in self.outputs)), classes


_RECURRENT = "is kept as it is: recurrent layers are not cut, but stored in few bits, counted and priced"
_KEPT: Mapping[str, str] = {
    "lstm": f"{_RECURRENT}; with [space] dynamic onnxruntime multiplies it in integers; convolutions or"
    " attention in their place would be cut",
    "recurrent": f"{_RECURRENT}; convolutions or attention in their place would be cut",
    "embedding": "keeps its bits, and is cut with the channels that it meets: its weights are used several"
    " times, or are computed on the way; with a table of its own it would have bits, too",
    "convolution": "is kept as it is: its weights are computed on the way; merge what computes them into them"
    " first (remove_parametrizations), and it is a layer",
}
"""Operations with weights that are no layers, and what is said of them: why, and what could be done."""
_SEVERAL = (
    "is kept as it is: its weights are used several times; with weights of its own each use would be a layer"
)

_NORMS: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "batchnorm"), (nn.LayerNorm, "layernorm"), (nn.GroupNorm, "groupnorm"),
    (nn.RMSNorm, "rmsnorm"),
)  # fmt: skip


def _same_order(before: Shape, bound: Mapping[str, Any]) -> bool:
    """Whether a transpose moves dimensions of size 1 alone, with a batch of one: no value is moved."""
    rank = len(before)
    if "dims" in bound:
        order = [int(d) % rank for d in bound["dims"]]
    elif {"dim0", "dim1"} <= set(bound):
        order = list(range(rank))
        one, other = int(bound["dim0"]) % rank, int(bound["dim1"]) % rank
        order[one], order[other] = order[other], order[one]
    else:
        return False
    large = [d for d in order if before[d] > 1]
    return large == sorted(large)


def _operator(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _image(flow: Flow) -> Shape:
    """Height and width of what a pooling reads or makes."""
    return flow.shape[2:] if len(flow.shape) > 2 else (1, 1)


def _beside(shape: Shape, axis: int) -> Shape:
    """Sizes beside the channels; a sequence of a convolution is an image of height 1, a volume one whose
    height counts depth times height."""
    if axis == 1 and len(shape) in (3, 5) and shape[0] == 1:
        return pair((1, *shape[2:]))
    return spatial(shape, axis)


def _window_sizes(value: Any, rank: int) -> tuple[int, int] | None:
    if value is None or value == []:
        return None
    sizes = [value] if isinstance(value, int) else list(value)
    return pair((1, *(sizes * rank if len(sizes) == 1 else sizes)))
