"""Which rows and columns a key of a matrix asks for: each axis on its own, as with `numpy.ix_`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

type Index = int | slice | ArrayLike


@dataclass(frozen=True)
class Selection:
    """Chosen indices (k,) of one axis, and whether a single int chose them."""

    indices: NDArray[np.int64]
    single: bool


def two_selections(key: Any, shape: tuple[int, int]) -> tuple[Selection, Selection]:
    """What a key asks for of both axes; `...` and what is left out stand for a whole axis.

    Raises IndexError for what is no key of a matrix of this shape.
    """
    keys = key if isinstance(key, tuple) else (key,)
    keys = tuple(slice(None) if k is Ellipsis else k for k in keys)
    if len(keys) > 2:
        raise IndexError(f"a Gram matrix has 2 axes, got {len(keys)} indices")
    row, col, *_ = [*keys, slice(None), slice(None)]
    return selection(row, shape[0]), selection(col, shape[1])


def selection(key: Any, size: int) -> Selection:
    """Raises IndexError for what is no index of an axis of this size."""
    if isinstance(key, slice):
        return Selection(np.arange(size)[key], single=False)
    chosen = np.asarray(key)
    if chosen.dtype == np.bool_ and chosen.shape != (size,):
        raise IndexError(f"a mask has the axis's shape ({size},), got {chosen.shape}")
    if chosen.dtype == np.bool_:
        return Selection(np.flatnonzero(chosen), single=False)
    if chosen.size == 0 and chosen.ndim == 1:
        return Selection(np.empty(0, np.int64), single=False)
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.ndim > 1:
        raise IndexError(f"an axis takes an int, a slice, integers or a mask, got {key!r}")
    outside = (chosen < -size) | (chosen >= size)
    if outside.any():
        raise IndexError(f"index {chosen[outside][0]} is outside an axis of size {size}")
    return Selection(np.atleast_1d(chosen).astype(np.int64) % size, single=chosen.ndim == 0)
