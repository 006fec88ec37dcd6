"""What no rule follows keeps the channels that it reads; it is never a crash, and never something else."""

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.search.gate.prove import prove
from tests.variants import some


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


class Written(Around):
    """Some channels are written over: two tensors with ranges of their own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).clone()
        if self.way == "added":
            y[:, 2:6] += 20 * self.c(x)
        elif self.way == "set":
            y[:, 4:] = 20 * self.c(x)
        elif self.way == "first":
            y[:, :4] = 20 * self.c(x)
        elif self.way == "one":
            y[:, -1] = 20 * self.c(x)[:, 2]
        elif self.way == "all":
            y[:] = 20 * self.c(x).repeat(1, 2, 1, 1)
        elif self.way == "steps":
            y[:, ::2] = 20 * self.c(x)
        return self.b(y)


@pytest.mark.parametrize(
    ("way", "sparsity"), some(product(["added", "set", "first", "one", "all", "steps"], [0.0, 0.5]), 6)
)
def test_channels_that_are_written_over_keep_their_ranges(way: str, sparsity: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    captured = lf.capture(Written(way).eval(), torch.randn(1, 3, 6, 6))
    policy = lf.uniform(captured, sparsity, weight_bits=8, activation_bits=8)
    compressed = lf.compress(captured, policy, calibration=[torch.randn(8, 3, 6, 6)])
    lf.export(compressed, tmp_path / "model.onnx")  # holds the file against the network
    cut = {name for name, layer in policy.items() if layer.sparsity and captured.network.layer[name].group}
    assert way == "steps" or not sparsity or cut


class DropPath(nn.Module):
    """A branch is left out at random, in training."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        return x * (torch.rand(len(x), 1, 1, 1) >= self.share)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_done_in_training_alone_is_said(share: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), DropPath(share), nn.Conv2d(4, 2, 1)).eval()
    notes = [note for note in lf.capture(model, torch.randn(1, 3, 4, 4)).notes if "training alone" in note]
    assert len(notes) == (share > 0)
    assert all(note.startswith("2: ") for note in notes)


class Halved(nn.Module):
    """A dropout of the user's own, as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


def test_a_dropout_that_is_captured_is_no_note() -> None:
    captured = lf.capture(nn.Sequential(nn.Linear(4, 4), Halved(), nn.Linear(4, 2)).eval(), torch.randn(1, 4))
    assert any(isinstance(part, nn.Dropout) for part in captured.module.modules())
    assert not captured.notes


class Words(nn.Module):
    """Tokens and positions that begin a stream, normed at once (as in BERT) or in the branch (as in GPT)."""

    def __init__(self, words: int, first: bool) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(words, 12, padding_idx=0), nn.Embedding(9, 12)
        self.norm, self.a, self.b, self.out = (
            nn.LayerNorm(12),
            nn.Linear(12, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )
        self.first = nn.LayerNorm(12) if first else nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(self.word(ids) + self.place(torch.arange(ids.shape[1])))
        x = x + self.b(self.a(self.norm(x)).relu())
        return self.out(x.mean(1))


# the values of a large table are not told apart
@pytest.mark.parametrize(("words", "first"), [(20, False), (20, True), (400_000, True)])
def test_columns_of_tables_are_cut_with_the_stream(words: int, first: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (1, 9))
    model = Words(words, first).eval()
    captured = lf.capture(model, ids)
    assert captured.groups == {"a": 16, "b": 12}
    cut = lf.compress(captured, lf.uniform(captured, 0.5))
    shapes = {name: tuple(value.shape) for name, value in cut.module.named_parameters()}
    assert shapes["word.weight"] == (words, 6)
    assert shapes["place.weight"] == (9, 6)
    proof = prove(model, captured, ids)
    assert proof.passed, proof.failures
    if words < 100:
        kept = cut.kept["a"][0]
        assert cut.kept["word"] == ((), kept)
        assert torch.equal(cut.module.get_parameter("word.weight"), model.word.weight[:, list(kept)])


class Scaled(nn.Module):
    """A number beside layers, which has no dimension that could be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * self.scale.exp()).relu())


def test_a_number_of_the_models_own_stays() -> None:
    model, x = Scaled().eval(), torch.randn(1, 6)
    captured = lf.capture(model, x)
    assert lf.compress(captured, lf.uniform(captured, 0.5)).kept_parameters == {}
    proof = prove(model, captured, x)
    assert proof.passed, proof.failures


class Masked(nn.Module):
    """A mask of yes and no becomes numbers, in each way that torch has for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        there = x > 0
        places = torch.arange(6) * there.to(x.device, torch.int32)
        y = self.a(x * there.to(x) + (x > 1).type_as(x) + (x > 2).float()).relu()
        return self.b(y) + places.argmax(1, keepdim=True)


def test_a_change_of_type_is_in_the_file_however_it_was_written() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(1, 6)
    captured = lf.capture(model, x)
    targets = {str(node.target) for node in captured.module.graph.nodes}
    assert "aten._to_copy.default" in targets
    assert not any(target.startswith(("aten.to.", "aten.type_as")) for target in targets)
    proof = prove(model, captured, x)
    assert proof.passed, proof.failures
