"""Pipelines at a given pace: foldings, blocks, and whether these suffice."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.fpga.folding import Folding, at_once, candidates, folding, lanes
from leanfront.latency_models.fpga.kernels import Array
from leanfront.latency_models.fpga.pipeline import Stage, Times, stream
from leanfront.latency_models.fpga.plan import Plan, sections
from leanfront.latency_models.fpga.radiation import hardened
from leanfront.latency_models.fpga.resources import Held, threshold_luts

Streams = tuple[Array, Array]
ROUNDING = 1e-5
"""A part filled to the brim fits, however single precision rounds."""


@dataclass(frozen=True, eq=False)
class Design:
    """Pipelines for n policies; arrays are (n,).

    cycles: (kernels, n) of each kernel; those of the slowest lie between the inferences of a stream.
    resources: kind of block -> blocks, hardened. held_bytes: of windows and waiting tensors. fits: all within
    the part.
    """

    cycles: Array
    times: Times
    resources: dict[str, Array]
    held_bytes: Array
    fits: NDArray[np.bool_]

    @property
    def latency_cycles(self) -> Array:
        """From the first input to the last output, the pipeline empty before."""
        return np.asarray(self.times.last.max(axis=0))


@dataclass(frozen=True, eq=False)
class Demand:
    """Blocks before anything has moved between logic and DSP blocks; arrays are (n,).

    luts: of what is always logic. long_luts: if the products of DSP blocks were made of logic. short_luts:
    products of short operands, which are made of logic; short_dsp: if they were not. fixed_dsp: of what can
    be nowhere else. memory, second_memory: of either kind.
    """

    luts: Array
    long_luts: Array
    short_luts: Array
    dsp: Array
    short_dsp: Array
    fixed_dsp: Array
    memory: Array
    second_memory: Array


def rooms(profile: HardwareProfile) -> dict[str, float]:
    """Kind of block -> how many there are for a design before it is hardened."""
    _, resources = sections(profile)
    each = hardened(profile, {name: np.ones(1) for name in resources.limits})
    return {name: limit / float(each[name][0]) for name, limit in resources.limits.items()}


@dataclass(frozen=True, eq=False)
class Engines:
    """The engines of n policies at a pace: cycles and output lanes of each kernel, (kernels, n); demand."""

    cycles: Array
    out_lanes: Array
    demand: Demand

    @staticmethod
    def joined(parts: Sequence["Engines"]) -> "Engines":
        """Of policies that were looked at apart."""
        if len(parts) == 1:
            return parts[0]
        return Engines(
            np.concatenate([part.cycles for part in parts], axis=1),
            np.concatenate([part.out_lanes for part in parts], axis=1),
            Demand(*np.concatenate([astuple(part.demand) for part in parts], axis=1)),
        )

    def replace(self, columns: NDArray[np.intp], other: "Engines") -> None:
        """Put other engines in the place of those of some policies."""
        for name in ("cycles", "out_lanes"):
            getattr(self, name)[:, columns] = getattr(other, name)
        for field in fields(Demand):
            getattr(self.demand, field.name)[columns] = getattr(other.demand, field.name)


def folds_at(plan: Plan, pace: Array) -> Folding:
    """How parallel the engines of layers are that take so many cycles, where it can be that fast."""
    budget = np.maximum(1.0, np.floor(pace / plan.steps))
    return folding(plan.outputs, plan.products, plan.reduced, plan.packed, plan.unrolled, budget)


def engines_at(plan: Plan, pace: Array, profile: HardwareProfile) -> Engines:
    """The engines with this many cycles for each kernel, where it can be that fast."""
    read_lanes, out_lanes = _lanes(plan, pace)
    folds = folds_at(plan, pace)
    cycles = np.maximum(
        plan.read_positions * np.ceil(plan.read / read_lanes), plan.positions * np.ceil(plan.out / out_lanes)
    )
    compute = plan.steps * np.ceil(plan.outputs / folds.pe) * np.ceil(plan.products / folds.simd)
    cycles[plan.layer_rows] = np.maximum(cycles[plan.layer_rows], compute)
    return Engines(cycles, out_lanes, _demand(plan, pace, folds, (read_lanes, out_lanes), profile))


def design_of(plan: Plan, engines: Engines, profile: HardwareProfile) -> Design:
    """The pipelines of these engines, with the tensors that wait for a longer branch."""
    stages = [
        Stage(inputs, engines.cycles[row], float(work.positions), needed)
        for row, (work, inputs, needed) in enumerate(zip(plan.found, plan.sources, plan.needed, strict=True))
    ]
    times = stream(stages, plan.input_cycles)
    waiting, wait_bits = _waiting(plan, times, engines.out_lanes, profile)
    demand = replace(engines.demand, memory=engines.demand.memory + waiting)
    ratio = demand.short_luts / np.maximum(demand.short_dsp, 1.0)
    used = hardened(profile, _used(demand, ratio, profile))
    fits = _within(used, profile)
    return Design(engines.cycles, times, used, (plan.held_bits + wait_bits) / 8, fits)


def least_fits(plan: Plan, pace: Array, profile: HardwareProfile) -> NDArray[np.bool_]:
    """(n,): False where no design of this pace can fit. Once True it is True for all slower paces.

    As ``design_of`` without tensors that wait, with the narrower streams of both foldings, and at the best
    rate at which DSP blocks replace logic: of all this, nothing grows with the pace.
    """
    budget = np.maximum(1.0, np.floor(pace / plan.steps))
    one, other = candidates(plan.outputs, plan.products, plan.reduced, plan.packed, budget)
    least = replace(one, slots=np.minimum(one.slots, other.slots), wide=np.minimum(one.wide, other.wide))
    if np.isfinite(plan.unrolled).any():
        whole = at_once(plan.outputs, plan.products, plan.reduced, plan.unrolled)
        least = Folding(*(np.minimum(*each) for each in zip(astuple(least), astuple(whole), strict=True)))
        least = replace(least, held=np.where(np.isfinite(plan.unrolled), least.held, 1.0))
    demand = _demand(plan, pace, least, _lanes(plan, pace), profile)
    return _within(hardened(profile, _used(demand, plan.logic_ratio, profile)), profile)


def _lanes(plan: Plan, pace: Array) -> Streams:
    """Values per cycle that each kernel reads, and that it writes."""
    return lanes(plan.read, plan.read_positions, pace), lanes(plan.out, plan.positions, pace)


def _demand(plan: Plan, pace: Array, folds: Folding, streams: Streams, profile: HardwareProfile) -> Demand:
    dataflow, _ = sections(profile)
    slots, wide = folds.slots, folds.wide
    read_lanes, out_lanes = streams
    rows = plan.layer_rows
    layer_read, layer_out = read_lanes[rows], out_lanes[rows]
    registers = dataflow.lut_per_lane_bit * (wide + layer_read + 2 * layer_out) * plan.activation_bits
    thresholds = threshold_luts(plan.thresholds, layer_out, plan.outputs)
    luts = (slots * plan.adder_luts + registers + thresholds).sum(axis=0)
    luts += dataflow.lut_per_layer * len(rows) + (plan.element_luts * out_lanes).sum(axis=0)
    made, blocks = slots * plan.luts, slots / plan.packed
    short_luts, short_dsp = (made * plan.in_logic).sum(axis=0), (blocks * plan.in_logic).sum(axis=0)
    weights = plan.weights.blocks(slots) * folds.held
    second = (weights * plan.second).sum(axis=0)
    windows = plan.windows.blocks(lanes(plan.window_reads, plan.read_positions[rows], pace))
    return Demand(
        luts=luts,
        long_luts=made.sum(axis=0) - short_luts,
        short_luts=short_luts,
        dsp=blocks.sum(axis=0) - short_dsp,
        short_dsp=short_dsp,
        fixed_dsp=dataflow.dsp_base + (plan.scales * layer_out).sum(axis=0),
        memory=plan.stored + windows.sum(axis=0) + weights.sum(axis=0) - second,
        second_memory=second,
    )


def _used(demand: Demand, ratio: Array, profile: HardwareProfile) -> dict[str, Array]:
    """Blocks of each kind before hardening.

    Multipliers for which there is no room in the DSP blocks are made of logic; short ones for which there is
    no logic go into DSP blocks that are left, each of which saves ``ratio`` tables.
    """
    _, resources = sections(profile)
    there = rooms(profile)
    dsp_room = there[resources.multiplier.name]
    moved = np.clip((demand.dsp + demand.fixed_dsp - dsp_room) / np.maximum(demand.dsp, 1e-9), 0.0, 1.0)
    dsp = demand.dsp * (1 - moved) + demand.fixed_dsp
    luts = demand.luts + moved * demand.long_luts + demand.short_luts
    over = luts - there[resources.logic.name] / resources.logic.per_lut6
    back = np.clip(over, 0.0, np.minimum(demand.short_luts, np.maximum(dsp_room - dsp, 0.0) * ratio))
    used = {
        resources.logic.name: (luts - back) * resources.logic.per_lut6,
        resources.multiplier.name: dsp + back / np.maximum(ratio, 1e-9),
    }
    return used | dict(zip(resources.memory, (demand.memory, demand.second_memory), strict=False))


def _within(used: dict[str, Array], profile: HardwareProfile) -> NDArray[np.bool_]:
    _, resources = sections(profile)
    limits = resources.limits
    each = [used[name] <= limits[name] * (1 + ROUNDING) for name in used]
    return np.asarray(np.logical_and.reduce(each), dtype=np.bool_)


def _waiting(plan: Plan, times: Times, out_lanes: Array, profile: HardwareProfile) -> tuple[Array, Array]:
    """Memory blocks and bits of the tensors that wait for a longer branch."""
    _, resources = sections(profile)
    block = next(iter(resources.memory.values()))
    blocks, bits = np.zeros(plan.count), np.zeros(plan.count)
    for row in plan.joins:
        values = np.ceil(times.waiting[row] * plan.out[row] * plan.positions[row])
        held = Held.of(block, values, plan.out_bits[row])
        blocks += np.where(values > 0, held.blocks(out_lanes[row]), 0.0)
        bits += values * plan.out_bits[row]
    return blocks, bits
