"""Processes that make rows of a comparison beside the one that has begun it.

They claim row after row in its folder (``Comparison.claimed``), so that one that is killed leaves its row to
the others. They are in sessions of their own, and end with the process that started them.
"""

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanfront.search.compare.recipes import Note
from leanfront.search.config import SearchConfig, parse_config
from leanfront.search.study.run_search import wait_or_kill

_PROGRAM = ("-m", "leanfront.search.compare")


@dataclass(frozen=True)
class Shared:
    """What all processes of a comparison are given: arguments of ``compare``. run: the path of a search."""

    config: SearchConfig
    folder: Path
    epochs: float
    rows: tuple[str, ...]
    run: Path | None

    def plain(self) -> dict[str, Any]:
        """In values of JSON."""
        run = None if self.run is None else str(self.run)
        own = {"folder": str(self.folder), "epochs": self.epochs, "rows": list(self.rows), "run": run}
        return {"config": self.config.to_toml(), **own}

    @staticmethod
    def read(plain: Mapping[str, Any]) -> "Shared":
        """What ``plain`` has made."""
        run = None if plain["run"] is None else Path(plain["run"])
        config = parse_config(tomllib.loads(plain["config"]))
        return Shared(config, Path(plain["folder"]), plain["epochs"], tuple(plain["rows"]), run)


@contextmanager
def helped(shared: Shared, known: Mapping[str, Any], threads: Sequence[int], note: Note) -> Iterator[None]:
    """A process for each number of threads makes rows, for the length of a with block; ``note`` hears which.

    known: further arguments of ``join_compare``, in values of JSON.
    """
    listeners = []
    started: list[subprocess.Popen[bytes]] = []
    try:
        for count in threads:
            started.append(_start(shared, known, count))
            listeners.append(threading.Thread(target=_listen, args=(started[-1], note), daemon=True))
            listeners[-1].start()
        yield
    finally:
        for process in started:
            process.terminate()  # with every row made it has nothing left to do
        for process in started:
            wait_or_kill(process)
        for listener in listeners:
            listener.join(timeout=1)


def _start(shared: Shared, known: Mapping[str, Any], threads: int) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (shared.folder / "workers.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as given:  # one that died at once: the others make its rows
        told = {"parent": os.getpid(), "shared": shared.plain(), "known": {**known, "threads": threads}}
        given.write(json.dumps(told).encode())
    return process


def _listen(process: "subprocess.Popen[bytes]", note: Note) -> None:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            note(line.decode(errors="replace").rstrip())
    if process.wait() > 0:
        note("a worker ended with an error (workers.log says which); the others make its rows")
