"""The figure of the front: accuracy against latency, size, energy and memory, one view for each."""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from leanfront.search.objectives import objective, quantity
from leanfront.search.report.data import RunData
from leanfront.search.report.tables import heir_of
from leanfront.search.report.text import TIMES, cost_text, score_text
from leanfront.search.run.front import non_dominated

GREY, PINK = "#7c8594", "#d6336c"
SIZE_COLOURS = [[0.0, "#0ca678"], [0.5, "#4c6ef5"], [1.0, "#f76707"]]
TRACES = 4  # of a view
WEBGL_POINTS = 1000  # more points than this are drawn by WebGL; fewer also show where there is none


def front_figure(data: RunData) -> go.Figure | None:
    """The score, a share in %, against each cost, one view per cost; colour is the size."""
    if data.complete.empty:
        return None
    score = objective("accuracy")
    costs = [cost for cost in data.costs if (data.complete[cost] > 0).any()]
    figure = go.Figure()
    for cost in costs:
        for trace in _front_traces(data, cost):
            trace.visible = cost == costs[0]
            figure.add_trace(trace)
    baseline = data.baseline.get("accuracy")
    sizes = data.complete.size_bytes[data.complete.size_bytes > 0]
    figure.update_layout(
        height=520,
        margin={"l": 58, "r": 14, "t": 64, "b": 70},
        hovermode="closest",
        showlegend=False,  # the page has the key
        yaxis={
            "title": {"text": ", ".join(filter(None, (score.label, score.drawn_unit)))},
            "range": [score.factor * end for end in _accuracy_range(data)],
        },
        coloraxis={
            "colorscale": SIZE_COLOURS,
            "colorbar": {
                "orientation": "h",
                "x": 1,
                "xanchor": "right",
                "y": 1.0,
                "yanchor": "bottom",
                "len": 0.5,
                "thickness": 8,
                "title": {"text": "model size", "side": "top"},
                "outlinewidth": 0,
                **_log_ticks(sizes, "size_bytes", most=6, exponents=True),
            },
        },
        # An axis title of plotly's own runs into the tick labels when WebGL is at work.
        annotations=[
            {
                "text": _title(costs[0]),
                "xref": "paper",
                "x": 0.5,
                "yref": "paper",
                "y": 0,
                "yshift": -38,
                "yanchor": "middle",
                "showarrow": False,
                "font": {"size": 13},
            }
        ],
        xaxis={"type": "log", **_cost_axis(data, costs[0])},
        meta=views([(objective(cost).label, _view(data, cost)) for cost in costs], TRACES),
    )
    if baseline is not None:
        figure.add_hline(
            y=score.factor * baseline, line={"color": PINK, "width": 1, "dash": "dot"}, layer="below"
        )
    return figure


def views(shown: list[tuple[str, dict[str, Any]]], traces: int) -> dict[str, Any]:
    """What a figure keeps of its views, each with so many traces of its own: label, and what changes in the
    layout."""
    kept = []
    for number, (label, layout) in enumerate(shown):
        visible = [place // traces == number for place in range(traces * len(shown))]
        kept.append({"label": label, "visible": visible, "layout": layout})
    return {"views": kept}


def _view(data: RunData, cost: str) -> dict[str, Any]:
    axis = {f"xaxis.{key}": value for key, value in _cost_axis(data, cost).items()}
    return {"annotations[0].text": _title(cost), **axis}


def _front_traces(data: RunData, cost: str) -> list[Any]:
    """All trials, the line of the best ones, the front's members, the baseline: always TRACES of them."""
    known = data.complete[data.complete[cost] > 0]
    pale = known[~known.index.isin(data.front.index)]
    front = data.front[data.front[cost] > 0]
    draw, opacity = (go.Scattergl, 0.15) if len(pale) > WEBGL_POINTS else (go.Scatter, 0.4)
    row, score = objective(cost), objective("accuracy")
    value = {"bytes": "%{x:.3s}B", "": "%{x:.3s}"}.get(row.unit, f"%{{x:.3g}} {row.unit}")
    told = f"%{{y:{'.2f' if score.scale == 'share' else '.4g'}}} {score.drawn_unit}".rstrip()
    hover = f"{told}<br>{row.label} {value}<extra></extra>"
    trials = draw(
        name="complete trials",
        mode="markers",
        x=small(pale[cost]),
        y=small(score.factor * pale.accuracy),
        customdata=pale.trial.to_numpy(dtype=object),
        hovertemplate="trial %{customdata}<br>" + hover,
        marker={
            "size": 6,
            "opacity": opacity,
            "color": _log_size(pale),
            "coloraxis": "coloraxis",
        },
    )
    line = go.Scatter(
        name="",
        mode="lines",
        x=[],
        y=[],
        hoverinfo="skip",
        line={"color": GREY, "width": 1.2, "shape": "hv"},
    )
    if cost in data.objectives:
        best = known[non_dominated(np.column_stack([row.sign * known[cost], -known.accuracy]))]
        best = best.sort_values(cost)
        line.x, line.y = small(best[cost]), small(score.factor * best.accuracy)
    members = go.Scatter(
        name="front, 95 % interval",
        mode="markers",
        x=small(front[cost]),
        y=small(score.factor * front.accuracy),
        customdata=front.trial.to_numpy(dtype=object),
        hovertext=_member_texts(data, front),
        hovertemplate="%{hovertext}<extra></extra>",
        error_y=_interval(front.accuracy, front.accuracy_low, front.accuracy_high),
        marker={
            "size": 11,
            "color": _log_size(front),
            "coloraxis": "coloraxis",
            "line": {"width": 1.5, "color": "rgba(120,130,145,0.9)"},
        },
    )
    baseline = go.Scatter(
        name="baseline",
        mode="markers",
        x=[],
        y=[],
        marker={"size": 13, "symbol": "diamond", "color": PINK},
        hovertemplate="baseline<br>" + hover,
    )
    if data.baseline.get("accuracy") is not None and data.baseline.get(cost):
        accuracy = pd.Series([float(data.baseline["accuracy"])])
        low, high = data.baseline.get("accuracy_ci") or (math.nan, math.nan)
        baseline.x, baseline.y = [data.baseline[cost]], score.factor * accuracy
        baseline.error_y = {**_interval(accuracy, pd.Series([low]), pd.Series([high])), "color": PINK}
        _add_free(data, cost, baseline)
    return [trials, line, members, baseline]


def _add_free(data: RunData, cost: str, baseline: go.Scatter) -> None:
    """What is had without a search, beside the baseline's point."""
    there = [entry for entry in data.free if entry.get(cost)]
    if not there:
        return
    shown = [{**data.baseline, "name": "baseline"}, *there]
    accuracy = pd.Series([float(entry["accuracy"]) for entry in shown])
    ends = [entry.get("accuracy_ci") or (math.nan, math.nan) for entry in shown]
    low, high = (pd.Series([float(end[place]) for end in ends]) for place in (0, 1))
    baseline.x, baseline.y = [entry[cost] for entry in shown], objective("accuracy").factor * accuracy
    baseline.error_y = {**_interval(accuracy, low, high), "color": PINK}
    baseline.customdata = ["baseline", *(f"{entry['name']}, without a search" for entry in there)]
    baseline.hovertemplate = baseline.hovertemplate.replace("baseline<br>", "%{customdata}<br>")
    baseline.marker.symbol = ["diamond", *("diamond-open" for _ in there)]


def _member_texts(data: RunData, front: pd.DataFrame) -> list[str]:
    lines = []
    for row in front.to_dict("records"):
        parent = heir_of(row)
        of = f", from the weights of {parent}" if parent else ""
        parts = [f"<b>trial {int(row['trial'])}</b>{of}", score_text(row["accuracy"])]
        for cost in data.costs:
            if row[cost] == row[cost]:
                ratio = (data.baseline.get(cost) or math.nan) / row[cost] if row[cost] else math.nan
                times = f" ({ratio:.1f}{TIMES} less)" if ratio == ratio and ratio > 1 else ""
                parts.append(f"{objective(cost).label} {cost_text(row[cost], cost)}{times}")
        lines.append("<br>".join(parts))
    return lines


def _interval(accuracy: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    score = objective("accuracy")
    if score.turned:  # what is the better end is drawn as the smaller number
        low, high = 2 * accuracy - high, 2 * accuracy - low
    factor = abs(score.factor)
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1.2,
        "width": 3,
        "color": "rgba(120,130,145,0.75)",
        "array": (factor * (high - accuracy)).fillna(0).to_numpy(),
        "arrayminus": (factor * (accuracy - low)).fillna(0).to_numpy(),
    }


def _accuracy_range(data: RunData) -> list[float]:
    """From the front's lowest member, at most 15 points of a share below the best, to just above the best, as
    scores are kept."""
    known = data.front[["accuracy", "accuracy_low", "accuracy_high"]].stack()
    baseline = data.baseline.get("accuracy")
    interval = data.baseline.get("accuracy_ci") or []
    top = max([known.max(), *interval] + ([baseline] if baseline is not None else []))
    reach = objective("accuracy").reach(top if baseline is None else baseline)
    bottom = max(known.min(), top - 1.5 * reach)
    room = 0.06 * (top - bottom) or reach / 10
    return [bottom - room, top + room]


def below_the_figure(data: RunData) -> int:
    """Complete trials whose accuracy is below what the figure shows at first."""
    if data.complete.empty:
        return 0
    return int((data.complete.accuracy < _accuracy_range(data)[0]).sum())


def _cost_axis(data: RunData, cost: str) -> dict[str, Any]:
    values = data.complete[cost][data.complete[cost] > 0]
    baseline = data.baseline.get(cost)
    values = pd.concat([values, pd.Series([float(baseline)])]) if baseline else values
    low, high = math.log10(values.min()), math.log10(values.max())
    room = 0.05 * (high - low) or 0.1
    return {
        "range": [low - room, high + room],
        **_log_ticks(values, cost, most=8, exponents=False),
    }


def _log_ticks(values: pd.Series, cost: str, most: int, exponents: bool) -> dict[str, Any]:
    """At most so many round ticks (1, 2, 5 times powers of ten) for a logarithmic scale; ``exponents``: the
    positions are logarithms already."""
    if values.empty:
        return {"tickvals": [], "ticktext": []}
    low, high = values.min() * 0.9, values.max() * 1.1
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= most:
            break
    text = [_round(quantity(cost, tick)) for tick in ticks]
    return {"tickvals": [math.log10(tick) for tick in ticks] if exponents else ticks, "ticktext": text}


def _round(text: str) -> str:
    """The text without the zeros that end its number: "1.50 MB" is "1.5 MB"."""
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}".rstrip()


def _title(cost: str) -> str:
    return f"{objective(cost).label} (log scale)"


def small(values: pd.Series) -> Any:
    """Single precision: half of the bytes in the page, more digits than a screen shows."""
    return values.to_numpy(dtype="float32")


def _log_size(rows: pd.DataFrame) -> Any:
    return small(np.log10(rows.size_bytes.where(rows.size_bytes > 0)))
