"""A search for a small zipped file: zeros are offered, shown, picked, counted; elsewhere they are refused."""

import json
import zlib
from pathlib import Path

import pytest

from leanfront.compression.policy.space import Space
from leanfront.compression.policy.technique import SpaceError
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.search.config import ConfigError, load_config, parse_config
from leanfront.search.samplers.cascade.encoding import Encoding
from leanfront.search.study.prepare import load
from tests.bright import CONFIG, TASK
from tests.extending.walk import walked
from tests.latency_models.fpga.fpga_parts import dataflow
from tests.networks import traced_network

OBJECTIVES = 'search.objectives=["accuracy", "zipped_bytes"]'

UNEVEN = """
_even = task


def task(images: int = 240) -> Task:
    found, generator = _even(images=images), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (found.model[0], found.model[2]):
            layer.weight.mul_(1 + 0.5 * torch.randn(layer.weight.shape, generator=generator))
    return found
"""
"""The weights of the task are all alike, which no zip sees twice."""


@pytest.mark.slow
def test_it_is_searched_for_shown_picked_and_held_against_zlib(tmp_path: Path) -> None:
    settings = [OBJECTIVES, "search.trials=8", "space.zeros=[0.0, 0.9]", "limits.zipped_bytes=1e6"]
    settings += ["space.sparsity=[0.0]", "space.weight_bits=[8]", "space.activation_bits=[8]"]
    walk = walked(tmp_path, UNEVEN, *settings, wish=("--prefer", "zipped_bytes"))
    smallest = min(walk.front["front"], key=lambda point: point["zipped_bytes"])
    assert walk.front["baseline"]["zipped_bytes"] > smallest["zipped_bytes"]
    assert any(layer.get("more", {}).get("unstructured") for layer in smallest["policy"].values())
    assert "unstructured" in walk.table
    assert "zipped size" in walk.table
    size = walk.verification["size"]
    assert size["zipped_bytes"] == len(zlib.compress((walk.exported / "model.onnx").read_bytes()))
    assert size["zeros"] >= size["promised_zeros"] > 0
    promised = walk.verification["search"]["objectives"]["zipped_bytes"]["picked"]
    assert abs(promised / size["zipped_bytes"] - 1) < 0.2  # a file of two kilobytes
    assert "| weights that are 0, counted in the file |" in walk.card
    assert "| the file zipped |" in walk.card
    assert json.loads((walk.exported / "policy.json").read_text()) == smallest["policy"]


def space_of(folder: Path, *settings: str) -> Space:
    (folder / "task.py").write_text(TASK)
    (folder / "search.toml").write_text(CONFIG)
    return load(load_config(folder / "search.toml", settings)).space


def test_zeros_are_offered_only_where_something_pays() -> None:
    network = traced_network("Residual").network

    unrolled = dataflow(unrolled_zeros=True, pattern="unstructured")

    def space(profile: str | HardwareProfile, zeros: list[float] | None, zipped: bool) -> Space:
        part = load_profile(profile) if isinstance(profile, str) else profile
        return Space(network, part, [0.0, 0.5], [8], [8], True, zeros, zipped)

    for profile, zeros, zipped, kinds in (
        ("toy", None, False, set()),
        ("toy", None, True, {"unstructured"}),
        ("toy", [0.0], True, set()),
        ("jetson-orin-nano", None, False, {"2:4"}),
        ("jetson-orin-nano", [], False, set()),
        ("jetson-orin-nano", None, True, {"2:4", "unstructured"}),
        ("jetson-orin-nano", [0.0, 0.8], True, {"unstructured"}),
        ("x86-avx512-vnni", None, False, set()),
        ("x86-avx512-vnni", [0.0, 0.8], False, {"unstructured"}),
        ("x86-avx512-vnni", None, True, {"unstructured"}),
        (dataflow(), None, False, set()),
        (unrolled, None, False, {"unstructured"}),
        (unrolled, [0.0, 0.5], False, {"unstructured"}),
    ):
        found = space(profile, zeros, zipped)
        assert {decision.kind for decision in found.zeros} == kinds, (profile, zeros, zipped)
        said = "not onnxruntime, which runs the file as if it were dense" in found.left_out
        assert said == (profile == "x86-avx512-vnni" and bool(kinds))
        assert any(layer.more for policy in found.seeds() for layer in policy.values()) == bool(kinds)
    assert not any(decision.about == "stem.0" for decision in space("jetson-orin-nano", None, False).zeros)
    for profile, zeros, match in (
        ("toy", [0.5], r"has 0.5, but nothing pays .* 'toy': .*zipped_bytes .*gains from them: jetson-agx"),
        ("jetson-orin-nano", [0.0, 0.8], "only pattern '2:4' pays, with shares such as 0.5; add one"),
    ):
        with pytest.raises(SpaceError, match=match):
            space(profile, zeros, False)


def test_a_configuration_that_asks_for_what_nothing_pays_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"space\.zeros has 0\.5, but nothing pays"):
        space_of(tmp_path, "space.zeros=[0.5]")
    assert space_of(tmp_path, "space.zeros=[0.5]", "limits.zipped_bytes=5000").zeros


def test_heirs_have_at_least_the_zeros_of_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    encoding = Encoding(space_of(tmp_path, OBJECTIVES))
    parent = encoding.uncompressed()
    row = encoding.names.index("unstructured/2")
    parent[row] = 1
    children = parent[:, None].repeat(3, axis=1)
    children[row] = (0, 1, 3)
    assert encoding.keep_nothing_else(children, parent).tolist() == [False, True, True]


def test_run_folders_of_earlier_versions_have_the_digest_that_they_had() -> None:
    plain = parse_config({"task": {"file": "task.py"}})
    assert "space.zeros" not in plain.shared
    assert "limits.zipped_bytes" not in plain.shared
    asked = parse_config({"task": {"file": "task.py"}, "space": {"zeros": [0.5, 0.0, 0.5]}})
    assert asked.space.zeros == (0.0, 0.5)
    assert asked.digest != plain.digest
    with pytest.raises(ConfigError, match=r"space\.zeros.*less than 1"):
        parse_config({"task": {"file": "task.py"}, "space": {"zeros": [1.0]}})
