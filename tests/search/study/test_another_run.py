"""A search that starts from another run: what holds is taken over, what does not is scored again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

import leanfront as lf
from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import RunFolder, TrialRow, open_run, registered
from leanfront.search.study.another_run import TRIED_AGAIN, _enqueued
from leanfront.search.study.basis import data_digest
from leanfront.search.study.bequests import Bequests, announce
from leanfront.search.task import as_data
from tests.bright import CONFIG, TASK
from tests.extending.walk import command, placed

RETRAINED = """

_before = task


def task(scale: float = 1.0, wide: bool = False, brighter: bool = False):
    import dataclasses

    made = _before()
    with torch.no_grad():
        made.model[0].weight.mul_(scale)
    if wide:
        made.model[2] = torch.nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            made.model[2].weight.fill_(1 / 8)
            made.model[2].bias.zero_()
    if brighter:
        images = made.train.images + 0.01
        made = dataclasses.replace(made, train=dataclasses.replace(made.train, images=images))
    return made
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run that is done: "first"."""
    folder = tmp_path_factory.mktemp("another")
    (folder / "task.py").write_text(TASK + RETRAINED)
    (folder / "search.toml").write_text(CONFIG)
    with placed(folder):
        command("search", ".", "--run", "first")
    return folder


def _trials(run: Path) -> tuple[list[TrialRow], list[TrialRow]]:
    """Those that are known from another run, and those that are tried here."""
    rows = open_run(run).trials()
    known = [r for r in rows if r.known_from is not None]
    return known, [r for r in rows if r.known_from is None and not r.is_heir]


def _bits(row: TrialRow) -> set[tuple[int, int]]:
    there = Policy.from_json(row.policy).there() if row.policy else {}
    return {(layer.weight_bits, layer.activation_bits) for layer in there.values()}


def test_what_is_nearest_to_a_front_of_another_space_is_tried() -> None:
    network = lf.capture(*_model()).network
    wide, narrow = (
        Space(network, load_profile(name), [0.0, 0.5], [4, 8, 32], [8, 32])
        for name in ("this-machine", "raspberry-pi-4")
    )
    rng, rows = np.random.default_rng(0), []
    while len(rows) < 40:
        policy = wide.random(rng)
        if any(layer.weight_bits == 4 for layer in policy.values()):
            rows.append(TrialRow(len(rows), "complete", accuracy=0.9, policy=policy.to_json()))
    study = optuna.create_study()
    assert _enqueued(rows, narrow, study, "first") == TRIED_AGAIN
    asked = [trial.system_attrs["fixed_params"] for trial in study.trials]
    nearest = [narrow.params_of(narrow.nearest(Policy.from_json(row.policy))) for row in rows]
    assert 3 <= len(asked) <= TRIED_AGAIN  # each once
    assert all(one in nearest for one in asked)
    assert asked[0] == nearest[0]
    assert len({json.dumps(one, sort_keys=True) for one in asked}) == len(asked)


def test_another_part_needs_new_prices_and_no_training(folder: Path) -> None:
    with placed(folder):
        said = command(
            "search", ".", "--run", "part", "--from", "first", "--trials", "1",
            "--set", "hardware.profile=raspberry-pi-4", "--set", "export.to=onnx",
        )  # fmt: skip
    known, own = _trials(folder / "part")
    scored = {r.trial: r for r in open_run(folder / "first").trials() if r.accuracy is not None}
    assert "taken over from first, priced anew: " in said
    assert {r.known_from for r in known} <= set(scored)
    assert len(known) >= 3
    captured = lf.capture(*_model())
    for row in known:
        before = scored[int(row.known_from or 0)]
        assert (row.accuracy, row.divergence, row.policy) == (
            before.accuracy,
            before.divergence,
            before.policy,
        )
        assert row.seconds is None
        cost = lf.cost(captured, Policy.from_json(row.policy), profile="raspberry-pi-4")
        assert row.latency_ms == pytest.approx(cost.latency_ms)
        if row.state == "complete" and open_run(folder / "part").checkpoint(row.trial).exists():
            weights = open_run(folder / "first").checkpoint(before.trial).read_bytes()
            assert open_run(folder / "part").checkpoint(row.trial).read_bytes() == weights
    assert sum(r.state == "complete" for r in own) == 1
    environment = open_run(folder / "part").environment()["started_from"]
    assert environment["taken_over"] == len(known)
    assert environment["differs"] == []
    assert environment["tried_again"] == environment["bequests"] == 0
    assert all(_bits(r) <= {(8, 8), (32, 32)} for r in own)
    with placed(folder):  # the same line again goes on, and takes nothing over twice
        command(
            "search", ".", "--run", "part", "--from", "first", "--trials", "2",
            "--set", "hardware.profile=raspberry-pi-4", "--set", "export.to=onnx",
        )  # fmt: skip
    again, own = _trials(folder / "part")
    assert [r.trial for r in again] == [r.trial for r in known]
    assert sum(r.state == "complete" for r in own) == 2


def test_what_a_part_has_no_kernels_for_leaves_its_weights_to_what_is_nearest(folder: Path) -> None:
    bits = ("--set", "space.weight_bits=[4]", "--set", "space.activation_bits=[8]")
    narrow = (*bits, "--set", "search.sampler=random", "--trials", "2")
    part = ("--set", "hardware.profile=raspberry-pi-4", "--set", "export.to=onnx", "--trials", "1")
    with placed(folder):
        command("search", ".", "--run", "narrow", *narrow)
        said = command("search", ".", "--run", "wide", "--from", "narrow", *part)
    before, run = open_run(folder / "narrow"), open_run(folder / "wide")
    front = front_rows(before.trials(), ["accuracy", "latency_ms", "size_bytes"])
    strange = {r.trial: r for r in front if not _bits(r) <= {(8, 8), (32, 32)}}
    heirs = [r for r in run.trials() if r.is_heir]
    assert 1 <= len(heirs) <= len(strange)  # two may have the same nearest policy
    assert run.environment()["started_from"]["bequests"] == len(strange)
    assert f"of its front, in another space, {len(strange)} leave their weights" in said
    captured = lf.capture(*_model())
    for row in heirs:
        parent = Policy.from_json(strange[int(row.weights_from or 0)].policy)
        policy = Policy.from_json(row.policy)
        assert {n: p.sparsity for n, p in policy.items()} == {n: p.sparsity for n, p in parent.items()}
        assert _bits(row) == {(8, 8)}
        assert row.is_heir
        assert row.rung is None
        assert row.latency_ms == pytest.approx(lf.cost(captured, policy, profile="raspberry-pi-4").latency_ms)
        assert (row.accuracy or 0.0) >= strange[int(row.weights_from or 0)].accuracy - 0.05
    assert sum(not r.is_heir and r.state == "complete" for r in run.trials()) == 1


@pytest.mark.slow
def test_what_a_space_does_not_cut_so_far_leaves_nothing(folder: Path) -> None:
    cut = ("--set", "space.sparsity=[0.5]", "--set", "space.weight_bits=[4]", "--trials", "2")
    with placed(folder):
        command("search", ".", "--run", "cut", *cut)
        command(
            "search", ".", "--run", "less", "--from", "cut", "--set", "space.sparsity=[0.0]", "--trials", "1"
        )
    rows = open_run(folder / "less").trials()
    assert not any(r.is_heir or r.state == "failed" for r in rows)
    assert any(r.state == "complete" for r in rows)


def test_each_network_leaves_something_once_whatever_is_missing(folder: Path, tmp_path: Path) -> None:
    """Of another space those whose weights were kept, then what is on the front and was taken over."""
    first = open_run(folder / "first")
    study = optuna.create_study()
    run = tmp_path / "run"
    shutil.copytree(first.path, run)
    rows = first.trials()
    kept = [row for row in rows if first.checkpoint(row.trial).exists()]
    lost = [row for row in rows if not first.checkpoint(row.trial).exists()]
    assert kept
    assert lost
    assert announce(study, first, [*kept, *lost]) == len(kept)
    study.set_user_attr("bequests", [row.trial for row in (*kept, *lost)])  # weights went away since
    own = open_run(run)
    own.update_environment(started_from={"run": str(first.path)})
    problem = SimpleNamespace(objectives=("accuracy", "latency_ms", "size_bytes"))
    heirs: Any = SimpleNamespace(study=study, run=own, problem=problem, worker="one")
    over = [replace(row, known_from=100.0 + row.trial) for row in rows]
    left: list[tuple[int, Path]] = []

    class Noted(Bequests):
        def _leaves(self, row: TrialRow, run: RunFolder) -> None:
            left.append((row.trial, run.path))

    workers = [Noted(heirs, lambda: over, lambda said: None) for _ in range(2)]
    while sum(worker.one() for worker in workers):  # all of them in each round
        pass
    front = {row.trial for row in front_rows(over, problem.objectives)}
    wanted = [(row.trial, first.path.resolve()) for row in kept]
    assert [(trial, path.resolve()) for trial, path in left[: len(kept)]] == wanted
    assert {trial for trial, path in left[len(kept) :] if path == own.path} == front & {r.trial for r in kept}
    assert len(left) == len(set(left))
    with registered(own) as killed:
        pass
    study.set_user_attr(f"bequest-{kept[0].trial}", killed)  # in the midst of it
    workers[0].over = False
    assert workers[0].one()
    assert (left[-1][0], left[-1][1].resolve()) == wanted[0]
    assert not workers[0].one()


def _model() -> tuple[object, object]:
    namespace: dict[str, object] = {}
    exec(TASK, namespace)
    task = namespace["task"]()  # type: ignore[operator]
    return task.model, task.example_input


@pytest.mark.slow
def test_new_limits_are_held(folder: Path) -> None:
    sizes = sorted(r.size_bytes or 0 for r in open_run(folder / "first").trials() if r.state == "complete")
    with placed(folder):
        limit = f"limits.size_bytes={sizes[-1] - 1}"
        command("search", ".", "--run", "limit", "--from", "first", "--trials", "1", "--set", limit)
    known, _ = _trials(folder / "limit")
    assert {r.state for r in known if (r.size_bytes or 0) > sizes[-1] - 1} == {"infeasible"}
    assert all((r.size_bytes or 0) < sizes[-1] for r in known if r.state == "complete")


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        pytest.param(
            "task.options={scale = 1.01}", "the weights of the model are others", marks=pytest.mark.slow
        ),
        ("task.options={brighter = true}", "the data are others"),
        pytest.param("finetune.batch=8", "finetune.batch is 8, not 16", marks=pytest.mark.slow),
    ],
)
def test_what_no_longer_holds_is_scored_again(folder: Path, setting: str, why: str) -> None:
    run = folder / f"again-{abs(hash(setting))}"
    with placed(folder):
        said = command("search", ".", "--run", str(run), "--from", "first", "--trials", "1", "--set", setting)
    assert f"no longer hold ({why})" in said
    known, own = _trials(run)
    assert not known
    front = {row.policy for row in open_run(folder / "first").trials() if row.state == "complete"}
    assert Policy.from_json(own[0].policy).digest in {Policy.from_json(text).digest for text in front}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--run", "first", "--from", "first"), "is its own; leave --from out"),
        (("--run", "x", "--from", "nowhere"), "nowhere"),
        (("--run", "y", "--from", "first", "--set", "task.options={wide = true}"), "layer '2' is"),
    ],
)
def test_a_run_that_is_none_or_another_networks(folder: Path, words: tuple[str, ...], said: str) -> None:
    with placed(folder):
        told = command("search", ".", *words, "--trials", "5", ends=2)
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert said in line


def test_a_digest_of_data_sees_what_changes() -> None:
    namespace: dict[str, object] = {}
    exec(TASK, namespace)
    task = namespace["task"]()  # type: ignore[operator]
    fewer = namespace["task"](images=237)  # type: ignore[operator]
    one, two = (data_digest(as_data(each.train), as_data(each.search)) for each in (task, fewer))
    assert one != two
    assert one == data_digest(as_data(task.train), as_data(task.search))
    assert json.dumps(one)
