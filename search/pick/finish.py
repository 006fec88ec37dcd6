"""The end of a search: the long fine-tune of the front, while its share of the hours lasts; the report."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from leanfront.latency_models.benchmark.measuring_lock import Note
from leanfront.search.pick.choose import Wish, choose
from leanfront.search.run.front import front_of
from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow
from leanfront.search.study.run_search import wait_or_kill

_SECONDS_BETWEEN_LOOKS = 0.3


def finish(run: RunFolder, ends: float, stop: Callable[[], bool], note: Note) -> None:
    """What ``run_search`` is given for the end: the long fine-tune of the front, if some of the hours were
    kept for it, then the report."""
    if run.config().seconds_to_finish > 0:
        fine_tune_front(run, ends, stop, note)
    report(run, note)


def order_of(front: Sequence[TrialRow], baseline_accuracy: float) -> list[TrialRow]:
    """The front, most wanted first: what ``leanfront pick`` would choose, then whatever differs most in
    latency (as a ratio) from all before it."""
    left = list(front)
    try:
        ordered = [choose(left, baseline_accuracy, Wish())]
    except RunError:  # none is as accurate as that
        ordered = left[-1:]
    while left := [row for row in left if row not in ordered]:
        ordered.append(max(left, key=lambda row: min(_ratio(row, other) for other in ordered)))
    return ordered


def _ratio(row: TrialRow, other: TrialRow) -> float:
    return abs(math.log((row.latency_ms or 1.0) / (other.latency_ms or 1.0)))


def fine_tune_front(run: RunFolder, ends: float, stop: Callable[[], bool], note: Note) -> list[int]:
    """Run ``leanfront pick`` on one member of the front after the other until ``ends`` (of time.time()).

    Each is a process of its own, with its words in log.txt; none is begun that would not end in time if it
    took as long as the longest before it. Members that were picked already are left alone. The trials done.
    """
    done: list[int] = []
    longest = 0.0
    for row in order_of(front_of(run), run.environment()["baseline"]["accuracy"]):
        if (run.exported / str(row.trial) / "verification.json").exists():
            continue
        began = time.time()
        if stop() or began + longest >= ends:
            break
        note(f"long fine-tune of trial {row.trial}")
        code = _pick(run, row.trial, ends, stop)
        if code is None:
            why = "asked to" if stop() else "no time left"
            note(f"the long fine-tune of trial {row.trial} was ended: {why}")
            break
        if code == 2:  # the same input would be wrong for all of them
            note(f"trial {row.trial} cannot be picked; the last lines of {run.log_file} say why")
            break
        if code:
            note(f"trial {row.trial} is not as promised; the last lines of {run.log_file} say why")
        done.append(row.trial)
        longest = max(longest, time.time() - began)
    return done


def _pick(run: RunFolder, trial: int, ends: float, stop: Callable[[], bool]) -> int | None:
    """The exit code of ``leanfront pick``; None if it was ended before its time."""
    command = [sys.executable, "-m", "leanfront", "pick", str(run.path), "--trial", str(trial)]
    with run.log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while process.poll() is None:
            if stop() or time.time() > ends:
                return None
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return process.returncode
    finally:
        if process.poll() is None:
            process.terminate()
            wait_or_kill(process)


def report(run: RunFolder, note: Note) -> None:
    """Write the report. One that cannot be written is said, and takes nothing else with it."""
    from leanfront.search.report.page import write_report

    try:
        note(f"report: {write_report(run.path)}")
    except Exception as error:
        note(f"no report was written: {' '.join(str(error).split())}")
