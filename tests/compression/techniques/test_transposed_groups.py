"""Transposed convolutions in groups: cut by whole groups or by as many in each, stored in few bits."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.weights import along, in_groups
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import WeightQuantizer
from leanfront.networks import file_of
from leanfront.search.gate.prove import prove
from leanfront.search.gate.tensors import drawn_like, together
from tests.variants import some

IMAGES, SEQUENCES, VOLUMES = nn.ConvTranspose2d, nn.ConvTranspose1d, nn.ConvTranspose3d


class Up(nn.Module):
    """A convolution, a transposed one in groups, and what reads it."""

    def __init__(
        self,
        kind: type[nn.Module],
        before: int,
        after: int,
        groups: int,
        norm: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        plain = {IMAGES: nn.Conv2d, SEQUENCES: nn.Conv1d, VOLUMES: nn.Conv3d}[kind]
        norms = {IMAGES: nn.BatchNorm2d, SEQUENCES: nn.BatchNorm1d, VOLUMES: nn.BatchNorm3d}
        self.first = plain(3, before, 3, padding=1)
        self.up = kind(before, after, 3, 2, padding=1, output_padding=1, groups=groups, bias=bias)
        self.norm = norms[kind](after) if norm else nn.Identity()
        self.last = plain(after, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            if norm:
                getattr(self.norm, name).data.normal_(value, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.up(F.relu(self.first(x)))))
        return self.head(self.last(x).relu().flatten(2).mean(2))


KINDS: dict[str, tuple[Any, ...]] = {
    "as many in each of 2": (IMAGES, 16, 12, 2),
    "as many in each of 2, without norm or bias": (IMAGES, 12, 16, 2, False, False),
    "whole groups": (IMAGES, 16, 8, 4),
    "whole groups, without a norm": (IMAGES, 16, 8, 4, False),
    "depthwise": (IMAGES, 8, 8, 8),
    "two of each": (IMAGES, 8, 16, 8),
    "sequence": (SEQUENCES, 16, 12, 2),
    "volume": (VOLUMES, 8, 8, 4),
}


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    kind, *rest = KINDS[name]
    sizes = {IMAGES: (6, 6), SEQUENCES: (9,), VOLUMES: (3, 3, 3)}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Up(kind, *rest).eval(), (torch.randn(1, 3, *sizes),)


FOR_EVERY_CHANGE = ("depthwise", "volume")


@pytest.mark.parametrize(
    "name",
    [name if name in FOR_EVERY_CHANGE else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
)
def test_the_gate_proves_them(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    model, example = made(name)
    captured = lf.capture(model, example)
    assert captured.notes == ()
    assert captured.network.layer["up"].shape.groups == KINDS[name][3]
    proof = prove(model, captured, example)
    assert proof.passed, proof.failures
    assert next(c.passed for c in proof.checks if c.name == "cut: channels out")


@pytest.mark.parametrize("name", list(KINDS))
def test_every_part_of_the_outputs_of_a_group_can_go(name: str) -> None:
    """What is cut computes what the uncut one does with the channels that went at zero."""
    model, (x,) = made(name)
    captured = lf.capture(model, (x,))
    groups = {captured.network.layer[layer].group for layer in ("first", "up")} - {None}
    assert groups
    for share in (0.5, 0.75):
        layers = {
            layer.name: LayerPolicy(share if layer.group in groups else 0.0)
            for layer in captured.network.layers
        }
        small = lf.compress(captured, Policy.of(layers))
        kept = small.kept["up"]
        up = captured.module.get_submodule("up")
        assert len(kept[1]) < up.out_channels
        # the rest of the network is the same: hold back what was cut behind each of the two
        stays = torch.zeros(up.in_channels).index_fill(0, torch.tensor(kept[0]), 1.0)
        out = torch.zeros(up.out_channels).index_fill(0, torch.tensor(kept[1]), 1.0)
        one = [1, -1] + [1] * (x.dim() - 2)
        with torch.no_grad():
            y = F.relu(model.first(x)) * stays.reshape(one)
            y = F.relu(model.norm(model.up(y))) * out.reshape(one)
            wanted = model.head(model.last(y).relu().flatten(2).mean(2))
            torch.testing.assert_close(small.module(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", some(KINDS, 1))
def test_the_size_of_their_files_is_exact(name: str) -> None:
    """But for the sizes of sequences and volumes, which a shape does not tell from those of images."""
    model, example = made(name)
    captured = lf.capture(model, example)
    network, inputs = measured(captured.traced), [together(drawn_like(example, 4, 1))]
    for share in (0.0, 0.5, 0.95):
        for bits in ((32, 32), (8, 8), (4, 4), (3, 8), (8, 32), (2, 32)):
            policy = Policy.uniform(network, LayerPolicy(share, *bits))
            found = int(PolicyBatch.of(network, [policy]).size_bytes()[0])
            real = len(file_of(lf.compress(captured, policy, inputs)))
            assert abs(found - real) <= (0 if KINDS[name][0] is IMAGES else 16), (share, bits)
            assert size_bytes(policy.cut(network), policy) == found


def test_each_output_channel_has_a_scale_of_its_own() -> None:
    """The transposed weight is the plain one turned: as near to it in few bits, channel by channel."""
    torch.manual_seed(1)
    plain = torch.randn(3, 4, 2, 2, 2) * torch.rand(3, 4, 1, 1, 1)  # groups, out, in, kernel
    turned = plain.transpose(1, 2).reshape(6, 4, 2, 2)  # (in, out of a group, ...)
    straight = plain.reshape(12, 2, 2, 2)
    for bits in (2, 4, 8):
        one = WeightQuantizer(turned, bits, 1, 12)(turned).reshape(3, 2, 4, 2, 2).transpose(1, 2)
        other = WeightQuantizer(straight, bits, 0)(straight).reshape(3, 4, 2, 2, 2)
        torch.testing.assert_close(one, other)
    scales = np.arange(12)
    spread = np.broadcast_to(along(scales, turned.shape, 1), tuple(turned.shape))
    assert (in_groups(spread, 12, 1)[:, 0, :, 0].reshape(-1) == scales).all()
    assert (spread[2:4, 1] == 5).all()


def test_the_weights_of_a_cut_one_are_those_of_what_stays() -> None:
    model, example = made("as many in each of 2")
    captured = lf.capture(model, example)
    layers = {layer.name: LayerPolicy(0.5 * (layer.group is not None)) for layer in captured.network.layers}
    small = compress(captured.traced, Policy.of(layers))
    kept = lf.compress(captured, Policy.of(layers)).kept["up"]
    inside = [place for place in kept[1] if place < 6]
    assert kept[1] == (*inside, *(place + 6 for place in inside))
    wanted = model.up.weight[list(kept[0])][:, inside]
    assert torch.equal(small.module.get_submodule("up").weight, wanted)
    assert small.module.get_submodule("up").groups == 2
