"""Sizes that the code of a network makes numbers of, left open while it is captured."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def _length(of: Any) -> Any:
    """Of a tensor its first size, as ``x.shape[0]`` has it."""
    return of.shape[0] if isinstance(of, Tensor) and of.dim() else len(of)


class _LikeInt(type):
    """What is asked of Python's own ``int`` has the same answer."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int | torch.SymInt)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, int)

    def __eq__(cls, other: object) -> bool:
        return other is int or other is cls

    def __hash__(cls) -> int:
        return hash(int)


class _Int(int, metaclass=_LikeInt):
    """``int``, but that a size which is open stays open."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        if len(args) == 1 and not named and isinstance(args[0], torch.SymInt):
            return args[0]
        return int(*args, **named)


@contextmanager
def sizes_open(model: nn.Module) -> Iterator[None]:
    """Within, ``len(x)`` and ``int(x.shape[0])`` in the files that have a forward of the model are the size
    of the batch that comes: Python's own make the number of it that the example has."""
    changed: list[tuple[dict[str, Any], str]] = []
    try:
        for part in model.modules():
            names = _names_of(part)
            for name, instead in (("len", _length), ("int", _Int)):
                if name not in names:
                    names[name] = instead
                    changed.append((names, name))
        yield
    finally:
        for names, name in changed:
            del names[name]


def _names_of(part: nn.Module) -> dict[str, Any]:
    """The names of the file that a module's forward stands in, where it is a function of Python."""
    found: dict[str, Any] = getattr(inspect.unwrap(type(part).forward), "__globals__", {})
    return found
