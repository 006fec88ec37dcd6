"""A part of docs/validation.md: text, a table of predicted beside published figures, and a plot of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | float | int

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito: told apart by every eye."""

SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "m-3.5 -3.5h7v7h-7z",
    "m0 -4.5l4.5 8h-9z",
    "m0 -5l5 5l-5 5l-5 -5z",
)
"""Circle, square, triangle, diamond; SVG paths around a point."""

SIDE, LEFT, TOP = 420, 76, 14
"""Of a plot, in pixels."""


@dataclass(frozen=True)
class Points:
    """One series of a plot: published against predicted, on logarithmic axes.

    label: what stands before a comma has a colour, what stands behind it a shape.
    """

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

    width, height = LEFT + SIDE + 12, TOP + SIDE + 44 + 17 * len(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        f' font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    digits = (1, 2, 5) if high - low < 3 else (1,)
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for mark in (digit * 10.0**exponent for digit in digits):
            if low <= math.log10(mark) <= high:
                parts.append(
                    f'<path d="M{x(mark):.1f} {TOP}V{TOP + SIDE}M{LEFT} {y(mark):.1f}H{LEFT + SIDE}"'
                    f' stroke="#e3e3e3"/>'
                    f'<text x="{x(mark):.1f}" y="{TOP + SIDE + 15}" text-anchor="middle">{mark:,g}</text>'
                    f'<text x="{LEFT - 5}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:,g}</text>'
                )
    for factor, dash in ((1.0, ""), (1.15, ' stroke-dasharray="4 3"'), (1 / 1.15, ' stroke-dasharray="4 3"')):
        start, end = max(10**low, 10**low / factor), min(10**high, 10**high / factor)
        parts.append(
            f'<path d="M{x(start):.1f} {y(start * factor):.1f}L{x(end):.1f} {y(end * factor):.1f}"'
            f' stroke="#888"{dash}/>'
        )
    groups = [series.label.partition(", ")[0] for series in points]
    kinds = [series.label.partition(", ")[2] for series in points]
    for index, series in enumerate(points):
        colour = COLOURS[list(dict.fromkeys(groups)).index(groups[index]) % len(COLOURS)]
        shape = SHAPES[list(dict.fromkeys(kinds)).index(kinds[index]) % len(SHAPES)]
        style = f'fill="{colour}" fill-opacity="0.8" stroke="white" stroke-width="0.6"'
        parts += [
            f'<path d="M{x(a):.1f} {y(b):.1f}{shape}" {style}/>'
            for a, b in zip(series.published, series.predicted, strict=True)
        ]
        line = TOP + SIDE + 50 + 17 * index
        parts.append(f'<path d="M{LEFT + 6} {line - 4}{shape}" {style}/>')
        parts.append(f'<text x="{LEFT + 18}" y="{line}">{series.label}</text>')
    middle = TOP + SIDE / 2
    parts.append(
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 31}" text-anchor="middle">published, {unit}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">predicted,'
        f" {unit} (dashed: 15 %)</text></svg>\n"
    )
    return "".join(parts)
