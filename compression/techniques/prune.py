"""Cut channels out of a captured model, really: smaller weights, no masks.

Its classes of channels say which values belong to a channel, wherever they lie.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.sizes import arguments, listed, resized
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.weights import in_groups
from leanfront.compression.graph import Layer, Network
from leanfront.compression.layers import kind_of

Array = NDArray[np.int64]


class CutError(RuntimeError):
    """The surgery gave another network than the policy describes."""


def cut(traced: Traced, wanted: Network) -> Traced:
    """A copy of a captured model with the channels that ``wanted`` has.

    The channels that go are those of least importance: what ``Traced.importance`` says, or else the L2 norm
    of all weights that read or write the channel, averaged over the layers of its coupled group (Fang et al.
    2023, DepGraph, eq. 4). The same weights always give the same cut.

    Args:
        traced: with all layers of ``wanted``.
        wanted: its network with groups cut.

    Raises:
        CutError: a layer came out with another shape than the network says.
    """
    made, _ = _cut(traced, wanted)
    return made


Places = tuple[int, ...]


def kept_channels(
    traced: Traced, wanted: Network
) -> tuple[dict[str, tuple[Places, Places]], dict[str, tuple[int, Places]]]:
    """What ``cut`` keeps, ascending indices: layer -> (inputs, outputs), of its uncut channels, no inputs of
    one of weight bits alone; and address of a parameter or buffer of the model's own -> (dimension, indices
    along it). ``traced``: already without the branches that are left out, for they have a say in what is cut.
    """
    network = traced.network
    _, gone = _cut(traced, wanted)

    def kept(name: str) -> Places:
        return tuple(np.flatnonzero(_stays(traced.classes[name], gone)).tolist())

    nodes = [node for node in network.nodes if node.layer is not None]
    alone = set(network.weight_only)
    layers = {
        str(node.layer): (() if node.layer in alone else kept(node.inputs[0]), kept(node.name))
        for node in nodes
    }
    held = [node for node in traced.module.graph.nodes if node.op == "get_attr" and node.name in traced.axes]
    lose = [node for node in held if not _stays(traced.classes[node.name], gone).all()]
    return layers, {str(node.target): (traced.axes[node.name], kept(node.name)) for node in lose}


def victims(traced: Traced, channels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Group name -> the channels that ``cut`` takes out of it where it is to keep so many, numbered as in the
    uncut model. Groups that keep all their channels are left out."""
    _, gone = _cut(traced, traced.network.resized(channels))
    found = {}
    for group in channels:
        numbers = [number for key, number in traced.block_numbers.items() if key[0] == group]
        own = np.flatnonzero(np.isin(traced.blocks, numbers))
        if lost := np.flatnonzero(gone[own]).tolist():
            found[group] = tuple(lost)
    return found


def check_shapes(module: nn.Module, network: Network) -> None:
    """Raise CutError unless every layer of the module has the channels that the network says."""
    for layer in network.layers:
        _check(layer, module.get_submodule(layer.name))


def _stays(line: Array, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which places of a dimension of channels stay. ``gone``: of each class whether it goes."""
    return np.where(line >= 0, ~gone[line], True) if len(gone) else np.ones(len(line), dtype=np.bool_)


@torch.no_grad()
def _cut(traced: Traced, wanted: Network) -> tuple[Traced, NDArray[np.bool_]]:
    """The cut copy, and of each class whether it went."""
    module = copy.deepcopy(traced.module)
    network, sizes, smaller = traced.network, traced.network.blocks, wanted.blocks
    names = {node.name for node in module.graph.nodes} | set(network.node)
    classes = {name: line for name, line in traced.classes.items() if name in names}
    there = np.zeros(len(traced.blocks), dtype=np.bool_)
    for node in network.nodes:
        there[classes[node.name][classes[node.name] >= 0]] = True
    all_gone = np.zeros_like(there)
    for group in network.groups:
        changed = [key for key in sizes if key[0] == group and smaller[key] < sizes[key]]
        if not changed:
            continue
        module.requires_grad_(True)
        scores = (
            _importance(module, network, classes, len(there), group)
            if traced.importance is None
            else traced.importance
        )
        gone = np.zeros_like(there)
        for key in changed:
            own = np.flatnonzero(there & (traced.blocks == traced.block_numbers[key]))
            least = own[np.argsort(scores[own], kind="stable")]
            gone[least[: sizes[key] - smaller[key]]] = True
        classes = _taken_out(traced, module, network, classes, gone)
        all_gone |= gone
    module.recompile()
    check_shapes(module, wanted)
    return replace(traced, module=module, network=wanted, classes=classes), all_gone


def _importance(
    module: fx.GraphModule, network: Network, classes: Mapping[str, Array], count: int, group: str
) -> NDArray[Any]:
    """Of each class: squares summed over its weights in each part of the network, mean over the parts of a
    group that have weights."""
    scores, parts = torch.zeros(count), 0
    for line, squares in weighed(module, network, classes, group):
        there = line >= 0
        scores.index_add_(0, torch.from_numpy(line[there]), squares.float().cpu()[torch.from_numpy(there)])
        parts += 1
    return (scores / max(parts, 1)).numpy()


def weighed(
    module: fx.GraphModule,
    network: Network,
    classes: Mapping[str, Array],
    group: str | None = None,
    each: Callable[[Tensor], Tensor] = torch.square,
) -> Iterator[tuple[Array, Tensor]]:
    """Classes along a dimension of weights of a group (all of them), and the sum at each place of what
    ``each`` makes of the weights."""
    targets = {node.name: str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    has = {node.name: group is None or any(s.group == group for s in node.channels) for node in network.nodes}
    done: set[str] = set()
    for node in network.nodes:
        if node.name not in targets or targets[node.name] in done:
            continue  # no module, or the same weights once more
        done.add(targets[node.name])
        part = module.get_submodule(targets[node.name])
        if node.layer is None:
            weight = getattr(part, "weight", None)
            if has[node.name] and isinstance(weight, Tensor) and len(weight) == len(classes[node.name]):
                yield classes[node.name], each(weight)
            continue
        kind, layer = kind_of(part), network.layer[node.layer]
        assert kind is not None
        weight = part.weight
        assert isinstance(weight, Tensor)
        if has[node.name]:  # of a table one row is read at a time: what a row has on average
            rows = weight.shape[kind.in_axis] if kind.looked_up else 1
            squares = in_groups(each(weight), kind.channels(part)[1], kind.out_axis).sum(dim=(1, 3))
            yield classes[node.name], squares.reshape(-1) / rows
        if (
            has[node.source]
            and not layer.weight_only
            and not layer.shape.depthwise
            and not layer.whole_groups
        ):
            read = classes[node.inputs[0]][: weight.shape[kind.in_axis]]
            others = [d for d in range(weight.dim()) if d != kind.in_axis]
            yield read, each(weight).sum(dim=others)


def _taken_out(
    traced: Traced,
    module: fx.GraphModule,
    network: Network,
    classes: Mapping[str, Array],
    gone: NDArray[np.bool_],
) -> dict[str, Array]:
    """Take classes out of everything in a module, in place; the classes that are left in each tensor."""
    stays = {name: _stays(line, gone) for name, line in classes.items()}
    changed = {name for name, left in stays.items() if not left.all()}
    done: set[str] = set()  # parameters, and modules: used several times they lose their channels once
    for node in module.graph.nodes:
        read = next((source.name for source in node.all_input_nodes if source.name in stays), None)
        if node.name not in changed and read not in changed:
            continue
        if node.op == "call_module":
            assert read is not None
            if str(node.target) in done:
                continue
            done.add(str(node.target))
            part = module.get_submodule(str(node.target))
            if kind_of(part) is not None:
                _cut_layer(part, network.layer[str(node.target)], stays[read], stays[node.name])
            else:
                _cut_norm(part, stays[node.name])
        elif node.op == "get_attr" and str(node.target) not in done:
            done.add(str(node.target))
            _cut_parameter(module, str(node.target), traced.axes[node.name], stays[node.name])
        elif node.op == "call_function":
            _cut_sizes(traced, module, node, read, stays)
    return {name: line[stays[name]] for name, line in classes.items()}


def _kept(value: Tensor, axis: int, stays: NDArray[np.bool_]) -> Tensor:
    index = torch.from_numpy(np.flatnonzero(stays)).to(value.device)
    return value.index_select(axis, index)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    before = getattr(module, name)
    if isinstance(before, nn.Parameter):
        setattr(module, name, nn.Parameter(value, before.requires_grad))
    else:
        setattr(module, name, value)


def _cut_layer(module: nn.Module, layer: Layer, read: NDArray[np.bool_], made: NDArray[np.bool_]) -> None:
    kind = kind_of(module)
    assert kind is not None
    groups = int(getattr(module, "groups", 1))
    whole = layer.whole_groups or layer.shape.depthwise
    inside = len(read) // groups
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not made.all() and isinstance(bias := getattr(module, "bias", None), Tensor):
        _set(module, "bias", _kept(bias, 0, made))
    if kind.looked_up:
        weight = weight if made.all() else _kept(weight, kind.out_axis, made)
        _set(module, "weight", weight)
        kind.set_channels(module, weight.shape[kind.in_axis], int(made.sum()), 1)
        return
    # along its first dimension a weight has all channels of one side, along its second those of a group
    first, second = (made, read) if kind.out_axis == 0 else (read, made)
    if not first.all():
        weight = _kept(weight, 0, first)
    if not whole and not second.all():
        weight = _kept(weight, 1, second[: len(second) // groups])
    _set(module, "weight", weight)
    if whole:
        groups = int(read.sum()) // inside
    kind.set_channels(module, int(read.sum()), int(made.sum()), groups)


def _cut_norm(module: nn.Module, stays: NDArray[np.bool_]) -> None:
    count = int(stays.sum())
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and len(value) == len(stays):
            _set(module, name, _kept(value, 0, stays))
    if isinstance(module, _BatchNorm):
        module.num_features = count
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.normalized_shape == (len(stays),):
        module.normalized_shape = (count,)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:
            module.num_groups = count
        module.num_channels = count


def _cut_parameter(module: fx.GraphModule, target: str, axis: int, stays: NDArray[np.bool_]) -> None:
    """A parameter or buffer of the model's own that is added to (or multiplied with) the channels."""
    owner_name, _, name = target.rpartition(".")
    owner = module.get_submodule(owner_name)
    _set(owner, name, _kept(getattr(owner, name), axis, stays))


def _cut_sizes(
    traced: Traced,
    module: fx.GraphModule,
    node: fx.Node,
    read: str | None,
    stays: Mapping[str, NDArray[np.bool_]],
) -> None:
    """Sizes that a call counts channels with."""

    def part(name: str) -> tuple[int, Tensor]:
        return traced.axes[name], torch.from_numpy(stays[name])

    if node.name not in stays:
        return
    bound = arguments(node, node.args, node.kwargs)
    index = bound.get("index")
    if isinstance(index, fx.Node) and index.op == "get_attr":  # an order of channels
        bound["index"] = getattr(module, str(index.target))
    changed = resized(node, bound, part(read) if read is not None else None, part(node.name))
    if isinstance(index, fx.Node) and index.op == "get_attr":
        _set(module, str(index.target), changed["index"])
        changed["index"] = index
    node.args, node.kwargs = listed(node, changed)


def _check(layer: Layer, module: nn.Module) -> None:
    shape, kind = layer.shape, kind_of(module)
    assert kind is not None
    found = kind.channels(module)
    if found != (shape.in_channels, shape.out_channels):
        raise CutError(
            f"layer {layer.name!r} was to have {shape.in_channels}->{shape.out_channels} channels,"
            f" the cut gave {found[0]}->{found[1]}"
        )
