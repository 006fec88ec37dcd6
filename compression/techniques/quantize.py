"""Fake quantization: a network that computes in floats what the exported one computes in integers.

Weights: symmetric, one scale per output channel. Activations: one scale and zero point per tensor, where the
engine has them (``GridKind``), placed on exactly the tensors that ``compression.policy.tensor_bits`` names;
the zero point of a tensor without negative values is 0 where it may be. Gradients pass straight through the
rounding (Bengio et al. 2013) and stop outside a tensor's range.

A batch norm after a layer stays in training: folding it multiplies each output channel by a constant, and
per-channel symmetric codes do not change under that, so the codes trained here are the codes exported.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from leanfront.compression.capture.program import called
from leanfront.compression.export.weights import along, highest_code, in_groups
from leanfront.compression.graph import Network, kernels
from leanfront.compression.layers import kind_of
from leanfront.compression.policy import Policy, tensor_bits
from leanfront.compression.policy.grids import ActivationGrid, GridKind
from leanfront.compression.policy.precision import SAME_RANGE_OPS
from leanfront.compression.techniques.learned_steps import (
    LEAST,
    RoundedTensor,
    RoundedWeight,
    gradient_share,
)

QUANTIZER = "quantizer_"
"""Prefix of the modules that quantize a tensor; the rest of the name is the tensor's."""

_OF_WEIGHT = "parametrizations.weight"

_MOST_TRIED = 2**13
"""Rows of a table that are looked at for where to clip its columns; up to twice as many."""


def channel_scales(weight: Tensor, bits: int, clip: Tensor, axis: int = 0) -> Tensor:
    """Scale of each output channel: clip * max|w| / highest code; 1 for a channel of zeros. Of 1 bit the mean
    |w|, which has the least squared error (Rastegari et al. 2016, XNOR-Net, eq. 6)."""
    sizes = in_groups(weight.detach().abs(), len(clip), axis)
    if bits == 1:
        return sizes.mean(dim=(1, 3)).reshape(-1)
    largest = sizes.amax(dim=(1, 3)).reshape(-1) * clip
    return torch.where(largest > 0, largest / highest_code(bits), torch.ones_like(largest))


def weight_codes(weight: Tensor, scales: Tensor, bits: int, axis: int = 0) -> Tensor:
    """Integer codes of a weight, as floats, -highest .. highest; of 1 bit -1 and 1."""
    if bits == 1:
        return torch.where(weight < 0, -torch.ones_like(weight), torch.ones_like(weight))
    top = highest_code(bits)
    return torch.clamp(torch.round(weight / along(scales, weight.shape, axis)), -top, top)


def best_clip(weight: Tensor, bits: int, axis: int = 0, channels: int | None = None) -> Tensor:
    """Share of each channel's largest weight at which to clip, so that the squared error is least.

    Clipping pays below 8 bits, where a step is wide (Banner et al. 2019, section 4); at 8 bits it is 1. Of a
    table with many rows so many are tried, evenly spread. ``channels``: where there are more of them than
    along the axis, see ``along``.
    """
    channels = channels or weight.shape[axis]
    best = torch.ones(channels, dtype=weight.dtype, device=weight.device)
    if bits >= 8 or bits == 1:
        return best
    least = torch.full_like(best, float("inf"))
    rows = axis and channels == weight.shape[axis]  # else they are of several groups
    seen = weight[:: max(1, weight.numel() // channels // _MOST_TRIED)] if rows else weight
    for share in torch.linspace(0.3, 1.0, 29).tolist():
        clip = torch.full_like(best, share)
        scales = channel_scales(weight, bits, clip, axis)
        codes = weight_codes(seen, scales, bits, axis)
        squares = (codes * along(scales, seen.shape, axis) - seen).square()
        error = in_groups(squares, channels, axis).sum(dim=(1, 3)).reshape(-1)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, clip, best)
    return best


class WeightQuantizer(nn.Module):
    """A parametrization: the weight as its integer codes show it. ``axis``: that of the output channels;
    ``channels``: see ``best_clip``. ``off``: as it is, for as long as that is wanted. ``step``: of each
    channel's grid, where that is learned (``learned_steps``); else it follows the weight."""

    clip: Tensor
    step: nn.Parameter | None

    def __init__(self, weight: Tensor, bits: int, axis: int, channels: int | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.axis = axis
        self.off = False
        self.register_buffer("clip", best_clip(weight.detach(), bits, axis, channels))
        self.register_parameter("step", None)

    def forward(self, weight: Tensor) -> Tensor:
        """Same shape as the weight; the gradient passes through as it is, or, where steps are learned, within
        the grid."""
        if self.off:
            return weight
        if self.step is not None:
            return self._learned(weight, self.step)
        with torch.no_grad():
            scales, codes = self.scales(weight), self.codes(weight)
            step = codes * along(scales, weight.shape, self.axis) - weight
        return weight + step

    def scales(self, weight: Tensor) -> Tensor:
        """(channels,): the step of each output channel's grid."""
        if self.step is not None:
            return self.step.detach()
        return channel_scales(weight, self.bits, self.clip, self.axis)

    def codes(self, weight: Tensor) -> Tensor:
        """The weight's integer codes, as floats."""
        return weight_codes(weight, self.scales(weight), self.bits, self.axis)

    def learn(self, steps: Tensor) -> None:
        """Let training learn the steps from now on, from these: (channels,)."""
        self.step = nn.Parameter(steps.detach().float().clone())

    def _learned(self, weight: Tensor, step: nn.Parameter) -> Tensor:
        top, ones = highest_code(self.bits), torch.ones_like(self.clip)
        with torch.no_grad():
            if self.training:
                step.clamp_(min=LEAST * channel_scales(weight, self.bits, ones, self.axis))
            ratio = weight / along(step, weight.shape, self.axis)
            codes = weight_codes(weight, step, self.bits, self.axis)
            if self.bits == 1:  # both codes lie at an end, and nothing lies beyond them
                inside, slope = torch.ones_like(weight), codes
            else:
                inside = (ratio.abs() <= top).to(weight.dtype)
                slope = codes - ratio * inside
            slope = slope * gradient_share(weight.numel() // len(step), top)
        steps = along(step, weight.shape, self.axis)
        rounded: Tensor = RoundedWeight.apply(weight, steps, codes, inside, slope)  # type: ignore[no-untyped-call]
        return rounded

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        _as_kept(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)


def _as_kept(
    quantizer: "WeightQuantizer | ActivationQuantizer", state: Mapping[str, Any], prefix: str
) -> None:
    """Let a quantizer have a step of its own where a state that it is about to load has one."""
    kept = state.get(f"{prefix}step")
    place = next(quantizer.buffers()).device
    quantizer.step = None if kept is None else nn.Parameter(torch.empty_like(kept, device=place))


class _RoundToGrid(torch.autograd.Function):
    """Clamp to [low, high], round to multiples of the step; the gradient is that of the clamp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, step: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high).mul_(1.0 / step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.bounds), None, None, None


HALF_OFF = 2.0**-14
"""By so much of itself a round range is narrowed: a 64th of a code of 8 bits, more than floats round."""


def _off_the_halves(width: float) -> float:
    """The width of a range, a little less where it is a round number (of 8 binary digits).

    Such ranges are those of data: images from 0 to 1, or from -1 to 1, whose values then lie halfway between
    two codes (1/2 of 255; each of 256 values around 0). Engines divide by the step or multiply with its
    reciprocal, and round those one way or the other.
    """
    round_number = np.ldexp(np.frexp(width)[0], 8) % 1.0 == 0.0
    return width * (1.0 - HALF_OFF) if round_number else width


class ActivationQuantizer(nn.Module):
    """Quantizes one tensor to integers. Observes its range while calibrating or training.

    The range is a moving mean of the batches' extremes, always holding 0, so that 0 is exact; the grid covers
    the shares of both ends that ``clip`` says. ``kind``: where its zero may lie. ``off``: the identity, for
    as long as that is wanted. ``step``: of the grid where that is learned (``learned_steps``), around the
    zero point ``zero``, which stays; the grid of a tensor without negative values never reaches beyond the
    range.
    """

    low: Tensor
    high: Tensor
    clip: Tensor
    batches: Tensor
    zero: Tensor
    step: nn.Parameter | None

    MOMENTUM = 0.02

    def __init__(self, bits: int, kind: GridKind = "affine") -> None:
        super().__init__()
        self.bits = bits
        self.kind = kind
        self.calibrating = False
        self.off = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("clip", torch.ones(2))
        self.register_buffer("batches", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(()))
        self.register_parameter("step", None)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; the identity while calibrating, and where no range is known."""
        if self.off:
            return x
        if self.calibrating or self.training:
            self._observe(x)
        if self.calibrating or not self.batches or bool(torch.isnan(self.high - self.low)):
            return x  # of numbers that are none there is no grid: the loss will say so
        if self.step is not None and self.training:
            return self._learned(x, self.step)
        grid = self.grid()
        low, high = -grid.zero_point * grid.scale, (2**self.bits - 1 - grid.zero_point) * grid.scale
        rounded: Tensor = _RoundToGrid.apply(x, low, high, grid.scale)  # type: ignore[no-untyped-call]
        return rounded

    def grid(self) -> ActivationGrid:
        """The grid that was learned, or that of the range seen so far; 0 .. 1 where only zeros were seen."""
        if self.step is not None:
            low, high = self._bounds()
            return ActivationGrid(min(max(float(self.step.detach()), low), high), int(self.zero), self.bits)
        return self._observed()

    def learn(self, like: "ActivationQuantizer | None" = None) -> None:
        """Let training learn the step from now on, from the grid that there is, or that of another network's
        quantizer; not where nothing but zeros was seen."""
        known = like or self
        if self.step is None and known.batches and known.high > known.low:
            grid = known.grid()
            self.zero.fill_(grid.zero_point)
            self.step = nn.Parameter(torch.full_like(self.low, grid.scale))

    def _bounds(self) -> tuple[float, float]:
        """Between which a learned step lies; the highest level of a tensor without negative values may not
        lie above its range, as in ``grid``."""
        levels = 2**self.bits - 1
        widest = np.float32(max(float(self.high) - float(self.low), 1e-12) / levels)
        least = float(widest) * LEAST
        if int(self.zero) or float(self.low) < 0.0:
            return least, float("inf")
        if widest * np.float32(levels) > float(self.high):
            widest = np.nextafter(widest, np.float32(0.0))
        return least, float(widest)

    def _learned(self, x: Tensor, step: nn.Parameter) -> Tensor:
        zero, levels = int(self.zero), 2**self.bits - 1
        with torch.no_grad():
            step.clamp_(*self._bounds())
        share = gradient_share(x.numel() // len(x), levels)
        rounded: Tensor = RoundedTensor.apply(x, step, zero, levels - zero, share)  # type: ignore[no-untyped-call]
        return rounded

    def _observed(self) -> ActivationGrid:
        below, above = self.clip.tolist()
        low, high = below * float(self.low), above * float(self.high)
        if low == high:
            high = 1.0
        if self.kind == "signed" or (self.kind == "symmetric" and low < 0.0):
            middle = 2 ** (self.bits - 1)
            scale = np.float32(_off_the_halves(max(-low, high)) / max(1, middle - 1))
            return ActivationGrid(float(scale), middle, self.bits)
        levels = 2**self.bits - 1
        # float32, as the exported file holds it: training and export then round alike
        scale = np.float32(_off_the_halves(high - low) / levels)
        if low == 0.0 and scale * np.float32(levels) > high:
            # the highest level may not lie above the range: onnxruntime keeps the Clip of a ReLU6 then
            scale = np.nextafter(scale, np.float32(0.0))
        return ActivationGrid(float(scale), round(-low / float(scale)), self.bits)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}clip", torch.ones(2))  # weights that were kept before there were shares
        state.setdefault(f"{prefix}zero", torch.zeros(()))  # ... and before steps were learned
        _as_kept(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        lowest, highest = torch.aminmax(x.detach())
        lowest, highest = lowest.float().clamp(max=0), highest.float().clamp(min=0)
        self.batches += 1
        weight = max(1.0 / float(self.batches), self.MOMENTUM)
        self.low.lerp_(lowest, weight)
        self.high.lerp_(highest, weight)


def attach_quantizers(
    module: fx.GraphModule, network: Network, policy: Policy, kind: GridKind = "affine"
) -> None:
    """Put weight and activation quantizers into a traced module, in place. ``kind``: of the tensors' grids.

    ``network`` is that of the module (its node names are the graph's). Layers at 32 bits and tensors held in
    floats stay as they are; the output of an operation that only moves values keeps its input's grid and
    needs no quantizer of its own.
    """
    for layer in network.layers:
        bits = policy[layer.name].weight_bits
        if bits <= 8:
            submodule = module.get_submodule(layer.name)
            of_layer = kind_of(submodule)
            assert of_layer is not None
            weight = submodule.weight
            assert isinstance(weight, Tensor)
            quantizer = WeightQuantizer(weight, bits, of_layer.out_axis, of_layer.channels(submodule)[1])
            parametrize.register_parametrization(submodule, "weight", quantizer)
    by_name = {node.name: node for node in module.graph.nodes}
    fused = kernels(network)
    bits_of = tensor_bits(fused, policy)
    for kernel in fused:
        bits = bits_of[kernel.name]
        if bits > 8 or kernel.op in SAME_RANGE_OPS:
            continue
        node = by_name[kernel.name]
        name = QUANTIZER + kernel.name
        module.add_submodule(name, ActivationQuantizer(bits, kind))
        with module.graph.inserting_after(node):
            quantized = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user, skip=quantized: user is not skip)
    module.recompile()


def learn_steps(module: nn.Module, most_bits: int) -> None:
    """Let training learn the steps of all grids of so many bits and fewer; those that it learns already stay
    as they are. Tensors must be calibrated."""
    for part in module.modules():
        if isinstance(part, ActivationQuantizer) and part.bits <= most_bits:
            part.learn()
        if parametrize.is_parametrized(part, "weight"):
            steps = part.parametrizations["weight"]  # type: ignore[index]
            weight = steps.original  # type: ignore[union-attr]
            for step in steps:
                if isinstance(step, WeightQuantizer) and step.bits <= most_bits and step.step is None:
                    step.learn(step.scales(weight))
                weight = step(weight)


def taken_off(layer: nn.Module) -> Tensor | None:
    """Take the weight quantizer off a layer, and what other techniques have put on its weight; the weight as
    these show it, not rounded, which the caller has to put back as a parameter. None where there is nothing.

    Not torch's remove_parametrizations: a deep copy shares its class with the original, and would damage it.
    """
    if not parametrize.is_parametrized(layer):
        return None
    steps = layer.parametrizations["weight"]  # type: ignore[index]
    weight = steps.original  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        for step in steps:
            weight = weight if isinstance(step, WeightQuantizer) else step(weight)
    assert isinstance(weight, Tensor)
    layer.__class__ = type(layer).__bases__[0]
    del layer._modules["parametrizations"]
    return weight.detach()


def quantizers(module: nn.Module) -> Mapping[str, ActivationQuantizer]:
    """Tensor name -> its quantizer."""
    return {
        name.removeprefix(QUANTIZER): child
        for name, child in module.named_children()
        if isinstance(child, ActivationQuantizer)
    }


def weight_quantizers(module: nn.Module) -> Mapping[str, WeightQuantizer]:
    """Layer name -> the quantizer of its weight."""
    return {
        name.removesuffix(_OF_WEIGHT).removesuffix("."): child
        for name, one in module.named_modules()
        if name.endswith(_OF_WEIGHT)
        for child in one.children()
        if isinstance(child, WeightQuantizer)
    }


@contextmanager
def unquantized(module: nn.Module, weights: bool = False) -> Iterator[None]:
    """A module in evaluation mode whose tensors are not rounded; with ``weights`` its layers' neither."""
    was_training = module.training
    module.eval()
    kinds = (ActivationQuantizer, WeightQuantizer) if weights else ActivationQuantizer
    found = [part for part in module.modules() if isinstance(part, kinds)]
    for part in found:
        part.off = True
    try:
        yield
    finally:
        for part in found:
            part.off = False
        module.train(was_training)


@torch.no_grad()
def calibrate(module: nn.Module, batches: Sequence[Any]) -> None:
    """Find the ranges of all activation quantizers on ``batches`` of inputs, as the module takes them, from
    nothing.

    Runs in eval mode, so batch norms must be right already.
    """
    found = quantizers(module)
    if not found:
        return
    was_training = module.training
    module.eval()
    for quantizer in found.values():
        quantizer.calibrating = True
        quantizer.low.zero_()
        quantizer.high.zero_()
        quantizer.clip.fill_(1.0)
        quantizer.batches.zero_()
    for batch in batches:
        called(module, batch)
    for quantizer in found.values():
        quantizer.calibrating = False
    module.train(was_training)
