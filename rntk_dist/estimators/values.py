"""Kernel values for an estimator: computed, kept in a folder, or slices of a stored matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.estimators.pairs import Block, Ints, Part, Source, keys_of, positions
from rntk_dist.estimators.sources import KeptBlocks, StoredGram
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]

_AT_ONCE = 16


@dataclass(frozen=True)
class KernelValues:
    """A kernel, how it is computed, and where its values may be found already.

    What neither `store` nor `memory` knows is computed, each pair once, and kept in `memory`.
    Results are float64, of the precision of `dtype` or of the store.
    """

    kernel: RNTK
    kind: Kind = "ntk"
    dtype: DType = "float64"
    backend: Backend = "auto"
    store: str | Path | None = None
    memory: str | Path | None = None

    def square(self, X: Sequences) -> Float64:
        """The kernel (n, n) of samples with themselves."""
        if self.store is None and self.memory is None:
            return _float64(self._computed(X, None))
        distinct = _Distinct(X)
        out: Float64 = self._known(distinct, distinct)[distinct.both(distinct)]
        if self._starts_differ:
            self._set_twins(out, distinct, distinct)
            np.fill_diagonal(out, self.diagonal(X))
        return out

    def across(self, X: Sequences, Y: Sequences) -> Float64:
        """The kernel (n, m) of samples with others, which they are not even where values agree."""
        if self.store is None and self.memory is None:
            return _float64(self._computed(X, Y))
        rows, columns = _Distinct(X), _Distinct(Y)
        out: Float64 = self._known(rows, columns)[rows.both(columns)]
        if self._starts_differ:
            self._set_twins(out, rows, columns)
        return out

    def diagonal(self, X: Sequences) -> Float64:
        """The kernel (n,) of each sample with itself; computed, for it costs next to nothing."""
        return _float64(self.kernel.diag(X, kind=self.kind, dtype=self.dtype))

    @property
    def _starts_differ(self) -> bool:
        """Whether every sample has a random start of its own.

        If not, its kernel with itself is that with another sample of equal values.
        """
        return self.kernel.initial_state == "independent" and self.kernel.sigma_h > 0

    def _known(self, rows: _Distinct, columns: _Distinct) -> Float64:
        """All values, of which as few as possible are computed."""
        self.kernel.check_sequences(rows.sequences, columns.sequences)
        part = Part(rows.keys, columns.keys)
        for source in self._sources():
            source.fill(part)
        if part.complete:
            return part.values
        if self.memory is None:
            for i, j, values in self._missing(part, rows, columns):
                part.put(i, j, values)
            return part.values
        kept = self._kept(self.memory)
        with kept.owned():
            kept.fill(part)  # what another process has computed meanwhile
            for i, j, values in self._missing(part, rows, columns):
                kept.keep([rows.keys[k] for k in i], [columns.keys[k] for k in j], values)
                part.put(i, j, values)
        return part.values

    def _sources(self) -> Iterator[Source]:
        if self.store is not None:
            yield StoredGram.of(self.store, self.kernel, self.kind)
        if self.memory is not None:
            yield self._kept(self.memory)

    def _kept(self, memory: str | Path) -> KeptBlocks:
        return KeptBlocks.of(memory, self.kernel, self.kind, self.dtype)

    def _missing(
        self, part: Part, rows: _Distinct, columns: _Distinct
    ) -> Iterator[tuple[Ints, Ints, Block]]:
        """Rectangles of what is not known yet, computed one after another."""
        for i, j in list(part.gaps()):
            alone = part.symmetric and np.array_equal(i, j)
            others = None if alone else columns.sequences[j]
            yield i, j, self._computed(rows.sequences[i], others)

    def _computed(self, X: Sequences, Y: Sequences | None) -> Block:
        return self.kernel(X, Y, kind=self.kind, dtype=self.dtype, backend=self.backend)

    def _set_twins(self, out: Float64, rows: _Distinct, columns: _Distinct) -> None:
        """Set the kernel of different samples of equal values, which no content can tell."""
        shared = sorted(set(rows.keys) & set(columns.keys))
        if not shared:
            return
        twins = self._twins(rows.sequences[[rows.place[key] for key in shared]])
        for key, value in zip(shared, twins, strict=True):
            i = rows.inverse == rows.place[key]
            j = columns.inverse == columns.place[key]
            out[np.ix_(i, j)] = value

    def _twins(self, X: Sequences) -> Float64:
        """The kernel (n,) of each sample with another of equal values."""
        parts = (X[start : start + _AT_ONCE] for start in range(0, len(X), _AT_ONCE))
        return np.concatenate([_float64(self._computed(x, x).diagonal()) for x in parts])


class _Distinct:
    """The distinct sequences among some, and which of them each is."""

    def __init__(self, X: Sequences) -> None:
        keys = keys_of(X)
        first = positions(keys)
        self.keys = list(first)
        self.place = {key: i for i, key in enumerate(self.keys)}
        self.inverse: Ints = np.array([self.place[key] for key in keys], np.int64)
        self.sequences = X[np.array([first[key] for key in self.keys], np.int64)]

    def both(self, columns: _Distinct) -> tuple[Any, ...]:
        """What makes of the kernel of distinct sequences that of all."""
        return np.ix_(self.inverse, columns.inverse)


def _float64(values: NDArray[Any]) -> Float64:
    return np.asarray(values, np.float64)
