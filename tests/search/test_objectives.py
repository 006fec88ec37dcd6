"""The table of objectives, and one that a task registers: searched for, shown, picked, read again."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.search import objectives
from leanfront.search.config import ConfigError, check_names, parse_config
from leanfront.search.objectives import (
    COSTS,
    LIMITS,
    Objective,
    ObjectiveError,
    objective,
    quantity,
    register_objective,
)
from leanfront.search.run.hypervolume import hypervolume
from leanfront.search.run.run_folder import COLUMNS, TrialRow, make_run
from leanfront.search.run.status import status
from leanfront.search.scores import AUC, MEAN_ABSOLUTE_ERROR, described
from leanfront.search.study.prepare import Loaded, _check_metric
from tests.compression.policy.test_policy import network as branched_network

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-task.md").read_text(encoding="utf-8")
OWN = PAGE.split("<!-- objective -->\n```python\n")[1].split("```")[0]
"""What the documentation says to write."""
PARAMETERS = Objective("parameters", value=lambda network, policy, cost: network.weight_count)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with the table as it is delivered."""
    monkeypatch.setattr(objectives, "_TABLE", dict(objectives._TABLE))


def test_the_table_has_a_row_for_each_column_that_can_be_searched_for() -> None:
    assert objectives.names() == ("accuracy", *COSTS, "bops", "zipped_bytes")
    assert set(objectives.names()) - {"bops", "zipped_bytes"} <= set(COLUMNS)
    assert set(LIMITS) == {*COSTS, "zipped_bytes"}
    assert [objective(name).sign for name in objectives.names()] == [-1.0, *[1.0] * 6]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Objective("latency_ms", value=lambda *given: 1.0), "none of accuracy, latency_ms"),
        (Objective("two words", value=lambda *given: 1.0), "not 'two words'"),
        (Objective("parameters"), "needs value=function"),
        (Objective("share", value=lambda *given: 1.0, scale="share"), "no other source or scale"),
    ],
)
def test_what_cannot_be_registered(row: Objective, said: str) -> None:
    with pytest.raises(ObjectiveError, match=said):
        register_objective(row)


def test_a_name_that_is_not_known_names_the_nearest() -> None:
    config = parse_config({"task": {"file": "t.py"}, "search": {"objectives": ["accuracy", "parameter"]}})
    with pytest.raises(ConfigError, match=r"search.objectives.1: no objective is called 'parameter'; there"):
        check_names(config)
    register_objective(PARAMETERS)
    with pytest.raises(ConfigError, match="did you mean 'parameters'"):
        check_names(config)


def test_a_value_must_be_a_number_above_0() -> None:
    for value in (0, -1.0, float("nan"), float("inf"), None, "many"):
        with pytest.raises(ObjectiveError, match="must be a number above 0"):
            Objective("own", value=lambda *given, value=value: value).of(None, None, None)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("", 270_896, "271 k"), ("", 12, "12"), ("", 0.5, "0.50"), ("s", 12.34, "12.3 s")],
)
def test_units_of_ones_own(unit: str, value: float, text: str) -> None:
    register_objective(Objective("own", unit=unit, value=lambda *given: 1.0))
    assert quantity("own", value) == text


def test_more_may_be_better() -> None:
    """Twice the uncompressed network's counts as a halving of a cost does."""
    register_objective(Objective("speed", better="higher", value=lambda *given: 1.0))
    values = np.array([[0.9, 2.0], [0.9, 0.5]])
    assert hypervolume(values, ("accuracy", "speed"), {"accuracy": 0.9, "speed": 1.0}) == pytest.approx(1.0)


def test_a_batch_says_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    exec(OWN)
    network = branched_network()
    policies = [Policy.uniform(network, LayerPolicy(sparsity, 8, 8)) for sparsity in (0.0, 0.25, 0.5)]
    own = objective("parameters")
    single = [own.of(policy.cut(network, 1), policy, None) for policy in policies]
    assert own.column(PolicyBatch.of(network, policies), None).tolist() == single


def test_the_status_of_a_run_that_is_not_prepared_knows_no_objectives_of_its_own(tmp_path: Path) -> None:
    config = parse_config({"task": {"file": "t.py"}, "search": {"objectives": ["accuracy", "parameters"]}})
    answer = status(make_run(tmp_path / "run", config))
    assert (answer["hypervolume"], answer["hypervolume_curve"]) == (None, [])


def test_cascade_refuses_what_is_said_of_one_at_a_time() -> None:
    with pytest.raises(
        ObjectiveError, match="'parameters' says `value` of one: register it with `values`, too"
    ):
        PARAMETERS.column(None, None)


def test_columns_of_a_tasks_own_are_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parse_config({"task": {"file": "task.py"}}))
    rows = [TrialRow(0, "complete", latency_ms=1.0, more={"parameters": 5.0}), TrialRow(1, "running")]
    run.write_trials(rows)
    assert run.trials() == rows


def test_what_one_run_folder_has_kept_is_not_taken_for_what_another_has(monkeypatch) -> None:
    monkeypatch.setattr(objectives, "_TABLE", dict(objectives._TABLE))
    row = {"name": "speed", "title": "", "unit": "", "better": "higher"}
    objectives.remember([row])
    objectives.remember([row | {"better": "lower"}, row | {"name": "latency_ms"}])
    assert objective("speed").better == "lower"
    assert objective("latency_ms").source == "cost"
    own = Objective("speed", better="higher", value=lambda network, policy, cost: 1.0)
    register_objective(own)
    objectives.remember([row | {"better": "lower"}])
    assert objective("speed") is own


def test_a_score_of_which_less_is_better_is_kept_turned_and_shown_as_it_is() -> None:
    objectives.scored_by(described(replace(MEAN_ABSOLUTE_ERROR, unit="kg")))
    row = objective("accuracy")
    assert (row.label, row.sign) == ("mean absolute error", -1.0)  # what is kept is better where it is more
    assert quantity("accuracy", -3.25) == "3.25 kg"
    assert row.change(-0.5) == "+0.5 kg"  # half a kilogram is lost
    assert row.amount(0.5) == "0.5 kg"
    assert row.interval((-4.0, -3.0)) == "3 .. 4"
    # as good at half of the latency is 1; a tenth of the uncompressed network's error worse counts as nothing
    names, baseline = ("accuracy", "latency_ms"), {"accuracy": -3.0, "latency_ms": 1.0}
    assert hypervolume(np.array([[-3.0, 0.5]]), names, baseline) == pytest.approx(1.0)
    assert hypervolume(np.array([[-3.15, 0.5]]), names, baseline) == pytest.approx(0.5)
    assert hypervolume(np.array([[-3.3, 0.5]]), names, baseline) == 0.0
    objectives.check_drop(100.0)  # an error has no end
    objectives.scored_by(described(AUC))
    assert quantity("accuracy", 0.75) == "0.7500"
    with pytest.raises(ObjectiveError, match="in the unit of AUC, which can lose 1 at most, but 2 came"):
        objectives.check_drop(2.0)
    objectives.scored_by(None)
    assert objective("accuracy") == objectives.ACCURACY
    assert objective("accuracy").change(-0.0123) == "-1.23 points"


def test_trials_of_another_metric_are_not_gone_on_with(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parse_config({"task": {"file": "task.py"}}))
    loaded = cast(Loaded, SimpleNamespace(task=SimpleNamespace(metric=AUC)))
    _check_metric(loaded, {"metric": described(None)}, run)  # before the first trial nothing is lost
    run.write_trials([TrialRow(0, "complete", accuracy=0.9, latency_ms=1.0)])
    _check_metric(loaded, {"metric": described(AUC)}, run)
    with pytest.raises(ConfigError, match="were scored by accuracy, and the task now has AUC"):
        _check_metric(loaded, {"metric": described(None)}, run)
