"""The score of a policy: cut, calibrate, fine-tune with distillation, measure on the search split."""

import copy
import itertools
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.policy import Policy
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import (
    changed_norms,
    norms_of,
    re_estimate,
)
from leanfront.compression.training.distillation import Comparison, Divergence
from leanfront.compression.training.features import listened_to, with_features
from leanfront.compression.training.finetune import Batch, FineTune, fine_tune, zeros_by
from leanfront.compression.training.reconstruction import Reference
from leanfront.compression.training.schedule import SCHEDULES
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.measuring_lock import Note, training
from leanfront.search.config import SearchConfig
from leanfront.search.objectives import objective
from leanfront.search.run.significance import Evidence, interval_of, resamples_of, value_of
from leanfront.search.scores import RESAMPLES
from leanfront.search.task import Task, TaskError
from leanfront.search.trial.batches import SCORING_BATCH, UNTRAINED_IMAGES, Batches
from leanfront.search.trial.in_task import (
    AsFile,
    InHalves,
    InTask,
    answer_spec,
    in_bfloat16,
    model_around,
    placed,
)
from leanfront.search.trial.sanity import best_constant, check_labels, check_loss, check_used_loss
from leanfront.search.trial.scored import Score, Scored, TrialFailed, examples_in, explained
from leanfront.search.trial.settling import Settling
from leanfront.search.trial.weights import load_weights, save_weights

LEARNED_BITS: Mapping[str, int] = {"few bits": 3, "learned": 8, "observed": 0}
"""``finetune.steps`` -> bits up to which the steps of grids are learned (benchmarks/few_bits.py)."""


def evaluate(
    network: InTask, batches: Iterable[Batch], comparison: Comparison, resamples: int | None = None
) -> tuple[Evidence, float]:
    """The task's score, as ``Scored.evidence`` has it, and the mean divergence from the teacher."""
    network.whole.eval()
    scores = Scored(network.task)
    divergence = Divergence(comparison)
    with torch.no_grad():
        for inputs, targets, teacher in batches:
            outputs, answers = network.both(inputs)
            scores.add(outputs, targets, examples_in(inputs, targets))
            divergence.add(answers, teacher)
    return scores.evidence(resamples), divergence.value()


class Scorer:
    """Scores policies of one task. The teacher (the traced model) is read and never changed.

    Whatever keeps the machine busy here waits until nobody measures latencies on it; ``note`` hears of it.
    """

    def __init__(
        self,
        traced: Traced,
        task: Task,
        config: SearchConfig,
        note: Note = lambda line: None,
        rungs: tuple[int, ...] | None = None,
        folder: Path | None = None,
    ) -> None:
        """``rungs``: images trained on at the end of each rung; None: all that the configuration has.
        ``folder``: where images are kept that memory has no room for, for all that are given it."""
        self.traced = traced
        self.task = task
        self.config = config
        self.note = note
        self.rungs = config.rung_images if rungs is None else rungs
        self.multiple = load_profile(config.hardware.profile).channel_multiple
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.resamples: int | None = None
        """Of a metric, so many in all its scores: as the uncompressed network's score decides."""
        self.uncompressed: Score | None = None
        """What ``baseline`` has found."""
        self.guessing: tuple[float, str] | None = None
        """The best score of an answer that is the same for every example, and that answer, where ``baseline``
        has found one."""
        self._untrained: dict[str, Score] = {}
        around = model_around(task)
        self._around = None if around is None else placed(around, self.device)
        self.teacher = self.in_task(placed(copy.deepcopy(traced.module), self.device).eval())
        self.batches = Batches(
            traced, self.teacher, self._around, config, self.device, note, self.rungs, folder
        )
        self.settling = Settling(traced, self.batches, config, self.in_task)

    def in_task(self, module: nn.Module) -> InTask:
        """A network as the task calls it."""
        return InTask(self.task, module, self._around)

    def baseline(self) -> Score:
        """The uncompressed model on the search split.

        Raises:
            TaskError: it scores no better than an answer that is the same for every example, a label lies
                outside its classes, the loss does not take outputs and targets, or the score is none.
        """
        check_labels(self.batches)
        check_used_loss(self.batches)
        with training(self.note):
            try:
                score = self.scored(self.teacher, 0.0, time.perf_counter())
            except TrialFailed as problem:
                raise TaskError(
                    f"the uncompressed model must have a score, but on the search split {problem}; check its"
                    " weights, the data and the score"
                ) from problem
        if (count := resamples_of(score.scores)) is not None:
            self._decide_resamples(count)
        best, said = best_constant(self.batches)
        if math.isfinite(best) and score.accuracy_ci[0] <= best:
            row = objective("accuracy")
            alike = ", which is the same" if score.accuracy == best else ""
            raise TaskError(
                f"the uncompressed model must beat guessing, but it scores {row.shown(score.accuracy)} on"
                f" {len(self.batches.search)} search examples (always {said}: {row.shown(best)}{alike});"
                " check its weights, the labels and the normalisation of the data"
            )
        self.uncompressed = score
        self.guessing = (best, said) if math.isfinite(best) else None
        return score

    def gradients(self, images: int) -> list[dict[str, Tensor]]:
        """Of the task's own loss, which the uncompressed network has on each of some batches of training:
        parameter -> gradient.

        Raises:
            TaskError: the loss takes the task's targets not, or is no number.
        """
        if self.task.training_loss is None:
            check_loss(self.batches)
        inner = self.teacher.inner
        settings = replace(self.settings(self.config.finetune.learning_rate), distillation_weight=0.0)
        lesson = self.teacher.lesson(self.batches.comparison, settings)
        inner.eval().requires_grad_(True)
        named, found = dict(inner.named_parameters()), []
        for inputs, targets, answers in self.batches.long(-(-images // self.config.finetune.batch)):
            loss = lesson(inputs, targets, answers)
            each = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            found.append({n: g for n, g in zip(named, each, strict=True) if g is not None})
        return found

    def _decide_resamples(self, count: int) -> None:
        self.resamples = count
        if count < RESAMPLES:
            name = objective("accuracy").label
            self.note(
                f"intervals of {name} are from {count} resamples, not {RESAMPLES}: it takes long to compute"
            )

    def start(self, policy: Policy) -> "CandidateTraining":
        """Compress a policy's network, not yet trained, to be scored rung by rung.

        Raises:
            TrialFailed: memory ran out.
        """
        started = time.perf_counter()
        with training(self.note), explained():
            compressed, settled = self.compressed(policy, rough=len(self.rungs) > 1)
        return CandidateTraining(self, compressed, time.perf_counter() - started, settled)

    def resumed(self, policy: Policy, checkpoint: Path, multiple: int) -> "CandidateTraining":
        """The network of a policy as its trial has left it, to inherit from. ``multiple``: that its channels
        were cut to.

        Raises:
            RuntimeError: the weights are not of this policy's network.
            TrialFailed: memory ran out.
        """
        started = time.perf_counter()
        with training(self.note), explained():
            compressed = compress(self.traced, policy, multiple)
            placed(compressed.module, self.device)
            settled = load_weights(compressed.module, checkpoint)
        return CandidateTraining(self, compressed, time.perf_counter() - started, settled)

    def without_training(self, policy: Policy) -> Score:
        """What a policy's network is worth as its file, rounded and calibrated, but not trained; scored once.

        Raises:
            TrialFailed: memory ran out.
        """
        if policy.digest not in self._untrained:
            started = time.perf_counter()
            with training(self.note), explained():
                compressed, settled = self.compressed(policy, rough=False)
                score = self.scored(self.as_run(compressed), 0.0, started)
                self._untrained[policy.digest] = replace(score, settled=settled)
        return self._untrained[policy.digest]

    def fine_tune(
        self,
        compressed: Compressed,
        batches: Iterable[Batch],
        steps: int,
        learning_rate: float,
        settings: FineTune | None = None,
        schedule: str = "one-shot",
    ) -> None:
        """Train a compressed network in its task. ``settings``: the configuration's by default, else these
        instead, their learning rate included; ``schedule``: when its zeros come."""
        settings = settings or self.settings(learning_rate)
        lesson = self.in_task(compressed.module).lesson(self.batches.comparison, settings)
        if settings.features > 0:
            layers = listened_to(compressed.network, compressed.module)
            teacher = self.teacher.inner, self.teacher.both
            lesson = with_features(lesson, compressed.module, teacher, layers, settings.features)
        masked = zeros_by(compressed.module, SCHEDULES[schedule])
        fine_tune(compressed.module, batches, steps, lesson, settings, masked)

    def as_run(self, compressed: Compressed) -> InTask:
        """The network to score: on a CPU what is exported of it, which runs there several times as fast.
        Layers of half precision run in it; where all are, so does what lies between them."""
        network, policy = compressed.network, compressed.policy
        computing = {node.name: node.layer for node in network.nodes if node.layer and node.inputs}
        halves = {node for node, layer in computing.items() if policy[layer].activation_bits == 16}
        if halves:
            folded = fold(compressed).module
            named = [str(node.target) for node in folded.graph.nodes if node.name in halves]
            return self.in_task(InHalves(folded, named if len(halves) < len(computing) else None))
        if self.device.type != "cpu":
            return self.in_task(fold(compressed).module)
        model = exported(template(self.traced), compressed).SerializeToString()
        return self.in_task(AsFile(model, self.traced, self.answer_spec))

    @cached_property
    def answer_spec(self) -> pytree.TreeSpec:
        """The containers that the network's outputs are in."""
        return answer_spec(self.traced)

    def prepared(self, policy: Policy, rough: bool = False) -> Compressed:
        """Cut and quantized, batch norms and ranges estimated, not yet trained. ``rough``: in bfloat16."""
        return self.compressed(policy, rough)[0]

    def compressed(self, policy: Policy, rough: bool) -> tuple[Compressed, dict[str, str]]:
        """The same, with what was settled of it: see ``Score``."""
        compressed = compress(self.traced, policy, self.multiple)
        return compressed, self.settling.estimate(compressed, rough)

    def untrained(self, policy: Policy, images: int, norm_images: int, range_images: int) -> Score:
        """A policy's network as it is before any training, scored on the first ``images`` search images.

        Quicker than ``start``: batch norms are estimated only where something was cut, on ``norm_images``,
        and ranges on ``range_images``; in bfloat16.

        Raises:
            TrialFailed: memory ran out.
        """
        started = time.perf_counter()
        with training(self.note), explained():
            compressed = compress(self.traced, policy, self.multiple)
            placed(compressed.module, self.device)
            with in_bfloat16(self.device):
                if policy.absent or any(layer.sparsity or layer.more for layer in policy.values()):
                    names = changed_norms(self.traced, compressed)
                    re_estimate(
                        compressed.module, self.batches.first(self.batches.calibration, norm_images), names
                    )
                calibrate(compressed.module, self.batches.first(self.batches.calibration, range_images))
                network = self.in_task(fold(compressed).module)
                return self.scored(network, 0.0, started, images, resamples=0)

    def settings(self, learning_rate: float) -> FineTune:
        """How this search fine-tunes."""
        options = self.config.finetune
        return FineTune(
            learning_rate=learning_rate,
            temperature=options.temperature,
            distillation_weight=options.distillation_weight,
            learned_bits=LEARNED_BITS[options.steps],
            features=options.features,
        )

    def scored(
        self,
        network: InTask,
        seconds_training: float,
        started: float,
        images: int | None = None,
        resamples: int | None = None,
    ) -> Score:
        """A network's score on the first ``images`` of the search images (all), since ``started``.
        ``resamples``: of a metric; none where no interval is wanted."""
        batches = self.batches.searched
        if images is not None:
            batches = itertools.islice(batches, -(-images // SCORING_BATCH))
        count = self.resamples if resamples is None else resamples
        scores, divergence = evaluate(network, batches, self.batches.comparison, count)
        accuracy = value_of(scores)
        if not math.isfinite(accuracy) or not math.isfinite(divergence):
            raise TrialFailed("the score is not a number")
        interval = interval_of(scores)
        seconds = time.perf_counter() - started
        return Score(accuracy, interval, divergence, scores, seconds_training, seconds)


class CandidateTraining:
    """One policy's network on its way up the rungs: what it has learnt stays from one to the next, and for
    the networks that inherit its weights."""

    def __init__(
        self, scorer: Scorer, compressed: Compressed, seconds: float, settled: Mapping[str, str]
    ) -> None:
        """``seconds``: that it took so far; ``settled``: see ``Score``."""
        self.compressed = compressed
        self.settled = dict(settled)
        self._scorer = scorer
        self._reference: Reference | None = None  # of the weights as they are now
        self._seconds = seconds
        self._next = 0

    def score(self, rung: int) -> Score:
        """Train up to the end of a rung that was not scored yet, and score there.

        Raises:
            TrialFailed: the loss became NaN, or memory ran out.
        """
        scorer = self._scorer
        images = scorer.rungs
        with training(scorer.note), explained():
            started = time.perf_counter()
            for number in range(self._next, rung + 1):
                self._train(number, images[number] - (images[number - 1] if number else 0))
            self._next = rung + 1
            trained = time.perf_counter()
            spent, self._seconds = self._seconds + trained - started, 0.0
            last = rung == len(images) - 1
            scored_on = UNTRAINED_IMAGES if not last and not images[rung] else None
            with in_bfloat16(scorer.device, not last):
                network = (
                    scorer.as_run(self.compressed) if last else scorer.in_task(fold(self.compressed).module)
                )
                return scorer.scored(network, spent, trained, scored_on)

    def inherit(self, policy: Policy) -> "CandidateTraining":
        """Another policy's network, made from what this one has learnt: to be scored as it is.

        Raises:
            PolicyError: the policy keeps what is gone here.
            TrialFailed: memory ran out.
        """
        scorer = self._scorer
        started = time.perf_counter()
        with training(scorer.note), explained():
            compressed = inherit(scorer.traced, self.compressed, policy, scorer.multiple)
            if self._reference is None:
                self._reference = scorer.settling.reference_of(self.compressed.module, self.compressed)
            settled = scorer.settling.estimate(compressed, True, self._reference)
        return CandidateTraining(scorer, compressed, time.perf_counter() - started, settled)

    def as_it_is(self) -> Score:
        """The score of the network as it is now, on all search images.

        Raises:
            TrialFailed: memory ran out.
        """
        scorer = self._scorer
        with training(scorer.note), explained():
            scored = time.perf_counter()
            spent, self._seconds = self._seconds, 0.0
            return scorer.scored(scorer.as_run(self.compressed), spent, scored)

    def _train(self, rung: int, images: int) -> None:
        if images == 0:
            return
        self._reference = None
        scorer, options = self._scorer, self._scorer.config.finetune
        batches = scorer.batches.short(rung)
        steps = -(-images // options.batch)
        scorer.fine_tune(self.compressed, batches, steps, options.learning_rate)
        norms = frozenset(norms_of(self.compressed.module))
        self.settled["batch_norms"] = scorer.settling.settle_norms(self.compressed, norms, trained=True)

    def keep(self, checkpoint: Path) -> None:
        """Write the weights as they are now."""
        save_weights(self.compressed.module, checkpoint, self.settled)
