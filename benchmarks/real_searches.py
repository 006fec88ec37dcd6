"""Whole searches of a real network with one sampler after the other: trials and hours against hypervolume.

Called by ``python -m benchmarks.search_efficiency real``. Every search is what ``leanfront search`` runs, of
one configuration: space, splits, short fine-tune and reference point are the same for all. Counted are trials
that were trained to the end (heirs and networks that need no training are part of what was found and of the
hours), and hours since the search began: baseline, sensitivities, untrained scores and the sampler's own
thinking included (the latency table is there already: all need it alike).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.search.config import load_config
from leanfront.search.run.hypervolume import hypervolume
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.study.run_search import run_search
from leanfront.search.trial.promotion import UNTRAINED

TRIALS = {"cascade": 66, "tpe": 300, "nsga2": 300}
AT = (5, 10, 15, 20, 30, 60, 100, 200, 300)
VIEWS = {
    "accuracy, latency and size": ("latency_ms", "size_bytes"),
    "accuracy and latency": ("latency_ms",),
    "accuracy and size": ("size_bytes",),
}


@dataclass(frozen=True)
class Curve:
    """What one search had found. hours, volume: after each trained trial, (n,)."""

    sampler: str
    seed: int
    hours: NDArray[np.float64]
    volume: NDArray[np.float64]


def run_of(config: Path, folder: Path, sampler: str, seed: int, images: int) -> RunFolder:
    """The run of one search, made now or gone on with if it has not all its trials."""
    overrides = [
        f"search.sampler={sampler}",
        f"search.seed={seed}",
        f"search.trials={TRIALS.get(sampler, 300)}",
        "search.workers=2",
        f"finetune.images={images}",
    ]
    run, ended = run_search(load_config(config, overrides), config, folder / f"{sampler}-{seed}")
    if ended == "stopped":
        raise SystemExit("stopped; the same command goes on")
    return run


def ended(run: RunFolder) -> list[TrialRow]:
    """The trials that were trained to the end, and their heirs, in the order in which they finished; one that
    lost more accuracy than the configuration allows counts as any other."""
    rows = [
        row for row in run.trials() if row.accuracy is not None and row.state in ("complete", "infeasible")
    ]
    return sorted(rows, key=lambda row: row.finished)


def curve(run: RunFolder, sampler: str, seed: int, costs: Sequence[str]) -> Curve:
    """Hypervolume of accuracy and some costs after each trial that was trained, with the heirs there
    were by then, and the hours that it took."""
    rows, names = ended(run), ("accuracy", *costs)
    values = np.array([[getattr(row, name) for name in names] for row in rows], dtype=float)
    baseline = run.environment()["baseline"]
    trained = [place for place, row in enumerate(rows) if not row.is_heir and row.reason != UNTRAINED]
    volume = [hypervolume(values[: place + 1], names, baseline) for place in trained]
    began = _began(run)
    hours = [
        (datetime.fromisoformat(row.finished) - began).total_seconds() / 3600
        for row in (rows[n] for n in trained)
    ]
    return Curve(sampler, seed, np.array(hours), np.array(volume, dtype=float))


def _began(run: RunFolder) -> datetime:
    """When the search was started, as its log says; earlier by the sensitivity pass if the cache had it."""
    lines = run.log_file.read_text().splitlines()
    stamps = [line[:19] for line in lines if "search started" in line]
    passed = run.environment().get("sensitivities")
    cached = passed is not None and not any("sensitivities measured" in line for line in lines)
    return datetime.fromisoformat(stamps[0]) - timedelta(seconds=passed["seconds"] if cached else 0.0)


def tables(runs: dict[tuple[str, int], RunFolder]) -> list[str]:
    """Lines that say what each search had after how many trials, and what cascade needs to be level."""
    lines = []
    for view, costs in VIEWS.items():
        curves = [curve(run, sampler, seed, costs) for (sampler, seed), run in runs.items()]
        lines.append(f"hypervolume of {view}, after so many trained trials")
        lines.append(f"{'sampler':>8} {'seed':>4} " + " ".join(f"{n:>7}" for n in AT) + "    hours in all")
        for one in curves:
            found = [f"{one.volume[n - 1]:7.3f}" if n <= len(one.volume) else "      -" for n in AT]
            lines.append(f"{one.sampler:>8} {one.seed:>4} {' '.join(found)} {one.hours[-1]:14.2f}")
        lines += _level(curves)
    return lines


def _level(curves: Sequence[Curve]) -> list[str]:
    """When cascade had what each other search had at its end."""
    lines = []
    for one in (c for c in curves if c.sampler == "cascade"):
        for other in (c for c in curves if c.sampler != "cascade"):
            level = np.flatnonzero(one.volume >= other.volume[-1])
            what = f"cascade {one.seed} has what {other.sampler} {other.seed} ends with"
            if not len(level):
                lines.append(f"{what}: never ({one.volume[-1] / other.volume[-1]:.3f} of it)")
                continue
            n = int(level[0])
            lines.append(
                f"{what} after {n + 1} trials of {len(other.volume)} and {one.hours[n]:.2f} of"
                f" {other.hours[-1]:.2f} hours ({one.hours[n] / other.hours[-1]:.3f})"
            )
    return lines


def kept(runs: dict[tuple[str, int], RunFolder], path: Path, about: dict[str, Any]) -> None:
    """Write what the tables are made of: a line about the searches, then one a trial that ended."""
    with path.open("w") as file:
        file.write(json.dumps(about) + "\n")
        for (sampler, seed), run in runs.items():
            began = _began(run)
            for row in ended(run):
                hours = (datetime.fromisoformat(row.finished) - began).total_seconds() / 3600
                line = {"sampler": sampler, "seed": seed, "hours": round(hours, 4), "accuracy": row.accuracy}
                line |= {"latency_ms": row.latency_ms, "size_bytes": row.size_bytes}
                line |= {"expected_accuracy": row.expected_accuracy, "weights_of": row.weights_of}
                line |= {"untrained": row.reason == UNTRAINED}
                file.write(json.dumps(line) + "\n")
