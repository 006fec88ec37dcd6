"""Gains of sparse weights, predicted beside published. ``sections`` are their part of docs/validation.md."""

import csv
from pathlib import Path
from statistics import median

from benchmarks.published_rows import FOLDER, network, roofline_of, shared_folder
from benchmarks.validation_section import Cell, Section
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.roofline.model import RooflineModel, sparse_gain

TWO_FOUR = {"RetinaNet-ResNeXt50": "retinanet-resnext50_800", "SSD-ResNet34": "ssd-resnet34_1200"}
"""Networks with published gains whose layers are known."""


def sections() -> list[Section]:
    """Gains of 2:4 sparsity, and of unstructured sparsity where the compare-only file is there."""
    found = [two_four_section()]
    file = shared_folder() / "cpu_unstructured_sparsity.csv"
    if file.exists():
        found.append(unstructured_section(_speeds(file)))
    return found


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
        f" {min(gains):.2f} to {max(gains):.2f}. Of a layer the model takes the median of all; whole networks"
        " gain less, because not all of their time is arithmetic. Nothing was measured on the GPU, whose"
        " sparse units are of the same kind.",
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
