"""How answers are compared with the teacher's: kinds from targets, and values known on paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from leanfront.compression.training.distillation import (
    CLASSES,
    LOGITS,
    VALUES,
    AnswerKind,
    Comparison,
    Divergence,
    kind_of_answer,
    kinds_of_answers,
)

LOGITS_OF_TWO = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("output", "target", "kind"),
    [
        (torch.zeros(6, 3), torch.arange(6) % 3, CLASSES),
        (torch.zeros(6, 3, 4, 4), torch.zeros(6, 4, 4, dtype=torch.int64), CLASSES),
        (torch.zeros(6, 3), torch.softmax(torch.randn(6, 3), 1), CLASSES),  # soft labels
        (torch.zeros(6), torch.arange(6) % 2, LOGITS),
        (torch.zeros(6, 1), (torch.arange(6) % 2).float(), LOGITS),
        (torch.zeros(6, 3), torch.tensor([[1.0, 1.0, 0.0]] * 6), LOGITS),  # several labels
        (torch.zeros(6, 1), torch.arange(6.0), VALUES),
        (torch.zeros(6, 3), torch.randn(6, 3), VALUES),
        (torch.zeros(6, 3, 5, 5), torch.randn(6, 3, 5, 5), VALUES),  # an autoencoder
        (torch.zeros(6, 3), None, VALUES),
        (torch.zeros(6, 1), torch.arange(6), VALUES),  # counts, not classes
    ],
)
def test_targets_say_of_what_kind_an_answer_is(
    output: Tensor, target: Tensor | None, kind: AnswerKind
) -> None:
    assert kind_of_answer(output, target) is kind


def test_each_tensor_has_its_kind_where_there_are_as_many_targets() -> None:
    outputs = {"class": torch.zeros(4, 3), "box": torch.zeros(4, 4)}
    targets = {"class": torch.arange(4) % 3, "box": torch.rand(4, 4) + 2}
    assert kinds_of_answers(outputs, targets) == (CLASSES, VALUES)
    assert kinds_of_answers(outputs, torch.arange(4)) == (VALUES, VALUES)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_yes_and_no_are_bernoullis_divergence(temperature: float) -> None:
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    softened = [Bernoulli(logits=each / temperature) for each in (teacher, student)]
    wanted = temperature**2 * kl_divergence(*softened).sum(1).mean()
    torch.testing.assert_close(Comparison((LOGITS,)).loss(student, teacher, temperature), wanted)


def test_numbers_differ_in_units_of_their_column() -> None:
    teacher = torch.tensor([[0.0, 0.0], [2.0, 200.0]])  # variances 1 and 10000
    student = teacher + torch.tensor([[1.0, 100.0]])
    assert float(Comparison((VALUES,)).loss(student, teacher, 4.0)) == pytest.approx(0.5)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sampled_from([CLASSES, LOGITS, VALUES]))
def test_batches_do_not_change_a_divergence(sizes: list[int], kind: AnswerKind) -> None:
    student, teacher = torch.randn(2, sum(sizes), 3, generator=torch.Generator().manual_seed(len(sizes)))
    whole, parts = Divergence(Comparison((kind,))), Divergence(Comparison((kind,)))
    whole.add(student, teacher)
    for ours, theirs in zip(student.split(sizes), teacher.split(sizes), strict=True):
        parts.add(ours, theirs)
    assert parts.value() == pytest.approx(whole.value(), rel=1e-4)
    assert whole.value() == pytest.approx(float(kind.loss(student, teacher, 1.0)), rel=1e-4)


def test_the_users_own_function_is_what_counts() -> None:
    own = Comparison((CLASSES,), lambda ours, theirs: (ours - theirs).abs().mean())
    divergence = Divergence(own)
    divergence.add(torch.zeros(3, 2), torch.ones(3, 2))
    divergence.add(torch.zeros(1, 2), torch.full((1, 2), 5.0))
    assert divergence.value() == pytest.approx(2.0)
    assert float(own.loss(torch.zeros(1, 2), torch.ones(1, 2), 9.0)) == 1.0


def test_agreement_is_about_what_is_decided() -> None:
    ours, theirs = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert Comparison((CLASSES,)).agreement(ours, theirs).tolist() == [0.0, 1.0]
    assert Comparison((LOGITS,)).agreement(ours, theirs).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert Comparison((VALUES,)).agreement(ours, theirs) is None


def test_a_network_from_itself_is_zero() -> None:
    for kind in (CLASSES, LOGITS, VALUES):
        found = Divergence(Comparison((kind,)))
        found.add(LOGITS_OF_TWO, LOGITS_OF_TWO)
        assert 0.0 <= found.value() < 1e-6
    assert math.isfinite(found.value())


def test_the_most_frequent_class_comes_first_and_what_is_not_counted_is_none() -> None:
    targets = torch.tensor([[2, 2, 255], [2, 1, -100]])  # pixels; 255 and -100 are left out of a loss
    found = list(CLASSES.constants(torch.zeros(2, 3, 3), targets))
    assert [said for said, _ in found] == ["class 2", "class 1"]
    assert found[0][1].argmax(1).tolist() == [[2, 2, 2]]


def test_yes_no_and_the_middle_of_numbers() -> None:
    assert [said for said, _ in LOGITS.constants(torch.zeros(4), torch.zeros(4))] == ["yes", "no"]
    targets = torch.tensor([[0.0, 1.0], [0.0, 2.0], [9.0, 3.0]])
    middle = dict(VALUES.constants(torch.zeros(3, 2), targets))
    assert middle["the mean"].tolist() == [[3.0, 2.0]]
    assert middle["the median"].tolist() == [[0.0, 2.0]]
    assert not list(VALUES.constants(torch.zeros(3, 2), torch.zeros(3, 5)))
