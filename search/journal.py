"""Optuna's journal storage on one file that survives kill -9, power cuts and full disks."""

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.lock import locked

_STATE_CHANGES = (0, 4, 6)  # JournalOperation: study created, trial created, trial finished


class RepairingJournal(JournalFileBackend):
    """Optuna's file backend with three differences, readable by Optuna's own.

    The lock is an flock, which a killed process cannot leave behind (Optuna's waits 30 s for those); what
    an interrupted writer left after the last newline is cut off before anything is appended (Optuna's
    appends to it, and then cannot read the file any more); and the disk is waited for (fsync) only when a
    trial is made or finished, not for each of its parameters.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        with self._writing():
            cut_back(path)
        super().__init__(str(path))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with locked(self._lock_path):
            yield

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines; see the class. Raises OSError (such as a full disk) with the file unharmed."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._writing():
            cut_back(self._path)
            before = self._path.stat().st_size
            try:
                with self._path.open("ab", buffering=0) as file:
                    data = memoryview(text.encode())
                    while data:
                        data = data[file.write(data) :]
                    if any(log.get("op_code") in _STATE_CHANGES for log in logs):
                        os.fsync(file.fileno())
            except BaseException:
                os.truncate(self._path, before)
                raise


def open_journal(path: Path) -> JournalStorage:
    """The storage in a file, which is made if it is missing and repaired if its end is torn."""
    return JournalStorage(RepairingJournal(path))


def cut_back(path: Path) -> int:
    """Cut a file back to the end of its last whole line of JSON; the number of bytes that went.

    A whole line that is no JSON (a power cut can leave zeros) goes as well.
    """
    path.touch()
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            if _is_json(content[start : end - 1]):
                break
            end = start
    if end < size:
        os.truncate(path, end)
    return size - end


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
