"""The figures of the report: the front, the layers of its members, and the progress of the search.

Each function returns a plotly figure, or None where there is nothing to draw. Colours that depend on light or
dark are left to the page, which sets them before it draws. A figure with several views keeps them in
``layout.meta["views"]``: a label, which traces are visible, and what changes in the layout.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from leanfront.compression.policy.policy import is_left_out
from leanfront.search.objectives import objective, quantity
from leanfront.search.report.data import RunData, best_speed_up, hypervolume_so_far, policies
from leanfront.search.report.front import small, views
from leanfront.search.report.text import TIMES, amount, plain

STRIP_ROWS = 30
STRIP_GAP = 46  # pixels between two strips: the title of the lower one
UNTOUCHED = "rgba(128,136,150,0.13)"
BITS = (32, 16, 8, 7, 6, 5, 4, 3, 2)
STRIPS = (
    ("sparsity", "Sparsity", "37,99,235"),
    ("weight_bits", "Weight bits", "124,58,237"),
    ("activation_bits", "Activation bits", "13,148,136"),
)
"""Field of a layer's policy, title, and the red, green, blue of its strongest colour."""
OTHER_RGB = "217,119,6"
"""The same of the numbers of other techniques."""


def panels(titles: list[str], gap: float, **more: Any) -> go.Figure:
    """An empty figure of panels one under the other, each with its title at the left; ``gap``: share of the
    height between two."""
    figure = make_subplots(rows=len(titles), cols=1, vertical_spacing=gap, subplot_titles=titles, **more)
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    return figure


def heat_map(**drawn: Any) -> go.Heatmap:
    """Cells with their text in them, a line of background between two."""
    return go.Heatmap(textfont={"size": 10}, showscale=False, xgap=1, ygap=1, **drawn)


def strip_rows(data: RunData) -> pd.DataFrame:
    """The front members in the strips: all, or evenly many from the fastest to the slowest."""
    if len(data.front) <= STRIP_ROWS:
        return data.front
    chosen = np.linspace(0, len(data.front) - 1, STRIP_ROWS).round().astype(int)
    return data.front.iloc[chosen]


def _strips(chosen: list[dict[str, dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """STRIPS, and one for each other technique in these policies."""
    layers = (layer for policy in chosen for layer in policy.values())
    others = sorted({name for layer in layers for name in layer.get("more", {})})
    return [*STRIPS, *((name, name.capitalize(), OTHER_RGB) for name in others)]


def strips_figure(data: RunData) -> go.Figure | None:
    """Sparsity, weight bits and activation bits by layer; a row per front member, the fastest on top."""
    rows = strip_rows(data)
    if rows.empty:
        return None
    chosen = policies(rows)
    shapes = {layer["name"]: str(layer.get("shape", "")) for layer in data.environment.get("layers") or []}
    layers = [name for name in shapes if name in chosen[0]] + [n for n in chosen[0] if n not in shapes]
    height = 22 if len(rows) <= 12 else 18 if len(rows) <= 20 else 14
    strips = _strips(chosen)
    inner = len(strips) * height * len(rows) + (len(strips) - 1) * STRIP_GAP
    figure = panels([title for _, title, _ in strips], STRIP_GAP / inner, shared_xaxes=True)
    hover = [f"{plain(name)}<br>{plain(shapes.get(name, ''))}" for name in layers]
    for number, (field, title, rgb) in enumerate(strips, start=1):
        values = [[layer_value(policy, name, field) for name in layers] for policy in chosen]
        figure.add_trace(_strip(values, field, title, rgb, hover, list(rows.trial)), row=number, col=1)
    labels = [
        f"{quantity('latency_ms', latency)}  #{trial}"
        for trial, latency in zip(rows.trial, rows.latency_ms, strict=True)
    ]
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        zeroline=False,
        tickvals=list(range(len(rows))),
        ticktext=labels,
        tickfont={"size": 11 if height > 14 else 10},
    )
    step = math.ceil(len(layers) / 40)
    figure.update_xaxes(showgrid=False, zeroline=False, tickfont={"size": 11}, tickangle=-60)
    figure.update_xaxes(
        tickvals=list(range(0, len(layers), step)), ticktext=[_short(name) for name in layers[::step]]
    )
    figure.update_layout(
        height=inner + 28 + 96,
        margin={"l": 10, "r": 10, "t": 28, "b": 96},
        hovermode="closest",
    )
    return figure


def layer_value(policy: dict[str, dict[str, Any]], layer: str, field: str) -> float:
    """What a policy says of a layer, with the defaults of an untouched one; NaN for a layer it has not, and
    for the bits of one that is left out."""
    if layer not in policy or (field != "sparsity" and is_left_out(policy[layer])):
        return math.nan
    if field not in (name for name, _, _ in STRIPS):
        return float(policy[layer].get("more", {}).get(field, 0.0))
    return float(policy[layer].get(field, 0.0 if field == "sparsity" else 32))


def _strip(
    values: list[list[float]], field: str, title: str, rgb: str, layers: list[str], trials: list[str]
) -> go.Heatmap:
    """Stronger colour: more compressed. ``layers`` are the texts under the pointer."""
    levels = np.array([[_level(value, field) for value in line] for line in values])
    return heat_map(
        z=levels.astype("float32"),
        zmin=0,
        zmax=1,
        text=[[_cell(value, field) for value in line] for line in values],
        hovertext=[layers] * len(trials),
        texttemplate="%{text}" if len(layers) <= 26 else "",
        customdata=[[trial] * len(layers) for trial in trials],
        hovertemplate=f"trial %{{customdata}}<br>%{{hovertext}}<br>{title.lower()} %{{text}}<extra></extra>",
        colorscale=[[0, UNTOUCHED], [0.001, f"rgba({rgb},0.2)"], [1, f"rgba({rgb},0.8)"]],
    )


def strips_key(data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Title of each strip with the values in it: (text, CSS colour), the least compressed first."""
    chosen = policies(strip_rows(data))
    keys = []
    for field, title, rgb in _strips(chosen):
        found = {layer_value(policy, name, field) for policy in chosen for name in policy}
        found = {value for value in found if not math.isnan(value)}
        ordered = sorted(found, reverse=field.endswith("_bits"))
        shown = ordered if len(ordered) <= 9 else [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
        keys.append((title, [(_cell(value, field), _css(_level(value, field), rgb)) for value in shown]))
    return keys


def _css(level: float, rgb: str) -> str:
    return f"rgba({rgb},{0.2 + 0.6 * level:.2f})" if level > 0 else UNTOUCHED


def _level(value: float, field: str) -> float:
    """How strongly compressed, 0..1: the number itself; bits in equal steps from 32 down to 2."""
    if not field.endswith("_bits") or math.isnan(value):
        return value
    return min(range(len(BITS)), key=lambda index: abs(BITS[index] - value)) / (len(BITS) - 1)


def _cell(value: float, field: str) -> str:
    if math.isnan(value):
        return ""
    if field == "sparsity" and value == 1.0:
        return "out"
    return f"{100 * value:.3g}%" if field == "sparsity" and value else f"{value:g}"


def _short(name: str) -> str:
    return plain(name if len(name) <= 18 else "…" + name[-17:])


def progress_figure(data: RunData) -> go.Figure | None:
    """Best speed-up so far at three drops, and the hypervolume; by trials and by hours."""
    order = data.complete.sort_values("hours", na_position="last", kind="stable")
    volume = hypervolume_so_far(data)
    if len(order) < 2 or volume.empty:
        return None
    score = objective("accuracy")
    lines: list[tuple[int, str, str, pd.Series]] = [
        (2, "hypervolume", "#4c6ef5", volume.reindex(order.index))
    ]
    if data.baseline.get("accuracy") is not None and data.baseline.get("latency_ms"):
        reach = score.reach(data.baseline["accuracy"])
        for part, colour in ((20, "#0ca678"), (10, "#4c6ef5"), (5, "#f76707")):
            drop = reach / part
            best = best_speed_up(data, drop)
            name = f"drop ≤ {amount(drop)}"
            lines.append((1, name if best.notna().any() else f"{name}: none yet", colour, best))
    titles = [
        f"Best speed-up so far, {TIMES}",
        f"Hypervolume: {score.label} ({amount(score.reach(data.baseline['accuracy']))} are 1) times halvings"
        " of each cost",
    ]
    figure = panels(titles, 0.12, shared_xaxes=True)
    across = [("trials", pd.Series(np.arange(1.0, len(order) + 1), index=order.index), "complete trials")]
    if order.hours.notna().any():
        across.append(("hours", order.hours, "hours of search, pauses left out"))
    for label, position, _ in across:
        for row, name, colour, values in lines:
            kept = values.notna() & values.ne(values.shift())  # a step line needs only where it changes
            kept.iloc[-1] = True
            trace = go.Scatter(
                name=name,
                mode="lines",
                x=small(position[kept]),
                y=small(values[kept]),
                line={"color": colour, "width": 2, "shape": "hv"},
                showlegend=row == 1,
                visible=label == "trials",
                hovertemplate="%{y:.3~g}<extra>" + name + "</extra>",
            )
            figure.add_trace(trace, row=row, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title={"text": across[0][2]}, row=2, col=1)
    figure.update_layout(
        height=430,
        margin={"l": 48, "r": 14, "t": 28, "b": 84},
        hovermode="x",
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        meta=views([(label, {"xaxis2.title.text": title}) for label, _, title in across], len(lines)),
    )
    return figure


def figure_json(figure: go.Figure) -> str:
    """The figure as JSON that may stand inside a script element: no "<" or ">" in it."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c").replace(">", "\\u003e")
