"""A network in its task: what it is called with, and answers that are the same for every example."""

from pathlib import Path

import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.training.distillation import CLASSES, LOGITS, VALUES
from leanfront.networks import file_of
from leanfront.search.gate.prove import prove
from leanfront.search.trial.in_task import AsFile, answer_spec, constant_answers


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


class Difference(nn.Module):
    """Two inputs of one shape that are not the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) - 3 * self.b(y)


def test_keywords_come_in_any_order(tmp_path: Path) -> None:
    model, x, y = Difference().eval(), torch.randn(6, 4), torch.randn(6, 4)
    captured = lf.capture(model, {"x": x[:1], "y": y[:1]})
    plain = lf.compress(captured, lf.uniform(captured))
    file = AsFile(file_of(plain), captured.traced, answer_spec(captured.traced))
    torch.testing.assert_close(file(y=y, x=x), model(x, y))
    turned = {"y": y, "x": x}
    eight = lf.compress(captured, lf.uniform(captured, 0.0, 8, 8), calibration=[turned])
    lf.export(eight, tmp_path / "model.onnx")  # holds it against the network on these inputs
    assert prove(model, captured, {"x": x[:1], "y": y[:1]}, [turned]).passed
