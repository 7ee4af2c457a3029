"""RNTKRegressor: kernel ridge regression on RNTK values."""

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
from rntk_dist.solve.kernel_ridge import KernelRidge


class RNTKRegressor(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    """Kernel ridge regression of sequences, f(x) = k(x, X) (K + alpha I)^-1 y; with no intercept.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    alpha : float, or one for each target
        The larger, the more regularised; 0 interpolates, where the matrix is positive definite.
    kind, dtype, backend, store, memory
        As for `RNTKClassifier`.

    Attributes
    ----------
    X_fit_ : Sequences
        The n training samples.
    machine_ : rntk_dist.solve.kernel_ridge.KernelRidge
        Fitted to their kernel matrix.
    kernel_ : RNTK
    n_features_in_ : int
        Steps T, if the training samples were an array.

    Examples
    --------
    >>> import rntk_dist as rd
    >>> X = [[1.0, 2.0, 3.0], [0.5, 1.0], [-1.0, -2.0, -2.5]]
    >>> rd.RNTKRegressor(alpha=1e-6).fit(X, [3.0, 1.0, -2.5]).predict(X).round(2)
    array([ 3. ,  1. , -2.5])
    """

    def __init__(
        self,
        kernel: RNTK | None = None,
        alpha: ArrayLike = 1.0,
        *,
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit to n sequences and targets (n,) or (n, targets).

        Raises ValueError or TypeError for input that scikit-learn or `Sequences` refuses,
        NotPositiveDefiniteError where alpha is too small.
        """
        targets = validate_data(self, y=y, multi_output=True, y_numeric=True)
        self.X_fit_ = self._begin(X)
        check_consistent_length(self.X_fit_, targets)
        square = Dense(self.values_.square(self.X_fit_), symmetric=True)
        self.machine_ = KernelRidge(self.alpha).fit(square, targets)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The predictions (m,) or (m, targets) for m sequences."""
        check_is_fitted(self)
        sequences = sequences_of(self, X, reset=False)
        found: NDArray[np.float64] = self.machine_.predict(
            Dense(self.values_.across(sequences, self.X_fit_), symmetric=False)
        )
        return found
