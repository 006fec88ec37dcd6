"""Inputs and outputs in containers of all kinds, and how far tensors lie apart: answers known on paper."""

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from leanfront.compression.capture.program import Arguments, evaluating, tensors_in
from leanfront.search.gate.tensors import (
    File,
    answers,
    answers_of_each,
    at_share,
    difference,
    drawn_like,
    in_steps,
    nudged,
    one_by_one,
    read_by,
    share_of_all,
    share_of_range,
    together,
    tolerance,
    width,
)


def test_a_tuple_has_all_arguments_and_anything_else_is_the_only_one():
    one = torch.zeros(2)
    given = {"a": one}
    assert Arguments.of(one).args[0] is one
    assert Arguments.of((1, 2)).args == (1, 2)
    assert Arguments.of(given).kwargs == given
    assert Arguments.of((given,)).args == (given,)  # not a keyword
    assert Arguments.of(Arguments.of(given)).kwargs == given
    graph = fx.symbolic_trace(Several()).graph
    assert read_by(graph, Arguments.of({"x": one, "y": 2})) == (one, 2)
    assert read_by(graph, Arguments.of((one, 2))) == (one, 2)
    nested = fx.symbolic_trace(nn.Identity()).graph  # takes one thing with two tensors in it
    assert read_by(nested, Arguments.of(({"a": one, "b": one},))) == ({"a": one, "b": one},)


def test_a_batch_is_taken_apart_and_put_together_whatever_it_is_in():
    table = torch.arange(6.0).reshape(2, 3)
    batch = ({"x": torch.arange(10.0).reshape(5, 2), "ids": torch.arange(5)}, table, 7)
    each = one_by_one(batch)
    assert len(each) == 5
    assert each[3][0]["x"].tolist() == [[6.0, 7.0]]
    assert each[3][0]["ids"].tolist() == [3]
    assert each[3][1] is table  # of no example alone
    back = together(each)
    assert torch.equal(back[0]["x"], batch[0]["x"])
    assert torch.equal(back[0]["ids"], batch[0]["ids"])
    assert back[2] == 7


def test_what_is_drawn_is_like_the_example():
    mask = torch.tensor([[0.0, -math.inf, 0.0]])
    example = (
        torch.zeros(1, 4),
        torch.tensor([[3, 5, 5]]),
        torch.full((1, 400), 8.0) + torch.randn(1, 400),
        mask,
    )
    first, second = drawn_like(example, 2, seed=1)
    assert first[0].shape == (1, 4)
    assert not torch.equal(first[0], second[0])
    assert set(first[1].reshape(-1).tolist()) <= {3, 5}
    assert first[1].dtype == torch.int64
    assert abs(float(first[2].mean()) - 8.0) < 0.5
    assert set(first[3].reshape(-1).tolist()) <= {0.0, -math.inf}
    assert torch.equal(drawn_like(example, 1, seed=1)[0][0], first[0])


class Several(nn.Module):
    """Two inputs, a dictionary with a tuple out; it changes its input in place, and drops out in training."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        x.mul_(2)
        return {"sum": self.drop(x + y), "both": (x, y.sum())}


def test_a_module_answers_in_evaluation_mode_and_is_left_as_it_was():
    module = Several().train()
    module.drop.eval()
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    first, second, third = answers(module, (x, y))
    assert torch.equal(first, torch.full((2, 3), 3.0))
    assert torch.equal(second, torch.full((2, 3), 2.0))
    assert float(third) == 6.0
    assert torch.equal(x, torch.ones(2, 3))
    assert module.training
    assert not module.drop.training
    assert torch.equal(answers(module, {"y": y, "x": x})[0], first)
    each = answers_of_each(module, one_by_one((x, y)))
    assert each[2].tolist() == [3.0, 3.0]  # of numbers one for each
    with evaluating(module):
        assert not module.training


def test_differences():
    nan, inf = math.nan, math.inf
    one = torch.tensor([1.0, nan, inf, -inf, 2.0, nan])
    other = torch.tensor([1.5, nan, inf, inf, nan, 1.0])
    assert difference(one, other).tolist() == [0.5, 0.0, 0.0, inf, inf, inf]
    assert difference(torch.zeros(2), torch.zeros(3)).tolist() == [inf]
    assert width(torch.tensor([2.0, -1.0, inf])) == 3.0
    assert width(torch.tensor([100.0, 100.5])) == pytest.approx(100.5 / 20)
    assert share_of_range([torch.tensor([0.0, 4.0])], [torch.tensor([0.0, 3.0])]) == 0.25
    assert share_of_range([torch.zeros(1)], []) == inf
    assert tolerance(nn.Linear(2, 2)) == 1e-4
    assert tolerance(nn.Linear(2, 2).half()) > 1e-3


def test_steps_are_of_a_grid_with_0_in_it_unless_the_output_has_one():
    ours = torch.linspace(1.0, 5.1, 1000)
    theirs = ours.clone()
    theirs[3] += 0.1  # of a thousand values one may lie farther off
    theirs[5] += 0.04
    most, largest = in_steps([ours], [theirs], {})
    assert most == pytest.approx(2.0, rel=1e-4)  # 5.1 / 255 is .02
    assert largest == pytest.approx(5.0, rel=1e-4)
    assert in_steps([ours], [theirs], {0: 0.01})[0] == pytest.approx(4.0, rel=1e-4)
    assert in_steps([ours], [theirs], {}, bits=4)[0] == pytest.approx(2.0 * 15 / 255, rel=1e-4)
    assert in_steps([ours], [], {}) == (math.inf, math.inf)
    assert at_share(torch.tensor([0.0, 1.0, 2.0])) == 2.0


def test_sums_are_off_by_a_share_of_what_was_summed() -> None:
    x = torch.tensor([0.0, 0.0, 1000.0, -1000.0, float("-inf")])
    (off,) = nudged((x,), summed=True)
    assert off[4] == float("-inf")
    assert ((off - x)[:4] != 0).all()  # also where little came out
    assert ((off - x)[:4].abs() < 1e-2).all()
    (mask,) = nudged((x,))
    assert mask[4] == float("-inf")
    assert (mask[:2] == 0).all()


def test_nudged_inputs_are_a_millionth_off():
    x, ids = nudged((torch.ones(1000), torch.arange(3)))
    assert 1e-7 < float((x - 1).abs().max()) < 1e-5
    assert ids.tolist() == [0, 1, 2]


def test_a_file_is_fed_in_the_order_of_the_tensors_and_may_not_read_all():
    make, info = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [make("Sub", ["input2", "input"], ["output"]), make("Neg", ["input"], ["output1"])],
        "graph",
        [info("input", TensorProto.FLOAT, [1, 2]), info("input2", TensorProto.FLOAT, [1, 2])],
        [info("output", TensorProto.FLOAT, [1, 2]), info("output1", TensorProto.FLOAT, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    file = File(model.SerializeToString())
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 10.0], [20.0, 20.0]])
    found = file.answers(one_by_one(({"x": x, "unread": x, "y": y},)))
    assert torch.equal(found[0], y - x)
    assert torch.equal(found[1], -x)
    assert [np.asarray(a).shape for a in file.arrays(({"x": x[:1], "unread": x[:1], "y": y[:1]},))] == [
        (1, 2)
    ] * 2


def test_tensors_of_containers_in_their_order():
    a, b = torch.zeros(1), torch.ones(1)
    found = tensors_in({"b": (a, None), "a": [b, 3]})
    assert [float(x) for x in found] == [0.0, 1.0]


def test_single_numbers_have_the_range_of_all_examples():
    ours = [[torch.tensor([[0.1]])], [torch.tensor([[0.3]])]]
    theirs = [[torch.tensor([[0.1001]])], [torch.tensor([[0.3]])]]
    assert share_of_all(ours, theirs) == pytest.approx(0.0001 / 0.2, rel=1e-3)
    assert share_of_range(ours[0], theirs[0]) == pytest.approx(0.0001 / (0.1 / 20), rel=1e-2)
    assert share_of_all(ours, [ours[0], [torch.tensor([0.3])]]) == math.inf  # another shape
    assert share_of_all(ours, [[], ours[1]]) == math.inf
    several = [[torch.zeros(1, 2)], [torch.zeros(1, 3)]]
    assert share_of_all(several, several) == 0
    assert share_of_all([], []) == 0
