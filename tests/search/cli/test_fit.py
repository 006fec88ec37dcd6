"""``leanfront profile kit --engine`` and ``profile fit``: whole networks timed by the part's own engine, and
what its profile learns of them."""

import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from leanfront.compression.export.dialects import dialect_of
from leanfront.hw_profiles import ProfileError, load_profile
from leanfront.latency_models import TableError
from leanfront.search.cli.app import app
from leanfront.search.config import ConfigError
from tests.search.cli.test_measure_command import CONFIG, TASK

PROFILE = "jetson-orin-nano"
TRTEXEC = """#!/usr/bin/env python3
import pathlib, re, sys
said = " ".join(sys.argv[1:])
onnx, plan = re.search(r"--onnx=(\\S+)", said), re.search(r"Engine=(\\S+)", said)
if onnx:
    if "--fp16" in said and pathlib.Path(sys.argv[0]).with_name("new").exists():
        sys.exit(print("[E] Unknown option: --fp16") or 1)
    size = len(pathlib.Path(onnx.group(1)).read_bytes())
    share = 0.5 if "--fp16" in said else 1.0
    pathlib.Path(plan.group(1)).write_text(str(0.05 + 1e-6 * size * share))
    print("[I] TensorRT version: 10.3.0")
else:
    ms = float(pathlib.Path(plan.group(1)).read_text())
    print(f"[I] GPU Compute Time: min = {ms:.6f} ms, max = 9 ms, mean = 1 ms, median = {ms:.6f} ms, other")
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_PROFILES", str(tmp_path / "profiles"))
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def leanfront(*words: str) -> str:
    found = CliRunner().invoke(app, words)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


def made_kit(folder: Path) -> Path:
    (folder / "task.py").write_text(TASK, encoding="utf-8")
    (folder / "search.toml").write_text(CONFIG, encoding="utf-8")
    leanfront("profile", "kit", PROFILE, "--engine", "tensorrt", "--config", "search.toml", "--out", "kit")
    tool = folder / "trtexec"
    tool.write_text(TRTEXEC, encoding="utf-8")
    tool.chmod(0o755)
    return folder / "kit"


def measure(kit: Path, tool: Path, ends: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-I", kit / "measure.py"], env={**os.environ, "TRTEXEC": str(tool)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == ends, done.stdout
    return done.stdout


@pytest.mark.slow
def test_from_a_kit_to_a_fitted_profile(tmp_path: Path) -> None:
    kit = made_kit(tmp_path)
    manifest = json.loads((kit / "manifest.json").read_text(encoding="utf-8"))
    rules = dialect_of("tensorrt").rules
    for entry in manifest["networks"]:
        model = onnx.load(kit / entry["file"])
        assert not [sentence for rule in rules for sentence in rule.broken(model)]
    assert {"fp32", "fp16", ""} == {p for entry in manifest["networks"] for p in entry["precisions"]}
    assert "leanfront profile fit jetson-orin-nano" in measure(kit, tmp_path / "trtexec")
    with (kit / "measured.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    wanted = [(e["file"], p) for e in manifest["networks"] for p in e["precisions"]]
    assert [(row["network"], row["precision"]) for row in rows] == wanted
    assert {row["tensorrt"] for row in rows} == {"10.3.0"}
    size = (kit / rows[0]["network"]).stat().st_size
    assert float(rows[0]["latency_ms"]) == pytest.approx(0.05 + 1e-6 * size, rel=1e-4)

    # interrupted after the second row: the third and what follows are measured, the first two are not
    text = (kit / "measured.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (kit / "measured.csv").write_text("".join(text[:3]), encoding="utf-8")
    assert measure(kit, tmp_path / "trtexec").count(" ms\n") == len(rows) - 2

    said = leanfront("profile", "import", "kit/measured.csv", "--profile", PROFILE)
    assert "on networks left out" in said
    fitted = load_profile(f"{PROFILE}-fitted")
    source = fitted.source("roofline.overhead_ms")
    assert source is not None
    assert source.status == "calibrated"
    assert source.from_.startswith(f"{len(rows)} rows, 20")
    assert fitted.engine == "tensorrt"
    again = json.loads(leanfront("profile", "fit", PROFILE, "--rows", "kit/measured.csv", "--format", "json"))
    assert again["profile"] == f"{PROFILE}-fitted"
    assert len(again["rows"]) == len(rows)


@pytest.mark.slow
def test_a_trtexec_without_flags_for_precisions_takes_files_as_they_are(tmp_path: Path) -> None:
    kit = made_kit(tmp_path)
    (tmp_path / "new").touch()
    measure(kit, tmp_path / "trtexec")
    assert len((kit / "measured.csv").read_text(encoding="utf-8").splitlines()) > 3


def test_a_kit_says_what_it_misses(tmp_path: Path) -> None:
    kit = made_kit(tmp_path)
    (tmp_path / "trtexec").write_text("#!/bin/sh\necho no CUDA device; exit 3\n", encoding="utf-8")
    assert "ended with 3: no CUDA device" in measure(kit, tmp_path / "trtexec", ends=2)
    (kit / "measured.csv").write_text("network,precision,kit,board\na,fp32,other,b\n", encoding="utf-8")
    assert "is of another kit (other)" in measure(kit, tmp_path / "trtexec", ends=2)
    with pytest.raises(TableError, match="there is no kit for 'qonnx'; there is one for tensorrt"):
        leanfront("profile", "kit", PROFILE, "--engine", "qonnx", "--out", "x")
    with pytest.raises(ConfigError, match="--threads and --provider are onnxruntime's"):
        leanfront("profile", "kit", PROFILE, "--engine", "tensorrt", "--out", "x", "--threads", "2")
    with pytest.raises(TableError, match="give --config"):
        leanfront("profile", "kit", PROFILE, "--engine", "tensorrt", "--out", "x")


@cache
def table() -> str:
    lines = [
        "name,op,in_channels,out_channels,kernel_h,kernel_w,stride_h,stride_w,groups,out_height,out_width,bias"
    ]
    lines += [f"c{i},conv2d,{c},64,3,3,1,1,1,56,56,0" for i, c in enumerate((3, 64, 64))]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "network,latency_us\nnet.csv,3\n",
            "no column latency_ms, but latency_us; latencies are in millisec",
        ),
        ("net,latency_ms\nnet.csv,3\n", "no column network, but net"),
        ("network,latency_ms,energy_j\nnet.csv,3,1\n", "energy_j has another unit; give energy_mj"),
        ("network,latency_ms\n", "has no rows"),
        ("network,latency_ms\nnet.csv,-1\n", "line 2: latency_ms must be a positive number, not '-1'"),
        ("network,latency_ms\nnot.csv,1\n", "line 2: .*not.csv"),
        ("network,precision,latency_ms\nnet.csv,int4,1\n", "line 2: precision is fp32, fp16, int8 or empty"),
        ("network,latency_ms,board\nnet.csv,1,a\nnet.csv,1,b\n", "rows of several boards"),
        ("network,latency_ms,profile\nnet.csv,1,toy\n", "by a kit for profile 'toy', not"),
        (
            "network,latency_ms\nnet.csv,900000\n",
            "times what the profile says; latency_ms is in milli",
        ),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "net.csv").write_text(table(), encoding="utf-8")
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(TableError, match=said):
        leanfront("profile", "fit", PROFILE, "--rows", "rows.csv")


def test_few_rows_and_names_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "net.csv").write_text(table(), encoding="utf-8")
    (tmp_path / "rows.csv").write_text("network,latency_ms\nnet.csv,0.9\n", encoding="utf-8")
    assert "too few networks to leave one out" in leanfront("profile", "fit", PROFILE, "--rows", "rows.csv")
    leanfront("profile", "new", "mine", "--like", PROFILE)
    with pytest.raises(ProfileError, match="there is a profile 'mine' already"):
        leanfront("profile", "fit", PROFILE, "--rows", "rows.csv", "--name", "mine")
    with pytest.raises(TableError, match="roofline"):
        leanfront("profile", "fit", "zynq-7020", "--rows", "rows.csv")
