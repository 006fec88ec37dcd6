"""What the report says about predicted and measured latency: warnings, figures, a table and a plot."""

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from leanfront.latency_models.measured.first_validation import MOST_ERROR
from leanfront.search.objectives import quantity
from leanfront.search.report.data import RunData
from leanfront.search.report.front import GREY

BLUE = "#4c6ef5"


def found(data: RunData) -> Mapping[str, Any]:
    """The validation of environment.json; empty if there was none."""
    known = data.environment.get("latency_validation")
    return known if isinstance(known, Mapping) else {}


def warnings(data: RunData) -> list[str]:
    """Sentences for the top of the page: latencies that cannot be trusted, a machine too noisy to measure."""
    lines = []
    mape = found(data).get("mape")
    if mape is not None and mape > MOST_ERROR:
        lines.append(
            f"Predicted latencies are off by {100 * mape:.0f} % on average on {found(data).get('n', 'the')}"
            " networks that were measured before the search: do not trust the order of the front."
        )
    if noise := found(data).get("noise"):
        lines.append(f"While latencies were measured, {noise}.")
    return lines


def figures(data: RunData) -> list[tuple[str, str]]:
    """(what, how much) of the validation; empty if there was none."""
    known = found(data)
    rows = [("networks measured", f"{known['n']}")] if "n" in known else []
    if known.get("mape") is not None:
        rows.append(("mean absolute error", f"{100 * known['mape']:.1f} %"))
    if known.get("within_10_percent") is not None:
        rows.append(("within 10 %", f"{100 * known['within_10_percent']:.0f} %"))
    if known.get("spearman") is not None:
        rows.append(("rank correlation (Spearman)", f"{known['spearman']:.3f}"))
    spreads = sorted(row["spread"] for row in known.get("rows") or [] if row.get("spread") is not None)
    if spreads:
        rows.append(("spread of a measurement, median", f"{100 * spreads[len(spreads) // 2]:.1f} %"))
    return rows


def table(data: RunData) -> list[tuple[str, str, str, str]]:
    """Per network: predicted, measured, error, spread."""
    return [
        (
            quantity("latency_ms", row["predicted_ms"]),
            quantity("latency_ms", row["measured_ms"]),
            f"{100 * (row['predicted_ms'] / row['measured_ms'] - 1):+.1f} %",
            f"{100 * row['spread']:.1f} %" if row.get("spread") is not None else "",
        )
        for row in found(data).get("rows") or []
    ]


def figure(data: RunData) -> go.Figure | None:
    """Predicted against measured latency, ms, on logarithmic axes, with the line where they agree."""
    rows = found(data).get("rows") or []
    if not rows:
        return None
    measured = [row["measured_ms"] for row in rows]
    predicted = [row["predicted_ms"] for row in rows]
    low, high = 0.9 * min(measured + predicted), 1.1 * max(measured + predicted)
    dotted = {"dash": "dot"}
    drawn = go.Figure()
    for factor, line in ((0.9, dotted), (1.0, {}), (1.1, dotted)):
        ends, drawn_as = [factor * low, factor * high], {"color": GREY, "width": 1, **line}
        drawn.add_scatter(x=[low, high], y=ends, mode="lines", line=drawn_as, hoverinfo="skip")
    drawn.add_scatter(
        x=measured,
        y=predicted,
        mode="markers",
        marker={"size": 9, "color": BLUE},
        hovertemplate="measured %{x:.4g} ms<br>predicted %{y:.4g} ms<extra></extra>",
    )
    ticks = {"type": "log", "nticks": 5, "tickformat": ".3~g"}
    drawn.update_layout(
        height=360,
        margin={"l": 62, "r": 14, "t": 14, "b": 52},
        showlegend=False,
        hovermode="closest",
        xaxis={"title": {"text": "measured, ms"}, **ticks},
        yaxis={"title": {"text": "predicted, ms"}, **ticks},
    )
    return drawn
