"""Fit the calibrated numbers of the FPGA profiles to published measurements, and print them.

    python -m benchmarks.calibrate_fpga

DPU: efficiency of the array and bandwidth by search, overheads by non-negative least squares of relative
errors. Systolic array: clock of the array, bandwidth and overhead per layer by least squares. Dataflow: the
coefficients of the logic by non-negative least squares of relative errors, power of the Zynq boards by
two rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from benchmarks.fpga_designs import Published, adder_bits, parts, published
from benchmarks.fpga_overlays import (
    MEMORY_MHZ,
    SYSTOLIC,
    DpuRow,
    SystolicLayer,
    dpu_rows,
    layers_of,
    overlay_of,
    systolic_cycles,
    systolic_layers,
    systolic_network_ms,
    systolic_networks,
)
from leanfront.hw_profiles.sections import Dataflow, Overlay
from leanfront.latency_models.fpga.overlay import layer_times
from leanfront.latency_models.fpga.resources import multiplier_luts

EFFICIENCIES = tuple(round(0.60 + 0.02 * step, 2) for step in range(21))
BANDWIDTHS = tuple(round(5e6 * 1.1**step, -4) for step in range(14))
Array = NDArray[np.float64]
Row = TypeVar("Row")


@dataclass(frozen=True)
class DpuFit:
    """What is calibrated of a DPU's [overlay]."""

    efficiency: float
    bandwidth_bytes_per_ms: float
    layer_overhead_ms: float
    call_overhead_ms: float
    pooled_ms_per_megabyte: float

    def latency_ms(self, row: DpuRow) -> float:
        """Predicted time of a row."""
        base, columns = _dpu_parts(row.device, row.network, self.efficiency, self.bandwidth_bytes_per_ms)
        overheads = (self.layer_overhead_ms, self.call_overhead_ms, self.pooled_ms_per_megabyte)
        return base + float(np.dot(columns, overheads))


@cache
def _dpu_parts(
    device: str, network: str, efficiency: float, bandwidth: float
) -> tuple[float, tuple[float, ...]]:
    """ms without overheads; and how many layers, calls and pooled megabytes there are."""
    bare = {"layer_overhead_ms": 0.0, "pooled_bytes_per_ms": None}
    overlay = overlay_of(device).model_copy(
        update={**bare, "efficiency": efficiency, "bandwidth_bytes_per_ms": bandwidth}
    )
    layers = layers_of(network, device)
    ms = sum(float(layer_times(work, overlay, overlay.clock_mhz).streamed_ms[0]) for work in layers)
    pooled = sum(float(work.read[0]) * work.pooled_positions for work in layers if work.pooled)
    return ms, (len(layers), 1, pooled / 1e6)


def fit_dpu(rows: Sequence[DpuRow]) -> DpuFit:
    """The numbers with the least mean relative error over rows of any boards."""
    truths = np.array([row.latency_ms for row in rows])
    best, least = None, np.inf
    for efficiency in EFFICIENCIES:
        for bandwidth in BANDWIDTHS:
            found = [_dpu_parts(row.device, row.network, efficiency, bandwidth) for row in rows]
            base = np.array([ms for ms, _ in found])
            columns = np.array([counts for _, counts in found], dtype=float) / truths[:, None]
            overheads, _ = nnls(columns, np.maximum(0.0, 1 - base / truths))
            error = float(np.abs(base / truths + columns @ overheads - 1).mean())
            if error < least:
                best, least = DpuFit(efficiency, bandwidth, *map(float, overheads)), error
    assert best is not None
    return best


@dataclass(frozen=True)
class SystolicFit:
    """What is calibrated of one systolic array: its clock and the cycles (of MEMORY_MHZ) per layer; and the
    bandwidth in bytes per ms."""

    clock_mhz: float
    layer_cycles: float
    bandwidth_bytes_per_ms: float

    def overlay(self, size: int) -> Overlay:
        """The profile's [overlay] with these numbers."""
        return overlay_of(SYSTOLIC[size]).model_copy(
            update={
                "clock_mhz": self.clock_mhz,
                "layer_overhead_ms": self.layer_cycles / MEMORY_MHZ / 1e3,
                "bandwidth_bytes_per_ms": self.bandwidth_bytes_per_ms,
            }
        )


def fit_systolic(rows: Sequence[SystolicLayer]) -> SystolicFit:
    """Clock, overhead and bandwidth of the array that all rows are of, by least squares of relative errors;
    layers that are further off than a few percent weigh less."""
    size = rows[0].size
    seen = {
        (row.work.out[0], row.work.read[0], row.work.positions, row.work.kernel, row.streamed): row
        for row in rows
    }
    kept = list(seen.values())

    def errors(values: Array) -> Array:
        overlay = SystolicFit(float(values[0]), float(values[1]), float(values[2]) * 1e6).overlay(size)
        return np.array([systolic_cycles(row, overlay) / row.cycles - 1 for row in kept])

    found = least_squares(
        errors, [330.0, 200.0, 15.0], loss="soft_l1", f_scale=0.02, x_scale=[300, 200, 15]
    ).x
    return SystolicFit(float(found[0]), float(found[1]), float(found[2]) * 1e6)


def fit_weight_memory(size: int, overlay: Overlay, names: Sequence[str] = ()) -> float:
    """Bytes of weights that stay on the chip: the least error over networks (of these names, if any are
    given), in steps of 1 MB."""
    rows = [row for row in systolic_networks() if row[0] == size and (not names or row[1] in names)]

    def error(capacity: float) -> float:
        there = overlay.model_copy(update={"weight_memory_bytes": capacity})
        return float(np.mean([abs(systolic_network_ms(s, name, there) / ms - 1) for s, name, _, ms in rows]))

    return min((1e6 * step for step in range(4, 33)), key=error)


LOGIC = ("lut_per_layer", "lut_per_lane_bit", "lut_per_multiplier", "lut_per_adder_bit")


def logic_columns(design: Published) -> Array:
    """What the coefficients of the logic multiply: engines, bits of streams, and FINN's terms of multipliers
    in logic and of the adders behind all, which share one coefficient."""
    made = parts(design)
    assert made is not None
    arithmetic = sum(adder_bits(engine) for engine in made.engines)
    for engine, logic in zip(made.engines, made.in_logic, strict=True):
        terms = multiplier_luts(engine.weight_bits, engine.activation_bits)
        arithmetic += float(engine.multipliers * terms) if logic else 0.0
    return np.array([len(made.engines), made.stream_bits, arithmetic])


def fit_logic(designs: Sequence[Published]) -> dict[str, float]:
    """The numbers LOGIC, of which the last two are one; thresholds and memories in logic are not fitted."""
    luts = np.array([design.blocks["LUT"] for design in designs])
    columns = np.array([logic_columns(design) for design in designs]) / luts[:, None]
    memories = np.array([made.memory_luts for made in map(parts, designs) if made is not None])
    found, _ = nnls(columns, np.maximum(0.0, 1 - memories / luts))
    return dict(zip(LOGIC, map(float, (*found, found[-1])), strict=True))


def logic_designs() -> list[Published]:
    """Designs whose logic and folding are known."""
    return [design for design in published() if "LUT" in design.blocks and parts(design) is not None]


def with_logic(dataflow: Dataflow, numbers: dict[str, float]) -> Dataflow:
    """The coefficients with some replaced."""
    return dataflow.model_copy(update=dict(numbers))


BOARD_MACS = {"FINN CNV w1a1": (59.4e6, 2), "FINN KWS-MLP w3a3": (259_584, 6)}
"""Multiply-accumulates of an inference, and weight plus activation bits of each."""


def fit_power() -> tuple[float, float]:
    """(idle W, pJ per 8-bit multiply-accumulate) of the Pynq-Z2: the least power of any design, and what the
    two designs whose work is known take more, by least squares."""
    rows = [design for design in published() if design.power_w is not None]
    idle = min(design.power_w or 0.0 for design in rows)
    known = [design for design in rows if design.name in BOARD_MACS]
    rates = np.array([BOARD_MACS[d.name][0] * BOARD_MACS[d.name][1] / 16 * (d.fps or 0.0) for d in known])
    more = np.array([(design.power_w or 0.0) - idle for design in known])
    return idle, float(rates @ more / (rates @ rates)) * 1e12


def mape(errors: Sequence[float]) -> float:
    """Mean of the absolute relative errors."""
    return float(np.abs(np.array(errors)).mean())


def left_out(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row], list[Row]]]:
    """For each key: the rows without it, and those of it."""
    keys = dict.fromkeys(key(row) for row in rows)
    return [(k, [r for r in rows if key(r) != k], [r for r in rows if key(r) == k]) for k in keys]


def main() -> None:
    """Print the numbers that stand in the profiles."""
    dpu = fit_dpu(dpu_rows())
    print("DPU:", dpu)
    for size in SYSTOLIC:
        if rows := [row for row in systolic_layers() if row.size == size]:
            fit = fit_systolic(rows)
            print(f"systolic {size}:", fit, "weight_memory_bytes", fit_weight_memory(size, fit.overlay(size)))
    if networks := systolic_networks():
        print("call_overhead_ms", round(float(np.median([whole - ms for _, _, whole, ms in networks])), 3))
    print("logic:", fit_logic(logic_designs()))
    print("power of the Pynq-Z2 (idle_w, mac_pj):", fit_power())


if __name__ == "__main__":
    main()
