"""The search loop of one worker: ask, price, train, tell, until the budget is used up."""

import ctypes
import faulthandler
import gc
import os
import signal
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from leanfront.compression.policy import Policy
from leanfront.search.run.disk import has_space, is_full
from leanfront.search.run.results_tables import Ledger, row_of
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.run_lock import BEAT, Watch, leased
from leanfront.search.run.significance import load_scores
from leanfront.search.samplers import expected_accuracy, given_up
from leanfront.search.study.inherited_trials import keep, score_heirs
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
from leanfront.search.trial.trial import ClimbLike, Problem, Result, ScoreLike, foretold, priced, scored

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


def _end_process(run: RunFolder, limit: float, trial: optuna.Trial | None) -> None:
    """What a trial that hangs comes to: nothing but the end of its process stops a reader that never returns.

    A trial that waits for space on the disk does not hang.
    """
    if not has_space(run.path):
        return
    what = "an inherited network" if trial is None else f"trial {trial.number}"
    if trial is not None:
        with suppress(Exception):
            trial.set_user_attr(OVERDUE, limit)
    run.log(f"{what} takes longer than {limit / 60:.3g} min; its process ends. It is here:")
    with suppress(OSError), run.log_file.open("a") as log:
        faulthandler.dump_traceback(log)
    os.kill(os.getpid(), signal.SIGKILL)


def _enough(budget: Budget, stop: Callable[[], bool]) -> bool:
    """Whether no heir should be scored any more."""
    return stop() or (budget.deadline is not None and time.time() > budget.deadline)


class Interrupt:
    """Ctrl-C (or SIGTERM) once sets ``requested``; twice raises KeyboardInterrupt. Use it in a with block."""

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._on_request = on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    rng = np.random.default_rng(zlib.crc32(worker.encode()))
    watch = Watch()
    minutes = run.config().search.trial_minutes
    ledger = Ledger(run, study)
    ledger.write()
    gc.collect()
    gc.freeze()  # what lives now is not looked through again after each trial
    fruitless = failures = 0

    def show(row: TrialRow) -> None:
        run.log(log_line(row))
        on_trial(row)

    while True:
        recover(study, run, watch)
        trials = study.get_trials(deepcopy=False)
        if stop():
            ended = "stopped"
            break
        if ended := budget.used_up(trials):
            break
        if budget.all_begun(trials):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        if len(digests(trials)) >= problem.space.size:
            ended = f"all {problem.space.size} policies of the space were tried"
            break
        if fruitless >= _GIVE_UP_AFTER:
            ended = f"{fruitless} proposals in a row were known already or over a limit"
            break
        asked = time.perf_counter()
        trial = study.ask()
        try:
            seconds = time_limit(trials, minutes)
            overdue = partial(_end_process, run, seconds, trial)
            with leased(partial(trial.set_user_attr, BEAT), seconds, overdue):
                trial.set_user_attr("worker", worker)
                policy = problem.space.suggest(trial)
                proposing = {"seconds_proposing": time.perf_counter() - asked}
                if (expected := expected_accuracy(study.sampler, policy)) is not None:
                    proposing["expected_accuracy"] = expected
                climbs: list[ClimbLike] = []
                result = _attempt(problem, study, run, trial, policy, rng, ledger, climbs)
                result = replace(result, values={**result.values, **proposing})
                row = row_of(tell(study, trial, result))
        except UpdateFinishedTrialError:
            run.log(f"trial {trial.number} was taken back while {worker} did not answer; dropped here")
            continue
        except BaseException as error:  # told to stop at once, a full disk: the policy is not to blame
            with suppress(Exception):
                hand_back(study, trial)  # a journal waits for space here, but weights need more of it
                ledger.write(force=True)
            if not is_full(error):
                raise
            time.sleep(_SECONDS_AFTER_A_FULL_DISK)
            continue
        ledger.write()
        if "seconds" in result.values:
            give_back()
        trained = reached_the_end(result.to_dict())
        fruitless = 0 if trained or result.rungs else fruitless + 1
        failures = failures + 1 if result.state == "failed" else 0 if trained else failures
        show(row)
        if climbs and row.state == "complete" and not row.reason:
            score_heirs(
                problem,
                study,
                run,
                row,
                policy,
                climbs.pop(),
                seconds,
                partial(_end_process, run, seconds, None),
                partial(_enough, budget, stop),
                show,
            )
            ledger.write()
        if failures >= _FAILURES_IN_A_ROW:
            ledger.write(force=True)
            raise RuntimeError(f"the last {failures} trials failed, the last one because: {result.reason}")
    ledger.write(force=True)
    return ended


def _attempt(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    trial: optuna.Trial,
    policy: Policy,
    rng: np.random.Generator,
    ledger: Ledger,
    trained: list[ClimbLike],
) -> Result:
    trials = study.get_trials(deepcopy=False)
    known = digests(trials, without=trial.number)
    if policy.digest in known:
        first = known[policy.digest]
        if instead := _unseen(problem, policy, known, rng):
            enqueue(study, problem.space, instead, f"instead of a duplicate of trial {first}")
        return Result("pruned", f"duplicate of trial {first}")
    for name, value in named(policy).items():
        trial.set_user_attr(name, value)
    asked = time.perf_counter()
    price = priced(problem, policy)
    price = replace(price, values={**price.values, "seconds_pricing": time.perf_counter() - asked})
    if price.state == "infeasible":
        return price
    ledger.write()

    def stays(rung: int, score: ScoreLike) -> str:
        reason = _stays(problem, study, run, trial.number, price, rung, score)
        standing = {
            "rung": rung,
            "images": problem.rungs[rung],
            "accuracy": score.accuracy,
            "divergence": score.divergence,
        }
        return reason or given_up(study.sampler, policy, standing)

    def ended(climb: ClimbLike, scores: Mapping[int, ScoreLike]) -> None:
        keep(run, trial.number, climb, scores)
        trained.append(climb)

    before = held(trials).get(policy.digest, ()) if len(problem.rungs) > 1 else ()
    return scored(problem, policy, price, stays, ended, before)


def _stays(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    number: int,
    price: Result,
    rung: int,
    score: ScoreLike,
) -> str:
    """Why a trial does not go on to the next rung: a finished one dominates it, or the start is not over."""
    images = problem.rungs[rung]
    costs = [name for name in problem.objectives if name != "accuracy"]
    results = [
        (trial.number, trial.user_attrs.get("result") or {}) for trial in study.get_trials(deepcopy=False)
    ]
    own = Standing(
        number, tuple(price.values[name] for name in costs), float(score.accuracy), float(score.divergence)
    )
    others = standings(results, images, costs)
    if rung == 0 and len(others) < problem.start:
        return f"among the first {problem.start}"
    by = dominator(
        own,
        score.scores,
        others,
        lambda other: load_scores(run.scores_file(other), images),
        trained=images > 0,
    )
    return "" if by is None else f"dominated by trial {by}"


def _unseen(
    problem: Problem, policy: Policy, known: dict[str, int], rng: np.random.Generator
) -> Policy | None:
    """A policy near another that was not tried and breaks no limit, if a few attempts find one."""
    for attempt in range(20):
        near = problem.space.mutated(policy, rng, changes=1 + attempt // 4)
        if near.digest not in known and foretold(problem, near).state == "running":
            return near
    return None


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
