"""A network in its task: answers that are the same for every example."""

import torch

from leanfront.compression.training.distillation import CLASSES, LOGITS, VALUES
from leanfront.search.trial.in_task import constant_answers


def test_the_most_frequent_class_comes_first_and_what_is_not_counted_is_none() -> None:
    targets = torch.tensor([[2, 2, 255], [2, 1, -100]])  # pixels; 255 and -100 are left out of a loss
    found = list(constant_answers(CLASSES, torch.zeros(2, 3, 3), targets))
    assert [said for said, _ in found] == ["class 2", "class 1"]
    assert found[0][1].argmax(1).tolist() == [[2, 2, 2]]


def test_yes_no_and_the_middle_of_numbers() -> None:
    assert [said for said, _ in constant_answers(LOGITS, torch.zeros(4), torch.zeros(4))] == ["yes", "no"]
    targets = torch.tensor([[0.0, 1.0], [0.0, 2.0], [9.0, 3.0]])
    middle = dict(constant_answers(VALUES, torch.zeros(3, 2), targets))
    assert middle["the mean"].tolist() == [[3.0, 2.0]]
    assert middle["the median"].tolist() == [[0.0, 2.0]]
    assert not list(constant_answers(VALUES, torch.zeros(3, 2), torch.zeros(3, 5)))
