"""How many threads compute, and that whoever called has as many afterwards as before."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def threads_of_workers(workers: int) -> list[int]:
    """Threads of torch for each worker: together every core that this process may use, and none twice."""
    each, more = divmod(cores(), workers)
    return [max(1, each + (index < more)) for index in range(workers)]


def cores() -> int:
    """Cores that this process may use, also where a container has a share of their time."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


def use_threads(count: int) -> None:
    """Let torch, and what reads OMP_NUM_THREADS later, use so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    # Threads that wait must not spin where other programs want the cores: beside four busy processes on two
    # cores the same trial took 32 to 51 s spinning and 9 to 19 s not; at a quieter moment 0.65 s and 0.8 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(count)


@contextmanager
def threads_put_back() -> Iterator[None]:
    """Put back what ``use_threads`` changes within: in a program of somebody else it is theirs."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    torch = sys.modules.get("torch")  # a command that has not loaded it has nothing to put back
    count = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(count)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
