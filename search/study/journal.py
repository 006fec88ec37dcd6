"""Optuna's journal storage on one file that survives kill -9, power cuts and full disks."""

import json
import mmap
import os
from collections.abc import Generator
from itertools import takewhile
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from leanfront.search.run.disk import Note, when_there_is_space
from leanfront.search.run.run_lock import locked
from leanfront.search.study.optuna_adapter import STATE_CHANGES, share_distributions

_CHUNK_BYTES = 1 << 20


class RepairingJournal(BaseJournalBackend):
    """Writes the lines that Optuna's file backend writes and reads, with four differences.

    The lock is an flock, which a killed process cannot leave behind (Optuna's waits 30 s for those); what
    an interrupted writer left after the last newline is cut off before anything is appended (Optuna's
    appends to it, and then cannot read the file any more); the disk is waited for (fsync) only when a trial
    is made or finished, not for each of its parameters; while it is full, nothing is given up; and many lines
    are read at once, of which only the place of the last is remembered.
    """

    def __init__(self, path: Path, note: Note = lambda text: None) -> None:
        self._path = path
        self._note = note
        self._lock_path = path.with_name(path.name + ".lock")
        with locked(self._lock_path):
            cut_back(path)
        self._reached = (0, 0)  # logs read so far, and the bytes that they take

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The logs from a number on; a last line without its newline is still being written, and left.

        Raises:
            ValueError: a line is not JSON.
        """
        number, offset = self._reached if self._reached[0] <= log_number_from else (0, 0)
        with self._path.open("rb") as file:
            while True:
                file.seek(offset)
                # up to the first torn line: what readlines gives after it may be the rest of that line, which
                # was written in between
                lines = list(takewhile(lambda line: line.endswith(b"\n"), file.readlines(_CHUNK_BYTES)))
                if not lines:
                    return
                for log in json.loads(b"[" + b",".join(lines) + b"]"):
                    number += 1
                    if number > log_number_from:
                        yield log
                offset += sum(map(len, lines))
                self._reached = (number, offset)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines; see the class. Raises OSError with the file unharmed."""
        when_there_is_space(lambda: self._append(logs), self._note)

    def _append(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with locked(self._lock_path):
            cut_back(self._path)
            before = self._path.stat().st_size
            try:
                with self._path.open("ab", buffering=0) as file:
                    data = memoryview(text.encode())
                    while data:
                        data = data[file.write(data) :]
                    if any(log.get("op_code") in STATE_CHANGES for log in logs):
                        os.fsync(file.fileno())
            except BaseException:
                os.truncate(self._path, before)
                raise


def open_journal(path: Path, note: Note = lambda text: None) -> JournalStorage:
    """The storage in a file, which is made if it is missing and repaired if its end is torn.

    ``note`` hears when it waits for space on the disk.
    """
    share_distributions()
    return JournalStorage(RepairingJournal(path, note))


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
