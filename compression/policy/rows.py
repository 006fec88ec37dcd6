"""Numbers of many kernels under many policies, each kind of them once."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Rows:
    """Numbers of each kernel (kernels, n), of which many have the same: these are there once.

    values: (classes, n). of_kernel: (kernels,) the class of each.
    """

    values: NDArray[Any]
    of_kernel: NDArray[np.int64]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Those of one kernel, or of several."""
        return np.asarray(self.values[self.of_kernel[rows]])

    def part(self, columns: slice) -> "Rows":
        """Of some of the policies."""
        return Rows(self.values[:, columns], self.of_kernel)


def classes(keys: Sequence[Hashable]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each row the number of those with an equal key, and of each number the first row."""
    numbers: dict[Hashable, int] = {}
    of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    first = np.zeros(len(numbers), dtype=np.int64)
    first[of_row[::-1]] = np.arange(len(keys))[::-1]
    return of_row, first
