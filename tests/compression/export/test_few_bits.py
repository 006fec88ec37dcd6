"""Weights of 1 and of 16 bits, tensors of 2 to 7: files that hold them so, and sizes that were foretold."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import leanfront as lf
from leanfront.compression.export.deployed_form import layer_weights
from leanfront.compression.export.dialects import DialectError, dialect_of
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.techniques.compress import Compressed
from leanfront.networks import Captured, CompressedNetwork, file_of
from tests.networks import built, captured_network, example, inputs


@cache
def captured(name: str) -> Captured:
    return captured_network(name)


def compressed(name: str, bits: tuple[int, int], to: str = "onnx") -> CompressedNetwork:
    policy = lf.uniform(captured(name), 0.3, *bits)
    return lf.compress(captured(name), policy, [inputs(name, 16, 1)], to=to)


PAIRS = [(1, 8), (1, 32), (16, 32), (1, 2), (2, 3), (8, 5)]


@pytest.mark.parametrize("bits", PAIRS)
@pytest.mark.parametrize(
    "name", ["Chain", "Perceptron", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Residual", "UNet"))]
)
def test_the_file_equals_the_network_and_its_size_was_foretold(
    name: str, bits: tuple[int, int], tmp_path: Path
) -> None:
    network = compressed(name, bits)
    written = lf.export(network, tmp_path / "model.onnx")  # raises where it puts out something else
    policy = network.policy
    assert abs(written.size_bytes - size_bytes(policy.cut(measured(captured(name).traced)), policy)) <= 1


class Odd(nn.Module):
    """Layers whose weights fill no whole number of bytes, a table, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 7)
        self.gru, self.head = nn.GRU(7, 5, batch_first=True), nn.Linear(5, 3)
        self.far = nn.Linear(3, 1500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.far(self.head(self.gru(self.words(x))[0]))
        return found


@pytest.mark.parametrize("bits", [(1, 8), (1, 32), (16, 32)])
def test_bytes_that_are_not_full_tables_and_recurrent_layers(bits: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 11, (4, 6))
    network = lf.capture(Odd().eval(), x[:1])
    policy = lf.uniform(network, 0.0, *bits)
    assert {policy[name].weight_bits for name in network.network.weight_only} == {bits[0]}
    made = lf.compress(network, policy, [x])
    written = lf.export(made, tmp_path / "model.onnx")
    foretold = size_bytes(policy.cut(measured(network.traced)), policy)
    assert abs(written.size_bytes - foretold) <= 16
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    kinds = {tensor.data_type for tensor in stored if len(tensor.dims) == 2}
    assert (TensorProto.UINT8 if bits[0] == 1 else TensorProto.FLOAT16) in kinds
    assert TensorProto.INT8 not in kinds


@pytest.mark.parametrize("shape", [(3, 1, 3, 3), (8, 2), (5,)])
def test_signs_take_a_bit_each_and_come_back(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = np.where(rng.random(shape) < 0.5, -1, 1).astype(np.int8)
    out = Writer()
    made = out.add("Identity", [out.signs(codes, 64)], output="made")
    packed = next(
        one for one in out.initializers if one.data_type == TensorProto.UINT8 and len(one.dims) == 2
    )
    assert len(packed.raw_data) == -(-codes.size // 8)
    result = [helper.make_tensor_value_info(made, TensorProto.FLOAT, None)]
    graph = helper.make_graph(out.nodes, "signs", [], result, out.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", out.opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = ""
    found = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {})[0]
    assert np.array_equal(found, 64.0 * codes)


def test_single_bits_run_in_the_integer_kernel(tmp_path: Path) -> None:
    content = file_of(compressed("Chain", (1, 8)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    ran = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert ran.count("QLinearConv") == 3
    assert not {"Conv", "Where", "BitwiseAnd", "Slice"} & set(ran)


def test_a_channel_that_is_nothing_beside_its_bias_keeps_its_signs_and_the_bias_fits() -> None:
    net = built("Chain")
    norm = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = 1e-12, 0.5
    network = lf.capture(net, example("Chain"))
    made = lf.compress(network, lf.uniform(network, 0.0, 1, 8), [inputs("Chain", 16, 1)])
    held = layer_weights(Compressed(made.module, made.network, made.policy))  # type: ignore[arg-type]
    for one in held.values():
        assert one.codes is not None
        assert set(np.unique(one.codes)) == {-1, 1}
    first = next(iter(held.values()))
    assert first.scales is not None
    assert 0 < first.scales[1] < 1e-3 * first.scales[0]
    file_of(made)


def test_weights_of_16_bits_are_those_of_half_precision() -> None:
    made = compressed("Chain", (16, 32))
    model = onnx.load_from_string(file_of(made))
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    held = layer_weights(Compressed(made.module, made.network, made.policy))  # type: ignore[arg-type]
    assert len(halves) == len(held)
    for stored, one in zip(halves, held.values(), strict=True):
        values = numpy_helper.to_array(stored).astype(np.float32)
        assert one.weight is not None
        assert np.array_equal(np.sort(values, axis=None), np.sort(one.weight, axis=None))


@pytest.mark.parametrize("to", ["openvino", "tflite", "tensorrt"])
def test_what_an_engine_has_no_kernel_for_is_refused_in_a_sentence(to: str) -> None:
    if dialect_of(to).missing:
        pytest.skip("not installed")
    made = compressed("Chain", (2, 3), to)
    with pytest.raises(DialectError, match=r"has no kernel for layer '0.0' with weights of 2 .* of 3 bits"):
        file_of(made, to)


@pytest.mark.parametrize("to", ["openvino", "tflite"])
def test_single_bits_for_other_engines(to: str, tmp_path: Path) -> None:
    if dialect_of(to).missing:
        pytest.skip("not installed")
    for bits in ((1, 8), (1, 32), (16, 32)):
        lf.export(compressed("Chain", bits, to), tmp_path / "model", to=to)


def test_signs_are_bipolar_in_qonnx() -> None:
    pytest.importorskip("qonnx")
    made = compressed("Chain", (1, 2), "qonnx")
    content = file_of(made, "qonnx")
    model = onnx.load_from_string(content)
    assert not [found for rule in dialect_of("qonnx").rules for found in rule.broken(model)]
    assert [node.op_type for node in model.graph.node].count("BipolarQuant") == 4
    file = dialect_of("qonnx").opened(content)
    assert file is not None
    file.run({"input": inputs("Chain", 1, 3).numpy()})  # raises where qonnx puts out something else


def test_mixed_policies_keep_what_each_layer_says() -> None:
    layers = {layer.name: LayerPolicy(0.0, 8, 8) for layer in captured("Chain").network.layers}
    first = next(iter(layers))
    policy = Policy.of(layers | {first: LayerPolicy(0.0, 1, 8)})
    network = measured(captured("Chain").traced)
    made = lf.compress(captured("Chain"), policy, [inputs("Chain", 16, 1)])
    assert len(file_of(made)) == size_bytes(network, policy)
