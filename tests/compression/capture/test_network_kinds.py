"""Inverted bottlenecks, transformers and U-Nets: cut, exported and timed as what they are."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.networks import NETWORKS, MobileNetV2, UNet, VisionTransformer
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.template import Template, template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.prune import cut, victims
from leanfront.compression.techniques.quantize import calibrate
from leanfront.latency_models.benchmark.timing import session
from tests.variants import some

SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "MobileNetV2": (MobileNetV2, (3, 32, 32)),
    "VisionTransformer": (
        lambda: VisionTransformer(width=24, depth=2, heads=3, patch=4, size=16),
        (3, 16, 16),
    ),
    "UNet": (lambda: UNet(width=8), (3, 32, 32)),
}


def lively(model: nn.Module) -> nn.Module:
    """Norms and biases as training leaves them, so that no tensor is next to nothing."""
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.normal_(module.bias, 0.0, 0.3)
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.5)
    return model.eval()


@cache
def prepared(name: str) -> tuple[Traced, Template]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make, shape = SMALL[name]
        traced = trace(lively(make()), torch.zeros(1, *shape))
    return traced, template(traced)  # two seconds or three


def data(name: str, count: int = 8) -> Tensor:
    return torch.randn(count, *SMALL[name][1], generator=torch.Generator().manual_seed(1))


KINDS = {
    "float": [(32, 32)],
    "int8": [(8, 8)],
    "act4": [(8, 4)],
    "mixed": [(8, 8), (32, 32), (8, 32), (4, 8)],
}


def drawn(network: Network, kind: str, seed: int) -> Policy:
    """Random sparsities and bits; layers that read the same tensor have the same bits."""
    rng = np.random.default_rng(seed)
    shares = {group: float(rng.choice([0.0, 0.25, 0.5, 0.75])) for group in network.groups}
    bits: dict[str, tuple[int, int]] = {}
    layers = {}
    for node in network.nodes:
        if node.layer is not None:
            choice = KINDS[kind][int(rng.integers(len(KINDS[kind])))]
            pair = bits.setdefault(node.inputs[0], choice)
            layers[node.layer] = LayerPolicy(shares.get(network.layer[node.layer].group or "", 0.0), *pair)
    return Policy.of(layers)


@cache
def made(name: str, kind: str, seed: int) -> tuple[Compressed, bytes]:
    traced, base = prepared(name)
    compressed = compress(traced, drawn(traced.network, kind, seed))
    calibrate(compressed.module, [data(name)])
    compressed.module.eval()
    return compressed, exported(base, compressed).SerializeToString()


CASES = [
    (name, kind, seed)
    for name in SMALL
    for kind, seed in (("float", 0), ("int8", 1), ("act4", 1), ("mixed", 2))
]


def optimised(model: bytes, folder: Any) -> onnx.ModelProto:
    path = folder / "optimised.onnx"
    session(model, save=str(path))
    return onnx.load_model(path)


def test_operations_have_their_names() -> None:
    ops = {name: {node.op for node in prepared(name)[0].network.nodes} for name in SMALL}
    assert all("other" not in found for found in ops.values())
    assert {"matmul", "transpose", "softmax", "layernorm", "gelu", "mean"} <= ops["VisionTransformer"]
    assert {"concat", "conv_transpose2d", "maxpool"} <= ops["UNet"]
    assert all(prepared(name)[0].notes == () for name in SMALL)


@pytest.mark.slow
def test_full_sizes_trace() -> None:
    for make, shape in NETWORKS.values():
        network = trace(make().eval(), torch.zeros(shape)).network
        assert len(network.groups) >= 6


def test_the_stream_of_a_transformer_is_one_group() -> None:
    network = prepared("VisionTransformer")[0].network
    members = {name: [layer.name for layer in layers] for name, layers in network.groups.items()}
    assert members["patches"] == [
        "patches", "blocks.0.attention.proj", "blocks.0.out", "blocks.1.attention.proj", "blocks.1.out",
    ]  # fmt: skip
    assert members["blocks.0.hidden"] == ["blocks.0.hidden"]


@pytest.mark.parametrize(("name", "kind", "seed"), CASES)
def test_every_tensor_has_the_shape_that_the_network_says(name: str, kind: str, seed: int) -> None:
    traced, _ = prepared(name)
    policy = drawn(traced.network, kind, seed)
    resized = traced.network.resized(policy.channels(traced.network))
    module = cut(traced, policy.cut(traced.network)).module
    before = {key: value.shape for key, value in traced.module.state_dict().items()}
    for batch in (1, 3):
        output = ShapeProp(module).propagate(data(name, batch))
        assert torch.isfinite(output).all()
        for node in module.graph.nodes:
            shape = getattr(node.meta.get("tensor_meta"), "shape", None)
            if shape is not None and node.name in resized.node and node.op != "get_attr":
                assert shape[traced.axes[node.name]] == resized.node[node.name].width, node.name
                assert shape.numel() in (resized.node[node.name].elements * b for b in (1, batch)), node.name
    owned = {layer.name for layer in resized.layers}
    for key, value in module.state_dict().items():  # nothing is cut that nobody asked for
        if key.rpartition(".")[0] not in owned and "norm" not in key and value.dim() > 1:
            assert value.shape[:-1] == before[key][:-1]


@pytest.mark.parametrize(("name", "kind", "seed"), some(CASES, 6))
def test_the_file_answers_as_torch_does(name: str, kind: str, seed: int) -> None:
    compressed, model = made(name, kind, seed)
    x = data(name)
    opened = session(model)
    with torch.no_grad():
        # integers: the form with the file's biases, else roundings add up in so many layers
        module = compressed.module if kind == "float" else fold(compressed).module
        ours = module(x).numpy()
    theirs = np.concatenate([opened.run(None, {"input": one[None].numpy()})[0] for one in x])
    assert ours.std() > 1e-3
    if kind == "float":
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    else:
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999
    assert abs(len(model) - size_bytes(compressed.network, compressed.policy)) < max(9000, 0.04 * len(model))


@pytest.mark.parametrize(("name", "kind", "seed"), CASES)
def test_random_weights_run_as_the_export_does(name: str, kind: str, seed: int, tmp_path: Any) -> None:
    compressed, model = made(name, kind, seed)
    random = random_model(prepared(name)[1], compressed.network, compressed.policy).SerializeToString()
    graphs = [optimised(content, tmp_path).graph for content in (model, random)]
    lists = [sorted((n.op_type, len(n.input), len(n.output)) for n in graph.node) for graph in graphs]
    assert lists[0] == lists[1]
    shapes = [{tuple(t.dims) for t in graph.initializer if len(t.dims) > 1} for graph in graphs]
    assert shapes[0] == shapes[1]


def counts(model: bytes, folder: Any) -> Mapping[str, int]:
    operations = [node.op_type for node in optimised(model, folder).graph.node]
    return {op: operations.count(op) for op in set(operations)}


def test_relu6_disappears_in_an_integer_network(tmp_path: Any) -> None:
    traced, base = prepared("MobileNetV2")
    policy = Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8))
    compressed = compress(traced, policy)
    calibrate(compressed.module, [data("MobileNetV2") * 20])  # far beyond 6
    for model in (exported(base, compressed), random_model(base, traced.network, policy)):
        found = counts(model.SerializeToString(), tmp_path)
        assert "Clip" not in found
        assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (52, 10, 1)
        assert set(found) == {
            "QuantizeLinear", "Transpose", "QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "Reshape",
            "QGemm",
        }  # fmt: skip


def test_a_transformer_computes_its_layers_in_integers_and_the_rest_in_floats(tmp_path: Any) -> None:
    traced, base = prepared("VisionTransformer")
    policy = Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8))
    found = counts(random_model(base, traced.network, policy).SerializeToString(), tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (1, 9)
    assert not {"Gemm", "QLinearMatMul", "QLinearSoftmax", "MatMulInteger"} & set(found)
    assert found["FusedMatMul"] + found["MatMul"] == 4  # activations by activations
    assert found["Softmax"] == found["Gelu"] == 2
    # one quantizer in front of each layer but the last, whose mean needs none of its own, and the input's
    assert found["QuantizeLinear"] == 10
    assert found["DequantizeLinear"] == 1


def test_transposed_convolutions_stay_float_with_weights_stored_small(tmp_path: Any) -> None:
    traced, base = prepared("UNet")
    policy = Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8))
    compressed = compress(traced, policy)
    calibrate(compressed.module, [data("UNet")])
    model = exported(base, compressed)
    names = {"up1", "up2", "up3"}
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(t.dims) for t in floats) == 64  # scales and biases, no weights
    graph = optimised(model.SerializeToString(), tmp_path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    ups = [node for node in graph.node if node.op_type == "ConvTranspose"]
    assert {node.name.partition("/")[0] for node in ups} == names
    assert all(node.input[1] in stored for node in ups)  # decoded once, not with every inference
    operations = [node.op_type for node in graph.node]
    assert (operations.count("QLinearConv"), operations.count("QLinearConcat")) == (15, 3)
    # between float layers an int8 one of these costs no conversion at all
    floats = Policy.of(
        dict(policy)
        | {layer.name: LayerPolicy() for layer in traced.network.layers if layer.name not in names}
    )
    found = counts(random_model(base, traced.network, floats).SerializeToString(), tmp_path)
    assert not {"QuantizeLinear", "DequantizeLinear", "Max"} & set(found)


def test_a_cut_transformer_is_the_narrower_transformer() -> None:
    """Stream and hidden widths cut, attention kept: the same as what slices of the weights compute."""
    traced, _ = prepared("VisionTransformer")
    channels = {group: traced.network.group_size(group) for group in traced.network.groups}
    channels |= {"patches": 17, "blocks.0.hidden": 40}
    module, gone = cut(traced, traced.network.resized(channels)).module, victims(traced, channels)
    stream = [c for c in range(24) if c not in gone["patches"]]
    hidden = [c for c in range(96) if c not in gone["blocks.0.hidden"]]
    state = {key: value.clone() for key, value in traced.module.state_dict().items()}

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
        gain, bias = state[f"{name}.weight"][stream], state[f"{name}.bias"][stream]
        return (y - mean) / (var + 1e-5).sqrt() * gain + bias

    def linear(y: Tensor, name: str, rows: Any = slice(None), columns: Any = slice(None)) -> Tensor:
        return y @ state[f"{name}.weight"][rows][:, columns].T + state[f"{name}.bias"][rows]

    x = data("VisionTransformer", 2)
    patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
    y = patches @ state["patches.weight"][stream].flatten(1).T + state["patches.bias"][stream]
    y = y + state["positions"][:, :, stream]
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(norm(y, f"{block}.norm1"), f"{block}.attention.qkv", columns=stream)
        heads = []
        for head in range(3):
            q, k, v = (qkv[..., part * 24 + head * 8 :][..., :8] for part in range(3))
            heads.append(((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v)
        y = y + linear(torch.cat(heads, -1), f"{block}.attention.proj", rows=stream)
        inner = hidden if block == "blocks.0" else list(range(96))
        wide = nn.functional.gelu(linear(norm(y, f"{block}.norm2"), f"{block}.hidden", inner, stream))
        y = y + linear(wide, f"{block}.out", stream, inner)
    expected = linear(norm(y, "norm").mean(1), "head", columns=stream)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
