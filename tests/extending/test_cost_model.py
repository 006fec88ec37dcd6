"""A cost model of one's own, with a section of its own in a profile: multiply-accumulates at one speed.

What to write, in the task's file: the section, a ``Section`` with ``register_section``, whose fields are the
numbers of the table in the profile; and the model, a ``CostModel`` with ``costs_of(section)``, that prices
one policy (``cost``), many at once (``costs``), and layer by layer (``layers``). A profile says ``model =
"npu"`` and has a table [npu].
"""

from pathlib import Path

import pytest

from tests.extending.walk import command, walked

ADDED = '''
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


MACS = 36 * (8 * 9 + 8 * 8 * 9) + 16


@pytest.mark.slow  # for every change test_together.py
def test_it_prices_a_search(tmp_path: Path) -> None:
    (tmp_path / "my-npu.toml").write_text(PROFILE)
    walk = walked(tmp_path, ADDED, "hardware.profile=my-npu.toml", wish=("--prefer", "latency_ms"))
    done = [row for row in walk.trials if row.state == "complete"]
    assert len(done) == 4
    for row in done:
        assert 0.5 < row.latency_ms <= 0.5 + MACS / 10_000 + 1e-9
        assert row.energy_mj == pytest.approx(2.0 * row.latency_ms)
    baseline, fastest = (
        walk.front["baseline"],
        min(walk.front["front"], key=lambda point: point["latency_ms"]),
    )
    assert baseline["latency_ms"] == pytest.approx(0.5 + MACS / 10_000)
    assert fastest["latency_ms"] == min(row.latency_ms for row in done) < baseline["latency_ms"]
    assert f"{baseline['latency_ms']:.2f} ms" in walk.table
    assert "profile &#39;my-npu&#39; are assumed (supported, channel_multiple, power_w, npu" in walk.page
    before, after = baseline["latency_ms"], fastest["latency_ms"]
    said = f"| latency, predicted, estimated | {before:.2f} ms | {after:.2f} ms ({after / before:.3f}x) |"
    assert said in walk.card
    assert "numbers of profile 'my-npu' are assumed (supported, channel_multiple, power_w, npu" in walk.card


@pytest.mark.parametrize(
    "words", [("profile", "show", "my-npu.toml"), ("cost", "network.csv", "--profile", "my-npu.toml")]
)
def test_commands_that_read_no_task_say_which_models_there_are(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-npu.toml").write_text(PROFILE)
    Path("network.csv").write_text("")
    models = "'dataflow', 'measured', 'microcontroller', 'overlay' or 'roofline'"
    said = f"model: input should be {models}, not 'npu'"
    assert command(*words, ends=2) == f"error: my-npu.toml: {said}\n"
