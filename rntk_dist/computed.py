"""A kernel matrix whose values are computed whenever they are needed, and never stored.

`Computed` is an `Operator`, so solvers and views take it wherever they take a stored matrix. It is
for matrices that no disk holds: a product computes every pair once, and memory is that of the tiles
in hand.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, override

import numpy as np
from distributed import Client

from rntk_dist.cluster_product import OnCluster
from rntk_dist.in_order import in_order
from rntk_dist.kernel.backends import fastest_backend
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.operators import Block, Float64, Indices, Operator
from rntk_dist.plan import Plan, Tile
from rntk_dist.sequences import Sequences
from rntk_dist.tile_product import multiply

if TYPE_CHECKING:
    import dask.array as da

EDGE = 1024
"""Of a tile: what is prepared once a sequence is 3 % of what is computed a pair, at 64 steps."""

LEAST_ROWS = 64
"""Of a part that a thread computes, as in `rntk_dist.plan`."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which kernel of which samples, cut into which tiles; `Y` is None where those are X again.

    It travels to workers, and is there what a store is of a stored matrix.
    """

    kernel: RNTK
    X: Sequences
    Y: Sequences | None
    kind: Kind
    dtype: np.dtype[np.floating[Any]]
    backend: Backend
    plan: Plan

    def opener(self) -> Callable[[], Pairs]:
        """What gives the same on another machine."""
        return partial(_itself, self)

    def read_tile(self, tile: Tile) -> Block:
        """The values of a tile, computed."""
        rows, cols = slice(*self.plan.rows(tile)), slice(*self.plan.cols(tile))
        with _counted_from(rows.start, cols.start):
            if self.plan.is_diagonal(tile):
                return self._compare(self.X[rows], None)
            return self._compare(self.X[rows], self._columns[cols])

    def square(self, samples: Indices) -> Pairs:
        """Of some of the samples with themselves; each is there once."""
        n = len(samples)
        plan = Plan(n, n, self.plan.tile, True, self.plan.itemsize)
        X = self.X[samples]
        return Pairs(self.kernel, X, None, self.kind, self.dtype, self.backend, plan)

    def values(self, rows: Indices, cols: Indices) -> Block:
        """(len(rows), len(cols)); a sample meets itself as on the diagonal, bit by bit."""
        with _counted_from(int(rows[0]), int(cols[0])):
            out = self._compare(self.X[rows], self._columns[cols])
        if self.Y is None:
            for at in np.flatnonzero(np.isin(rows, cols)):
                out[at, cols == rows[at]] = self._diag(self.X[rows[at : at + 1]])
        return out

    def diag(self) -> Block:
        """(n,): of each sample with itself."""
        return self._diag(self.X)

    def identity(self) -> str:
        """A SHA-256, in hex, of the kernel, the samples and the number type."""
        others = None if self.Y is None else self.Y.fingerprint
        what = {
            "computed": [self.X.fingerprint, others],
            "kernel": self.kernel.to_dict(),
            "kind": self.kind,
            "dtype": self.dtype.name,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def _columns(self) -> Sequences:
        return self.X if self.Y is None else self.Y

    def _compare(self, X: Sequences, Y: Sequences | None) -> Block:
        return self.kernel(X, Y, kind=self.kind, dtype=self.dtype, backend=self.backend)

    def _diag(self, X: Sequences) -> Block:
        return self.kernel.diag(X, kind=self.kind, dtype=self.dtype)


class Computed(Operator):
    """The kernel (n, n) of sequences with themselves, or (n, m) with others, never stored.

    `matrix @ V` computes every pair once, those of a symmetric matrix for both of their places, and
    so does every further product. `threads` tiles of `edge` squared values are in hand, besides the
    sequences and the columns.

    Parameters
    ----------
    kernel : RNTK
    X, Y : Sequences, or what `Sequences.from_arrays` takes
        n samples, and m others for a rectangular matrix. Samples of X and Y are different samples,
        even where their values agree.
    kind, dtype, backend
        As for `RNTK.__call__`.
    edge : int
        Of a tile.
    threads : int, optional
        By default one a core; one where a GPU computes.

    Raises
    ------
    ValueError
        What the kernel cannot compare, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> import rntk_dist as rd
    >>> X = np.random.default_rng(0).normal(size=(50, 8))
    >>> matrix = Computed(rd.RNTK(), X)
    >>> bool(np.allclose(matrix @ np.ones(50), rd.RNTK()(X).sum(axis=1)))
    True
    """

    def __init__(
        self,
        kernel: RNTK,
        X: Any,
        Y: Any = None,
        *,
        kind: Kind = "ntk",
        dtype: DType | np.dtype[Any] | type = "float64",
        backend: Backend = "auto",
        edge: int = EDGE,
        threads: int | None = None,
    ) -> None:
        rows = Sequences.from_arrays(X)
        cols = None if Y is None else Sequences.from_arrays(Y)
        number = check_run_options(kind, dtype, backend)
        kernel.check_sequences(rows, cols)
        m = len(rows if cols is None else cols)
        plan = Plan(len(rows), m, edge, cols is None, number.itemsize)
        self.pairs = Pairs(kernel, rows, cols, kind, number, backend, plan)
        self.threads = _usual_threads(backend) if threads is None else threads

    # -- as any operator ---------------------------------------------------------------------------

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self.pairs.plan.shape

    @property
    @override
    def dtype(self) -> np.dtype[np.floating[Any]]:
        return self.pairs.dtype

    @property
    @override
    def symmetric(self) -> bool:
        return self.pairs.plan.symmetric

    @property
    @override
    def edge(self) -> int:
        return self.pairs.plan.tile

    @cached_property
    @override
    def identity(self) -> str:
        return self.pairs.identity()

    def __repr__(self) -> str:
        n, m = self.shape
        return f"Computed({n} x {m} {self.dtype.name} {self.pairs.kind}, {self.pairs.kernel})"

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        """(n, k), or transposed (m, k); its bits do not depend on the number of threads."""
        pairs = self.pairs
        return multiply(pairs.read_tile, pairs.plan, V, transposed=transposed, threads=self.threads)

    @override
    def block(self, rows: Indices, cols: Indices) -> Block:
        """Computed by all threads; of samples with themselves, each pair once."""
        if not (len(rows) and len(cols)):
            return np.empty((len(rows), len(cols)), self.dtype)
        if self.symmetric and _same(rows, cols):
            return self._square(rows)
        out = np.empty((len(rows), len(cols)), self.dtype)

        def fill(part: slice) -> None:
            out[part] = self.pairs.values(rows[part], cols)

        for _ in in_order(fill, self._parts(len(rows)), self.threads):
            pass
        return out

    @override
    def diag(self) -> Block:
        if not self.symmetric:
            n, m = self.shape
            raise ValueError(f"the {n} x {m} kernel of two sets of samples has no diagonal")
        return self.pairs.diag()

    @override
    def to_dask(self) -> da.Array:
        """One block a tile; a mirrored one is its counterpart's transpose, not computed again."""
        import dask.array as da  # here, for it takes pandas along: most of a second
        from dask.delayed import delayed

        plan, source = self.pairs.plan, delayed(self.pairs, traverse=False)
        stored = {
            tile: da.from_delayed(source.read_tile(tile), plan.block_shape(tile), self.dtype)
            for tile in plan.tiles()
        }
        height, width = plan.grid
        rows = [
            [
                stored[Tile(i, j)] if Tile(i, j) in stored else stored[Tile(j, i)].T
                for j in range(width)
            ]
            for i in range(height)
        ]
        whole: da.Array = da.block(rows)
        return whole

    # -- on a cluster ------------------------------------------------------------------------------

    def distribute(self, client: Client, room: int | None = None) -> OnCluster:
        """The matrix with products computed on a cluster, each worker its share of the tiles.

        A context manager. Every worker process gets the sequences once, and keeps up to `room`
        bytes of the tiles that it has computed, by default half its memory limit: what fits is
        computed once, the rest anew in each product.

        Raises NoWorkerError if there is no worker.
        """
        return OnCluster(self, self.pairs, client, room)

    # -- how ---------------------------------------------------------------------------------------

    def _parts(self, n: int) -> Iterator[slice]:
        """Of n rows: as many for each thread, no more than `edge`."""
        each = max(min(self.edge, -(-n // self.threads)), LEAST_ROWS)
        return (slice(start, start + each) for start in range(0, n, each))

    def _square(self, samples: Indices) -> Block:
        pairs, n = self.pairs.square(samples), len(samples)
        out, plan = np.empty((n, n), self.dtype), pairs.plan

        def fill(tile: Tile) -> None:
            rows, cols = slice(*plan.rows(tile)), slice(*plan.cols(tile))
            values = pairs.read_tile(tile)
            out[rows, cols] = values
            if not plan.is_diagonal(tile):
                out[cols, rows] = values.T

        for _ in in_order(fill, plan.tiles(), self.threads):
            pass
        return out


def _itself(pairs: Pairs) -> Pairs:
    return pairs


def _same(rows: Indices, cols: Indices) -> bool:
    """Whether they are the same samples in the same order, each of them once."""
    return np.array_equal(rows, cols) and len(np.unique(rows)) == len(rows)


def _usual_threads(backend: Backend) -> int:
    name = fastest_backend() if backend == "auto" else backend
    return 1 if name == "cupy" else os.cpu_count() or 1


@contextmanager
def _counted_from(row: int, col: int) -> Iterator[None]:
    """Say in an OverflowError where its sequence numbers, which count from a part's, start."""
    try:
        yield
    except OverflowError as error:
        where = f"in the part whose rows begin at sequence {row} and columns at sequence {col}"
        raise OverflowError(f"{where}, and are counted from there: {error}") from error
