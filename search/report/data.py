"""What a report shows, read from a run folder: trials, front, environment, verified exports."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leanfront.search.objectives import COSTS, costs_among, objective
from leanfront.search.run.front import alike, front_rows, within_noise
from leanfront.search.run.hypervolume import growth
from leanfront.search.run.run_folder import (
    COLUMNS,
    TEXTS,
    RunError,
    RunFolder,
    TrialRow,
    open_run,
)
from leanfront.search.run.significance import Evidence, load_scores
from leanfront.search.run.status import searched
from leanfront.search.trial.sensitivity import COLUMNS as SENSITIVITY_COLUMNS

CURVE_POINTS = 200
"""Of a hypervolume that grows: points of its line."""


@dataclass(frozen=True)
class RunData:
    """A run as the report sees it.

    ``rows`` are the trials as they were read; ``trials`` has the columns of trials.csv, numbers as floats,
    NaN where the file has none, and ``hours`` of search until each finished. ``costs``: what can be shown
    beside accuracy. ``complete`` are the trials with an accuracy and every objective, ``front`` the
    non-dominated ones among them, fastest first. ``max_drop`` (in the unit of the score) is what the result
    is told for: one point, or the run's own limit where that is tighter. ``verifications``: (folder name,
    verification.json) of each export. ``sensitivities``: decision, code, level, divergence, accuracy.
    ``alike``: member of the front -> the baseline and the fastest cheaper member, if it is no more accurate
    than they are but for noise.
    """

    path: Path
    rows: Sequence[TrialRow]
    trials: pd.DataFrame
    complete: pd.DataFrame
    front: pd.DataFrame
    objectives: tuple[str, ...]
    costs: tuple[str, ...]
    max_drop: float
    environment: Mapping[str, Any]
    config: str
    verifications: tuple[tuple[str, Mapping[str, Any]], ...]
    sensitivities: pd.DataFrame
    alike: Mapping[int, tuple[str, ...]]

    @property
    def baseline(self) -> Mapping[str, Any]:
        """Accuracy and costs of the uncompressed network; empty if they were never measured."""
        baseline: Mapping[str, Any] = self.environment.get("baseline") or {}
        return baseline

    @property
    def free(self) -> Sequence[Mapping[str, Any]]:
        """The same of what is had without a search, each with its name."""
        free: Sequence[Mapping[str, Any]] = self.environment.get("free") or ()
        return free


def read_run(run: Path) -> RunData:
    """Read a run folder; it may have been moved, have no trial yet, or be at work.

    Raises:
        RunError: not a run folder, or a file of it cannot be understood.
    """
    folder = open_run(run)
    config = folder.config()
    objectives = config.search.objectives
    environment = folder.environment()
    costs = tuple(dict.fromkeys((*COSTS, *costs_among(objectives))))
    rows = folder.trials()
    uncompressed = (environment.get("baseline") or {}).get("accuracy") or 0.0
    most = objective("accuracy").usual_drop(uncompressed)
    trials = _frame(rows, costs)
    # what was done before the first trial is search time, too
    trials["hours"] += float(environment.get("seconds_preparing") or 0.0) / 3600
    members = front_rows(rows, objectives)
    places = {row.trial: place for place, row in enumerate(rows)}
    verified = sorted(folder.exported.glob("*/verification.json"))
    return RunData(
        path=run,
        rows=rows,
        trials=trials,
        complete=trials[trials.state == "complete"].dropna(subset=["latency_ms", "accuracy", *objectives]),
        front=trials.iloc[[places[row.trial] for row in members]],
        objectives=objectives,
        costs=costs,
        max_drop=min(most, config.limits.max_drop or most),
        environment=environment,
        config=folder.config_file.read_text(encoding="utf-8"),
        verifications=tuple((file.parent.name, _object(file)) for file in verified),
        sensitivities=_sensitivities(folder.path / "sensitivities.csv"),
        alike=_alike(folder, members, environment.get("baseline") or {}, objectives),
    )


def _sensitivities(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(SENSITIVITY_COLUMNS))
    try:
        table = pd.read_csv(path, dtype={"decision": str, "level": str}, keep_default_na=False)
    except ValueError as error:
        raise RunError(f"{path} is not a table of sensitivities: {error}") from error
    if missing := [name for name in SENSITIVITY_COLUMNS if name not in table.columns]:
        raise RunError(f"{path} has no column {missing[0]!r}")
    return table


def _alike(
    folder: RunFolder, front: Sequence[TrialRow], baseline: Mapping[str, Any], objectives: tuple[str, ...]
) -> dict[int, tuple[str, ...]]:
    same = alike(folder, front, objectives)
    low, high = baseline.get("accuracy_ci") or (None, None)
    base = TrialRow(-1, "complete", "", baseline.get("accuracy"), low, high)

    def scores_of(row: TrialRow) -> Evidence | None:
        return load_scores(folder.scores_file("baseline" if row is base else row.trial))

    return {
        row.trial: (("baseline",) if within_noise(row, base, scores_of) else ())
        + ((f"#{same[row.trial]}",) if row.trial in same else ())
        for row in front
    }


def _object(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RunError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    return raw


def _frame(rows: Sequence[TrialRow], costs: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame([row.values for row in rows], columns=list(dict.fromkeys((*COLUMNS, *costs))))
    numbers = [name for name in table.columns if name not in (*TEXTS, "trial")]
    table[numbers] = table[numbers].astype(float)
    # until each trial finished; NaN for those without both times
    table["hours"] = table.trial.map({row.trial: spent / 3600 for row, spent in searched(rows)})
    return table


def policies(rows: pd.DataFrame) -> list[dict[str, dict[str, Any]]]:
    """The policies of these trials, layer name -> fields, in the order of the rows.

    Raises:
        RunError: a policy is not JSON.
    """
    result = []
    for trial, text in zip(rows.trial, rows.policy, strict=True):
        try:
            result.append(json.loads(text))
        except ValueError as error:
            raise RunError(f"the policy of trial {trial} in trials.csv is not JSON: {error}") from error
    return result


def hypervolume_so_far(data: RunData) -> pd.Series:
    """The hypervolume (run.hypervolume) after complete trials, in the order they finished: after each of
    up to CURVE_POINTS of them, spread evenly, the last among them. Empty without a baseline."""
    rows = data.complete.sort_values("hours", na_position="last", kind="stable")
    values = rows[list(data.objectives)].to_numpy(dtype=float)
    grown = growth(values, data.objectives, data.baseline, CURVE_POINTS)
    return pd.Series({rows.index[end - 1]: volume for end, volume in grown}, dtype=float)


def best_speed_up(data: RunData, max_drop: float) -> pd.Series:
    """Best latency ratio so far at no more than this drop (fraction), after each complete trial in the order
    they finished; NaN before the first."""
    rows = data.complete.sort_values("hours", na_position="last", kind="stable")
    within = rows.accuracy >= data.baseline["accuracy"] - max_drop - 1e-9
    best: pd.Series = (data.baseline["latency_ms"] / rows.latency_ms).where(within).cummax().ffill()
    return best
