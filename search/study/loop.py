"""The search loop of one worker: ask, price, train, tell, until the budget is used up."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from leanfront.compression.policy import Policy
from leanfront.search.objectives import costs_among, oriented
from leanfront.search.run.disk import has_space, is_full
from leanfront.search.run.results_tables import ResultsTables, row_of
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.run_lock import BEAT, Watch, leased
from leanfront.search.run.significance import load_scores
from leanfront.search.study.bequests import Bequests
from leanfront.search.study.heirs import Heirs, keep, price_of
from leanfront.search.study.progress import log_line
from leanfront.search.study.study import (
    OVERDUE,
    digests,
    enqueue,
    finished,
    hand_back,
    held,
    named,
    reached_the_end,
    recover,
    tell,
)
from leanfront.search.trial.promotion import UNTRAINED, Standing, dominator, standings
from leanfront.search.trial.trial import WEIGHTS_OF, Problem, Result, foretold, reached_at, scored

if TYPE_CHECKING:
    from leanfront.search.trial.scored import Score
    from leanfront.search.trial.scorer import CandidateTraining

_GIVE_UP_AFTER = 500
"""So many proposals in a row without one that is new and allowed: the space is used up."""
_FAILURES_IN_A_ROW = 10
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_AFTER_A_FULL_DISK = 5.0
_LEAST_LIMIT_SECONDS = 1200.0
_SECONDS_OF_THE_FIRST = 7200.0


@dataclass(frozen=True)
class Budget:
    """How long a search goes on. ``trials``: in all, earlier ones included; ``deadline``: of time.time()."""

    trials: int | None = None
    deadline: float | None = None

    def used_up(self, trials: Sequence[FrozenTrial]) -> str:
        """Why no new trial should start; empty while one should.

        A trial of median length must still fit before the deadline.
        """
        if self.trials is not None and finished(trials) >= self.trials:
            return f"{self.trials} trials are done"
        if self.deadline is not None:
            left = self.deadline - time.time()
            typical = seconds_per_trial(trials)
            if left <= 0:
                return "the time is up"
            if typical is not None and left < typical:
                return f"the {left:.0f} s that are left do not fit a trial of {typical:.0f} s"
        return ""

    def all_begun(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether the trials that run now are the last, if none of them is lost."""
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        return self.trials is not None and finished(trials) + running >= self.trials


def seconds_per_trial(trials: Sequence[FrozenTrial]) -> float | None:
    """Median seconds of the trials that were trained to the end; None before the first."""
    seconds = _seconds_of_trained(trials)
    return statistics.median(seconds) if seconds else None


def _seconds_of_trained(trials: Sequence[FrozenTrial]) -> list[float]:
    results = [trial.user_attrs.get("result") or {} for trial in trials]
    return [
        result["seconds"]
        for result in results
        if "accuracy" in result and reached_the_end(result) and result.get("reason") != UNTRAINED
    ]


def time_limit(trials: Sequence[FrozenTrial], minutes: float | None) -> float:
    """Seconds after which a trial is taken to hang: ``minutes``, or five times the longest so far (which was
    trained to the end, and no less than 20 minutes); two hours before there is one."""
    if minutes is not None:
        return 60 * minutes
    longest = max(_seconds_of_trained(trials), default=None)
    return _SECONDS_OF_THE_FIRST if longest is None else max(_LEAST_LIMIT_SECONDS, 5 * longest)


class Interrupt:
    """Ctrl-C (or SIGTERM) once sets ``requested``; twice raises KeyboardInterrupt. Use it in a with block."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._on_request = on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._on_request()


def search_loop(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    budget: Budget,
    worker: str,
    stop: Callable[[], bool] = lambda: False,
    on_trial: Callable[[TrialRow], None] = lambda row: None,
) -> str:
    """Run trials until the budget is used up or ``stop`` says so; why it ended.

    Any number of workers may do this on one study. ``on_trial`` gets the line of each finished trial.

    Raises:
        TableError: the cost model does not know the cost of a policy.
        RuntimeError: ten trials in a row failed.
    """
    return _Worker(problem, study, run, budget, worker, stop, on_trial).works()


@dataclass
class _Worker:
    """One worker of a search; fields as the arguments of ``search_loop``.

    fruitless: proposals in a row that were known already or over a limit. failures: trials in a row.
    """

    problem: Problem
    study: optuna.Study
    run: RunFolder
    budget: Budget
    name: str
    stop: Callable[[], bool]
    on_trial: Callable[[TrialRow], None]
    fruitless: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        self.minutes = self.run.config().search.trial_minutes
        self.tables = ResultsTables(self.run, self.study)

    def works(self) -> str:
        """Until it ends; why."""
        watch = Watch()
        bequests = Bequests(self._heirs(time_limit((), self.minutes)), self.tables.rows, self.run.log)
        self.tables.write()
        gc.collect()
        gc.freeze()  # what lives now is not looked through again after each trial
        while True:
            recover(self.study, self.run, watch)
            trials = self.study.get_trials(deepcopy=False)
            ended = "stopped" if self.stop() else self.budget.used_up(trials)
            if not ended and self.budget.all_begun(trials):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                continue
            ended = ended or self._nothing_new(trials)
            if ended:
                self.tables.write(force=True)
                return ended
            if bequests.one():
                self.tables.write()
            else:
                self._one(trials)

    def _nothing_new(self, trials: Sequence[FrozenTrial]) -> str:
        if len(digests(trials)) >= self.problem.space.size:
            return f"all {self.problem.space.size} policies of the space were tried"
        if self.fruitless >= _GIVE_UP_AFTER:
            return f"{self.fruitless} proposals in a row were known already or over a limit"
        return ""

    def _one(self, trials: Sequence[FrozenTrial]) -> None:
        """Ask, try, tell; then what inherits the weights."""
        asked = time.perf_counter()
        trial = self.study.ask()
        trained: list[CandidateTraining] = []
        seconds = time_limit(trials, self.minutes)
        try:
            with leased(partial(trial.set_user_attr, BEAT), seconds, partial(self._overdue, seconds, trial)):
                trial.set_user_attr("worker", self.name)
                policy = self.problem.space.suggest(trial)
                proposing = {"seconds_proposing": time.perf_counter() - asked}
                if (expected := self.problem.sampler.expected_accuracy(policy)) is not None:
                    proposing["expected_accuracy"] = expected
                result = self._tried(trial, policy, trained)
                result = replace(result, values={**result.values, **proposing})
                row = row_of(tell(self.study, trial, result), self.problem.objectives)
        except UpdateFinishedTrialError:
            self.run.log(f"trial {trial.number} was taken back while {self.name} did not answer")
            return
        except BaseException as error:  # told to stop at once, a full disk: the policy is not to blame
            with suppress(Exception):
                hand_back(self.study, trial)  # a journal waits for space here, but weights need more of it
                self.tables.write(force=True)
            if not is_full(error):
                raise
            time.sleep(_SECONDS_AFTER_A_FULL_DISK)
            return
        self.tables.write()
        if "seconds" in result.values:
            give_back()
        self._count(result)
        self._show(row)
        if trained and row.state == "complete" and not row.reason:
            self._heirs(seconds).of(trained.pop(), policy, row.accuracy or 0.0, {WEIGHTS_OF: row.trial})
            self.tables.write()
        if self.failures >= _FAILURES_IN_A_ROW:
            self.tables.write(force=True)
            raise RuntimeError(
                f"the last {self.failures} trials failed, the last one because: {result.reason}"
            )

    def _count(self, result: Result) -> None:
        trained = reached_the_end(result.to_dict())
        self.fruitless = 0 if trained or result.rungs else self.fruitless + 1
        if result.state == "failed":
            self.failures += 1
        elif trained:
            self.failures = 0

    def _show(self, row: TrialRow) -> None:
        self.run.log(log_line(row))
        self.on_trial(row)

    def _tried(self, trial: optuna.Trial, policy: Policy, trained: list[CandidateTraining]) -> Result:
        """What becomes of a policy; ``trained`` gets its network if it reaches the last rung."""
        problem = self.problem
        trials = self.study.get_trials(deepcopy=False)
        known = digests(trials, without=trial.number)
        if policy.digest in known:
            first = known[policy.digest]
            if instead := self._unseen(policy, known):
                enqueue(self.study, problem.space, instead, f"instead of a duplicate of trial {first}")
            return Result("pruned", f"duplicate of trial {first}")
        for name, value in named(policy).items():
            trial.set_user_attr(name, value)
        price = price_of(problem, policy)
        if price.state == "infeasible":
            return price
        self.tables.write()

        def stays(rung: int, score: Score) -> str:
            reason = self._stays(trial.number, price, rung, score)
            return reason or problem.sampler.given_up(policy, reached_at(rung, problem.rungs[rung], score))

        def done(candidate: CandidateTraining, scores: Mapping[int, Score]) -> None:
            keep(self.run, trial.number, candidate, scores)
            trained.append(candidate)

        before = held(trials).get(policy.digest, ()) if len(problem.rungs) > 1 else ()
        return scored(problem, policy, price, stays, done, before)

    def _heirs(self, seconds: float) -> Heirs:
        """``seconds``: after which one is taken to hang."""

        def over() -> bool:
            return self.stop() or (self.budget.deadline is not None and time.time() > self.budget.deadline)

        def guarded() -> AbstractContextManager[object]:
            return leased(lambda beat: None, seconds, partial(self._overdue, seconds))

        return Heirs(self.problem, self.study, self.run, self.name, self._show, over, guarded)

    def _unseen(self, policy: Policy, known: Mapping[str, int]) -> Policy | None:
        """A policy near another that was not tried and breaks no limit, if a few attempts find one."""
        for attempt in range(20):
            near = self.problem.space.mutated(policy, self.rng, changes=1 + attempt // 4)
            if near.digest not in known and foretold(self.problem, near).state == "running":
                return near
        return None

    def _stays(self, number: int, price: Result, rung: int, score: Score) -> str:
        """Why a trial does not go on to the next rung: another dominates it, or the start is not over."""
        images = self.problem.rungs[rung]
        costs = costs_among(self.problem.objectives)
        trials = self.study.get_trials(deepcopy=False)
        results = [(trial.number, trial.user_attrs.get("result") or {}) for trial in trials]
        own = Standing(number, oriented(price.values, costs), float(score.accuracy), float(score.divergence))
        others = standings(results, images, costs)
        if rung == 0 and len(others) < self.problem.sampler.start:
            return f"of the first {self.problem.sampler.start} trials none is trained"
        by = dominator(
            own,
            score.scores,
            others,
            lambda other: load_scores(self.run.scores_file(other), images),
            trained=images > 0,
        )
        return "" if by is None else f"dominated by trial {by}"

    def _overdue(self, limit: float, trial: optuna.Trial | None = None) -> None:
        """What a trial that hangs comes to: nothing but the end of its process stops a reader that never
        returns. A trial that waits for space on the disk does not hang."""
        run = self.run
        if not has_space(run.path):
            return
        what = "an inherited network"
        if trial is not None:
            what = f"trial {trial.number}"
            with suppress(Exception):
                trial.set_user_attr(OVERDUE, limit)
        run.log(f"{what} takes longer than {limit / 60:.3g} min; its process ends. It is here:")
        with suppress(OSError), run.log_file.open("a") as log:
            faulthandler.dump_traceback(log)
        os.kill(os.getpid(), signal.SIGKILL)


def give_back() -> None:
    """Give the memory of a finished trial back to the system; some milliseconds.

    A traced module and its graph refer to each other, so that only Python's garbage collection frees its
    weights, and among a hundred thousand lasting objects that comes every twenty trials or so. What is freed
    then lies scattered over the heap, which glibc keeps unless it is told to trim: on VGG-11 that was more
    than the weights.
    """
    gc.collect()
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    """glibc's malloc_trim; where there is none, nothing."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return lambda pad: 0
    return trim
