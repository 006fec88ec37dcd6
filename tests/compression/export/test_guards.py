"""Layers that onnxruntime would fuse otherwise than a policy wants, for what it sees through behind them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.program import Arguments
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.networks import Captured, CompressedNetwork, file_of
from leanfront.search.gate.kernels import kernel_report

FLOAT, INTEGER = LayerPolicy(), LayerPolicy(weight_bits=8, activation_bits=8)
CODED = LayerPolicy(weight_bits=32, activation_bits=8)  # floats, among layers that read integers


class Between(nn.Module):
    """A layer between two others, and an operation behind it."""

    def __init__(self, kind: type[nn.Module], behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        more = (1,) if kind is nn.Conv2d else ()
        self.a, self.b, self.c = (kind(8, 8, *more) for _ in range(3))
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.behind(self.b(F.relu(self.a(x)))))


class Gained(nn.Module):
    """A gain for each channel, or a shift."""

    def __init__(self, shift: bool) -> None:
        super().__init__()
        self.shift, self.by = shift, nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by if self.shift else x * self.by


class Normed(nn.Module):
    """A layer used twice, with a norm for each use, which is not folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.one, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.other(self.b(F.relu(self.one(self.b(F.relu(self.a(x)))))))))


class Doubled(nn.Module):
    """A layer that only a factor follows where the branch is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out, self.end = (nn.Conv2d(8, 8, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        return self.end(F.relu((y + self.out(F.gelu(y))) * 1.5))


def made(captured: Captured, policy: Policy, *shape: int) -> tuple[CompressedNetwork, bytes, int]:
    """The compressed network, its file, and the size that was foretold."""
    compressed = lf.compress(captured, policy, [Arguments.of((torch.randn(16, *shape),))])
    network = measured(captured.traced)
    predicted = int(PolicyBatch.of(network, [policy]).size_bytes()[0])
    assert size_bytes(policy.cut(network), policy) == predicted
    return compressed, file_of(compressed), predicted


def holds(model: nn.Module, policies: dict[str, LayerPolicy], *shape: int) -> None:
    torch.manual_seed(0)
    captured = lf.capture(model.eval(), torch.randn(1, *shape))
    compressed, content, predicted = made(captured, Policy.of(policies), *shape)
    report = kernel_report(content, compressed.network, compressed.policy, 1)
    assert (report["not_fused"], report["not_wanted"]) == ([], [])
    assert abs(len(content) - predicted) <= 16  # a zero point may be one that there is


@pytest.mark.parametrize(
    "behind",
    [
        lambda x: F.relu(x * 1.5), lambda x: x * -1.5, Gained(False), Gained(True),
        lambda x: x.clamp(-1.0, 1.5), lambda x: F.hardtanh(x * 0.5, -0.8, 0.8),
    ],
    ids=["factor", "negative", "gains", "shifts", "clamp", "hardtanh"],
)  # fmt: skip
def test_a_float_convolution_between_integers_stays_one(behind: Callable[[Tensor], Tensor]) -> None:
    holds(Between(nn.Conv2d, behind), {"a": INTEGER, "b": CODED, "c": INTEGER}, 8, 4, 4)


def test_so_does_one_whose_norms_are_not_folded() -> None:
    holds(Normed(), {"a": INTEGER, "b": CODED, "c": INTEGER}, 8, 4, 4)


def test_so_does_a_float_linear_layer_behind_which_is_clamped() -> None:
    clamped = Between(nn.Linear, lambda x: x.clamp(-1.0, 1.5))
    holds(clamped, {"a": INTEGER, "b": CODED, "c": INTEGER}, 8)


@pytest.mark.parametrize("last", [FLOAT, INTEGER], ids=["read in floats", "read in integers"])
@pytest.mark.parametrize("low", [-0.5, 0.1])
@pytest.mark.parametrize("shape", [(8,), (5, 8)], ids=["vectors", "positions"])
def test_an_integer_linear_layer_is_one_whatever_clips_its_output(
    shape: tuple[int, ...], low: float, last: LayerPolicy
) -> None:
    clipped = Between(nn.Linear, lambda x: x.clamp(low, 0.5))
    holds(clipped, {"a": INTEGER, "b": INTEGER, "c": last}, *shape)


def test_what_stands_behind_a_layer_without_a_branch_is_foretold() -> None:
    torch.manual_seed(0)
    captured = lf.capture(Doubled().eval(), torch.randn(1, 8, 4, 4))
    bits = {"one": INTEGER, "two": CODED, "end": INTEGER}
    for absent in ((), ("out",)):
        policy = Policy.of(bits | {"out": FLOAT}, absent)
        compressed, content, predicted = made(captured, policy, 8, 4, 4)
        report = kernel_report(content, compressed.network, compressed.policy, 1)
        assert (report["not_fused"], report["not_wanted"]) == ([], [])
        assert content.count(b"Max") == len(absent)
        assert abs(len(content) - predicted) <= 16  # a zero point may be one that there is
