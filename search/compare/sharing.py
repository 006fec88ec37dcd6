"""Processes that make rows of a comparison beside the one that has begun it.

They claim row after row in its folder (``Comparison.claimed``), so that one that is killed leaves its row to
the others. They are in sessions of their own, and end with the process that started them.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanfront.search.compare.recipes import Note
from leanfront.search.config import SearchConfig
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


@contextmanager
def helped(shared: Shared, known: tuple[Any, ...], threads: Sequence[int], note: Note) -> Iterator[None]:
    """A process for each number of threads makes rows, for the length of a with block; ``note`` hears which.

    known: the next arguments of ``join_compare``.
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


def _start(shared: Shared, known: tuple[Any, ...], threads: int) -> "subprocess.Popen[bytes]":
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
        pickle.dump((os.getpid(), shared, *known, threads), given)
    return process


def _listen(process: "subprocess.Popen[bytes]", note: Note) -> None:
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            note(line.decode(errors="replace").rstrip())
    if process.wait() > 0:
        note("a worker ended with an error (workers.log says which); the others make its rows")
