"""Settings of the fine-tune that are looked for: better ones are kept, lucky ones are not."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leanfront.compression.training.finetune import FineTune
from leanfront.search.config import parse_config
from leanfront.search.run.run_folder import open_run
from leanfront.search.study import tuning
from tests.bright import CONFIG, TASK
from tests.extending.walk import command, placed

OWN = FineTune(learning_rate=0.01)


def tuned_with(
    monkeypatch: pytest.MonkeyPatch,
    right: Callable[[FineTune, int], float | None],
    gained: Callable[[int], float] = lambda images: 0.0 if images == 64 else math.log2(images / 64) / 100,
) -> tuning.Tuned:
    """``tune`` where a network trained with settings has so large a share of 2,000 examples right, and by
    more images ``gained`` more."""

    class Bench:
        images, whole, networks = 64, 1024, (1, 2)

        def __init__(self, scorer: Any, wanted: Sequence[Any]) -> None:
            pass

        def scores(self, settings: FineTune, seed: int, images: int = 64) -> list[Any] | None:
            share = right(settings, seed)
            if share is None:
                return None
            share += gained(images)
            order = np.random.default_rng(0).permutation(2000)
            return [(order < share * 2000).astype(np.float32) for _ in range(2)]

    monkeypatch.setattr(tuning, "_Bench", Bench)
    monkeypatch.setattr(tuning, "policies", lambda space: [])
    scorer = SimpleNamespace(
        config=SimpleNamespace(finetune=SimpleNamespace(learning_rate=0.01)),
        settings=lambda rate: OWN,
        uncompressed=SimpleNamespace(accuracy=0.8),
    )
    return tuning.tune(scorer, None, 0, lambda line: None)  # type: ignore[arg-type]


def test_a_better_learning_rate_is_found_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def right(settings: FineTune, seed: int) -> float:
        return 0.9 - 0.1 * abs(math.log10(settings.learning_rate / 0.04))

    found = tuned_with(monkeypatch, right)
    assert found.kept
    assert 0.02 < found.settings["learning_rate"] < 0.05
    assert found.before == {"temperature": 4.0, "distillation_weight": 0.9, "learning_rate": 0.01}
    assert 0 < found.interval[0] <= found.won <= found.interval[1]
    assert "kept" in found.sentence


def test_what_wins_by_chance_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    luck = np.random.default_rng(1)

    def right(settings: FineTune, seed: int) -> float:
        return 0.8 if seed == tuning._FRESH else 0.8 + 0.02 * luck.random()

    found = tuned_with(monkeypatch, right)
    assert not found.kept
    assert found.won == 0
    assert "may be noise" in found.sentence


@pytest.mark.parametrize(
    ("gained", "length"),
    [
        (lambda images: 0.05, 256),  # a quarter does as well
        (lambda images: min(images, 512) / 10_000, 512),
        (lambda images: 0.05 - (images < 1024) * 0.001, 256),  # surely less than half a point
        (lambda images: images / 10_000, None),
        (lambda images: 0.05 if images == 1024 else 0.046, None),  # which may be noise, but may be more
    ],
)
def test_the_shortest_training_that_does_as_well(
    monkeypatch: pytest.MonkeyPatch, gained: Callable[[int], float], length: int | None
) -> None:
    found = tuned_with(monkeypatch, lambda settings, seed: 0.8, gained)
    assert found.length == length
    assert ("images train as well as more" in found.sentence) is (length is not None)
    config = parse_config({"task": {"file": "task.py"}, "finetune": {"images": 1024}})
    assert config.tuned(found.to_dict()).finetune.images == (length or 1024)
    assert config.tuned(found.to_dict()).finetune.learning_rate == config.finetune.learning_rate


def test_settings_that_diverge_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned_with(monkeypatch, lambda settings, seed: None if settings.learning_rate > 0.01 else 0.8)
    assert found.settings["learning_rate"] <= 0.01
    assert not found.kept


@pytest.mark.slow
def test_a_search_trains_with_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    with placed(tmp_path):
        said = command("search", ".", "--run", "run", "--trials", "1", "--set", "finetune.tune=true")
        command("search", ".", "--run", "run", "--trials", "1")  # what it found is kept: nothing differs
    assert "tuned on 16 settings" in said
    run = open_run(tmp_path / "run")
    found = run.environment()["tuned"]
    config = run.config()
    better = run.tuned(config).finetune
    expected = found["settings" if found["kept"] else "before"]
    assert {name: getattr(better, name) for name in tuning.WHAT} == pytest.approx(expected)
    assert config.tuned({**found, "kept": True}).finetune.learning_rate == found["settings"]["learning_rate"]
    assert config.tuned({**found, "kept": False}) == config


@pytest.mark.parametrize(
    ("hours", "tune", "tunes"),
    [(8.0, None, True), (1.0, None, False), (8.0, False, False), (None, True, True)],
)
def test_long_searches_tune(hours: float | None, tune: bool | None, tunes: bool) -> None:
    raw: dict[str, Any] = {"task": {"file": "task.py"}, "finetune": {}, "search": {}}
    raw["finetune"] |= {} if tune is None else {"tune": tune}
    raw["search"] |= {} if hours is None else {"hours": hours}
    assert parse_config(raw).tunes is tunes
