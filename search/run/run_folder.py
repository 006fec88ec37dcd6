"""A run folder: everything that one search reads and leaves, in files that are never half-written."""

import csv
import errno
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from leanfront.latency_models.files import replace_file
from leanfront.search.config import ConfigError, SearchConfig, parse_config
from leanfront.search.objectives import names, remember, scored_by
from leanfront.search.run.disk import is_full
from leanfront.search.run.run_lock import is_held, locked, try_lock

_SECONDS_OF_A_WRITE = 3600.0
PAUSE_SECONDS = 600.0
"""A longer stretch without any trial at work is a pause (stopped, resumed later), not search time."""
STATES = ("complete", "infeasible", "failed", "pruned", "running")


class RunError(ValueError):
    """A run folder that is none, belongs to another search, or cannot be written."""


class DiskFull(RunError):
    """A file of a run folder that cannot be written until there is space."""


PARENTS = ("weights_of", "weights_from")
"""What says whose trained weights a network took over: a trial of this run, or of the run that it was started
from."""


@dataclass(frozen=True)
class TrialRow:
    """One line of trials.csv. None: not known (yet). ``policy`` and ``rungs`` (each that was reached)
    are JSON; ``expected_accuracy``: what the sampler expected before the trial; ``weights_of``: the trial
    whose trained weights an heir was made from, ``weights_from``: the same, of another run; ``known_from``:
    the trial of another run that has scored this policy; times are ISO 8601, local."""

    trial: int
    state: str
    reason: str = ""
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None
    size_bytes: float | None = None
    peak_memory_bytes: float | None = None
    seconds: float | None = None
    seconds_training: float | None = None
    seconds_scoring: float | None = None
    started: str = ""
    finished: str = ""
    worker: str = ""
    policy: str = ""
    seconds_proposing: float | None = None
    seconds_pricing: float | None = None
    rung: float | None = None
    divergence: float | None = None
    rungs: str = ""
    expected_accuracy: float | None = None
    weights_of: float | None = None
    known_from: float | None = None
    weights_from: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)
    """Objectives of a task's own: each is a column, too."""

    @property
    def is_heir(self) -> bool:
        """Whether its network took over trained weights."""
        return any(getattr(self, name) is not None for name in PARENTS)

    @property
    def values(self) -> dict[str, Any]:
        """Column -> what stands in it."""
        return {name: getattr(self, name) for name in COLUMNS} | dict(self.more)

    def value(self, name: str) -> float | None:
        """What stands in a column of numbers."""
        known: float | None = getattr(self, name) if name in COLUMNS else self.more.get(name)
        return known


COLUMNS = tuple(column.name for column in fields(TrialRow) if column.name != "more")
ADDED = (
    "seconds_proposing",
    "seconds_pricing",
    "rung",
    "divergence",
    "rungs",
    "expected_accuracy",
    "weights_of",
    "known_from",
    "weights_from",
)
"""Columns that run folders made before there were rungs do not have."""
TEXTS = ("state", "reason", "rungs", "started", "finished", "worker", "policy")


class _Inside:
    """A file or folder of a run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: "RunFolder", owner: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The files of one search, by name."""

    path: Path

    config_file = _Inside("config.toml")
    """The configuration as it was used, with absolute task file and all overrides."""
    environment_file = _Inside("environment.json")
    """Versions, machine, hashes, baseline."""
    importance_file = _Inside("importance.npy")
    """What the criterion of the channels that are cut says of each, where it is not the usual one."""
    journal = _Inside("study.journal")
    """Optuna's journal: the truth about trials; trials.csv and front.csv are made from it."""
    trials_file = _Inside("trials.csv")
    """One line a trial."""
    log_file = _Inside("log.txt")
    """One line an event."""
    decoded = _Inside("decoded")
    """Images that memory has no room for, made again from the data when they are missing."""

    @property
    def begun(self) -> bool:
        """Whether a search has made trials in it, here or in a shared storage."""
        return self.journal.exists() or self.trials_file.exists()

    checkpoints = _Inside("checkpoints")
    """Weights of trials."""
    exported = _Inside("exported")
    """One folder for each exported trial."""
    locks = _Inside("locks")
    """Lock files: held as long as their process lives."""

    def checkpoint(self, trial: int | str) -> Path:
        """The weights of one trial (or of one that has no number yet)."""
        return self.checkpoints / f"{trial}.safetensors"

    scores = _Inside("scores")
    """Which examples trials had right."""

    def scores_file(self, trial: int | str) -> Path:
        """The scores of each example at the end of each rung, of one trial (or the "baseline")."""
        return self.scores / f"{trial}.npz"

    def config(self) -> SearchConfig:
        """The configuration that the folder was made with; a task's own objectives, and what its networks are
        scored by, are known from then on.

        Raises:
            RunError: it cannot be read.
        """
        config = self.settings()
        environment = self.environment()
        if "baseline" in environment:  # a run that was prepared says what it is scored by
            scored_by(environment.get("metric"))
        if any(name not in names() for name in config.search.objectives):
            remember(environment.get("registered_objectives") or ())
        return config

    def settings(self) -> SearchConfig:
        """The same, and nothing else is known from then on; raises RunError as ``config``."""
        import tomllib

        try:
            return parse_config(tomllib.loads(self.config_file.read_text(encoding="utf-8")))
        except (OSError, ConfigError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{self.config_file} cannot be used: {error}") from error

    def tuned(self, config: SearchConfig) -> SearchConfig:
        """A configuration with the settings of the fine-tune that this run has found better, if any."""
        return config.tuned(self.environment().get("tuned") or {})

    def environment(self) -> dict[str, Any]:
        """What environment.json holds; empty before it is written.

        Raises:
            RunError: it is not JSON.
        """
        try:
            raw = json.loads(self.environment_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RunError(f"{self.environment_file} cannot be read: {error}") from error
        return raw if isinstance(raw, dict) else {}

    def update_environment(self, **values: Any) -> None:
        """Add or replace keys of environment.json."""
        with self._alone():
            self._write_environment(self.environment() | values)

    def study_name(self) -> str:
        """The name of this run's study in a storage that other runs may share; drawn at the first call."""
        with self._alone():
            known = self.environment()
            if "study" not in known:
                known["study"] = f"leanfront-{self.path.name}-{uuid.uuid4().hex[:12]}"
                self._write_environment(known)
        return str(known["study"])

    def _write_environment(self, values: Mapping[str, Any]) -> None:
        replace_file(self.environment_file, json.dumps(values, indent=1, default=str) + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with writable(self.environment_file):
            self.locks.mkdir(exist_ok=True)
            with locked(self.locks / "environment"):
                yield

    def log(self, line: str) -> None:
        """Append one line with the time to log.txt. A log that cannot be written stops nothing."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {line.rstrip()}\n")
        except OSError:
            pass

    def trials(self) -> list[TrialRow]:
        """The lines of trials.csv; none before the first trial.

        Raises:
            RunError: the file is not what ``write_trials`` writes.
        """
        csv.field_size_limit(1 << 30)  # a policy of a thousand layers is longer than the default allows
        try:
            with self.trials_file.open(newline="", encoding="utf-8") as file:
                reader = csv.reader(file)
                header = next(reader, [])
                if missing := [name for name in COLUMNS if name not in (*header, *ADDED)]:
                    raise RunError(f"{self.trials_file} has no column {missing[0]!r}")
                further = [name for name in header if name not in COLUMNS]
                return [_row(dict(zip(header, line, strict=False)), further) for line in reader if line]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
            raise RunError(f"{self.trials_file} cannot be read: {error}") from error

    def write_trials(self, rows: Iterable[TrialRow], name: str = "trials.csv") -> None:
        """Write trials.csv (or front.csv) beside, then rename."""
        rows = list(rows)
        columns = [*COLUMNS, *dict.fromkeys(name for row in rows for name in row.more)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            values = row.values
            writer.writerow(["" if (value := values.get(name)) is None else value for name in columns])
        with writable(self.path / name):
            replace_file(self.path / name, text.getvalue())

    def is_live(self, worker: str) -> bool:
        """Whether a worker's process lives and holds its lock, as far as can be seen from here."""
        return is_held(self.locks / worker)

    def is_dead(self, worker: str) -> bool:
        """Whether a worker is surely gone: it ran here, under this kernel, and nobody holds its lock.

        Of a worker elsewhere only its lease tells.
        """
        return _place(self) in worker.split("-") and not self.is_live(worker)

    def live_workers(self) -> dict[str, float]:
        """Names of the workers whose process lives, and when each began, in seconds since 1970."""
        begun = {}
        for path in self.locks.glob("worker-*"):
            with suppress(FileNotFoundError):  # it ended just now
                since = path.stat().st_mtime
                if is_held(path):
                    begun[path.name] = since
        return begun


def trained_to_the_end(state: str, scored: bool, elsewhere: bool) -> bool:
    """Whether a trial counts as trained: as long as trials are, or it failed. ``elsewhere``: its weights or
    its score are another trial's, as of heirs and of what another run knows."""
    return not elsewhere and (state in ("complete", "failed") or (state == "infeasible" and scored))


def default_run(config_path: Path, config: SearchConfig) -> Path:
    """Where a search goes that names no run folder: runs/<folder of the configuration>-<profile>."""
    folder = config_path.resolve().parent if not config_path.is_dir() else config_path.resolve()
    return Path("runs") / f"{folder.name}-{Path(config.hardware.profile).stem}"


def make_run(path: Path, config: SearchConfig) -> RunFolder:
    """Make a run folder for a configuration, or open the one that is there.

    Raises:
        RunError: it cannot be written, is no run folder but full of something else, or was made by another
            configuration (the keys that differ are named).
    """
    run = RunFolder(path.absolute())
    if run.config_file.exists():
        if run.begun:  # before the first trial there is nothing to lose
            _check_same(run, config)
    elif path.exists() and (not path.is_dir() or any(map(_not_ours, path.iterdir()))):
        raise RunError(f"{path} exists and is no run folder; name another with --run")
    with writable(path):
        run.path.mkdir(parents=True, exist_ok=True)
        replace_file(run.config_file, config.to_toml())  # first: it makes the folder ours
        for folder in (run.checkpoints, run.exported, run.locks):
            folder.mkdir(exist_ok=True)
    return run


def _not_ours(path: Path) -> bool:
    """All that a search leaves that was killed before its configuration was there is a part of that."""
    return not path.name.startswith(".config.toml.")


def open_run(path: Path | str) -> RunFolder:
    """The run folder that a search made.

    Raises:
        RunError: there is none.
    """
    run = RunFolder(Path(path).absolute())
    if not run.path.is_dir():
        raise RunError(f"no run folder {str(path)!r}; give the folder that leanfront search made")
    if not run.config_file.is_file():
        raise RunError(f"{path} is not a run folder: it has no config.toml")
    return run


@contextmanager
def registered(run: RunFolder) -> Iterator[str]:
    """A worker's name, alive for the length of a with block, however that ends."""
    name = f"worker-{os.uname().nodename}-{os.getpid()}-{_place(run)}-{uuid.uuid4().hex[:6]}"
    path = run.locks / name
    descriptor = None
    with writable(path):
        # whoever looks for living workers may hold or remove the file for a moment before it is locked
        while descriptor is None or not path.exists():
            descriptor = try_lock(path)
    try:
        yield name
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn the reasons why nothing can be written into a RunError of one sentence."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull(
                f"cannot write {path}: the disk is full; make space, then give the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"{error.strerror}; name a folder that you may write to with --run"
        else:
            what = str(error.strerror or error)
        raise RunError(f"cannot write {path}: {what}") from error


def sweep(run: RunFolder) -> None:
    """Remove what killed processes left half-written, beside the files that it should have become."""
    unnumbered = (path for folder in (run.checkpoints, run.scores) for path in folder.glob("inherited-*"))
    for path in (*run.path.glob(".*.*"), *run.checkpoints.glob("*.partial"), *unnumbered):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_OF_A_WRITE:
                path.unlink()


def now() -> str:
    """Local time, ISO 8601 to the second."""
    return datetime.now().isoformat(timespec="seconds")


def _place(run: RunFolder) -> str:
    """What tells this folder under the running kernel from a copy, another machine, and the time before a
    reboot: where it is the same, a lock that nobody is seen to hold is held by nobody."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = os.uname().nodename
    folder = run.locks.stat()
    text = f"{kernel} {folder.st_dev} {folder.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_same(run: RunFolder, config: SearchConfig) -> None:
    before = run.config()
    if (before.search.storage is None) != (config.search.storage is None):
        kept = before.search.storage or run.journal
        raise RunError(
            f"the trials of {run.path} are in {kept} and stay there; name that storage (none for the journal)"
            " or another folder with --run"
        )
    if before.digest == config.digest:
        return
    old, new = before.shared, config.shared
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    first = keys[0]
    others = f" (and {', '.join(keys[1:])})" if keys[1:] else ""
    raise RunError(
        f"{run.path} was made by another configuration: {first}{others} was {old.get(first)!r} and is now"
        f" {new.get(first)!r}; name another folder with --run, or take the old values"
    )


_NUMBERS = tuple(name for name in COLUMNS if name not in (*TEXTS, "trial"))


def _row(line: Mapping[str, str], further: Sequence[str]) -> TrialRow:
    numbers = {name: float(text) if (text := line.get(name)) else None for name in _NUMBERS}
    texts = {name: line.get(name) or "" for name in TEXTS}
    more = {name: float(text) for name in further if (text := line.get(name))}
    return TrialRow(trial=int(line["trial"]), **texts, **numbers, more=more)  # type: ignore[arg-type]
