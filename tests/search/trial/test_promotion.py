"""Paired intervals, which trials go on to the next rung, and a search in rungs."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna.trial import TrialState

from leanfront.search.config import ConfigError
from leanfront.search.run.front import alike, front_of
from leanfront.search.run.run_folder import ADDED, TrialRow, make_run, registered
from leanfront.search.run.significance import (
    load_scores,
    paired_interval,
    save_scores,
    unpaired_interval,
    wilson_interval,
)
from leanfront.search.samplers import sampler_named
from leanfront.search.study.loop import Budget, search_loop
from leanfront.search.study.study import enqueue_seeds, finished, open_study
from leanfront.search.trial.promotion import Standing, dominator, standings
from tests.search.study.test_study import Scorer, configuration, problem_of


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [
        (0.5, 100, 0.4038, 0.5962),  # Newcombe 1998 and Brown et al. 2001 give such values
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0 / 20, 20, 0.0, 0.1611),
        (1.0, 10, 0.7225, 1.0),
        (0.3, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(share: float, n: int, low: float, high: float) -> None:
    assert wilson_interval(share, n) == pytest.approx((low, high), abs=6e-5)


def pair(both, only_first, only_second, neither):
    counts = (both, only_first, only_second, neither)
    one = np.repeat([1, 1, 0, 0], counts).astype(np.float32)
    return one, np.repeat([1, 0, 1, 0], counts).astype(np.float32)


def unpaired(first, n, second, m):
    known = [(k / size, *wilson_interval(k / size, size)) for k, size in ((first, n), (second, m))]
    return unpaired_interval(*known)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((1, 1, 7, 12), (-0.507, -0.026)),
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((18, 12, 2, 18), (0.0562, 0.3290)),
        ((0, 0, 0, 30), (-0.1135, 0.1135)),
    ],
)
def test_paired_interval_of_newcombe(counts, interval):
    # Newcombe 1998; the first are Bentur et al. 2009 in Fagerland, Lydersen and Laake 2017, chapter 8
    assert paired_interval(*pair(*counts)) == pytest.approx(interval, abs=6e-4)


def test_unpaired_interval_of_newcombe():
    assert unpaired(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=6e-5)
    assert unpaired(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=6e-5)


@given(
    st.integers(1, 300).flatmap(
        lambda n: st.tuples(*[arrays(np.float32, n, elements=st.sampled_from([0, 1]))] * 2)
    )
)
def test_a_paired_interval_holds_the_difference_and_turns_with_it(scores):
    one, other = scores
    low, high = paired_interval(one, other)
    difference = float(one.mean(dtype=float) - other.mean(dtype=float))
    assert low - 1e-9 <= difference <= high + 1e-9
    assert paired_interval(other, one) == pytest.approx((-high, -low))
    assert unpaired(one.sum(), len(one), other.sum(), len(one))[1] > difference - 1e-6


def test_networks_that_err_on_the_same_examples_are_told_apart_sooner():
    one, other = pair(4300, 40, 10, 650)
    assert paired_interval(one, other)[0] > 0
    assert unpaired(one.sum(), 5000, other.sum(), 5000)[0] < 0


def test_scores_that_are_shares_have_an_interval_of_their_differences():
    rng = np.random.default_rng(0)
    one = rng.uniform(0.3, 0.7, 400).astype(np.float32)
    low, high = paired_interval(one + np.float32(0.1), one)
    assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-5)  # the difference is the same everywhere
    low, high = paired_interval(one, one[::-1])
    spread = (one - one[::-1]).std(ddof=1)
    assert high - low == pytest.approx(2 * 1.959964 * spread / 20, rel=1e-4)
    with pytest.raises(ValueError, match="the same examples"):
        paired_interval(one, one[:-1])


def test_scores_are_kept_by_the_images_trained_on(tmp_path):
    path = tmp_path / "scores" / "7.npz"
    right, shares = np.array([1, 0, 1], np.float32), np.array([0.25, 0.5, 1.0], np.float32)
    save_scores(path, {0: right, 96: shares})
    assert load_scores(path, 0).tolist() == [1, 0, 1]
    assert load_scores(path, 96).tolist() == [0.25, 0.5, 1.0]
    assert load_scores(path).tolist() == [0.25, 0.5, 1.0]
    assert load_scores(path, 5) is None
    assert load_scores(tmp_path / "8.npz", 0) is None
    path.write_bytes(b"torn")
    assert load_scores(path, 0) is None


def right(share, n=1000):
    return (np.arange(n) < round(share * n)).astype(np.float32)


def judged(own, others, trained, kept=True):
    by_number = {other.trial: other for other in others}
    return dominator(
        own,
        right(own.accuracy),
        others,
        lambda trial: right(by_number[trial].accuracy) if kept else None,
        trained,
    )


OWN = Standing(9, (1.0, 100.0), 0.80, 0.5)


@pytest.mark.parametrize(
    ("other", "untrained", "trained"),
    [
        (Standing(1, (1.0, 100.0), 0.83, 0.4), 1, 1),
        (Standing(1, (1.1, 90.0), 0.83, 0.4), None, None),  # costs more in one way
        (Standing(1, (0.9, 90.0), 0.802, 0.4), 1, None),  # 2 of 1000 more are right: noise
        (Standing(1, (0.9, 90.0), 0.83, 0.6), None, 1),  # divergence counts before training alone
        (Standing(1, (0.9, 90.0), 0.79, 0.4), None, None),
        (Standing(1, (1.0, 100.0), 0.80, 0.5), None, None),  # its equal
    ],
)
def test_who_is_dominated(other, untrained, trained):
    assert judged(OWN, [other], trained=False) == untrained
    assert judged(OWN, [other], trained=True) == trained


def test_without_the_others_scores_the_difference_must_be_larger():
    other = Standing(1, (0.9, 90.0), 0.81, 0.4)
    assert judged(OWN, [other], trained=True) == 1
    assert judged(OWN, [other], trained=True, kept=False) is None
    assert judged(OWN, [Standing(2, (0.9, 90.0), 0.86, 0.4)], trained=True, kept=False) == 2


def test_standings_are_those_at_the_same_number_of_images():
    reached = [
        {"images": 0, "accuracy": 0.5, "divergence": 1},
        {"images": 96, "accuracy": 0.8, "divergence": 0.2},
    ]
    results = [
        (3, {"latency_ms": 2.0, "rungs": reached}),
        (4, {"latency_ms": 1.0, "rungs": reached[:1]}),
        (5, {}),
    ]
    assert standings(results, 96, ["latency_ms"]) == [Standing(3, (2.0,), 0.8, 0.2)]
    assert [standing.trial for standing in standings(results, 0, ["latency_ms"])] == [3, 4]


@pytest.mark.parametrize("rungs", [[], [0.0, 0.5], [0.5, 0.5, 1.0], [0.0, 1.1], [-0.1, 1.0]])
def test_rungs_rise_to_the_whole_fine_tune(rungs):
    with pytest.raises(ConfigError, match=r"finetune\.rungs"):
        configuration(finetune={"rungs": rungs})


def test_rungs_in_images():
    cascade = {"sampler": "cascade"}
    assert configuration(search=cascade).rung_images == (0, 1536, 8192)
    assert configuration(search=cascade, finetune={"images": 0}).rung_images == (0,)
    assert configuration(search=cascade, finetune={"rungs": [1.0]}).rung_images == (8192,)
    images = configuration(search=cascade).rung_images
    assert sampler_named("cascade").rungs(images) == images
    assert sampler_named("tpe").rungs(images) == sampler_named("random").rungs(images) == (8192,)


def search(folder, trials, start=0):
    config = configuration()
    problem = replace(problem_of(config, Scorer()), rungs=(0, 96, 960))
    problem.sampler.start = start
    run = make_run(folder, config)
    study = open_study(run, config.search)
    enqueue_seeds(study, problem.space)
    with registered(run) as worker:
        ended = search_loop(problem, study, run, Budget(trials), worker)
    return problem, run, study, ended


@pytest.fixture(autouse=True)
def _all_need_training(monkeypatch):
    monkeypatch.setattr("leanfront.search.trial.trial.HARMLESS", 0.0)


@pytest.fixture
def searched(tmp_path):
    return search(tmp_path / "run", 25)


def test_a_search_in_rungs(searched):
    problem, run, study, ended = searched
    rows = run.trials()
    by_state = {state: [row for row in rows if row.state == state] for state in ("complete", "pruned")}
    assert ended == "25 trials are done"
    assert len(by_state["complete"]) == finished(study.trials) == 25
    stopped = [row for row in by_state["pruned"] if row.reason.startswith("not promoted")]
    assert len(stopped) > 5
    for row in stopped:
        by = rows[int(row.reason.rpartition(" ")[2])]
        assert row.reason == f"not promoted from rung {row.rung:.0f}: dominated by trial {by.trial}"
        assert by.latency_ms <= row.latency_ms
        assert by.accuracy >= row.accuracy
        assert study.trials[row.trial].state == TrialState.PRUNED
        assert len(json.loads(row.rungs)) == row.rung + 1
        assert row.divergence > by.divergence
    for row in by_state["complete"]:
        assert row.rung == 2
        reached = json.loads(row.rungs)
        assert [entry["images"] for entry in reached] == [0, 96, 960]
        assert reached[-1]["accuracy"] == row.accuracy
        assert row.seconds_pricing > 0
        assert row.seconds_proposing > 0
    assert len(problem.scorer.at) == sum(len(json.loads(row.rungs)) for row in rows if row.rungs)


def test_only_the_front_keeps_weights_and_scores(searched):
    _, run, _, _ = searched
    front = {row.trial for row in front_of(run)}
    assert {int(path.stem) for path in run.checkpoints.iterdir()} == front
    assert {int(path.stem) for path in run.scores.iterdir()} == front
    assert all(row.state == "complete" for row in front_of(run))
    one = next(iter(front))
    assert load_scores(run.scores_file(one), 960).mean() == pytest.approx(
        run.trials()[one].accuracy, abs=6e-4
    )


def test_run_folders_from_before_there_were_rungs_are_read(searched):
    _, run, _, _ = searched
    rows = run.trials()
    lines = list(csv.DictReader(run.trials_file.open()))
    with run.trials_file.open("w") as file:
        writer = csv.DictWriter(file, [name for name in lines[0] if name not in ADDED], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    old = run.trials()
    assert [row.accuracy for row in old] == [row.accuracy for row in rows]
    assert old[0].rung is None
    assert old[0].rungs == ""


def test_front_members_that_are_better_by_noise_alone_are_marked(tmp_path):
    run = make_run(tmp_path / "run", configuration())
    ninety = right(0.9)
    luckier = ninety.copy()
    luckier[903:905] = 1.0  # two more of 1000
    better = right(0.92)
    rows = []
    for trial, (scores, latency, size) in enumerate(
        [(ninety, 1.0, 5.0), (luckier, 2.0, 6.0), (better, 3.0, 7.0), (better, 4.0, 1.0)]
    ):
        save_scores(run.scores_file(trial), {96: scores})
        accuracy = float(scores.mean(dtype=float))
        low, high = wilson_interval(accuracy, 1000)
        rows.append(TrialRow(trial, "complete", "", accuracy, low, high, latency_ms=latency, size_bytes=size))
    # 20 of 1000 more, and none fewer, is no noise
    assert alike(run, rows, ("accuracy", "latency_ms")) == {1: 0, 3: 2}
    assert alike(run, rows, ("accuracy", "latency_ms", "size_bytes")) == {1: 0}
    run.scores_file(0).unlink()
    run.scores_file(2).unlink()
    # unpaired, 2 points are noise
    assert alike(run, rows, ("accuracy", "latency_ms")) == {1: 0, 2: 0, 3: 0}


def test_the_first_are_scored_untrained_alone_and_may_go_on_later(tmp_path):
    _, run, study, _ = search(tmp_path / "run", 1, start=6)
    rows = run.trials()
    assert [row.reason for row in rows[:6]] == [
        "not promoted from rung 0: of the first 6 trials none is trained"
    ] * 6
    assert rows[6].reason != rows[5].reason
    before = search(tmp_path / "run", 25, start=6)[1].trials()  # past the seeds, which go first
    study.enqueue_trial(study.trials[0].params)
    problem, run, study, _ = search(tmp_path / "run", 26, start=6)
    again = run.trials()[len(before)]
    assert again.policy == rows[0].policy
    assert (again.state, again.rung) == ("complete", 2)
    assert json.loads(again.rungs)[0] == json.loads(rows[0].rungs)[0]
    assert problem.scorer.at == [1, 2]  # the first rung was not scored again
    study.enqueue_trial(study.trials[0].params)
    _, run, _, _ = search(tmp_path / "run", 27, start=6)
    assert run.trials()[again.trial + 1].reason == f"duplicate of trial {again.trial}"
