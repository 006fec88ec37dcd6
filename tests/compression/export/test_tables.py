"""Tables that are looked up: stored in few bits, cut with the stream, and the same in onnxruntime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import leanfront as lf
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.search.gate.prove import prove

WORDS, PLACES, DIM = 500, 20, 32


class SmallBert(nn.Module):
    """Words, kinds and positions, a norm and an encoder: the table of words is most of it."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.words = nn.Embedding(words, DIM, padding_idx=0)
        self.kinds, self.places = nn.Embedding(2, DIM), nn.Embedding(PLACES, DIM)
        self.register_buffer("ids", torch.arange(PLACES)[None])
        self.norm = nn.LayerNorm(DIM)
        layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, 5)

    def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
        x = self.words(words) + self.kinds(kinds) + self.places(self.ids[:, : words.shape[1]])
        return self.head(self.encoder(self.norm(x)).mean(1))


def calls(count: int, words: int = WORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return tuple(torch.randint(high, (count, 12), generator=generator) for high in (words, 2))


@pytest.fixture(scope="module")
def bert() -> tuple[nn.Module, lf.Captured]:
    torch.manual_seed(0)
    model = SmallBert().eval()
    return model, lf.capture(model, calls(1))


def test_tables_are_layers_and_nothing_is_kept(bert: tuple[nn.Module, lf.Captured]) -> None:
    captured = bert[1]
    shapes = {layer.name: str(layer.shape) for layer in captured.network.layers if layer.looked_up}
    assert shapes == {
        "words": f"embedding {WORDS}->{DIM} @12x1",
        "kinds": f"embedding 2->{DIM} @12x1",
        "places": f"embedding {PLACES}->{DIM} @12x1",
    }
    assert captured.notes == ()
    assert captured.network.macs == sum(layer.shape.macs for layer in captured.network.layers[3:])
    assert {branch.layers[0] for branch in captured.network.branches}.isdisjoint(shapes)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_fewer_bits_are_smaller_files_of_the_size_that_was_foretold(
    bert: tuple[nn.Module, lf.Captured], sparsity: float, tmp_path: Path
) -> None:
    captured = bert[1]
    sizes = []
    for bits in (32, 8, 4, 2):
        policy = lf.uniform(captured, sparsity, weight_bits=bits)
        path = tmp_path / f"{bits}.onnx"
        lf.export(lf.compress(captured, policy), path)
        sizes.append(path.stat().st_size)
        batch = PolicyBatch.of(measured(captured.traced), [policy])
        assert int(batch.size_bytes()[0]) == pytest.approx(sizes[-1], abs=60 if sparsity else 0)
        shapes_alone = size_bytes(policy.cut(captured.network), policy)
        assert shapes_alone == pytest.approx(sizes[-1], rel=0.01, abs=300)
    assert sizes[1] < 0.35 * sizes[0] + 4000
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_computed_with_a_table_of_few_bits_is_what_its_codes_say(
    bert: tuple[nn.Module, lf.Captured], tmp_path: Path
) -> None:
    """Each value of a table lies within half a step of a column from its own, and those are looked up."""
    model, captured = bert
    compressed = lf.compress(captured, lf.uniform(captured, weight_bits=8))
    table = compressed.module.get_submodule("words").weight.detach()
    whole = model.get_submodule("words").weight.detach()
    steps = whole.abs().amax(0) / 127
    assert bool(((table - whole).abs() <= steps * 0.501).all())
    assert len(torch.unique(torch.round(table / steps)[:, 0])) > 50
    path = tmp_path / "model.onnx"
    lf.export(compressed, path)
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    gathers = [node for node in graph.node if node.op_type == "Gather" and node.name == "words"]
    assert stored[gathers[0].input[0]].data_type == onnx.TensorProto.INT8
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    words, kinds = calls(1)
    found = session.run(None, {"input": words.numpy(), "input1": kinds.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, compressed.module(words, kinds).numpy(), atol=1e-5)


def test_it_is_proved(bert: tuple[nn.Module, lf.Captured]) -> None:
    model, captured = bert
    proof = prove(model, captured, calls(1), [calls(8)])
    assert proof.passed, proof.failures


def test_gradients_reach_a_table_of_few_bits_and_leave_its_padding(
    bert: tuple[nn.Module, lf.Captured],
) -> None:
    captured = bert[1]
    module = lf.compress(captured, lf.uniform(captured, weight_bits=4)).module.train()
    words, kinds = calls(4)
    words[:, 3] = 0
    module(words, kinds).square().sum().backward()
    gradient = module.get_submodule("words").parametrizations["weight"].original.grad
    assert bool(gradient[words[0, 0]].abs().sum() > 0)
    assert not gradient[0].any()


def test_large_tables_are_clipped_by_some_of_their_rows() -> None:
    """40,000 rows, one of them far out: less wrong than steps that reach it are, by rounding alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40_000, 4), nn.Flatten(), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        model[0].weight[7] = 30.0
    captured = lf.capture(model, torch.randint(40_000, (1, 3)))
    table = (
        lf.compress(captured, lf.uniform(captured, weight_bits=4)).module.get_submodule("0").weight.detach()
    )
    apart = (table - model[0].weight.detach()).square()
    assert float(apart[8:].mean()) < 0.5 * float((30.0 / 7) ** 2 / 12)


class Tied(nn.Module):
    """Words come out of the table that they are looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(60, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.inner(self.words(ids)).relu(), self.words.weight)


def test_tables_that_are_used_twice_are_kept_and_named() -> None:
    model = Tied().eval()
    captured = lf.capture(model, torch.randint(60, (1, 5)))
    assert captured.network.layer_names == ("inner",)
    assert [note for note in captured.notes if note.startswith("words keeps its bits")]
    proof = prove(model, captured, torch.randint(60, (1, 5)))
    assert proof.passed, proof.failures
