"""Published streaming designs with their folding, and what leanfront's formulas say of them.

fpgaConvNet's MLPerf Tiny designs layer by layer (published/fpgaconvnet_layers.csv), and FINN's with the PE
and SIMD of each layer as their sources have them. The predictions use the functions of the dataflow model,
with the designs' foldings instead of chosen ones.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.fpga_engines import PORTS, Engine, buffer_blocks, weight_blocks, weight_luts
from leanfront.hw_profiles import load_profile
from leanfront.hw_profiles.fpga import MemoryBlock
from leanfront.hw_profiles.sections import Dataflow
from leanfront.latency_models.fpga.pipeline import Stage, first_window, stream
from leanfront.latency_models.fpga.resources import multiplier_luts, sum_bits, threshold_bits, threshold_luts

FOLDER = Path(__file__).parent / "published"

CNV = (
    (3, 64, 3, 32), (64, 64, 3, 30), (64, 128, 3, 14), (128, 128, 3, 12), (128, 256, 3, 5),
    (256, 256, 3, 3), (256, 512, 1, 1), (512, 512, 1, 1), (512, 64, 1, 1),
)  # fmt: skip
"""FINN's CNV: input channels, output channels, kernel, width of the input. No padding."""

CONVOLUTIONAL = ("cnv-w1a1", "cnv-w1a2", "cnv-w2a2")

CNV_POOLED = (1, 3)
"""Layers that are followed by a 2x2 pool."""

FOLDINGS = {
    "cnv-w1a1": ((16, 3), (32, 32), (16, 32), (16, 32), (4, 32), (1, 32), (1, 4), (1, 8), (4, 1)),
    "cnv-w1a2": ((16, 3), (32, 32), (16, 32), (16, 32), (4, 32), (1, 32), (1, 4), (1, 8), (4, 1)),
    "cnv-w2a2": ((8, 3), (16, 16), (8, 16), (8, 16), (4, 8), (1, 8), (1, 2), (2, 2), (4, 1)),
    "lfc-w1a1": ((32, 64), (64, 32), (32, 64), (16, 8)),
    "kws-mlp": ((32, 10), (32, 8), (32, 8), (1, 8)),
}
"""PE and SIMD of each layer (Xilinx/BNN-PYNQ bnn/src/network/*/hw/config.h; MLPerf Tiny v0.7)."""

IN_LOGIC = (("cnv-w2a2", 1),)
"""Layers whose weight memories are made of logic (cnvW2A2/hw/top.cpp: RAM_2P_LUTRAM)."""

DENSE = {
    "lfc-w1a1": ((832, 1024), (1024, 1024), (1024, 1024), (1024, 64)),
    "kws-mlp": ((490, 256), (256, 256), (256, 256), (256, 12)),
}
"""Inputs and outputs of fully connected networks."""

VGG10_CYCLES = 1024
"""Of the slowest layer of FINN's RadioML VGG10, from its folding."""


@dataclass(frozen=True)
class Published:
    """One published design; what its source does not say is None."""

    name: str
    tool: str
    board: str
    task: str
    clock_mhz: float | None
    fps: float | None
    timing: str
    blocks: Mapping[str, float]
    power_w: float | None
    source: str


@dataclass(frozen=True)
class Parts:
    """What a design is made of.

    stream_bits: of all streams. in_logic: which engines multiply in logic. memory_luts: tables of thresholds
    and of weight memories in logic. scales: DSP blocks are spent on so many lanes of requantization.
    """

    engines: tuple[Engine, ...]
    in_logic: tuple[bool, ...]
    stream_bits: float
    memory_luts: float
    scales: int
    stages: tuple[Stage, ...]

    @property
    def interval_cycles(self) -> float:
        """Of the slowest stage."""
        return max(float(stage.cycles[0]) for stage in self.stages)

    @property
    def latency_cycles(self) -> float:
        """From the first input to the last output, the pipeline empty before."""
        return float(stream(list(self.stages), np.zeros(1)).last.max())


@cache
def published() -> tuple[Published, ...]:
    """published/fpga_designs.csv."""

    def number(text: str) -> float | None:
        return float(text) if text else None

    with (FOLDER / "fpga_designs.csv").open(newline="", encoding="utf-8") as lines:
        return tuple(
            Published(
                row["design"],
                row["tool"],
                row["board"],
                row["task"],
                number(row["clock_mhz"]),
                number(row["fps"]),
                row["timing"],
                {name: float(row[name]) for name in ("LUT", "DSP", "BRAM36") if row[name]},
                number(row["power_w"]),
                row["source"],
            )
            for row in csv.DictReader(lines)
        )


def parts(design: Published) -> Parts | None:
    """What a published design is made of; None where its folding is not known."""
    if design.tool == "fpgaConvNet":
        return _fpgaconvnet(design.board, design.task)
    if design.task in FOLDINGS:
        return _finn(design.task)
    return None


def dataflow_numbers() -> tuple[Dataflow, MemoryBlock]:
    """The coefficients and the memory blocks that ship with the Zynq-7020 profile."""
    profile = load_profile("zynq-7020")
    assert profile.dataflow is not None
    assert profile.resources is not None
    return profile.dataflow, profile.resources.memory["BRAM36"]


def resources(design: Published, dataflow: Dataflow, memory: MemoryBlock) -> dict[str, float]:
    """Predicted blocks of a published design.

    One multiplier per DSP block, as these designs have it. FINN's binary layers use no DSP blocks for
    products; what its designs have of them is not modelled.
    """
    made = parts(design)
    assert made is not None
    luts = made.memory_luts + made.stream_bits * dataflow.lut_per_lane_bit
    luts += len(made.engines) * dataflow.lut_per_layer
    dsp, blocks = dataflow.dsp_base + dataflow.dsp_per_scale * made.scales, 0.0
    for engine, logic in zip(made.engines, made.in_logic, strict=True):
        luts += adder_bits(engine) * dataflow.lut_per_adder_bit
        if logic:
            each = multiplier_luts(engine.weight_bits, engine.activation_bits)
            luts += float(engine.multipliers * each) * dataflow.lut_per_multiplier
        else:
            dsp += float(engine.multipliers)
        blocks += float(weight_blocks(memory, engine)) + float(buffer_blocks(memory, engine))
    found = {"LUT": luts, "BRAM36": blocks}
    return found | ({"DSP": dsp} if design.tool == "fpgaConvNet" else {})


def adder_bits(engine: Engine) -> float:
    """Bits that the adder trees and accumulators of an engine add up in a cycle."""
    return float(engine.multipliers) * (float(engine.weight_bits) + float(engine.activation_bits))


def _fpgaconvnet(board: str, task: str) -> Parts:
    with (FOLDER / "fpgaconvnet_layers.csv").open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if (row["board"], row["task"]) == (board, task)]
    engines, logic, stages = [], [], []
    stream_bits, scales = 0.0, 0
    for index, row in enumerate(rows):

        def number(name: str, row: Mapping[str, str] = row) -> int:
            return int(float(row[name])) if row[name] else 1

        lanes_in = number("coarse_in") * number("coarse_group")
        lanes_out = number("coarse_out") * number("coarse_group")
        before, after = number("rows_in") * number("cols_in"), number("rows_out") * number("cols_out")
        read, out = number("channels_in"), number("channels_out")
        window, compute, needed = (1, 1), 0, 0.0
        if row["type"] in ("CONVOLUTION", "INNER_PRODUCT"):
            dense = row["type"] == "INNER_PRODUCT"
            window = (1, 1) if dense else (number("kh"), number("kw"))
            taps = window[0] * window[1]
            reduced = before * read if dense else read // number("groups")
            fine = 1 if dense else number("fine")
            compute = (
                after
                * -(-reduced // number("coarse_in"))
                * -(-(out // number("groups")) // number("coarse_out"))
                * -(-number("groups") // number("coarse_group"))
                * -(-taps // fine)
            )
            engines.append(
                Engine(
                    pe=lanes_out,
                    lanes=number("coarse_in"),
                    taps=fine,
                    window_lanes=lanes_in,
                    weights=reduced * out * taps,
                    out=out,
                    read=reduced if dense else read,
                    reduced=reduced,
                    window=window,
                    read_width=number("cols_in"),
                    weight_bits=8,
                    activation_bits=8,
                    own_memories=True,
                )
            )
            logic.append(row["use_dsp"] == "False")
            padding = ((window[0] - 1) // 2, (window[1] - 1) // 2)
            needed = 1.0 if dense else first_window(window, padding, number("cols_in"), before)
        elif row["type"] == "AVERAGE_POOLING":
            needed = 1.0
        elif row["type"] == "BATCH_NORM":
            scales += lanes_out
        stream_bits += 8 * max(lanes_in, lanes_out)
        cycles = max(compute, before * -(-read // lanes_in), after * -(-out // lanes_out))
        stages.append(Stage(_inputs(rows, index), np.array([float(cycles)]), float(after), needed))
    return Parts(tuple(engines), tuple(logic), stream_bits, 0.0, scales, tuple(stages))


def _inputs(rows: list[dict[str, str]], index: int) -> tuple[int, ...]:
    """Which stages a stage reads: the one before, but for the shortcuts of ResNet-8."""
    if index == 0:
        return ()
    row, previous = rows[index], index - 1
    if row["type"] == "CONVOLUTION" and rows[previous]["type"] == "CONVOLUTION":
        return _inputs(rows, previous)  # the shortcut before it reads the same tensor
    shortcut = row["layer"].split("_squeeze")[0].split("_scale")[0]
    for above in range(previous, -1, -1):
        if row["type"] in ("SQUEEZE", "BATCH_NORM") and rows[above]["layer"].startswith(shortcut):
            return (above,)
    if row["type"] != "ELTWISE":
        return (previous,)
    main = rows[previous]["layer"].split("_squeeze")[0].split("_scale")[0]
    split = max(i for i in range(index) if rows[i]["type"] == "SPLIT")
    ends = [
        i
        for i in range(split, index)
        if rows[i]["type"] == "BATCH_NORM" and not rows[i]["layer"].startswith(main)
    ]
    shortcuts = [i for i in ends if rows[i + 1]["type"] == "BATCH_NORM"]
    return (previous, shortcuts[0] if shortcuts else split)


def _finn(task: str) -> Parts:
    weight_bits, activation_bits = (3, 3) if task == "kws-mlp" else (int(task[-3]), int(task[-1]))
    conv = task in CONVOLUTIONAL
    layers = CNV if conv else tuple((a, b, 1, 1) for a, b in DENSE[task])
    engines: list[Engine] = []
    stages: list[Stage] = []
    stream_bits, memory_luts = 0.0, 0.0
    for index, ((pe, simd), (read, out, kernel, width)) in enumerate(
        zip(FOLDINGS[task], layers, strict=True)
    ):
        bits = 8 if index == 0 and conv else activation_bits
        lanes = min(simd, read)
        engine = Engine(
            pe=pe,
            lanes=lanes,
            taps=-(-simd // lanes),
            window_lanes=lanes,
            weights=read * out * kernel * kernel,
            out=out,
            read=read,
            reduced=read,
            window=(kernel, kernel),
            read_width=width,
            weight_bits=weight_bits,
            activation_bits=bits,
            weights_in_logic=(task, index) in IN_LOGIC,
        )
        engines.append(engine)
        stream_bits += max(simd * bits, pe * activation_bits)
        memory_luts += weight_luts(engine)
        if not conv or index < len(CNV) - 1:  # the last layer of a CNV gives its sums out as they are
            sums = sum_bits(weight_bits, bits, read * kernel * kernel)
            memory_luts += float(threshold_luts(threshold_bits(activation_bits, sums), pe, out, PORTS))
        positions = (width - kernel + 1) ** 2
        cycles = positions * -(-out // pe) * -(-read * kernel * kernel // simd)
        needed = first_window((kernel, kernel), (0, 0), width, width * width) if conv else 1.0
        stages.append(
            Stage((len(stages) - 1,) if stages else (), np.array([float(cycles)]), positions, needed)
        )
        if conv and index in CNV_POOLED:
            side = width - kernel + 1
            share = first_window((2, 2), (0, 0), side, side * side)
            stages.append(Stage((len(stages) - 1,), np.array([float(positions)]), positions / 4, share))
    in_logic = tuple(True for _ in engines)
    return Parts(tuple(engines), in_logic, stream_bits, memory_luts, 0, tuple(stages))
