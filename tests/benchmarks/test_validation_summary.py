"""The table on top of docs/validation.md: figures from the sections' own tables, checked by hand."""

import pytest

from benchmarks import validation_summary
from benchmarks.validation_section import Cell, Section
from benchmarks.validation_summary import LINES, largest, layer_mape, mape, ranks, summary, where, worst

ROWS: list[dict[str, Cell]] = [
    {"device": "a", "precision": "int8", "predicted": 1.1, "published": 1.0, "error": "+10.0%"},
    {"device": "a", "precision": "int8", "predicted": 1.6, "published": 2.0, "error": "-20.0%"},
    {"device": "b", "precision": "fp32", "predicted": 3.0, "published": 4.0, "error": "-25.0%"},
    {"device": "b", "precision": "fp32", "predicted": 5.0, "published": 3.0, "error": "+67.0%"},
]


def test_figures_of_rows() -> None:
    assert mape(ROWS) == "30.5%"
    assert largest(ROWS[:2]) == "15.0%, largest 20.0%"
    assert worst(ROWS) == "46.0% (b)"
    assert ranks(ROWS) == "int8 1.000, fp32 -1.000"
    layers: list[dict[str, Cell]] = [
        {"layers": 1, "mean error of a layer": "5.00%"},
        {"layers": 3, "mean error of a layer": "1.00%"},
    ]
    assert layer_mape(layers) == "2.0%"
    assert [row["device"] for row in ROWS if where("device", "b", "c")(row)] == ["b", "b"]


def test_a_line_takes_the_rows_of_its_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        validation_summary.Line("both", "<= 1 %", "a board", ["First", "Second"]),
        validation_summary.Line("some", "<= 1 %", "a board", ["First"], of=where("device", "b")),
        validation_summary.Line("none", "<= 1 %", "a board", ["First"], of=where("device", "c")),
    ]
    monkeypatch.setattr(validation_summary, "LINES", lines)
    found = summary([Section("First: one", "", ROWS[:1]), Section("Second", "", ROWS[1:2])])
    assert [row["reached"] for row in found.rows] == ["15.0%", "no rows here", "no rows here"]
    assert [row["rows"] for row in found.rows] == ["2", "0", "0"]
    with pytest.raises(ValueError, match="'both' reads a section 'Second'; there is none"):
        summary([Section("First", "", ROWS)])


def test_the_document_begins_with_every_line() -> None:
    from benchmarks.published_hardware import DOCS

    text = (DOCS / "validation.md").read_text(encoding="utf-8")
    top = text[text.index("\n## ") :].split("\n## ")[1]
    assert top.startswith("What was to be reached, and what was")
    for line in LINES:
        assert f"| {line.what} | {line.target} | {line.left_out} |" in top
