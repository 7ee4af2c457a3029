"""Kernel PCA of matrices of any size: the widest directions of the samples in feature space."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rntk_dist.operators import Centered, Operator
from rntk_dist.solve.eigen import largest_eigenpairs
from rntk_dist.solve.systems import Float64, across_of, operator_of


class KernelPCA:
    """As scikit-learn's KernelPCA with kernel="precomputed", by products with the matrix alone.

    Parameters
    ----------
    n_components : int
    oversampling, tol, max_products, seed, memory
        As for `largest_eigenpairs`.

    Attributes
    ----------
    eigenvalues_ : (k,) array
        Of the centred matrix, descending; what is rounding is 0.
    eigenvectors_ : (n, k) array
        Of norm 1; the largest entry of each, by its size, is positive.
    residuals_ : (k,) array
        How far each is from being an eigenpair; see `Eigenpairs`.
    shares_ : (k,) array
        Of the variance that each direction has of all.
    means_ : (n,) array
        The kernel of each training sample, averaged over all.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.random.default_rng(0).normal(size=(40, 3)) * [3, 2, 1]
    >>> scores = KernelPCA(2).fit_transform(points @ points.T)
    >>> scores.shape
    (40, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        oversampling: int = 10,
        tol: float = 1e-6,
        max_products: int = 30,
        seed: int = 0,
        memory: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.oversampling, self.tol, self.max_products = oversampling, tol, max_products
        self.seed, self.memory = seed, memory

    def fit(self, X: Operator | ArrayLike) -> Self:
        """Of the symmetric kernel (n, n) of the training samples, which is centred here.

        One product more than `largest_eigenpairs` makes. Raises what that raises.
        """
        centred = Centered(operator_of(X))
        found = largest_eigenpairs(
            centred,
            self.n_components,
            oversampling=self.oversampling,
            tol=self.tol,
            max_products=self.max_products,
            seed=self.seed,
            memory=self.memory,
        )
        self.means_ = centred.column_means
        rounding = len(centred) * np.finfo(np.float64).eps * max(found.values[0], 0.0)
        self.eigenvalues_ = np.where(found.values > rounding, found.values, 0.0)
        self.eigenvectors_ = _flipped(found.vectors)
        self.residuals_ = found.residuals
        self.shares_ = self.eigenvalues_ / centred.diag().sum()
        return self

    def fit_transform(self, X: Operator | ArrayLike) -> Float64:
        """The scores (n, k) of the training samples along the directions; no further product."""
        self.fit(X)
        scores: Float64 = self.eigenvectors_ * np.sqrt(self.eigenvalues_)
        return scores

    def transform(self, X: Operator | ArrayLike) -> Float64:
        """The scores (q, k) of samples, from their kernel (q, n) with the training samples.

        One product with that. Raises ValueError for another number of columns.
        """
        n = len(self.means_)
        across = across_of(X, n)
        roots = np.sqrt(self.eigenvalues_)
        directions = np.divide(
            self.eigenvectors_, roots, out=np.zeros_like(self.eigenvectors_), where=roots > 0
        )
        # Centred as `Centered` does it, by means that are known, in one product with the rows' own.
        found = across.product(np.column_stack([directions, np.full(n, 1.0 / n)]))
        scores, row_means = found[:, :-1], found[:, -1:]
        level = self.means_.mean() * directions.sum(axis=0) - self.means_ @ directions
        centred: Float64 = scores - row_means * directions.sum(axis=0) + level
        return centred


def _flipped(vectors: Float64) -> Float64:
    """With scikit-learn's signs: the largest entry of each column, by its size, is positive."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    flipped: Float64 = vectors * np.where(largest < 0, -1.0, 1.0)
    return flipped
