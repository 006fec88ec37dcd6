"""A branch that is left out is really gone: from the torch network, and from the exported file."""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from leanfront.compression.capture.onnx_network import read_onnx
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.template import Template, template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.techniques.built_in import left_out
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.prune import victims
from leanfront.compression.techniques.quantize import calibrate, quantizers
from leanfront.compression.training.batch_norms import re_estimate
from tests.networks import example, inputs
from tests.residual_networks import RESIDUAL, Residual, built, traced_network


@cache
def traced_and_template(name: str) -> tuple[Traced, Template]:
    traced = traced_network(name)
    return traced, template(traced)


def policy_without(traced: Traced, out: tuple[str, ...], plain: LayerPolicy) -> Policy:
    gone = {name for branch in traced.network.branches if branch.name in out for name in branch.layers}
    uniform = Policy.uniform(traced.network, plain)
    return Policy.of(uniform, gone)


def sets_of(name: str) -> list[tuple[str, ...]]:
    names = [branch.name for branch in traced_network(name).network.branches]
    return [*((one,) for one in names), *([tuple(names)] if len(names) > 1 else [])]


PLAIN = (LayerPolicy(), LayerPolicy(0.5, 8, 8), LayerPolicy(0.0, 4, 4))


@pytest.mark.parametrize("plain", range(len(PLAIN)))
@pytest.mark.parametrize("name", RESIDUAL)
def test_the_file_computes_what_the_network_does(name: str, plain: int) -> None:
    sets = sets_of(name)
    _computes_the_same(name, sets[plain % len(sets)], PLAIN[plain])


@pytest.mark.slow
@pytest.mark.parametrize("plain", range(len(PLAIN)))
@pytest.mark.parametrize("name", RESIDUAL)
def test_the_file_computes_what_the_network_does_without_any_of_them(name: str, plain: int) -> None:
    for out in sets_of(name):
        _computes_the_same(name, out, PLAIN[plain])


def _computes_the_same(name: str, out: tuple[str, ...], plain: LayerPolicy) -> None:
    traced, graph = traced_and_template(name)
    policy = policy_without(traced, out, plain)
    compressed = compress(traced, policy)
    images = inputs(name, 32, 1)
    re_estimate(compressed.module, [images])
    calibrate(compressed.module, [images])
    compressed.module.eval()
    model = exported(graph, compressed)
    opened = ort.InferenceSession(model.SerializeToString())
    found = np.concatenate([opened.run(None, {"input": one[None].numpy()})[0] for one in images])
    with torch.no_grad():
        expected = fold(compressed).module(images).numpy()
    step = max((q.grid().scale for q in quantizers(compressed.module).values()), default=0.0)
    assert np.abs(found - expected).max() <= max(1e-4, 1.5 * step)
    if plain.integer:
        assert np.abs(found - expected).mean() <= 0.1 * step + 1e-5
    _check_absent(model, compressed.network.layer.keys(), traced, policy)


def _check_absent(model: onnx.ModelProto, there: object, traced: Traced, policy: Policy) -> None:
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "ConvTranspose", "MatMul")]
    assert {node.name for node in layers} == set(there)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    network = policy.cut(traced.network)
    size = size_bytes(network, policy)
    assert abs(len(model.SerializeToString()) - size) <= 0.1 * size + 200


@pytest.mark.parametrize("name", RESIDUAL)
def test_random_weights_make_the_same_graph(name: str) -> None:
    traced, graph = traced_and_template(name)
    for out in sets_of(name):
        policy = policy_without(traced, out, LayerPolicy(0.0, 8, 8))
        compressed = compress(traced, policy)
        calibrate(compressed.module, [inputs(name, 8, 1)])
        real, random = exported(graph, compressed), random_model(graph, compressed.network, policy)
        assert [n.op_type for n in real.graph.node] == [n.op_type for n in random.graph.node]


def test_nothing_of_a_branch_is_left_in_the_module() -> None:
    traced, _ = traced_and_template("Residual")
    (branch, *_) = traced.network.branches
    shallower = left_out(traced, [branch])
    assert not any(name.startswith("stage1.conv") for name in shallower.module.state_dict())
    assert {node.name for node in shallower.module.graph.nodes}.isdisjoint({*branch.nodes, branch.join})
    assert any(name.startswith("stage1.conv") for name in traced.module.state_dict())


def test_a_network_with_zeros_in_the_branch_computes_the_same() -> None:
    model = built("Residual")
    assert isinstance(model, Residual)
    torch.nn.init.zeros_(model.stage1.bn2.weight)
    torch.nn.init.zeros_(model.stage1.bn2.bias)
    traced = trace(model, example("Residual"))
    policy = policy_without(traced, ("stage1.conv1.0",), LayerPolicy())
    images = inputs("Residual", 4, 2)
    with torch.no_grad():
        assert torch.equal(compress(traced, policy).module(images), model(images))


def test_channels_of_a_stream_are_chosen_without_the_layers_that_are_gone() -> None:
    traced, _ = traced_and_template("Residual")
    model = built("Residual")
    with torch.no_grad():  # only the branch that goes says that channel 3 is the one to keep
        for parameter in (model.stage1.conv1[0].weight, model.stage1.conv2.weight):
            parameter.mul_(1e-3)
        model.stage1.conv2.weight[3] *= 1e6
    loud = trace(model, example("Residual"))
    with_branch = victims(loud, {"stem.0": 1})["stem.0"]
    policy = policy_without(loud, ("stage1.conv1.0",), LayerPolicy())
    without = victims(left_out(loud, policy.left_out(loud.network)), {"stem.0": 1})["stem.0"]
    plain = left_out(traced, policy.left_out(traced.network))
    assert 3 not in with_branch
    assert without == victims(plain, {"stem.0": 1})["stem.0"]


def test_a_file_that_is_read_has_branches_too(tmp_path) -> None:
    traced, graph = traced_and_template("Residual")
    policy = Policy.uniform(traced.network, LayerPolicy())
    path = tmp_path / "model.onnx"
    path.write_bytes(random_model(graph, traced.network, policy).SerializeToString())
    network = read_onnx(path).network
    assert [b.layers for b in network.branches] == [b.layers for b in traced.network.branches]
