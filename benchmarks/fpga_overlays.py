"""Published measurements of overlay accelerators: Vitis AI's DPU, and a systolic array at two sizes.

The rows of the systolic array may only be compared with: they are read from the shared folder
(benchmarks.published_rows.shared_folder) where it is there, and are not part of the project.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.published_rows import network, shared_folder
from leanfront.compression.graph import operation
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import load_profile
from leanfront.hw_profiles.sections import Overlay
from leanfront.latency_models.fpga.kernels import Work, works
from leanfront.latency_models.fpga.overlay import layer_times, other_ms

FOLDER = Path(__file__).parent / "published"
SYSTOLIC = {32: "systolic-m32p32", 64: "systolic-m64p64"}
"""Size of the array -> profile."""

MEMORY_MHZ = 250.0
"""The clock that the systolic array's cycles are counted in."""


@dataclass(frozen=True)
class DpuRow:
    """Frames per second of one network on one board, one thread."""

    device: str
    model: str
    network: str
    fps: float

    @property
    def latency_ms(self) -> float:
        """One inference after another."""
        return 1e3 / self.fps


@cache
def dpu_rows() -> tuple[DpuRow, ...]:
    """published/dpu_vitis_ai.csv."""
    with (FOLDER / "dpu_vitis_ai.csv").open(newline="", encoding="utf-8") as lines:
        return tuple(
            DpuRow(row["device"], row["model"], row["network"], float(row["fps_single_thread"]))
            for row in csv.DictReader(lines)
        )


def overlay_of(device: str) -> Overlay:
    """The [overlay] that a profile ships with."""
    overlay = load_profile(device).overlay
    assert overlay is not None
    return overlay


@cache
def layers_of(name: str, device: str) -> tuple[Work, ...]:
    """The layers of a network in published/networks, with 8-bit integers."""
    table = network(name)
    batch = PolicyBatch.one(table, Policy.uniform(table, LayerPolicy(0.0, 8, 8)))
    return tuple(work for work in works(batch, load_profile(device)) if work.layer)


@dataclass(frozen=True)
class SystolicLayer:
    """One convolution: its cycles with the weights on the chip, or streamed in."""

    size: int
    network: str
    streamed: bool
    work: Work
    cycles: float


@cache
def systolic_layers() -> tuple[SystolicLayer, ...]:
    """Measured cycles per layer; empty where the shared folder is not."""
    path = shared_folder() / "fpga_systolic_layer_cycles.csv"
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as lines:
        return tuple(_systolic(row) for row in csv.DictReader(lines))


def _systolic(row: dict[str, str]) -> SystolicLayer:
    fields = {name.split("(")[0].split("@")[0]: value for name, value in row.items()}
    out, read, kernel = int(fields["OC"]), int(fields["INC"]), (int(fields["KH"]), int(fields["KW"]))
    rows, columns = int(fields["INH"]), int(fields["INW"])
    padded = (
        rows + int(fields["padU"]) + int(fields["padD"]),
        columns + int(fields["padL"]) + int(fields["padR"]),
    )
    strides = (int(fields["strideH"]), int(fields["strideW"]))
    sizes = [(p - k) // s + 1 for p, k, s in zip(padded, kernel, strides, strict=True)]
    return SystolicLayer(
        size=32 if fields["accel"].startswith("M32") else 64,
        network=fields["net"],
        streamed=fields["weight_mode"] == "dyn",
        work=plain_work("conv2d", out, read, sizes[0] * sizes[1], rows * columns, columns, kernel),
        cycles=float(fields["latency_cycles"]),
    )


def plain_work(
    op: str,
    out: int,
    read: int,
    positions: int,
    read_positions: int,
    read_width: int,
    kernel: tuple[int, int] = (1, 1),
) -> Work:
    """One kernel with 8-bit integers."""

    def array(value: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([float(value)])

    return Work(
        row=0, name=op, op=op, inputs=(), positions=positions, steps=positions, read_positions=read_positions,
        read_width=read_width, kernel=kernel, padding=(0, 0), layer=operation(op).layer,
        stored=operation(op).layer, depthwise=False, pooled=False, pooled_positions=0, out=array(out),
        read=array(read),
        reduced=array(read), weight_bits=array(8), activation_bits=array(8), read_bits=array(8),
        out_bits=array(8), moved=array(out * positions + read * read_positions), held_bytes=array(0),
        zeros=array(0),
    )  # fmt: skip


def systolic_cycles(layer: SystolicLayer, overlay: Overlay) -> float:
    """Predicted cycles of one layer, counted at MEMORY_MHZ."""
    times = layer_times(layer.work, overlay, overlay.clock_mhz)
    return float((times.streamed_ms if layer.streamed else times.resident_ms)[0]) * MEMORY_MHZ * 1e3


@cache
def systolic_networks() -> tuple[tuple[int, str, float, float], ...]:
    """(size, network, ms in all, ms of the accelerator); empty where the shared folder is not."""
    path = shared_folder() / "fpga_systolic_network_ms.csv"
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines)
        next(reader)
        return tuple(
            (32 if row[0].startswith("M32") else 64, row[1], float(row[3]), float(row[5])) for row in reader
        )


OTHER_KERNELS: dict[str, tuple[tuple[str, int, int, int, int], ...]] = {
    # op, channels, output side, window side, input side
    "alexnetb": (("maxpool", 64, 27, 3, 55), ("maxpool", 192, 13, 3, 27), ("maxpool", 256, 6, 3, 13)),
    "vgg16": (
        ("maxpool", 64, 112, 2, 224), ("maxpool", 128, 56, 2, 112), ("maxpool", 256, 28, 2, 56),
        ("maxpool", 512, 14, 2, 28), ("maxpool", 512, 7, 2, 14),
    ),
    "squeezenet_v1_1": (
        ("maxpool", 64, 55, 3, 111), ("maxpool", 128, 27, 3, 55), ("maxpool", 256, 13, 3, 27),
        ("global_avgpool", 1000, 1, 1, 13),
    ),
    "resnet18": (
        ("maxpool", 64, 56, 3, 112), *[("add", 64, 56, 1, 56)] * 2, *[("add", 128, 28, 1, 28)] * 2,
        *[("add", 256, 14, 1, 14)] * 2, *[("add", 512, 7, 1, 7)] * 2, ("global_avgpool", 512, 1, 1, 7),
    ),
    "resnet50": (
        ("maxpool", 64, 56, 3, 112), *[("add", 256, 56, 1, 56)] * 3, *[("add", 512, 28, 1, 28)] * 4,
        *[("add", 1024, 14, 1, 14)] * 6, *[("add", 2048, 7, 1, 7)] * 3, ("global_avgpool", 2048, 1, 1, 7),
    ),
    "inceptionv3": (
        ("maxpool", 64, 73, 3, 147), ("maxpool", 192, 35, 3, 71), ("maxpool", 288, 17, 3, 35),
        ("maxpool", 768, 8, 3, 17), ("avgpool", 192, 35, 3, 35), ("avgpool", 256, 35, 3, 35),
        ("avgpool", 288, 35, 3, 35), *[("avgpool", 768, 17, 3, 17)] * 4, ("avgpool", 1280, 8, 3, 8),
        ("avgpool", 2048, 8, 3, 8), ("global_avgpool", 2048, 1, 1, 8),
    ),
}  # fmt: skip
"""What lies between the layers: a layer table does not say."""

LINEAR: dict[str, tuple[tuple[int, int], ...]] = {
    "alexnetb": ((9216, 4096), (4096, 4096), (4096, 1000)),
    "vgg16": ((25088, 4096), (4096, 4096), (4096, 1000)),
    "squeezenet_v1_1": (),
    "resnet18": ((512, 1000),),
    "resnet50": ((2048, 1000),),
    "inceptionv3": ((2048, 1000),),
}
"""Fully connected layers, inputs and outputs."""


def systolic_network_ms(size: int, name: str, overlay: Overlay) -> float:
    """Predicted time of the accelerator: all layers, and what lies between them; no call's overhead."""
    layers = [row for row in systolic_layers() if (row.size, row.network) == (size, name) and row.streamed]
    times = [(row.work, layer_times(row.work, overlay, overlay.clock_mhz)) for row in layers]
    room, total = overlay.weight_memory_bytes, 0.0
    gain = [(float(t.streamed_ms[0] - t.resident_ms[0]), float(work.weights[0]), t) for work, t in times]
    for saved, weight_bytes, found in sorted(gain, key=lambda entry: -entry[0] / entry[1]):
        stays = saved > 0 and weight_bytes <= room
        room -= weight_bytes if stays else 0.0
        total += float((found.resident_ms if stays else found.streamed_ms)[0])
    for read, out in LINEAR[name]:
        work = plain_work("linear", out, read, 1, 1, 1)
        total += float(layer_times(work, overlay, overlay.clock_mhz).streamed_ms[0])
    for op, channels, side, window, before in OTHER_KERNELS[name]:
        work = plain_work(op, channels, channels, side * side, before * before, before, (window, window))
        total += float(other_ms(work, overlay, overlay.clock_mhz)[0])
    return total
