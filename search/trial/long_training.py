"""The long fine-tune of a network that was picked."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from leanfront.compression.policy import Policy
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.masks import masks
from leanfront.compression.training.batch_norms import norms_of
from leanfront.compression.training.finetune import Batch, Diverged
from leanfront.latency_models.benchmark.measuring_lock import training
from leanfront.search.objectives import quantity
from leanfront.search.trial.scored import Score
from leanfront.search.trial.scorer import Scorer
from leanfront.search.trial.weights import load_weights, state_of

MANY = 0.5
"""Share of zeros in a layer from which on they come gradually where nobody says how (docs/sparsity.md)."""
ROUNDS_IN_VAIN = 2
"""So many rounds of the long fine-tune that bring nothing end it."""


def refine(
    scorer: Scorer,
    policy: Policy,
    checkpoint: Path | None,
    epochs: float,
    learning_rate: float,
    schedule: str | None = None,
) -> tuple[Compressed, Score]:
    """The long fine-tune of a picked policy, from the weights of its trial where they were kept.

    It goes in rounds (``rounds``), each of which ends with a learning rate of 0, so that scores after
    them can be compared. The network that scores best on the search split is kept, the start among them;
    after ROUNDS_IN_VAIN rounds in a row that bring nothing it ends.

    Zeros that come by another ``schedule`` than "one-shot" come in one round of all epochs, from the
    weights of the uncompressed model: those that the trial has hidden have learnt nothing. None:
    gradually where a layer has more than half of its weights 0.
    """
    with training(scorer.note):
        started = time.perf_counter()
        compressed, settled = scorer.compressed(policy, rough=False)
        shares = [mask.share for own in masks(compressed.module).values() for mask in own]
        schedule = schedule or ("gradual" if max(shares, default=0.0) > MANY else "one-shot")
        anew = state_of(compressed.module) if schedule != "one-shot" and shares else None
        if checkpoint is not None and checkpoint.exists():
            settled = load_weights(compressed.module, checkpoint)
        batch, size = scorer.config.finetune.batch, len(scorer.batches.train)
        best = replace(_scored_now(scorer, compressed, started), settled=settled)
        steps = [int(each * size / batch) for each in rounds(epochs, scorer.config.finetune.images / size)]
        batches = iter(scorer.batches.long(sum(steps)))
        kept, done, in_vain = state_of(compressed.module), 0, 0
        if anew is not None and any(steps):
            steps = [sum(steps)]
            compressed.module.load_state_dict(anew)
        for count in filter(None, steps):
            score = _round(scorer, compressed, batches, count, learning_rate, best, started, schedule)
            done += count
            better = score is not None and score.accuracy > best.accuracy
            in_vain = 0 if better else in_vain + 1
            if score is not None and better:
                best, kept = score, state_of(compressed.module)
            else:
                compressed.module.load_state_dict(kept)
            said = "diverged" if score is None else quantity("accuracy", score.accuracy)
            shown = quantity("accuracy", best.accuracy)
            scorer.note(f"after {done * batch / size:.3g} epochs: {said}, the best {shown}")
            if in_vain == ROUNDS_IN_VAIN:
                break
        return compressed, best


def _round(
    scorer: Scorer,
    compressed: Compressed,
    batches: Iterable[Batch],
    steps: int,
    learning_rate: float,
    before: Score,
    started: float,
    schedule: str,
) -> Score | None:
    """Train on, settle the batch norms, score; None where the loss became infinite. ``before``: the score
    of what it goes on from."""
    try:
        scorer.fine_tune(compressed, batches, steps, learning_rate, schedule=schedule)
    except Diverged:
        return None
    norms = frozenset(norms_of(compressed.module))
    settled = {**before.settled, "batch_norms": scorer.settling.settle_norms(compressed, norms, trained=True)}
    return replace(_scored_now(scorer, compressed, started), settled=settled)


def _scored_now(scorer: Scorer, compressed: Compressed, started: float) -> Score:
    trained = time.perf_counter()
    return scorer.scored(scorer.as_run(compressed), trained - started, trained)


def rounds(epochs: float, least: float) -> list[float]:
    """The epochs of each round of a long fine-tune: one, then twice as many as before, the last one the rest,
    which is never shorter than the round before. ``least``: of the first, where that is more than one."""
    found, size = [], max(1.0, least)
    while epochs >= 3 * size:
        found.append(size)
        epochs, size = epochs - size, 2 * size
    return [*found, epochs]
