"""A whole search from its configuration: prepare, then trials in this process or in several."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from leanfront.search.config import ConfigError, SearchConfig
from leanfront.search.run.disk import has_space
from leanfront.search.run.results_tables import ResultsTables
from leanfront.search.run.run_folder import (
    RunFolder,
    TrialRow,
    default_run,
    make_run,
    open_run,
    registered,
    sweep,
    writable,
)
from leanfront.search.run.run_lock import Watch, owned
from leanfront.search.storage_url import storage_url
from leanfront.search.study.another_run import check_start, start_from, take_tuned
from leanfront.search.study.criterion import judged_by
from leanfront.search.study.loop import Budget, Interrupt, search_loop
from leanfront.search.study.prepare import Loaded, hashes_of, load, prepare, proved
from leanfront.search.study.progress import Progress
from leanfront.search.study.storage import open_storage
from leanfront.search.study.study import enqueue_seeds, open_study, recover
from leanfront.search.study.threads import cores, threads_of_workers, threads_put_back, use_threads
from leanfront.search.study.tuning import SHARE_OF_HOURS, tune
from leanfront.search.trial.trial import Problem

Finish = Callable[[RunFolder, float, Callable[[], bool], Callable[[str], None]], object]
_PROGRAM = ("-m", "leanfront", "worker")
_MOST_RESTARTS = 10
"""So many workers killed in a row, without a trial that was trained in between: it is not the policies."""
_SECONDS_TO_STOP = 10


@threads_put_back()
def run_search(
    config: SearchConfig,
    config_path: Path,
    folder: Path | None = None,
    finish: Finish = lambda *given: None,
    another: RunFolder | None = None,
) -> tuple[RunFolder, str]:
    """Search, or go on with a search; the run folder, and why it ended ("stopped": by Ctrl-C).

    ``hours`` counts from now, and a share of it is kept for ``finish``, which is called with the run, when it
    has to end, whether it is asked to stop, and a log; ``trials`` includes those of earlier calls. Trials run
    in processes of their own: one that exhausts the memory, or hangs, takes no more than its worker with it.
    ``another``: a run whose knowledge it starts from (``start_from``).

    Raises:
        ConfigError, TaskError, TraceError, ProfileError, TableError, RunError, StorageURLError: wrong input,
            one sentence.
        GateError: what would be made of the network is not what is said of it.
        RuntimeError: trials fail one after the other, or workers die.
    """
    folder = folder or default_run(config_path, config)
    config = with_storage(config, config.search.storage, _recorded_storage(folder))
    settings = config.search
    if settings.hours is None and settings.trials is None:
        raise ConfigError("the search has no end: give --hours or --trials, or set one in [search]")
    deadline = None if settings.hours is None else time.time() + settings.hours * 3600
    reserved = config.seconds_to_finish
    if deadline is not None:
        deadline -= reserved
    budget = Budget(settings.trials, deadline)
    if another is not None:
        check_start(another, folder)
    threads = threads_of_workers(settings.workers)
    use_threads(cores())  # until the workers start
    loaded = load(config)
    run = make_run(folder, config)
    progress = Progress(settings.objectives, deadline, settings.trials)

    def note(text: str) -> None:
        run.log(text)
        progress.note(text)

    with ExitStack() as owner:
        with writable(run.locks):
            owner.enter_context(owned(run.path, run.locks / "search", note))
        run.log(f"search started: {settings.model_dump_json()}")
        progress.note(f"run folder {run.path}")
        sweep(run)
        if url := storage_url(settings.storage):
            open_storage(url, run.journal, note)  # what cannot be reached is said before anything is measured
        proved(loaded, note).demand()
        if not run.begun:
            take_tuned(another, run, loaded.config)
        loaded = replace(loaded, config=run.tuned(loaded.config))
        loaded = judged_by(loaded, run, note)
        problem = prepare(loaded, run, note)
        if config.tunes and not run.begun and not run.environment().get("tuned"):
            loaded = _tuned(loaded, problem, run, note)
        run.update_environment(
            budget={"deadline": deadline, "trials": settings.trials, "workers": settings.workers}
        )
        study = open_study(run, settings, sampler=problem.sampler, note=note)
        start = None if another is None else start_from(another, loaded, problem, study, run, note)
        if (few := problem.sampler.warning(settings.trials)) and not (start and start.taken_over):
            note(few)
        enqueue_seeds(study, problem.space, problem.sampler.seeds(problem.space))
        del problem, loaded  # the workers load their own
        rows = ResultsTables(run, study).rows()
        progress.earlier([row for row in rows if row.state != "running"])
        with (
            writable(run.path),
            progress,
            Interrupt(lambda: note("finishing the running trials; Ctrl-C again stops at once")) as asked,
        ):
            ended = _in_workers(study, run, budget, threads, asked, progress, note)
            note(f"search ended: {ended}")
            if ended != "stopped":
                finish(run, time.time() + reserved, lambda: asked.requested, note)
    return run, ended


def _tuned(loaded: Loaded, problem: Problem, run: RunFolder, note: Callable[[str], None]) -> Loaded:
    """What is searched, with better settings of its fine-tune if there are any; the run knows them."""
    settings = loaded.config.search
    seconds = math.inf if settings.hours is None else SHARE_OF_HOURS * 3600 * settings.hours
    found = tune(problem.scorer, problem.space, settings.seed, note, seconds)
    note(found.sentence)
    tuned = replace(loaded, config=loaded.config.tuned(found.to_dict()))
    run.update_environment(tuned=found.to_dict(), hashes=hashes_of(tuned))
    return tuned


def with_storage(config: SearchConfig, given: str | None, before: str | None) -> SearchConfig:
    """The configuration with the storage that is meant: as given, by LEANFRONT_STORAGE, or as before."""
    url = storage_url(given)
    text = before if url is None else url.text
    return config.model_copy(update={"search": config.search.model_copy(update={"storage": text})})


def _recorded_storage(folder: Path) -> str | None:
    """The storage that a run was begun with; None: its journal, or it is not begun."""
    return open_run(folder).config().search.storage if (folder / "config.toml").exists() else None


def threads_of_one_more(run: RunFolder) -> int:
    """Threads for a worker that joins: all cores of a machine where no other worker of the run is seen."""
    return 1 if run.live_workers() else cores()


def _in_workers(
    study: optuna.Study,
    run: RunFolder,
    budget: Budget,
    threads: Sequence[int],
    asked: Interrupt,
    progress: Progress,
    note: Callable[[str], None],
) -> str:
    """Start a worker process for each number of threads, show what they finish, start killed ones again; why
    they ended.

    They are in sessions of their own: a Ctrl-C of the terminal reaches this process alone, which passes it
    on once.
    """
    tables = ResultsTables(run, study)
    watch = Watch()
    shown = {row.trial for row in tables.rows() if row.state != "running"}
    started = len(threads)
    # the same line again, once all is done: workers would load everything to find nothing to do
    wanted = [] if budget.used_up(_ended(study)) else threads
    processes = {_start(run, count, index): count for index, count in enumerate(wanted)}
    restarts = 0  # since a trial was trained
    passed_on = False
    space = True
    rounds = 0
    codes: list[int] = []
    try:
        while processes:
            time.sleep(0.3)
            rounds += 1
            if rounds % 10 == 0 and has_space(run.path) != space:
                space = not space
                note(
                    "there is space again"
                    if space
                    else f"the disk of {run.path} is full; trials wait for space"
                )
            if asked.requested and not passed_on:
                passed_on = True
                for process in processes:
                    process.terminate()
            for row in tables.rows():
                if row.state != "running" and row.trial not in shown:
                    shown.add(row.trial)
                    progress.trial(row)
                    restarts = 0 if row.state == "complete" else restarts
            for process in [process for process in processes if process.poll() is not None]:
                count = processes.pop(process)
                codes.append(process.returncode)
                run.log(f"worker process {process.pid} ended with code {process.returncode}")
                killed = process.returncode < 0
                if killed and not asked.requested and restarts < _MOST_RESTARTS:
                    restarts += 1
                    started += 1
                    note(f"a worker was killed (signal {-process.returncode}); starting another")
                    recover(study, run, watch)
                    processes[_start(run, count, started)] = count
    finally:
        _stop(list(processes))  # this process ends early: a second Ctrl-C, or an error
        recover(study, run, watch)
        tables.write(force=True)
    if codes and all(codes):
        raise RuntimeError(f"all workers ended with an error; the last lines of {run.log_file} say which")
    if asked.requested:
        return "stopped"
    return budget.used_up(_ended(study)) or "the workers found nothing new"


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return study.get_trials(deepcopy=False, states=states)


def _stop(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Stop workers now: their trials are handed back, unless they do not even find time for that."""
    for _ in range(2 if processes else 0):  # the first request ends the search only after the running trial
        for process in processes:
            process.terminate()
        time.sleep(0.2)
    for process in processes:
        wait_or_kill(process)


def wait_or_kill(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process that was told to end; kill it if it takes its time."""
    try:
        process.wait(timeout=_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _start(run: RunFolder, threads: int, index: int) -> "subprocess.Popen[bytes]":
    """A worker process, which takes its budget from the run's environment.json."""
    command = [sys.executable, *_PROGRAM, *_asked(run, threads, index)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with run.log_file.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _asked(run: RunFolder, threads: int, index: int) -> list[str]:
    """What a worker is told that ends with this process."""
    place = ["--index", str(index), "--threads", str(threads), "--parent", str(os.getpid())]
    return [str(run.path), *place]


def work(
    run: RunFolder,
    config: SearchConfig,
    budget: Budget,
    index: int,
    threads: int,
    parent: int | None = None,
    on_trial: Callable[[TrialRow], None] = lambda row: None,
) -> str:
    """One more worker on a run that a search has prepared; why it ended. ``index`` makes workers draw
    different policies; ``parent``: the process of a search that has started it, and that it ends with.

    Raises:
        As ``run_search``.
    """
    use_threads(threads)
    loaded = judged_by(load(run.tuned(config)), run, run.log, write=False)
    problem = prepare(loaded, run, run.log, write=False)
    with writable(run.path), registered(run) as worker, Interrupt() as asked:
        study = open_study(
            run, config.search, worker_seed=index, sampler=problem.sampler, join=True, wait=parent is not None
        )

        def stop() -> bool:
            return asked.requested or parent not in (None, os.getppid())

        return search_loop(problem, study, run, budget, worker, stop, on_trial)
