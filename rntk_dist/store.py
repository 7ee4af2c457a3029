"""The Gram store: a Zarr group that holds one matrix, the sequences it belongs to, and what it is.

    gram            (n_rows, n_cols) array, one chunk a tile, little-endian with a crc32c checksum
    gram/records    a small JSON file beside each chunk; readers of Zarr never look inside an array
    sequences       the samples of the rows (and of the columns, if the matrix is symmetric)
    sequences_y     the samples of the columns, only if the matrix is rectangular
    attributes      {"rntk_dist": {"format": 2, "identity": {...}, "identity_sha256": "...",
                    "provenance": {...}}}, and once all tiles are there a "report"; while it is
                    extended, in "growing" the same of the larger matrix (see growth)

*Identity* (kernel, kind, dtype, plan, fingerprints of the sequences) decides whether two runs fill
the same matrix; it is compared, and guarded by its SHA-256. *Provenance* (versions, host, time)
says how the first run came about; it is not compared. Format 1 had no SHA-256 and no records; such
stores are read and resumed as they are.

Invariant: a chunk that is listed is a whole tile. A tile is one chunk, written by one `set` of the
Zarr store, which is all or nothing: object stores publish a whole object or none, and FolderStore
writes a `.partial` file, brings it to the disk, and renames it. A writer killed at any moment
leaves at most a `.partial` file, which no listing takes for a tile. What a bad disk does to a chunk
is found by its checksum on reading.

Knows no kernel and no Dask.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import collect_aiterator, sync
from zarr.errors import ChunkNotFoundError
from zarr.storage import LocalStore

from rntk_dist.folder_store import FolderStore
from rntk_dist.location import (
    CREATED,
    NAMESPACE,
    attributes,
    clear_begun,
    new_group,
    obstacle,
    open_group,
    progress,
    zarr_store,
)
from rntk_dist.location import Location as Location
from rntk_dist.location import in_memory as in_memory
from rntk_dist.location import locate as locate
from rntk_dist.location import show as show
from rntk_dist.manifest import CreationBegunError as CreationBegunError
from rntk_dist.manifest import IdentityError as IdentityError
from rntk_dist.manifest import Kind as Kind
from rntk_dist.manifest import Manifest as Manifest
from rntk_dist.manifest import NeighborsFoundError as NeighborsFoundError
from rntk_dist.manifest import StoreFormatError as StoreFormatError
from rntk_dist.manifest import SweepFoundError as SweepFoundError
from rntk_dist.manifest import provenance as provenance
from rntk_dist.manifest import read_manifest
from rntk_dist.manifest import versions as versions
from rntk_dist.plan import Plan, Samples, Tile
from rntk_dist.records import Record, Report
from rntk_dist.sequences import Sequences

PARTIAL_AGE = 3600.0
"""Seconds after its last change at which a `.partial` file has no living writer."""

_CHUNKS, _RECORDS = "gram/c/", "gram/records/"
_CHUNK = re.compile(r"(\d+)/(\d+)")
_RECORD = re.compile(r"(\d+)\.(\d+)\.json")
_PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")
_AT_ONCE = 64
"""Small files that are read at once."""

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
    growing: Manifest | None = None
    """Of the larger matrix that this one is being extended to."""

    filled_by: ClassVar[str] = "rd.gram"
    """The function that computes what is missing."""

    another: ClassVar[str] = "another Gram matrix"
    """What a store holds that is not the one that is asked for."""

    @property
    def plan(self) -> Plan:
        """How the matrix is cut."""
        return self.manifest.plan

    # -- creating and opening ----------------------------------------------------------------------

    @classmethod
    def create(
        cls, location: Location, manifest: Manifest, X: Sequences, Y: Sequences | None = None
    ) -> Self:
        """Make an empty Gram store, with its manifest last: without it, creation was interrupted.

        Raises FileExistsError if the location holds anything but the lease of who creates; nothing
        is ever overwritten.
        """
        where = locate(location)
        group = new_group(where)
        _new_array(group, manifest)
        X.write_to(group.create_group("sequences"))
        if Y is not None:
            Y.write_to(group.create_group("sequences_y"))
        group.attrs[NAMESPACE] = manifest.to_dict()
        return cls.open(where, writable=True)

    @classmethod
    def open(cls, location: Location, *, writable: bool = False) -> Self:
        """Open an existing store.

        Raises FileNotFoundError if nothing is there, StoreFormatError if it is something else, an
        interrupted creation or a store of a newer format.
        """
        where = locate(location)
        mode: Any = "r+" if writable else "r"
        group = open_group(where, mode)
        data: Any = attributes(group)
        manifest = cls._read_manifest(show(where), data)
        growing = read_manifest(show(where), data["growing"]) if "growing" in data else None
        return cls(where, manifest, group, _open_array(group, where, mode), growing)

    @staticmethod
    def _read_manifest(where: str, data: Any) -> Manifest:
        return read_manifest(where, data)

    @classmethod
    def find(cls, location: Location, *, writable: bool = False) -> Self | None:
        """As `open`, but None if there is nothing yet."""
        try:
            return cls.open(location, writable=writable)
        except FileNotFoundError:
            return None

    def opener(self) -> Callable[[], GramStore]:
        """What opens this store for reading on another machine, too."""
        return partial(GramStore.open, self.location)

    @staticmethod
    def is_interrupted(location: Location) -> bool:
        """True if a creation has begun at the location and has not come to its end.

        It holds no results; whether it goes on in another process, only the lease can tell.
        """
        return progress(locate(location)) == "begun"

    @staticmethod
    def check_free(location: Location) -> None:
        """Raise FileExistsError unless a store may be created there; writes nothing.

        What an interrupted creation has left is not in the way, nor is what another process
        creates, or has created, meanwhile.
        """
        error = obstacle(locate(location))
        if error is not None:
            raise error

    @staticmethod
    def clear_interrupted(location: Location) -> None:
        """Remove what an interrupted creation has left, but for the lease; for its owner alone.

        Raises FileExistsError, and removes nothing, if anything else lies there.
        """
        clear_begun(locate(location))

    @staticmethod
    def remove(location: Location) -> None:
        """Remove all that lies there, whatever it is; for who made it for a while."""
        sync(zarr_store(locate(location), read_only=False).clear())

    def check_identity(self, manifest: Manifest) -> None:
        """Raise IdentityError unless the store holds the matrix that `manifest` describes."""
        lines = self.manifest.differences(manifest)
        if lines:
            if self.growing == manifest:
                raise IdentityError(
                    f"{show(self.location)} is being extended to this matrix, and that was "
                    "interrupted: open_gram(store).append() finishes it"
                )
            head = f"{show(self.location)} holds {self.another}: choose another store;"
            raise IdentityError("\n".join([f"{head} these differ:", *lines]))

    # -- sequences ---------------------------------------------------------------------------------

    # What is stored behind the samples of the plan is of a matrix that this one grows into.

    def sequences(self, start: int = 0, stop: int | None = None) -> Sequences:
        """The samples of the rows start .. stop - 1, by default all."""
        stop = self.plan.n_rows if stop is None else stop
        return Sequences.read_slab(self._side("sequences"), start, stop)

    def sequences_y(self) -> Sequences | None:
        """The samples of the columns of a rectangular matrix; None for a symmetric one."""
        if self.plan.symmetric:
            return None
        return Sequences.read_slab(self._side("sequences_y"), 0, self.plan.n_cols)

    def samples(self) -> Samples:
        """Lengths and features of the sequences; reads no values."""
        rows, n_cols = self._side("sequences"), self.plan.n_cols
        cols = None if self.plan.symmetric else _lengths(self._side("sequences_y"), n_cols)
        n_features = Sequences.stored_step_numbers(rows)
        return Samples(_lengths(rows, self.plan.n_rows), cols, n_features)

    def row_slab(self, tile: Tile) -> Sequences:
        """The samples of a tile's rows; reads no others."""
        return self.sequences(*self.plan.rows(tile))

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
        not finite; IdentityError if the store has grown since it was opened.
        """
        self._check_block(tile, block)
        if block.shape != self.plan.chunk_shape:
            self._check_not_outgrown(tile)
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
            raise CorruptTileError(
                f"tile {tile} is damaged: {self._remedy(tile)} ({error})"
            ) from error
        return np.asarray(block)

    def view_tile(self, tile: Tile) -> Block:
        """As `read_tile`, but the chunk's own bytes, read-only: three times as fast.

        The chunk is what `_new_array` lays down, so its checksum is compared here and nothing is
        copied into an array of its own, which is what a product mostly waits for.
        """
        self._check_tile(tile)
        content = self._chunk(tile)
        if content is None:
            raise MissingTileError(f"tile {tile} is not stored in {show(self.location)}")
        plan, dtype = self.plan, self.manifest.dtype.newbyteorder("<")
        rows, cols = plan.chunk_shape
        values, checksum = content[:-4], content[-4:].tobytes()
        if len(values) != rows * cols * dtype.itemsize:
            raise CorruptTileError(
                f"tile {tile} is damaged: {self._remedy(tile)} (it has {len(content)} bytes)"
            )
        if google_crc32c.value(values) != int.from_bytes(checksum, "little"):
            raise CorruptTileError(
                f"tile {tile} is damaged: {self._remedy(tile)} (its checksum does not match)"
            )
        n_rows, n_cols = plan.block_shape(tile)
        block: Block = values.view(dtype).reshape(rows, cols)[:n_rows, :n_cols]
        return block

    def _chunk(self, tile: Tile) -> NDArray[np.uint8] | None:
        """The bytes of a tile's chunk; None if it is not stored."""
        key, prototype = self._chunk_key(tile), default_buffer_prototype()
        if isinstance(self._store, FolderStore):  # without a way through another thread
            found = self._store.get_sync(key, prototype=prototype)
        else:
            found = sync(self._store.get(key, prototype))
        return None if found is None else np.asarray(found.as_numpy_array(), np.uint8)

    def _remedy(self, tile: Tile) -> str:
        """What is to be done about a damaged tile."""
        key = self._chunk_key(tile)
        return f"`rntk-dist repair {show(self.location)}` computes its chunk {key} anew"

    def stored_tiles(self) -> frozenset[Tile]:
        """The tiles whose chunks are listed in the store, by one listing."""
        place = _CHUNKS + self._part
        keys = collect_aiterator(self._store.list_prefix(place))
        tiles = (_tile_in(_CHUNK, key, place) for key in keys)
        return frozenset(tile for tile in tiles if tile in self.plan)

    def chunk_tiles(self) -> list[Tile]:
        """A tile for each chunk of the whole store."""
        return list(self.plan.tiles())

    def stored_chunks(self) -> frozenset[Tile]:
        """Those of `chunk_tiles` that are stored, by one listing."""
        return self.stored_tiles()

    def kernel_of(self, tile: Tile) -> Mapping[str, Any]:
        """The options of the kernel that a chunk's tile belongs to."""
        del tile  # of a sweep, there are many
        return self.manifest.kernel

    def gone(self, tiles: Iterable[Tile]) -> set[Tile]:
        """Those of the tiles that are not stored, by one listing."""
        return set(tiles) - self.stored_tiles()

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
            for key in (self._chunk_key(tile), self._record_key(tile)):
                sync(self._store.delete(key))  # which is silent where there is nothing

    # -- records and the report --------------------------------------------------------------------

    def checksum(self, tile: Tile) -> str | None:
        """CRC-32C, 8 hex digits, that a tile's chunk ends in, unchecked; None if not stored."""
        end = self._get(self._chunk_key(tile), SuffixByteRequest(4))
        # Some servers send the whole chunk in place of a part.
        return None if end is None else f"{int.from_bytes(end[-4:], 'little'):08x}"

    def chunk_bytes(self, tile: Tile) -> int:
        """The size of a tile's chunk as it is stored, 0 if it is not; reads it."""
        # fsspec answers getsize from an earlier listing.
        return len(self._get(self._chunk_key(tile)) or b"")

    def write_record(self, tile: Tile, record: Record) -> None:
        """Put the record of a stored tile beside it, in place of an earlier one."""
        self._check_tile(tile)
        value = default_buffer_prototype().buffer.from_bytes(record.to_json())
        sync(self._store.set(self._record_key(tile), value))

    def drop_record(self, tile: Tile) -> None:
        """Delete the record of a tile; one that is not there is passed over."""
        sync(self._store.delete(self._record_key(tile)))

    def records(self, only: Container[Tile] | None = None) -> dict[Tile, Record]:
        """The records there are, by default of all tiles; one that cannot be read is left out."""
        among = self.plan if only is None else only
        keys = collect_aiterator(self._store.list_prefix(_RECORDS + self._part))
        tiles = [tile for tile in map(self._recorded_tile, keys) if tile in among]
        texts = sync(_get_all(self._store, [self._record_key(tile) for tile in tiles]))
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
        data: Any = attributes(open_group(self.location, "r")) or {}
        report: dict[str, Any] | None = data.get("report")
        return report

    def _mark(self, report: Report | None) -> None:
        group = open_group(self.location, "r+")
        data: Any = group.attrs.asdict()[NAMESPACE]
        rest = {name: value for name, value in data.items() if name != "report"}
        if report is not None:
            group.attrs[NAMESPACE] = {**rest, "report": report.to_dict()}
        elif "report" in data:
            group.attrs[NAMESPACE] = rest

    # -- growth ------------------------------------------------------------------------------------

    def announce(self, X: Sequences, manifest: Manifest) -> None:
        """Store new sequences behind the rows' and say that the matrix grows by them.

        Raises ValueError for sequences that cannot stand beside the stored ones.
        """
        X.append_to(self._side("sequences"), self.plan.n_rows)
        group = open_group(self.location, "r+")
        data: Any = group.attrs.asdict()[NAMESPACE]
        group.attrs[NAMESPACE] = {**data, "growing": manifest.to_dict()}

    def publish(self, report: Report) -> None:
        """Make this the store's matrix, by one write; all its tiles are stored."""
        # Readers go by the manifest: until it is replaced they see the former matrix in the array.
        array = zarr.open_array(self.group.store, path="gram", mode="r+")
        array.resize(self.plan.shape)
        group = open_group(self.location, "r+")
        group.attrs[NAMESPACE] = {**self.manifest.to_dict(), "report": report.to_dict()}

    def _check_not_outgrown(self, tile: Tile) -> None:
        """A late task must not write an edge tile that has been extended since."""
        now = GramStore.open(self.location)
        if self.manifest not in (now.manifest, now.growing):
            raise IdentityError(
                f"{show(self.location)} has grown since tile {tile} was begun: it is not stored"
            )

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
        if CREATED.fullmatch(key):
            return True
        of_record = key.endswith(".json")
        tile = _tile_in(*((_RECORD, key, _RECORDS) if of_record else (_CHUNK, key, _CHUNKS)))
        planned = tile in (self.growing or self.manifest).plan
        # "00" is a number, but no chunk's.
        return planned and key in (chunk_key(tile), record_key(tile))

    @property
    def _store(self) -> Store:
        return self.array.store

    def _get(self, key: str, part: ByteRequest | None = None) -> bytes | None:
        found = sync(self._store.get(key, default_buffer_prototype(), part))
        return None if found is None else found.to_bytes()

    @property
    def _part(self) -> str:
        """What the keys of this matrix's chunks begin with, after the array's; a sweep has many."""
        return ""

    def _chunk_key(self, tile: Tile) -> str:
        return chunk_key(tile, self._part)

    def _record_key(self, tile: Tile) -> str:
        return record_key(tile, self._part)

    def _recorded_tile(self, key: str) -> Tile:
        """The tile that a key is the record of; one that no plan has if it is none."""
        return _tile_in(_RECORD, key, _RECORDS + self._part)

    def _region(self, tile: Tile) -> tuple[int | slice, ...]:
        """A tile's part of the array: all of its chunk that lies inside, put without a read."""
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
        stored = self.manifest.stored_dtype
        if block.dtype != stored:
            raise ValueError(f"tile {tile} is stored as {stored}, got {block.dtype}")
        # The extremes are finite if and only if all values are, and need no large temporary.
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            raise ValueError(f"tile {tile} holds values that are not finite")


def chunk_key(tile: Tile, part: str = "") -> str:
    """The key of a tile's chunk inside the store; `part` begins those of one matrix of many."""
    return f"{_CHUNKS}{part}{tile.row}/{tile.col}"


def record_key(tile: Tile, part: str = "") -> str:
    """The key of a tile's record inside the store; `part` as in `chunk_key`."""
    return f"{_RECORDS}{part}{tile.row}.{tile.col}.json"


def _tile_in(pattern: re.Pattern[str], key: str, place: str) -> Tile:
    """The tile that a key of this pattern in this place belongs to; else one that no plan has."""
    match = pattern.fullmatch(key.removeprefix(place))
    return Tile(int(match[1]), int(match[2])) if match else Tile(-1, -1)


async def _get_all(store: Store, keys: list[str]) -> list[bytes]:
    """The values of small keys, empty for one that has gone."""
    gate, prototype = asyncio.Semaphore(_AT_ONCE), default_buffer_prototype()

    async def get(key: str) -> bytes:
        async with gate:
            found = await store.get(key, prototype)
        return b"" if found is None else found.to_bytes()

    return list(await asyncio.gather(*map(get, keys)))


def _new_array(group: zarr.Group, manifest: Manifest) -> None:
    group.create_array(
        "gram",
        shape=manifest.shape,
        chunks=manifest.chunk_shape,
        dtype=manifest.stored_dtype,
        fill_value=float("nan"),
        filters=None,
        dimension_names=manifest.dimensions,  # xarray opens no array without
        serializer=BytesCodec(endian="little"),
        compressors=(Crc32cCodec(),),
    )


def _open_array(group: zarr.Group, where: str | Store, mode: Any) -> zarr.Array[Any]:
    # A gap must be an error, not a block of NaN; Zarr does not store such run-time settings.
    config: Any = {"write_empty_chunks": True, "read_missing_chunks": False}
    try:
        return zarr.open_array(group.store, path="gram", mode=mode, config=config)
    except FileNotFoundError as error:  # removed since the group was read, or by hand
        raise FileNotFoundError(
            f"there is no Gram store at {show(where)}: its array gram is missing"
        ) from error


def _lengths(side: zarr.Group, n: int) -> list[int]:
    """Lengths of the first n packed sequences."""
    lengths: list[int] = np.diff(np.asarray(_array(side, "offsets")[: n + 1])).tolist()
    return lengths


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise StoreFormatError(f"{group.store_path}/{name} is not an array")
    return array
