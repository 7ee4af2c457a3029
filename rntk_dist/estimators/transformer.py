"""RNTKTransformer: RNTK values as features of a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.kernel_estimator import KernelEstimator
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, require_one_of
from rntk_dist.sequences import Sequences
from rntk_dist.solve.landmarks import RULES, Rule, choose_landmarks
from rntk_dist.solve.nystroem import inverse_root

type Float64 = NDArray[np.float64]


class RNTKTransformer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    KernelEstimator,
):
    """Features of sequences: their kernel with the training samples, or Nystroem's.

    Nystroem's features are k(x, B) k(B, B)^(-1/2) for landmarks B drawn from the training samples:
    their inner products approach the kernel. Williams and Seeger, Using the Nystroem method to
    speed up kernel machines (2001). For samples that do not fit into memory see
    `rntk_dist.solve.nystroem`.

    Parameters
    ----------
    kernel : RNTK, optional
        By default that of the store, without one ``RNTK()``. Its options are parameters, too:
        ``kernel__sigma_w``.
    n_components : int, optional
        Number of landmarks. Without it the features are k(x, X_fit), all training samples.
    landmarks : {"uniform", "leverage", "kmeans++", "cholesky"}
        How they are chosen; see `rntk_dist.solve.landmarks`. All but the first look at the kernel,
        which is computed for that and not kept; where fewer samples differ, "kmeans++" and
        "cholesky" take fewer.
    random_state : int, RandomState or None
        What landmarks are drawn by.
    kind, dtype, backend, store, memory
        As for `RNTKClassifier`.

    Attributes
    ----------
    components_ : Sequences
        The landmarks, or all training samples.
    component_indices_ : (features,) array
        Which of the training samples they are.
    normalization_ : (features, features) array or None
        k(B, B)^(-1/2); where k(B, B) is singular, on what is not.
    kernel_ : RNTK
    n_features_in_ : int
        Steps T, if the training samples were an array.

    Examples
    --------
    >>> import rntk_dist as rd
    >>> X = [[1.0, 2.0, 3.0], [0.5, 1.0], [-1.0, -2.0, -2.5]]
    >>> rd.RNTKTransformer(n_components=2, random_state=0).fit_transform(X).shape
    (3, 2)
    """

    def __init__(
        self,
        kernel: RNTK | None = None,
        n_components: int | None = None,
        *,
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
        self.n_components = n_components
        self.landmarks = landmarks
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Take n sequences as training samples; raises ValueError for more landmarks than those."""
        sequences = self._begin(X)
        self.component_indices_ = self._chosen(sequences)
        self.components_ = sequences[self.component_indices_]
        self.normalization_ = None
        if self.n_components is not None:
            self.normalization_ = inverse_root(self.values_.square(self.components_))
        self._n_features_out = len(self.components_)
        return self

    def transform(self, X: Any) -> Float64:
        """The features (m, features) of m sequences."""
        check_is_fitted(self)
        sequences = sequences_of(self, X, reset=False)
        across = self.values_.across(sequences, self.components_)
        return across if self.normalization_ is None else across @ self.normalization_

    def _chosen(self, X: Sequences) -> NDArray[np.int64]:
        require_one_of("landmarks", self.landmarks, RULES)
        n, random = len(X), check_random_state(self.random_state)
        if self.n_components is None:
            return np.arange(n)
        if not 1 <= self.n_components <= n:
            raise ValueError(
                f"n_components is {self.n_components} for {n} training samples: give 1 to {n}, or "
                "None for all of them"
            )
        if self.landmarks == "uniform":
            return np.sort(random.permutation(n)[: self.n_components])
        matrix = self._computed(X)
        seed = int(random.randint(2**31))
        return choose_landmarks(matrix, self.n_components, self.landmarks, seed).indices
