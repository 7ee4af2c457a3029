"""Sequences as packed arrays in a Zarr group: `values`, `offsets` and, if there are any, `labels`.

The size of the vocabulary, where steps are items, is an attribute of `values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from rntk_dist.items import checked_n_items
from rntk_dist.packed import CHUNK_BYTES, AnyArray, Packed, sealed

ITEM_NUMBERS = 2
"""Of an item's step in a kernel: its weight and its id."""

_DIMENSIONS = {"values": ("step", "feature"), "offsets": ("boundary",), "labels": ("sequence",)}
"""Names in a store: xarray opens no array without."""


def write_arrays(group: zarr.Group, arrays: Mapping[str, AnyArray], n_items: int | None) -> None:
    """Create the arrays, in chunks of about 1 MiB that end in a CRC-32C checksum.

    A lost chunk reads as NaN, as an id that is none or as a negative offset.
    """
    nothing = {"values": np.nan if n_items is None else n_items, "offsets": -1}
    for name, array in arrays.items():
        rows = max(1, min(len(array), CHUNK_BYTES * len(array) // max(1, array.nbytes)))
        of_items = name == "values" and n_items is not None
        group.create_array(
            name,
            data=array,
            chunks=(rows, *array.shape[1:]),
            compressors=[ZstdCodec(level=0), Crc32cCodec()],
            # Zarr fills what is missing, by default with zeros, which nobody would notice.
            fill_value=nothing.get(name),
            dimension_names=_DIMENSIONS[name],
            attributes={"n_items": n_items} if of_items else None,
        )


def append_arrays(
    group: zarr.Group, n: int, arrays: Mapping[str, AnyArray], n_items: int | None
) -> None:
    """Write the arrays of more sequences behind the first n, in place of any others.

    The first n can be read at every moment.  Raises ValueError for differing feature counts, for
    labels on one side only, and for values or labels that the stored dtype cannot hold.
    """
    labels = _member(group, "labels") if "labels" in group else None
    if labels is not None and "labels" not in arrays:
        raise ValueError("the stored sequences have labels, the new ones none: give them some")
    values, offsets = _member(group, "values"), _member(group, "offsets")
    if n_items != _n_items(values):
        new, stored = _described(n_items), _described(_n_items(values))
        raise ValueError(
            f"the new sequences are of {new}, the stored ones of {stored}: append sequences of "
            "the same kind"
        )
    m = arrays["values"].shape[1]
    if m != values.shape[1]:
        found = f"the new sequences have {m} features, the stored ones"
        raise ValueError(f"{found} {values.shape[1]}: append sequences of the same features")
    end = int(np.asarray(offsets[n]))
    _put_behind(values, end, arrays["values"], "values")
    if labels is not None:
        _put_behind(labels, n, arrays["labels"], "labels")
    _put_behind(offsets, n + 1, end + arrays["offsets"][1:], "offsets")


def n_sequences(group: zarr.Group) -> int:
    """How many are stored.  Raises ValueError where an array is missing."""
    return int(_member(group, "offsets").shape[0]) - 1


def read_arrays(group: zarr.Group, start: int, stop: int) -> Packed:
    """Sequences start .. stop - 1; only their chunks are read.

    Raises IndexError outside 0 <= start < stop <= n, ValueError or TypeError for missing or damaged
    arrays.
    """
    n = n_sequences(group)
    if not 0 <= start < stop <= n:
        asked = f"{group.store_path}: sequences {start}:{stop} are asked for but there are {n}"
        raise IndexError(f"{asked}: give 0 <= start < stop <= {n}")
    offsets = np.asarray(_member(group, "offsets")[start : stop + 1])
    stored = _member(group, "values")
    values = np.asarray(stored[int(offsets[0]) : int(offsets[-1])])
    labels = np.asarray(_member(group, "labels")[start:stop]) if "labels" in group else None
    return sealed(values), sealed(offsets - offsets[0]), labels, _n_items(stored)


def step_numbers(group: zarr.Group) -> int:
    """Numbers that a stored step takes in a kernel; reads no values."""
    values = _member(group, "values")
    return int(values.shape[1]) if _n_items(values) is None else ITEM_NUMBERS


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
