"""Leases of running trials: whoever works on one says so again and again, in the study itself.

So a worker that is lost is noticed wherever it ran, through any storage. Optuna's own heartbeat is not used:
it serves ``Study.optimize`` alone (not ask and tell), and only databases have it.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

BEAT_SECONDS = 20.0
LEASE_SECONDS = 120.0
BEAT = "beat"
"""Attribute of a trial: how often its lease was renewed."""
_SECONDS_UNTIL_ALARM = 600.0
"""The kernel ends a process whose interpreter hangs, so that it could not even renew a lease, for so long."""


class Lease:
    """Renews the lease of a trial in a with block, from a thread of its own.

    ``overdue`` is called at each beat after ``most_seconds``.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        most_seconds: float = float("inf"),
        overdue: Callable[[], None] = lambda: None,
    ) -> None:
        self._ends = time.monotonic() + most_seconds
        self._overdue = overdue
        self._study = study
        self._trial_id = trial._trial_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _renew(self) -> None:
        beat = 0
        while not self._ended.wait(BEAT_SECONDS):
            beat += 1
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_UNTIL_ALARM)
            if time.monotonic() > self._ends:
                self._overdue()
            try:
                self._study._storage.set_trial_user_attr(self._trial_id, BEAT, beat)
            except UpdateFinishedTrialError:
                return  # it was taken back; the loop finds that out
            except Exception:
                continue  # a full disk, a server that is away: the next beat may get through


class Watch:
    """Tells which leases have run out, by this process's own clock: those of two machines may differ."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def has_run_out(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's lease was not renewed for ``LEASE_SECONDS`` while this was asked."""
        beat = (trial.user_attrs.get("worker"), trial.user_attrs.get(BEAT))
        now = time.monotonic()
        known, since = self._seen.get(trial.number, (None, now))
        if known != beat:
            self._seen[trial.number] = (beat, now)
            return False
        return now - since > LEASE_SECONDS
