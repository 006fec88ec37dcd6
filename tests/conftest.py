"""The order in which tests run, and where."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from tests import worker_processes

LONG = ("reliability/", "test_docs.py", "cli/test_cli.py", "test_task.py", "extending/", "leanfront/")
"""Files that take longest: first, so that no process is left with one of them while another has no more."""

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # each process of tests, and what it starts, on a core of its own: searches take all that they see
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(worker.removeprefix("gw")) % len(_cores)]})


@pytest.fixture(autouse=True, scope="session")
def in_a_hurry() -> Iterator[None]:
    """Workers that begin at once; and no waiting for a calm machine, which one that tests is not."""
    with (
        patch("leanfront.search.study.run_search._start", worker_processes.start),
        patch("leanfront.latency_models.benchmark.timing.CALM_S", 0.0),
    ):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file the order stays."""
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONG))
