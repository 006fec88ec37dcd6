"""CPUs and GPUs: rows predicted by numbers that were fitted without them."""

from collections.abc import Callable, Iterator, Sequence

from benchmarks.calibrate_roofline import (
    ORIN,
    PI,
    REFERENCES,
    XAVIER,
    arm_family,
    arm_roofline,
    arm_rows,
    fit_arm,
    fit_board,
    fit_orin,
    fit_power,
    fit_x86,
    fit_xavier,
    jetson_board,
    jetson_rows,
    orin_family,
    x86_roofline,
    xavier_family,
)
from benchmarks.mlperf_kernels import submitted_ms
from benchmarks.published_rows import Row, predicted, predicted_ms, read_rows
from leanfront.hw_profiles import Roofline

Predicted = tuple[Row, float, float]
"""A row, its predicted latency in ms, and its predicted energy in mJ (0: none)."""


def mean_error(found: Sequence[Predicted]) -> float:
    """MAPE, as a fraction."""
    return sum(abs(ms / row.latency_ms - 1) for row, ms, _ in found) / len(found)


def _predictions(rows: Sequence[Row], roofline: Callable[[Row], Roofline]) -> list[Predicted]:
    return [(row, float(ms), 0.0) for row, ms in zip(rows, predicted_ms(rows, roofline), strict=True)]


def width(row: Row) -> str:
    """The width multiplier of a MobileNet."""
    return row.network.split("_w")[1].split("_")[0]


def pi_widths_left_out() -> list[Predicted]:
    """Raspberry Pi 4, each width predicted by the others; with energies."""
    shared, _ = arm_family()
    rows = arm_rows(PI)
    found: list[Predicted] = []
    for left_out in sorted({width(row) for row in rows}):
        known = [row for row in rows if width(row) != left_out]
        roofline = arm_roofline(PI, shared, fit_board(known, shared))
        watts = fit_power(known, roofline)
        for row in rows:
            if width(row) == left_out:
                times = predicted(row, roofline)
                compute, other = float(times.compute_ms.sum()), float(times.other_ms.sum())
                energy_mj = watts["power_w"] * compute + watts["memory_power_w"] * other
                found.append((row, compute + other, energy_mj))
    return found


def families_left_out() -> Iterator[Predicted]:
    """Networks of families that a board was not calibrated on."""
    for device, other in (REFERENCES, REFERENCES[::-1]):
        shared, _ = fit_arm(arm_rows(other))
        rows = arm_rows(device)
        own = fit_board([row for row in rows if "_w" in row.network], shared)
        unknown = [row for row in rows if "_w" not in row.network]
        yield from _predictions(unknown, lambda row: arm_roofline(row.device, shared, own))  # noqa: B023


def orin_left_out(group: Callable[[Row], object]) -> list[Predicted]:
    """Orin rows, each group predicted by numbers fitted to the others."""
    rows = jetson_rows(*ORIN)
    found: list[Predicted] = []
    for left_out in dict.fromkeys(map(group, rows)):
        family = fit_orin([row for row in rows if group(row) != left_out])
        tested = [row for row in rows if group(row) == left_out]
        found += _predictions(tested, lambda row: jetson_board(row, family))  # noqa: B023
    return found


def never_fitted(as_submitted: bool = True) -> list[Predicted]:
    """ResNet-50 on Jetson boards, by the numbers that ship: those of Orin and Xavier boards' other rows.

    ``as_submitted``: rows of MLPerf with the kernels that NVIDIA wrote for them, which is what was measured;
    else as TensorRT would run a file.
    """
    rows = read_rows("jetson_never_fitted.csv")
    if not as_submitted:
        return _predictions(rows, shipped_roofline)
    found: list[Predicted] = []
    for row in rows:
        if "mlcommons" in row.source:
            found.append((row, submitted_ms(row, shipped_roofline(row)), 0.0))
        else:
            found += _predictions([row], shipped_roofline)
    return found


def shipped_roofline(row: Row) -> Roofline:
    """What ships for a row's board."""
    orin = orin_family()
    return jetson_board(row, orin if row.device in ORIN else xavier_family())


def xavier_left_out(overlap: float = 0.5) -> Iterator[Predicted]:
    """Xavier's int8 rows, each board predicted by the other; ``overlap``: of feeding and multiplying."""
    orin = orin_family()
    for device in XAVIER:
        others = [name for name in XAVIER if name != device]
        family = fit_xavier(jetson_rows(*others), orin, overlap)
        tested = [row for row in jetson_rows(device) if row.precision == "int8"]
        yield from _predictions(tested, lambda row: jetson_board(row, family))  # noqa: B023


def xavier_networks_left_out() -> Iterator[Predicted]:
    """Xavier's float16 rows, each network predicted by all others of both boards."""
    rows = jetson_rows(*XAVIER)
    for tested in (row for row in rows if row.precision == "fp16"):
        family = fit_xavier([row for row in rows if row is not tested], orin_family())
        yield from _predictions([tested], lambda row: jetson_board(row, family))  # noqa: B023


def x86_left_out() -> Iterator[Predicted]:
    """x86 rows, each network predicted by the others."""
    rows = read_rows("x86_cpu.csv")
    for name in dict.fromkeys(row.network for row in rows):
        numbers = fit_x86([row for row in rows if row.network != name])
        tested = [row for row in rows if row.network == name]
        yield from _predictions(tested, lambda row: x86_roofline(numbers))  # noqa: B023
