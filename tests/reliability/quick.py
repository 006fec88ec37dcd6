"""A search as ``leanfront search`` runs it, supervisor, workers and all, of which every trial takes 50 ms.

    python quick.py FOLDER TRIALS WORKERS [section.key=value ...]

Cost and score are made up; QUICK_FAULT says what goes wrong, "hang" or "kill", in trials whose policy cuts
half of the first layer.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import leanfront.search.cli.app
import leanfront.search.run.run_lock
import leanfront.search.study.loop
import leanfront.search.study.run_search
from leanfront.compression.policy import Policy
from leanfront.search.config import SearchConfig, parse_config
from leanfront.search.gate.prove import Proof
from leanfront.search.study.run_search import run_search
from leanfront.search.trial.trial import Problem
from tests.search.study.test_study import Candidate, Scorer, problem_of

ROOT = Path(__file__).parent.parent.parent


class Faulty(Scorer):
    def start(self, policy: Policy) -> Candidate:
        if policy["conv0"].sparsity == 0.5:
            if os.environ.get("QUICK_FAULT") == "hang":
                time.sleep(3600)
            if os.environ.get("QUICK_FAULT") == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().start(policy)


@dataclass(frozen=True)
class Loaded:
    config: SearchConfig


def prepare(loaded: Loaded, *rest: object, write: bool = True) -> Problem:
    return problem_of(loaded.config, Faulty(seconds=0.05))


def start(folder: Path, trials: int, workers: int, *more: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, str(folder), str(trials), str(workers), *more]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> None:
    leanfront.search.study.run_search.load = Loaded  # type: ignore[assignment]
    leanfront.search.study.run_search.prepare = prepare  # type: ignore[assignment]
    leanfront.search.study.run_search.proved = lambda loaded, log: Proof(())  # type: ignore[assignment]
    leanfront.search.study.run_search.use_threads = lambda count: None
    leanfront.search.study.run_search._PROGRAM = (__file__, "worker")  # type: ignore[assignment]
    leanfront.search.study.loop._SECONDS_AFTER_A_FULL_DISK = 0.2
    leanfront.search.run.run_lock.BEAT_SECONDS = 0.2
    if sys.argv[1] == "worker":
        leanfront.search.cli.app.main()
    folder, trials, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sections: dict[str, dict[str, object]] = {"task": {"file": "task.py"}, "search": {}}
    for pair in sys.argv[4:]:
        key, _, value = pair.partition("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = float(value)
    sections["search"] |= {"trials": trials, "workers": workers, "sampler": "tpe"}
    print(run_search(parse_config(sections), Path("search.toml"), folder)[1])


if __name__ == "__main__":
    main()
