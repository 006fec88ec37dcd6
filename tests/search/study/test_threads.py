"""A program that calls leanfront has as many threads afterwards as before."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from leanfront.search.cli.check import check_config
from leanfront.search.config import parse_config
from leanfront.search.study.run_search import run_search
from leanfront.search.study.threads import cores, threads_of_workers, threads_put_back, use_threads
from leanfront.search.task import TaskError


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_what_is_used_within_is_put_back() -> None:
    before = torch.get_num_threads()
    with threads_put_back():
        use_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        assert os.environ["OMP_NUM_THREADS"] == str(before + 1)
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "OMP_WAIT_POLICY" not in os.environ


def test_so_it_is_of_each_command_whatever_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config({"task": {"file": str(tmp_path / "task.py")}, "search": {"trials": 1}})
    used: list[int] = []

    def used_are(count: int) -> None:
        used.append(count)
        use_threads(7)

    for module in ("study.run_search", "cli.check"):
        name = f"leanfront.search.{module}"
        monkeypatch.setattr(f"{name}.use_threads", used_are)
        monkeypatch.setattr(f"{name}.load", _nothing)
    before = torch.get_num_threads()
    with pytest.raises(TaskError, match="nothing"):
        run_search(config, tmp_path / "search.toml", tmp_path / "run")
    with pytest.raises(TaskError, match="nothing"):
        check_config(config)
    assert used == [cores(), cores()]
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "3"


def _nothing(*given: object) -> None:
    raise TaskError("nothing")


def test_threads_use_every_core_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 7, 8):
        monkeypatch.setattr("leanfront.search.study.threads.cores", partial(int, count))
        for workers in range(1, count + 1):
            threads = threads_of_workers(workers)
            assert sum(threads) == count
            assert max(threads) - min(threads) <= 1
        assert threads_of_workers(count + 1) == [1] * (count + 1)
