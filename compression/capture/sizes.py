"""Sizes that are written in calls of operators, and what they become when channels are cut."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

Part = tuple[int, Tensor]
"""A tensor's dimension of channels, and which of them stay."""


def arguments(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of what an operator is called with; without those that have their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(place): value for place, value in enumerate(args)} | dict(kwargs)
    names = [argument.name for argument in schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def called(node: fx.Node, bound: Mapping[str, Any]) -> Any:
    """What an operator makes of arguments by name."""
    args, kwargs = listed(node, bound)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def listed(node: fx.Node, bound: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name as a call has them: those by position, those by name alone."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return tuple(bound.values()), {}
    by_name = {argument.name for argument in schema.arguments if argument.kwarg_only}
    args = []
    for argument in schema.arguments:
        if argument.kwarg_only or argument.name not in bound:
            break
        args.append(bound[argument.name])
    there = {argument.name for argument in schema.arguments[: len(args)]}
    kwargs = {name: value for name, value in bound.items() if name in by_name or name not in there}
    return tuple(args), kwargs


def resized(node: fx.Node, bound: Mapping[str, Any], read: Part | None, made: Part) -> dict[str, Any]:
    """The arguments of an operator once channels are cut.

    Args:
        node: the call.
        bound: its arguments by name; sizes may be nodes, of which nothing is changed.
        read: of its first tensor the dimension of channels and which stay; None where it reads none.
        made: the same of what it puts out.
    """
    change = _CHANGES.get(node.target)
    if change is None:
        return dict(bound)
    return {**bound, **change(bound, read, made)}


def _counted(name: str) -> Callable[[Mapping[str, Any], Part | None, Part], dict[str, Any]]:
    """A list of sizes of what comes out."""

    def change(bound: Mapping[str, Any], read: Part | None, made: Part) -> dict[str, Any]:
        sizes, (axis, stays) = list(bound[name]), made
        if isinstance(sizes[axis], fx.Node):  # heads, say, counted together with the batch
            sizes[axis] = sizes[axis] if -1 in sizes else -1
        elif sizes[axis] >= 0:
            sizes[axis] = int(stays.sum())
        return {name: sizes}

    return change


def _sliced(bound: Mapping[str, Any], read: Part | None, made: Part) -> dict[str, Any]:
    assert read is not None
    axis, stays = read
    if bound.get("dim", 0) % _rank(bound, axis) != axis:
        return {}
    before = _place(bound.get("start") or 0, len(stays))
    after = max(before, _place(bound.get("end"), len(stays)))
    first = int(stays[:before].sum())
    return {"start": first, "end": first + int(stays[before:after].sum())}


def _place(value: int | None, size: int) -> int:
    if value is None:
        return size
    return min(max(value + size if value < 0 else value, 0), size)


def _rank(bound: Mapping[str, Any], axis: int) -> int:
    first = next(iter(bound.values()))
    if isinstance(first, Tensor):
        return first.dim()
    value = first.meta.get("val") if isinstance(first, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else axis + 1


def _mapped(bound: Mapping[str, Any], read: Part | None, made: Part) -> dict[str, Any]:
    assert read is not None
    axis, stays = read
    index = bound["index"]
    if bound["dim"] % _rank(bound, axis) != axis or not isinstance(index, Tensor):
        return {}
    places = stays.cumsum(0) - 1
    return {"index": places[index[made[1]]]}


def _padded(bound: Mapping[str, Any], read: Part | None, made: Part) -> dict[str, Any]:
    assert read is not None
    axis, stays = made
    pads = list(bound["pad"])
    place = 2 * (_rank(bound, axis) - 1 - axis)
    if place >= len(pads):
        return {}
    before, after = pads[place : place + 2]
    pads[place] = int(stays[: max(before, 0)].sum())
    pads[place + 1] = int(stays[len(stays) - max(after, 0) :].sum())
    return {"pad": pads}


_CHANGES: Mapping[Any, Callable[[Mapping[str, Any], Part | None, Part], dict[str, Any]]] = {
    aten.reshape.default: _counted("shape"),
    aten.expand.default: _counted("size"),
    aten.zeros.default: _counted("size"),
    aten.ones.default: _counted("size"),
    aten.full.default: _counted("size"),
    aten.new_zeros.default: _counted("size"),
    aten.new_ones.default: _counted("size"),
    aten.new_full.default: _counted("size"),
    aten.slice.Tensor: _sliced,
    aten.index_select.default: _mapped,
    aten.constant_pad_nd.default: _padded,
    aten.pad.default: _padded,
}
"""Operators with sizes in their arguments that count channels. The others take what they are given."""

CREATED = tuple(
    target for target in _CHANGES if "size" in {a.name for a in target._schema.arguments} and "self" not in
    {a.name for a in target._schema.arguments[:1]}
)  # fmt: skip
"""Operators that make a tensor of sizes alone."""
