"""A part of a network: what it gets inside the whole, and the whole with another part in its place."""

import copy
import difflib
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.program import Arguments, TraceError, evaluating, outputs_of
from leanfront.compression.capture.trace import Traced, trace

_ROWS = 1e-4
"""Share of the range by which a row may differ from itself among others."""


def part_of(model: nn.Module, part: str) -> nn.Module:
    """A submodule by its name.

    Raises:
        TraceError: there is none; the nearest names are given.
    """
    known: dict[str, nn.Module] = {name: each for name, each in model.named_modules() if name}
    if part in known:
        return known[part]
    near = difflib.get_close_matches(part, known, n=3, cutoff=0.4)
    near = near or [name for name, _ in model.named_children()][:8]
    raise TraceError(
        f"a part is the name of a submodule of {type(model).__name__}, but it has no {part!r}; there"
        f" is {', '.join(near) or 'none'}"
    )


def calls_of_part(model: nn.Module, part: str, inputs: Any) -> list[Arguments]:
    """What a part is called with while the whole computes, in evaluation mode, call by call.

    Args:
        inputs: as the whole takes them; a batch of any size.

    Raises:
        TraceError: there is no such part.
    """
    found: list[Arguments] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Arguments(args, kwargs).changed(lambda tensor: tensor.detach().clone()))

    handle = part_of(model, part).register_forward_pre_hook(note, with_kwargs=True)
    try:
        with evaluating(model):
            Arguments.of(inputs).call(model)
    finally:
        handle.remove()
    return found


def example_of_part(model: nn.Module, part: str, example: Arguments) -> Arguments:
    """What a part gets for an example of the whole, with a batch of one.

    A part that gets several rows for one example (regions of an image, say) takes the first, if the others do
    not change what becomes of it.

    Raises:
        TraceError: there is no such part; it is never called, or with several shapes; the whole does not run;
            rows are not apart.
    """
    part_of(model, part)
    outputs_of(model, example)
    calls = calls_of_part(model, part, example)
    if not calls:
        raise TraceError(
            f"the part {part!r} is never called while {type(model).__name__} computes (another of its methods"
            " may be); name one that is"
        )
    shapes = [[tuple(tensor.shape) for tensor in call.tensors] for call in calls]
    if any(each != shapes[0] for each in shapes):
        raise TraceError(
            f"the part {part!r} is called {len(calls)} times in one pass, with tensors of different shapes"
            f" ({shapes[0]} and {next(each for each in shapes if each != shapes[0])}); name a part that gets"
            " one shape"
        )
    rows = {tensor.shape[0] if tensor.dim() else 1 for tensor in calls[0].tensors}
    return calls[0] if rows == {1} else _first_row(model, part, calls[0], rows)


def trace_part(model: nn.Module, example_inputs: Any, part: str | None) -> Traced:
    """``trace`` of a model, or of a part of it with what that gets for the example inputs of the whole.

    Raises:
        TraceError: as ``trace`` and ``example_of_part``.
    """
    if part is None:
        return trace(model, example_inputs)
    given = example_of_part(model, part, Arguments.of(example_inputs))
    return trace(part_of(model, part), given)


def _first_row(model: nn.Module, part: str, call: Arguments, rows: set[int]) -> Arguments:
    first = call.changed(lambda tensor: tensor[:1] if tensor.dim() else tensor)
    inner = part_of(model, part)
    if len(rows) == 1 and rows != {0}:
        with evaluating(model):
            several, one = pytree.tree_leaves(call.call(inner)), pytree.tree_leaves(first.call(inner))
        apart = [
            isinstance(a, torch.Tensor) and a.dim() > 0 and a[:1].shape == b.shape
            and bool((a[:1] - b).abs().max() <= _ROWS * max(float(a.abs().max()), 1e-12))
            for a, b in zip(several, one, strict=True)
        ]  # fmt: skip
        if all(apart):
            return first
    raise TraceError(
        f"the part {part!r} gets tensors with {' and '.join(map(str, sorted(rows)))} rows for one example,"
        " which it does not compute apart; name a part that gets one row for each example"
    )


def with_part(model: nn.Module, part: str, module: nn.Module) -> nn.Module:
    """The whole with another module in the place of a part, wherever it is used; the whole's own weights
    around it are shared, not copied."""
    own = part_of(model, part)
    memo: dict[int, Any] = {id(own): module}
    for each in model.modules():
        for value in (*each._parameters.values(), *each._buffers.values(), *vars(each).values()):
            if isinstance(value, torch.Tensor):
                memo[id(value)] = value
    return copy.deepcopy(model, memo)
