"""Gaussian process regression on kernels that are computed already.

With a Gram matrix of kind "nngp" this is exact Bayesian inference with an infinitely wide network:
the NNGP. The kernel has no parameter that is fitted; to choose among kernels, compare their
`log_marginal_likelihood`.

What is solved is Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), algorithm
2.1, with one Cholesky factor in memory.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rntk_dist.operators import Indices, Operator
from rntk_dist.solve.cholesky import LowerFactor, bytes_needed
from rntk_dist.solve.memory import panels, require_room
from rntk_dist.solve.posterior import Seed, deviations, draws, own_diagonal, own_square
from rntk_dist.solve.systems import Float64, across_of, operator_of, require_training, targets_of

_MEAN_ALONE = (
    "for the mean alone use KernelRidge with the same alpha, which also solves on disk and by "
    "iteration; for variances fit on fewer samples"
)


class GaussianProcessRegressor:
    """As scikit-learn's GaussianProcessRegressor, for a kernel that is a matrix.

    Parameters
    ----------
    alpha : float or (n,) array
        Variance of the targets' noise, at least 0, of all samples or of each.
    normalize_y : bool
        Whether the process is of (y - mean) / standard deviation of each target. Predictions are of
        y all the same; the log marginal likelihood is of what is normalised.
    memory : int, optional
        Bytes that this process may take in all; by default what it has and half of what is free.

    After `fit`: `alpha_` (n,) or (n, targets), the weights of the mean; `factor_`, of Cholesky;
    `log_marginal_likelihood_value_`.

    >>> import numpy as np
    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> process = GaussianProcessRegressor(alpha=1.0).fit(K, [1.0, 0.0])
    >>> mean, deviation = process.predict(K, return_std=True, diagonal=[2.0, 2.0])
    >>> mean, deviation**2
    (array([0.625, 0.125]), array([0.625, 0.625]))
    """

    def __init__(
        self, alpha: ArrayLike = 1e-10, *, normalize_y: bool = False, memory: int | None = None
    ) -> None:
        self.alpha, self.normalize_y, self.memory = alpha, normalize_y, memory

    def fit(self, X: Operator | ArrayLike, y: ArrayLike) -> Self:
        """Factorise the symmetric kernel (n, n) of the training samples; targets (n[, targets]).

        Takes 8 n^2 bytes and n^3 / 3 operations.

        Raises
        ------
        NotPositiveDefiniteError
            Alpha is too small; the message names one that is not.
        SolverMemoryError
            The factor does not fit into the memory.
        ValueError
            Shapes do not fit each other, or alpha is negative.
        """
        operator, targets = operator_of(X), targets_of(y)
        require_training(operator, targets)
        n = len(targets)
        noise = _noise(self.alpha, n)
        each = targets.reshape(n, -1)
        needed = bytes_needed(n, operator.edge, each.shape[1])
        require_room(needed, self.memory, f"the factor of {n} samples", _MEAN_ALONE)
        self._shape = targets.shape[1:]
        self.y_mean_, self.y_std_ = _scales(each, self.normalize_y)
        scaled = (each - self.y_mean_) / self.y_std_
        self.factor_ = LowerFactor.of(operator, noise)
        weights = self.factor_.solve(scaled)
        self.alpha_ = weights.reshape(targets.shape)
        self.log_marginal_likelihood_value_ = self._evidence(scaled, weights)
        return self

    def _evidence(self, scaled: Float64, weights: Float64) -> float:
        """The log density of targets (n, targets) that are independent of each other."""
        n, count = scaled.shape
        volume: float = self.factor_.log_determinant + n * math.log(2 * math.pi)
        fits = float((scaled * weights).sum())
        return -0.5 * (fits + int(count) * volume)

    def log_marginal_likelihood(self) -> float:
        """The logarithm of the targets' density under the prior and the noise; of all targets."""
        return self.log_marginal_likelihood_value_

    def predict(
        self,
        X: Operator | ArrayLike,
        return_std: bool = False,
        return_cov: bool = False,
        *,
        diagonal: ArrayLike | None = None,
        square: Operator | ArrayLike | None = None,
    ) -> Float64 | tuple[Float64, Float64]:
        """The posterior of the function at m new samples, without the noise.

        Parameters
        ----------
        X : Operator or (m, n) array
            Kernel of the new samples with the training samples. It is read in rows of blocks.
        return_std, return_cov : bool
            Whether to return standard deviations, or covariances, too.
        diagonal : (m,) array
            Kernel of each new sample with itself, for standard deviations.
        square : Operator or (m, m) array
            Kernel of the new samples with each other, for covariances; it will do for standard
            deviations.

        Returns
        -------
        mean : (m,) or (m, targets) array
        deviation or covariance : (m[, targets]) or (m, m[, targets]) array, if asked for

        Raises
        ------
        ValueError
            Both are asked for, what they need is missing, or shapes do not fit.
        SolverMemoryError
            Covariances do not fit into the memory.
        """
        if return_std and return_cov:
            raise ValueError("found return_std and return_cov: ask for one of them")
        across = across_of(X, len(self.alpha_))
        mean = self._mean(across)
        if return_std:
            prior = own_diagonal(diagonal, square, len(across))
            found = deviations(prior - self._explained(across), prior)
            return mean, self._by_target(found[..., None] * self.y_std_)
        if return_cov:
            covariance = self._covariance(across, square)
            return mean, self._by_target(covariance[..., None] * self.y_std_**2)
        return mean

    def sample_y(
        self,
        X: Operator | ArrayLike,
        square: Operator | ArrayLike,
        n_samples: int = 1,
        random_state: Seed = 0,
    ) -> Float64:
        """Draws of the function at m new samples: (m, n_samples) or (m, targets, n_samples).

        `X` (m, n) and `square` (m, m) are as in `predict`. Raises what `predict` raises.
        """
        across = across_of(X, len(self.alpha_))
        covariance = self._covariance(across, square)
        level = np.zeros((len(across), len(self.y_std_)))
        found = draws(level, covariance, n_samples, random_state) * self.y_std_[:, None]
        shaped = found.reshape(len(across), *self._shape, n_samples)
        return shaped + self._mean(across)[..., None]

    def _mean(self, across: Operator) -> Float64:
        weights = self.alpha_.reshape(len(self.alpha_), -1)
        scaled = np.asarray(across @ weights, np.float64)
        return self._by_target(scaled * self.y_std_ + self.y_mean_)

    def _by_target(self, values: Float64) -> Float64:
        """Without the last axis where the targets had none."""
        return values.reshape(*values.shape[:-1], *self._shape)

    def _explained(self, across: Operator) -> Float64:
        """How much of the prior variance of each new sample (m,) the data take away."""
        found = np.empty(len(across))
        for rows in panels(len(across), across.edge):
            found[rows] = (self._whitened(across, rows) ** 2).sum(axis=0)
        return found

    def _covariance(self, across: Operator, square: Operator | ArrayLike | None) -> Float64:
        """(m, m), of targets as they are scaled."""
        m, n = across.shape
        what = f"the covariance of {m} samples"
        require_room(8 * m * (n + 3 * m), self.memory, what, "ask for fewer samples at a time")
        covariance = own_square(square, m)
        whitened = self._whitened(across, np.arange(m))
        covariance -= whitened.T @ whitened
        return covariance

    def _whitened(self, across: Operator, rows: Indices) -> Float64:
        """(n, len(rows)): columns whose products with each other the data explain."""
        block = across.block(rows, np.arange(across.shape[1])).astype(np.float64, copy=False)
        return self.factor_.whiten(block.T)


def _noise(alpha: ArrayLike, n: int) -> Float64:
    given = np.asarray(alpha, np.float64)
    if given.shape not in ((), (n,)):
        raise ValueError(
            f"found an alpha of shape {given.shape}: give a number, or one for each of the {n} "
            "samples"
        )
    wrong = given[~(np.isfinite(given) & (given >= 0))]
    if wrong.size:
        raise ValueError(f"alpha is {wrong.flat[0]}: give a finite variance of at least 0")
    return np.broadcast_to(given, (n,))


def _scales(targets: Float64, normalize: bool) -> tuple[Float64, Float64]:
    """Mean and standard deviation (targets,); of a target that does not vary the latter is 1."""
    count = targets.shape[1]
    if not normalize:
        return np.zeros(count), np.ones(count)
    spread = targets.std(axis=0)
    return targets.mean(axis=0), np.where(spread > 0, spread, 1.0)
