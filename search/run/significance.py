"""Whether two networks that were scored on the same examples differ by more than noise."""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.files import replace_file

Scores = NDArray[np.float32]
"""A score between 0 and 1 of each example, (N,); of a classifier 1 where it is right, else 0."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """A score of a whole split, and what it is on resamples of the split's examples (Efron 1979), which are
    the same for all networks that were scored on them: so the difference of two networks is known resample by
    resample, and nothing else of them needs to be kept.

    value: on all ``examples``; values: (B,), NaN where the score is not defined. More is better: a score of
    which less is better comes with its sign changed.
    """

    value: float
    values: NDArray[np.float64]
    examples: int


Evidence = Scores | Resampled
"""What is known of a network on the examples that it was scored on."""

Known = tuple[float, float, float]
"""A share and the ends of its confidence interval."""

Z = 1.959964
"""Quantile of the normal distribution for intervals of 95 %."""
_SHARES = 6
"""Of examples that are told differently: so many are tried."""
_DEVIATIONS = 7.0
"""Standard deviations beyond which a count does not occur."""
_FINEST = 0.01
"""Of an example, to which a bound is found."""


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share of n examples (Wilson 1927).

    For scores between 0 and 1 that are not all 0 or 1 it is wider than need be.
    """
    if n == 0:
        return (0.0, 1.0)
    centre = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(accuracy * (1 - accuracy) / n + Z * Z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def value_of(evidence: Evidence) -> float:
    """The score."""
    return evidence.value if isinstance(evidence, Resampled) else float(evidence.mean())


def examples_of(evidence: Evidence) -> int:
    """On how many it was scored."""
    return evidence.examples if isinstance(evidence, Resampled) else len(evidence)


def resamples_of(evidence: Evidence) -> int | None:
    """How many resamples were drawn; None of a score of each example."""
    return len(evidence.values) if isinstance(evidence, Resampled) else None


def interval_of(evidence: Evidence) -> tuple[float, float]:
    """95 % confidence interval of a score: Wilson's of examples, percentiles of resamples."""
    if isinstance(evidence, Resampled):
        return _percentiles(evidence.values, evidence.value)
    return wilson_interval(value_of(evidence), len(evidence))


def known_at(value: float, like: Evidence) -> Known:
    """Another network's score and interval, as far as they are known from one that was scored on as many
    examples."""
    if not isinstance(like, Resampled):
        return (value, *wilson_interval(value, len(like)))
    low, high = interval_of(like)
    return value, value + low - like.value, value + high - like.value


def comparable(one: Evidence | None, other: Evidence | None) -> bool:
    """Whether both are known, of the same examples."""
    if one is None or other is None or isinstance(one, Resampled) != isinstance(other, Resampled):
        return False
    return 0 < examples_of(one) == examples_of(other)


def paired_interval(one: Evidence, other: Evidence) -> tuple[float, float]:
    """95 % confidence interval of the difference of two scores, one - other, on the same examples.

    Right or wrong: the square-and-add interval from Wilson's, method 10 of Newcombe 1998 (Improved confidence
    intervals for the difference between binomial proportions based on paired data, Statistics in Medicine
    17, 2635-2650). Scores between 0 and 1: mean and standard error of the differences. Scores of whole
    splits: percentiles of the differences on the same resamples.

    Raises:
        ValueError: they are not of the same examples.
    """
    _check_same_examples(one, other)
    if isinstance(one, Resampled) or isinstance(other, Resampled):
        return _percentiles(*_differences(one, other))
    if not (_binary(one) and _binary(other)):
        differences = one.astype(float) - other
        half = Z * float(differences.std(ddof=1)) / math.sqrt(len(one)) if len(one) > 1 else 1.0
        return float(differences.mean()) - half, float(differences.mean()) + half
    n = len(one)
    first, second = one > 0.5, other > 0.5
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    product = float(both * neither - only_first * only_second)
    if product > 0:  # Newcombe's correction for continuity
        product = max(product - n / 2, 0.0)
    sides = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    shares = (both + only_first) / n, (both + only_second) / n
    first_known, second_known = ((share, *wilson_interval(share, n)) for share in shares)
    return _square_and_add(first_known, second_known, product / math.sqrt(sides) if sides else 0.0)


def most_lost(one: Evidence, other: Evidence, level: float) -> float:
    """What the difference of two scores on the same examples, one - other, does not exceed but with a
    probability of at most ``level``.

    Right or wrong: exact, also where few differ and ``level`` is far out in a tail. The difference follows
    from how many of the examples are told differently and how many of these only ``one`` has right; the first
    is bounded with a tenth of the level (Clopper and Pearson 1934), the worst of what it then may be decides
    with the rest (Berger and Boos 1994, P values maximized over a confidence set for the nuisance parameter,
    Journal of the American Statistical Association 89, 1012-1016). Scores between 0 and 1: Student's t of the
    differences. Scores of whole splits: the normal distribution with the deviation of the resamples.

    Raises:
        ValueError: they are not of the same examples.
    """
    _check_same_examples(one, other)
    if isinstance(one, Resampled) or isinstance(other, Resampled):
        differences, difference = _differences(one, other)
        return difference + NormalDist().inv_cdf(1 - level) * float(np.nanstd(differences, ddof=1))
    n = len(one)
    if not (_binary(one) and _binary(other)):
        from scipy.special import stdtrit

        differences = one.astype(float) - other
        error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return float(differences.mean()) + float(stdtrit(n - 1, 1 - level)) * error
    lost, won = int((one > other).sum()), int((other > one).sum())
    return _most_lost_of_shares(lost, won, n, level)


@lru_cache(maxsize=4096)
def _most_lost_of_shares(lost: int, won: int, n: int, level: float) -> float:
    """Of n pairs of which ``lost`` are right in the first alone and ``won`` in the second alone."""
    from scipy.special import betaincinv

    apart = lost + won
    set_aside = level / 10
    most_apart = float(betaincinv(apart + 1, n - apart, 1 - set_aside)) if apart < n else 1.0
    low, high = (lost - won) / n, most_apart
    while high - low > _FINEST / n:
        middle = (low + high) / 2
        shares = np.linspace(max(abs(middle), most_apart / _SHARES), most_apart, _SHARES)
        likely = max(_chance_of_at_most(lost - won, n, share, middle) for share in shares)
        low, high = (middle, high) if likely + set_aside > level else (low, middle)
    return high


def _chance_of_at_most(difference: int, n: int, apart: float, lost: float) -> float:
    """The chance that among n pairs, a share ``apart`` of which differs and which lose ``lost`` on average,
    no more than ``difference`` are lost."""
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    spread = _DEVIATIONS * math.sqrt(n * apart * (1 - apart)) + _DEVIATIONS**2
    counts = np.arange(max(0, int(n * apart - spread)), min(n, int(n * apart + spread)) + 1)
    ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    chances = np.exp(ways + xlogy(counts, apart) + xlog1py(n - counts, -apart))
    most = np.minimum((counts + difference) // 2, counts)
    told = np.where(most < 0, 0.0, bdtr(np.maximum(most, 0), counts, (apart + lost) / (2 * apart)))
    return float((chances * told).sum())


def told_apart(one: Evidence, other: Evidence, least: float) -> float:
    """The difference of scores that a split tells: half of a paired 95 % interval, as two networks let expect
    it.

    Right or wrong: Z * sqrt(q / n), the interval of McNemar's difference where as many are won as are lost, q
    being the share of the n examples that the two tell differently, and never below ``least``, since a
    network that loses so much tells so many differently. Other scores: half of ``paired_interval``.
    """
    if (
        not isinstance(one, Resampled)
        and not isinstance(other, Resampled)
        and _binary(one)
        and _binary(other)
    ):
        _check_same_examples(one, other)
        return Z * math.sqrt(max(float((one != other).mean()), least) / len(one))
    low, high = paired_interval(one, other)
    return (high - low) / 2


def unpaired_interval(one: Known, other: Known) -> tuple[float, float]:
    """95 % confidence interval of the difference of two shares of which no more is known than their own
    intervals (Newcombe 1998, Interval estimation for the difference between independent proportions,
    Statistics in Medicine 17, 873-890, method 10): wider than the paired one of two networks that err on the
    same examples."""
    return _square_and_add(one, other, 0.0)


def save_scores(path: Path, scores: Mapping[int, Evidence]) -> None:
    """Write the scores at the end of each rung, images trained on -> scores, beside and renamed."""
    data = io.BytesIO()
    arrays = {str(images): _packed(evidence) for images, evidence in scores.items()}
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    replace_file(path, data.getvalue())


def load_scores(path: Path, images: int | None = None) -> Evidence | None:
    """The scores at the end of one rung, the last if none is named; None where they were not kept."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return _unpacked(kept[str(images) if images is not None else kept.files[-1]])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return None


def _packed(evidence: Evidence) -> NDArray[np.generic]:
    """As it is stored: float64 says that it is of a whole split, the examples and the value before the
    others."""
    if isinstance(evidence, Resampled):
        return np.concatenate([[float(evidence.examples), evidence.value], evidence.values])
    return evidence.astype(bool if _binary(evidence) else np.float16)


def _unpacked(stored: NDArray[np.generic]) -> Evidence:
    if stored.dtype == np.float64:
        return Resampled(float(stored[1]), np.asarray(stored[2:], dtype=np.float64), int(stored[0]))
    return np.asarray(stored, dtype=np.float32)


def _differences(one: Evidence, other: Evidence) -> tuple[NDArray[np.float64], float]:
    """Resample by resample, of as many as both have, and on all examples."""
    assert isinstance(one, Resampled)
    assert isinstance(other, Resampled)
    count = min(len(one.values), len(other.values))
    return one.values[:count] - other.values[:count], one.value - other.value


def _percentiles(values: NDArray[np.float64], value: float) -> tuple[float, float]:
    """The middle 95 % of resampled values; none where they are not numbers, and never without the value."""
    if not np.isfinite(values).any():
        return -math.inf, math.inf
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return min(float(low), value), max(float(high), value)


def _check_same_examples(one: Evidence, other: Evidence) -> None:
    if not comparable(one, other):
        counts = " and ".join(str(examples_of(each)) for each in (one, other))
        raise ValueError(f"paired scores are of the same examples, not of {counts}")


def _square_and_add(one: Known, other: Known, correlation: float) -> tuple[float, float]:
    share, low, high = one
    other_share, other_low, other_high = other
    down, up = share - low, high - share
    other_down, other_up = other_share - other_low, other_high - other_share
    below = down**2 - 2 * correlation * down * other_up + other_up**2
    above = up**2 - 2 * correlation * up * other_down + other_down**2
    difference = share - other_share
    return difference - math.sqrt(max(0.0, below)), difference + math.sqrt(max(0.0, above))


def _binary(scores: Scores) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())
