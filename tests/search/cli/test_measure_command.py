"""``leanfront profile measure`` and ``validate``, and a search's small validation, on a tiny network."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import leanfront.latency_models.measured.building
from leanfront.compression.export.network_model import network_model
from leanfront.compression.export.walk import random_builder
from leanfront.hw_profiles import ProfileError, load_profile
from leanfront.latency_models import TableError
from leanfront.latency_models.benchmark.fill import doubtful
from leanfront.latency_models.kernel_table.table import LatencyTable, load_table, table_path, this_device
from leanfront.latency_models.measured.building import cost_model
from leanfront.latency_models.measured.first_validation import first_validation
from leanfront.latency_models.measured.profile_table import measure_general
from leanfront.latency_models.measured.reference_networks import reference_networks
from leanfront.latency_models.providers import PROVIDERS, provider_of
from leanfront.search.cli.app import app
from leanfront.search.config import ConfigError, load_config
from leanfront.search.study.prepare import Loaded, load
from tests.latencies import error_in_common_units, small_tables

TASK = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset
from leanfront import Task

def task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    ).eval()
    data = TensorDataset(torch.rand(8, 1, 12, 12), torch.arange(8) % 2)
    return Task(model=model, example_input=torch.zeros(1, 1, 12, 12), train=data, search=data, test=data)
"""
CONFIG = """
[task]
file = "task.py"
[space]
sparsity = [0.0, 0.5]
weight_bits = [8, 32]
activation_bits = [8, 32]
"""


@pytest.fixture(autouse=True)
def small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tables(monkeypatch, tmp_path, 12, 20)
    # tests share their machine: any moment counts as a quiet one, and none is waited for
    monkeypatch.setattr("leanfront.latency_models.benchmark.timing.QUIET", 100.0)
    monkeypatch.setattr("leanfront.latency_models.benchmark.timing.noise", lambda timings: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    return tmp_path / "search.toml"


@pytest.fixture
def loaded(config: Path) -> Loaded:
    return load(load_config(config))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_measure_and_validate_for_a_configuration(config: Path) -> None:
    first = run("profile", "measure", "this-machine", "--config", config, "--format", "json")
    (measured,) = json.loads(first.stdout)
    assert measured["measured"] > 5
    assert measured["reused"] == 0
    assert 10 <= measured["networks"] <= 12
    assert measured["mape"] >= 0
    assert Path(measured["table"]).exists()
    assert first.exit_code == (1 if measured["noise"] else 0)

    (again,) = json.loads(
        run("profile", "measure", "this-machine", "--config", config, "--format", "json").stdout
    )
    assert again["measured"] <= measured["disturbed"]  # what was measured well is not measured again
    found = run(
        "profile", "validate", "this-machine", "--config", config, "--policies", 4, "--format", "json"
    )
    answer = json.loads(found.stdout)
    assert set(answer) == {"n", "mape", "within_10_percent", "spearman", "noise", "rows"}
    assert answer["n"] == len(answer["rows"]) == 4
    for row in answer["rows"]:
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
        assert row["policy"]["0"]["weight_bits"] in (8, 32)
    assert error_in_common_units((row["predicted_ms"], row["measured_ms"]) for row in answer["rows"]) < 0.3
    errors = [abs(row["error"]) for row in answer["rows"]]
    assert answer["mape"] == pytest.approx(sum(errors) / 4)
    shown = run("profile", "validate", "this-machine", "--config", config, "--policies", 4).stdout
    assert "its layers" in shown
    assert "share of latency" in shown
    assert "Spearman" in shown


def test_the_small_validation_is_measured_once(loaded: Loaded) -> None:
    builder = partial(random_builder, loaded.traced)

    def model() -> Any:
        return cost_model(loaded.space, builder, loaded.profile, 1)

    lines: list[str] = []
    first = first_validation(model(), loaded.space, lines.append)
    assert any("measuring 8 networks" in line for line in lines)
    assert first["n"] == len(first["rows"]) == 8
    assert 10 <= first["held_out"]["n"] <= 12
    lines.clear()
    assert first_validation(model(), loaded.space, lines.append) == first
    assert lines == [] or first["mape"] > 0.1
    path = leanfront.latency_models.measured.building.validation_path(loaded.space, this_device(1))
    path.write_text(json.dumps(first | {"mape": 0.2}))
    first_validation(model(), loaded.space, lines.append)
    assert "20% off on average" in lines[-1]
    path.write_text("{")  # damaged: measured anew
    assert first_validation(model(), loaded.space, lines.append)["n"] == 8
    lines.clear()
    cost_model(
        loaded.space, partial(random_builder, loaded.traced), loaded.profile, 1, lines.append, again=True
    )
    assert any("kernels measured" in line for line in lines)
    assert not path.exists()  # other predictions: to be validated anew


def test_disturbed_entries_are_measured_at_the_next_occasion(loaded: Loaded) -> None:
    builder = partial(random_builder, loaded.traced)
    cost_model(loaded.space, builder, loaded.profile, 1)
    device = this_device(1)
    table = load_table(table_path(device), device)
    key = next(key for key in table if "Conv" in key)
    right = table[key]
    wrong = dataclasses.replace(right, median_ms=7.5, quiet=0.1)
    table.with_entries({key: wrong}).save(table_path(device))
    assert doubtful(load_table(table_path(device), device), [key]) == [key]
    for noisy_too, healed in ((True, False), (False, True)):  # a search goes on with it, measuring does not
        cost_model(
            loaded.space, partial(random_builder, loaded.traced), loaded.profile, 1, noisy_too=noisy_too
        )
        now = load_table(table_path(device), device)[key].median_ms
        assert (now < 1.0) == healed


def test_a_profile_that_is_not_measured_here_is_refused(config: Path) -> None:
    for words in (("measure", "toy"), ("validate", "toy", "--config", config)):
        error = run("profile", *words).exception
        assert isinstance(error, ProfileError)
        assert "profile new NAME --like this-machine" in str(error)


def test_a_provider_that_is_not_there() -> None:
    absent = [name for name, long in PROVIDERS.items() if long not in _available()]
    assert provider_of("cpu") == "CPUExecutionProvider"
    for name in absent:
        error = run("profile", "measure", "this-machine", "--provider", name).exception
        assert isinstance(error, TableError)
        assert "which has cpu" in str(error)
        assert "onnxruntime-gpu" in str(error)


def _available() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


@pytest.mark.parametrize("threads", ["0", "one", "1,,2", ""])
def test_threads_are_numbers(threads: str) -> None:
    error = run("profile", "measure", "this-machine", "--threads", threads).exception
    assert isinstance(error, ConfigError)
    assert "--threads takes numbers" in str(error)


def test_reference_networks_hold_what_most_networks_are_made_of() -> None:
    ops = {node.op for _, network, _ in reference_networks() for node in network.nodes}
    wanted = {"conv2d", "conv_transpose2d", "linear", "add", "concat", "maxpool", "avgpool", "global_avgpool"}
    assert wanted | {"upsample", "softmax", "layernorm", "gelu"} <= ops
    shapes = [layer.shape for _, network, _ in reference_networks() for layer in network.layers]
    assert any(shape.depthwise for shape in shapes)
    names = [name for name, _, _ in reference_networks()]
    assert len(names) == len(set(names))


def test_a_machine_that_is_too_noisy_fails_and_keeps_the_good(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanfront.latency_models.benchmark import fill as filling

    real = filling._measured

    def disturbed(batch: Any, *rest: Any) -> Any:
        """As on a machine where half of what is timed never finds a quiet moment."""
        found = real(batch, *rest)
        return {
            key: dataclasses.replace(entry, quiet=0.0 if number % 2 else 1.0)
            for number, (key, entry) in enumerate(sorted(found.items()))
        }

    monkeypatch.setattr(filling, "_measured", disturbed)
    monkeypatch.setattr(filling, "ROUNDS", 1)
    few = dict(list(_nodes().items())[:10])
    monkeypatch.setattr("leanfront.latency_models.measured.profile_table._reference_nodes", lambda *of: few)
    answer = run("profile", "measure", "this-machine")
    assert answer.exit_code == 1
    assert "too noisy to tell 5%" in answer.stderr
    device = this_device(1)
    table = load_table(table_path(device), device)
    assert doubtful(table, table) == []
    assert len(set(table) & set(few)) == 5


def _nodes() -> Any:
    from leanfront.latency_models.measured.profile_table import _reference_nodes

    return _reference_nodes(this_device(1), network_model)


def test_general_kernels_are_found_again() -> None:
    few = dict(list(_nodes().items())[:6])
    profile = load_profile("this-machine")
    first = measure_general(profile, 1, "cpu", network_model, nodes=few)
    assert (first.measured, first.reused) == (6, 0)
    second = measure_general(profile, 1, "cpu", network_model, nodes=few)
    assert second.reused >= 6 - first.disturbed
    table = load_table(Path(second.table), this_device(1))
    assert isinstance(table, LatencyTable)
    assert set(few) <= set(table)
