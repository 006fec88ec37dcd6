"""What is written is what was trained: torch against onnxruntime, and which kernels onnxruntime takes."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

from benchmarks.networks import VisionTransformer
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export import torch_exporter
from leanfront.compression.export.deployed_form import fold, layer_weights
from leanfront.compression.export.template import Template, name_apart, template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import re_estimate
from leanfront.latency_models.benchmark.timing import session
from leanfront.search.pick.verify import kernel_report
from tests.networks import ALL, built, example, inputs, traced_network
from tests.variants import some

FLOAT = LayerPolicy()
INT8 = LayerPolicy(weight_bits=8, activation_bits=8)


@cache
def traced_once(name: str) -> tuple[Traced, Template]:
    traced = traced_network(name)
    return traced, template(traced)  # a second or two


def alternating(network: Network, first_integer: bool) -> Policy:
    """Integer and float layers in turn; layers that read the same tensor are alike."""
    kinds: dict[str, LayerPolicy] = {}
    layers = {}
    for node in network.nodes:
        if node.layer is not None:
            integer = (len(kinds) % 2 == 0) == first_integer
            layers[node.layer] = kinds.setdefault(node.inputs[0], INT8 if integer else FLOAT)
    return Policy.of(layers)


def policy_of(kind: str, network: Network) -> Policy:
    if kind.startswith("mixed"):
        return alternating(network, first_integer=kind == "mixed_integer_first")
    sparsity, weight_bits, activation_bits = UNIFORM[kind]
    return Policy.uniform(network, LayerPolicy(sparsity, weight_bits, activation_bits))


UNIFORM = {
    "float": (0.0, 32, 32), "float_cut": (0.5, 32, 32), "int8": (0.0, 8, 8), "int8_cut": (0.5, 8, 8),
    "int5": (0.25, 5, 8), "int4": (0.0, 4, 8), "int2": (0.0, 2, 8), "int4_in_floats": (0.25, 4, 32),
}  # fmt: skip
KINDS = (*UNIFORM, "mixed_integer_first", "mixed_float_first")


@cache
def made(name: str, kind: str) -> tuple[Compressed, ModelProto]:
    traced, base = traced_once(name)
    compressed = compress(traced, policy_of(kind, traced.network))
    data = [inputs(name, 128, 1)]
    if "cut" in kind or "5" in kind:
        re_estimate(compressed.module, data)
    calibrate(compressed.module, data)
    compressed.module.eval()
    return compressed, exported(base, compressed)


def run(model: ModelProto, data: Tensor) -> list[Tensor]:
    opened = session(model.SerializeToString())
    each = [opened.run(None, {"input": one[None].numpy()}) for one in data]
    return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*each, strict=True)]


def answers(module: nn.Module, data: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = module(data)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize(("name", "kind"), some(product(ALL, KINDS), 31))
def test_the_file_answers_as_the_torch_network_does(name: str, kind: str) -> None:
    compressed, model = made(name, kind)
    data = inputs(name, 64, 2)
    for ours, theirs in zip(answers(compressed.module, data), run(model, data), strict=True):
        difference = (ours - theirs).abs()
        if policy_is_float(compressed.policy):
            assert difference.max() < 1e-4
            continue
        # a value that falls between two steps may be rounded either way, no more
        step = float(ours.abs().max() / 255)
        assert difference.median() < 0.5 * step
        assert difference.max() < 25 * step
        best_two = ours.topk(2, dim=1).values
        clear = (best_two[:, 0] - best_two[:, 1]) > 2 * step
        assert (ours.argmax(1) == theirs.argmax(1))[clear].float().mean() >= 0.99


@pytest.mark.parametrize("kind", ["float_cut", "int8_cut", "int4", "int2", "mixed_integer_first"])
@pytest.mark.parametrize("name", ["Chain", "Residual", "Depthwise", "UNet", "Sequence"])
def test_the_folded_form_answers_value_for_value(name: str, kind: str) -> None:
    compressed, model = made(name, kind)
    before = {key: value.clone() for key, value in compressed.module.state_dict().items()}
    folded = fold(compressed)
    assert all(torch.equal(compressed.module.state_dict()[key], value) for key, value in before.items())
    data = inputs(name, 64, 2)
    for ours, theirs in zip(answers(folded.module, data), run(model, data), strict=True):
        step = float(ours.abs().max() / 255)
        difference = (ours - theirs).abs()
        assert difference.median() < 0.02 * step  # all but what floats round
        assert (ours.argmax(1) == theirs.argmax(1)).float().mean() >= 0.98


def policy_is_float(policy: Policy) -> bool:
    return not any(layer.integer for layer in policy.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(ALL))
def test_kernels_size_and_timing_model_are_as_promised(name: str, kind: str) -> None:
    compressed, model = made(name, kind)
    content = model.SerializeToString()
    report = kernel_report(content, compressed.network, compressed.policy, threads=1)
    assert report["not_fused"] == []
    assert report["not_wanted"] == []
    promised = size_bytes(compressed.network, compressed.policy)
    assert abs(promised - len(content)) <= max(600, 0.02 * len(content))
    timed = random_model(traced_once(name)[1], compressed.network, compressed.policy)
    assert [node.op_type for node in timed.graph.node] == [node.op_type for node in model.graph.node]
    assert [t.data_type for t in timed.graph.initializer if len(t.dims) > 1] == [
        t.data_type for t in model.graph.initializer if len(t.dims) > 1
    ]


def test_an_integer_network_is_one_fused_kernel_a_layer() -> None:
    compressed, model = made("Residual", "int8")
    content = model.SerializeToString()
    operations = kernel_report(content, compressed.network, compressed.policy, threads=1)["operations"]
    assert operations["QLinearConv"] == 8  # all convolutions, batch norms and ReLUs in them
    assert operations["QLinearAdd"] == 3
    assert operations["QGemm"] == 1
    assert not {"Conv", "FusedConv", "BatchNormalization", "Relu", "Add", "Gemm"} & set(operations)


def test_a_float_layer_between_integer_layers_stays_float() -> None:
    traced, base = traced_once("Residual")
    policy = Policy.of({**policy_of("int8", traced.network), "stage1.conv1.0": FLOAT})
    with pytest.raises(ValueError, match="read the same tensor"):  # only where nothing else reads with it
        compress(traced, Policy.of({**policy, "stage2.0.conv1.0": FLOAT}))
    compressed = compress(traced, policy)
    calibrate(compressed.module, [inputs("Residual", 32, 1)])
    model = exported(base, compressed)
    report = kernel_report(model.SerializeToString(), compressed.network, policy, threads=1)
    assert report["not_wanted"] == []
    assert "stage1.conv1.0" not in report["integer"]
    assert len(report["integer"]) == len(policy) - 1
    guards = [node for node in model.graph.node if node.op_type == "Max"]
    assert len(guards) == 1
    for guard in guards:  # without them onnxruntime takes an integer kernel: they are there for a reason
        for node in model.graph.node:
            node.input[:] = [guard.input[0] if name == guard.output[0] else name for name in node.input]
        model.graph.node.remove(guard)
    assert kernel_report(model.SerializeToString(), compressed.network, policy, threads=1)["not_wanted"] == [
        "stage1.conv1.0"
    ]


@pytest.mark.parametrize(("bits", "kind"), [(2, "INT2"), (3, "INT4"), (4, "INT4"), (5, "INT8"), (8, "INT8")])
def test_stored_weights_read_back_as_the_trained_codes(bits: int, kind: str) -> None:
    traced, base = traced_once("Chain")
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.25, bits, 32)))
    model = exported(base, compressed)
    stored = {t.name: t for t in model.graph.initializer if t.data_type == getattr(TensorProto, kind)}
    held = list(layer_weights(compressed).values())
    assert len(stored) == len(held) == 4
    for tensor, weights in zip(stored.values(), held, strict=True):
        assert weights.codes is not None
        assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), weights.codes)
        assert np.abs(weights.codes).max() == 2 ** (bits - 1) - 1


def test_low_bits_make_small_files_of_standard_onnx() -> None:
    sizes = {}
    for kind in ("float", "int8", "int4", "int2"):
        _, model = made("Residual", kind)
        onnx.checker.check_model(model)
        assert model.ir_version <= 13
        assert {entry.domain for entry in model.opset_import} == {""}
        sizes[kind] = len(model.SerializeToString())
    assert sizes["float"] > 2.5 * sizes["int8"] > 3 * sizes["int4"] > 3 * sizes["int2"]


def test_a_channel_without_gain_keeps_its_bias() -> None:
    """Its weights are 0, so that the bias, counted in their steps, would not fit 32 bits."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.0, 1e-13, 1.0, 1.0]))
        model[1].bias.copy_(torch.tensor([0.7, 0.4, 0.1, 0.2]))
        model[0].weight[3] = 0.0
    traced = trace(model, torch.zeros(1, 3, 2, 2))
    compressed = compress(traced, Policy.uniform(traced.network, INT8))
    data = torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    calibrate(compressed.module, [data])
    (ours,), (theirs,) = answers(compressed.module, data), run(exported(template(traced), compressed), data)
    assert (ours - theirs).abs().max() < 0.02


def test_the_bias_of_few_bit_weights_is_not_rounded_to_their_steps() -> None:
    """Two-bit weights of 0.5 with activations up to 10 would count biases in steps of 0.02."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.where(layer.weight > 0, 0.5, -0.5))
            layer.bias.fill_(0.0099)
    traced = trace(model, torch.zeros(1, 4))
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 2, 8)))
    data = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) * 10
    calibrate(compressed.module, [data])
    (ours,), (theirs,) = answers(compressed.module, data), run(exported(template(traced), compressed), data)
    assert (ours - theirs).abs().median() < 2e-3


class Truncated(nn.Module):
    """Values without what stands behind the point, and positions counted where words are."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(8, 4), nn.Embedding(8, 4)
        self.whole, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, words: Tensor, x: Tensor) -> Tensor:
        there = words.ne(0).int()
        places = (there.cumsum(1).type_as(there) * there).long()
        given = self.words(words) + self.places(places) + self.whole(x.int().float())
        return self.last(torch.relu(given).long().to(x.dtype))


@pytest.mark.parametrize("bits", [32, 8])
def test_what_changes_the_type_of_values_stands_in_the_file(bits: int) -> None:
    torch.manual_seed(0)
    words, x = torch.tensor([[3, 0, 5, 1, 0, 2]]), 4 * torch.randn(1, 6, 4)
    traced = trace(Truncated(), (words, x))
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, bits, bits)))
    calibrate(compressed.module, [(words, x)])
    with torch.no_grad():
        ours = compressed.module(words, x)
    opened = session(exported(template(traced), compressed).SerializeToString())
    (theirs,) = opened.run(None, {"input": words.numpy(), "input1": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-5 if bits == 32 else 0.02, rtol=0)


class Neutral(nn.Module):
    """Parameters that change nothing before they are trained, none of them a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.gain, self.shift = nn.Conv1d(4, 4, 3), nn.Parameter(torch.ones(())), nn.Linear(6, 2)
        self.offset = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.along.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(self.along(x) * self.gain + self.offset)


def test_parameters_that_change_nothing_yet_stand_in_the_file() -> None:
    traced = trace(Neutral(), torch.zeros(1, 4, 8))
    graph = template(traced)
    compressed = compress(traced, Policy.uniform(traced.network, FLOAT))
    with torch.no_grad():
        for parameter in compressed.module.parameters():
            parameter += 0.5
    data = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(0))
    (ours,), (theirs,) = answers(compressed.module, data), run(exported(graph, compressed), data)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("name", ["Residual", "VisionTransformer"])
def test_an_exporter_that_decomposes_writes_the_same_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        raise NotImplementedError("an operation that torch.onnx does not know")

    if name == "Residual":
        traced = trace(built(name), example(name))
    else:
        traced = trace(VisionTransformer(24, 2, 3, patch=4, size=16), torch.zeros(1, 3, 16, 16))
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5)))
    calls, export = [], torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: calls.append(a) or export(*a, **k))
    content = exported(template(traced), compressed).SerializeToString()
    assert len(calls) == 1
    monkeypatch.setattr(torch_exporter, "_as_it_is", unknown)
    again = template(replace(traced))
    assert exported(again, compressed).SerializeToString() == content


def test_folding_leaves_the_trained_network_as_it_is() -> None:
    compressed, _ = made("Residual", "int8")
    before = {name: tensor.clone() for name, tensor in compressed.module.state_dict().items()}
    data = inputs("Residual", 2, 5)
    first = answers(fold(compressed).module, data)
    second = answers(fold(compressed).module, data)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    after = compressed.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    compressed.module.train()(data)  # still trains: quantizers and batch norms are there


def test_tensors_that_an_exporter_took_for_one_have_their_names_again():
    """As torch 2.14 writes relu -> dropout -> identity -> neg, outside training, and a no-op on the input."""
    from onnx import TensorProto, helper

    names = ["tensor:same", "tensor:relu", "tensor:dropout", "tensor:identity", "tensor:neg"]
    node = helper.make_node
    nodes = [
        node("Relu", ["input"], ["tensor:identity"]),
        node("Neg", ["tensor:identity"], ["tensor:neg"]),
        node("Identity", ["tensor:identity"], ["one"]),
        node("Identity", ["tensor:identity"], ["other"]),
    ]
    put_out = ["input", "one", "other", "tensor:identity", "tensor:neg"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in put_out]
    model = helper.make_model(helper.make_graph(nodes, "graph", values[:1], values))
    name_apart(model, names)
    found = [(one.op_type, one.input[0], one.output[0]) for one in model.graph.node]
    assert found == [
        ("Identity", "input", "tensor:same"),
        ("Relu", "input", "tensor:relu"),
        ("Identity", "tensor:relu", "tensor:dropout"),
        ("Identity", "tensor:dropout", "tensor:identity"),
        ("Neg", "tensor:identity", "tensor:neg"),
    ]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (7,)])
def test_norms_of_groups_are_as_exact_as_torch(sizes: tuple[int, ...], affine: bool) -> None:
    layer = nn.Conv2d if len(sizes) == 2 else nn.Conv1d
    torch.manual_seed(0)
    model = nn.Sequential(
        layer(8, 32, 3, padding=1), nn.GroupNorm(4, 32, affine=affine), nn.ReLU(), layer(32, 4, 1)
    )
    with torch.no_grad():  # a mean that is large beside what varies: squares less a square lose digits
        model[0].bias.add_(20.0)
        for parameter in model[1].parameters():
            parameter.uniform_(0.5, 1.5)
    traced = trace(model.eval(), torch.zeros(1, 8, *sizes))
    for share in (0.0, 0.5):
        made = compress(traced, Policy.uniform(traced.network, LayerPolicy(share)))
        content = exported(template(traced), made).SerializeToString()
        data = torch.randn(1, 8, *sizes, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            exact = made.module.double()(data.double()).numpy()
        (found,) = session(content).run(None, {"input": data.numpy()})
        assert np.abs(found - exact).max() < 2e-5 * (exact.max() - exact.min())


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(16, elementwise_affine=False), nn.RMSNorm(16, elementwise_affine=False)]
)
def test_norms_without_gains_are_cut(norm: nn.Module) -> None:
    torch.manual_seed(0)
    traced = trace(
        nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 4)).eval(), torch.zeros(1, 8)
    )
    made = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5)))
    data = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    (found,) = session(exported(template(traced), made).SerializeToString()).run(
        None, {"input": data.numpy()}
    )
    assert made.network.layers[0].shape.out_channels == 8
    np.testing.assert_allclose(found, made.module(data).detach().numpy(), atol=1e-5)
