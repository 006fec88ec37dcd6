"""Who works on a run: locks that die with their process, and leases where machines do not see those.

The kernel lifts an flock when its process ends, however it ends. Whoever works on a trial, or on a run as
its one search, also says so again and again, so that a worker that is lost is noticed wherever it ran,
through any storage. Optuna's own heartbeat is not used: it serves ``Study.optimize`` alone (not ask and
tell), and only databases have it.
"""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanfront.search.run.disk import Note

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

BEAT_SECONDS = 20.0
LEASE_SECONDS = 120.0
BEAT = "beat"
"""Attribute of a trial: how often its lease was renewed."""
_SECONDS_UNTIL_ALARM = 600.0
"""The kernel ends a process whose interpreter hangs, so that it could not even renew a lease, for so long."""


class Taken(ValueError):
    """A run folder that another living search works on."""


def try_lock(path: Path) -> int | None:
    """Lock a file (made if it is missing) for as long as the returned descriptor is open.

    Returns None when another process holds it. The content is not touched.
    """
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, and hold it for the length of a with block."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # closing lifts the lock


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of a file. A file that is not there is not held."""
    try:
        descriptor = _opened(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


@contextmanager
def beating(beat: Callable[[int], object]) -> Iterator[None]:
    """Call ``beat`` with 1, 2, ... every BEAT_SECONDS from a thread, for the length of a with block.

    What it raises is let go: after a full disk, or a server that is away, the next beat may get through.
    """
    ended = threading.Event()

    def run() -> None:
        count = 0
        while not ended.wait(BEAT_SECONDS):
            count += 1
            with suppress(Exception):
                beat(count)

    thread = threading.Thread(target=run, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def leased(
    renew: Callable[[int], object],
    most_seconds: float = float("inf"),
    overdue: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Renew the lease of a trial for the length of a with block: ``renew`` gets the value of ``BEAT``.

    ``overdue`` is called at each beat after ``most_seconds``.
    """
    ends = time.monotonic() + most_seconds

    def beat(count: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_UNTIL_ALARM)
        if time.monotonic() > ends:
            overdue()
        renew(count)

    try:
        with beating(beat):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


class Watch:
    """Tells which leases have run out, by this process's own clock: those of two machines may differ."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def has_run_out(self, trial: "FrozenTrial") -> bool:
        """Whether a running trial's lease was not renewed for ``LEASE_SECONDS`` while this was asked."""
        beat = (trial.user_attrs.get("worker"), trial.user_attrs.get(BEAT))
        now = time.monotonic()
        known, since = self._seen.get(trial.number, (None, now))
        if known != beat:
            self._seen[trial.number] = (beat, now)
            return False
        return now - since > LEASE_SECONDS


@contextmanager
def owned(run: Path, lock: Path, note: Note = lambda text: None) -> Iterator[None]:
    """Be the one search of a run folder, which has this lock, for the length of a with block.

    What a search left that ended without a word is explained to ``note`` and taken over: at once if it ran on
    this machine, else after its lease has run out.

    Raises:
        Taken: another living search owns it.
    """
    descriptor = try_lock(lock)
    if descriptor is None:
        raise _taken(run, lock)
    try:
        if left := _owner(lock):
            _take_over(run, lock, left, note)
        owner = {"host": os.uname().nodename, "process": os.getpid()}
        owner["since"] = time.strftime("%Y-%m-%dT%H:%M:%S")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        try:
            with beating(lambda count: os.utime(lock)):
                yield
        finally:
            os.ftruncate(descriptor, 0)  # a killed search cannot: its name is left, see above
    finally:
        os.close(descriptor)


def _take_over(run: Path, lock: Path, left: dict[str, Any], note: Note) -> None:
    if left.get("host") != os.uname().nodename:
        note(f"{_said(left)} has not given up {run}; waiting {LEASE_SECONDS:.0f} s to see if it lives")
        before = lock.stat().st_mtime_ns
        ends = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < ends:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            if lock.stat().st_mtime_ns != before:
                raise _taken(run, lock)
    note(f"{_said(left)} ended without a word; this one takes over and goes on")


def _owner(lock: Path) -> dict[str, Any]:
    try:
        left = json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}
    return left if isinstance(left, dict) else {}


def _said(owner: dict[str, Any]) -> str:
    names = (owner.get(key, "unknown") for key in ("process", "host", "since"))
    return "the search of process {} on {} since {}".format(*names)


def _taken(run: Path, lock: Path) -> Taken:
    return Taken(
        f"{_said(_owner(lock))} already works on {run}; wait for it, or add a worker to it with:"
        f" leanfront worker {run}"
    )
