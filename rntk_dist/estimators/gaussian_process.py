"""RNTKGaussianProcess: regression with RNTK values as the covariance of a Gaussian process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.kernel_estimator import KernelEstimator
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.operators import Dense
from rntk_dist.sequences import Sequences
from rntk_dist.solve.gaussian_process import GaussianProcessRegressor
from rntk_dist.solve.posterior import Seed


class RNTKGaussianProcess(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    """Gaussian process regression of sequences: prior N(0, k), observed with noise.

    With ``kind="nngp"`` the prior is that of an untrained network of infinite width, and the
    posterior exact Bayesian inference with it; with "ntk" the mean is a trained network's.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    alpha : float or (n,) array
        Variance of the noise, >= 0, of all targets or of each training sample's.
    normalize_y : bool
        Whether the process is of (y - mean) / standard deviation of each target; predictions are
        of y all the same.
    kind, dtype, backend, store, memory
        As for `RNTKClassifier`.

    Attributes
    ----------
    X_fit_ : Sequences
        The n training samples.
    machine_ : rntk_dist.solve.gaussian_process.GaussianProcessRegressor
        Fitted to their kernel matrix.
    log_marginal_likelihood_ : float
        Of the training targets, all of them together, as they are normalised; the larger, the
        better the kernel fits.
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
        alpha: ArrayLike = 0.01,
        *,
        normalize_y: bool = False,
        kind: Kind = "ntk",
        dtype: DType = "float64",
        backend: Backend = "auto",
        store: str | Path | None = None,
        memory: str | Path | None = None,
    ) -> None:
        super().__init__(
            kernel, kind=kind, dtype=dtype, backend=backend, store=store, memory=memory
        )
        self.alpha = alpha
        self.normalize_y = normalize_y

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
        square = Dense(self.values_.square(self.X_fit_), symmetric=True)
        machine = GaussianProcessRegressor(self.alpha, normalize_y=self.normalize_y)
        self.machine_ = machine.fit(square, targets)
        self.log_marginal_likelihood_ = machine.log_marginal_likelihood()
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """The posterior mean (m,) or (m, targets) for m sequences.

        With ``return_std`` also its standard deviation (m[, targets]), with ``return_cov`` its
        covariance (m, m[, targets]), without the noise.

        Raises ValueError where both are asked for.
        """
        sequences, across = self._across(X)
        if return_cov:
            square = self.values_.square(sequences)
            return self.machine_.predict(across, return_std, return_cov, square=square)
        diagonal = self.values_.diagonal(sequences) if return_std else None
        return self.machine_.predict(across, return_std, diagonal=diagonal)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Seed = 0) -> NDArray[np.float64]:
        """Draws from the posterior at m sequences: (m, n_samples) or (m, targets, n_samples)."""
        sequences, across = self._across(X)
        square = self.values_.square(sequences)
        return self.machine_.sample_y(across, square, n_samples, random_state)

    def _across(self, X: Any) -> tuple[Sequences, Dense]:
        """New samples, and their kernel (m, n) with the training samples."""
        check_is_fitted(self)
        sequences = sequences_of(self, X, reset=False)
        values = self.values_.across(sequences, self.X_fit_)
        return sequences, Dense(values, symmetric=False)
