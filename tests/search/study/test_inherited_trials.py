"""Heirs of a trained network: which ones the sampler wants, and how the loop makes trials of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from leanfront.compression.policy import Policy
from leanfront.search.run.front import front_of
from leanfront.search.run.run_folder import RunFolder, make_run, open_run, registered
from leanfront.search.run.status import status
from leanfront.search.samplers import sampler_named
from leanfront.search.samplers.cascade.encoding import keys
from leanfront.search.samplers.cascade.expected_hypervolume import FrontSurface, latin_hypercube
from leanfront.search.samplers.cascade.inherited_trials import MOST, choose, rate
from leanfront.search.samplers.cascade.sampler import scores_of
from leanfront.search.samplers.cascade.surrogate import shortfall
from leanfront.search.study.loop import Budget, search_loop, seconds_per_trial
from leanfront.search.study.study import add, digests, finished, named, open_study, reached_the_end
from leanfront.search.trial.promotion import UNKNOWN
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import CandidateTraining
from leanfront.search.trial.trial import WEIGHTS_OF, Problem, Result, Sampler, inherited, priced
from tests.search.samplers.test_cascade_sampler import BASELINE, Toy, ask, study_of, tell
from tests.search.study.test_study import Scorer, configuration, problem_of

PER_NAT = 1.0  # the toy's accuracy falls by its divergence


@dataclass
class Chosen:
    """Heirs of one policy of the toy, chosen with that policy alone on the front."""

    toy: Toy
    codes: np.ndarray
    found: np.ndarray


def chosen(
    per_nat: float = PER_NAT, taken: frozenset[bytes] = frozenset(), lost: float | None = None
) -> Chosen:
    toy = Toy.of()
    knowledge = toy.knowledge()
    codes = toy.encoding.canonical(np.ones((len(toy.encoding.sizes), 1), dtype=np.int64))[:, 0]
    own = toy.accuracy(codes[:, None])[0] if lost is None else 0.95 - lost
    reached = float(shortfall(own, 0.95))
    surface = FrontSurface(
        latin_hypercube(knowledge.low),
        knowledge.floor,
        knowledge.log_costs(codes[:, None]),
        np.array([reached]),
    )
    found = choose(
        knowledge,
        surface,
        codes,
        reached,
        per_nat,
        taken,
        np.random.default_rng(0),
    )
    return Chosen(toy, codes, found)


def test_heirs_keep_nothing_that_is_gone_and_cost_less_somewhere() -> None:
    made = chosen()
    assert 1 <= made.found.shape[1] <= MOST
    assert made.toy.encoding.keep_nothing_else(made.found, made.codes).all()
    costs = made.toy.knowledge().log_costs(np.hstack([made.codes[:, None], made.found]))
    assert (costs[1:] < costs[0]).any(axis=1).all()
    assert len({*keys(made.found), *keys(made.codes[:, None])}) == made.found.shape[1] + 1


def test_what_was_tried_is_no_heir() -> None:
    first = keys(chosen().found)[0]
    assert first not in keys(chosen(taken=frozenset({first})).found)


def test_there_are_none_where_anything_more_would_lose_too_much() -> None:
    assert chosen(lost=0.2).found.shape[1] == 0
    assert chosen(per_nat=1e4).found.shape[1] < chosen().found.shape[1]


def test_how_fast_heirs_lose_is_learned() -> None:
    believed = rate([])
    assert rate([(1.0, 0.05)] * 20) == pytest.approx(0.05, rel=0.1)
    assert believed < rate([(0.2, 2 * believed * 0.2)]) < 2 * believed
    assert rate([(1.0, -0.5)] * 20) > 0.0


def test_an_heir_counts_as_reached_and_teaches_only_what_heirs_lose() -> None:
    toy = Toy.of()
    knowledge = toy.knowledge()
    study = study_of(knowledge)
    trial, codes = ask(toy, study)
    tell(toy, study, trial, codes, knowledge)
    study.set_metric_names(list(knowledge.objectives))
    parent = toy.encoding.batch(codes[:, None]).policy(0)
    wanted = study.sampler.inherited(study, parent, float(toy.accuracy(codes[:, None])[0]))[0]
    own = toy.encoding.of(wanted)
    costs = dict(zip(knowledge.costs, np.exp(knowledge.log_costs(own[:, None]))[0].tolist(), strict=True))
    result = Result(
        "complete", "", {"accuracy": 0.9, "weights_of": trial.number, **costs}, {"max_drop": -0.1}
    )
    heir = add(study, toy.space, wanted, "worker", result, datetime.now())
    assert (heir.number, heir.state, heir.values) == (1, TrialState.COMPLETE, [0.9, *costs.values()])
    assert heir.constraints == {"max_drop": -0.1}
    assert toy.space.suggest(optuna.trial.FixedTrial(heir.params)) == wanted
    assert scores_of(result.to_dict(), 0.95, (0,)) == {}
    _, other = ask(toy, study)
    read = study.sampler._read
    (key,) = keys(own[:, None])
    assert key in read.final
    assert keys(other[:, None]) != [key]
    assert read.seen[key].untrained == pytest.approx(shortfall(0.9, BASELINE["accuracy"]))
    assert read.seen[key].scores == {}
    assert toy.divergence(own[:, None])[0] > toy.divergence(codes[:, None])[0]
    ((added, lost),) = read.losses
    assert lost == pytest.approx(toy.accuracy(codes[:, None])[0] - 0.9)
    assert added > 0


@pytest.mark.parametrize("reason", UNKNOWN)
def test_a_policy_of_which_nothing_is_known_may_be_proposed_again(reason: str) -> None:
    """A trial whose worker was stopped; in runs of version 0.1 also an heir."""
    toy = Toy.of()
    study = study_of(toy.knowledge())
    trial, codes = ask(toy, study)
    policy = toy.encoding.batch(codes[:, None]).policy(0)
    for name, value in named(policy).items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("result", {"state": "pruned", "reason": reason})
    study.tell(trial, state=TrialState.FAIL)
    ask(toy, study)
    assert digests(study.trials[:1]) == {}
    assert keys(codes[:, None])[0] not in study.sampler._read.final | set(study.sampler._read.seen)


@dataclass
class Asks(Sampler):
    """TPE that wants networks to inherit: two policies near what was trained, and that one again."""

    problem: Problem
    wanted: list[list[str]] = field(default_factory=list)

    def proposer(self, seed: int) -> optuna.samplers.BaseSampler:
        return sampler_named("tpe").proposer(seed)

    def inherited(self, study: optuna.Study, policy: Policy, accuracy: float) -> list[Policy]:
        rng = np.random.default_rng(len(self.wanted))
        near = [self.problem.space.mutated(policy, rng, 3) for _ in range(2)]
        self.wanted.append([one.digest for one in near])
        return [*near, policy]


def searched(
    folder: Path, trials: int, stop: Callable[[], bool] = lambda: False, **over: object
) -> tuple[RunFolder, optuna.Study, Asks]:
    config = configuration(**over)
    problem = problem_of(config, Scorer(seconds=0.002))
    asks = Asks(problem)
    run = make_run(folder, config)
    study = open_study(run, config.search, sampler=asks)
    with registered(run) as worker:
        search_loop(replace(problem, sampler=asks), study, run, Budget(trials), worker, stop)
    return run, study, asks


def test_heirs_are_trials_of_their_own_and_do_not_count(tmp_path: Path) -> None:
    run, study, _ = searched(tmp_path / "run", 6)
    rows = run.trials()
    heirs_of = [row for row in rows if row.weights_of is not None]
    trained = [row for row in rows if row.weights_of is None and row.accuracy is not None]
    assert len(trained) == 6 == finished(study.trials)
    assert heirs_of
    assert {row.weights_of for row in heirs_of} <= {row.trial for row in trained}
    assert {row.state for row in heirs_of} == {"complete"}
    known = [json.loads(row.policy) for row in rows if row.accuracy is not None]
    assert len({json.dumps(policy, sort_keys=True) for policy in known}) == len(known)  # nothing twice
    for row in heirs_of:
        parent = next(other for other in trained if other.trial == row.weights_of)
        assert row.worker == parent.worker
        assert row.finished >= row.started >= parent.finished
        assert row.rungs == ""
        assert row.rung is None
        assert row.latency_ms is not None
        assert study.trials[row.trial].state == TrialState.COMPLETE
    front = [row for row in heirs_of if row in front_of(run)]
    assert front  # they are picked from as any other, with weights and scores of their own
    assert all(run.checkpoint(row.trial).exists() and run.scores_file(row.trial).exists() for row in front)
    assert seconds_per_trial(study.trials) == seconds_per_trial([study.trials[r.trial] for r in trained])


def keep_nothing(heir: CandidateTraining, scores: Mapping[int, Score]) -> None:
    """A search keeps weights and scores."""


def test_an_heir_that_loses_too_much_is_infeasible_and_one_that_fails_says_why(tmp_path: Path) -> None:
    config = configuration(limits={"max_drop": 0.001})
    problem = problem_of(config, Scorer())
    harsh = problem.space.uniform(
        max(level for levels in problem.space.levels.values() for level in levels), (4, 8)
    )
    trained = problem.scorer.start(harsh)
    result = inherited(problem, {WEIGHTS_OF: 7}, trained, harsh, priced(problem, harsh), keep_nothing)
    assert result.state == "infeasible"
    assert "max_drop" in result.reason
    assert result.values["weights_of"] == 7
    assert not reached_the_end(result.to_dict())
    broken = problem_of(config, Scorer(fails=[RuntimeError("no such kernel")]))
    result = inherited(
        broken,
        {WEIGHTS_OF: 7},
        broken.scorer.start(harsh),
        harsh,
        priced(broken, harsh),
        lambda heir, scores: None,
    )
    assert (result.state, result.reason) == ("failed", "RuntimeError: no such kernel")
    full = problem_of(config, Scorer(fails=[OSError(28, "No space left on device")]))
    with pytest.raises(OSError, match="No space left"):
        inherited(full, {WEIGHTS_OF: 7}, full.scorer.start(harsh), harsh, priced(full, harsh), keep_nothing)


def test_who_is_told_to_stop_leaves_the_heirs(tmp_path: Path) -> None:
    calls = iter([False, True])
    run, _, asks = searched(tmp_path / "run", 6, stop=lambda: next(calls, True))
    rows = run.trials()
    assert asks.wanted
    assert sum(row.accuracy is not None for row in rows) == 1


def test_an_heir_that_another_worker_is_at_meanwhile_is_no_second_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def slow(
        problem: Problem, parent: Mapping[str, float], trained: CandidateTraining, policy: Policy, *rest: Any
    ) -> Result:
        result = inherited(problem, parent, trained, policy, *rest)
        other = open_study(open_run(tmp_path / "run"), configuration().search)
        other.ask().set_user_attr("digest", policy.digest)
        scored.append(policy.digest)
        return result

    monkeypatch.setattr("leanfront.search.study.heirs.inherited", slow)
    # the other worker never comes: its trial would be waited for
    monkeypatch.setattr("leanfront.search.study.study._SECONDS_TO_SAY_WHO", 1.0)
    run, _, _ = searched(tmp_path / "run", 2)
    assert scored
    assert not any(row.weights_of is not None for row in run.trials())
    assert not [*run.checkpoints.glob("inherited-*"), *run.scores.glob("inherited-*")]


def test_status_and_report_know_heirs(tmp_path: Path) -> None:
    run, _, _ = searched(tmp_path / "run", 6)
    answer = status(run)
    rows = run.trials()
    assert answer["complete"] == sum(row.state == "complete" for row in rows)
    assert answer["heirs"] == sum(row.weights_of is not None for row in rows)


def test_a_full_disk_costs_heirs_and_no_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, policy: Policy) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tests.search.study.test_study.Candidate.inherit", full)
    run, study, asks = searched(tmp_path / "run", 4)
    assert finished(study.trials) == 4
    assert sum(map(len, asks.wanted)) == 8
    assert not any(row.weights_of is not None or row.state == "running" for row in run.trials())
