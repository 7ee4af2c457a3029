"""A preconditioner of low rank, by randomly pivoted Cholesky.

Y. Chen, E. N. Epperly, J. A. Tropp, R. J. Webber, "Randomly pivoted Cholesky: Practical
approximation of a kernel matrix with few entry evaluations" (2022); pivots are proposed in blocks
and accepted by rejection, which leaves their distribution as it is: E. N. Epperly, J. A. Tropp,
R. J. Webber, "Embrace rejection" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg import svd

from rntk_dist.operators import Indices, Operator
from rntk_dist.solve.systems import Float64

ROUNDS = 6
"""About as many walks over the matrix as a rank is divided by; each reads every tile once."""


class LikeAnInverse(Protocol):
    """What stands for the inverse of K + alpha I in an iteration."""

    @property
    def remedy(self) -> str:
        """What of it to raise where the iteration takes too long."""
        ...

    def solve(self, R: Float64, alphas: Float64) -> Float64:
        """An approximate solution (n, c) for right-hand sides R (n, c), each with its alpha."""
        ...


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """K is about U diag(values) U^T; U (n, rank) is orthonormal, `values` (rank,) descend."""

    U: Float64
    values: Float64

    @classmethod
    def of(cls, matrix: Operator, rank: int, seed: int) -> Preconditioner:
        """Of a symmetric matrix; of a lower rank where that leaves nothing.

        Peak memory is 24 n rank bytes.
        """
        U, roots, _ = svd(
            pivoted_cholesky(matrix, rank, np.random.default_rng(seed)),
            full_matrices=False,
            overwrite_a=True,
            check_finite=False,
        )
        return cls(U, roots**2)

    @property
    def remedy(self) -> str:
        """What of it to raise where the iteration takes too long."""
        return f"the rank of the preconditioner (now {len(self.values)})"

    def solve(self, R: Float64, alphas: Float64) -> Float64:
        """An approximate solution (n, c) for right-hand sides R (n, c), each with its alpha.

        What the approximation leaves out counts as its smallest eigenvalue, so that an alpha of 0
        is no exception. All is divided by that, which no iteration notices.
        """
        if not len(self.values):
            return R
        rest = max(self.values[-1], np.finfo(np.float64).eps * self.values[0])
        scale = (rest + alphas) / (self.values[:, None] + alphas) - 1.0
        Z: Float64 = R + self.U @ (scale * (self.U.T @ R))
        return Z


def pivoted_cholesky(matrix: Operator, rank: int, rng: np.random.Generator) -> Float64:
    """F (n, r), r <= rank, with F F^T near the symmetric matrix, from r of its columns.

    Stops early when what is left is rounding.
    """
    return pivoted_columns(matrix, rank, rng)[0]


def pivoted_columns(
    matrix: Operator, rank: int, rng: np.random.Generator
) -> tuple[Float64, Indices]:
    """What `pivoted_cholesky` gives, and which r columns it is made from, in their order."""
    n = len(matrix)
    left = np.maximum(matrix.diag().astype(np.float64), 0.0)
    least = np.finfo(matrix.dtype).eps * left.sum()
    F = np.zeros((n, min(rank, n)), order="F")
    pivots = np.zeros(F.shape[1], np.int64)
    size, known = -(-min(rank, n) // ROUNDS), 0
    while known < F.shape[1] and left.sum() > least:
        found, at = _block(matrix, F[:, :known], left, size, rng)
        found = found[:, : F.shape[1] - known]
        F[:, known : known + found.shape[1]] = found
        pivots[known : known + found.shape[1]] = at[: found.shape[1]]
        known += found.shape[1]
        left = np.maximum(left - (found**2).sum(axis=1), 0.0)
    return F[:, :known], pivots[:known]


def _block(
    matrix: Operator, F: Float64, left: Float64, size: int, rng: np.random.Generator
) -> tuple[Float64, Indices]:
    """Further columns of F, at most `size`, and their pivots, by one walk over the matrix.

    What is `left` (n,) of the diagonal is corrected where it was read, so that rounding is not
    proposed again.
    """
    proposed = rng.choice(len(left), size=size, p=left / left.sum())
    pivots, which = np.unique(proposed, return_inverse=True)
    values = matrix.block(np.arange(len(left)), pivots).astype(np.float64, copy=False)
    values -= F @ F[pivots].T
    columns: list[Float64] = []
    accepted: list[int] = []
    before = np.maximum(values[pivots, np.arange(len(pivots))], 0.0)
    left[pivots] = before
    for at in which:
        pivot = pivots[at]
        column = values[:, at].copy()
        for each in columns:
            column -= each * each[pivot]
        # Accepted with the odds by which the pivots before it have made it less likely.
        if column[pivot] > 0 and rng.random() * before[at] < column[pivot]:
            columns.append(column / np.sqrt(column[pivot]))
            accepted.append(int(pivot))
    found = np.stack(columns, axis=1) if columns else np.zeros((len(left), 0))
    return found, np.array(accepted, np.int64)
