"""Which kernels of a network are not themselves when branches are left out, for many sets of branches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.kernels import Kernel


@dataclass(frozen=True, eq=False)
class Missing:
    """Rows of a network's kernels that are not themselves when branches are left out.

    absent: those that are not there; aliases: joins -> the row of the tensor that they are another name of,
    in order of execution.
    """

    absent: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    aliases: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(kernels: Sequence[Kernel], branch: Branch) -> "Missing":
        """With one branch left out, as if there were none within it."""
        row = {kernel.name: index for index, kernel in enumerate(kernels)}
        absent = [index for name, index in row.items() if name in branch.nodes]
        return Missing(np.array(absent), {row[branch.join]: row[branch.stays]})

    @staticmethod
    def together(alone: Sequence["Missing"]) -> "Missing":
        """With several branches left out, those within them included."""
        if not alone:
            return Missing()
        absent = {row for one in alone for row in one.absent.tolist()}
        aliases = sorted([item for one in alone for item in one.aliases.items()])
        return Missing(np.array([*absent]), {join: stays for join, stays in aliases if join not in absent})

    @cached_property
    def joins(self) -> NDArray[np.int64]:
        """The rows of the aliases."""
        return np.array([*self.aliases], dtype=np.int64)
