"""From a torch module to a Network: shapes, connections, and which channels must be cut together."""

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from leanfront.compression.capture.attention import AttentionTracer, write_out_products
from leanfront.compression.capture.channels import (
    BINARY,
    ChannelGroups,
    Flow,
    default_axis,
    followed,
    parameter_axis,
    reduced_dimensions,
    spatial,
)
from leanfront.compression.capture.operations import kept_notes, operation
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.graph.nodes import LAYER_OPS


class TraceError(ValueError):
    """A model that cannot be followed from its input to its output."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as a graph of its modules, and the same as a Network. Node names are the graph's.

    ``axes``: node name -> the dimension of its channels. ``notes``: a line for each thing with weight
    matrices that is kept as it is, and why.
    """

    module: fx.GraphModule
    network: Network
    example_input: Tensor
    axes: Mapping[str, int]
    notes: tuple[str, ...] = ()


def trace(model: nn.Module, example_input: Tensor) -> Traced:
    """Follow a model with torch.fx and describe it as a Network. The model itself is not touched.

    Args:
        model: any module that torch.fx can trace; each layer may be called once.
        example_input: one input with a batch of one, (1, C, H, W) or (1, C).

    Raises:
        TraceError: control flow that depends on values, a layer called twice, an example that does not fit,
            or a network without layers; the message names the operation.
    """
    if example_input.shape[0] != 1:
        raise TraceError(f"the example input must have a batch of one, not {example_input.shape[0]}")
    copied = copy.deepcopy(model).eval()
    for submodule in copied.modules():
        if getattr(submodule, "inplace", False):  # an in-place ReLU would overwrite what other nodes show
            setattr(submodule, "inplace", False)  # noqa: B010 (not an attribute of every Module)
    try:
        graph = fx.GraphModule(copied, AttentionTracer().trace(copied), type(model).__name__)
    except Exception as error:  # torch.fx raises many kinds; all mean the same for the user
        raise TraceError(
            f"torch.fx cannot trace {type(model).__name__}: {_where(error)}; rewrite that line without"
            " control flow on tensor values, or wrap it in a module of its own"
        ) from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(example_input)
            if write_out_products(graph):
                ShapeProp(graph).propagate(example_input)
    except Exception as error:
        raise TraceError(
            f"the model does not run on its example input of shape {tuple(example_input.shape)}: {error}"
        ) from error
    network, axes = _network(graph)
    return Traced(graph, network, example_input, axes, kept_notes(graph))


def _where(error: Exception) -> str:
    frame = error.__traceback__
    place = ""
    while frame is not None:
        filename = frame.tb_frame.f_code.co_filename
        if "/torch/" not in filename and not filename.endswith("compression/capture/trace.py"):
            place = f" (in {frame.tb_frame.f_code.co_name}, line {frame.tb_lineno} of {filename})"
        frame = frame.tb_next
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}{place}"


def _network(graph: fx.GraphModule) -> tuple[Network, dict[str, int]]:
    groups = ChannelGroups()
    flows: dict[str, Flow] = {}
    layers: dict[str, Layer] = {}
    several: dict[str, tuple[str, tuple[Flow, ...]]] = {}  # nodes that put out several tensors
    outputs: tuple[str, ...] = ()
    for fx_node in graph.graph.nodes:
        if fx_node.op == "output":
            outputs = tuple(source.name for source in fx_node.all_input_nodes if source.name in flows)
            continue
        meta = fx_node.meta.get("tensor_meta")
        op, detail = operation(graph, fx_node)
        inputs = tuple(flows[source.name] for source in fx_node.all_input_nodes if source.name in flows)
        one_of_several = False
        for source in fx_node.all_input_nodes:
            if source.name in several:  # one of several tensors: what made them all
                op, inputs = several[source.name]
                one_of_several = True
        if isinstance(meta, tuple) and any(isinstance(part, TensorMetadata) for part in meta):
            for flow in inputs:
                groups.freeze(flow.channels)
            several[fx_node.name] = ("slice" if detail in ("chunk", "split", "unbind") else "other", inputs)
            continue
        if not isinstance(meta, TensorMetadata):
            _settle_channel_count(fx_node, flows)
            continue  # sizes and the like: numbers, not tensors
        shape = tuple(meta.shape)
        if op in LAYER_OPS:
            name = str(fx_node.target)
            if name in layers:
                raise TraceError(f"layer {name!r} is called twice; each layer must be called once")
            axis = len(shape) - 1 if op == "linear" else 1
            flows[inputs[0].node.name] = source_flow = _read_along(inputs[0], axis, groups)
            layers[name], channels = _layer(name, graph.get_submodule(name), op, source_flow, shape, groups)
            node = Node(fx_node.name, op, (inputs[0].node.name,), channels, spatial(shape, axis), layer=name)
        else:
            op = _refined(op, fx_node, inputs, shape)
            if op == "constant" and meta.dtype.is_floating_point and shape:
                axis = parameter_axis(shape)
                channels = (Segment(groups.new(fx_node.name, layer=False), shape[axis]),)
            elif one_of_several:  # their channels stay
                whole = inputs[0] if inputs and len(inputs[0].shape) == len(shape) else None
                axis = whole.axis if whole is not None else default_axis(shape)
                channels = (Segment(None, shape[axis] if shape else 1),)
            else:
                channels, axis = followed(graph, op, fx_node, inputs, shape, groups)
            kernel, stride = _window(graph, fx_node, op, inputs, shape)
            node = Node(
                fx_node.name, op, tuple(flow.node.name for flow in inputs), channels, spatial(shape, axis),
                kernel=kernel, stride=stride, detail=detail,
            )  # fmt: skip
        flows[node.name] = Flow(node, shape, axis)
    if not layers:
        raise TraceError("the model has no Conv2d, ConvTranspose2d or Linear layer: nothing to compress")
    for name in outputs:
        groups.freeze(flows[name].channels)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    named = groups.names()
    nodes = (flow.node for flow in flows.values())
    network = Network(
        nodes=tuple(
            replace(node, channels=tuple(replace(s, group=named.get(s.group or "")) for s in node.channels))
            for node in nodes
        ),
        layers=tuple(replace(layer, group=named.get(layer.group or "")) for layer in layers.values()),
        outputs=outputs,
    )
    return network, {name: flow.axis for name, flow in flows.items()}


def _settle_channel_count(node: fx.Node, flows: Mapping[str, Flow]) -> None:
    """Where the code asks for a tensor's number of channels, write down that of the uncut network.

    What is computed with it shapes tensors whose channels stay (all others are followed by other means):
    heads of an attention, say, whose input may be cut.
    """
    dim: Any = None
    source: Any = None
    if node.op == "call_method" and node.target == "size" and len(node.args) > 1:
        source, dim = node.args[0], node.args[1]
    elif node.op == "call_function" and node.target is operator.getitem:
        sizes, dim = node.args
        whole = isinstance(sizes, fx.Node) and (
            (sizes.op == "call_method" and sizes.target == "size" and len(sizes.args) == 1)
            or (sizes.target is getattr and sizes.args[1] == "shape")
        )
        source = sizes.args[0] if whole and isinstance(sizes, fx.Node) else None
    if not isinstance(source, fx.Node) or source.name not in flows or not isinstance(dim, int):
        return
    flow = flows[source.name]
    if dim % len(flow.shape) != flow.axis:
        return
    count = flow.shape[flow.axis]
    for user in tuple(node.users):
        user.args = map_aggregate(user.args, lambda value: count if value is node else value)
        user.kwargs = map_aggregate(user.kwargs, lambda value: count if value is node else value)


def _read_along(source: Flow, axis: int, groups: ChannelGroups) -> Flow:
    """A tensor as the layer that reads it sees it. What was followed along another dimension stays uncut."""
    if source.axis == axis:
        return source
    groups.freeze(source.channels)
    channels = (Segment(None, source.shape[axis]),)
    node = replace(source.node, channels=channels, spatial=spatial(source.shape, axis))
    return Flow(node, source.shape, axis)


def _layer(
    name: str, module: nn.Module, op: str, source: Flow, shape: tuple[int, ...], groups: ChannelGroups
) -> tuple[Layer, tuple[Segment, ...]]:
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        positions = math.prod(shape[:-1])
        layer_shape = LayerShape(op, module.in_features, module.out_features, out_height=positions)
    else:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        kernel, stride = module.kernel_size, module.stride
        layer_shape = LayerShape(
            op, module.in_channels, module.out_channels, (kernel[0], kernel[1]), (stride[0], stride[1]),
            module.groups, shape[2], shape[3],
        )  # fmt: skip
    segment = Segment(groups.new(name), layer_shape.out_channels)
    if layer_shape.depthwise and len(source.channels) == 1:
        groups.join(source.channels, (segment,))
    elif layer_shape.groups > 1:
        groups.freeze((*source.channels, segment))
    return Layer(name, layer_shape, segment.group, bias), (segment,)


def _refined(op: str, node: fx.Node, inputs: tuple[Flow, ...], shape: tuple[int, ...]) -> str:
    """Tell apart what one torch call can mean."""
    if op == "batchnorm" and inputs[0].axis != 1:
        return "other"  # its channels are our positions
    if op == "mean":
        over_image = len(inputs[0].shape) == 4 and inputs[0].axis == 1
        return "global_avgpool" if over_image and reduced_dimensions(node, 4) == {2, 3} else "mean"
    if op == "avgpool" and shape[2:] == (1, 1):
        return "global_avgpool"
    if op == "reshape":
        return "flatten" if len(shape) == 2 and shape[1] == math.prod(inputs[0].shape) else "reshape"
    if op == "expand":  # at a batch of one often nothing changes
        return "expand" if math.prod(shape) == math.prod(inputs[0].shape) else "elementwise"
    if op in BINARY and len(inputs) == 1:
        return "identity_arithmetic"  # with a plain number
    return op


def _window(
    graph: fx.GraphModule, node: fx.Node, op: str, inputs: tuple[Flow, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride of a pooling, (1, 1) for anything else; a global pooling spans its input."""
    if op == "global_avgpool":
        height, width = inputs[0].node.spatial
        return (height, width), (height, width)
    if op not in ("maxpool", "avgpool"):
        return (1, 1), (1, 1)
    height, width = inputs[0].node.spatial
    fallback = (height // shape[2], width // shape[3])
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        kernel = getattr(module, "kernel_size", None)
        stride = getattr(module, "stride", None)
    else:
        kernel = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else None)
        stride = node.kwargs.get("stride", node.args[2] if len(node.args) > 2 else None)
        if node.target is F.adaptive_avg_pool2d:
            kernel = stride = None
    kernel_pair = _pair(kernel, fallback)
    return kernel_pair, _pair(stride, kernel_pair)


def _pair(value: Any, default: tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (value[0], value[1])
    return default
