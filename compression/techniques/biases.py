"""What rounding shifts on average, taken back where a constant is added anyway.

Rounded weights put out another mean than their own; a bias, or the mean of the batch norm behind, can hold
the difference (Nagel et al. 2019, Data-Free Quantization, section 4.2; measured here on inputs).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.capture.program import called
from leanfront.compression.layers import kind_of
from leanfront.compression.techniques.quantize import WeightQuantizer, unquantized

Constants = Mapping[str, Tensor]
"""Address of a bias, or of a batch norm's mean -> its values."""


@torch.no_grad()
def corrected(module: fx.GraphModule, inputs: Any) -> dict[str, Tensor]:
    """The constants with which every layer of rounded weights puts out the mean, of each channel, that it has
    in floats. Layer by layer, each behind what is corrected before it. The module is left as it is.

    inputs: a batch, as the module takes it; many examples, for the means are theirs.
    """
    places = _places(module)
    wanted = _means(module, places, inputs)
    before = constants(module, places.values())
    handles = [
        module.get_submodule(name).register_forward_hook(_correcting(module, address, wanted[name]))
        for name, address in places.items()
        if name in wanted
    ]
    was_training = module.training
    module.eval()
    try:
        called(module, inputs)
        return constants(module, places.values())
    finally:
        for handle in handles:
            handle.remove()
        set_constants(module, before)
        module.train(was_training)


def constants(module: nn.Module, addresses: Any) -> dict[str, Tensor]:
    """What they hold now."""
    return {address: _at(module, address).detach().clone() for address in addresses}


@torch.no_grad()
def set_constants(module: nn.Module, wanted: Constants) -> None:
    """Let biases and batch norms hold these."""
    for address, values in wanted.items():
        _at(module, address).copy_(values)


def _at(module: nn.Module, address: str) -> Tensor:
    owner, _, name = address.rpartition(".")
    found = getattr(module.get_submodule(owner), name)
    assert isinstance(found, Tensor)
    return found


def _places(module: fx.GraphModule) -> dict[str, str]:
    """Layer of rounded weights -> the address of the constant behind it; not of one that has none, nor of one
    that is used several times, where each use wants another."""
    found = {}
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in module.graph.nodes:
        if calls[str(node.target)] > 1:
            continue
        part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if part is None or not _rounded(part):
            continue
        if (kind := kind_of(part)) is None or kind.weight_only:
            continue
        after = next(iter(node.users)) if len(node.users) == 1 else None
        behind = module.get_submodule(str(after.target)) if after and after.op == "call_module" else None
        if isinstance(getattr(part, "bias", None), Tensor):
            found[str(node.target)] = f"{node.target}.bias"
        elif isinstance(behind, _BatchNorm) and behind.track_running_stats:
            found[str(node.target)] = f"{after.target}.running_mean"  # type: ignore[union-attr]
    return found


def _rounded(part: nn.Module) -> bool:
    """Whether its weights are: a parametrization may also be another technique's."""
    if not parametrize.is_parametrized(part, "weight"):
        return False
    steps = part.parametrizations["weight"]  # type: ignore[index]
    return any(isinstance(step, WeightQuantizer) for step in steps)


def _mean(layer: nn.Module, made: Tensor) -> Tensor:
    """Of each channel of what a layer puts out, (channels,)."""
    kind = kind_of(layer)
    assert kind is not None
    axis = kind.channel_axis(made.dim())
    return made.float().mean(dim=[d for d in range(made.dim()) if d != axis])


def _means(module: fx.GraphModule, names: Any, inputs: Any) -> dict[str, Tensor]:
    """What layers put out in floats, on average."""
    found: dict[str, Tensor] = {}

    def noted(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, given: Any, made: Tensor) -> None:
            found[name] = _mean(layer, made)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(noted(name)) for name in names]
    try:
        with unquantized(module, weights=True):
            called(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _correcting(
    module: nn.Module, address: str, wanted: Tensor
) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    """Changes the constant behind a layer while it runs, and what it puts out where that has been added."""

    def hook(layer: nn.Module, given: Any, made: Tensor) -> Tensor | None:
        shift = wanted - _mean(layer, made)
        held = _at(module, address)
        if not address.endswith(".bias"):  # a batch norm takes its mean away, and runs behind this
            held.sub_(shift.to(held.dtype))
            return None
        held.add_(shift.to(held.dtype))
        kind = kind_of(layer)
        assert kind is not None
        axis = kind.channel_axis(made.dim())
        return made + shift.to(made.dtype).reshape([-1 if d == axis else 1 for d in range(made.dim())])

    return hook
