"""The tables of the report, as plain values and finished texts; the template escapes and lays them out."""

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from leanfront.search.report.data import RunData
from leanfront.search.report.text import DASH, cost_text, duration, percent, points, ratio
from leanfront.search.run.front import COSTS
from leanfront.search.run.run_folder import STATES

TABLE_ROWS = 200
REASON_ROWS = 20


def front_table(data: RunData) -> dict[str, Any]:
    """The front's members, fastest first, at most TABLE_ROWS of them, after the baseline."""
    baseline = data.baseline
    costs = [cost for cost in COSTS if data.front[cost].notna().any()]
    rows = [_row(data, row, costs) for row in data.front.head(TABLE_ROWS).to_dict("records")]
    low, high = baseline.get("accuracy_ci") or (None, None)
    first = {
        "trial": "baseline",
        "weights_of": "",
        "accuracy": percent(baseline.get("accuracy")),
        "interval": _span(low, high),
        "within": False,
        "drop": "",
        "costs": [(cost_text(baseline.get(cost), cost), "") for cost in costs],
        "noise": [],
    }
    return {
        "costs": costs,
        "rows": [first, *rows] if baseline.get("accuracy") is not None else rows,
        "left_out": max(0, len(data.front) - TABLE_ROWS),
        "heirs": any(row["weights_of"] for row in rows),
        "energy_estimated": "energy_mj" in costs and data.environment.get("estimated") is not False,
        "estimates": data.environment.get("estimates") or "",
    }


def _row(data: RunData, row: Mapping[Any, Any], costs: list[str]) -> dict[str, Any]:
    baseline = data.baseline
    accuracy = baseline.get("accuracy")
    known = row["accuracy_low"] == row["accuracy_low"] and row["accuracy_high"] == row["accuracy_high"]
    return {
        "trial": f"{row['trial']}",
        "weights_of": "" if row["weights_of"] != row["weights_of"] else f"{row['weights_of']:.0f}",
        "accuracy": percent(row["accuracy"]),
        "interval": _span(row["accuracy_low"], row["accuracy_high"]) if known else "",
        "within": accuracy is not None and accuracy - row["accuracy"] <= data.max_drop + 1e-9,
        "drop": DASH if accuracy is None else points(accuracy - row["accuracy"]),
        "costs": [(cost_text(row[cost], cost), ratio(baseline.get(cost), row[cost])) for cost in costs],
        "noise": list(data.alike.get(str(row["trial"]), ())),
    }


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def states(data: RunData) -> list[tuple[str, int, float]]:
    """(state, trials, share in %) of every state that occurs, complete first."""
    counts = data.trials.state.value_counts()
    names = [*STATES, *sorted(set(counts.index) - set(STATES))]
    return [
        (n, int(counts[n]), 100 * float(counts[n]) / len(data.trials)) for n in names if n in counts.index
    ]


def reasons(data: RunData) -> dict[str, Any]:
    """Why trials failed or broke a limit: reasons that differ only in their numbers are one line."""
    rows = data.trials[data.trials.state.isin(["failed", "infeasible"])]
    kind = rows.reason.map(lambda text: re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "0", text))
    lines: list[dict[str, Any]] = []
    for (state, _), group in rows.groupby(["state", kind], sort=True):
        shown = ", ".join(f"#{trial}" for trial in group.trial.head(3)) + (" …" if len(group) > 3 else "")
        text = str(group.reason.iloc[0]) or "no reason was recorded"
        lines.append({"state": state, "count": len(group), "reason": text, "trials": shown})
    lines.sort(key=lambda line: (line["state"] != "failed", -line["count"]))
    return {"rows": lines[:REASON_ROWS], "left_out": max(0, len(lines) - REASON_ROWS)}


def details(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (path, text), one line each; lists of plain values stay on one line."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += details(value, f"{name}.")
        elif isinstance(value, list):
            lines.append((name, ", ".join(str(item) for item in value)))
        else:
            lines.append((name, DASH if value is None else str(value)))
    return lines


def provenance(data: RunData) -> list[tuple[str, str]]:
    """What environment.json says besides the baseline, the layers and the validation, shown elsewhere."""
    elsewhere = ("baseline", "layers", "latency_validation", "budget")
    return details({key: value for key, value in data.environment.items() if key not in elsewhere})


def infeasible_count(data: RunData) -> int:
    """Trials that broke a limit: counted, not drawn."""
    return int((data.trials.state == "infeasible").sum())


def facts(data: RunData) -> list[tuple[str, str]]:
    """The few figures under the result: (what, how much)."""
    rows = [("complete trials", f"{len(data.complete)}"), ("on the front", f"{len(data.front)}")]
    hours = data.trials.hours.max()
    if not pd.isna(hours):
        rows.append(("searched for", duration(float(hours))))
    profile = data.environment.get("profile")
    name = profile.get("name") if isinstance(profile, Mapping) else profile
    rows.append(("hardware", f"{name or 'unknown'}"))
    rows.append(("objectives", ", ".join(data.objectives)))
    if data.verifications:
        rows.append(("picked and verified", ", ".join(f"trial {name}" for name, _ in data.verifications)))
    return rows


def exports(data: RunData) -> dict[str, Any]:
    """A column for each verification.json: what was promised, what was found, and whether that agrees."""
    columns = [_verified(values) for _, values in data.verifications]
    labels = list(columns[0]) if columns else []
    return {
        "names": [name for name, _ in data.verifications],
        "rows": [(label, [column[label] for column in columns]) for label in labels],
    }


def _verified(found: Mapping[str, Any]) -> dict[str, str]:
    """Every label always, a dash where the file has no value (no latency without the hardware)."""
    test, latency, size = (_section(found, name) for name in ("test", "latency", "size"))
    accuracy, baseline = _number(test, "accuracy"), _number(test, "baseline_accuracy")
    low, high = test.get("accuracy_ci") or (None, None)
    error = _number(latency, "error")
    measured, uncompressed = _number(latency, "measured_ms"), _number(latency, "baseline_ms")
    file, original = _number(size, "bytes"), _number(size, "baseline_bytes")
    failures = found.get("failures")
    return {
        "verdict": DASH if failures is None else "; ".join(map(str, failures)) or "as promised",
        "accuracy, test split": percent(accuracy),
        "95 % interval": _span(low, high) or DASH,
        "baseline's accuracy, test split": percent(baseline),
        "drop, points": points(baseline - accuracy),
        "latency, predicted": cost_text(_number(latency, "predicted_ms"), "latency_ms"),
        "latency, measured": cost_text(measured, "latency_ms"),
        "predicted against measured": DASH if math.isnan(error) else f"{100 * error:+.1f} %",
        "baseline's latency, measured": cost_text(uncompressed, "latency_ms"),
        "speed-up, measured": ratio(uncompressed, measured),
        "model file": cost_text(file, "size_bytes"),
        "smaller than the baseline's file": ratio(original, file),
        "same answers as the torch network": percent(_number(test, "agreement")),
    }


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(values: Mapping[str, Any], key: str) -> float:
    """The value as a float, NaN where there is none."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
