"""Which optimised nodes each kernel of a network becomes, under any policy, without asking onnxruntime twice.

What the optimiser makes of a kernel is seen by building a whole network and optimising it (tens of
milliseconds). From what was seen follows, for policies that were not: the form that a kernel takes
(latency_models.measured.fusion_rules), and with its widths the very nodes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Network, kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.dynamic import BITS, DYNAMIC, is_dynamic
from leanfront.latency_models.benchmark.optimised_graph import FusedNode, fused_nodes
from leanfront.latency_models.benchmark.timing import CPU
from leanfront.latency_models.cost import Build, TableError
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.kernel_table.keys import numbers_of, with_numbers, without_sizes
from leanfront.latency_models.measured.fusion_rules import (
    AT_RUN_TIME,
    LEFT_OUT,
    Rule,
    alignment,
    learn,
    tabulate,
)

RADIUS = 4
"""How far away a neighbour may be that decides a kernel's form. Where that explains too little: anywhere."""

BLOCK = 16
"""Blocked layouts pad their channels to a multiple of this (or of 8, which divides it)."""

State = tuple[int, ...]
"""For all kernels in order their widths, then whether they compute in integers, then the bits of their
outputs, then the ``alignment`` of their widths. Where a kernel is left out, width and bits are 0, and the
second says LEFT_OUT: what reads a tensor and is left out is another neighbour than one in floats."""

ABSENT = 0
"""The form of a kernel that is left out, and of the addition behind it: no nodes."""

Widths = tuple[int, ...]

Part = tuple[str, ...]
"""Keys of the optimised nodes of one kernel, in order."""


def canonical(policy: Policy) -> Policy:
    """The policy as far as it decides which kernels run: integer layers hold 8-bit weights, whatever the
    policy stores them in, and layers that are not integer compute in float32, unless their tensors are
    quantized at run time. What is left out stays so."""
    return Policy.of(
        {
            name: LayerPolicy(p.sparsity, 8, p.activation_bits)
            if p.integer
            else LayerPolicy(p.sparsity, *BITS, more=((DYNAMIC, 1.0),))
            if is_dynamic(p)
            else LayerPolicy(p.sparsity, 32, 32)
            for name, p in policy.items()
        },
        policy.absent,
    )


class Structure:
    """The kernels of one network and the optimised nodes that they become."""

    def __init__(self, network: Network, build: Build, threads: int = 1, provider: str = CPU) -> None:
        """``network``: uncut. ``build`` is called with its resized forms."""
        self.network = network
        self.kernels = kernels(network)
        self.nodes: dict[str, FusedNode] = {}
        self.build, self.threads, self.provider = build, threads, provider
        self.owners = {node.name: k.name for k in self.kernels for node in k.nodes}
        self.owners |= {k.label: k.name for k in self.kernels if k.layer is not None}
        index = {kernel.name: i for i, kernel in enumerate(self.kernels)}
        inputs = tuple(tuple(index[name] for name in k.inputs) for k in self.kernels)
        count = len(self.kernels)
        self.width_columns = tuple((i, *sources) for i, sources in enumerate(inputs))
        """Per kernel the columns of a state with the widths that decide its shapes."""
        self._precision_columns = tuple(
            tuple(dict.fromkeys((i + count, i + 2 * count, *(s + 2 * count for s in inputs[i]))))
            for i in range(count)
        )
        self._own = tuple(
            tuple(dict.fromkeys((*columns, i + 3 * count, *(s + 3 * count for s in inputs[i]))))
            for i, columns in enumerate(self._precision_columns)
        )
        self._near = tuple(
            tuple(other + field * count for other in near for field in (1, 2, 3))
            for near in _neighbourhoods(inputs, RADIUS)
        )
        parts = [k.output.channels for k in self.kernels]
        within = [tuple(b.name for b in network.branches if k.name in b.nodes) for k in self.kernels]
        first: dict[object, int] = {}
        self.alike = tuple(first.setdefault(own, i) for i, own in enumerate(zip(parts, within, strict=True)))
        """Per kernel the first one whose output has as many channels, however the network is cut, and that is
        left out together with it."""
        self._states: dict[State, list[Part]] = {}  # what was seen
        self._forms: dict[tuple[str, ...], int] = {}
        self._parts: list[dict[tuple[int, ...], Part]] = [{} for _ in self.kernels]
        self._rules: list[Rule | None] = [None] * count
        self._known_forms: list[dict[tuple[int, ...], int | None]] = [{} for _ in self.kernels]
        self._columns: list[tuple[int, ...]] = [()] * count  # of rules that were learned before
        self.version = 0
        """Counts whatever was seen: what was made of it before is out of date."""

    def modes(self, batch: PolicyBatch) -> NDArray[np.uint8]:
        """(kernels, n): whether each kernel computes in integers, LEFT_OUT or AT_RUN_TIME."""
        modes = batch.integer.astype(np.uint8)
        if DYNAMIC in batch.more:
            for row, kernel in enumerate(self.kernels):
                if kernel.layer is not None:
                    own = batch.more[DYNAMIC][batch.layer_index[kernel.layer.name]]
                    modes[row, own > 0] = AT_RUN_TIME
        for row, absent in batch.absent.items():
            modes[row, absent] = LEFT_OUT
        return modes

    def state(self, network: Network, policy: Policy) -> State:
        """What of a network and its policy decides the forms of its kernels."""
        batch = PolicyBatch.of_cut(self.network, network, policy)
        widths, modes, bits = (rows[:, 0].tolist() for rows in (batch.widths, self.modes(batch), batch.bits))
        return (*widths, *modes, *bits, *map(alignment, widths))

    @property
    def states(self) -> NDArray[np.int64]:
        """(networks, columns): the states of all networks that were seen."""
        return np.array(list(self._states), dtype=np.int64).reshape(-1, 4 * len(self.kernels))

    def rule(self, index: int) -> Rule:
        """What decides the form of a kernel, where it is not left out.

        Raises:
            TableError: it was never seen yet.
        """
        rule = self._rules[index]
        if rule is None:
            rule = self._learned(index)
            self._rules[index] = rule
            self._known_forms[index] = {}
        return rule

    def form(self, index: int, values: tuple[int, ...]) -> int | None:
        """The form of a kernel where the columns of its rule have these values; None: never seen."""
        if 0 in values[1 : len(self._precision_columns[index])]:  # its own bits, and those of its inputs
            return ABSENT
        known = self._known_forms[index]
        if values not in known:
            known[values] = self.rule(index).form(values)
        return known[values]

    def part(self, index: int, widths: tuple[int, ...], form: int) -> Part | None:
        """The nodes of a kernel of this form at these widths (``width_columns``): as seen, or as they follow
        from other widths; None where they do not."""
        if form == ABSENT:
            return ()
        known = self._parts[index].get((form, *widths))
        return known or resized_part(self.parts_of_form(index, form), widths)

    def parts_of_form(self, index: int, form: int) -> Mapping[tuple[int, ...], Part]:
        """Widths -> nodes of all that were seen of a kernel in this form."""
        return {seen[1:]: part for seen, part in self._parts[index].items() if seen[0] == form}

    def keys(self) -> set[str]:
        """Keys of all optimised nodes seen so far."""
        return {key for parts in self._states.values() for part in parts for key in part}

    def forget(self) -> None:
        """Start anew, as if nothing had been seen."""
        self.version += 1
        self._states.clear()
        self._forms.clear()
        self.nodes.clear()
        for parts in self._parts:
            parts.clear()
        self._rules = [None] * len(self.kernels)
        self._columns = [()] * len(self.kernels)

    def observe(self, network: Network, policy: Policy) -> list[Part]:
        """Build the network, optimise it, note what each kernel became, and return that.

        Raises:
            TableError: onnxruntime cannot load the network.
        """
        found = self._fused(network, policy)
        for node in found:
            self.nodes.setdefault(node.key, node)
        parts = self._by_kernel(found)
        self.note(self.state(network, policy), parts)
        return parts

    def built(self, network: Network, policy: Policy) -> list[Part]:
        """What each kernel becomes: as noted of a network in this state, or else built, optimised, and not
        noted.

        Raises:
            TableError: as ``observe``.
        """
        return self.noted(network, policy) or self._by_kernel(self._fused(network, policy))

    def noted(self, network: Network, policy: Policy) -> list[Part] | None:
        """What each kernel became in a network of this very state; None: none was seen."""
        return self._states.get(self.state(network, policy))

    def _fused(self, network: Network, policy: Policy) -> tuple[FusedNode, ...]:
        return fused_nodes(self.build(network, canonical(policy)), self.owners, self.threads, self.provider)

    def _by_kernel(self, found: Iterable[FusedNode]) -> list[Part]:
        keys: dict[str, list[str]] = {kernel.name: [] for kernel in self.kernels}
        first = self.kernels[0].name
        for node in found:
            keys[node.owner or first].append(node.key)
        return [tuple(keys[kernel.name]) for kernel in self.kernels]

    def foretold(self, network: Network, policy: Policy) -> list[Part | None]:
        """The nodes of each kernel as far as they follow from what was seen; builds nothing."""
        state = self.state(network, policy)
        if state in self._states:
            return list(self._states[state])
        parts: list[Part | None] = []
        for index, columns in enumerate(self.width_columns):
            form = self.form(index, self.rule(index).pick(state)) if self._states else None
            widths = tuple(state[column] for column in columns)
            parts.append(self.part(index, widths, form) if form is not None else None)
        return parts

    def note(self, state: State, parts: list[Part]) -> None:
        """Take in what the kernels of a network in ``state`` became."""
        if state in self._states:
            return
        self._states[state] = parts
        self.version += 1
        for index, part in enumerate(parts):
            if 0 in [state[column] for column in self.width_columns[index]]:
                continue
            form = self._form_of(part)
            self._parts[index].setdefault((form, *(state[c] for c in self.width_columns[index])), part)
            rule = self._rules[index]
            if rule is not None and rule.form(rule.pick(state)) != form:
                self._rules[index] = None  # to be learned again

    def _form_of(self, part: Part) -> int:
        return self._forms.setdefault(tuple(map(without_sizes, part)), len(self._forms) + 1)

    def _learned(self, index: int) -> Rule:
        widths = self.width_columns[index]
        seen = [(s, parts) for s, parts in self._states.items() if all(s[column] for column in widths)]
        states = np.array([state for state, _ in seen], dtype=np.int64)
        forms = np.array([self._form_of(parts[index]) for _, parts in seen], dtype=np.int64)
        if not seen:
            name = self.kernels[index].name
            raise TableError(f"no optimised graph of this network with {name!r} in it was seen yet")
        least = len(self._precision_columns[index])
        if columns := self._columns[index]:
            self._columns[index] = ()
            return Rule(columns, tabulate(states, forms, columns, least))
        far = range(len(self.kernels), 4 * len(self.kernels))
        return learn(states, forms, self._own[index], self._near[index], far, least=least)

    def save(self, path: Path) -> None:
        """Write what was seen, beside and renamed."""
        keys = {key: number for number, key in enumerate(sorted(self.keys()))}
        content = {
            "keys": list(keys),
            "columns": [self.rule(index).columns for index in range(len(self.kernels))],
            "states": list(self._states),
            "parts": [[[keys[key] for key in part] for part in parts] for parts in self._states.values()],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(content, separators=(",", ":")))
        except OSError as error:
            raise TableError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Take in what ``save`` wrote; a file that is not there or damaged is as if empty."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            keys = content["keys"]
            seen = [
                (tuple(state), [tuple(keys[number] for number in part) for part in parts])
                for state, parts in zip(content["states"], content["parts"], strict=True)
            ]
            columns = [tuple(own) for own in content["columns"]]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return
        width = 4 * len(self.kernels)
        if (
            len(columns) != len(self.kernels)
            or any(len(state) != width or len(parts) != len(self.kernels) for state, parts in seen)
            or any(len(own) < 2 or not all(0 <= column < width for column in own) for own in columns)
        ):
            return
        for state, parts in seen:
            self.note(state, parts)
        self._columns = columns
        self.version += 1
        self._rules = [None] * len(self.kernels)


def _neighbourhoods(inputs: tuple[tuple[int, ...], ...], radius: int) -> tuple[tuple[int, ...], ...]:
    """For each kernel those within ``radius`` steps up or down, nearest first."""
    beside: list[set[int]] = [set(sources) for sources in inputs]
    for index, sources in enumerate(inputs):
        for source in sources:
            beside[source].add(index)
    found = []
    for index in range(len(inputs)):
        near = [index]
        for _ in range(radius):
            near += sorted({other for member in near for other in beside[member]} - set(near))
        found.append(tuple(near))
    return tuple(found)


def resized_part(seen: Mapping[Widths, Part], widths: Widths) -> Part | None:
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
