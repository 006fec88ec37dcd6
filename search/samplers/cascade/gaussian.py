"""A Gaussian process with a linear mean: Rasmussen and Williams 2006, sections 2.2, 2.7 and 5.4."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Array = NDArray[np.float64]

LENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Length scales that are tried, in units of the median distance between points."""
NOISES = (1e-3, 1e-2, 5e-2, 2e-1)
"""Variances of the noise that are tried, as shares of the signal's."""
_WIDE = 25.0
"""Variance of the coefficients of the mean, for targets and columns of variance 1."""


@dataclass(frozen=True)
class Hyperparameters:
    """length: of the kernel, in the units of the points. noise: variance as a share of the signal's. doubt:
    how much larger the variance of predictions is than the process believes, see ``doubt_among``; not used by
    the process itself."""

    length: float
    noise: float
    doubt: float = 1.0


class GaussianProcess:
    """Values at points (n, d), with columns (n, k) in which the mean is linear, beside a constant.

    Kernel: Matern 5/2. Noise and length scale are those of highest marginal likelihood on a grid.
    """

    def __init__(
        self, points: Array, columns: Array, values: Array, known: Hyperparameters | None = None
    ) -> None:
        self._points = points
        self._centre, self._spread = columns.mean(axis=0), columns.std(axis=0) + 1e-9
        self._offset, self._scale = float(values.mean()), float(values.std()) + 1e-9
        self._basis = self._standard(columns)
        target = (values - self._offset) / self._scale
        squared = squared_distances(points, points)
        if known is None:
            apart = float(np.sqrt(np.median(squared[squared > 0]))) if (squared > 0).any() else 1.0
            known = max(
                (Hyperparameters(apart * length, noise) for length in LENGTHS for noise in NOISES),
                key=lambda choice: self._fit(squared, target, choice),
            )
        self.hyperparameters = known
        self._fit(squared, target, known)
        self._whitening = whitening(self._factor)

    def _standard(self, columns: Array) -> Array:
        scaled = (columns - self._centre) / self._spread
        return np.hstack([np.ones((len(columns), 1)), scaled])

    def _fit(self, squared: Array, target: Array, choice: Hyperparameters) -> float:
        """Fit to standardised targets with the signal's variance at its best; the log marginal likelihood."""
        count = len(target)
        covariance = matern(squared, choice.length) + _WIDE * self._basis @ self._basis.T
        covariance[np.diag_indices(count)] += choice.noise + 1e-8
        self._factor = cho_factor(covariance, lower=True, overwrite_a=True)
        self._weights = cho_solve(self._factor, target)
        self._signal = max(float(target @ self._weights) / count, 1e-6)
        log_determinant = 2.0 * float(np.log(np.diag(self._factor[0])).sum())
        return float(-0.5 * (count * np.log(self._signal) + log_determinant))

    def predict(self, points: Array, columns: Array) -> tuple[Array, Array]:
        """Mean and variance, without noise, of the values at points (m, d): (m,) and (m,)."""
        length = self.hyperparameters.length
        basis = self._standard(columns)
        cross = matern(squared_distances(points, self._points), length) + _WIDE * basis @ self._basis.T
        mean = self._offset + self._scale * (cross @ self._weights)
        own = 1.0 + _WIDE * (basis**2).sum(axis=1)
        explained = ((self._whitening @ cross.T) ** 2).sum(axis=0)
        variance = self._signal * np.maximum(own - explained, 1e-9)
        return mean, self._scale**2 * variance

    def left_out(self) -> tuple[Array, Array]:
        """Of each point: by how much the process without it misses its value, and the standard deviation that
        it expects of that, noise included: (n,) and (n,). Rasmussen and Williams, (5.12)."""
        inverse = cho_solve(self._factor, np.eye(len(self._weights)))
        precision = np.diag(inverse)
        missed = self._scale * self._weights / precision
        return missed, self._scale * np.sqrt(self._signal / precision)

    def doubt_among(self, points: NDArray[np.bool_]) -> float:
        """Mean squared error at some points, each left out, over what is expected of it; at least 1."""
        missed, expected = self.left_out()
        return max(1.0, float(np.mean((missed[points] / expected[points]) ** 2)))

    @property
    def slopes(self) -> Array:
        """(k,): how the mean moves with each of the linear columns."""
        return np.asarray(self._scale * _WIDE * (self._basis[:, 1:].T @ self._weights) / self._spread)


def whitening(factor: tuple[Array, bool]) -> Array:
    """(n, n): the inverse of a lower Cholesky factor. A product with it is twice as fast as solving anew for
    every prediction, and as exact: noise keeps the covariances far from singular."""
    return np.asarray(solve_triangular(factor[0], np.eye(len(factor[0])), lower=True, check_finite=False))


def squared_distances(first: Array, second: Array) -> Array:
    """(n, m): squared Euclidean distances between rows."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(squares - 2.0 * first @ second.T, 0.0))


def matern(squared: Array, length: float) -> Array:
    """Matern 5/2 of squared distances, variance 1."""
    scaled = np.sqrt(5.0 * squared) / length
    return np.asarray((1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled))
