"""The score of a policy: cut, calibrate, fine-tune with distillation, measure on the search split."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compression.batchnorm import re_estimate
from compression.compress import Compressed, compress
from compression.finetune import Batch, Diverged, FineTune, fine_tune
from compression.fold import fold
from compression.policy import Policy
from compression.quantize import calibrate
from compression.trace import Traced
from hw_profiles import load_profile
from latency_models.machine_lock import Note, training
from search.config import SearchConfig
from search.task import Data, Task, TaskError, as_data, check_labels, class_count

SCORING_BATCH = 250
BATCHNORM_IMAGES = 1024
KEPT_BYTES = 600_000_000
"""The short fine-tune's images are kept in memory, augmented and normalised, up to this size."""


class TrialFailed(RuntimeError):
    """A policy that could not be scored: its training diverged, or it ran out of memory."""


@dataclass(frozen=True)
class Score:
    """Accuracy (mean of the task's score, 0..1), its 95 % confidence interval, and the seconds it took."""

    accuracy: float
    accuracy_ci: tuple[float, float]
    seconds_training: float
    seconds_scoring: float


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share of n examples (Wilson 1927).

    For scores between 0 and 1 that are not all 0 or 1 it is wider than need be.
    """
    if n == 0:
        return (0.0, 1.0)
    z = 1.959964
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def evaluate(module: nn.Module, data: Data, task: Task, device: torch.device) -> Tensor:
    """The task's score of each example, (N,), in float32."""
    module.eval()
    scores = []
    with torch.no_grad():
        for start in range(0, len(data), SCORING_BATCH):
            indices = torch.arange(start, min(start + SCORING_BATCH, len(data)))
            inputs, targets = data.batch(indices, None)
            scores.append(task.score(module(_laid_out(inputs, device)), targets.to(device)).float().cpu())
    return torch.cat(scores)


class Scorer:
    """Scores policies of one task. The teacher (the traced model) is read and never changed.

    Whatever keeps the machine busy here waits until nobody measures latencies on it; ``note`` hears of it.
    """

    def __init__(
        self, traced: Traced, task: Task, config: SearchConfig, note: Note = lambda line: None
    ) -> None:
        self.traced = traced
        self.task = task
        self.config = config
        self.note = note
        self.multiple = load_profile(config.hardware.profile).channel_multiple
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train = as_data(task.train)
        self.search = as_data(task.search)
        self.teacher = _placed(copy.deepcopy(traced.module), self.device).eval()

    def baseline(self) -> Score:
        """The uncompressed model on the search split.

        Raises:
            TaskError: it scores no better than guessing, gives something else than one tensor, or a label
                lies outside its classes.
        """
        classes = class_count(self.task)
        for split in ("train", "search", "test"):
            check_labels(getattr(self.task, split), classes, split)
        with training(self.note):
            score = self._scored(self.teacher, 0.0, time.perf_counter())
        if score.accuracy_ci[0] <= 1.0 / classes:
            raise TaskError(
                f"the uncompressed model must beat guessing, but it scores {score.accuracy:.4f} on"
                f" {len(self.search)} search examples of {classes} classes (chance: {1 / classes:.4f});"
                " check its weights, the labels and the normalisation of the data"
            )
        return score

    def score(self, policy: Policy, checkpoint: Path | None = None) -> Score:
        """Compress, fine-tune shortly and score on the search split; keep the weights in ``checkpoint``.

        Raises:
            TrialFailed: the loss became NaN, or memory ran out.
        """
        with training(self.note):
            return self._score(policy, checkpoint)

    def _score(self, policy: Policy, checkpoint: Path | None) -> Score:
        started = time.perf_counter()
        options = self.config.finetune
        try:
            compressed = self.prepared(policy)
            if options.images > 0:
                steps = -(-options.images // options.batch)
                fine_tune(
                    compressed.module, self._short_batches, steps, self.task.loss,
                    self._fine_tune(options.learning_rate),
                )  # fmt: skip
                self.re_estimate(compressed)
            trained = time.perf_counter()
            score = self._scored(fold(compressed).module, trained - started, trained)
        except Diverged as error:
            raise TrialFailed(str(error)) from error
        except MemoryError as error:
            raise TrialFailed("out of memory") from error
        except RuntimeError as error:
            if "memory" in str(error).lower():
                raise TrialFailed(f"out of memory: {str(error).splitlines()[0]}") from error
            raise
        if not math.isfinite(score.accuracy):
            raise TrialFailed("the score is not a number")
        if checkpoint is not None:
            save_weights(compressed.module, checkpoint)
        return score

    def refine(
        self, policy: Policy, checkpoint: Path | None, epochs: float, learning_rate: float
    ) -> tuple[Compressed, Score]:
        """The long fine-tune of a picked policy, from the weights of its trial where they were kept."""
        with training(self.note):
            return self._refine(policy, checkpoint, epochs, learning_rate)

    def _refine(
        self, policy: Policy, checkpoint: Path | None, epochs: float, learning_rate: float
    ) -> tuple[Compressed, Score]:
        started = time.perf_counter()
        compressed = self.prepared(policy)
        if checkpoint is not None and checkpoint.exists():
            load_weights(compressed.module, checkpoint)
        batch = self.config.finetune.batch
        steps = int(epochs * len(self.train) / batch)
        if steps > 0:
            batches = self._batches(steps * batch, seed=self.config.search.seed + 1)
            fine_tune(compressed.module, batches, steps, self.task.loss, self._fine_tune(learning_rate))
            self.re_estimate(compressed)
        trained = time.perf_counter()
        return compressed, self._scored(fold(compressed).module, trained - started, trained)

    def prepared(self, policy: Policy) -> Compressed:
        """Cut and quantized, batch norms and ranges estimated, not yet trained."""
        compressed = compress(self.traced, policy, self.multiple)
        _placed(compressed.module, self.device)
        self.re_estimate(compressed)
        wanted = self.config.finetune.calibration_images
        calibrate(compressed.module, self._first(self._calibration_batches, wanted))
        return compressed

    def re_estimate(self, compressed: Compressed) -> None:
        """Batch-norm statistics of the compressed network itself."""
        re_estimate(compressed.module, self._first(self._calibration_batches, BATCHNORM_IMAGES))

    def _fine_tune(self, learning_rate: float) -> FineTune:
        options = self.config.finetune
        return FineTune(
            learning_rate=learning_rate,
            temperature=options.temperature,
            distillation_weight=options.distillation_weight,
        )

    def _scored(self, module: nn.Module, seconds_training: float, started: float) -> Score:
        scores = evaluate(module, self.search, self.task, self.device)
        accuracy = float(scores.mean())
        interval = wilson_interval(accuracy, len(scores))
        return Score(accuracy, interval, seconds_training, time.perf_counter() - started)

    @cached_property
    def _calibration_batches(self) -> list[Tensor]:
        """Training images, augmented, for batch norms and ranges.

        Without augmentation a network that has learnt them by heart shows other statistics than on new
        images: on the VGG-11 example re-estimation alone then costs 0.9 points, and 0.0 with it.
        """
        count = min(max(BATCHNORM_IMAGES, self.config.finetune.calibration_images), len(self.train))
        generator = torch.Generator().manual_seed(self.config.search.seed)
        order = torch.randperm(len(self.train), generator=generator)[:count]
        return [
            _laid_out(self.train.batch(part, generator)[0], self.device)
            for part in torch.split(order, self.config.finetune.batch)
        ]

    @staticmethod
    def _first(batches: list[Tensor], images: int) -> list[Tensor]:
        count = -(-images // len(batches[0]))
        return batches[:count]

    @cached_property
    def _short_batches(self) -> "list[Batch] | _Stream":
        """What every short fine-tune trains on: the same images, drawn and augmented once, with the
        teacher's outputs. Scores are paired then, and the teacher runs once and not once a trial."""
        images = self.config.finetune.images
        stream = _Stream(self, images, self.config.search.seed)
        if images * self.traced.example_input.numel() * 4 > KEPT_BYTES:
            return stream
        return list(stream)

    def _batches(self, images: int, seed: int) -> Iterator[Batch]:
        """Augmented training batches with the teacher's outputs, ``images`` in all."""
        generator = torch.Generator().manual_seed(seed)
        size = min(self.config.finetune.batch, len(self.train))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(-(-images // size)):
            if len(order) < size:
                order = torch.cat((order, torch.randperm(len(self.train), generator=generator)))
            part, order = order[:size], order[size:]
            inputs, targets = self.train.batch(part, generator)
            inputs = _laid_out(inputs, self.device)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                teacher = self.teacher(inputs).float()
            yield inputs, targets.to(self.device), teacher


@dataclass(frozen=True)
class _Stream:
    """The same batches each time it is iterated."""

    scorer: Scorer
    images: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        return self.scorer._batches(self.images, self.seed)


def _laid_out(inputs: Tensor, device: torch.device) -> Tensor:
    """On the device, channels last where there are images: convolutions train 1.6 times as fast on a CPU."""
    inputs = inputs.to(device)
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors, beside and renamed."""
    beside = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, beside)
    beside.replace(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read what ``save_weights`` wrote into a module made by the same policy."""
    module.load_state_dict(load_file(path))
