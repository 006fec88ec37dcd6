"""The comparison of a configuration: row after row, each kept as soon as it is done; times last."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from leanfront.search.compare.told import headline
from leanfront.search.config import SearchConfig
from leanfront.search.pick.verify import at_hand
from leanfront.search.run.run_folder import RunError, RunFolder, default_run, writable
from leanfront.search.run.significance import (
    Evidence,
    load_scores,
    paired_interval,
    save_scores,
    value_of,
)
from leanfront.search.study.basis import basis
from leanfront.search.study.criterion import judged_by
from leanfront.search.study.prepare import Loaded, judged, load
from leanfront.search.task import TaskError
from leanfront.search.trial.scored import TrialFailed

MEMBERS = 6
"""Of a search's front, at most."""
BLOCKS = 9

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
        """A row that an earlier call has made; ``own``: the key of what it alone depends on."""
        try:
            row: Row = json.loads(self.file(name, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if row.pop("key", None) != self.key + own or row["state"] == "failed":
            return None
        return row if row["state"] != "done" or self.content(name) is not None else None

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
    compare.html into the folder.

    Args:
        epochs: of the training data, for every row that is trained.
        rows: names of those that are wanted, all by default.
        run: a search of the same task, of whose front some networks get the same training and stand beside.

    Raises:
        CompareError, RunError, and what ``load`` raises: wrong input, in one sentence.
    """
    if epochs <= 0:
        raise CompareError(f"rows are trained for more than 0 epochs, not {epochs:g}")
    recipes = recipes_named(rows)
    loaded = judged_by(load(config), None, note)
    known = judged(loaded, None, note, decoded=folder / "decoded")
    members = [] if run is None else members_of(run, MEMBERS, known.hashes)
    maker = Maker(loaded, known.scorer, epochs, note)
    maker.check(recipes)
    table = Comparison(folder, _key(loaded, known.hashes, epochs))
    wanted = [
        _Wanted(recipe.name, recipe.techniques, partial(maker.made, recipe), maker.key(recipe))
        for recipe in recipes
    ]
    wanted += [
        _Wanted(member.name, ("searched",), partial(maker.member, member), member.key) for member in members
    ]
    found, prices = [], _Prices(loaded)
    for number, one in enumerate(wanted, start=1):
        row = table.known(one.name, one.key)
        if row is None:
            note(f"{number} of {len(wanted)}: {one.name}")
            row = _row(prices, table, one)
        found.append(prices.again(row))
    found = _timed(loaded, table, found, note)
    evidence = {row["row"]: table.scores(row["row"]) for row in found if row["state"] == "done"}
    compared = Compared(folder, tuple(found), headline(found, evidence, config.search.objectives))
    _write(compared)
    return compared


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


def _row(prices: "_Prices", table: Comparison, wanted: _Wanted) -> Row:
    """One row, made and written."""
    row: Row = {"row": wanted.name, "techniques": list(wanted.techniques)}
    try:
        made = wanted.make()
    except (LeftOut, DialectError) as error:
        row |= {"state": "left out", "reason": str(error)}
        table.keep(row, None, wanted.key)
        return row
    except (CompareError, TaskError, RunError):
        raise
    except Exception as error:  # as in a search, one row that fails takes no other with it
        foreseen = isinstance(error, TrialFailed | Diverged)
        reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
        row |= {"state": "failed", "reason": " ".join(reason.split())[:500]}
        table.keep(row, None, wanted.key)
        return row
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
    return row


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
