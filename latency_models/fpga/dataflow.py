"""A streaming dataflow: an engine for each layer, all at work at once (as FINN, hls4ml, fpgaConvNet)."""

from dataclasses import dataclass

import numpy as np

from leanfront.compression.graph import Kernel, Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.sections import Dataflow
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, LayerCost, LayerEngine, costs_by_depth
from leanfront.latency_models.fpga.design import (
    Design,
    Engines,
    design_of,
    engines_at,
    folds_at,
    least_fits,
    rooms,
)
from leanfront.latency_models.fpga.kernels import Array, unknown
from leanfront.latency_models.fpga.plan import Plan, plan_of, sections
from leanfront.latency_models.fpga.radiation import clock_mhz, energy_mj, slowed
from leanfront.latency_models.registry import costs_of

STEPS_PER_DOUBLING = 8
"""How finely the pace of a pipeline is tried: steps of 2 ** (1/8) = 9 %."""
PART = 4096
"""Policies whose plans are made at a time."""
ELEMENTS = 16384
"""Kernels times policies that are designed at a time: what stays in the cache of a core."""


@costs_of(Dataflow)
@dataclass(frozen=True)
class DataflowModel(CostModel):
    """Costs from a profile's [dataflow] and [resources]: the fastest pipeline that fits the part.

    All engines keep one pace (cycles per inference); the pace is the quickest at which lookup tables, DSP and
    memory blocks suffice. Weights and what tensors have to wait are held on the chip.
    """

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """One inference (batch 1), with the pipeline empty before it, of a network already cut to the policy.

        peak_memory_bytes is what the windows and waiting tensors take on the chip. ``fits`` is False where
        no design fits the part; its costs are then those of the slowest, one multiplier per layer.

        Raises:
            TableError: a bit pair that the part cannot run; it is named.
        """
        batch = PolicyBatch.one(network, policy)
        _, design = self.design(batch)
        found = self._arrays(batch, [design])
        resources = {name: float(count[0]) for name, count in design.resources.items()}
        return found.first("modelled", self.profile.estimated, resources)

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; see ``cost``."""
        return costs_by_depth(batch, self._costs)

    def unknown(self, network: Network) -> tuple[Kernel, ...]:
        """The kernels that there is no formula for."""
        return unknown(network)

    def _costs(self, batch: PolicyBatch) -> CostArrays:
        starts = range(0, batch.count, PART)
        parts = [batch.part(slice(start, start + PART)) for start in starts]
        return self._arrays(batch, [self.design(part)[1] for part in parts])

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, in order, with what it adds to the latency after its inputs have all come."""
        batch = PolicyBatch.one(network, policy)
        plan, design = self.design(batch)
        total = self._arrays(batch, [design])
        per_ms = float(total.energy_mj[0] / total.latency_ms[0])
        last = slowed(self.profile, design.times.last[:, 0] / (clock_mhz(self.profile) * 1e3))
        rows = []
        for index, (work, sources) in enumerate(zip(plan.found, plan.sources, strict=True)):
            added = float(last[index]) - max((float(last[i]) for i in sources), default=0.0)
            rows.append(LayerCost(work.name, added, added * per_ms, "modelled"))
        return tuple(rows)

    def engines(self, network: Network, policy: Policy) -> tuple[LayerEngine, ...]:
        """As the design has them."""
        plan, design, steps = self._designed(PolicyBatch.one(network, policy))
        folds = folds_at(plan, _pace(steps))
        found = []
        for place, row in enumerate(plan.layer_rows):
            work = plan.found[row]
            if work.name not in network.layer:
                continue
            engine = LayerEngine(
                layer=work.name,
                pe=_only(folds.pe[place]),
                simd=_only(folds.simd[place]),
                cycles=_only(design.cycles[row]),
                outputs=_only(work.out),
                products=_only(work.reduced * work.taps),
                read=_only(work.read),
                weight_bits=_only(work.weight_bits),
                activation_bits=_only(work.activation_bits),
                depthwise=work.depthwise,
                windowed=work.taps > 1 or work.steps < work.read_positions,
            )
            found.append(engine)
        return tuple(found)

    def design(self, batch: PolicyBatch) -> tuple[Plan, Design]:
        """The quickest design that fits, for each policy, among paces of 2 ** (step / 8) cycles.

        Raises:
            TableError: as ``cost``.
        """
        plan, design, _ = self._designed(batch)
        return plan, design

    def _designed(self, batch: PolicyBatch) -> tuple[Plan, Design, Array]:
        """The same, and the step of each policy's pace."""
        plan = plan_of(batch, self.profile, rooms(self.profile))
        last = np.ceil(np.log2(plan.slowest_cycles) * STEPS_PER_DOUBLING) + 1
        steps, engines = self._least(plan, last)
        design = design_of(plan, engines, self.profile)
        left = np.flatnonzero(~design.fits & (steps < last))
        if not left.size:
            return plan, design, steps
        while left.size:
            steps[left] += 1
            part = plan.part(left)
            slower = engines_at(part, _pace(steps[left]), self.profile)
            engines.replace(left, slower)
            fits = design_of(part, slower, self.profile).fits
            left = left[~fits & (steps[left] < last[left])]
        return plan, design_of(plan, engines, self.profile), steps

    def _least(self, plan: Plan, last: Array) -> tuple[Array, Engines]:
        """The first step at which what a design needs at the least fits, and the engines there."""
        width = max(1, ELEMENTS // len(plan.found))
        effort = STEPS_PER_DOUBLING * np.log2(plan.effort)
        found, engines, beyond = [], [], np.median(last / 2 - effort)
        for left in range(0, plan.count, width):
            columns = slice(left, left + width)
            part = plan.part(columns)
            steps = self._least_steps(part, last[columns], np.round(effort[columns] + beyond))
            beyond = np.median(steps - effort[columns])  # about the same for all policies of a network
            found.append(steps)
            engines.append(engines_at(part, _pace(steps), self.profile))
        return np.concatenate(found), Engines.joined(engines)

    def _least_steps(self, plan: Plan, last: Array, start: Array) -> Array:
        """By bisection, from ``start`` on in growing strides: what is needed at the least never grows."""
        low, high = np.zeros(plan.count), last.copy()
        below, above = np.zeros(plan.count, dtype=np.bool_), np.zeros(plan.count, dtype=np.bool_)
        probe, reach = np.clip(start, low, high), 1.0
        while (low < high).any():
            fits = least_fits(plan, _pace(probe), self.profile)
            high = np.where(fits, probe, high)
            low = np.where(fits, low, np.minimum(probe + 1, high))
            below, above = below | ~fits, above | fits
            near = np.where(above, np.maximum(high - reach, low), np.minimum(low + reach, high))
            probe = np.where(below & above, np.floor((low + high) / 2), near)
            reach *= 2
        return high

    def _arrays(self, batch: PolicyBatch, designs: list[Design]) -> CostArrays:
        dataflow, _ = sections(self.profile)
        cycles = np.concatenate([design.latency_cycles for design in designs])
        per_ms = clock_mhz(self.profile) * 1e3
        latency_ms = slowed(self.profile, cycles / per_ms + dataflow.call_overhead_ms)
        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=energy_mj(self.profile, batch, latency_ms, np.zeros(batch.count)),
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=np.ones(batch.count, dtype=np.bool_),
            peak_memory_bytes=np.concatenate([design.held_bytes for design in designs]),
            placed=np.concatenate([design.fits for design in designs]),
        )


def _only(values: Array) -> int:
    """What an array of one policy says."""
    return int(values[0])


def _pace(steps: Array) -> Array:
    """Cycles for each kernel."""
    return np.asarray(2.0 ** (steps / STEPS_PER_DOUBLING), dtype=np.float32)
