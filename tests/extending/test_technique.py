"""A technique from outside, in the task's file alone: zeros in the weights, which only the size rewards."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.policy.space import Space
from leanfront.compression.policy.technique import _REGISTERED, SpaceError
from leanfront.search.config import load_config
from leanfront.search.samplers.cascade.encoding import Encoding
from leanfront.search.study.prepare import load
from tests.bright import CONFIG, TASK
from tests.search.cli.test_cli import run_main

ZEROS = '''
from torch.nn.utils import parametrize

from leanfront.compression.policy.technique import Decision, Technique, register


class Mask(torch.nn.Module):
    """A parametrization: the smallest weights are 0, and stay so in training."""

    def __init__(self, weight, share):
        super().__init__()
        smallest = weight.detach().abs().flatten().argsort(stable=True)[: round(share * weight.numel())]
        self.register_buffer("mask", torch.ones(weight.numel()).index_fill(0, smallest, 0.0).view_as(weight))

    def forward(self, weight):
        return weight * self.mask


class Zeros(Technique):
    """Of each layer the share of its weights that are 0. They take no room in a file that is zipped."""

    name = "zeros"

    def decisions(self, network, profile, options):
        shares = (0.0, 0.5, 0.9)
        return tuple(
            Decision(f"zeros/{layer.name}", shares, tuple(map(str, shares)), 0.0, (layer.name,), "ordered")
            for layer in network.layers
        )

    def apply(self, traced, wanted, policy):
        for layer in wanted.layers:
            if share := policy[layer.name].value("zeros"):
                module = traced.module.get_submodule(layer.name)
                parametrize.register_parametrization(module, "weight", Mask(module.weight, share))
        return traced

    def size_change(self, batch, values):
        return -(values * batch.weight_counts * batch.weight_bits / 8).sum(axis=0).astype(int)


register(Zeros())
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "task.py").write_text(TASK + ZEROS)
    config = CONFIG.replace("trials = 4", 'trials = 6\nobjectives = ["accuracy", "size_bytes"]')
    (tmp_path / "search.toml").write_text(config)
    yield tmp_path
    _REGISTERED.pop("zeros", None)


def space_of(folder: Path) -> Space:
    return load(load_config(folder / "search.toml")).space


def zeros_in(path: Path) -> int:
    """Zeros among the weights of a file: initializers with more than one dimension."""
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return sum(int((array == 0).sum()) for array in stored if array.ndim > 1)


@pytest.mark.parametrize("sampler", ["cascade", "tpe"])
def test_it_is_searched_shown_and_picked(
    folder: Path, sampler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run"
    settings = ["--run", str(run), "--set", f"search.sampler={sampler}", "--set", "space.sparsity=[0.0]"]
    settings += ["--set", "space.weight_bits=[8]", "--set", "space.activation_bits=[8]"]
    settings += ["--set", "pick.epochs=1"]
    assert run_main(monkeypatch, "search", str(folder / "search.toml"), *settings) == 0
    capsys.readouterr()
    assert run_main(monkeypatch, "front", str(run), "--format", "json") == 0
    front = json.loads(capsys.readouterr().out)["front"]
    shares = {
        point["trial"]: [layer.get("more", {}).get("zeros", 0.0) for layer in point["policy"].values()]
        for point in front
    }
    assert {share for found in shares.values() for share in found} > {0.0}
    assert run_main(monkeypatch, "front", str(run)) == 0
    assert "zeros" in capsys.readouterr().out
    assert run_main(monkeypatch, "report", str(run)) == 0
    assert "Zeros" in (run / "report.html").read_text()
    most = max(shares, key=lambda trial: sum(shares[trial]))
    assert run_main(monkeypatch, "pick", str(run), "--trial", str(most)) in (0, 1)
    exported = run / "exported" / str(most)
    assert Policy.from_json((exported / "policy.json").read_text()).to_dict() == next(
        point["policy"] for point in front if point["trial"] == most
    )
    assert "| zeros |" in (exported / "card.md").read_text()
    zeros, none = (zeros_in(exported / name) for name in ("model.onnx", "baseline.onnx"))
    assert zeros >= sum(int(share * count) for share, count in zip(shares[most], (72, 576, 16), strict=True))
    assert none == 0
    assert max(shares[min(front, key=lambda point: point["size_bytes"])["trial"]]) == 0.9
    if sampler == "cascade":
        assert "zeros/0,2,0.9," in (run / "sensitivities.csv").read_text()


def test_a_space_with_it_counts_encodes_and_prices(folder: Path) -> None:
    space = space_of(folder)
    names = [decision.name for decision in space.decisions]
    assert names[-3:] == ["zeros/0", "zeros/2", "zeros/6"]
    _REGISTERED.pop("zeros")
    assert space.size == 27 * space_of_plain(space).size
    load(load_config(folder / "search.toml"))  # registered again
    encoding, rng = Encoding(space), np.random.default_rng(0)
    codes = encoding.random(50, rng)
    batch = space.batch(codes)
    canonical = encoding.canonical(codes)
    assert (canonical[-3:] == codes[-3:]).all()
    for column in range(50):
        policy = batch.policy(column)
        assert Policy.from_json(policy.to_json()) == policy
        assert space.params_of(policy) == encoding.params(encoding.of(policy))
        assert [policy[name].value("zeros") for name in ("0", "2", "6")] == [
            (0.0, 0.5, 0.9)[code] for code in codes[-3:, column]
        ]
    without = codes.copy()
    without[-3:] = 0
    saved = space.batch(without).size_bytes() - batch.size_bytes()
    expected = (batch.more["zeros"] * batch.weight_counts * batch.weight_bits / 8).sum(axis=0)
    assert saved == pytest.approx(expected, abs=1)
    changed = space.mutated(space.reference, rng, 40)
    assert any(layer.more for layer in changed.values())


def space_of_plain(space: Space) -> Space:
    """The same without any technique from outside."""
    from leanfront.hw_profiles import load_profile

    plain = Space(space.network, load_profile("toy"), (0.0, 0.25, 0.5), (4, 8, 32), (8, 32))
    assert not plain.others
    return plain


def test_without_it_a_policy_that_wants_it_is_refused(folder: Path) -> None:
    from leanfront.compression.techniques.compress import compress

    traced = load(load_config(folder / "search.toml")).traced
    policy = Policy.uniform(traced.network, LayerPolicy(more=(("zeros", 0.5),)))
    weight = compress(traced, policy).module.get_submodule("2").weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    _REGISTERED.pop("zeros")
    with pytest.raises(PolicyError, match=r"'zeros', which is not registered.*task.*sparsity, branch, bits"):
        compress(traced, policy)


def test_it_must_offer_to_leave_a_layer_as_it_is(folder: Path) -> None:
    (folder / "task.py").write_text(TASK + ZEROS.replace("(0.0, 0.5, 0.9)", "(0.5, 0.9)"))
    with pytest.raises(ValueError, match="must offer 0") as error:
        space_of(folder)
    assert isinstance(error.value.__cause__, SpaceError)


def test_what_it_adds_to_a_policy_is_said_once() -> None:
    plain = Policy.of({"a": LayerPolicy(0.5, 8)})
    other = Policy.of({"a": LayerPolicy(0.5, 8, more=(("z", 0),))})
    assert plain == other
    assert "more" not in other.to_json()
    both = LayerPolicy(more={"b": 1, "a": 0.5})
    assert both == LayerPolicy(more=(("a", 0.5), ("b", 1.0)))
    assert Policy.of({"a": both}).digest != Policy.of({"a": LayerPolicy()}).digest
    with pytest.raises(PolicyError, match="wrong type"):
        Policy.from_json('{"a": {"more": {"z": "much"}}}')
    with pytest.raises(PolicyError, match="finite"):
        LayerPolicy(more={"z": float("inf")})
