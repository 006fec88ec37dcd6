"""CPU and GPU profiles against published measurements: held-out figures, and numbers that a refit gives."""

import pytest
from scipy.stats import spearmanr

from benchmarks.calibrate_roofline import (
    ARM_OWN,
    JETSON,
    ORIN,
    PI,
    XAVIER,
    XAVIER_OWN,
    arm_roofline,
    arm_rows,
    fit_board,
    fit_orin,
    fit_power,
    fit_xavier,
    jetson_roofline,
    jetson_rows,
    orin_family,
    shipped_family,
    xavier_efficiency,
)
from benchmarks.mlperf_kernels import PAIRS, in_one_kernel, submitted_ms
from benchmarks.processors_left_out import width
from benchmarks.published_rows import mape, predicted, predicted_ms, read_rows, roofline_of, work
from benchmarks.published_sparsity import TWO_FOUR, two_four_gain
from benchmarks.validation_section import COLOURS, SHAPES, Points, Section
from leanfront.hw_profiles import Roofline, load_profile

SHARED = shipped_family()


def close(fitted: Roofline, shipped: Roofline, names: tuple[str, ...]) -> None:
    """The numbers in a profile are those of the fit, to the digits that they have there."""
    for path in names:
        name, _, bits = path.partition(".")
        ours, theirs = getattr(fitted, name), getattr(shipped, name)
        assert (ours[bits] if bits else ours) == pytest.approx(theirs[bits] if bits else theirs, rel=0.01), (
            path
        )


def test_the_raspberry_pi_has_the_numbers_of_a_fit_to_all_its_rows() -> None:
    rows = arm_rows(PI)
    fitted = arm_roofline(PI, SHARED, fit_board(rows, SHARED))
    close(fitted, roofline_of(PI), tuple(ARM_OWN))
    watts = fit_power(rows, roofline_of(PI))
    assert load_profile(PI).power_w == pytest.approx(watts["power_w"], rel=0.01)
    assert roofline_of(PI).memory_power_w == pytest.approx(watts["memory_power_w"], rel=0.01)


def test_jetson_boards_have_the_numbers_of_fits_to_all_rows() -> None:
    orin = orin_family()
    xavier = fit_xavier(jetson_rows(*XAVIER), orin)
    for device in ORIN:
        close(jetson_roofline(device, orin), roofline_of(device), tuple(n for n in JETSON if "_at_" not in n))
    for device in XAVIER:
        close(
            jetson_roofline(device, xavier),
            roofline_of(device),
            (*XAVIER_OWN, "efficiency.8", "efficiency.16"),
        )
    for device in (*ORIN, *XAVIER):
        close(jetson_roofline(device, orin), roofline_of(device), ("joined_value_ns", "tensor_passes"))


def test_xavier_reaches_more_of_slower_tensor_cores_than_orin() -> None:
    # half of Orin's peak: as many cycles with products as without; in turns, Xavier has two of three with
    assert xavier_efficiency(0.5, overlap=0.0) == pytest.approx(2 / 3)
    assert xavier_efficiency(0.5, overlap=1.0) == 1.0
    assert xavier_efficiency(0.5, overlap=0.5) == pytest.approx(5 / 6)
    assert xavier_efficiency(1.0, overlap=0.0) == 1.0


def test_a_kernel_on_a_gpu_takes_microseconds_to_start() -> None:
    """So a very small network takes several times as many; 20 kernels of no work are no 6 us."""
    for device in ORIN:
        assert 0.002 <= roofline_of(device).overhead_ms <= 0.008


@pytest.mark.parametrize("left_out", ["0.5", pytest.param("1", marks=pytest.mark.slow)])
def test_raspberry_pi_widths_left_out(left_out: str) -> None:
    rows = arm_rows(PI)
    known = [row for row in rows if width(row) != left_out]
    roofline = arm_roofline(PI, SHARED, fit_board(known, SHARED))
    watts = fit_power(known, roofline)
    tested = [row for row in rows if width(row) == left_out]
    found = predicted_ms(tested, lambda row: roofline)
    truths = [row.latency_ms for row in tested]
    assert mape(found, truths) <= 0.065
    for precision in ("fp32", "int8"):
        pairs = [
            (p, t) for p, t, row in zip(found, truths, tested, strict=True) if row.precision == precision
        ]
        assert spearmanr(*zip(*pairs, strict=True)).statistic >= 0.97
    energies = []
    for row in tested:
        times = predicted(row, roofline)
        energy = watts["power_w"] * times.compute_ms.sum() + watts["memory_power_w"] * times.other_ms.sum()
        energies.append(abs(energy / (row.energy_mj or 0.0) - 1))
    assert sum(energies) / len(energies) <= 0.08


def test_raspberry_pi_over_all_widths() -> None:
    rows = arm_rows(PI)
    found = predicted_ms(rows, lambda row: roofline_of(PI))
    for precision in ("fp32", "int8"):
        here = [i for i, row in enumerate(rows) if row.precision == precision]
        truths = [rows[i].latency_ms for i in here]
        assert mape(found[here], truths) <= 0.05
        assert spearmanr(found[here], truths).statistic >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("device", ["odroid-n2-plus", "firefly-rk3399"])
def test_families_that_a_board_was_not_calibrated_on(device: str) -> None:
    """Its own numbers from MobileNets alone; a ResNet and EfficientNets predicted within 15 %."""
    rows = arm_rows(device)
    own = fit_board([row for row in rows if "_w" in row.network], SHARED)
    for family in ("resnet50", "efficientnet-lite"):
        tested = [row for row in rows if row.network.startswith(family)]
        found = predicted_ms(tested, lambda row: arm_roofline(row.device, SHARED, own))
        assert mape(found, [row.latency_ms for row in tested]) <= 0.15, family


@pytest.mark.parametrize("device", XAVIER)
def test_a_xavier_board_left_out(device: str) -> None:
    others = [row for row in jetson_rows(*XAVIER) if row.device != device]
    family = fit_xavier(others, orin_family())
    tested = jetson_rows(device)
    found = predicted_ms(tested, lambda row: jetson_roofline(row.device, family))
    assert mape(found, [row.latency_ms for row in tested]) <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("device", ORIN)
def test_an_orin_board_left_out(device: str) -> None:
    family = fit_orin([row for row in jetson_rows(*ORIN) if row.device != device])
    tested = jetson_rows(device)
    found = predicted_ms(tested, lambda row: jetson_roofline(row.device, family))
    assert mape(found, [row.latency_ms for row in tested]) <= 0.15


@pytest.mark.parametrize(
    "network",
    [
        "yolo11m_640",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("yolov8n_640", "ssd-mobilenet-v1_300")),
    ],
)
def test_an_orin_network_left_out(network: str) -> None:
    """At all its precisions and on all boards; docs/validation.md has the figures over all networks."""
    rows = jetson_rows(*ORIN)
    family = fit_orin([row for row in rows if row.network != network])
    tested = [row for row in rows if row.network == network]
    found = predicted_ms(tested, lambda row: jetson_roofline(row.device, family))
    assert mape(found, [row.latency_ms for row in tested]) <= 0.10


@pytest.mark.parametrize("network", TWO_FOUR.values())
def test_whole_networks_gain_what_was_measured_from_2_4_sparsity(network: str) -> None:
    assert 1.24 <= two_four_gain(network) <= 1.47


@pytest.mark.parametrize("file", ["arm_cpus.csv", "jetson_gpus.csv", "x86_cpu.csv"])
def test_every_published_row_has_a_source(file: str) -> None:
    rows = read_rows(file)
    assert rows
    assert all(row.source and row.latency_ms > 0 for row in rows)


def test_a_section_is_written_with_its_table_and_plot(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    points = [
        Points("a board, int8", [1.0, 20.0], [1.1, 19.0]),
        Points("a board, fp32", [3.0], [3.1]),
        Points("another, fp32", [5.0], [5.1]),
    ]
    section = Section("Title", "Text.", [{"network": "a", "predicted": 1.1}], points, "ms", "board")
    text = section.markdown(folder)
    assert "| a | 1.1 |" in text
    assert "validation-board.svg" in text
    plot = (folder / "validation-board.svg").read_text()
    # a colour for each board, a shape for each precision, both in the legend
    assert [plot.count(f'fill="{colour}"') for colour in COLOURS[:3]] == [5, 2, 0]
    assert [plot.count(shape) for shape in SHAPES[:3]] == [3, 4, 0]


def test_a_network_that_no_fit_has_seen_is_foretold_by_what_ships() -> None:
    """ResNet-50 of MLPerf on four boards: 10 % on average, 20 % at worst, also without NVIDIA's kernels."""
    rows = [row for row in read_rows("jetson_never_fitted.csv") if not row.queued]
    assert {row.network for row in jetson_rows(*ORIN, *XAVIER)}.isdisjoint({row.network for row in rows})
    found = [submitted_ms(row, roofline_of(row.device)) / row.latency_ms - 1 for row in rows]
    assert sum(map(abs, found)) / len(found) <= 0.10
    plain = predicted_ms(rows, lambda row: roofline_of(row.device)) / [row.latency_ms for row in rows] - 1
    assert max(*map(abs, found), *map(abs, plain)) <= 0.20


def test_layers_in_one_kernel_compute_as_much_and_move_less() -> None:
    row = next(row for row in read_rows("jetson_never_fitted.csv") if row.device in XAVIER)
    apart = work(row, roofline_of(row.device))
    together = in_one_kernel(apart, row, PAIRS[1])  # conv2 writes 64 channels that conv3 reads, of 56 x 56
    assert (together.macs == apart.macs).all()
    assert together.launches.sum() == apart.launches.sum() - 1
    assert together.moved_bytes.sum() == apart.moved_bytes.sum() - 2 * 64 * 56 * 56
