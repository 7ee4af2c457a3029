"""Cholesky's factorisation of a matrix that does not fit into memory, on disk.

The factor L of K + alpha I = L L^T is a Zarr array in a folder: one chunk a block, on and below the
diagonal, each with its CRC-32C. It is made panel by panel from left to right (left-looking): a
panel is read from K, all that stands left of it is subtracted, it is factorised and stored. A
stored block is final, so a killed process loses the panel it was at; the same call goes on
there. The factor alone is the truth: which blocks are stored says how far it is.

I/O: the triangle of K once, n^3 / (6 edge) values of the factor, and the factor written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from scipy.linalg import blas, lapack

from rntk_dist.in_order import one_ahead
from rntk_dist.operators import Operator
from rntk_dist.solve.folder_array import FolderArray
from rntk_dist.solve.systems import (
    Float64,
    Solution,
    SolverMemoryError,
    Systems,
    not_positive,
    rounding,
)
from rntk_dist.store import IdentityError

MIB = 2**20
RESERVE = 48 * MIB
"""What BLAS, Zarr and the allocator take besides arrays."""

BLOCKS = 6
"""Blocks in memory besides the panel: three factors, one being read, and copies of what is read or
written."""

LEAST_EDGE = 64
_KIND = FolderArray("factor", "not a factor", 1)


class DamagedFactorError(ValueError):
    """A stored block does not match its checksum; the message says what to do."""


def solve_on_disk(
    systems: Systems,
    folder: Path,
    *,
    memory: int,
    edge: int | None = None,
    leave_one_out: bool = False,
    on_panel: Callable[[int, int], None] | None = None,
) -> Solution:
    """The solution of all systems by factors in a folder, one for each alpha; they stay there.

    Leave-one-out errors take as many operations and as much reading again, and are not kept.

    `memory` is what this process may take in all, libraries included, in bytes. `edge` is the width
    of a panel, by default the widest that this allows; a factor that was begun keeps its own.
    `on_panel` gets the panels done and their number. Raises what `Factor` and `factorise` raise.
    """
    x = np.empty_like(systems.targets)
    errors = np.empty_like(x) if leave_one_out else None
    for alpha, columns in systems.groups():
        factor = Factor.at(folder / f"alpha-{alpha!r}", systems.matrix, alpha, memory, edge)
        factor.factorise(systems.matrix, on_panel)
        x[:, columns] = factor.solve(systems.targets[:, columns])
        if errors is not None:
            errors[:, columns] = x[:, columns] / factor.inverse_diagonal()[:, None]
    return Solution(x, systems.relative(systems.residuals(x)), errors)


def disk_needed(n: int, n_alphas: int) -> int:
    """Bytes of the factors, about."""
    return 8 * n_alphas * n * (n + LEAST_EDGE) // 2


def memory_needed(n: int, edge: int, matrix: Operator) -> int:
    """Bytes of arrays while a panel of width `edge` of a matrix of n samples is made."""
    tile = min(matrix.edge, n) ** 2 * matrix.dtype.itemsize
    return 8 * (n * edge + BLOCKS * edge * edge) + 3 * tile


def choose_edge(matrix: Operator, memory: int) -> int:
    """The widest panel that this process can make without taking more than `memory` in all.

    A multiple of 64, and of the matrix's own edge where it is wider than that. Raises
    SolverMemoryError where there is none.
    """
    n, taken = len(matrix), psutil.Process().memory_info().rss + RESERVE
    fits = [
        edge
        for edge in range(LEAST_EDGE, n + LEAST_EDGE, LEAST_EDGE)
        if taken + memory_needed(n, edge, matrix) <= memory
    ]
    if not fits:
        least = taken + memory_needed(n, LEAST_EDGE, matrix)
        raise SolverMemoryError(
            f"a factorisation of {n} samples needs {least / MIB:.0f} MiB at least, of which this "
            f"process holds {taken / MIB:.0f} already, and {memory / MIB:.0f} MiB are given: give "
            "more memory, or solve by conjugate gradients"
        )
    widest = fits[-1]
    return min(n, widest // matrix.edge * matrix.edge if widest > matrix.edge else widest)


@dataclass(frozen=True, eq=False)
class Factor:
    """A factor in a folder, whole or being made: blocks of `edge` samples a side."""

    folder: Path
    array: zarr.Array[Any]
    n: int
    edge: int
    alpha: float

    @classmethod
    def at(
        cls, folder: Path, matrix: Operator, alpha: float, memory: int, edge: int | None = None
    ) -> Factor:
        """The factor of a matrix plus alpha: what is in the folder, or an empty one.

        Raises IdentityError if the folder holds another factor, StoreFormatError if it holds
        something else, SolverMemoryError if no panel fits.
        """
        wanted = {"matrix": matrix.identity, "alpha": alpha, "samples": len(matrix)}
        found = _KIND.found(folder)
        if found is None:
            width = choose_edge(matrix, memory) if edge is None else min(edge, len(matrix))
            found = _KIND.begin(folder, {**wanted, "edge": width})
        differing = [name for name, value in wanted.items() if found.get(name) != value]
        if differing:
            raise IdentityError(
                f"{folder} holds a factor of another matrix, which differs in "
                f"{', '.join(differing)}: choose another folder, or remove this one"
            )
        n, width = len(matrix), found["edge"]
        array = _KIND.opened(folder, (n, n), (width, width), np.dtype(np.float64))
        return cls(folder, array, n, width, alpha)

    @property
    def panels(self) -> int:
        """How many there are."""
        return -(-self.n // self.edge)

    def missing(self) -> list[int]:
        """The panels of which a block is not stored."""
        return [
            panel
            for panel in range(self.panels)
            if not all(self._path(row, panel).exists() for row in range(panel, self.panels))
        ]

    # -- making ------------------------------------------------------------------------------------

    def factorise(
        self, matrix: Operator, on_panel: Callable[[int, int], None] | None = None
    ) -> None:
        """Make the panels that are missing.

        Raises NotPositiveDefiniteError; DamagedFactorError for a stored block that cannot be read.
        """
        missing = self.missing()
        for count, panel in enumerate(missing, 1):
            blocks = self._read_panel(matrix, panel)
            self._subtract(blocks, panel)
            self._finish(matrix, blocks, panel)
            for row, block in blocks.items():
                self.array[self._span(row), self._span(panel)] = block
            if on_panel is not None:
                on_panel(self.panels - len(missing) + count, self.panels)

    def _read_panel(self, matrix: Operator, panel: int) -> dict[int, Float64]:
        """Of K + alpha I the blocks of a panel on and below the diagonal, each a C array."""
        cols = np.arange(*self._bounds(panel))
        # One array for all: many large ones would each be mapped and unmapped anew.
        whole = np.empty((self.n - int(cols[0]), len(cols)))
        blocks = {}
        for row in range(panel, self.panels):
            rows = np.arange(*self._bounds(row))
            blocks[row] = whole[rows[0] - cols[0] : rows[-1] + 1 - cols[0]]
            blocks[row][:] = matrix.block(rows, cols)
        np.fill_diagonal(blocks[panel], blocks[panel].diagonal() + self.alpha)
        return blocks

    def _subtract(self, blocks: dict[int, Float64], panel: int) -> None:
        """What the panels left of this one take from it: blocks[i] -= sum_k L[i, k] L[panel, k]^T.

        Fortran's order reads a C array as its transpose, so BLAS works on these in place.
        """
        pairs = [(row, k) for k in range(panel) for row in range(panel, self.panels)]
        own: Float64 = np.empty((0, 0))
        for (row, _), block in zip(pairs, one_ahead(self._read, pairs), strict=True):
            if row == panel:
                own = block
                blas.dsyrk(-1.0, own.T, beta=1.0, c=blocks[row].T, trans=1, lower=0, overwrite_c=1)
            else:
                blas.dgemm(
                    *(-1.0, own.T, block.T),
                    beta=1.0,
                    c=blocks[row].T,
                    trans_a=1,
                    overwrite_c=1,
                )

    def _finish(self, matrix: Operator, blocks: dict[int, Float64], panel: int) -> None:
        """Factorise the panel's own block and divide those below by it."""
        own = blocks[panel]
        _, order = lapack.dpotrf(own.T, lower=0, clean=1, overwrite_a=1)
        if order:
            where = f"which shows in its leading {panel * self.edge + order} samples"
            scale = float(matrix.diag().max())
            raise not_positive(matrix, self.alpha, where, rounding(matrix, scale))
        for row in range(panel + 1, self.panels):
            blas.dtrsm(1.0, own.T, blocks[row].T, lower=0, trans_a=1, overwrite_b=1)

    # -- solving -----------------------------------------------------------------------------------

    def solve(self, targets: Float64) -> Float64:
        """The solution (n, c) for right-hand sides (n, c); reads the factor twice.

        Raises DamagedFactorError for a block that cannot be read.
        """
        x = np.array(targets, order="C")
        self._divide(x)
        for row, col, block in self._blocks(forward=False):
            here, there = x[slice(*self._bounds(row))], x[slice(*self._bounds(col))]
            if row == col:
                here[:] = _divided(block, here, transposed=True)
            else:
                there -= block.T @ here
        return x

    def inverse_diagonal(self) -> Float64:
        """The diagonal (n,) of (K + alpha I)^-1, from L^-1, of which it holds a panel at a time.

        Takes n^3 / 3 operations, and reads as much as making the factor did. Raises
        DamagedFactorError for a block that cannot be read.
        """
        out = np.empty(self.n)
        for panel in range(self.panels):
            start, stop = self._bounds(panel)
            columns = np.eye(self.n - start, stop - start)
            self._divide(columns, panel)
            # No array of squares: the panel is all that the memory was counted for.
            out[start:stop] = np.einsum("ij,ij->j", columns, columns)
        return out

    def _divide(self, x: Float64, first: int = 0) -> None:
        """L^-1 x in place, where x (n - start of the first panel, c) is 0 above that panel."""
        start = self._bounds(first)[0]
        for row, col, block in self._blocks(forward=True, first=first):
            here, there = (x[slice(*np.subtract(self._bounds(at), start))] for at in (row, col))
            if row == col:
                here[:] = _divided(block, here, transposed=False)
            else:
                here -= block @ there

    def _blocks(self, *, forward: bool, first: int = 0) -> Iterator[tuple[int, int, Float64]]:
        """All blocks from a panel on: column by column downwards, or the other way round."""
        columns = range(first, self.panels)
        order = [(row, col) for col in columns for row in range(col, self.panels)]
        if not forward:
            order.reverse()
        for (row, col), block in zip(order, one_ahead(self._read, order), strict=True):
            yield row, col, block

    # -- blocks ------------------------------------------------------------------------------------

    def _read(self, at: tuple[int, int]) -> Float64:
        row, col = at
        try:
            block = self.array[self._span(row), self._span(col)]
        except ValueError as error:  # what Zarr's crc32c codec raises
            raise DamagedFactorError(
                f"{self._path(row, col)} is damaged ({error}): remove it, and the same call makes "
                f"panel {col} again"
            ) from error
        return np.ascontiguousarray(block, dtype=np.float64)

    def _bounds(self, block: int) -> tuple[int, int]:
        return block * self.edge, min((block + 1) * self.edge, self.n)

    def _span(self, block: int) -> slice:
        return slice(*self._bounds(block))

    def _path(self, row: int, col: int) -> Path:
        return _KIND.chunk(self.folder, row, col)


def _divided(block: Float64, right: Float64, *, transposed: bool) -> Float64:
    """L^-1 right, or L^-T right, of the lower triangle L in a block on the diagonal."""
    found: Float64 = blas.dtrsm(1.0, block.T, right, lower=0, trans_a=0 if transposed else 1)
    return found
