"""Steps of grids that training learns: Esser et al. 2020, Learned Step Size Quantization (LSQ).

Where a step s is a parameter, the value that a number x is rounded to changes with it by round(x/s) - x/s
within the grid, and by the grid's end beyond it (eq. 3). That is multiplied with ``gradient_share``, so that
steps and weights change by alike shares of themselves (section 2.2). Numbers beyond a grid's ends have no
gradient of their own (eq. 5).
"""

import math
from typing import Any

import torch
from torch import Tensor

LEAST = 1 / 16
"""Of the step that covers all values: the least that a step may be while it is learned, lest a jump at a
high learning rate leave nothing but the ends of the grid."""


def gradient_share(values: int, highest: int) -> float:
    """What a step's gradient is multiplied with: 1 / sqrt(N Q), for N values with codes up to Q."""
    return 1.0 / math.sqrt(max(1, values) * highest)


class RoundedWeight(torch.autograd.Function):
    """codes * steps. Gradients: of the weight where it is ``inside``, of the steps what goes out times
    ``slope``; all of the weight's shape, but for steps, one for each channel, which broadcast with it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, steps: Tensor, codes: Tensor, inside: Tensor, slope: Tensor
    ) -> Tensor:
        """What the weight is rounded to."""
        ctx.save_for_backward(inside, slope)
        ctx.shape = steps.shape
        return codes * steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Of the weight and the steps."""
        (going,) = gradients
        inside, slope = ctx.saved_tensors
        return going * inside, (going * slope).sum_to_size(ctx.shape), None, None, None


class RoundedTensor(torch.autograd.Function):
    """Clamp to codes from ``-below`` to ``above`` times the step, round to multiples of it; the step is a
    tensor of one number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, below: int, above: int, share: float) -> Tensor:
        """What a tensor is rounded to."""
        ctx.save_for_backward(x, step)
        ctx.ends, ctx.share = (below, above), share
        held = float(step.detach())
        return x.clamp(-below * held, above * held).mul_(1.0 / held).round_().mul_(held)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Of the tensor and the step."""
        (going,) = gradients
        x, step = ctx.saved_tensors
        below, above = ctx.ends
        held = float(step)
        own = torch.ops.aten.hardtanh_backward(going, x, -below * held, above * held)
        codes = x.float() / held  # bfloat16 has too few digits for what is left of them
        clamped = codes.clamp(-below, above)
        codes = clamped.round()
        slope = torch.where(own == going, codes.sub_(clamped), clamped)
        return own, (going.float() * slope).sum().mul(ctx.share).reshape(step.shape), None, None, None
