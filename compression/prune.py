"""Cut channels out of a traced model, really: smaller weights, no masks. torch-pruning does the surgery."""

import copy
from collections.abc import Mapping

import torch
import torch_pruning as tp
from torch import Tensor, fx, nn

from compression.policy import Layer
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
    module = copy.deepcopy(traced.module)
    expected = traced.network.resized(channels)
    if expected != traced.network:
        module.requires_grad_(True)  # torch-pruning follows the autograd graph
        dependency = tp.DependencyGraph().build_dependency(module, example_inputs=traced.example_input)
        importance = tp.importance.GroupMagnitudeImportance(p=2, normalizer="mean")
        for group, count in channels.items():
            root = traced.network.groups[group][0]
            excess = root.shape.out_channels - count
            if excess > 0:
                _remove(dependency, importance, module.get_submodule(root.name), excess)
    for layer in expected.layers:
        _check(layer, module.get_submodule(layer.name))
    return module


def _remove(dependency: tp.DependencyGraph, importance: object, layer: nn.Module, excess: int) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    prune = dependency.get_pruner_of_module(layer).prune_out_channels
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    group = dependency.get_pruning_group(layer, prune, idxs=list(range(size)))
    scores: Tensor = importance(group)  # type: ignore[operator]
    victims = torch.argsort(scores, stable=True)[:excess].tolist()
    dependency.get_pruning_group(layer, prune, idxs=victims).prune()


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
