import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner, Result

from leanfront.compression.capture.onnx_network import OnnxError
from leanfront.compression.policy import PolicyError
from leanfront.hw_profiles import ProfileError, load_profile
from leanfront.latency_models.cost import TableError
from leanfront.latency_models.layer_table import COLUMNS
from leanfront.search.cli import hardware

app = typer.Typer()
app.add_typer(hardware.profile_app, name="profile")
app.command("cost")(hardware.cost)

TABLE = f"""{",".join(COLUMNS)}
first,conv2d,100,100,1,1,1,1,1,10,10,0
second,conv2d,100,100,1,1,1,1,1,10,10,0
third,conv2d,100,100,1,1,1,1,1,10,10,0
"""


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: str | Path) -> dict:
    result = run(*words, "--format", "json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 100, 10, 10] x) => (float y)'
        "{ c = Conv (x, w) r = Relu (c) y = MaxPool <kernel_shape = [1, 1]> (r) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((100, 100, 1, 1), np.float32), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "profiles"
    monkeypatch.setenv("LEANFRONT_PROFILES", str(folder))
    return folder


def test_names_in_brackets_are_names(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text(TABLE.replace("first", "[/first]").replace("second", "[red]second"))
    result = run("cost", tmp_path / "odd.csv", "--profile", "toy")
    assert result.exit_code == 0, result.exception
    assert "[/first]" in result.stdout
    assert "[red]second" in result.stdout


def test_cost_of_a_table_is_known_on_paper(chain: Path) -> None:
    cost = answer("cost", chain, "--profile", "toy")
    assert set(cost) >= {
        "latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes", "fits", "resources", "kind", "layers",
    }  # fmt: skip
    assert cost["latency_ms"] == pytest.approx(3 * 1.01)  # 1e6 MACs at 1e6 per ms, 0.01 ms a kernel
    assert cost["energy_mj"] == pytest.approx(3 * 1.01)
    assert cost["kind"] == "modelled"
    assert cost["fits"] is True
    assert [row["name"] for row in cost["layers"]] == ["first", "second", "third"]
    assert all(set(row) == {"name", "latency_ms", "energy_mj", "source"} for row in cost["layers"])
    assert cost["peak_memory_bytes"] == 2 * 100 * 100 * 4  # one tensor in, one out
    assert cost["size_bytes"] >= 3 * 100 * 100 * 4


def test_bits_and_sparsity(chain: Path) -> None:
    cost = answer("cost", chain, "--profile", "toy", "--weight-bits", "8", "--activation-bits", "8")
    assert cost["latency_ms"] == pytest.approx(3 * 0.26)
    cost = answer("cost", chain, "--profile", "toy", "--sparsity", "0.5")
    macs = (100 * 50 + 50 * 50 + 50 * 100) * 100  # input and output channels stay
    assert cost["latency_ms"] == pytest.approx(0.03 + macs / 1e6)


def test_a_policy_file(chain: Path, tmp_path: Path) -> None:
    policy = {name: {"weight_bits": 8, "activation_bits": 8} for name in ("first", "second", "third")}
    policy["second"] = {"weight_bits": 32, "activation_bits": 32, "sparsity": 0.5}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    cost = answer("cost", chain, "--profile", "toy", "--policy", tmp_path / "policy.json")
    assert [row["latency_ms"] for row in cost["layers"]] == pytest.approx([0.26, 0.51, 0.135])


def test_cost_of_an_onnx_file_has_its_other_operations(onnx_file: Path) -> None:
    cost = answer("cost", onnx_file, "--profile", "toy")
    assert [row["latency_ms"] for row in cost["layers"]] == pytest.approx([1.01, 0.01 + 0.08])


def test_a_file_is_as_large_as_it_is_and_keeps_its_tables_in_fewer_bits(onnx_file: Path) -> None:
    model = onnx.load_model(onnx_file)
    table = np.random.default_rng(0).random((50, 100)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([7], np.int64), "row"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["table", "row"], ["looked_up"]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("looked_up", onnx.TensorProto.FLOAT, (1, 100))
    )
    with_table = onnx_file.with_name("with_table.onnx")
    onnx.save_model(model, with_table)
    bits = ("--weight-bits", "8", "--activation-bits", "8")
    (plain, plain_8), (tabled, tabled_8) = (
        [answer("cost", file, "--profile", "toy", *more)["size_bytes"] for more in ((), bits)]
        for file in (onnx_file, with_table)
    )
    assert (plain, tabled) == (onnx_file.stat().st_size, with_table.stat().st_size)
    assert plain_8 < plain / 3
    assert tabled_8 - plain_8 == pytest.approx(tabled - plain, abs=200)


def test_tables_for_people(chain: Path, onnx_file: Path) -> None:
    for path in (chain, onnx_file):
        result = run("cost", path, "--profile", "toy")
        assert result.exit_code == 0, result.exception
        assert "conv2d 1x1 100->100 @10x10" in result.stdout
        assert "An estimate: these numbers of the profile are assumed" in result.stdout


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (
            ["--weight-bits", "32", "--activation-bits", "8"],
            ProfileError,
            "weights of 32 .* it can: weights 4",
        ),
        (["--weight-bits", "9"], PolicyError, "weight_bits must be one of"),
        (["--sparsity", "1.5"], PolicyError, "sparsity must lie in 0..1"),
        (["--policy", "gone.json"], PolicyError, "cannot read the policy gone.json: No such file"),
        (["--policy", "x.json", "--weight-bits", "8"], PolicyError, "give either --policy"),
        (["--profile", "tpy"], ProfileError, "did you mean .toy"),
    ],
)
def test_wrong_options(words: list[str], error: type[Exception], sentence: str, chain: Path) -> None:
    result = run("cost", chain, *(["--profile", "toy"] if "--profile" not in words else []), *words)
    assert isinstance(result.exception, error)
    with pytest.raises(error, match=sentence):
        raise result.exception


def test_wrong_networks(chain: Path, onnx_file: Path, tmp_path: Path) -> None:
    assert isinstance(run("cost", "gone.csv", "--profile", "toy").exception, TableError)
    assert isinstance(run("cost", "gone.onnx", "--profile", "toy").exception, OnnxError)
    text = run("cost", tmp_path / "net.pt", "--profile", "toy").exception
    assert isinstance(text, PolicyError)
    refused = run("cost", onnx_file, "--profile", "toy", "--sparsity", "0.5").exception
    assert isinstance(refused, PolicyError)
    assert "--sparsity cannot be applied" in str(refused)
    (tmp_path / "bad.json").write_text('{"first": {}}')
    refused = run("cost", chain, "--profile", "toy", "--policy", tmp_path / "bad.json").exception
    assert "says nothing about layer 'second'" in str(refused)


def test_a_measured_profile_asks_the_measured_table(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from leanfront.latency_models.roofline.model import RooflineModel

    asked = []

    def file_cost_model(
        network: object, policy: object, profile: object, build: object, log: object = None
    ) -> RooflineModel:
        asked.append((network, policy, profile))
        return RooflineModel(load_profile("toy"))

    stand_in = types.ModuleType("leanfront.latency_models.measured.building")
    stand_in.file_cost_model = file_cost_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "leanfront.latency_models.measured.building", stand_in)
    answer("cost", chain, "--profile", "this-machine", "--weight-bits", "4")
    ((network, policy, profile),) = asked
    assert profile.name == "this-machine"
    assert {layer.weight_bits for layer in policy.values()} == {4}
    assert len(network.layers) == 3


def test_profile_list_and_show(user_folder: Path) -> None:
    user_folder.mkdir()
    (user_folder / "broken.toml").write_text("name = 3")
    rows = {row["name"]: row for row in answer("profile", "list")}
    assert rows["toy"]["model"] == "roofline"
    assert "not valid" in rows["broken"]["description"]
    assert "this-machine" in run("profile", "list").stdout
    shown = answer("profile", "show", "toy")
    assert shown["sources"]["roofline.macs_per_ms.8"]["status"] == "assumed"
    assert "roofline.bandwidth_bytes_per_ms" in run("profile", "show", "toy").stdout


def test_profile_new_is_checked_and_assumed(user_folder: Path) -> None:
    result = run("profile", "new", "my-board", "--like", "this-machine")
    assert result.exit_code == 0, result.exception
    profile = load_profile("my-board")
    assert {source.status for source in profile.sources.values()} == {"assumed"}
    assert profile.supported == load_profile("this-machine").supported
    checked = run("profile", "check", user_folder / "my-board.toml")
    assert "my-board is valid: 3 numbers" in checked.stdout
    again = run("profile", "new", "my-board", "--like", "toy").exception
    assert isinstance(again, ProfileError)
    assert "already" in str(again)
    assert isinstance(run("profile", "new", "../evil", "--like", "toy").exception, ProfileError)
    assert [path.name for path in user_folder.iterdir()] == ["my-board.toml"]


def test_profile_check_names_what_is_wrong(user_folder: Path) -> None:
    user_folder.mkdir()
    run("profile", "new", "mine", "--like", "toy")
    path = user_folder / "mine.toml"
    path.write_text(path.read_text().replace("power_w = 1.0", "power_w = -1.0"))
    refused = run("profile", "check", path).exception
    assert isinstance(refused, ProfileError)
    assert "power_w: input should be greater than 0, not -1.0" in str(refused)


def test_no_torch_and_no_optuna_at_import_or_cost(chain: Path) -> None:
    code = (
        "import sys, typer\n"
        "from leanfront.search.cli import hardware as c\n"
        "app = typer.Typer(); app.add_typer(c.profile_app, name='profile'); app.command('cost')(c.cost)\n"
        f"app(['cost', {str(chain)!r}, '--profile', 'toy'], standalone_mode=False)\n"
        "heavy = {'torch', 'optuna', 'pandas', 'onnxruntime', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, timeout=60)
