"""A worker process, as ``leanfront search --workers N`` starts it: ``python -m ...worker RUN``."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from leanfront.search.errors import exit_code
from leanfront.search.run.run_folder import open_run
from leanfront.search.study.loop import Budget
from leanfront.search.study.run_search import work


def main() -> int:
    """Run trials until the budget is used up, a signal comes or the parent dies; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m leanfront.search.study.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("--index", type=int, default=0, help="makes workers draw different policies")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--deadline", type=float, help="seconds since 1970")
    parser.add_argument("--parent", type=int, help="end with this process")
    given = parser.parse_args()

    def parent_lives() -> bool:
        return given.parent is None or os.getppid() == given.parent

    with suppress(OSError):  # when the memory is used up, a worker is what the kernel should end
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        run = open_run(given.run)
        budget = Budget(given.trials, given.deadline)
        work(run, run.config(), budget, given.index, given.threads, parent_lives)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
