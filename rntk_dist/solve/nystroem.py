"""Nystroem's features: of a kernel matrix what a few landmarks B say of it.

K is about K(., B) K(B, B)^-1 K(B, .) = F F^T with F = K(., B) K(B, B)^(-1/2). C. Williams and
M. Seeger, "Using the Nystroem method to speed up kernel machines" (2001). What is left, K - F F^T,
is positive semi-definite, so its trace bounds its norm and says how good the landmarks are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh

from rntk_dist.low_rank import Features, LowRank
from rntk_dist.operators import Indices, Operator
from rntk_dist.solve.landmarks import Landmarks, Rule, choose_landmarks, landmarks_of
from rntk_dist.solve.memory import panels, require_room
from rntk_dist.solve.row_store import RowStore
from rntk_dist.solve.systems import Float64, across_of

PANEL_BYTES = 64 * 2**20
"""Of a panel of features in a folder."""


class Nystroem:
    """Features of samples from their kernel with a few landmarks.

    Parameters
    ----------
    n_components : int
        How many landmarks m.
    rule : {"uniform", "leverage", "kmeans++", "cholesky"}
        How to choose them; see `rntk_dist.solve.landmarks`.
    seed : int
        What they are drawn by.

    Attributes
    ----------
    component_indices_ : (m,) array
        The landmarks, as indices of the samples.
    normalization_ : (m, m) array
        K(B, B)^(-1/2), and 0 where K(B, B) is 0 up to rounding.
    landmarks_ : Landmarks

    Examples
    --------
    >>> import numpy as np
    >>> from rntk_dist.operators import Dense
    >>> points = np.random.default_rng(0).normal(size=(60, 3))
    >>> found = Nystroem(3).fit(Dense(points @ points.T))
    >>> features = found.transform(points @ points[found.component_indices_].T)
    >>> bool(np.allclose(features @ features.T, points @ points.T))
    True
    """

    def __init__(self, n_components: int = 100, *, rule: Rule = "uniform", seed: int = 0) -> None:
        self.n_components, self.rule, self.seed = n_components, rule, seed

    def fit(self, X: Operator, landmarks: Landmarks | ArrayLike | None = None) -> Self:
        """Choose landmarks of the symmetric matrix (n, n), or take those that are given.

        Memory is 24 m^2 bytes, besides what choosing takes. Raises what `choose_landmarks` and
        `landmarks_of` raise.
        """
        if landmarks is None:
            self.landmarks_ = choose_landmarks(X, self.n_components, self.rule, self.seed)
        else:
            self.landmarks_ = landmarks_of(landmarks, len(X))
        self.component_indices_ = self.landmarks_.indices
        square = X.block(self.component_indices_, self.component_indices_)
        eps = float(np.finfo(square.dtype).eps)
        self.normalization_ = inverse_root(square.astype(np.float64), eps)
        return self

    def transform(self, X: Operator | ArrayLike) -> Float64:
        """The features (q, m) of samples, from their kernel (q, m) with the landmarks, in order.

        Raises ValueError for another number of columns.
        """
        across = across_of(X, len(self.landmarks_))
        return across @ self.normalization_

    def approximation(
        self, X: Operator, folder: str | Path | None = None, *, memory: int | None = None
    ) -> LowRank:
        """F F^T of all n samples of the matrix (n, n) that this was fitted to.

        F (n, m) is in memory, or with a folder in a Zarr array there, which a killed call goes on
        with. `memory` is what this process may take in all, in bytes; by default what it has and
        half of what is free.

        Raises SolverMemoryError where F does not fit, IdentityError where the folder holds another.
        """
        m, shape = len(self.landmarks_), (len(X), len(self.landmarks_))
        identity = self._identity(X)
        if folder is None:
            way_out = "give a folder for them, or take fewer landmarks"
            require_room(8 * shape[0] * m, memory, f"{shape[0]} x {m} features", way_out)
            features: Features = np.empty(shape)
            for rows, part in self._panels(X, X.edge):
                features[rows] = part
            return LowRank(features, identity)
        height = max(1, PANEL_BYTES // (8 * m))
        stored = RowStore.at(Path(folder), shape, np.dtype(np.float64), height, identity)
        for panel in range(stored.panels):
            if not stored.stored(panel):
                rows = np.arange(len(X))[stored.rows(panel)]
                stored.write(panel, self._features(X, rows))
        return LowRank(stored.array, identity)

    def _panels(self, X: Operator, height: int) -> Iterator[tuple[Indices, Float64]]:
        for rows in panels(len(X), height):
            yield rows, self._features(X, rows)

    def _features(self, X: Operator, rows: Indices) -> Float64:
        values = X.block(rows, self.component_indices_).astype(np.float64, copy=False)
        return values @ self.normalization_

    def _identity(self, X: Operator) -> str:
        digest = hashlib.sha256(f"nystroem {X.identity}".encode())
        digest.update(np.ascontiguousarray(self.component_indices_, np.int64).data)
        return digest.hexdigest()


def trace_residual(matrix: Operator, approximation: Operator) -> float:
    """trace(K - F F^T) / trace(K): 0 is exact, 1 is nothing.

    Of Nystroem's it bounds the largest eigenvalue that is left, in parts of the trace.
    """
    whole = float(matrix.diag().astype(np.float64).sum())
    return (whole - float(approximation.diag().sum())) / whole


def inverse_root(square: Float64, eps: float = float(np.finfo(np.float64).eps)) -> Float64:
    """K^(-1/2) of a positive semi-definite K (n, n), and 0 where K is 0 up to rounding.

    `eps` is that of the numbers in which its values were computed.
    """
    values, vectors = eigh(square)
    least = len(square) * eps * max(values[-1], 0.0)
    kept = values > least
    roots = vectors[:, kept] / np.sqrt(values[kept])
    found: Float64 = roots @ vectors[:, kept].T
    return found
