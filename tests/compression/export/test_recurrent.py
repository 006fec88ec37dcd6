"""Recurrent layers whose weights are stored in few bits: the same in onnxruntime, and small."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.trace import TraceError
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.networks import file_of
from leanfront.search.gate.kernels import optimised_nodes
from leanfront.search.gate.prove import prove
from tests.variants import some

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "two ways, twice": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "without biases": (nn.GRU, {"bidirectional": True, "bias": False}),
    "time first": (nn.LSTM, {"batch_first": False}),
    "projected": (nn.LSTM, {"proj_size": 10}),
    "projected two ways, twice, time first": (
        nn.LSTM,
        {"proj_size": 10, "bidirectional": True, "num_layers": 2, "batch_first": False},
    ),
    "projected without biases": (nn.LSTM, {"proj_size": 10, "num_layers": 2, "bias": False}),
}


class Classifier(nn.Module):
    """Words, a recurrent layer, and a class."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        cls, options = KINDS[kind]
        self.words = nn.Embedding(40, 12)
        self.inside = nn.Linear(12, 16)
        self.recurrent = cls(16, 24, **{"batch_first": True, **options})
        self.first = not self.recurrent.batch_first
        each = self.recurrent.proj_size or 24
        self.head = nn.Linear(each * (1 + self.recurrent.bidirectional), 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.inside(self.words(words)).relu()
        if self.first:
            return self.head(self.recurrent(x.transpose(0, 1))[0].mean(0))
        return self.head(self.recurrent(x)[0].mean(1))


def built(kind: str) -> tuple[nn.Module, lf.Captured]:
    torch.manual_seed(0)
    model = Classifier(kind).eval()
    return model, lf.capture(model, words(1))


def words(count: int) -> Tensor:
    return torch.randint(40, (count, 9), generator=torch.Generator().manual_seed(count))


def size_of(captured: lf.Captured, policy: Policy) -> int:
    return int(PolicyBatch.of(measured(captured.traced), [policy]).size_bytes()[0])


@pytest.mark.parametrize("kind", some(KINDS, 5))
def test_files_of_recurrent_layers_are_proved(kind: str) -> None:
    model, captured = built(kind)
    stored = [name for name in captured.network.layer_names if name.startswith("recurrent.")]
    assert stored == [name for name, p in model.named_parameters() if "recurrent" in name and p.dim() == 2]
    proof = prove(model, captured, words(1), [words(8)])
    assert proof.passed, proof.failures


def test_fewer_bits_are_smaller_and_run_as_before(tmp_path: Path) -> None:
    _, captured = built("lstm")
    sizes = []
    for bits in (32, 8, 4, 2):
        policy = lf.uniform(captured, weight_bits=bits)
        path = tmp_path / f"{bits}.onnx"
        compressed = lf.compress(captured, policy)
        lf.export(compressed, path)
        sizes.append(path.stat().st_size)
        assert size_of(captured, policy) == pytest.approx(sizes[-1], abs=20)
        nodes = set(optimised_nodes(path.read_bytes(), 1).values())
        assert "LSTM" in nodes
        assert nodes.isdisjoint({"Concat", "Unsqueeze"})  # weights are decoded when the file is loaded
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            wanted = compressed.module(words(1)).numpy()
        np.testing.assert_allclose(session.run(None, {"input": words(1).numpy()})[0], wanted, atol=1e-5)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.5 * sizes[0]
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "4.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in types


def test_its_weights_are_on_a_grid_of_each_row() -> None:
    model, captured = built("gru")
    compressed = lf.compress(captured, lf.uniform(captured, weight_bits=8))
    held = compressed.module.get_submodule("recurrent.weight_hh_l0").weight.detach()
    whole = model.get_parameter("recurrent.weight_hh_l0").detach()
    steps = whole.abs().amax(1, keepdim=True) / 127
    assert bool(((held - whole).abs() <= 0.501 * steps).all())
    assert not torch.equal(held, whole)
    assert torch.allclose(held / steps, (held / steps).round(), atol=1e-3)


def test_a_space_decides_on_each_of_its_weights() -> None:
    _, captured = built("lstm")
    space = Space(captured.network, load_profile("toy"), (0.0,), (4, 8, 32), (8, 32))
    values = {decision.name: decision.values for decision in space.decisions}
    assert values["bits/recurrent.weight_ih_l0"] == ((4, 32), (8, 32), (32, 32))
    assert values["bits/inside"] == space.pairs
    one = space.policy({"bits/recurrent.weight_hh_l0": (4, 32)})
    assert one["recurrent.weight_hh_l0"].weight_bits == 4
    assert size_of(captured, one) < size_of(captured, space.reference) - 24 * 4 * 24 * 3


def test_fewer_bits_cost_no_more() -> None:
    _, captured = built("lstm")
    few, whole = (
        lf.cost(captured, lf.uniform(captured, weight_bits=bits), "toy").latency_ms for bits in (8, 32)
    )
    assert 0 < few < whole


class States(nn.Module):
    """What a projected LSTM puts out, and the states that it ends in."""

    def __init__(self, given: bool = False) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(6, 8, 2, proj_size=3, bidirectional=True, batch_first=True)
        self.head, self.given = nn.Linear(6, 5), given

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = (x.mean(1).new_ones(4, x.shape[0], 3), x.new_zeros(4, x.shape[0], 8)) if self.given else None
        found, (state, cell) = self.recurrent(x, first)
        return self.head(found), state.transpose(0, 1) * 2, cell.transpose(0, 1) * 2


def test_the_last_states_of_a_projected_one_are_its_own() -> None:
    torch.manual_seed(0)
    model, x = States().eval(), torch.randn(1, 5, 6)
    captured = lf.capture(model, x)
    assert len(captured.network.weight_only) == 12  # as stored: no product of two of them
    proof = prove(model, captured, x)
    assert proof.passed, proof.failures


def test_a_projected_one_that_is_given_a_state_is_refused_in_a_sentence() -> None:
    with pytest.raises(TraceError, match="recurrent has proj_size and starts from a state that is given"):
        lf.capture(States(given=True).eval(), torch.randn(1, 5, 6))


CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class Stepping(nn.Module):
    """A cell that is called for each of some steps."""

    def __init__(self, kind: str, steps: int, bias: bool = True) -> None:
        super().__init__()
        self.inside, self.cell = nn.Linear(12, 16), CELLS[kind](16, 24, bias=bias)
        self.head, self.steps = nn.Linear(24, 3), steps

    def forward(self, x: Tensor) -> Tensor:
        x, state = self.inside(x).relu(), None
        for step in range(self.steps):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("steps", some([1, 4], 1))
@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_stored_in_few_bits_once_for_all_steps(kind: str, steps: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Stepping(kind, steps, bias=steps > 1).eval(), torch.randn(1, 4, 12)
    captured = lf.capture(model, x)
    assert captured.network.weight_only == ("cell.weight_ih", "cell.weight_hh")
    assert [note.split()[0] for note in captured.notes] == ["cell"]
    proof = prove(model, captured, x)
    assert proof.passed, proof.failures
    sizes = []
    for bits in (32, 8, 4):
        policy = lf.uniform(captured, weight_bits=bits)
        lf.export(lf.compress(captured, policy), tmp_path / f"{bits}.onnx")
        content = (tmp_path / f"{bits}.onnx").read_bytes()
        sizes.append(len(content))
        assert size_of(captured, policy) == pytest.approx(sizes[-1], abs=20)
        nodes = set(optimised_nodes(content, 1).values())
        assert nodes.isdisjoint({"Transpose", "Cast"})  # weights are decoded when the file is loaded
    assert sizes[0] - sizes[1] > 2.9 * sum(p.numel() for p in model.cell.parameters() if p.dim() == 2)
    assert sizes[2] < sizes[1]


@pytest.mark.parametrize("kind", ["projected", "projected two ways, twice, time first"])
def test_projections_are_multiplied_when_the_file_is_loaded(kind: str) -> None:
    """No product of two weights is left: each layer and direction has one, of what it puts out."""
    _, captured = built(kind)
    content = file_of(lf.compress(captured, lf.uniform(captured, weight_bits=4)))
    kinds = list(optimised_nodes(content, 1).values())
    directions = 1 + ("two ways" in kind)
    assert kinds.count("MatMul") == (directions * (2 if "twice" in kind else 1))


def test_a_projected_one_that_is_called_twice_keeps_one_set_of_weights() -> None:
    class Twice(States):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            found = self.recurrent(x)[0]
            return self.head(self.recurrent(found)[0])

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(1, 5, 6)
    captured = lf.capture(model, x)
    assert len(captured.network.weight_only) == 12
    proof = prove(model, captured, x)
    assert proof.passed, proof.failures
