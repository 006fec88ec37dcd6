"""Zeros of each pattern: where they lie, that they stay through training, checkpoints, heirs and files."""

import copy
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.zeros_in_file import in_onnx
from leanfront.compression.export.zipped_sizes import deflated, zipped
from leanfront.compression.layers import kind_of
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, zeros_of
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.compression.policy.zipped import zipped_bytes
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.masks import least, masks, tighten, zero_share
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import changed_norms
from leanfront.compression.training.finetune import zeros_by
from leanfront.compression.training.schedule import ENDS, SCHEDULES, gradual, iterative, one_shot
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.latency_models.benchmark.shifted_weights import shifted
from leanfront.networks import file_of
from leanfront.search.objectives import ObjectiveError, objective
from leanfront.search.trial.weights import load_weights, save_weights
from tests.networks import captured_network, inputs, traced_network
from tests.variants import some

TWO_FOUR, FOUR_EIGHT, BLOCK, ANY = (PATTERNS[name] for name in ("2:4", "4:8", "block", "unstructured"))


@cache
def traced(name: str = "Residual") -> Traced:
    return traced_network(name)


def masked(
    bits: tuple[int, int] = (32, 32), cut: float = 0.0, name: str = "Residual", **more: float
) -> Compressed:
    numbers = tuple((key.replace("_", ":").lstrip("n"), value) for key, value in more.items())
    policy = Policy.uniform(traced(name).network, LayerPolicy(cut, *bits, more=numbers))
    found = compress(traced(name), policy, 4)
    calibrate(found.module, [inputs(name, 32, 1)])
    return found


def weight_of(module: nn.Module, name: str) -> Tensor:
    found = module.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found.detach()


def test_where_zeros_lie_is_known_on_paper() -> None:
    linear = kind_of(nn.Linear(1, 1))
    assert linear is not None
    weight = torch.tensor([[3.0, -1, 2, -4, 0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1, -9, 8, -7, 6]])
    assert least(weight, TWO_FOUR, 0.5, linear, 1).int().tolist() == [
        [0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]
    ]  # fmt: skip
    assert least(weight, TWO_FOUR, 0.25, linear, 1).int().sum(dim=1).tolist() == [2, 2]
    assert least(weight, FOUR_EIGHT, 0.5, linear, 1).int().tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]
    ]  # fmt: skip
    assert least(weight, ANY, 0.3, linear, 1).int().tolist() == [
        [0, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]
    ]  # of equal ones the first  # fmt: skip
    assert not least(weight, ANY, 0.0, linear, 1).any()
    assert least(weight, ANY, 1.0, linear, 1).all()
    rows = torch.tensor([[1.0, 9], [1, 9], [1, 9], [5, 9], [0, 2], [0, 2]])
    assert least(rows, BLOCK, 0.5, linear, 1).int().tolist() == [[0, 0]] * 4 + [[1, 1]] * 2
    assert least(rows[:, :1], BLOCK, 0.5, linear, 1).int().flatten().tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 6, 3), nn.Conv2d(16, 8, 3, groups=2), nn.Conv1d(12, 4, 5), nn.ConvTranspose2d(8, 6, 3),
     nn.ConvTranspose2d(16, 8, 3, groups=2), nn.Linear(20, 7)],
    ids=str,
)  # fmt: skip
def test_two_of_four_input_channels_of_each_place_stay(layer: nn.Module) -> None:
    """By the definition, place by place: every output reads from each four inputs at most two."""
    kind, groups = kind_of(layer), int(getattr(layer, "groups", 1))
    assert kind is not None
    weight = layer.weight.detach()  # type: ignore[union-attr]
    gone = least(weight, TWO_FOUR, 0.5, kind, groups)
    assert float(gone.float().mean()) == 0.5
    if kind.in_axis == 0:  # (in, out of a group, ...)
        split = gone.unflatten(0, (groups, -1, 4)).sum(dim=2)
    else:
        split = gone.unflatten(1, (-1, 4)).sum(dim=2)
    assert (split == 2).all()
    kept = weight.abs().masked_fill(gone, 9.0).amin()
    assert kept >= 0  # and of each four the two largest, as the test on paper has it
    assert float(weight.abs()[~gone].mean()) > 1.4 * float(weight.abs()[gone].mean())


def test_what_is_hidden_is_zero_gets_no_gradient_and_its_codes_are_zero() -> None:
    for bits in ((32, 32), (8, 8), (4, 8), (2, 8)):
        found = masked(bits, n2_4=0.5, unstructured=0.8)
        layer = found.module.get_submodule("stage1.conv2")
        weight = layer.weight
        gone = weight == 0
        assert float(gone.float().mean()) >= 0.8
        weight.square().sum().backward()  # type: ignore[no-untyped-call]
        original = layer.parametrizations.weight.original  # type: ignore[union-attr]
        one, other = masks(found.module)[layer]
        hidden = one.gone | other.gone
        assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.01)
        assert (original.grad[hidden] == 0).all()
        assert (original.grad[~gone] != 0).all()
        deployed = weight_of(fold(found).module, "stage1.conv2")
        assert (deployed[hidden] == 0).all()
        assert not torch.signbit(deployed[hidden]).any()
        whole = hidden.unflatten(1, (-1, 4)).sum(dim=2)
        assert (whole >= 2).all()


def test_zeros_go_with_cuts_and_say_that_norms_change() -> None:
    found = masked((8, 8), cut=0.5, n2_4=0.5)
    shape = found.network.layer["stage2.1.conv2"].shape
    assert (shape.in_channels, shape.out_channels) == (8, 8)
    assert zero_share(found.module) >= 0.5
    norms = changed_norms(traced(), compress(traced(), only(traced(), "stage2.0.conv2", unstructured=0.5)))
    assert "stage2.0.bn2" in norms
    assert "stem.1" not in norms


def only(model: Traced, name: str, **more: float) -> Policy:
    plain = Policy.uniform(model.network, LayerPolicy())
    return Policy.of({**plain, name: LayerPolicy(more=tuple(more.items()))})


def trained(found: Compressed, steps: int = 4) -> None:
    """As if: every parameter is another."""
    optimizer = torch.optim.SGD(found.module.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(out.square().mean() for out in [found.module(inputs("Residual", 8, 2))]).backward()
        optimizer.step()


def test_zeros_stay_in_training_in_checkpoints_and_in_heirs(tmp_path: Path) -> None:
    found = masked((4, 8), unstructured=0.8)
    hidden = {id(layer): own[0].gone.clone() for layer, own in masks(found.module).items()}
    before = weight_of(found.module, "stage1.conv2").clone()
    trained(found)
    for layer, own in masks(found.module).items():
        assert torch.equal(own[0].gone, hidden[id(layer)])
        assert (layer.weight[own[0].gone] == 0).all()  # type: ignore[index]
    assert not torch.equal(weight_of(found.module, "stage1.conv2"), before)
    save_weights(found.module, tmp_path / "weights.safetensors")
    again = masked((4, 8), unstructured=0.8)
    load_weights(again.module, tmp_path / "weights.safetensors")
    for name in found.network.layer:
        assert torch.equal(weight_of(again.module, name), weight_of(found.module, name))
    kept = copy.deepcopy(found.module.state_dict())
    gone = weight_of(found.module, "stage1.conv2") == 0
    for more, cut in (((), 0.0), ((("unstructured", 0.9),), 0.0), ((("2:4", 0.5),), 0.5)):
        heir = inherit(
            traced(), found, Policy.uniform(traced().network, LayerPolicy(cut, 8, 8, more=more)), 4
        )
        calibrate(heir.module, [inputs("Residual", 8, 2)])
        weight = weight_of(heir.module, "stage1.conv2")
        share = float((weight == 0).float().mean())
        assert share >= (0.89 if ("unstructured", 0.9) in more else 0.5 if cut else 0.79)
        if not cut:  # what was 0 stays so
            assert (
                weight[masks(found.module)[found.module.get_submodule("stage1.conv2")][0].gone] == 0
            ).all()
    assert all(torch.equal(kept[name], value) for name, value in found.module.state_dict().items())
    assert gone.any()


def test_schedules_are_as_their_papers_have_them() -> None:
    """Zhu and Gupta's equation 1 with s_i = 0, t_0 = 0; steps that take the same share of what is left."""
    for schedule in SCHEDULES.values():
        shares = [schedule(progress, 0.9) for progress in np.linspace(0, 1, 101)]
        assert shares == sorted(shares)
        assert shares[-1] == shares[int(100 * ENDS)] == pytest.approx(0.9)
    assert one_shot(0.0, 0.9) == 0.9
    assert gradual(0.0, 0.9) == 0.0
    assert gradual(ENDS / 2, 0.8) == pytest.approx(0.8 + (0.0 - 0.8) * (1 - 0.5) ** 3)
    left = [1 - iterative(step * ENDS / 4, 0.9) for step in range(4)]
    assert [a / b for a, b in zip(left[1:], left, strict=False)] == pytest.approx([0.1**0.25] * 3)
    assert left[0] == pytest.approx(0.1**0.25)
    assert left[3] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", some(SCHEDULES, 1))
def test_zeros_come_by_a_schedule_and_stay(schedule: str) -> None:
    found = masked((8, 8), unstructured=0.8, n2_4=0.5)
    before_step = zeros_by(found.module, SCHEDULES[schedule])
    shares, gone = [], None
    for step in range(20):
        before_step(step / 20)
        shares.append(zero_share(found.module))
        (one, other) = masks(found.module)[found.module.get_submodule("stage1.conv2")]
        now = one.gone | other.gone
        assert gone is None or now[gone].all()  # nothing comes back
        gone = now
        trained(found, 1)
    assert shares == sorted(shares)
    assert shares[-1] >= 0.79
    assert (shares[0] >= 0.79) == (schedule == "one-shot")
    tighten(found.module, lambda share: 0.25 * share)  # back to the least of the weights as they are now
    layer = found.module.get_submodule("stage1.conv2")
    weight = layer.parametrizations.weight.original  # type: ignore[union-attr]
    hidden = masks(found.module)[layer][1].gone
    assert float(hidden.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert weight[hidden].abs().max() <= weight[~hidden].abs().min()


@cache
def captured() -> lf.Captured:
    return captured_network("Residual")


@pytest.mark.parametrize(
    ("to", "bits"),
    [("onnx", (8, 8)), ("onnx", (4, 8)), ("onnx", (32, 32)), ("tensorrt", (8, 8)), ("qonnx", (4, 8)),
     ("tflite", (8, 8)), ("tflite", (4, 8)), ("openvino", (8, 8))],
)  # fmt: skip
def test_zeros_are_zeros_in_every_kind_of_file(to: str, bits: tuple[int, int]) -> None:
    """Counted in the file: at least as many as the policy promises, and as many as the network has."""
    more = {"2:4": 0.5, "unstructured": 0.6}
    policy = lf.uniform(captured(), 0.5, *bits, more=more)
    made = lf.compress(captured(), policy, [inputs("Residual", 16, 1)], multiple=4, to=to)
    found = dialect_of(to).counted(file_of(made, to))
    shown = [weight_of(made.module, name) for name in made.network.layer]
    assert found.weights == sum(weight.numel() for weight in shown)
    assert found.zeros >= zeros_of(made.network, policy) > 0.5 * found.weights
    assert found.zeros == sum(int((weight == 0).sum()) for weight in shown)
    if to == "tensorrt":  # (out, in, height, width): of every four inputs two, at each place of a kernel
        stored = onnx.load_from_string(file_of(made, to)).graph.initializer
        codes = [numpy_helper.to_array(one) for one in stored if len(one.dims) == 4 and one.dims[1] % 4 == 0]
        assert len(codes) > 4
        assert all(
            ((each != 0).reshape(len(each), -1, 4, 3, 3).sum(2) <= 2).all()
            for each in codes
            if each.shape[2] == 3
        )
    plain = lf.compress(captured(), lf.uniform(captured(), 0.5, *bits), [inputs("Residual", 16, 1)], 4, to)
    assert dialect_of(to).counted(file_of(plain, to)).zeros < 0.3 * found.weights


def test_codes_around_another_zero_point_are_counted_as_what_they_mean() -> None:
    made = lf.compress(captured(), lf.uniform(captured(), 0.0, 8, 8), [inputs("Residual", 16, 1)])
    content = file_of(made)
    moved = shifted(onnx.load_from_string(content), ["stage1.conv2"]).SerializeToString()
    assert moved != content
    assert in_onnx(moved) == in_onnx(content)


def test_what_a_zipped_file_takes_is_foretold() -> None:
    """Held against zlib: a kilobyte, or 6 % of larger files."""
    torch.manual_seed(0)
    sizes = (3, 32, 64, 64)
    blocks = [
        part
        for before, after in pairwise(sizes)
        for part in (nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU())
    ]
    images = [torch.randn(16, 3, 12, 12)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    network_of = lf.capture(model, images[0][:1])
    for to in ("onnx", "tflite"):
        dialect = dialect_of(to)
        sized = measured(network_of.traced, dialect)
        network = zipped(network_of.traced, sized, dialect, [4, 8, 32], [0.5, 0.9])
        for cut, bits, more in (
            (0.0, (32, 32), {}), (0.0, (8, 8), {}), (0.0, (32, 32), {"unstructured": 0.9}),
            (0.0, (8, 8), {"unstructured": 0.5}), (0.0, (8, 8), {"unstructured": 0.9}),
            (0.0, (8, 8), {"2:4": 0.5}), (0.0, (4, 8), {"unstructured": 0.5}), (0.5, (8, 8), {}),
        ):  # fmt: skip
            policy = lf.uniform(network_of, cut, *bits, more=more)
            made = lf.compress(network_of, policy, images, to=to)
            real = deflated(file_of(made, to))
            (expected,) = zipped_bytes(PolicyBatch.of(network, [policy]))
            assert expected == pytest.approx(real, rel=0.06, abs=1000), (to, cut, bits, more)
            one = objective("zipped_bytes").of(policy.cut(network), policy, None)  # type: ignore[arg-type]
            assert one == expected
    with pytest.raises(ObjectiveError, match=r"must be measured .* nothing was of layer '0'"):
        objective("zipped_bytes").column(PolicyBatch.of(network_of.network, [policy]), None)  # type: ignore[arg-type]


def test_what_halves_take_in_a_zipped_file_is_foretold() -> None:
    """Of a layer (16, 32) that most of the file is: within 5 % of zlib."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    network_of = lf.capture(model, torch.randn(1, 32))
    for to in ("onnx", "tflite"):
        dialect = dialect_of(to)
        network = zipped(network_of.traced, measured(network_of.traced, dialect), dialect, [8, 16, 32], [0.5])
        for more in ({}, {"unstructured": 0.5}):
            policy = lf.uniform(network_of, 0.0, 16, 16, more=more)
            real = deflated(file_of(lf.compress(network_of, policy, to=to), to))
            (expected,) = zipped_bytes(PolicyBatch.of(network, [policy]))
            assert expected == pytest.approx(real, rel=0.05), (to, more)
