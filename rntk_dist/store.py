"""The Gram store: a Zarr group that holds one matrix, the sequences it belongs to, and what it is.

    gram            (n_rows, n_cols) array, one chunk a tile, little-endian with a crc32c checksum
    sequences       the samples of the rows (and of the columns, if the matrix is symmetric)
    sequences_y     the samples of the columns, only if the matrix is rectangular
    attributes      {"rntk_dist": {"format": 1, "identity": {...}, "provenance": {...}}}

*Identity* (kernel, kind, dtype, plan, fingerprints of the sequences) decides whether two runs fill
the same matrix; it is compared. *Provenance* (versions, time) says how the first run came about; it
is not.

Invariant: a chunk that is listed is a whole tile. A tile is one chunk, written by one `set` of the
Zarr store, which is all or nothing: object stores publish a whole object or none, and Zarr's
LocalStore writes a `.partial` file and renames it. A writer killed at any moment leaves at most a
`.partial` file, which no listing takes for a tile. What a power cut or a bad disk does to a chunk
is found by its checksum on reading.

Knows no kernel and no Dask.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.sync import collect_aiterator
from zarr.errors import (
    ChunkNotFoundError,
    ContainsArrayError,
    ContainsGroupError,
    GroupNotFoundError,
)
from zarr.storage import MemoryStore

from rntk_dist.plan import Plan, Samples, Tile
from rntk_dist.sequences import Sequences

FORMAT = 1
_NAMESPACE = "rntk_dist"
_CHUNK_KEY = re.compile(r"gram/c/(\d+)/(\d+)")

type Location = str | Path | Store
"""A local path, an fsspec URL, or a Zarr store."""

type Block = NDArray[np.floating[Any]]

type Kind = Literal["ntk", "nngp"]


class IdentityError(ValueError):
    """The store holds another matrix than was asked for; the message lists what differs."""


class StoreFormatError(ValueError):
    """The location holds no Gram store that this version reads; the message says what it is."""


class MissingTileError(LookupError):
    """A tile was read that has not been computed."""


class CorruptTileError(ValueError):
    """A stored chunk does not match its checksum; the message names the tile and the chunk."""


@dataclass(frozen=True)
class Manifest:
    """What a store holds. `provenance` takes no part in comparisons.

    `kernel` is the kernel's JSON-able dict, `kind` "ntk" or "nngp", `fingerprint_y` None for a
    symmetric matrix.
    """

    kernel: Mapping[str, Any]
    kind: Kind
    plan: Plan
    fingerprint: str
    fingerprint_y: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """Either float32 or float64."""
        return np.dtype(np.float32 if self.plan.itemsize == 4 else np.float64)

    def identity(self) -> dict[str, Any]:
        """The JSON-able part that is compared."""
        return {
            "kernel": dict(self.kernel),
            "kind": self.kind,
            "dtype": self.dtype.name,
            "plan": self.plan.to_dict(),
            "fingerprint": self.fingerprint,
            "fingerprint_y": self.fingerprint_y,
        }

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the group's attributes."""
        return {"format": FORMAT, "identity": self.identity(), "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_dict`."""
        identity = data["identity"]
        return cls(
            kernel=identity["kernel"],
            kind=identity["kind"],
            plan=Plan.from_dict(identity["plan"]),
            fingerprint=identity["fingerprint"],
            fingerprint_y=identity["fingerprint_y"],
            provenance=data["provenance"],
        )


def provenance(**extra: str) -> dict[str, str]:
    """Versions of what computes here and the time, with `extra` (for example the backend) added."""
    return {
        "rntk_dist": version("rntk_dist"),
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }


@dataclass(frozen=True)
class GramStore:
    """An open store, from `GramStore.create` or `.open`; its `location` opens it elsewhere too."""

    location: str | Store
    manifest: Manifest
    group: zarr.Group
    array: zarr.Array[Any]

    @property
    def plan(self) -> Plan:
        """How the matrix is cut."""
        return self.manifest.plan

    # -- creating and opening ----------------------------------------------------------------------

    @classmethod
    def create(
        cls, location: Location, manifest: Manifest, X: Sequences, Y: Sequences | None = None
    ) -> GramStore:
        """Make an empty Gram store, with its manifest last: without it, creation was interrupted.

        Raises FileExistsError if the location holds anything; nothing is ever overwritten.
        """
        where = locate(location)
        group = _new_group(where)
        _new_array(group, manifest)
        X.write_to(group.create_group("sequences"))
        if Y is not None:
            Y.write_to(group.create_group("sequences_y"))
        group.attrs[_NAMESPACE] = manifest.to_dict()
        return cls.open(where, writable=True)

    @classmethod
    def open(cls, location: Location, *, writable: bool = False) -> GramStore:
        """Open an existing store.

        Raises FileNotFoundError if nothing is there, StoreFormatError if it is something else, an
        interrupted creation or a store of a newer format.
        """
        where = locate(location)
        mode: Any = "r+" if writable else "r"
        group = _open_group(where, mode)
        manifest = _read_manifest(where, group)
        # A gap must be an error, not a block of NaN; Zarr does not store such run-time settings.
        config: Any = {"write_empty_chunks": True, "read_missing_chunks": False}
        array = zarr.open_array(where, path="gram", mode=mode, config=config)
        return cls(where, manifest, group, array)

    @classmethod
    def find(cls, location: Location, *, writable: bool = False) -> GramStore | None:
        """As `open`, but None if there is nothing yet."""
        try:
            return cls.open(location, writable=writable)
        except FileNotFoundError:
            return None

    def check_identity(self, manifest: Manifest) -> None:
        """Raise IdentityError unless the store holds the matrix that `manifest` describes."""
        stored, given = _flat(self.manifest.identity()), _flat(manifest.identity())
        differ = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
        if differ:
            lines = [
                f"  {name}: stored {stored.get(name)!r}, given {given.get(name)!r}"
                for name in differ
            ]
            head = f"{show(self.location)} holds another Gram matrix: choose another store;"
            raise IdentityError("\n".join([f"{head} these differ:", *lines]))

    # -- sequences ---------------------------------------------------------------------------------

    def sequences(self) -> Sequences:
        """The samples of the rows, read whole."""
        return Sequences.from_group(self._side("sequences"))

    def sequences_y(self) -> Sequences | None:
        """The samples of the columns of a rectangular matrix; None for a symmetric one."""
        return None if self.plan.symmetric else Sequences.from_group(self._side("sequences_y"))

    def samples(self) -> Samples:
        """Lengths and features of the sequences; reads no values."""
        rows = self._side("sequences")
        cols = None if self.plan.symmetric else _lengths(self._side("sequences_y"))
        return Samples(_lengths(rows), cols, int(_array(rows, "values").shape[1]))

    def row_slab(self, tile: Tile) -> Sequences:
        """The samples of a tile's rows; reads no others."""
        return Sequences.read_slab(self._side("sequences"), *self.plan.rows(tile))

    def col_slab(self, tile: Tile) -> Sequences:
        """The samples of a tile's columns; reads no others."""
        side = "sequences" if self.plan.symmetric else "sequences_y"
        return Sequences.read_slab(self._side(side), *self.plan.cols(tile))

    def _side(self, name: str) -> zarr.Group:
        group = self.group[name]
        if not isinstance(group, zarr.Group):
            raise StoreFormatError(f"{show(self.location)}: {name} is not a group")
        return group

    # -- tiles -------------------------------------------------------------------------------------

    def write_tile(self, tile: Tile, block: Block) -> None:
        """Store the values of one tile, all or nothing; twice leaves the same bytes.

        Raises ValueError for a tile outside the plan, a wrong shape or dtype, or values that are
        not finite.
        """
        self._check_block(tile, block)
        self.array[self._region(tile)] = block

    def read_tile(self, tile: Tile) -> Block:
        """The values of one tile, shape `plan.block_shape(tile)`.

        Raises MissingTileError if it is not stored, CorruptTileError if its checksum does not
        match.
        """
        self._check_tile(tile)
        try:
            block = self.array[self._region(tile)]
        except ChunkNotFoundError as error:
            raise MissingTileError(
                f"tile {_pair(tile)} is not stored in {show(self.location)}"
            ) from error
        except ValueError as error:  # what Zarr's crc32c codec raises, also for a chunk cut short
            chunk = f"{show(self.location)}/{chunk_key(tile)}"
            raise CorruptTileError(
                f"tile {_pair(tile)} is damaged: delete its chunk {chunk} and run rd.gram again "
                f"to compute it anew ({error})"
            ) from error
        return np.asarray(block)

    def stored_tiles(self) -> frozenset[Tile]:
        """The tiles whose chunks are listed in the store, by one listing."""
        keys = collect_aiterator(self.array.store.list_prefix("gram/c/"))
        matches = (_CHUNK_KEY.fullmatch(key) for key in keys)
        tiles = (Tile(int(match[1]), int(match[2])) for match in matches if match)
        return frozenset(tile for tile in tiles if tile in self.plan)

    def missing_tiles(self) -> list[Tile]:
        """The tiles of the plan that are not stored, row by row."""
        stored = self.stored_tiles()
        return [tile for tile in self.plan.tiles() if tile not in stored]

    def _region(self, tile: Tile) -> tuple[slice, slice]:
        """A tile's part of the matrix: all of its chunk that lies inside, put without a read."""
        return slice(*self.plan.rows(tile)), slice(*self.plan.cols(tile))

    def _check_tile(self, tile: Tile) -> None:
        if tile not in self.plan:
            rows, cols = self.plan.grid
            part = "the upper triangle of " if self.plan.symmetric else ""
            raise ValueError(f"tile {_pair(tile)} is not in {part}a grid of {rows} x {cols} tiles")

    def _check_block(self, tile: Tile, block: Block) -> None:
        self._check_tile(tile)
        if block.shape != self.plan.block_shape(tile):
            raise ValueError(
                f"tile {_pair(tile)} has shape {self.plan.block_shape(tile)}, got {block.shape}"
            )
        if block.dtype != self.manifest.dtype:
            raise ValueError(
                f"tile {_pair(tile)} is stored as {self.manifest.dtype}, got {block.dtype}"
            )
        # The extremes are finite if and only if all values are, and need no large temporary.
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise ValueError(f"tile {_pair(tile)} holds values that are not finite")


def locate(location: Location) -> str | Store:
    """The location as workers can open it: a local path absolute, a URL or Zarr store as it is."""
    if isinstance(location, Store):
        return location
    text = str(location)
    if "://" in text:
        return text
    return str(Path(text).expanduser().absolute())


def in_memory(location: str | Store) -> bool:
    """True if only this process can see the store."""
    return isinstance(location, MemoryStore) or (
        isinstance(location, str) and location.startswith("memory://")
    )


def show(location: str | Store) -> str:
    """The location in an error message."""
    return str(location)


def chunk_key(tile: Tile) -> str:
    """The key of a tile's chunk inside the store."""
    return f"gram/c/{tile.row}/{tile.col}"


def _pair(tile: Tile) -> str:
    return f"({tile.row}, {tile.col})"


def _new_group(where: str | Store) -> zarr.Group:
    try:
        return zarr.open_group(
            where, mode="w-", zarr_format=3, attributes={_NAMESPACE: {"format": FORMAT}}
        )
    except (FileExistsError, ContainsArrayError, ContainsGroupError) as error:
        raise FileExistsError(
            f"{show(where)} holds something that is not a Gram store and is left as it is: "
            "choose another store"
        ) from error


def _new_array(group: zarr.Group, manifest: Manifest) -> None:
    group.create_array(
        "gram",
        shape=manifest.plan.shape,
        chunks=manifest.plan.chunk_shape,
        dtype=manifest.dtype,
        fill_value=float("nan"),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=(Crc32cCodec(),),
    )


def _open_group(where: str | Store, mode: Any) -> zarr.Group:
    try:
        return zarr.open_group(where, mode=mode)
    except ContainsArrayError as error:
        raise StoreFormatError(
            f"{show(where)} is a Zarr array, not a Gram store: choose another store"
        ) from error
    except (GroupNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(f"there is no Gram store at {show(where)}") from error


def _read_manifest(where: str | Store, group: zarr.Group) -> Manifest:
    data = group.attrs.asdict().get(_NAMESPACE)
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise StoreFormatError(
            f"{show(where)} is a Zarr group, but not a Gram store: choose another store"
        )
    if data["format"] > FORMAT:
        raise StoreFormatError(
            f"{show(where)} has format {data['format']}, this version reads up to {FORMAT}: "
            "upgrade rntk_dist"
        )
    if "identity" not in data:
        raise StoreFormatError(
            f"{show(where)} is a Gram store whose creation was interrupted; it holds no results: "
            "delete it or choose another store"
        )
    return Manifest.from_dict(data)


def _lengths(side: zarr.Group) -> list[int]:
    """Lengths of the packed sequences."""
    lengths: list[int] = np.diff(np.asarray(_array(side, "offsets")[:])).tolist()
    return lengths


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise StoreFormatError(f"{group.store_path}/{name} is not an array")
    return array


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, with values as they come back from JSON."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat
