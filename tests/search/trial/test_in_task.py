"""A network in its task: what it is called with, and what its answers are taken for."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.training.batch_norms import Shift
from leanfront.compression.training.distillation import LOGITS, VALUES
from leanfront.networks import file_of
from leanfront.search.gate.prove import prove
from leanfront.search.trial.in_task import AsFile, InHalves, answer_spec, comparison_of
from tests.networks import inputs
from tests.search.trial.test_score import MADE, scorer, small_task


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


def test_what_is_one_kind_here_and_another_there_is_a_number() -> None:
    """Counts that are 0 and 1 in one batch are not yes and no."""
    task = small_task()
    answers = torch.zeros(4)
    few, many = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 7.0, 1.0, 0.0])
    assert comparison_of(task, [(answers, few)]).kinds == (LOGITS,)
    assert comparison_of(task, [(answers, few), (answers, many)]).kinds == (VALUES,)


def test_in_halves_everything_is_rounded_to_eleven_bits_and_what_is_too_large_is_infinite():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        for place, weight in enumerate((1 + 2.0**-12, 3.0)):
            net[place].weight.fill_(weight)
            net[place].bias.zero_()
    halves = InHalves(net)
    with torch.no_grad():
        # the weight is 1 then; 2049 lies between 2048 and 2050, and goes to the even one
        assert halves(torch.tensor([[2049.0]])).item() == 3 * 2048
        assert halves(torch.tensor([[30000.0]])).item() == math.inf
        assert net(torch.tensor([[2048.0]])).item() == pytest.approx(3 * 2048.5)
        only = InHalves(net, ["0"])
        assert only(torch.tensor([[2049.0]])).item() == 3 * 2048  # what it reads, holds and puts out
        assert only(torch.tensor([[30000.0]])).item() == 90000.0  # the next layer computes in floats
        assert only(torch.tensor([[70000.0]])).item() == math.inf


def test_a_policy_with_some_layers_of_16_bits_is_scored_with_them_in_half_precision():
    made = scorer(MADE)
    first, *others = [layer.name for layer in made.traced.network.layers]
    half, float_ = LayerPolicy(0.0, 16, 16), LayerPolicy()
    for policy in ({first: half, **dict.fromkeys(others, float_)}, dict.fromkeys([first, *others], half)):
        compressed = made.prepared(Policy.of(policy))
        found = made.as_run(compressed).inner
        assert isinstance(found, InHalves)
        x = inputs("Chain", 5, 7)
        floats = compressed.module(x)
        assert 0 < float((found(x) - floats).abs().max()) < 2.0**-7 * float(floats.abs().max())
        assert found.whole == all(layer == half for layer in policy.values())


def test_what_a_file_puts_out_comes_back_to_where_its_inputs_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(4, 5).eval()
    captured = lf.capture(model, torch.randn(1, 4))
    plain = lf.compress(captured, lf.uniform(captured))
    file = AsFile(file_of(plain), captured.traced, answer_spec(captured.traced))
    monkeypatch.setattr(file._file, "answers", lambda examples: [torch.zeros(len(examples), 5)])
    for device in ("cpu", "meta"):  # one that need not be there
        assert file(torch.empty(3, 4, device=device)).device.type == device


def test_what_a_cut_shifts_is_told_where_the_images_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, looked_at = scorer(small_task()), []
    judge.teacher.inner.to("meta")  # a device that need not be there
    monkeypatch.setattr(Shift, "of", lambda traced, batches: looked_at.append(traced.module))
    judge.batches.__dict__["plain"] = []
    assert judge.settling._shift is None
    assert {each.device.type for each in looked_at[0].state_dict().values()} == {"meta"}
    assert {each.device.type for each in judge.traced.module.state_dict().values()} == {"cpu"}
