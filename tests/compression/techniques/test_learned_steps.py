"""Steps that training learns: gradients of the paper, grids that are exported as they were trained."""

import copy
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.deployed_form import activation_grids, layer_weights
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import (
    ActivationQuantizer,
    WeightQuantizer,
    calibrate,
    highest_code,
    learn_steps,
    quantizers,
    weight_quantizers,
)
from leanfront.compression.training.finetune import FineTune, fine_tune
from leanfront.compression.training.weight_inheritance import inherit
from tests.networks import captured_network, inputs, traced_network


def in_torch(x: Tensor, step: Tensor, low: int, high: int, share: float) -> Tensor:
    """Esser et al. 2020, listing 1: straight through the rounding, the rest by torch's own gradients."""
    scaled = step * share + (step - step * share).detach()
    clamped = torch.clamp(x / scaled, low, high)
    return (clamped + (clamped.round() - clamped).detach()) * scaled


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_of_weights_are_those_of_the_paper(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, 3, 3, generator=generator).requires_grad_()
    going = torch.randn(weight.shape, generator=generator)
    quantizer = WeightQuantizer(weight.detach(), bits, 0).train()
    quantizer.learn(quantizer.scales(weight) * 0.6)
    assert quantizer.step is not None
    (quantizer(weight) * going).sum().backward()
    other, step = weight.detach().clone().requires_grad_(), quantizer.step.detach().clone().requires_grad_()
    top = highest_code(bits)
    wanted = in_torch(other, step.view(-1, 1, 1, 1), -top, top, 1 / math.sqrt(36 * top))
    (wanted * going).sum().backward()
    torch.testing.assert_close(quantizer(weight), wanted)
    torch.testing.assert_close(weight.grad, other.grad)
    torch.testing.assert_close(quantizer.step.grad, step.grad)
    assert 0 < (weight.grad == 0).float().mean() < 1


@pytest.mark.parametrize("low", [0.0, -2.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_of_tensors_are_those_of_the_paper(bits: int, low: float) -> None:
    generator = torch.Generator().manual_seed(0)
    quantizer = ActivationQuantizer(bits).eval()
    quantizer.calibrating = True
    quantizer(torch.tensor([low, 3.0]))
    quantizer.calibrating = False
    quantizer.train().learn()
    assert quantizer.step is not None
    with torch.no_grad():
        quantizer.step.mul_(0.5)
    x = (torch.randn(6, 50, generator=generator) * 2).clamp(min=low).requires_grad_()
    going = torch.randn(x.shape, generator=generator)
    found = quantizer(x)
    (found * going).sum().backward()
    zero, levels = int(quantizer.zero), 2**bits - 1
    other, step = x.detach().clone().requires_grad_(), quantizer.step.detach().clone().requires_grad_()
    wanted = in_torch(other, step, -zero, levels - zero, 1 / math.sqrt(50 * levels))
    (wanted * going).sum().backward()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    inner = ((other / step - torch.tensor([-zero, levels - zero]).view(2, 1, 1)).abs() > 1e-3).all(0)
    torch.testing.assert_close(x.grad[inner], other.grad[inner])
    torch.testing.assert_close(quantizer.step.grad, step.grad, rtol=1e-3, atol=1e-4)
    grid = quantizer.eval().grid()
    assert (grid.scale, grid.zero_point) == (float(quantizer.step), zero)
    torch.testing.assert_close(quantizer(x), found)


def test_one_bit_is_the_sign_times_the_mean() -> None:
    """Which of all scales has the least squared error: XNOR-Net, eq. 6."""
    weight = torch.tensor([[0.5, -1.5, 0.25, -0.75], [0.0, 0.0, 0.0, 0.0]])
    quantizer = WeightQuantizer(weight, 1, 0)
    assert torch.equal(quantizer(weight), torch.tensor([[0.75, -0.75, 0.75, -0.75], [0.0] * 4]))
    assert torch.equal(quantizer.codes(weight), torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0] * 4]))
    for scale in (0.7, 0.8):
        other = quantizer.codes(weight) * scale - weight
        assert other[0].square().sum() > (quantizer(weight) - weight)[0].square().sum()
    quantizer.train().learn(quantizer.scales(weight))
    assert quantizer.step is not None
    going = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0] * 4])
    (quantizer(weight) * going).sum().backward()
    assert quantizer.step.grad is not None
    assert quantizer.step.grad.tolist() == [(1 - 2 + 3 - 4) / 2, 0.0]  # 1 / sqrt(4 weights x code 1)


def test_a_tensor_without_negative_values_has_no_level_beyond_its_range() -> None:
    quantizer = ActivationQuantizer(3).eval()
    quantizer.calibrating = True
    quantizer(torch.tensor([0.0, 6.0]))
    quantizer.calibrating = False
    quantizer.learn()
    assert quantizer.step is not None
    with torch.no_grad():
        quantizer.step.fill_(9.0)
    grid = quantizer.grid()
    assert np.float32(grid.scale) * np.float32(7) <= 6.0
    assert float(quantizer(torch.tensor([100.0]))) <= 6.0
    quantizer.train()(torch.tensor([0.0, 6.0]))
    assert float(quantizer.step) == grid.scale
    with torch.no_grad():
        quantizer.step.fill_(-1.0)
    assert 0 < quantizer.grid().scale < grid.scale / 15


@cache
def traced() -> Traced:
    return traced_network("Residual")


def taught(policy: Policy, steps: int = 3) -> tuple[Compressed, Tensor]:
    made, images = compress(traced(), policy), inputs("Residual", 8, 1)
    calibrate(made.module, [images])
    wanted = torch.randn(8, 10)

    def lesson(given: Tensor, _: Tensor, __: Tensor) -> Tensor:
        outputs: Tensor = made.module(given)
        return (outputs - wanted).square().mean()

    batches = [(images, wanted, wanted)] * steps
    fine_tune(made.module, batches, steps, lesson, FineTune(0.05, learned_bits=4))
    return made, images


def uniform(bits: tuple[int, int], sparsity: float = 0.0) -> Policy:
    return Policy.uniform(traced().network, LayerPolicy(sparsity, *bits))


def test_steps_of_few_bits_are_trained_and_others_are_not() -> None:
    made, _ = taught(uniform((2, 8)))
    fresh = weight_quantizers(compress(traced(), made.policy).module)
    assert fresh.keys() == weight_quantizers(made.module).keys()
    for quantizer in weight_quantizers(made.module).values():
        assert quantizer.step is not None
    assert all(one.step is None for one in quantizers(made.module).values())


@pytest.mark.parametrize("bits", [(2, 3), (1, 4)])
def test_the_exported_grid_is_the_trained_one(bits: tuple[int, int], tmp_path: Path) -> None:
    made, _ = taught(uniform(bits))
    learned = weight_quantizers(made.module)
    assert all(one.step is not None for one in learned.values())
    assert {one.bits: one.step is not None for one in quantizers(made.module).values()} == {
        bits[1]: True,
        8: False,
    }
    calm = copy.deepcopy(made.module).eval()
    for name, grid in activation_grids(made).items():
        step = quantizers(made.module)[name].step
        assert step is None or grid.scale == pytest.approx(float(step), rel=1e-6)
    codes = layer_weights(made)["stem.0"].codes
    assert codes is not None
    assert set(np.unique(codes)) == ({-1, 1} if bits[0] == 1 else {-1, 0, 1})
    captured = captured_network("Residual")
    network = lf.networks.CompressedNetwork(calm, made.network, made.policy, captured)
    lf.export(network, tmp_path / "model.onnx")  # raises where the file puts out something else


def test_kept_weights_bring_their_steps_back() -> None:
    made, images = taught(uniform((2, 3)))
    made.module.eval()
    other = compress(traced(), made.policy).module
    before = {name: value.clone() for name, value in other.state_dict().items()}
    other.load_state_dict(made.module.state_dict())
    assert torch.equal(other.eval()(images), made.module(images))
    other.load_state_dict(before)  # of a network whose steps were not learned
    assert all(one.step is None for one in quantizers(other).values())
    older = {name: value for name, value in before.items() if not name.endswith(".zero")}
    other.load_state_dict(older)  # kept before steps were learned


def test_an_heir_has_the_steps_of_the_channels_that_stay() -> None:
    made, images = taught(uniform((2, 3)))
    heir = inherit(traced(), made, uniform((2, 3), 0.5))
    calibrate(heir.module, [images])
    learned = weight_quantizers(made.module)
    for name, quantizer in weight_quantizers(heir.module).items():
        assert quantizer.step is not None
        assert learned[name].step is not None
        assert set(quantizer.step.tolist()) <= set(learned[name].step.tolist())
        assert len(quantizer.step) == heir.network.layer[name].shape.out_channels
    assert all((one.step is not None) == (one.bits == 3) for one in quantizers(heir.module).values())
    other = inherit(traced(), made, uniform((4, 8), 0.5))
    assert all(one.step is None for one in weight_quantizers(other.module).values())
    same = inherit(traced(), made, made.policy)
    for each in (same, made):
        calibrate(each.module, [images])
    with torch.no_grad():
        assert torch.allclose(same.module.eval()(images), made.module.eval()(images), atol=1e-5)


def test_a_tensor_that_nothing_or_only_zeros_were_seen_of_learns_no_step() -> None:
    module = nn.Sequential(ActivationQuantizer(2))
    learn_steps(module, 8)
    assert module[0].step is None
    module.train()(torch.zeros(4))
    learn_steps(module, 8)
    assert module[0].step is None
    module(torch.ones(4))
    learn_steps(module, 8)
    assert module[0].step is not None
