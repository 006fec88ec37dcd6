"""Techniques beside each other: every row trained alike, every file real, the first line true."""

import csv
import json
import re
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import leanfront as lf
from leanfront.compression.export.zipped_sizes import deflated
from leanfront.hw_profiles import load_profile
from leanfront.search.compare import sharing
from leanfront.search.compare.compare import COLUMNS, Comparison, _Making, plain
from leanfront.search.compare.made import spread
from leanfront.search.compare.recipes import RECIPES
from leanfront.search.compare.told import beats, headline, matches
from tests.bright import CONFIG, TASK
from tests.extending.walk import command, placed

STUDENT = """

_whole = task


def task(**options):
    import dataclasses

    outputs = 3 if options.pop("wrong", False) else 2
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, outputs))
    return dataclasses.replace(_whole(**options), student=student)
"""
ROWS = (
    "int8", "int8 dynamic", "float16", "channels 50 %", "channels 50 %, in 3 steps", "student, distilled",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    (folder / "task.py").write_text(TASK + STUDENT)
    (folder / "search.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def compared(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [word for name in ROWS for word in ("--row", name)]
    with placed(folder):
        answer = json.loads(command("compare", ".", "--out", "out", "--format", "json", *rows))
    return folder / "out", answer


def test_every_row_is_a_real_file(compared: tuple[Path, dict[str, Any]]) -> None:
    out, answer = compared
    rows = {row["row"]: row for row in answer["rows"]}
    assert list(rows) == [name for name in RECIPES if name in ("uncompressed", *ROWS)]
    assert {row["state"] for row in rows.values()} == {"done"}
    sizes = {len(file.read_bytes()) for file in (out / "rows").glob("*.model")}
    assert sizes == {row["size_bytes"] for row in rows.values() if row["state"] == "done"}
    zipped = {deflated(file.read_bytes()) for file in (out / "rows").glob("*.model")}
    assert zipped == {row["zipped_bytes"] for row in rows.values() if row["state"] == "done"}
    for file in (out / "rows").glob("*.model"):
        onnx.checker.check_model(onnx.load(file))
    assert rows["int8"]["size_bytes"] < rows["uncompressed"]["size_bytes"]
    assert rows["int8"]["bops"] < rows["uncompressed"]["bops"] / 10
    assert rows["channels 50 %"]["parameters"] < 0.6 * rows["uncompressed"]["parameters"]
    assert rows["channels 50 %"]["macs"] == rows["channels 50 %, in 3 steps"]["macs"]
    assert rows["int8"]["epochs"] == 0 < rows["channels 50 %"]["epochs"] == 1
    assert rows["uncompressed"]["drop"] == 0
    assert rows["int8 dynamic"]["latency_ms"] is None  # nothing says what that takes on an invented part
    for row in (row for row in rows.values() if row["state"] == "done"):
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] + 1e-9
        assert row["drop_low"] <= row["drop"] <= row["drop_high"]
        assert row["zipped_bytes"] < row["size_bytes"]


def test_what_is_written_says_the_same(compared: tuple[Path, dict[str, Any]]) -> None:
    out, answer = compared
    assert json.loads((out / "compare.json").read_text()) == answer
    with (out / "compare.csv").open() as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS
    assert [row["row"] for row in written] == [row["row"] for row in answer["rows"]]
    page = re.sub(r"<(script|style)\b.*?</\1>", "", (out / "compare.html").read_text(), flags=re.S)
    assert all(name in page for name in ROWS)
    assert "&#39;" in page or "'" in page
    assert "0.6.1" not in page


def test_the_same_call_goes_on_behind_what_is_there(folder: Path, compared: tuple[Path, Any]) -> None:
    out, answer = compared
    before = {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.model")}
    for file in (out / "rows").glob("*.json"):  # as if the part had had another price then
        row = json.loads(file.read_text())
        file.write_text(json.dumps({**row, "latency_ms": 1e6} if row["row"] == "int8" else row))
    with placed(folder):
        again = json.loads(
            command(
                "compare", ".", "--out", "out", "--format", "json", "--row", "int8", "--row", "channels 50 %"
            )
        )
    assert [row["row"] for row in again["rows"]] == ["uncompressed", "int8", "channels 50 %"]
    kept = {row["row"]: row for row in answer["rows"]}
    assert all(row == kept[row["row"]] for row in again["rows"])
    assert {file: file.stat().st_mtime_ns for file in (out / "rows").glob("*.model")} == before


def test_what_a_part_does_not_run_is_left_out(folder: Path) -> None:
    rows = [word for name in ("float16", "int8 dynamic") for word in ("--row", name)]
    profile = "hardware.profile=raspberry-pi-4"
    with placed(folder):
        answer = json.loads(command("compare", ".", "--set", profile, *rows, "--format", "json"))
    base, *others = answer["rows"]
    assert base["latency_is"] == "predicted"
    assert [row["state"] for row in others] == ["left out", "left out"]
    assert others[0]["reason"] == "raspberry-pi-4 does not run weights of 16 with activations of 16 bits"
    assert others[1]["reason"] == "it is onnxruntime's own, and this part runs tflite"
    assert (folder / "runs" / f"compare-{folder.name}-raspberry-pi-4" / "compare.html").exists()


def test_a_search_stands_beside(folder: Path) -> None:
    with placed(folder):
        command("search", ".", "--run", "run", "--set", "search.trials=2", "--set", "search.sampler=random")
        answer = json.loads(
            command("compare", ".", "--out", "beside", "--run", "run", "--row", "int8", "--format", "json")
        )
    searched = [row for row in answer["rows"] if row["techniques"] == "searched"]
    front = lf.Run(folder / "run").front
    assert {row["row"] for row in searched} <= {f"trial {trial}" for trial in front.trial}
    assert searched
    assert "as a network of the search and scores better beyond noise" in answer["headline"]
    assert "The search has a network that costs no more" in answer["headline"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--row", "int7"), "no row is called 'int7'; did you mean 'int8'?"),
        (("--epochs", "0"), "trained for more than 0 epochs, not 0"),
        (("--run", "nowhere"), "nowhere"),
        (
            ("--row", "student", "--set", "task.options={wrong = true}"),
            "outputs are [(1, 3)] and the network's",
        ),
    ],
)
def test_wrong_input_is_one_sentence(folder: Path, words: tuple[str, ...], said: str) -> None:
    with placed(folder):
        told = command("compare", ".", "--out", "wrong", *words, ends=2)
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert said in line


@pytest.mark.slow
def test_other_data_and_other_runs_make_rows_anew(folder: Path) -> None:
    task = folder / "task.py"
    with placed(folder):
        command("search", ".", "--run", "other", "--set", "search.trials=1", "--set", "search.sampler=random")
        words = ("compare", ".", "--out", "anew", "--row", "int8", "--format", "json")
        first = json.loads(command(*words, "--run", "other"))
        made = {file: file.stat().st_mtime_ns for file in (folder / "anew" / "rows").glob("*.model")}
        before = task.read_text()
        task.write_text(before.replace("0.6 * labels", "0.5 * labels"))
        try:
            json.loads(command(*words))
        finally:
            task.write_text(before)
    names = [row["row"] for row in first["rows"]]
    assert names[:2] == ["uncompressed", "int8"]
    assert any(name.startswith("trial ") for name in names[2:])
    after = {file: file.stat().st_mtime_ns for file in (folder / "anew" / "rows").glob("*.model")}
    assert sum(after[file] != made[file] for file in made) == 2  # those two rows, on other images


def _row(name: str, right: int, ms: float, **more: Any) -> dict[str, Any]:
    base = {"row": name, "techniques": ["a"], "state": "done", "latency_ms": ms, "drop": 0.0, "drop_low": 0.0}
    return base | {"accuracy": right / 1000} | more


def _scores(right: int) -> Any:
    return (np.arange(1000) < right).astype(np.float32)


def test_the_first_line_names_what_a_search_has_not() -> None:
    rows = [
        _row("uncompressed", 900, 4.0),
        _row("slow", 900, 2.0),
        _row("better", 950, 2.0),
        _row("trial 3", 899, 1.0, techniques=["searched"], drop_low=-0.01),
    ]
    evidence = MappingProxyType({row["row"]: _scores(round(1000 * row["accuracy"])) for row in rows})
    assert matches(rows[3], rows[1], evidence, ["latency_ms"])  # 0.1 points are noise
    assert not matches(rows[3], rows[2], evidence, ["latency_ms"])
    assert not beats(rows[2], rows[3], evidence, ["latency_ms"])  # it takes longer
    fast, more = _row("fast", 900, 0.9), {**evidence, "fast": _scores(900), "best": _scores(950)}
    assert not matches(rows[3], fast, more, ["latency_ms"])
    assert not beats(fast, rows[3], more, ["latency_ms"])
    best = _row("best", 950, 1.01)  # within what latencies of one run are apart
    assert beats(best, rows[3], more, ["latency_ms"])
    told = headline([*rows, best], more, ("accuracy", "latency_ms"))
    assert "'best' needs as little latency as a network of the search and scores better beyond" in told
    said = headline(rows, evidence, ("accuracy", "latency_ms"))
    assert "latency is least with 'trial 3' (1.00 ms, 4.0 times less)" in said
    assert "No other row needs as little latency as a network of the search and scores better" in said
    assert said.endswith("for 1 of the 2 other rows, not for 'better'.")
    lost = [rows[0], _row("cut", 800, 1.0, drop=0.1, drop_low=0.08)]
    assert "Every row loses accuracy beyond noise" in headline(lost, evidence, ("accuracy", "latency_ms"))


def test_the_first_line_of_one_row_that_loses_nothing() -> None:
    rows = [
        _row("uncompressed", 900, 4.0),
        _row("slower", 900, 8.0),
        _row("cut", 800, 1.0, drop=0.1, drop_low=0.08),
    ]
    evidence = {row["row"]: _scores(round(1000 * row["accuracy"])) for row in rows}
    said = headline(rows, evidence, ("accuracy", "latency_ms"))
    assert said == "Only 'slower' loses no accuracy beyond noise: latency 8.00 ms, 2.0 times more."


def test_tables_keep_floats_where_the_part_does_not_decode_them() -> None:
    captured = lf.capture(
        torch.nn.Sequential(torch.nn.Embedding(30, 8), torch.nn.Linear(8, 2)).eval(),
        torch.zeros(1, 4, dtype=torch.int64),
    )
    (policy,) = RECIPES["int8"].policies(captured.network, load_profile("raspberry-pi-4"))
    assert [(one.weight_bits, one.activation_bits) for one in policy.values()] == [(32, 32), (8, 8)]
    (policy,) = RECIPES["int8"].policies(captured.network, load_profile("this-machine"))
    assert [(one.weight_bits, one.activation_bits) for one in policy.values()] == [(8, 32), (8, 8)]


def test_members_lie_along_what_no_other_beats() -> None:
    """Of 21 networks the slow are accurate and the small are not; others are worse than some in both."""

    def row(trial: int, accuracy: float, latency_ms: float, size_bytes: float) -> Any:
        costs = {"latency_ms": latency_ms, "size_bytes": size_bytes}
        return SimpleNamespace(trial=trial, accuracy=accuracy, value=costs.get)

    front = [row(n, 0.7 + 0.01 * n, 2.0 ** (n / 4), 1000 * 1.1**n) for n in range(21)]
    front += [row(50 + n, 0.5, 2.0 ** (n / 4), 5000.0) for n in range(20)]
    found = spread(front, ("latency_ms", "size_bytes"), 6)
    assert [one.trial for one in found] == [0, 10, 20]
    assert spread(front, ("latency_ms",), 2) == [front[0], front[20]]
    assert spread(front, ("latency_ms",), 1) == [front[20]]
    assert spread(front[:1], ("latency_ms", "size_bytes"), 6) == front[:1]
    small = row(99, 0.9, 100.0, 10.0)  # as good as any at its size, and slow
    assert small in spread([*front, small], ("latency_ms", "size_bytes"), 6)


def test_another_process_makes_what_this_one_would(
    folder: Path, compared: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here this process makes the first row and the student's, which each process draws for itself."""
    looks, make = iter(range(240)), _Making.make
    own = ("uncompressed", "student, distilled")

    def few(self: _Making, wanted: Any) -> None:
        next(looks)
        make(self, [one for one in wanted if one.name in own])

    monkeypatch.setattr(_Making, "make", few)
    notes: list[str] = []
    with placed(folder):
        config = {"search": {"workers": 2}, "space": {"criterion": ["l1"]}}
        found = lf.compare(".", out="shared", rows=ROWS, settings=config, log=notes.append)
    _, alone = compared
    given = ("row", "state", "parameters", "macs", "bops", "epochs", "latency_ms")
    for row, other in zip(map(plain, found.rows), alone["rows"], strict=True):
        assert [row[name] for name in given] == [other[name] for name in given]
        assert row["row"] in own or abs(row["accuracy"] - other["accuracy"]) < 0.05
    made = [note for note in notes if " of 7: " in note]
    assert sorted(made) == [f"{number} of 7: {row['row']}" for number, row in enumerate(alone["rows"], 1)]
    assert (folder / "shared" / "workers.log").read_text() == ""


def test_what_a_killed_helper_leaves_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper dies as it begins; the process that was called makes every row."""
    monkeypatch.setattr(sharing, "_PROGRAM", ("-c", "import sys; sys.exit('no')"))
    notes: list[str] = []
    with placed(folder):
        config = {"search": {"workers": 2}}
        found = lf.compare(".", out="alone", rows=["int8"], settings=config, log=notes.append)
    assert [row["state"] for row in found.rows] == ["done", "done"]
    assert any("a worker ended with an error" in note for note in notes)
    assert "no" in (folder / "alone" / "workers.log").read_text()


def test_a_row_is_claimed_by_one(tmp_path: Path) -> None:
    table = Comparison(tmp_path, "key")
    with table.claimed("int8") as first, table.claimed("int8") as second, table.claimed("float16") as other:
        assert (first, second, other) == (True, False, True)
    with table.claimed("int8") as again:
        assert again


def test_a_row_that_failed_is_tried_again_by_the_next_call(tmp_path: Path) -> None:
    table = Comparison(tmp_path, "key")
    table.keep({"row": "int8", "state": "failed"}, None)
    table.keep({"row": "float16", "state": "left out"}, None)
    table.keep({"row": "student", "state": "failed"}, None, "-of its own")
    assert table.known("int8") is not None
    for name, own in (("int8", ""), ("float16", ""), ("never", ""), ("student", "-of its own")):
        table.forget_failed(name, own)
    assert table.known("student", "-of its own") is None
    assert (table.known("int8"), table.known("float16")) == (None, {"row": "float16", "state": "left out"})
