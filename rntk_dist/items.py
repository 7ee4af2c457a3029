"""Ids of discrete items: how lists of them are checked and packed, and what they stand for.

An item of id i out of n_items stands for the one-hot vector e_i of n_items features. Only the id is
ever held; `one_hot` writes the vectors out, for small vocabularies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.sequence_error import SequenceError, bad_sequence

type AnyArray = NDArray[Any]

MOST_ITEMS = 2**31 - 1

ONE_HOT_BYTES = 2**28
"""Of one-hot vectors that are written out, at most."""

_HASHED = 2**20


class ItemIds(np.ndarray[Any, np.dtype[Any]]):
    """(T,) ids of one sequence: an array that is not taken for T real numbers."""


def checked_n_items(n_items: Any) -> int:
    """The size of the vocabulary as an int; raises TypeError and ValueError."""
    if isinstance(n_items, bool) or not isinstance(n_items, Integral):
        raise TypeError(f"n_items is {n_items!r}: give the number of different items, an integer")
    number = int(n_items)
    if not 1 <= number <= MOST_ITEMS:
        raise ValueError(f"n_items is {number}: give a number from 1 to {MOST_ITEMS}")
    return number


def id_dtype(n_items: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and int32 that holds all ids and n_items, which is none."""
    fitting = (each for each in (np.uint8, np.uint16) if n_items <= np.iinfo(each).max)
    return np.dtype(next(fitting, np.int32))


def packed_ids(lists: Iterable[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ids of all sequences one behind another, (total,), and the lengths, (n,).

    Raises TypeError and ValueError for what is no list of lists of integers.
    """
    if isinstance(lists, np.ndarray) and lists.ndim not in (1, 2):
        raise ValueError(f"the ids have shape {lists.shape}: give (n, T), or a list of (T_i,)")
    arrays = [_ids(i, each) for i, each in enumerate(lists)]
    if not arrays:
        raise ValueError("there is no sequence at all: give at least one")
    lengths = np.fromiter(map(len, arrays), dtype=np.int64)
    # An id past int64 wraps to a negative one, which is refused as any other outside.
    return np.concatenate(arrays, dtype=np.int64, casting="unsafe"), lengths


def _ids(index: int, given: Any) -> AnyArray:
    if isinstance(given, str | bytes | Integral):
        way_out = "give a list of sequences, each a list of ids"
        raise TypeError(f"sequence {index} is {given!r}, not a list of ids: {way_out}")
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise bad_sequence(index, "has lists inside: give it as one flat list of ids") from error
    if array.ndim != 1:
        raise bad_sequence(index, f"has shape {array.shape}: give it as one flat list of ids")
    if array.size and array.dtype.kind not in "iu":
        way_out = "number the items from 0 on and give these integers"
        raise TypeError(f"sequence {index} has dtype {array.dtype}, not integer ids: {way_out}")
    return array


def checked_ids(values: Any, n_items: int) -> AnyArray:
    """(total, 1) ids of any integer type, as the type of `id_dtype`.

    Raises TypeError for another type, ValueError for another shape, `OutsideError` for an id that
    is none.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"values are {found}, not integer ids: use Sequences.from_items")
    if values.ndim != 2 or values.shape[1] != 1:
        raise ValueError(f"ids have shape {values.shape}, not (total, 1): use Sequences.from_items")
    outside = (values[:, 0] < 0) | (values[:, 0] >= n_items)
    if outside.any():
        raise OutsideError(int(np.argmax(outside)))
    return np.ascontiguousarray(values, dtype=id_dtype(n_items))


class OutsideError(ValueError):
    """The id at a `row` of the packed values is no item's."""

    def __init__(self, row: int) -> None:
        super().__init__(f"the id at row {row} is no item's")
        self.row = row

    def of_sequence(self, values: AnyArray, offsets: AnyArray, n_items: int) -> SequenceError:
        """The same with the sequence and the time step that it is in."""
        i = int(np.searchsorted(offsets, self.row, side="right")) - 1
        found = f"holds the id {values[self.row, 0]} at time step {self.row - offsets[i]}"
        return bad_sequence(i, f"{found}, outside 0..{n_items - 1}: give ids below n_items")


def hash_ids(digest: hashlib._Hash, values: AnyArray) -> None:
    """Add ids to a digest, as little-endian int32, whatever they are stored as."""
    for start in range(0, len(values), _HASHED):
        digest.update(values[start : start + _HASHED].astype("<i4").tobytes())


def one_hot(values: AnyArray, n_items: int) -> NDArray[np.float64]:
    """(total, n_items): the vectors that (total, 1) ids stand for.

    Raises ValueError where they would take more than `ONE_HOT_BYTES`.
    """
    nbytes = 8 * len(values) * n_items
    if nbytes > ONE_HOT_BYTES:
        raise ValueError(
            f"{len(values)} one-hot vectors of {n_items} features take {nbytes:,} bytes, more than "
            f"{ONE_HOT_BYTES:,}: select fewer sequences, or leave them as items"
        )
    vectors = np.zeros((len(values), n_items))
    vectors[np.arange(len(values)), values[:, 0]] = 1.0
    return vectors
