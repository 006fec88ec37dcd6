"""Recurrent layers whose weights are stored in few bits: the same in onnxruntime, and small."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.search.gate.kernels import optimised_nodes
from leanfront.search.gate.prove import prove

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "two ways, twice": (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    "without biases": (nn.GRU, {"bidirectional": True, "bias": False}),
    "time first": (nn.LSTM, {"batch_first": False}),
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
        self.head = nn.Linear(24 * (1 + self.recurrent.bidirectional), 3)

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


@pytest.mark.parametrize("kind", KINDS)
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
