"""A ragged batch of sequences: how it is read, checked, stored, sliced and identified.

Axis order is (sequence, time, feature).  The batch is packed, not padded: the steps of all
sequences stand one under another in `values`; sequence i is `values[offsets[i]:offsets[i + 1]]`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import zarr

from rntk_dist import sequence_group
from rntk_dist.items import ItemIds as ItemIds
from rntk_dist.items import checked_n_items, hash_ids, one_hot, packed_ids
from rntk_dist.packed import (
    AnyArray,
    Ints,
    Packed,
    checked_items,
    checked_labels,
    checked_offsets,
    checked_values,
    offsets_of,
    packed,
    refuse_empty,
    refuse_non_finite,
    row_blocks,
    sealed,
    selected,
    time_first,
    without_padding,
)
from rntk_dist.sequence_error import SequenceError as SequenceError
from rntk_dist.sequence_files import read_npy, read_npz, read_ts, read_tsv
from rntk_dist.sequences_view import sequences_html

_READERS: dict[str, Callable[[str], Packed]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".tsv": read_tsv,
    ".ts": read_ts,
}
_SUFFIXES = (*_READERS, ".zarr")


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
            values = checked_values(self.values)
            offsets = checked_offsets(self.offsets, len(values))
            refuse_non_finite(values, offsets)
        else:
            values, offsets = checked_items(self.values, self.offsets, self.n_items)
        labels = None if self.labels is None else checked_labels(self.labels, len(offsets) - 1)
        for name, array in (("values", values), ("offsets", offsets), ("labels", labels)):
            object.__setattr__(self, name, array)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickling loses NumPy's read-only flag; a worker must not change what it was sent either.
        for name, value in state.items():
            self.__dict__[name] = sealed(value) if isinstance(value, np.ndarray) else value

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
        return cls(*packed(X), None if labels is None else np.asarray(labels))

    @classmethod
    def from_nan_padded(cls, X: Any, labels: npt.ArrayLike | None = None) -> Sequences:
        """Like `from_arrays`, but steps at a sequence's end that are NaN in every feature are cut.

        Raises as `from_arrays`: NaN anywhere else is an error, and a sequence of only NaN is one.
        """
        if isinstance(X, Sequences):
            return cls.from_arrays(X, labels)
        return cls(*without_padding(X, labels))

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
        return cls.from_arrays([time_first(i, case) for i, case in enumerate(X)], labels)

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
        refuse_empty(lengths)
        given = None if labels is None else np.asarray(labels)
        return cls(ids[:, np.newaxis], offsets_of(lengths), given, n_items)

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
            sealed(np.concatenate([batch.values for batch in batches])),
            offsets_of(np.concatenate([batch.lengths for batch in batches])),
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
        if suffix not in _SUFFIXES:
            known = ", ".join(_SUFFIXES)
            raise ValueError(f"{place}: suffix {suffix!r} is none of {known}: convert or rename it")
        if "://" not in place and not Path(place).exists():
            raise FileNotFoundError(
                f"{place}: no such file, seen from {Path.cwd()}: check the path"
            )
        try:
            return cls._read_zarr(place) if suffix == ".zarr" else cls(*_READERS[suffix](place))
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
        checksum.  A lost chunk is refused when read.
        """
        sequence_group.write_arrays(group, self._arrays(), self.n_items)

    def append_to(self, group: zarr.Group, n: int) -> None:
        """Write these behind the first n sequences that `write_to` stored, in place of any others.

        The first n can be read at every moment.  Raises ValueError for differing feature counts,
        for labels on one side only, and for values or labels that the stored dtype cannot hold.
        """
        sequence_group.append_arrays(group, n, self._arrays(), self.n_items)

    @classmethod
    def from_group(cls, group: zarr.Group) -> Sequences:
        """All sequences that `write_to` stored.  Raises as `read_slab`."""
        return cls.read_slab(group, 0, sequence_group.n_sequences(group))

    @classmethod
    def read_slab(cls, group: zarr.Group, start: int, stop: int) -> Sequences:
        """Sequences start .. stop - 1 of what `write_to` stored; only their chunks are read.

        Raises IndexError outside 0 <= start < stop <= n, ValueError for missing or damaged arrays.
        """
        try:
            return cls(*sequence_group.read_arrays(group, start, stop))
        except (TypeError, ValueError) as error:
            damage = f"{group.store_path}: sequences {start}:{stop} lack a chunk or are damaged"
            raise ValueError(f"{damage}: {error}") from error

    @classmethod
    def _read_zarr(cls, place: str) -> Sequences:
        try:
            node = zarr.open(place, mode="r")
        except FileNotFoundError as error:
            raise ValueError("found no Zarr group or array: check the path") from error
        if isinstance(node, zarr.Array):
            return cls.from_nan_padded(node[...])
        inner = node.get("sequences")
        return cls.from_group(inner if isinstance(inner, zarr.Group) else node)

    @staticmethod
    def stored_step_numbers(group: zarr.Group) -> int:
        """The `step_numbers` of what `write_to` stored; reads no values."""
        return sequence_group.step_numbers(group)

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
        return sealed(np.diff(self.offsets))

    @property
    def n_features(self) -> int:
        """m, the number of features of every step; of items n_items."""
        return int(self.values.shape[1]) if self.n_items is None else self.n_items

    @property
    def step_numbers(self) -> int:
        """Numbers that a step takes in a kernel: its features; of an item its weight and its id."""
        return int(self.values.shape[1]) if self.n_items is None else sequence_group.ITEM_NUMBERS

    def one_hot(self) -> Sequences:
        """Items as the one-hot vectors that they stand for, (T_i, n_items) float64.

        Raises ValueError where these are no items, or the vectors would take more than 256 MiB.
        """
        if self.n_items is None:
            raise ValueError(
                f"{self!r} has no items: only Sequences.from_items has one-hot vectors"
            )
        return Sequences(sealed(one_hot(self.values, self.n_items)), self.offsets, self.labels)

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
        for rows in row_blocks(self.values):
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
        indices = selected(len(self), key)
        if isinstance(key, slice) and key.step in (None, 1):
            return self._run(int(indices[0]), int(indices[-1]) + 1)
        lengths = self.lengths[indices]
        offsets = offsets_of(lengths)
        rows = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        labels = None if self.labels is None else self.labels[indices]
        return Sequences(sealed(self.values[rows]), offsets, labels, self.n_items)

    def __iter__(self) -> Iterator[AnyArray]:
        return (self._view(i) for i in range(len(self)))

    def reversed(self) -> Sequences:
        """The same sequences, in the same order, each with its time reversed."""
        mirror = np.repeat(self.offsets[:-1] + self.offsets[1:] - 1, self.lengths)
        return replace(self, values=sealed(self.values[mirror - np.arange(len(mirror))]))

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
        offsets = sealed(self.offsets[start : stop + 1] - first)
        return Sequences(self.values[first:last], offsets, labels, self.n_items)
