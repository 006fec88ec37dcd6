"""The report of a run: one HTML file that needs no network and nothing beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pandas and plotly load when a report is written, not with the command line
    from search.report_data import RunData

STATE_COLOURS = {"complete": 2, "infeasible": 1, "failed": 3, "pruned": 4, "running": 0}


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Reads trials.csv, environment.json, config.toml and exported/*/verification.json, nothing else: the folder
    may have been moved from another machine, and the search may still be going on.

    Raises:
        RunError: not a run folder, a file of it cannot be understood, or the report cannot be written (an
            older one stays as it was).
    """
    from latency_models.files import replace_file
    from search.report_data import read_run
    from search.run_folder import writable

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

    from search import report_rungs, report_tables, report_text, report_validation
    from search.report_figures import figure_json, progress_figure, strip_rows, strips_figure, strips_key
    from search.report_front import below_the_figure, front_figure

    figures = {
        "front": front_figure(data),
        "strips": strips_figure(data),
        "progress": progress_figure(data),
        "validation": report_validation.figure(data),
        "sensitivity": report_rungs.sensitivity_figure(data),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=data.path.resolve().name,
        headline=report_text.headline(data),
        facts=report_tables.facts(data),
        steps=report_text.next_steps(data),
        figures={name: Markup(figure_json(figure)) for name, figure in figures.items() if figure is not None},
        max_drop=report_text.points_of_drop(data.max_drop),
        infeasible=report_tables.infeasible_count(data),
        below=below_the_figure(data),
        front=report_tables.front_table(data),
        front_size=len(data.front),
        strips_shown=len(strip_rows(data)),
        strips_key=strips_key(data),
        names=report_text.COST_NAMES,
        states=report_tables.states(data),
        state_colours=STATE_COLOURS,
        reasons=report_tables.reasons(data),
        time=report_rungs.time_shares(data),
        correlations=report_rungs.correlations(data),
        expectations=report_rungs.surrogate_errors(data),
        sensitivity=report_rungs.sensitivity_facts(data),
        warnings=report_validation.warnings(data),
        validation=report_validation.figures(data),
        compared=report_validation.table(data),
        exports=report_tables.exports(data),
        provenance=report_tables.provenance(data),
        config=report_text.without_credentials(data.config),
        plotly_js=Markup(get_plotlyjs()),
    )
