"""Networks at the gate: right ones pass, and each planted fault is found and named."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.program import Arguments
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import Qdq, dialect_of
from leanfront.compression.export.template import ExportError
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.techniques.compress import Compressed
from leanfront.networks import Captured
from leanfront.search.gate import prove as gate
from leanfront.search.gate.policies import DEEP, FLOAT, INTEGER, MIXED, MODERATE, drawn
from leanfront.search.gate.prove import Check, GateError, Proof, prove
from leanfront.search.gate.shown import operations
from tests.networks import built, example
from tests.residual_networks import RESIDUAL
from tests.residual_networks import built as residual
from tests.variants import some

NAMES = (
    "captured network, batch of 1", "captured network, batch of 3", "uncut: file", "uncut: size",
    "uncut: kernels", "cut: channels out", "cut: file", "cut: size", "cut: kernels", "8 bits: file",
    "8 bits: size", "8 bits: kernels", "mixed: channels out", "mixed: file", "mixed: size", "mixed: kernels",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))


@cache
def network(name: str) -> tuple[nn.Module, Captured, Tensor]:
    model = residual(name) if name in RESIDUAL else built(name)
    return model, lf.capture(model, example(name)), example(name)


def failed(proof: Proof) -> dict[str, str]:
    return {check.name: check.sentence for check in proof.checks if check.passed is False}


@pytest.mark.parametrize("name", some(["Residual", "Depthwise", "UNet", "Sequence", "Odd", "Around"], 3))
def test_a_right_network_passes(name):
    proof = prove(*network(name))
    assert proof.passed, proof.failures
    assert tuple(check.name for check in proof.checks) == NAMES
    for check in proof.checks:
        assert check.passed or "nothing of this network can be cut" in check.sentence
        assert check.sentence
    proof.demand()


def altered(captured: Captured, change: Callable[[nn.Module], None]) -> Captured:
    module = copy.deepcopy(captured.module)
    change(module)
    return Captured(replace(captured.traced, module=module))


def test_a_captured_layer_that_differs_is_named():
    model, captured, given = network("Residual")

    def change(module: nn.Module) -> None:
        with torch.no_grad():
            module.get_submodule("stage2.0.conv2").weight[0, 0, 0, 0] += 0.5

    proof = prove(model, altered(captured, change), given)
    found = failed(proof)
    assert {"captured network, batch of 1", "captured network, batch of 3", "uncut: file"} <= set(found)
    assert "the first operation that differs is 'stage2.0.conv2' (Conv2d)" in found[NAMES[0]]
    assert "of the range" in found[NAMES[0]]
    with pytest.raises(GateError, match=r"stage2\.0\.conv2.*more: leanfront check"):
        proof.demand()


def test_a_captured_operation_that_differs_is_among_those_named():
    model, captured, given = network("Residual")

    def change(module: nn.Module) -> None:
        node = next(
            n
            for n in module.graph.nodes
            if n.op == "call_function" and n.target is torch.ops.aten.relu.default
        )
        node.target, node.kwargs = torch.ops.aten.tanh.default, {}
        module.recompile()

    found = failed(prove(model, altered(captured, change), given))
    # the activation of the first block is what changed
    assert "tanh" in found[NAMES[0]]


def test_a_file_that_differs_is_told_with_its_operation(monkeypatch):
    def wrong(self: Any, out: Any, call: Any) -> str:
        held = call.weights
        if call.layer.name == "stage2.0.conv2":
            held = replace(held, bias=held.bias + np.float32(0.5))
        return normal(self, out, replace(call, weights=held))

    normal = Qdq.bias
    monkeypatch.setattr(Qdq, "bias", wrong)
    found = failed(prove(*network("Residual")))
    assert set(found) == {"uncut: file", "cut: file", "8 bits: file", "mixed: file"}
    for name, sentence in found.items():
        assert "the first operation that differs is 'stage2.0.bn2' (BatchNorm2d)" in sentence or (
            "'add_1'" in sentence or ("'relu_1'" in sentence and name in ("8 bits: file", "mixed: file"))
        ), sentence
    assert "quantization steps" in found["8 bits: file"]


@pytest.mark.parametrize("to", ["onnx", "tensorrt"])
def test_in_half_precision_no_operation_is_named_that_only_rounds(to, monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1), nn.ReLU()]
    captured = lf.capture(nn.Sequential(*layers).eval(), x := torch.randn(1, 3, 32, 32))
    made = lf.compress(captured, lf.uniform(captured, 0.0, 16, 32 if to == "onnx" else 16), [x], to=to)
    inner = Compressed(made.module, made.network, made.policy)
    dialect, given = dialect_of(to), Arguments.of(x)
    assert operations(captured._template, inner, given, dialect).first == ""
    normal = type(dialect).bias

    def wrong(self: Any, out: Any, call: Any) -> str:
        held = call.weights
        if call.layer.name == "2":
            held = replace(held, bias=held.bias + np.float32(0.5))
        return normal(self, out, replace(call, weights=held))

    monkeypatch.setattr(type(dialect), "bias", wrong)
    found = operations(captured._template, inner, given, dialect).first
    assert found.startswith("the first operation that differs is '2' (Conv2d)"), found


def test_parts_of_1_are_right_to_so_many_digits_of_1() -> None:
    """An untrained detector's scores are 1e-5: engines compute a sigmoid to 1e-7."""
    torch.manual_seed(0)
    head = nn.Conv2d(3, 8, 3)
    nn.init.normal_(head.weight, std=0.05)
    nn.init.constant_(head.bias, -11.5)
    images = torch.randn(1, 3, 12, 12)
    captured = lf.capture(nn.Sequential(head, nn.Sigmoid()).eval(), images)
    made = lf.compress(captured, lf.uniform(captured, 0.0, 32, 32), [images])
    inner = Compressed(made.module, made.network, made.policy)
    assert operations(captured._template, inner, Arguments.of(images)).first == ""


def test_the_wrong_channels_are_noticed(monkeypatch):
    """The cut takes out other channels than those it names."""
    from leanfront import networks

    def first(*given: Any) -> Any:
        kept, held = normal(*given)
        layers = {name: (tuple(range(len(a))), tuple(range(len(b)))) for name, (a, b) in kept.items()}
        return layers, held

    normal = networks.kept_channels
    monkeypatch.setattr(networks, "kept_channels", first)
    found = failed(prove(*network("Residual")))
    assert {"cut: channels out", "mixed: channels out"} <= set(found)


def test_gains_in_the_wrong_order_are_named(monkeypatch):
    def swapped(*given: Any, **named: Any) -> Any:
        made = normal(*given, **named)
        for name, part in made.module.named_modules():
            if name.startswith("stage2") and isinstance(part, nn.BatchNorm2d):
                part.weight.data = part.weight.data.flip(0)
        return made

    from leanfront.networks import compress as normal

    monkeypatch.setattr(gate, "compress", swapped)
    found = failed(prove(*network("Residual")))
    assert "the first operation that differs is 'stage2." in found["cut: channels out"]
    assert "(BatchNorm2d)" in found["cut: channels out"]


def test_a_size_that_is_not_as_predicted(monkeypatch):
    normal = PolicyBatch.size_bytes
    monkeypatch.setattr(PolicyBatch, "size_bytes", lambda batch: normal(batch) + 600)
    found = failed(prove(*network("Residual")))
    assert {"uncut: size", "cut: size", "8 bits: size", "mixed: size"} == set(found)
    assert "predicted were" in found["uncut: size"]


def test_kernels_that_are_not_as_promised(monkeypatch):
    monkeypatch.setattr(Qdq, "promises_integers", lambda self, layer, policy: layer.name != "head")
    found = failed(prove(*network("Residual")))
    assert "uncut: kernels" in found
    assert "float layers run as integer kernels: head" in found["8 bits: kernels"]


def test_a_crash_is_a_check_that_failed(monkeypatch):
    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("it\nbroke")

    monkeypatch.setattr(gate, "file_of", broken)
    found = failed(prove(*network("Sequence")))
    assert found["uncut"] == "uncut: it cannot be compressed: RuntimeError: it broke"
    assert "cut: channels out" not in found


class Spread(nn.Module):
    """A softmax over channels that are cut, which a capture that knows no better lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.between, self.b = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def test_what_cannot_be_told_is_not_passed():
    torch.manual_seed(0)
    model = Spread().eval()
    captured = lf.capture(model, torch.zeros(1, 6))

    def change(module: nn.Module) -> None:
        node = next(n for n in module.graph.nodes if n.target is torch.ops.aten.tanh.default)
        node.target, node.args = torch.ops.aten.softmax.int, (*node.args, -1)
        module.recompile()

    model.between = nn.Softmax(-1)
    proof = prove(model, altered(captured, change), torch.zeros(1, 6))
    check = next(check for check in proof.checks if check.name == "cut: channels out")
    assert check.passed is None
    assert "mixes channels that go with others, in front of 'b' (Linear)" in check.sentence


def test_a_proof_is_remembered_by_content(tmp_path):
    model, captured, given = network("Sequence")
    said: list[str] = []
    first = prove(model, captured, given, log=said.append)
    again = prove(model, captured, given, log=said.append)
    assert again == first
    assert len(said) == 1
    (kept,) = (tmp_path / "cache" / "proofs").iterdir()
    assert json.loads(kept.read_text())["checks"][0]["passed"] is True
    kept.write_text("{")  # damaged: proved again
    assert prove(model, captured, given, log=said.append).passed
    assert len(said) == 2
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.a.weight[0, 0] += 1
    assert not prove(changed, captured, given, log=said.append).passed
    assert len(said) == 3
    assert not prove(changed, captured, given, log=said.append).passed  # failures are remembered as well
    assert len(said) == 3


def test_given_batches_are_what_ranges_are_taken_from(monkeypatch):
    seen: list[Any] = []
    normal = gate.compress

    def watched(captured: Any, policy: Any, calibration: Any = None) -> Any:
        seen.extend(calibration or ())
        return normal(captured, policy, calibration)

    monkeypatch.setattr(gate, "compress", watched)
    batches = [torch.rand(4, 5, 6) for _ in range(2)]
    assert prove(*network("Sequence"), batches=iter(batches)).passed
    assert [batch.args[0] is given for batch, given in zip(seen, batches * 2, strict=True)] == [True] * 4


def test_random_policies_fit_and_try_everything():
    network_of_branches = network("Around")[1].network
    rng = np.random.default_rng(0)
    for cut in (False, True):
        for pairs in ([FLOAT], [INTEGER], MIXED):
            for _ in range(5):
                policy = drawn(network_of_branches, rng, pairs, MODERATE if cut else ())
                policy.check(network_of_branches)
                assert bool(policy.absent) == cut
                assert any(layer.sparsity for layer in policy.there().values()) == cut
                bits = {(layer.weight_bits, layer.activation_bits) for layer in policy.there().values()}
                assert bits <= set(pairs)
    kinds = {
        layer.weight_bits
        for _ in range(30)
        for layer in drawn(network_of_branches, rng, MIXED, DEEP).values()
    }
    assert kinds == {4, 8, 32}


def test_a_file_is_not_written_that_is_not_its_network(tmp_path, monkeypatch):
    _, captured, _ = network("Residual")
    policy = lf.uniform(captured, sparsity=0.5, weight_bits=8, activation_bits=8)
    batch = torch.randn(16, 3, 8, 8)
    compressed = lf.compress(captured, policy, calibration=[batch])
    assert [torch.equal(one.args[0], batch[i : i + 1]) for i, one in enumerate(compressed.examples)] == [
        True
    ] * 4
    assert lf.export(compressed, tmp_path / "right.onnx").path.exists()
    normal = Qdq.bias

    def wrong(self: Any, out: Any, call: Any) -> str:
        shift = np.float32(2.0 if call.layer.name == "stage1.conv2" else 0.0)
        return normal(self, out, replace(call, weights=replace(call.weights, bias=call.weights.bias + shift)))

    monkeypatch.setattr(Qdq, "bias", wrong)
    with pytest.raises(ExportError, match=r"wrong.onnx is not written.*quantization steps.*first operation"):
        lf.export(compressed, tmp_path / "wrong.onnx")
    floats = lf.compress(captured, lf.uniform(captured))
    with pytest.raises(ExportError, match=r"of the range; the first operation that differs is 'stage1.bn2'"):
        lf.export(floats, tmp_path / "wrong.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]


class Tossed(nn.Module):
    """Doubles what it is off by, again and again (May 1976): rounding decides what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.norm.running_var.fill_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).sigmoid().mean((2, 3))
        for _ in range(40):
            x = 4 * x * (1 - x)
        return self.last(x)


def test_a_network_that_rounding_decides_is_judged_operation_by_operation(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, given = Tossed().eval(), torch.randn(1, 3, 8, 8)
    captured = lf.capture(model, given)
    proof = prove(model, captured, given)
    said = {check.name: check for check in proof.checks}["uncut: file"]
    assert said.largest > 1e-3
    assert said.passed
    assert "operation by operation; from end to end within" in said.sentence
    assert "where its own answers move by" in said.sentence

    def wrong(self: Any, out: Any, call: Any) -> str:
        shift = np.float32(1e-2 if call.layer.name == "last" else 0.0)
        return normal(self, out, replace(call, weights=replace(call.weights, bias=call.weights.bias + shift)))

    normal = Qdq.bias
    monkeypatch.setattr(Qdq, "bias", wrong)
    with pytest.raises(ExportError, match=r"of the range; the first operation that differs is 'last'"):
        lf.export(lf.compress(captured, lf.uniform(captured)), tmp_path / "wrong.onnx")


def test_a_search_and_a_check_stop_at_it(tmp_path, monkeypatch, capsys):
    from leanfront.search.cli import app
    from leanfront.search.study import prepare
    from tests.bright import CONFIG, TASK

    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    checks = (Check("a", True, 0.0, "of the range", "a holds"), Check("b", False, 7.0, "bytes", "b is off"))
    monkeypatch.chdir(tmp_path)
    assert prepare.Problem is not None
    monkeypatch.setattr(gate, "prove_task", lambda *given: Proof(checks))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["leanfront", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
        return (end.value.code or 0, *capsys.readouterr())

    code, out, err = run("check", ".")
    assert code == 1
    assert "proved         a holds" in out
    assert "FAILED         b is off" in out
    assert "b is off" in err
    code, out, _ = run("check", ".", "--format", "json")
    assert code == 1
    assert json.loads(out)["checks"][1]["largest"] == 7.0
    code, out, err = run("search", ".", "--run", "night")
    assert code == 1
    assert "GateError: the network cannot be searched, a check of it failed: b is off" in err
    assert not (tmp_path / "night" / "trials.csv").exists()


def test_a_check_that_passes_says_so(tmp_path, monkeypatch, capsys):
    from leanfront.search.cli import app
    from tests.bright import CONFIG, TASK

    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    monkeypatch.setattr("sys.argv", ["leanfront", "check", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    out, _ = capsys.readouterr()
    assert out.count("proved  ") >= 14
    assert "FAILED" not in out


def test_a_uniform_policy_of_floats_is_the_uncut_network():
    _, captured, _ = network("Sequence")
    assert Policy.uniform(captured.network, LayerPolicy()) == lf.uniform(captured)
    assert isinstance(captured.traced, Traced)


def test_what_is_rounded_on_the_way_is_a_millionth_off_too():
    from leanfront.search.gate.files import _nudging

    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(64, 64), nn.ReLU()))).eval()
    for part in model[::2]:
        nn.init.kaiming_normal_(part.weight)
    captured = lf.capture(model, torch.randn(1, 64))
    x = torch.randn(2000, 64)
    compressed = lf.compress(captured, lf.uniform(captured, 0.0, 8, 8), calibration=[x])
    before = compressed.module(x)
    with _nudging(compressed.module, 0), torch.no_grad():
        moved = compressed.module(x)
    assert not torch.equal(moved, before)  # some value lay between two steps
    assert torch.equal(compressed.module(x), before)


class Columns(nn.Module):
    """A table: each column has categories of its own, some of which another one has not."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(count, 8) for count in (10, 20, 5)])
        self.deep = nn.Sequential(nn.Linear(28, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, numbers: Tensor, kinds: Tensor) -> Tensor:
        looked_up = [table(kinds[:, place]) for place, table in enumerate(self.tables)]
        return self.deep(torch.cat([*looked_up, numbers], dim=1))


def test_columns_of_a_table_keep_their_own_values():
    torch.manual_seed(0)
    model, example = Columns().eval(), (torch.randn(1, 4), torch.tensor([[3, 17, 2]]))
    assert not prove(model, lf.capture(model, example), example).failures
