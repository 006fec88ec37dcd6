"""From a torch module to a Network: shapes, connections, and which channels must be cut together."""

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from compression.channels import ChannelGroups
from compression.policy import Layer, LayerShape, Network, Node, Segment


class TraceError(ValueError):
    """A model that cannot be followed from its input to its output."""


@dataclass(frozen=True)
class Traced:
    """A model as a graph of its modules, and the same as a Network. Node names are the graph's."""

    module: fx.GraphModule
    network: Network
    example_input: Tensor


MODULE_OPS: Mapping[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batchnorm",
    nn.BatchNorm2d: "batchnorm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.LeakyReLU: "leaky_relu",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "avgpool",
    nn.Flatten: "reshape",
    nn.Dropout: "identity",
    nn.Dropout2d: "identity",
    nn.Identity: "identity",
    nn.Softmax: "softmax",
    nn.LayerNorm: "layernorm",
    nn.Upsample: "upsample",
}

FUNCTION_OPS: Mapping[Callable[..., Any], str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.silu: "silu",
    F.gelu: "gelu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.leaky_relu: "leaky_relu",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    operator.mul: "mul",
    torch.mul: "mul",
    torch.cat: "concat",
    torch.concat: "concat",
    F.max_pool2d: "maxpool",
    F.avg_pool2d: "avgpool",
    F.adaptive_avg_pool2d: "avgpool",
    torch.mean: "mean",
    torch.flatten: "reshape",
    torch.reshape: "reshape",
    F.dropout: "identity",
    F.softmax: "softmax",
    torch.softmax: "softmax",
    F.pad: "pad",
    operator.getitem: "slice",
    F.interpolate: "upsample",
}

METHOD_OPS: Mapping[str, str] = {
    "relu": "relu",
    "add": "add",
    "mul": "mul",
    "mean": "mean",
    "flatten": "reshape",
    "view": "reshape",
    "reshape": "reshape",
    "contiguous": "identity",
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}

KEEPS_CHANNELS = (
    "batchnorm", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh",
    "leaky_relu", "maxpool", "avgpool", "global_avgpool", "identity", "upsample",
)  # fmt: skip


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
        graph = fx.symbolic_trace(copied)
    except Exception as error:  # torch.fx raises many kinds; all mean the same for the user
        raise TraceError(
            f"torch.fx cannot trace {type(model).__name__}: {_where(error)}; rewrite that line without"
            " control flow on tensor values, or wrap it in a module of its own"
        ) from error
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(example_input)
    except Exception as error:
        raise TraceError(
            f"the model does not run on its example input of shape {tuple(example_input.shape)}: {error}"
        ) from error
    return Traced(graph, _network(graph), example_input)


def _where(error: Exception) -> str:
    frame = error.__traceback__
    place = ""
    while frame is not None:
        filename = frame.tb_frame.f_code.co_filename
        if "/torch/" not in filename and not filename.endswith("compression/trace.py"):
            place = f" (in {frame.tb_frame.f_code.co_name}, line {frame.tb_lineno} of {filename})"
        frame = frame.tb_next
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__}{place}"


def _network(graph: fx.GraphModule) -> Network:
    groups = ChannelGroups()
    nodes: dict[str, Node] = {}
    layers: dict[str, Layer] = {}
    outputs: tuple[str, ...] = ()
    for fx_node in graph.graph.nodes:
        if fx_node.op == "output":
            outputs = tuple(source.name for source in fx_node.all_input_nodes if source.name in nodes)
            continue
        meta = fx_node.meta.get("tensor_meta")
        if not isinstance(meta, TensorMetadata):
            continue  # sizes and the like: numbers, not tensors
        inputs = tuple(nodes[source.name] for source in fx_node.all_input_nodes if source.name in nodes)
        op, detail = _operation(graph, fx_node)
        shape = tuple(meta.shape)
        if op in ("conv2d", "conv_transpose2d", "linear"):
            name = str(fx_node.target)
            if name in layers:
                raise TraceError(f"layer {name!r} is called twice; each layer must be called once")
            layer, channels = _layer(name, graph.get_submodule(name), op, inputs[0], shape, groups)
            layers[name] = layer
            node = Node(fx_node.name, op, (inputs[0].name,), channels, _spatial(shape), layer=name)
        else:
            op = _refined(op, fx_node, inputs, shape)
            channels = _channels(op, fx_node, inputs, shape, groups)
            kernel, stride = _window(graph, fx_node, op, inputs, shape)
            node = Node(
                fx_node.name, op, tuple(i.name for i in inputs), channels, _spatial(shape),
                kernel=kernel, stride=stride, detail=detail,
            )  # fmt: skip
        nodes[node.name] = node
    if not layers:
        raise TraceError("the model has no Conv2d, ConvTranspose2d or Linear layer: nothing to compress")
    for name in outputs:
        groups.freeze(nodes[name].channels)
    named = groups.names()
    return Network(
        nodes=tuple(
            replace(node, channels=tuple(replace(s, group=named.get(s.group or "")) for s in node.channels))
            for node in nodes.values()
        ),
        layers=tuple(replace(layer, group=named.get(layer.group or "")) for layer in layers.values()),
        outputs=outputs,
    )


def _operation(graph: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """The network's op and the name of the original operation."""
    if node.op == "placeholder":
        return "input", ""
    if node.op == "get_attr":
        return "constant", str(node.target)
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return MODULE_OPS.get(type(module), "other"), type(module).__name__
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        return (FUNCTION_OPS.get(node.target, "other") if callable(node.target) else "other"), name
    return METHOD_OPS.get(str(node.target), "other"), str(node.target)


def _channel_size(shape: tuple[int, ...]) -> int:
    """Images (N, C, H, W) and vectors (N, C) have channels second, sequences (N, T, C) last."""
    return shape[1] if len(shape) in (2, 4) else shape[-1] if shape else 1


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3:
        return (shape[1],)
    return shape[2:]


def _layer(
    name: str, module: nn.Module, op: str, source: Node, shape: tuple[int, ...], groups: ChannelGroups
) -> tuple[Layer, tuple[Segment, ...]]:
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        if len(shape) == 4:  # channels last: not followed
            groups.freeze(source.channels)
        positions = math.prod(shape[1:-1])
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


def _refined(op: str, node: fx.Node, inputs: tuple[Node, ...], shape: tuple[int, ...]) -> str:
    """Tell apart what one torch call can mean."""
    if op == "batchnorm" and len(shape) == 3:
        return "other"  # its channels are our positions
    if op == "mean":
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        wanted = {d % 4 for d in dims} if isinstance(dims, list | tuple) else None
        return "global_avgpool" if wanted == {2, 3} and len(inputs[0].spatial) == 2 else "other"
    if op == "avgpool" and shape[2:] == (1, 1):
        return "global_avgpool"
    if op == "reshape":
        (source,) = inputs[:1]
        return "flatten" if len(shape) == 2 and shape[1] == source.elements else "reshape"
    if op in ("add", "mul") and len(inputs) == 1:
        return "identity_arithmetic"  # with a plain number
    return op


def _channels(
    op: str, node: fx.Node, inputs: tuple[Node, ...], shape: tuple[int, ...], groups: ChannelGroups
) -> tuple[Segment, ...]:
    """Segments of an operation's output; joins or freezes the groups that it couples."""
    size = _channel_size(shape)
    if op in ("input", "constant"):
        return (Segment(None, size),)
    first = inputs[0].channels
    if (op in KEEPS_CHANNELS or op == "identity_arithmetic") and inputs[0].width == size:
        return first
    if op in ("add", "mul") and all(i.width == size for i in inputs):
        for other in inputs[1:]:
            groups.join(first, other.channels)
        return first
    if op == "concat":
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dim in (1, -3) and len(shape) == 4:
            return tuple(segment for i in inputs for segment in i.channels)
    if op == "flatten":
        repeat = math.prod(inputs[0].spatial)
        if repeat > 1 and len(first) > 1:  # torch-pruning does not follow a concat into a flatten
            groups.freeze(first)
        return tuple(replace(segment, repeat=segment.repeat * repeat) for segment in first)
    if op == "slice" and _keeps_all_channels(node, len(shape)) and inputs[0].width == size:
        return first
    for source in inputs:
        groups.freeze(source.channels)
    return (Segment(None, size),)


def _keeps_all_channels(node: fx.Node, rank: int) -> bool:
    index = node.args[1]
    return isinstance(index, tuple) and rank == 4 and len(index) > 1 and index[1] == slice(None)


def _window(
    graph: fx.GraphModule, node: fx.Node, op: str, inputs: tuple[Node, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride of a pooling, (1, 1) for anything else; a global pooling spans its input."""
    if op == "global_avgpool":
        height, width = inputs[0].spatial
        return (height, width), (height, width)
    if op not in ("maxpool", "avgpool"):
        return (1, 1), (1, 1)
    height, width = inputs[0].spatial
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
