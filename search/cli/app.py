"""The ``leanfront`` command. Heavy libraries are imported by the commands that need them, not here."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from leanfront.search.cli.fit import fit
from leanfront.search.cli.hardware import cost, profile_app
from leanfront.search.cli.kit import import_, kit
from leanfront.search.cli.measure import measure, validate
from leanfront.search.cli.new import new
from leanfront.search.cli.output import Format, FormatOption, print_table, say, show, shown
from leanfront.search.config import load_config
from leanfront.search.errors import exit_code
from leanfront.search.objectives import names
from leanfront.search.run.run_folder import default_run, open_run

app = typer.Typer(
    name="leanfront",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Search per-layer sparsity and bit widths of a trained network for your hardware.",
)
profile_app.command("measure")(measure)
profile_app.command("validate")(validate)
profile_app.command("kit")(kit)
profile_app.command("fit")(fit)
profile_app.command("import")(import_)
app.add_typer(profile_app, name="profile")
app.command()(cost)
app.command()(new)


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A search.toml, or its folder.")]
ToOption = Annotated[
    str | None,
    typer.Option("--to", metavar="NAME", help="Kind of the file; default: the engine's."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that a search made.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="A.B=V", help="Override one key of the configuration.")
]
HoursOption = Annotated[float | None, typer.Option("--hours", min=0.0, help="Hours from now.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Processes on this machine.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Default: exported/<trial> in the run.")]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", min=1, help="Trained trials in all, earlier ones included.")
]

StorageOption = Annotated[
    str | None,
    typer.Option("--storage", metavar="URL", help="postgresql:// or grpc:// address, without a password."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"leanfront {version('leanfront')}")
        except PackageNotFoundError:
            print("leanfront, run from its source folder")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command; ``main`` takes --debug wherever it stands."""


def _config(path: Path, overrides: list[str], **options: Any) -> Any:
    """The configuration with --set, then the options that were given, over it."""
    given = [f"search.{name}={value}" for name, value in options.items() if value is not None]
    return load_config(path, [*overrides, *given])


@app.command()
def check(
    config: ConfigArgument,
    hours: HoursOption = None,
    trials: TrialsOption = None,
    workers: WorkersOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the latency table, too, where it is not there.")
    ] = False,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    format_: FormatOption = Format.TABLE,
) -> None:
    """Validate everything and say what a search would do; trains nothing."""
    from leanfront.search.cli.check import check_config, check_table

    answer = check_config(_config(config, set_, hours=hours, trials=trials, workers=workers), measure)
    show(format_, lambda: answer, lambda: answer.get("layers", []), lambda: check_table(answer))
    if not answer["passed"]:
        failed = [check["sentence"] for check in answer["checks"] if check["passed"] is False]
        say(f"the network cannot be searched, since a check of it failed: {failed[0]}")
        raise typer.Exit(1)


@app.command()
def search(
    config: ConfigArgument,
    hours: HoursOption = None,
    trials: TrialsOption = None,
    workers: WorkersOption = None,
    storage: StorageOption = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run folder; the default is under runs/.")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A run whose knowledge to start from.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
) -> None:
    """Search overnight. The same line again goes on where it stopped."""
    from leanfront.runs import search as search_for
    from leanfront.search.run.front import front_of
    from leanfront.search.run.status import usual_drop

    settings = _config(config, set_, hours=hours, trials=trials, workers=workers, storage=storage)
    try:
        found = search_for(settings, run=(run or default_run(config, settings)).absolute(), another=from_)
    except KeyboardInterrupt:  # the second Ctrl-C: the running trial is lost, and run again next time
        print(f"stopped at once; go on with the same command:\n  {_command_line()}")
        raise typer.Exit(130) from None
    path = shown(found.path)
    if found.ended == "stopped":
        print(f"stopped; go on with the same command:\n  {_command_line()}")
    else:
        print(f"done: {found.ended}")
    print(f"{len(front_of(found.folder))} networks on the front; next:")
    drop = f"{usual_drop(found.folder):.2g}"
    print(f"  leanfront front {path}\n  leanfront report {path}\n  leanfront pick {path} --max-drop {drop}")


@app.command()
def compare(
    config: ConfigArgument,
    epochs: Annotated[float, typer.Option("--epochs", min=0.0, help="Of training, for each row.")] = 1.0,
    row: Annotated[
        list[str], typer.Option("--row", metavar="NAME", help="This row alone; may be given again.")
    ] = [],  # noqa: B006 (typer copies it)
    run: Annotated[
        Path | None, typer.Option("--run", help="A search whose front is to stand beside.")
    ] = None,
    workers: WorkersOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder; the default is under runs/.")] = None,
    set_: SetOption = [],  # noqa: B006 (typer copies it)
    format_: FormatOption = Format.TABLE,
) -> None:
    """Compare techniques, alone and combined, on the task's network at equal training."""
    from leanfront.runs import compare as compare_rows
    from leanfront.search.cli.compare import print_compared
    from leanfront.search.compare.compare import default_folder, plain

    loaded = _config(config, set_, workers=workers)
    folder = out or default_folder(config, loaded)
    found = compare_rows(loaded, epochs=epochs, rows=row, run=run, out=folder, log=say)
    rows = [plain(one) for one in found.rows]

    def people() -> None:
        print_compared(found)
        print(f"{shown(found.folder)}: compare.html, compare.csv, compare.json")

    show(format_, lambda: {"headline": found.headline, "rows": rows}, lambda: rows, people)


@app.command()
def status(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the search ends.")] = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Say how a search stands: trials, failures and why, the front, time left, what to do next."""
    from leanfront.search.cli import status_text
    from leanfront.search.run.status import status as status_of

    folder = open_run(run)
    if follow:
        if format_ is not Format.TABLE:
            raise typer.BadParameter("--follow prints lines of text; leave --format out")
        try:
            status_text.follow(folder, shown(folder.path))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        return
    answer = status_of(folder)
    path = shown(folder.path)
    rows = status_text.rows(answer)
    show(format_, lambda: answer, lambda: rows, lambda: status_text.print_status(answer, path))


@app.command()
def worker(
    run: RunArgument,
    hours: HoursOption = None,
    trials: TrialsOption = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of this worker.")] = None,
    storage: StorageOption = None,
    index: Annotated[int | None, typer.Option("--index", hidden=True)] = None,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Add one worker to a search, here or on another machine."""
    import time
    from contextlib import suppress

    from leanfront.search.run.run_folder import RunError
    from leanfront.search.study.loop import Budget
    from leanfront.search.study.progress import trial_line
    from leanfront.search.study.run_search import threads_of_one_more, with_storage, work

    folder = open_run(run)
    budget = folder.environment().get("budget")
    if budget is None:
        raise RunError(f"{run} was not prepared yet; start leanfront search first")
    config = folder.config()
    config = with_storage(config, storage, config.search.storage)
    if parent is not None:
        with suppress(OSError):  # when the memory is used up, a worker is what the kernel should end
            Path("/proc/self/oom_score_adj").write_text("500")
    deadline = time.time() + hours * 3600 if hours is not None else budget.get("deadline")
    wanted = trials if trials is not None else budget.get("trials")
    try:
        ended = work(
            folder,
            config,
            Budget(wanted, deadline),
            index=os.getpid() if index is None else index,
            threads=threads or threads_of_one_more(folder),
            parent=parent,
            on_trial=lambda row: None if parent else print(trial_line(row), flush=True),
        )
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if parent is None:
        print(f"done: {ended}")


@app.command()
def front(run: RunArgument, format_: FormatOption = Format.TABLE) -> None:
    """Show the Pareto front."""
    from leanfront.search.run.front import front_json, front_of, front_table

    folder = open_run(run)

    def people() -> None:
        if rows := front_table(folder):
            print_table(rows)
        if not front_of(folder):
            print("no trial is complete yet")
        if free := folder.environment().get("free"):
            print(f"{' and '.join(entry['name'] for entry in free)}: what you get without a search")
        if rows and (estimates := folder.environment().get("estimates")):
            print(estimates)

    show(format_, lambda: front_json(folder), lambda: [row.values for row in front_of(folder)], people)


@app.command()
def report(run: RunArgument) -> None:
    """Write report.html, one self-contained file."""
    from leanfront.runs import Run

    print(shown(Run(run).report()))


@app.command()
def pick(
    run: RunArgument,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", min=0.0, help="Most accuracy lost: 0.01 is a point."),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option("--confidence", min=0.0, max=1.0, help="Probability that --max-drop is kept: 0.9."),
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option("--max-latency-ms", min=0.0)] = None,
    max_size_bytes: Annotated[float | None, typer.Option("--max-size-bytes", min=0.0)] = None,
    max_energy_mj: Annotated[float | None, typer.Option("--max-energy-mj", min=0.0)] = None,
    prefer: Annotated[
        str | None,
        typer.Option("--prefer", metavar=f"[{'|'.join(names())}]", help="What to want most of."),
    ] = None,
    out: OutOption = None,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="This one, instead of choosing.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0.0, help="Of the long fine-tune.")] = None,
    to: ToOption = None,
    also: Annotated[
        list[str], typer.Option("--also", metavar="NAME", help="A further kind of file, run and timed here.")
    ] = [],  # noqa: B006 (typer copies it)
    format_: FormatOption = Format.TABLE,
) -> None:
    """Choose from the front, fine-tune long, test once, export, verify in its engine."""
    from dataclasses import asdict

    from leanfront.runs import Run
    from leanfront.search.run.verified import verified

    picked = Run(run).pick(
        max_drop, confidence=confidence, max_latency_ms=max_latency_ms, max_size_bytes=max_size_bytes,
        max_energy_mj=max_energy_mj,
        prefer=prefer, trial=trial, epochs=epochs, out=out, to=to, also=also, log=say,
    )  # fmt: skip
    folder, found = picked.folder, picked.found
    rows = [row._asdict() for row in verified(asdict(found))]

    def people() -> None:
        print_table(rows, title=f"trial {found.trial}")
        print(f"{shown(folder)}: {found.engine['file']}, card.md, verification.json")

    answer = {"folder": str(folder), "passed": found.passed, **asdict(found)}
    show(format_, lambda: answer, lambda: rows, people)
    for failure in found.failures:
        say(f"not as promised: {failure}")
    for sentence in found.untold:
        say(f"not verified: {sentence}")
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def export(
    run: RunArgument,
    trial: Annotated[int, typer.Option("--trial", min=0, help="The trial's number.")],
    out: OutOption = None,
    to: ToOption = None,
) -> None:
    """Export one trial with the weights of its short fine-tune; the test split is not touched."""
    from leanfront.search.pick.pick import export_trial

    print(shown(export_trial(open_run(run), trial=trial, out=out, to=to)))


def _command_line() -> str:
    import shlex

    return shlex.join(["leanfront", *sys.argv[1:]])


def main() -> None:
    """Run a command; exit 0 done, 2 wrong input, 1 it failed, 130 interrupted."""
    debug = "--debug" in sys.argv
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="leanfront")
    except Exception as error:
        sys.exit(exit_code(error, debug))
