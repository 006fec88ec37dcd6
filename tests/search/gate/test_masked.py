"""The uncut network with channels out, against networks that are cut by hand."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from leanfront.search.gate.masked import Masked, masked
from leanfront.search.gate.tensors import answers, share_of_range

KEPT = (0, 2, 3, 7)
"""Of eight channels."""


class Block(nn.Module):
    """A layer, something behind it, a layer."""

    def __init__(self, between: nn.Module, linear: bool = False) -> None:
        super().__init__()
        if linear:
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)
        else:
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def random_gains(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    for name, buffer in norm.named_buffers():
        if buffer.is_floating_point():
            buffer.data.uniform_(0.5, 1.5) if "var" in name else buffer.data.normal_()
    return norm


def by_hand(block: Block, between: nn.Module, kept: tuple[int, ...] = KEPT) -> Block:
    """The block with these channels alone."""
    cut = copy.deepcopy(block)
    stays = list(kept)
    cut.between = between
    for layer, axis in ((cut.a, 0), (cut.b, 1)):
        layer.weight = nn.Parameter(layer.weight.index_select(axis, torch.tensor(stays)))
    cut.a.bias = nn.Parameter(block.a.bias[stays])
    return cut


def of_norm(norm: nn.Module, smaller: nn.Module, kept: tuple[int, ...] = KEPT) -> nn.Module:
    with torch.no_grad():
        for (name, new), (_, old) in zip(smaller.named_parameters(), norm.named_parameters(), strict=True):
            assert name in ("weight", "bias")
            new.copy_(old[list(kept)])
    return smaller


def run(block: Block, cut: nn.Module, x: Tensor, kept: tuple[int, ...] = KEPT) -> Masked:
    every = tuple(range(3)), tuple(range(5))
    layers = {"a": (every[0], kept), "b": (kept, every[1])}
    return masked(fx.symbolic_trace(block.eval()), cut, layers, (x,))


def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_zeros_where_layers_read_whatever_an_activation_makes_of_them():
    block = Block(nn.Sigmoid())  # of a removed channel it makes a half
    cut = by_hand(block, nn.Sigmoid())
    found = run(block, cut, images())
    assert found.spread is None
    assert share_of_range(answers(cut, (images(),)), found.outputs) < 1e-6


def test_a_batch_norm_is_one_for_each_channel():
    norm = random_gains(nn.BatchNorm2d(8)).eval()
    block, smaller = Block(norm), nn.BatchNorm2d(4).eval()
    for (_, new), (_, old) in zip(smaller.state_dict().items(), norm.state_dict().items(), strict=True):
        new.copy_(old[list(KEPT)] if old.dim() else old)
    cut = by_hand(block, smaller)
    found = run(block, cut, images())
    assert found.spread is None
    assert share_of_range(answers(cut, (images(),)), found.outputs) < 1e-6


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_over_channels_is_one_over_those_that_stay(kind):
    norm = random_gains(kind(8))
    block, x = Block(norm, linear=True), torch.randn(2, 6, 3)
    cut = by_hand(block, of_norm(norm, kind(4)))
    found = run(block, cut, x)
    assert found.spread is None
    assert share_of_range(answers(cut, (x,)), found.outputs) < 1e-6
    wrong = copy.deepcopy(cut)
    with torch.no_grad():
        wrong.between.weight.copy_(wrong.between.weight.flip(0))
    assert share_of_range(answers(wrong, (x,)), found.outputs) > 1e-2


def test_a_norm_behind_an_activation_finds_its_channels_too():
    """A ReLU makes zeros of half of what tells removed channels from others."""
    norm = random_gains(nn.LayerNorm(8))
    x = torch.randn(4, 6, 3)
    block = Block(nn.Sequential(nn.ReLU(), norm), linear=True)
    cut = by_hand(block, nn.Sequential(nn.ReLU(), of_norm(norm, nn.LayerNorm(4))))
    found = run(block, cut, x)
    assert found.spread is None
    assert share_of_range(answers(cut, (x,)), found.outputs) < 1e-6


@pytest.mark.parametrize("kept", [(1, 2, 5, 7), (4, 5, 6, 7)], ids=["as many in each", "whole groups"])
def test_a_group_norm_keeps_its_groups(kept):
    norm = random_gains(nn.GroupNorm(2, 8))
    block = Block(norm)
    groups = 2 if kept[0] < 4 else 1
    cut = by_hand(block, of_norm(norm, nn.GroupNorm(groups, 4), kept), kept)
    found = run(block, cut, images(), kept)
    assert found.spread is None
    assert share_of_range(answers(cut, (images(),)), found.outputs) < 1e-6


def test_what_mixes_channels_and_is_no_layer_is_told():
    block = Block(nn.Softmax(dim=1))
    found = run(block, by_hand(block, nn.Softmax(dim=1)), images())
    assert found.spread == "b"  # reads what the softmax has spread


def test_the_outputs_too_are_watched():
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum(-1)

    found = masked(fx.symbolic_trace(Ends()), nn.Identity(), {"a": ((0, 1, 2), KEPT)}, (torch.randn(2, 3),))
    assert found.spread == "output"


def test_zeros_are_right_where_products_sum_over_removed_channels():
    """As in an attention whose queries and keys are cut: what others than zeros would change is told, but the
    answer with zeros is that of the cut network."""

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.q(x) @ self.k(x).transpose(1, 2))

    block, x = Products(), torch.randn(2, 6, 3)
    cut = copy.deepcopy(block)
    for layer in (cut.q, cut.k):
        layer.weight, layer.bias = (nn.Parameter(p[list(KEPT)]) for p in (layer.weight, layer.bias))
    layers = {"q": ((0, 1, 2), KEPT), "k": ((0, 1, 2), KEPT), "head": (tuple(range(6)), (0, 1))}
    found = masked(fx.symbolic_trace(block), cut, layers, (x,))
    assert found.spread == "head"
    assert share_of_range(answers(cut, (x,)), found.outputs) < 1e-6
