"""CPUs and GPUs: predicted beside published. ``sections`` are their part of docs/validation.md.

Every figure is of rows that the numbers behind it were not fitted to.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from scipy.stats import spearmanr

from benchmarks.calibrate_roofline import (
    ARM_OWN,
    JETSON,
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
    jetson_roofline,
    jetson_rows,
    x86_roofline,
)
from benchmarks.published_rows import (
    FOLDER,
    Row,
    fit,
    mape,
    network,
    predicted,
    predicted_ms,
    read_rows,
    roofline_of,
    shared_folder,
    with_numbers,
)
from benchmarks.validation_section import Cell, Points, Section
from compression.policy import LayerPolicy, Policy
from hw_profiles import Roofline, load_profile
from latency_models.roofline import RooflineModel, sparse_gain

Predicted = tuple[Row, float, float]
"""A row, its predicted latency in ms, and its predicted energy in mJ (0: none)."""


def sections() -> list[Section]:
    """Raspberry Pi, other Arm boards, Jetson, x86, sparsity, and what the terms of the model are worth."""
    widths = pi_widths_left_out()
    orin = orin_left_out(lambda row: (row.network, row.precision))
    networks = orin_left_out(lambda row: row.network)
    return [
        section(
            "raspberry-pi-4",
            "Raspberry Pi 4: widths of MobileNet left out",
            "TensorFlow Lite (ruy, 4 threads); median latencies of MLPerf Inference v2.0 (Krai). The five"
            " numbers"
            " of the board (arithmetic at 32 and 8 bits, bandwidth, time per value and per kernel) are"
            " fitted to"
            " the MobileNets of all other widths, those shared by Arm boards to the two boards of the next"
            " section"
            " but one.",
            widths,
        ),
        energy_section(widths),
        section(
            "arm-families",
            "Arm boards: families of networks left out",
            "Odroid N2+ and Firefly-RK3399, TensorFlow Lite (ruy). A board's five numbers are fitted to its"
            " MobileNets v1 and v2 alone, the shared ones to the other board. So ResNet-50 (plain 3x3"
            " convolutions), EfficientNet-lite and MobileNet v3 (minimalistic: without squeeze-and-excite and"
            " hard-swish) are of families that the board was never calibrated on. The Firefly board"
            " throttled:"
            " its fastest runs are compared. The precision of ResNet-50 is not stated and taken as float32.",
            list(families_left_out()),
        ),
        section(
            "orin-networks",
            "Jetson Orin: a network at a precision left out",
            "TensorRT on the GPU, one image at a time: YOLO11 and YOLOv8 (ultralytics and two others),"
            " RetinaNet and"
            " SSD-MobileNet (MLPerf Inference, NVIDIA and Connect Tech). Seven numbers for the whole family;"
            " each"
            " network and precision is predicted by numbers fitted to all others, on all boards. With all"
            f" precisions of a network left out at once the MAPE is {_mape(networks):.1%}.",
            orin,
        ),
        section(
            "orin-boards",
            "Jetson Orin: a board left out",
            "The same rows; each board is predicted from its data sheet by numbers fitted to the other"
            " three.",
            orin_left_out(lambda row: row.device),
        ),
        section(
            "xavier",
            "Jetson Xavier: a board left out",
            "int8 rows of MLPerf Inference (NVIDIA). Efficiency at 8 bits and time per kernel are fitted to"
            " the other"
            " board, the rest is Orin's. One row cannot tell efficiency from overhead: predicting AGX Xavier"
            " from"
            " the single row of Xavier NX is off as far as it is there. The software differs, too (JetPack"
            " 4.3"
            " and 4.6).",
            list(xavier_left_out()),
        ),
        section(
            "x86",
            "x86 with AVX-512 VNNI: networks left out",
            "Own measurements: layer tables with random weights, onnxruntime 1.31.1 on one thread of a Xeon"
            " with"
            " AVX-512 VNNI and AMX, the fastest of two sessions. Each network is predicted by numbers fitted"
            " to the"
            " others.",
            list(x86_left_out()),
        ),
        *sparsity_sections(),
        terms_section(),
    ]


def section(name: str, title: str, text: str, found: Sequence[Predicted]) -> Section:
    """A table of rows with the figures over all and per precision and device above it, and a plot."""
    rows: list[dict[str, Cell]] = [
        {
            "device": row.device,
            "network": row.network,
            "precision": row.precision,
            "predicted": float(f"{ms:.4g}"),
            "published": row.latency_ms,
            "error": f"{ms / row.latency_ms - 1:+.1%}",
        }
        for row, ms, _ in found
    ]
    lines = [_figures("all", found)]
    for key in ("device", "precision"):
        values = list(dict.fromkeys(getattr(row, key) for row, _, _ in found))
        if len(values) > 1:
            lines += [_figures(v, [f for f in found if getattr(f[0], key) == v]) for v in values]
    series: dict[str, list[tuple[float, float]]] = {}
    for row, ms, _ in found:
        series.setdefault(f"{row.device}, {row.precision}", []).append((row.latency_ms, ms))
    points = [Points(label, *zip(*pairs, strict=True)) for label, pairs in series.items()]
    text = f"{text} Latencies in ms.\n\n" + "\n".join(f"- {line}" for line in lines)
    return Section(title, text, rows, points if len(found) > 8 else (), "ms", name)


def _figures(label: str, found: Sequence[Predicted]) -> str:
    errors = [abs(ms / row.latency_ms - 1) for row, ms, _ in found]
    text = f"{label}: n = {len(found)}, MAPE {_mape(found):.1%}, largest error {max(errors):.1%}"
    if len(found) > 3:
        rank = spearmanr([ms for _, ms, _ in found], [row.latency_ms for row, _, _ in found]).statistic
        text += f", Spearman {rank:.3f}"
    return text


def _mape(found: Sequence[Predicted]) -> float:
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


def energy_section(found: Sequence[Predicted]) -> Section:
    """Energies of the same rows."""
    rows: list[dict[str, Cell]] = []
    errors = []
    for row, _, energy_mj in found:
        if row.energy_mj:
            errors.append(energy_mj / row.energy_mj - 1)
            rows.append(
                {
                    "network": row.network,
                    "precision": row.precision,
                    "predicted": float(f"{energy_mj:.4g}"),
                    "published": row.energy_mj,
                    "error": f"{errors[-1]:+.1%}",
                }
            )
    text = (
        "Energy from the wall per inference, the same rows and widths left out; the two powers (computing,"
        " waiting"
        " for memory) are fitted to the other widths. Energies in mJ.\n\n"
        f"- all: n = {len(errors)}, MAPE {sum(map(abs, errors)) / len(errors):.1%}, largest error"
        f" {max(map(abs, errors)):.1%}"
    )
    return Section("Raspberry Pi 4: energy, widths of MobileNet left out", text, rows)


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
        found += _predictions(tested, lambda row: jetson_roofline(row.device, family))  # noqa: B023
    return found


def xavier_left_out() -> Iterator[Predicted]:
    """Xavier rows, each board predicted by the other."""
    orin = fit_orin(jetson_rows(*ORIN))
    for device in XAVIER:
        others = [name for name in XAVIER if name != device]
        family = fit_xavier(jetson_rows(*others), orin)
        yield from _predictions(jetson_rows(device), lambda row: jetson_roofline(row.device, family))  # noqa: B023


def x86_left_out() -> Iterator[Predicted]:
    """x86 rows, each network predicted by the others."""
    rows = read_rows("x86_cpu.csv")
    for name in dict.fromkeys(row.network for row in rows):
        numbers = fit_x86([row for row in rows if row.network != name])
        tested = [row for row in rows if row.network == name]
        yield from _predictions(tested, lambda row: x86_roofline(numbers))  # noqa: B023


def sparsity_sections() -> list[Section]:
    """Gains of 2:4 sparsity, and of unstructured sparsity where the compare-only file is there."""
    found = [two_four_section()]
    file = shared_folder() / "cpu_unstructured_sparsity.csv"
    if file.exists():
        found.append(unstructured_section(_speeds(file)))
    return found


TWO_FOUR = {"RetinaNet-ResNeXt50": "retinanet-resnext50_800", "SSD-ResNet34": "ssd-resnet34_1200"}
"""Networks with published gains whose layers are known."""


def two_four_gain(name: str) -> float:
    """How much faster a whole int8 network is on the GPU of AGX Orin with 2:4 sparse weights."""
    model = RooflineModel(load_profile("jetson-agx-orin"))
    dense, sparse = (
        model.cost(network(name), Policy.uniform(network(name), LayerPolicy(sparsity, 8, 8, pattern)))
        for sparsity, pattern in ((0.0, "channel"), (0.5, "2:4"))
    )
    return dense.latency_ms / sparse.latency_ms


def two_four_section() -> Section:
    """Gains of whole networks."""
    with (FOLDER / "two_four_gains.csv").open(newline="", encoding="utf-8") as lines:
        published = list(csv.DictReader(lines))
    gains = [float(row["gain"]) for row in published]
    rows: list[dict[str, Cell]] = []
    for label, name in TWO_FOUR.items():
        here = [float(row["gain"]) for row in published if row["network"] == label]
        rows.append(
            {
                "network": name,
                "predicted": round(two_four_gain(name), 2),
                "published": f"{min(here):.2f} to {max(here):.2f}, median {median(here):.2f}",
            }
        )
    return Section(
        "2:4 sparsity on Orin",
        "Frames per second with 2:4 sparse weights over dense, int8, both accelerators (DLA) of an AGX Orin"
        " in"
        " four power modes (NVIDIA Deep-Learning-Accelerator-SW): 4 networks, gains from"
        f" {min(gains):.2f} to {max(gains):.2f}. Of a layer the model takes the largest; whole networks gain"
        " less, because not all of their time is in layers. Nothing was measured on the GPU, whose sparse"
        " units are of the same kind.",
        rows,
    )


def _speeds(file: Path) -> dict[float, float]:
    """Sparsity -> median over layers of the time at it over the dense time."""
    dense: dict[tuple[str, str], float] = {}
    shares: dict[float, list[float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["sparsity"] and not row["layer"].startswith("__")]
    for row in rows:
        key = (row["table"], row["layer"])
        if float(row["sparsity"]) == 0.0:
            dense[key] = float(row["latency_s"])
        elif key in dense:
            shares.setdefault(float(row["sparsity"]), []).append(float(row["latency_s"]) / dense[key])
    return {sparsity: median(found) for sparsity, found in sorted(shares.items())}


def unstructured_section(measured: dict[float, float]) -> Section:
    """Time over dense by sparsity, beside the model's curve; only medians, the file is for comparison."""
    roofline = roofline_of("x86-avx512-vnni")
    wanted = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    rows: list[dict[str, Cell]] = []
    for sparsity in wanted:
        nearest = min(measured, key=lambda s: abs(s - sparsity))
        model = 1.0 / sparse_gain(LayerPolicy(nearest, 32, 32, "unstructured"), roofline)
        rows.append(
            {
                "sparsity": f"{nearest:.2f}",
                "predicted": round(model, 2),
                "published": round(measured[nearest], 2),
                "error": f"{model / measured[nearest] - 1:+.1%}",
            }
        )
    return Section(
        "Unstructured sparsity on x86",
        "Time of a layer over that of the dense layer, float32, DeepSparse: medians over the layers of"
        " ResNet-18 and"
        " ResNet-34 (IST-DASLab/spdy). The model's two numbers are from other figures, those of whole"
        " ResNet-50"
        " networks: as fast as dense at 55 %, 0.36 of the time at 90 %.",
        rows,
    )


def terms_section() -> Section:
    """How much worse the fit gets when a term of the model is left out."""
    shared, _ = arm_family()
    rows: list[dict[str, Cell]] = []
    truths: Callable[[Sequence[Row]], list[float]] = lambda tested: [row.latency_ms for row in tested]  # noqa: E731
    without_arm: dict[str, dict[str, float]] = {
        "nothing": {},
        "time per kernel": {"overhead_ms": 0.0},
        "time per value": {"value_ns": 0.0},
        "the image's conversion": {"image_value_ns.32": 0.0, "image_value_ns.8": 0.0},
        "windows in memory": {"im2col_passes": 0.0},
        "slower depthwise layers": {"depthwise_efficiency.32": 1.0, "depthwise_efficiency.8": 1.0},
        "arithmetic and traffic in turns": {"overlap": 1.0},
    }
    tested = arm_rows(*REFERENCES, PI)
    for name, numbers in without_arm.items():
        errors = []
        for device in (*REFERENCES, PI):
            here = [row for row in tested if row.device == device]
            own = fit(
                here,
                ARM_OWN,
                lambda row, v: with_numbers(arm_roofline(row.device, shared, v), numbers),  # noqa: B023
            )
            roofline = with_numbers(arm_roofline(device, shared, own), numbers)
            errors.append(mape(predicted_ms(here, lambda row: roofline), truths(here)))  # noqa: B023
        rows.append(
            {
                "left out": name,
                **{d: f"{e:.1%}" for d, e in zip((*REFERENCES, PI), errors, strict=True)},
                "Jetson Orin": "",
            }
        )
    orin = jetson_rows(*ORIN)
    without_orin: dict[str, dict[str, float]] = {
        "nothing": {},
        "time per kernel": {"overhead_ms": 0.0},
        "the image's conversion": {f"image_value_ns.{bits}": 0.0 for bits in (32, 16, 8)},
        "tensors gathered between layers": {"gathered_passes": 0.0},
        "arithmetic beside traffic": {"overlap": 0.0},
    }
    for name, numbers in without_orin.items():
        family = fit(orin, JETSON, lambda row, v: with_numbers(jetson_roofline(row.device, v), numbers))  # noqa: B023
        found = predicted_ms(orin, lambda row: with_numbers(jetson_roofline(row.device, family), numbers))  # noqa: B023
        same = next((row for row in rows if row["left out"] == name), None)
        if same is None:
            same = {"left out": name, **dict.fromkeys((*REFERENCES, PI), "")}
            rows.append(same)
        same["Jetson Orin"] = f"{mape(found, truths(orin)):.1%}"
    return Section(
        "What the terms of the roofline are worth",
        "MAPE on all rows of a board after its own numbers were fitted anew with a term left out of the"
        " model (no"
        " row left out here).",
        rows,
    )
