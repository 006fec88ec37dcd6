"""Distillation of what layers inside a network say: which examples of a batch are alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from leanfront.compression.graph import Network
from leanfront.compression.training.finetune import Lesson

LAYERS = 4
"""So many are listened to, evenly from the first to the last but one."""


def with_features(
    lesson: Lesson,
    student: nn.Module,
    teacher: tuple[nn.Module, Callable[[Any], Any]],
    layers: Sequence[str],
    weight: float,
) -> Lesson:
    """A lesson with ``weight`` times the distance between what layers inside of two networks put out: that of
    ``unlike``, mean over the layers.

    student: what ``lesson`` trains. teacher: a network, and what runs it for a batch of inputs; in bfloat16.
    layers: names of modules in both (``listened_to``).
    """
    module, run = teacher
    device = next(module.parameters()).device.type

    def computed(inputs: Any, targets: Any, answers: Any) -> Tensor:
        with heard(student, layers) as ours:
            total = lesson(inputs, targets, answers)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16), heard(module, layers) as theirs:
            run(inputs)
        each = [
            unlike(own, other)
            for name in layers
            for own, other in zip(
                ours[name], theirs[name], strict=False
            )  # a part may be called several times
            if len(own) == len(other)
        ]
        return total + weight * torch.stack(each).mean() if each else total

    return computed


def unlike(student: Tensor, teacher: Tensor) -> Tensor:
    """How differently two layers see which examples of a batch are alike: of each example the squared
    distance between its similarities to all examples (a unit vector) in one and in the other, mean over the
    examples, 0 to 4. It compares examples, so the layers may have different numbers of channels.

    Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, equations 1 to 4, over b and not b^2.

    student, teacher: (examples, ...).
    """
    return (_similarities(student) - _similarities(teacher)).square().sum(dim=1).mean()


def _similarities(features: Tensor) -> Tensor:
    rows = features.flatten(1).float()
    return nn.functional.normalize(rows @ rows.mT, dim=1)


def listened_to(network: Network, module: nn.Module) -> list[str]:
    """The layers of a compressed network that are compared with the uncompressed one's of the same names:
    ``LAYERS`` of those that compute something, evenly spaced; not the last, whose answers are distilled."""
    names = list(dict.fromkeys(node.layer for node in network.nodes if node.layer and node.inputs))[:-1]
    known = {name for name, _ in module.named_modules()}
    there = [name for name in names if name in known]
    count = min(LAYERS, len(there))
    return [there[round((index + 1) * len(there) / count) - 1] for index in range(count)]


@contextmanager
def heard(module: nn.Module, layers: Sequence[str]) -> Iterator[Mapping[str, list[Tensor]]]:
    """What layers put out while they are listened to, call by call."""
    told: dict[str, list[Tensor]] = {name: [] for name in layers}

    def listener(name: str) -> Callable[..., None]:
        return lambda _, __, output: told[name].append(output) if isinstance(output, Tensor) else None

    handles = [module.get_submodule(name).register_forward_hook(listener(name)) for name in layers]
    try:
        yield told
    finally:
        for handle in handles:
            handle.remove()
