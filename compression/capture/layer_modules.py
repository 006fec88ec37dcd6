"""Operators with weights become modules of torch, under the user's own names."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.edited_graph import (
    RANDOM,
    EditedGraph,
    argument,
    module_path,
)
from leanfront.compression.capture.program import DROPOUT

aten = torch.ops.aten


def _layer_name(form: EditedGraph, node: fx.Node, weight: Any) -> str:
    """The user's name of a layer: of the owner of its weight, or of the module that calls it."""
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        owner, _, key = str(weight.target).rpartition(".")
        own = key.removesuffix("weight").rstrip("_")
        return ".".join(filter(None, (owner, own)))
    return module_path(node)


def _own_weight(form: EditedGraph, weight: Any, same: set[fx.Node]) -> Tensor | None:
    """The weight of a layer as a parameter of its own; None where others read it than ``same``."""
    if isinstance(weight, fx.Node) and not same.issuperset(weight.users):
        return None
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return form.held(str(weight.target))
    value = form.constant(weight)
    if value is None or form.first(weight) is not weight:
        return None  # computed anew for each use
    return value.clone()


def _parameter(value: Tensor) -> nn.Parameter:
    return (
        value
        if isinstance(value, nn.Parameter)
        else nn.Parameter(value.detach().clone(), value.is_floating_point())
    )


def _layer_made(
    form: EditedGraph, node: fx.Node, cls: type[nn.Module], weight: Any, bias: Any, *args: Any, **options: Any
) -> None:
    """Call a layer's module in place of its operator, where its weight is its own; the same module for all
    that do the same with it."""
    if form.constant(weight) is None or (bias is not None and form.constant(bias) is None):
        return
    read = node.args[0]
    if not isinstance(read, fx.Node) or form.constant(read) is not None:
        return
    does = _does(form, node)
    if does in form.layers:
        _used_again(form, node, form.layers[does], read)
        return
    same = {user for user in weight.users if user.target is node.target and _does(form, user) == does}
    held = _own_weight(form, weight, {user for user in same if form.constant(user.args[0]) is None})
    if held is None:
        return
    module = cls(*args, **options, bias=bias is not None, device="meta")
    module.weight = _parameter(held)
    if bias is not None:
        own = (
            form.held(str(bias.target))
            if bias.op == "get_attr" and same.issuperset(bias.users)
            else form.constant(bias)
        )
        assert own is not None
        module.bias = _parameter(own)
    name = form.layers[does] = form.name(_layer_name(form, node, weight))
    form.put(node, name, module, read)


def _does(form: EditedGraph, node: fx.Node) -> tuple[Any, ...]:
    """What a layer's operator computes with what it reads: the same for all uses of one layer."""
    given = [(str(place), value) for place, value in enumerate(node.args[1:])]
    listed = [
        (name, tuple(value) if isinstance(value, list | tuple) else form.first(value))
        for name, value in (*given, *node.kwargs.items())
    ]
    return str(node.target), *listed


def _used_again(form: EditedGraph, node: fx.Node, name: str, read: fx.Node) -> None:
    """Use a layer once more; what it makes of the same values is there already."""
    uses = [one for one in form.graph.graph.nodes if one.op == "call_module" and one.target == name]
    same: dict[tuple[fx.Node, fx.Node], bool] = {}
    before = next((use for use in uses if _same_values(use.all_input_nodes[0], read, same)), None)
    if before is None:
        form.call(node, name, read)
    else:
        form.replace(node, before)


def _same_values(one: fx.Node, other: fx.Node, known: dict[tuple[fx.Node, fx.Node], bool]) -> bool:
    """Whether two nodes compute the same of the same. ``known``: of pairs that were looked at."""
    if one is other:
        return True
    if one.op != "call_function" or other.op != one.op or one.target is not other.target:
        return False
    if (one, other) not in known:
        known[one, other] = False
        mine, theirs = one.all_input_nodes, other.all_input_nodes
        rest = [fx.node.map_arg((each.args, each.kwargs), lambda source: None) for each in (one, other)]
        alike = one.target not in RANDOM and len(mine) == len(theirs) and rest[0] == rest[1]
        known[one, other] = alike and all(
            _same_values(a, b, known) for a, b in zip(mine, theirs, strict=True)
        )
    return known[one, other]


def _linear(form: EditedGraph, node: fx.Node) -> None:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    value = form.constant(weight)
    if value is not None and value.dim() == 2:
        _layer_made(form, node, nn.Linear, weight, bias, value.shape[1], value.shape[0])


def _embedding(form: EditedGraph, node: fx.Node) -> None:
    """A table whose places may be constants (positions)."""
    weight, read = node.args[:2]
    value = form.constant(weight)
    if value is None or not isinstance(read, fx.Node) or (held := _own_weight(form, weight, {node})) is None:
        return
    rows, columns = value.shape
    unused = int(argument(node, "padding_idx", 2, -1))
    module = nn.Embedding(rows, columns, padding_idx=unused if unused >= 0 else None, device="meta")
    module.weight = _parameter(held)
    form.put(node, form.name(_layer_name(form, node, weight)), module, read)


def _recurrent(form: EditedGraph, node: fx.Node) -> None:
    """Its matrices are modules of their own, of which a policy can say how they are stored; those of a cell
    are read once for each step."""
    for source in node.all_input_nodes:
        form.alone(source)


_CONVOLUTIONS: Mapping[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d, aten.conv2d.default: nn.Conv2d, aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d, aten.conv2d.padding: nn.Conv2d, aten.conv3d.padding: nn.Conv3d,
}  # fmt: skip


def _convolution(form: EditedGraph, node: fx.Node) -> None:
    cls = _CONVOLUTIONS[node.target]
    given = [argument(node, name, place, default) for place, (name, default) in enumerate(
        (("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1),
         ("groups", 1)))]  # fmt: skip
    _, weight, bias, stride, padding, dilation, groups = given
    value = form.constant(weight)
    read = node.args[0]
    if value is None or not isinstance(read, fx.Node) or read.meta["val"].dim() != value.dim():
        return
    sizes = tuple(value.shape[2:])
    options = {
        "kernel_size": sizes, "stride": _sizes(stride, len(sizes)), "dilation": _sizes(dilation, len(sizes)),
        "padding": padding if isinstance(padding, str) else _sizes(padding, len(sizes)), "groups": groups,
    }  # fmt: skip
    _layer_made(form, node, cls, weight, bias, value.shape[1] * groups, value.shape[0], **options)


_TRANSPOSED: Mapping[Any, type[nn.Module]] = {
    aten.conv_transpose1d.default: nn.ConvTranspose1d, aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}  # fmt: skip


def _transposed(form: EditedGraph, node: fx.Node) -> None:
    cls = _TRANSPOSED[node.target]
    given = [argument(node, name, place, default) for place, (name, default) in enumerate(
        (("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0),
         ("output_padding", 0), ("groups", 1), ("dilation", 1)))]  # fmt: skip
    _, weight, bias, stride, padding, output_padding, groups, dilation = given
    value = form.constant(weight)
    if value is None:
        return
    n = value.dim() - 2
    _layer_made(
        form, node, cls, weight, bias, value.shape[0], value.shape[1] * groups,
        kernel_size=tuple(value.shape[2:]), stride=_sizes(stride, n), padding=_sizes(padding, n),
        output_padding=_sizes(output_padding, n), groups=groups, dilation=_sizes(dilation, n),
    )  # fmt: skip


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * count) if len(sizes) == 1 else tuple(sizes)


def _norm_made(form: EditedGraph, node: fx.Node, module: nn.Module, owned: Mapping[str, Any]) -> bool:
    """Call a norm's module in place of its operator. ``owned``: its parameters and buffers as nodes."""
    values = {key: form.constant(source) for key, source in owned.items() if source is not None}
    if any(value is None for value in values.values()) or not isinstance(node.args[0], fx.Node):
        return False
    first = next((s for s in owned.values() if isinstance(s, fx.Node) and s.op == "get_attr"), None)
    path = str(first.target).rpartition(".")[0] if first is not None else module_path(node)
    if path and (before := form.norms.get((path, node.args[0]))) is not None:  # the same of the same
        form.replace(node, before)
        return True
    behind = _behind_a_layer(module, owned, node.args[0])
    if behind in form.behind:
        form.norms[path, node.args[0]] = form.call(node, form.behind[behind], node.args[0])
        return True
    name = form.name(path or "norm")
    if name != path and path in form._names and first is not None:
        form.notes.append(f"{path} is used several times: each use has a norm of its own, {name} this one")
    for key, source in owned.items():
        if source is None:
            continue
        own = form.held(str(source.target)) if source.op == "get_attr" and name == path else values[key]
        assert isinstance(own, Tensor)
        if key in ("weight", "bias"):
            setattr(module, key, _parameter(own))
        else:
            setattr(module, key, own.detach().clone())
    read = node.args[0]
    if behind is not None:
        form.behind[behind] = name
    form.norms[path, read] = form.put(node, name, module, read)
    return True


def _behind_a_layer(module: nn.Module, owned: Mapping[str, Any], read: fx.Node) -> tuple[Any, ...] | None:
    """What batch norms have in common that are one module: the same parameters behind the same layer, used
    several times, into whose weights they can be folded. None for a norm that is none of those."""
    if not isinstance(module, _BatchNorm) or read.op != "call_module":
        return None
    return read.target, module.eps, *owned.values()


def _batch_norm(form: EditedGraph, node: fx.Node) -> None:
    given: list[Any] = list(node.args)
    x, weight, bias, mean, variance, momentum, eps = given[:7]
    if len(node.users) != 1 or next(iter(node.users)).target is not operator.getitem:
        return
    item = next(iter(node.users))
    cls = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.meta["val"].dim(), nn.BatchNorm1d)
    size = form.constant(mean)
    if size is None:
        return
    affine = weight is not None or bias is not None
    module = cls(size.shape[0], eps=eps, momentum=momentum, affine=affine)
    if _norm_made(
        form, node,
        module, {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance},
    ):  # fmt: skip
        called = item.args[0]
        called.meta = dict(item.meta)  # type: ignore[union-attr]
        form.replace(item, called)


def _layer_norm(form: EditedGraph, node: fx.Node) -> None:
    shape = list(node.args[1])  # type: ignore[arg-type]
    weight, bias = argument(node, "weight", 2, None), argument(node, "bias", 3, None)
    if weight is None and bias is not None:
        return
    eps = argument(node, "eps", 4, 1e-5)
    module = nn.LayerNorm(shape, eps=eps, elementwise_affine=weight is not None, bias=bias is not None)
    _norm_made(form, node, module, {"weight": weight, "bias": bias})


def _group_norm(form: EditedGraph, node: fx.Node) -> None:
    x, groups = node.args[:2]
    weight, bias = argument(node, "weight", 2, None), argument(node, "bias", 3, None)
    if (weight is None) != (bias is None):
        return
    eps = argument(node, "eps", 4, 1e-5)
    channels = int(x.meta["val"].shape[1])  # type: ignore[union-attr]
    module = nn.GroupNorm(groups, channels, eps=eps, affine=weight is not None)  # type: ignore[arg-type]
    _norm_made(form, node, module, {"weight": weight, "bias": bias})


def _rms_norm(form: EditedGraph, node: fx.Node) -> None:
    shape, weight = list(node.args[1]), argument(node, "weight", 2, None)  # type: ignore[arg-type]
    module = nn.RMSNorm(shape, eps=argument(node, "eps", 3, None), elementwise_affine=weight is not None)
    _norm_made(form, node, module, {"weight": weight})


def _dropout(form: EditedGraph, node: fx.Node) -> None:
    read, share = node.args
    assert isinstance(read, fx.Node)
    form.put(node, form.name(module_path(node) or "dropout"), nn.Dropout(float(share)), read)  # type: ignore[arg-type]


MAKERS: Mapping[Any, Callable[[EditedGraph, fx.Node], None]] = {
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_TRANSPOSED, _transposed),
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.rms_norm.default: _rms_norm,
    **dict.fromkeys(
        (
            aten.lstm.input,
            aten.gru.input,
            aten.rnn_tanh.input,
            aten.rnn_relu.input,
            aten.lstm_cell.default,
            aten.gru_cell.default,
            aten.rnn_tanh_cell.default,
            aten.rnn_relu_cell.default,
        ),
        _recurrent,
    ),
    DROPOUT: _dropout,
}
"""Operator -> what puts a module in its place."""
