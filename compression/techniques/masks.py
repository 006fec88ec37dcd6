"""Masks: weights that are shown as 0, in training and in every file, chosen by their magnitude.

A mask is a parametrization of a layer's weight, before that of a quantizer, so that codes of what it hides
are 0, too. What it hides gets no gradient.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from leanfront.compression.layers import kind_of
from leanfront.compression.layers.kinds import LayerKind
from leanfront.compression.policy.zeros import Pattern


class Mask(nn.Module):
    """A parametrization: the weight with zeros where ``gone`` says so. ``share``: of zeros, that it is to
    have in the end; ``now``: that it was chosen with."""

    gone: Tensor

    def __init__(self, weight: Tensor, pattern: Pattern, share: float, kind: LayerKind, groups: int) -> None:
        super().__init__()
        self.pattern, self.share, self.now = pattern, share, 0.0
        self._kind, self._groups = kind, groups
        self.register_buffer("gone", torch.zeros_like(weight, dtype=torch.bool))
        self.choose(weight, share)

    def forward(self, weight: Tensor) -> Tensor:
        """Same shape as the weight; what is hidden gets the gradient 0."""
        return weight.masked_fill(self.gone, 0.0)

    @torch.no_grad()
    def choose(self, weight: Tensor, share: float) -> None:
        """Hide this share of a weight, the least of it. Where the share grows what is hidden stays so."""
        if share < self.now:
            self.gone.zero_()
        shown = self(weight)
        self.gone.logical_or_(least(shown, self.pattern, share, self._kind, self._groups))
        self.now = share


def attach_mask(layer: nn.Module, pattern: Pattern, share: float) -> None:
    """Put a mask on the weight of a layer, in place."""
    kind, weight = kind_of(layer), layer.weight
    assert kind is not None
    assert isinstance(weight, Tensor)
    mask = Mask(weight.detach(), pattern, share, kind, int(getattr(layer, "groups", 1)))
    parametrize.register_parametrization(layer, "weight", mask)


def masks(module: nn.Module) -> Mapping[nn.Module, tuple[Mask, ...]]:
    """Layer -> its masks in the order in which they hide."""
    found: dict[nn.Module, tuple[Mask, ...]] = {}
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            steps = layer.parametrizations["weight"]  # type: ignore[index]
            own = tuple(step for step in steps if isinstance(step, Mask))
            found |= {layer: own} if own else {}
    return found


@torch.no_grad()
def tighten(module: nn.Module, share_of: Callable[[float], float]) -> None:
    """Let every mask hide another share than in the end. ``share_of``: that -> how much now."""
    for layer, own in masks(module).items():
        weight = layer.parametrizations["weight"].original  # type: ignore[index,union-attr]
        assert isinstance(weight, Tensor)
        for mask in own:
            mask.choose(weight, share_of(mask.share))
            weight = mask(weight)


def zero_share(module: nn.Module) -> float:
    """Of the weights of all masked layers the share that is 0."""
    shown = [weight for layer in masks(module) if isinstance(weight := layer.weight, Tensor)]
    return sum(int((w == 0).sum()) for w in shown) / max(1, sum(w.numel() for w in shown))


def least(weight: Tensor, pattern: Pattern, share: float, kind: LayerKind, groups: int) -> Tensor:
    """Where a share of a weight is hidden: of a pattern's units those of least magnitude, the first of equal
    ones.

    Args:
        weight: of a layer of this kind, in so many groups.
        share: 0..1, rounded to whole weights or blocks of a layer; of N:M to whole weights of M, downwards.
    """
    gone = torch.zeros_like(weight, dtype=torch.bool)
    if pattern.among:
        rows, hidden = (_inputs_last(w, kind, groups) for w in (weight, gone))
        whole = rows.shape[-1] // pattern.among * pattern.among  # what is left over stays
        if whole:
            units, places = (torch.unflatten(w[..., :whole], -1, (-1, pattern.among)) for w in (rows, hidden))
            order = units.abs().argsort(dim=-1, stable=True)[..., : int(share * pattern.among + 1e-6)]
            places.scatter_(-1, order, torch.ones_like(order, dtype=torch.bool))
        return gone
    if pattern.block > 1:
        outs, hidden = weight.movedim(kind.out_axis, 0), gone.movedim(kind.out_axis, 0)
        blocks = [part.square().mean(dim=0) for part in torch.split(outs, pattern.block)]
        chosen = _smallest(torch.stack(blocks), share)
        for part, flags in zip(torch.split(hidden, pattern.block), chosen, strict=True):
            part.copy_(flags.expand_as(part))
        return gone
    return _smallest(weight.abs(), share)


def _inputs_last(weight: Tensor, kind: LayerKind, groups: int) -> Tensor:
    """A view in which the last dimension has the input channels that one output channel is computed from."""
    if kind.in_axis == 0 and groups > 1:  # those of all groups lie one after the other
        return torch.unflatten(weight, 0, (groups, -1)).movedim(1, -1)
    return weight.movedim(kind.in_axis, -1)


def _smallest(scores: Tensor, share: float) -> Tensor:
    """Where the smallest of them are, this share of all; the first of equal ones."""
    count = round(share * scores.numel())
    flat = scores.flatten()
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = flat.float().kthvalue(count).values
    gone = flat < last
    equal = torch.nonzero(flat == last).flatten()[: count - int(gone.sum())]
    gone[equal] = True
    return gone.view(scores.shape)
