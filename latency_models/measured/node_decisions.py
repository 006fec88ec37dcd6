"""A rule for the form of a kernel as small tables of numbers, so that many policies are decided at once.

The values of each column are numbered; a table leads from the numbers of a few columns (and from what the
table before it said) to what is left to be decided, at last to the form. What the columns that remain decide
alike is one row: so a rule of a dozen columns takes one or two small tables, however many combinations of
values there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.measured.fusion_rules import Rule

MOST_CELLS = 1 << 14
"""Of one table: it should fit a processor's near cache."""


@dataclass(frozen=True)
class Stage:
    """``columns``: positions within the rule's columns. table: (what came in x numbers of the columns,), the
    last column counting fastest."""

    columns: tuple[int, ...]
    table: NDArray[np.int32]


def staged(
    rule: Rule, numbers: Sequence[Mapping[int, int]]
) -> tuple[tuple[Stage, ...], tuple[int | None, ...]]:
    """The tables of a rule, and the forms that the numbers in the last one stand for; None: never seen.

    ``numbers``: for each column its values -> 0, 1, ..., with all values that the rule has of it.
    """
    forms = (None, *sorted({form for table in rule.forms for form in table.values()}))
    return tuple(_merged(*_steps(rule, numbers, {form: n for n, form in enumerate(forms)}))), forms


def _steps(
    rule: Rule, numbers: Sequence[Mapping[int, int]], forms: Mapping[int | None, int]
) -> tuple[int, list[NDArray[np.int32]]]:
    """Where to begin, and per column what is left to be decided before it x its numbers -> what after it.

    The first rows are those where the form is decided already.
    """
    count, steps = len(rule.columns), []
    after = {values: forms[form] for values, form in rule.forms[0].items()}
    for column in reversed(range(count)):
        shorter = count - column < len(rule.forms)
        known = rule.forms[count - column] if shorter else {}  # the forms where the next value is a new one
        rows: dict[tuple[int, ...], list[int]] = {}
        for values, then in after.items():
            row = rows.setdefault(values[:-1], [])
            if not row:
                row += [forms[known.get(values[:-1])]] * len(numbers[column])
            row[numbers[column][values[-1]]] = then
        alike = {(form,) * len(numbers[column]): form for form in range(len(forms))}
        after = {values: alike.setdefault(tuple(row), len(alike)) for values, row in rows.items()}
        steps.append(np.array(list(alike), dtype=np.int32))
    return after[()], steps[::-1]


def _merged(begin: int, steps: Sequence[NDArray[np.int32]]) -> list[Stage]:
    """Several columns in a table, as long as it stays small; those that decide nothing left out."""
    found: list[Stage] = []
    columns: list[int] = []
    table = np.array([begin], dtype=np.int32)
    for column, step in enumerate(steps):
        if (step == step[:, :1]).all():
            table = step[table, 0]
            continue
        if columns and table.size * step.shape[1] > MOST_CELLS:
            found.append(Stage(tuple(columns), table.ravel()))
            columns, table = [], np.arange(len(step), dtype=np.int32)
        table = step[table]
        columns.append(column)
    return [*found, Stage(tuple(columns), table.ravel())]
