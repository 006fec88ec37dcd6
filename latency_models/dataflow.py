"""A streaming dataflow: an engine for each layer, all at work at once (as FINN, hls4ml, fpgaConvNet)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.policy import Network, Policy
from compression.policy.batch import PolicyBatch
from hw_profiles import HardwareProfile
from hw_profiles.fpga import Dataflow, Resources
from latency_models.cost import Cost, CostArrays, LayerCost
from latency_models.errors import TableError
from latency_models.fpga_folding import Folded, folded
from latency_models.fpga_kernels import MEAN_OPS, PLACED_OPS, Array, Work, works
from latency_models.fpga_pipeline import Stage, Times, first_window, stream
from latency_models.fpga_resources import (
    Arithmetic,
    Engine,
    adder_luts,
    arithmetic,
    blocks,
    buffer_blocks,
    dsps,
    fixed_luts,
    weight_blocks,
)
from latency_models.fpga_space import clock_mhz, energy_mj, hardened, slowed

STEPS_PER_DOUBLING = 8
"""How finely the pace of a pipeline is tried: steps of 2 ** (1/8) = 9 %."""
PART = 4096
"""Policies that are computed at a time."""


@dataclass(frozen=True, eq=False)
class Design:
    """Pipelines for n policies; arrays are (n,).

    kernels: what is busy, in order. sources: which of these each reads. resources: kind of block -> blocks,
    hardened. held_bytes: of windows and waiting tensors. fits: all within the part.
    """

    kernels: tuple[Folded, ...]
    sources: tuple[tuple[int, ...], ...]
    times: Times
    latency_cycles: Array
    interval_cycles: Array
    resources: dict[str, Array]
    held_bytes: Array
    fits: NDArray[np.bool_]


@dataclass(frozen=True)
class DataflowModel:
    """Costs from a profile's [dataflow] and [resources]: the fastest pipeline that fits the part.

    All engines keep one pace (cycles per inference); the pace is the quickest at which lookup tables, DSP and
    memory blocks suffice. Weights and what tensors have to wait are held on the chip.
    """

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """One inference (batch 1), with the pipeline empty before it, of a network already cut to the policy.

        peak_memory_bytes is what the windows and waiting tensors take on the chip. ``fits`` is False where
        even the slowest design, one multiplier per layer, needs more than the part has; its costs are then
        those of that design.

        Raises:
            TableError: an operation or a bit pair that the part cannot run; it is named.
        """
        batch = PolicyBatch.one(network, policy)
        design = self.design(batch)
        found = self._arrays(batch, design)
        resources = {name: float(count[0]) for name, count in design.resources.items()}
        return found.first("modelled", self.profile.estimated, resources)

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; see ``cost``."""
        parts = [batch.part(slice(start, start + PART)) for start in range(0, batch.count, PART)]
        found = [self._arrays(part, self.design(part)) for part in parts]
        return CostArrays(
            latency_ms=np.concatenate([f.latency_ms for f in found]),
            energy_mj=np.concatenate([f.energy_mj for f in found]),
            size_bytes=np.concatenate([f.size_bytes for f in found]),
            modelled=np.concatenate([f.modelled for f in found]),
            memory=lambda: (
                np.concatenate([f.peak_memory_bytes for f in found]),
                np.concatenate([f.fits for f in found]),
            ),
        )

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, in order, with what it adds to the latency after its inputs have all come."""
        batch = PolicyBatch.one(network, policy)
        design = self.design(batch)
        total = self._arrays(batch, design)
        per_ms = float(total.energy_mj[0] / total.latency_ms[0])
        last = slowed(self.profile, design.times.last[:, 0] / (clock_mhz(self.profile) * 1e3))
        rows = []
        for index, (kernel, sources) in enumerate(zip(design.kernels, design.sources, strict=True)):
            added = float(last[index]) - max((float(last[i]) for i in sources), default=0.0)
            rows.append(LayerCost(kernel.work.name, added, added * per_ms, "modelled"))
        return tuple(rows)

    def interval_ms(self, network: Network, policy: Policy) -> float:
        """Time between inferences of a stream: that of the slowest engine."""
        design = self.design(PolicyBatch.one(network, policy))
        cycles = slowed(self.profile, design.interval_cycles)
        return float(cycles[0]) / (clock_mhz(self.profile) * 1e3)

    def design(self, batch: PolicyBatch) -> Design:
        """The quickest design that fits, for each policy, by bisection on the pace.

        Raises:
            TableError: as ``cost``.
        """
        found = tuple(work for work in works(batch, self.profile) if work.busy)
        if not found:
            raise TableError(
                f"the network computes nothing that {self.profile.name!r} could have an engine for"
            )
        sources = _sources(batch, found)
        dataflow, resources = _sections(self.profile)
        makes = tuple(
            arithmetic(dataflow, resources.multiplier, work.weight_bits, work.activation_bits)
            for work in found
        )
        slowest = np.max([_slowest_cycles(work) for work in found], axis=0)
        high = np.ceil(np.log2(slowest) * STEPS_PER_DOUBLING) + 1
        low = np.zeros(batch.count)
        while (low < high).any():
            middle = np.floor((low + high) / 2)
            fits = self._at(found, makes, sources, middle).fits
            low, high = np.where(fits, low, np.minimum(middle + 1, high)), np.where(fits, middle, high)
        return self._at(found, makes, sources, high)

    def _at(
        self,
        found: tuple[Work, ...],
        makes: tuple[Arithmetic, ...],
        sources: tuple[tuple[int, ...], ...],
        step: Array,
    ) -> Design:
        """The design at a pace of 2 ** (step / STEPS_PER_DOUBLING) cycles."""
        dataflow, resources = _sections(self.profile)
        pace = 2.0 ** (step / STEPS_PER_DOUBLING)
        kernels = tuple(folded(work, pace) for work in found)
        times = stream(_stages(kernels, sources), _input_cycles(found, dataflow))
        each = hardened(self.profile, {name: np.ones(1) for name in resources.limits})
        rooms = {name: limit / float(each[name][0]) for name, limit in resources.limits.items()}
        needs = _needs(kernels, makes, times, dataflow, resources, rooms)
        used = hardened(self.profile, needs.blocks)
        fits = np.ones(len(step), dtype=np.bool_)
        for name, limit in resources.limits.items():
            fits &= used[name] <= limit * (1 + 1e-9)  # a block filled to the brim fits, however rounded
        return Design(
            kernels=kernels,
            sources=sources,
            times=times,
            latency_cycles=times.last.max(axis=0),
            interval_cycles=np.max([kernel.cycles for kernel in kernels], axis=0),
            resources=used,
            held_bytes=needs.held_bytes,
            fits=fits,
        )

    def _arrays(self, batch: PolicyBatch, design: Design) -> CostArrays:
        dataflow, _ = _sections(self.profile)
        per_ms = clock_mhz(self.profile) * 1e3
        latency_ms = slowed(self.profile, design.latency_cycles / per_ms + dataflow.call_overhead_ms)
        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=energy_mj(self.profile, batch, latency_ms, np.zeros(batch.count)),
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=np.ones(batch.count, dtype=np.bool_),
            memory=lambda: (design.held_bytes, design.fits),
        )


def _sections(profile: HardwareProfile) -> tuple[Dataflow, Resources]:
    if profile.dataflow is None or profile.resources is None:
        raise TableError(f"profile {profile.name!r} has no [dataflow]; its model is {profile.model!r}")
    return profile.dataflow, profile.resources


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


def _slowest_cycles(work: Work) -> Array:
    """Cycles with one multiplier and one value per cycle of each stream."""
    streams = np.maximum(work.read * float(work.read_positions), work.out * float(work.positions))
    return np.maximum(np.maximum(work.macs, streams), 1.0)


def _input_cycles(found: tuple[Work, ...], dataflow: Dataflow) -> Array:
    """How long the input takes to come in."""
    first = found[0]
    values = first.read * float(first.read_positions)
    return np.asarray(values * first.activation_bits / 8 / dataflow.input_bytes_per_cycle)


def _stages(kernels: tuple[Folded, ...], sources: tuple[tuple[int, ...], ...]) -> list[Stage]:
    return [
        Stage(inputs, kernel.cycles, float(kernel.work.positions), _needed(kernel.work))
        for kernel, inputs in zip(kernels, sources, strict=True)
    ]


def _needed(work: Work) -> float:
    """Share of its input that a kernel waits for: a linear layer and a mean over everything for all of it."""
    if work.op in MEAN_OPS or (work.op == "linear" and work.positions == 1):
        return 1.0
    if work.op in PLACED_OPS:
        return 0.0
    return first_window(work.kernel, work.padding, work.read_width, work.read_positions)


@dataclass(frozen=True, eq=False)
class _Needs:
    blocks: dict[str, Array]
    held_bytes: Array


def _needs(
    kernels: tuple[Folded, ...],
    makes: tuple[Arithmetic, ...],
    times: Times,
    dataflow: Dataflow,
    resources: Resources,
    rooms: dict[str, float],
) -> _Needs:
    """Blocks of all engines before hardening, and bytes of windows and waiting tensors.

    Multipliers for which there is no room in the DSP blocks are made of logic, and short ones for which there
    is no logic go into DSP blocks that are left. Tensors that wait for a longer branch are held in memory.
    ``rooms``: kind of block -> how many there are for the design before hardening.
    """
    memory = next(iter(resources.memory.values()))  # for all but weights
    zero = np.zeros_like(times.last[0])
    luts, movable_luts, short_luts = zero, zero, zero  # movable: if products of DSP blocks were made of logic
    dsp, short_dsp = zero, zero  # short: products of short operands, which are made of logic
    fixed_dsp = zero + dataflow.dsp_base  # of what can be nowhere else
    first, held_bits = zero, zero
    engines: list[Engine] = []
    for index, kernel in enumerate(kernels):
        work, streams = kernel.work, kernel.out_lanes
        if kernel.engine is not None:
            engine, made = kernel.engine, makes[index]
            products = engine.multipliers * made.luts
            packed = dsps(engine, made.packed)
            luts = luts + adder_luts(dataflow, engine)
            short_luts = short_luts + made.in_logic * products
            movable_luts = movable_luts + (1 - made.in_logic) * products
            short_dsp = short_dsp + made.in_logic * packed
            dsp = dsp + (1 - made.in_logic) * packed
            narrow = work.out_bits <= 4
            fixed_dsp = fixed_dsp + np.where(narrow, 0.0, dataflow.dsp_per_scale * kernel.out_lanes)
            thresholds = (2.0**work.out_bits - 1) * dataflow.accumulator_bits * kernel.out_lanes
            luts = luts + np.where(narrow, thresholds, 0.0)
            streams = np.maximum(engine.lanes, engine.pe) + kernel.read_lanes + 2 * kernel.out_lanes
            luts = luts + fixed_luts(dataflow, streams, work.activation_bits)
            engines.append(engine)
            first = first + buffer_blocks(memory, dataflow, engine)
            held_bits = held_bits + _window_bits(work)
        else:
            luts = luts + dataflow.lut_per_lane_bit * streams * work.out_bits
        if len(work.inputs) > 1:
            wait = times.waiting[index] * work.out * float(work.positions)
            first = first + blocks(memory, np.ceil(wait / kernel.out_lanes), kernel.out_lanes * work.out_bits)
            held_bits = held_bits + wait * work.out_bits
    dsp_room = rooms[resources.multiplier.name]
    moved = np.clip((dsp + fixed_dsp - dsp_room) / np.maximum(dsp, 1.0), 0.0, 1.0)
    dsp = dsp * (1 - moved) + fixed_dsp
    luts = luts + moved * movable_luts + short_luts
    over = luts - rooms[resources.logic.name] / resources.logic.per_lut6
    left = np.minimum(over / np.maximum(short_luts, 1.0), (dsp_room - dsp) / np.maximum(short_dsp, 1.0))
    back = np.clip(left, 0.0, 1.0)
    used = {
        resources.logic.name: (luts - back * short_luts) * resources.logic.per_lut6,
        resources.multiplier.name: dsp + back * short_dsp,
    }
    used |= _memories(first, engines, resources, rooms)
    return _Needs(used, held_bits / 8)


def _memories(
    first: Array, engines: list[Engine], resources: Resources, rooms: dict[str, float]
) -> dict[str, Array]:
    """Memory blocks with ``first`` of the first kind taken before: each layer's weights go into the kind of
    which a smaller share is then taken."""
    names = list(resources.memory)
    if len(names) == 1:
        memory = resources.memory[names[0]]
        return {names[0]: sum((weight_blocks(memory, engine) for engine in engines), start=first)}
    second = np.zeros_like(first)
    one, other = (np.maximum(rooms[name], 1e-9) for name in names)
    for engine in engines:
        here, there = (weight_blocks(resources.memory[name], engine) for name in names)
        moved = (second + there) / other < (first + here) / one
        first = first + np.where(moved, 0.0, here)
        second = second + np.where(moved, there, 0.0)
    return {names[0]: first, names[1]: second}


def _window_bits(work: Work) -> Array:
    """Bits of the lines that a sliding window holds."""
    height, width = work.kernel
    return work.read * float((height - 1) * work.read_width + (width - 1)) * work.read_bits
