"""What trials have shown, carried over to policies that were not tried.

Every rung has a Gaussian process on the sensitivities of a policy's choices, its mean linear in the score of
the rung before (Kennedy and O'Hagan 2000, eq. 1), that of the first rung in the summed sensitivities. So the
many cheap scores of the first rung shape what the few dear ones of the last say.

Scores are taken as log shortfalls: of a divergence its logarithm, of an accuracy log(baseline - accuracy +
SOFT). Compression moves both by factors, and what matters lies where they are small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from leanfront.search.samplers.cascade.encoding import Codes
from leanfront.search.samplers.cascade.gaussian import (
    Array,
    GaussianProcess,
    Hyperparameters,
    matern,
    squared_distances,
    whitening,
)

SOFT = 0.02
"""Accuracy below the baseline's plus this has a finite logarithm; differences far below count as noise."""
LEAST_DIVERGENCE = 0.15
LEAST_TO_FIT = 8
"""Scores of the first rung, for a Gaussian process of its own; a search should train as many trials."""
_SATURATION = 1.5
"""A divergence so many times the largest single one counts as half of the way to nowhere."""
MOST_POINTS = 200
"""Trials that a process is fitted on, so that proposing stays fast."""
_NO_STEP = ((0.0, 1.0), (1.0, 0.4))
_STEPS = (((-2.0, 1.0), (0.35, 0.2)), ((-1.3, 0.7), (0.35, 0.15)))
"""The line by which the log shortfall at a trained rung follows that at the rung before, the untrained one
and then a trained one: intercept and slope, their means and their standard deviations before any trial."""
_SIGNAL, _LENGTH, _NOISE = 0.2, 0.6, 0.05
"""What lies around such a line: standard deviation of what belongs to the policy, the distance of features
over which policies are alike (square roots of nats), standard deviation of a single score. These and the
lines are from 590 trained networks of VGG-11 and ResNet-20. Were they estimated in each search from its first
trials, which are alike, deviations would be a third of the errors made elsewhere."""
_Belief = tuple[tuple[float, float], tuple[float, float]]


def shortfall(accuracy: float | Array, baseline: float) -> Array:
    """Log of how far accuracies are below the baseline's."""
    return np.asarray(np.log(np.maximum(baseline - np.asarray(accuracy), -0.5 * SOFT) + SOFT))


def accuracy_of(log_shortfall: float, baseline: float) -> float:
    """The accuracy of which ``shortfall`` is this."""
    return baseline + SOFT - float(np.exp(log_shortfall))


def log_divergence(divergence: float | Array) -> Array:
    """Log of divergences from the teacher."""
    return np.asarray(np.log(np.maximum(np.asarray(divergence), 0.0) + LEAST_DIVERGENCE))


def _in_doubt(log_shortfall: Array) -> Array:
    """What of a deviation is doubt about a loss. Near no loss it is the noise of scores, by which nothing can
    be won: among variants of the uncompressed network there is always one that seems a little better."""
    return np.asarray(np.clip(1.0 - (SOFT * np.exp(-log_shortfall)) ** 2, 0.1, 1.0))


class Prior:
    """Sensitivities as features: for each decision and each of its codes, the divergence of it alone."""

    def __init__(self, divergences: Sequence[Sequence[float]]) -> None:
        """``divergences``: per decision, in the order of the encoding, one per code."""
        width = max(map(len, divergences), default=1)
        self._table = np.zeros((len(divergences), width))
        for row, values in enumerate(divergences):
            self._table[row, : len(values)] = np.maximum(values, 0.0)
        self.decisions = len(divergences)
        self._rows = np.arange(self.decisions)[:, None]
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
class Observation:
    """A policy that was scored. ``codes``: (decisions,). ``scores``: rung -> log shortfall. ``log_costs``:
    (costs,), of the objectives, logarithms of the share of the baseline's. ``untrained``: log shortfall of
    one that is complete and was not trained, which says what it reaches and not what training does."""

    codes: NDArray[np.int64]
    scores: Mapping[int, float]
    log_costs: Array
    untrained: float | None = None

    @cached_property
    def standing(self) -> tuple[float, float]:
        """The highest rung that was reached, and the score there; infinity for what is complete untrained."""
        if self.untrained is not None:
            return np.inf, self.untrained
        rung = max(self.scores)
        return rung, self.scores[rung]


class _Step:
    """How the score of a rung follows from that of the rung before: a line of which something is believed,
    and around it a Gaussian process on the features. Rasmussen and Williams 2006, section 2.7."""

    def __init__(self, believed: _Belief, features: Array, before: Array, scores: Array) -> None:
        """``believed``: means and standard deviations of the line's intercept and slope. ``features`` (n, d),
        scores ``before`` and ``scores`` (n,): what was seen of it."""
        self._line, deviations = np.array(believed[0]), np.array(believed[1])
        self._spread = deviations**2
        self._features, self._before = features, before
        covariance = self._covariance(features, before) + _NOISE**2 * np.eye(len(before))
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, scores - self._believed(before))
        self._whitening = whitening(self._factor)

    def _believed(self, before: Array) -> Array:
        return np.asarray(self._line[0] + self._line[1] * before)

    def _covariance(self, features: Array, before: Array) -> Array:
        squared = squared_distances(features, self._features)
        along = self._spread[0] + self._spread[1] * np.outer(before, self._before)
        return np.asarray(along + _SIGNAL**2 * matern(squared, _LENGTH))

    def predict(self, features: Array, before: Array, variance: Array) -> tuple[Array, Array]:
        """Mean and variance of scores (m,), of which those before have ``variance`` (m,). None is better than
        the uncompressed network's, where log shortfalls end."""
        cross = self._covariance(features, before)
        mean = self._believed(before) + cross @ self._weights
        own = self._spread[0] + self._spread[1] * before**2 + _SIGNAL**2
        own -= ((self._whitening @ cross.T) ** 2).sum(axis=0)
        slope = self._line[1] + self._spread[1] * float(self._before @ self._weights)
        return np.maximum(mean, np.log(SOFT)), np.maximum(own, 1e-9) + slope**2 * variance


@dataclass(frozen=True)
class _Process:
    """The first rung, seen often enough: a Gaussian process, its mean linear in the summed sensitivities."""

    process: GaussianProcess

    def predict(self, features: Array, before: Array, variance: Array) -> tuple[Array, Array]:
        mean, own = self.process.predict(features, before[:, None])
        doubt = self.process.hyperparameters.doubt
        return mean, doubt * own + self.process.slopes[0] ** 2 * variance


class Surrogate:
    """Predicts the log shortfall of policies at every rung."""

    def __init__(
        self,
        prior: Prior,
        seen: Sequence[Observation],
        rungs: int,
        known: Mapping[int, Hyperparameters] | None = None,
    ) -> None:
        """``rungs``: their number. ``known``: rung -> hyperparameters that need not be looked for again."""
        self.prior = prior
        self._stages: list[_Step | _Process] = []
        self.hyperparameters: dict[int, Hyperparameters] = {}
        for rung in range(rungs):
            here = [s for s in seen if rung in s.scores]
            codes = np.array([s.codes for s in here], dtype=np.int64).reshape(len(here), prior.decisions).T
            features, before = prior.features(codes), prior.sums(codes)
            scores = np.array([s.scores[rung] for s in here])
            if rung == 0 and len(here) >= LEAST_TO_FIT:
                self._stages.append(self._fitted(features, before, scores, (known or {}).get(rung)))
                continue
            if rung > 0:
                given = np.array([s.scores.get(rung - 1, np.nan) for s in here])
                before = np.where(np.isnan(given), self._chain(features, before, rung)[0], given)
            believed = _STEPS[min(rung, len(_STEPS)) - 1] if rung else _NO_STEP
            self._stages.append(_Step(believed, features, before, scores))

    def _fitted(
        self, features: Array, before: Array, scores: Array, known: Hyperparameters | None
    ) -> _Process:
        process = GaussianProcess(features, before[:, None], scores, known)
        if known is None:
            # among the better half the scores are rougher than elsewhere, and there it matters
            doubt = process.doubt_among(scores <= np.median(scores))
            process.hyperparameters = replace(process.hyperparameters, doubt=doubt)
        self.hyperparameters[0] = process.hyperparameters
        return _Process(process)

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
        return mean, np.sqrt(variance) * (_in_doubt(mean) if rung else 1.0)
