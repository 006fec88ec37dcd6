"""Processor time with ten thousand trials: status, front, report, resuming, one more trial.

    python benchmarks/scale.py [--trials 10000] [--layers 20]

The run is made up: the lines of one real trial of a made-up network, again and again with other numbers.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, LayerCost
from leanfront.search.config import SearchConfig, parse_config
from leanfront.search.run.results_tables import ResultsTables
from leanfront.search.run.run_folder import RunFolder, TrialRow, make_run, registered
from leanfront.search.study.loop import Budget, search_loop
from leanfront.search.study.study import NAME, enqueue_seeds, open_study, recover, tell
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import CandidateTraining, Scorer
from leanfront.search.trial.trial import Problem, Result

START = datetime(2026, 1, 1, 22)
SECONDS = 8
BASELINE = {
    "accuracy": 0.93,
    "accuracy_ci": [0.925, 0.935],
    "latency_ms": 1.0,
    "energy_mj": 10.0,
    "size_bytes": 1_000_000,
    "peak_memory_bytes": 500_000,
}
POLICIES = 100
"""Different policies in a made-up run; their digests are all different."""


class Recorder(BaseJournalBackend):
    """A journal in memory: what Optuna would have written."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The logs from a number on."""
        yield from self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep them as a file would."""
        self.logs.extend(json.loads(json.dumps(logs)))


def chain(layers: int) -> Network:
    """So many 3x3 convolutions, one after the other, and a classifier."""
    nodes = [Node("x", "input", (), (Segment(None, 3),), (32, 32))]
    made = []
    before, channels = "x", 3
    for index in range(layers - 1):
        name, width = f"features.{index}", 32
        shape = LayerShape("conv2d", channels, width, (3, 3), (1, 1), 1, 32, 32)
        made.append(Layer(name, shape, name))
        nodes.append(Node(name, "conv2d", (before,), (Segment(name, width),), (32, 32), layer=name))
        before, channels = name, width
    nodes.append(Node("pool", "global_avgpool", (before,), (Segment(before, channels),), (1, 1)))
    nodes.append(Node("fc", "linear", ("pool",), (Segment(None, 10),), layer="fc"))
    made.append(Layer("fc", LayerShape("linear", channels, 10)))
    return Network(tuple(nodes), tuple(made), ("fc",))


def configuration(sampler: str = "random") -> SearchConfig:
    """One that needs no task: nothing of this is trained."""
    return parse_config(
        {"task": {"file": "/nowhere/task.py"}, "search": {"sampler": sampler, "trials": 10**6}}
    )


def space_of(config: SearchConfig, layers: int) -> Space:
    """The space of the made-up network on the toy part."""
    wanted = config.space
    profile = load_profile("toy")
    return Space(chain(layers), profile, wanted.sparsity, wanted.weight_bits, wanted.activation_bits)


def rows(trials: int, policies: Sequence[str], seed: int = 0) -> list[TrialRow]:
    """Trials that get better: most complete, some over a limit, a few failed, the last one running."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(trials):
        begun = START + timedelta(seconds=SECONDS * number)
        share = float(rng.uniform(0.1, 1.0))
        loss = 0.002 / share + float(rng.exponential(0.03)) * (0.2 + 0.8 * np.exp(-number / 2000))
        accuracy = max(0.1, 0.935 - loss)
        costs = {
            "latency_ms": share * float(rng.uniform(0.9, 1.1)),
            "energy_mj": 10 * share,
            "size_bytes": float(int(1e6 * share * rng.uniform(0.5, 1.0))),
            "peak_memory_bytes": float(int(5e5 * share)),
        }
        kind = rng.random()
        state = "infeasible" if kind < 0.1 else "failed" if kind < 0.12 else "complete"
        trained: dict[str, float] = {}
        if state == "complete":
            trained = {
                "accuracy": accuracy,
                "accuracy_low": accuracy - 0.006,
                "accuracy_high": accuracy + 0.006,
            }
            trained |= {"seconds": float(SECONDS), "seconds_training": 6.0, "seconds_scoring": 1.0}
        reasons = {
            "infeasible": f"latency_ms {share:.4g} is over the limit 0.9",
            "failed": "the loss became nan",
        }
        made.append(
            TrialRow(
                number,
                state,
                reasons.get(state, ""),
                started=begun.isoformat(),
                finished=(begun + timedelta(seconds=SECONDS)).isoformat(),
                worker="worker-machine-1-abcdef",
                policy=policies[number % len(policies)],
                **costs,
                **trained,
            )
        )
    return made


def template(config: SearchConfig, space: Space, policy: Policy) -> tuple[str, str]:
    """The journal's lines of a study before its first trial, and those of one trial of this policy.

    What differs from trial to trial stands there as "@name".
    """
    backend = Recorder()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)
    objectives = list(config.search.objectives)
    directions = ["maximize" if name == "accuracy" else "minimize" for name in objectives]
    drawn = optuna.samplers.PartialFixedSampler(
        space.params_of(policy), optuna.samplers.RandomSampler(seed=0)
    )
    study = optuna.create_study(
        storage=JournalStorage(backend), sampler=drawn, directions=directions, study_name=NAME
    )
    study.set_metric_names(objectives)
    study.set_user_attr("seeded", True)
    before = len(backend.logs)
    trial = study.ask()
    trial.set_user_attr("worker", "worker-machine-1-abcdef")
    space.suggest(trial)
    trial.set_user_attr("policy", json.dumps(policy.to_dict(), separators=(",", ":")))
    trial.set_user_attr("digest", "")
    tell(study, trial, Result("complete", "", dict.fromkeys(objectives, 0.5), {"latency_ms": -0.5}))
    changing = {"trial_id": "@trial", "datetime_start": "@started", "datetime_complete": "@finished"}
    changing |= {"state": "@state", "values": "@values"}
    own = []
    for log in backend.logs[before:]:
        attributes = {
            name: {"digest": "@digest", "result": "@result"}.get(name, value)
            for name, value in log.get("user_attr", {}).items()
        }
        log |= {"user_attr": attributes} if attributes else {}
        own.append(log | {name: place for name, place in changing.items() if name in log})
    return _lines(backend.logs[:before]), _lines(own)


def _lines(logs: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)


def filled(lines: str, row: TrialRow, objectives: Sequence[str]) -> str:
    """The lines of one trial with the numbers of a row."""
    values = {name: value for name, value in asdict(row).items() if value is not None}
    result = {
        name: values[name]
        for name in values
        if name not in ("trial", "policy", "worker", "started", "finished")
    }
    complete = [values[name] for name in objectives] if row.state == "complete" else None
    for name, value in {
        "trial": row.trial,
        "started": f"{row.started}.000000+00:00",
        "finished": f"{row.finished}.000000+00:00",
        "state": {"complete": 1, "infeasible": 2, "failed": 3}[row.state],
        "values": complete,
        "digest": f"{row.trial:016x}",
        "result": result,
    }.items():
        lines = lines.replace(f'"@{name}"', json.dumps(value))
    return lines


def write_run(folder: Path, trials: int, layers: int, sampler: str = "random") -> RunFolder:
    """A run folder with so many trials, as a search leaves it."""
    config = configuration(sampler)
    space = space_of(config, layers)
    run = make_run(folder, config)
    shapes = [
        {"name": layer.name, "shape": str(layer.shape), "group": layer.group}
        for layer in space.network.layers
    ]
    budget = {"deadline": None, "trials": 2 * trials, "workers": 1}
    run.update_environment(baseline=BASELINE, layers=shapes, profile="toy", budget=budget)
    rng = np.random.default_rng(1)
    policies = [space.random(rng) for _ in range(POLICIES)]
    templates = [template(config, space, policy) for policy in policies]
    made = rows(trials, [json.dumps(policy.to_dict(), separators=(",", ":")) for policy in policies])
    with run.journal.open("w", encoding="utf-8") as file:
        file.write(templates[0][0])
        for row in made:
            file.write(filled(templates[row.trial % POLICIES][1], row, config.search.objectives))
    run.write_trials(made)
    return run


class FreeCost(CostModel):
    """Costs that take no time to find."""

    def cost(self, network: Network, policy: Policy) -> Cost:
        """The same for every policy."""
        return Cost(0.5, 5.0, 500_000, 250_000)

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Nobody asks for many."""
        raise NotImplementedError

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Nobody asks for each."""
        raise NotImplementedError


FREE_SCORE = Score(0.5, (0.49, 0.51), 0.1, np.array([0.0, 1.0], dtype=np.float32), 0.0, 0.0)


class FreeCandidate(CandidateTraining):
    """Scores alike at every rung, and keeps nothing."""

    def __init__(self) -> None:
        """It has no network."""

    def score(self, rung: int) -> Score:
        """Nothing is trained."""
        return FREE_SCORE

    def keep(self, checkpoint: Path) -> None:
        """Nothing is written."""


class FreeScorer(Scorer):
    """Scores every policy alike."""

    def __init__(self) -> None:
        """It has no task."""

    def start(self, policy: Policy) -> FreeCandidate:
        """Nothing is compressed."""
        return FreeCandidate()


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process for it: other programs may be busy."""
    started = time.process_time()
    work()
    return time.process_time() - started


def command(*words: str) -> float:
    """Processor time of a leanfront command, start of Python included."""
    line = [sys.executable, "-m", "leanfront", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident_mb() -> float:
    """Memory of this process, MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def resume(run: RunFolder, space: Space) -> optuna.Study:
    """What ``leanfront search`` does with a study before the next trial, the task's own start not counted."""
    study = open_study(run, run.config().search)
    enqueue_seeds(study, space)
    ResultsTables(run, study).write(force=True)
    recover(study, run)
    return study


def measure(folder: Path, trials: int, layers: int, more: int) -> Iterator[tuple[str, str]]:
    """(what, figure), one after the other."""
    run = write_run(folder / "run", trials, layers)
    megabytes = [path.stat().st_size / 1e6 for path in (run.journal, run.trials_file)]
    yield "journal and trials.csv", " and ".join(f"{size:.0f} MB" for size in megabytes)
    for words in (("status",), ("front",), ("front", "--format", "json"), ("report",)):
        yield " ".join(words), f"{command(words[0], str(run.path), *words[1:]):.2f} s"
    config = run.config()
    space = space_of(config, layers)
    before = resident_mb()
    opened: list[optuna.Study] = []
    yield "resume", f"{seconds(lambda: opened.append(resume(run, space))):.2f} s"
    yield "memory of the study", f"{resident_mb() - before:.0f} MB"
    (study,) = opened
    yield "writing the tables", f"{seconds(lambda: ResultsTables(run, study).write(force=True)):.2f} s"
    problem = Problem(space, FreeCost(), FreeScorer(), config.search.objectives, config.limits, 0.9)
    begun: list[float] = []
    with registered(run) as worker:
        search_loop(problem, study, run, Budget(), worker, stop=_after(more, begun))
    yield f"one of {more} more trials", f"{(begun[-1] - begun[0]) / more * 1000:.0f} ms"


def _after(trials: int, begun: list[float]) -> Callable[[], bool]:
    """Ends a search after so many trials; ``begun`` gets the time at which each of them began."""

    def stop() -> bool:
        begun.append(time.process_time())
        return len(begun) > trials

    return stop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--more", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, figure in measure(Path(folder), given.trials, given.layers, given.more):
            print(f"{what:24s} {figure}", flush=True)


if __name__ == "__main__":
    main()
