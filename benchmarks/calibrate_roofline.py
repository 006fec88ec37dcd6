"""Fit the calibrated numbers of the CPU and GPU profiles to published measurements, and print them.

    python -m benchmarks.calibrate_roofline

Arm boards (TFLite, ruy): the two boards for which there are measurements of many families tell how kinds of
kernels compare (ARM_SHARED); each board then has five numbers of its own (ARM_OWN). Jetson boards: seven
numbers for the Orin family; the peaks of a board are those of its data sheet. Xavier's efficiency in int8
follows from Orin's; fitted to its own rows are its efficiency in float16, its time per kernel and what it
waits for weights.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from scipy.optimize import nnls

from benchmarks.published_rows import Row, fit, predicted, read_rows, roofline_of, with_numbers
from leanfront.hw_profiles import Roofline

PI = "raspberry-pi-4"
REFERENCES = ("odroid-n2-plus", "firefly-rk3399")
"""Boards with many families: ResNet-50, EfficientNet-lite, MobileNet v1 to v3."""

UNLISTED = ("mobilenet_v3_large_224", "mobilenet_v3_small_224")
"""Not fitted: hard-swish and squeeze-and-excite take time that no layer table knows of."""

ARM_SHARED = {
    "depthwise.32": 5.0,
    "depthwise.8": 24.0,
    "im2col_passes": 4.5,
    "image.32": 29.0,
    "image.8": 1.0,
}
"""How many times as long as in a dense layer a depthwise multiply-accumulate takes, by bits; how often the
matrix of windows crosses memory; ns for each value of the image."""

ARM_OWN = {
    "macs_per_ms.32": 1.5e7, "macs_per_ms.8": 5e7, "bandwidth_bytes_per_ms": 4e6, "value_ns": 0.1,
    "overhead_ms": 0.012,
}  # fmt: skip

X86 = {
    "macs_per_ms.32": 9e7, "macs_per_ms.8": 3e8, "depthwise_efficiency.32": 0.5,
    "depthwise_efficiency.8": 0.1, "value_ns": 0.05, "overhead_ms": 0.004, "im2col_passes": 0.5,
}  # fmt: skip

JETSON = {
    "efficiency.32": 0.55, "efficiency.16": 0.6, "efficiency.8": 0.5, "tensor_passes": 1.5,
    "overhead_ms": 0.003, "joined_ns_at_100_gb_per_s": 3.0, "gathered_passes": 2.0,
}  # fmt: skip

ORIN = ("jetson-orin-nano", "jetson-orin-nano-15w", "jetson-orin-nx", "jetson-agx-orin")
XAVIER = ("jetson-xavier-nx", "jetson-agx-xavier")
XAVIER_OWN = {"overhead_ms": 0.003, "sum_byte_ns": 10.0, "efficiency.16": 0.6}
QUEUED = {"queued_ms": 0.002}
"""Besides overhead_ms, each kernel where a row's kernels were handed over one by one. No profile has it: what
leanfront writes for TensorRT is run as a graph."""
XAVIER_PEAK_OVER_ORIN = 0.5
"""Multiply-accumulates per cycle that the tensor cores of a multiprocessor have, int8 or float16."""


def arm_rows(*devices: str) -> list[Row]:
    """Measurements of Arm boards that a layer table describes in full."""
    rows = read_rows("arm_cpus.csv")
    return [row for row in rows if row.device in devices and row.network not in UNLISTED]


def arm_roofline(device: str, shared: Mapping[str, float], own: Mapping[str, float]) -> Roofline:
    """An Arm board's numbers from those of the family and its own."""
    numbers = {**own, "im2col_passes": shared["im2col_passes"], "conversion_overhead_ms": own["overhead_ms"]}
    for bits in ("32", "8"):
        numbers[f"depthwise_efficiency.{bits}"] = 1.0 / shared[f"depthwise.{bits}"]
        numbers[f"image_value_ns.{bits}"] = shared[f"image.{bits}"]
    return with_numbers(roofline_of(device), numbers)


def fit_arm(rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The family's numbers and each board's own, from rows of several boards at once."""
    devices = list(dict.fromkeys(row.device for row in rows))
    start = dict(ARM_SHARED)
    start |= {f"{device}/{name}": value for device in devices for name, value in ARM_OWN.items()}

    def roofline(row: Row, values: Mapping[str, float]) -> Roofline:
        return arm_roofline(row.device, values, {name: values[f"{row.device}/{name}"] for name in ARM_OWN})

    # there is one ResNet on each board, and it alone tells about plain 3x3 convolutions
    found = fit(rows, start, roofline, weight=lambda row: 3.0 if "resnet" in row.network else 1.0)
    shared = {name: found[name] for name in ARM_SHARED}
    return shared, {d: {name: found[f"{d}/{name}"] for name in ARM_OWN} for d in devices}


def fit_board(rows: Sequence[Row], shared: Mapping[str, float]) -> dict[str, float]:
    """One board's own five numbers, the family's given."""
    return fit(rows, ARM_OWN, lambda row, values: arm_roofline(row.device, shared, values))


def fit_x86(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the x86 core, from networks measured on one."""
    return fit(rows, X86, lambda row, values: x86_roofline(values))


def x86_roofline(numbers: Mapping[str, float]) -> Roofline:
    """The x86 core's numbers."""
    numbers = {**numbers, "conversion_overhead_ms": numbers["overhead_ms"]}
    return with_numbers(roofline_of("x86-avx512-vnni"), numbers)


def fit_power(rows: Sequence[Row], roofline: Roofline) -> dict[str, float]:
    """Watts while computing and while waiting for memory, from measured energies and modelled times."""
    timed = [predicted(row, roofline) for row in rows]
    parts = np.array([[t.compute_ms.sum(), t.other_ms.sum()] for t in timed])
    energies = np.array([row.energy_mj or 0.0 for row in rows])
    watts, _ = nnls(parts / energies[:, None], np.ones(len(rows)))
    return {"power_w": float(watts[0]), "memory_power_w": float(watts[1])}


def jetson_roofline(device: str, family: Mapping[str, float]) -> Roofline:
    """A Jetson board's numbers: the peaks of its data sheet and what its family reaches of them."""
    roofline = roofline_of(device)
    numbers = {name: family[name] for name in family if "_at_" not in name and name not in QUEUED}
    numbers["conversion_overhead_ms"] = numbers["overhead_ms"]
    numbers["joined_value_ns"] = family["joined_ns_at_100_gb_per_s"] * 1e8 / roofline.bandwidth_bytes_per_ms
    return with_numbers(roofline, numbers)


def fit_orin(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the Orin family from rows of its boards."""
    return fit(rows, JETSON, jetson_board)


def fit_xavier(rows: Sequence[Row], orin: Mapping[str, float], overlap: float = 0.5) -> dict[str, float]:
    """XAVIER_OWN and QUEUED from Xavier's rows; the efficiency in int8 from Orin's, the rest as on Orin."""
    others = {**orin, "efficiency.8": xavier_efficiency(orin["efficiency.8"], overlap)}
    found = fit(rows, XAVIER_OWN | QUEUED, lambda row, values: jetson_board(row, {**others, **values}))
    return {**others, **found}


def jetson_board(row: Row, family: Mapping[str, float]) -> Roofline:
    """The numbers of a row's board, as its kernels were handed over."""
    queued_ms = family.get("queued_ms", 0.0) if row.queued else 0.0
    return jetson_roofline(row.device, {**family, "overhead_ms": family["overhead_ms"] + queued_ms})


def xavier_efficiency(orin: float, overlap: float) -> float:
    """What int8 layers reach of Xavier's tensor cores when they reach ``orin`` of Orin's.

    A multiprocessor of either feeds its tensor cores as fast, but Xavier's multiply half as fast. If feeding
    and multiplying take turns, Orin's cycles without products are Xavier's, too:
    1 / e = 1 + (1 / orin - 1) / 2. If they overlap, Xavier does as many products per cycle as Orin, up to
    its peak. Kernels do some of both: ``overlap`` is 0 for the first, 1 for the second.
    """
    in_turns = 1.0 / (1.0 + (1.0 / orin - 1.0) * XAVIER_PEAK_OVER_ORIN)
    overlapped = min(1.0, orin / XAVIER_PEAK_OVER_ORIN)
    return in_turns + overlap * (overlapped - in_turns)


def jetson_rows(*devices: str) -> list[Row]:
    """Measurements of Jetson GPUs, one inference at a time."""
    return [row for row in read_rows("jetson_gpus.csv") if row.device in devices]


@cache
def arm_family() -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What ships: the family's numbers, and those of every Arm board with measurements."""
    shared, own = fit_arm(arm_rows(*REFERENCES))
    return shared, {**own, PI: fit_board(arm_rows(PI), shared)}


@cache
def orin_family() -> dict[str, float]:
    """What ships: the Orin family's numbers, from all its rows."""
    return fit_orin(jetson_rows(*ORIN))


@cache
def xavier_family() -> dict[str, float]:
    """What ships: the Xavier family's numbers, from all its rows and Orin's numbers."""
    return fit_xavier(jetson_rows(*XAVIER), orin_family())


def shipped_family() -> dict[str, float]:
    """The family's numbers as they stand in the profile of the Raspberry Pi."""
    roofline = roofline_of(PI)
    shared = {f"depthwise.{bits}": 1.0 / share for bits, share in roofline.depthwise_efficiency.items()}
    shared |= {f"image.{bits}": ns for bits, ns in roofline.image_value_ns.items()}
    return {**shared, "im2col_passes": roofline.im2col_passes or 0.0}


def main() -> None:
    """Print the numbers that stand in the profiles."""
    shared, boards = arm_family()
    print("Arm boards, shared:", _text(shared))
    for device, own in boards.items():
        roofline = arm_roofline(device, shared, own)
        energies = [row for row in arm_rows(device) if row.energy_mj]
        power = fit_power(energies, roofline) if len(energies) > 2 else {}
        print(f"{device}:", _text({**own, **power}), dict(roofline.depthwise_efficiency))
    print("x86-avx512-vnni:", _text(fit_x86(read_rows("x86_cpu.csv"))))
    orin = orin_family()
    xavier = xavier_family()
    for name, devices, family in (("Orin", ORIN, orin), ("Xavier", XAVIER, xavier)):
        print(f"{name}:", _text(family))
        for device in devices:
            roofline = jetson_roofline(device, family)
            print(f"  {device}: joined_value_ns {roofline.joined_value_ns:.4g}")


def _text(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
