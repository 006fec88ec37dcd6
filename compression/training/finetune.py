"""Fine-tuning with distillation from the uncompressed teacher, in bfloat16 where that is faster."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leanfront.compression.techniques.masks import tighten
from leanfront.compression.techniques.quantize import learn_steps
from leanfront.compression.training.batch_norms import shared_norms
from leanfront.compression.training.distillation import Comparison
from leanfront.compression.training.schedule import Schedule, one_shot

Batch = tuple[Any, Any, Any]
"""Inputs as the network takes them, targets, and the teacher's answers."""

Lesson = Callable[[Any, Any, Any], Tensor]
"""(inputs, targets, the teacher's answers) -> what is minimised."""


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune. temperature and distillation_weight as in Hinton et al. 2015, section 2.
    learned_bits: the steps of grids of so many bits and fewer are trained, too (``learn_steps``).
    features: weight of what layers inside say (``features.with_features``).
    """

    learning_rate: float = 0.02
    temperature: float = 4.0
    distillation_weight: float = 0.9
    weight_decay: float = 1e-4
    momentum: float = 0.9
    warm_up: float = 0.1
    learned_bits: int = 0
    features: float = 0.0


def lesson(
    both: Callable[[Any], tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    comparison: Comparison,
    options: FineTune,
    device: str = "cpu",
) -> Lesson:
    """(1 - w) * the task's loss + w * the distillation's, w the distillation weight; what has no weight is
    not computed.

    Args:
        both: inputs -> what the loss gets, and what is compared with the teacher's answers; in bfloat16.
        loss: (outputs, targets) -> scalar.
    """
    weight = options.distillation_weight

    def computed(inputs: Any, targets: Any, teacher: Any) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            outputs, answers = both(inputs)
        terms = [(1 - weight) * loss(outputs, targets).float()] if weight < 1 else []
        if weight > 0:
            terms.append(weight * comparison.loss(answers, teacher, options.temperature).float())
        return torch.stack(terms).sum()

    return computed


def fine_tune(
    module: nn.Module,
    batches: Iterable[Batch],
    steps: int,
    lesson: Lesson,
    options: FineTune,
    before_step: Callable[[float], None] = lambda progress: None,
) -> float:
    """Train ``module`` in place for ``steps`` batches with SGD and a one-cycle learning rate.

    ``lesson`` computes the loss with the module, alone or inside of what it is a part of. The learning rate
    rises linearly over the first ``warm_up`` of the steps and falls as a half cosine to 0. Batch norms that
    are called several times keep their statistics, see ``shared_norms``. ``before_step`` hears before each
    step which share of them is done.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        Diverged: the loss is not finite.
    """
    learn_steps(module, options.learned_bits)
    module.train()
    for norm in shared_norms(module):
        norm.eval()
    decayed = [p for p in module.parameters() if p.dim() > 1]
    plain = [p for p in module.parameters() if p.dim() <= 1]  # biases and norms are not decayed
    parts: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain},
    ]
    optimizer = torch.optim.SGD(parts, options.learning_rate, options.momentum, nesterov=True)
    recent: list[float] = []
    for step, (inputs, targets, teacher) in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _one_cycle((step + 1) / steps, options.warm_up)
        before_step(step / steps)
        total = lesson(inputs, targets, teacher)
        value = float(total.detach())
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} at step {step + 1} of {steps}")
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
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


def zeros_by(module: nn.Module, schedule: Schedule) -> Callable[[float], None]:
    """What a fine-tune does before each step so that the zeros of a network come by a schedule: they are
    chosen anew a hundred times in all."""
    if schedule is one_shot:  # they are there
        return lambda progress: None
    last = -1

    def before_step(progress: float) -> None:
        nonlocal last
        if (now := int(100 * progress)) != last:
            last = now
            tighten(module, partial(schedule, progress))

    return before_step
