from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.distillation import Comparison
from leanfront.hw_profiles import load_profile
from leanfront.search.pick import pick as pick_module
from leanfront.search.pick.card import card
from leanfront.search.pick.told import Told
from leanfront.search.pick.verify import (
    Made,
    Verification,
    integer_layers,
    kernel_report,
    measured_memory,
    test_once,
    verification,
)
from leanfront.search.pick.verify import TestResult as Result
from leanfront.search.run.significance import wilson_interval
from leanfront.search.run.verified import verified
from leanfront.search.scores import F1
from leanfront.search.task import ArrayData, Task
from tests.latency_models.fpga.fpga_parts import chain, conv, uniform

test_once.__test__ = False  # type: ignore[attr-defined]  # it is no test, for all its name

GOOD = Result(
    n=1000, torch_accuracy=0.9, accuracy=0.901, accuracy_ci=(0.88, 0.92), baseline_accuracy=0.91,
    agreement=0.998, largest_difference=0.1,
)  # fmt: skip
LATENCY: dict[str, Any] = {
    "measured_ms": 0.1, "measured_spread": 0.01, "baseline_ms": 0.4, "ratio": 0.25, "slowdown": 1.0,
    "noise": None,
}  # fmt: skip
KERNELS: dict[str, Any] = {
    "integer": ["a"],
    "not_fused": [],
    "not_wanted": [],
    "operations": {"QLinearConv": 1},
}


def held(
    test: Result = GOOD,
    promised_ms: float = 0.1,
    latency: dict[str, Any] = LATENCY,
    max_drop: float | None = None,
    **kernels: list[str],
) -> Verification:
    promised = {"latency_ms": promised_ms, "size_bytes": 1000.0, "baseline_latency_ms": 0.4}
    return verification(
        5, promised, {"accuracy": 0.9}, test, latency,
        {"bytes": 1010, "baseline_bytes": 9090}, {**KERNELS, **kernels}, {}, max_drop=max_drop,
    )  # fmt: skip


def test_a_promise_that_was_kept() -> None:
    found = held(promised_ms=0.112)
    assert found.passed
    assert found.failures == []
    assert found.latency["error"] == pytest.approx(0.12)
    assert found.latency["predicted_ms"] == 0.112
    assert found.size == {"bytes": 1010, "baseline_bytes": 9090, "predicted_bytes": 1000.0}
    assert found.test["agreement"] == 0.998


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"test": replace(GOOD, accuracy=0.8979)},
            "scores 0.8979 on the test split, the torch network 0.9000",
        ),
        ({"test": replace(GOOD, accuracy=0.9021)}, "scores 0.9021"),
        ({"test": replace(GOOD, agreement=0.9949)}, "agree on 99.49%"),
        (
            {"test": replace(GOOD, largest_steps=9.0, steps=3.2, own_steps=1.0)},
            "outputs lie 3.2 quantization steps from the torch network's at 99.9 % of them (9.0 at most)",
        ),
        ({"promised_ms": 0.116}, "predicted latency 0.1160 ms, measured 0.1000 ms"),
        ({"promised_ms": 0.084}, "predicted latency 0.0840 ms"),
        ({"not_fused": ["b", "c"]}, "layers not run as integer kernels: b, c"),
        ({"not_wanted": ["d"]}, "float layers run as integer kernels: d"),
    ],
)
def test_a_promise_that_was_broken(changes: dict[str, Any], said: str) -> None:
    found = held(**changes)
    assert not found.passed
    assert len(found.failures) == 1
    assert said in found.failures[0]


@pytest.mark.parametrize(
    ("drop_ci", "max_drop", "said"),
    [
        ((0.012, 0.031), 0.01, "BEYOND the limit 0.0100"),
        ((0.009, 0.031), 0.01, "beyond the limit 0.0100, perhaps by noise"),
        ((0.009, 0.031), 0.02, "within the limit 0.0200, not for sure"),
        ((0.009, 0.031), 0.05, "within the limit 0.0500"),
        ((0.012, 0.031), None, ""),  # nobody gave a limit: nothing is held against it
    ],
)
def test_a_drop_is_held_against_its_limit(
    drop_ci: tuple[float, float], max_drop: float | None, said: str
) -> None:
    found = held(replace(GOOD, drop=0.02, drop_ci=drop_ci), max_drop=max_drop)
    row = next(row for row in verified(asdict(found)) if row.what == "lost, with its 95 % interval")
    assert (row.picked, row.gain) == ("0.0200 ({:.4f} .. {:.4f})".format(*drop_ci), said)
    assert found.passed == (not said.startswith("BEYOND"))
    if not found.passed:
        assert found.failures == [
            "the test split loses 0.0200 (0.0120 .. 0.0310), more than the limit of 0.0100"
        ]


def test_a_file_may_move_as_far_as_its_network_does_by_itself() -> None:
    assert held(test=replace(GOOD, largest_steps=30.0, steps=10.0, own_steps=4.0)).passed
    assert not held(test=replace(GOOD, largest_steps=30.0, steps=13.0, own_steps=4.0)).passed


def test_a_machine_that_became_slow_is_judged_by_the_ratio() -> None:
    why = "this machine is 1.5 times as slow"
    slow = {**LATENCY, "measured_ms": 0.15, "baseline_ms": 0.6, "slowdown": 1.5, "noise": why}
    found = held(latency=slow, promised_ms=0.1)
    assert found.passed
    assert not found.untold
    assert found.latency["error"] == pytest.approx(-1 / 3)
    found = held(latency={**slow, "ratio": 0.31}, promised_ms=0.1)
    assert found.untold == [
        f"predicted latency 0.250 of the uncompressed network's, measured 0.310, but {why}"
    ]


def test_what_a_disturbed_machine_cannot_tell_is_no_promise_broken() -> None:
    late, disturbed = {**LATENCY, "measured_ms": 0.15}, {**LATENCY, "measured_ms": 0.15, "noise": "too noisy"}
    assert held(latency=late).failures == ["predicted latency 0.1000 ms, measured 0.1500 ms"]
    found = held(latency=disturbed)
    assert found.passed
    assert found.untold == ["predicted latency 0.1000 ms, measured 0.1500 ms, but too noisy"]
    network = chain(conv(3, 8, 4))
    policy = uniform(network, 8, 8)
    text = card(found, policy, network, "toy", "task.py", "today")
    assert "Verified. Not verified: predicted latency 0.1000 ms, measured 0.1500 ms, but too noisy." in text


def test_a_part_that_is_not_here_has_no_latency() -> None:
    found = held(latency={}, promised_ms=99.0)
    assert found.passed
    assert found.latency == {}


def test_layers_are_found_by_the_names_that_onnxruntime_gives() -> None:
    policy = Policy.of(dict.fromkeys(("a", "a.1", "b", "c", "gone"), LayerPolicy(0.0, 8, 8)))
    optimised = {
        "a_token_3": "QLinearConv",
        "a.1_nchwc": "Conv",
        "b/MatMulAddFusion": "Gemm",
        "c": "QGemm",
        "ab": "Conv",
    }
    assert integer_layers(optimised, policy) == {
        "a": "QLinearConv", "a.1": "Conv", "b": "Gemm", "c": "QGemm", "gone": "",
    }  # fmt: skip


@pytest.fixture(scope="module")
def network() -> tuple[Task, nn.Module, Traced, bytes, Policy]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 4),
    ).eval()
    x = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(x).argmax(1).numpy()
    data = ArrayData(x.numpy(), labels, (0.0,) * 3, (1.0,) * 3)
    task = Task(model, torch.zeros(1, 3, 8, 8), data, data, data)
    traced = trace(model, task.example_input)
    policy = Policy.uniform(traced.network, LayerPolicy(0.25, 8, 8))
    compressed = compress(traced, policy)
    calibrate(compressed.module, [x])
    content = bytes(exported(template(traced), compressed).SerializeToString())
    return task, compressed.module, traced, content, policy


def test_the_test_split_is_read_once_by_all(
    network: tuple[Task, nn.Module, Traced, bytes, Policy],
) -> None:
    task, module, teacher, content, _ = network
    reads: list[int] = []

    class Counted:
        def __len__(self) -> int:
            return 300

        def batch(self, indices: torch.Tensor, generator: torch.Generator | None) -> Any:
            assert generator is None  # no augmentation
            reads.extend(indices.tolist())
            return task.test.batch(indices, None)  # type: ignore[union-attr]

    found = test_once(Made(content), module, teacher, task, Counted(), 1, {}, Comparison(), {})
    assert reads == list(range(300))
    assert (found.n, found.baseline_accuracy) == (300, 1.0)
    x = torch.from_numpy(np.asarray(task.test.images))  # type: ignore[union-attr]
    with torch.no_grad():
        right = module(x).argmax(1) == teacher.module(x).argmax(1)
    assert found.torch_accuracy == pytest.approx(float(right.float().mean()))
    assert found.agreement >= 0.99
    assert abs(found.accuracy - found.torch_accuracy) <= 0.01
    assert found.accuracy_ci == wilson_interval(found.accuracy, 300)
    assert found.drop == pytest.approx(1.0 - found.accuracy)
    assert found.drop_ci[0] <= found.drop <= found.drop_ci[1]
    assert found.largest_difference < 0.1
    assert found.largest_steps is not None
    assert 0 <= found.own_steps <= found.steps + 1
    assert found.steps <= found.largest_steps < 3


def test_what_else_is_told_of_the_test_split() -> None:
    before = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    now, targets = before.roll(1, 1), torch.tensor([0, 0, 1, 2])
    data = ArrayData(np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.int64), (0.0,), (1.0,))
    report = {"largest": lambda outputs, targets: outputs.max(), "F1": F1}
    told = Told(Task(nn.Identity(), torch.zeros(1, 3), data, data, data, report=report), Comparison())
    for part in (slice(0, 3), slice(3, 4)):
        told.add("uncompressed", before[part], targets[part])
        told.add("picked", now[part], targets[part])
    assert told.classes() == [
        {"class": 0, "examples": 2, "uncompressed": 1.0, "picked": 0.0},
        {"class": 1, "examples": 1, "uncompressed": 1.0, "picked": 0.0},
        {"class": 2, "examples": 1, "uncompressed": 0.0, "picked": 1.0},
    ]
    # class 0: 1; class 1: one right of two claimed and one there: 2 / 3; class 2: never claimed
    assert told.report()["largest"] == {"unit": "", "uncompressed": 2.0, "picked": 2.0}
    assert told.report()["F1"]["uncompressed"] == pytest.approx((1 + 2 / 3) / 3)
    found = held(replace(GOOD, report=told.report(), classes=told.classes()))
    rows = {row.what: row[1:] for row in verified(asdict(found))}
    assert rows["largest"] == ("2", "2", "+0")
    assert rows["right of class 0, 2 in all"] == ("1.0000", "0.0000", "-100.00 points")
    many = [
        {"class": k, "examples": 9, "uncompressed": 0.9, "picked": 0.9 - 0.01 * (k % 7)} for k in range(50)
    ]
    found = held(replace(GOOD, classes=many))
    shown = [row.what for row in verified(asdict(found)) if row.what.startswith("right of class")]
    assert shown == [f"right of class {k}, 9 in all (of 3 that lost most)" for k in (6, 13, 20)]


def test_the_wrong_file_is_noticed(network: tuple[Task, nn.Module, Traced, bytes, Policy]) -> None:
    task, module, teacher, content, _ = network
    shifted = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        shifted.weight.copy_(torch.eye(4).roll(1, 0))
    wrong = nn.Sequential(module, shifted).eval()
    found = test_once(Made(content), wrong, teacher, task, task.test, 1, {}, Comparison(), {})
    assert found.agreement < 0.1
    assert found.largest_steps >= found.steps > 10
    assert len(held(test=found).failures) == 3


def test_kernels_of_a_real_file(network: tuple[Task, nn.Module, Traced, bytes, Policy]) -> None:
    task, *_, content, policy = network
    layers = trace(task.model, task.example_input).network
    report = kernel_report(content, layers, policy, threads=1)
    assert report["integer"] == ["0", "2", "5"]
    assert report["operations"]["QLinearConv"] == 2
    claimed = Policy.of({**policy, "2": LayerPolicy()})
    assert kernel_report(content, layers, claimed, threads=1)["not_wanted"] == ["2"]


def test_the_card_says_what_was_found() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.zeros(1, 3, 8, 8))
    policy = Policy.uniform(traced.network, LayerPolicy(0.5, 4, 8))
    resized = traced.network.resized(policy.channels(traced.network))
    text = card(held(integer=["0"]), policy, resized, "toy", "task.py", "today")
    for line in (
        "| accuracy (test split, read once) | 0.9100 | 0.9010 (-0.90 points) |",
        "| latency, measured | 400 us | 100 us (0.250x) |",
        "| model file | 9.09 kB | 1.01 kB (1/9.0) |",
        "| 0 | conv2d 3x3 3->2 @6x6 | 50 % | 4 | 8 | yes |",
        "| 2 | conv2d 3x3 2->2 @4x4 | 0 % | 4 | 8 | no |",
    ):
        assert line in text
    assert "Verified." in text
    assert "quantization steps" not in text  # as a verification of before has it
    moved = replace(GOOD, largest_steps=1.25, steps=1.0, own_steps=0.5)
    text_of_steps = card(held(test=moved), policy, resized, "toy", "task.py", "today")
    assert "| largest difference of an output from it |  | 1.2 quantization steps |" in text_of_steps
    assert "latency" not in card(held(latency={}), policy, resized, "toy", "task.py", "today")
    elsewhere = replace(
        held(latency={}), search={"latency_ms": 2.0, "energy_mj": 8.0, "estimates": "Latency is estimated"}
    )
    text = card(elsewhere, policy, resized, "toy", "task.py", "today")
    assert "| latency, predicted, estimated |  | 2.00 ms |" in text
    assert "| energy, predicted |  | 8.00 mJ |" in text
    assert "Latency is estimated." in text
    said = {"latency_ms": 2.0, "energy_mj": 8.0, "baseline_latency_ms": 5.0, "baseline_energy_mj": 10.0}
    text = card(replace(held(latency={}), search=said), policy, resized, "toy", "task.py", "today")
    assert "| latency, predicted | 5.00 ms | 2.00 ms (0.400x) |" in text
    assert "| energy, predicted | 10.0 mJ | 8.00 mJ (0.800x) |" in text
    assert "NOT as promised: layers not run as integer kernels: 0" in card(
        held(not_fused=["0"]), policy, resized, "toy", "task.py", "today"
    )


def test_the_peak_of_both_files_stands_beside_the_predicted_one() -> None:
    from leanfront.compression.export.network_model import network_model

    network = chain(conv(3, 16, 8, kernel=3), conv(16, 4, 8))
    models = [network_model(network, uniform(network, bits, bits)) for bits in (8, 32)]
    found = measured_memory(*models, 1234.0)
    assert found["predicted_peak_memory_bytes"] == 1234.0
    floats = 8 * 8 * (3 + 16) * 4  # the input and what the first layer makes
    assert floats <= found["baseline_peak_memory_bytes"] < 3 * floats
    assert found["peak_memory_bytes"] > 0
    assert measured_memory(b"broken", models[1], 1.0) == {}


@pytest.mark.parametrize(("part", "said"), [("raspberry-pi-4", 0), ("this-machine", 1)])
def test_of_a_computed_part_it_is_not_said_that_another_file_was_priced(part: str, said: int) -> None:
    loaded: Any = SimpleNamespace(
        profile=load_profile(part),
        dialect=dialect_of("tflite"),
        config=SimpleNamespace(hardware=SimpleNamespace(threads=1, provider="cpu")),
    )
    row: Any = None
    heard: list[str] = []
    assert pick_module._measured(b"", b"", loaded, row, heard.append) == ({}, {})
    assert ["that of files of kind 'onnx'" in line for line in heard] == [True] * said
