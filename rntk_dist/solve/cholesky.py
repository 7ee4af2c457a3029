"""Direct solution by Cholesky's factorisation, of all alphas in the memory of one matrix.

The array holds K above its diagonal throughout; below is where each alpha in turn is factorised.
Peak memory is 8 n^2 bytes, and one row of blocks while the matrix is read. Nothing is stored: what
is killed begins anew. A `LowerFactor` is kept, for what takes more than one solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg import lapack

from rntk_dist.operators import Operator
from rntk_dist.solve.memory import mirror, upper, whole
from rntk_dist.solve.systems import Float64, Solution, Systems, not_positive, rounding


def bytes_needed(n: int, edge: int, columns: int) -> int:
    """Peak memory of `solve_in_memory`, and of a `LowerFactor`, for n samples."""
    return 8 * n * (n + 2 * min(edge, n) + 4 * columns)


def solve_in_memory(systems: Systems, *, leave_one_out: bool = False) -> Solution:
    """The solution of all systems; each alpha takes n^3 / 3 operations, leave-one-out as many more.

    Raises NotPositiveDefiniteError.
    """
    square = upper(systems.matrix)
    diagonal = square.diagonal().copy()
    x = np.empty_like(systems.targets)
    errors = np.empty_like(x) if leave_one_out else None
    for alpha, columns in systems.groups():
        mirror(square)
        np.fill_diagonal(square, diagonal + alpha)
        _factorise(systems.matrix, square, alpha, float(diagonal.max()))
        found = _solved(square, systems.targets[:, columns])
        x[:, columns] = found
        if errors is not None:
            errors[:, columns] = found / _inverse_diagonal(square)[:, None]
    del square
    return Solution(x, systems.relative(systems.residuals(x)), errors)


@dataclass(frozen=True, eq=False)
class LowerFactor:
    """L with L L' = K + diag(noise): the lower triangle of `square` (n, n), whatever is above."""

    square: Float64

    @classmethod
    def of(cls, matrix: Operator, noise: Float64) -> Self:
        """Factorise a symmetric matrix (n, n) plus noise (n,), in n^3 / 3 operations.

        Raises NotPositiveDefiniteError, which names the least noise.
        """
        square = whole(matrix)
        diagonal = square.diagonal().copy()
        np.fill_diagonal(square, diagonal + noise)
        _factorise(matrix, square, float(noise.min()), float(diagonal.max()))
        return cls(square)

    def solve(self, B: Float64) -> Float64:
        """(K + diag(noise))^-1 B (n, k)."""
        return _solved(self.square, B)

    def whiten(self, B: Float64) -> Float64:
        """L^-1 B (n, k); may overwrite B."""
        found: Float64 = lapack.dtrtrs(self.square.T, B, lower=0, trans=1, overwrite_b=1)[0]
        return found

    @property
    def log_determinant(self) -> float:
        """Of K + diag(noise)."""
        return 2.0 * float(np.log(self.square.diagonal()).sum())


def _solved(square: Float64, B: Float64) -> Float64:
    # Fortran's order reads the rows of the factor below as the columns of its transpose.
    found: Float64 = lapack.dpotrs(square.T, B, lower=0)[0]
    return found


def _factorise(matrix: Operator, square: Float64, alpha: float, scale: float) -> None:
    """The factor in place of what is below and on the diagonal."""
    _, order = lapack.dpotrf(square.T, lower=0, clean=0, overwrite_a=1)
    if order:
        where = f"which shows in its leading {order} samples"
        raise not_positive(matrix, alpha, where, rounding(matrix, scale))


def _inverse_diagonal(square: Float64, edge: int = 256) -> Float64:
    """The diagonal (n,) of the inverse, from the factor, which is lost."""
    lapack.dtrtri(square.T, lower=0, overwrite_c=1)
    out = np.zeros(len(square))
    for start in range(0, len(square), edge):
        stop = min(start + edge, len(square))
        out[:start] += (square[start:stop, :start] ** 2).sum(axis=0)
        out[start:stop] += (np.tril(square[start:stop, start:stop]) ** 2).sum(axis=0)
    return out
