"""LSTMs that quantize what they read, and their state at each step, while they run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.onnx_network import network_of
from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.dynamic import together
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.run_time_grids import RunTimeLstm
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.timing import session
from leanfront.networks import Captured, file_of
from leanfront.search.gate.kernels import kernel_report
from tests.variants import some


class Tagger(nn.Module):
    """Vectors, an LSTM, and a class for each; ``given``: it starts from states that are made of them."""

    def __init__(self, given: bool = False, **options: object) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 16)
        self.recurrent = nn.LSTM(16, 12, **{"batch_first": True, **options})
        ways = 1 + self.recurrent.bidirectional
        self.head, self.given = nn.Linear(12 * ways, 5), given
        self.states = self.recurrent.num_layers * ways

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inside(x).relu()
        first = None
        if self.given:
            middle = x.mean(1)[:, :12].expand(self.states, -1, -1)
            first = (middle.contiguous(), (middle * 2).contiguous())
        if self.recurrent.batch_first:
            found, (state, _) = self.recurrent(x, first)
        else:
            found, (state, _) = self.recurrent(x.transpose(0, 1), first)
            found = found.transpose(0, 1)
        return self.head(found), state.transpose(0, 1) + 0.0


class Twice(nn.Module):
    """One LSTM that reads two sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.recurrent(x)[0], self.recurrent(x.flip(1))[0]
        return self.head((first + second).mean(1))


class Rows(nn.Module):
    """Each of three lines of an image is a sequence: they are one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        lines = x[:, :6].reshape(-1, 3, 2, 6).permute(0, 1, 3, 2).repeat(1, 1, 1, 2)
        found = self.recurrent(lines.flatten(0, 1) * lines.new_tensor([1.0, 2.0, 3.0, 4.0]))[0]
        return self.head(found.reshape(x.shape[0], 3, 6, 24).mean((1, 2)))


MADE: dict[str, Callable[[], nn.Module]] = {
    "plain": Tagger,
    "two ways, twice": lambda: Tagger(bidirectional=True, num_layers=2),
    "from states": lambda: Tagger(given=True, bidirectional=True),
    "time first": lambda: Tagger(batch_first=False),
    "without biases": lambda: Tagger(bias=False),
    "of two sequences": Twice,
    "line by line": Rows,
}


def captured(name: str) -> tuple[nn.Module, Captured]:
    torch.manual_seed(0)
    model = MADE[name]().eval()
    return model, lf.capture(model, data(1))


def data(count: int) -> Tensor:
    return torch.randn(count, 7, 6, generator=torch.Generator().manual_seed(count))


def dynamic(network: Captured, sparsity: float = 0.0) -> Policy:
    return lf.uniform(network, sparsity, 8, 32, dynamic=True)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", MADE)
def test_the_file_puts_out_what_torch_does(name: str, sparsity: float, tmp_path: Path) -> None:
    model, network = captured(name)
    policy = dynamic(network, sparsity)
    made = lf.compress(network, policy)
    written = lf.export(made, tmp_path / "model.onnx")  # raises where it puts out something else
    assert abs(written.size_bytes - size_bytes(policy.cut(measured(network.traced)), policy)) <= 4
    content = (tmp_path / "model.onnx").read_bytes()
    opened = session(content, 1)  # on more threads each has a grid for its rows of a batch
    for one in data(4).split(1):
        found = opened.run(None, {"input": one.numpy()})
        with torch.no_grad():
            ours, whole = made.module(one), model(one)
        pairs = [(ours, whole)] if isinstance(ours, Tensor) else zip(ours, whole, strict=True)
        for theirs, (own, plain) in zip(found, pairs, strict=True):
            np.testing.assert_allclose(theirs, own.numpy(), atol=2e-6)
            if not sparsity:
                assert 0 < float((own - plain).abs().max()) < 0.02 * float(plain.max() - plain.min())
    report = kernel_report(content, made.network, policy, 1)
    assert not report["not_fused"]
    assert not report["not_wanted"]
    assert "LSTM" not in report["operations"]


@pytest.mark.parametrize("name", ["two ways, twice", "line by line", "time first"])
def test_a_batch_is_quantized_example_by_example(name: str) -> None:
    _, network = captured(name)
    module = lf.compress(network, dynamic(network)).module
    assert any(isinstance(part, RunTimeLstm) for part in module.modules())
    with torch.no_grad():
        whole, alone = module(data(5)), [module(one) for one in data(5).split(1)]
    if isinstance(whole, Tensor):
        whole, alone = (whole,), [(one,) for one in alone]
    for place, found in enumerate(whole):
        torch.testing.assert_close(found, torch.cat([one[place] for one in alone]), atol=1e-6, rtol=0)


def test_it_is_trained_through() -> None:
    _, network = captured("two ways, twice")
    module = lf.compress(network, dynamic(network)).module.train()
    module(data(3))[0].square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_its_matrices_go_together() -> None:
    _, network = captured("plain")
    matrices = ("recurrent.weight_ih_l0", "recurrent.weight_hh_l0")
    assert together(network.network) == (("inside",), ("head",), matrices)
    layers = dict(dynamic(network))
    layers[matrices[1]] = LayerPolicy(0.0, 8, 32)
    with pytest.raises(PolicyError, match="matrices of an LSTM are quantized at run time together"):
        lf.compress(network, Policy.of(layers))
    space = Space(network.network, load_profile("this-machine"), [0.0], [4, 8, 32], [8, 32], dynamic=True)
    (decision,) = (one for one in space.decisions if one.layers == matrices)
    rng = np.random.default_rng(0)
    codes = np.array([rng.integers(len(one.values), size=200) for one in space.decisions])
    batch = space.batch(codes)
    rows = [[one.name for one in network.network.layers].index(name) for name in matrices]
    chosen = batch.more["dynamic"][rows]
    assert (chosen[0] == chosen[1]).all()
    wanted = (batch.weight_bits[rows] == 8).all(axis=0) & (codes[space.decisions.index(decision)] == 1)
    assert (chosen[0] > 0).tolist() == wanted.tolist()
    assert 0 < chosen[0].sum() < 200
    for column in range(20):
        values = {one.name: one.values[codes[row, column]] for row, one in enumerate(space.decisions)}
        assert space.policy(values) == batch.policy(column)


def test_its_bit_operations_are_those_of_integers() -> None:
    _, network = captured("plain")
    (node,) = (one for one in network.network.nodes if one.macs)
    policies = [lf.uniform(network, 0.0, 8, 32, dynamic=wanted) for wanted in (False, True)]
    floats, integers = PolicyBatch.of(network.network, policies).bops().tolist()
    linear = sum(one.shape.macs for one in network.network.layers if not one.weight_only)
    assert floats == linear * 8 * 32 + node.macs * 32 * 32
    assert integers == (linear + node.macs) * 8 * 8


@pytest.mark.parametrize(
    "recurrent",
    [nn.GRU(6, 12, batch_first=True), nn.RNN(6, 12, batch_first=True), nn.LSTM(6, 20, proj_size=12)],
)
def test_there_is_no_kernel_of_others(recurrent: nn.Module) -> None:
    network = lf.capture(nn.Sequential(recurrent, First(), nn.Linear(12, 3)).eval(), data(1))
    policy = dynamic(network)
    assert [name for name, layer in policy.items() if layer.more] == ["2"]
    name = next(iter(network.network.weight_only))
    layers = dict(policy) | {name: LayerPolicy(0.0, 8, 32, more=(("dynamic", 1.0),))}
    with pytest.raises(PolicyError, match="dynamic is 1 for a linear layer or an LSTM"):
        lf.compress(network, Policy.of(layers))


class First(nn.Module):
    def forward(self, found: tuple[Tensor, Tensor]) -> Tensor:
        return found[0]


@pytest.mark.parametrize("to", some(["openvino", "tensorrt", "qonnx"], 2))
def test_other_engines_are_refused_in_a_sentence(to: str) -> None:
    _, network = captured("plain")
    layers = {name: layer for name, layer in dynamic(network).items() if "recurrent" in name}
    policy = Policy.of({name: LayerPolicy() for name in network.network.layer} | layers)
    with pytest.raises(DialectError, match=r"cannot quantize layer 'recurrent\.weight_ih_l0' while it runs"):
        file_of(lf.compress(network, policy, [data(4)], to=to), to)


def test_it_is_read_back_from_a_file() -> None:
    _, network = captured("two ways, twice")
    read = network_of(onnx.load_from_string(file_of(lf.compress(network, dynamic(network)))))
    kinds = {node.op for node in read.network.nodes}
    assert "lstm" in kinds
    assert "other" not in kinds
