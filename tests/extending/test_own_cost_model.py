"""A cost model with a section of its own in a profile, in one file that the source knows nothing of."""

import csv
import json
import sys
from pathlib import Path

import pytest

from leanfront.hw_profiles import (
    HardwareProfile,
    ProfileError,
    Section,
    load_profile,
    register_section,
    section,
)
from leanfront.latency_models import registry
from leanfront.latency_models.cost import TableError
from leanfront.latency_models.registry import model_of
from leanfront.search.cli.app import app
from tests.bright import CONFIG, TASK

NPU = '''

from dataclasses import dataclass

import numpy as np

from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, Section, register_section
from leanfront.latency_models.cost import CostArrays, CostModel, LayerCost, costs_by_depth
from leanfront.latency_models.memory import peak_bytes, tensor_bytes
from leanfront.latency_models.registry import costs_of, section_of


@register_section("npu")
class Npu(Section):
    """A part that does so many multiply-accumulates a ms, whatever they are of."""

    macs_per_ms: float
    call_ms: float


@costs_of(Npu)
@dataclass(frozen=True)
class NpuModel(CostModel):
    profile: HardwareProfile

    def cost(self, network, policy):
        return self._costs(PolicyBatch.one(network, policy)).first("modelled", self.profile.estimated, {})

    def costs(self, batch):
        return costs_by_depth(batch, self._costs)

    def _costs(self, batch):
        npu = section_of(self.profile, Npu)
        latency_ms = npu.call_ms + batch.macs.sum(axis=0) / npu.macs_per_ms
        return CostArrays(
            latency_ms,
            latency_ms * self.profile.power_w,
            batch.size_bytes().astype(float),
            np.ones(batch.count, bool),
            peak_bytes(batch, tensor_bytes(batch)),
            self.profile.memory_bytes,
        )

    def layers(self, network, policy):
        rate = section_of(self.profile, Npu).macs_per_ms
        times = [(layer.name, layer.shape.macs / rate) for layer in network.layers]
        return tuple(LayerCost(name, ms, ms * self.profile.power_w, "modelled") for name, ms in times)
'''

PROFILE = """
name = "my-npu"
description = "An invented accelerator"
kind = "npu"
model = "npu"
supported = [[32, 32], [8, 8], [4, 8]]
channel_multiple = 1
power_w = 2.0

[npu]
macs_per_ms = 10_000.0
call_ms = 0.5

[sources]
supported = { status = "assumed", from = "invented" }
channel_multiple = { status = "assumed", from = "invented" }
power_w = { status = "assumed", from = "invented" }
npu = { status = "assumed", from = "invented" }
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it; ours registers when a cost is first asked for."""
    model_of(load_profile("toy"))
    monkeypatch.setattr(section, "_SECTIONS", dict(section._SECTIONS))
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "task.py").write_text(TASK + NPU)
    (tmp_path / "my-npu.toml").write_text(PROFILE)
    (tmp_path / "search.toml").write_text(CONFIG.replace('"toy"', '"my-npu.toml"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["leanfront", "search", "search.toml", "--run", "night"])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    return tmp_path / "night"


def test_a_search_is_priced_by_a_model_from_the_task_file(searched: Path) -> None:
    with (searched / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "complete"]
    assert len(rows) == 4
    macs = 36 * (8 * 9 + 8 * 8 * 9) + 16
    for row in rows:
        latency_ms = float(row["latency_ms"])
        assert 0.5 < latency_ms <= 0.5 + macs / 10_000 + 1e-9
        assert float(row["energy_mj"]) == pytest.approx(2.0 * latency_ms)
    baseline = json.loads((searched / "environment.json").read_text())["baseline"]
    assert baseline["latency_ms"] == pytest.approx(0.5 + macs / 10_000)
    profile = load_profile(searched.parent / "my-npu.toml")
    assert profile.section.model_dump() == {"macs_per_ms": 10_000.0, "call_ms": 0.5}
    assert {"npu.macs_per_ms", "npu.call_ms"} <= set(profile.numbers)


def fields(**more: object) -> dict[str, object]:
    assumed = {"status": "assumed", "from": "invented"}
    plain = {"name": "p", "description": "d", "kind": "cpu", "supported": [[8, 8]], "channel_multiple": 1}
    return {**plain, "power_w": 1.0, "sources": {"supported": assumed, "channel_multiple": assumed,
            "power_w": assumed, "lone": assumed}, **more}  # fmt: skip


def test_sections_are_checked_and_need_a_cost_model() -> None:
    @register_section("lone")
    class Lone(Section):
        wait_ms: float
        turns: float
        pure_numbers = frozenset({"turns"})

        def check(self, part: HardwareProfile) -> None:
            if part.channel_multiple > 1:
                raise ValueError("lone parts know no multiples")

    table = {"wait_ms": 1.0, "turns": 2.0}
    profile = HardwareProfile.of(fields(model="lone", lone=table), "x")
    with pytest.raises(TableError, match=r"costs of profile 'p' are lone; computed are .*roofline"):
        model_of(profile)
    for changes, sentence in (
        ({"lone": table, "channel_multiple": 2}, "lone parts know no multiples"),
        ({"lone": {**table, "wait": 1.0}}, "lone.wait is no field .* did you mean wait_ms"),
        ({}, r"needs a table \[lone\]"),
        ({"lone": table, "roofline": {}}, r"does not use the table \[roofline\]"),
        ({"lone": table, "model": "loan"}, "model: input should be .*'measured', .* or .*, not 'loan'"),
    ):
        with pytest.raises(ProfileError, match=sentence):
            HardwareProfile.of(fields(**{"model": "lone", **changes}), "x")
    with pytest.raises(ValueError, match=r"model 'lone' is taken by .*Lone"):
        register_section("lone")(Section)
    with pytest.raises(ValueError, match="'name' is a field of every profile"):
        register_section("name")(Lone)
