"""A layer that is called several times in one pass: one decision, one weight, and a kernel for each use."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import leanfront as lf
from leanfront.compression.capture.program import Arguments
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.network_model import network_model
from leanfront.compression.export.walk import random_builder
from leanfront.compression.graph import kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.biases import corrected
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import statistics
from leanfront.compression.training.finetune import FineTune, fine_tune
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.shifted_weights import shifted
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.pricing import price
from leanfront.networks import Captured, file_of
from leanfront.search.gate.prove import prove
from leanfront.search.gate.tensors import File
from tests.variants import some


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))


class Pyramid(nn.Module):
    """Two levels, and a head for both. ``norms``: none, one for both levels, or one for each."""

    def __init__(self, norms: int = 0, groups: int = 1, middle: int = 12) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.conv = nn.Conv2d(8, middle, 3, padding=1, groups=groups)
        self.norms = nn.ModuleList(nn.BatchNorm2d(middle) for _ in range(norms))
        self.out = nn.Conv2d(middle, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        large = F.relu(self.stem(x))
        return self.head(large, 0), self.head(F.relu(self.down(large)), 1)

    def head(self, x: Tensor, level: int) -> Tensor:
        x = self.conv(x)
        if len(self.norms):
            x = self.norms[min(level, len(self.norms) - 1)](x)
        return self.out(F.relu(x)).flatten(2)


class Again(nn.Module):
    """A linear layer that reads what it has put out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.inner, self.inner):
            x = F.relu(layer(x))
        return self.last(x)


class Pooled(Again):
    """A linear layer at each position, and behind their mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.first(x))))
        return self.last(F.relu(self.inner(x.mean(1))))


class Normed(nn.Module):
    """Convolution, batch norm and ReLU, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(2):
            x = F.relu(self.norm(self.conv(x)))
        return self.last(x.mean((2, 3)))


class Computed(Normed):
    """The same, whose weight is computed anew for each use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))


class Branches(nn.Module):
    """Residual branches: two with one convolution in common, one with a convolution that it uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.common, self.twice = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.one(F.relu(self.common(x))))
        x = F.relu(x + self.other(F.relu(self.common(x))))
        x = F.relu(x + self.twice(F.relu(self.twice(x))))
        return self.last(x.mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        large = F.relu(self.stem(x))
        return [self.out(F.relu(self.up(level))) for level in (large, F.relu(self.down(large)))]


class SameTensor(nn.Module):
    """A convolution that is called again with what it has read before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.conv(x) + F.relu(self.conv(x)) + self.conv(F.relu(x)) + self.conv(F.relu(x)).sigmoid()
        return self.last(y.mean((2, 3)))


class Tied(nn.Module):
    """Words, and what tells words, of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.told = nn.Linear(8, 20, bias=False)
        self.told.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.told(F.relu(self.inner(self.words(x))))


class TwoDilations(nn.Module):
    """One weight that two convolutions read, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        near, far = F.conv2d(x, self.weight, padding=1), F.conv2d(x, self.weight, padding=2, dilation=2)
        return self.last((F.relu(near) + F.relu(far)).mean((2, 3)))


IMAGE, VECTOR, TOKENS = (1, 3, 16, 16), (1, 5), (1, 7, 5)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pyramid": (Pyramid, IMAGE),
    "pyramid, one norm": (lambda: Pyramid(1), IMAGE),
    "pyramid, a norm for each level": (lambda: Pyramid(2), IMAGE),
    "pyramid, depthwise": (lambda: Pyramid(1, groups=8, middle=8), IMAGE),
    "pyramid, in groups": (lambda: Pyramid(groups=2), IMAGE),
    "again": (Again, VECTOR),
    "again, each position": (Again, TOKENS),
    "each position and their mean": (Pooled, TOKENS),
    "normed": (Normed, IMAGE),
    "computed": (Computed, IMAGE),
    "branches": (Branches, IMAGE),
    "transposed": (Transposed, IMAGE),
    "same tensor": (SameTensor, IMAGE),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                norm.weight.normal_(1, 0.3)
                norm.bias.normal_(0, 0.3)
                norm.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model, torch.randn(shape)


def captured_of(name: str) -> Captured:
    return lf.capture(*made(name))


def batches(example: Tensor) -> list[Tensor]:
    return [torch.randn(8, *example.shape[1:]) for _ in range(2)]


def labels(captured: Captured) -> list[str]:
    return [kernel.label for kernel in kernels(captured.network) if kernel.layer is not None]


@pytest.mark.parametrize("name", some(NETWORKS, 5))
def test_it_is_proved_with_exact_sizes(name: str) -> None:
    model, example = made(name)
    captured = lf.capture(model, example)
    assert not captured.notes
    assert any("@2" in label for label in labels(captured))
    proof = prove(model, captured, example)
    assert proof.passed, proof.failures
    sizes = {check.name: check.largest for check in proof.checks if check.name.endswith("size")}
    assert len(sizes) == 4
    assert max(sizes.values()) <= 12, sizes
    told = next(check for check in proof.checks if check.name == "cut: channels out")
    assert told.passed


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_one_layer_with_one_decision(name: str) -> None:
    network = captured_of(name).network
    space = Space(network, load_profile("raspberry-pi-4"), (0.0, 0.5), (8, 32), (8, 32))
    decided = [decision.about for decision in space.decisions if decision.kind == "bits"]
    assert decided == list(network.layer_names)
    assert network.weight_count == sum(layer.shape.weight_count for layer in network.layers)
    assert len(labels(Captured(captured_of(name).traced))) > len(network.layers)


def test_each_use_is_a_kernel_with_its_own_sizes() -> None:
    captured = captured_of("pyramid, one norm")
    shapes = {k.label: str(k.shape) for k in kernels(captured.network) if k.layer is not None}
    assert shapes == {
        "stem": "conv2d 3x3/2 3->8 @8x8", "down": "conv2d 3x3/2 8->8 @4x4",
        "conv": "conv2d 3x3 8->12 @8x8", "conv@2": "conv2d 3x3 8->12 @4x4",
        "out": "conv2d 3x3 12->4 @8x8", "out@2": "conv2d 3x3 12->4 @4x4",
    }  # fmt: skip
    assert not [k for k in kernels(captured.network) if k.op == "batchnorm"]
    assert captured.groups == {"stem": 8, "conv": 12}
    apart = captured_of("pyramid, a norm for each level")
    assert [k.activation for k in kernels(apart.network) if k.op == "batchnorm"] == ["relu", "relu"]


class Untied(nn.Module):
    """A pyramid with a head of its own for each level."""

    def __init__(self, model: Pyramid) -> None:
        super().__init__()
        self.model, self.other = model, copy.deepcopy(model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        large = F.relu(self.model.stem(x))
        return self.model.head(large, 0), self.other.head(F.relu(self.model.down(large)), 1)


FLOATS, CUT, INTEGERS = (0.0, 32, 32), (0.5, 32, 32), (0.5, 8, 8)


@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        *((name, wanted) for name in ("raspberry-pi-4", "toy") for wanted in (FLOATS, CUT, INTEGERS)),
        *((name, INTEGERS) for name in ("zcu102-dpu", "zynq-7020", "systolic-m32p32")),
    ],
)
def test_it_costs_what_a_layer_for_each_use_costs(profile: str, wanted: tuple[float, int, int]) -> None:
    model, example = made("pyramid, one norm")
    assert isinstance(model, Pyramid)
    costs, files = [], []
    for one in (model, Untied(model)):
        captured = lf.capture(one.eval(), example)
        policy = lf.uniform(captured, *wanted)
        found = price(captured.network, policy, load_profile(profile), network_model)
        rows = [row.latency_ms for row in found.layers]
        assert len(rows) == len({row.name for row in found.layers})
        costs.append((found.cost.latency_ms, found.cost.energy_mj, found.cost.peak_memory_bytes, sum(rows)))
        batch = PolicyBatch.of(captured.network, [policy])
        files.append((int(batch.macs.sum()), int(batch.weight_counts.sum())))
        assert files[-1][0] == policy.cut(captured.network).macs
    assert costs[0] == pytest.approx(costs[1])
    assert files[0][0] == files[1][0]
    assert files[0][1] < files[1][1]


@pytest.mark.parametrize("name", ["pyramid, one norm", "again", "each position and their mean"])
@pytest.mark.parametrize("bits", [(32, 32), (8, 8), (4, 8), (8, 32)])
def test_a_file_has_its_weight_once_and_a_bias_for_each_step(name: str, bits: tuple[int, int]) -> None:
    model, example = made(name)
    captured = lf.capture(model, example)
    policy = lf.uniform(captured, 0.0, *bits)
    compressed = lf.compress(captured, policy, batches(example))
    content = file_of(compressed)
    graph = onnx.load_model_from_string(content).graph
    layer = captured.network.layer["conv" if "pyramid" in name else "inner"]
    count = layer.shape.weight_count
    assert sum(math.prod(tensor.dims) == count for tensor in graph.initializer) == 1
    integer = max(bits) <= 8
    biases = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT32 and any(t.raw_data)]
    assert len(biases) == (len(labels(captured)) if integer else 0)
    assert abs(int(PolicyBatch.of(measured(captured.traced), [policy]).size_bytes()[0]) - len(content)) <= 12
    # a network of shapes alone is near, and its stand-in has as many bytes of weights
    told, shown = size_bytes(captured.network, policy), network_model(captured.network, policy)
    assert abs(told - len(content)) <= 300
    tensors = onnx.load_model_from_string(shown).graph.initializer
    assert sum(math.prod(tensor.dims) == count for tensor in tensors) == 1


@pytest.mark.parametrize("name", ["pyramid, one norm", "again", "each position and their mean"])
@pytest.mark.parametrize("bits", [(32, 32), (8, 8)])
def test_where_biases_are_floats_all_uses_read_one(name: str, bits: tuple[int, int]) -> None:
    model, example = made(name)
    captured = lf.capture(model, example)
    policy = lf.uniform(captured, 0.0, *bits)
    content = file_of(lf.compress(captured, policy, batches(example), to="tensorrt"), "tensorrt")
    told = PolicyBatch.of(measured(captured.traced, dialect_of("tensorrt")), [policy]).size_bytes()
    assert int(told[0]) == len(content)


def test_layers_that_read_one_tensor_with_a_use_agree_on_its_bits() -> None:
    class Beside(Pyramid):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            large = F.relu(self.stem(x))
            small = F.relu(self.down(large))
            return self.conv(large), self.conv(small), self.out(F.relu(self.conv(small)))

    torch.manual_seed(0)
    network = lf.capture(Beside(), torch.randn(IMAGE)).network
    # the convolution reads what is read by "down", and what nobody else reads
    assert network.first_readers == {"stem": "stem", "down": "down", "conv": "down", "out": "out"}
    assert network.reading_together == (("down", "conv"),)
    space = Space(network, load_profile("raspberry-pi-4"), (0.0,), (8, 32), (8, 32))
    space.policy({"bits/down": (8, 8)}).check(network)


def test_a_branch_goes_with_all_uses_of_its_layers() -> None:
    captured = captured_of("branches")
    assert captured.branches == ("twice",)
    policy = lf.uniform(captured, 0.5, 8, 8, left_out=("twice",))
    made = lf.compress(captured, policy, [torch.randn(4, *IMAGE[1:])])
    assert "twice" not in made.network.layer
    assert len(file_of(made)) == int(PolicyBatch.of(measured(captured.traced), [policy]).size_bytes()[0])


def test_what_is_deployed_has_a_bias_for_each_use() -> None:
    model, example = made("pyramid, one norm")
    traced = lf.capture(model, example).traced
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5, 8, 8)))
    calibrate(compressed.module, batches(example))
    deployed = fold(compressed)
    biases = [deployed.module.get_submodule(name).bias for name in ("conv", "use_conv_1")]
    assert not torch.equal(*biases)
    assert torch.allclose(*biases, atol=1e-2)
    ours, theirs = compressed.module(example), deployed.module(example)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 0.05 * one.abs().max()
    assert "use_conv_1" not in dict(compressed.module.named_modules())


def test_it_is_trained_by_all_its_uses_and_handed_on() -> None:
    model, example = made("again")
    traced = lf.capture(model, example).traced
    trained = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.25, 4, 8)))
    calibrate(trained.module, batches(example))
    trained.module.train()
    before = {name: value.detach().clone() for name, value in trained.module.named_parameters()}
    optimizer = torch.optim.SGD(trained.module.parameters(), 0.1)
    for batch in batches(example):
        optimizer.zero_grad()
        trained.module(batch).square().mean().backward()
        optimizer.step()
    name = "inner.parametrizations.weight.original"
    after = dict(trained.module.named_parameters())[name]
    assert not torch.equal(before[name], after)
    assert sum("inner" in key and "weight" in key for key in before) == 1
    heir = inherit(traced, trained, Policy.uniform(traced.network, LayerPolicy(0.5, 8, 8)))
    weight = heir.module.get_submodule("inner").parametrizations["weight"].original  # type: ignore[index,union-attr]
    assert weight.shape == (6, 6)
    assert torch.isin(weight, after).all()
    calibrate(heir.module, batches(example))
    assert heir.module(example).shape == (1, 3)


def test_a_cut_takes_the_same_channels_out_of_all_uses() -> None:
    model, example = made("again")
    captured = lf.capture(model, example)
    assert captured.groups == {"first": 12}
    kept = lf.compress(captured, lf.uniform(captured, 0.5)).kept
    assert kept["inner"][0] == kept["inner"][1] == kept["first"][1] == kept["last"][0]
    squares = [model.first.weight, model.inner.weight, model.inner.weight.T, model.last.weight.T]  # type: ignore[union-attr]
    importance = torch.stack([weight.detach().square().sum(1) for weight in squares]).mean(0)
    assert kept["inner"][0] == tuple(sorted(importance.argsort(descending=True)[:6].tolist()))


def test_no_bias_is_corrected_for_one_of_several_uses() -> None:
    model, example = made("pyramid")
    traced = lf.capture(model, example).traced
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 4, 8)))
    calibrate(compressed.module, batches(example))
    assert set(corrected(compressed.module, batches(example)[0])) == {"stem.bias", "down.bias"}


def test_a_norm_for_several_uses_of_one_layer_is_one() -> None:
    captured = captured_of("normed")
    assert [name for name, _ in captured.module.named_modules() if "norm" in name] == ["norm"]
    torch.manual_seed(0)
    policy = Policy.uniform(captured.network, LayerPolicy(0.5, 8, 8))
    made = compress(captured.traced, policy)
    norm = made.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == len(norm.weight) == 4


@pytest.mark.parametrize(("norms", "moves"), [(1, False), (2, True)])
def test_a_norm_of_several_uses_is_trained_with_what_it_stores(norms: int, moves: bool) -> None:
    torch.manual_seed(0)
    traced = lf.capture(Pyramid(norms), torch.randn(IMAGE)).traced
    made = compress(traced, Policy.uniform(traced.network, LayerPolicy()))
    before = statistics(made.module)
    weight = made.module.get_submodule("norms.0").weight.detach().clone()  # type: ignore[operator,union-attr]
    batch = torch.randn(8, *IMAGE[1:])

    def lesson(inputs: Tensor, targets: object, answers: object) -> Tensor:
        return torch.stack([one.square().mean() for one in made.module(inputs)]).sum()

    fine_tune(made.module, [(batch, None, None)] * 4, 4, lesson, FineTune())
    assert torch.equal(before["norms.0"][0], statistics(made.module)["norms.0"][0]) != moves
    assert not torch.equal(weight, made.module.get_submodule("norms.0").weight)  # type: ignore[arg-type]
    assert not made.module.training


class TwoNorms(nn.Module):
    """Two norms of one owner, as functions, behind the two uses of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.norms = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Module()
        for level in range(2):
            for name in ("weight", "bias", "mean", "variance"):
                self.norms.register_buffer(f"{name}{level}", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x, own = F.relu(self.first(x)), dict(self.norms.named_buffers())
        made = [
            F.batch_norm(
                self.conv(one), *(own[f"{n}{level}"] for n in ("mean", "variance", "weight", "bias"))
            )
            for level, one in enumerate((x, 0.5 * x))
        ]
        return F.relu(made[0]) + F.relu(made[1])


def test_two_norms_behind_one_layer_stay_two() -> None:
    torch.manual_seed(0)
    model, example = TwoNorms().eval(), torch.randn(IMAGE)
    captured = lf.capture(model, example)
    assert torch.allclose(captured.module(example), model(example), atol=1e-5)
    norms = [name for name, one in captured.module.named_modules() if isinstance(one, _BatchNorm)]
    assert len(norms) == 2


def test_what_other_operations_read_as_well_is_kept() -> None:
    torch.manual_seed(0)
    captured = lf.capture(Tied(), torch.randint(20, (1, 6)))
    assert captured.network.layer_names == ("inner",)
    assert captured.notes == (
        "told keeps its bits, and is cut with the channels that it meets: its weights are used several times,"
        " or are computed on the way; with a table of its own it would have bits, too",
        "told is kept as it is: its weights are used several times; with weights of its own each use would be"
        " a layer",
    )
    other = lf.capture(TwoDilations(), torch.randn(IMAGE))
    assert other.network.layer_names == ("first", "last")
    assert [note.partition(";")[0] for note in other.notes] == [
        "weight is kept as it is: its weights are used several times"
    ]


def test_optimised_nodes_of_each_use_are_its_own() -> None:
    captured = captured_of("pyramid, one norm")
    structure = Structure(captured.network, random_builder(captured.traced))
    for bits in ((32, 32), (8, 8), (4, 8)):
        policy = lf.uniform(captured, 0.5, *bits)
        parts = structure.observe(policy.cut(captured.network), policy)
        own = {k.label: part for k, part in zip(structure.kernels, parts, strict=True) if k.layer is not None}
        for one, other in (("conv", "conv@2"), ("out", "out@2")):
            assert len(own[one]) == len(own[other]) > 0
            assert own[one] != own[other]
            assert [key.replace("x8x8", "x4x4") for key in own[one]] == list(own[other])


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_around_another_zero_point_serve_all_uses(bits: int) -> None:
    model, example = made("pyramid, one norm")
    captured = lf.capture(model, example)
    compressed = lf.compress(captured, lf.uniform(captured, 0.0, bits, 8), batches(example))
    content = file_of(compressed)
    moved = shifted(onnx.load_model_from_string(content), ["conv"]).SerializeToString()
    assert moved != content
    examples = [Arguments.of(one[:1]) for one in batches(example)]
    for one, other in zip(File(content).answers(examples), File(moved).answers(examples), strict=True):
        assert torch.equal(one, other)
