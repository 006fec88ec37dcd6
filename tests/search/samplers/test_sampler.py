"""A sampler of one's own: registered by the task's file, named by search.toml, with hooks and rungs."""

from pathlib import Path

import pytest

from leanfront.search.config import ConfigError, load_config
from leanfront.search.run.front import front_of
from leanfront.search.run.run_folder import make_run, registered
from leanfront.search.samplers import sampler_named
from leanfront.search.study.loop import Budget, search_loop
from leanfront.search.study.prepare import load, prepare
from leanfront.search.study.study import enqueue_seeds, open_study
from tests.bright import CONFIG, TASK

MINE = """
from optuna.samplers import RandomSampler

from leanfront.search.samplers import Sampler, register


@register("mine")
class Mine(Sampler):
    start = 2

    def rungs(self, images):
        return images

    def before_search(self, problem, run, write, log):
        self.space = problem.space
        log("mine has looked")
        return {"mine": {"policies": problem.space.size}}

    def warning(self, trials):
        return f"{trials} trials are few"

    def seeds(self, space):
        return [space.uniform(0.0, (8, 8))]

    def proposer(self, seed):
        return RandomSampler(seed=seed + 1)

    def expected_accuracy(self, policy):
        return 0.25

    def given_up(self, policy, reached):
        cut = max(layer.sparsity for layer in policy.values())
        return "mine says so" if reached["rung"] == 1 and cut > 0.25 else ""

    def inherited(self, study, policy, accuracy):
        return [self.space.uniform(0.25, (4, 8))]
"""

OURS = ("tpe", "nsga2", "nsga3", "gp", "random", "cascade")


def configured(folder: Path, task: str, sampler: str) -> Path:
    (folder / "task.py").write_text(task)
    (folder / "search.toml").write_text(CONFIG.replace('"tpe"', f'"{sampler}"') + "rungs = [0.0, 0.5, 1.0]\n")
    return folder


@pytest.mark.usefixtures("_all_need_training")
@pytest.mark.slow
def test_a_sampler_is_added_from_the_task_file(tmp_path: Path) -> None:
    config = load_config(configured(tmp_path, MINE + TASK, "mine"))
    loaded = load(config)
    run = make_run(tmp_path / "run", config)
    problem = prepare(loaded, run, run.log)
    sampler = problem.sampler
    assert problem.rungs == (0, 32, 64)
    assert run.environment()["mine"] == {"policies": problem.space.size}
    assert "mine has looked" in run.log_file.read_text()
    assert sampler.warning(3) == "3 trials are few"
    study = open_study(run, config.search, sampler=sampler)
    assert enqueue_seeds(study, problem.space, sampler.seeds(problem.space)) == 1
    with registered(run) as worker:
        search_loop(problem, study, run, Budget(5), worker)
    rows = run.trials()
    held = [
        row for row in rows if row.reason == "not promoted from rung 0: of the first 2 trials none is trained"
    ]
    assert [row.trial for row in held] == [0, 1]
    assert {row.expected_accuracy for row in rows if row.weights_of is None} == {0.25}
    assert [row.weights_of for row in rows if row.weights_of is not None] != []
    assert any("mine says so" in row.reason for row in rows if row.rung == 1)
    assert front_of(run)


@pytest.fixture
def _all_need_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanfront.search.trial.trial.HARMLESS", 0.0)


def test_a_sampler_that_nobody_has_is_said_with_those_that_there_are(tmp_path: Path) -> None:
    config = load_config(configured(tmp_path, TASK, "casacde"))
    with pytest.raises(
        ConfigError, match=r"search\.sampler is 'casacde'.* did you mean 'cascade'\?"
    ) as error:
        load(config)
    assert all(
        repr(name) in str(error.value) for name in ("tpe", "nsga2", "nsga3", "gp", "random", "cascade")
    )


@pytest.mark.parametrize("name", OURS)
def test_ours_do_nothing_where_they_were_not_asked_to(name: str) -> None:
    sampler = sampler_named(name)
    assert sampler is not sampler_named(name)
    assert sampler.start == 0
    assert sampler.warning(1) == ""
    assert sampler.rungs((0, 8)) == ((0, 8) if name == "cascade" else (8,))
