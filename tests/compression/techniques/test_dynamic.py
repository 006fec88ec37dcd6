"""Linear layers that quantize what they read while they run: emulated, written, priced and offered."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.onnx_network import network_of
from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.run_time_grids import RunTimeQuantizer
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.errors import TableError
from leanfront.networks import Captured, file_of
from leanfront.search.gate.kernels import kernel_report
from tests.networks import built, example, inputs

DYNAMIC = (("dynamic", 1.0),)


class Encoder(nn.Module):
    """A transformer's layer on 7 positions, and a head on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(self.first(x)).mean(1))
        return found


@cache
def captured(name: str) -> Captured:
    torch.manual_seed(0)
    return lf.capture(
        *(Encoder().eval(), torch.randn(1, 7, 6)) if name == "Encoder" else (built(name), example(name))
    )


def test_it_rounds_as_the_operation_of_onnx_does() -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
    back = helper.make_node("DequantizeLinear", ["y", "scale", "zero"], ["found"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 9]) for name in ("x", "found")]
    graph = helper.make_graph([node, back], "one", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 9, generator=generator) * torch.logspace(-3, 3, 12)[:, None]
    x[0], x[1], x[2] = 0.0, x[1].abs(), -x[2].abs()
    for rows in (1, 3):  # of each example
        ours = RunTimeQuantizer(rows)(x)
        theirs = [file.run(None, {"x": part.numpy()})[0] for part in x.split(rows)]
        np.testing.assert_allclose(ours.numpy(), np.concatenate(theirs), rtol=1e-6, atol=1e-9)
    x.requires_grad_()
    RunTimeQuantizer()(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", ["Encoder", "Perceptron", "Sequence"])
def test_the_file_equals_the_network_and_runs_in_integers(name: str, tmp_path: Path) -> None:
    policy = lf.uniform(captured(name), 0.0, 8, 32, dynamic=True)
    made = lf.compress(captured(name), policy)  # nothing to calibrate
    written = lf.export(made, tmp_path / "model.onnx")  # raises where it puts out something else
    assert abs(written.size_bytes - size_bytes(measured(captured(name).traced), policy)) <= 8
    report = kernel_report((tmp_path / "model.onnx").read_bytes(), made.network, policy, 1)
    assert set(report["integer"]) == set(made.network.layer)
    assert not report["not_fused"]
    assert not report["not_wanted"]
    assert report["operations"]["DynamicQuantizeMatMul"] == len(made.network.layer)
    assert any(isinstance(part, RunTimeQuantizer) for part in made.module.modules())


def test_beside_other_layers_and_cut() -> None:
    plain = lf.uniform(captured("Chain"), 0.3, 8, 32, dynamic=True)
    assert len([name for name, layer in plain.items() if layer.more]) == 1
    layers = {
        name: layer if layer.more else LayerPolicy(layer.sparsity, 8, 8) for name, layer in plain.items()
    }
    made = lf.compress(captured("Chain"), Policy.of(layers), [inputs("Chain", 16, 1)])
    content = file_of(made)
    assert len(content) == pytest.approx(
        size_bytes(made.policy.cut(measured(captured("Chain").traced)), made.policy), abs=4
    )
    ran = kernel_report(content, made.network, made.policy, 1)
    assert not ran["not_fused"]


@pytest.mark.parametrize(
    ("layer", "bits", "number"), [("head", (8, 8), 1.0), ("head", (4, 32), 1.0), ("head", (8, 32), 0.5)]
)
def test_what_cannot_be_is_refused(layer: str, bits: tuple[int, int], number: float) -> None:
    network = captured("Encoder")
    layers = dict(lf.uniform(network)) | {layer: LayerPolicy(0.0, *bits, more=(("dynamic", number),))}
    with pytest.raises(PolicyError, match="dynamic is 1 for a linear layer or an LSTM with weights of 8"):
        lf.compress(network, Policy.of(layers), [torch.randn(2, 7, 6)])


def test_its_bit_operations_are_those_of_integers() -> None:
    network = captured("Perceptron")
    policies = [lf.uniform(network, 0.0, 8, 32, dynamic=dynamic) for dynamic in (False, True)]
    floats, integers = PolicyBatch.of(network.network, policies).bops().tolist()
    assert floats == 4 * integers == sum(layer.shape.macs for layer in network.network.layers) * 8 * 32


def test_a_convolution_and_other_bits_are_refused() -> None:
    with pytest.raises(PolicyError, match="dynamic is 1 for a linear layer"):
        lf.uniform(captured("Encoder"), 0.0, 4, 32, dynamic=True)
    network = captured("Chain").network
    first = network.layers[0].name
    layers = {name: LayerPolicy() for name in network.layer} | {first: LayerPolicy(0.0, 8, 32, more=DYNAMIC)}
    with pytest.raises(PolicyError, match="conv2d"):
        lf.compress(captured("Chain"), Policy.of(layers))


def test_other_engines_and_parts_say_that_they_have_it_not() -> None:
    network = captured("Perceptron")
    policy = lf.uniform(network, 0.0, 8, 32, dynamic=True)
    with pytest.raises(DialectError, match="tensorrt cannot quantize layer"):
        file_of(lf.compress(network, policy, to="tensorrt"), "tensorrt")
    with pytest.raises(TableError, match="nobody knows what profile 'toy' takes"):
        lf.cost(network, policy, "toy")


def test_a_space_offers_it_where_it_means_something() -> None:
    network, profile = captured("Encoder").network, load_profile("this-machine")
    space = Space(network, profile, [0.0], [8, 32], [8, 32], dynamic=True)
    names = [decision.about for decision in space.decisions if decision.kind == "dynamic"]
    assert names == list(network.layer)
    rng = np.random.default_rng(0)
    codes = np.array([rng.integers(len(decision.values), size=200) for decision in space.decisions])
    batch = space.batch(codes)
    wanted = (batch.weight_bits == 8) & (batch.activation_bits == 32)
    assert 0 < batch.more["dynamic"].sum() < wanted.sum()
    assert not (batch.more["dynamic"] * ~wanted).any()
    for column in range(20):
        values = {d.name: d.values[codes[row, column]] for row, d in enumerate(space.decisions)}
        policy = space.policy(values)
        assert policy == batch.policy(column)
        assert PolicyBatch.of(network, [policy]).more.get("dynamic", np.zeros(1)).sum() == sum(
            bool(layer.more) for layer in policy.values()
        )
        assert (
            space.policy({d.name: v for d, v in zip(space.decisions, _values(space, policy), strict=True)})
            == policy
        )
    for other in ("toy", "raspberry-pi-4"):
        without = Space(network, load_profile(other), [0.0], [8, 32], [8, 32], dynamic=True)
        assert not [d for d in without.decisions if d.kind == "dynamic"]
        assert "nobody knows what quantizing at run time costs" in without.left_out
    assert "space.dynamic needs" in Space(network, profile, [0.0], [8], [8], dynamic=True).left_out


def _values(space: Space, policy: Policy) -> list[object]:
    params = space.params_of(policy)
    return [d.values[d.code(params[d.name])] if d.name in params else d.values[0] for d in space.decisions]


def test_openvino_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    network = captured("Encoder")
    made = lf.compress(network, lf.uniform(network, 0.0, 8, 32, dynamic=True), to="openvino")
    lf.export(made, tmp_path / "model.onnx", to="openvino")
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}


@pytest.mark.parametrize("name", ["Perceptron", "Sequence"])
def test_its_bits_are_read_back_from_a_file(name: str) -> None:
    network = captured(name)
    policy = lf.uniform(network, 0.0, 8, 32, dynamic=True)
    read = network_of(onnx.load_from_string(file_of(lf.compress(network, policy))))
    assert list(read.policy.values()) == list(policy.values())
    assert [layer.shape for layer in read.network.layers] == [layer.shape for layer in network.network.layers]
    assert "other" not in {node.op for node in read.network.nodes}


def test_a_file_of_onnxruntimes_own_is_read(tmp_path: Path) -> None:
    network = captured("Perceptron")
    lf.export(lf.compress(network, lf.uniform(network)), tmp_path / "floats.onnx")
    quantize_dynamic(tmp_path / "floats.onnx", tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8)
    model = onnx.load(tmp_path / "dynamic.onnx")
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}
    read = network_of(model)
    assert {(layer.weight_bits, layer.value("dynamic")) for layer in read.policy.values()} == {(8, 1.0)}
