"""A kind of file of one's own: written by the same walk, held against what it promises."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.dialects import QDQ, Dialect, DialectError, LayerCall, dialect_of, register
from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.distillation import Comparison
from leanfront.latency_models.benchmark.timing import session
from leanfront.search.pick.card import card
from leanfront.search.pick.verify import Made, kernel_report, verification
from leanfront.search.pick.verify import test_once as held_once
from leanfront.search.task import ArrayData, Task
from tests.networks import inputs, traced_network
from tests.variants import some


class Half(Dialect):
    """Weights as float16; everything is computed in floats."""

    name = "half"
    agreement = 0.9

    def weight(self, out: Writer, call: LayerCall) -> str:
        stored = out.constant(call.weights.floats(call.axis).astype(np.float16))
        return out.add("Cast", [stored], to=TensorProto.FLOAT)


class Elsewhere(Half):
    name = "elsewhere"
    runs_here = False


def test_a_registered_kind_is_found_by_its_name() -> None:
    register(Half())
    again = Half()
    register(again)  # a task file may be loaded twice
    assert dialect_of("half") is again
    assert dialect_of("onnx") is QDQ
    with pytest.raises(DialectError, match=r"no kind of file is called 'quarter'; there are onnx.*, half"):
        dialect_of("quarter")
    with pytest.raises(DialectError, match="other than 'onnx'; Dialect has ''"):
        register(Dialect())


@pytest.mark.parametrize("name", some(["Residual", "UNet", "Sequence", "OptionA"], 2))
@pytest.mark.parametrize("bits", [(4, 8), (32, 32)])
def test_it_is_written_by_the_same_walk(name: str, bits: tuple[int, int]) -> None:
    traced = traced_network(name)
    policy = Policy.uniform(traced.network, LayerPolicy(0.25, *bits))
    compressed = compress(traced, policy)
    data = inputs(name, 32, 1)
    calibrate(compressed.module, [data])
    model = exported(template(traced), compressed, Half())
    assert not {"QuantizeLinear", "DequantizeLinear", "Max"} & {node.op_type for node in model.graph.node}
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert len(halves) == len(traced.network.layers)
    report = kernel_report(model.SerializeToString(), compressed.network, policy, 1, Half())
    assert report["integer"] == report["not_fused"] == report["not_wanted"] == []
    opened = session(model.SerializeToString())
    with torch.no_grad():
        ours = compressed.module.eval()(data[:8])
    theirs = np.concatenate([opened.run(None, {"input": one[None].numpy()})[0] for one in data[:8]])
    steps = (ours - torch.from_numpy(theirs)).abs().max() / ours.abs().max() * 255
    assert steps < (25 if bits[1] == 8 else 1)


def test_a_promise_of_floats_is_checked() -> None:
    traced = traced_network("Chain")
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8)))
    calibrate(compressed.module, [inputs("Chain", 32, 1)])
    content = exported(template(traced), compressed).SerializeToString()
    report = kernel_report(content, compressed.network, compressed.policy, 1, Half())
    assert report["not_wanted"] == list(traced.network.layer)
    assert kernel_report(content, compressed.network, compressed.policy, 1)["not_wanted"] == []


def test_what_cannot_be_run_here_is_said_and_not_checked() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(x).argmax(1).numpy()
    data = ArrayData(x.numpy(), labels, (0.0,) * 3, (1.0,) * 3)
    task = Task(model, torch.zeros(1, 3, 8, 8), data, data, data)
    traced = trace(model, task.example_input)
    found = held_once(Made(None), model, traced, task, data, 1, {}, Comparison(), {})
    assert (found.accuracy, found.torch_accuracy, found.agreement) == (1.0, 1.0, None)
    network = trace(model, task.example_input).network
    policy = Policy.uniform(network, LayerPolicy())
    kernels = kernel_report(b"", network, policy, 1, Elsewhere())
    held = verification(
        3, {"size_bytes": 10.0}, {}, found, {}, {"bytes": 10, "baseline_bytes": 20}, kernels, {}, Elsewhere()
    )
    assert held.passed
    assert asdict(held)["test"]["agreement"] is None
    text = card(held, policy, network, "toy", "task.py", "today")
    assert (
        "Not verified: onnxruntime does not run files of kind 'elsewhere': accuracy, answers and kernels"
        in text
    )
    assert "| same answers as the torch network |  | not run here |" in text


def test_less_agreement_may_be_promised() -> None:
    kernels = {"integer": [], "not_fused": [], "not_wanted": [], "operations": {}}
    size, common = {"bytes": 1, "baseline_bytes": 2}, {"n": 100, "accuracy_ci": (0.8, 0.9)}
    from leanfront.search.pick.verify import TestResult as Result

    test = Result(torch_accuracy=0.9, accuracy=0.9, baseline_accuracy=0.9, agreement=0.95,
                  largest_difference=1.0, **common)  # fmt: skip
    assert verification(1, {"size_bytes": 1}, {}, test, {}, size, kernels, {}, Half()).passed
    assert not verification(1, {"size_bytes": 1}, {}, test, {}, size, kernels, {}).passed
