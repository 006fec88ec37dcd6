import csv
from pathlib import Path

import pytest
import torch

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.hw_profiles import load_profile
from leanfront.search.trial import sensitivity
from leanfront.search.trial.scorer import Scorer
from tests.search.trial.test_score import scorer, small_task


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sensitivities"


def space_of(
    judge: Scorer, weight_bits: tuple[int, ...] = (2, 8, 32), cuts: tuple[float, ...] = (0.0, 0.25, 0.75)
) -> Space:
    return Space(judge.traced.network, load_profile("toy"), cuts, weight_bits, (8, 32))


def little_of(judge: Scorer, weight_bits: tuple[int, ...] = (8, 32)) -> Space:
    return space_of(judge, weight_bits, (0.0, 0.75))


def test_each_decision_is_taken_alone() -> None:
    judge = scorer(small_task())
    space = space_of(judge)
    found = sensitivity.measure(judge, space, lambda line: None)
    names = [f"sparsity/{group}" for group in space.levels] + [
        f"bits/{layer.name}" for layer in space.network.layers
    ]
    assert list(found.divergence) == list(found.accuracy) == names
    assert found.baseline_divergence == pytest.approx(0.0, abs=1e-3)  # bfloat16
    for group, levels in space.levels.items():
        none, some, most = found.divergence[f"sparsity/{group}"]
        assert len(levels) == 3
        assert none == found.baseline_divergence < some < most
    two_bits, floats = space.pairs.index((2, 8)), space.pairs.index((32, 32))
    for layer in space.network.layers:
        bits = found.divergence[f"bits/{layer.name}"]
        assert len(bits) == len(space.pairs)
        assert bits[floats] == found.baseline_divergence
        assert bits[two_bits] > 100 * bits[space.pairs.index((8, 8))] > 0
    assert found.images == len(judge.batches.search)
    assert found.seconds > 0


def test_a_sensitivity_is_the_divergence_of_that_network() -> None:
    judge = scorer(small_task())
    space = space_of(judge)
    found = sensitivity.measure(judge, space, lambda line: None)
    layer = space.network.layers[1]
    policy = {
        one.name: LayerPolicy(0.0, 2, 8) if one is layer else LayerPolicy() for one in space.network.layers
    }
    compressed = compress(judge.traced, Policy.of(policy))
    calibrate(compressed.module, judge.batches.calibration[: sensitivity.RANGE_IMAGES // 32])
    inputs, _ = judge.batches.search.batch(torch.arange(len(judge.batches.search)), None)
    with torch.no_grad():
        student, teacher = (
            module(inputs).log_softmax(1) for module in (compressed.module, judge.teacher.inner)
        )
    divergence = float((teacher.exp() * (teacher - student)).sum(1).mean())
    assert found.divergence[f"bits/{layer.name}"][space.pairs.index((2, 8))] == pytest.approx(
        divergence, rel=1e-2
    )


def test_without_floats_the_widest_bits_are_the_reference() -> None:
    judge = scorer(small_task())
    found = sensitivity.measure(judge, space_of(judge, (2, 8)), lambda line: None)
    assert found.baseline_divergence > 0
    assert found.divergence["sparsity/1.0"][0] == found.baseline_divergence


def test_they_are_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    judge = scorer(small_task())
    first = sensitivity.measure(judge, little_of(judge), said.append)
    assert len(said) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "untrained", lambda *_: pytest.fail("measured again"))
        judge = scorer(small_task())
        assert sensitivity.measure(judge, little_of(judge), said.append) == first
        assert len(said) == 2
    sensitivity.measure(judge, little_of(judge, (2, 8, 32)), said.append)  # another space
    task = small_task()
    with torch.no_grad():
        next(task.model.parameters()).add_(0.01)
    other = scorer(task)
    assert sensitivity.measure(other, little_of(other), said.append) != first
    assert len(list(cache.iterdir())) == 3
    next(iter(cache.iterdir())).write_text("torn")
    sensitivity.measure(judge, little_of(judge), said.append)
    assert len(list(cache.iterdir())) == 3


def test_the_table_of_a_run(tmp_path: Path) -> None:
    judge = scorer(small_task())
    space = space_of(judge)
    found = sensitivity.measure(judge, space, lambda line: None)
    sensitivity.write_csv(tmp_path / "sensitivities.csv", space, found)
    with (tmp_path / "sensitivities.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(map(len, found.divergence.values()))
    assert list(rows[0]) == list(sensitivity.COLUMNS)
    assert [row["level"] for row in rows if row["decision"] == "sparsity/1.0"] == ["0", "0.25", "0.75"]
    assert [row["level"] for row in rows if row["decision"] == "bits/1.0"] == [
        f"w{weights}a{activations}" for weights, activations in space.pairs
    ]
    for row in rows:
        assert float(row["divergence"]) == found.divergence[row["decision"]][int(row["code"])]
