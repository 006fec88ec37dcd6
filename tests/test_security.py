"""Nothing that is read is run, nothing is written where it should not be, and no file is a bomb."""

import ast
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from PIL import Image
from typer.testing import CliRunner

from leanfront.search.cli.app import app
from leanfront.search.config import parse_config
from leanfront.search.readers import cifar10, idx, image_folder
from leanfront.search.readers.cache import cache_folder
from leanfront.search.readers.images import TaskError
from leanfront.search.report.page import write_report
from leanfront.search.run.run_folder import TrialRow, make_run
from tests.bright import CONFIG, TASK

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "compression", "latency_models", "hw_profiles")


def _calls() -> Iterator[tuple[str, str, dict[str, object]]]:
    """(file, what is called, its constant keywords) of every call in the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    keywords = {k.arg or "": getattr(k.value, "value", None) for k in node.keywords}
                    yield str(path.relative_to(ROOT)), ast.unparse(node.func), keywords


def test_no_loader_runs_what_it_reads() -> None:
    found = set()
    for file, name, keywords in _calls():
        if name == "torch.load" and keywords.get("weights_only") is not True:
            found.add((file, name))
        if name.endswith("np.load") and keywords.get("allow_pickle") is not False:
            found.add((file, name))
        if name in ("pickle.load", "pickle.loads", "eval", "exec", "marshal.loads", "yaml.load", "os.system"):
            found.add((file, name))
        if keywords.get("shell"):
            found.add((file, name))
        if name.endswith((".extractall", ".extract")):
            found.add((file, name))
    assert not found


def test_a_search_writes_its_run_folder_and_the_cache_only(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("home", "here", "tmp", "task")}
    for place in places.values():
        place.mkdir()
    (places["task"] / "task.py").write_text(TASK)
    (places["task"] / "search.toml").write_text(CONFIG)
    before = _files(places["task"])
    ours = ("XDG_", "leanfront_", "ORT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["tmp"]), "PYTHONPATH": str(ROOT)}
    environment |= {"LEANFRONT_CACHE": str(cache_folder()), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "run"
    config = str(places["task"] / "search.toml")
    commands = [
        ["search", config, "--run", str(run), "--trials", "1"],
        ["report", str(run)],
        ["pick", str(run), "--max-drop", "1", "--epochs", "0"],
    ]
    code = "import json, sys\nfrom leanfront.search.cli.app import app\n"
    code += "for line in json.loads(sys.argv[1]):\n    app(line, standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=places["here"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run / "report.html").exists(), done.stderr
    assert list((run / "exported").iterdir()), done.stderr
    written = {name: _files(places[name]) for name in ("home", "here", "tmp")}
    assert written == {"home": [], "here": [], "tmp": []}
    assert _files(places["task"]) == before
    assert {path.name for path in tmp_path.iterdir()} <= {*places, "run"}


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_importing_onnxruntime_leaves_and_sends_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for code in ("import latency_models, onnxruntime", "import compression, onnxruntime"):
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert _files(tmp_path) == []


def _network(path: Path, location: str) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3, 3, 3])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    sizes = {"x": [1, 3, 8, 8], "y": [1, 4, 6, 6]}
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items())
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "folder/secret.bin"])
def test_the_cost_of_a_network_reads_nothing_outside_its_folder(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 108))
    (inner / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inner / "folder").symlink_to(tmp_path)
    network = _network(inner / "net.onnx", location)
    answer = CliRunner().invoke(app, ["cost", str(network), "--profile", "toy"])
    assert type(answer.exception).__name__ == "OnnxError"
    assert "outside its own folder" in str(answer.exception)


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def test_names_in_a_zip_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(inner)
    with zipfile.ZipFile(inner / "images.zip", "w") as archive:
        for name in ("../../up/0.png", "../../other/0.png", "/etc/leanfront/0.png"):
            archive.writestr(name, _picture())
    with suppress(TaskError):
        image_folder.read_image_folder(inner / "images.zip", "../..")
    assert _files(tmp_path / "a") == ["b/c/images.zip"]
    assert not Path("/etc/leanfront").exists()


def test_files_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    for module in (cifar10, idx, image_folder):
        monkeypatch.setattr(module, "MOST_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one/0.png", _picture())
        archive.writestr("two/0.png", bytes(1_000_000))
    with pytest.raises(TaskError, match="at most 100000 bytes, but one has 1000000"):
        image_folder.read_image_folder(tmp_path / "images.zip")
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        for number in range(1, 6):
            entry = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{number}")
            entry.size = 1_000_000
            tar.addfile(entry, io.BytesIO(bytes(1_000_000)))
    with pytest.raises(TaskError, match="data_batch_1 has 1000000 bytes, a batch at most 100000"):
        cifar10.read_cifar10_batches(tmp_path / "cifar.tar.gz", "train")
    header = bytes((0, 0, 8, 3)) + b"".join(size.to_bytes(4, "big") for size in (1000, 28, 28))
    (tmp_path / "images.gz").write_bytes(gzip.compress(header + bytes(784_000)))
    with pytest.raises(TaskError, match="promises 784000 bytes, 100000 are the most"):
        idx.read_idx(tmp_path / "images.gz", tmp_path / "images.gz", 10)


def test_links_in_names_are_no_links_in_the_report(tmp_path: Path) -> None:
    name = '<a href="javascript:alert(1)">conv</a>'
    run = make_run(tmp_path / "run", parse_config({"task": {"file": "/nowhere/task.py"}}))
    baseline = {"accuracy": 0.9, "latency_ms": 1.0, "size_bytes": 1000}
    run.update_environment(baseline=baseline, layers=[{"name": name, "shape": name, "group": name}])
    policy = json.dumps({name: {"sparsity": 0.5, "weight_bits": 8, "activation_bits": 8}})
    run.write_trials([TrialRow(0, "complete", accuracy=0.9, latency_ms=0.5, size_bytes=500.0, policy=policy)])
    page = write_report(run.path).read_text(encoding="utf-8")
    blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    texts = [text for block in blocks for text in _texts(json.loads(block))]
    assert any("conv" in text for text in texts)
    assert not [text for text in texts if "<a" in text]  # plotly's labels know links


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
