"""What trials have shown, carried over to policies that were not tried.

Every rung has a Gaussian process on the sensitivities of a policy's choices, its mean linear in the score of
the rung before (Kennedy and O'Hagan 2000, eq. 1), that of the first rung in the summed sensitivities. So the
many cheap scores of the first rung shape what the few dear ones of the last say.

Scores are taken as log shortfalls: of a divergence its logarithm, of an accuracy log(baseline - accuracy +
SOFT). Compression moves both by factors, and what matters lies where they are small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search.cascade.encoding import Codes
from search.cascade.gaussian import Array, GaussianProcess, Hyperparameters, stacked

SOFT = 0.02
"""Accuracy below the baseline's plus this has a finite logarithm; differences far below count as noise."""
LEAST_DIVERGENCE = 1e-4
LEAST_TO_FIT = 8
"""Scores of a rung, for a Gaussian process of its own."""
_SATURATION = 1.5
"""A divergence so many times the largest single one counts as half of the way to nowhere."""
MOST_POINTS = 200
"""Trials that a process is fitted on, so that proposing stays fast."""
_STEPS = ((-2.2, 0.8), (-0.6, 0.4))
"""How the log shortfall changes from the untrained rung to a trained one, and from that to a later one: mean
and standard deviation before any trial. From searches on digits, VGG-11 and ResNet-20, the middle range."""
_SLOPE_DEVIATION = 0.4
_STEP_NOISE = 0.3
"""Of a step around the line: standard deviations of its slope, and of single scores."""


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
        self._most = _SATURATION * max(1.0, float(self._table.max(initial=0.0)))

    def sensitivities(self, codes: Codes) -> Array:
        """(n, decisions): the divergence of each decision alone."""
        return np.asarray(self._table[self._rows, codes].T)

    def features(self, codes: Codes) -> Array:
        """(n, decisions): square roots of the sensitivities. Divergence is quadratic in what a cut or a
        rounding adds to the outputs, so this is linear in it."""
        return np.asarray(np.sqrt(self.sensitivities(codes)))

    def sums(self, codes: Codes) -> Array:
        """(n,): log of the summed sensitivities, which do not add up beyond what a useless network has."""
        total = self.sensitivities(codes).sum(axis=1)
        return log_divergence(total / (1.0 + total / self._most))


@dataclass(frozen=True)
class Seen:
    """A policy that was scored. ``codes``: (decisions,). ``scores``: rung -> log shortfall. ``log_costs``:
    (costs,), of the objectives, logarithms of the share of the baseline's."""

    codes: NDArray[np.int64]
    scores: Mapping[int, float]
    log_costs: Array


@dataclass(frozen=True)
class _Stage:
    """One rung: a process on (features, score of the rung before), or a shift where too little was seen."""

    process: GaussianProcess | None
    line: "_Line"

    def predict(self, features: Array, before: Array, variance: Array) -> tuple[Array, Array]:
        if self.process is None:
            return self.line.predict(before, variance)
        mean, own = self.process.predict(features, stacked([before]))
        doubt = self.process.hyperparameters.doubt
        return mean, doubt * own + self.process.slopes[0] ** 2 * variance


@dataclass(frozen=True)
class _Line:
    """score = before + intercept + slope * before, of which the two are normally distributed: mean (2,) and
    covariance (2, 2). Bishop 2006, (3.49) to (3.54)."""

    mean: Array
    covariance: Array

    @staticmethod
    def of(step: tuple[float, float], before: Sequence[float], scores: Sequence[float]) -> "_Line":
        """What is believed of a step, and what was seen of it."""
        shift, deviation = step
        precision = np.diag([deviation**-2, _SLOPE_DEVIATION**-2])
        rows = np.stack([np.ones(len(before)), np.array(before)], axis=1)
        covariance = np.linalg.inv(precision + rows.T @ rows / _STEP_NOISE**2)
        seen = np.array(scores) - np.array(before)
        mean = covariance @ (precision @ np.array([shift, 0.0]) + rows.T @ seen / _STEP_NOISE**2)
        return _Line(mean, covariance)

    def predict(self, before: Array, variance: Array) -> tuple[Array, Array]:
        rows = np.stack([np.ones(len(before)), before], axis=1)
        own = np.einsum("ni,ij,nj->n", rows, self.covariance, rows)
        mean = before + rows @ self.mean
        # no better than the uncompressed network, where log shortfalls end
        return np.maximum(mean, np.log(SOFT)), own + (1.0 + self.mean[1]) ** 2 * variance


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
        for rung in range(rungs):
            climbed = [(s, s.scores.get(rung - 1)) for s in seen if rung in s.scores]
            process = self._fitted(rung, climbed, known)
            pairs = [(before, s.scores[rung]) for s, before in climbed if before is not None]
            step = (0.0, 1.0) if rung == 0 else _STEPS[min(rung, len(_STEPS)) - 1]
            line = _Line.of(step, [before for before, _ in pairs], [score for _, score in pairs])
            self._stages.append(_Stage(process, line))

    def _fitted(
        self,
        rung: int,
        seen: Sequence[tuple[Seen, float | None]],
        known: Mapping[int, Hyperparameters] | None,
    ) -> GaussianProcess | None:
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
        if known is None or rung not in known:
            # among the better half the scores are rougher than elsewhere, and there it matters
            doubt = process.doubt_among(values <= np.median(values))
            process.hyperparameters = replace(process.hyperparameters, doubt=doubt)
        self.hyperparameters[rung] = process.hyperparameters
        return process

    def _chain(self, features: Array, sums: Array, rungs: int) -> tuple[Array, Array]:
        mean, variance = sums, np.zeros(len(sums))
        for stage in self._stages[:rungs]:
            mean, variance = stage.predict(features, mean, variance)
        return mean, variance

    def after(self, codes: Codes, rung: int, score: float) -> tuple[float, float]:
        """Mean and standard deviation of the log shortfall at the last rung, of one policy (decisions,) that
        has ``score`` at an earlier one."""
        features = self.prior.features(codes[:, None])
        mean, variance = np.array([score]), np.zeros(1)
        for stage in self._stages[rung + 1 :]:
            mean, variance = stage.predict(features, mean, variance)
        return float(mean[0]), float(np.sqrt(variance[0]))

    def predict(self, codes: Codes, rung: int) -> tuple[Array, Array]:
        """Mean and standard deviation of the log shortfall at a rung, of columns of codes: (n,) and (n,)."""
        features = self.prior.features(codes)
        mean, variance = self._chain(features, self.prior.sums(codes), rung + 1)
        return mean, np.sqrt(variance)
