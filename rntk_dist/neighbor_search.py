"""The nearest training sequences of a block of queries: slab after slab, and never a matrix.

Queries are prepared once. Of the training sequences a slab at a time is prepared and compared with
all queries of the block; what exceeds the least value that a query keeps is taken out, and the
values are forgotten. Both sides are compared longest first, so that loops over pairs of ragged
lengths are full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rntk_dist.in_order import in_order
from rntk_dist.kernel.nearest import Nearest, Selection
from rntk_dist.kernel.rntk import RNTK, Backend, Kind, Prepared, prepared
from rntk_dist.neighbor_manifest import SLAB
from rntk_dist.sequences import Sequences

FIRST_SLAB = 256
"""Training sequences that are looked at first: of all later ones most can then be passed over."""

PIECE_NUMBERS = 2**20
"""Numbers of the training sequences that are read at once: 8 MiB in float64."""

type Ints = NDArray[np.int64]
type Read = Callable[[int, int], Sequences]


@dataclass(frozen=True)
class Search:
    """What is looked for: the `k` sequences that `kernel` is largest for."""

    kernel: RNTK
    k: int
    kind: Kind
    dtype: np.dtype[np.floating]
    backend: Backend

    def nearest(
        self, queries: Sequences, first_query: int, training: Training, threads: int = 1
    ) -> Nearest:
        """The best of all training sequences, a row a query.

        Parameters
        ----------
        first_query : number of the first of the queries, for messages
        threads : slabs that are compared at the same time

        Raises
        ------
        OverflowError
            If a value exceeds the number type, naming the sequences.
        """
        rows = self._prepared(queries, f"queries {first_query} on")
        order = rows.slab.longest_first()
        block = _Block(self, rows, rows.take(order), first_query)
        best = Nearest(len(queries), self.k, self.dtype)
        slabs = training.slabs(max(FIRST_SLAB, self.k))
        best.take(*block.compare(next(slabs), best))  # alone: it says what can be passed over
        for found in in_order(lambda slab: block.compare(slab, best), slabs, threads):
            best.take(*found)
        return best.in_order_of(order)

    def _prepared(self, sequences: Sequences, what: str) -> Prepared:
        try:
            return prepared([self.kernel], sequences, self.kind, with_self=False)[0]
        except OverflowError as error:
            raise OverflowError(f"of the {what}: {error}") from error


@dataclass(frozen=True)
class Training:
    """The training sequences by what reads some of them, `lengths` (n,) and numbers of a step."""

    read: Read
    lengths: Ints
    step_numbers: int

    @classmethod
    def of(cls, sequences: Sequences) -> Training:
        """Of sequences in memory."""

        def read(start: int, stop: int) -> Sequences:
            return sequences[start:stop]

        return cls(read, sequences.lengths, sequences.step_numbers)

    def slabs(self, first: int) -> Iterator[tuple[int, Sequences]]:
        """All of them in order, some at a time, with the number of the first of each."""
        for start, stop in self._pieces(first):
            piece = self.read(start, stop)
            size = first if start == 0 else SLAB
            at = 0
            while at < len(piece):
                yield start + at, piece[at : at + size]
                at, size = at + size, SLAB

    def _pieces(self, least: int) -> Iterator[tuple[int, int]]:
        """Runs of about `PIECE_NUMBERS`; the first has `least` sequences at least."""
        numbers = np.cumsum(self.lengths) * self.step_numbers
        start, n = 0, len(self.lengths)
        while start < n:
            done = int(numbers[start - 1]) if start else 0
            stop = int(np.searchsorted(numbers, done + PIECE_NUMBERS, side="right"))
            stop = min(n, max(stop, start + 1, 0 if start else least))
            yield start, stop
            start = stop


@dataclass(frozen=True)
class _Block:
    """A block of queries: prepared as they come, and longest first."""

    search: Search
    given: Prepared
    rows: Prepared
    first_query: int

    def compare(self, slab: tuple[int, Sequences], best: Nearest) -> tuple[Selection, Ints]:
        """What may be among the best of a slab, and the indices of its columns."""
        search, (start, sequences) = self.search, slab
        given = search._prepared(sequences, f"training sequences {start} on")
        order = given.slab.longest_first()
        columns, kernel = given.take(order), search.kernel
        values = kernel.compare_unscaled(
            self.rows, columns, kind=search.kind, dtype=search.dtype, backend=search.backend
        )
        found = best.select(values, kernel.factor(self.rows), kernel.factor(columns))
        if not np.isfinite(found.values).all():
            self._refuse_overflow(given, start)
        return found, start + order

    def _refuse_overflow(self, given: Prepared, start: int) -> None:
        """Compare again, in the given order: then the error names the sequences."""
        search = self.search
        try:
            search.kernel.compare(
                self.given, given, kind=search.kind, dtype=search.dtype, backend=search.backend
            )
        except OverflowError as error:
            where = f"queries {self.first_query} on with training sequences {start} on"
            raise OverflowError(f"of {where}: {error}") from error
