"""A full disk: what must be written waits until there is space."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Note = Callable[[str], None]
T = TypeVar("T")

_SECONDS_BETWEEN_TRIES = 2.0
_PROBE = b"\0" * 65536


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or one's share of it, is full (libraries say so in words)."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "no space left" in str(error).lower()


def has_space(folder: Path) -> bool:
    """Whether something can be written to a folder; found out by writing, which quotas are seen by, too."""
    probe = folder / f".space.{os.getpid()}"
    try:
        probe.write_bytes(_PROBE)
    except OSError as error:
        return not is_full(error)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True


def when_there_is_space(write: Callable[[], T], note: Note = lambda text: None) -> T:
    """Do what writes, again and again while the disk is full; ``note`` hears of it.

    Whatever ``write`` began when it failed, it must have undone.
    """
    said = False
    while True:
        try:
            return write()
        except Exception as error:
            if not is_full(error):
                raise
        if not said:
            note("the disk is full; waiting for space")
            said = True
        time.sleep(_SECONDS_BETWEEN_TRIES)
