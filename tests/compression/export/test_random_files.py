"""Files that are timed, of networks that were cut, can be run: whatever norms and sizes are in them."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export.walk import random_builder
from leanfront.latency_models.benchmark.timing import session
from tests.variants import some


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, last: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.last = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.norm(x)
        return self.b(x.relu())


class Pieces(nn.Module):
    """Slices, a shuffle and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 12, 1)
        self.d, self.shuffle = nn.Conv2d(12, 2, 1), nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.a(x).chunk(2, 1)
        y = self.shuffle(torch.cat([one, self.b(other)], 1))
        return self.d(self.c(y) + nn.functional.pad(y, (0, 0, 0, 0, 2, 2)))


MODELS = {
    "layer": Normed(nn.LayerNorm(8), True), "rms": Normed(nn.RMSNorm(8), True),
    "group": Normed(nn.GroupNorm(2, 8), False),
    "all": Normed(nn.GroupNorm(1, 8), False), "instance": Normed(nn.InstanceNorm2d(8, affine=True), False),
    "batch": Normed(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)), False), "pieces": Pieces(),
}  # fmt: skip


@pytest.mark.parametrize(("name", "bits"), some(product(MODELS, [32, 8]), 6))
def test_they_run(name: str, bits: int) -> None:
    captured = lf.capture(MODELS[name].eval(), torch.randn(1, 3, 6, 6))
    policy = lf.uniform(captured, sparsity=0.5, weight_bits=bits, activation_bits=bits)
    cut = policy.cut(captured.network)
    assert cut.layer["a"].shape.out_channels == 4
    model = random_builder(captured.traced)(cut, policy)
    assert session(model, 1).run(None, {"input": torch.randn(1, 3, 6, 6).numpy()})[0].shape[0] == 1


class Plain(nn.Module):
    """Norms without gains and shifts, one of which no layer takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)
        self.alone, self.b = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.alone(self.a_norm(self.a(x)).relu()).relu())


@pytest.mark.parametrize("bits", [8, 32])
def test_what_stands_for_missing_gains_is_cut_with_the_channels(bits: int, tmp_path: Path) -> None:
    captured = lf.capture(Plain().eval(), torch.randn(1, 3, 6, 6))
    policy = lf.uniform(captured, 0.5, bits, bits)
    small = lf.compress(captured, policy, calibration=[torch.randn(8, 3, 6, 6)])
    lf.export(small, tmp_path / "model.onnx")  # holds it against the network
