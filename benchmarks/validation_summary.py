"""The table on top of docs/validation.md: what was to be reached on rows left out, and what was.

It reads the tables of the sections that follow it, so that it says nothing which is not there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import spearmanr

from benchmarks.validation_section import Cell, Section

Rows = Sequence[Mapping[str, Cell]]


def mape(rows: Rows) -> str:
    """Mean of the column "error", without signs."""
    return f"{sum(map(abs, _errors(rows))) / len(rows):.1%}"


def largest(rows: Rows) -> str:
    """MAPE, and the largest of the errors."""
    return f"{mape(rows)}, largest {max(map(abs, _errors(rows))):.1%}"


def layer_mape(rows: Rows) -> str:
    """Mean over layers of the column "mean error of a layer", each row weighing by its layers."""
    layers = [int(row["layers"]) for row in rows]
    shares = [_share(row["mean error of a layer"]) for row in rows]
    return f"{sum(n * s for n, s in zip(layers, shares, strict=True)) / sum(layers):.1%}"


def ranks(rows: Rows) -> str:
    """Spearman's rank correlation of each precision."""
    found = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        here = [row for row in rows if row["precision"] == precision]
        pairs = [row["predicted"] for row in here], [row["published"] for row in here]
        found.append(f"{precision} {spearmanr(*pairs).statistic:.3f}")
    return ", ".join(found)


def worst(rows: Rows) -> str:
    """MAPE of the worst device, and which it is."""
    devices = dict.fromkeys(str(row["device"]) for row in rows)
    found = {device: mape([row for row in rows if row["device"] == device]) for device in devices}
    device = max(found, key=lambda name: _share(found[name]))
    return f"{found[device]} ({device})"


def gains(rows: Rows) -> str:
    """The column "predicted"."""
    return ", ".join(f"{row['predicted']}" for row in rows)


def _errors(rows: Rows) -> list[float]:
    return [_share(row["error"]) for row in rows]


def _share(cell: Cell) -> float:
    return float(str(cell).rstrip("%")) / 100


def every(row: Mapping[str, Cell]) -> bool:
    """All rows of a section."""
    return True


def where(column: str, *starts: str) -> Callable[[Mapping[str, Cell]], bool]:
    """Rows whose cell begins with one of ``starts``."""
    return lambda row: str(row[column]).startswith(starts)


@dataclass(frozen=True)
class Line:
    """what, target and left_out in words; sections: beginnings of the titles of those whose rows count."""

    what: str
    target: str
    left_out: str
    sections: Sequence[str]
    reached: Callable[[Rows], str] = mape
    of: Callable[[Mapping[str, Cell]], bool] = every


WIDTHS = "Raspberry Pi 4: widths"
FAMILIES = "Arm boards: families"
ORIN, XAVIER = "Jetson Orin: a board", "Jetson Xavier: a board"
DPU = "DPU (Vitis AI 2.5, B4096, int8)"
SYSTOLIC = "Systolic overlay (GHP-FPGA-CNN, int8)"
DATAFLOW = "Streaming dataflow"

LINES = (
    Line("Raspberry Pi 4: latency MAPE", "<= 6 %", "a width of MobileNet", [WIDTHS]),
    Line("Raspberry Pi 4: Spearman", ">= 0.99", "a width of MobileNet", [WIDTHS], ranks),
    Line("Raspberry Pi 4: energy MAPE", "<= 8 %", "a width of MobileNet", ["Raspberry Pi 4: energy"]),
    Line("Arm boards: ResNet-50", "<= 15 %", "all but MobileNets v1 and v2", [FAMILIES], mape,
         where("network", "resnet")),
    Line("Arm boards: all families", "<= 15 %", "all but MobileNets v1 and v2", [FAMILIES]),
    Line("Jetson: latency MAPE", "<= 10 %", "a network at a precision", ["Jetson Orin: a network at a"]),
    Line("Jetson: latency MAPE", "<= 10 %", "a network", ["Jetson Orin: a network left out"]),
    Line("Jetson: latency MAPE", "<= 15 %", "a board", [ORIN, XAVIER]),
    Line("Jetson: the worst board", "<= 15 %", "a board", [ORIN, XAVIER], worst),
    Line("Jetson AGX Xavier: latency MAPE", "<= 10 %", "a network", ["Jetson AGX Xavier: a network"]),
    Line("Jetson: ResNet-50", "<= 10 %, largest 20 %", "the network, which no fit has seen",
         ["Jetson: ResNet-50"], largest),
    Line("2:4 sparsity: gain of a network", "1.24 to 1.47", "nothing: a layer's gain is published",
         ["2:4 sparsity"], gains),
    Line("DPU: single-thread fps MAPE", "<= 10 %", "a network", [f"{DPU}: networks"]),
    Line("DPU: single-thread fps MAPE", "<= 15 %", "a board", [f"{DPU}: a board"]),
    Line("Systolic overlay: network time MAPE", "<= 6 %", "a network", [f"{SYSTOLIC}: networks"]),
    Line("Systolic overlay: layer cycles MAPE", "<= 6 %", "a network", [f"{SYSTOLIC}: cycles"], layer_mape),
    Line("Dataflow: throughput", "10 %", "all designs", [f"{DATAFLOW}: time"], largest,
         where("what", "1 / throughput")),
    Line("Dataflow: batch-1 latency", "30 %", "all designs", [f"{DATAFLOW}: time"], largest,
         where("what", "latency")),
    Line("Dataflow: LUT", "30 %", "a design", [f"{DATAFLOW}: resources"], largest, where("block", "LUT")),
    Line("Dataflow: DSP", "30 %", "all designs", [f"{DATAFLOW}: resources"], largest, where("block", "DSP")),
    Line("Dataflow: memory blocks", "30 %", "all designs", [f"{DATAFLOW}: resources"], largest,
         where("block", "BRAM")),
)  # fmt: skip


def summary(sections: Sequence[Section]) -> Section:
    """The table of LINES from the sections' own tables; a line whose rows are not there says so.

    A row that sums up ``layers`` counts as so many.

    Raises:
        ValueError: a line reads a section that is not there.
    """
    rows: list[dict[str, Cell]] = []
    for line in LINES:
        found: list[Mapping[str, Cell]] = []
        for title in line.sections:
            there = [section for section in sections if section.title.startswith(title)]
            if not there and title.startswith(SYSTOLIC):  # its measurements are only compared with
                continue
            if not there:
                raise ValueError(f"the summary's line {line.what!r} reads a section {title!r}; there is none")
            found += [row for section in there for row in section.rows]
        chosen = [row for row in found if line.of(row)]
        rows.append(
            {
                "figure": line.what,
                "to reach": line.target,
                "left out": line.left_out,
                "reached": line.reached(chosen) if chosen else "no rows here",
                "rows": str(sum(int(row.get("layers", 1)) for row in chosen)),
            }
        )
    return Section(
        "What was to be reached, and what was",
        "On rows left out: the numbers behind a figure were fitted without them. Each line is from a section"
        " below, which says what was fitted, and what was chosen while looking at its rows.",
        rows,
    )
