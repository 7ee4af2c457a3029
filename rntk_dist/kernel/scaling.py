"""From values in units of two sequences' factors to kernel values: one product, in float64.

A whole block and a few of its entries come out with the same bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float64 = NDArray[np.float64]

STRIPE = 64
"""Rows that are scaled at once."""


def scale_block(values: Array, rows: Float64, columns: Float64) -> None:
    """``values * rows[:, None] * columns``, (rows, columns), a stripe at a time, in place."""
    with np.errstate(over="ignore"):  # refused by the caller, with the sequences' names
        for i in range(0, len(values), STRIPE):
            stripe = values[i : i + STRIPE]
            stripe[...] = _scaled(stripe, rows[i : i + STRIPE, None], columns)


def scaled_entries(values: Array, rows: Float64, columns: Float64) -> Array:
    """``values * rows * columns`` of single entries, all (c,), in the dtype of the values."""
    with np.errstate(over="ignore"):
        scaled: Array = _scaled(values, rows, columns).astype(values.dtype)
    return scaled


def _scaled(values: Array, rows: Float64, columns: Float64) -> Array:
    """The products; infinite only where the whole product is."""
    both = rows * columns
    beyond = np.isinf(both)
    if beyond.any():
        both = np.where(beyond, 1.0, both)
        return np.where(beyond, (values * rows) * columns, values * both)
    scaled: Array = values * both
    return scaled
