"""Which trials go on to the next rung: those that no other dominates by more than noise."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanfront.search.objectives import oriented
from leanfront.search.run.significance import (
    Evidence,
    comparable,
    known_at,
    paired_interval,
    unpaired_interval,
)

HOPELESS = "too far below the score that counts"
"""Why a trial is given up whose policy must not be proposed again."""
_ONCE = "too far below the accuracy that counts"  # in runs of earlier versions
IDLE = "promises little beside what it promised"
"""Why a trial does not go on when its scores say that it will win much less than was expected of it."""
HARMLESS = 0.02
"""Untrained divergence from the teacher, in nats, below which training has next to nothing to win back."""
UNTRAINED = "needs no training"
"""Why a trial is complete after the untrained rung."""
INTERRUPTED = "its worker was stopped; run again"
UNKNOWN = (INTERRUPTED, "its worker was stopped, and with it went the weights it was made from")
"""Why a trial ended of whose policy nothing is known: it may come again. The second of version 0.1."""


@dataclass(frozen=True)
class Standing:
    """A trial at the end of a rung: its costs that are objectives (less is better) and its scores there."""

    trial: int
    costs: tuple[float, ...]
    accuracy: float
    divergence: float


def standings(
    results: Iterable[tuple[int, Mapping[str, Any]]], images: int, costs: Sequence[str]
) -> list[Standing]:
    """Where trials stood after training on so many images; ``results``: number and result of each trial."""
    return [
        Standing(
            number,
            oriented(result, costs),
            float(reached["accuracy"]),
            float(reached["divergence"]),
        )
        for number, result in results
        for reached in result.get("rungs", ())
        if reached["images"] == images
    ]


def dominator(
    own: Standing,
    scores: Evidence,
    others: Iterable[Standing],
    scores_of: Callable[[int], Evidence | None],
    trained: bool,
) -> int | None:
    """The trial that keeps ``own`` from the next rung, or None.

    It costs nowhere more. After training (``trained``) it is more accurate by more than the noise of the
    paired difference; before any, where accuracies say little of what training will win back, it is better in
    divergence from the teacher and in accuracy no worse.

    Args:
        own: where the trial in question stands.
        scores: its score of each example.
        others: those that reached the same rung.
        scores_of: the scores of another trial on the same examples; None where they were not kept, then the
            difference is taken for unpaired, which is noisier.
        trained: whether the rung has trained.
    """
    near = [
        other
        for other in others
        if other.trial != own.trial
        and other.accuracy >= own.accuracy
        and all(theirs <= mine for theirs, mine in zip(other.costs, own.costs, strict=True))
    ]
    for other in sorted(near, key=lambda other: -other.accuracy):
        if not trained:
            if other.divergence < own.divergence:
                return other.trial
            continue
        kept = scores_of(other.trial)
        if kept is not None and comparable(kept, scores):
            low, _ = paired_interval(kept, scores)
        else:
            theirs, mine = (known_at(value, scores) for value in (other.accuracy, own.accuracy))
            low, _ = unpaired_interval(theirs, mine)
        if low > 0:
            return other.trial
    return None


def was_hopeless(reason: object) -> bool:
    """Whether a trial ended for that reason, as its run has it."""
    return str(reason).endswith((HOPELESS, _ONCE))
