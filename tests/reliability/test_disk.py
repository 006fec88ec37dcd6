"""A search on a disk that fills up: it says so, waits, and goes on when there is space."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leanfront.search.run.run_folder import open_run
from tests.reliability.quick import start
from tests.reliability.test_kills import check_whole, end, logged, until


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "leanfront-test", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        while True:  # to the last byte
            try:
                file.write(b"x")
            except OSError:
                return


def test_a_disk_that_fills_up_in_mid_search(disk: Path) -> None:
    folder = disk / "run"
    process = start(folder, 100_000, 2)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        until(lambda: len(logged(folder)) >= 5)
        fill(disk / "filler")
        until(lambda: any("is full; trials wait for space" in line for line in said))
        before = len(said)
        time.sleep(1.0)
        assert process.poll() is None
        assert len(said) == before  # and is said once
        (disk / "filler").unlink()
        after = len(logged(folder))
        until(lambda: len(logged(folder)) >= after + 3)
        until(lambda: any("there is space again" in line for line in said))
    finally:
        process.terminate()
        reader.join(30)
        end(process, folder)
    assert process.returncode == 0
    check_whole(open_run(folder), logged(folder))
    assert [row.reason for row in open_run(folder).trials() if row.state == "failed"] == []


@pytest.mark.slow
def test_a_search_is_not_begun_on_a_full_disk(disk: Path) -> None:
    fill(disk / "filler")
    process = start(disk / "run", 5, 1, PYTHONDONTWRITEBYTECODE="1")
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the disk is full; make space, then give the same command again" in out
    (disk / "filler").unlink()
    again = start(disk / "run", 5, 1)
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    check_whole(open_run(disk / "run"), logged(disk / "run"))
