"""Weights on their grid, rounded so that what a layer puts out stays, and not each weight alone.

All of it is about one product: rows of weights, (groups, outputs, values), and the second moments, (groups,
values, values), of the values that they are multiplied with. The error is the mean squared difference of what
comes out, to which a weight that is rounded up adds less where another is rounded down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from leanfront.compression.export.weights import highest_code

DAMPING = 0.1
"""Of the mean second moment, added to each: what was seen on a few images is not all that there is. (GPTQ has
0.01 in section 3.3, for language models of many more tokens.)"""
_BLOCK = 64
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)


@dataclass(frozen=True, eq=False)
class Rounded:
    """codes: (groups, outputs, values), whole numbers as floats; scales: (groups, outputs)."""

    codes: Tensor
    scales: Tensor

    @property
    def weight(self) -> Tensor:
        """(groups, outputs, values)."""
        return self.codes * self.scales[..., None]


def damped(moments: Tensor, share: float = DAMPING) -> Tensor:
    """Second moments with which one can solve: what is never read counts a little."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp(min=1e-12)
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return moments + share * mean[:, None, None] * eye


def rounded(weight: Tensor, moments: Tensor, bits: int, passes: int = 2) -> Rounded:
    """Weights on a grid of so many bits, one step for each output: rounded one after the other, each for what
    was lost before it; then, ``passes`` times, each code and each step made the best one beside the others.

    weight: (groups, outputs, values); moments: (groups, values, values), of full rank.
    """
    scales = _first_scales(weight, moments, bits)
    codes = compensated(weight, moments, scales, bits)
    for _ in range(passes):
        scales = best_scales(codes, weight, moments, scales)
        codes = descended(codes, weight, moments, scales, bits)
    return Rounded(codes, scales)


def compensated(weight: Tensor, moments: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes of weights, value by value, each rounded after what the ones before it have lost was added to it
    (Frantar et al. 2023, GPTQ, algorithm 1; in the form of LDLQ, which rounds alike: Chee et al. 2023, QuIP,
    theorem 6). Values of large moments come first.

    Args:
        weight: (groups, outputs, values).
        moments: (groups, values, values), of full rank.
        scales: (groups, outputs), a step each.
        bits: codes are -highest .. highest of so many.

    Returns:
        Codes (groups, outputs, values), whole numbers as floats.
    """
    top = highest_code(bits)
    order = moments.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)
    wanted = (weight / scales[..., None]).gather(2, order[:, None].expand_as(weight))
    rows = moments.gather(1, order[..., None].expand_as(moments))
    in_order = rows.gather(2, order[:, None].expand_as(rows))
    # moments = U D U' with ones on the diagonal of U: their Cholesky factor, read from the end
    factor = torch.linalg.cholesky(in_order.flip(1, 2)).flip(1, 2)
    factor = factor / factor.diagonal(dim1=-2, dim2=-1)[:, None]
    codes, lost = torch.empty_like(wanted), torch.zeros_like(wanted)
    count = wanted.shape[2]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        told = lost[..., :start] @ factor[:, :start, start:end]
        own = factor[:, start:end, start:end].contiguous()
        for place in range(start, end):
            at = place - start
            code = (wanted[..., place] + told[..., at]).round().clamp(-top, top)
            codes[..., place] = code
            gone = wanted[..., place] - code
            lost[..., place] = gone
            told += gone[..., None] * own[:, None, at]
    return codes.gather(2, order.argsort(dim=-1)[:, None].expand_as(codes))


def descended(codes: Tensor, weight: Tensor, moments: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes with no larger error than those given: each in turn becomes the best one beside all others."""
    top = highest_code(bits)
    codes = codes.clone()
    apart = codes - weight / scales[..., None]
    diagonal = moments.diagonal(dim1=-2, dim2=-1).clamp(min=1e-30)
    count = codes.shape[2]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        slope = apart @ moments[..., start:end]
        own = moments[:, start:end, start:end].contiguous()
        for place in range(start, end):
            at = place - start
            code = codes[..., place]
            change = (code - slope[..., at] / diagonal[:, place, None]).round().clamp(-top, top) - code
            codes[..., place] += change
            apart[..., place] += change
            slope += change[..., None] * own[:, None, at]
    return codes


def best_scales(codes: Tensor, weight: Tensor, moments: Tensor, scales: Tensor) -> Tensor:
    """The step of each output, (groups, outputs), with which its codes have least error; those given where
    the codes say nothing of them."""
    read = codes @ moments
    least = (read * weight).sum(dim=2) / (read * codes).sum(dim=2).clamp(min=1e-30)
    return torch.where(least > 0, least, scales)


def error(values: Tensor, weight: Tensor, moments: Tensor) -> Tensor:
    """Mean squared difference that values in the place of weights make in each output, (groups, outputs)."""
    apart = values - weight
    return ((apart @ moments) * apart).sum(dim=2)


def _first_scales(weight: Tensor, moments: Tensor, bits: int) -> Tensor:
    """The step of each output with which its weights, rounded each alone, have least error, as if the values
    that they are multiplied with had nothing to do with each other."""
    top = highest_code(bits)
    largest = weight.abs().amax(dim=2)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    each = moments.diagonal(dim1=-2, dim2=-1)[:, None]
    best, least = largest / top, torch.full_like(largest, float("inf"))
    for share in _SHARES:
        scales = largest * share / top
        codes = (weight / scales[..., None]).round().clamp(-top, top)
        found = ((codes * scales[..., None] - weight).square() * each).sum(dim=2)
        best, least = torch.where(found < least, scales, best), torch.minimum(found, least)
    return best
