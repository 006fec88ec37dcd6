"""What each node of a traced graph is, in the words of ``compression.policy.Node.op``."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from leanfront.compression.graph.branches import FILLED, SCALED

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
    nn.ELU: "elementwise",
    nn.Softplus: "elementwise",
    nn.MaxPool2d: "maxpool",
    nn.AvgPool2d: "avgpool",
    nn.AdaptiveAvgPool2d: "avgpool",
    nn.Flatten: "reshape",
    nn.Unflatten: "reshape",
    nn.Dropout: "identity",
    nn.Dropout2d: "identity",
    nn.Identity: "identity",
    nn.Softmax: "softmax",
    nn.LayerNorm: "layernorm",
    nn.GroupNorm: "groupnorm",
    nn.Upsample: "upsample",
    nn.UpsamplingNearest2d: "upsample",
    nn.UpsamplingBilinear2d: "upsample",
    nn.ZeroPad2d: "pad",
}

NAMED_OPS: Mapping[str, str] = {
    **{name: name for name in (
        "relu", "relu6", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu",
        "softmax", "add", "sub", "mul", "div", "matmul", "mean", "expand", "transpose", "pad",
    )},
    **dict.fromkeys(("neg", "exp", "sqrt", "pow"), "elementwise"),
    **dict.fromkeys(("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"), "reshape"),
    **dict.fromkeys(("contiguous", "dropout"), "identity"),
    **dict.fromkeys(("cat", "concat"), "concat"),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d"), "avgpool"),
    "iadd": "add", "imul": "mul", "truediv": "div", "bmm": "matmul", "max_pool2d": "maxpool",
    "permute": "transpose", "getitem": "slice", "interpolate": "upsample",
}  # fmt: skip
"""What functions and methods of tensors are called -> the operation that they are."""

FUNCTION_OPS: Mapping[Callable[..., Any], str] = {
    getattr(module, name): op
    for module in (torch, F, operator)
    for name, op in NAMED_OPS.items()
    if hasattr(module, name)
}

LAYER_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear,
)  # fmt: skip
"""Layers without a module: their weights stay as they are."""


def plain_layer(module: nn.Module) -> bool:
    """Whether a module of a known class, or of a class made from one, computes what that class does."""
    base = known_class(module)
    if base is None or (base is not type(module) and type(module).__module__.startswith("torch.")):
        return False
    methods = ("forward", "_conv_forward", "__call__")
    return all(getattr(type(module), m, None) is getattr(base, m, None) for m in methods)


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of MODULE_OPS that a module is made from."""
    return next((kind for kind in type(module).__mro__ if kind in MODULE_OPS), None)


def operation(graph: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """The network's op and the name of the original operation."""
    if node.op == "placeholder":
        return "input", ""
    if node.op == "get_attr":
        return "constant", str(node.target)
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        kind = known_class(module)
        known = (
            kind is not None and plain_layer(module) and not _pads_oddly(module) and not _grouped_up(module)
        )
        return (MODULE_OPS[kind] if known and kind else "other"), type(module).__name__
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        op = FUNCTION_OPS.get(node.target, "other") if callable(node.target) else "other"
        return op, _variant(op, node) or name
    op = NAMED_OPS.get(str(node.target), "other")
    return op, _variant(op, node) or str(node.target)


def _variant(op: str, node: fx.Node) -> str:
    """A word on additions and paddings whose operands do not come out as they went in."""
    if op == "add" and node.kwargs.get("alpha", 1) != 1:
        return SCALED
    fill = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return FILLED if op == "pad" and fill not in (None, 0) else ""


def _pads_oddly(module: nn.Module) -> bool:
    """Convolutions that need an operation of their own for their borders."""
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return False
    same = module.padding == "same" and any(size % 2 == 0 for size in module.kernel_size)
    return module.padding_mode != "zeros" or same


def _grouped_up(module: nn.Module) -> bool:
    """Transposed convolutions in groups: their weights are not stored by output channel."""
    return isinstance(module, nn.ConvTranspose2d) and module.groups > 1


def kept_notes(graph: fx.GraphModule) -> tuple[str, ...]:
    """One line for everything with weight matrices that is left as it is, and why."""
    notes = []
    for node in graph.graph.nodes:
        op, detail = operation(graph, node)
        if op != "other":
            continue
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if any(parameter.dim() > 1 for parameter in module.parameters()):
                notes.append(f"{node.target} ({detail}) is kept as it is: {_reason(module)}")
        elif node.target in LAYER_FUNCTIONS:
            weights = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
            if weights:
                notes.append(
                    f"{weights[0]} is kept as it is: it goes into the function {detail}; as a module"
                    " (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) it can be compressed"
                )
    return tuple(notes)


def _reason(module: nn.Module) -> str:
    if _pads_oddly(module):
        return "its borders are not filled with as many zeros on each side"
    if _grouped_up(module):
        return "a transposed convolution in groups is not compressed"
    if known_class(module) is not None:
        return "its class computes something else than the one it is made from"
    return "only Conv2d, ConvTranspose2d and Linear are compressed"
