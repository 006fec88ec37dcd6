"""Files of other engines: equal to the network where they run here, within the rules of what does not."""

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

import leanfront as lf
from leanfront.compression.capture.program import Arguments
from leanfront.compression.export import dialects
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import BUILT_IN, DialectError, dialect_for, dialect_of
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.graph import kernels
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.grids import GridKind
from leanfront.compression.policy.precision import summands
from leanfront.compression.techniques.compress import Compressed
from leanfront.hw_profiles import load_profile
from leanfront.networks import Captured, CompressedNetwork, file_of
from leanfront.search.gate.tensors import File, one_by_one
from tests.networks import Pyramid, captured_network, inputs
from tests.variants import some

NETWORKS = ["Residual", "UNet", "Sequence", "OptionA"]


@cache
def captured(name: str) -> Captured:
    return captured_network(name)


@cache
def compressed(name: str, to: str, bits: tuple[int, int]) -> CompressedNetwork:
    network = captured(name)
    policy = lf.uniform(network, sparsity=0.5, weight_bits=bits[0], activation_bits=bits[1])
    return lf.compress(network, policy, [inputs(name, 32, 1)], to=to)


@pytest.mark.parametrize(
    ("to", "name", "bits"),
    some(product(["openvino", "tensorrt"], NETWORKS, [(8, 8), (32, 32), (16, 16)]), 10),
)
def test_a_file_equals_the_network(tmp_path: Path, to: str, name: str, bits: tuple[int, int]) -> None:
    # export runs the file, and raises where it does not put out what the network does
    lf.export(compressed(name, to, bits), tmp_path / "model.onnx", to=to)
    model = onnx.load(tmp_path / "model.onnx")
    assert [rule.broken(model) for rule in dialect_of(to).rules] == [[] for _ in dialect_of(to).rules]
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert bool(halves) == (bits == (16, 16))


class Grouped(nn.Module):
    """Norms of groups of channels: one of all, two, and one for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.norms = nn.Sequential(nn.GroupNorm(2, 16), nn.GroupNorm(16, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 8, 8) -> (N, 5)."""
        answers: torch.Tensor = self.head(self.norms(self.layers(x)).relu().mean((2, 3)))
        return answers


@pytest.mark.parametrize("to", ["onnx", "openvino", "tensorrt", "tflite"])
def test_norms_of_groups_are_right_in_every_engine(tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    model = Grouped().eval()
    for name, parameter in model.named_parameters():
        if "norms" in name or "layers.1" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    images = torch.randn(16, 3, 8, 8)
    network = lf.capture(model, images[:1])
    for bits in (32, 8):
        made = lf.compress(network, lf.uniform(network, 0.5, bits, bits), [images], to=to)
        lf.export(made, tmp_path / "model", to=to)  # runs it


def test_each_use_of_a_layer_computes_in_halves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    network = lf.capture(Pyramid().eval(), images[:1])
    made = lf.compress(network, lf.uniform(network, 0.5, 16, 16), [images], to="tensorrt")
    lf.export(made, tmp_path / "model.onnx", to="tensorrt")
    graph = onnx.load(tmp_path / "model.onnx").graph
    kind = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(layers) == 8
    assert {kind[node.input[1]] for node in layers} == {TensorProto.FLOAT16}


class Far(nn.Module):
    """Words that are looked up, and scores around a constant far from 0, as detectors begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.scores = nn.Embedding(50, 24), nn.Linear(24, 24), nn.Linear(24, 9)
        nn.init.normal_(self.scores.weight, std=0.002)
        nn.init.constant_(self.scores.bias, -4.6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(self.inner(self.words(ids)).relu())
        return scores


@pytest.mark.parametrize("to", ["tensorrt", "tflite"])
def test_rows_that_are_looked_up_and_scores_far_from_0_in_halves(tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (1, 12))
    network = lf.capture(Far().eval(), ids)
    lf.export(lf.compress(network, lf.uniform(network, 0.5, 16, 16), [ids], to=to), tmp_path / "model", to=to)


def test_biases_in_floats_are_not_rounded(tmp_path: Path) -> None:
    made = compressed("Residual", "tensorrt", (8, 8))
    lf.export(made, tmp_path / "model.onnx", to="tensorrt")
    held = [numpy_helper.to_array(one) for one in onnx.load(tmp_path / "model.onnx").graph.initializer]
    of = Compressed(made.module, made.network, made.policy)  # type: ignore[arg-type]
    for dialect in (dialect_of("onnx"), dialect_of("tensorrt")):
        module = fold(of, dialect).module
        biases = [module.get_submodule(name).bias.detach().numpy() for name in made.network.layer_names]  # type: ignore[union-attr,operator]
        found = [any(x.shape == b.shape and np.array_equal(x, b) for x in held) for b in biases]
        assert all(found) is not dialect.rounds_biases


@pytest.mark.parametrize("to", ["onnx", "openvino", "tflite"])
@pytest.mark.parametrize(
    ("least", "steps", "width"),
    [(0.0, 16, 1.0), (0.0, 256, 1.0), (-1.0, 255, 2.0)],
    ids=["16", "256", "-1..1"],
)
def test_images_between_two_codes_are_rounded_alike(to: str, least: float, steps: int, width: float) -> None:
    """1/2 of 0 .. 1 lies halfway between two of 256 codes, and each of 256 values from -1 to 1 does."""
    torch.manual_seed(0)
    images = torch.randint(0, steps + 1, (48, 3, 8, 8)).float() / steps * width + least
    images[:, 0, 0, :2] = torch.tensor([least, least + width])
    network = lf.capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), images[:1])
    made = lf.compress(network, lf.uniform(network, 0.0, 8, 8), [images[:16]], to=to)
    compressed = Compressed(made.module, made.network, made.policy)
    file = File(file_of(made, to), dialect=dialect_of(to))
    singles = one_by_one(Arguments.of(images[16:]).like(network.traced.example))
    theirs = torch.cat([torch.from_numpy(np.asarray(file.arrays(one)[0])) for one in singles])
    with torch.no_grad():
        ours = fold(compressed, dialect_of(to)).module.eval()(images[16:])
    # of 2,048 sums one may lie halfway by itself
    assert float(((ours - theirs).abs() > 1e-6).double().mean()) < 0.002


def test_openvino_adds_what_a_layer_puts_out_as_it_is(tmp_path: Path) -> None:
    """Layer, rounding, sum, rounding: the first rounding is in no file for OpenVINO, which leaves it out."""
    kind = dialect_of("openvino")
    made = compressed("Residual", "openvino", (8, 8))
    lf.export(made, tmp_path / "model.onnx", to="openvino")
    lf.export(compressed("Residual", "onnx", (8, 8)), tmp_path / "usual.onnx")
    roundings = [
        sum(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / file).graph.node)
        for file in ("usual.onnx", "model.onnx")
    ]
    found = summands(kernels(made.network), made.network.outputs)
    assert found
    assert roundings[0] - roundings[1] == len(found)
    of = Compressed(made.module, made.network, made.policy)  # type: ignore[arg-type]
    file = File((tmp_path / "model.onnx").read_bytes(), dialect=kind)
    images = one_by_one(Arguments.of(inputs("Residual", 40, 3)))
    with torch.no_grad():
        ours = torch.cat([fold(of, kind).module(*one.args) for one in images])
        rounded = torch.cat([fold(of).module(*one.args) for one in images])
    theirs = torch.cat([torch.from_numpy(np.asarray(file.arrays(one)[0])) for one in images])
    step = float(ours.max() - ours.min()) / 255
    assert (ours - theirs).abs().max() <= 1.01 * step
    assert (ours - theirs).abs().mean() < 0.2 * (rounded - theirs).abs().mean()


def _predicted(name: str, to: str, bits: tuple[int, int]) -> int:
    network = measured(captured(name).traced, dialect_of(to))
    policy = lf.uniform(captured(name), sparsity=0.5, weight_bits=bits[0], activation_bits=bits[1])
    return int(PolicyBatch.of(network, [policy]).size_bytes()[0])


SIZES = (
    ("tensorrt", (8, 8), 12), ("tensorrt", (32, 32), 0), ("tensorrt", (16, 16), 400),
    ("openvino", (8, 8), 12), ("openvino", (4, 8), 12), ("openvino", (2, 8), 12),
    ("openvino", (3, 32), 0), ("openvino", (1, 8), 12),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "to", "bits", "off"),
    some(((name, *one) for name in (*NETWORKS, "Depthwise", "Dense") for one in SIZES), 17),
)
def test_the_size_is_that_of_the_engines_own_file(
    tmp_path: Path, name: str, to: str, bits: tuple[int, int], off: int
) -> None:
    """But for a zero point that turns out to be 0, as others are (12 bytes), and casts to float16."""
    size = lf.export(compressed(name, to, bits), tmp_path / "model.onnx", to=to).size_bytes
    assert _predicted(name, to, bits) == pytest.approx(size, abs=off)


def test_weights_of_two_bits_are_held_in_four_for_openvino(tmp_path: Path) -> None:
    sizes = []
    for bits in (2, 4):
        network = compressed("Residual", "openvino", (bits, 8))
        sizes.append(lf.export(network, tmp_path / "model.onnx", to="openvino").size_bytes)
    assert abs(sizes[0] - sizes[1]) < 32


def test_a_file_for_onnxruntime_breaks_the_rules_of_tensorrt(tmp_path: Path) -> None:
    lf.export(compressed("Residual", "onnx", (8, 8)), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    broken = {rule.says: rule.broken(model) for rule in dialect_of("tensorrt").rules}
    assert "not a signed 0 of 8 bits" in broken["signed tensors whose zero is 0"][0]
    assert "is held in integers" in broken["biases in floats"][0]
    assert broken["opset 20 at most"] == ["it is written in opset 21"]
    assert not broken["one scale for each output channel of a weight"]
    assert not broken["both operands of a quantized addition quantized"]


def test_a_network_of_another_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DialectError, match=r"tensorrt cannot hold tensor .* to='tensorrt'"):
        lf.export(compressed("Residual", "onnx", (8, 8)), tmp_path / "model.onnx", to="tensorrt")


@pytest.mark.parametrize(
    ("trained", "to", "right"),
    [("affine", "onnx", True), ("affine", "tensorrt", False), ("symmetric", "tensorrt", False),
     ("signed", "qonnx", True), ("signed", "tensorrt", True), ("affine", "qonnx", False)],
)  # fmt: skip
def test_what_another_engine_trains_on_is_refused(trained: GridKind, to: str, right: bool) -> None:
    policy = lf.uniform(captured("Residual"), weight_bits=8, activation_bits=8)
    floats = lf.uniform(captured("Residual"))
    dialects.check_trained_for(dialect_of(to), trained, floats)
    if right:
        dialects.check_trained_for(dialect_of(to), trained, policy)
        return
    with pytest.raises(DialectError, match=f"whose zeros lie as in {trained} grids.* --to {to},"):
        dialects.check_trained_for(dialect_of(to), trained, policy)


def test_a_pattern_of_zeros_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    with torch.no_grad():
        pattern = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 4, 1, 1)
        model[0].weight.mul_(pattern)
    x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    network = lf.capture(model, x[:1])
    policy = lf.uniform(network, weight_bits=8, activation_bits=8)
    lf.export(lf.compress(network, policy, [x], to="tensorrt"), tmp_path / "model.onnx", to="tensorrt")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    codes = next(array for array in stored.values() if array.shape == (8, 4, 3, 3))
    assert codes.dtype == np.int8
    assert not codes[:, 1:3].any()
    assert codes[:, [0, 3]].any()


def test_bits_without_a_kernel_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        DialectError, match=r"tensorrt has no kernel for layer '.*' with weights of 4 .* 8 with 8; leave"
    ):
        lf.export(compressed("Residual", "tensorrt", (4, 8)), tmp_path / "model.onnx", to="tensorrt")
    with pytest.raises(DialectError, match=r"openvino has no kernel .* activations of 4 bits; the nearest"):
        lf.export(compressed("Residual", "openvino", (4, 4)), tmp_path / "model.onnx", to="openvino")


def test_an_operation_that_it_has_not_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = type(dialect_of("tensorrt"))
    monkeypatch.setattr(kind, "cannot", lambda self, node: "no Add" if node.op_type == "Add" else "")
    with pytest.raises(
        DialectError, match=r"tensorrt cannot run this network, at 'add.*no Add.* to = 'onnx'"
    ):
        lf.export(compressed("Residual", "tensorrt", (8, 8)), tmp_path / "model.onnx", to="tensorrt")


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialects, "find_spec", lambda name: None)
    with pytest.raises(DialectError, match=r"pip install 'leanfront\[openvino\]'; or ask .* --to onnx"):
        dialect_for(None, "openvino")
    with pytest.raises(DialectError, match=r"pip install 'leanfront\[openvino\]'$"):
        dialect_for("openvino", "onnxruntime")
    assert dialect_for("onnx", "tensorrt").name == "onnx"


def test_every_engine_has_its_kind_of_file() -> None:
    assert {engine: dialect_of(name).engine for engine, name in BUILT_IN.items()} == {e: e for e in BUILT_IN}
    assert dialect_for(None, load_profile("jetson-orin-nano").engine).name == "tensorrt"


class Scaled(nn.Module):
    """What goes in is multiplied by ones first, as time series without gaps are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.ones_like(x)
        y: torch.Tensor = self.layer(x - x.sum(1, keepdim=True))
        return y


@pytest.mark.parametrize("to", ["onnx", "openvino", "tensorrt", "tflite"])
def test_an_input_that_an_engine_calls_otherwise_is_given_to_it(tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 32, 3)
    network = lf.capture(Scaled().eval(), x[:1])
    made = lf.compress(network, lf.uniform(network, 0.0, 32, 32), [x], to=to)
    lf.export(made, tmp_path / "model", to=to)  # runs it
