"""One policy's network while it is trained: what it has learnt stays from rung to rung, and for its heirs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import nn

from leanfront.compression.export.deployed_form import fold
from leanfront.compression.policy import Policy
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.training.finetune import Diverged, fine_tune
from leanfront.compression.training.weight_inheritance import inherit
from leanfront.latency_models.benchmark.measuring_lock import training
from leanfront.search.run.disk import when_there_is_space

if TYPE_CHECKING:
    from leanfront.search.trial.scorer import Score, Scorer

UNTRAINED_IMAGES = 1000
"""Search images that a network is scored on before any training: its divergence needs few."""


class TrialFailed(RuntimeError):
    """A policy that could not be scored: its training diverged, or it ran out of memory."""


class Climb:
    """One policy's network on its way up the rungs; what it has learnt stays from one to the next."""

    def __init__(self, scorer: "Scorer", compressed: Compressed, seconds: float) -> None:
        self.compressed = compressed
        self._scorer = scorer
        self._seconds = seconds
        self._next = 0

    def score(self, rung: int) -> "Score":
        """Train up to the end of a rung that was not scored yet, and score there.

        Raises:
            TrialFailed: the loss became NaN, or memory ran out.
        """
        scorer = self._scorer
        images = scorer.config.rung_images
        with training(scorer.note), explained():
            started = time.perf_counter()
            for number in range(self._next, rung + 1):
                self._train(number, images[number] - (images[number - 1] if number else 0))
            self._next = rung + 1
            trained = time.perf_counter()
            spent, self._seconds = self._seconds + trained - started, 0.0
            last = rung == len(images) - 1
            scored_on = UNTRAINED_IMAGES if not last and not images[rung] else None
            with scorer.rough(not last):
                network = scorer.as_run(self.compressed) if last else fold(self.compressed).module
                return scorer.scored(network, spent, trained, scored_on)

    def heir(self, policy: Policy) -> "Climb":
        """Another policy's network, made from what this one has learnt: to be scored as it is.

        Raises:
            PolicyError: the policy keeps what is gone here.
            TrialFailed: memory ran out.
        """
        scorer = self._scorer
        started = time.perf_counter()
        with training(scorer.note), explained():
            compressed = inherit(scorer.traced, self.compressed, policy, scorer.multiple)
            scorer.estimate(compressed, rough=True)
        return Climb(scorer, compressed, time.perf_counter() - started)

    def as_it_is(self) -> "Score":
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
        scorer, options = self._scorer, self._scorer.config.finetune
        batches = scorer.short_batches(rung)
        steps = -(-images // options.batch)
        fine_tune(
            self.compressed.module, batches, steps, scorer.task.loss, scorer.settings(options.learning_rate)
        )
        scorer.re_estimate(self.compressed)

    def keep(self, checkpoint: Path) -> None:
        """Write the weights as they are now."""
        save_weights(self.compressed.module, checkpoint)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a policy may suffer into TrialFailed; a bug stays what it is."""
    try:
        yield
    except Diverged as error:
        raise TrialFailed(str(error)) from error
    except MemoryError as error:
        raise TrialFailed("out of memory") from error
    except TrialFailed:
        raise
    except RuntimeError as error:
        if "memory" in str(error).lower():
            raise TrialFailed(f"out of memory: {str(error).splitlines()[0]}") from error
        raise


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state as safetensors, beside and renamed. A full disk is waited for."""
    beside = path.with_suffix(".partial")
    state = {name: value.contiguous() for name, value in module.state_dict().items()}

    def write() -> None:
        try:
            save_file(state, beside)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    when_there_is_space(write)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read what ``save_weights`` wrote into a module made by the same policy."""
    module.load_state_dict(load_file(path))
