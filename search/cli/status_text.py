"""The status of a search as text: a table, the front's growth as a row of bars, what to do next."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leanfront.search.cli.output import print_table
from leanfront.search.run.run_folder import STATES, RunFolder
from leanfront.search.run.status import clock, status

BARS = "▁▂▃▄▅▆▇█"
_LISTS = ("run", "hypervolume_curve", "next", "why_failed", "failures")
_MOST_REASONS = 10
_SECONDS_BETWEEN_LOOKS = 2.0
_SHARE_OF_WAITING = 20  # reading a long table must not keep the machine from its trials


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, the lowest of them an eighth of the height, the highest the whole."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high <= low:
        return BARS[-1] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is one number each, as rows of a table for programs."""
    numbers = {name: value for name, value in answer.items() if name not in _LISTS}
    return [{"what": name.replace("_", " "), "value": value} for name, value in numbers.items()]


def print_status(answer: Mapping[str, Any], shown: str) -> None:
    """Print a status; ``shown`` is the run folder as it can be given to a command."""
    readable = {
        "hypervolume": _hypervolume(answer),
        "trials_per_hour": None if (rate := answer["trials_per_hour"]) is None else f"{rate:.3g}",
        "seconds_left": clock(answer["seconds_left"]),
    }
    names = {"seconds_left": "time left", "alive": "at work"}
    print_table(rows({names.get(n, n): readable.get(n, value) for n, value in answer.items()}), title=shown)
    if reasons := answer["why_failed"][:_MOST_REASONS]:
        columns = {"trials": "failed", "last": "the last", "reason": "why"}
        print_table([{column: line[name] for name, column in columns.items()} for line in reasons])
    print(f"next: {answer['next'].replace('RUN', shlex.quote(shown))}")


def line(answer: Mapping[str, Any]) -> str:
    """A status on one line."""
    counts = [f"{answer[state]} {state}" for state in STATES if answer[state] or state == "complete"]
    if answer["heirs"]:
        counts.append(f"{answer['heirs']} heirs")
    rate = "" if answer["trials_per_hour"] is None else f"{answer['trials_per_hour']:.3g} an hour"
    parts = [*counts, rate, f"front {answer['front_size']}", f"hypervolume {_hypervolume(answer)}"]
    if answer["alive"]:
        parts.append(f"{clock(answer['seconds_left'])} left")
    return "  ".join(part for part in parts if part)


def follow(run: RunFolder, shown: str, wait: Callable[[float], None] = time.sleep) -> None:
    """Print a line whenever something changed, until nobody works on the run; then the whole status."""
    before = None
    while True:
        started = time.monotonic()
        answer = status(run)
        if not answer["alive"]:
            break
        now = answer | dict.fromkeys(("seconds_left", "trials_per_hour"))
        if now != before:
            print(f"{time.strftime('%H:%M:%S')}  {line(answer)}", flush=True)
        before = now
        wait(max(_SECONDS_BETWEEN_LOOKS, _SHARE_OF_WAITING * (time.monotonic() - started)))
    print_status(answer, shown)


def _hypervolume(answer: Mapping[str, Any]) -> str:
    if answer["hypervolume"] is None:
        return "unknown"
    return f"{answer['hypervolume']:.4f}  {sparkline(answer['hypervolume_curve'])}".rstrip()
