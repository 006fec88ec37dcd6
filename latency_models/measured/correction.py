"""Correct sums of kernel times by whole networks that were measured.

The sum of a network's kernels, each timed alone, is close to the truth where everything stays in the near
cache. What it misses is fitted on measured policies of the very network: weights that have to come from a
farther cache, a share per kind of kernel, and what single kernels take more or less in their place. The fit
is a ridge regression of relative errors towards the plain sum, so that with few samples it stays there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.keys import KINDS

PRIOR: Mapping[str, float] = {"call": 1.0, **dict.fromkeys(KINDS, 1.0)}
"""Weights before any sample: the plain sum. Other features start at 0."""

FREEDOM: Mapping[str, float] = {"call": 0.1, "nodes": 0.3, "constant_bytes": 0.15}
"""How far a weight may move, as a share of the latency, at the same price; 1 for other features."""
RATES: Mapping[str, float] = {"far_bytes": 1e-7}
"""Of features that most samples have little or nothing of, what their weight may be instead, at the same
price: a nanosecond for 10 bytes is as slow as memory is. Judged by samples that have a little of it, it could
be anything, and networks that have much, the uncompressed one first, would be priced by that."""

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FOLDS = 5
LEAST_SAMPLES = 10
"""With fewer measured networks nothing is fitted."""


@dataclass(frozen=True)
class Sample:
    """A measured network: its features (name -> value, those named "..._ms" in ms) and its latency."""

    features: Mapping[str, float]
    measured_ms: float


@dataclass(frozen=True)
class Accuracy:
    """How predictions compare with measurements: mean absolute relative error and share within 10 % as
    fractions, and Spearman's rank correlation."""

    n: int
    mape: float
    within_10_percent: float
    spearman: float


@dataclass(frozen=True)
class Correction:
    """Feature name -> weight; a feature without a weight counts as in PRIOR. ``accuracy`` is of samples that
    the fit had not seen (k-fold), None without samples."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict(PRIOR))
    samples: int = 0
    accuracy: Accuracy | None = None

    def predict(self, features: Mapping[str, float]) -> float:
        """Latency of a network, ms."""
        return sum(value * self.weight(name) for name, value in features.items())

    def weight(self, name: str) -> float:
        """The weight of a feature."""
        return self.weights.get(name, PRIOR.get(name, 0.0))

    def to_json(self) -> str:
        """JSON that ``from_json`` reads back."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Correction":
        """Read what ``to_json`` wrote.

        Raises:
            TableError: it is something else.
        """
        try:
            raw: Any = json.loads(text)
            accuracy = None if raw["accuracy"] is None else Accuracy(**raw["accuracy"])
            weights = {str(name): float(weight) for name, weight in raw["weights"].items()}
            return Correction(weights, int(raw["samples"]), accuracy)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TableError(f"this is no correction of a latency table: {error}") from error


def far_share(stored_bytes: ArrayLike, near_cache_bytes: float) -> NDArray[np.float64]:
    """Share of the constants that a network with so many of them reads from beyond the near cache.

    Networks run in the same order again and again, the worst case of a least-recently-used cache: once the
    working set is larger than the cache nothing of it is found there. Tensors take room, too, so it begins at
    half the size.
    """
    begin, end = 0.45 * near_cache_bytes, 1.25 * near_cache_bytes
    return np.clip((np.asarray(stored_bytes, dtype=np.float64) - begin) / (end - begin), 0.0, 1.0)


def far_bytes(
    stored_bytes: NDArray[np.float64] | float,
    far_alone_bytes: NDArray[np.float64] | float,
    near_cache_bytes: float,
) -> NDArray[np.float64]:
    """Constants of networks that come from there, but did not when kernels were timed alone."""
    return np.maximum(0.0, far_share(stored_bytes, near_cache_bytes) * stored_bytes - far_alone_bytes)


def accuracy(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> Accuracy:
    """Compare predictions with measurements of the same networks; at least two."""
    predicted, measured = np.asarray(predicted_ms), np.asarray(measured_ms)
    error = np.abs(predicted / measured - 1.0)
    return Accuracy(
        n=len(measured),
        mape=float(error.mean()),
        within_10_percent=float((error <= 0.10).mean()),
        spearman=spearman(predicted, measured),
    )


def spearman(a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64]) -> float:
    """Rank correlation; ties get their mean rank. 0 where one of them is constant."""
    first, second = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2.0)[inverse], dtype=np.float64)


def fit(samples: Sequence[Sample]) -> Correction:
    """The correction that predicts the samples best without believing them too much.

    The strength of the ridge is the one with the least error on left-out samples; that error is reported.

    Raises:
        TableError: fewer than ten samples, or a measured time that is not above 0.
    """
    if len(samples) < LEAST_SAMPLES:
        raise TableError(f"a correction needs at least {LEAST_SAMPLES} measured networks, not {len(samples)}")
    if bad := [s.measured_ms for s in samples if not (np.isfinite(s.measured_ms) and s.measured_ms > 0)]:
        raise TableError(f"a measured latency must be above 0, not {bad[0]} ms")
    names = sorted({name for sample in samples for name in sample.features})
    measured = np.array([sample.measured_ms for sample in samples])
    rows = np.array([[s.features.get(name, 0.0) for name in names] for s in samples]) / measured[:, None]
    prior = np.array([PRIOR.get(name, 0.0) for name in names])
    size = np.sqrt((rows**2).mean(axis=0)) + 1e-12
    freedom = np.array(
        [RATES.get(name, FREEDOM.get(name, 1.0) / scale) for name, scale in zip(names, size, strict=True)]
    )
    order = np.random.default_rng(0).permutation(len(samples))
    folds = np.array_split(order, FOLDS)
    left_out = {}
    for strength in STRENGTHS:
        predicted = np.empty(len(samples))
        for fold in folds:
            seen = np.setdiff1d(order, fold)
            weights = _ridge(rows[seen], prior, freedom, strength)
            predicted[fold] = rows[fold] @ weights
        left_out[strength] = predicted
    best = min(STRENGTHS, key=lambda strength: float(np.abs(left_out[strength] - 1.0).mean()))
    weights = _ridge(rows, prior, freedom, best)
    return Correction(
        weights={name: float(weight) for name, weight in zip(names, weights, strict=True)},
        samples=len(samples),
        accuracy=accuracy((left_out[best] * measured).tolist(), measured.tolist()),
    )


def _ridge(
    rows: NDArray[np.float64], prior: NDArray[np.float64], freedom: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """Least squares of rows @ weights = 1 with (weights - prior) / freedom kept small."""
    scaled = rows * freedom
    gap = 1.0 - rows @ prior
    system = scaled.T @ scaled + strength * len(rows) * np.eye(rows.shape[1])
    step = np.linalg.solve(system, scaled.T @ gap)
    return np.asarray(prior + freedom * step, dtype=np.float64)
