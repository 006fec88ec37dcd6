"""How often is a promised drop broken? Prints the table of docs/search.md.

    python -m benchmarks.promises [--picks 200] [--confidence 0.9] [--max-drop 0.01]

Networks with drops that are known are scored on a search split that is drawn; the fastest that keeps the
limit is picked from their front: by what the split showed, and with a confidence. A promise is broken where
the true drop is beyond the limit. Networks err on the same examples, as compressed copies of one network do.
One core, a minute.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from leanfront.search.pick.choose import Wish, choose
from leanfront.search.pick.promise import Promise
from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import RunError, TrialRow
from leanfront.search.run.significance import Scores

BASELINE = 0.90
OWN = 0.03
"""Share of what decides about an example that is a network's own; the rest all networks have in common."""
OWN_OF_COMPRESSED = 0.7
"""Share of that which is one compressed network's own, and not all compressed networks'."""


@dataclass(frozen=True)
class Setting:
    """Networks, the slowest first, with the drops that they really have, and on how many examples they are
    scored."""

    name: str
    examples: int
    drops: tuple[float, ...]


@dataclass(frozen=True)
class Kept:
    """Of many picks: the share that broke the promise, the share in which a network was picked at all, and
    the mean of the true drops of these."""

    broken: float
    picked: float
    drop: float


def ramp(low: float, high: float, count: int) -> tuple[float, ...]:
    """Evenly from the lowest drop to the highest."""
    return tuple(np.linspace(low, high, count).tolist())


SETTINGS = (
    Setting("around the limit", 500, ramp(-0.005, 0.035, 20)),
    Setting("around the limit", 5000, ramp(-0.005, 0.035, 20)),
    Setting("all just beyond", 500, ramp(0.0101, 0.012, 20)),
    Setting("all just beyond", 5000, ramp(0.0101, 0.012, 20)),
    Setting("the front of 200, all just beyond", 5000, ramp(0.0101, 0.012, 200)),
)


def drawn(setting: Setting, rng: np.random.Generator) -> tuple[Scores, list[Scores]]:
    """Which examples the uncompressed network has right, and which each of the others; float32 (N,) each.

    An example is right where a normal variable, correlated between the networks, is below the quantile of the
    accuracy: so the true drops are those of the setting.
    """
    n = setting.examples
    common = np.sqrt(1 - OWN) * rng.standard_normal(n)
    compressed = np.sqrt(1 - OWN_OF_COMPRESSED) * rng.standard_normal(n)

    def right(accuracy: float, own: NDArray[np.float64]) -> Scores:
        return (common + np.sqrt(OWN) * own < NormalDist().inv_cdf(accuracy)).astype(np.float32)

    uncompressed = right(BASELINE, rng.standard_normal(n))
    others = [
        right(BASELINE - drop, compressed + np.sqrt(OWN_OF_COMPRESSED) * rng.standard_normal(n))
        for drop in setting.drops
    ]
    return uncompressed, others


def picks(
    setting: Setting, max_drop: float, confidence: float | None, count: int, considered: int | None = None
) -> Kept:
    """The picks of so many searches, each with a split of its own. ``considered``: how many networks the
    bound is told of, all by default."""
    rng = np.random.default_rng(0)
    wish = Wish(max_drop=max_drop, confidence=confidence)
    chosen = []
    for _ in range(count):
        uncompressed, others = drawn(setting, rng)
        rows = [
            TrialRow(trial, "complete", accuracy=float(scores.mean()), latency_ms=float(len(others) - trial))
            for trial, scores in enumerate(others)
        ]
        promise = None
        if confidence is not None:
            kept = partial(_scores_of, others)
            promise = Promise(
                confidence, uncompressed, kept, len(others) if considered is None else considered
            )
        front = front_rows(rows, ("accuracy", "latency_ms"))
        try:
            chosen.append(choose(front, float(uncompressed.mean()), wish, promise).trial)
        except RunError:
            continue
    broken = sum(setting.drops[trial] > max_drop for trial in chosen)
    drop = float(np.mean([setting.drops[trial] for trial in chosen])) if chosen else float("nan")
    return Kept(broken / count, len(chosen) / count, drop)


def _scores_of(others: Sequence[Scores], row: TrialRow) -> Scores:
    return others[row.trial]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--picks", type=int, default=200)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--max-drop", type=float, default=0.01)
    options = parser.parse_args()
    print(
        "| networks | examples | told differently | by the split: broken | mean drop"
        " | with confidence: broken | picked | mean drop |"
    )
    print("|---" * 8 + "|")
    for setting in SETTINGS:
        uncompressed, others = drawn(setting, np.random.default_rng(0))
        apart = np.mean([(scores != uncompressed).mean() for scores in others])
        plain, sure = (
            picks(setting, options.max_drop, confidence, options.picks)
            for confidence in (None, options.confidence)
        )
        print(
            f"| {len(others)} {setting.name} | {setting.examples} | {apart:.1%} | {plain.broken:.1%} |"
            f" {plain.drop:.4f} | {sure.broken:.1%} | {sure.picked:.1%} | {sure.drop:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
