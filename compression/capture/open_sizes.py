"""Sizes that the code of a network makes numbers of, left open while it is captured."""

import ast
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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
            if "len" not in names:
                names["len"] = _length
                changed.append((names, "len"))
            if "int" not in names and _only_converts(str(names.get("__name__"))):
                names["int"] = _Int
                changed.append((names, "int"))
        yield
    finally:
        for names, name in changed:
            del names[name]


def _names_of(part: nn.Module) -> dict[str, Any]:
    """The names of the file that a module's forward stands in, where it is a function of Python."""
    found: dict[str, Any] = getattr(inspect.unwrap(type(part).forward), "__globals__", {})
    return found


@cache
def _only_converts(file: str) -> bool:
    """Whether a file says ``int`` where it converts a value, or asks for the type of one, and nowhere else:
    as the type of an array (``dtype=int``) nothing but Python's own will do."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[file]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return False
    said = list(_outside_annotations(tree))
    fine: set[ast.AST] = set()
    for node in said:
        if isinstance(node, ast.Call):
            fine.add(node.func)
            if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass", "map"):
                fine |= {part for argument in node.args for part in ast.walk(argument)}
        elif isinstance(node, ast.Compare):  # type(value) == int
            fine |= {
                one for one in (node.left, *node.comparators) if isinstance(node.ops[0], ast.Eq | ast.NotEq)
            }
    return all(node in fine for node in said if isinstance(node, ast.Name) and node.id == "int")


def _outside_annotations(node: ast.AST) -> Iterator[ast.AST]:
    """A piece of code and all that is in it, but what only says which types its values have."""
    yield node
    for name, field in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for part in field if isinstance(field, list) else [field]:
                if isinstance(part, ast.AST):
                    yield from _outside_annotations(part)
