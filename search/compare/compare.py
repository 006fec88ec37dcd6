"""The comparison of a configuration: row after row, each kept as soon as it is done; times last."""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.walk import random_builder
from leanfront.compression.export.zipped_sizes import deflated
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.training.finetune import Diverged
from leanfront.latency_models.benchmark.measuring_lock import measuring
from leanfront.latency_models.benchmark.timing import noise, time_models
from leanfront.latency_models.cost import CostModel
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.measured.building import cost_model
from leanfront.latency_models.providers import provider_of
from leanfront.search.compare.made import LeftOut, Made, Maker, members_of
from leanfront.search.compare.recipes import CompareError, Note, recipes_named
from leanfront.search.compare.sharing import Shared, helped
from leanfront.search.compare.told import headline
from leanfront.search.config import SearchConfig
from leanfront.search.pick.verify import at_hand
from leanfront.search.run.run_folder import RunError, RunFolder, default_run, writable
from leanfront.search.run.run_lock import try_lock
from leanfront.search.run.significance import (
    Evidence,
    load_scores,
    paired_interval,
    save_scores,
    value_of,
)
from leanfront.search.study.basis import basis
from leanfront.search.study.criterion import judged_by
from leanfront.search.study.prepare import (
    Loaded,
    hashes_of,
    judged,
    load,
    scorer_of,
)
from leanfront.search.study.threads import cores, threads_of_workers, threads_put_back, use_threads
from leanfront.search.task import TaskError
from leanfront.search.trial.scored import TrialFailed
from leanfront.search.trial.scorer import Scorer

MEMBERS = 6
"""Of a search's front, at most."""
BLOCKS = 9
_SECONDS_BETWEEN_LOOKS = 0.5

Row = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """What came of a comparison: its folder, the rows as plain values, and the first line of what to say."""

    folder: Path
    rows: tuple[Row, ...]
    headline: str


def default_folder(config_path: Path, config: SearchConfig) -> Path:
    """Where a comparison goes that names no folder: runs/compare-<folder of the configuration>-<profile>."""
    beside = default_run(config_path, config)
    return beside.with_name(f"compare-{beside.name}")


class Comparison:
    """A folder of rows. Each row is written when it is done; the same call again goes on behind it."""

    def __init__(self, folder: Path, key: str) -> None:
        """``key``: of everything that all rows depend on; rows of another are made anew."""
        self.folder, self.key = folder, key

    def file(self, name: str, suffix: str) -> Path:
        """Of a row."""
        return self.folder / "rows" / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}{suffix}"

    def known(self, name: str, own: str = "") -> Row | None:
        """A row that is made; ``own``: the key of what it alone depends on."""
        try:
            row: Row = json.loads(self.file(name, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if row.pop("key", None) != self.key + own:
            return None
        return row if row["state"] != "done" or self.content(name) is not None else None

    def forget_failed(self, name: str, own: str = "") -> None:
        """Let a row that an earlier call failed to make be tried again."""
        if (self.known(name, own) or {}).get("state") == "failed":
            self.file(name, ".json").unlink(missing_ok=True)

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether this process alone may make a row, for the length of a with block; a process that ends,
        however it ends, leaves its row to others."""
        with writable(self.folder):
            (self.folder / "rows").mkdir(parents=True, exist_ok=True)
            descriptor = try_lock(self.file(name, ".lock"))
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)  # closing lifts the lock

    def content(self, name: str) -> bytes | None:
        """The network's file."""
        with suppress(OSError):
            return self.file(name, ".model").read_bytes()
        return None

    def scores(self, name: str) -> Evidence | None:
        """Of each example of the search split."""
        return load_scores(self.file(name, ".npz"))

    def keep(self, row: Row, made: Made | None, own: str = "") -> None:
        """Write a row, its file and its scores first."""
        name = row["row"]
        with writable(self.folder):
            (self.folder / "rows").mkdir(parents=True, exist_ok=True)
            if made is not None:
                replace_file(self.file(name, ".model"), made.content)
                save_scores(self.file(name, ".npz"), {0: made.score.scores})
            replace_file(
                self.file(name, ".json"), json.dumps({**row, "key": self.key + own}, indent=1) + "\n"
            )


@threads_put_back()
def compare(
    config: SearchConfig,
    folder: Path,
    *,
    epochs: float,
    rows: Sequence[str] = (),
    run: RunFolder | None = None,
    note: Note = lambda line: None,
) -> Compared:
    """Make every row, or go on behind those that are there, and write compare.csv, compare.json and
    compare.html into the folder. ``search.workers`` processes share the rows, and the cores.

    Args:
        epochs: of the training data, for every row that is trained.
        rows: names of those that are wanted, all by default.
        run: a search of the same task, of whose front some networks get the same training and stand beside.

    Raises:
        CompareError, RunError, and what ``load`` raises: wrong input, in one sentence.
    """
    if epochs <= 0:
        raise CompareError(f"rows are trained for more than 0 epochs, not {epochs:g}")
    recipes_named(rows)
    threads = threads_of_workers(config.search.workers)
    use_threads(threads[0])
    loaded = judged_by(load(config), None, note)
    known = judged(loaded, None, note, decoded=folder / "decoded")
    shared = Shared(config, folder, epochs, tuple(rows), None if run is None else run.path)
    making = _Making(loaded, known.scorer, shared, note)
    for one in making.wanted:
        making.table.forget_failed(one.name, one.key)
    making.make(making.wanted[:1])  # which all others are held against
    importance = loaded.traced.importance
    told = {"importance": None if importance is None else importance.tolist(), "keys": making.keys}
    told["resamples"] = known.scorer.resamples
    with helped(shared, told, threads[1:], note):
        making.make(making.wanted)
        found = [making.prices.again(row) for row in making.all_made()]
    use_threads(cores())
    found = _timed(loaded, making.table, found, note)
    evidence = {row["row"]: making.table.scores(row["row"]) for row in found if row["state"] == "done"}
    compared = Compared(folder, tuple(found), headline(found, evidence, config.search.objectives))
    _write(compared)
    return compared


def join_compare(
    stopped: Callable[[], bool],
    shared: Shared,
    importance: Sequence[float] | None,
    keys: Mapping[str, str],
    resamples: int | None,
    threads: int,
) -> None:
    """Make rows of a comparison that another process has begun, until every row is made or claimed.

    importance: of channels, as the other's traced network has it. keys: of its rows. One that is another here
    (a student that is drawn anew each time) is left to it. resamples: of a metric, in each score.
    """
    use_threads(threads)
    loaded = load(shared.config)
    scores = None if importance is None else np.array(importance)
    loaded = replace(loaded, traced=replace(loaded.traced, importance=scores))
    note = partial(print, flush=True)
    scorer = scorer_of(loaded, note, shared.folder / "decoded")
    scorer.resamples = resamples
    making = _Making(loaded, scorer, shared, note)
    making.make([one for one in making.wanted if making.keys[one.name] == keys.get(one.name)], stopped)


class _Making:
    """What one process makes of the rows that are wanted; any number of processes may."""

    def __init__(self, loaded: Loaded, scorer: Scorer, shared: Shared, note: Note) -> None:
        """Raises what ``compare`` does, before anything is trained."""
        recipes, hashes = recipes_named(shared.rows), hashes_of(loaded)
        run = None if shared.run is None else RunFolder(shared.run)
        members = [] if run is None else members_of(run, MEMBERS, hashes)
        maker = Maker(loaded, scorer, shared.epochs, note)
        maker.check(recipes)
        self.note, self.prices = note, _Prices(loaded)
        self.table = Comparison(shared.folder, _key(loaded, hashes, shared.epochs))
        self.wanted = [
            _Wanted(recipe.name, recipe.techniques, partial(maker.made, recipe), maker.key(recipe))
            for recipe in recipes
        ]
        self.wanted += [
            _Wanted(member.name, ("searched",), partial(maker.member, member), member.key)
            for member in members
        ]

    @property
    def keys(self) -> dict[str, str]:
        """Of every row, by its name."""
        return {one.name: self.table.key + one.key for one in self.wanted}

    def make(self, wanted: "Sequence[_Wanted]", stopped: Callable[[], bool] = lambda: False) -> None:
        """Those that are not made and that nobody else makes, until it is ``stopped``."""
        for one in wanted:
            if stopped():
                return
            if self.table.known(one.name, one.key) is not None:
                continue
            with self.table.claimed(one.name) as ours:
                if ours and self.table.known(one.name, one.key) is None:
                    self.note(f"{self.wanted.index(one) + 1} of {len(self.wanted)}: {one.name}")
                    _row(self.prices, self.table, one)

    def all_made(self) -> list[Row]:
        """Every row, once all are made: what a process left that was killed is made here."""
        while True:
            rows = [self.table.known(one.name, one.key) for one in self.wanted]
            made = [row for row in rows if row is not None]
            if len(made) == len(rows):
                return made
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            self.make(self.wanted)


@dataclass(frozen=True)
class _Wanted:
    """A row that is to be made. key: of what it depends on besides all that rows have in common."""

    name: str
    techniques: Sequence[str]
    make: Callable[[], Made]
    key: str = ""


def _key(loaded: Loaded, hashes: Mapping[str, str], epochs: float) -> str:
    config = loaded.config
    settings = config.finetune.model_dump(mode="json") | {"learning_rate": config.pick.learning_rate}
    given = [dict(hashes), dict(basis(loaded.task, loaded.traced, loaded.profile))]
    text = json.dumps([given, settings, config.search.seed, epochs, version("leanfront")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(prices: "_Prices", table: Comparison, wanted: _Wanted) -> None:
    """Make one row, and write it."""
    row: Row = {"row": wanted.name, "techniques": list(wanted.techniques)}
    try:
        made = wanted.make()
    except (LeftOut, DialectError) as error:
        row |= {"state": "left out", "reason": str(error)}
        table.keep(row, None, wanted.key)
        return
    except (CompareError, TaskError, RunError):
        raise
    except Exception as error:  # as in a search, one row that fails takes no other with it
        foreseen = isinstance(error, TrialFailed | Diverged)
        reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
        row |= {"state": "failed", "reason": " ".join(reason.split())[:500]}
        table.keep(row, None, wanted.key)
        return
    score = made.score
    low, high = score.accuracy_ci
    row |= {"state": "done", "accuracy": float(score.accuracy), "accuracy_low": low, "accuracy_high": high}
    against = table.scores("uncompressed")
    ends = (0.0, 0.0) if against is None else paired_interval(against, score.scores)
    lost = 0.0 if against is None else value_of(against) - float(score.accuracy)
    row |= {"drop": lost, "drop_low": ends[0], "drop_high": ends[1], "parameters": made.parameters}
    if made.network is not None and made.policy is not None:
        batch = PolicyBatch.one(made.network, made.policy)
        row |= {"macs": int(batch.macs.sum()), "bops": float(batch.bops()[0])}
        row |= {"policy": made.policy.to_json()} if made.of_the_task else {}
    row |= {
        "size_bytes": len(made.content),
        "zipped_bytes": deflated(made.content),
        "epochs": made.epochs,
        "seconds_training": round(made.seconds_training, 1),
        **prices.of(made),
    }
    table.keep(row, made, wanted.key)


_PRICES = ("latency_ms", "energy_mj", "latency_is")


class _Prices:
    """Latency and energy that the profile's cost model says."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @cached_property
    def _model(self) -> CostModel | None:
        """None where this machine is the part: files are measured then."""
        loaded, hardware = self._loaded, self._loaded.config.hardware
        if at_hand(loaded.profile, hardware.threads, hardware.provider):
            return None
        builder = partial(random_builder, loaded.traced)
        return cost_model(
            loaded.space, builder, loaded.profile, hardware.threads, lambda line: None, hardware.provider
        )

    def again(self, row: Row) -> Row:
        """A row that was kept, with the prices of today: a table of a board may have been measured since."""
        if "policy" not in row or self._model is None:
            return row
        policy = Policy.from_json(row["policy"])
        network = policy.cut(self._loaded.space.network, self._loaded.profile.channel_multiple)
        bare = {name: value for name, value in row.items() if name not in _PRICES}
        return bare | self._of(network, policy)

    def of(self, made: Made) -> Row:
        """Nothing where the model does not know this network, or the part does not run it."""
        if made.network is None or made.policy is None:
            return {}
        return self._of(made.network, made.policy)

    def _of(self, network: Network, policy: Policy) -> Row:
        bits = {(one.weight_bits, one.activation_bits) for one in policy.there().values()}
        if self._model is None or not all(self._loaded.profile.supports(*pair) for pair in bits):
            return {}
        try:
            cost = self._model.cost(network, policy)
        except TableError:
            return {}
        kind = "estimated" if cost.estimated else "predicted"
        return {"latency_ms": cost.latency_ms, "energy_mj": cost.energy_mj, "latency_is": kind}


def _timed(loaded: Loaded, table: Comparison, rows: Sequence[Row], note: Note) -> list[Row]:
    """The rows with the latency of each file, where this machine is the part: all in one run, blocks of the
    files by turns, so that they can be compared."""
    hardware, profile = loaded.config.hardware, loaded.profile
    done = [row["row"] for row in rows if row["state"] == "done"]
    if not (loaded.dialect.priced and at_hand(profile, hardware.threads, hardware.provider, note)):
        return list(rows)
    files = {name: content for name in done if (content := table.content(name)) is not None}
    note(f"measuring the latency of {len(files)} files")
    with measuring(note):
        timings = time_models(files, hardware.threads, BLOCKS, provider_of(hardware.provider))
    if said := noise(timings):
        note(f"warning: {said}")
    found = []
    for row in rows:
        if (timing := timings.get(row["row"])) is None:
            found.append(row)
            continue
        energy_mj = timing.median_ms * profile.power_w
        found.append(
            {**row, "latency_ms": timing.median_ms, "energy_mj": energy_mj, "latency_is": "measured"}
        )
    return found


COLUMNS = (
    "row", "techniques", "state", "accuracy", "accuracy_low", "accuracy_high", "drop", "drop_low",
    "drop_high", "parameters", "macs", "bops", "size_bytes", "zipped_bytes", "latency_ms", "latency_is",
    "energy_mj", "epochs", "seconds_training", "reason",
)  # fmt: skip


def plain(row: Mapping[str, Any]) -> Row:
    """A row with every column, its techniques as one text."""
    found = {name: row.get(name) for name in COLUMNS}
    return {**found, "techniques": " + ".join(row["techniques"])}


def _write(compared: Compared) -> None:
    from leanfront.search.report.compared import page

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    rows = [plain(row) for row in compared.rows]
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    answer = {"headline": compared.headline, "rows": rows}
    with writable(compared.folder):
        compared.folder.mkdir(parents=True, exist_ok=True)
        replace_file(compared.folder / "compare.csv", text.getvalue())
        replace_file(compared.folder / "compare.json", json.dumps(answer, indent=1) + "\n")
        replace_file(compared.folder / "compare.html", page(compared.folder.name, compared.headline, rows))
