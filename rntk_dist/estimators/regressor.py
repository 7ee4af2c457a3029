"""RNTKRegressor: kernel ridge regression on RNTK values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.kernel_estimator import KernelEstimator
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, require_one_of
from rntk_dist.operators import Dense
from rntk_dist.sequences import Sequences
from rntk_dist.solve.falkon import Falkon
from rntk_dist.solve.kernel_ridge import KernelRidge
from rntk_dist.solve.landmarks import RULES, Rule


class RNTKRegressor(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    """Kernel ridge regression of sequences, f(x) = k(x, X) (K + alpha I)^-1 y; with no intercept.

    With `n_components` it is that among functions of so many of the samples, for more samples than
    fit as a matrix: see `rntk_dist.solve.falkon`.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    alpha : float, or one for each target
        The larger, the more regularised; 0 interpolates, where the matrix is positive definite.
    n_components : int, optional
        Number of centres. Their kernel with all samples is computed, whatever store or memory know.
    landmarks : {"uniform", "leverage", "kmeans++", "cholesky"}
        How centres are chosen.
    random_state : int, RandomState or None
        What they are drawn by.
    kind, dtype, backend, store, memory
        As for `RNTKClassifier`.

    Attributes
    ----------
    X_fit_ : Sequences
        The n training samples, or the centres among them.
    machine_ : KernelRidge, or Falkon where there are centres
        Fitted to the kernel of the training samples.
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
        n_components: int | None = None,
        landmarks: Rule = "uniform",
        random_state: Any = None,
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
        self.n_components = n_components
        self.landmarks = landmarks
        self.random_state = random_state

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
        require_one_of("landmarks", self.landmarks, RULES)
        if self.n_components is not None:
            return self._fit_to_centers(self.X_fit_, targets, self.n_components)
        square = Dense(self.values_.square(self.X_fit_), symmetric=True)
        self.machine_: KernelRidge | Falkon = KernelRidge(self.alpha).fit(square, targets)
        return self

    def _fit_to_centers(self, X: Sequences, targets: ArrayLike, count: int) -> Self:
        seed = int(check_random_state(self.random_state).randint(2**31))
        falkon = Falkon(self.alpha, count, rule=self.landmarks, seed=seed)
        self.machine_ = falkon.fit(self._computed(X), targets)
        self.X_fit_ = X[falkon.centers_]
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The predictions (m,) or (m, targets) for m sequences."""
        check_is_fitted(self)
        sequences = sequences_of(self, X, reset=False)
        found: NDArray[np.float64] = self.machine_.predict(
            Dense(self.values_.across(sequences, self.X_fit_), symmetric=False)
        )
        return found
