"""One search for one run folder, also where the machines that share it do not see each other's locks."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leanfront.search.run.lease import BEAT_SECONDS, LEASE_SECONDS
from leanfront.search.run.lock import try_lock
from leanfront.search.run.run_folder import RunError, RunFolder, now, writable

Note = Callable[[str], None]


@contextmanager
def owned(run: RunFolder, note: Note = lambda text: None) -> Iterator[None]:
    """Be the one search of a run folder for the length of a with block.

    What a search left that ended without a word is explained to ``note`` and taken over: at once if it ran on
    this machine, else after its lease has run out.

    Raises:
        RunError: another living search owns it.
    """
    path = run.locks / "search"
    with writable(path):
        descriptor = try_lock(path)
    if descriptor is None:
        raise RunError(_refused(run, path))
    try:
        _take_over(run, path, note)
    except BaseException:
        os.close(descriptor)
        raise
    try:
        owner = {"host": os.uname().nodename, "process": os.getpid(), "since": now()}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        with _renewed(path):
            yield
    finally:
        os.ftruncate(descriptor, 0)  # a killed search cannot: its name is left, see above
        os.close(descriptor)


def _take_over(run: RunFolder, path: Path, note: Note) -> None:
    left = _owner(path)
    if not left:
        return
    if left.get("host") != os.uname().nodename:
        note(f"{_said(left)} has not given up {run.path}; waiting {LEASE_SECONDS:.0f} s to see if it lives")
        before = path.stat().st_mtime_ns
        ends = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < ends:
            time.sleep(min(1.0, LEASE_SECONDS / 10))
            if path.stat().st_mtime_ns != before:
                raise RunError(_refused(run, path))
    note(f"{_said(left)} ended without a word; this one takes over and goes on")


@contextmanager
def _renewed(path: Path) -> Iterator[None]:
    """Touch a file again and again, so that other machines see that its owner lives."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=renew, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _owner(path: Path) -> dict[str, Any]:
    try:
        left = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return left if isinstance(left, dict) else {}


def _said(owner: dict[str, Any]) -> str:
    names = (owner.get(key, "unknown") for key in ("process", "host", "since"))
    return "the search of process {} on {} since {}".format(*names)


def _refused(run: RunFolder, path: Path) -> str:
    return (
        f"{_said(_owner(path))} already works on {run.path}; wait for it, or add a worker to it with:"
        f" leanfront worker {run.path}"
    )
