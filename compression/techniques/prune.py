"""Cut channels out of a traced model, really: smaller weights, no masks.

The network says which weights belong to a channel, torch-pruning's functions take them out.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning.ops import module2type
from torch_pruning.pruner.function import PrunerBox

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Layer, Network

Convolution = nn.Conv2d | nn.ConvTranspose2d


class CutError(RuntimeError):
    """The surgery gave another network than the policy describes."""


@dataclass(frozen=True)
class _Part:
    """Weights that belong to the channels of a group: ``places[channel]`` are their positions.

    ``magnitudes``: sum of squares at each position, None where the weights say nothing about importance.
    """

    places: list[list[int]]
    magnitudes: Tensor | None
    remove: Callable[[list[int]], object]


def cut(traced: Traced, channels: Mapping[str, int]) -> fx.GraphModule:
    """A copy of the traced model with each named group cut to so many channels.

    The channels that go are those of least importance: the L2 norm of all weights that read or write the
    channel, averaged over the layers of its coupled group (Fang et al. 2023, DepGraph, eq. 4). The same
    weights always give the same cut.

    Raises:
        CutError: a layer came out with another shape than ``Network.resized`` says.
    """
    module, _ = _cut(traced, channels)
    return module


def victims(traced: Traced, channels: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Group name -> the channels that ``cut`` takes out of it, numbered as in the uncut model.

    Groups that keep all their channels are left out.
    """
    _, removed = _cut(traced, channels)
    return removed


def kept_channels(
    traced: Traced, channels: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer -> (inputs, outputs): which of the uncut layer's channels ``cut`` keeps, ascending. ``traced``:
    already without the branches that are left out, for they have a say in what is cut."""
    network = traced.network
    gone = victims(traced, channels)

    def kept(name: str) -> tuple[int, ...]:
        lost = {
            place
            for group, channels in gone.items()
            for channel, places in enumerate(_places(network, name, group))
            if channel in channels
            for place in places
        }
        return tuple(index for index in range(network.node[name].width) if index not in lost)

    nodes = [node for node in network.nodes if node.layer is not None]
    return {str(node.layer): (kept(node.inputs[0]), kept(node.name)) for node in nodes}


def check_shapes(module: nn.Module, network: Network) -> None:
    """Raise CutError unless every layer of the module has the channels that the network says."""
    for layer in network.layers:
        _check(layer, module.get_submodule(layer.name))


@torch.no_grad()
def _cut(traced: Traced, channels: Mapping[str, int]) -> tuple[fx.GraphModule, dict[str, tuple[int, ...]]]:
    module = copy.deepcopy(traced.module)
    targets = {node.name: str(node.target) for node in module.graph.nodes}
    removed: dict[str, tuple[int, ...]] = {}
    network = traced.network
    for group, count in channels.items():
        size = traced.network.group_size(group)
        smaller = network.resized({group: count})
        if count < size:
            module.requires_grad_(True)
            parts = list(_parts(module, network, group, targets, traced.axes))
            indices = torch.argsort(_importance(parts, size), stable=True)[: size - count].tolist()
            for part in parts:
                part.remove([place for index in indices for place in part.places[index]])
            removed[group] = tuple(sorted(indices))
        network = smaller
    check_shapes(module, network)
    return module, removed


def _importance(parts: list[_Part], size: int) -> Tensor:
    """Of each channel (size,): squares summed over its weights in each part, mean over the parts."""
    scores = torch.zeros(size)
    weighed = [part for part in parts if part.magnitudes is not None]
    for part in weighed:
        assert part.magnitudes is not None
        magnitudes = part.magnitudes.float().cpu()
        scores += torch.stack([magnitudes[places].sum() for places in part.places])
    return scores / max(len(weighed), 1)


def _parts(
    module: nn.Module, network: Network, group: str, targets: Mapping[str, str], axes: Mapping[str, int]
) -> Iterator[_Part]:
    """Everything in the module that holds weights for the channels of a group."""
    for node in network.nodes:
        own = _places(network, node.name, group)
        if node.op == "constant" and own:
            yield _parameter(module, targets[node.name], axes[node.name], own)
        elif node.op in ("batchnorm", "layernorm") and own:
            norm = module.get_submodule(targets[node.name])
            assert isinstance(norm, _BatchNorm | nn.LayerNorm)
            magnitudes = None if norm.weight is None else norm.weight.square()
            yield _Part(own, magnitudes, partial(_surgeon(norm).prune_out_channels, norm))
        elif node.layer is not None:
            layer = module.get_submodule(node.layer)
            assert isinstance(layer, nn.Linear | Convolution)
            read = _places(network, node.inputs[0], group)
            depthwise = network.layer[node.layer].shape.depthwise
            if own:
                yield _written(layer, own, depthwise)
            if read and not depthwise:
                yield _read(layer, read)


def _places(network: Network, name: str, group: str) -> list[list[int]]:
    """Where each channel of a group lies in the channel dimension of a tensor; empty if nowhere."""
    start = 0
    places: list[list[int]] = []
    for segment in network.node[name].channels:
        if segment.group == group:
            places = places or [[] for _ in range(segment.size)]
            for channel, found in enumerate(places):
                first = start + channel * segment.repeat
                found.extend(range(first, first + segment.repeat))
        start += segment.size * segment.repeat
    return places


def _written(layer: nn.Linear | Convolution, places: list[list[int]], depthwise: bool) -> _Part:
    """The weights that make a layer's output channels."""
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) and not depthwise else 0
    return _Part(places, _squares(layer.weight, axis), partial(_surgeon(layer).prune_out_channels, layer))


def _read(layer: nn.Linear | Convolution, places: list[list[int]]) -> _Part:
    """The weights that read a layer's input channels."""
    axis = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
    return _Part(places, _squares(layer.weight, axis), partial(_surgeon(layer).prune_in_channels, layer))


def _parameter(module: nn.Module, target: str, axis: int, places: list[list[int]]) -> _Part:
    """A parameter or buffer of the model's own that is added to (or multiplied with) the channels."""
    owner_name, _, name = target.rpartition(".")
    owner = module.get_submodule(owner_name)

    def remove(gone: list[int]) -> None:
        held = getattr(owner, name)
        kept = [index for index in range(held.shape[axis]) if index not in set(gone)]
        smaller = held.index_select(axis, torch.tensor(kept, device=held.device))
        is_parameter = isinstance(held, nn.Parameter)
        setattr(owner, name, nn.Parameter(smaller, held.requires_grad) if is_parameter else smaller)

    return _Part(places, None, remove)


def _surgeon(part: nn.Module) -> Any:
    """What takes channels out of such a module."""
    return PrunerBox[module2type(part)]


def _squares(weight: Tensor, axis: int) -> Tensor:
    return weight.square().sum(dim=[d for d in range(weight.dim()) if d != axis])


def _check(layer: Layer, module: nn.Module) -> None:
    shape = layer.shape
    if isinstance(module, nn.Linear):
        found = (module.in_features, module.out_features)
    else:
        assert isinstance(module, Convolution)
        found = (module.in_channels, module.out_channels)
    if found != (shape.in_channels, shape.out_channels):
        raise CutError(
            f"layer {layer.name!r} was to have {shape.in_channels}->{shape.out_channels} channels,"
            f" the cut gave {found[0]}->{found[1]}"
        )
