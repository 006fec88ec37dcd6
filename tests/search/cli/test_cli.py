"""The command line on a task that is made in a millisecond: telling bright images from dark ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanfront.search.cli import app
from tests.bright import CONFIG, TASK

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a task and a configuration."""
    folder = tmp_path_factory.mktemp("bright")
    (folder / "task.py").write_text(TASK)
    (folder / "search.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def searched(folder):
    """A finished search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_main(patch, "search", str(folder / "search.toml")) == 0
    return folder / "runs" / f"{folder.name}-toy"


def run_main(patch, *arguments: str) -> int:
    patch.setattr(sys, "argv", ["leanfront", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return end.value.code or 0


@pytest.fixture
def leanfront(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_main(monkeypatch, *map(str, arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_search_leaves_a_run_folder_and_says_what_is_next(searched):
    names = {path.name for path in searched.iterdir()}
    assert {"config.toml", "environment.json", "study.journal", "trials.csv", "front.csv", "log.txt"} <= names
    environment = json.loads((searched / "environment.json").read_text())
    assert environment["profile"] == "toy"
    assert environment["baseline"]["accuracy"] > 0.9
    assert set(environment["baseline"]) == {
        "accuracy", "accuracy_ci", "latency_ms", "energy_mj", "size_bytes", "peak_memory_bytes",
    }  # fmt: skip
    assert [layer["name"] for layer in environment["layers"]] == ["0", "2", "6"]
    assert environment["versions"]["torch"]
    log = (searched / "log.txt").read_text()
    assert log.count("complete") == 4


def test_only_a_measured_profile_leaves_a_table(searched):
    assert not (searched / "latency_table.csv").exists()


def test_the_same_line_again_has_nothing_to_do(searched, folder, leanfront):
    code, out, _ = leanfront("search", folder, "--run", searched)
    assert code == 0
    assert "done: 4 trials are done" in out
    assert "scoring" not in out  # the baseline is remembered
    code, out, _ = leanfront("search", folder, "--run", searched, "--trials", 5)
    assert code == 0
    assert out.count("complete") == 1
    assert f"leanfront pick {searched}" in out


def test_front_in_all_formats(searched, leanfront):
    code, out, _ = leanfront("front", searched)
    assert code == 0
    out_of_table = out
    table, estimated, _ = out.partition("Latency and energy are estimated")
    assert estimated
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "accuracy" in out
    code, out, _ = leanfront("front", searched, "--format", "json")
    answer = json.loads(out)
    # toy's numbers are assumed
    assert list(answer) == ["run", "profile", "metric", "baseline", "front", "estimates", "free"]
    assert answer["metric"]["name"] == "accuracy"
    assert [entry["name"] for entry in answer["free"]] == ["int8", "float16"]
    assert "int8 and float16: what you get without a search" in out_of_table
    latencies = [point["latency_ms"] for point in answer["front"]]
    assert latencies == sorted(latencies)
    code, out, _ = leanfront("front", searched, "--format", "csv")
    assert len(out.splitlines()) == len(answer["front"]) + 1
    assert out == (searched / "front.csv").read_text()


def test_status_in_all_formats(searched, leanfront):
    code, out, _ = leanfront("status", searched, "--format", "json")
    answer = json.loads(out)
    assert code == 0
    assert answer["complete"] >= 4
    assert answer["failed"] == answer["running"] == 0
    assert answer["hypervolume"] > 0
    assert answer["front_size"] >= 1
    for format_ in ("table", "csv"):
        code, out, _ = leanfront("status", searched, "--format", format_)
        assert code == 0
        assert "front size" in out


def test_check_says_what_a_search_would_do(folder, leanfront, tmp_path):
    code, out, _ = leanfront("check", folder, "--hours", "1", "--workers", "2", "--format", "json")
    answer = json.loads(out)
    assert code == 0
    assert [layer["layer"] for layer in answer["layers"]] == ["0", "2", "6"]
    assert [group["kept"] for group in answer["groups"]] == [[8, 6, 4]] * 2
    assert answer["space_size"] == 3 * 3 * 5**3
    assert answer["seconds_per_trial"] > 0
    assert answer["trials"] == 4  # the configuration's, which come before the hour is over
    split = answer["split"]
    assert (split["examples"], split["max_drop"]) == (80, 0.01)
    assert split["needed"] == pytest.approx(80 * (split["tells"] / 0.01) ** 2, abs=1)
    code, out, _ = leanfront("check", folder)
    assert "about 4 with 1 worker" in out
    assert f"80 examples tell drops of accuracy to {split['tells']:.4f} (95 %)" in out
    assert f"some {split['needed']:,} examples would tell that" in out
    code, out, _ = leanfront("check", folder, "--set", "limits.max_drop=0.5")
    assert "examples tell drops" not in out
    assert "- output channels of 6: they are outputs of the network; their bits are searched" in out
    code, out, _ = leanfront("check", folder, "--format", "csv")
    assert out.splitlines()[0] == "layer,shape,group"
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_check_measures_nothing_unless_it_is_told(folder, leanfront, tmp_path, monkeypatch):
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    code, out, _ = leanfront("check", folder, "--set", "hardware.profile=this-machine", "--format", "json")
    assert code == 0
    answer = json.loads(out)
    assert 20 < answer["seconds_to_measure"] < 600
    assert answer["measured_on"] is None
    assert [entry["name"] for entry in answer["free"]] == ["int8"]
    assert not list((tmp_path / "cache").glob("*.csv")), "a latency table"
    assert not (tmp_path / "cache" / "networks").exists()


def test_check_names_what_the_part_has_no_formula_for(folder, leanfront, monkeypatch):
    from leanfront.compression.graph import kernels
    from leanfront.latency_models.roofline.model import RooflineModel

    code, out, _ = leanfront("check", folder, "--format", "json")
    assert json.loads(out)["priced_by_what_they_move"] is None
    monkeypatch.setattr(RooflineModel, "unknown", lambda self, network: kernels(network)[1:3])
    code, out, _ = leanfront("check", folder)
    assert code == 0
    assert "2 operations have no formula and are priced by what they move: " in out


def test_report_and_pick_and_export(searched, leanfront, tmp_path):
    code, out, _ = leanfront("report", searched)
    assert code == 0
    assert (searched / "report.html").stat().st_size > 1000
    code, out, err = leanfront(
        "pick", searched, "--trial", "1", "--epochs", "1", "--out", tmp_path / "x", "--format", "json"
    )
    assert code == 0, err
    assert json.loads(out)["passed"] is True
    assert {"model.onnx", "policy.json", "verification.json", "card.md"} <= {
        p.name for p in (tmp_path / "x").iterdir()
    }
    best = json.loads(leanfront("front", searched, "--format", "json")[1])["front"][0]["trial"]
    code, out, err = leanfront("export", searched, "--trial", best, "--out", tmp_path / "y")
    assert code == 0, err
    assert (tmp_path / "y" / "model.onnx").is_file()
    for kept in (searched / "checkpoints").iterdir():
        kept.unlink()
    assert "--trial" in wrong(leanfront, "export", searched, "--trial", best)


def test_what_cannot_be_promised_is_not_picked(searched, leanfront):
    sentence = wrong(leanfront, "pick", searched, "--max-drop", "0.01", "--confidence", "0.9")
    assert (
        "no point of the front surely loses at most 0.0100 of accuracy (--confidence 0.9" in sentence
    )  # of 80 examples
    assert "leave one of them out" in wrong(leanfront, "pick", searched, "--trial", 1, "--confidence", 0.9)
    assert "between 0 and 1" in wrong(leanfront, "pick", searched, "--confidence", 1)


def wrong(leanfront, *arguments: object) -> str:
    """The one sentence of a command that was given wrong input."""
    code, _, err = leanfront(*arguments)
    assert code == 2, err
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "FOLDER", "--set", "space.sparsty=[0.0]"], ["'sparsty'", "'sparsity'"]),
        (["search", "FOLDER", "--set", "hardware.profile=toi"], ["toi", "toy"]),
        (["search", "FOLDER", "--set", "space.weight_bits=[7,3]", "--set", "space.activation_bits=[32]"],
         ["7", "toy", "can run"]),
        (["search", "FOLDER", "--set", "limits.max_drop=5"], ["accuracy, which can lose 1", "0.01"]),
        (["search", "FOLDER", "--set", "limits.latency_ms=1e-9"], ["limits latency_ms = 1e-09", "nearest"]),
        (["search", "FOLDER", "--set", "task.options.broken=true"], ["uncompressed", "scores 0.5"]),
        (["search", "FOLDER", "--set", "task.options.brokn=true"], ["brokn", "broken"]),
        (["search", "FOLDER", "--set", "task.file=other.py"], ["other.py"]),
        (["check", "FOLDER/nothing.toml"], ["nothing.toml"]),
        (["front", "nothing"], ["'nothing'"]),
        (["status", "FOLDER"], ["not a run folder"]),
        (["report", "nothing"], ["'nothing'"]),
        (["pick", "nothing"], ["'nothing'"]),
        (["worker", "nothing"], ["'nothing'"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].islower() else None,
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_nothing_is_lost(folder, leanfront, tmp_path, arguments, words):
    run = ["--run", str(tmp_path / "run")] if arguments[0] == "search" else []
    sentence = wrong(leanfront, *(argument.replace("FOLDER", str(folder)) for argument in arguments), *run)
    for word in words:
        assert word in sentence


def test_a_search_needs_an_end(leanfront, tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG.replace("trials = 4", ""))
    assert "--hours or --trials" in wrong(leanfront, "search", tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_of_another_configuration(searched, folder, leanfront):
    before = (searched / "trials.csv").read_text()
    sentence = wrong(leanfront, "search", folder, "--run", searched, "--set", "finetune.images=32")
    assert "finetune.images" in sentence
    assert (searched / "trials.csv").read_text() == before


def test_a_run_folder_that_cannot_be_written(folder, leanfront, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in wrong(leanfront, "search", folder, "--run", tmp_path / "file" / "run")


def test_errors_of_the_command_line_itself(leanfront):
    for arguments in (
        ["serch"],
        ["front"],
        ["search", "x", "--hours", "soon"],
        ["pick", "x", "--prefer", "speed"],
    ):
        code, _, err = leanfront(*arguments)
        assert code == 2
        assert "Traceback" not in err


def test_debug_shows_the_traceback_wherever_it_stands(leanfront):
    for arguments in (["--debug", "front", "nothing"], ["front", "nothing", "--debug"]):
        code, _, err = leanfront(*arguments)
        assert code == 2
        assert "Traceback" in err
        assert "RunError" in err


def test_an_unforeseen_error_is_exit_code_1(leanfront, monkeypatch, searched):
    def broken(run):
        raise ZeroDivisionError("one by nothing")

    monkeypatch.setattr("leanfront.search.run.front.front_table", broken)
    code, _, err = leanfront("front", searched)
    assert (code, err) == (1, "failed: ZeroDivisionError: one by nothing (--debug shows where)\n")


def test_version(leanfront):
    code, out, _ = leanfront("--version")
    assert code == 0
    assert out.startswith("leanfront")


def start(folder: Path, run: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "leanfront", "search", str(folder), "--run", str(run), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trial_lines(process: "subprocess.Popen[str]", count: int) -> None:
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("trial ")
        if seen == count:
            return
    raise AssertionError("it ended before that many trials")


@pytest.mark.slow
def test_a_killed_search_takes_its_workers_with_it_and_ends_with_ctrl_c(folder, tmp_path):
    from leanfront.search.run.run_folder import open_run

    run = tmp_path / "run"
    process = start(folder, run, "--workers", "2", "--trials", "1000")
    trial_lines(process, 2)
    process.kill()
    process.wait()
    deadline = time.time() + 30
    while open_run(run).live_workers() and time.time() < deadline:
        time.sleep(0.1)
    assert not open_run(run).live_workers()
    done = [row.trial for row in open_run(run).trials() if row.state == "complete"]
    assert len(done) >= 2
    again = start(folder, run, "--workers", "2", "--trials", "1000")
    trial_lines(again, 3)
    again.send_signal(signal.SIGINT)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    assert f"leanfront search {folder} --run {run} --workers 2 --trials 1000" in out
    rows = {row.trial: row for row in open_run(run).trials()}
    assert all(rows[trial].state == "complete" for trial in done)
    assert not [row for row in rows.values() if row.state in ("running", "failed")]
    complete = [row for row in rows.values() if row.state == "complete"]
    assert len(complete) >= len(done) + 3
    assert len({row.worker for row in complete}) >= 3
    last = start(folder, run, "--workers", "2", "--trials", str(len(complete) + 2))
    out, _ = last.communicate(timeout=60)
    assert last.returncode == 0, out
    ended = sum(row.state == "complete" for row in open_run(run).trials())
    assert ended in (len(complete) + 2, len(complete) + 3)
