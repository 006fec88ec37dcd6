"""Weights rounded with regard to what they are multiplied with: on paper, by brute force, in another form."""

import itertools

import pytest
import torch
from torch import Tensor

from leanfront.compression.techniques.rounding import (
    best_scales,
    compensated,
    damped,
    descended,
    error,
    rounded,
)


def drawn(values: int, outputs: int = 3, groups: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and second moments of values that have much to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(groups, 200, values, generator=generator) @ torch.randn(
        groups, values, values, generator=generator
    )
    return torch.randn(groups, outputs, values, generator=generator), damped(read.mT @ read / 200, 0.01)


def test_values_that_have_nothing_to_do_with_each_other_are_rounded_each_alone() -> None:
    weight, _ = drawn(90, groups=2)
    scales = torch.full((2, 3), 0.3)
    moments = torch.eye(90).expand(2, 90, 90) * 2.0
    found = compensated(weight, moments, scales, 4)
    assert torch.equal(found, (weight / 0.3).round().clamp(-7, 7))
    assert torch.equal(descended(found, weight, moments, scales, 4), found)


def test_what_one_weight_loses_another_gains() -> None:
    """Both values are always equal, so only the sum of the weights counts: .8 is nearer to 1 than to 0."""
    moments = damped(torch.ones(1, 2, 2), 1e-4)
    found = compensated(torch.tensor([[[0.4, 0.4]]]), moments, torch.ones(1, 1), 4)
    assert sorted(found.flatten().tolist()) == [0.0, 1.0]


def by_inverse(weight: Tensor, moments: Tensor, scale: float, top: int) -> Tensor:
    """GPTQ as it is printed: the factor of the inverse, and all weights that are left changed at once."""
    order = moments.diagonal().argsort(descending=True)
    left, codes = weight[:, order].double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    inverse = torch.linalg.inv(moments[order][:, order].double())
    factor = torch.linalg.cholesky(inverse, upper=True)
    for place in range(weight.shape[1]):
        codes[:, place] = (left[:, place] / scale).round().clamp(-top, top)
        lost = (left[:, place] - codes[:, place] * scale) / factor[place, place]
        left[:, place:] -= lost[:, None] * factor[place, place:]
    return codes[:, order.argsort()]


@pytest.mark.parametrize("bits", [2, 4])
def test_both_forms_round_alike(bits: int) -> None:
    weight, moments = drawn(150, outputs=5)
    found = compensated(weight, moments, torch.full((1, 5), 0.5), bits)[0]
    other = by_inverse(weight[0], moments[0], 0.5, 2 ** (bits - 1) - 1)
    assert (found != other).float().mean() < 0.02  # where float32 falls on the other side of a half


@pytest.mark.parametrize("seed", range(3))
def test_beside_the_best_of_all_codes(seed: int) -> None:
    weight, moments = drawn(5, outputs=4, seed=seed)
    scales = torch.full((1, 4), 0.6)
    every = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=5)))
    least = torch.stack(
        [error(codes[None, None] * 0.6, weight, moments)[0] for codes in every]
    ).amin(dim=0)  # fmt: skip
    plain = (weight / 0.6).round().clamp(-1, 1)
    first = compensated(weight, moments, scales, 2)
    then = descended(first, weight, moments, scales, 2)
    errors = [error(codes * 0.6, weight, moments)[0] for codes in (plain, first, then)]
    assert (errors[2] <= errors[1] + 1e-5).all()
    assert errors[2].sum() < errors[0].sum()
    assert (errors[2] >= least - 1e-5).all()
    assert errors[2].sum() < 1.5 * least.sum()


def test_no_other_step_is_better() -> None:
    weight, moments = drawn(20)
    scales = torch.full((1, 3), 0.5)
    codes = compensated(weight, moments, scales, 3)
    best = best_scales(codes, weight, moments, scales)
    least = error(codes * best[..., None], weight, moments)
    for factor in (0.98, 1.02):
        assert (error(codes * best[..., None] * factor, weight, moments) >= least).all()
    assert torch.equal(best_scales(torch.zeros_like(codes), weight, moments, scales), scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_codes_are_on_the_grid(bits: int) -> None:
    weight, moments = drawn(70, outputs=6, groups=2)
    weight[0, 0] = 0.0
    found = rounded(weight, moments, bits)
    assert torch.equal(found.codes, found.codes.round())
    assert float(found.codes.abs().max()) <= 2 ** (bits - 1) - 1
    assert (found.scales > 0).all()
    assert not found.codes[0, 0].any()
    alone = weight.abs().amax(dim=2) / (2 ** (bits - 1) - 1)
    plain = (weight / alone.clamp(min=1e-9)[..., None]).round() * alone[..., None]
    assert error(found.weight, weight, moments).sum() < 0.5 * error(plain, weight, moments).sum()
