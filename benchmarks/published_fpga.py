"""FPGA accelerators: predicted beside published. ``sections`` are its part of docs/validation.md.

python -m benchmarks.published_fpga
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.calibrate_fpga import (
    fit_dpu,
    fit_logic,
    fit_systolic,
    fit_weight_memory,
    left_out,
    logic_designs,
    mape,
    with_logic,
)
from benchmarks.fpga_designs import VGG10_CYCLES, dataflow_numbers, parts, published, resources
from benchmarks.fpga_overlays import (
    SYSTOLIC,
    dpu_rows,
    systolic_cycles,
    systolic_layers,
    systolic_network_ms,
    systolic_networks,
)
from benchmarks.validation_section import Cell, Points, Section
from leanfront.hw_profiles import load_profile


def sections() -> list[Section]:
    """DPU, systolic array, streaming designs and their power; what is not there to compare with is said."""
    return [*dpu_sections(), *systolic_sections(), latency_section(), resource_section(), power_section()]


@dataclass(frozen=True)
class Entry:
    """One comparison: what it is about, and both figures."""

    cells: dict[str, Cell]
    predicted: float
    published: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.published - 1


def spearman(predicted: Sequence[float], published_: Sequence[float]) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, published_).statistic)


def dpu_sections() -> list[Section]:
    """Each network left out, and each board left out."""
    found = []
    rows = dpu_rows()
    for name, title, text, groups in (
        (
            "dpu-networks",
            "DPU (Vitis AI 2.5, B4096, int8): networks left out",
            "Frames per second of one thread on ZCU102 and ZCU104. Each network is predicted by numbers that"
            " were calibrated on all others, on both boards. TensorFlow's ResNet v1 has its strides elsewhere"
            " and 6 to 15 % fewer operations than the layer table that stands for it.",
            left_out(rows, lambda row: row.network),
        ),
        (
            "dpu-boards",
            "DPU (Vitis AI 2.5, B4096, int8): a board left out",
            "Each board is predicted by numbers calibrated on the other.",
            left_out(rows, lambda row: row.device),
        ),
    ):
        table: list[Entry] = []
        for _, known, tested in groups:
            fit = fit_dpu(known)
            for row in tested:
                fps = 1e3 / fit.latency_ms(row)
                cells: dict[str, Cell] = {"profile": row.device, "network": row.network, "model": row.model}
                table.append(Entry(cells, fps, row.fps))
        found.append(_section(title, text, table, "frames per second", name))
    return found


def systolic_sections() -> list[Section]:
    """Layers of networks left out, and whole networks left out."""
    if not systolic_layers():
        text = "The measurements may only be compared with, and the folder that has them is not here."
        return [Section("Systolic overlay (GHP-FPGA-CNN, int8)", text)]
    cycles: list[Entry] = []
    networks: list[Entry] = []
    layer_errors: list[float] = []
    for size in SYSTOLIC:
        rows = [row for row in systolic_layers() if row.size == size]
        times = {name: (whole, ms) for s, name, whole, ms in systolic_networks() if s == size}
        gaps = [(name, whole - ms) for _, name, whole, ms in systolic_networks()]
        for name, known, tested in left_out(rows, lambda row: row.network):
            overlay = fit_systolic(known).overlay(size)
            others = [other for other in times if other != name]
            capacity = fit_weight_memory(size, overlay, others)
            overlay = overlay.model_copy(update={"weight_memory_bytes": capacity})
            errors = [systolic_cycles(row, overlay) / row.cycles - 1 for row in tested]
            layer_errors += errors
            cycles.append(
                Entry(
                    {"profile": SYSTOLIC[size], "network": name, "layers": len(tested)},
                    sum(systolic_cycles(row, overlay) for row in tested),
                    sum(row.cycles for row in tested),
                )
            )
            cycles[-1].cells["mean error of a layer"] = f"{mape(errors):.2%}"
            call_ms = float(np.median([gap for other, gap in gaps if other != name]))
            predicted = systolic_network_ms(size, name, overlay) + call_ms
            networks.append(Entry({"profile": SYSTOLIC[size], "network": name}, predicted, times[name][0]))
    return [
        _section(
            "Systolic overlay (GHP-FPGA-CNN, int8): cycles of layers, each network left out",
            "Convolutions with weights on the chip and streamed in. Clock, overhead per layer and bandwidth"
            " are calibrated on the other networks; one formula for both sizes. Over all layers, the mean"
            f" error is {mape(layer_errors):.2%}; below are sums. 1x1 layers with stride 2 are up to 60 %"
            " low at the larger size: the array waits there for rows of the input, which is not modelled. The"
            " published figures may be compared with, not copied, so errors alone are shown.",
            cycles,
            "cycles",
            "",
            shown=False,
        ),
        _section(
            "Systolic overlay (GHP-FPGA-CNN, int8): networks left out",
            "Time in all of one inference, with pools, additions and fully connected layers. Everything is"
            " calibrated on the other networks: the layers' numbers and the size of the weight memory on"
            " those of the same array, a call's overhead (the median) on those of both.",
            networks,
            "ms",
            "",
            shown=False,
        ),
    ]


def latency_section() -> Section:
    """Batch-1 latency and streaming throughput of published designs; nothing is calibrated."""
    table = []
    numbers, _ = dataflow_numbers()
    for design in published():
        made = parts(design)
        if design.clock_mhz is None or design.fps is None:
            continue
        if design.timing == "stream":
            predicted = VGG10_CYCLES / design.clock_mhz / 1e3
        elif made is not None:
            predicted = made.latency_cycles / design.clock_mhz / 1e3
            predicted += numbers.call_overhead_ms if design.tool == "FINN" else 0.0
        else:
            continue
        what = "1 / throughput" if design.timing == "stream" else "latency, batch 1"
        table.append(Entry({"design": design.name, "what": what}, predicted, 1e3 / design.fps))
    return _section(
        "Streaming dataflow: time of published designs with their folding",
        "fpgaConvNet (MLPerf Tiny v1.1) and FINN (MLPerf Tiny v0.7, finn-examples). Nothing is calibrated but"
        " the 4.6 us that a call of FINN's driver takes, which is from the KWS-MLP row: that row is no test.",
        table,
        "ms",
        "dataflow-time",
    )


def resource_section() -> Section:
    """Logic with each design left out; DSP and memory blocks; logic with families of designs left out."""
    dataflow, memory = dataflow_numbers()
    table = []
    for design in [d for d in published() if d.blocks and parts(d) is not None]:
        known = [other for other in logic_designs() if other.name != design.name]
        predicted = resources(design, with_logic(dataflow, fit_logic(known)), memory)
        for name, count in predicted.items():
            if name in design.blocks:
                table.append(Entry({"design": design.name, "block": name}, count, design.blocks[name]))
    by_kind = ", ".join(
        f"{kind} {mape([row.error for row in table if row.cells['block'] == kind]):.1%}"
        for kind in ("LUT", "DSP", "BRAM36")
    )
    families = "; ".join(
        f"{name} {mape(errors):.1%} (largest {max(map(abs, errors)):.1%})"
        for name, errors in logic_errors_of_families().items()
    )
    return _section(
        "Streaming dataflow: resources of published designs with their folding",
        "The three coefficients of the logic (of an engine, a bit of a stream, a bit of arithmetic) are"
        " calibrated on the other designs; thresholds and memories made of logic are counted, not fitted."
        " Memory blocks follow from the shapes of weights and buffers; that line buffers of fpgaConvNet of"
        " up to 32 words are made of logic, and the DSP blocks of a requantization, were chosen by looking"
        f" at its designs. Mean errors: {by_kind}. Logic with whole families left out of the calibration:"
        f" {families}. What remains: 2-bit weights times 2-bit activations (FINN CNV w2a2) take half as much"
        " again as the arithmetic explains, a popcount of one-bit products (FINN LFC w1a1) less than it"
        " says, and FINN's queues and interfaces, which take memory blocks too, are not modelled.",
        table,
        "blocks",
        "dataflow-blocks",
    )


def logic_errors_of_families() -> dict[str, list[float]]:
    """Errors of the logic of FINN's CNVs, of FINN and of fpgaConvNet, by numbers fitted without them."""
    dataflow, memory = dataflow_numbers()
    found = {}
    for family in ("FINN CNV", "FINN", "fpgaConvNet"):
        tested = [design for design in logic_designs() if design.name.startswith(family)]
        known = [design for design in logic_designs() if design not in tested]
        numbers = with_logic(dataflow, fit_logic(known))
        found[family] = [resources(d, numbers, memory)["LUT"] / d.blocks["LUT"] - 1 for d in tested]
    return found


def power_section() -> Section:
    """Energy per inference on the Pynq-Z2."""
    profile = load_profile("zynq-7020")
    table = [
        Entry(
            {"design": design.name},
            profile.power_w / design.fps * 1e3,
            design.power_w / design.fps * 1e3,
        )
        for design in published()
        if design.power_w is not None and design.fps is not None
    ]
    return _section(
        "Zynq-7020: energy per inference",
        "Board power (the mean of these four rows, so this is no test) times the published time. The boards"
        " draw 1.60 to 1.76 W whatever runs on them.",
        table,
        "mJ",
        "",
    )


def _section(
    title: str, text: str, table: Sequence[Entry], unit: str, name: str, shown: bool = True
) -> Section:
    """``shown``: with the figures themselves, not errors alone. ``name``: of the plot; "" for none."""
    errors = [row.error for row in table]
    predicted, there = [row.predicted for row in table], [row.published for row in table]
    summary = (
        f"n = {len(table)}, MAPE {mape(errors):.1%}, largest error {max(map(abs, errors)):.1%},"
        f" Spearman {spearman(predicted, there):.3f}; in {unit}."
    )
    rows: list[dict[str, Cell]] = []
    for row in table:
        figures: dict[str, Cell] = {"predicted": row.predicted, "published": row.published} if shown else {}
        rows.append({**row.cells, **figures, "error": f"{row.error:+.1%}"})
    points = [Points(str(key), [], []) for key in dict.fromkeys(_first(row) for row in table)] if name else []
    found = [
        Points(
            series.label,
            [row.published for row in table if _first(row) == series.label],
            [row.predicted for row in table if _first(row) == series.label],
        )
        for series in points
    ]
    return Section(title, f"{text}\n\n{summary}", rows, found, unit, name)


def _first(row: Entry) -> str:
    """What a plot has a colour for: the profile, the kind of block, or the tool."""
    if "profile" in row.cells:
        return str(row.cells["profile"])
    return str(row.cells.get("block", str(row.cells["design"]).split()[0]))


def main() -> None:
    """Print the sections."""
    for section in sections():
        print(f"\n{section.title}\n{section.text}")
        for row in section.rows:
            print("  ", ", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
