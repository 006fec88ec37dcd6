"""What a report shows, read from a run folder: trials, front, environment, verified exports."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leanfront.search.run.front import COSTS, non_dominated
from leanfront.search.run.hypervolume import growth
from leanfront.search.run.noise import alike, within_noise
from leanfront.search.run.run_folder import ADDED, RunError, RunFolder, TrialRow, open_run
from leanfront.search.run.significance import load_scores
from leanfront.search.trial.sensitivity import COLUMNS as SENSITIVITY_COLUMNS

NUMBERS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    *COSTS,
    "seconds",
    "seconds_training",
    "seconds_scoring",
    "seconds_proposing",
    "seconds_pricing",
    "rung",
    "divergence",
    "expected_accuracy",
    "weights_of",
)
TEXTS = ("trial", "state", "reason", "started", "finished", "worker", "policy", "rungs")
DEFAULT_DROP = 0.01
CURVE_POINTS = 200
"""Of a hypervolume that grows: points of its line."""
PAUSE_HOURS = 1 / 6
"""A longer stretch without any trial at work is a pause (stopped, resumed later), not search time."""


@dataclass(frozen=True)
class RunData:
    """A run as the report sees it.

    ``trials`` has the columns of trials.csv; its numbers are floats, NaN where the file has none.
    ``complete`` are the trials with an accuracy and every objective, ``front`` the non-dominated ones
    among them, fastest first. ``max_drop`` (a fraction) is what the result is told for: one point,
    or the run's own limit where that is tighter. ``verifications``: (folder name, verification.json) of each
    export. ``sensitivities``: decision, code, level, divergence, accuracy. ``alike``: member of the front ->
    the baseline and the fastest cheaper member, if it is no more accurate than they are but for noise.
    """

    path: Path
    trials: pd.DataFrame
    complete: pd.DataFrame
    front: pd.DataFrame
    objectives: tuple[str, ...]
    max_drop: float
    environment: Mapping[str, Any]
    config: str
    verifications: tuple[tuple[str, Mapping[str, Any]], ...]
    sensitivities: pd.DataFrame
    alike: Mapping[str, tuple[str, ...]]

    @property
    def baseline(self) -> Mapping[str, Any]:
        """Accuracy and costs of the uncompressed network; empty if they were never measured."""
        baseline: Mapping[str, Any] = self.environment.get("baseline") or {}
        return baseline


def read_run(run: Path) -> RunData:
    """Read a run folder; it may have been moved, have no trial yet, or be at work.

    Raises:
        RunError: not a run folder, or a file of it cannot be understood.
    """
    folder = open_run(run)
    config = folder.config()
    objectives = config.search.objectives
    environment = folder.environment()
    trials = _trials(folder.trials_file)
    # what was done before the first trial is search time, too
    trials["hours"] += float(environment.get("seconds_preparing") or 0.0) / 3600
    complete = trials[trials.state == "complete"].dropna(subset=["latency_ms", "accuracy", *objectives])
    values = complete[list(objectives)].to_numpy(dtype=float)
    values = np.where(np.array(objectives) == "accuracy", -values, values)
    member = non_dominated(values) if len(values) else np.zeros(0, dtype=bool)
    front = complete[member].sort_values(["latency_ms", "accuracy"], ascending=[True, False])
    verified = sorted(folder.exported.glob("*/verification.json"))
    return RunData(
        path=run,
        trials=trials,
        complete=complete,
        front=front,
        objectives=objectives,
        max_drop=min(DEFAULT_DROP, config.limits.max_drop or DEFAULT_DROP),
        environment=environment,
        config=folder.config_file.read_text(encoding="utf-8"),
        verifications=tuple((file.parent.name, _object(file)) for file in verified),
        sensitivities=_sensitivities(folder.path / "sensitivities.csv"),
        alike=_alike(folder, front, environment.get("baseline") or {}, objectives),
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
    folder: RunFolder, front: pd.DataFrame, baseline: Mapping[str, Any], objectives: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    names = ("accuracy", "accuracy_low", "accuracy_high", *COSTS)
    rows = [
        replace(TrialRow(int(row["trial"]), "complete"), **{n: row[n] for n in names if not pd.isna(row[n])})
        for row in front.to_dict("records")
    ]
    same = alike(folder, rows, objectives)
    low, high = baseline.get("accuracy_ci") or (None, None)
    base = TrialRow(-1, "complete", "", baseline.get("accuracy"), low, high)
    kept = load_scores(folder.scores_file("baseline"))
    found = {}
    for row in rows:
        near = within_noise(
            row, base, lambda r: kept if r is base else load_scores(folder.scores_file(r.trial))
        )
        cheaper = (f"#{same[row.trial]}",) if row.trial in same else ()
        found[str(row.trial)] = (("baseline",) if near else ()) + cheaper
    return found


def _object(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RunError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    return raw


def _trials(path: Path) -> pd.DataFrame:
    """All rows; every text stays the text it is (a reason may read "nan"), numbers become floats."""
    if not path.is_file():  # the search stopped before its first trial
        table = pd.DataFrame({name: pd.Series(dtype=str) for name in (*TEXTS, *NUMBERS)})
    else:
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except ValueError as error:  # pandas' parser errors are ValueErrors
            raise RunError(f"{path} is not a table of trials: {error}") from error
    for name in ADDED:
        if name not in table.columns:
            table[name] = ""
    if missing := [name for name in (*TEXTS, *NUMBERS) if name not in table.columns]:
        raise RunError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    if not table.trial.str.fullmatch(r"\d+").all():
        raise RunError(f"{path} must have a number in the column trial of every line")
    for name in NUMBERS:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    table["hours"] = _hours(table)
    return table


def _hours(table: pd.DataFrame) -> pd.Series:
    """Hours of search until each trial finished, pauses left out; NaN for trials without both times."""
    start = pd.to_datetime(table.started, utc=True, errors="coerce", format="ISO8601")
    end = pd.to_datetime(table.finished, utc=True, errors="coerce", format="ISO8601")
    times = pd.DataFrame({"start": start, "end": end}).dropna().sort_values("start")
    if times.empty:
        return pd.Series(np.nan, index=table.index)
    begin = ((times.start - times.start.iloc[0]).dt.total_seconds() / 3600).to_numpy()
    finish = ((times.end - times.start.iloc[0]).dt.total_seconds() / 3600).to_numpy()
    idle = begin - np.concatenate([[0.0], np.maximum.accumulate(finish)[:-1]])
    paused = np.cumsum(np.where(idle > PAUSE_HOURS, idle, 0.0))
    return pd.Series(finish - paused, index=times.index).reindex(table.index)


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
