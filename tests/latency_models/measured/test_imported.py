"""A profile whose table came from another device: priced from it, named by it, and never measured here."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import leanfront.latency_models.benchmark.timing
from leanfront.compression.export.network_model import network_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import ProfileError, load_profile, to_toml
from leanfront.latency_models import TableError
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.kit.folder import KitNetwork, KitSet, write_kit
from leanfront.latency_models.kit.installed_tables import device_of
from leanfront.latency_models.measured.imported import ImportedModel, imported_cost_model
from leanfront.latency_models.measured.kit_networks import exporter_digest, network_digest
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.profile_table import check_measured_here
from leanfront.latency_models.measured.validation import validate
from leanfront.search.cli.app import app
from leanfront.search.pick.verify import at_hand
from tests.latency_models.kit.test_kit import on_another_device, run_on_device
from tests.latency_models.measured.test_model import residual_network

NETWORK = residual_network(16, 6)
POLICIES = [
    Policy.of(
        {layer.name: LayerPolicy(sparsity if layer.group else 0.0, bits, bits) for layer in NETWORK.layers}
    )
    for sparsity in (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    for bits in (32, 8)
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    networks = [
        KitNetwork(p.to_json(), network_model(NETWORK.resized(p.channels(NETWORK)), p), whole=True)
        for p in POLICIES
    ]
    sets = [KitSet("residual", network_digest(NETWORK), Structure(NETWORK, network_model).owners)]
    write_kit(folder, "my-board", sets, networks, len(networks), 1, "CPUExecutionProvider", exporter_digest())
    done = run_on_device(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def a_board_elsewhere(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile my-board with the table of another device; measuring here fails the test."""
    monkeypatch.setenv("LEANFRONT_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    board = load_profile("this-machine").model_copy(update={"name": "my-board"})
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "my-board.toml").write_text(to_toml(board))
    result = on_another_device(measured, tmp_path / "measured.csv", cpu="Cortex-A72")
    done = CliRunner().invoke(app, ["profile", "import", str(result), "--profile", "my-board"])
    assert done.exit_code == 0, done.output
    assert "Cortex-A72" in done.output

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was measured on this machine")

    monkeypatch.setattr(leanfront.latency_models.benchmark.timing.Reference, "__init__", never)


def model_of(lines: list[str]) -> ImportedModel:
    profile = load_profile("my-board")
    model = imported_cost_model(NETWORK, lambda: network_model, profile, 1, "cpu", lines.append)
    assert model is not None
    return model


def test_policies_are_priced_from_the_device() -> None:
    lines: list[str] = []
    model = model_of(lines)
    assert model.table.device.cpu == "Cortex-A72"
    assert any("measured on Cortex-A72" in line for line in lines)
    for policy in POLICIES:
        cost = model.cost(NETWORK.resized(policy.channels(NETWORK)), policy)
        assert cost.kind == "calibrated"
        assert cost.latency_ms > 0
    between = Policy.of({n: LayerPolicy(0.3 if p.sparsity else 0.0, 8, 8) for n, p in POLICIES[3].items()})
    assert model.cost(NETWORK.resized({"inner": 11}), between).kind == "modelled"
    assert model.validation is not None
    assert model.validation.n == len(model.held_out) == 4


def test_validating_compares_what_the_device_measured() -> None:
    model = model_of([])
    found = validate(model, None)  # type: ignore[arg-type]
    assert [row.measured_ms for row in found.rows] == [one.measured_ms for one in model.held_out]
    assert found.accuracy == model.validation


def test_what_needs_the_device_says_that_it_is_not_here() -> None:
    profile, lines = load_profile("my-board"), list[str]()
    assert not at_hand(profile, 1, "cpu", lines.append)
    assert lines == ["no latency is measured: my-board is Cortex-A72, 2 cores, and this is another machine"]
    assert at_hand(load_profile("this-machine"), 1, "cpu")
    assert not at_hand(load_profile("toy"), 1, "cpu")
    with pytest.raises(ProfileError, match=r"'my-board' is Cortex-A72.*profile kit my-board"):
        check_measured_here(profile)
    check_measured_here(load_profile("this-machine"))


def test_a_network_that_no_kit_had_is_an_error_with_the_command() -> None:
    other = residual_network(16, 12)
    with pytest.raises(TableError, match="Cortex-A72, 2 cores, but without this network"):
        imported_cost_model(other, lambda: network_model, load_profile("my-board"), 1, "cpu", print)
    with pytest.raises(TableError, match="not with 2"):
        imported_cost_model(NETWORK, lambda: network_model, load_profile("my-board"), 2, "cpu", print)


def test_cost_of_a_file_names_the_device(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(network_model(NETWORK, POLICIES[0]))
    arguments = ["cost", str(file), "--profile", "my-board", "--format", "json"]
    answer = json.loads(CliRunner().invoke(app, arguments).output)
    assert answer["measured_on"].startswith("Cortex-A72, 2 cores (onnxruntime")
    result = device_of(load_profile("my-board")).results[0]
    whole = next(one.whole for one in result.networks if Policy.from_json(one.policy) == POLICIES[0])
    assert whole is not None
    assert 0.3 < answer["latency_ms"] / whole.median_ms < 3.0


def test_layouts_in_blocks_can_be_left_out() -> None:
    plain = fused_nodes(network_model(NETWORK, POLICIES[0]), {}, disabled=("NchwcTransformer",))
    assert not any("nchwc" in node.key for node in plain)


def test_another_version_of_the_exporter_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanfront.latency_models.measured.imported.exporter_digest", lambda: "newer")
    lines: list[str] = []
    model_of(lines)
    assert any("make a new kit" in line for line in lines)


def test_a_kit_without_a_search_is_small_and_for_measured_profiles(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "kit", "my-board", "--out", str(tmp_path / "kit")])
    assert done.exit_code == 0, done.output
    assert sum(path.stat().st_size for path in (tmp_path / "kit").iterdir()) < 2_000_000
    manifest = json.loads((tmp_path / "kit" / "manifest.json").read_text())
    assert len(manifest["sets"]) >= 10
    assert {one["set"] for one in manifest["networks"]} == set(range(len(manifest["sets"])))
    done = CliRunner().invoke(app, ["profile", "kit", "toy", "--out", str(tmp_path / "other")])
    assert done.exit_code != 0
    assert "is not measured" in str(done.exception)


def test_what_version_0_1_measured_is_kept():
    """It had a hash of the sources where the version of the export is now."""
    if version("torch").startswith("2.13.0"):
        assert exporter_digest() == "e7b9dc9ba10b"
    assert len(exporter_digest()) == 12
