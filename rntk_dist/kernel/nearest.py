"""The k largest kernel values of each row, kept while blocks of columns go by.

Of equal values the one of the smaller index comes first, so the result does not depend on how the
columns are cut. A block of values is looked at once, as the loops give it: what may exceed the
least value that its row keeps is taken out, brought to scale and sorted in.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.scaling import STRIPE, scale_block, scaled_entries

Array = NDArray[Any]
Ints = NDArray[np.int64]
Float64 = NDArray[np.float64]

_SLACK = 16
"""Units in the last place by which quick values may be wrong."""

_TINY = 1e-30
"""Below this, in units of the largest factors, quick values are not told apart."""


class Selection(NamedTuple):
    """Some entries of a block, each (c,): its row, its column in the block, its value."""

    rows: Ints
    columns: Ints
    values: Array


class Nearest:
    """The k best of each of some rows: `values` and `indices`, (rows, k), the largest first.

    Blocks must come in the order of the indices of their columns, and the first must have at least
    k columns. Within a block columns may stand in any order.
    """

    def __init__(self, rows: int, k: int, dtype: np.dtype[Any]) -> None:
        self.k = k
        self.values: Array = np.empty((rows, 0), dtype)
        self.indices: Ints = np.empty((rows, 0), np.int64)

    def select(self, block: Array, rows: Float64, columns: Float64) -> Selection:
        """The entries of a block that may be among the best, as kernel values.

        Other threads may call this while earlier blocks are sorted in: what they take out too much
        is dropped later.

        Parameters
        ----------
        block : (rows, columns) in units of the factors ``rows`` and ``columns``; it is used up
        """
        if self.values.shape[1] < self.k:
            return self._select_first(block, rows, columns)
        least = self.values[:, -1]
        places = np.concatenate(list(_above(block, rows, columns, least)))
        row, column = np.divmod(places, block.shape[1])
        values = scaled_entries(block[row, column], rows[row], columns[column])
        # One that only equals the least value that is kept has a larger index, and loses.
        better = ~(values <= least[row])
        return Selection(row[better], column[better], values[better])

    def take(self, selection: Selection, indices: Ints) -> None:
        """Sort a selection in; `indices` (columns,) are those of the block's columns."""
        if not len(selection.rows):
            return
        touched, own = np.unique(selection.rows, return_inverse=True)
        kept = self.values.shape[1]
        row = np.concatenate([np.repeat(np.arange(len(touched)), kept), own])
        value = np.concatenate([self.values[touched].ravel(), selection.values])
        index = np.concatenate([self.indices[touched].ravel(), indices[selection.columns]])
        order = np.lexsort((index, -value, row))
        best = order[_first_of_each(row[order], self.k)]
        values, found = self._wide()
        values[touched] = value[best].reshape(-1, self.k)
        found[touched] = index[best].reshape(-1, self.k)
        self.values, self.indices = values, found

    def in_order_of(self, order: Ints) -> "Nearest":
        """The same, row i of these being row ``order[i]``."""
        given = Nearest(len(order), self.k, self.values.dtype)
        given.values, given.indices = np.empty_like(self.values), np.empty_like(self.indices)
        given.values[order], given.indices[order] = self.values, self.indices
        return given

    def _select_first(self, block: Array, rows: Float64, columns: Float64) -> Selection:
        """All that equals the k-th largest of its row, or exceeds it."""
        scale_block(block, rows, columns)
        width = block.shape[1]
        least = np.partition(block, width - self.k, axis=1)[:, width - self.k]
        row, column = np.divmod(np.flatnonzero(block >= least[:, np.newaxis]), width)
        return Selection(row, column, block[row, column])

    def _wide(self) -> tuple[Array, Ints]:
        """Copies with room for k, for threads that read the present ones."""
        if self.values.shape[1] == self.k:
            return self.values.copy(), self.indices.copy()
        shape = len(self.values), self.k
        return np.empty(shape, self.values.dtype), np.empty(shape, np.int64)


def _above(block: Array, rows: Float64, columns: Float64, least: Array) -> Iterator[Ints]:
    """Places in the flat block of what may exceed ``least`` of its row; few others.

    To bring all of a block to scale would take as long as to compute it. Here columns alone are
    scaled, in the block's own dtype and in the cache, and what they are compared with is lowered by
    more than this may be wrong.
    """
    unit = float(columns.max()) or 1.0
    with np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore"):
        floor = least.astype(np.float64) / (rows * unit)
        floor -= _SLACK * float(np.finfo(block.dtype).eps) * np.abs(floor) + _TINY
        low = floor.astype(block.dtype)[:, np.newaxis]
    across = (columns / unit).astype(block.dtype)
    quick, chosen = np.empty_like(block[:STRIPE]), np.empty(block[:STRIPE].shape, np.bool_)
    for i in range(0, len(block), STRIPE):
        n = len(block[i : i + STRIPE])
        np.multiply(block[i : i + STRIPE], across, out=quick[:n])
        # Of a row whose factor is 0 all values are 0: its floor is no number, and nothing exceeds.
        np.greater(quick[:n], low[i : i + STRIPE], out=chosen[:n])
        yield np.flatnonzero(chosen[:n]) + i * block.shape[1]


def _first_of_each(rows: Ints, k: int) -> Ints:
    """Positions of the first k entries of each row in a sorted list of rows."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return (starts[:, np.newaxis] + np.arange(k)).ravel()
