"""CPUs and GPUs: predicted beside published. ``sections`` are their part of docs/validation.md.

Every figure but those of ``terms_section`` is of rows that the numbers behind it were not fitted to.
"""

from collections.abc import Callable, Sequence

from scipy.stats import spearmanr

from benchmarks.calibrate_roofline import (
    ARM_OWN,
    JETSON,
    ORIN,
    PI,
    REFERENCES,
    arm_family,
    arm_roofline,
    arm_rows,
    jetson_roofline,
    jetson_rows,
)
from benchmarks.processors_left_out import (
    Predicted,
    families_left_out,
    mean_error,
    never_fitted,
    orin_left_out,
    pi_widths_left_out,
    x86_left_out,
    xavier_left_out,
    xavier_networks_left_out,
)
from benchmarks.published_rows import TILING, Row, fit, mape, predicted_ms, with_numbers
from benchmarks.validation_section import Cell, Points, Section


def sections() -> list[Section]:
    """Raspberry Pi, other Arm boards, Jetson, x86, sparsity, and what the terms of the model are worth."""
    widths = pi_widths_left_out()
    orin = orin_left_out(lambda row: (row.network, row.precision))
    as_a_file = never_fitted(as_submitted=False)
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
            " SSD-MobileNet (MLPerf Inference, NVIDIA and Connect Tech). Seven numbers for the whole family:"
            " three efficiencies (float32, float16, int8), passes of tensors over memory between layers and"
            " where the table lists none, time per kernel, time of a YOLO head. Each network and precision"
            " is predicted by numbers fitted to all others, on all boards. The tile (64 positions x 128"
            " channels) was chosen among the four of sides 64 and 128 by the errors of these rows and of"
            " the next two sections, and so was to split layers of few tiles along the sum; neither is"
            " refitted here. SSD-MobileNet is the one row short enough to tell what a kernel costs. In an"
            " MLPerf engine the input is int8 and on the device; what the YOLO rows need beside their layers"
            " is the same for all sizes and precisions and goes with the bandwidth. It is no cost of the"
            " caller (the YOLOv8n rows of Orin Nano in its Super mode are times of the GPU alone) and so"
            " stands in the profile, at the head.",
            orin,
        ),
        section(
            "",
            "Jetson Orin: a network left out at all precisions",
            "The same rows.",
            orin_left_out(lambda row: row.network),
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
            "int8 rows of MLPerf Inference (NVIDIA), predicted by numbers fitted to all rows of the other"
            " board: the time per kernel, and from AGX Xavier, for which there are more rows, what a byte of"
            " a sum takes at least. The efficiency follows from Orin's (tensor cores half as fast, fed as"
            " fast: half-way between feeding in turns with multiplying and beside it), the rest is Orin's."
            " That it is half-way, and not one of the ends, was chosen by these rows: with the ends, the MAPE"
            " is"
            f" {mean_error(list(xavier_left_out(0.0))):.1%} and {mean_error(list(xavier_left_out(1.0))):.1%}."
            " SSD-ResNet34 and MobileNet v1 ran on JetPack 4.3, the others on 4.6; SSD-MobileNet took"
            " 1.49 ms on the same board with 4.3, 0.98 ms with 4.6, so a MobileNet that comes out too fast"
            " is no surprise.",
            list(xavier_left_out()),
        ),
        section(
            "",
            "Jetson AGX Xavier: a network left out",
            "float16 rows of torch2trt (1000 / throughput: images handed over without a pause; its latencies"
            " have 0.2 to 0.3 ms of Python in them), each network predicted by numbers fitted to all others"
            " of both boards: half precision's efficiency, the time per kernel, what handing kernels over one"
            " by one adds to it (no profile has that: leanfront's files are run as a graph), and what a byte"
            " of a sum takes at least (`sum_byte_ns`): weights are waited for, whatever computes. Without"
            " this no efficiency suits both ResNets (then 4 to 9 % too fast) and VGG (16 to 18 % too slow),"
            " and ResNet-50 in int8 comes out 21 % too fast on this board.",
            list(xavier_networks_left_out()),
        ),
        section(
            "",
            "Jetson: ResNet-50, never fitted",
            "No row of it is in any fit, and of classification networks at 224 pixels only Xavier's fit has"
            " any. int8: MLPerf Inference (NVIDIA, Connect Tech), single stream, one image at a time, medians"
            " of the last round in which a board stood; float16: torch2trt. What NVIDIA submitted has kernels"
            " of its own in the first stage: on Orin one for the whole stage, on Xavier three for pairs of"
            " layers (`benchmarks/mlperf_kernels.py`), and so has the prediction. As TensorRT would run a"
            f" file it is {', '.join(map(_short, as_a_file))}: MAPE {mean_error(as_a_file):.1%}.",
            never_fitted(),
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
    return Section(title, text, rows, points if name and len(found) > 8 else (), "ms", name)


def _short(found: Predicted) -> str:
    row, ms, _ = found
    return f"{ms / row.latency_ms - 1:+.1%} ({row.device})"


def _figures(label: str, found: Sequence[Predicted]) -> str:
    errors = [abs(ms / row.latency_ms - 1) for row, ms, _ in found]
    text = f"{label}: n = {len(found)}, MAPE {mean_error(found):.1%}, largest error {max(errors):.1%}"
    if len(found) > 3:
        rank = spearmanr([ms for _, ms, _ in found], [row.latency_ms for row, _, _ in found]).statistic
        text += f", Spearman {rank:.3f}"
    return text


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
        "whole waves of tiles": dict.fromkeys(TILING, 1.0),
        "passes of layers' tensors": {"tensor_passes": 1.0},
        "a detection head's decoding": {"joined_value_ns": 0.0},
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
