"""Trials per hour of one worker and of two: prints a table. The machine must have nothing else to do.

    python -m benchmarks.workers [CONFIG] [--trials 16] [--rounds 3]

Searches with one worker of one thread, one of all cores, and as many workers as cores, in rotation; the same
policies each time (sampler "random", one seed; no latency is measured). Counted is from the first trial's
start to the last one's end: neither the preparation nor the start of processes. The best round of each.
"""

import argparse
import os
import tempfile
from datetime import datetime
from pathlib import Path

import leanfront.search.study.run_search
from leanfront.search.config import load_config
from leanfront.search.study.run_search import run_search
from leanfront.search.study.threads import cores


def trials_per_hour(config: Path, trials: int, threads: list[int], folder: Path) -> float:
    """Of one search with a worker for each number of threads."""
    leanfront.search.study.run_search.threads_of_workers = lambda workers: threads
    overrides = ["search.sampler=random", "hardware.profile=toy", f"search.trials={trials}"]
    run, _ = run_search(load_config(config, [*overrides, f"search.workers={len(threads)}"]), config, folder)
    rows = [row for row in run.trials() if row.state == "complete"]
    began = min(datetime.fromisoformat(row.started) for row in rows)
    ended = max(datetime.fromisoformat(row.finished) for row in rows)
    return 3600 * len(rows) / (ended - began).total_seconds()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path, nargs="?", default=Path("examples/digits/search.toml"))
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    count = cores()
    kinds = {"1 worker, 1 thread": [1], f"1 worker, {count} threads": [count]}
    kinds[f"{count} workers, 1 thread each"] = [1] * count
    best = dict.fromkeys(kinds, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for kind, threads in kinds.items():
                found = trials_per_hour(
                    given.config, given.trials, threads, Path(folder) / f"{number} {kind}"
                )
                best[kind] = max(best[kind], found)
                load = os.getloadavg()[0]
                print(f"-- round {number}: {kind}: {found:.0f} trials/h, load {load:.1f}", flush=True)
    slowest = best["1 worker, 1 thread"]
    for kind, found in best.items():
        print(f"| {kind} | {found:.0f} | {found / slowest:.2f}x |")


if __name__ == "__main__":
    main()
