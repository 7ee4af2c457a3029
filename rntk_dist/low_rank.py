"""The matrix F F^T of features F (n, r), which are in memory or in a Zarr array."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, override

import numpy as np
import zarr

from rntk_dist.operators import DENSE_EDGE, Float64, Indices, Operator

if TYPE_CHECKING:
    import dask.array as da

type Features = Float64 | zarr.Array[Any]


class LowRank(Operator):
    """F F^T (n, n), of rank r at most; a product takes 4 n r flops a column.

    `identity` is that of the features, if they are known by one; else their bytes are hashed.
    """

    def __init__(self, features: Features, identity: str | None = None) -> None:
        self.features = features
        self._identity = identity

    @property
    def rank(self) -> int:
        """The number r of features."""
        return int(self.features.shape[1])

    @property
    @override
    def shape(self) -> tuple[int, int]:
        n = int(self.features.shape[0])
        return n, n

    @property
    @override
    def symmetric(self) -> bool:
        return True

    @property
    @override
    def edge(self) -> int:
        """A panel of features as the store has it, so that each is read once."""
        if isinstance(self.features, np.ndarray):
            return DENSE_EDGE
        return int(self.features.chunks[0])

    @property
    @override
    def identity(self) -> str:
        if self._identity is None:
            digest = hashlib.sha256(f"low rank {self.features.shape}".encode())
            for rows in self._panels():
                digest.update(np.ascontiguousarray(self.rows(rows)).data)
            self._identity = digest.hexdigest()
        return self._identity

    def rows(self, indices: Indices) -> Float64:
        """The features (len(indices), r) of some samples."""
        if isinstance(self.features, np.ndarray):
            return self.features[indices]
        if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[-1] + 1)):
            # A run is far cheaper to Zarr than as many single rows.
            return np.asarray(self.features[int(indices[0]) : int(indices[-1]) + 1], np.float64)
        return np.asarray(self.features.oindex[indices, slice(None)], np.float64)

    def _panels(self) -> Iterator[Indices]:
        n = len(self)
        for start in range(0, n, self.edge):
            yield np.arange(start, min(start + self.edge, n))

    @override
    def product(self, V: Float64, *, transposed: bool = False) -> Float64:
        inner = np.zeros((self.rank, V.shape[1]))
        for rows in self._panels():
            inner += self.rows(rows).T @ V[rows]
        out = np.empty((len(self), V.shape[1]))
        for rows in self._panels():
            out[rows] = self.rows(rows) @ inner
        return out

    @override
    def block(self, rows: Indices, cols: Indices) -> Float64:
        return self.rows(rows) @ self.rows(cols).T

    @override
    def diag(self) -> Float64:
        parts = [(self.rows(rows) ** 2).sum(axis=1) for rows in self._panels()]
        return np.concatenate(parts)

    @override
    def to_dask(self) -> da.Array:
        import dask.array as da  # here, for it takes pandas along: most of a second

        chunks = (self.edge, self.rank)
        features = da.from_array(self.features, chunks=chunks)
        lazy: da.Array = features @ features.T
        return lazy
