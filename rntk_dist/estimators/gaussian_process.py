"""RNTKGaussianProcess: regression with RNTK values as the covariance of a Gaussian process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_solve, lapack, solve_triangular
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.kernel_estimator import KernelEstimator
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.operators import Dense
from rntk_dist.solve.systems import not_positive, rounding

type Float64 = NDArray[np.float64]


class RNTKGaussianProcess(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    """Gaussian process regression of sequences: prior N(0, k), observed with noise.

    With ``kind="nngp"`` the prior is that of an untrained network of infinite width, and the
    posterior exact Bayesian inference with it; with "ntk" the mean is a trained network's.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    alpha : float
        Variance of the noise, >= 0.
    kind, dtype, backend, store, memory
        As for `RNTKClassifier`.

    Attributes
    ----------
    X_fit_ : Sequences
        The n training samples.
    log_marginal_likelihood_ : float
        Of the training targets, all of them together; the larger, the better the kernel fits.
    kernel_ : RNTK
    n_features_in_ : int
        Steps T, if the training samples were an array.

    Examples
    --------
    >>> import rntk_dist as rd
    >>> X = [[1.0, 2.0, 3.0], [0.5, 1.0], [-1.0, -2.0, -2.5]]
    >>> process = rd.RNTKGaussianProcess(alpha=1e-6).fit(X, [3.0, 1.0, -2.5])
    >>> mean, deviation = process.predict([X[0], [0.0, 0.0, 9.0]], return_std=True)
    >>> bool(deviation[0] < 0.01 < deviation[1])
    True
    """

    def __init__(
        self,
        kernel: RNTK | None = None,
        alpha: float = 0.01,
        *,
        kind: Kind = "ntk",
        dtype: DType = "float64",
        backend: Backend = "auto",
        store: str | Path | None = None,
        memory: str | Path | None = None,
    ) -> None:
        self.kernel = kernel
        self.alpha = alpha
        self.kind = kind
        self.dtype = dtype
        self.backend = backend
        self.store = store
        self.memory = memory

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit to n sequences and targets (n,) or (n, targets), which are taken as independent.

        Raises ValueError or TypeError for input that scikit-learn or `Sequences` refuses,
        NotPositiveDefiniteError where alpha is too small.
        """
        targets = validate_data(self, y=y, multi_output=True, y_numeric=True)
        self.X_fit_ = self._begin(X)
        check_consistent_length(self.X_fit_, targets)
        self.posterior_ = conditioned(self.values_.square(self.X_fit_), targets, self.alpha)
        self.log_marginal_likelihood_ = self.posterior_.log_marginal_likelihood
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The posterior mean (m,) or (m, targets) for m sequences.

        With ``return_std`` also its standard deviation (m,), with ``return_cov`` its covariance
        (m, m), without the noise, and the same for all targets.

        Raises ValueError where both are asked for.
        """
        check_is_fitted(self)
        if return_std and return_cov:
            raise ValueError(
                "found return_std and return_cov: ask for one, the diagonal of the covariance is "
                "the squared deviation"
            )
        sequences = sequences_of(self, X, reset=False)
        across = self.values_.across(sequences, self.X_fit_)
        mean = across @ self.posterior_.weights
        if return_std:
            return mean, self.posterior_.deviation(self.values_.diagonal(sequences), across)
        if return_cov:
            return mean, self.posterior_.covariance(self.values_.square(sequences), across)
        return mean


@dataclass(frozen=True, eq=False)
class Posterior:
    """A process given its targets: `factor` (n, n), lower, of K + alpha I; `weights` like y."""

    factor: Float64
    weights: Float64
    log_marginal_likelihood: float

    def deviation(self, diagonal: Float64, across: Float64) -> Float64:
        """Standard deviations (m,), from the prior variances (m,) and the kernel (m, n)."""
        left = diagonal - (self._explained(across) ** 2).sum(axis=0)
        return np.sqrt(np.maximum(left, 0.0))

    def covariance(self, square: Float64, across: Float64) -> Float64:
        """The covariance (m, m), from the prior one and the kernel (m, n)."""
        explained = self._explained(across)
        return square - explained.T @ explained

    def _explained(self, across: Float64) -> Float64:
        """(n, m): its columns' products are what the targets take from the covariance."""
        found: Float64 = solve_triangular(self.factor, across.T, lower=True)
        return found


def conditioned(square: Float64, targets: NDArray[Any], alpha: float) -> Posterior:
    """The posterior of a process with covariance `square` (n, n) and noise of variance `alpha`.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1. Raises
    ValueError for an alpha below 0 or not finite, NotPositiveDefiniteError where it is too small.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}: give a finite variance of at least 0")
    n, y = len(square), np.asarray(targets, np.float64)
    factor, order = lapack.dpotrf(square + alpha * np.eye(n), lower=1)
    if order:
        matrix, where = Dense(square, symmetric=True), f"in its leading {order} samples"
        lift = rounding(matrix, float(square.diagonal().max()))
        raise not_positive(matrix, alpha, f"which shows {where}", lift)
    weights: Float64 = cho_solve((factor, True), y)
    log_root = float(np.log(factor.diagonal()).sum()) + n / 2 * math.log(2 * math.pi)
    likelihood = -0.5 * float((y * weights).sum()) - (y.size // n) * log_root
    return Posterior(factor, weights, likelihood)
