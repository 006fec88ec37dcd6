"""Which form a kernel takes in onnxruntime's optimised graph, learned from graphs that were seen.

A kernel becomes one or several optimised nodes: with or without a quantizer, in one memory layout or another.
Which ones depends on its own precision and alignment and on some of its neighbours', and on which of these
differs from kernel to kernel (the layout of a residual stream may be decided four kernels away). So the
neighbours that tell forms apart are looked for, the most telling first, until the graphs that were seen are
explained. A state that was never seen is answered by leaving out the least telling neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_NEIGHBOURS = 5
EXPLAINED = 0.99
STATES = 64  # values that one column of a state may have: bits up to 32, alignments up to 16
_BLOCKS = (8, 16)  # channels in a block of onnxruntime's blocked layouts

State = Sequence[int]


LEFT_OUT, AT_RUN_TIME = 2, 3
"""What stands beside 0, computes in floats, and 1, in integers: is not there, and computes in integers that
it makes of floats."""


def alignment(width: int) -> int:
    """What of a width decides about layouts: by what it can be divided, and whether it fills a block."""
    return math.gcd(width, _BLOCKS[-1]) + 16 * sum(width < block for block in _BLOCKS)


@dataclass(frozen=True)
class Rule:
    """How the form of one kernel follows from the state of a network.

    columns: of the state, first the kernel's own, then neighbours', the most telling first. forms: for each
    number of columns from all down to the least that must be known, their values -> the form that they mostly
    had.
    """

    columns: tuple[int, ...]
    forms: tuple[Mapping[tuple[int, ...], int], ...]

    def form(self, values: tuple[int, ...]) -> int | None:
        """The form for the values of ``columns``; None where not even the least were seen."""
        for forms in self.forms:
            found = forms.get(values)
            if found is not None:
                return found
            values = values[:-1]
        return None

    @cached_property
    def pick(self) -> Callable[[State], tuple[int, ...]]:
        """State -> the values of ``columns`` in it. There are at least two: precision and bits."""
        return itemgetter(*self.columns)


def learn(
    states: NDArray[np.int64],
    forms: NDArray[np.int64],
    own: Sequence[int],
    near: Sequence[int],
    far: Sequence[int] = (),
    *,
    least: int,
) -> Rule:
    """The rule that explains the forms seen.

    Args:
        states: (graphs, columns).
        forms: (graphs,) form of the kernel in each.
        own: columns that are always looked at.
        near: columns that may be looked at, too.
        far: columns that may be looked at where the near ones leave more than EXPLAINED open.
        least: so many of ``own`` must have been seen together for an answer.
    """
    columns, left = _most_telling(states, forms, own, near)
    if left > (1.0 - EXPLAINED) * len(forms):
        further, left_then = _most_telling(states, forms, own, [*near, *far])
        columns = further if left_then < left else columns
    return Rule(tuple(columns), tabulate(states, forms, columns, least))


def _most_telling(
    states: NDArray[np.int64], forms: NDArray[np.int64], own: Sequence[int], others: Sequence[int]
) -> tuple[list[int], int]:
    """``own`` and, one by one, those of ``others`` that explain most; and how many graphs they leave open."""
    columns = list(dict.fromkeys(own))
    kept = len(columns)
    groups = np.zeros(len(states), dtype=np.int64)
    for column in columns:
        groups = _split(groups, states[:, column])
    left = [_unexplained(groups, forms)]
    candidates = [column for column in others if column not in columns and np.ptp(states[:, column])]
    while left[-1] and candidates and len(columns) < kept + MOST_NEIGHBOURS:
        trials = [_split(groups, states[:, column]) for column in candidates]
        # of two that decide together neither explains a graph alone, but both tell something of the forms
        told = [(_unexplained(trial, forms), _open(trial, forms)) for trial in trials]
        best = told.index(min(told))
        groups = trials[best]
        left.append(told[best][0])
        columns.append(candidates.pop(best))
    needed = left.index(min(left))
    return columns[: kept + needed], left[needed]


def tabulate(
    states: NDArray[np.int64], forms: NDArray[np.int64], columns: Sequence[int], least: int
) -> tuple[Mapping[tuple[int, ...], int], ...]:
    """The forms of a rule: for each number of columns, the most frequent one."""
    tables = []
    for count in range(len(columns), least - 1, -1):
        seen: dict[tuple[int, ...], dict[int, int]] = {}
        for values, form in zip(states[:, list(columns[:count])].tolist(), forms.tolist(), strict=True):
            votes = seen.setdefault(tuple(values), {})
            votes[form] = votes.get(form, 0) + 1
        tables.append({values: max(votes, key=lambda f: votes[f]) for values, votes in seen.items()})
    return tuple(tables)


def _split(groups: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups told apart by one more column, numbered anew."""
    found: NDArray[Any] = np.unique(groups * STATES + column, return_inverse=True)[1]
    return found.astype(np.int64)


def _unexplained(groups: NDArray[np.int64], forms: NDArray[np.int64]) -> int:
    """Graphs whose form is not the most frequent one of their group."""
    return int(len(forms) - _counted(groups, forms).max(axis=1).sum())


def _open(groups: NDArray[np.int64], forms: NDArray[np.int64]) -> float:
    """What the groups leave open of the forms: their entropy within each group, summed over graphs."""
    counts = _counted(groups, forms)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(-(counts * np.log(np.maximum(shares, 1e-12))).sum())


def _counted(groups: NDArray[np.int64], forms: NDArray[np.int64]) -> NDArray[np.int64]:
    """(groups, forms): how many graphs."""
    counts = np.zeros((int(groups.max()) + 1, int(forms.max()) + 1), dtype=np.int64)
    np.add.at(counts, (groups, forms), 1)
    return counts
