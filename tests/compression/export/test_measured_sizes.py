"""The size of every policy's file, foretold from what the operations take in files of the same network."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export import measured_sizes
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.export.template import ExportError
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.file_size import NAME_BYTES, SHORT_NAMES
from leanfront.networks import file_of
from leanfront.search.gate.policies import DEEP, FLOAT, INTEGER, MIXED, MODERATE, drawn
from leanfront.search.gate.tensors import drawn_like, together
from tests.compression.capture.random_networks import random_network
from tests.variants import some

EVERY = (*MIXED, (4, 4), (2, 8), (3, 4), (2, 32), (8, 4))


class Residual(nn.Module):
    """Linear bottlenecks, two of which can be left out, with all that integers change: ReLU6, padded codes,
    values that are moved, and shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 130, 3, padding=1)
        self.wide = nn.ModuleList(nn.Conv2d(130, 16, 1) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv2d(16, 130, 3) for _ in range(2))
        self.norm, self.shuffle = nn.GroupNorm(2, 130), nn.ChannelShuffle(2)
        self.tail, self.head = nn.Conv2d(130, 8, 1), nn.Linear(8, 5)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = x + narrow(F.pad(F.relu6(wide(x)), (1, 1, 1, 1)))
        x = F.max_pool2d(self.shuffle(self.norm(x) * self.gain), 2)
        return self.head(self.tail(x).relu().mean((2, 3)))


def policies(network: Network, seed: int) -> Iterator[Policy]:
    """In floats, in integers, in all that there is; whole, cut, and without branches."""
    rng = np.random.default_rng(seed)
    yield Policy.uniform(network, LayerPolicy())
    yield drawn(network, rng, [FLOAT], DEEP)
    yield drawn(network, rng, [INTEGER])
    yield drawn(network, rng, [INTEGER], MODERATE)
    yield drawn(network, rng, [(4, 4)])
    for _ in range(2):
        yield drawn(network, rng, MIXED)
        yield drawn(network, rng, EVERY, MODERATE + DEEP)


def hold(model: nn.Module, example: tuple[Tensor, ...], seed: int, within: int) -> None:
    captured = lf.capture(model.eval(), example)
    network = measured(captured.traced)
    calibration = [together(drawn_like(example, 4, 1))]
    tried = list(policies(network, seed))
    found = PolicyBatch.of(network, tried).size_bytes().tolist()
    for policy, size in zip(tried, found, strict=True):
        real = len(file_of(lf.compress(captured, policy, calibration)))
        assert abs(size - real) <= within, policy
        assert size_bytes(policy.cut(network), policy) == size


@pytest.mark.parametrize("seed", some([6, 13, 16], 1))
def test_random_networks_within_60_bytes(seed: int) -> None:
    hold(*random_network(seed), seed, within=60)


def test_branches_padded_codes_and_shuffled_channels() -> None:
    torch.manual_seed(0)
    hold(Residual(), (torch.randn(1, 3, 8, 8),), 0, within=60)


class Masked(nn.Module):
    """Two branches that make the same of a mask, which a file has once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = x + layer(x) * mask.unsqueeze(1).exp().reshape(-1, 6)
        return self.head(x)


def test_what_is_computed_once_for_two_branches_stays_with_either() -> None:
    torch.manual_seed(0)
    captured = lf.capture(Masked().eval(), (torch.randn(1, 6), torch.randn(1, 6)))
    network = measured(captured.traced)
    names = [branch.name for branch in network.branches]
    assert names == ["first", "second"]
    for gone in ((), names[:1], names[1:], names):
        policy = lf.uniform(captured, left_out=tuple(gone))
        found = int(PolicyBatch.of(network, [policy]).size_bytes()[0])
        assert abs(found - len(file_of(lf.compress(captured, policy)))) <= 8, gone


def test_a_size_does_not_depend_on_values() -> None:
    """What was not trained yet is full of equal numbers."""
    torch.manual_seed(0)
    model = Residual().eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    sizes = []
    for _ in range(2):
        captured = lf.capture(model, torch.randn(1, 3, 8, 8))
        made = lf.compress(captured, lf.uniform(captured, 0.5, 8, 8), [torch.rand(4, 3, 8, 8) - 0.5])
        sizes.append(len(file_of(made)))
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    assert abs(sizes[0] - sizes[1]) <= 48  # four zero points that happen to be equal


def test_names_of_values_have_the_same_length() -> None:
    out = Writer()
    names = [out.name() for _ in range(SHORT_NAMES + 1)]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names[:-1]} == {NAME_BYTES}
    assert len(names[-1]) == NAME_BYTES + 1


def test_what_cannot_be_written_keeps_its_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(traced: object) -> None:
        raise ExportError("no")

    monkeypatch.setattr(measured_sizes, "template", refuse)
    captured = lf.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3))
    assert measured(captured.traced) is captured.network


def test_it_is_the_same_network_otherwise() -> None:
    captured = lf.capture(Residual(), torch.randn(1, 3, 8, 8))
    network = measured(captured.traced)
    assert all(node.written is not None for node in network.nodes)
    assert all(node.written is None for node in captured.network.nodes)
    plain = tuple(replace(node, written=None) for node in network.nodes)
    assert replace(network, nodes=plain) == captured.network
    assert repr(network) == repr(captured.network)  # which kits know a network by
    assert measured(captured.traced) is network
