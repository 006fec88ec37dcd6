"""Measuring never runs beside training: a lock that all processes of leanfront on one machine respect.

Two files in the cache folder. Who trains holds ``training`` shared, for one trial at a time. Who measures
holds ``measuring`` alone, which keeps new trials from beginning, then ``training`` alone, which waits for
those that run. Both always take ``measuring`` first, and nobody waits for it while holding ``training``, so
there is no deadlock; the kernel lifts an flock when its process ends, however it ends.
"""

import fcntl
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from leanfront.latency_models.cost import TableError
from leanfront.latency_models.kernel_table.table import cache_folder

Note = Callable[[str], None]

SILENT_S = 1.0
"""Waiting for longer than this is said."""

_held: list[str] = []
"""What this process does; a lock for the same is not taken twice."""


@contextmanager
def measuring(note: Note = lambda line: None) -> Iterator[None]:
    """Wait until nobody measures and nobody trains, and keep it so. ``note`` hears of long waits.

    Raises:
        TableError: the cache folder cannot be written.
        RuntimeError: within ``training`` of the same process, which would wait for itself.
    """
    with _once("measuring") as first, ExitStack() as held:
        if first:
            try:
                alone, running = [held.enter_context(_open(what)) for what in ("measuring", "training")]
            except OSError as error:
                raise TableError(
                    f"cannot write the cache folder {cache_folder()}: {error.strerror};"
                    " set LEANFRONT_CACHE to another"
                ) from error
            _lock(alone, fcntl.LOCK_EX, note, "waiting for another leanfront to finish measuring")
            _lock(running, fcntl.LOCK_EX, note, "waiting for another leanfront to finish training a trial")
        yield


@contextmanager
def training(note: Note = lambda line: None) -> Iterator[None]:
    """Wait until nobody measures, and keep others from measuring until the with block ends.

    Any number of processes may train. Without a cache folder that can be written nobody measures on this
    machine, and there is nothing to wait for.

    Raises:
        RuntimeError: within ``measuring`` of the same process.
    """
    with _once("training") as first, ExitStack() as held:
        if first:
            with suppress(OSError), _open("measuring") as alone:
                running = held.enter_context(_open("training"))
                _lock(alone, fcntl.LOCK_SH, note, "waiting for another leanfront to finish measuring")
                _lock(running, fcntl.LOCK_SH, note, "waiting for another leanfront to finish measuring")
        yield


@contextmanager
def _once(what: str) -> Iterator[bool]:
    """Whether this is the outermost block of its kind in this process."""
    if _held and what not in _held:
        raise RuntimeError(f"a process that is {_held[-1]} cannot begin {what}")
    _held.append(what)
    try:
        yield len(_held) == 1
    finally:
        _held.pop()


def _open(what: str) -> BinaryIO:
    """A lock file. Its name has the machine's: cache folders may lie on a network drive."""
    path = lock_path(what)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def lock_path(what: str) -> Path:
    """The lock file of "measuring" or "training"."""
    return cache_folder() / f"{what}-{platform.node() or 'here'}.lock"


def _lock(file: BinaryIO, kind: int, note: Note, waiting: str) -> None:
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return
    note(waiting)
    fcntl.flock(file, kind)
