import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compression.batchnorm import re_estimate
from compression.policy import LayerPolicy, Policy
from compression.trace import trace
from search.config import parse_config
from search.score import Scorer, TrialFailed, evaluate, load_weights, save_weights, wilson_interval
from search.task import ArrayData, Task, TaskError
from tests.networks import built, example, inputs

Loss = Callable[[Tensor, Tensor], Tensor]


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


def scorer(task: Task, profile: str = "this-machine", **finetune: object) -> Scorer:
    raw = {
        "task": {"file": "task.py"},
        "hardware": {"profile": profile},
        "finetune": {"images": 96, "batch": 32, "calibration_images": 64, **finetune},
    }
    return Scorer(trace(task.model, task.example_input), task, parse_config(raw))


def policy(judge: Scorer, sparsity: float = 0.25, weight_bits: int = 8) -> Policy:
    return Policy.uniform(judge.traced.network, LayerPolicy(sparsity, weight_bits, 8))


def test_the_baseline_is_scored_on_the_search_split() -> None:
    judge = scorer(small_task())
    score = judge.baseline()
    assert score.accuracy == 1.0
    assert score.accuracy_ci == wilson_interval(1.0, 120)


def test_a_network_that_guesses_stops_the_search() -> None:
    with pytest.raises(TaskError, match=r"must beat guessing.* on 120 search examples of 10 classes"):
        scorer(small_task(guess=True)).baseline()


def test_scores_repeat_and_the_weights_are_kept(tmp_path: Path) -> None:
    judge = scorer(small_task())
    before = {key: value.clone() for key, value in judge.traced.module.state_dict().items()}
    kept = tmp_path / "3.safetensors"
    first = judge.score(policy(judge), kept)
    second = scorer(small_task()).score(policy(judge))
    # dropout draws from torch's own generator, so trained scores differ by a few examples
    assert first.accuracy == pytest.approx(second.accuracy, abs=0.1)
    assert first.accuracy_ci == wilson_interval(first.accuracy, 120)
    assert first.accuracy > 0.3
    assert first.seconds_training > 0
    assert first.seconds_scoring > 0
    assert [path.name for path in tmp_path.iterdir()] == ["3.safetensors"]
    _, again = judge.refine(policy(judge), kept, epochs=0, learning_rate=0.01)
    assert again.accuracy == first.accuracy
    assert all(torch.equal(judge.traced.module.state_dict()[key], value) for key, value in before.items())
    assert all(value.is_contiguous() for value in judge.traced.module.state_dict().values())  # nor its layout


def test_without_training_scores_are_the_same_twice() -> None:
    scores = [scorer(small_task(), images=0) for _ in range(2)]
    assert scores[0].score(policy(scores[0])).accuracy == scores[1].score(policy(scores[1])).accuracy
    uncut = policy(scores[0], 0.0)
    assert scores[0].score(uncut).accuracy >= 0.9  # 8 bits and its own statistics cost next to nothing


def test_the_long_training_goes_further() -> None:
    judge = scorer(small_task(), images=32)
    harsh = policy(judge, 0.5, 4)
    short = judge.score(harsh).accuracy
    _, long = judge.refine(harsh, None, epochs=20, learning_rate=0.02)
    assert long.accuracy > short + 0.1


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
def test_a_trial_that_fails_says_why(raised: Exception | None, said: str, tmp_path: Path) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if raised is not None:
            raise raised
        return F.cross_entropy(outputs, targets) * math.nan

    judge = scorer(small_task(loss))
    with pytest.raises(TrialFailed, match=said) as failure:
        judge.score(policy(judge), tmp_path / "0.safetensors")
    assert "\n" not in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_a_bug_in_the_users_loss_is_not_swallowed() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    judge = scorer(small_task(loss))
    with pytest.raises(RuntimeError, match="shapes do not match") as failure:
        judge.score(policy(judge))
    assert not isinstance(failure.value, TrialFailed)


def test_evaluate_gives_one_score_per_example_and_no_gradient() -> None:
    task = small_task()
    with torch.no_grad():
        scores = evaluate(task.model.train(), task.test, task, torch.device("cpu"))
    assert scores.shape == (50,)
    assert scores.dtype == torch.float32
    assert not task.model.training
    assert set(scores.tolist()) == {1.0}


def test_weights_round_trip(tmp_path: Path) -> None:
    judge = scorer(small_task(), images=0)
    one, other = judge.prepared(policy(judge)).module, judge.prepared(policy(judge)).module
    with torch.no_grad():
        for value in one.parameters():
            value.add_(1.0)
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
