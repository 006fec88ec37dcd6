"""A whole walk with what a task's file adds: search, front, pick, report, each as a new process has it.

Trials run in a worker process. The other commands run here, with the registries as they are delivered, so
that each knows of what is added only what it has loaded itself; for ``front`` and ``report`` the task's file
is away.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from leanfront.compression.export import dialects
from leanfront.compression.policy import technique
from leanfront.hw_profiles import load_profile, section
from leanfront.latency_models import registry
from leanfront.search import objectives, samplers
from leanfront.search.cli.app import main
from leanfront.search.pick import pick as _pick  # noqa: F401  # what it needs registers with it
from leanfront.search.run.run_folder import TrialRow, open_run
from tests.bright import CONFIG, TASK

registry.model_of(load_profile("toy"))  # ours register when the first is asked for
for _kind in dialects.BUILT_IN.values():
    dialects.dialect_of(_kind)  # the same
_DELIVERED: list[tuple[dict[Any, Any], dict[Any, Any]]] = [
    (found, dict(found))
    for found in (
        objectives._TABLE, section._SECTIONS, registry._MODELS, technique._REGISTERED,
        samplers.registry._SAMPLERS, dialects._REGISTERED,
    )
]  # fmt: skip


_CACHE = TemporaryDirectory(prefix="leanfront-tests-")


@dataclass(frozen=True)
class Walk:
    """What the commands said and left. ``front``: as JSON; ``table``: the same for people; ``picked``: what
    pick says; ``page``: the report without its scripts; ``exported``: the folder of the picked network."""

    run: Path
    trials: list[TrialRow]
    front: dict[str, Any]
    table: str
    picked: str
    page: str
    exported: Path

    @property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.run / "environment.json").read_text())

    @property
    def verification(self) -> dict[str, Any]:
        return json.loads((self.exported / "verification.json").read_text())

    @property
    def card(self) -> str:
        return (self.exported / "card.md").read_text()


def walked(folder: Path, added: str, *settings: str, wish: tuple[str, ...] = ()) -> Walk:
    """The task of tests/bright.py with ``added`` in its file. ``settings``: as --set takes them, after
    those of a short search; ``wish``: options of pick."""
    task, run = folder / "task.py", folder / "run"
    task.write_text(TASK + added)
    (folder / "search.toml").write_text(CONFIG)
    chosen = [f"--set={one}" for one in ("search.sampler=random", *settings)]
    with placed(folder):
        command("search", ".", "--run", "run", *chosen)
        task.rename(folder / "away.py")
        front = json.loads(command("front", "run", "--format", "json"))
        table = command("front", "run")
        (folder / "away.py").rename(task)
        picked = command("pick", "run", "--max-drop", "1", "--epochs", "0", *wish)
        task.rename(folder / "away.py")
        (run / "report.html").unlink()  # the search wrote one, which knew the task
        command("report", "run")
    (exported,) = (run / "exported").iterdir()
    page = re.sub(r"<(script|style)\b.*?</\1>", "", (run / "report.html").read_text(), flags=re.S)
    return Walk(run, open_run(run).trials(), front, table, picked, page, exported)


def command(*words: str, ends: int = 0) -> str:
    """What ``leanfront`` prints, all of it where it ends with another code than 0."""
    out, error = StringIO(), StringIO()
    code: Any = 0
    argv = patch.object(sys, "argv", ["leanfront", *words])
    with as_delivered(), argv, redirect_stdout(out), redirect_stderr(error):
        try:
            main()
        except SystemExit as end:
            code = end.code
    said = f"{error.getvalue()}{out.getvalue()}"
    assert (code or 0) == ends, f"{' '.join(words)}: {code}: {said}"
    return said if ends else out.getvalue()


@contextmanager
def as_delivered() -> Iterator[None]:
    """Within, nothing is known that was registered since; after it, nothing that was registered within."""
    before = [dict(found) for found, _ in _DELIVERED]
    try:
        for found, delivered in _DELIVERED:
            _fill(found, delivered)
        yield
    finally:
        for (found, _), entries in zip(_DELIVERED, before, strict=True):
            _fill(found, entries)


def _fill(found: dict[Any, Any], entries: dict[Any, Any]) -> None:
    found.clear()
    found.update(entries)


@contextmanager
def placed(folder: Path) -> Iterator[None]:
    """In a folder, with the cache of all walks of this process: what is proved of a network, and sizes that
    were measured, once."""
    here = Path.cwd()
    with patch.dict(os.environ, {"LEANFRONT_CACHE": _CACHE.name, "OMP_NUM_THREADS": "1"}):
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
