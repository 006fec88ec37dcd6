"""The CIFAR-10 examples from search to verified file, on the real images: minutes, so run by make soak."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "cifar10_jpeg.zip"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["cifar10_resnet20", "cifar10_vgg11"])
def test_example_from_search_to_verified_file(example: str, tmp_path: Path) -> None:
    if not DATA.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"needs {DATA}")
    run = tmp_path / "run"
    short = ["--set", "finetune.images=256", "--set", "limits.max_drop=0.9"]
    leanfront("search", str(ROOT / "examples" / example), "--trials", "3", "--run", str(run), *short)
    told = json.loads(leanfront("pick", str(run), "--trial", "2", "--epochs", "0.02", "--format", "json"))
    assert told["passed"], told["failures"]
    assert told["test"]["n"] == 5000
    assert told["test"]["agreement"] >= 0.995
    assert abs(told["latency"]["error"]) <= 0.15
    assert told["latency"]["ratio"] < 0.6
    assert told["size"]["bytes"] < told["size"]["baseline_bytes"] / 6


def leanfront(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "leanfront", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
