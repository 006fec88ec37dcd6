"""One row made: its network compressed and trained, scored on the search split, and written as a file."""

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leanfront.compression.capture.program import tensors_in
from leanfront.compression.capture.trace import Traced, TraceError, trace
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import DialectError, check_policy
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.training.batch_norms import norms_of
from leanfront.compression.training.finetune import Diverged, FineTune
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.search.compare.recipes import CompareError, Note, Recipe
from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow
from leanfront.search.study.prepare import Loaded
from leanfront.search.trial.in_task import AsFile, InTask, answer_spec
from leanfront.search.trial.sanity import check_loss
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import Scorer
from leanfront.search.trial.weights import load_weights, state_of


class LeftOut(Exception):
    """A row that this network, part or engine has not: why."""


@dataclass(frozen=True)
class Member:
    """A network of a search's front, by the trial that it is of."""

    trial: int
    policy: Policy
    checkpoint: Path

    multiple: int
    """Of channel counts, for which its run searched."""

    @property
    def name(self) -> str:
        """Of its row."""
        return f"trial {self.trial}"

    @property
    def key(self) -> str:
        """Of what it is: its policy, and the weights that its search has left."""
        weights = self.checkpoint.read_bytes() if self.checkpoint.exists() else b""
        return f"-{self.policy.digest}-{hashlib.sha256(weights).hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class Made:
    """A row's network. content: its file. network, policy: what is priced; None: nothing here prices it.
    parameters: numbers that are learnt, zeros not counted. seconds_training: with everything that is done
    before its score; epochs: that it was trained for here; of_the_task: made from the task's own network."""

    content: bytes
    score: Score
    network: Network | None
    policy: Policy | None
    parameters: int
    epochs: float
    seconds_training: float
    of_the_task: bool = True


class Maker:
    """Makes rows of one task, all with the same training."""

    def __init__(self, loaded: Loaded, scorer: Scorer, epochs: float, note: Note) -> None:
        """``epochs``: of the training data, that each trained row gets."""
        self.loaded, self.scorer, self.epochs, self.note = loaded, scorer, epochs, note
        options = scorer.config
        self._steps = max(1, round(epochs * len(scorer.batches.train) / options.finetune.batch))
        self._learning_rate = options.pick.learning_rate

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Raise CompareError for what is wrong with the task, before anything is trained."""
        if any(recipe.origin == "student" for recipe in recipes):
            with suppress(LeftOut):
                self._student_traced  # noqa: B018 (it is kept)
        if any(recipe.trained and not recipe.distilled for recipe in recipes):
            check_loss(self.scorer.batches)

    def key(self, recipe: Recipe) -> str:
        """Of what a row depends on besides all that rows have in common: the student's weights."""
        student = self.loaded.task.student
        if recipe.origin != "student" or student is None:
            return ""
        digest = hashlib.sha256()
        for tensor in student.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"-{digest.hexdigest()[:12]}"

    def made(self, recipe: Recipe) -> Made:
        """A row.

        Raises:
            LeftOut: the part, the engine or the task has not what it needs.
            CompareError: the task's student does not fit.
            TrialFailed, Diverged: it could not be trained or scored.
        """
        return {"policy": self._compressed, "dynamic": self._dynamic, "student": self._student}[
            recipe.origin
        ](recipe)

    def member(self, member: Member) -> Made:
        """A network of a front, from the weights that its search has left, trained as every row is."""
        started, network = time.perf_counter(), self.loaded.space.network
        if not member.checkpoint.exists():
            raise LeftOut("its weights were not kept: its search has found a better one since")
        here = member.policy.channels(network, self.scorer.multiple)
        if member.policy.channels(network, member.multiple) != here:
            raise LeftOut(
                f"its channels are cut to multiples of {member.multiple}, {self.loaded.profile.name} has"
                f" {self.scorer.multiple}"
            )
        self._check_bits(member.policy)
        compressed = self.scorer.prepared(member.policy)
        load_weights(compressed.module, member.checkpoint)
        return self._better(compressed, started, distilled=True)

    def _compressed(self, recipe: Recipe) -> Made:
        loaded, started = self.loaded, time.perf_counter()
        policies = recipe.policies(loaded.space.network, loaded.profile)
        self._check(recipe, policies[-1])
        compressed = self.scorer.prepared(policies[0])
        if not recipe.trained:
            return self._finished(compressed, self._scored(compressed), 0.0, started)
        for before, policy in enumerate(policies[1:], start=1):
            self._train(compressed, before, len(policies), recipe.distilled)
            compressed = inherit(loaded.traced, compressed, policy, self.scorer.multiple)
            self.scorer.settling.estimate(compressed, rough=False)
        return self._better(compressed, started, recipe.distilled, len(policies))

    def _better(self, compressed: Compressed, started: float, distilled: bool, parts: int = 1) -> Made:
        """The network after its last training, or as it was before that where the training made it worse."""
        before = self._scored(compressed)
        kept = state_of(compressed.module)
        try:
            self._train(compressed, parts, parts, distilled)
            score = self._scored(compressed)
        except Diverged as error:
            self.note(f"training it diverged, it is kept as it was before: {error}")
            score = None
        if score is None or score.accuracy < before.accuracy:
            compressed.module.load_state_dict(kept)
            score = before
        return self._finished(compressed, score, self.epochs, started)

    def _train(self, compressed: Compressed, part: int, parts: int, distilled: bool) -> None:
        """The ``part``-th of so many equal parts of the training, from 1."""
        scorer = self.scorer
        steps = max(1, self._steps // parts)
        batches = scorer.batches.long(steps, seed=part, answered=distilled)
        settings = scorer.settings(self._learning_rate)
        usual = settings.distillation_weight or FineTune().distillation_weight
        settings = replace(settings, distillation_weight=usual if distilled else 0.0)
        scorer.fine_tune(compressed, batches, steps, self._learning_rate, settings)
        norms = frozenset(norms_of(compressed.module))
        scorer.settling.settle_norms(compressed, norms, trained=True)

    def _scored(self, compressed: Compressed) -> Score:
        return self.scorer.scored(self.scorer.as_run(compressed), 0.0, time.perf_counter())

    def _finished(self, compressed: Compressed, score: Score, epochs: float, started: float) -> Made:
        loaded, spent = self.loaded, time.perf_counter() - started - score.seconds_scoring
        deployed = fold(compressed).module
        compressed.module.cpu()
        written = exported(template(loaded.traced), compressed, loaded.dialect)
        content = loaded.dialect.finished(written, compressed.network, compressed.policy)
        return Made(content, score, compressed.network, compressed.policy, _learnt(deployed), epochs, spent)

    def _check(self, recipe: Recipe, policy: Policy) -> None:
        """Raise LeftOut for bits that the part or the engine has not, but for the uncompressed network."""
        profile = self.loaded.profile
        if not recipe.techniques:
            return
        if not profile.supports(*recipe.bits):
            weights, activations = recipe.bits
            raise LeftOut(
                f"{profile.name} does not run weights of {weights} with activations of {activations} bits"
            )
        self._check_bits(policy)

    def _check_bits(self, policy: Policy) -> None:
        """Raise LeftOut for bits that the engine has not."""
        try:
            check_policy(self.loaded.dialect, self.loaded.space.network, policy)
        except DialectError as error:
            raise LeftOut(str(error)) from error

    def _dynamic(self, recipe: Recipe) -> Made:
        """The uncompressed network's file as onnxruntime quantizes it: weights in int8, tensors at run
        time."""
        loaded, scorer, started = self.loaded, self.scorer, time.perf_counter()
        if not loaded.dialect.fused or loaded.dialect.suffix != ".onnx":
            raise LeftOut(f"it is onnxruntime's own, and this part runs {loaded.dialect.engine}")
        traced = loaded.traced
        plain = compress(traced, Policy.uniform(traced.network, LayerPolicy()))
        content = _quantized_dynamically(
            exported(template(traced), plain, loaded.dialect).SerializeToString()
        )
        score = scorer.scored(
            scorer.in_task(AsFile(content, traced, scorer.answer_spec)), 0.0, time.perf_counter()
        )
        spent = time.perf_counter() - started - score.seconds_scoring
        return Made(content, score, None, None, _learnt(fold(plain).module), 0.0, spent)

    @cached_property
    def _student_traced(self) -> Traced:
        """Raises LeftOut, CompareError as ``made``."""
        task, loaded = self.loaded.task, self.loaded
        if task.student is None:
            raise LeftOut("the task names no student: Task(student=...)")
        if task.part is not None:
            raise LeftOut("a student stands for the whole network, and the task has a part")
        try:
            traced = trace(task.student, task.example_input)
        except TraceError as error:
            raise CompareError(f"the task's student cannot be used: {error}") from error
        ours, theirs = (_shapes(each, task.example_input) for each in (task.student, task.model))
        if ours != theirs:
            raise CompareError(
                f"a student puts out what the network does, but the student's outputs are {ours} and the"
                f" network's {theirs}; give it the same outputs"
            )
        return replace(traced, grids=loaded.traced.grids)

    def _student(self, recipe: Recipe) -> Made:
        scorer, traced, started = self.scorer, self._student_traced, time.perf_counter()
        plain = compress(traced, Policy.uniform(traced.network, LayerPolicy()))
        plain.module.to(scorer.device)
        self._train(plain, 1, 1, recipe.distilled)
        plain.module.cpu()
        written = exported(template(traced), plain, self.loaded.dialect)
        content = self.loaded.dialect.finished(written, plain.network, plain.policy)
        tested = exported(template(traced), plain).SerializeToString()
        network = InTask(self.loaded.task, AsFile(tested, traced, answer_spec(traced)), None)
        score = scorer.scored(network, 0.0, time.perf_counter())
        spent = time.perf_counter() - started - score.seconds_scoring
        return Made(
            content, score, plain.network, plain.policy, _learnt(fold(plain).module), self.epochs, spent,
            of_the_task=False,
        )  # fmt: skip


def members_of(run: RunFolder, most: int, hashes: Mapping[str, str]) -> list[Member]:
    """At most so many networks of a run's front (``spread``).

    Raises:
        RunError: the run is of another task or model, or its front is empty.
    """
    from leanfront.search.run.front import front_of

    known = run.environment().get("hashes") or {}
    if differ := [what for what in ("model", "task") if known.get(what) != hashes[what]]:
        raise RunError(
            f"the run {run.path} is of another {differ[0]} than this configuration's: rows of the two cannot"
            " be compared"
        )
    front = [row for row in front_of(run) if row.policy]
    if not front:
        raise RunError(f"the front of {run.path} is empty: no trial of it is complete yet")
    rows = spread(front, run.config().search.objectives[1:], most)
    multiple = run.environment().get("channel_multiple", 1)
    return [
        Member(row.trial, Policy.from_json(row.policy), run.checkpoint(row.trial), multiple) for row in rows
    ]


def spread(front: Sequence[TrialRow], costs: Sequence[str], most: int) -> list[TrialRow]:
    """At most so many of a front, in its order: for each cost by turns those that no other beats in accuracy
    and that cost, the most accurate first, then evenly in its logarithm from the cheapest on."""
    each = -(-most // len(costs))
    turns = itertools.zip_longest(*(_evenly(_edge(front, name), name, each) for name in costs))
    by_turns = [row.trial for turn in turns for row in turn if row is not None]
    kept = list(dict.fromkeys(by_turns))[:most]
    return [row for row in front if row.trial in kept]


def _edge(front: Sequence[TrialRow], cost: str) -> list[TrialRow]:
    """Those that are more accurate than all that cost less, the cheapest first."""
    edge: list[TrialRow] = []
    known = [row for row in front if row.value(cost) and row.accuracy is not None]
    for row in sorted(known, key=lambda row: (row.value(cost), -(row.accuracy or 0.0))):
        if not edge or (row.accuracy or 0.0) > (edge[-1].accuracy or 0.0):
            edge.append(row)
    return edge


def _evenly(edge: Sequence[TrialRow], cost: str, count: int) -> list[TrialRow]:
    """So many of them, or fewer: the last, then those that are nearest to even steps from the first."""
    if not edge:
        return []
    logs = np.log([row.value(cost) or 1.0 for row in edge])
    steps = np.linspace(logs[0], logs[-1], count)[:-1]
    nearest = [int(np.argmin(np.abs(logs - step))) for step in steps]
    return [edge[at] for at in dict.fromkeys([len(edge) - 1, *nearest])]


def _shapes(model: nn.Module, example: Any) -> list[tuple[int, ...]]:
    from torch.utils import _pytree as pytree

    from leanfront.compression.capture.program import Arguments

    given = Arguments.of(example)
    with torch.no_grad():
        found = model.eval()(*given.args, **given.kwargs)
    return [tuple(tensor.shape) for tensor in tensors_in(pytree.tree_leaves(found))]


def _learnt(module: nn.Module) -> int:
    """Parameters that are not 0."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in module.parameters())


def _quantized_dynamically(content: bytes) -> bytes:
    """A file of floats with integer weights, whose tensors are quantized while it runs."""
    import logging
    import tempfile

    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "dynamic.onnx")
        source.write_bytes(content)
        logging.disable(logging.WARNING)  # it recommends a pre-processing that our files have had
        try:
            quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        return target.read_bytes()
