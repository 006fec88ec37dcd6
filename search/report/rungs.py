"""What the report says of the way to a score: sensitivities, how well rungs foretell each other, the time."""

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from leanfront.search.objectives import objective
from leanfront.search.report.data import RunData
from leanfront.search.report.figures import heat_map, panels
from leanfront.search.report.text import DASH, duration, plain, points
from leanfront.search.run.run_folder import PARENTS
from leanfront.search.trial.promotion import UNTRAINED

LEAST = 5
"""So many trials or more have a rank correlation."""
ROW_HEIGHT = 17
TITLES = {"bits": "bits of layers", "sparsity": "sparsity of groups", "branch": "branches left out"}
"""Kind of decision -> what its panel of sensitivities is called; those of other techniques follow."""


def rung_table(data: RunData) -> pd.DataFrame:
    """Every rung that a trial has reached: trial, rung, images, accuracy, divergence, seconds.

    A trial that went on from another's first rung has that one's row too, but for its seconds.
    """
    rows = []
    for trial, policy, text in zip(data.trials.trial, data.trials.policy, data.trials.rungs, strict=True):
        rows += [{"trial": trial, "policy": policy, **reached} for reached in json.loads(text or "[]")]
    table = pd.DataFrame(rows, columns=["trial", "policy", *RUNG_COLUMNS])
    table.loc[table.duplicated(["policy", "rung"]), "seconds"] = 0.0
    return table.drop(columns="policy")


RUNG_COLUMNS = ("rung", "images", "accuracy", "divergence", "seconds")


def correlations(data: RunData) -> list[tuple[str, int, str, str]]:
    """(which scores, trials, Spearman over all, within the best half) of each rung with the next.

    The best half is that by the accuracy of the later rung.
    """
    table, label = rung_table(data), objective("accuracy").label
    lines = []
    for rung, following in pairwise(sorted(table.rung.unique())):
        both = table[table.rung == rung].merge(table[table.rung == following], on="trial")
        if len(both) < LEAST:
            continue
        later = both.accuracy_y
        images = f"{both.images_x.iloc[0]:.0f} images with {label} after {both.images_y.iloc[0]:.0f}"
        for name, scores in ((label, both.accuracy_x), ("divergence", -both.divergence_x)):
            best = later >= later.median()
            lines.append(
                (
                    f"{name} after {images}",
                    len(both),
                    _shown(spearman(scores, later)),
                    _shown(spearman(scores[best], later[best])),
                )
            )
    return lines


def surrogate_errors(data: RunData) -> list[tuple[str, int, str, str]]:
    """(which trials, how many, mean error in points, rank correlation) of the accuracies that the sampler
    expected against those that came out, by thirds of the search."""
    done = data.trials[data.trials.accuracy.notna() & data.trials.expected_accuracy.notna()]
    done = done[done.state.isin(["complete", "infeasible"]) & (done.reason != UNTRAINED)]
    done = done.sort_values("trial")
    if len(done) < 3 * LEAST:
        return []
    lines = []
    for name, part in zip(("first", "second", "last"), np.array_split(np.arange(len(done)), 3), strict=True):
        rows = done.iloc[part]
        error = (rows.expected_accuracy - rows.accuracy).abs().mean()
        lines.append(
            (
                f"{name} third, from trial {rows.trial.iloc[0]}",
                len(rows),
                points(error),
                _shown(spearman(rows.expected_accuracy, rows.accuracy)),
            )
        )
    return lines


def spearman(one: pd.Series, other: pd.Series) -> float:
    """Rank correlation; NaN where one of them is constant or too few are there."""
    if len(one) < 3 or one.nunique() < 2 or other.nunique() < 2:
        return math.nan
    return float(np.corrcoef(one.rank(), other.rank())[0, 1])


def _shown(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.2f}"


def time_shares(data: RunData) -> list[tuple[str, str, float]]:
    """(what, time, share in %), over all trials and workers: the sensitivity pass, proposing, pricing, and
    each rung, or training and scoring where there is one rung alone."""
    inherited = data.trials[list(PARENTS)].notna().any(axis=1)
    columns = ["seconds", "seconds_training", "seconds_scoring"]
    sums = data.trials.loc[~inherited, columns].fillna(0.0).sum()
    parts = {"sensitivities": float((data.environment.get("sensitivities") or {}).get("seconds") or 0.0)}
    parts |= {name: float(data.trials[f"seconds_{name}"].sum()) for name in ("proposing", "pricing")}
    parts = {name: part for name, part in parts.items() if part > 0}
    rungs = rung_table(data).groupby(["rung", "images"]).seconds.sum().reset_index()
    if len(rungs) > 1:
        within = {
            f"rung {row['rung']:.0f}, {row['images']:.0f} images": float(row["seconds"])
            for row in rungs.to_dict("records")
        }
    else:
        within = {"training": float(sums.seconds_training), "scoring": float(sums.seconds_scoring)}
    parts |= within
    parts["other"] = max(0.0, float(sums.seconds) - sum(within.values()))
    if inherited.any():
        parts["heirs"] = float(data.trials.seconds[inherited].sum())
    total = sum(parts.values())
    if total <= 0:
        return []
    return [(name, duration(part / 3600), 100 * part / total) for name, part in parts.items()]


def sensitivity_figure(data: RunData) -> go.Figure | None:
    """Divergence of each level of each decision alone: sparsities of groups and branches, bits of layers."""
    table = data.sensitivities
    if table.empty:
        return None
    kinds = table.decision.str.partition("/")[0]
    kinds = kinds.mask((kinds == "branch") & (table.code == 0))  # that a branch stays is no news
    parts = [
        (TITLES.get(kind, f"{kind} of layers"), table[kinds == kind])
        for kind in dict.fromkeys([*TITLES, *kinds.dropna()])
    ]
    parts = [(title, part) for title, part in parts if part.divergence.gt(0).any()]
    if not parts:
        return None
    low, high = np.log10([table.divergence[table.divergence > 1e-6].min(), table.divergence.max()])
    rows = [part.decision.nunique() for _, part in parts]
    gap, edge = 52, 60
    height = ROW_HEIGHT * sum(rows) + gap * (len(parts) - 1)
    heights = [count / sum(rows) for count in rows]
    figure = panels([title for title, _ in parts], gap / height if len(parts) > 1 else 0, row_heights=heights)
    for number, (_, part) in enumerate(parts, start=1):
        figure.add_trace(_heat(part, float(low), float(high)), row=number, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 10}, automargin=True)
    figure.update_xaxes(showgrid=False, tickfont={"size": 11}, type="category")
    figure.update_layout(height=height + 2 * edge, margin={"l": 10, "r": 10, "t": 28, "b": edge})
    return figure


def _heat(part: pd.DataFrame, low: float, high: float) -> go.Heatmap:
    """Stronger colour: further from the teacher, on a log scale."""
    names = list(dict.fromkeys(part.decision))
    levels = sorted(set(part.level), key=_level_order)
    values = part.pivot_table("divergence", "decision", "level").reindex(index=names, columns=levels)
    return heat_map(
        z=np.log10(values.clip(lower=10**low).to_numpy()).astype("float32"),
        x=levels,
        y=[plain(name.partition("/")[2]) for name in names],
        zmin=low,
        zmax=high if high > low else low + 1,
        text=[[_cell(value) for value in row] for row in values.to_numpy()],
        texttemplate="%{text}",
        hovertemplate="%{y}, %{x}<br>divergence %{text}<extra></extra>",
        colorscale=[[0, "rgba(128,136,150,0.1)"], [1, "rgba(217,72,15,0.85)"]],
    )


def _level_order(level: str) -> tuple[float, ...]:
    """Sparsities by size, bits from wide to narrow."""
    if level.startswith("w"):
        weights, _, activations = level[1:].partition("a")
        return (-float(weights), -float(activations))
    try:
        return (float(level),)
    except ValueError:
        return (math.inf,)


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return "0" if value < 5e-5 else f"{value:.2g}" if value < 0.0995 else f"{value:.2f}"


def sensitivity_facts(data: RunData) -> dict[str, Any]:
    """On how many images, and how long the pass took."""
    found = data.environment.get("sensitivities") or {}
    return {"images": found.get("images"), "time": duration(float(found.get("seconds") or 0.0) / 3600)}
