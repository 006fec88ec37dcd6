"""What a network does in training alone, and its captured form, in evaluation mode, does not."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.program import Arguments, evaluating

_TRIES = 8  # a drop path that drops one in ten leaves an example alone in nine of ten


def only_in_training(model: nn.Module, example: Arguments) -> list[str]:
    """Names of the innermost modules of the user's own, without weights, that put out something else in
    training than in evaluation mode (drop paths, noise). torch's own dropouts are captured as they are."""
    found: dict[nn.Module, Arguments] = {}
    names = {
        part: name
        for name, part in model.named_modules()
        if name and not type(part).__module__.startswith("torch.") and not list(part.children())
        and not list(part.parameters())
    }  # fmt: skip

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(part, Arguments(args, kwargs))

    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in names]
    try:
        with evaluating(model):
            example.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return [names[part] for part, given in found.items() if _differs(part, given)]


def _differs(part: nn.Module, given: Arguments) -> bool:
    trained, evaluated = copy.deepcopy(part).train(), copy.deepcopy(part).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            wanted = pytree.tree_leaves(given.call(evaluated))
            return any(
                not torch.equal(one, other)
                for _ in range(_TRIES)
                for one, other in zip(pytree.tree_leaves(given.call(trained)), wanted, strict=True)
                if isinstance(other, torch.Tensor)
            )
        except Exception:  # it needs more in training than it has here: nothing is known of it
            return False
