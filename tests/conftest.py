"""The order in which tests run."""

import pytest

LONG = ("reliability/", "test_docs.py", "cli/test_cli.py", "test_task.py", "extending/", "leanfront/")
"""Files that take longest: first, so that no process is left with one of them while another has no more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file the order stays."""
    items.sort(key=lambda item: not any(part in item.path.as_posix() for part in LONG))
