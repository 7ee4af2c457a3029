"""Direct solution by Cholesky's factorisation, of all alphas in the memory of one matrix.

The array holds K above its diagonal throughout; below is where each alpha in turn is factorised.
Peak memory is 8 n^2 bytes, and one row of blocks while the matrix is read. Nothing is stored: what
is killed begins anew.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from rntk_dist.solve.systems import Float64, Solution, Systems, not_positive, rounding


def bytes_needed(n: int, edge: int, columns: int) -> int:
    """Peak memory of `solve_in_memory` for n samples."""
    return 8 * n * (n + 2 * min(edge, n) + 4 * columns)


def solve_in_memory(systems: Systems, *, leave_one_out: bool = False) -> Solution:
    """The solution of all systems; each alpha takes n^3 / 3 operations, leave-one-out as many more.

    Raises NotPositiveDefiniteError.
    """
    square = _upper(systems)
    diagonal = square.diagonal().copy()
    x = np.empty_like(systems.targets)
    errors = np.empty_like(x) if leave_one_out else None
    for alpha, columns in systems.groups():
        _mirror(square)
        np.fill_diagonal(square, diagonal + alpha)
        _factorise(systems, square, alpha, float(diagonal.max()))
        # Fortran's order reads the rows of the factor below as the columns of its transpose.
        found, _ = lapack.dpotrs(square.T, systems.targets[:, columns], lower=0)
        x[:, columns] = found
        if errors is not None:
            errors[:, columns] = found / _inverse_diagonal(square)[:, None]
    del square
    return Solution(x, systems.relative(systems.residuals(x)), errors)


def _upper(systems: Systems) -> Float64:
    """An array (n, n) with K on and above its diagonal; every tile is read once."""
    matrix, n = systems.matrix, len(systems.matrix)
    out = np.empty((n, n))
    for start in range(0, n, matrix.edge):
        rows = np.arange(start, min(start + matrix.edge, n))
        out[start : start + len(rows), start:] = matrix.block(rows, np.arange(start, n))
    return out


def _mirror(square: Float64, edge: int = 256) -> None:
    """Put what is above the diagonal below it, too; in blocks, for the cache."""
    n = len(square)
    for row in range(0, n, edge):
        for col in range(0, row, edge):
            square[row : row + edge, col : col + edge] = square[
                col : col + edge, row : row + edge
            ].T
        block = square[row : row + edge, row : row + edge]
        below = np.tril_indices(len(block), -1)
        block[below] = block.T[below]


def _factorise(systems: Systems, square: Float64, alpha: float, scale: float) -> None:
    """The factor in place of what is below and on the diagonal."""
    _, order = lapack.dpotrf(square.T, lower=0, clean=0, overwrite_a=1)
    if order:
        where = f"which shows in its leading {order} samples"
        raise not_positive(systems.matrix, alpha, where, rounding(systems.matrix, scale))


def _inverse_diagonal(square: Float64, edge: int = 256) -> Float64:
    """The diagonal (n,) of the inverse, from the factor, which is lost."""
    lapack.dtrtri(square.T, lower=0, overwrite_c=1)
    out = np.zeros(len(square))
    for start in range(0, len(square), edge):
        stop = min(start + edge, len(square))
        out[:start] += (square[start:stop, :start] ** 2).sum(axis=0)
        out[start:stop] += (np.tril(square[start:stop, start:stop]) ** 2).sum(axis=0)
    return out
