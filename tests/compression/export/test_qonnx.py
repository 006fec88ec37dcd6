"""QONNX: what qonnx executes is what torch computes; what FINN and hls4ml ask of a file is held."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import leanfront as lf
from leanfront.compression.capture.program import Arguments
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import DialectError, dialect_of
from leanfront.compression.export.template import ExportError
from leanfront.compression.techniques.compress import Compressed
from leanfront.networks import Captured, CompressedNetwork, file_of
from leanfront.search.gate.tensors import answers
from tests.networks import captured_network, inputs
from tests.variants import some

pytest.importorskip("qonnx")


NETWORKS = ["Residual", "UNet", "Sequence", "Chain", "Depthwise", "Dense", "Perceptron"]
BITS = [(8, 8), (4, 4), (2, 4), (3, 8)]


@cache
def captured(name: str) -> Captured:
    return captured_network(name)


def compressed(name: str, bits: tuple[int, int], to: str = "qonnx") -> CompressedNetwork:
    policy = lf.uniform(captured(name), sparsity=0.5, weight_bits=bits[0], activation_bits=bits[1])
    return lf.compress(captured(name), policy, [inputs(name, 32, 1)], to=to)


def executed(content: bytes, x: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """What qonnx itself puts out for one example."""
    from leanfront.compression.export.qonnx import _executed

    return _executed(onnx.load_from_string(content), {"input": x.numpy()}, ["output"])


def deployed(network: CompressedNetwork) -> nn.Module:
    return fold(Compressed(network.module, network.network, network.policy)).module


def broken(content: bytes) -> dict[str, list[str]]:
    model = onnx.load_from_string(content)
    return {rule.says: found for rule in dialect_of("qonnx").rules if (found := rule.broken(model))}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", some(NETWORKS, 3))
def test_qonnx_executes_what_torch_computes(name: str, bits: tuple[int, int]) -> None:
    network = compressed(name, bits)
    content = file_of(network, "qonnx")
    assert not broken(content)
    module = deployed(network)
    for x in inputs(name, 3, 5).split(1):
        (ours,), (theirs,) = answers(module, Arguments((x,), {})), executed(content, x)
        assert float(np.abs(ours.numpy() - theirs).max()) <= 1e-5 * float(ours.abs().max())


@pytest.mark.slow
def test_qonnx_agrees_on_a_thousand_examples() -> None:
    network = compressed("Residual", (3, 4))
    content, module = file_of(network, "qonnx"), deployed(network)
    file = dialect_of("qonnx").opened(content)
    assert file is not None
    for x in inputs("Residual", 1000, 6).split(1):
        (ours,), (theirs,) = answers(module, Arguments((x,), {})), executed(content, x)
        (other,) = file.run({"input": x.numpy()})
        for found in (theirs, other):
            assert found.argmax() == int(ours.argmax())
            assert float(np.abs(ours.numpy() - found).max()) <= 1e-4 * float(ours.abs().max())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_its_operations_are_what_qonnx_computes(bits: int, narrow: bool, signed: bool) -> None:
    if narrow and not signed:
        pytest.skip("no such node is written")
    read = ["x", "scale", "zero", "bits"]
    settings = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
    node = helper.make_node("Quant", read, ["output"], domain="qonnx.custom_op.general", **settings)
    values = np.arange(-600, 600, dtype=np.float32).reshape(1, -1) / 4  # halves of steps among them
    place = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name in ("x", "output")]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, (), [value])
        for name, value in (("scale", 0.5), ("zero", 0.0), ("bits", bits))
    ]
    graph = helper.make_graph([node], "one", place[:1], place[1:], constants)
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(node.domain, 1)]
    )
    file = dialect_of("qonnx").opened(model.SerializeToString())
    assert file is not None
    assert file._left  # type: ignore[attr-defined]
    file._left = 0  # type: ignore[attr-defined]
    (ours,) = file.run({"x": values})
    from leanfront.compression.export.qonnx import _executed

    (theirs,) = _executed(model, {"x": values}, ["output"])
    np.testing.assert_array_equal(ours, theirs)


def test_a_tensor_has_one_quant_node_and_a_weight_one_scale_for_each_channel() -> None:
    model = onnx.load_from_string(file_of(compressed("Chain", (4, 8)), "qonnx"))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    weights = [node for node in quants if node.input[0] in constants]
    shapes = {tuple(constants[node.input[0]].dims): tuple(constants[node.input[1]].dims) for node in weights}
    assert shapes == {
        (4, 3, 3, 3): (4, 1, 1, 1),
        (6, 4, 3, 3): (6, 1, 1, 1),
        (8, 6, 1, 1): (8, 1, 1, 1),
        (32, 10): (1, 10),
    }
    # input, three convolutions; the pooled and the flattened tensor are moved, the last layer puts out floats
    assert len(quants) - len(weights) == 4
    settings = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in weights]
    assert settings == [{"signed": 1, "narrow": 1, "rounding_mode": b"ROUND"}] * 4


def test_broken_rules_are_named() -> None:
    content = file_of(compressed("Chain", (32, 32)), "qonnx")
    assert broken(content)["no layer in floats"][0] == "'0.0' computes in floats"
    model = onnx.load_from_string(file_of(compressed("Chain", (8, 8)), "qonnx"))
    signed = next(
        a for n in model.graph.node if n.op_type == "Quant" for a in n.attribute if a.name == "signed"
    )
    signed.i = 1 - signed.i
    del model.graph.value_info[:]
    model.graph.node[-1].op_type = "Erf"
    found = broken(model.SerializeToString())
    assert "behind a Relu" in found["Quant nodes of FINN: signed, or unsigned behind a Relu"][0]
    assert "has no fixed shape" in found["a fixed shape for every tensor"][0]
    assert found["nodes that FINN, or hls4ml, has all of"] == ["FINN has no Erf", "hls4ml has no Erf"]


def test_what_neither_tool_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DialectError, match=r"at 'slice_.*neither FINN nor hls4ml has Slice .*\[export\] to"):
        lf.export(compressed("OptionA", (8, 8)), tmp_path / "model.onnx", to="qonnx")


def test_a_network_for_onnxruntime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DialectError, match=r"qonnx cannot hold tensor .* to='qonnx'"):
        lf.export(compressed("Residual", (8, 8), to="onnx"), tmp_path / "model.onnx", to="qonnx")


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first operation that differs is named, in the operations that onnxruntime has
    monkeypatch.setattr(
        type(dialect_of("qonnx")), "bias", lambda self, out, call: out.own(call.weights.bias + 5)
    )
    with pytest.raises(ExportError, match=r"the first operation that differs is .*'stem"):
        lf.export(compressed("Residual", (8, 8)), tmp_path / "model.onnx", to="qonnx")


def test_what_ran_where_is_said() -> None:
    assert dialect_of("qonnx").not_run.startswith("FINN and hls4ml build designs")
    assert f"qonnx {version('qonnx')}" in dialect_of("qonnx").ran
    assert "onnxruntime" in dialect_of("qonnx").ran


def hls4ml_python() -> str:
    """An interpreter that has hls4ml; skips where there is none, or no g++."""
    python = os.environ.get("LEANFRONT_HLS4ML", sys.executable)
    found = subprocess.run([python, "-c", "import hls4ml"], capture_output=True, check=False)
    if found.returncode or shutil.which("g++") is None:
        pytest.skip("LEANFRONT_HLS4ML names no Python with hls4ml, or there is no g++")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_hls4ml_compiles_it_to_what_qonnx_executes(tmp_path: Path, kind: str) -> None:
    python, generator = hls4ml_python(), torch.Generator().manual_seed(1)
    if kind == "dense":
        layers = [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
        x = torch.randn(64, 12, generator=generator)
    else:
        first = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()]
        layers = [*first, nn.Flatten(), nn.Linear(16, 3)]
        x = torch.rand(64, 1, 10, 10, generator=generator)
    network = lf.capture(nn.Sequential(*layers).eval(), x[:1])
    policy = lf.uniform(network, weight_bits=4, activation_bits=8)
    lf.export(lf.compress(network, policy, [x], to="qonnx"), tmp_path / "model.onnx", to="qonnx")
    np.save(tmp_path / "x.npy", x.numpy())
    script = Path(__file__).with_name("in_hls4ml.py")
    words = [python, str(script), *(str(tmp_path / name) for name in ("model.onnx", "x.npy", "project"))]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["same"] == 1.0
    assert found["apart"] <= 1e-6 * found["range"]
