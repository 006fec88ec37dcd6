"""Networks that are only files: the same network for any batch, trained and cut as any other, or refused."""

import contextlib
import io
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from leanfront.compression.capture.from_file import example_of, module_of
from leanfront.compression.capture.onnx_graph import OnnxError
from leanfront.compression.capture.program import tensors_in
from leanfront.compression.capture.trace import trace
from leanfront.search.task import Task, TaskError
from tests.networks import built, example, inputs

pytestmark = pytest.mark.skipif(find_spec("onnx2torch") is None, reason="pip install --no-deps onnx2torch")


def exported(name: str, folder: Path) -> Path:
    """By torch's own exporter, for a batch of one."""
    path = folder / f"{name}.onnx"
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(built(name).eval(), (example(name),), path, dynamo=True)
    return path


@pytest.mark.parametrize("name", ["Chain", "Odd"])
def test_a_file_gives_the_network_that_it_was_made_of_for_any_batch(name: str, tmp_path: Path) -> None:
    path, model, batch = exported(name, tmp_path), built(name).eval(), inputs(name, 5, 0)
    found = module_of(path)
    assert example_of(path).shape == example(name).shape  # type: ignore[union-attr]
    traced, own = trace(found, example_of(path)), trace(model, example(name))
    assert [len(layers) for layers in traced.network.groups.values()] == [
        len(layers) for layers in own.network.groups.values()
    ]
    with torch.no_grad():
        pairs = zip(tensors_in(traced.module(batch)), tensors_in(model(batch)), strict=True)
        assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
    assert not {"torchvision", "torchvision.ops"} & set(sys.modules)  # but for the import


def file(folder: Path, body: str, opset: int = 17, size: str = "N, 3, 4, 4", **held: np.ndarray) -> Path:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{size}] x) => (float y) {{ {body} }}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


MATRIX = np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32)


def test_matrices_are_weights_and_means_stay_constants(tmp_path: Path) -> None:
    mean = np.full((1, 3, 1, 1), 0.5, np.float32)
    path = file(tmp_path, "n = Sub (x, m) f = Flatten (n) y = MatMul (f, w)", m=mean, w=MATRIX)
    module = module_of(path)
    (weight,) = module.parameters()
    assert weight.detach().numpy().tolist() == MATRIX.tolist()
    assert any(value.shape == mean.shape for value in module.buffers())
    assert [str(layer.shape.op) for layer in trace(module, example_of(path)).network.layers] == ["linear"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.onnx", r"cannot read the network .*none.onnx: No such file"),
        (lambda folder: file(folder, "y = Relu (x)", size="4, 3, 4, 4"), r"fixed batch of 4"),
        (lambda folder: file(folder, "y = Relu (x)", size="N, 3, H, 4"), r"leaves its size 'H' open"),
        (
            lambda folder: file(folder, "r = Relu (x) y = Det (r)", size="N, 3, 4, 4"),
            r"onnx2torch cannot read Det \(the first is node ''\) of opset 17; ",
        ),
        (
            lambda folder: file(
                folder,
                'y = Resize <mode = "nearest", nearest_mode = "ceil"> (x, , s)',
                s=np.array([1, 1, 1.7, 1.7], np.float32),
            ),
            r"answers otherwise than the file in onnxruntime, by .* of the largest answer; give",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    path = make(tmp_path)
    with pytest.raises(OnnxError, match=words) as caught:
        module_of(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=words):
        Task(str(path), torch.zeros(1, 3, 4, 4), [], [], [])  # type: ignore[arg-type]


def test_without_onnx2torch_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(OnnxError, match=r"not installed; pip install --no-deps onnx2torch$"):
        module_of(file(tmp_path, "y = Relu (x)"))


def test_a_task_takes_the_path_of_a_file(tmp_path: Path) -> None:
    from tests.search.test_task import array_data

    path = file(tmp_path, "f = Flatten (x) y = MatMul (f, w)", size="N, 2, 5, 4", w=MATRIX[:40])
    data = array_data()
    task = Task(path, torch.zeros(1, 2, 5, 4), data, data, data)  # type: ignore[arg-type]
    assert isinstance(task.model, nn.Module)
    assert task.model(data.batch(torch.arange(6), None)[0]).shape == (6, 5)
