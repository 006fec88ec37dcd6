"""Look something up for many policies at once, by the values in a few integer columns.

Columns have few distinct values (widths that a space offers, bits, forms), so each is replaced by the number
of its value, the numbers become one code per policy, and each code that occurs is looked up once.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

DENSE = 1 << 18
"""Up to so many possible codes they are counted in an array; more are sorted."""
MOST_CODES = 1 << 62
"""More would not fit the integers that hold a code."""

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Number of the value in each place (n,), and the values by number."""


def encoded(column: NDArray[np.int64]) -> Encoded:
    """Number the values of a column (n,) of integers from 0 up, in ascending order."""
    numbers = np.zeros(int(column.max(initial=0)) + 1, dtype=np.int64)
    values = np.flatnonzero(np.bincount(column, minlength=len(numbers)))
    numbers[values] = np.arange(len(values))
    return numbers[column], values


def gathered(
    columns: Sequence[Encoded], look_up: Callable[[tuple[int, ...]], tuple[float, ...]]
) -> NDArray[np.float64]:
    """(m, n): what ``look_up`` says, in m numbers, of the values of the columns in each of n >= 1 places."""
    code = np.zeros(len(columns[0][0]), dtype=np.int64)
    possible, plain = 1, True
    for numbers, values in columns:
        if possible * len(values) > MOST_CODES:  # number those that occur anew: never more than n
            code = np.unique(code, return_inverse=True)[1].astype(np.int64)
            possible, plain = int(code.max()) + 1, False
        if len(values) > 1:
            code = code * len(values) + numbers
            possible *= len(values)
    place, present = encoded(code) if possible <= DENSE else np.unique(code, return_inverse=True)[::-1]
    keys = _decoded(present, columns) if plain else _seen(place, len(present), columns)
    found = np.array([look_up(key) for key in keys], dtype=np.float64)
    return np.asarray(found.T[:, place])


def _decoded(codes: NDArray[np.int64], columns: Sequence[Encoded]) -> Iterable[tuple[int, ...]]:
    """The values that codes stand for."""
    values = []
    for _, known in reversed(columns):
        codes, numbers = np.divmod(codes, len(known))
        values.append(known[numbers].tolist())
    return zip(*reversed(values), strict=True)


def _seen(place: NDArray[np.int64], count: int, columns: Sequence[Encoded]) -> Iterable[tuple[int, ...]]:
    """The values in one of the places where each of ``count`` codes occurs."""
    first = np.zeros(count, dtype=np.int64)
    first[place] = np.arange(len(place))
    return zip(*(values[numbers[first]].tolist() for numbers, values in columns), strict=True)
