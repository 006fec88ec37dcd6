"""Whether two networks that were scored on the same examples differ by more than noise."""

import io
import math
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.files import replace_file

Scores = NDArray[np.float32]
"""A score between 0 and 1 of each example, (N,); of a classifier 1 where it is right, else 0."""

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


def paired_interval(one: Scores, other: Scores) -> tuple[float, float]:
    """95 % confidence interval of mean(one) - mean(other), both scored on the same examples, (N,) each.

    Right or wrong: the square-and-add interval from Wilson's, method 10 of Newcombe 1998 (Improved confidence
    intervals for the difference between binomial proportions based on paired data, Statistics in Medicine
    17, 2635-2650). Scores between 0 and 1: mean and standard error of the differences.

    Raises:
        ValueError: they are not of the same examples.
    """
    _check_same_examples(one, other)
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


def most_lost(one: Scores, other: Scores, level: float) -> float:
    """What mean(one) - mean(other) does not exceed but with a probability of at most ``level``; both scored
    on the same examples, (N,) each.

    Right or wrong: exact, also where few differ and ``level`` is far out in a tail. The difference follows
    from how many of the examples are told differently and how many of these only ``one`` has right; the first
    is bounded with a tenth of the level (Clopper and Pearson 1934), the worst of what it then may be decides
    with the rest (Berger and Boos 1994, P values maximized over a confidence set for the nuisance parameter,
    Journal of the American Statistical Association 89, 1012-1016). Scores between 0 and 1: Student's t of the
    differences.

    Raises:
        ValueError: they are not of the same examples.
    """
    _check_same_examples(one, other)
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


def unpaired_interval(one: Known, other: Known) -> tuple[float, float]:
    """95 % confidence interval of the difference of two shares of which no more is known than their own
    intervals (Newcombe 1998, Interval estimation for the difference between independent proportions,
    Statistics in Medicine 17, 873-890, method 10): wider than the paired one of two networks that err on the
    same examples."""
    return _square_and_add(one, other, 0.0)


def save_scores(path: Path, scores: Mapping[int, Scores]) -> None:
    """Write the scores at the end of each rung, images trained on -> scores, beside and renamed."""
    data = io.BytesIO()
    arrays = {
        str(images): values.astype(bool if _binary(values) else np.float16)
        for images, values in scores.items()
    }
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    replace_file(path, data.getvalue())


def load_scores(path: Path, images: int | None = None) -> Scores | None:
    """The scores at the end of one rung, the last if none is named; None where they were not kept."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return np.asarray(kept[str(images) if images is not None else kept.files[-1]], dtype=np.float32)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return None


def _check_same_examples(one: Scores, other: Scores) -> None:
    if one.shape != other.shape or not len(one):
        raise ValueError(f"paired scores are of the same examples, not of {one.shape} and {other.shape}")


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
