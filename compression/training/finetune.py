"""Fine-tuning with distillation from the uncompressed teacher, in bfloat16 where that is faster."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, Tensor]
"""Inputs (N, ...), targets (N, ...), teacher outputs (N, classes, ...)."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune. temperature and distillation_weight as in Hinton et al. 2015, section 2."""

    learning_rate: float = 0.02
    temperature: float = 4.0
    distillation_weight: float = 0.9
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warm_up: float = 0.1


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened class probabilities, mean over examples.

    Classes are dimension 1; further dimensions (pixels of a segmentation) count as examples.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    soft_teacher = F.softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, soft_teacher, reduction="none").sum(dim=1).mean()
    return divergence * temperature**2


def fine_tune(
    module: nn.Module,
    batches: Iterable[Batch],
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    options: FineTune,
) -> float:
    """Train ``module`` in place for ``steps`` batches with SGD and a one-cycle learning rate.

    The loss is (1 - w) * task loss + w * distillation loss, w the distillation weight. The learning rate
    rises linearly over the first ``warm_up`` of the steps and falls as a half cosine to 0.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        Diverged: the loss is not finite.
    """
    module.train()
    decayed = [p for p in module.parameters() if p.dim() > 1]
    plain = [p for p in module.parameters() if p.dim() <= 1]  # biases and norms are not decayed
    parts: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain},
    ]
    optimizer = torch.optim.SGD(parts, options.learning_rate, options.momentum, nesterov=True)
    device = next(module.parameters()).device.type
    recent: list[float] = []
    for step, (inputs, targets, teacher) in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _one_cycle((step + 1) / steps, options.warm_up)
        with torch.autocast(device, torch.bfloat16):
            outputs = module(inputs)
        outputs = outputs.float()
        weight = options.distillation_weight
        total = (1 - weight) * loss(outputs, targets) if weight < 1 else outputs.new_zeros(())
        if weight > 0:
            total = total + weight * distillation_loss(outputs, teacher, options.temperature)
        value = float(total.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} at step {step + 1} of {steps}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)  # few-bit networks jump at the start
        optimizer.step()
        if step >= steps * 0.9:
            recent.append(value)
    module.eval()
    return sum(recent) / max(len(recent), 1)


def _one_cycle(progress: float, warm_up: float) -> float:
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / max(1 - warm_up, 1e-9)))
