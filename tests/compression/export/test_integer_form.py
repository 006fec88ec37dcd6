"""Networks in an engine's arithmetic: the file's own numbers, and what is known of them on paper."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.program import Arguments, tensors_in
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import Arithmetic, dialect_of
from leanfront.compression.export.integer_form import (
    FixedSum,
    OntoGrid,
    RatioSum,
    Rescaled,
    Scaled,
    in_integers,
)
from leanfront.compression.export.integer_sums import with_integer_sums
from leanfront.compression.export.template import template
from leanfront.compression.export.weights import LayerWeights
from leanfront.compression.policy import Policy
from leanfront.compression.policy.grids import ActivationGrid
from leanfront.compression.techniques.compress import Compressed
from leanfront.networks import CompressedNetwork, file_of
from leanfront.search.gate import files
from leanfront.search.gate.tensors import File, answers_of_each, one_by_one
from tests.networks import captured_network, inputs
from tests.variants import some

KNOWN = {"avx512_vnni"} <= (
    flags := set(Path("/proc/cpuinfo").read_text().split())
) and "amx_int8" not in flags
"""Whether this is a processor on which OpenVINO's orders of operations were found."""
CASES = [
    case
    for case in product(
        ["onnx", "openvino", "tensorrt", "tflite", "qonnx"],
        ["Residual", "UNet", "Sequence", "OptionA", "Depthwise", "Dense", "Odd"],
        [(8, 8), (4, 8)],
    )
    if case[0] != "tensorrt" or case[2] == (8, 8)
    if case[:2] not in {("qonnx", "OptionA"), ("qonnx", "Odd")}  # refused
]  # fmt: skip


@cache
def compressed(name: str, to: str, bits: tuple[int, int]) -> CompressedNetwork:
    network = captured_network(name)
    return lf.compress(network, lf.uniform(network, 0.5, *bits), [inputs(name, 32, 1)], to=to)


def compared(name: str, to: str, bits: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Answers in fake quantization, in the engine's arithmetic, and of the file."""
    made, dialect = compressed(name, to, bits), dialect_of(to)
    of = Compressed(made.module, made.network, made.policy)  # type: ignore[arg-type]
    file = File(file_of(made, to), dialect=dialect)
    ones = one_by_one(Arguments.of(inputs(name, 64, 3)).like(captured_network(name).traced.example))
    modules = [form(of, dialect).module.eval() for form in (fold, in_integers)]
    with torch.no_grad():
        fake, exact = (torch.cat([tensors_in(m(*x.args))[0] for x in ones]) for m in modules)
    return fake, exact, torch.cat([torch.from_numpy(np.asarray(file.arrays(x)[0])) for x in ones])


@pytest.mark.parametrize(("to", "name", "bits"), some(CASES, 12))
def test_a_network_puts_out_the_numbers_of_its_file(to: str, name: str, bits: tuple[int, int]) -> None:
    _, exact, theirs = compared(name, to, bits)
    # the last layer of a .tflite file puts out codes of 16 bits, which are floats but for a rounding
    allowed = 0.02 * float(theirs.max() - theirs.min()) / 255 if to == "tflite" else 1e-6
    assert float(((exact - theirs).abs() <= allowed).double().mean()) >= 0.998


def test_fake_quantization_does_not() -> None:
    """Else there would be nothing to compute otherwise: OpenVINO's sums are no floats of the same values."""
    fake, exact, theirs = compared("Residual", "openvino", (8, 8))
    assert float(((fake - theirs).abs() > 1e-6).double().mean()) > 0.01
    assert torch.allclose(exact, theirs, atol=1e-6)


GRIDS = st.builds(
    ActivationGrid,
    st.floats(2.0**-10, 0.25, width=32),
    st.integers(0, 255),
)


def codes(grid: ActivationGrid, all_of: NDArray[np.int64]) -> Tensor:
    """Floats of codes 0 .. 255."""
    return torch.from_numpy((all_of - grid.zero_point).astype(np.float32) * np.float32(grid.scale))


def pairs() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.repeat(np.arange(256), 256), np.tile(np.arange(256), 256)


def added_by_onnxruntime(one: ActivationGrid, other: ActivationGrid, to: ActivationGrid) -> NDArray[np.uint8]:
    """QLinearAdd of all pairs of codes."""
    place = [helper.make_tensor_value_info(name, TensorProto.UINT8, [65536]) for name in "abc"]
    held = []
    for name, grid in zip("abc", (one, other, to), strict=True):
        held.append(numpy_helper.from_array(np.float32(grid.scale).reshape(()), "scale_" + name))
        held.append(numpy_helper.from_array(np.uint8(grid.zero_point).reshape(()), "zero_" + name))
    read = ["a", "scale_a", "zero_a", "b", "scale_b", "zero_b", "scale_c", "zero_c"]
    node = helper.make_node("QLinearAdd", read, ["c"], domain="com.microsoft")
    graph = helper.make_graph([node], "sum", place[:2], place[2:], held)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    opened = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first, second = (values.astype(np.uint8) for values in pairs())
    found: NDArray[np.uint8] = opened.run(None, {"a": first, "b": second})[0]
    return found


@settings(max_examples=8, deadline=None)
@given(GRIDS, GRIDS, GRIDS)
def test_onnxruntime_adds_all_pairs_of_codes_alike(
    one: ActivationGrid, other: ActivationGrid, to: ActivationGrid
) -> None:
    first, second = pairs()
    ours = RatioSum([one, other], to)(codes(one, first), codes(other, second))
    theirs = codes(to, added_by_onnxruntime(one, other, to).astype(np.int64))
    assert torch.equal(ours, theirs)


def test_sums_between_two_codes_go_where_the_engine_has_them() -> None:
    """1/2 of a code: to the even one in floats, up with multipliers of integers."""
    grid, to = ActivationGrid(0.5, 128), ActivationGrid(1.0, 128)
    ones, others = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5]), torch.zeros(5)
    assert RatioSum([grid, grid], to)(ones, others).tolist() == [0.0, 2.0, 0.0, -2.0, 2.0]
    assert FixedSum([grid, grid], to)(ones, others).tolist() == [1.0, 2.0, 0.0, -1.0, 3.0]


@pytest.mark.parametrize("rounds", ["divides", "multiplies", "spread"])
@pytest.mark.parametrize(
    "grid", [ActivationGrid(0.25, 0), ActivationGrid(0.3, 117), ActivationGrid(0.1, 8, 4)]
)
def test_floats_land_on_the_nearest_code(rounds: str, grid: ActivationGrid) -> None:
    onto = OntoGrid(grid, Arithmetic(rounds=rounds))  # type: ignore[arg-type]
    values = torch.linspace(-60, 60, 4001)
    step, low, high = np.float32(grid.scale), -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
    exact = (values.double() / float(step)).clamp(low, high)
    found = onto(values).double() / float(step)
    assert float((found - exact).abs().max()) <= 0.5 + 1e-4
    assert torch.allclose(found, found.round(), atol=1e-4)
    assert torch.equal(onto(onto(values)), onto(values))


def layer(channels: int = 4, bits: int = 8) -> tuple[nn.Conv2d, LayerWeights]:
    random = np.random.default_rng(0)
    made = nn.Conv2d(3, channels, 3)
    top = 2 ** (bits - 1) - 1
    held = LayerWeights(
        random.normal(size=channels).astype(np.float32),
        codes=random.integers(-top, top + 1, (channels, 3, 3, 3)).astype(np.int8),
        scales=random.uniform(0.001, 0.01, channels).astype(np.float32),
    )
    made.bias = nn.Parameter(torch.from_numpy(held.bias))
    return made, held


def test_sums_are_those_of_integers() -> None:
    """In int64, then one factor, then to the nearest even code."""
    read, to = ActivationGrid(0.02, 100), ActivationGrid(0.05, 128)
    module, held = layer()
    bias = np.array([100, -2000, 31, 7], dtype=np.int32)
    q = torch.randint(-100, 156, (2, 3, 8, 8))
    assert held.codes is not None
    assert held.scales is not None
    sums = torch.nn.functional.conv2d(
        q, torch.from_numpy(held.codes.astype(np.int64)), torch.from_numpy(bias).long()
    )
    factors = np.float32(0.02) * held.scales / np.float32(0.05)
    wanted = (sums.float() * torch.from_numpy(factors).reshape(1, -1, 1, 1)).round().clamp(-128, 127)
    x = q.float() * float(np.float32(0.02))
    found = Rescaled(module, read, held, bias, 1, to)(x)
    assert torch.equal(found, wanted * float(np.float32(0.05)))


@pytest.mark.parametrize("finer", [1, 2**17])
def test_sums_that_floats_of_32_bits_do_not_hold_are_exact(finer: int) -> None:
    read = ActivationGrid(1.0, 0)
    module, held = layer()
    assert held.codes is not None
    made = Rescaled(module, read, held, np.zeros(4, np.int32), finer, None)
    assert made.floats == (torch.float32 if finer == 1 else torch.float64)
    q = torch.randint(0, 256, (1, 3, 8, 8))
    weight = torch.from_numpy(held.codes.astype(np.int64) * finer)
    assert torch.equal(made.sums(q.float()), torch.nn.functional.conv2d(q, weight).float())


def test_a_bias_in_floats_is_added_behind_the_step() -> None:
    module, held = layer()
    assert held.codes is not None
    assert held.scales is not None
    read = ActivationGrid(0.02, 0)
    q = torch.randint(0, 256, (2, 3, 8, 8))
    sums = torch.nn.functional.conv2d(q, torch.from_numpy(held.codes.astype(np.int64))).float()
    steps = torch.from_numpy(np.float32(0.02) * held.scales).reshape(1, -1, 1, 1)
    wanted = sums * steps + torch.from_numpy(held.bias).reshape(1, -1, 1, 1)
    assert torch.equal(Scaled(module, read, held, None)(q.float() * float(np.float32(0.02))), wanted)


def test_a_file_for_tensorrt_is_run_with_sums_of_integers() -> None:
    made = compressed("Residual", "tensorrt", (8, 8))
    model = onnx.load_from_string(file_of(made, "tensorrt"))
    summed = with_integer_sums(model)
    onnx.checker.check_model(summed)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in summed.graph.initializer}
    products = [node for node in summed.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(products) == len(made.network.layers)
    for node in products:
        assert np.array_equal(held[node.input[1]], np.round(held[node.input[1]]))
        assert float(np.abs(held[node.input[1]]).max()) > 1
    rounds = {name for node in summed.graph.node if node.op_type == "Round" for name in node.output}
    assert {node.input[0] for node in products} <= rounds
    assert model == onnx.load_from_string(file_of(made, "tensorrt"))  # what was given stays as it is
    assert "sums of integers" in dialect_of("tensorrt").ran


def test_the_gate_holds_a_file_against_the_engines_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is a step from fake quantization is none from this."""
    made, dialect = compressed("Residual", "openvino", (8, 8)), dialect_of("openvino")
    of = Compressed(made.module, made.network, made.policy)  # type: ignore[arg-type]
    traced = captured_network("Residual").traced
    examples = one_by_one(Arguments.of(inputs("Residual", 64, 3)).like(traced.example))
    monkeypatch.setattr(files, "STEPS", 0.01)
    monkeypatch.setattr(files, "OWN", 0.0)
    found = files.held(template(traced), of, file_of(made, "openvino"), examples, dialect)
    assert found.passed, found.why
    against = fold(of, dialect).module
    assert not files.held(template(traced), of, file_of(made, "openvino"), examples, dialect, against).passed


class Sums(nn.Module):
    """Layers, and blocks, whose values have both signs; nothing averages them."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *convs)
        self.wide = nn.ModuleList(nn.Conv2d(16, 24, 3, padding=1) for _ in range(4))
        self.back = nn.ModuleList(nn.Conv2d(24, 16, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H, W)."""
        x = self.stem(x)
        for wide, back in zip(self.wide, self.back, strict=True):
            x = x + back(wide(x).relu())
        return x


@pytest.mark.parametrize("to", ["onnx", "openvino", "tflite", "tensorrt"])
def test_a_million_values_of_sums_are_those_of_the_file(to: str) -> None:
    torch.manual_seed(1)
    apart = differences(Sums().eval(), torch.randn(96, 3, 32, 32), to)
    assert apart.numel() > 1e6
    # on another processor OpenVINO may compute in another order
    assert int((apart > 1e-5).sum()) <= (0 if KNOWN or to != "openvino" else 2000)


class Between(nn.Module):
    """Something between two layers and a sum or a join, behind an activation."""

    def __init__(self, activation: nn.Module, between: str) -> None:
        super().__init__()
        self.activation, self.between = activation, between
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) -> (N, 8, 16, 16)."""
        x = self.a(x).relu()
        y = self.activation(self.b(x))
        if self.between == "mean":  # zeros around it are counted
            return self.c(x + nn.functional.avg_pool2d(y, 3, 1, 1))  # type: ignore[no-any-return]
        if self.between == "largest":
            return self.c(x + nn.functional.max_pool2d(y, 3, 1, 1))  # type: ignore[no-any-return]
        if self.between == "join":
            return self.c(torch.cat([x[:, :4], y[:, 4:]], 1))  # type: ignore[no-any-return]
        return self.c(x + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("to", "between", "activation"),
    some(
        product(
            ["openvino", "tflite", "onnx"],
            ["mean", "largest", "join", "sum"],
            [nn.Identity(), nn.ReLU(), nn.SiLU()],
        ),
        12,
    ),
)
def test_what_lies_between_layers_is_computed_alike(to: str, between: str, activation: nn.Module) -> None:
    same_numbers(Between(activation, between), to)


class Joined(nn.Module):
    """A tensor joined with itself, once behind what is nothing when it runs, and a sum of which one operand
    is scaled first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 3, padding=1)
        self.c, self.nothing = nn.Conv2d(8, 8, 1), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) -> (N, 8, 14, 14)."""
        x = self.a(x).relu()
        y = self.b(torch.cat([x, self.nothing(x)], 1))
        return self.c(torch.add(x, y, alpha=2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("to", ["onnx", "openvino", "tflite", "tensorrt"])
def test_a_tensor_with_itself_and_a_sum_that_scales_are_computed_alike(to: str) -> None:
    same_numbers(Joined(), to)


class Twice(nn.Module):
    """What a linear layer puts out in floats is added, and put out besides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 16, 16) -> twice (N, 3, 16, 16)."""
        x = self.a(x).relu()
        y = self.b(x)
        return self.c(x + y), y


@pytest.mark.parametrize("to", ["onnx", "openvino", "tensorrt"])
def test_what_is_added_and_put_out_is_put_out_as_it_is(to: str) -> None:
    same_numbers(Twice(), to)


def test_openvino_takes_means_of_zeros_that_are_none_of_its_codes() -> None:
    """It pads a grid's codes with 0, which is the lowest value: 37 steps off."""
    same_numbers(Between(nn.Identity(), "mean"), "openvino")


def test_openvino_leaves_out_the_rounding_of_a_relu_before_a_sum() -> None:
    same_numbers(Between(nn.ReLU(), "sum"), "openvino")


class Pooled(nn.Module):
    """Positions in a row, of which a mean is scaled and moved channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.gain, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) -> (N, 5)."""
        mean = self.layer(x).relu().flatten(2).transpose(1, 2).mean(1)
        y: Tensor = self.last(mean * self.gain + self.shift)
        return y


@pytest.mark.parametrize("to", ["onnx", "openvino", "tflite"])
def test_a_mean_is_scaled_channel_by_channel(to: str) -> None:
    """OpenVINO makes that a part of the mean, where it takes positions for channels: 300 steps off."""
    same_numbers(Pooled(), to)


@pytest.mark.parametrize("to", ["onnx", "openvino", "tflite"])
def test_branches_that_are_left_out_have_no_sum(to: str) -> None:
    gone = [f"{name}.1" for name in ("wide", "back")]
    same_numbers(Sums(), to, gone)


def same_numbers(module: nn.Module, to: str, gone: Sequence[str] = ()) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.25, 0.25)
    apart = differences(module.eval(), torch.randn(40, 3, 16, 16), to, gone)
    # a curve in floats may round the last digit otherwise, and one value of 50,000 the other way
    assert float((apart > 1e-5).double().mean()) < 1e-3


def differences(module: nn.Module, images: Tensor, to: str, gone: Sequence[str] = ()) -> Tensor:
    """Of all outputs in a row, between the network in its engine's arithmetic and the file, in 8 bits. The
    first 16 images calibrate. ``gone``: layers that are left out."""
    network = lf.capture(module, images[:1])
    policy = Policy.of(lf.uniform(network, 0.0, 8, 8), gone)
    made, dialect = lf.compress(network, policy, [images[:16]], to=to), dialect_of(to)
    of = Compressed(made.module, made.network, made.policy)
    file = File(file_of(made, to), dialect=dialect)
    ones = one_by_one(Arguments.of(images[16:]).like(network.traced.example))
    pairs = zip(answers_of_each(in_integers(of, dialect).module, ones), file.answers(ones), strict=True)
    return torch.cat([(one - other).abs().reshape(-1) for one, other in pairs])
