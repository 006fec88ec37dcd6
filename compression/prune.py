"""Cut channels out of a traced model, really: smaller weights, no masks. torch-pruning does the surgery."""

import copy
from collections.abc import Mapping

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from compression.policy import Layer, Network
from compression.trace import Traced


class CutError(RuntimeError):
    """The surgery gave another network than the policy describes."""


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


def check_shapes(module: nn.Module, network: Network) -> None:
    """Raise CutError unless every layer of the module has the channels that the network says."""
    for layer in network.layers:
        _check(layer, module.get_submodule(layer.name))


def _cut(traced: Traced, channels: Mapping[str, int]) -> tuple[fx.GraphModule, dict[str, tuple[int, ...]]]:
    module = copy.deepcopy(traced.module)
    removed: dict[str, tuple[int, ...]] = {}
    expected = traced.network.resized(channels)
    if expected != traced.network:
        module.requires_grad_(True)  # torch-pruning follows the autograd graph
        dependency = tp.DependencyGraph().build_dependency(module, example_inputs=(traced.example_input,))
        importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
        for group, count in channels.items():
            root = traced.network.groups[group][0]
            excess = root.shape.out_channels - count
            if excess > 0:
                removed[group] = _remove(dependency, importance, module.get_submodule(root.name), excess)
    check_shapes(module, expected)
    return module, removed


def _remove(
    dependency: tp.DependencyGraph, importance: object, layer: nn.Module, excess: int
) -> tuple[int, ...]:
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    prune = dependency.get_pruner_of_module(layer).prune_out_channels
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    group = dependency.get_pruning_group(layer, prune, idxs=list(range(size)))
    scores: Tensor = importance(group)  # type: ignore[operator]
    indices = torch.argsort(scores, stable=True)[:excess].tolist()
    dependency.get_pruning_group(layer, prune, idxs=indices).prune()
    return tuple(sorted(indices))


def _check(layer: Layer, module: nn.Module) -> None:
    shape = layer.shape
    if isinstance(module, nn.Linear):
        found = (module.in_features, module.out_features)
    else:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        found = (module.in_channels, module.out_channels)
    if found != (shape.in_channels, shape.out_channels):
        raise CutError(
            f"layer {layer.name!r} was to have {shape.in_channels}->{shape.out_channels} channels,"
            f" the cut gave {found[0]}->{found[1]}"
        )
