"""The largest eigenvalues of a symmetric matrix that is only multiplied with, and their error.

Randomised subspace iteration: N. Halko, P.-G. Martinsson and J. A. Tropp, "Finding structure with
randomness" (SIAM Review 2011), algorithms 4.4 and 5.3, with a Rayleigh-Ritz step after each product
so that every product says how far the eigenpairs are from being some.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, qr

from rntk_dist.operators import Operator
from rntk_dist.solve.memory import require_room
from rntk_dist.solve.systems import Float64


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The k largest `values` (k,), descending, and their orthonormal `vectors` (n, k).

    `residuals` (k,) are |K v - value v|. Within that distance of each value there is an eigenvalue
    of K (B. N. Parlett, The Symmetric Eigenvalue Problem, theorem 4.5.1). `products` were made.
    """

    values: Float64
    vectors: Float64
    residuals: Float64
    products: int


def largest_eigenpairs(
    matrix: Operator,
    count: int,
    *,
    oversampling: int = 10,
    tol: float = 1e-6,
    max_products: int = 30,
    seed: int = 0,
    memory: int | None = None,
) -> Eigenpairs:
    """The `count` largest eigenvalues of a symmetric, positive semi-definite matrix (n, n).

    Products with count + oversampling columns at a time, until all residuals are at most `tol`
    times the largest value, or `max_products` were made; what comes out says how good it is.
    Memory is 40 n (count + oversampling) bytes, and that of the product.

    Raises ValueError for a matrix that is not symmetric or a count not in 1..n, SolverMemoryError
    if that does not fit into `memory`: what this process may take in all, in bytes, by default what
    it has and half of what is free.
    """
    n, width = len(matrix), min(count + oversampling, len(matrix))
    _check(matrix, count, tol, max_products)
    require_room(40 * n * width, memory, f"{width} columns of {n} samples", "ask for fewer")
    start = np.random.default_rng(seed).standard_normal((n, width))
    Q = _orthonormal(start)
    for products in range(1, max_products + 1):
        Y = matrix.product(Q)
        found = _ritz(Q, Y, count, products)
        if products == max_products or found.residuals.max() <= tol * abs(found.values[0]):
            break
        Q = _orthonormal(Y)
    return found


def _check(matrix: Operator, count: int, tol: float, max_products: int) -> None:
    n, m = matrix.shape
    if not matrix.symmetric:
        raise ValueError(f"found a matrix of shape {n} x {m}: give a symmetric one for eigenvalues")
    if not 1 <= count <= n:
        raise ValueError(f"{count} eigenvalues are asked of a matrix of order {n}: give 1 to {n}")
    if not tol >= 0 or max_products < 1:
        raise ValueError(
            f"tol is {tol} and max_products {max_products}: give at least 0, and at least 1"
        )


def _orthonormal(Y: Float64) -> Float64:
    Q: Float64 = qr(Y, mode="economic", overwrite_a=True, check_finite=False)[0]
    return Q


def _ritz(Q: Float64, Y: Float64, count: int, products: int) -> Eigenpairs:
    """What the span of Q (n, width) says, with Y = K Q."""
    small = Q.T @ Y
    values, turns = eigh((small + small.T) / 2)
    values, turns = values[::-1][:count], turns[:, ::-1][:, :count]
    vectors = Q @ turns
    left = np.linalg.norm(Y @ turns - vectors * values, axis=0)
    return Eigenpairs(values, vectors, left, products)
