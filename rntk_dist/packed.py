"""Sequences as packed arrays: packed from what users have, checked, and read-only.

The steps of all sequences stand one under another in `values`; sequence i is
``values[offsets[i]:offsets[i + 1]]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rntk_dist.items import ItemIds, OutsideError, checked_ids, checked_n_items
from rntk_dist.sequence_error import SequenceError
from rntk_dist.sequence_error import bad_sequence as _bad

type Floats = npt.NDArray[np.floating[Any]]
type Ints = npt.NDArray[np.int64]
type AnyArray = npt.NDArray[Any]

type Packed = tuple[AnyArray, Ints, AnyArray | None, int | None]
"""values, offsets, labels and n_items, the fields of a `Sequences`."""

CHUNK_BYTES = 2**20
"""Of a chunk in a store, and of what a pass over the values takes at a time."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


# -- read-only arrays, offsets, indices ------------------------------------------------------------


def sealed[A: AnyArray](array: A) -> A:
    """The same array, now read-only; only for arrays that nobody else can write to."""
    array.flags.writeable = False
    return array


def frozen[A: AnyArray](array: A) -> A:
    """The array itself if nobody can write to it, else a read-only copy."""
    # A read-only view of a writable array still changes with it, so every base counts.
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return sealed(array.copy())
        base = base.base
    return array


def offsets_of(lengths: AnyArray) -> Ints:
    """(n + 1,), read-only, of n lengths."""
    return sealed(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)], dtype=np.int64))


def row_blocks(values: AnyArray) -> Iterator[slice]:
    """Slices over the rows, each about 1 MiB as float64: no temporary as large as the batch."""
    rows = max(1, CHUNK_BYTES // (8 * values.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(values), rows))


def selected(n: int, key: Any) -> Ints:
    """The indices, at least one and each in 0 .. n - 1, that a slice, array or mask selects."""
    if isinstance(key, tuple):
        raise TypeError(f"found the index {key} for one axis: select a sequence, then its steps")
    if not isinstance(key, slice):
        key = np.asarray(key)
        if key.size and key.dtype.kind not in "iub":
            raise TypeError(f"found an index of dtype {key.dtype}: use integers, a mask or a slice")
        if key.ndim != 1:
            raise IndexError(f"found an index of shape {key.shape}: use one of shape (k,)")
        key = key if key.size else key.astype(np.int64)
    indices: Ints = np.arange(n)[key]
    if not indices.size:
        raise ValueError("the selection is empty: select at least one sequence")
    return indices


# -- checks of the packed form ---------------------------------------------------------------------


def checked_values(values: Any) -> Floats:
    """(total_steps, m) float32 or float64, C-contiguous and read-only; TypeError or ValueError."""
    if not isinstance(values, np.ndarray) or values.dtype.newbyteorder("=") not in _FLOATS:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"values are {found}, not float32 or float64: use Sequences.from_arrays")
    if values.ndim != 2 or not values.shape[1]:
        found = f"values have shape {values.shape}, not (total_steps, m) with m >= 1"
        raise ValueError(f"{found}: use Sequences.from_arrays")
    return frozen(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))


def checked_items(values: Any, offsets: Any, n_items: Any) -> tuple[AnyArray, Ints]:
    """Ids below n_items, and their offsets, both read-only; TypeError or ValueError."""
    n_items = checked_n_items(n_items)
    try:
        ids = checked_ids(values, n_items)
    except OutsideError as error:
        checked = checked_offsets(offsets, len(values))
        raise error.of_sequence(values, checked, n_items) from None
    return frozen(ids), checked_offsets(offsets, len(ids))


def checked_offsets(offsets: Any, total: int) -> Ints:
    """(n + 1,) int64, read-only, increasing from 0 to total; TypeError or ValueError."""
    if not isinstance(offsets, np.ndarray) or offsets.dtype.kind not in "iu":
        found = getattr(offsets, "dtype", type(offsets).__name__)
        raise TypeError(f"offsets are {found}, not an integer array: give (n + 1,) int64")
    if offsets.ndim != 1:
        raise ValueError(f"offsets have shape {offsets.shape}: give one for each sequence, and one")
    if len(offsets) < 2:
        raise ValueError("there is no sequence at all: give at least one")
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    if offsets[0] != 0 or offsets[-1] != total:
        ends = f"{offsets[0]} to {offsets[-1]}"
        raise ValueError(f"offsets run from {ends}: let them run from 0 to the {total} steps")
    lengths = np.diff(offsets)
    if (lengths < 0).any():
        i = int(np.argmax(lengths < 0))
        raise _bad(i, f"has offsets {offsets[i]} to {offsets[i + 1]}: let offsets increase")
    refuse_empty(lengths)
    return frozen(offsets)


def checked_labels(labels: Any, n: int) -> AnyArray:
    """(n,) of booleans, numbers or strings, read-only; TypeError or ValueError."""
    array = np.asarray(labels)
    strings = array.dtype == object and all(isinstance(label, str) for label in array.flat)
    if strings or array.dtype.kind == "T":  # pandas' strings, and Zarr's of variable length
        array = np.array(array.tolist())
    if array.dtype.kind not in "biufU":
        raise TypeError(f"labels have dtype {array.dtype}: give integers, floats or strings")
    if array.shape != (n,):
        raise ValueError(f"labels have shape {array.shape} for {n} sequences: give one a sequence")
    return frozen(array)


def refuse_empty(lengths: AnyArray) -> None:
    """Raise SequenceError for the first sequence without steps."""
    if not lengths.all():
        way_out = "drop it or give it at least one step"
        raise _bad(np.argmin(lengths != 0), f"is empty (0 time steps): {way_out}")


def refuse_non_finite(values: Floats, offsets: Ints) -> None:
    """Raise SequenceError for the first value that is NaN or infinite, and say where it stands."""
    for rows in row_blocks(values):
        finite = np.isfinite(values[rows])
        if not finite.all():
            row, feature = np.unravel_index(np.argmin(finite), finite.shape)
            raise _non_finite(values, offsets, rows.start + int(row), int(feature))


def _non_finite(values: Floats, offsets: Ints, row: int, feature: int) -> SequenceError:
    i = int(np.searchsorted(offsets, row, side="right")) - 1
    where = f"at time step {row - offsets[i]}"
    if values.shape[1] > 1:
        where += f", feature {feature}"
    if not np.isnan(values[row, feature]):
        return _bad(i, f"holds {values[row, feature]} {where}: replace it by a finite number")
    way_out = "fill it in, drop the step, or cut NaN padding with Sequences.from_nan_padded"
    return _bad(i, f"holds NaN {where}: {way_out}")


# -- arrays to the packed form ---------------------------------------------------------------------


def without_padding(X: Any, labels: npt.ArrayLike | None = None) -> Packed:
    """X packed, without the steps at a sequence's end that are NaN in every feature."""
    values, offsets = _without_nan_tails(*packed(X))
    return values, offsets, None if labels is None else np.asarray(labels), None


def packed(X: Any) -> tuple[Floats, Ints]:
    """values and offsets, read-only, checked in everything but that the numbers are finite."""
    if isinstance(X, list | tuple):
        return _packed_list(X)
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim:
        return _packed_list(list(X))
    array = _numbers(X, "X")
    if array.ndim not in (2, 3):
        way_out = "give (n, T), (n, T, m) or a list of (T_i, m)"
        if array.ndim == 1:
            way_out = "wrap it in a list if it is one sequence"
        raise ValueError(f"X has {array.ndim} dimensions, shape {array.shape}: {way_out}")
    n, length, m = array.shape if array.ndim == 3 else (*array.shape, 1)
    lengths = np.full(n, length)
    _refuse_unusable(lengths, np.full(n, m))
    # One copy, read-only before it is reshaped: `frozen` then finds no writable base to copy from.
    values = sealed(np.array(array, dtype=_float_dtype({array.dtype}), order="C"))
    return values.reshape(n * length, m), offsets_of(lengths)


def _without_nan_tails(values: Floats, offsets: Ints) -> tuple[Floats, Ints]:
    """Cut the steps that are NaN in every feature from the end of each sequence."""
    missing = np.isnan(values).all(axis=1)
    if not missing.any():
        return values, offsets
    step = np.arange(len(values))
    last = np.maximum.reduceat(np.where(missing, -1, step), offsets[:-1])
    if (last < 0).any():
        raise _bad(np.argmax(last < 0), "is empty (every step is NaN): drop it or fill it in")
    keep = step <= np.repeat(last, np.diff(offsets))
    return sealed(values[keep]), offsets_of(last + 1 - offsets[:-1])


def _packed_list(X: list[Any] | tuple[Any, ...]) -> tuple[Floats, Ints]:
    arrays = [_numbers(x, f"sequence {i}") for i, x in enumerate(X)]
    if any(a.ndim not in (1, 2) for a in arrays):
        raise _wrong_dimensions(arrays)
    tables = [a[:, np.newaxis] if a.ndim == 1 else a for a in arrays]
    lengths = np.fromiter((len(table) for table in tables), dtype=np.int64)
    _refuse_unusable(lengths, np.fromiter((table.shape[1] for table in tables), dtype=np.int64))
    dtype = _float_dtype({table.dtype for table in tables})
    return sealed(np.concatenate(tables, dtype=dtype)), offsets_of(lengths)


def _numbers(x: Any, name: str) -> AnyArray:
    """x as an array of booleans, integers or floats; `name` is what messages call it."""
    if isinstance(x, ItemIds):
        way_out = "select a batch of them, as X[[0, 1]], or use Sequences.from_items"
        raise TypeError(f"{name} holds ids of items, not real numbers: {way_out}")
    if isinstance(x, np.ma.MaskedArray):
        # np.asarray would drop the mask in silence and hand over what stands behind it.
        raise TypeError(f"{name} is masked: use .filled(numpy.nan) and Sequences.from_nan_padded")
    try:
        array = np.asarray(x)
        plain = np.asarray(array.tolist()) if array.dtype == object else array
    except ValueError as error:
        way_out = "give it the shape (T,) or (T, m)"
        raise ValueError(f"{name} has steps of differing feature counts: {way_out}") from error
    # Arrays inside arrays would gain a dimension: whether it is time, nobody can tell.
    if plain.dtype.kind not in "biuf" or plain.ndim != array.ndim:
        raise TypeError(f"{name} has dtype {array.dtype}, not real numbers: convert it to float64")
    return plain


def time_first(index: int, case: Any) -> AnyArray:
    """A (channel, time) array as (time, channel); `index` is the sequence's number in messages."""
    table = _numbers(case, f"sequence {index}")
    if table.ndim != 2:
        way_out = "use Sequences.from_arrays, or add the channel axis"
        raise _bad(index, f"has shape {table.shape}, not (channel, time): {way_out}")
    return table.T


def _float_dtype(dtypes: set[np.dtype[Any]]) -> np.dtype[Any]:
    single = all(dtype.kind == "f" and dtype.itemsize <= 4 for dtype in dtypes)
    return _FLOATS[0] if single else _FLOATS[1]


def _wrong_dimensions(arrays: list[AnyArray]) -> ValueError:
    if all(a.ndim == 0 for a in arrays):
        return ValueError("X is a list of numbers: wrap it in a list if it is one sequence")
    index, bad = next((i, a) for i, a in enumerate(arrays) if a.ndim not in (1, 2))
    found = f"has {bad.ndim} dimensions, shape {bad.shape}"
    return _bad(index, f"{found}: give it the shape (T,) or (T, m)")


def _refuse_unusable(lengths: AnyArray, features: AnyArray) -> None:
    """Both (n,): refuse no sequence at all, empty ones, no features and differing features."""
    if not len(lengths):
        raise ValueError("there is no sequence at all: give at least one")
    refuse_empty(lengths)
    if (features != features[0]).any():
        i = int(np.argmax(features != features[0]))
        found = f"has {features[i]} features but sequence 0 has {features[0]}"
        raise _bad(i, f"{found}: give every sequence the same number")
    if not features[0]:
        raise _bad(0, "has 0 features: give every step at least one")
