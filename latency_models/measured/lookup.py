"""Look up what every kernel of a network becomes, for many policies at once, in tables of numbers.

Each value that decides something (a width, its alignment, bits) is numbered. A kernel's form follows from
such numbers by its rule: a table leads from the numbers of a few columns (and from what the table before it
said) to what is left to be decided, at last to the form. What the columns that remain decide alike is one
row: so a rule of a dozen columns takes one or two small tables, however many combinations of values there
are. Form and widths lead to the number of an entry, asked for when it first occurs. So a batch takes for each
kernel some additions and two or three reads from small tables.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.measured.fusion_rules import AT_RUN_TIME, Rule, alignment

if TYPE_CHECKING:
    from leanfront.latency_models.measured.optimised_kernels import Structure

DENSE = 1 << 18
"""Up to so many possible codes they are counted in an array; more are sorted."""
MOST_CODES = 1 << 62
"""More would not fit the integers that hold a code."""
MOST_RULE_CELLS = 1 << 14
"""Of one table: it should fit a processor's near cache."""
MOST_CELLS = 1 << 22
"""Forms times widths of a kernel that has a table of entries; where there are more, a batch is sorted."""

Counts = NDArray[np.int64]
Encoded = tuple[Counts, Counts]
"""Number of the value in each place (n,), and the values by number."""
Numbers = NDArray[np.int32]
Ask = Callable[[int, int | None, tuple[int, ...]], int]
"""(kernel, form, widths) -> number of its entry, above 0; for form None, never seen, it raises an error."""


class UnseenValues(Exception):
    """``values``, by row of the sources, that the tables were not made for."""

    def __init__(self, values: Mapping[int, set[int]]) -> None:
        super().__init__(values)
        self.values = values


@dataclass(frozen=True)
class _Variable:
    """What decides something. source: row of its values. numbers: value -> number, -1: none. values: of the
    source, one for each number."""

    source: int
    numbers: Numbers
    values: tuple[int, ...]


@dataclass(frozen=True)
class _Table:
    """One table of a kernel: (what came in x numbers of the variables,), the last one counting fastest.

    places: how many cells a number of each variable counts; stride: the same of what came in.
    """

    variables: tuple[int, ...]
    places: tuple[int, ...]
    stride: int
    cells: Numbers

    def codes(self, numbers: Numbers, state: Numbers) -> Numbers:
        """The cells of many policies. ``numbers``: (variables, n), ``state``: what came in, (n,)."""
        codes = state * np.int32(self.stride)
        for variable, place in zip(self.variables, self.places, strict=True):
            codes += numbers[variable] * np.int32(place)
        return codes


@dataclass(frozen=True)
class _Kernel:
    """stages: the tables of its form. widths: variables of its shapes. entries: (form, those of them that
    vary) -> entry, 0: not asked for yet; without cells where there are too many."""

    stages: tuple[_Table, ...]
    forms: tuple[int | None, ...]
    widths: tuple[int, ...]
    entries: _Table


class Lookup:
    """Tables for one network as far as it was seen.

    Policies are given as sources: rows of the widths of all kernels, then whether they compute in integers,
    then the bits of their outputs.
    """

    def __init__(self, structure: "Structure", offered: Mapping[int, set[int]], ask: Ask) -> None:
        """``offered``: by row of the sources, values besides those of the networks that were seen."""
        self._structure, self._offered, self._ask = structure, offered, ask
        self._variables: list[_Variable] = []
        self._of_column: dict[int, int] = {}
        states = structure.states
        self._kernels = [self._kernel(index, states) for index in range(len(structure.kernels))]
        self._sorted = [len(kernel.entries.cells) == 0 for kernel in self._kernels]

    def many(self, source: Callable[[int], NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The numbers of the entries, (n,), kernel by kernel. ``source``: row -> its values, (n,).

        Raises:
            UnseenValues: make the tables anew with these offered.
        """
        rows = [source(variable.source) for variable in self._variables]
        numbers = np.empty((len(rows), len(rows[0])), dtype=np.int32)
        for variable, row, out in zip(self._variables, rows, numbers, strict=True):
            np.take(variable.numbers, row, out=out, mode="clip")
        if numbers.min() < 0:
            unseen = np.flatnonzero(numbers.min(axis=1) < 0).tolist()
            self._unseen({v: rows[v][numbers[v] < 0] for v in unseen})
        for index, kernel in enumerate(self._kernels):
            state = np.zeros(numbers.shape[1], dtype=np.int32)
            for stage in kernel.stages:
                state = stage.cells[stage.codes(numbers, state)]
            yield (
                self._sought(index, numbers, state)
                if self._sorted[index]
                else self._read(index, numbers, state)
            )

    def _read(self, index: int, numbers: Numbers, state: Numbers) -> Numbers:
        """Entries of a kernel from its table; those that it lacks are asked for."""
        kernel = self._kernels[index]
        table = kernel.entries
        codes = table.codes(numbers, state)
        found = table.cells[codes]
        if not found.all():
            first = {code: place for place, code in enumerate(codes.tolist()) if not found[place]}
            for code, place in first.items():
                widths = tuple(self._variables[v].values[numbers[v, place]] for v in kernel.widths)
                table.cells[code] = self._ask(index, kernel.forms[state[place]], widths)
            found = table.cells[codes]
        return found

    def _sought(self, index: int, numbers: Numbers, state: Numbers) -> Counts:
        """The same where a table would be too large."""
        kernel = self._kernels[index]
        columns = [encoded(state.astype(np.int64))]
        columns += [(numbers[v], np.array(self._variables[v].values)) for v in kernel.widths]
        entries = gathered(
            columns, lambda values: (float(self._ask(index, kernel.forms[values[0]], values[1:])),)
        )
        return np.asarray(entries[0].astype(np.int64))

    def _unseen(self, found: Mapping[int, NDArray[Any]]) -> None:
        values = {row: set(known) for row, known in self._offered.items()}
        for variable, column in found.items():
            values.setdefault(self._variables[variable].source, set()).update(np.unique(column).tolist())
        raise UnseenValues(values)

    def _kernel(self, index: int, states: Counts) -> _Kernel:
        rule = self._structure.rule(index)
        columns = [self._variable(column, states) for column in rule.columns]
        numbers = [{value: n for n, value in enumerate(self._variables[v].values)} for v in columns]
        stages, forms = staged(rule, numbers)
        widths = tuple(self._variable(column, states) for column in self._structure.width_columns[index])
        varying = [v for v in dict.fromkeys(widths) if len(self._variables[v].values) > 1]
        cells = len(forms) * math.prod(len(self._variables[v].values) for v in varying)
        return _Kernel(
            tuple(self._table([columns[c] for c in stage.columns], stage.table) for stage in stages),
            forms,
            widths,
            self._table(varying, np.zeros(cells if cells <= MOST_CELLS else 0, dtype=np.int32)),
        )

    def _table(self, variables: Sequence[int], cells: Numbers) -> _Table:
        radices = [len(self._variables[v].values) for v in variables]
        places = tuple(math.prod(radices[i + 1 :]) for i in range(len(radices)))
        return _Table(tuple(variables), places, math.prod(radices), cells)

    def _variable(self, column: int, states: Counts) -> int:
        """The variable in a column of a state; widths that are always equal have the same."""
        count = len(self._structure.kernels)
        field, index = divmod(column, count)
        of_width = field in (0, 3)
        index = self._structure.alike[index] if of_width else index
        column = field * count + index
        if column not in self._of_column:
            known = {*states[:, column].tolist()}
            offered = self._offered.get(index if of_width else column, set())
            known |= {alignment(width) for width in offered} if field == 3 else offered
            most = (self._structure.kernels[index].output.width, AT_RUN_TIME, 32)[field % 3]
            number = {value: n for n, value in enumerate(sorted(known))}
            numbers = [number.get(alignment(value) if field == 3 else value, -1) for value in range(most + 1)]
            self._of_column[column] = len(self._variables)
            self._variables.append(
                _Variable(
                    index if of_width else column, np.array(numbers, dtype=np.int32), tuple(sorted(known))
                )
            )
        return self._of_column[column]


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
        if columns and table.size * step.shape[1] > MOST_RULE_CELLS:
            found.append(Stage(tuple(columns), table.ravel()))
            columns, table = [], np.arange(len(step), dtype=np.int32)
        table = step[table]
        columns.append(column)
    return [*found, Stage(tuple(columns), table.ravel())]


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
