"""What no rule follows keeps the channels that it reads; it is never a crash, and never something else."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf


class Around(nn.Module):
    """An operation between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class Sampled(Around):
    def between(self, x: Tensor) -> Tensor:
        theta = torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], 2, 3) * 0.9
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


class Triangle(Around):
    def between(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).tril().permute(0, 3, 1, 2)


class Gated(Around):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(4, 4, 1)

    def between(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Summed(Around):
    def between(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@pytest.mark.parametrize("kind", [Sampled, Triangle, Gated, Summed])
def test_channels_that_are_mixed_stay(kind: type[Around]) -> None:
    model = kind().eval()
    captured = lf.capture(model, torch.randn(1, 3, 6, 6))
    assert "a" not in captured.groups
    x = torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(captured.module(x), model(x))


def test_a_sum_along_positions_is_followed() -> None:
    class Along(Around):
        def between(self, x: Tensor) -> Tensor:
            return x.cumsum(2)

    assert "a" in lf.capture(Along().eval(), torch.randn(1, 3, 6, 6)).groups


def test_weights_that_a_layer_was_computed_from_are_gone() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    captured = lf.capture(model, torch.randn(1, 3, 6, 6))
    assert {name for name, _ in captured.module.named_parameters()} == {
        "0.weight", "0.bias", "2.weight", "2.bias",
    }  # fmt: skip
