"""The search loop with a made-up cost and a made-up score. Run as a program this file is one such search.

The made-up scorer is no Scorer, which would load torch into every process that is killed here.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, LayerCost, TableError
from leanfront.search.config import ConfigError, SearchConfig, parse_config
from leanfront.search.run.front import front_of, front_rows
from leanfront.search.run.results_tables import ResultsTables
from leanfront.search.run.run_folder import RunFolder, make_run, open_run, registered
from leanfront.search.samplers import sampler_named
from leanfront.search.study.loop import Budget, Interrupt, search_loop, seconds_per_trial, time_limit
from leanfront.search.study.prepare import _check_prices, check_limits, check_objectives
from leanfront.search.study.study import enqueue_seeds, open_study, recover
from leanfront.search.trial.promotion import INTERRUPTED, UNTRAINED
from leanfront.search.trial.trial import Problem, priced, scored

ROOT = Path(__file__).parents[3]


def chain(widths=(16, 32, 32)) -> Network:
    nodes = [Node("x", "input", (), (Segment(None, 3),), (8, 8))]
    layers = []
    before, channels = "x", 3
    for index, width in enumerate(widths):
        name = f"conv{index}"
        shape = LayerShape("conv2d", channels, width, (3, 3), (1, 1), 1, 8, 8)
        layers.append(Layer(name, shape, name))
        nodes.append(Node(name, "conv2d", (before,), (Segment(name, width),), (8, 8), layer=name))
        before, channels = name, width
    nodes.append(Node("pool", "global_avgpool", (before,), (Segment(before, channels),), (1, 1)))
    nodes.append(Node("fc", "linear", ("pool",), (Segment(None, 10),), layer="fc"))
    layers.append(Layer("fc", LayerShape("linear", channels, 10)))
    return Network(tuple(nodes), tuple(layers), ("fc",))


class MacsCost(CostModel):
    """A microsecond for a million bit-MACs, and bytes as bits say."""

    def cost(self, network: Network, policy: Policy) -> Cost:
        work = sum(layer.shape.macs * policy[layer.name].weight_bits for layer in network.layers)
        size = sum(layer.shape.weight_count * policy[layer.name].weight_bits // 8 for layer in network.layers)
        return Cost(work / 1e8, work / 1e7, size, 1000)

    def costs(self, batch: PolicyBatch) -> CostArrays:
        raise NotImplementedError

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Score:
    accuracy: float
    accuracy_ci: tuple[float, float]
    divergence: float = 0.0
    scores: Any = None
    seconds_training: float = 0.0
    seconds_scoring: float = 0.0


@dataclass
class Scorer:
    """Accuracy falls with what is cut and with narrow weights. Counts its calls; fails as told."""

    seconds: float = 0.0
    fails: list[Exception | float] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    def start(self, policy: Policy) -> "Candidate":
        self.calls.append(policy.digest)
        return Candidate(self, policy)


@dataclass
class Candidate:
    """Accuracy is the same at every rung; the easiest of 1000 images are right."""

    scorer: Scorer
    policy: Policy

    def score(self, rung: int) -> Score:
        scorer = self.scorer
        scorer.at.append(rung)
        time.sleep(scorer.seconds)
        if scorer.fails:
            failure = scorer.fails.pop(0)
            if isinstance(failure, BaseException):
                raise failure
            return Score(failure, (0.0, 1.0))
        lost = sum(0.1 * p.sparsity**2 + (0.02 if p.weight_bits < 8 else 0.0) for p in self.policy.values())
        accuracy = 0.95 - lost
        right = (np.arange(1000) < round(1000 * accuracy)).astype(np.float32)
        return Score(accuracy, (accuracy - 0.01, accuracy + 0.01), lost, right, scorer.seconds)

    def inherit(self, policy: Policy) -> "Candidate":
        return Candidate(self.scorer, policy)

    def as_it_is(self) -> Score:
        return self.score(-1)

    def keep(self, checkpoint: Path) -> None:
        checkpoint.write_text("weights")


def configuration(**sections) -> SearchConfig:
    """One of Optuna's samplers unless told otherwise: cascade wants more than a loop to be tried."""
    search = {"sampler": "tpe", **sections.pop("search", {})}
    return parse_config({"task": {"file": "task.py"}, "search": search, **sections})


def problem_of(config: SearchConfig, scorer: Scorer, network: Network | None = None) -> Problem:
    wanted = config.space
    space = Space(
        network or chain(), load_profile("toy"), wanted.sparsity, wanted.weight_bits, wanted.activation_bits
    )
    sampler = sampler_named(config.search.sampler)
    return Problem(
        space,
        MacsCost(),
        scorer,
        config.search.objectives,
        config.limits,
        0.95,
        sampler.rungs(config.rung_images),
        sampler=sampler,
    )


@dataclass
class Searched:
    run: RunFolder
    scorer: Scorer
    problem: Problem
    ended: str = ""

    @property
    def rows(self):
        return self.run.trials()

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)


def search(
    folder: Path,
    trials: int | None,
    scorer: Scorer | None = None,
    stop=lambda: False,
    deadline=None,
    **sections,
):
    config = configuration(**sections)
    scorer = scorer or Scorer()
    problem = problem_of(config, scorer)
    run = make_run(folder, config)
    study = open_study(run, config.search)
    enqueue_seeds(study, problem.space)
    searched = Searched(run, scorer, problem)
    with registered(run) as worker:
        searched.ended = search_loop(problem, study, run, Budget(trials, deadline), worker, stop)
    return searched


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
def test_a_search_finds_a_front(tmp_path, sampler):
    done = search(tmp_path / "run", 40, search={"sampler": sampler})
    assert done.count("complete") == 40
    assert done.ended == "40 trials are done"
    assert len(set(done.scorer.calls)) == len(done.scorer.calls) == 40  # no policy is trained twice
    front = front_of(done.run)
    assert len(front) >= 5
    assert front == front_rows(done.rows, ("accuracy", "latency_ms"))
    first = next(row for row in done.rows if row.trial == 0)
    assert {layer["weight_bits"] for layer in json.loads(first.policy).values()} == {
        32
    }  # the uncompressed seed
    assert first.worker.startswith("worker-")
    assert first.started
    assert first.finished


def test_gaussian_processes_of_optuna_search_too(tmp_path):
    done = search(tmp_path / "run", 12, search={"sampler": "gp"})
    assert done.count("complete") == 12


def test_tpe_learns_and_random_does_not():
    # 20 switches and an order of 5: "accuracy" wants all of them up, the cost does not care. Random policies
    # reach about 10 + 3 standard deviations of 2.2 in the best of 120.
    def best(sampler):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for _ in range(120):
            trial = study.ask()
            up = [trial.suggest_categorical(f"bits/{i}", ["w4a8", "w8a8"]) == "w8a8" for i in range(20)]
            study.tell(trial, [sum(up) + trial.suggest_int("sparsity/a", 0, 4), 1.0])
        return max(trial.values[0] for trial in study.trials)

    assert best(sampler_named("tpe").proposer(0)) > best(sampler_named("random").proposer(0))


def test_the_same_line_again_goes_on(tmp_path):
    first = search(tmp_path / "run", 12)
    before = first.rows
    again = search(tmp_path / "run", 12)
    assert (again.scorer.calls, again.ended) == ([], "12 trials are done")
    more = search(tmp_path / "run", 20)
    assert more.count("complete") == 20
    assert more.rows[:12] == before
    assert not set(more.scorer.calls) & set(first.scorer.calls)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_sampler_does_not_draw_the_same_again(tmp_path, sampler):
    for trials in (20, 22, 24, 26):
        done = search(tmp_path / "run", trials, search={"sampler": sampler})
    assert done.count("pruned") <= 2


def test_checkpoints_are_kept_for_the_front_alone(tmp_path):
    done = search(tmp_path / "run", 30)
    kept = {int(path.stem) for path in done.run.checkpoints.iterdir()}
    assert kept == {row.trial for row in front_of(done.run)}
    assert kept < {row.trial for row in done.rows}


def test_a_policy_over_a_limit_is_never_trained_and_costs_little(tmp_path):
    done = search(tmp_path / "run", 25, limits={"latency_ms": 0.15, "size_bytes": 9000})
    refused = [row for row in done.rows if row.state == "infeasible"]
    assert refused
    assert all(row.accuracy is None and row.seconds is None for row in refused)
    assert all("is over the limit" in row.reason for row in refused)
    allowed = [row for row in done.rows if row.state == "complete"]
    assert len(allowed) == len(done.scorer.calls) == 25
    assert all(row.latency_ms <= 0.15 and row.size_bytes <= 9000 for row in allowed)
    study = open_study(done.run, configuration().search)
    trial = study.trials[refused[0].trial]
    assert trial.state == TrialState.PRUNED
    assert max(trial.constraints.values()) > 0
    assert {best.number for best in study.best_trials} == {row.trial for row in front_of(done.run)}


def test_a_refused_trial_takes_less_than_50_ms(tmp_path):
    # in seconds of this process, which a busy machine does not change: of the whole trial, sampler and all
    config = configuration(limits={"latency_ms": 1e-9})
    problem = problem_of(config, Scorer(), chain((16,) * 20))
    run = make_run(tmp_path / "run", config)
    study = open_study(run, config.search)
    times = []
    with registered(run) as worker:
        done = iter(range(60))
        started = time.process_time()

        def stop():
            nonlocal started
            times.append(time.process_time() - started)
            started = time.process_time()
            return next(done, None) is None

        search_loop(problem, study, run, Budget(), worker, stop)
    assert sorted(times)[len(times) // 2] < 0.05
    assert problem.scorer.calls == []


def test_a_network_that_lost_too_much_is_infeasible_and_the_sampler_knows(tmp_path):
    done = search(tmp_path / "run", 20, limits={"max_drop": 0.03})
    lost = [row for row in done.rows if row.state == "infeasible"]
    assert lost
    assert all(0.95 - row.accuracy > 0.03 and "max_drop" in row.reason for row in lost)
    assert all(0.95 - row.accuracy <= 0.03 for row in front_of(done.run))
    trial = open_study(done.run, configuration().search).trials[lost[0].trial]
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints["max_drop"] == pytest.approx(0.95 - lost[0].accuracy - 0.03)


def test_what_loses_nothing_is_complete_untrained_and_what_loses_is_trained():
    scorer, kept = Scorer(seconds=0.01), []
    problem = replace(problem_of(configuration(), scorer), rungs=(0, 100, 200))
    sparsity = max(level for levels in problem.space.levels.values() for level in levels)

    def outcome(policy):
        return scored(
            problem,
            policy,
            priced(problem, policy),
            stays=lambda rung, score: "",
            keep=lambda candidate, scores: kept.append(dict(scores)),
        )

    whole_policy = problem.space.uniform(0.0, (8, 8))
    whole = outcome(whole_policy)
    assert (whole.state, whole.reason, scorer.at) == ("complete", UNTRAINED, [0, -1])
    assert [(reached["rung"], reached["images"]) for reached in whole.rungs] == [(0, 0)]
    assert list(kept[0]) == [0]
    cut = outcome(problem.space.uniform(sparsity, (8, 8)))
    assert (cut.state, cut.reason, scorer.at[2:]) == ("complete", "", [0, 1, 2])
    # close to the teacher in its outputs is not enough where what it is scored by says that it lost
    far = replace(problem, baseline_accuracy=0.999)
    scorer.at.clear()
    assert (
        scored(
            far,
            whole_policy,
            priced(far, whole_policy),
            lambda rung, score: "",
            lambda candidate, scores: None,
        ).reason
        == ""
    )
    assert scorer.at == [0, 1, 2]
    # one that trains first is not asked whether it needs to
    scorer.at.clear()
    problem = replace(problem, rungs=(100, 200))
    assert outcome(problem.space.uniform(0.0, (8, 8))).reason == ""
    assert scorer.at == [0, 1]


def test_failures_are_recorded_with_their_reason_and_the_search_goes_on(tmp_path):
    class TrialFailed(RuntimeError):
        pass

    failures = [
        TrialFailed("the loss is not a number"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        math.nan,
        KeyError("conv9"),
    ]
    done = search(tmp_path / "run", 12, Scorer(fails=failures))
    assert [row.reason for row in done.rows if row.state == "failed"] == [
        "the loss is not a number",
        "out of memory",
        "out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "accuracy is nan",
        "KeyError: 'conv9'",
    ]
    assert (done.count("complete"), done.count("failed")) == (7, 5)
    assert "state=failed latency_ms=" in done.run.log_file.read_text()


def test_ten_failures_in_a_row_are_not_the_policies_fault(tmp_path):
    with pytest.raises(RuntimeError, match=r"last 10 trials failed.*boom"):
        search(tmp_path / "run", 40, Scorer(fails=[ValueError("boom")] * 40))
    assert len(open_run(tmp_path / "run").trials()) == 10


def test_a_full_disk_is_waited_for_and_held_against_no_policy(tmp_path, monkeypatch):
    monkeypatch.setattr("leanfront.search.study.loop._SECONDS_AFTER_A_FULL_DISK", 0.01)
    full = [OSError(28, "No space left on device"), RuntimeError("IoError: No space left on device")] * 2
    done = search(tmp_path / "run", 5, Scorer(fails=full))
    assert (done.count("complete"), done.count("failed")) == (5, 0)
    assert [row.reason for row in done.rows if row.state == "pruned"] == [INTERRUPTED] * 4


def test_an_unknown_cost_ends_the_search(tmp_path, monkeypatch):
    def unknown(self, network, policy):
        raise TableError("no entry for conv2d 3x3 16->16")

    monkeypatch.setattr(MacsCost, "cost", unknown)
    with pytest.raises(TableError, match="no entry"):
        search(tmp_path / "run", 5)


def test_a_small_space_ends_when_it_is_used_up(tmp_path):
    sections = {"space": {"sparsity": [0.0, 0.5], "weight_bits": [8], "activation_bits": [8]}}
    done = search(tmp_path / "run", 100, **sections)
    assert done.problem.space.size == 8
    assert done.count("complete") == len(set(done.scorer.calls)) == 8
    assert done.ended == "all 8 policies of the space were tried"


def test_no_trial_starts_that_would_not_end_before_the_deadline(tmp_path):
    started = time.time()
    done = search(tmp_path / "run", None, Scorer(seconds=0.4), deadline=started + 1.5)
    assert time.time() < started + 1.7
    assert 2 <= done.count("complete") <= 3
    assert "do not fit" in done.ended


def test_seconds_per_trial_is_the_median_of_trained_trials(tmp_path):
    done = search(tmp_path / "run", 5, Scorer(seconds=0.1), limits={"latency_ms": 0.15})
    assert seconds_per_trial(open_study(done.run, configuration().search).trials) == pytest.approx(
        0.1, abs=0.05
    )
    assert seconds_per_trial([]) is None


def test_how_long_a_trial_may_take_is_learned_from_trials_that_were_trained():
    def trial(state, **result):
        told = {"state": state, "accuracy": 0.9, **result}
        return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"result": told})

    others = [
        trial("pruned", seconds=2.0),  # not beyond the first rung
        trial("complete", seconds=3.0, reason=UNTRAINED),
        trial("complete", seconds=4.0, weights_of=0),
        optuna.trial.create_trial(state=TrialState.FAIL),
    ]
    assert seconds_per_trial(others) is None
    assert time_limit(others, None) == 7200.0
    trained = [*others, trial("complete", seconds=600.0), trial("infeasible", seconds=800.0)]
    assert seconds_per_trial(trained) == 700.0
    assert time_limit(trained, None) == 4000.0
    assert time_limit([*others, trial("complete", seconds=10.0)], None) == 1200.0
    assert time_limit(trained, 3.0) == 180.0


def test_limits_that_nothing_can_meet_name_the_nearest():
    with pytest.raises(ConfigError, match=r"latency_ms = 1e-09; the nearest has latency_ms 0\.\d+"):
        check_limits(problem_of(configuration(limits={"latency_ms": 1e-9}), Scorer()))
    check_limits(problem_of(configuration(limits={"latency_ms": 0.2}), Scorer()))
    check_limits(problem_of(configuration(), Scorer()))


def test_ctrl_c_once_asks_and_twice_stops(tmp_path):
    said, before = [], signal.getsignal(signal.SIGINT)
    with Interrupt(lambda: said.append("finishing")) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.requested
        assert said == ["finishing"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_the_second_ctrl_c_interrupted_is_run_again(tmp_path):
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "run", 4, Scorer(fails=[KeyboardInterrupt()]))
    done = search(tmp_path / "run", 4)
    assert (done.count("complete"), done.count("failed"), done.count("running")) == (4, 0, 0)
    assert [row.reason for row in done.rows if row.state == "pruned"] == [INTERRUPTED] * 3


def abandoned(run: RunFolder, problem: Problem, with_result: bool = False) -> int:
    """A trial as a killed worker leaves it."""
    study = open_study(run, configuration().search)
    trial = study.ask()
    with registered(run) as worker:
        trial.set_user_attr("worker", worker)
    policy = problem.space.suggest(trial)
    trial.set_user_attr("digest", policy.digest)
    if with_result:
        values = {"accuracy": 0.5, "latency_ms": 1.0, "size_bytes": 1.0}
        trial.set_user_attr("result", {"state": "complete", "reason": "", **values})
    return trial.number


def test_a_killed_workers_trial_is_run_again_once(tmp_path):
    done = search(tmp_path / "run", 25)  # past the seeds, which would go before what is enqueued
    first = abandoned(done.run, done.problem)
    study = open_study(done.run, configuration().search)
    assert recover(study, done.run) == [first]
    assert recover(study, done.run) == []
    second = abandoned(done.run, done.problem)  # takes what was enqueued, and dies of it again
    trials = study.trials
    assert trials[second].params == trials[first].params
    assert recover(study, done.run) == [second]
    after = search(tmp_path / "run", 30)
    rows = {row.trial: row for row in after.rows}
    assert (rows[first].state, rows[first].reason) == ("pruned", INTERRUPTED)
    assert (rows[second].state, rows[second].reason) == (
        "failed",
        f"killed its worker twice, here and as trial {first}",
    )
    assert after.count("running") == 0
    digest = trials[first].user_attrs["digest"]
    assert digest not in after.scorer.calls


def test_a_trial_whose_worker_died_after_its_result_is_not_lost(tmp_path):
    done = search(tmp_path / "run", 2)
    number = abandoned(done.run, done.problem, with_result=True)
    study = open_study(done.run, configuration().search)
    assert recover(study, done.run) == [number]
    assert study.trials[number].values == [0.5, 1.0]
    assert ResultsTables(done.run, study).rows()[number].state == "complete"


def test_the_trial_of_a_living_worker_is_left_alone(tmp_path):
    done = search(tmp_path / "run", 2)
    study = open_study(done.run, configuration().search)
    with registered(done.run) as worker:
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        unnamed = study.ask()  # somebody has asked for it and not yet said who
        assert recover(study, done.run) == []
    assert recover(study, done.run) == [trial.number, unnamed.number]


def test_a_trial_that_nobody_had_said_to_work_on_is_taken_back_by_the_next_worker(tmp_path):
    done = search(tmp_path / "run", 2)
    study = open_study(done.run, configuration().search)
    with registered(done.run):
        unnamed = study.ask()  # and then it was killed
    time.sleep(0.02)
    with registered(done.run):
        assert recover(study, done.run) == [unnamed.number]


def command(folder: Path, trials: int, seconds: float) -> list[str]:
    return [sys.executable, __file__, str(folder), str(trials), str(seconds)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_kill_9_at_random_moments_loses_no_finished_trial(tmp_path):
    folder = tmp_path / "run"
    rng = random.Random(0)
    finished: dict[int, str] = {}
    for _ in range(2):
        process = subprocess.Popen(command(folder, 10_000, 0.02), env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # it says when it searches
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        log = open_run(folder).log_file.read_text().splitlines()
        done = {int(line.split("trial=")[1].split()[0]): line for line in log if "state=complete" in line}
        assert finished.items() <= done.items()
        finished = done
    trained = len(finished)
    ended = subprocess.run(
        command(folder, trained + 5, 0.0), env=environment(), check=True, capture_output=True
    )
    assert b"trials are done" in ended.stdout
    rows = {row.trial: row for row in open_run(folder).trials()}
    assert all(rows[number].state == "complete" for number in finished)
    assert not [row for row in rows.values() if row.state == "running"]
    study = open_study(open_run(folder), configuration().search)
    assert {trial.number for trial in study.best_trials} == {row.trial for row in front_of(open_run(folder))}


def test_two_workers_at_once_share_the_trials(tmp_path):
    folder = tmp_path / "run"
    search(folder, 1)
    both = [
        subprocess.Popen([*command(folder, 24, 0.03), "wait"], env=environment(), stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:  # one may be ready long before the other, where the machine is busy
        assert process.stdout is not None
        assert process.stdout.readline() == b"searching\n"
    (folder / "begin").touch()
    assert [process.wait(60) for process in both] == [0, 0]
    rows = [row for row in open_run(folder).trials() if row.state == "complete"]
    assert 24 <= len(rows) <= 25
    assert len({row.worker for row in rows}) == 3
    digests = [row.policy for row in rows]
    assert len(set(digests)) >= len(digests) - 1


def main() -> None:
    folder, trials, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    config = configuration()
    problem = problem_of(config, Scorer(seconds))
    run = make_run(folder, config)
    study = open_study(run, config.search, worker_seed=os.getpid())
    enqueue_seeds(study, problem.space)
    print("searching", flush=True)
    while "wait" in sys.argv and not (folder / "begin").exists():
        time.sleep(0.01)
    with registered(run) as worker:
        print(search_loop(problem, study, run, Budget(trials), worker))


if __name__ == "__main__":
    main()


def test_a_table_that_changed_is_refused(tmp_path):
    done = search(tmp_path / "run", 4)
    before = {"latency_ms": [1.0, 2.0], "energy_mj": [1.0, 2.0]}
    _check_prices({"latency_ms": [1.0, 2.0], "energy_mj": [1.0, 2.0]}, before, done.run)
    _check_prices({"latency_ms": [1.5, 2.0], "energy_mj": [1.0, 2.0]}, None, done.run)
    with pytest.raises(ConfigError, match=r"latency_ms.*start anew with another --run folder"):
        _check_prices({"latency_ms": [1.5, 2.0], "energy_mj": [1.0, 2.0]}, before, done.run)


def test_an_objective_that_never_changes_is_named(tmp_path):
    class SameSize(MacsCost):
        def cost(self, network: Network, policy: Policy) -> Cost:
            return replace(super().cost(network, policy), size_bytes=1000)

    config = configuration(search={"objectives": ["accuracy", "latency_ms", "size_bytes"]})
    problem = problem_of(config, Scorer())
    check_objectives(problem)
    with pytest.raises(ConfigError, match=r"search.objectives has size_bytes, which is 1000 for all"):
        check_objectives(replace(problem, cost_model=SameSize()))
