"""The nodes of a kernel at widths that were not seen, from those of the same form at other widths."""

from collections.abc import Mapping, Sequence

from leanfront.latency_models.kernel_table.keys import numbers_of, with_numbers

BLOCK = 16
"""Blocked layouts pad their channels to a multiple of this (or of 8, which divides it)."""

Widths = tuple[int, ...]


def resized_part(seen: Mapping[Widths, tuple[str, ...]], widths: Widths) -> tuple[str, ...] | None:
    """Keys of the nodes at ``widths``; None where what was seen does not say how they follow from them.

    Every number in the keys must be a constant, or a multiple of one of the widths or of that width rounded
    up to whole blocks, in all that was seen.
    """
    numbers = {known: [n for key in part for n in numbers_of(key)] for known, part in seen.items()}
    if len({len(row) for row in numbers.values()}) != 1:
        return None
    known = list(numbers)
    if not all(_varies(known, column) or known[0][column] == width for column, width in enumerate(widths)):
        return None
    made = [_followed(column, known, widths) for column in zip(*numbers.values(), strict=True)]
    if any(number is None for number in made):
        return None
    left = [number for number in made if number is not None]
    keys = []
    for key in next(iter(seen.values())):
        count = len(numbers_of(key))
        keys.append(with_numbers(key, left[:count]))
        left = left[count:]
    return tuple(keys)


def _varies(known: Sequence[Widths], column: int) -> bool:
    return len({widths[column] for widths in known}) > 1


def _followed(column: Sequence[int], known: Sequence[Widths], widths: Widths) -> int | None:
    """The number at ``widths`` in a place where it was ``column`` at the widths known."""
    if len(set(column)) == 1:
        return column[0]
    for index, width in enumerate(widths):
        for block in (1, 8, BLOCK):
            sizes = [-(-other[index] // block) * block for other in known]
            factor = column[0] // sizes[0]
            if factor and all(factor * size == n for size, n in zip(sizes, column, strict=True)):
                return int(factor * (-(-width // block) * block))
    return None
