"""The Gram store: a Zarr group that holds one matrix, the sequences it belongs to, and what it is.

    gram            (n_rows, n_cols) array, one chunk a tile, little-endian with a crc32c checksum
    gram/records    a small JSON file beside each chunk; readers of Zarr never look inside an array
    sequences       the samples of the rows (and of the columns, if the matrix is symmetric)
    sequences_y     the samples of the columns, only if the matrix is rectangular
    attributes      {"rntk_dist": {"format": 2, "identity": {...}, "identity_sha256": "...",
                    "provenance": {...}}}, and once all tiles are there a "report"

*Identity* (kernel, kind, dtype, plan, fingerprints of the sequences) decides whether two runs fill
the same matrix; it is compared, and guarded by its SHA-256. *Provenance* (versions, host, time)
says how the first run came about; it is not compared. Format 1 had no SHA-256 and no records; such
stores are read and resumed as they are.

Invariant: a chunk that is listed is a whole tile. A tile is one chunk, written by one `set` of the
Zarr store, which is all or nothing: object stores publish a whole object or none, and Zarr's
LocalStore writes a `.partial` file and renames it. A writer killed at any moment leaves at most a
`.partial` file, which no listing takes for a tile. What a power cut or a bad disk does to a chunk
is found by its checksum on reading.

Knows no kernel and no Dask.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import collect_aiterator, sync
from zarr.errors import (
    ChunkNotFoundError,
    ContainsArrayError,
    ContainsGroupError,
    GroupNotFoundError,
)
from zarr.storage import LocalStore, MemoryStore

from rntk_dist.manifest import FORMAT, read_manifest
from rntk_dist.manifest import IdentityError as IdentityError
from rntk_dist.manifest import Kind as Kind
from rntk_dist.manifest import Manifest as Manifest
from rntk_dist.manifest import StoreFormatError as StoreFormatError
from rntk_dist.manifest import provenance as provenance
from rntk_dist.manifest import versions as versions
from rntk_dist.plan import Plan, Samples, Tile
from rntk_dist.records import Record, Report
from rntk_dist.sequences import Sequences

PARTIAL_AGE = 3600.0
"""Seconds after its last change at which a `.partial` file has no living writer."""

_NAMESPACE = "rntk_dist"
_CHUNK_KEY = re.compile(r"gram/c/(\d+)/(\d+)")
_RECORD_KEY = re.compile(r"gram/records/(\d+)\.(\d+)\.json")
_PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")
_OTHER_KEYS = re.compile(
    r"(gram/)?zarr\.json|gram/\.?lease[-.][^/]*"  # the latter says who fills the store now
    r"|sequences(_y)?/(zarr\.json|(values|offsets|labels)/(zarr\.json|c(/\d+)*))"
)
_AT_ONCE = 64
"""Small files that are read at once."""

type Location = str | Path | Store
"""A local path, an fsspec URL, or a Zarr store."""

type Block = NDArray[np.floating[Any]]


class MissingTileError(LookupError):
    """A tile was read that has not been computed."""


class CorruptTileError(ValueError):
    """A stored chunk does not match its checksum; the message names the tile and the chunk."""


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
        manifest = read_manifest(show(where), group.attrs.asdict().get(_NAMESPACE))
        # A gap must be an error, not a block of NaN; Zarr does not store such run-time settings.
        config: Any = {"write_empty_chunks": True, "read_missing_chunks": False}
        array = zarr.open_array(
            where, path="gram", mode=mode, config=config, storage_options=_options(where)
        )
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
        lines = self.manifest.differences(manifest)
        if lines:
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
            raise MissingTileError(f"tile {tile} is not stored in {show(self.location)}") from error
        except ValueError as error:  # what Zarr's crc32c codec raises, also for a chunk cut short
            chunk = f"{show(self.location)}/{chunk_key(tile)}"
            raise CorruptTileError(
                f"tile {tile} is damaged: delete its chunk {chunk} and run rd.gram again "
                f"to compute it anew ({error})"
            ) from error
        return np.asarray(block)

    def stored_tiles(self) -> frozenset[Tile]:
        """The tiles whose chunks are listed in the store, by one listing."""
        keys = collect_aiterator(self._store.list_prefix("gram/c/"))
        tiles = (_tile_in(_CHUNK_KEY, key) for key in keys)
        return frozenset(tile for tile in tiles if tile in self.plan)

    def missing_tiles(self) -> list[Tile]:
        """The tiles of the plan that are not stored, row by row."""
        stored = self.stored_tiles()
        return [tile for tile in self.plan.tiles() if tile not in stored]

    def discard(self, tiles: Iterable[Tile]) -> None:
        """Delete the chunks and records of tiles, and the report of the matrix they were part of.

        A chunk that is not there is passed over. Raises ValueError for a tile outside the plan.
        """
        tiles = list(tiles)
        for tile in tiles:
            self._check_tile(tile)
        self._mark(None)
        for tile in tiles:
            for key in (chunk_key(tile), record_key(tile)):
                sync(self._store.delete(key))  # which is silent where there is nothing

    # -- records and the report --------------------------------------------------------------------

    def checksum(self, tile: Tile) -> str | None:
        """CRC-32C, 8 hex digits, that a tile's chunk ends in, unchecked; None if not stored."""
        end = self._get(chunk_key(tile), SuffixByteRequest(4))
        return None if end is None else f"{int.from_bytes(end, 'little'):08x}"

    def chunk_bytes(self, tile: Tile) -> int:
        """The size of a tile's chunk as it is stored, 0 if it is not; reads it."""
        # fsspec answers getsize from an earlier listing.
        return len(self._get(chunk_key(tile)) or b"")

    def write_record(self, tile: Tile, record: Record) -> None:
        """Put the record of a stored tile beside it, in place of an earlier one."""
        self._check_tile(tile)
        value = default_buffer_prototype().buffer.from_bytes(record.to_json())
        sync(self._store.set(record_key(tile), value))

    def records(self) -> dict[Tile, Record]:
        """The records there are; one that cannot be read is left out, as if it were lost."""
        keys = collect_aiterator(self._store.list_prefix("gram/records/"))
        tiles = [tile for tile in (_tile_in(_RECORD_KEY, key) for key in keys) if tile in self.plan]
        texts = sync(_get_all(self._store, [record_key(tile) for tile in tiles]))
        read = zip(tiles, (Record.from_json(text) for text in texts), strict=True)
        return {tile: record for tile, record in read if record is not None}

    def finish(self) -> Report | None:
        """If all tiles are stored, mark the store complete with its report, and return that.

        Again, it writes only if the report has changed. None if tiles are missing.
        """
        if self.missing_tiles():
            return None
        report = Report.of(self.plan.n_tiles, self.records().values())
        if self.report() != report.to_dict():
            self._mark(report)
        return report

    def report(self) -> dict[str, Any] | None:
        """The report that `finish` stored, read anew; None as long as there is none."""
        data: Any = _open_group(self.location, "r").attrs.asdict().get(_NAMESPACE, {})
        report: dict[str, Any] | None = data.get("report")
        return report

    def _mark(self, report: Report | None) -> None:
        group = _open_group(self.location, "r+")
        data: Any = group.attrs.asdict()[_NAMESPACE]
        rest = {name: value for name, value in data.items() if name != "report"}
        if report is not None:
            group.attrs[_NAMESPACE] = {**rest, "report": report.to_dict()}
        elif "report" in data:
            group.attrs[_NAMESPACE] = rest

    # -- what lies about ---------------------------------------------------------------------------

    def clean(self, older_than: float = PARTIAL_AGE) -> int:
        """Remove what killed writers left in a local store; returns how many files.

        A `.partial` file does not tell who writes it: only one that nobody has changed for
        `older_than` seconds is taken. Object stores keep no halves of a put.
        """
        if not isinstance(self._store, LocalStore):
            return 0
        removed = 0
        for path in self._store.root.rglob("*.partial"):
            # Its writer may have renamed or removed it meanwhile.
            with suppress(FileNotFoundError):
                idle = time.time() - path.stat().st_mtime
                if _PARTIAL.fullmatch(path.name) and idle > older_than:
                    path.unlink()
                    removed += 1
        return removed

    def foreign_keys(self) -> list[str]:
        """Keys that are no part of a Gram store, those of `.partial` files included, sorted."""
        keys = collect_aiterator(self._store.list_prefix(""))
        return sorted(key for key in keys if not self._is_own(key))

    def _is_own(self, key: str) -> bool:
        if _OTHER_KEYS.fullmatch(key):
            return True
        tile = _tile_in(_RECORD_KEY if key.endswith(".json") else _CHUNK_KEY, key)
        # "00" is a number, but no chunk's.
        return tile in self.plan and key in (chunk_key(tile), record_key(tile))

    @property
    def _store(self) -> Store:
        return self.array.store

    def _get(self, key: str, part: ByteRequest | None = None) -> bytes | None:
        found = sync(self._store.get(key, default_buffer_prototype(), part))
        return None if found is None else found.to_bytes()

    def _region(self, tile: Tile) -> tuple[slice, slice]:
        """A tile's part of the matrix: all of its chunk that lies inside, put without a read."""
        return slice(*self.plan.rows(tile)), slice(*self.plan.cols(tile))

    def _check_tile(self, tile: Tile) -> None:
        if tile not in self.plan:
            rows, cols = self.plan.grid
            part = "the upper triangle of " if self.plan.symmetric else ""
            raise ValueError(f"tile {tile} is not in {part}a grid of {rows} x {cols} tiles")

    def _check_block(self, tile: Tile, block: Block) -> None:
        self._check_tile(tile)
        if block.shape != self.plan.block_shape(tile):
            raise ValueError(
                f"tile {tile} has shape {self.plan.block_shape(tile)}, got {block.shape}"
            )
        if block.dtype != self.manifest.dtype:
            raise ValueError(f"tile {tile} is stored as {self.manifest.dtype}, got {block.dtype}")
        # The extremes are finite if and only if all values are, and need no large temporary.
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise ValueError(f"tile {tile} holds values that are not finite")


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


def record_key(tile: Tile) -> str:
    """The key of a tile's record inside the store."""
    return f"gram/records/{tile.row}.{tile.col}.json"


def _tile_in(pattern: re.Pattern[str], key: str) -> Tile:
    """The tile that a key of this pattern belongs to; for another key one that no plan has."""
    match = pattern.fullmatch(key)
    return Tile(int(match[1]), int(match[2])) if match else Tile(-1, -1)


async def _get_all(store: Store, keys: list[str]) -> list[bytes]:
    """The values of small keys, empty for one that has gone."""
    gate, prototype = asyncio.Semaphore(_AT_ONCE), default_buffer_prototype()

    async def get(key: str) -> bytes:
        async with gate:
            found = await store.get(key, prototype)
        return b"" if found is None else found.to_bytes()

    return list(await asyncio.gather(*map(get, keys)))


def _options(where: str | Store) -> dict[str, Any] | None:
    """How fsspec is to open a URL: it must not take what it listed before for what is there.

    From its cache, s3fs says of a tile that another process has written since that it is missing.
    """
    if not isinstance(where, str) or "://" not in where or where.startswith(("file:", "memory:")):
        return None  # not fsspec's: Zarr refuses options
    return {"use_listings_cache": False}


def _new_group(where: str | Store) -> zarr.Group:
    try:
        return zarr.open_group(
            where,
            mode="w-",
            zarr_format=3,
            attributes={_NAMESPACE: {"format": FORMAT}},
            storage_options=_options(where),
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
        dimension_names=("row", "col"),  # as in Gram.to_xarray; xarray opens no array without
        serializer=BytesCodec(endian="little"),
        compressors=(Crc32cCodec(),),
    )


def _open_group(where: str | Store, mode: Any) -> zarr.Group:
    try:
        return zarr.open_group(where, mode=mode, storage_options=_options(where))
    except ContainsArrayError as error:
        raise StoreFormatError(
            f"{show(where)} is a Zarr array, not a Gram store: choose another store"
        ) from error
    except (GroupNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(f"there is no Gram store at {show(where)}") from error
    except json.JSONDecodeError as error:
        raise StoreFormatError(f"{show(where)}: zarr.json is damaged: {error}") from error


def _lengths(side: zarr.Group) -> list[int]:
    """Lengths of the packed sequences."""
    lengths: list[int] = np.diff(np.asarray(_array(side, "offsets")[:])).tolist()
    return lengths


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise StoreFormatError(f"{group.store_path}/{name} is not an array")
    return array
