"""Optuna's dashboard opens a run's journal."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import write_run

BESIDE = str(Path(sys.executable).parent)
PROGRAM = shutil.which("optuna-dashboard", path=os.pathsep.join((BESIDE, os.environ["PATH"])))


@pytest.mark.skipif(PROGRAM is None, reason="optuna-dashboard is not installed")
def test_the_dashboard_lists_the_study_and_its_trials(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 30, 5)
    before = run.journal.read_bytes()
    port = _free_port()
    line = [str(PROGRAM), "--host", "127.0.0.1", "--port", str(port), str(run.journal)]
    server = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        (study,) = _answer(server, f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert (study["study_name"], study["directions"]) == ("leanfront", ["maximize", "minimize"])
        trials = _answer(server, f"http://127.0.0.1:{port}/api/studies/{study['study_id']}")["trials"]
    finally:
        server.terminate()
        server.communicate(timeout=20)
    assert [trial["state"] for trial in trials] == [
        {"complete": "Complete", "infeasible": "Pruned", "failed": "Fail"}[row.state] for row in run.trials()
    ]
    assert {parameter["name"].partition("/")[0] for parameter in trials[0]["params"]} == {"bits", "sparsity"}
    assert run.journal.read_bytes() == before


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answer(server: "subprocess.Popen[bytes]", url: str) -> Any:
    """What the server says, once it is up."""
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no answer at {url}")
