"""Metrics of a whole split: their values on paper, their resamples, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor

from leanfront.search import scores
from leanfront.search.readers.images import TaskError
from leanfront.search.run.significance import (
    interval_of,
    load_scores,
    most_lost,
    paired_interval,
    save_scores,
)
from leanfront.search.scores import (
    ACCURACY,
    AUC,
    F1,
    MEAN_ABSOLUTE_ERROR,
    MEAN_IOU,
    Metric,
    as_metric,
    described,
    taken,
    together,
)

TOLD = torch.tensor([0.1, 0.4, 0.35, 0.8])
TRUE = torch.tensor([0, 0, 1, 1])


def test_values_on_paper() -> None:
    # of the four pairs of a 1 and a 0 the 1 is above in three
    assert AUC.of(TOLD, TRUE) == 0.75
    assert AUC.of(torch.zeros(4), TRUE) == 0.5  # ties count half
    assert AUC.of(torch.stack([-TOLD, TOLD], dim=1), TRUE) == 0.75
    # above 0.3: three are claimed, two rightly, of two that are there: 2 * 2 / (3 + 2)
    assert F1.of(TOLD - 0.3, TRUE) == pytest.approx(0.8)
    assert ACCURACY.of(TOLD - 0.3, TRUE) == 0.75
    assert MEAN_ABSOLUTE_ERROR.of(TOLD, TRUE) == pytest.approx((0.1 + 0.4 + 0.65 + 0.2) / 4)
    # classes 0 and 1 on four pixels: 0 is met once of two claimed and two there: 1 / 3; so is 1
    pixels = torch.tensor([[[0, 0], [1, 1]]])
    answers = torch.nn.functional.one_hot(torch.tensor([[[0, 1], [0, 1]]]), 3).permute(0, 3, 1, 2).float()
    assert MEAN_IOU.of(answers, pixels) == pytest.approx(1 / 3)
    ignored = torch.tensor([[[0, 255], [255, 1]]])
    assert MEAN_IOU.of(answers, ignored) == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_values_are_those_of_scikit_learn(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, 40)])
    outputs = rng.integers(-3, 4, (len(targets), classes)).astype(np.float32) + rng.random(classes) * 0.01
    told, true = torch.from_numpy(outputs), torch.from_numpy(targets)
    answers = outputs.argmax(axis=1)
    average = "binary" if classes == 2 else "macro"
    assert F1.of(told, true) == pytest.approx(sk.f1_score(targets, answers, average=average))
    assert MEAN_IOU.of(told, true) == pytest.approx(sk.jaccard_score(targets, answers, average="macro"))
    each = [sk.roc_auc_score(targets == k, outputs[:, k]) for k in range(classes)]
    if classes == 2:
        each = [sk.roc_auc_score(targets, outputs[:, 1] - outputs[:, 0])]
    assert AUC.of(told, true) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("metric", [ACCURACY, AUC, F1, MEAN_ABSOLUTE_ERROR, MEAN_IOU], ids=lambda m: m.name)
def test_many_resamples_at_once_are_those_of_one_after_the_other(metric: Metric) -> None:
    rng = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(30, generator=rng), torch.randint(0, 2, (30,), generator=rng)
    at_once = metric.resamples(outputs, targets, 30, 20)
    one_by_one = replace(metric, resample=None).resamples(outputs, targets, 30, 20)
    assert at_once == pytest.approx(one_by_one, nan_ok=True)
    assert metric.resamples(outputs, targets, 30, 5) == pytest.approx(at_once[:5], nan_ok=True)


def test_a_metric_of_what_a_function_makes_is_resampled_as_fast() -> None:
    error = AUC.after(lambda outputs, targets: ((outputs["image"] - targets["image"]).abs(), targets["odd"]))
    outputs = {"image": torch.zeros(4)}
    targets = {"image": TOLD, "odd": TRUE}
    assert error.of(outputs, targets) == AUC.of(TOLD, TRUE) == 0.75
    assert (error.name, error.bounds) == ("AUC", (0.0, 1.0))
    drawn = error.resamples(outputs, targets, 4, 50)
    assert np.array_equal(drawn, AUC.resamples(TOLD, TRUE, 4, 50), equal_nan=True)
    assert error.affordable(outputs, targets, 4) == 1000  # many at once
    plain = Metric(lambda outputs, targets: outputs.mean(), "mean").after(lambda o, t: (2 * o, t))
    assert plain.of(TOLD, TRUE) == pytest.approx(2 * float(TOLD.mean()))
    assert plain.resample is None


def test_a_mean_has_the_interval_that_the_normal_distribution_gives_and_pairs_are_narrower() -> None:
    rng = np.random.default_rng(0)
    apart = rng.normal(5.0, 1.0, 2000).astype(np.float32)
    targets = torch.zeros(2000)

    def resampled(outputs: Tensor) -> Any:
        from leanfront.search.run.significance import Resampled

        drawn = MEAN_ABSOLUTE_ERROR.resamples(outputs, targets, 2000, None)
        return Resampled(-MEAN_ABSOLUTE_ERROR.of(outputs, targets), -drawn, 2000)

    one = resampled(torch.from_numpy(apart))
    low, high = interval_of(one)
    assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(2000), rel=0.08)
    assert low < one.value < high
    other = resampled(torch.from_numpy(apart + rng.normal(0.02, 0.1, 2000).astype(np.float32)))
    low, high = paired_interval(one, other)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / math.sqrt(2000), rel=0.15)
    assert low < 0.02 < high
    assert high < most_lost(one, other, 0.001) < high + 0.01


def test_resamples_are_kept_and_read_again(tmp_path: Any) -> None:
    from leanfront.search.run.significance import Resampled

    one = Resampled(-3.5, np.array([-3.0, np.nan, -4.0]), 77)
    save_scores(tmp_path / "1.npz", {96: one})
    again = load_scores(tmp_path / "1.npz")
    assert isinstance(again, Resampled)
    assert (again.value, again.examples) == (-3.5, 77)
    assert again.values == pytest.approx(one.values, nan_ok=True)
    assert interval_of(again) == (pytest.approx(-3.975), pytest.approx(-3.025))


class Counted:
    """As an object of torchmetrics is used: the share of answers that are right."""

    higher_is_better: bool | None = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self) -> None:
        self.right = self.count = 0.0

    def reset(self) -> None:
        self.right = self.count = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += float((outputs.argmax(1) == targets).sum())
        self.count += len(targets)

    def compute(self) -> Tensor:
        return torch.tensor(self.right / self.count)


def test_an_object_of_torchmetrics_is_taken_as_it_is() -> None:
    given_one = Counted()
    given_one.update(torch.eye(2), torch.tensor([1, 0]))  # as it was left by its owner
    metric = as_metric(given_one)
    assert (metric.name, metric.higher_is_better, metric.bounds) == ("Counted", True, (0.0, 1.0))
    assert metric.of(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75
    undecided = Counted()
    undecided.higher_is_better = None
    with pytest.raises(TaskError, match=r"Counted does not; give Metric\(function, \"Counted\""):
        as_metric(undecided)


def test_slow_metrics_have_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.arange(0, 100, 0.004))
    monkeypatch.setattr(scores.time, "perf_counter", lambda: float(next(clock)))
    metric = Metric(lambda outputs, targets: 0.5, "half")
    assert metric.affordable(TOLD, TRUE, 4) == 200  # 4 ms each
    clock = iter(np.arange(0, 100, 0.5))
    assert metric.affordable(TOLD, TRUE, 4) == scores.LEAST_RESAMPLES
    assert AUC.affordable(TOLD, TRUE, 4) == scores.RESAMPLES


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: as_metric(sk.f1_score), r'say which way is better: Metric\(function, "f1_score"'),
        (lambda: Metric(len, ""), "a function of .* and its name"),
        (lambda: replace(AUC, bounds=(1.0, 0.0)), r"bounds .*\(1.0, 0.0\) came for AUC"),
        (lambda: AUC.of(TOLD, torch.ones(4)), r"AUC of \(4,\) and \(4,\) is nan; check"),
        (
            lambda: Metric(lambda o, t: 87.5, "hits", bounds=(0, 1)).of(TOLD, TRUE),
            "is 87.5; .*percents by 100",
        ),
        (lambda: Metric(lambda o, t: o, "all").of(TOLD, TRUE), r"all is \(4,\); return a float"),
    ],
)
def test_what_is_no_metric(made: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        made()


def test_what_is_kept_of_a_metric() -> None:
    assert described(None) == described(ACCURACY)
    assert described(replace(MEAN_ABSOLUTE_ERROR, unit="kg")) == {
        "name": "mean absolute error", "unit": "kg", "higher_is_better": False, "bounds": [0.0, None],
        "share": False,
    }  # fmt: skip


def test_batches_are_put_together_and_taken_apart_example_by_example() -> None:
    boxes = [[{"box": torch.ones(2)}], [{"box": torch.zeros(1)}, {"box": torch.ones(1)}]]
    assert [len(each["box"]) for each in taken(together(boxes), torch.tensor([2, 0]))] == [1, 2]
    pair = together([{"a": torch.zeros(2, 3)}, {"a": torch.ones(1, 3)}])
    assert taken(pair, torch.tensor([2, 2]))["a"].tolist() == [[1, 1, 1]] * 2
