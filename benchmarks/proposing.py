"""Milliseconds that cascade needs for a proposal, after so many finished trials.

    python -m benchmarks.proposing [--trials 500 5000] [--proposals 20]

The trials are policies of benchmarks/exhaustive with their scores there: all untrained, every fifth with one
that stands for a short fine-tune, every tenth complete. A sampler's first proposal reads them all and looks
for hyperparameters; it is printed by itself.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.search_efficiency import Exhaustive
from leanfront.search.samplers.cascade.sampler import CascadeSampler

OBJECTIVES = ("accuracy", "latency_ms", "size_bytes")
IMAGES = (0, 1000, 2000)
SHORT, WHOLE = 5, 10
"""One trial of so many was trained shortly, and one of so many to the end."""
ARCHIVE = 20_000


def study_of(table: Exhaustive, count: int) -> optuna.Study:
    """A study with ``count`` finished trials, and a sampler that has not read them."""
    knowledge, _ = table.knowledge(IMAGES)
    sampler = CascadeSampler(replace(knowledge, archive=knowledge.cheap_front(ARCHIVE)))
    directions = ["maximize" if name == "accuracy" else "minimize" for name in OBJECTIVES]
    study = optuna.create_study(directions=directions, sampler=sampler)
    nobody = optuna.trial.create_trial(state=TrialState.FAIL)
    space = sampler.infer_relative_search_space(study, nobody)
    chosen = np.random.default_rng(0).choice(len(table.accuracy), count, replace=False)
    for place, column in enumerate(chosen):
        accuracy, costs = float(table.accuracy[column]), table.costs[column].tolist()
        reached = 2 if place % WHOLE == 0 else 1 if place % SHORT == 0 else 0
        divergence = float(table.divergence[column])
        rungs = [
            {"rung": rung, "images": IMAGES[rung], "divergence": divergence, "accuracy": accuracy}
            for rung in range(reached + 1)
        ]
        result = {"rungs": rungs, **dict(zip(OBJECTIVES[1:], costs, strict=True))}
        params = table.encoding.params(table.codes[:, column])
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={name: space[name] for name in params},
                user_attrs={"result": result},
                state=TrialState.COMPLETE if reached == 2 else TrialState.PRUNED,
                values=[accuracy, *costs] if reached == 2 else None,
            )
        )
    return study


def milliseconds(table: Exhaustive, count: int, proposals: int) -> list[float]:
    """Of each of some proposals after ``count`` trials, the first one included."""
    study = study_of(table, count)
    found = []
    for _ in range(proposals + 1):
        began = time.perf_counter()
        trial = study.ask()
        table.loaded.space.suggest(trial)
        found.append(1000 * (time.perf_counter() - began))
        study.tell(trial, state=TrialState.FAIL)
    return found


def report(counts: Sequence[int], proposals: int) -> None:
    """Print a line for each number of trials."""
    table = Exhaustive.read(OBJECTIVES)
    print(f"{'trials':>6} {'first':>7} {'median':>7} {'longest':>7}  ms")
    for count in counts:
        first, *others = milliseconds(table, count, proposals)
        print(f"{count:>6} {first:7.0f} {np.median(others):7.1f} {max(others):7.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--proposals", type=int, default=20)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report(given.trials, given.proposals)
