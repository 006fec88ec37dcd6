"""What a pipeline is made of before its pace is chosen: all that does not depend on the pace."""

from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.fpga import Resources
from leanfront.hw_profiles.sections import Dataflow
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.fpga.kernels import Array, Work, works
from leanfront.latency_models.fpga.pipeline import first_window
from leanfront.latency_models.fpga.resources import Arithmetic, Held, arithmetic, sum_bits, threshold_bits
from leanfront.latency_models.registry import section_of

NARROW_BITS = 4
"""Up to as many bits, sums are brought to their bits by thresholds in logic, above by DSP blocks."""


_FIXED = ("found", "sources", "needed", "layer_rows")


@dataclass(frozen=True, eq=False)
class Plan:
    """Kernels of n policies as arrays, (kernels, n) or (layers, n); shapes that no policy changes (., 1).

    found: kernels that are busy, in order. sources: which of these each reads.
    needed: share of its input that each waits for. layer_rows: which of them have
    weights; the arrays of layers are in this order.
    out, read, positions, read_positions: of kernels. steps, outputs, products, reduced, lines: of layers
    (positions at which weights are used, output channels, products of each output, input channels of each,
    values read from the lines that a window holds, for each position).
    unrolled: multipliers of an engine whose weights lie in its logic; infinite where there is none such.
    packed, in_logic, luts, adder_luts: as ``Arithmetic``. activation_bits: of a layer's input.
    thresholds: bits that a result is compared with; 0: no thresholds. scales: DSP blocks for each lane.
    element_luts: tables for each lane of a kernel without weights; 0 for layers.
    stored: (n,) memory blocks of what is stored besides weights.
    second: 1 where a layer's weights are in the second kind of memory block. weights, windows: in memory.
    held_bits: (n,) bits of the windows. logic_ratio: (n,) the most tables that one DSP block saves on short
    operands. effort: (n,) tables that all multipliers and adders would take
    at one cycle. slowest_cycles: (n,) of the slowest kernel with one multiplier and one lane.
    """

    found: tuple[Work, ...]
    sources: tuple[tuple[int, ...], ...]
    needed: tuple[float, ...]
    layer_rows: NDArray[np.intp]
    out: Array
    read: Array
    positions: Array
    read_positions: Array
    steps: Array
    outputs: Array
    products: Array
    reduced: Array
    window_reads: Array
    unrolled: Array
    packed: Array
    in_logic: Array
    luts: Array
    adder_luts: Array
    activation_bits: Array
    out_bits: Array
    thresholds: Array
    scales: Array
    element_luts: Array
    stored: Array
    second: Array
    weights: Held
    windows: Held
    held_bits: Array
    logic_ratio: Array
    effort: Array
    slowest_cycles: Array
    input_cycles: Array

    @property
    def count(self) -> int:
        """Number of policies."""
        return len(self.slowest_cycles)

    @property
    def joins(self) -> list[int]:
        """Rows of the kernels that read more than one tensor."""
        return [row for row, work in enumerate(self.found) if len(work.inputs) > 1]

    def part(self, columns: slice | NDArray[np.intp]) -> "Plan":
        """Some of the policies."""
        names = [field.name for field in fields(self)]
        taken = {name: _columns(getattr(self, name), columns) for name in names if name not in _FIXED}
        return Plan(**taken, **{name: getattr(self, name) for name in _FIXED})


def _columns(value: Any, columns: slice | NDArray[np.intp]) -> Any:
    if isinstance(value, Held):
        return Held(value.group[:, columns], value.per_word[:, columns], value.least[:, columns])
    return value if value.ndim == 2 and value.shape[1] == 1 else value[..., columns]


def plan_of(batch: PolicyBatch, profile: HardwareProfile, rooms: dict[str, float]) -> Plan:
    """The plan of a batch; ``rooms``: kind of block -> how many there are before hardening.

    Raises:
        TableError: a bit pair that the part cannot run, or a network that computes nothing.
    """
    found = tuple(work for work in works(batch, profile) if work.busy)
    if not found:
        raise TableError(f"the network computes nothing that {profile.name!r} could have an engine for")
    dataflow, resources = sections(profile)
    layers = [work for work in found if work.layer]
    out, read = _rows([w.out for w in found], batch), _rows([w.read for w in found], batch)
    out_bits = _rows([w.out_bits for w in found], batch)
    layer_rows = np.array([row for row, work in enumerate(found) if work.layer], dtype=np.intp)
    weight_bits = _rows([w.weight_bits for w in layers], batch)
    activation_bits = _rows([w.activation_bits for w in layers], batch)
    made = arithmetic(dataflow, resources.multiplier, weight_bits, activation_bits)
    products = _rows([w.reduced * float(w.taps) for w in layers], batch)
    steps = _column([w.steps for w in layers])
    layer_out, layer_bits = out[layer_rows], out_bits[layer_rows]
    narrow = layer_bits <= NARROW_BITS
    width = sum_bits(weight_bits, activation_bits, np.maximum(products, 1.0))
    lines_hold = _column([(w.kernel[0] - 1) * w.read_width + w.kernel[1] - 1 for w in layers])
    window_values = read[layer_rows] * lines_hold
    first = resources.memory[next(iter(resources.memory))]  # for all but weights
    windows = Held.of(first, window_values, activation_bits)
    second, weights = _weights(products * layer_out, weight_bits, windows, resources, rooms)
    read_bits = _rows([w.read_bits for w in layers], batch)
    streams = [np.maximum(w.read * float(w.read_positions), w.out * float(w.positions)) for w in found]
    slowest = [np.maximum(np.maximum(w.macs, s), 1.0) for w, s in zip(found, streams, strict=True)]
    short = made.in_logic * made.luts * made.packed
    stored_bytes = np.sum([w.held_bytes for w in found], axis=0)
    elements = np.where(_column([not work.layer for work in found]), out_bits, 0.0)
    return Plan(
        found=found,
        sources=_sources(batch, found),
        needed=tuple(_needed(work) for work in found),
        layer_rows=layer_rows,
        out=out,
        read=read,
        positions=_column([w.positions for w in found]),
        read_positions=_column([w.read_positions for w in found]),
        steps=steps,
        outputs=layer_out,
        products=products,
        reduced=_rows([w.reduced for w in layers], batch),
        window_reads=read[layer_rows] * _column([w.kernel[0] - 1 for w in layers]),
        unrolled=_unrolled(layers, batch, dataflow, made),
        packed=made.packed,
        in_logic=made.in_logic,
        luts=made.luts,
        adder_luts=made.adder_luts,
        activation_bits=activation_bits,
        out_bits=out_bits,
        thresholds=np.where(narrow, threshold_bits(layer_bits, width), 0.0),
        scales=np.where(narrow, np.float32(0), np.float32(dataflow.dsp_per_scale)),
        element_luts=dataflow.lut_per_lane_bit * elements,
        stored=Held.of(first, stored_bytes, np.full(1, 8.0)).least_blocks,
        second=second,
        weights=weights,
        windows=windows,
        held_bits=(read[layer_rows] * lines_hold * read_bits).sum(axis=0),
        logic_ratio=short.max(axis=0, initial=0.0),
        effort=np.maximum((products * layer_out * steps * (made.luts + made.adder_luts)).sum(axis=0), 1.0),
        slowest_cycles=np.max(slowest, axis=0),
        input_cycles=_input_cycles(found[0], dataflow),
    )


def _unrolled(layers: list[Work], batch: PolicyBatch, dataflow: Dataflow, made: Arithmetic) -> Array:
    """(layers, n): see ``Plan``. A DSP block makes one product each: the next weight may be 0."""
    if not dataflow.unrolled_zeros:
        return np.full((len(layers), 1), np.inf, dtype=np.float32)
    rows = [
        np.ceil(w.weights * (1.0 - w.zeros)) if w.stored else np.full(batch.count, np.inf) for w in layers
    ]
    return np.asarray(_rows(rows, batch) * np.where(made.in_logic > 0, 1.0, made.packed), dtype=np.float32)


def sections(profile: HardwareProfile) -> tuple[Dataflow, Resources]:
    """The tables [dataflow] and [resources] of a profile; TableError where it has none."""
    dataflow, resources = section_of(profile, Dataflow), profile.resources
    if resources is None:
        raise TableError(f"profile {profile.name!r} has no [resources]")
    return dataflow, resources


def _rows(rows: list[Array], batch: PolicyBatch) -> Array:
    found: Any = np.array(rows, dtype=np.float32).reshape(len(rows), batch.count)
    return cast(Array, found)


def _column(values: list[int] | list[bool]) -> Array:
    found: Any = np.array(values, dtype=np.float32).reshape(len(values), 1)
    return cast(Array, found)


def _weights(
    values: Array, bits: Array, windows: Held, resources: Resources, rooms: dict[str, float]
) -> tuple[Array, Held]:
    """Weights in memory, with 1 where they are in the second kind of block: layer after layer goes into the
    kind of which a smaller share is then taken, by what they hold, whatever the pace."""
    kinds = [Held.of(block, values, bits) for block in resources.memory.values()]
    second = np.zeros_like(values)
    if len(kinds) == 1 or not len(values):
        return second, kinds[0]
    one, other = (max(rooms[name], 1e-9) for name in resources.memory)
    taken, there = windows.least_blocks.sum(axis=0), np.zeros(values.shape[1])
    for row, (here, away) in enumerate(zip(kinds[0].least_blocks, kinds[1].least_blocks, strict=True)):
        second[row] = (there + away) / other < (taken + here) / one
        taken, there = taken + (1 - second[row]) * here, there + second[row] * away
    moved = second > 0
    names = [field.name for field in fields(Held)]
    chosen = Held(*(np.where(moved, getattr(kinds[1], name), getattr(kinds[0], name)) for name in names))
    return second, chosen


def _input_cycles(first: Work, dataflow: Dataflow) -> Array:
    """How long the input takes to come in."""
    values = first.read * float(first.read_positions)
    return np.asarray(values * first.activation_bits / 8 / dataflow.input_bytes_per_cycle)


def _sources(batch: PolicyBatch, found: tuple[Work, ...]) -> tuple[tuple[int, ...], ...]:
    """Which of the busy kernels each busy kernel reads; what only renames a tensor is seen through.

    An input in the middle of a layer table stands for what the table does not tell: the stream goes on from
    the kernel before it.
    """
    index = {work.row: number for number, work in enumerate(found)}
    holder: dict[int, int | None] = {}
    before: int | None = None
    for row, kernel in enumerate(batch.kernels):
        above = [holder[batch.kernel_index[name]] for name in kernel.inputs] or [before]
        holder[row] = index[row] if row in index else next((i for i in above if i is not None), None)
        before = index.get(row, before)
    return tuple(
        tuple(i for i in dict.fromkeys(holder[row] for row in work.inputs) if i is not None) for work in found
    )


def _needed(work: Work) -> float:
    """Share of its input that a kernel waits for: a linear layer, a mean over everything and a product of
    tensors for all of it."""
    if work.stream in ("mean", "product") or (work.op == "linear" and work.positions == 1):
        return 1.0
    if work.stream == "placed":
        return 0.0
    return first_window(work.kernel, work.padding, work.read_width, work.read_positions)
