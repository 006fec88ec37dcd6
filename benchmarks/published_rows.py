"""Published measurements of processors, and a fit of roofline numbers to them."""

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import Roofline, load_profile
from leanfront.latency_models.layer_table import read_layer_table
from leanfront.latency_models.roofline.model import Times, times
from leanfront.latency_models.roofline.work import Work, work_of

FOLDER = Path(__file__).parent / "published"
BITS = {"fp32": 32, "fp16": 16, "int8": 8}


@dataclass(frozen=True)
class Row:
    """One published measurement of a batch-1 inference. device: the name of a profile. network: a layer
    table in published/networks. latency_ms: the median, or the fastest where the machine was not at rest;
    mean_ms: the mean, which energy_mj belongs to."""

    device: str
    network: str
    precision: str
    latency_ms: float
    mean_ms: float | None
    energy_mj: float | None
    source: str
    software: str = ""

    @property
    def queued(self) -> bool:
        """Whether a GPU was handed kernel by kernel, instead of all of them as one graph."""
        return "torch2trt" in self.software

    @property
    def family(self) -> str:
        """The network without width and resolution."""
        return self.network.split("_w")[0].rsplit("_", 1)[0].rstrip("0123456789-") or self.network


def shared_folder() -> Path:
    """Where compare-only measurements are: $LEANFRONT_PUBLISHED, else ../shared/hardware."""
    named = os.environ.get("LEANFRONT_PUBLISHED")
    return Path(named) if named else Path(__file__).parents[2] / "shared" / "hardware"


@cache
def read_rows(file: str) -> tuple[Row, ...]:
    """The rows of one CSV file in published/."""
    with (FOLDER / file).open(newline="", encoding="utf-8") as lines:
        return tuple(
            Row(
                device=row["device"],
                network=row["network"],
                precision=row["precision"],
                latency_ms=float(row["latency_ms"]),
                mean_ms=float(row["mean_ms"]) if row.get("mean_ms") else None,
                energy_mj=float(row["energy_mj"]) if row.get("energy_mj") else None,
                source=row["source"],
                software=row.get("software") or "",
            )
            for row in csv.DictReader(lines)
        )


@cache
def network(name: str) -> Network:
    """A layer table of published/networks."""
    return read_layer_table(FOLDER / "networks" / f"{name}.csv")


TILING = ("multiprocessor_count", "tile_position_count", "tile_channel_count")


def work(row: Row, roofline: Roofline) -> Work:
    """What a row's network asks of its device in its precision, in tiles of this size."""
    tiling = tuple(getattr(roofline, name) for name in TILING)
    return _work(row.device, row.network, BITS[row.precision], tiling)


@cache
def _work(device: str, name: str, bits: int, tiling: tuple[int | None, ...]) -> Work:
    roofline = roofline_of(device).model_copy(update=dict(zip(TILING, tiling, strict=True)))
    policy = Policy.uniform(network(name), LayerPolicy(0.0, bits, bits))
    return work_of(PolicyBatch.one(network(name), policy), load_profile(device), roofline)


def roofline_of(device: str) -> Roofline:
    """The [roofline] numbers that a profile ships with."""
    roofline = load_profile(device).roofline
    assert roofline is not None
    return roofline


def predicted(row: Row, roofline: Roofline) -> Times:
    """What the model says of a row's network with these numbers."""
    return times(work(row, roofline), roofline)


def predicted_ms(rows: Iterable[Row], roofline: Callable[[Row], Roofline]) -> NDArray[np.float64]:
    """Latencies of rows; ``roofline`` says which numbers a row's device has."""
    return np.array([float(predicted(row, roofline(row)).latency_ms.sum()) for row in rows])


def mape(predictions: NDArray[np.float64], truths: Sequence[float]) -> float:
    """Mean of the relative errors, as a fraction."""
    return float(np.abs(predictions / np.array(truths) - 1.0).mean())


def with_numbers(roofline: Roofline, numbers: Mapping[str, float]) -> Roofline:
    """The roofline with some numbers replaced: "overhead_ms", or "efficiency.8" in a table by bits."""
    update: dict[str, object] = {}
    for path, value in numbers.items():
        name, _, bits = path.partition(".")
        if bits:
            table = update.setdefault(name, dict(getattr(roofline, name)))
            assert isinstance(table, dict)
            table[bits] = float(value)
        else:
            update[name] = float(value)
    return roofline.model_copy(update=update)


def fit(
    rows: Sequence[Row],
    start: Mapping[str, float],
    roofline: Callable[[Row, Mapping[str, float]], Roofline],
    weight: Callable[[Row], float] = lambda row: 1.0,
    trust: float = 0.03,
) -> dict[str, float]:
    """The positive numbers that predict the rows best.

    Least squares of log(predicted / measured), large errors weighing less (soft l1 beyond 10 %), with a weak
    pull (``trust`` per factor e) towards ``start``, so that a number that no row tells about stays there.

    Args:
        rows: measurements to fit.
        start: name -> first guess.
        roofline: the numbers of a row's device when the parameters have these values.
        weight: of a row.
    """
    names = list(start)
    first = np.log([start[name] for name in names])
    truths = np.log([row.latency_ms for row in rows])
    weights = np.array([weight(row) for row in rows])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        values = dict(zip(names, np.exp(logs), strict=True))
        found = np.log(predicted_ms(rows, lambda row: roofline(row, values)))
        return np.concatenate([weights * (found - truths), trust * (logs - first)])

    most = [0.0 if "efficiency" in name else np.inf for name in names]  # a share is at most 1
    solved = least_squares(
        residuals, first, bounds=(-np.inf, most), loss="soft_l1", f_scale=0.1, xtol=1e-6, ftol=1e-6
    )
    return dict(zip(names, map(float, np.exp(solved.x)), strict=True))
