"""The page of a comparison: one HTML file that needs no network and nothing beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from leanfront.search.objectives import objective, quantity
from leanfront.search.report.figures import figure_json
from leanfront.search.report.front import views
from leanfront.search.report.text import TIMES

_SHOWN = ("latency_ms", "size_bytes", "zipped_bytes", "energy_mj", "bops", "macs", "parameters")
_LABELS = {"zipped_bytes": "zipped", "macs": "multiply-accumulates", "parameters": "parameters"}
_KINDS = {"searched": "#d6336c", "alone": "#4c6ef5", "combined": "#0ca678"}
"""What a row is -> its colour."""

Row = Mapping[str, Any]


def label(column: str) -> str:
    """What people call a column of costs."""
    return _LABELS.get(column) or objective(column).label


def text(column: str, value: float | None) -> str:
    """A cost as people read it."""
    if value is None:
        return "-"
    if column == "zipped_bytes":
        return quantity("size_bytes", value)
    if column in _LABELS:
        return quantity("bops", value)  # counted, too
    return quantity(column, value)


def kind(row: Row) -> str:
    """Whether a row is of one technique alone, of several, or of a search."""
    if row["techniques"] == "searched":
        return "searched"
    return "combined" if " + " in row["techniques"] else "alone"


def page(title: str, headline: str, rows: Sequence[Row]) -> str:
    """The whole page. rows: as ``compare.plain`` gives them. The template escapes every text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    done = [row for row in rows if row["state"] == "done"]
    columns = [name for name in _SHOWN if any(row[name] for row in done)]
    score, base = objective("accuracy"), done[0]
    shown = [
        {
            "name": row["row"],
            "techniques": row["techniques"],
            "kind": kind(row),
            "accuracy": score.shown(row["accuracy"]),
            "interval": score.interval((row["accuracy_low"], row["accuracy_high"])),
            "drop": score.change(0.0 - row["drop"]) if row is not base else "",
            "within": row is not base and row["drop_low"] <= 0,
            "costs": [_cell(name, row, base) for name in columns],
            "training": f"{row['seconds_training']:.0f} s" if row["epochs"] else "-",
        }
        for row in done
    ]
    others = [row for row in rows if row["state"] != "done"]
    return environment.get_template("compare.html.j2").render(
        title=title,
        headline=[sentence.rstrip(".") + "." for sentence in headline.split(". ")],
        score=score.label,
        epochs=max(row["epochs"] for row in done),
        columns=[label(name) for name in columns],
        estimated="estimated" in {row["latency_is"] for row in done},
        measured="measured" in {row["latency_is"] for row in done},
        rows=shown,
        others=others,
        kinds=[(name, colour) for name, colour in _KINDS.items() if name in {row["kind"] for row in shown}],
        figure=Markup(figure_json(_figure(done, columns))),
        plotly_js=Markup(get_plotlyjs()),
    )


def _axis(column: str) -> dict[str, Any]:
    """A column with the unit that it is kept in; many of what is counted as "2M"."""
    unit = "bytes" if column.endswith("_bytes") else "" if column in _LABELS else objective(column).unit
    title = ", ".join(filter(None, (label(column), unit)))
    return {"title": {"text": title}, "tickformat": "~s" if unit in ("", "bytes") else "~g"}


def _cell(column: str, row: Row, base: Row) -> tuple[str, str]:
    """A cost, and how many times less it is than the uncompressed network's."""
    value, whole = row[column], base[column]
    times = f"{whole / value:.1f}{TIMES}" if value and whole and row is not base else ""
    return text(column, value), times


def _figure(rows: Sequence[Row], columns: Sequence[str]) -> Any:
    """Score against each cost, one view per cost."""
    score, figure = objective("accuracy"), go.Figure()
    for column in columns:
        for name, colour in _KINDS.items():
            own = [row for row in rows if row[column] and kind(row) == name]
            figure.add_trace(
                go.Scatter(
                    x=[row[column] for row in own],
                    y=[score.factor * row["accuracy"] for row in own],
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": [score.factor * (row["accuracy_high"] - row["accuracy"]) for row in own],
                        "arrayminus": [score.factor * (row["accuracy"] - row["accuracy_low"]) for row in own],
                        "thickness": 1,
                        "width": 0,
                    },
                    mode="markers",
                    marker={"size": 9, "color": colour},
                    customdata=[[row["row"], text(column, row[column])] for row in own],
                    hovertemplate="%{customdata[0]}<br>%{y:.4g} · %{customdata[1]}<extra></extra>",
                    visible=column == columns[0],
                )
            )
    base = rows[0]["accuracy"]
    figure.add_hline(y=score.factor * base, line={"width": 1, "dash": "dot", "color": "#7c8594"})
    figure.update_layout(
        height=480,
        showlegend=False,
        hovermode="closest",
        margin={"l": 58, "r": 14, "t": 24, "b": 56},
        yaxis={"title": {"text": ", ".join(filter(None, (score.label, score.drawn_unit)))}},
        xaxis={"type": "log", "dtick": "D2", **_axis(columns[0])},
        meta=views(
            [(label(n), {f"xaxis.{k}": value for k, value in _axis(n).items()}) for n in columns],
            len(_KINDS),
        ),
    )
    return figure
