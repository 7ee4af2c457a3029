"""RNTKClassifier: a support vector machine on RNTK values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.kernel_estimator import KernelEstimator
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.operators import Dense
from rntk_dist.solve.svm import SVC


class RNTKClassifier(ClassifierMixin, KernelEstimator):  # type: ignore[misc]
    """C-support vector classification of sequences, one against one where classes are several.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    C : float
        The smaller, the more regularised.
    class_weight : dict or "balanced", optional
        As for scikit-learn's SVC.
    kind : {"ntk", "nngp"}
        Tangent or covariance kernel.
    dtype : {"float64", "float32"}
        What kernel values are computed in.
    backend : {"auto", "numpy", "numba", "cupy"}
        What computes them.
    store : path or URL, optional
        A matrix of `rd.gram`, or a sweep: values of samples that it holds are slices of it.
    memory : path, optional
        A folder that keeps every value that is computed, for all folds, fits and processes.

    Attributes
    ----------
    classes_ : (k,) array
    X_fit_ : Sequences
        The n training samples.
    machine_ : rntk_dist.solve.svm.SVC
        Fitted to their kernel matrix.
    kernel_ : RNTK
    n_features_in_ : int
        Steps T, if the training samples were an array.

    Examples
    --------
    >>> import rntk_dist as rd
    >>> X = [[1.0, 2.0, 3.0], [0.5, 1.0], [-1.0, -2.0, -2.5], [-2.0, -1.0]]
    >>> rd.RNTKClassifier(C=10.0).fit(X, ["up", "up", "down", "down"]).predict([[1.0, 1.5, 2.5, 3]])
    array(['up'], dtype='<U4')
    """

    def __init__(
        self,
        kernel: RNTK | None = None,
        C: float = 1.0,
        *,
        class_weight: Mapping[Any, float] | str | None = None,
        kind: Kind = "ntk",
        dtype: DType = "float64",
        backend: Backend = "auto",
        store: str | Path | None = None,
        memory: str | Path | None = None,
    ) -> None:
        super().__init__(
            kernel, kind=kind, dtype=dtype, backend=backend, store=store, memory=memory
        )
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit to n sequences and their labels (n,): numbers or strings, of two or more classes.

        Raises ValueError or TypeError for input that scikit-learn or `Sequences` refuses.
        """
        labels = validate_data(self, y=y)
        self.X_fit_ = self._begin(X)
        check_consistent_length(self.X_fit_, labels)
        square = Dense(self.values_.square(self.X_fit_), symmetric=True)
        self.machine_ = SVC(self.C, class_weight=self.class_weight).fit(square, labels)
        self.classes_ = self.machine_.classes_
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The labels (m,) of m sequences."""
        across = self._across_support(X)
        return self.machine_.predict(across, columns="support")

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """How far inside: (m,) for two classes, positive for the second; else (m, classes)."""
        across = self._across_support(X)
        return self.machine_.decision_function(across, columns="support")

    def _across_support(self, X: Any) -> NDArray[np.float64]:
        """(m, support vectors)."""
        check_is_fitted(self)
        sequences = sequences_of(self, X, reset=False)
        return self.values_.across(sequences, self.X_fit_[self.machine_.support_])
