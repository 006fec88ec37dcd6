"""A search in Python, and what a run folder holds, as pandas frames."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanfront.search.config import SearchConfig, load_config, parse_config
from leanfront.search.run.front import front_of
from leanfront.search.run.run_folder import RunFolder, make_run, open_run

if TYPE_CHECKING:
    import pandas as pd

    from leanfront.search.compare.compare import Compared
    from leanfront.search.pick.verify import Verification
    from leanfront.search.task import Task

_TASK_FILE = '''"""The task that leanfront.search was given in Python, as it was then.

task.pickle is {digest}: with another task this is another file, and what was scored is scored again.
"""

import pickle
from pathlib import Path


def task():
    return pickle.loads(Path(__file__).with_name("task.pickle").read_bytes())
'''


@dataclass(frozen=True)
class Picked:
    """A network that was handed over. ``folder``: model.onnx, card.md and what else ``pick`` writes.

    ``found``: accuracy, latency and size as promised and as found; ``found.passed``: whether all was kept.
    """

    folder: Path
    found: "Verification"


class Run:
    """A run folder that a search made, from Python or by the command.

    ``ended``: why the search that was just called ended ("stopped": by Ctrl-C); "" of a run that was opened.
    """

    def __init__(self, path: Path | str) -> None:
        """Raises RunError: there is no run folder."""
        self.folder: RunFolder = open_run(path)
        self.ended = ""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def trials(self) -> "pd.DataFrame":
        """All trials, a row each: the columns of trials.csv."""
        return _frame(self.folder.trials())

    @property
    def front(self) -> "pd.DataFrame":
        """The Pareto front, the fastest first: the rows of ``trials`` that no other is better than."""
        return _frame(front_of(self.folder))

    def pick(
        self,
        max_drop: float | None = None,
        *,
        confidence: float | None = None,
        max_latency_ms: float | None = None,
        max_size_bytes: float | None = None,
        max_energy_mj: float | None = None,
        prefer: str | None = None,
        trial: int | None = None,
        epochs: float | None = None,
        out: Path | str | None = None,
        to: str | None = None,
        also: Sequence[str] = (),
        log: Callable[[str], None] = print,
    ) -> Picked:
        """Choose from the front, fine-tune long, read the test split once, export, verify.

        Args:
            max_drop: most accuracy lost, 0.01 is a point. prefer: the column to want most of.
            confidence: the probability with which max_drop must be kept, although the best of many is chosen.
            trial: this one, instead of choosing. epochs: of the long fine-tune.
            out: where the files go; exported/<trial> of the run by default. to: the kind of file, by
                default that of the profile's engine. also: further kinds, run and timed here beside it.
            log: hears what is being done.

        Raises:
            RunError: nothing on the front keeps the limits, or the folder cannot be written.
        """
        from leanfront.search.pick.choose import Wish
        from leanfront.search.pick.pick import pick

        wish = Wish(max_drop, max_latency_ms, max_size_bytes, max_energy_mj, prefer, confidence)
        place = None if out is None else Path(out)
        return Picked(
            *pick(self.folder, wish, trial=trial, out=place, epochs=epochs, to=to, also=also, log=log)
        )

    def report(self) -> Path:
        """Write report.html, one self-contained file; where it is."""
        from leanfront.search.report.page import write_report

        return write_report(self.path)


def search(
    task: "Task | SearchConfig | Path | str",
    *,
    profile: str | None = None,
    hours: float | None = None,
    trials: int | None = None,
    workers: int | None = None,
    run: Path | str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    another: Run | Path | str | None = None,
) -> Run:
    """Search for the front, or go on with the run that is there; Ctrl-C stops it, the same call goes on.

    Args:
        task: a Task; or the path of a search.toml (or of its folder), or a configuration.
        profile: name of the part; hours, trials: when it ends, at least one; workers: processes.
        run: the run folder. A task needs one, under runs/ if it is a plain name: the task is kept there.
        settings: further keys by section as in a search.toml: {"space": {"weight_bits": [4, 8]}}.
        another: a run to start from: what it knows still holds for new limits or another part; for other
            data or weights the networks of its front are tried first.

    Raises:
        ConfigError, TaskError, TraceError, ProfileError, TableError, RunError: wrong input, one sentence.
        RuntimeError: trials fail one after the other, or workers die.
    """
    from leanfront.search.pick.finish import finish
    from leanfront.search.study.run_search import run_search
    from leanfront.search.task import Task, TaskError

    given: dict[str, dict[str, Any]] = {
        "hardware": {"profile": profile},
        "search": {"hours": hours, "trials": trials, "workers": workers},
    }
    sections = {name: dict(keys) for name, keys in (settings or {}).items()}
    for section, keys in given.items():
        chosen = {key: value for key, value in keys.items() if value is not None}
        if chosen:
            sections[section] = sections.get(section, {}) | chosen
    folder = None if run is None else Path(run) if len(Path(run).parts) > 1 else Path("runs") / run
    if isinstance(task, Task):
        if folder is None:
            raise TaskError('a search of a Task needs a run folder, which keeps the task; give run="night"')
        file = folder.absolute() / "task" / "task.py"
        config = parse_config({"task": {"file": str(file)}, **sections})
        _keep(task, make_run(folder, config), file)
        where = folder
    else:
        config, where = _configured(task, sections)
    made, ended = run_search(config, where, folder, finish, _folder_of(another))
    found = Run(made.path)
    found.ended = ended
    return found


def compare(
    task: "SearchConfig | Path | str",
    *,
    epochs: float = 1.0,
    rows: Sequence[str] = (),
    run: "Run | Path | str | None" = None,
    out: Path | str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    log: Callable[[str], None] = print,
) -> "Compared":
    """Each technique alone, and the usual combinations, on a task's network at equal training.

    Args:
        task: path of a search.toml (or of its folder), or a configuration.
        epochs: of the training data, that each trained row gets.
        rows: names of some; all by default.
        run: a search of the same task: networks of its front get the same training and stand beside.
        out: the folder, in which an earlier comparison goes on; runs/compare-<folder>-<profile> by default.
        settings: further keys by section, as of ``search``. log: hears what is being done.

    Raises:
        CompareError, ConfigError, TaskError, RunError ...: wrong input, one sentence.
    """
    from leanfront.search.compare.compare import compare as compared
    from leanfront.search.compare.compare import default_folder

    config, where = _configured(task, {name: dict(keys) for name, keys in (settings or {}).items()})
    folder = Path(out) if out is not None else default_folder(where, config)
    return compared(config, folder.absolute(), epochs=epochs, rows=rows, run=_folder_of(run), note=log)


def _folder_of(run: Run | Path | str | None) -> RunFolder | None:
    return run.folder if isinstance(run, Run) else None if run is None else open_run(run)


def _configured(task: SearchConfig | Path | str, sections: dict[str, Any]) -> tuple[SearchConfig, Path]:
    """A configuration with further keys over it, and the path that names its run folder by default."""
    if isinstance(task, SearchConfig):
        config, where = task, task.task.file
    else:
        config, where = load_config(task), Path(task)
    raw = config.model_dump(mode="python", exclude_none=True)
    raw["task"]["file"] = str(config.task.file)
    for section, keys in sections.items():
        raw[section] = raw.get(section, {}) | keys
    return parse_config(raw), where


def _keep(task: "Task", run: RunFolder, file: Path) -> None:
    """Write the task beside the run, for the workers and for a pick in another process."""
    import cloudpickle

    from leanfront.latency_models.files import replace_file
    from leanfront.search.task import TaskError

    try:
        content = cloudpickle.dumps(task)
    except Exception as error:
        raise TaskError(
            f"a Task is kept in the run folder, for its workers, but this one cannot be pickled: {error};"
            " write it as a task file instead (docs/your-own-task.md)"
        ) from error
    file.parent.mkdir(exist_ok=True)
    replace_file(file.with_name("task.pickle"), content)
    replace_file(file, _TASK_FILE.format(digest=hashlib.sha256(content).hexdigest()))


def _frame(rows: Any) -> "pd.DataFrame":
    import pandas as pd

    from leanfront.search.run.run_folder import COLUMNS

    plain = [asdict(row) | row.more for row in rows]  # more: objectives that a task has registered
    own = dict.fromkeys(name for row in rows for name in row.more)
    return pd.DataFrame(plain, columns=[*COLUMNS, *own])
