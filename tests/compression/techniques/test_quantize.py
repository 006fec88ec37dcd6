"""Fake quantizers against torch's own, folding against arithmetic, statistics against known data."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.deployed_form import layer_weights
from leanfront.compression.graph import kernels as fused
from leanfront.compression.policy import LayerPolicy, Policy, tensor_bits
from leanfront.compression.policy.grids import GridKind
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import (
    ActivationGrid,
    ActivationQuantizer,
    WeightQuantizer,
    best_clip,
    calibrate,
    channel_scales,
    highest_code,
    quantizers,
    weight_codes,
)
from leanfront.compression.training.batch_norms import re_estimate
from tests.networks import inputs, traced_network


def calibrated(bits: int, data: Tensor) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits).eval()
    quantizer.calibrating = True
    quantizer(data)
    quantizer.calibrating = False
    return quantizer


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("low", [-3.0, 0.0, 0.5])
def test_activations_are_rounded_as_torch_rounds_them(bits: int, low: float) -> None:
    quantizer = calibrated(bits, torch.tensor([low, 5.0]))
    grid = quantizer.grid()
    assert (grid.zero_point == 0) == (low >= 0)  # the range always holds 0
    generator = torch.Generator().manual_seed(0)
    ours = (torch.rand(5000, generator=generator) * 16 - 8).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found = quantizer(ours)
    wanted = torch.fake_quantize_per_tensor_affine(theirs, grid.scale, grid.zero_point, 0, 2**bits - 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert len(found.unique()) == 2**bits
    weights = torch.randn(5000, generator=generator)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    edges = torch.tensor([-grid.zero_point, 2**bits - 1 - grid.zero_point]) * grid.scale
    inner = ((ours[:, None] - edges).abs() > grid.scale).all(1)  # torch's pass ends half a step further out
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad[inner], theirs.grad[inner])
    assert 0 < (ours.grad == 0).float().mean() < 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_as_torch_rounds_them(bits: int, axis: int) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = torch.randn(6, 5, 3, 3, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    quantizer = WeightQuantizer(ours, bits, axis)
    scales = channel_scales(ours, bits, quantizer.clip, axis)
    top = highest_code(bits)
    found = quantizer(ours)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    wanted = torch.fake_quantize_per_channel_affine(theirs, scales, zeros, axis, -top, top)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    outgoing = torch.randn(ours.shape, generator=generator)
    (found * outgoing).sum().backward()
    (wanted * outgoing).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, outgoing)  # straight through, also where a clip holds the value
    inside = theirs.grad != 0
    assert torch.equal(ours.grad[inside], theirs.grad[inside])
    assert inside.all() == (bits == 8)


def test_clipping_never_costs_and_is_none_at_8_bits() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 30.0  # an outlier pays most
    for bits in (2, 3, 4):

        def error(clip: Tensor, bits: int = bits) -> Tensor:
            scales = channel_scales(weight, bits, clip)
            return (weight_codes(weight, scales, bits) * scales[:, None] - weight).square().sum(1)

        clip = best_clip(weight, bits)
        assert (error(clip) <= error(torch.ones(8)) + 1e-6).all()
        assert (clip < 1).any()
    assert torch.equal(best_clip(weight, 8), torch.ones(8))


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    for bits in (2, 4, 8):
        found = WeightQuantizer(weight, bits, 0)(weight)
        assert torch.isfinite(found).all()
        assert torch.equal(found[1], torch.zeros(4))


def test_ranges_are_the_mean_of_the_batches_extremes() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.zeros(1, 1, 2, 2))
    module = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8))).module
    quantizer = quantizers(module)["input_1"]
    batches = [
        torch.tensor([low, high]).view(2, 1, 1, 1) for low, high in ((-1.0, 4.0), (-3.0, 6.0), (0.5, 2.0))
    ]
    for _ in range(2):  # from nothing each time
        calibrate(module, batches)
        assert float(quantizer.low) == pytest.approx((-1 - 3 + 0) / 3)
        assert float(quantizer.high) == pytest.approx(4.0)
    step = (4 + 4 / 3) / 255
    assert quantizer.grid() == ActivationGrid(pytest.approx(step), round(4 / 3 / step), 8)
    module.eval()(torch.full((1, 1, 1, 1), 99.0))
    assert float(quantizer.high) == pytest.approx(4.0)  # nothing moves in eval mode


def test_before_a_range_is_known_values_pass() -> None:
    quantizer = ActivationQuantizer(8).eval()
    x = torch.randn(10) * 1000
    assert torch.equal(quantizer(x), x)
    quantizer.train()
    quantizer(torch.tensor([float("nan")]))  # no grid of what is no number; the loss says so
    assert torch.equal(quantizer(x), x)


def test_quantizers_stand_where_tensor_bits_says() -> None:
    traced = traced_network("Residual")
    policy = Policy.uniform(traced.network, LayerPolicy(0.0, 4, 8))
    module = compress(traced, policy).module
    bits = tensor_bits(fused(traced.network), policy)
    moved = {k.name for k in fused(traced.network) if k.op in ("flatten", "identity")}
    assert set(quantizers(module)) == {name for name, b in bits.items() if b <= 8} - moved
    calibrate(module, [inputs("Residual", 16, 0)])
    levels: dict[str, int] = {}
    for name, quantizer in module.named_modules():
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.register_forward_hook(
                lambda _m, _i, output, name=name: levels.update({name: len(output.unique())})
            )
    module(inputs("Residual", 16, 1))
    assert max(levels.values()) <= 256
    assert min(levels.values()) > 16


def folded_by_hand(conv: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shape = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
    bias = 0 if conv.bias is None else conv.bias
    return conv.weight * gain.view(shape), (bias - norm.running_mean) * gain + norm.bias


def normed(transposed: bool, bias: bool) -> Traced:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(kind(3, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.0, -3.0, 0.1]))
        model[1].bias.uniform_(-1, 1)
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
    return trace(model, torch.zeros(1, 3, 6, 6))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_folding_a_batch_norm(transposed: bool, bias: bool) -> None:
    traced = normed(transposed, bias)
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy()))
    held = layer_weights(compressed)
    weight, shift = folded_by_hand(*[traced.module.get_submodule(name) for name in "01"])
    assert held["0"].weight is not None
    torch.testing.assert_close(torch.from_numpy(held["0"].weight), weight.detach())
    torch.testing.assert_close(torch.from_numpy(held["0"].bias), shift.detach())
    assert held["3"].weight is not None
    assert torch.equal(torch.from_numpy(held["3"].weight), traced.module.get_submodule("3").weight)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_folded_codes_are_the_trained_ones(transposed: bool, bits: int) -> None:
    """But for the sign where the norm's gain is negative: the scale stays positive."""
    traced = normed(transposed, bias=True)
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, bits, 8)))
    held = layer_weights(compressed)["0"]
    norm = traced.module.get_submodule("1")
    layer = compressed.module.get_submodule("0")
    axis = 1 if transposed else 0
    original = layer.parametrizations["weight"].original
    scales = channel_scales(original, bits, layer.parametrizations["weight"][0].clip, axis)
    trained = weight_codes(original, scales, bits, axis)
    shape = [1] * 4
    shape[axis] = -1
    assert held.codes is not None
    assert held.scales is not None
    assert torch.equal(torch.from_numpy(held.codes).float(), trained * norm.weight.sign().view(shape))
    assert (held.scales > 0).all()
    fake = copy.deepcopy(layer)
    weight, _ = folded_by_hand(fake, norm)
    decoded = torch.from_numpy(held.codes * held.scales.reshape(shape))
    torch.testing.assert_close(decoded, weight.detach(), rtol=1e-5, atol=1e-6)


def test_batch_norms_are_re_estimated() -> None:
    norm = nn.BatchNorm2d(2, momentum=0.3)
    dropped = nn.Dropout(0.9)
    model = nn.Sequential(dropped, norm).train()
    norm.running_mean.fill_(100.0)
    batches = [torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    re_estimate(model, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert norm.momentum == 0.3
    assert model.training
    assert dropped.training
    before = norm.running_mean.clone()
    re_estimate(model, [])
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("kind", ["affine", "symmetric", "signed"])
@pytest.mark.parametrize(
    ("high", "off"), [(1.0, 2**-14), (6.0, 2**-14), (0.75, 2**-14), (0.7, 0.0), (2.01, 0.0)]
)
def test_round_ranges_are_narrowed_by_a_64th_of_a_code(kind: GridKind, high: float, off: float) -> None:
    quantizer = ActivationQuantizer(8, kind)
    quantizer.calibrating = True
    quantizer(torch.tensor([0.0, high]))
    quantizer.calibrating = False
    levels = 127 if kind == "signed" else 255
    assert quantizer.eval().grid().scale == pytest.approx(high * (1.0 - off) / levels, rel=3e-7)


@pytest.mark.parametrize(
    ("kind", "lowest", "zero"),
    [("affine", -1.0, 85), ("symmetric", -1.0, 128), ("symmetric", 0.0, 0), ("signed", 0.0, 128)],
)
def test_the_zero_lies_where_the_engine_has_it(kind: GridKind, lowest: float, zero: int) -> None:
    quantizer = ActivationQuantizer(8, kind)
    quantizer.calibrating = True
    quantizer(torch.tensor([lowest, 0.5, 2.0]))
    quantizer.calibrating = False
    grid = quantizer.eval().grid()
    assert grid.zero_point == zero
    assert grid.is_of(kind)
    middle = grid.zero_point == 128
    assert grid.scale == pytest.approx(2.0 / 127 if middle else (2.0 - lowest) / 255, rel=1e-4)
    values = torch.linspace(-3.0, 3.0, 101)
    codes = torch.clamp(torch.round(values / grid.scale) + zero, 0, 255)
    assert torch.allclose(quantizer(values), (codes - zero) * grid.scale, atol=1e-6)
