"""Pick a point of the front: train it long, test it once, export it, verify it in onnxruntime."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from leanfront.compression.export.dialects import (
    QDQ,
    Dialect,
    check_operations,
    check_policy,
    check_trained_for,
    dialect_for,
)
from leanfront.compression.export.integer_form import in_integers
from leanfront.compression.export.template import TENSOR, template
from leanfront.compression.export.walk import exported
from leanfront.compression.export.zipped_sizes import deflated
from leanfront.compression.graph import kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import zeros_of
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.zeros import gain_of_another
from leanfront.latency_models.benchmark.measuring_lock import Note, measuring, training
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.benchmark.shifted_weights import shifted
from leanfront.latency_models.benchmark.zero_points import layers_to_shift
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.kernel_table.table import load_table, this_device
from leanfront.latency_models.providers import provider_of
from leanfront.search.gate.files import output_steps
from leanfront.search.objectives import check_drop, costs_among, quantity
from leanfront.search.pick.card import card
from leanfront.search.pick.choose import Wish, choose
from leanfront.search.pick.engines import engine_of
from leanfront.search.pick.folded import folded
from leanfront.search.pick.promise import promise_of
from leanfront.search.pick.verify import (
    Made,
    Verification,
    at_hand,
    kernel_report,
    measured_latency,
    measured_memory,
    test_once,
    verification,
)
from leanfront.search.run.front import front_of
from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow, now, writable
from leanfront.search.study.criterion import judged_by
from leanfront.search.study.prepare import Loaded, load
from leanfront.search.study.threads import cores, threads_put_back, use_threads
from leanfront.search.task import as_data
from leanfront.search.trial.long_training import refine
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import Scorer
from leanfront.search.trial.weights import save_weights

_SAID = ("latency_ms", "size_bytes", "energy_mj")
"""Costs that every verification has."""


def trial_row(run: RunFolder, trial: int) -> TrialRow:
    """A complete trial of a run by its number.

    Raises:
        RunError: there is none, or it is not complete.
    """
    row = next((row for row in run.trials() if row.trial == trial), None)
    if row is None:
        raise RunError(f"{run.path} has no trial {trial}; leanfront front {run.path} lists the best")
    if row.state != "complete":
        raise RunError(f"trial {trial} is not complete but {row.state}; pick one that leanfront front lists")
    return row


@threads_put_back()
def pick(
    run: RunFolder,
    wish: Wish,
    *,
    trial: int | None = None,
    out: Path | None = None,
    epochs: float | None = None,
    to: str | None = None,
    also: Sequence[str] = (),
    log: Note = print,
) -> tuple[Path, Verification]:
    """Choose by ``wish`` (or take ``trial``), fine-tune long, test once, export and verify in its engine.

    Writes model.onnx (.tflite ...: the suffix of its kind), baseline.onnx, weights.safetensors, policy.json,
    verification.json, card.md and, where the part is a pipeline of engines, folding.json to ``out``
    (exported/<trial> of the run by default); returns that folder and the verification. ``to``: the kind of
    file (compression.export.dialects): by default the configuration's, else that of the profile's engine.
    ``also``: further kinds, each written beside as model-<kind>, run and timed where it can be.

    Raises:
        RunError: nothing on the front meets the limits, or the folder cannot be written.
        DialectError: there is no such kind of file, it cannot hold this network, or what it needs is not
            installed.
    """
    run.config()  # what networks are scored by
    check_drop(wish.max_drop)
    baseline_accuracy = run.environment().get("baseline", {}).get("accuracy")
    if trial is not None and wish.confidence is not None:
        raise RunError("--confidence is about what is chosen, and --trial has chosen; leave one of them out")
    if baseline_accuracy is None:
        raise RunError(f"{run.path} has no scored baseline yet; search first: leanfront search")
    row = _chosen(run, baseline_accuracy, wish) if trial is None else trial_row(run, trial)
    loaded, scorer = _opened(run, to, log)
    policy = Policy.from_json(row.policy)
    more = [dialect_for(name, loaded.profile.engine) for name in dict.fromkeys(also)]
    for each in (loaded.dialect, *more):
        check_policy(each, loaded.traced.network, policy)
        check_trained_for(each, loaded.dialect.grids, policy)
        if each.limited:
            check_operations(each, template(loaded.traced).model().graph, TENSOR)
    options = loaded.config.pick
    epochs = options.epochs if epochs is None else epochs
    log(f"trial {row.trial}: fine-tuning for up to {epochs:g} epochs with distillation")
    checkpoint = run.checkpoint(row.trial)
    compressed, score = refine(scorer, policy, checkpoint, epochs, options.learning_rate, options.schedule)
    before = quantity("accuracy", baseline_accuracy)
    log(f"search split: {quantity('accuracy', score.accuracy)} (uncompressed {before}); exporting")
    folder = out or run.exported / str(row.trial)
    most = loaded.config.limits.max_drop if wish.max_drop is None else wish.max_drop
    return folder, export_and_verify(run, loaded, scorer, compressed, score, row, folder, log, most, more)


def _chosen(run: RunFolder, baseline_accuracy: float, wish: Wish) -> TrialRow:
    front = front_of(run)
    promise = None if wish.confidence is None else promise_of(run, wish.confidence, wish.limits)
    return choose(front, baseline_accuracy, wish, promise)


@threads_put_back()
def export_trial(run: RunFolder, *, trial: int, out: Path | None = None, to: str | None = None) -> Path:
    """Export one trial with the weights of its short fine-tune; the folder that model.onnx (.tflite ...) is
    in. ``to``: the kind of file, as of ``pick``.

    Raises:
        RunError: the trial is not complete, its weights were not kept, or the folder cannot be written.
        DialectError: as of ``pick``.
    """
    row = trial_row(run, trial)
    checkpoint = run.checkpoint(trial)
    if not checkpoint.exists():
        raise RunError(
            f"the weights of trial {trial} were not kept (only those of the front are);"
            f" train it again with: leanfront pick {run.path} --trial {trial}"
        )
    loaded, scorer = _opened(run, to)
    policy = Policy.from_json(row.policy)
    compressed, _ = refine(scorer, policy, checkpoint, 0, loaded.config.pick.learning_rate)
    compressed.module.cpu()
    folder = out or run.exported / str(trial)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model = _file(loaded, run, compressed, loaded.dialect)
        replace_file(folder / f"model{loaded.dialect.suffix}", model)
        replace_file(folder / "policy.json", policy.to_json() + "\n")
    return folder


def _file(
    loaded: Loaded,
    run: RunFolder,
    compressed: Compressed,
    dialect: Dialect,
    log: Note = lambda line: None,
) -> bytes:
    written = exported(template(loaded.traced), compressed, dialect)
    if dialect.priced:
        return fastest_file(written, loaded, run, log)
    return dialect.finished(written, compressed.network, compressed.policy)


def fastest_file(
    model: onnx.ModelProto, loaded: Loaded, run: RunFolder, log: Note = lambda line: None
) -> bytes:
    """The exported network, serialized, with the zero points that are fastest by the run's latency table; as
    it is where that table is not of this machine and its onnxruntime."""
    plain = bytes(model.SerializeToString())
    hardware = loaded.config.hardware
    if not at_hand(loaded.profile, hardware.threads, hardware.provider):
        return plain
    device = this_device(hardware.threads, provider_of(hardware.provider))
    try:
        table = load_table(run.path / "latency_table.csv", device, loaded.profile.name)
    except TableError as error:
        log(f"the network is stored without regard to which kernels are faster here: {error}")
        return plain
    uses = kernels(loaded.traced.network)
    names = {kernel.label: kernel.layer.name for kernel in uses if kernel.layer is not None}
    layers = layers_to_shift(fused_nodes(plain, names, device.threads, device.provider), table)
    return bytes(shifted(model, layers).SerializeToString()) if layers else plain


def _search_said(run: RunFolder, row: TrialRow, score: Score) -> dict[str, Any]:
    """What the search said of a network, and of the objectives that are said nowhere else, the uncompressed
    network's beside."""
    baseline = run.environment()["baseline"]
    further = [name for name in costs_among(run.config().search.objectives) if name not in _SAID]
    pairs = {name: {"uncompressed": baseline.get(name), "picked": row.value(name)} for name in further}
    return {
        "accuracy": score.accuracy,
        "accuracy_ci": list(score.accuracy_ci),
        "short_accuracy": row.accuracy,
        **score.settled,
        "latency_ms": row.latency_ms,
        "energy_mj": row.energy_mj,
        **{f"baseline_{name}": baseline.get(name) for name in ("latency_ms", "energy_mj")},
        "estimates": run.environment().get("estimates") or "",
        **({"objectives": pairs} if pairs else {}),
    }


def _opened(run: RunFolder, to: str | None, log: Note = lambda line: None) -> tuple[Loaded, Scorer]:
    use_threads(cores())
    loaded = judged_by(load(run.tuned(run.config()), to), run, log, write=False)
    scorer = Scorer(loaded.traced, loaded.task, loaded.config, log, folder=run.decoded)
    scorer.resamples = run.environment().get("baseline", {}).get("resamples")
    return loaded, scorer


def _measured(
    model: bytes, baseline: bytes, loaded: Loaded, row: TrialRow, log: Note
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Latency and memory of both files, where this machine is the part; nothing where it is not."""
    hardware = loaded.config.hardware
    if loaded.profile.measured and not loaded.dialect.priced:
        log(f"no latency is measured: what was predicted is that of files of kind {QDQ.name!r}")
    if not loaded.dialect.priced or not at_hand(loaded.profile, hardware.threads, hardware.provider, log):
        return {}, {}
    log("measuring the latency of both files")
    with measuring(log):
        latency = measured_latency(model, baseline, hardware.threads, hardware.provider)
    if latency["noise"] is not None:
        log(f"warning: {latency['noise']}")
    return latency, measured_memory(model, baseline, row.peak_memory_bytes)


def _whose_gain(loaded: Loaded, policy: Policy) -> list[str]:
    """Lines that say of zeros that are faster in another engine than the part's own."""
    used = {name for layer in policy.values() for name, _ in layer.more if name in PATTERNS}
    said = (gain_of_another(PATTERNS[name], loaded.profile) for name in sorted(used))
    return [line for sentence in said if sentence for line in (f"Latency: {sentence}.", "")]


def _promised(run: RunFolder, row: TrialRow) -> dict[str, float]:
    assert row.latency_ms is not None
    assert row.size_bytes is not None
    baseline_ms = run.environment()["baseline"]["latency_ms"]
    return {"latency_ms": row.latency_ms, "size_bytes": row.size_bytes, "baseline_latency_ms": baseline_ms}


@dataclass(frozen=True)
class _Both:
    """The picked network and the uncompressed one as files of one kind."""

    dialect: Dialect
    model: bytes
    baseline: bytes

    @property
    def tested(self) -> Made:
        """What is read by the test."""
        return Made(self.model if self.dialect.runs_here else None, self.dialect)

    @property
    def size(self) -> dict[str, int]:
        """Of both files, as they are and zipped, and how many weights are 0 in the picked one."""
        zeros, weights = self.dialect.counted(self.model)
        return {
            "bytes": len(self.model),
            "baseline_bytes": len(self.baseline),
            "zipped_bytes": deflated(self.model),
            "baseline_zipped_bytes": deflated(self.baseline),
            "weights": weights,
            "zeros": zeros,
        }


def export_and_verify(
    run: RunFolder,
    loaded: Loaded,
    scorer: Scorer,
    compressed: Compressed,
    score: Score,
    row: TrialRow,
    folder: Path,
    log: Note,
    max_drop: float | None,
    more: Sequence[Dialect] = (),
) -> Verification:
    """Export a trained network beside the uncompressed one and hold it against what its trial promised, and
    against ``max_drop``, if somebody gave one; write it in ``more`` kinds of files."""
    task, threads, dialect = loaded.task, loaded.config.hardware.threads, loaded.dialect
    compressed.module.cpu()
    uncompressed = compress(loaded.traced, Policy.uniform(loaded.traced.network, LayerPolicy()))

    def both(kind: Dialect) -> _Both:
        baseline = exported(template(loaded.traced), uncompressed, kind)
        finished = kind.finished(baseline, uncompressed.network, uncompressed.policy)
        return _Both(kind, _file(loaded, run, compressed, kind, log), finished)

    made = {kind.name: both(kind) for kind in (dialect, *more)}
    model, baseline = made[dialect.name].model, made[dialect.name].baseline
    also = {name: each for name, each in made.items() if each.dialect is not dialect}
    kernels = kernel_report(model, compressed.network, compressed.policy, threads, dialect)
    if not_run := kernels.get("not_run"):
        log(not_run)
    log("testing: file, torch network and uncompressed network on the test split")
    with training(log):
        test = test_once(
            made[dialect.name].tested,
            in_integers(compressed, dialect).module,
            loaded.traced,
            task,
            as_data(task.test),
            threads,
            output_steps(compressed),
            scorer.batches.comparison,
            {name: each.tested for name, each in also.items()},
        )
    latency, memory = _measured(model, baseline, loaded, row, log)
    engines = {
        name: engine_of(each.model, each.baseline, each.dialect, loaded.traced, threads, log)
        for name, each in made.items()
    }
    found = verification(
        row.trial,
        _promised(run, row),
        _search_said(run, row, score),
        test,
        latency,
        {**made[dialect.name].size, "promised_zeros": zeros_of(compressed.network, compressed.policy)},
        kernels,
        memory,
        dialect,
        max_drop,
        engines[dialect.name],
        {name: {**each.size, **engines[name]} for name, each in also.items()},
    )
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, each in made.items():
            kind = "" if each.dialect is dialect else f"-{name}"
            replace_file(folder / f"model{kind}{each.dialect.suffix}", each.model)
        replace_file(folder / f"baseline{dialect.suffix}", baseline)
        save_weights(compressed.module, folder / "weights.safetensors")
        replace_file(folder / "policy.json", compressed.policy.to_json() + "\n")
        replace_file(folder / "verification.json", json.dumps(asdict(found), indent=1) + "\n")
        folding, of_folding = folded(loaded.profile, compressed.network, compressed.policy)
        if folding:
            replace_file(folder / "folding.json", json.dumps(folding, indent=1) + "\n")
        text = card(
            found, compressed.policy, compressed.network, loaded.profile.name,
            str(loaded.config.task.file), now(), [*_whose_gain(loaded, compressed.policy), *of_folding],
        )  # fmt: skip
        replace_file(folder / "card.md", text)
    return found
