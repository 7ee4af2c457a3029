"""The store of a sweep: the matrices of many kernels over the same sequences, in one array.

    gram            (kernels, rows, columns) array, one chunk a tile of one kernel
    gram/records    <kernel>/<row>.<column>.json: the record of each chunk
    sequences, sequences_y and attributes as in a store of one matrix, with the format 3 and the
    identity of a `SweepManifest`

What is missing is known for each tile of each kernel. A task takes one tile of several kernels, so
that sequences are read once for all of them; how many is no part of the store, and may be other the
next time. `SweepStore.slice` is the matrix of one kernel, a store like any other, for reading and
for the task that fills it.

Knows no kernel but by its options, and no Dask.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

from zarr.abc.store import Store
from zarr.core.sync import collect_aiterator, sync

from rntk_dist.manifest import SWEEP_FORMAT, Manifest, decoded, read_identity, refuse_neighbors
from rntk_dist.plan import Tile
from rntk_dist.records import Report
from rntk_dist.store import (
    GramStore,
    IdentityError,
    Location,
    StoreFormatError,
    SweepFoundError,
    chunk_key,
    locate,
    record_key,
    show,
)
from rntk_dist.sweep_manifest import (
    Options,
    SweepManifest,
    SweepPlan,
    SweepTile,
    batched_plan,
    index_of,
)

_OF_TILES = ("gram/c/", "gram/records/")
_OF_A_KERNEL = re.compile(r"(gram/c/|gram/records/)(\d+)/(.+)")
_RECORD = re.compile(r"gram/records/(\d+)/(\d+)\.(\d+)\.json")
_NO_TILE = Tile(-1, -1)

type _Region = tuple[int | slice, ...]


@dataclass(frozen=True)
class SweepStore(GramStore):
    """The store of a sweep: a `SweepTile` of many kernels is a task, one of a single one a chunk.

    `groups` are kernels that are to be computed by one task, by default each is one of its own.
    Chunks are read and written by the methods of any Gram store, which raise TypeError for a task.
    """

    manifest: SweepManifest
    groups: tuple[tuple[int, ...], ...] = ()

    filled_by: ClassVar[str] = "rd.sweep"

    @cached_property
    def plan(self) -> SweepPlan:
        """How the matrices are cut, and which of them are computed together."""
        groups = self.groups or [(i,) for i in range(len(self.manifest.kernels))]
        return batched_plan(self.manifest.plan, groups)

    @staticmethod
    def _read_manifest(where: str, data: Any) -> Manifest:
        refuse_neighbors(where, data)
        if "kernels" not in read_identity(where, data, SWEEP_FORMAT):
            raise StoreFormatError(
                f"{where} holds one Gram matrix, not a sweep: rd.open_gram reads it; for a sweep "
                "choose another store"
            )
        return decoded(where, data, SweepManifest.from_dict)

    def slice(self, i: int) -> SweepSlice:
        """The matrix of one kernel, by its position in the list."""
        manifest = self.manifest.of_kernel(i)
        return SweepSlice(self.location, manifest, self.group, self.array, index=i)

    def chunk_tiles(self) -> list[Tile]:
        """A tile for each chunk, one kernel after another."""
        tiles = list(self.manifest.plan.tiles())
        count = len(self.manifest.kernels)
        return [SweepTile(tile.row, tile.col, (i,)) for i in range(count) for tile in tiles]

    def stored_chunks(self) -> frozenset[Tile]:
        """Those of `chunk_tiles` that are stored, by one listing."""
        stored = self.stored()
        return frozenset(tile for tile in self.chunk_tiles() if _lacking(tile, stored) == ())

    def lacking(self, task: SweepTile) -> SweepTile | None:
        """The task without the kernels that are stored by now; None if nothing is left of it.

        It asks for each chunk: a task that is begun anew must not wait for a listing of all.
        """
        tiles = [SweepTile(task.row, task.col, (i,)) for i in task.kernels]
        there = sync(_exist(self._store, [self._chunk_key(tile) for tile in tiles]))
        left = tuple(i for i, stored in zip(task.kernels, there, strict=True) if not stored)
        return replace(task, kernels=left) if left else None

    def stored_a_kernel(self) -> list[int]:
        """For each kernel the number of its tiles that are stored, by one listing."""
        counts = [0] * len(self.manifest.kernels)
        for tile in self.stored_chunks():
            counts[index_of(tile)] += 1
        return counts

    def kernel_of(self, tile: Tile) -> Options:
        """The options of the kernel that a chunk's tile belongs to."""
        return self.manifest.kernels[index_of(tile)]

    def stored(self) -> set[tuple[int, int, int]]:
        """(kernel, row, column) of every tile that is stored, by one listing."""
        keys = collect_aiterator(self._store.list_prefix("gram/c/"))
        parts = (key.split("/")[2:] for key in keys)
        return {
            (int(part[0]), int(part[1]), int(part[2]))
            for part in parts
            if len(part) == 3 and all(number.isdecimal() for number in part)
        }

    def missing_tiles(self) -> list[Tile]:
        """The tasks that are left, each of the kernels that are not stored."""
        stored = self.stored()
        left: list[Tile] = []
        for tile in self.plan.tiles():
            kernels = _lacking(tile, stored)
            if kernels:
                left.append(SweepTile(tile.row, tile.col, kernels))
        return left

    def stored_tiles(self) -> frozenset[Tile]:
        """The tasks of the plan that are stored, for every one of their kernels."""
        stored = self.stored()
        return frozenset(tile for tile in self.plan.tiles() if not _lacking(tile, stored))

    def gone(self, tiles: Iterable[Tile]) -> set[Tile]:
        """Those of the tasks that lack a kernel."""
        stored = self.stored()
        return {tile for tile in tiles if _lacking(tile, stored)}

    def finish(self) -> Report | None:
        """If all is stored, mark the sweep complete with a report on all chunks; else None."""
        if self.missing_tiles():
            return None
        tiles = len(self.manifest.kernels) * self.manifest.plan.n_tiles
        report = Report.of(tiles, self.records().values())
        if self.report() != report.to_dict():
            self._mark(report)
        return report

    def _region(self, tile: Tile) -> _Region:
        return index_of(tile), *super()._region(tile)

    def _chunk_key(self, tile: Tile) -> str:
        return chunk_key(tile, f"{index_of(tile)}/")

    def _record_key(self, tile: Tile) -> str:
        return record_key(tile, f"{index_of(tile)}/")

    def _recorded_tile(self, key: str) -> Tile:
        match = _RECORD.fullmatch(key)
        return SweepTile(int(match[2]), int(match[3]), (int(match[1]),)) if match else _NO_TILE

    def _check_tile(self, tile: Tile) -> None:
        index_of(tile)
        super()._check_tile(tile)

    def _is_own(self, key: str) -> bool:
        match = _OF_A_KERNEL.fullmatch(key)
        if match is None:
            return not key.startswith(_OF_TILES) and super()._is_own(key)
        index = match[2]
        named = index == str(int(index)) and int(index) < len(self.manifest.kernels)
        return named and super()._is_own(match[1] + match[3])

    def _check_not_outgrown(self, tile: Tile) -> None:
        """A sweep does not grow."""


@dataclass(frozen=True, kw_only=True)
class SweepSlice(GramStore):
    """The matrix of one kernel in the store of a sweep, at `index` of its array's first axis."""

    index: int

    filled_by: ClassVar[str] = "rd.sweep"

    def opener(self) -> Callable[[], GramStore]:
        """What opens this matrix for reading on another machine, too."""
        return partial(open_slice, self.location, self.index)

    @property
    def _part(self) -> str:
        return f"{self.index}/"

    def _region(self, tile: Tile) -> _Region:
        return self.index, *super()._region(tile)

    def _check_not_outgrown(self, tile: Tile) -> None:
        """A sweep does not grow."""


async def _exist(store: Store, keys: list[str]) -> list[bool]:
    """Whether there is something at each of some keys, asked at once."""
    return list(await asyncio.gather(*map(store.exists, keys)))


def open_any(location: Location, *, writable: bool = False) -> GramStore:
    """The store at this location: a SweepStore if it is one of a sweep.

    Raises as `GramStore.open`.
    """
    try:
        return GramStore.open(location, writable=writable)
    except SweepFoundError:
        return SweepStore.open(location, writable=writable)


def open_sweep_for(location: Location, identity: str | None) -> SweepStore:
    """Open a sweep for writing; by default whatever the store holds.

    Raises IdentityError if it is not the one with this SHA-256, and as `GramStore.open`.
    """
    store = SweepStore.open(location, writable=True)
    if identity not in (None, store.manifest.identity_sha256()):
        raise IdentityError(
            f"{show(locate(location))} now holds another sweep than the one this task belongs to"
        )
    return store


def open_slice(location: Location, index: int) -> GramStore:
    """The matrix of one kernel of the sweep at this location, for reading."""
    return SweepStore.open(location).slice(index)


def _lacking(tile: Tile, stored: set[tuple[int, int, int]]) -> tuple[int, ...]:
    """The kernels of a task whose tile is not stored."""
    kernels = tile.kernels if isinstance(tile, SweepTile) else ()
    return tuple(k for k in kernels if (k, tile.row, tile.col) not in stored)
