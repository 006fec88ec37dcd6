"""Look something up for many policies at once, by the values in a few integer columns.

Columns have few distinct values (widths that a space offers, bits, forms), so each is replaced by the number
of its value, the numbers become one code per policy, and each code that occurs is looked up once.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

DENSE = 1 << 18
"""Up to so many possible codes they are counted in an array; more are sorted."""
MOST_CODES = 1 << 62
"""More would not fit the integers that hold a code."""
MOST_CODES = 1 << 62

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Number of the value in each place (n,), and the values by number."""


def encoded(column: NDArray[np.int64]) -> Encoded:
    """Number the values of a column (n,) of integers from 0 up, in ascending order."""
    numbers = np.zeros(int(column.max(initial=0)) + 1, dtype=np.int64)
    values = np.flatnonzero(np.bincount(column, minlength=len(numbers)))
    numbers[values] = np.arange(len(values))
    return numbers[column], values


class Rows:
    """The columns of many states, each encoded once."""

    def __init__(self, states: NDArray[np.int64]) -> None:
        """``states``: (columns of a state, n)."""
        self._states = states
        self._encoded: dict[int, Encoded] = {}

    def encoded(self, column: int) -> Encoded:
        """One column, encoded."""
        if column not in self._encoded:
            self._encoded[column] = encoded(self._states[column])
        return self._encoded[column]


def gathered(
    columns: Sequence[Encoded], look_up: Callable[[tuple[int, ...]], tuple[float, ...]]
) -> NDArray[np.float64]:
    """(m, n): what ``look_up`` says, in m numbers, of the values of the columns in each of n >= 1 places."""
    code = np.zeros(len(columns[0][0]), dtype=np.int64)
    possible = 1
    for numbers, values in columns:
        if possible * len(values) > MOST_CODES:  # number those that occur anew: never more than n
            code = np.unique(code, return_inverse=True)[1]
            possible = int(code.max()) + 1
        code = code * len(values) + numbers
        possible *= len(values)
    if possible <= DENSE:
        place, present = encoded(code)
    else:
        present, place = np.unique(code, return_inverse=True)
    example = np.empty(len(present), dtype=np.int64)
    example[place] = np.arange(len(place))  # any place that has the code
    occurring = np.stack([values[numbers[example]] for numbers, values in columns], axis=1)
    found = [look_up(tuple(one)) for one in occurring.tolist()]
    return np.asarray(np.array(found, dtype=np.float64).T[:, place])
