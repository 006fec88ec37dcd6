"""The cost model of a search on a tiny network, end to end: measured, calibrated, kept, used again."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leanfront.latency_models.measured.space_table
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.network_model import network_model
from leanfront.compression.export.walk import random_builder
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.energy import Meter
from leanfront.latency_models.kernel_table.table import (
    CALL,
    cache_folder,
    load_table,
    table_path,
    this_device,
)
from leanfront.latency_models.measured import building
from leanfront.latency_models.measured.building import cost_model, file_cost_model
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.policy_draws import Cover, draw, spread_evenly
from leanfront.latency_models.measured.validation import validate
from tests.latencies import error_in_common_units, small_tables


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def traced() -> Traced:
    return trace(Tiny().eval(), torch.zeros(1, 3, 24, 24))


@pytest.fixture(scope="module")
def space(traced: Traced) -> Space:
    return Space(traced.network, load_profile("this-machine"), [0.0, 0.25, 0.5], [4, 8, 32], [8, 32])


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tables(monkeypatch, tmp_path, 16, 24)


def test_a_search_space_is_measured_once_and_predicted(traced: Traced, space: Space) -> None:
    profile = load_profile("this-machine")
    lines: list[str] = []
    model = cost_model(space, partial(random_builder, traced), profile, 1, lines.append)
    assert any("kernels measured" in line for line in lines)
    samples = model.validation.n  # type: ignore[attr-defined]
    assert 16 <= samples <= 17  # the uncompressed network is always among them
    rng = np.random.default_rng(3)
    policies = [space.random(rng) for _ in range(60)]
    costs = [model.cost(space.resized(policy), policy) for policy in policies]
    assert {cost.kind for cost in costs} == {"calibrated"}  # every kernel of the space was measured
    floats, integers = (space.uniform(0.0, pair) for pair in ((32, 32), (8, 8)))
    assert model.cost(traced.network, integers).size_bytes < model.cost(traced.network, floats).size_bytes

    lines.clear()
    again = cost_model(space, partial(random_builder, traced), profile, 1, lines.append)
    assert lines == []  # nothing is measured a second time
    for policy, cost in zip(policies, costs, strict=True):
        assert again.cost(space.resized(policy), policy) == cost

    found = validate(again, space, 8)  # type: ignore[arg-type]
    assert found.accuracy.n == 8
    assert error_in_common_units((row.predicted_ms, row.measured_ms) for row in found.rows) < 0.25


def test_a_damaged_cache_is_measured_anew(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space of two networks, too few for a correction; then the file of contexts as another version, or a
    full disk, left it; then a table without the entry that every network needs."""
    profile = load_profile("this-machine")
    builder = partial(random_builder, traced)
    small = Space(traced.network, profile, [0.0], [8, 32], [8, 32])
    monkeypatch.setattr(leanfront.latency_models.measured.space_table, "DRAWS", 1)
    monkeypatch.setattr(leanfront.latency_models.measured.space_table, "SURPRISE_SECONDS", 0.0)
    policy = small.uniform(0.0, (8, 8))
    first = cost_model(small, builder, profile, 1).cost(traced.network, policy)
    assert first.kind == "measured"
    (contexts,) = cache_folder().glob("networks/*/contexts-*")
    for damage in ("{}", "", contexts.read_text().replace('"columns":[[', '"columns":[[99999,')):
        contexts.write_text(damage)
        assert cost_model(small, builder, profile, 1).cost(traced.network, policy).latency_ms > 0
    path = table_path(this_device())
    table = load_table(path, this_device())
    table.only(set(table) - {CALL}).save(path)
    assert cost_model(small, builder, profile, 1).cost(traced.network, policy).latency_ms > 0


def test_energy_counters_that_stand_still_are_not_believed(
    traced: Traced, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    for name, text in (("name", "package-0"), ("energy_uj", "7"), ("max_energy_range_uj", "1000")):
        (tmp_path / "intel-rapl:0" / name).write_text(text)
    meter = Meter.find(tmp_path)
    assert isinstance(meter, Meter)
    monkeypatch.setattr(Meter, "find", lambda: meter)
    monkeypatch.setattr(Meter, "measure", lambda self, run: (self.between_mj((7,), self.read_uj()), 1.0))
    profile, lines = load_profile("this-machine"), list[str]()
    structure = Structure(traced.network, random_builder(traced))
    kept = building._CachePaths.of(space, this_device())
    found = building._with_power(structure, space, profile, space.seeds()[:1], kept, lines.append)
    assert found == profile
    assert "the counter did not move" in lines[0]


def test_a_file_is_timed_as_a_whole(traced: Traced, space: Space) -> None:
    policy = space.uniform(0.0, (8, 8))
    model = file_cost_model(traced.network, policy, load_profile("this-machine"), network_model)
    cost = model.cost(traced.network, policy)
    assert cost.kind == "measured"
    rows = model.layers(traced.network, policy)
    assert sum(row.latency_ms for row in rows) == pytest.approx(cost.latency_ms, rel=1e-6)
    assert {"a", "b", "head"} <= {row.name for row in rows}


def test_a_roofline_profile_measures_nothing(traced: Traced, space: Space) -> None:
    lines: list[str] = []
    model = cost_model(space, partial(random_builder, traced), load_profile("toy"), 1, lines.append)
    assert model.cost(traced.network, space.uniform(0.0, (8, 8))).kind == "modelled"
    assert lines == []


def test_cover_ends_when_everything_was_shown(space: Space) -> None:
    rng = np.random.default_rng(0)
    cover = Cover(space)
    wanted, shown = cover.left, []
    while not cover.complete:
        shown.append(cover.next(rng))
        cover.note(shown[-1])
        assert len(shown) < 200
    assert len(shown) < wanted  # a policy shows many combinations at once
    seen = {(p["a"].sparsity, p["b"].sparsity, p["b"].integer) for p in shown}
    assert len(seen) == 3 * 3 * 2


def test_draws_reach_both_ends_of_the_space(space: Space) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(space, rng) for _ in range(200)]
    assert any(all(p.sparsity == 0 for p in policy.values()) for policy in drawn)
    assert any(all(policy[name].sparsity == 0.5 for name in ("a", "b")) for policy in drawn)
    assert any(all(p.integer for p in policy.values()) for policy in drawn)
    assert any(not any(p.integer for p in policy.values()) for policy in drawn)


def test_spread_evenly_takes_both_ends_and_no_cluster() -> None:
    latencies = [1.0, *[1.001 + 0.0001 * i for i in range(50)], 2.0, 4.0, 8.0]
    chosen = [latencies[i] for i in spread_evenly(latencies, 5)]
    assert {1.0, 2.0, 4.0, 8.0} < set(chosen)
    assert spread_evenly([3.0, 1.0], 5) == [1, 0]
