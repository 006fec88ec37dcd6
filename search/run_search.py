"""A whole search from its configuration: prepare, then trials in this process or in several."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import TrialState

from search.config import ConfigError, SearchConfig
from search.ledger import Ledger
from search.loop import Budget, Interrupt, search_loop
from search.prepare import load, prepare, threads_per_worker
from search.progress import Progress
from search.run_folder import RunFolder, TrialRow, default_run, make_run, owned, registered, writable
from search.study import enqueue_seeds, open_study, recover
from search.trial import Problem

_MOST_RESTARTS = 5
_SECONDS_TO_STOP = 10


def run_search(config: SearchConfig, config_path: Path, folder: Path | None = None) -> tuple[RunFolder, str]:
    """Search, or go on with a search; the run folder, and why it ended ("stopped": by Ctrl-C).

    ``hours`` counts from now, ``trials`` includes those of earlier calls.

    Raises:
        ConfigError, TaskError, TraceError, ProfileError, TableError, RunError: wrong input, one sentence.
        RuntimeError: trials fail one after the other, or workers die.
    """
    settings = config.search
    if settings.hours is None and settings.trials is None:
        raise ConfigError("the search has no end: give --hours or --trials, or set one in [search]")
    deadline = None if settings.hours is None else time.time() + settings.hours * 3600
    budget = Budget(settings.trials, deadline)
    threads = threads_per_worker(settings.workers)
    use_threads(threads)
    loaded = load(config)
    run = make_run(folder or default_run(config_path, config), config)
    progress = Progress(settings.objectives, deadline, settings.trials)
    with owned(run):

        def note(text: str) -> None:
            run.log(text)
            progress.note(text)

        run.log(f"search started: {settings.model_dump_json()}")
        progress.note(f"run folder {run.path}")
        problem = prepare(loaded, run, note)
        run.update_environment(
            budget={"deadline": deadline, "trials": settings.trials, "workers": settings.workers}
        )
        study = open_study(run, settings, knowledge=problem.knowledge)
        if problem.knowledge is None:  # cascade has a start of its own
            enqueue_seeds(study, problem.space)
        rows = Ledger(run, study).rows()
        progress.earlier([row for row in rows if row.state != "running"])
        with (
            writable(run.path),
            progress,
            Interrupt(lambda: note("finishing the running trial; Ctrl-C again stops at once")) as asked,
        ):
            if settings.workers == 1:
                ended = _here(problem, study, run, budget, asked, progress)
            else:
                ended = _in_workers(study, run, budget, settings.workers, threads, asked, progress)
        run.log(f"search ended: {ended}")
    return run, ended


def use_threads(count: int) -> None:
    """Let torch, and what reads OMP_NUM_THREADS later, use so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    # Threads that wait must not spin where other programs want the cores: beside four busy processes on two
    # cores the same trial took 32 to 51 s spinning and 9 to 19 s not; at a quieter moment 0.65 s and 0.8 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(count)


def _here(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    budget: Budget,
    asked: Interrupt,
    progress: Progress,
) -> str:
    with registered(run) as worker:
        return search_loop(problem, study, run, budget, worker, lambda: asked.requested, progress.trial)


def _in_workers(
    study: optuna.Study,
    run: RunFolder,
    budget: Budget,
    workers: int,
    threads: int,
    asked: Interrupt,
    progress: Progress,
) -> str:
    """Start worker processes, show what they finish, start killed ones again; why they ended.

    They are in sessions of their own: a Ctrl-C of the terminal reaches this process alone, which passes it
    on once.
    """
    ledger = Ledger(run, study)
    shown = {row.trial for row in ledger.rows() if row.state != "running"}
    processes = [_start(run, budget, threads, index) for index in range(workers)]
    restarts = 0
    passed_on = False
    codes: list[int] = []
    try:
        while processes:
            time.sleep(0.3)
            if asked.requested and not passed_on:
                passed_on = True
                for process in processes:
                    process.terminate()
            for row in ledger.rows():
                if row.state != "running" and row.trial not in shown:
                    shown.add(row.trial)
                    progress.trial(row)
            for process in [process for process in processes if process.poll() is not None]:
                processes.remove(process)
                codes.append(process.returncode)
                run.log(f"worker process {process.pid} ended with code {process.returncode}")
                killed = process.returncode < 0
                if killed and not asked.requested and restarts < _MOST_RESTARTS:
                    restarts += 1
                    progress.note(f"a worker was killed (signal {-process.returncode}); starting another")
                    recover(study, run)
                    processes.append(_start(run, budget, threads, workers + restarts))
    finally:
        _stop(processes)  # this process ends early: a second Ctrl-C, or an error
        recover(study, run)
        ledger.write(force=True)
    if codes and all(codes):
        raise RuntimeError(f"all workers ended with an error; the last lines of {run.log_file} say which")
    if asked.requested:
        return "stopped"
    trials = study.get_trials(
        deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    )
    return budget.used_up(trials) or "the workers found nothing new"


def _stop(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Stop workers now: their trials are handed back, unless they do not even find time for that."""
    for _ in range(2):  # the first request only ends the search after the running trial
        for process in processes:
            process.terminate()
        time.sleep(0.2)
    for process in processes:
        try:
            process.wait(timeout=_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(run: RunFolder, budget: Budget, threads: int, index: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "search.worker", str(run.path), "--index", str(index)]
    command += ["--threads", str(threads), "--parent", str(os.getpid())]
    if budget.trials is not None:
        command += ["--trials", str(budget.trials)]
    if budget.deadline is not None:
        command += ["--deadline", repr(budget.deadline)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with run.log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def work(
    run: RunFolder,
    budget: Budget,
    index: int,
    threads: int,
    parent_lives: Callable[[], bool] = lambda: True,
    on_trial: Callable[[TrialRow], None] = lambda row: None,
) -> str:
    """One more worker on a run that a search has prepared; why it ended.

    Raises:
        As ``run_search``.
    """
    use_threads(threads)
    config = run.config()
    problem = prepare(load(config), run, run.log, write=False)
    with writable(run.path), registered(run) as worker, Interrupt() as asked:
        study = open_study(run, config.search, worker_seed=index, knowledge=problem.knowledge)
        return search_loop(
            problem,
            study,
            run,
            budget,
            worker,
            lambda: asked.requested or not parent_lives(),
            on_trial,
        )
