"""The report of a run: one HTML file that needs no network and nothing beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pandas and plotly load when a report is written, not with the command line
    from leanfront.search.report.data import RunData

STATE_COLOURS = {"complete": 2, "infeasible": 1, "failed": 3, "pruned": 4, "running": 0}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Reads trials.csv, environment.json, config.toml and exported/*/verification.json, nothing else: the folder
    may have been moved from another machine, and the search may still be going on.

    Raises:
        RunError: not a run folder, a file of it cannot be understood, or the report cannot be written (an
            older one stays as it was).
    """
    from leanfront.latency_models.files import replace_file
    from leanfront.search.report.data import read_run
    from leanfront.search.run.run_folder import writable

    text = report_html(read_run(run))
    target = run / "report.html"
    with writable(target):
        replace_file(target, text)
    return target


def report_html(data: "RunData") -> str:
    """The whole page. The template escapes every text that comes from the run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from leanfront.search.objectives import objective
    from leanfront.search.report import rungs, tables, text, validation
    from leanfront.search.report.figures import (
        figure_json,
        progress_figure,
        strip_rows,
        strips_figure,
        strips_key,
    )
    from leanfront.search.report.front import below_the_figure, front_figure

    figures = {
        "front": front_figure(data),
        "strips": strips_figure(data),
        "progress": progress_figure(data),
        "validation": validation.figure(data),
        "sensitivity": rungs.sensitivity_figure(data),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    score = objective("accuracy")
    return environment.get_template("report.html.j2").render(
        title=data.path.resolve().name,
        headline=text.headline(data),
        facts=tables.facts(data),
        steps=text.next_steps(data),
        figures={name: Markup(figure_json(figure)) for name, figure in figures.items() if figure is not None},
        score=score.label,
        share=score.scale == "share",
        drop_unit=score.drop_unit,
        floor=text.amount(score.reach(data.baseline.get("accuracy") or 0.0)),
        max_drop=text.points_of_drop(data.max_drop),
        infeasible=tables.infeasible_count(data),
        below=below_the_figure(data),
        front=tables.front_table(data),
        front_size=len(data.front),
        strips_shown=len(strip_rows(data)),
        strips_key=strips_key(data),
        names={cost: objective(cost).label for cost in data.costs},
        states=tables.states(data),
        state_colours=STATE_COLOURS,
        reasons=tables.reasons(data),
        time=rungs.time_shares(data),
        correlations=rungs.correlations(data),
        expectations=rungs.surrogate_errors(data),
        sensitivity=rungs.sensitivity_facts(data),
        warnings=validation.warnings(data),
        validation=validation.figures(data),
        compared=validation.table(data),
        free=bool(data.free),
        exports=tables.exports(data),
        provenance=tables.provenance(data),
        config=text.without_credentials(data.config),
        plotly_js=Markup(get_plotlyjs()),
    )
