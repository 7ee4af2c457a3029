"""What fits into memory, and symmetric matrices read into it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import psutil
from numpy.typing import NDArray

from rntk_dist.operators import Operator
from rntk_dist.solve.systems import Float64, SolverMemoryError

GIB = 2**30


def resident() -> int:
    """Bytes that this process has."""
    return int(psutil.Process().memory_info().rss)


def allowed(memory: int | None) -> int:
    """Bytes that this process may take in all; by default what it has and half of what is free."""
    return resident() + psutil.virtual_memory().available // 2 if memory is None else memory


def require_room(needed: int, memory: int | None, what: str, way_out: str) -> None:
    """Raise SolverMemoryError, which says both, unless `needed` bytes are left of `memory`."""
    left = allowed(memory) - resident()
    if needed > left:
        raise SolverMemoryError(
            f"{what} needs {needed / GIB:.2f} GiB, and {max(left, 0) / GIB:.2f} GiB are left: "
            f"{way_out}, or give more memory"
        )


def panels(n: int, edge: int) -> Iterator[NDArray[np.int64]]:
    """The indices below n, so many at a time."""
    for start in range(0, n, edge):
        yield np.arange(start, min(start + edge, n))


def upper(matrix: Operator) -> Float64:
    """An array (n, n) with K on and above its diagonal; every tile is read once."""
    n = len(matrix)
    out = np.empty((n, n))
    for rows in panels(n, matrix.edge):
        out[rows[0] : rows[-1] + 1, rows[0] :] = matrix.block(rows, np.arange(rows[0], n))
    return out


def mirror(square: Float64, edge: int = 256) -> None:
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


def whole(matrix: Operator) -> Float64:
    """A new array (n, n) of a symmetric matrix; every tile is read once.

    Takes 8 n^2 bytes, and one row of blocks while it is read.
    """
    out = upper(matrix)
    mirror(out)
    return out
