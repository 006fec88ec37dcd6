"""Workers of the searches that tests run within their own process: real processes, forked from one that has
loaded what each of them would load for four seconds. Searches that are commands start theirs themselves."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import TimeoutExpired

from leanfront.search.run.run_folder import RunFolder
from leanfront.search.study import run_search

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.worker_preload"])


class Worker:
    """As much of a ``subprocess.Popen`` as a search asks of its workers."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired("worker", timeout or 0.0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def start(run: RunFolder, threads: int, index: int) -> Worker:
    """In place of ``run_search._start``."""
    command = ["leanfront", "worker", *run_search._asked(run, threads, index)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    given = (command, dict(environment), str(Path.cwd()), str(run.log_file), os.getpid())
    process = _FORKED.Process(target=_work, args=given)
    process.start()
    return Worker(process)


def _work(command: list[str], environment: dict[str, str], folder: str, log: str, parent: int) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for said in (1, 2):
        os.dup2(file, said)
    os.getppid = lambda: parent  # type: ignore[assignment]  # whose child it stands for
    sys.argv = command
    from leanfront.search.cli.app import main

    main()
