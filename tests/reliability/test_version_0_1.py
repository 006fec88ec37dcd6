"""What version 0.1 left: tasks that import ``search.task``, and run folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from leanfront.search.task import TaskError, load_task
from tests.bright import CONFIG, TASK
from tests.extending.walk import command
from tests.goldens import run as golden
from tests.variants import some

ROOT = Path(__file__).parents[2]
OLD = TASK.replace("from leanfront import", "from search.task import")
SAID = "write `from leanfront import ArrayData, Task` and `from leanfront.readers import ...`"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The folder of a task that was written for version 0.1."""
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "task.py").write_text(OLD)
    (folder / "search.toml").write_text(CONFIG)
    return folder


def check(task: Path, where: Path, site: Path) -> str:
    """What ``leanfront check`` refuses it with, with ``leanfront`` alone on the path, as installed."""
    site.mkdir()
    (site / "leanfront").symlink_to(ROOT / "leanfront")
    words = [sys.executable, "-m", "leanfront", "check", str(task)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("place", some(["own search.py", "repository", "elsewhere"], 1))
def test_the_sentence_says_what_to_import(place: str, task: Path, tmp_path: Path) -> None:
    if place == "own search.py":
        (task / "search.py").write_text("mine = True\n")
    said = check(task, ROOT if place == "repository" else tmp_path, tmp_path / "site")
    assert SAID in said
    assert str(task / "task.py") in said
    assert "as tasks of version 0.1 did" in said


def test_readers_are_said_too(task: Path) -> None:
    (task / "task.py").write_text("from search.readers import read_idx\n")
    with pytest.raises(TaskError, match=r"from leanfront\.readers import"):
        load_task(task / "task.py", {})


def test_a_search_of_ones_own_is_not_taken_for_it(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "search", raising=False)
    (task / "search.py").write_text("mine = True\n")
    (task / "task.py").write_text("from search import mine\nfrom search import yours\n")
    with pytest.raises(
        TaskError, match=r"failed in .*task\.py, line 2: ImportError: cannot import name 'yours'"
    ):
        load_task(task / "task.py", {})


def test_its_runs_are_read_and_its_tasks_named(tmp_path: Path) -> None:
    run = golden.unpacked(tmp_path)
    (tmp_path / "task.py").write_text(
        golden.TASK.read_text().replace("from leanfront.search.task import", "from search.task import")
    )
    assert "trial" in command("front", str(run))
    assert "trial" in command("status", str(run))
    command("report", str(run))
    assert (run / "report.html").stat().st_size > 10_000
    said = command("pick", str(run), "--max-drop", "1", "--epochs", "0", ends=2)
    assert SAID in said
