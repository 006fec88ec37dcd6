"""The tables of the report, as plain values and finished texts; the template escapes and lays them out."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from leanfront.search.objectives import objective
from leanfront.search.report.data import RunData
from leanfront.search.report.text import DASH, cost_text, duration, interval_text, points, ratio, score_text
from leanfront.search.run.run_folder import STATES, RunError
from leanfront.search.run.status import NO_REASON, alike_but_for_numbers
from leanfront.search.run.verified import Row, verified

TABLE_ROWS = 200
REASON_ROWS = 20


def front_table(data: RunData) -> dict[str, Any]:
    """The front's members, fastest first, at most TABLE_ROWS of them, after the baseline."""
    baseline = data.baseline
    costs = [cost for cost in data.costs if data.front[cost].notna().any()]
    rows = [_row(data, row, costs) for row in data.front.head(TABLE_ROWS).to_dict("records")]
    known = [("baseline", baseline)] if baseline.get("accuracy") is not None else []
    known += [(f"{entry['name']}, without a search", entry) for entry in data.free]
    first = [_reference(name, entry, baseline, costs) for name, entry in known]
    return {
        "costs": costs,
        "rows": [*first, *rows],
        "left_out": max(0, len(data.front) - TABLE_ROWS),
        "heirs": any(row["weights_of"] for row in rows),
        "energy_estimated": "energy_mj" in costs and data.environment.get("estimated") is not False,
        "estimates": data.environment.get("estimates") or "",
    }


def heir_of(row: Mapping[Any, Any]) -> str:
    """Whose trained weights a network took over; "" of one that did not."""
    if row["weights_of"] == row["weights_of"]:
        return f"{row['weights_of']:.0f}"
    return f"{row['weights_from']:.0f} of another run" if row["weights_from"] == row["weights_from"] else ""


def _reference(
    name: str, entry: Mapping[str, Any], baseline: Mapping[str, Any], costs: list[str]
) -> dict[str, Any]:
    """A network that nobody searched for: the baseline, and what is free."""
    own = entry is baseline
    drop = None if own or not baseline else baseline["accuracy"] - entry["accuracy"]
    priced = [(cost_text(entry.get(cost), cost), own or entry.get(cost) is None) for cost in costs]
    return {
        "trial": name,
        "reference": True,
        "weights_of": "",
        "accuracy": score_text(entry["accuracy"]),
        "interval": _span(*(entry.get("accuracy_ci") or (None, None))),
        "within": False,
        "drop": "" if drop is None else points(drop),
        "costs": [
            (text, "" if alone else ratio(baseline.get(cost), entry[cost]))
            for cost, (text, alone) in zip(costs, priced, strict=True)
        ],
        "noise": [],
    }


def _row(data: RunData, row: Mapping[Any, Any], costs: list[str]) -> dict[str, Any]:
    baseline = data.baseline
    accuracy = baseline.get("accuracy")
    known = row["accuracy_low"] == row["accuracy_low"] and row["accuracy_high"] == row["accuracy_high"]
    return {
        "trial": f"{row['trial']}",
        "reference": False,
        "weights_of": heir_of(row),
        "accuracy": score_text(row["accuracy"]),
        "interval": _span(row["accuracy_low"], row["accuracy_high"]) if known else "",
        "within": accuracy is not None and accuracy - row["accuracy"] <= data.max_drop + 1e-9,
        "drop": DASH if accuracy is None else points(accuracy - row["accuracy"]),
        "costs": [(cost_text(row[cost], cost), ratio(baseline.get(cost), row[cost])) for cost in costs],
        "noise": list(data.alike.get(row["trial"], ())),
    }


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else interval_text(low, high)


def states(data: RunData) -> list[tuple[str, int, float]]:
    """(state, trials, share in %) of every state that occurs, complete first."""
    counts = data.trials.state.value_counts()
    names = [*STATES, *sorted(set(counts.index) - set(STATES))]
    return [
        (n, int(counts[n]), 100 * float(counts[n]) / len(data.trials)) for n in names if n in counts.index
    ]


def reasons(data: RunData) -> dict[str, Any]:
    """Why trials failed or broke a limit: reasons that differ only in their numbers are one line."""
    lines: list[dict[str, Any]] = []
    for state in ("failed", "infeasible"):
        for group in alike_but_for_numbers(row for row in data.rows if row.state == state):
            shown = ", ".join(f"#{row.trial}" for row in group[:3]) + (" …" if len(group) > 3 else "")
            text = group[0].reason or NO_REASON
            lines.append({"state": state, "count": len(group), "reason": text, "trials": shown})
    lines.sort(key=lambda line: (line["state"] != "failed", -line["count"], line["reason"]))
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
    elsewhere = ("baseline", "free", "layers", "latency_validation", "budget")
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
    rows.append(("objectives", ", ".join(objective(name).heading for name in data.objectives)))
    if data.verifications:
        rows.append(("picked and verified", ", ".join(f"trial {name}" for name, _ in data.verifications)))
    return rows


def exports(data: RunData) -> dict[str, Any]:
    """A column for each verification.json: what was promised and what was found, and what that gains."""
    columns = [{row.what: row for row in _rows(*named)} for named in data.verifications]
    labels = dict.fromkeys(label for column in columns for label in column)
    return {
        "names": [name for name, _ in data.verifications],
        "verdicts": [_verdict(found) for _, found in data.verifications],
        "rows": [(label, [column.get(label) for column in columns]) for label in labels],
    }


def _rows(name: str, found: Mapping[str, Any]) -> list[Row]:
    try:
        return verified(found)
    except (KeyError, TypeError) as error:
        raise RunError(f"exported/{name}/verification.json has no {error}") from error


def _verdict(found: Mapping[str, Any]) -> str:
    failures = found.get("failures")
    if failures is None:
        return DASH
    verdict = "; ".join(map(str, failures)) or "as promised"
    untold = "; ".join(map(str, found.get("untold") or ()))
    return f"{verdict}, but not verified: {untold}" if untold else verdict
