"""What trials have shown, carried over to policies that were not tried.

Every rung has a Gaussian process on the sensitivities of a policy's choices, its mean linear in the score of
the rung before (Kennedy and O'Hagan 2000, eq. 1), that of the first rung in the summed sensitivities. So the
many cheap scores of the first rung shape what the few dear ones of the last say.

Scores are taken as log shortfalls: of a divergence its logarithm, of an accuracy log(baseline - accuracy +
SOFT). Compression moves both by factors, and what matters lies where they are small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.cascade.encoding import Codes
from search.cascade.gaussian import Array, GaussianProcess, Hyperparameters, stacked

SOFT = 0.02
"""Accuracy below the baseline's plus this has a finite logarithm; differences far below count as noise."""
LEAST_DIVERGENCE = 1e-4
LEAST_TO_FIT = 5
"""Scores of a rung, for a Gaussian process of its own."""
MOST_POINTS = 300
"""Trials that a process is fitted on, so that proposing stays fast."""
_UNKNOWN_STEP = (-1.0, 1.0)
"""How the log shortfall changes from a rung to one that was never seen: mean and standard deviation."""


def shortfall(accuracy: float | Array, baseline: float) -> Array:
    """Log of how far accuracies are below the baseline's."""
    return np.asarray(np.log(np.maximum(baseline - np.asarray(accuracy), -0.5 * SOFT) + SOFT))


def accuracy_of(log_shortfall: float, baseline: float) -> float:
    """The accuracy of which ``shortfall`` is this."""
    return baseline + SOFT - float(np.exp(log_shortfall))


def log_divergence(divergence: float | Array) -> Array:
    """Log of divergences from the teacher."""
    return np.asarray(np.log(np.maximum(np.asarray(divergence), 0.0) + LEAST_DIVERGENCE))


class Prior:
    """Sensitivities as features: for each decision and each of its codes, the divergence of it alone."""

    def __init__(self, divergences: Sequence[Sequence[float]]) -> None:
        """``divergences``: per decision, in the order of the encoding, one per code."""
        width = max(map(len, divergences), default=1)
        self._table = np.zeros((len(divergences), width))
        for row, values in enumerate(divergences):
            self._table[row, : len(values)] = np.maximum(values, 0.0)
        self._rows = np.arange(len(divergences))[:, None]

    def sensitivities(self, codes: Codes) -> Array:
        """(n, decisions): the divergence of each decision alone."""
        return np.asarray(self._table[self._rows, codes].T)

    def features(self, codes: Codes) -> Array:
        """(n, decisions): square roots of the sensitivities. Divergence is quadratic in what a cut or a
        rounding adds to the outputs, so this is linear in it."""
        return np.asarray(np.sqrt(self.sensitivities(codes)))

    def sums(self, codes: Codes) -> Array:
        """(n,): log of the summed sensitivities."""
        return log_divergence(self.sensitivities(codes).sum(axis=1))


@dataclass(frozen=True)
class Seen:
    """A policy that was scored. ``codes``: (decisions,). ``scores``: rung -> log shortfall. ``log_costs``:
    (costs,), of the objectives, logarithms of the share of the baseline's."""

    codes: NDArray[np.int64]
    scores: Mapping[int, float]
    log_costs: Array


@dataclass(frozen=True)
class _Stage:
    """One rung: a process on (features, score of the rung before), or a shift where too little was seen.

    ``doubt``: how much larger the variance is than the process believes, among the better half of the scores:
    there they are rougher, and there it matters.
    """

    process: GaussianProcess | None
    shift: float = 0.0
    variance: float = 0.0
    doubt: float = 1.0

    def predict(self, features: Array, before: Array, variance: Array) -> tuple[Array, Array]:
        if self.process is None:
            return before + self.shift, variance + self.variance
        mean, own = self.process.predict(features, stacked([before]))
        return mean, self.doubt * own + self.process.slopes[0] ** 2 * variance


class Surrogate:
    """Predicts the log shortfall of policies at every rung."""

    def __init__(
        self,
        prior: Prior,
        seen: Sequence[Seen],
        rungs: int,
        known: Mapping[int, Hyperparameters] | None = None,
    ) -> None:
        """``rungs``: their number. ``known``: rung -> hyperparameters that need not be looked for again."""
        self.prior = prior
        self._stages: list[_Stage] = []
        self.hyperparameters: dict[int, Hyperparameters] = {}
        first = self._fitted(0, [(s, None) for s in seen if 0 in s.scores], known)
        self._stages.append(first or _Stage(None, 0.0, 1.0))
        for rung in range(1, rungs):
            climbed = [(s, s.scores.get(rung - 1)) for s in seen if rung in s.scores]
            stage = self._fitted(rung, climbed, known)
            if stage is None:
                steps = [s.scores[rung] - before for s, before in climbed if before is not None]
                mean, deviation = _UNKNOWN_STEP
                stage = _Stage(None, float(np.mean(steps)) if steps else mean, deviation**2)
            self._stages.append(stage)

    def _fitted(
        self,
        rung: int,
        seen: Sequence[tuple[Seen, float | None]],
        known: Mapping[int, Hyperparameters] | None,
    ) -> _Stage | None:
        if len(seen) < LEAST_TO_FIT:
            return None
        codes = np.stack([s.codes for s, _ in seen], axis=1)
        features = self.prior.features(codes)
        before = self.prior.sums(codes)
        if rung > 0:
            guessed, _ = self._chain(features, before, rung)
            given = np.array([np.nan if value is None else value for _, value in seen])
            before = np.where(np.isnan(given), guessed, given)
        values = np.array([s.scores[rung] for s, _ in seen])
        process = GaussianProcess(features, stacked([before]), values, (known or {}).get(rung))
        self.hyperparameters[rung] = process.hyperparameters
        missed, expected = process.left_out()
        better = values <= np.median(values)
        doubt = float(np.mean((missed[better] / expected[better]) ** 2))
        return _Stage(process, doubt=max(1.0, doubt))

    def _chain(self, features: Array, sums: Array, rungs: int) -> tuple[Array, Array]:
        mean, variance = sums, np.zeros(len(sums))
        for stage in self._stages[:rungs]:
            mean, variance = stage.predict(features, mean, variance)
        return mean, variance

    def predict(self, codes: Codes, rung: int) -> tuple[Array, Array]:
        """Mean and standard deviation of the log shortfall at a rung, of columns of codes: (n,) and (n,)."""
        features = self.prior.features(codes)
        mean, variance = self._chain(features, self.prior.sums(codes), rung + 1)
        return mean, np.sqrt(variance)
