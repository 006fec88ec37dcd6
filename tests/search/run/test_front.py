import json

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfront.search.cli.output import print_table
from leanfront.search.config import parse_config
from leanfront.search.objectives import quantity
from leanfront.search.run.front import front_json, front_rows, front_table, non_dominated
from leanfront.search.run.hypervolume import growth, hypervolume, volume_below_zero
from leanfront.search.run.run_folder import TrialRow, make_run
from leanfront.search.run.status import status


def row(
    trial: int, accuracy: float | None, latency: float, size: float = 1.0, state: str = "complete"
) -> TrialRow:
    return TrialRow(trial, state, accuracy=accuracy, latency_ms=latency, size_bytes=size, energy_mj=1.0)


def test_a_front_known_on_paper():
    values = np.array([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0], [2.0, 2.0], [1.0, 1.0], [3.0, 3.0], [0.0, 4.0]])
    assert non_dominated(values).tolist() == [True, True, True, False, True, False, False]


def test_no_rows_and_one_row():
    assert non_dominated(np.empty((0, 2))).tolist() == []
    assert non_dominated(np.array([[1.0, 2.0]])).tolist() == [True]


def test_the_front_of_an_analytic_problem():
    # accuracy = 1 - x^2, latency = (x - 2)^2 over a grid: 0..2 is the front, everything else is dominated
    x = np.linspace(-1, 3, 41)
    member = non_dominated(np.stack([x**2, (x - 2) ** 2], axis=1))
    assert member.tolist() == ((x > -1e-9) & (x < 2 + 1e-9)).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25))
def test_the_same_as_optuna(points):
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    for accuracy, latency, size in points:
        study.add_trial(optuna.trial.create_trial(values=[accuracy, latency, size]))
    rows = [row(i, *map(float, point)) for i, point in enumerate(points)]
    found = front_rows(rows, ("accuracy", "latency_ms", "size_bytes"))
    assert {r.trial for r in found} == {trial.number for trial in study.best_trials}


def test_only_complete_trials_are_on_the_front_fastest_first():
    rows = [
        row(0, 0.9, 2.0),
        row(1, 0.8, 1.0),
        row(2, 0.99, 0.1, state="infeasible"),
        row(3, None, 0.1, state="failed"),
        row(4, 0.7, 3.0),
    ]
    assert [r.trial for r in front_rows(rows, ("accuracy", "latency_ms"))] == [1, 0]


def test_hypervolume_on_paper():
    # accuracy counts from 0.8 in tenths, latency in halvings of 4: 0.5 x 2, 1 x 1 and 0.5 x 1 of it twice
    front = np.array([[0.85, 1.0], [0.9, 2.0], [0.99, 5.0], [0.7, 0.5]])
    names, baseline = ("accuracy", "latency_ms"), {"accuracy": 0.9, "latency_ms": 4.0}
    assert hypervolume(front, names, baseline) == pytest.approx(0.5 * 2 + 1 * 1 - 0.5 * 1)
    assert hypervolume(front[:0], names, baseline) == 0.0
    assert hypervolume(front, names, {"latency_ms": 4.0}) is None


def test_hypervolume_grows_as_if_counted_anew():
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(0.78, 0.9, 30), rng.uniform(0.5, 4.5, 30)], axis=1)
    names, baseline = ("accuracy", "latency_ms"), {"accuracy": 0.9, "latency_ms": 4.0}
    found = growth(values, names, baseline, points=7)
    assert [end for end, _ in found] == [4, 9, 13, 17, 21, 26, 30]
    assert [volume for _, volume in found] == pytest.approx(
        [hypervolume(values[:end], names, baseline) for end, _ in found]
    )
    assert growth(values, names, {}, points=7) == growth(values[:0], names, baseline, points=7) == []


def test_as_accurate_at_half_of_every_cost_is_one():
    costs = {"latency_ms": 3.0, "size_bytes": 1e6, "energy_mj": 7.0}
    for count in (1, 2, 3):
        names = ("accuracy", *list(costs)[:count])
        half = np.array([[0.7, *[costs[name] / 2 for name in names[1:]]]])
        assert hypervolume(half, names, {"accuracy": 0.7, **costs}) == pytest.approx(1.0)


BASELINE = {
    "accuracy": 0.9,
    "accuracy_ci": [0.88, 0.92],
    "latency_ms": 2.0,
    "energy_mj": 20.0,
    "size_bytes": 4000,
    "peak_memory_bytes": 100,
}


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "run", parse_config({"task": {"file": "task.py"}}))
    run.update_environment(profile="toy", baseline=BASELINE)
    policy = json.dumps(
        {"conv": {"sparsity": 0.5, "weight_bits": 4, "activation_bits": 8, "pattern": "channel"}}
    )
    run.write_trials(
        [
            TrialRow(
                0, "complete", "", 0.89, 0.87, 0.91, 1.0, 10.0, 1500, 50, 3.0, 2.0, 1.0, "", "", "w", policy
            ),
            TrialRow(1, "failed", "the loss is not a number", latency_ms=1.0),
            TrialRow(2, "running", worker="w"),
        ]
    )
    return run


def test_front_json_is_as_designed(run):
    answer = front_json(run)
    assert list(answer) == ["run", "profile", "baseline", "front"]
    assert answer["baseline"]["latency_ms"] == 2.0
    assert answer["front"] == [
        {
            "trial": 0,
            "accuracy": 0.89,
            "accuracy_ci": [0.87, 0.91],
            "latency_ms": 1.0,
            "energy_mj": 10.0,
            "size_bytes": 1500,
            "peak_memory_bytes": 50,
            "policy": {
                "conv": {"sparsity": 0.5, "weight_bits": 4, "activation_bits": 8, "pattern": "channel"}
            },
        }
    ]


def test_the_table_says_what_was_gained(run):
    baseline, point = front_table(run)
    assert (baseline["trial"], baseline["x"]) == ("-", "1.00")
    assert point["x"] == "0.50"
    assert point["bits"] == "4"
    assert point["cut"] == "50 %"


@pytest.mark.parametrize(("cost", "shown"), [("latency_ms", False), ("energy_mj", True)])
def test_energy_nobody_searches_for_gives_way_to_80_columns(tmp_path, monkeypatch, capsys, cost, shown):
    config = {"task": {"file": "task.py"}, "search": {"objectives": ["accuracy", cost]}}
    run = make_run(tmp_path / "run", parse_config(config))
    run.update_environment(profile="toy", baseline=BASELINE)
    layer = {"sparsity": 0.5, "weight_bits": 2, "activation_bits": 8, "pattern": "channel"}
    policy = {"kept": layer, "wide": layer | {"weight_bits": 32}, "left": layer | {"sparsity": 1.0}}
    first = {"accuracy_low": 0.7, "accuracy_high": 0.72, "size_bytes": 1_230, "policy": json.dumps(policy)}
    points = ((100, 0.71, 0.123, 111.0), (101, 0.711, 0.124, 112.0))
    run.write_trials(
        [
            TrialRow(number, "complete", accuracy=accuracy, latency_ms=latency, energy_mj=energy, **first)
            for number, accuracy, latency, energy in points
        ]
    )
    monkeypatch.setattr("leanfront.search.run.front.alike", lambda *given: {101: 100})
    table = front_table(run)
    assert [row["same as"] for row in table] == ["", "", "100"]
    assert [(row["cut"], row["out"]) for row in table[1:]] == [("50 %", "1")] * 2
    assert ("energy" in table[0]) == shown
    print_table(table)
    assert (max(map(len, capsys.readouterr().out.splitlines())) <= 80) != shown


def test_status_json_is_as_designed(run):
    answer = status(run)
    counts = {
        name: answer[name] for name in ("complete", "pruned", "infeasible", "failed", "running", "front_size")
    }
    assert counts == {"complete": 1, "pruned": 0, "infeasible": 0, "failed": 1, "running": 0, "front_size": 1}
    assert answer["hypervolume"] == pytest.approx(0.9 * 1.0)  # 9 points above the floor, one halving
    assert answer["seconds_left"] == 0.0  # nobody works on it, and so nothing is running either
    assert answer["failures"] == [{"trial": 1, "reason": "the loss is not a number"}]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("latency_ms", 0.0123, "12.3 us"),
        ("latency_ms", 1.5, "1.50 ms"),
        ("latency_ms", 123.4, "123 ms"),
        ("size_bytes", 999, "999 B"),
        ("size_bytes", 12_345, "12.3 kB"),
        ("size_bytes", 37_000_000, "37.0 MB"),
        ("energy_mj", 0.5, "500 uJ"),
        ("accuracy", 0.91234, "0.9123"),
        ("accuracy", None, "?"),
    ],
)
def test_quantities_have_their_unit(name, value, text):
    assert quantity(name, value) == text


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda k: st.lists(st.tuples(*[st.integers(1, 5)] * k), min_size=1, max_size=20)
    )
)
def test_the_volume_is_that_of_the_cells_that_are_covered(points):
    """Against counting unit cells."""
    below = -np.array(points, dtype=float)
    cells = np.stack(np.meshgrid(*[np.arange(5)] * below.shape[1], indexing="ij"), axis=-1)
    covered = (cells[..., None, :] < -below).all(axis=-1).any(axis=-1)
    assert volume_below_zero(below) == pytest.approx(covered.sum())


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_volume_is_optunas(count):
    from optuna._hypervolume import compute_hypervolume

    points = -np.random.default_rng(count).uniform(0.01, 1.0, (60, count))
    assert volume_below_zero(points) == pytest.approx(compute_hypervolume(points, np.zeros(count)))


def test_what_is_free_stands_behind_the_baseline(run):
    free = {
        "name": "int8",
        "weight_bits": 8,
        "accuracy": 0.87,
        "accuracy_ci": [0.85, 0.89],
        "size_bytes": 1200,
    }
    run.update_environment(free=[{**free, "latency_ms": 1.5}])
    assert front_json(run)["free"][0]["accuracy"] == 0.87
    rows = front_table(run)
    assert [row["trial"] for row in rows] == ["-", "int8", "0"]
    assert (rows[1]["bits"], rows[1]["accuracy"], rows[1]["cut"]) == ("8", "0.8700", "0 %")
    assert rows[1]["x"] == "0.75"
