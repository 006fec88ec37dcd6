"""Two implementations of the cut against each other: ours and nni's."""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_list
from torch.utils import _pytree

import tests.compression.techniques.nni_speedup
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.techniques.prune import CutError, cut, victims
from tests.compression.techniques.nni_speedup import MissingNniError, cut_with_nni

needs_nni = pytest.mark.skipif(
    importlib.util.find_spec("nni") is None and os.environ.get("CI") != "true",
    reason="nni is not installed (pip install leanfront[nni])",
)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 4, 16), nn.ReLU(), nn.Linear(16, 5),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block; its shortcut has weights (a projection) or is ResNet-20's option A: zeros."""

    def __init__(self, before: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - before) // 2
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if projection and stride > 1
            else nn.Identity()
        )
        self.option_a = stride > 1 and not projection

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.option_a:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(
            Block(8, 8, 1, projection), Block(8, 16, 2, projection), Block(16, 16, 1, projection)
        )
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))
        return out


def traced(model: nn.Module) -> Traced:
    """With batch norms that do something: a channel in the wrong place changes the outputs."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return trace(model, torch.zeros(1, 3, 8, 8))


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


@needs_nni
@pytest.mark.parametrize(
    ("model", "groups"),
    [
        (sequential, {"0": 5, "4": 7, "8": 9}),
        pytest.param(  # the streams of option A stay, the inner channels of its blocks go
            lambda: Residual(projection=False),
            {"blocks.0.conv1": 3, "blocks.1.conv1": 11, "blocks.2.conv1": 6},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: Residual(projection=True),
            {"conv1": 5, "blocks.0.conv1": 3, "blocks.1.conv1": 11, "blocks.1.conv2": 10},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sequential", "option A", "projections"],
)
def test_both_cutters_give_the_same_network(model, groups, capfd):
    before = traced(model())
    assert set(groups) <= set(before.network.groups)
    registered = _pytree.SUPPORTED_NODES[immutable_list]
    random_state = torch.get_rng_state()

    ours, nnis = cut(before, before.network.resized(groups)).module, cut_with_nni(before, groups)

    assert shapes(ours) == shapes(nnis) != shapes(before.module)
    for group, count in groups.items():
        for layer in before.network.groups[group]:
            assert nnis.get_submodule(layer.name).weight.shape[0] == count
    assert torch.equal(torch.get_rng_state(), random_state)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(nnis(images), ours(images), rtol=0, atol=1e-4)
    assert not any(module.training for module in nnis.modules())
    # What importing and running nni does to a process stays out of this one.
    assert "nni" not in sys.modules
    assert _pytree.SUPPORTED_NODES[immutable_list] is registered
    assert capfd.readouterr() == ("", "")


def test_what_nni_cannot_cut_is_said(monkeypatch, tmp_path):
    program = tmp_path / "fails.py"
    program.write_text("raise RuntimeError('shapes do not fit')")
    monkeypatch.setattr(tests.compression.techniques.nni_speedup, "PROGRAM", program)
    monkeypatch.setattr(tests.compression.techniques.nni_speedup, "version", lambda name: "3.0")
    with pytest.raises(CutError, match="nni cannot cut this network: RuntimeError: shapes do not fit"):
        cut_with_nni(traced(sequential()), {"0": 4})


def test_a_cut_of_nothing_asks_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(tests.compression.techniques.nni_speedup, "PROGRAM", tmp_path / "none.py")
    monkeypatch.setattr(tests.compression.techniques.nni_speedup, "version", lambda name: "3.0")
    before = traced(sequential())
    assert shapes(cut_with_nni(before, {"0": 8})) == shapes(before.module)


def test_the_victims_are_the_weakest_channels_by_their_old_numbers():
    model = sequential()
    with torch.no_grad():
        for channel in (1, 6):  # what writes and what reads these channels is next to nothing
            model[0].weight[channel] *= 1e-3
            model[4].weight[:, channel] *= 1e-3
        model[4].weight[10] *= 1e-3
        model[8].weight[:, 40:44] *= 1e-3
    before = trace(model, torch.zeros(1, 3, 8, 8))

    assert victims(before, {"0": 6, "4": 11, "8": 16}) == {"0": (1, 6), "4": (10,)}
    kept = [0, 2, 3, 4, 5, 7]
    torch.testing.assert_close(
        cut(before, before.network.resized({"0": 6})).module.get_submodule("0").weight, model[0].weight[kept]
    )


def test_a_missing_nni_is_one_sentence_that_says_what_to_install(monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tests.compression.techniques.nni_speedup, "version", missing)
    with pytest.raises(MissingNniError, match=r"pip install leanfront\[nni\]"):
        cut_with_nni(traced(sequential()), {"0": 4})
