import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.masks import zero_share
from leanfront.compression.training.batch_norms import re_estimate
from leanfront.compression.training.distillation import VALUES, Comparison
from leanfront.compression.training.features import LAYERS, with_features
from leanfront.search.config import parse_config
from leanfront.search.run.significance import wilson_interval
from leanfront.search.samplers import sampler_named
from leanfront.search.scores import AUC, Metric
from leanfront.search.task import ArrayData, Task, TaskError
from leanfront.search.trial.in_task import AsFile, InTask
from leanfront.search.trial.long_training import refine, rounds
from leanfront.search.trial.scored import TrialFailed
from leanfront.search.trial.scorer import Scorer, evaluate
from leanfront.search.trial.weights import load_weights, save_weights
from tests.networks import built, example, inputs

Loss = Callable[[Tensor, Tensor], Tensor]


def small_task(loss: Loss = F.cross_entropy, guess: bool = False) -> Task:
    """Labels are what the network answers, so that it is never wrong; or random ones."""
    model = built("Chain")
    re_estimate(model, [inputs("Chain", 500, 3)])  # as training leaves it
    splits = []
    for seed, count in ((0, 160), (1, 120), (2, 50)):
        x = inputs("Chain", count, seed)
        with torch.no_grad():
            labels = model(x).argmax(1).numpy()
        if guess:
            labels = np.random.default_rng(seed).integers(0, 10, count)
        splits.append(ArrayData(x.numpy(), labels, (0.0,) * 3, (1.0,) * 3))
    return Task(model, example("Chain"), *splits, loss=loss)


MADE = small_task()


def scorer(task: Task, profile: str = "this-machine", sampler: str = "tpe", **finetune: object) -> Scorer:
    raw = {
        "task": {"file": "task.py"},
        "search": {"sampler": sampler},
        "hardware": {"profile": profile},
        "finetune": {"images": 96, "batch": 32, "calibration_images": 64, **finetune},
    }
    config = parse_config(raw)
    rungs = sampler_named(config.search.sampler).rungs(config.rung_images)
    return Scorer(trace(task.model, task.example_input), task, config, rungs=rungs)


def policy(judge: Scorer, sparsity: float = 0.25, weight_bits: int = 8) -> Policy:
    return Policy.uniform(judge.traced.network, LayerPolicy(sparsity, weight_bits, 8))


def test_the_baseline_is_scored_on_the_search_split() -> None:
    judge = scorer(small_task())
    score = judge.baseline()
    assert score.accuracy == 1.0
    assert score.accuracy_ci == wilson_interval(1.0, 120)


def test_what_layers_inside_say_is_trained_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[list[str], float]] = []

    def spied(lesson: Any, student: Any, teacher: Any, layers: list[str], weight: float) -> Any:
        told.append((layers, weight))
        return with_features(lesson, student, teacher, layers, weight)

    monkeypatch.setattr("leanfront.search.trial.scorer.with_features", spied)
    for weight in (0.0, 5.0):
        judge = scorer(small_task(), features=weight)
        candidate = judge.start(policy(judge, 0.5))
        scores = [candidate.score(rung).accuracy for rung in range(len(judge.rungs))]
        assert all(0 <= score <= 1 for score in scores)
    assert {weight for _, weight in told} == {5.0}
    assert all(1 <= len(layers) <= LAYERS for layers, _ in told)


def test_a_network_that_guesses_stops_the_search() -> None:
    with pytest.raises(
        TaskError, match=r"must beat guessing.* on 120 search examples \(always class \d: 0.1"
    ):
        scorer(small_task(guess=True)).baseline()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"score": lambda o, t: 100.0 * (o.argmax(1) == t)}, "between 0 and 1, but 100 came; divide percents"),
    ({"score": lambda o, t: o}, r"one number for each example, \(120,\), but \(120, 10\) came"),
    ({"score": lambda o, t: math.nan * t}, "must have a score, but on the search split the score is not a"),
    ({"metric": Metric(lambda o, t: 0.5, "luck")}, r"scores 0.5.*\(always class \d: 0.50*, which is the"),
    ({"metric": Metric(lambda o, t: math.nan, "luck")}, r"luck of \(120, 10\) and \(120,\) is nan; chec"),
    ({"metric": Metric(lambda o, t: 87.5, "hits", bounds=(0, 1))}, "hits is said to lie between 0 and 1"),
    ({"metric": Metric(lambda o, t: o @ t, "dots")}, r"metric dots .* failed with \(120, 10\) and \(120,"),
    ({"loss": F.mse_loss}, r"loss takes .* failed with \(120, 10\) and \(120,\): RuntimeError: The size"),
    ({"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")}, r"number .* \(120,\) came; take it"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_a_score_or_a_loss_that_is_none_stops_the_search(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        scorer(replace(MADE, **changes)).baseline()


def test_a_metric_is_kept_so_that_more_is_better_and_guessing_is_beaten() -> None:
    wrong = Metric(
        lambda o, t: (o.argmax(1) != t).float().mean(), "wrong", higher_is_better=False, bounds=(0, 1)
    )
    judge = scorer(replace(MADE, metric=wrong))
    score = judge.baseline()
    assert score.accuracy == 0.0  # nothing is wrong
    cut = judge.untrained(policy(judge, 0.5, 4), 120, 64, 64)
    assert -1 <= cut.accuracy < 0
    assert cut.accuracy_ci == (-math.inf, math.inf)  # of what is only looked at nobody asks for an interval
    judge = scorer(replace(small_task(guess=True), metric=AUC))
    with pytest.raises(TaskError, match=r"must beat guessing.*0.5000\)"):
        judge.baseline()


def test_scores_repeat_and_the_weights_are_kept(tmp_path: Path) -> None:
    judge = scorer(small_task())
    before = {key: value.clone() for key, value in judge.traced.module.state_dict().items()}
    kept = tmp_path / "3.safetensors"
    candidate = judge.start(policy(judge))
    first = candidate.score(0)
    candidate.keep(kept)
    second = scorer(small_task()).start(policy(judge)).score(0)
    # dropout draws from torch's own generator, so trained scores differ by a few examples
    assert first.accuracy == pytest.approx(second.accuracy, abs=0.1)
    assert first.accuracy_ci == wilson_interval(first.accuracy, 120)
    assert first.accuracy > 0.3
    assert first.seconds_training > 0
    assert first.seconds_scoring > 0
    assert [path.name for path in tmp_path.iterdir()] == ["3.safetensors"]
    _, again = refine(judge, policy(judge), kept, epochs=0, learning_rate=0.01)
    assert again.accuracy == first.accuracy
    assert again.settled == candidate.settled  # of the weights that were kept, not of those before them
    assert set(again.settled) == {"weights", "batch_norms", "ranges", "biases"}
    assert all(torch.equal(judge.traced.module.state_dict()[key], value) for key, value in before.items())
    assert all(value.is_contiguous() for value in judge.traced.module.state_dict().values())  # nor its layout


def test_without_training_scores_are_the_same_twice() -> None:
    scores = [scorer(small_task(), images=0) for _ in range(2)]
    first, second = [judge.start(policy(judge)).score(0) for judge in scores]
    assert (first.accuracy, first.divergence) == (second.accuracy, second.divergence)
    uncut = scores[0].start(policy(scores[0], 0.0)).score(0)
    assert uncut.accuracy >= 0.9  # 8 bits and its own statistics cost next to nothing
    assert 0 < uncut.divergence < first.divergence / 4


def test_training_goes_on_from_where_it_was_and_scores_on_the_same_images() -> None:
    judge = scorer(small_task(), sampler="cascade", rungs=[0.0, 0.5, 1.0])
    assert judge.rungs == (0, 48, 96)
    candidate = judge.start(policy(judge, 0.8, 4))
    weights = [next(candidate.compressed.module.parameters()).clone()]
    scores = []
    for rung in range(3):
        scores.append(candidate.score(rung))
        weights.append(next(candidate.compressed.module.parameters()).clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(weights)]
    assert moved == [False, True, True]
    # its layers were fitted before: training may leave little to win, and scores on the way are in bfloat16
    assert max(score.divergence for score in scores[1:]) < 1.05 * scores[0].divergence
    assert [len(score.scores) for score in scores] == [120] * 3
    assert all(score.scores.mean() == pytest.approx(score.accuracy) for score in scores)
    whole = judge.start(policy(judge, 0.8, 4)).score(
        2
    )  # rungs that are not asked for are trained all the same
    assert whole.accuracy == pytest.approx(scores[2].accuracy, abs=0.1)


def test_before_training_a_part_of_the_images_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanfront.search.trial.scorer.UNTRAINED_IMAGES", 40)
    for module in ("batches", "scorer"):
        monkeypatch.setattr(f"leanfront.search.trial.{module}.SCORING_BATCH", 20)
    judge = scorer(small_task(), sampler="cascade")
    candidate = judge.start(policy(judge))
    first, second = candidate.score(0), candidate.score(1)
    assert (len(first.scores), len(second.scores)) == (40, 120)
    baseline = judge.baseline()
    assert baseline.divergence == pytest.approx(0.0, abs=1e-6)
    assert len(baseline.scores) == 120


def test_what_needs_no_training_is_scored_as_its_file_on_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanfront.search.trial.scorer.UNTRAINED_IMAGES", 40)
    judge = scorer(small_task(), sampler="cascade")
    candidate = judge.start(policy(judge, 0.0, 8))
    candidate.score(0)
    before = {name: value.clone() for name, value in candidate.compressed.module.state_dict().items()}
    score = candidate.as_it_is()
    assert all(
        torch.equal(value, before[name]) for name, value in candidate.compressed.module.state_dict().items()
    )
    scores, divergence = evaluate(
        judge.in_task(fold(candidate.compressed).module), judge.batches.searched, judge.batches.comparison
    )
    assert len(score.scores) == 120
    assert score.scores.tolist() == scores.tolist()
    assert score.divergence == pytest.approx(divergence, rel=0.05)


@pytest.mark.slow
def test_the_long_training_goes_further() -> None:
    judge = scorer(small_task(), images=32)
    harsh = policy(judge, 0.8, 4)
    short = judge.start(harsh).score(0).accuracy
    _, long = refine(judge, harsh, None, epochs=20, learning_rate=0.02)
    assert long.accuracy > short + 0.02


def test_rounds_of_a_long_training() -> None:
    assert rounds(8, 0.2) == [1, 2, 5]
    assert rounds(16, 0.2) == [1, 2, 4, 9]
    assert rounds(4, 0.2) == [1, 3]
    assert rounds(2, 0.2) == [2]
    assert rounds(0, 0.2) == [0]
    assert rounds(30, 8) == [8, 22]  # a round that is shorter than the short fine-tune was says nothing


def test_a_long_training_that_brings_nothing_ends_and_its_start_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = scorer(small_task(), images=32)
    candidate = judge.start(policy(judge))
    short = candidate.score(0)
    candidate.keep(tmp_path / "kept.safetensors")
    trained = []

    def spoiled(
        compressed: Compressed, batches: object, steps: int, learning_rate: float, schedule: str
    ) -> None:
        trained.append(steps)
        with torch.no_grad():
            for value in compressed.module.parameters():
                value.mul_(-1.0)

    said: list[str] = []
    monkeypatch.setattr(judge, "fine_tune", spoiled)
    monkeypatch.setattr(judge, "note", said.append)
    compressed, score = refine(judge, policy(judge), tmp_path / "kept.safetensors", 16, 0.02)
    assert trained == [5, 10]  # of 160 images in batches of 32: an epoch and two; not the other thirteen
    assert score.accuracy == short.accuracy
    for name, value in load_file(tmp_path / "kept.safetensors").items():
        assert torch.equal(compressed.module.state_dict()[name], value)
    assert said[-1].startswith("after 3 epochs: ")


@pytest.mark.slow
def test_zeros_that_come_by_a_schedule_come_in_one_round_from_the_uncompressed_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = scorer(small_task())
    zeros = Policy.uniform(judge.traced.network, LayerPolicy(0.0, 8, 8, more=(("unstructured", 0.8),)))
    candidate = judge.start(zeros)
    candidate.score(0)
    candidate.keep(tmp_path / "kept.safetensors")
    kept = load_file(tmp_path / "kept.safetensors")
    rounds_of, began = [], []

    def seen(
        compressed: Compressed, batches: object, steps: int, learning_rate: float, schedule: str
    ) -> None:
        rounds_of.append((steps, schedule))
        began.append({name: value.clone() for name, value in compressed.module.state_dict().items()})

    monkeypatch.setattr(judge, "fine_tune", seen)
    weight = "0.0.parametrizations.weight.original"
    for given, schedule, rounds_wanted in (
        ("one-shot", "one-shot", [5, 10]),
        ("iterative", "iterative", [35]),
        (None, "gradual", [35]),  # they are many
    ):
        rounds_of.clear(), began.clear()
        compressed, _ = refine(judge, zeros, tmp_path / "kept.safetensors", 7, 0.02, given)
        assert rounds_of == [(steps, schedule) for steps in rounds_wanted]
        assert torch.equal(began[0][weight], kept[weight]) == (schedule == "one-shot")
        assert zero_share(compressed.module) >= 0.79
    refine(judge, policy(judge), None, 7, 0.02, "gradual")  # nothing is 0: as ever
    assert rounds_of[-1] != (35, "gradual")
    half = Policy.uniform(judge.traced.network, LayerPolicy(0.0, 8, 8, more=(("2:4", 0.5),)))
    refine(judge, half, None, 2, 0.02)
    assert rounds_of[-1] == (10, "one-shot")


def test_channels_snap_to_the_multiple_of_the_part() -> None:
    judge = scorer(small_task(), profile="toy")
    judge.multiple = 4
    compressed = judge.prepared(policy(judge, 0.4))
    assert [layer.shape.out_channels for layer in compressed.network.layers] == [4, 8, 8, 10]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (None, "the loss became nan at step 1"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
            "out of memory: Default",
        ),
    ],
)
def test_a_trial_that_fails_says_why(raised: Exception | None, said: str) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if raised is not None:
            raise raised
        return F.cross_entropy(outputs, targets) * math.nan

    judge = scorer(small_task(loss))
    with pytest.raises(TrialFailed, match=said) as failure:
        judge.start(policy(judge)).score(0)
    assert "\n" not in str(failure.value)


def test_a_bug_in_the_users_loss_is_not_swallowed() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    judge = scorer(small_task(loss))
    with pytest.raises(RuntimeError, match="shapes do not match") as failure:
        judge.start(policy(judge)).score(0)
    assert not isinstance(failure.value, TrialFailed)


def test_evaluate_gives_one_score_per_example_and_no_gradient() -> None:
    task = small_task()
    with torch.no_grad():
        wrong = torch.zeros(50, 10)
        inputs, targets = task.test.batch(torch.arange(50), None)
        scores, divergence = evaluate(
            InTask(task, task.model.train(), None), [(inputs, targets, wrong)], Comparison()
        )
        chances = task.model(inputs).softmax(1)
    assert divergence == pytest.approx(float(-(0.1 * (10 * chances).log()).sum(1).mean()))
    assert scores.shape == (50,)
    assert scores.dtype == np.float32
    assert not task.model.training
    assert set(scores.tolist()) == {1.0}


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_single_outputs_diverge_by_their_squared_difference(shape: tuple[int, ...]) -> None:
    """Half the mean squared difference over the teacher's variance, whatever the batches."""
    wanted = torch.tensor([1.0, 2.0, 3.0, 6.0, 8.0, 4.0])

    class Off(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 0.5).reshape(shape)

    task = small_task()
    task = replace(task, score=lambda outputs, targets: (outputs.flatten() > 3).float())
    batches = [(part, part, part.reshape(shape)) for part in wanted.split(4)]
    scores, divergence = evaluate(InTask(task, Off(), None), batches, Comparison((VALUES,)))
    assert scores.tolist() == [0, 0, 1, 1, 1, 1]
    assert divergence == pytest.approx(0.5 * 0.25 / float(wanted.var(correction=0)))
    same = InTask(task, torch.nn.Identity(), None)
    assert evaluate(same, [(wanted, wanted, wanted)], Comparison((VALUES,)))[1] == 0.0


def test_weights_round_trip(tmp_path: Path) -> None:
    judge = scorer(small_task(), images=0)
    one, other = judge.prepared(policy(judge)).module, judge.prepared(policy(judge)).module
    with torch.no_grad():
        for value in one.parameters():
            value.add_(1.0)
    save_weights(one, tmp_path / "w.safetensors")
    assert load_weights(other, tmp_path / "w.safetensors") == {}
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("weight_bits", [4, 8, 32])
def test_a_network_is_scored_as_the_file_that_will_run(weight_bits: int) -> None:
    judge = scorer(small_task(), images=0)
    compressed = judge.prepared(policy(judge, weight_bits=weight_bits))
    as_run, in_torch = judge.as_run(compressed), fold(compressed).module
    file = as_run.inner
    assert isinstance(file, AsFile)
    ours, divergence = evaluate(as_run, judge.batches.searched, judge.batches.comparison)
    theirs, expected = evaluate(judge.in_task(in_torch), judge.batches.searched, judge.batches.comparison)
    assert (ours != theirs).mean() <= 0.01
    assert divergence == pytest.approx(expected, rel=0.02, abs=1e-4)
    inputs_of_one = next(iter(judge.batches.searched))[0][:7]
    assert torch.allclose(file(inputs_of_one), in_torch(inputs_of_one), atol=0.05)
    judge.device = torch.device("cuda")  # where torch is the faster one
    assert not isinstance(judge.as_run(compressed).inner, AsFile)
