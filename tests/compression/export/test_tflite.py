"""Files for LiteRT put out what the network does; what it lacks is named before anything is trained."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export.dialects import DialectError, dialect_of
from leanfront.compression.export.litert.file import packed
from leanfront.compression.export.litert.layers import same_pads
from leanfront.compression.export.litert.writing import layouts
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.networks import Captured, CompressedNetwork, file_of
from leanfront.search.gate.tensors import File, drawn_like, together
from tests.compression.capture.random_networks import random_network
from tests.networks import ALL, Pyramid, captured_network, inputs
from tests.variants import some

RANDOM = 20
LACKING = ("no kernel for GRU", "of volumes")


@cache
def captured(name: str) -> Captured:
    return captured_network(name)


@cache
def compressed(name: str, sparsity: float, bits: tuple[int, int]) -> CompressedNetwork:
    network = captured(name)
    policy = lf.uniform(network, sparsity, *bits)
    return lf.compress(network, policy, [inputs(name, 32, 1)], to="tflite")


def operators(content: bytes) -> list[str]:
    """Names of a file's operations, in their order."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromPackedBuf(content)
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


@pytest.mark.parametrize(
    ("sparsity", "bits"),
    [(0.5, (8, 8)), (0.5, (4, 8)), (0.5, (32, 32)), (0.5, (16, 16)), (0.0, (8, 8)), (0.0, (8, 32))],
)
@pytest.mark.parametrize("name", some(ALL, 4))
def test_a_file_equals_the_network(tmp_path: Path, name: str, sparsity: float, bits: tuple[int, int]) -> None:
    # export runs the file, and raises where it does not put out what the network does
    lf.export(compressed(name, sparsity, bits), tmp_path / "model.tflite", to="tflite")


@pytest.mark.parametrize("name", ["UNet", "Depthwise", "Chain"])
def test_float_layers_between_integer_ones_stay_floats(tmp_path: Path, name: str) -> None:
    network = captured(name)
    names = list(network.network.layer)
    bits = [(8, 8), (32, 32), (4, 8), (16, 16)]
    chosen = {layer: LayerPolicy(0.0, *bits[place % 4]) for place, layer in enumerate(names)}
    small = lf.compress(network, Policy.of(chosen), [inputs(name, 32, 1)], to="tflite")
    lf.export(small, tmp_path / "model.tflite", to="tflite")
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(operators((tmp_path / "model.tflite").read_bytes()))


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(5, RANDOM, 5))]
)
def test_random_networks(tmp_path: Path, first: int) -> None:
    written = 0
    for seed in range(first, first + 5):
        model, given = random_network(seed)
        network = lf.capture(model, given)
        batch = together(drawn_like(network.traced.example, 8, seed)).args
        for bits in (32, 8):
            small = lf.compress(network, lf.uniform(network, 0.5, bits, bits), [batch], to="tflite")
            said = ""
            try:
                lf.export(small, tmp_path / "model.tflite", to="tflite")
            except DialectError as error:
                said = str(error)
            written += not said
            assert not said or any(lacking in said for lacking in LACKING), said
    assert written >= 4


def test_an_integer_network_is_written_in_integers() -> None:
    content = file_of(compressed("Residual", 0.0, (8, 8)), "tflite")
    found = operators(content)
    assert found[0] == "QUANTIZE"
    assert found[-1] == "DEQUANTIZE"
    assert "TRANSPOSE" not in found
    assert set(found[1:-1]) <= {"CONV_2D", "ADD", "MEAN", "PAD", "QUANTIZE", "RESHAPE", "FULLY_CONNECTED"}


def test_inputs_have_channels_last_and_are_run_as_the_network_has_them() -> None:
    content = file_of(compressed("UNet", 0.0, (32, 32)), "tflite")
    assert layouts(content) == {"input": [0, 2, 3, 1], "output": [0, 2, 3, 1]}
    found = File(content, dialect=dialect_of("tflite")).arrays(captured("UNet").gets(inputs("UNet", 1, 0))[0])
    assert found[0].shape == (1, 4, 8, 8)


def test_buffers_begin_where_the_schema_wants_them() -> None:
    content = file_of(compressed("Chain", 0.0, (8, 8)), "tflite")
    model = schema.Model.GetRootAs(content)
    held = [model.Buffers(place) for place in range(model.BuffersLength())]
    begins = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in held if buffer.DataLength()]
    assert begins
    assert not any(place % 16 for place in begins)


def test_weights_of_four_bits_are_half_as_large_where_a_kernel_reads_them() -> None:
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    network = lf.capture(model, x[:1])
    sizes = [
        len(file_of(lf.compress(network, lf.uniform(network, 0.0, bits, 8), [x], to="tflite"), "tflite"))
        for bits in (8, 4)
    ]
    assert sizes[0] - sizes[1] >= 128 * 256 // 2 - 64


def test_codes_of_four_bits_lie_two_in_a_byte() -> None:
    assert packed(np.array([1, -1, 7], dtype=np.int8)) == bytes([0xF1, 0x07])


@pytest.mark.parametrize(
    ("one", "pads"),
    [((8, 3, 1, 1), (1, 1)), ((8, 3, 2, 1), (0, 1)), ((7, 3, 2, 1), (1, 1)), ((8, 1, 2, 1), (0, 0))],
)
def test_padding_that_is_called_same(one: tuple[int, int, int, int], pads: tuple[int, int]) -> None:
    assert same_pads(*one) == pads


class Whole(nn.Module):
    """One operation of interest between two convolutions."""

    def __init__(self, inner: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 8, 3, padding=1), inner
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(torch.relu(self.first(x))))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "average pool": lambda: Whole(nn.AvgPool2d(2)),
    "average pool with zeros": lambda: Whole(nn.AvgPool2d(3, 2, 1)),
    "average pool without zeros": lambda: Whole(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "average pool, rounded up": lambda: Whole(nn.AvgPool2d(3, 2, ceil_mode=True)),
    "max pool with zeros": lambda: Whole(nn.MaxPool2d(3, 2, 1)),
    "max pool of what is negative": lambda: Whole(nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(3, 2, 1))),
    "bilinear": lambda: Whole(nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear, corners": lambda: Whole(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "nearest": lambda: Whole(nn.Upsample(scale_factor=2)),
    "groups": lambda: Whole(nn.Conv2d(8, 8, 3, groups=4)),
    "multiplied depthwise": lambda: Whole(nn.Conv2d(8, 16, 3, groups=8), 16),
    "dilated": lambda: Whole(nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
    "lopsided": lambda: Whole(nn.Conv2d(8, 8, (3, 5), stride=(2, 1), padding=(0, 2))),
    "transposed": lambda: Whole(nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)),
    "transposed, cut": lambda: Whole(nn.ConvTranspose2d(8, 8, 4, 2, 1)),
    "transposed groups": lambda: Whole(nn.ConvTranspose2d(8, 8, 3, 2, groups=2)),
    "transposed and dilated": lambda: Whole(nn.ConvTranspose2d(8, 8, 3, 1, dilation=2)),
    "pixel shuffle": lambda: Whole(nn.PixelShuffle(2), 2),
    "softmax over channels": lambda: Whole(nn.Softmax(1)),
    "silu": lambda: Whole(nn.SiLU()), "gelu": lambda: Whole(nn.GELU()), "elu": lambda: Whole(nn.ELU(0.7)),
    "hardswish": lambda: Whole(nn.Hardswish()), "mish": lambda: Whole(nn.Mish()),
    "selu": lambda: Whole(nn.SELU()),
    "prelu": lambda: Whole(nn.PReLU(8)), "hardsigmoid": lambda: Whole(nn.Hardsigmoid()),
    "softplus": lambda: Whole(nn.Softplus()), "leaky": lambda: Whole(nn.LeakyReLU(0.2)),
    "cut to a range": lambda: Whole(nn.Hardtanh(0.1, 0.7)),
    "group norm": lambda: Whole(nn.GroupNorm(2, 8)),
    "instance norm": lambda: Whole(nn.InstanceNorm2d(8, affine=True)),
    "reflected": lambda: Whole(nn.ReflectionPad2d(2)),
    "replicated": lambda: Whole(nn.ReplicationPad2d((1, 0, 2, 1))),

    "circular": lambda: Whole(nn.CircularPad2d(1)),
    "a number around": lambda: Whole(nn.ConstantPad2d(1, 0.5)),
    "scaled": lambda: Whole(Lambda(lambda x: x * 0.3 - 0.1)),
    "excited": lambda: Whole(Lambda(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)))),
    "shuffled": lambda: Whole(nn.ChannelShuffle(2)),
    "every other": lambda: Whole(Lambda(lambda x: x[:, ::2, 1:, :-1]), 4),
    "normalized": lambda: Whole(Lambda(lambda x: F.normalize(x + 0.1, dim=1))),
    "last": lambda: Whole(Lambda(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2))),
    "split": lambda: Whole(Lambda(lambda x: torch.cat([x.chunk(2, 1)[1], x[:, :4] * 2], 1))),
    "chosen": lambda: Whole(Lambda(lambda x: torch.where(x > 0.2, x, x * 0.1))),
}  # fmt: skip


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("kind", some(KINDS, 6))
def test_kinds_of_operations(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    x = torch.randn(16, 3, 9, 10)
    network = lf.capture(model, x[:1])
    for bits in (32, 8):
        small = lf.compress(network, lf.uniform(network, 0.0, bits, bits), [x], to="tflite")
        lf.export(small, tmp_path / "model.tflite", to="tflite")


def test_what_has_no_kernel_is_named_with_its_place(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Lambda(torch.erf)).eval()
    network = lf.capture(model, torch.zeros(1, 3, 4, 4))
    plain = lf.compress(network, lf.uniform(network))
    with pytest.raises(DialectError, match=r"tflite cannot run this network, at 'erf.*': no kernel for Erf"):
        lf.export(plain, tmp_path / "model.tflite", to="tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_tensors_of_fewer_bits_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DialectError, match=r"tflite has no kernel .* activations of 4 bits; the nearest"):
        lf.export(compressed("Residual", 0.0, (4, 4)), tmp_path / "model.tflite", to="tflite")


def test_what_is_no_file_is_refused() -> None:
    with pytest.raises(DialectError, match="LiteRT refuses the file"):
        dialect_of("tflite").opened(b"nothing at all")


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_foretold(name: str) -> None:
    network = captured(name)
    known = measured(network.traced, dialect_of("tflite"))
    for sparsity, bits in ((0.0, (32, 32)), (0.0, (8, 8)), (0.5, (8, 8)), (0.5, (16, 16)), (0.5, (4, 8))):
        size = len(file_of(compressed(name, sparsity, bits), "tflite"))
        predicted = PolicyBatch.of(known, [lf.uniform(network, sparsity, *bits)]).size_bytes()[0]
        assert abs(predicted - size) <= max(0.02 * size, 96), (sparsity, bits, predicted, size)


@pytest.mark.parametrize("bits", [(32, 32), (16, 16), (8, 8), (4, 8), (8, 32)])
@pytest.mark.parametrize("sparsity", [0.0, 0.4])
def test_weights_that_are_used_often_are_stored_once(
    tmp_path: Path, sparsity: float, bits: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 16, 16)
    network = lf.capture(Pyramid().eval(), images[:1])
    policy = lf.uniform(network, sparsity, *bits)
    made = lf.compress(network, policy, [images], to="tflite")
    size = lf.export(made, tmp_path / "model.tflite", to="tflite").size_bytes
    weights = sum(layer.shape.weight_count for layer in made.network.layers)
    assert size < weights * max(bits[0], 8) / 8 + 11_000
    foretold = PolicyBatch.of(measured(network.traced, dialect_of("tflite")), [policy]).size_bytes()
    assert abs(foretold[0] - size) <= max(0.02 * size, 96)


def test_a_profile_of_the_engine_prices_its_file() -> None:
    network = captured("Residual")
    price = lf.cost(network, lf.uniform(network, 0.0, 8, 8), profile="raspberry-pi-4")
    size = len(file_of(compressed("Residual", 0.0, (8, 8)), "tflite"))
    assert price.size_bytes == pytest.approx(size, rel=0.02)
