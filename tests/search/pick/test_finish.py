"""What a search does at its end."""

import time
from pathlib import Path

import pytest

import leanfront.search.config
import leanfront.search.pick.finish
from leanfront.search.pick.finish import fine_tune_front, finish, order_of
from leanfront.search.run.run_folder import TrialRow, make_run, open_run
from leanfront.search.study.run_search import run_search
from tests.bright import CONFIG, TASK
from tests.search.study.test_study import configuration


def row(trial: int, accuracy: float, latency_ms: float) -> TrialRow:
    return TrialRow(trial, "complete", accuracy=accuracy, latency_ms=latency_ms, policy="{}")


FRONT = [row(1, 0.70, 1.0), row(2, 0.80, 1.1), row(3, 0.88, 2.0), row(4, 0.895, 4.0), row(5, 0.90, 4.4)]


def test_a_share_of_long_searches_is_kept():
    assert configuration(search={"hours": 8}).seconds_to_finish == pytest.approx(0.15 * 8 * 3600)
    assert configuration(search={"hours": 8}, pick={"share_of_hours": 0}).seconds_to_finish == 0
    assert configuration(search={"hours": 0.5}).seconds_to_finish == 0
    assert configuration(search={"trials": 5}).seconds_to_finish == 0


def test_first_what_would_be_picked_then_what_differs_most():
    # at most 0.01 below 0.90: trial 4 is the fastest; 1 is furthest from 4; then 3 lies between; then 2 and 5
    # are 1.1 times one that was taken
    assert [each.trial for each in order_of(FRONT, 0.90)][:3] == [4, 1, 3]
    assert {each.trial for each in order_of(FRONT, 0.90)} == {1, 2, 3, 4, 5}
    assert next(iter(order_of(FRONT, 0.99))).trial == 5  # none is that accurate: the most accurate
    assert [each.trial for each in order_of(FRONT[:1], 0.9)] == [1]


def test_members_are_picked_while_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", configuration())
    run.update_environment(baseline={"accuracy": 0.90})
    run.write_trials(FRONT)
    run.write_trials(FRONT, "front.csv")
    picked: list[int] = []
    said: list[str] = []

    def pick(run, trial, ends, stop):
        time.sleep(0.1)
        picked.append(trial)
        return 1  # not as promised: that is said in its card, and the next one may be

    monkeypatch.setattr(leanfront.search.pick.finish, "_pick", pick)
    (run.exported / "4").mkdir(parents=True)
    (run.exported / "4" / "verification.json").write_text("{}")
    assert fine_tune_front(run, time.time() + 0.25, lambda: False, said.append) == picked == [1, 3]
    assert [line.partition(";")[0] for line in said] == [
        "long fine-tune of trial 1", "trial 1 is not as promised",
        "long fine-tune of trial 3", "trial 3 is not as promised",
    ]  # fmt: skip
    assert fine_tune_front(run, time.time() + 9, lambda: True, said.append) == []
    monkeypatch.setattr(leanfront.search.pick.finish, "_pick", lambda *rest: None)
    assert fine_tune_front(run, time.time() + 9, lambda: False, said.append) == []
    assert said[-1] == "the long fine-tune of trial 1 was ended: no time left"


@pytest.mark.slow
def test_a_real_pick_and_one_that_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "search.toml").write_text(CONFIG)
    from leanfront.search.config import load_config

    monkeypatch.setattr(leanfront.search.config, "_LEAST_HOURS", 0.0)
    monkeypatch.setattr(
        leanfront.search.pick.finish, "order_of", lambda front, accuracy: order_of(front, accuracy)[:1]
    )
    config = load_config(tmp_path, ["search.hours=0.2", "pick.share_of_hours=0.1", "pick.epochs=1"])
    run, ended = run_search(config, tmp_path, tmp_path / "run", finish)
    assert ended == "4 trials are done"
    assert (run.path / "report.html").stat().st_size > 100_000
    (card,) = run.exported.glob("*/card.md")
    log = run.log_file.read_text()
    assert log.index("search ended") < log.index("long fine-tune") < log.index("report: ")
    (card.parent / "verification.json").unlink()
    said: list[str] = []
    assert fine_tune_front(open_run(run.path), time.time() + 0.5, lambda: False, said.append) == []
    assert "no time left" in said[-1]
