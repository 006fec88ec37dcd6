"""A part of docs/validation.md: text, a table of predicted beside published figures, and a plot of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | float | int

COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#448361", "#ad1a72", "#64473a")
SIDE, LEFT, TOP = 340, 58, 12
"""Of a plot, in pixels."""


@dataclass(frozen=True)
class Points:
    """One series of a plot: published against predicted, on logarithmic axes."""

    label: str
    published: Sequence[float]
    predicted: Sequence[float]


@dataclass(frozen=True)
class Section:
    """title; text in Markdown; rows of one table, all with the same keys; points to plot, in ``unit``;
    name: of the plot's file."""

    title: str
    text: str
    rows: Sequence[dict[str, Cell]] = ()
    points: Sequence[Points] = ()
    unit: str = "ms"
    name: str = ""
    level: int = field(default=2)

    def markdown(self, folder: Path) -> str:
        """The section; its plot is written to ``folder``/validation-<name>.svg."""
        parts = [f"{'#' * self.level} {self.title}", self.text.strip()]
        if self.points:
            file = f"validation-{self.name}.svg"
            (folder / file).write_text(scatter(self.points, self.unit), encoding="utf-8")
            parts.append(f"![{self.title}: predicted against published]({file})")
        if self.rows:
            parts.append(table(self.rows))
        return "\n\n".join(parts)


def table(rows: Sequence[dict[str, Cell]]) -> str:
    """A Markdown table; numbers to the right, four significant digits."""
    names = list(rows[0])
    right = {name for name in names if isinstance(rows[0][name], (int, float))}
    lines = ["| " + " | ".join(names) + " |"]
    lines.append("|" + "|".join("---:" if name in right else "---" for name in names) + "|")
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Cell) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def scatter(points: Sequence[Points], unit: str) -> str:
    """An SVG of predicted over published with the diagonal and 15 % on both sides, logarithmic."""
    values = [value for series in points for value in (*series.published, *series.predicted)]
    low, high = math.log10(min(values) / 1.3), math.log10(max(values) * 1.3)

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * SIDE

    def y(value: float) -> float:
        return TOP + SIDE - (math.log10(value) - low) / (high - low) * SIDE

    width, height = LEFT + SIDE + 12, TOP + SIDE + 40 + 16 * len(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        f' font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for mark in (digit * 10.0**exponent for digit in (1, 2, 5)):
            if low <= math.log10(mark) <= high:
                parts.append(
                    f'<path d="M{x(mark):.1f} {TOP}V{TOP + SIDE}M{LEFT} {y(mark):.1f}H{LEFT + SIDE}"'
                    f' stroke="#e3e3e3"/>'
                    f'<text x="{x(mark):.1f}" y="{TOP + SIDE + 14}" text-anchor="middle">{mark:g}</text>'
                    f'<text x="{LEFT - 5}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:g}</text>'
                )
    for factor, dash in ((1.0, ""), (1.15, ' stroke-dasharray="4 3"'), (1 / 1.15, ' stroke-dasharray="4 3"')):
        start, end = max(10**low, 10**low / factor), min(10**high, 10**high / factor)
        parts.append(
            f'<path d="M{x(start):.1f} {y(start * factor):.1f}L{x(end):.1f} {y(end * factor):.1f}"'
            f' stroke="#888"{dash}/>'
        )
    for index, series in enumerate(points):
        colour, line = COLOURS[index % len(COLOURS)], TOP + SIDE + 46 + 16 * index
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}" fill-opacity="0.75"/>'
            for a, b in zip(series.published, series.predicted, strict=True)
        ]
        parts.append(f'<circle cx="{LEFT + 6}" cy="{line - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 16}" y="{line}">{series.label}</text>')
    middle = TOP + SIDE / 2
    parts.append(
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 29}" text-anchor="middle">published, {unit}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">predicted,'
        f" {unit} (dashed: 15 %)</text></svg>\n"
    )
    return "".join(parts)
