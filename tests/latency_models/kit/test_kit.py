"""Kits: made, run by a bare python as on a device, interrupted, brought back; and what is refused."""

import ast
import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from leanfront.compression.export.network_model import network_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile, to_toml
from leanfront.latency_models import TableError
from leanfront.latency_models.kernel_table.strip_weights import filled, stripped
from leanfront.latency_models.kernel_table.table import CALL, Entry, this_device
from leanfront.latency_models.kit import device
from leanfront.latency_models.kit.folder import KitNetwork, KitSet, modules, script, write_kit
from leanfront.latency_models.kit.installed_tables import device_of, measured_folder
from leanfront.latency_models.kit.result import read_result
from leanfront.latency_models.kit.rows import COLUMNS, ResultFile, Row, csv_line
from leanfront.latency_models.measured.imported import imported_model
from leanfront.latency_models.measured.kit_networks import network_digest
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.search.cli.app import app
from tests.latency_models.measured.test_model import residual_network
from tests.variants import some

NETWORK = residual_network(8, 6)
FLOAT, INTEGER = LayerPolicy(), LayerPolicy(0.0, 8, 8)

BARE = """
import sys, runpy
from importlib.abc import MetaPathFinder

class OnlyWhatADeviceHas(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        known = "onnx google torch pandas pydantic ml_dtypes optuna rich typer"
        if name.partition(".")[0] in f"{known} latency_models compression search hw_profiles".split():
            raise ImportError(f"{name} is not on the device")

sys.meta_path.insert(0, OnlyWhatADeviceHas())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    board = load_profile("this-machine").model_copy(update={"name": "my-board"})
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "my-board.toml").write_text(to_toml(board))


def small_kit(folder: Path, provider: str = "CPUExecutionProvider") -> Path:
    policies = [Policy.uniform(NETWORK, FLOAT), Policy.uniform(NETWORK, INTEGER)]
    networks = [KitNetwork(p.to_json(), network_model(NETWORK, p), whole=True) for p in policies]
    owners = Structure(NETWORK, network_model).owners
    sets = [KitSet("residual", network_digest(NETWORK), owners)]
    write_kit(folder, "my-board", sets, networks, 2, 1, provider, "exporter")
    return folder


def run_on_device(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", BARE, str(folder / "measure.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit's folder after a whole run."""
    folder = small_kit(tmp_path_factory.mktemp("kit"))
    done = run_on_device(folder)
    assert done.returncode == 0, done.stderr
    return folder


def copied(measured: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in measured.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def import_file(path: Path, profile: str = "my-board") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["profile", "import", str(path), "--profile", profile])
    return done.exit_code, str(done.exception or "") + done.output


def test_the_script_is_python_3_9_and_imports_what_a_device_has() -> None:
    tree = ast.parse(script(), feature_version=(3, 9))
    assert tree.body
    for name in modules():
        source = Path(sys.modules[name].__file__ or "").read_text() if name in sys.modules else ""
        parsed = ast.parse(source, feature_version=(3, 9))
        for node in ast.walk(parsed):
            if isinstance(node, ast.Import):
                top = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                top = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call):
                strict = any(keyword.arg == "strict" for keyword in node.keywords)
                assert not (strict and ast.unparse(node.func) == "zip"), f"{name}: needs python 3.10"
                continue
            else:
                continue
            assert top <= {*sys.stdlib_module_names, "numpy", "onnxruntime", "leanfront"}, (name, top)
            assert "UTC" not in ast.unparse(node), f"{name}: datetime.UTC needs python 3.11"


def test_a_run_on_a_bare_python_is_imported_and_used(measured: Path, tmp_path: Path) -> None:
    code, output = import_file(measured / "measured.csv")
    assert code == 0, output
    assert str(this_device()) in " ".join(output.split())
    profile = load_profile("my-board")
    placed = device_of(profile)
    assert placed.is_this_machine
    assert placed.results
    model = imported_model(NETWORK, network_model, profile, placed)
    assert model is not None
    here = Structure(NETWORK, network_model)
    for uniform in (FLOAT, INTEGER):
        policy = Policy.uniform(NETWORK, uniform)
        keys = {key for part in here.observe(NETWORK, policy) for key in part}
        assert keys <= set(model.table)  # the same keys as here
        whole = next(n for n in placed.results[0].networks if Policy.from_json(n.policy) == policy)
        assert whole.whole is not None
        assert 0.3 < model.latency_ms(NETWORK, policy) / whole.whole.median_ms < 3.0
    assert not (tmp_path / "cache" / "tables").exists()  # nothing was measured here


def test_the_result_says_where_it_is_from(measured: Path) -> None:
    about = read_result(measured / "measured.csv").about
    device = this_device()
    assert (about["cpu"], about["cores"]) == (device.cpu, str(device.cores))
    assert {"governor", "clock_now_khz", "clock_max_khz", "system", "python", "numpy", "board"} <= set(about)
    assert about["onnxruntime"] == onnxruntime.__version__
    assert about["started"][:2] == "20"
    with (measured / "measured.csv").open() as file:
        kernels = [row for row in csv.DictReader(file) if row["row"] == "kernel"]
    assert all(int(row["runs"]) > 0 and float(row["spread"]) >= 0 and row["date"] for row in kernels)


@pytest.mark.parametrize("keep", some([0.6, 0.3, 0.9], 1))
def test_an_interrupted_run_goes_on_where_it_was(measured: Path, tmp_path: Path, keep: float) -> None:
    folder = copied(measured, tmp_path / "kit")
    result = folder / "measured.csv"
    content = result.read_bytes()
    result.write_bytes(content[: int(keep * len(content))])  # within a line, as after kill -9
    kept = set(result.read_text().splitlines()[:-1])
    code, output = import_file(result)
    assert code != 0
    assert "cut short" in output
    done = run_on_device(folder)
    assert done.returncode == 0, done.stderr
    assert "going on with measured.csv" in done.stdout
    assert kept <= set(result.read_text().splitlines())
    assert import_file(result)[0] == 0
    again = run_on_device(folder)
    assert again.returncode == 0
    assert "measured" not in again.stdout.partition("done")[0].replace("measured.csv", "")


def cut_at_line(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-4])


def without_a_kernel(text: str) -> str:
    lines = text.splitlines(keepends=True)
    lines.remove(next(line for line in lines if line.startswith("kernel,") and "Conv" in line))
    lines[-1] = lines[-1].replace(str(len(lines) - 1), str(len(lines) - 2))
    return "".join(lines)


def with_cell(column: str, change: Callable[[str], str]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        lines = text.splitlines(keepends=True)
        number = next(i for i, line in enumerate(lines) if line.startswith("kernel,") and "Conv" in line)
        cells = next(csv.reader([lines[number]]))
        cells[COLUMNS.index(column)] = change(cells[COLUMNS.index(column)])
        lines[number] = csv_line(cells)
        return "".join(lines)

    return changed


def with_about(name: str, value: str) -> Callable[[str], str]:
    return lambda text: re.sub(f"^about,{name},.*$", f"about,{name},,,,,,,,{value}", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_at_line, "is not finished: .* goes on where it was"),
        (without_a_kernel, "no time for '.*Conv.*my-board.*measure.py"),
        (lambda text: text.replace("median_ms", "median_us", 1), "in column 'median_us'.*in milliseconds"),
        (lambda text: text.replace("spread", "scatter", 1), "no column 'spread'"),
        (with_cell("median_ms", lambda cell: "0"), "median_ms must be above 0, not 0"),
        (with_cell("median_ms", lambda cell: "-0.1"), "median_ms must be above 0, not -0.1"),
        (with_cell("median_ms", lambda cell: "nan"), "median_ms must be above 0, not nan"),
        (with_cell("median_ms", lambda cell: f"{5000 * float(cell)}"), "cannot both be.*in milliseconds"),
        (with_cell("reference_ms", lambda cell: f"{1000 * float(cell)}"), "take .* ms on anything"),
        (with_cell("median_ms", lambda cell: "12 us"), "could not convert"),
        (with_about("kit", "../../elsewhere"), "its kit cannot be '../../elsewhere'"),
        (with_about("provider", "../x"), "its provider cannot be '../x'"),
        (with_about("threads", "0"), "its threads cannot be 0"),
        (with_about("near_cache_bytes", "-1"), "its near_cache_bytes cannot be -1"),
        (lambda text: text.replace('""weight_bits"":32', '""weight_bits"":99'), "is damaged .*99"),
        (lambda text: text.replace("kernel,", "core,", 1), "a row is one of"),
        (lambda text: "".join(text.splitlines(keepends=True)[:30] + text.splitlines(keepends=True)[31:]),
         "lines are lost"),
        (lambda text: "hello\n", "no column 'row'"),
    ],
)  # fmt: skip
def test_bad_results_are_refused_in_a_sentence(
    measured: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "measured.csv"
    path.write_text(change((measured / "measured.csv").read_text()))
    with pytest.raises(TableError, match=message) as caught:
        read_result(path)
    assert "measured.csv" in str(caught.value)
    assert import_file(path)[0] != 0
    assert not measured_folder("my-board").exists()


def test_a_result_for_another_profile_is_refused(measured: Path) -> None:
    code, output = import_file(measured / "measured.csv", "this-machine")
    assert code != 0
    assert "is of a kit for profile 'my-board', not 'this-machine'" in output
    code, output = import_file(measured / "measured.csv", "toy")
    assert code != 0
    assert "is not measured" in output


def on_another_device(measured: Path, path: Path, **about: str) -> Path:
    lines = (measured / "measured.csv").read_text().splitlines(keepends=True)
    for name, value in about.items():
        number = next(i for i, line in enumerate(lines) if line.startswith(f"about,{name},"))
        lines[number] = Row("about", name, value).line()
    path.write_text("".join(lines))
    return path


def test_tables_of_two_devices_are_never_mixed(measured: Path, tmp_path: Path) -> None:
    assert import_file(on_another_device(measured, tmp_path / "a.csv", cpu="Cortex-A72"))[0] == 0
    placed = device_of(load_profile("my-board"))
    assert not placed.is_this_machine
    assert placed.device.cpu == "Cortex-A72"
    for other in ({"cpu": "Cortex-A76"}, {"cpu": "Cortex-A72", "onnxruntime": "1.20.0"}):
        code, output = import_file(on_another_device(measured, tmp_path / "b.csv", **other))
        assert code != 0
        assert "holds the table of Cortex-A72" in output
        assert "profile of its own" in output
    with pytest.raises(TableError, match=r"with 1 thread\(s\) of CPUExecutionProvider, not with 2"):
        device_of(load_profile("my-board"), threads=2)
    assert device_of(load_profile("this-machine")).is_this_machine


def test_a_profile_without_an_import_is_this_machine() -> None:
    placed = device_of(load_profile("my-board"))
    assert (placed.device, placed.results, placed.is_this_machine) == (this_device(), (), True)


def test_a_device_of_another_kind_does_not_go_on_with_a_result(measured: Path, tmp_path: Path) -> None:
    folder = copied(measured, tmp_path / "kit")
    on_another_device(measured, folder / "measured.csv", cpu="Cortex-A72")
    done = run_on_device(folder)
    assert done.returncode == 2
    assert "was begun with cpu 'Cortex-A72'" in done.stderr


def test_a_provider_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run_on_device(small_kit(tmp_path / "kit", "CUDAExecutionProvider"))
    assert done.returncode == 2
    assert "measures CUDAExecutionProvider" in done.stderr
    assert "it has" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_kit_is_named(tmp_path: Path) -> None:
    folder = small_kit(tmp_path / "kit")
    (folder / "networks.zip").write_bytes((folder / "networks.zip").read_bytes()[:-100])
    done = run_on_device(folder)
    assert done.returncode == 2
    assert "copy the whole kit again" in done.stderr


def test_a_kit_is_not_written_over_the_result_of_another(measured: Path, tmp_path: Path) -> None:
    folder = copied(measured, tmp_path / "kit")
    small_kit(folder)  # the same kit again
    networks = [KitNetwork(Policy.uniform(NETWORK, FLOAT).to_json(), b"", whole=True)]
    with pytest.raises(TableError, match="has the result of another kit"):
        write_kit(folder, "my-board", [], [], 1, 1, "CPUExecutionProvider", "other")
    assert networks


def test_models_without_weights_come_back_alike() -> None:
    model = network_model(NETWORK, Policy.uniform(NETWORK, INTEGER))
    empty = stripped(model)
    assert len(empty) < 0.7 * len(model)
    before, after = onnx.load_model_from_string(model), onnx.load_model_from_string(filled(empty))
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        first, second = numpy_helper.to_array(a), numpy_helper.to_array(b)
        assert (a.name, first.shape, first.dtype) == (b.name, second.shape, second.dtype)
        if first.size:
            assert first.min() <= second.min()
            assert second.max() <= first.max()
        if first.size <= 64:
            np.testing.assert_array_equal(first, second)


def test_a_noisy_device_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ResultFile(tmp_path / "measured.csv")
    file.add([Row("kernel", CALL, entry=Entry(0.01, 0.4, 30, 0.0, 0.05, 0, "2025-01-01"))])
    kit = object.__new__(device.Kit)
    kit.file = file
    kit.end()
    assert "too noisy to tell 5%" in capsys.readouterr().err
    assert [row.kind for row in file.rows][-3:] == ["noise", "about", "end"]
    assert file.rows[-1].text == str(len(file.rows) - 1)


def test_json_of_the_manifest_says_what_is_expected(measured: Path) -> None:
    manifest = json.loads((measured / "manifest.json").read_text())
    assert (manifest["profile"], manifest["threads"], len(manifest["networks"])) == ("my-board", 1, 2)
    assert manifest["digest"] == read_result(measured / "measured.csv").kit
