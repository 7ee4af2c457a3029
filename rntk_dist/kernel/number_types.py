"""A tile in the number type that is asked for; pairs that need a wider one are computed in it.

float32 reaches from 1e-38 to 3e38, and features that erf makes of an input x are as small as 1/x^2.
Pairs with a sequence beyond that are computed in float64 and rounded. Which pairs these are depends
on the two sequences alone, so the value of a pair does not depend on its tile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.backends import TileValues
from rntk_dist.kernel.variances import Array, Slab

LEAST_CAP = 1e-15
"""Of erf's feature "cap" in float32: the pre-activation is 1/4 divided by it, 2.5e14."""


def tile_values_in(
    dtype: np.dtype[Any],
    tile_values: TileValues,
    recursion: Recursion,
    rows: Slab,
    columns: Slab | None,
) -> Array:
    """What `arrays.tile_values` gives, in ``dtype``, from slabs in float64."""

    def run(wanted: np.dtype[Any], row: Slab, column: Slab | None) -> Array:
        def cast(array: NDArray[Any]) -> NDArray[Any]:
            return array.astype(wanted, copy=False)

        other = None if column is None else column.transfer(cast)
        return tile_values(recursion, row.transfer(cast), other)

    wide = np.dtype(np.float64)
    row_wide = _beyond(recursion, rows, dtype)
    column_wide = row_wide if columns is None else _beyond(recursion, columns, dtype)
    if not (row_wide.any() or column_wide.any()):
        return run(dtype, rows, columns)
    return _in_parts(run, (dtype, wide), rows, columns, row_wide, column_wide)


def _beyond(recursion: Recursion, slab: Slab, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """The sequences that need float64."""
    beyond = np.zeros(len(slab), np.bool_)
    if dtype == np.float64 or recursion.activation != "erf":
        return beyond
    for layer in (layer for direction in slab.directions for layer in direction.layers):
        assert layer.own is not None
        for position in np.flatnonzero(layer.own[0] < LEAST_CAP):
            beyond |= (slab.first <= position) & (position < slab.first + slab.lengths)
    return beyond


def _in_parts(
    run: Callable[[np.dtype[Any], Slab, Slab | None], Array],
    types: tuple[np.dtype[Any], np.dtype[Any]],
    rows: Slab,
    columns: Slab | None,
    row_wide: NDArray[np.bool_],
    column_wide: NDArray[np.bool_],
) -> Array:
    """The parts of a tile, each in its own type, put together in the first."""
    other = rows if columns is None else columns
    values = np.empty((len(rows), len(other)), types[0])
    for of_row in (False, True):
        for of_column in (False, True):
            at = np.flatnonzero(row_wide == of_row), np.flatnonzero(column_wide == of_column)
            if not (len(at[0]) and len(at[1])):
                continue
            same = columns is None and of_row == of_column
            dtype = types[of_row or of_column]
            part = run(dtype, rows.take(at[0]), None if same else other.take(at[1]))
            values[np.ix_(*at)] = part
    return values
