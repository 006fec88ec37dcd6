import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.distillation import Comparison
from leanfront.compression.training.finetune import Diverged, FineTune, fine_tune, lesson
from tests.networks import inputs, traced_network


def train(
    module: nn.Module,
    batches: list[tuple[Tensor, Tensor, Tensor]],
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    options: FineTune,
) -> float:
    """Fine-tune a network that is not a part of another."""

    def both(inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = module(inputs).float()
        return outputs, outputs

    return fine_tune(module, batches, steps, lesson(both, loss, Comparison(), options), options)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_torchs_divergence(temperature: float) -> None:
    student, teacher = torch.randn(2, 16, 10, generator=torch.Generator().manual_seed(0))
    wanted = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    torch.testing.assert_close(Comparison().loss(student, teacher, temperature), wanted)


def test_a_student_like_its_teacher_learns_nothing() -> None:
    teacher = torch.randn(8, 5)
    student = teacher.clone().requires_grad_()
    loss = Comparison().loss(student, teacher, 4.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros(8, 5))


def test_pixels_count_as_examples() -> None:
    student, teacher = torch.randn(2, 3, 4, 6, 7, generator=torch.Generator().manual_seed(0))
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (student, teacher)]
    torch.testing.assert_close(Comparison().loss(student, teacher, 2.0), Comparison().loss(*flat, 2.0))


def batches(count: int, teacher: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    made = []
    for seed in range(count):
        x = inputs("Chain", 32, seed)
        with torch.no_grad():
            out = teacher(x)
        made.append((x, out.argmax(1), out))
    return made


def test_training_brings_a_cut_network_back() -> None:
    traced = traced_network("Chain")
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5, 4, 8)))
    data = batches(40, traced.module)
    calibrate(compressed.module, [x for x, _, _ in data[:4]])

    def agreement() -> float:
        x, labels, _ = batches(50, traced.module)[-1]
        return float((compressed.module.eval()(x).argmax(1) == labels).float().mean())

    before = agreement()
    loss = train(compressed.module, data, 40, F.cross_entropy, FineTune(learning_rate=0.05))
    assert not compressed.module.training
    assert agreement() > before + 0.1
    assert 0 < loss < 5


def test_steps_are_counted_and_the_weights_decide_which_loss() -> None:
    model = nn.Linear(4, 3)
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(outputs))
        return F.cross_entropy(outputs, targets)

    batch = (torch.randn(6, 4), torch.zeros(6, dtype=torch.int64), torch.zeros(6, 3))
    train(model, [batch] * 9, 4, loss, FineTune(distillation_weight=0.5))
    assert seen == [6] * 4
    train(model, [batch] * 9, 4, loss, FineTune(distillation_weight=1.0))
    assert len(seen) == 4  # the task's own loss has no part in it
    nan = (batch[0], batch[1], torch.full((6, 3), math.nan))
    train(model, [nan], 1, loss, FineTune(distillation_weight=0.0))  # nor the teacher here


def test_the_steps_by_hand() -> None:
    """One step of one, at the end of the half cosine, has rate 0; the first of two has it in full.

    Nesterov's first step is 1 + momentum times the gradient, which is 1 here."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.ones_(model.weight)
    batch = (torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2))
    options = FineTune(
        learning_rate=0.1, distillation_weight=0.0, weight_decay=0.0, momentum=0.9, warm_up=0.5
    )

    def summed(outputs: Tensor, _: Tensor) -> Tensor:
        return outputs.sum()

    start = copy.deepcopy(model)
    train(start, [batch], 1, summed, options)
    torch.testing.assert_close(start.weight, torch.ones(2, 2))
    train(model, [batch, batch], 2, summed, options)
    torch.testing.assert_close(model.weight, torch.full((2, 2), 1 - 0.1 * 1.9))


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = copy.deepcopy(model)
    batch = (torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2))
    options = FineTune(learning_rate=0.1, distillation_weight=0.0, weight_decay=0.1)
    train(model, [batch] * 3, 3, lambda outputs, _: outputs.sum() * 0.0, options)
    assert (model[0].weight.abs() < before[0].weight.abs()).all()
    assert torch.equal(model[0].bias, before[0].bias)
    assert torch.equal(model[1].weight, before[1].weight)


@pytest.mark.parametrize("bits", [8, 32])
def test_divergence_is_noticed(bits: int) -> None:
    traced = traced_network("Chain")
    module = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, bits, bits))).module
    (x, labels, out), *_ = data = batches(3, traced.module)
    calibrate(module, [x])
    with pytest.raises(Diverged, match="step 1 of 3"):
        train(module, data, 3, lambda o, t: F.cross_entropy(o, t) * math.nan, FineTune())
    broken = [(x, labels, out), (x * math.nan, labels, out)]
    with pytest.raises(Diverged, match="step 2 of 2"):
        train(module, broken, 2, F.cross_entropy, FineTune())
