"""How many trials each sampler needs. Prints the tables of docs/search.md.

    python -m benchmarks.search_efficiency exhaustive [--seeds 10] [--samplers cascade tpe nsga2 gp random]
    python -m benchmarks.search_efficiency real [--seeds 2] [--samplers cascade tpe nsga2] [--runs DIR]

exhaustive: on the table of benchmarks/exhaustive (every policy of a small real network, scored once). How
much of the true hypervolume is found after so many evaluations, and after how many 99 % of it are. What
cascade's sensitivity pass needs counts as evaluations, too. Stock samplers are Optuna's, as search.sampler
makes them; a policy that they propose again costs them nothing.

real: searches of examples/cifar10_vgg11 on this machine, two workers each, one after the other: 66 trials of
cascade, 300 of each other (benchmarks/real_searches.py says what is counted). It takes hours; the
same command goes on where it was stopped. What the tables are made of is kept under benchmarks/results.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray

from benchmarks.exhaustive.make_table import HERE, TABLE
from benchmarks.real_searches import TRIALS, kept, run_of, tables
from leanfront.latency_models.registry import model_of
from leanfront.search.config import load_config
from leanfront.search.run.hypervolume import hypervolume
from leanfront.search.samplers import sampler_named
from leanfront.search.samplers.cascade.encoding import Codes, Encoding, keys
from leanfront.search.samplers.cascade.gaussian import Array
from leanfront.search.samplers.cascade.sampler import CascadeSampler
from leanfront.search.samplers.cascade.warm_start import Knowledge
from leanfront.search.study.prepare import Loaded, load

BUDGETS = (0.001, 0.0025, 0.005, 0.01, 0.02)
ASKS = 20
"""For each evaluation that a sampler may have; a policy that it proposes again is none."""
LESS = {"gp": (105, ASKS), "tpe": (840, 3)}
"""Evaluations and asks for each of samplers whose proposals take so long that more would be hours."""
WANTED = 0.99
ALL = 0.99999
RESULTS = Path(__file__).parent / "results"
REAL = Path("examples/cifar10_vgg11/search.toml")


@dataclass(frozen=True)
class Exhaustive:
    """A space whose policies are all scored. codes: (decisions, n); accuracy, divergence: (n,)."""

    loaded: Loaded
    codes: Codes
    accuracy: Array
    divergence: Array
    objectives: tuple[str, ...]

    @staticmethod
    def read(objectives: Sequence[str]) -> "Exhaustive":
        """From the file that make_table.py wrote."""
        stored = np.load(TABLE)
        loaded = load(load_config(HERE))
        codes = stored["codes"].astype(np.int64)
        accuracy = stored["correct"] / float(stored["images"])
        return Exhaustive(loaded, codes, accuracy, stored["divergence"].astype(float), tuple(objectives))

    @cached_property
    def encoding(self) -> Encoding:
        """Of the space."""
        return Encoding(self.loaded.space)

    @cached_property
    def row(self) -> dict[bytes, int]:
        """Key of a policy -> its column."""
        return {key: index for index, key in enumerate(keys(self.codes))}

    @cached_property
    def uncompressed(self) -> int:
        """The column of the policy that cuts nothing and has the widest bits."""
        return self.row[keys(self.encoding.uncompressed()[:, None])[0]]

    @cached_property
    def costs(self) -> Array:
        """(n, k): of the objectives."""
        found = model_of(self.loaded.profile).costs(self.encoding.batch(self.codes))
        return np.stack([getattr(found, name) for name in self.objectives if name != "accuracy"], axis=1)

    def hypervolume(self, columns: Sequence[int] | NDArray[np.int64]) -> float:
        """Of some policies."""
        chosen = np.asarray(columns, dtype=np.int64)
        costs = [name for name in self.objectives if name != "accuracy"]
        uncompressed = {"accuracy": float(self.accuracy[self.uncompressed])}
        uncompressed |= dict(zip(costs, self.costs[self.uncompressed].tolist(), strict=True))
        values = np.hstack([self.accuracy[chosen, None], self.costs[chosen]])
        found = hypervolume(values, ("accuracy", *costs), uncompressed)
        assert found is not None
        return found

    @cached_property
    def whole(self) -> float:
        """The hypervolume of all policies."""
        return self.hypervolume(np.arange(len(self.accuracy)))

    def sensitivities(self) -> tuple[dict[str, tuple[float, ...]], list[int]]:
        """Divergence of each value of each decision alone, and the columns that were looked up for it."""
        base = self.encoding.uncompressed()
        divergences, columns = {}, [self.uncompressed]
        for index, (name, size) in enumerate(zip(self.encoding.names, self.encoding.sizes, strict=True)):
            alone = np.repeat(base[:, None], size, axis=1)
            alone[index] = np.arange(size)
            found = [self.row[key] for key in keys(self.encoding.canonical(alone))]
            divergences[name] = tuple(float(max(self.divergence[column], 0.0)) for column in found)
            columns += found
        return divergences, list(dict.fromkeys(columns))

    def knowledge(self, images: tuple[int, ...]) -> tuple[Knowledge, list[int]]:
        """What cascade knows before its first trial, and the columns that were looked up for it. ``images``:
        trained on at each rung."""
        divergences, columns = self.sensitivities()
        costs = [name for name in self.objectives if name != "accuracy"]
        uncompressed = dict(zip(costs, self.costs[self.uncompressed].tolist(), strict=True))
        known = Knowledge(
            space=self.loaded.space,
            cost_model=model_of(self.loaded.profile),
            objectives=self.objectives,
            limits=self.loaded.config.limits,
            baseline={"accuracy": float(self.accuracy[self.uncompressed]), **uncompressed},
            divergences=divergences,
            images=images,
            start=0,
        )
        return known, columns


def searched(
    table: Exhaustive, name: str, seed: int, evaluations: int, asks: int = ASKS
) -> tuple[list[int], float]:
    """Columns in the order in which a sampler came to them, each once; seconds per proposal."""
    order: list[int] = []
    if name == "cascade":
        knowledge, order = table.knowledge(images=(0,))
        made: optuna.samplers.BaseSampler = CascadeSampler(knowledge, seed)
    else:
        made = sampler_named(name).proposer(seed)
    study = optuna.create_study(
        directions=["maximize" if n == "accuracy" else "minimize" for n in table.objectives], sampler=made
    )
    seen = set(order)
    asked, started = 0, time.perf_counter()
    while len(order) < evaluations and asked < asks * evaluations:
        trial = study.ask()
        policy = table.loaded.space.suggest(trial)
        (key,) = keys(table.encoding.of(policy)[:, None])
        column = table.row[key]
        asked += 1
        accuracy, costs = float(table.accuracy[column]), table.costs[column].tolist()
        trial.set_user_attr(
            "result",
            {
                "state": "complete",
                "accuracy": accuracy,
                **dict(zip(table.objectives[1:], costs, strict=True)),
            },
        )
        study.tell(trial, [accuracy, *costs])
        if column not in seen:
            seen.add(column)
            order.append(column)
            if len(order) % 10 == 0 and table.hypervolume(order) >= ALL * table.whole:
                break
    return order, (time.perf_counter() - started) / max(asked, 1)


def exhaustive(objectives: Sequence[str], samplers: Sequence[str], seeds: int) -> None:
    """Print the table of the exhaustive space, and keep what it shows under results/."""
    table = Exhaustive.read(objectives)
    total = len(table.accuracy)
    budgets = [round(share * total) for share in BUDGETS]
    print(f"{total} policies, objectives {', '.join(objectives)}; share of the true hypervolume (median)")
    print(
        f"{'sampler':>8} {'seeds':>5} "
        + " ".join(f"{b:>7}" for b in budgets)
        + f"  {WANTED:.0%} after  ms/ask"
    )
    for name in samplers:
        of_sampler = min(seeds, 3) if name == "gp" else seeds
        shares, needed, seconds = [], [], []
        for seed in range(of_sampler):
            order, each = searched(table, name, seed, *LESS.get(name, (budgets[-1], ASKS)))
            reached = [table.hypervolume(order[:budget]) / table.whole for budget in budgets]
            curve = [
                share if budget <= len(order) or share >= ALL else np.nan
                for budget, share in zip(budgets, reached, strict=True)
            ]
            shares.append(curve)
            needed.append(
                _first(
                    lambda n, order=order: table.hypervolume(order[:n]) >= WANTED * table.whole, len(order)
                )
            )
            seconds.append(each)
            with (RESULTS / "exhaustive.jsonl").open("a") as log:
                log.write(
                    json.dumps(
                        {
                            "objectives": list(objectives),
                            "sampler": name,
                            "seed": seed,
                            "budgets": budgets,
                            "shares": [None if np.isnan(share) else share for share in curve],
                            "needed": needed[-1],
                            "seconds_per_ask": each,
                        }
                    )
                    + "\n"
                )
        median = np.median(np.array(shares), axis=0)
        after = np.median([np.inf if n is None else n for n in needed])
        text = " ".join(f"{share:7.4f}" if np.isfinite(share) else "      -" for share in median)
        print(f"{name:>8} {of_sampler:>5} {text}  {after:9.0f}  {1000 * np.median(seconds):6.1f}", flush=True)


def real(samplers: Sequence[str], seeds: int, folder: Path, images: int) -> None:
    """Run the searches of a real network that are not done yet, and print their tables after each."""
    runs = {}
    for seed in range(seeds):
        for sampler in samplers:
            runs[sampler, seed] = run_of(REAL, folder, sampler, seed, images)
            about = {"config": str(REAL), "images": images, "command": " ".join(sys.argv)}
            kept(runs, RESULTS / "real.jsonl", about)
            print("\n".join(tables(runs)), flush=True)


def _first(true_at: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to ``most`` at which something that stays true is true."""
    if not true_at(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if true_at(middle) else (middle, high)
    return high


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=["exhaustive", "real"])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--samplers", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_efficiency"), help="of real")
    parser.add_argument("--images", type=int, default=2048, help="of the short fine-tune, of real")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    RESULTS.mkdir(exist_ok=True)
    if given.which == "real":
        real(given.samplers or list(TRIALS), given.seeds or 2, given.runs, given.images)
        return
    samplers = given.samplers or ["cascade", "tpe", "nsga2", "random", "gp"]
    for objectives in (
        ("accuracy", "latency_ms"),
        ("accuracy", "size_bytes"),
        ("accuracy", "latency_ms", "size_bytes"),
    ):
        exhaustive(objectives, samplers, given.seeds or 10)


if __name__ == "__main__":
    main()
