"""A ragged batch of sequences: how it is read, checked, stored, sliced and identified.

Axis order is (sequence, time, feature).  The batch is packed, not padded: the steps of all
sequences stand one under another in `values`; sequence i is `values[offsets[i]:offsets[i + 1]]`.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from rntk_dist.items import ItemIds as ItemIds
from rntk_dist.items import (
    OutsideError,
    checked_ids,
    checked_n_items,
    hash_ids,
    one_hot,
    packed_ids,
)
from rntk_dist.sequence_error import SequenceError as SequenceError
from rntk_dist.sequence_error import bad_sequence as _bad
from rntk_dist.sequences_view import sequences_html

type Floats = npt.NDArray[np.floating[Any]]
type Ints = npt.NDArray[np.int64]
type AnyArray = npt.NDArray[Any]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_CHUNK_BYTES = 2**20
_ITEM_NUMBERS = 2
_DIMENSIONS = {"values": ("step", "feature"), "offsets": ("boundary",), "labels": ("sequence",)}
"""Names in a store: xarray opens no array without."""


@dataclass(frozen=True, eq=False, repr=False)
class Sequences:
    """An immutable batch of n >= 1 sequences with m >= 1 features and lengths T_i >= 1.

    Fields:
        values: (sum of T_i, m) float32 or float64, C-contiguous, read-only, finite; of items
            (sum of T_i, 1) ids, uint8, uint16 or int32.
        offsets: (n + 1,) int64, read-only, strictly increasing from 0 to the sum of T_i.
        labels: (n,) bool, integers, floats or strings, read-only, or None; not in the fingerprint.
        n_items: None, or the size of the vocabulary if steps are discrete items: the one at a step
            stands for the one-hot vector of its id, of m = n_items features.

    Writable arrays are copied and read-only ones shared: no caller can change a batch afterwards.
    Two batches are compared by their `fingerprint`; `==` compares identity.

    Raises TypeError for a wrong dtype, ValueError for anything else that breaks the lines above.

    >>> x = Sequences.from_arrays([[1, 2, 3], [4, 5]], labels=["a", "b"])
    >>> x
    Sequences(n=2, length=2..3, features=1, float64)
    >>> x[1].tolist()
    [[4.0], [5.0]]
    """

    values: AnyArray
    offsets: Ints
    labels: AnyArray | None = None
    n_items: int | None = None

    def __post_init__(self) -> None:
        if self.n_items is None:
            values = _checked_values(self.values)
            offsets = _checked_offsets(self.offsets, len(values))
            _refuse_non_finite(values, offsets)
        else:
            values, offsets = _checked_items(self.values, self.offsets, self.n_items)
        labels = None if self.labels is None else _checked_labels(self.labels, len(offsets) - 1)
        for name, array in (("values", values), ("offsets", offsets), ("labels", labels)):
            object.__setattr__(self, name, array)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickling loses NumPy's read-only flag; a worker must not change what it was sent either.
        for name, value in state.items():
            self.__dict__[name] = _sealed(value) if isinstance(value, np.ndarray) else value

    # -- made from arrays --------------------------------------------------------------------------

    @classmethod
    def from_arrays(cls, X: Any, labels: npt.ArrayLike | None = None) -> Sequences:
        """X: (n, T) or (n, T, m), or a list, tuple or object array of (T_i,) or (T_i, m).

        float32 stays, float16 becomes float32, everything else numeric or a mixture float64.
        A `Sequences` is returned unchanged (with `labels`, (n,), in place of its own where given).

        Raises TypeError for anything but real numbers; ValueError for NaN, infinity, an empty
        sequence or batch, differing feature counts or a wrong number of dimensions.
        """
        if isinstance(X, Sequences):
            return X if labels is None else replace(X, labels=np.asarray(labels))
        return cls(*_packed(X), None if labels is None else np.asarray(labels))

    @classmethod
    def from_nan_padded(cls, X: Any, labels: npt.ArrayLike | None = None) -> Sequences:
        """Like `from_arrays`, but steps at a sequence's end that are NaN in every feature are cut.

        Raises as `from_arrays`: NaN anywhere else is an error, and a sequence of only NaN is one.
        """
        if isinstance(X, Sequences):
            return cls.from_arrays(X, labels)
        values, offsets = _without_nan_tails(*_packed(X))
        return cls(values, offsets, None if labels is None else np.asarray(labels))

    @classmethod
    def from_channels_first(cls, X: Any, labels: npt.ArrayLike | None = None) -> Sequences:
        """X: (case, channel, time) as in aeon and sktime, or a list of (channel, time) arrays.

        Raises as `from_arrays`, and ValueError where an axis is missing.
        """
        if isinstance(X, Sequences):
            raise TypeError("X is a Sequences, which is (sequence, time, feature) already: use it")
        if not isinstance(X, list | tuple):
            X = np.asarray(X)
            if X.ndim != 3 and X.dtype != object:
                way_out = "use Sequences.from_arrays for (n, T), or add the channel axis"
                raise ValueError(f"X has shape {X.shape}, not (case, channel, time): {way_out}")
        return cls.from_arrays([_time_first(i, case) for i, case in enumerate(X)], labels)

    @classmethod
    def from_items(
        cls, lists_of_ids: Any, n_items: int, labels: npt.ArrayLike | None = None
    ) -> Sequences:
        """Sequences of discrete items; the inner product of two steps is [same id] / n_items.

        The kernel is that of one-hot vectors of n_items features, which are never made.

        lists_of_ids: n lists, tuples or arrays (T_i,) of integers in 0 .. n_items - 1, or (n, T).
        A `Sequences` of so many items is returned unchanged, as by `from_arrays`.

        Raises TypeError for anything but integers; ValueError for an id outside, an empty sequence
        or batch, or nested lists.

        >>> Sequences.from_items([[3, 1, 3], [0]], n_items=5)
        Sequences(n=2, length=1..3, items=5, uint8)
        """
        n_items = checked_n_items(n_items)
        if isinstance(lists_of_ids, Sequences):
            if lists_of_ids.n_items != n_items:
                raise ValueError(f"{lists_of_ids!r} is not of {n_items} items: give the lists")
            return cls.from_arrays(lists_of_ids, labels)
        ids, lengths = packed_ids(lists_of_ids)
        _refuse_empty(lengths)
        given = None if labels is None else np.asarray(labels)
        return cls(ids[:, np.newaxis], _offsets(lengths), given, n_items)

    @classmethod
    def concatenate(cls, batches: Iterable[Sequences]) -> Sequences:
        """All sequences of `batches`, in order; labels are kept if every batch has them.

        Mixed dtypes become float64.  Raises ValueError for no batch or differing feature counts.
        """
        batches = list(batches)
        if not batches:
            raise ValueError("there is no batch to concatenate: give at least one Sequences")
        m, n_items = batches[0].n_features, batches[0].n_items
        for k, batch in enumerate(batches):
            if batch.n_items != n_items:
                found = f"batch {k} is {batch!r} but batch 0 is {batches[0]!r}"
                raise ValueError(f"{found}: concatenate only batches of the same items")
            if batch.n_features != m:
                found = f"batch {k} has {batch.n_features} features but batch 0 has {m}"
                raise ValueError(f"{found}: concatenate only batches with the same features")
        labels = [batch.labels for batch in batches if batch.labels is not None]
        return cls(
            _sealed(np.concatenate([batch.values for batch in batches])),
            _offsets(np.concatenate([batch.lengths for batch in batches])),
            np.concatenate(labels) if len(labels) == len(batches) else None,
            n_items,
        )

    # -- files and stores --------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Sequences:
        """Read one file, by its suffix; NaN at the end of a sequence is padding and is cut.

        .npy   (n, T) or (n, T, m)
        .npz   `values` and `offsets` [and `labels`; of items `n_items`], or `X` [and `y`], or a
               single array as in .npy
        .tsv   UCR: one sequence a line, the label first; tabs, commas or spaces between
        .ts    aeon and sktime: dimensions separated by ":", values by ",", the label last
        .zarr  a group with `values` and `offsets` [and `labels`], an array as in .npy, or a store
               of this package (its group `sequences`); also a URL such as s3://bucket/name.zarr

        Labels in text become integers if all are, else floats if all are, else strings.
        Raises FileNotFoundError, ValueError or TypeError, naming the path and the line if any.
        """
        place = os.fspath(path)
        suffix = Path(place).suffix.lower()
        if suffix not in _READERS:
            known = ", ".join(_READERS)
            raise ValueError(f"{place}: suffix {suffix!r} is none of {known}: convert or rename it")
        if "://" not in place and not Path(place).exists():
            raise FileNotFoundError(
                f"{place}: no such file, seen from {Path.cwd()}: check the path"
            )
        try:
            return _READERS[suffix](place)
        except TypeError as error:
            raise TypeError(f"{place}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a new .npz file or .zarr group that `read` gives back.

        Raises FileExistsError rather than overwrite, ValueError for another suffix.
        """
        place = os.fspath(path)
        suffix = Path(place).suffix.lower()
        if suffix not in (".npz", ".zarr"):
            raise ValueError(f"{place}: suffix {suffix!r} cannot be written: use .npz or .zarr")
        if Path(place).exists():
            raise FileExistsError(f"{place}: exists already: remove it or choose another name")
        if suffix == ".zarr":
            self.write_to(zarr.create_group(place))
        else:
            with Path(place).open("xb") as file:
                size = {} if self.n_items is None else {"n_items": np.array(self.n_items)}
                np.savez(file, allow_pickle=False, **self._arrays(), **size)

    def write_to(self, group: zarr.Group) -> None:
        """Create the arrays `values`, `offsets` and, if there are any, `labels` in a Zarr group.

        Chunks hold about 1 MiB, so that a slab is read without the rest, and end in a CRC-32C
        checksum.  A lost chunk reads as NaN, as an id that is none or as a negative offset, and is
        refused when read.
        """
        nothing = {"values": np.nan if self.n_items is None else self.n_items, "offsets": -1}
        for name, array in self._arrays().items():
            rows = max(1, min(len(array), _CHUNK_BYTES * len(array) // max(1, array.nbytes)))
            group.create_array(
                name,
                data=array,
                chunks=(rows, *array.shape[1:]),
                compressors=[ZstdCodec(level=0), Crc32cCodec()],
                # Zarr fills what is missing, by default with zeros, which nobody would notice.
                fill_value=nothing.get(name),
                dimension_names=_DIMENSIONS[name],
                attributes=self._attributes() if name == "values" else None,
            )

    def append_to(self, group: zarr.Group, n: int) -> None:
        """Write these behind the first n sequences that `write_to` stored, in place of any others.

        The first n can be read at every moment.  Raises ValueError for differing feature counts,
        for labels on one side only, and for values or labels that the stored dtype cannot hold.
        """
        labels = _member(group, "labels") if "labels" in group else None
        if labels is not None and self.labels is None:
            raise ValueError("the stored sequences have labels, the new ones none: give them some")
        values, offsets = _member(group, "values"), _member(group, "offsets")
        if self.n_items != _n_items(values):
            new, stored = _described(self.n_items), _described(_n_items(values))
            raise ValueError(
                f"the new sequences are of {new}, the stored ones of {stored}: append sequences of "
                "the same kind"
            )
        if self.n_items is None and self.n_features != values.shape[1]:
            found = f"the new sequences have {self.n_features} features, the stored ones"
            raise ValueError(f"{found} {values.shape[1]}: append sequences of the same features")
        end = int(np.asarray(offsets[n]))
        _put_behind(values, end, self.values, "values")
        if labels is not None and self.labels is not None:
            _put_behind(labels, n, self.labels, "labels")
        _put_behind(offsets, n + 1, end + self.offsets[1:], "offsets")

    @classmethod
    def from_group(cls, group: zarr.Group) -> Sequences:
        """All sequences that `write_to` stored.  Raises as `read_slab`."""
        return cls.read_slab(group, 0, _member(group, "offsets").shape[0] - 1)

    @classmethod
    def read_slab(cls, group: zarr.Group, start: int, stop: int) -> Sequences:
        """Sequences start .. stop - 1 of what `write_to` stored; only their chunks are read.

        Raises IndexError outside 0 <= start < stop <= n, ValueError for missing or damaged arrays.
        """
        n = _member(group, "offsets").shape[0] - 1
        if not 0 <= start < stop <= n:
            asked = f"{group.store_path}: sequences {start}:{stop} are asked for but there are {n}"
            raise IndexError(f"{asked}: give 0 <= start < stop <= {n}")
        try:
            offsets = np.asarray(_member(group, "offsets")[start : stop + 1])
            stored = _member(group, "values")
            values = np.asarray(stored[int(offsets[0]) : int(offsets[-1])])
            labels = np.asarray(_member(group, "labels")[start:stop]) if "labels" in group else None
            return cls(_sealed(values), _sealed(offsets - offsets[0]), labels, _n_items(stored))
        except (TypeError, ValueError) as error:
            damage = f"{group.store_path}: sequences {start}:{stop} lack a chunk or are damaged"
            raise ValueError(f"{damage}: {error}") from error

    @staticmethod
    def stored_step_numbers(group: zarr.Group) -> int:
        """The `step_numbers` of what `write_to` stored; reads no values."""
        values = _member(group, "values")
        return int(values.shape[1]) if _n_items(values) is None else _ITEM_NUMBERS

    def _attributes(self) -> dict[str, Any] | None:
        return None if self.n_items is None else {"n_items": self.n_items}

    def _arrays(self) -> dict[str, AnyArray]:
        arrays: dict[str, AnyArray] = {"values": self.values, "offsets": self.offsets}
        return arrays if self.labels is None else {**arrays, "labels": self.labels}

    # -- size and identity -------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        length = str(low) if low == high else f"{low}..{high}"
        what = "features" if self.n_items is None else "items"
        shape = f"n={len(self)}, length={length}, {what}={self.n_features}"
        return f"Sequences({shape}, {self.values.dtype})"

    def _repr_html_(self) -> str:
        return sequences_html(self.values, self.offsets, self.labels, self.n_items)

    @cached_property
    def lengths(self) -> Ints:
        """(n,) int64, read-only: the number of steps of each sequence."""
        return _sealed(np.diff(self.offsets))

    @property
    def n_features(self) -> int:
        """m, the number of features of every step; of items n_items."""
        return int(self.values.shape[1]) if self.n_items is None else self.n_items

    @property
    def step_numbers(self) -> int:
        """Numbers that a step takes in a kernel: its features; of an item its weight and its id."""
        return int(self.values.shape[1]) if self.n_items is None else _ITEM_NUMBERS

    def one_hot(self) -> Sequences:
        """Items as the one-hot vectors that they stand for, (T_i, n_items) float64.

        Raises ValueError where these are no items, or the vectors would take more than 256 MiB.
        """
        if self.n_items is None:
            raise ValueError(
                f"{self!r} has no items: only Sequences.from_items has one-hot vectors"
            )
        return Sequences(_sealed(one_hot(self.values, self.n_items)), self.offsets, self.labels)

    def require_numbers(self, use: str) -> None:
        """Raise TypeError if the steps are items, of whose ids `use` would make no sense."""
        if self.n_items is not None:
            raise TypeError(
                f"{use} takes real numbers, and found {self!r}, whose ids are names: give its "
                "one_hot() if the vocabulary is small, or vectors of your own"
            )

    @property
    def equal_length(self) -> bool:
        """Whether all sequences have the same number of steps."""
        return bool((self.lengths == self.lengths[0]).all())

    @property
    def nbytes(self) -> int:
        """Bytes of values, offsets and labels."""
        return sum(array.nbytes for array in self._arrays().values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the feature count, the lengths and the values, but not the labels.

        Values are hashed as little-endian float64 with one zero: what is equal hashes equal,
        whether it is stored as float32 or as float64.  Items are never equal to real numbers.
        """
        if self.n_items is not None:
            return self._fingerprint_of_items(self.n_items)
        digest = hashlib.sha256(b"rntk_dist sequences 1\n")
        digest.update(np.array([self.n_features, len(self)], dtype="<i8").tobytes())
        digest.update(self.lengths.astype("<i8").tobytes())
        for rows in _row_blocks(self.values):
            # Adding 0.0 turns -0.0 into 0.0 and leaves every other number as it is.
            digest.update((self.values[rows].astype("<f8") + 0.0).tobytes())
        return digest.hexdigest()

    def _fingerprint_of_items(self, n_items: int) -> str:
        digest = hashlib.sha256(b"rntk_dist sequences of items 1\n")
        digest.update(np.array([n_items, len(self)], dtype="<i8").tobytes())
        digest.update(self.lengths.astype("<i8").tobytes())
        hash_ids(digest, self.values)
        return digest.hexdigest()

    # -- selection ---------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> AnyArray: ...
    @overload
    def __getitem__(self, key: slice | AnyArray | list[int] | list[bool]) -> Sequences: ...

    def __getitem__(self, key: Any) -> AnyArray | Sequences:
        """An int gives one sequence, a read-only (T_i, m) view; all else gives a `Sequences`.

        Of items an int gives their ids, (T_i,), as `ItemIds`, which no kernel takes for numbers.

        That is a slice (of step 1: sharing the memory), an integer array or a mask of shape (n,).
        Raises IndexError out of range, ValueError where nothing is selected.
        """
        if isinstance(key, int | np.integer):
            return self._view(int(key))
        indices = _selected(len(self), key)
        if isinstance(key, slice) and key.step in (None, 1):
            return self._run(int(indices[0]), int(indices[-1]) + 1)
        lengths = self.lengths[indices]
        offsets = _offsets(lengths)
        rows = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        labels = None if self.labels is None else self.labels[indices]
        return Sequences(_sealed(self.values[rows]), offsets, labels, self.n_items)

    def __iter__(self) -> Iterator[AnyArray]:
        return (self._view(i) for i in range(len(self)))

    def reversed(self) -> Sequences:
        """The same sequences, in the same order, each with its time reversed."""
        mirror = np.repeat(self.offsets[:-1] + self.offsets[1:] - 1, self.lengths)
        return replace(self, values=_sealed(self.values[mirror - np.arange(len(mirror))]))

    def _view(self, index: int) -> AnyArray:
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"sequence {index} is asked for but there are {n}: give {-n}..{n - 1}")
        index %= n
        found = self.values[self.offsets[index] : self.offsets[index + 1]]
        return found if self.n_items is None else found[:, 0].view(ItemIds)

    def _run(self, start: int, stop: int) -> Sequences:
        first, last = self.offsets[start], self.offsets[stop]
        labels = None if self.labels is None else self.labels[start:stop]
        offsets = _sealed(self.offsets[start : stop + 1] - first)
        return Sequences(self.values[first:last], offsets, labels, self.n_items)


# -- read-only arrays, offsets, indices ------------------------------------------------------------


def _sealed[A: AnyArray](array: A) -> A:
    """The same array, now read-only; only for arrays that nobody else can write to."""
    array.flags.writeable = False
    return array


def _frozen[A: AnyArray](array: A) -> A:
    """The array itself if nobody can write to it, else a read-only copy."""
    # A read-only view of a writable array still changes with it, so every base counts.
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return _sealed(array.copy())
        base = base.base
    return array


def _offsets(lengths: AnyArray) -> Ints:
    return _sealed(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)], dtype=np.int64))


def _row_blocks(values: AnyArray) -> Iterator[slice]:
    """Slices over the rows, each about 1 MiB as float64: no temporary as large as the batch."""
    rows = max(1, _CHUNK_BYTES // (8 * values.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(values), rows))


def _selected(n: int, key: Any) -> Ints:
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


def _checked_values(values: Any) -> Floats:
    if not isinstance(values, np.ndarray) or values.dtype.newbyteorder("=") not in _FLOATS:
        found = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"values are {found}, not float32 or float64: use Sequences.from_arrays")
    if values.ndim != 2 or not values.shape[1]:
        found = f"values have shape {values.shape}, not (total_steps, m) with m >= 1"
        raise ValueError(f"{found}: use Sequences.from_arrays")
    return _frozen(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))


def _checked_items(values: Any, offsets: Any, n_items: Any) -> tuple[AnyArray, Ints]:
    n_items = checked_n_items(n_items)
    try:
        ids = checked_ids(values, n_items)
    except OutsideError as error:
        checked = _checked_offsets(offsets, len(values))
        raise error.of_sequence(values, checked, n_items) from None
    return _frozen(ids), _checked_offsets(offsets, len(ids))


def _checked_offsets(offsets: Any, total: int) -> Ints:
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
    _refuse_empty(lengths)
    return _frozen(offsets)


def _checked_labels(labels: Any, n: int) -> AnyArray:
    array = np.asarray(labels)
    strings = array.dtype == object and all(isinstance(label, str) for label in array.flat)
    if strings or array.dtype.kind == "T":  # pandas' strings, and Zarr's of variable length
        array = np.array(array.tolist())
    if array.dtype.kind not in "biufU":
        raise TypeError(f"labels have dtype {array.dtype}: give integers, floats or strings")
    if array.shape != (n,):
        raise ValueError(f"labels have shape {array.shape} for {n} sequences: give one a sequence")
    return _frozen(array)


def _refuse_empty(lengths: AnyArray) -> None:
    if not lengths.all():
        way_out = "drop it or give it at least one step"
        raise _bad(np.argmin(lengths != 0), f"is empty (0 time steps): {way_out}")


def _refuse_non_finite(values: Floats, offsets: Ints) -> None:
    for rows in _row_blocks(values):
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
    return _sealed(values[keep]), _offsets(last + 1 - offsets[:-1])


# -- arrays to the packed form ---------------------------------------------------------------------


def _packed(X: Any) -> tuple[Floats, Ints]:
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
    # One copy, read-only before it is reshaped: `_frozen` then finds no writable base to copy from.
    values = _sealed(np.array(array, dtype=_float_dtype({array.dtype}), order="C"))
    return values.reshape(n * length, m), _offsets(lengths)


def _packed_list(X: list[Any] | tuple[Any, ...]) -> tuple[Floats, Ints]:
    arrays = [_numbers(x, f"sequence {i}") for i, x in enumerate(X)]
    if any(a.ndim not in (1, 2) for a in arrays):
        raise _wrong_dimensions(arrays)
    tables = [a[:, np.newaxis] if a.ndim == 1 else a for a in arrays]
    lengths = np.fromiter((len(table) for table in tables), dtype=np.int64)
    _refuse_unusable(lengths, np.fromiter((table.shape[1] for table in tables), dtype=np.int64))
    dtype = _float_dtype({table.dtype for table in tables})
    return _sealed(np.concatenate(tables, dtype=dtype)), _offsets(lengths)


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


def _time_first(index: int, case: Any) -> AnyArray:
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
    _refuse_empty(lengths)
    if (features != features[0]).any():
        i = int(np.argmax(features != features[0]))
        found = f"has {features[i]} features but sequence 0 has {features[0]}"
        raise _bad(i, f"{found}: give every sequence the same number")
    if not features[0]:
        raise _bad(0, "has 0 features: give every step at least one")


# -- files -----------------------------------------------------------------------------------------


def _read_npy(place: str) -> Sequences:
    return Sequences.from_nan_padded(_loaded(place)["array"])


def _read_npz(place: str) -> Sequences:
    arrays = _loaded(place)
    if {"values", "offsets"} <= arrays.keys():
        size = arrays.get("n_items")
        n_items = None if size is None else size.item()
        return Sequences(arrays["values"], arrays["offsets"], arrays.get("labels"), n_items)
    if "X" in arrays:
        return Sequences.from_nan_padded(arrays["X"], arrays.get("y"))
    if len(arrays) == 1:
        return Sequences.from_nan_padded(*arrays.values())
    way_out = "save `values` and `offsets`, or `X` [and `y`], or one array"
    raise ValueError(f"found the arrays {sorted(arrays)}: {way_out}")


def _loaded(place: str) -> dict[str, AnyArray]:
    """The arrays of a .npz file, or `array` alone from a .npy file; never unpickles."""
    try:
        with Path(place).open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return (
                dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"array": content}
            )
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        found = "found no intact NumPy file, or one of Python objects, which are never unpickled"
        raise ValueError(f"{found}: write ragged sequences with Sequences.write") from error


def _read_tsv(place: str) -> Sequences:
    lines = _text_lines(place, comments=())
    fields = [line.split(_separator(line)) for _, line in lines]
    for (number, line), (_, *values) in zip(lines, fields, strict=True):
        if not values:
            raise _malformed(number, line, "write the label, then the values")
    rows = [_parsed(row[1:], number) for (number, _), row in zip(lines, fields, strict=True)]
    return _from_text(rows, [label.strip() for label, *_ in fields], lines)


def _separator(line: str) -> str | None:
    return next((mark for mark in ("\t", ",") if mark in line), None)


def _read_ts(place: str) -> Sequences:
    lines = _text_lines(place, comments=("#", "%"))
    start = next((k for k, (_, line) in enumerate(lines) if line.lower() == "@data"), None)
    if start is None:
        raise ValueError("found no line @data: put one between the header and the sequences")
    labelled, dimensions = _ts_header(lines[:start])
    cases = [_ts_case(number, line, labelled, dimensions) for number, line in lines[start + 1 :]]
    labels = [label for _, label in cases] if labelled else None
    return _from_text([table for table, _ in cases], labels, lines[start + 1 :])


def _ts_header(lines: list[tuple[int, str]]) -> tuple[bool, int | None]:
    """Whether lines end in a label, and how many dimensions they have if the header says so."""
    header: dict[str, str] = {}
    for number, line in lines:
        if not line.startswith("@"):
            raise _malformed(number, line, "put sequences behind @data, and # before comments")
        key, *rest = line[1:].lower().split(None, 1)
        value = header[key] = rest[0] if rest else ""
        if key == "timestamps" and value != "false":
            raise _malformed(number, line, "time stamps are not supported, resample to even steps")
        if key in ("dimensions", "dimension") and not value.isdecimal():
            raise _malformed(number, line, "give the number of dimensions as an integer")
    labelled = any(header.get(key, "").startswith("true") for key in ("classlabel", "targetlabel"))
    default = "1" if header.get("univariate") == "true" else None
    dimensions = header.get("dimensions", header.get("dimension", default))
    return labelled, None if dimensions is None else int(dimensions)


def _ts_case(number: int, line: str, labelled: bool, dimensions: int | None) -> tuple[Floats, str]:
    """One line as a (T, m) array and its label ("" if there is none)."""
    parts = line.split(":")
    label = parts.pop().strip() if labelled else ""
    if len(parts) != (dimensions or max(1, len(parts))):
        wanted = f"{dimensions or 'some'} dimensions{' and a label' if labelled else ''}"
        way_out = f"the header asks for {wanted}, separated by ':'"
        raise _malformed(number, f"{len(parts)} dimensions", way_out)
    channels = [_parsed(part.split(","), number) for part in parts]
    lengths = [len(channel) for channel in channels]
    if len(set(lengths)) > 1:
        way_out = "give all dimensions of a sequence one length"
        raise _malformed(number, f"dimensions of lengths {lengths}", way_out)
    return np.stack(channels, axis=1), label


def _text_lines(place: str, comments: tuple[str, ...]) -> list[tuple[int, str]]:
    """(number from 1, stripped line) of the lines that are neither blank nor comments."""
    # Only comments hold anything but ASCII in the archives, and some of those are Latin-1.
    with Path(place).open(encoding="utf-8-sig", errors="replace") as file:
        numbered = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    return [(number, line) for number, line in numbered if line and not line.startswith(comments)]


def _malformed(number: int, found: str, way_out: str) -> ValueError:
    excerpt = found if len(found) <= 60 else found[:57] + "..."
    return ValueError(f"line {number}: found {excerpt!r}: {way_out}")


def _parsed(fields: list[str], number: int) -> Floats:
    """(len(fields),) float64, with NaN for "", "?" and "NaN"."""
    try:
        return np.array([float(field) for field in fields])
    except ValueError:
        return np.array([_parsed_field(field.strip(), number) for field in fields])


def _parsed_field(field: str, number: int) -> float:
    if field in ("", "?"):
        return float("nan")
    try:
        return float(field)
    except ValueError as error:
        raise _malformed(
            number, field, "write a number, or NaN or ? where it is missing"
        ) from error


def _from_text(
    rows: list[Floats], labels: list[str] | None, lines: list[tuple[int, str]]
) -> Sequences:
    try:
        return Sequences.from_nan_padded(rows, None if labels is None else _parsed_labels(labels))
    except SequenceError as error:
        raise ValueError(f"line {lines[error.index][0]}: {error}") from error


def _parsed_labels(labels: list[str]) -> AnyArray:
    """int64 if all are integers, else float64 if all are numbers, else strings."""
    if any("_" in label for label in labels):  # int("1_0") is 10, but "1_0" is the name of a class
        return np.array(labels)
    for dtype in (int, float):
        try:
            return np.array([dtype(label) for label in labels], dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(labels)


def _read_zarr(place: str) -> Sequences:
    try:
        node = zarr.open(place, mode="r")
    except FileNotFoundError as error:
        raise ValueError("found no Zarr group or array: check the path") from error
    if isinstance(node, zarr.Array):
        return Sequences.from_nan_padded(node[...])
    inner = node.get("sequences")
    return Sequences.from_group(inner if isinstance(inner, zarr.Group) else node)


def _put_behind(array: zarr.Array[Any], end: int, new: AnyArray, name: str) -> None:
    """Make `new` what follows the first `end` rows of a stored array."""
    cast = _cast(new, array.dtype)
    if not np.array_equal(cast, new):
        raise ValueError(
            f"the stored {name} are {array.dtype}, which cannot hold the new ones ({new.dtype}) as "
            f"they are: round them with astype({str(array.dtype)!r}) first, or use another store"
        )
    array.resize((end + len(cast), *array.shape[1:]))
    array[end:] = cast


def _n_items(values: zarr.Array[Any]) -> int | None:
    """The vocabulary of stored values; None if they are real numbers."""
    found: Any = values.attrs.get("n_items")
    return found if found is None else checked_n_items(found)


def _described(n_items: int | None) -> str:
    return "real numbers" if n_items is None else f"{n_items} items"


def _cast(new: AnyArray, dtype: Any) -> AnyArray:
    """As another dtype, rounded or cut where that cannot hold it; empty if it never can."""
    try:
        return new.astype(dtype)
    except ValueError:  # words to numbers
        return new[:0]


def _member(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group.get(name)
    if not isinstance(array, zarr.Array) or not array.ndim:
        found = f"{group.store_path}: found {sorted(group.keys())} but no array {name!r}"
        raise ValueError(f"{found}: write it with Sequences.write_to")
    return array


_READERS: dict[str, Callable[[str], Sequences]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".tsv": _read_tsv,
    ".ts": _read_ts,
    ".zarr": _read_zarr,
}
