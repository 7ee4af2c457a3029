"""The store of nearest neighbours: of each query the indices and the values of the k best.

    gram            (queries, 2 k) float64 array, one chunk a block of queries: the indices of the k
                    nearest training sequences, then the k kernel values, best first
    sequences       the queries
    sequences_y     the training sequences
    records and attributes as in a store of one matrix, with the format 4

Both stand in one chunk, so that one write stores a block as a whole, and one checksum covers it.

Knows no kernel but by its options, and no Dask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rntk_dist.manifest import NEIGHBORS_FORMAT, Manifest, decoded, read_identity
from rntk_dist.neighbor_manifest import NeighborManifest, NeighborPlan, NeighborTile
from rntk_dist.plan import Tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import (
    CorruptTileError,
    GramStore,
    IdentityError,
    Location,
    StoreFormatError,
    locate,
    show,
)

type Ints = NDArray[np.int64]
type Block = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class NeighborStore(GramStore):
    """An open store of nearest neighbours; its tiles are `NeighborTile`s, blocks of queries."""

    manifest: NeighborManifest

    filled_by: ClassVar[str] = "rd.neighbors"
    another: ClassVar[str] = "other nearest neighbours"

    @property
    def plan(self) -> NeighborPlan:
        """How the queries are cut."""
        return self.manifest.plan

    @staticmethod
    def _read_manifest(where: str, data: Any) -> Manifest:
        if "k" not in read_identity(where, data, NEIGHBORS_FORMAT).get("plan", {}):
            raise StoreFormatError(
                f"{where} holds Gram matrices, not nearest neighbours: choose another store"
            )
        return decoded(where, data, NeighborManifest.from_dict)

    def training(self, start: int, stop: int) -> Sequences:
        """Some of the training sequences; reads no others."""
        return Sequences.read_slab(self._side("sequences_y"), start, stop)

    def write_neighbors(self, tile: Tile, indices: Ints, values: Block) -> int:
        """Store what was found for a block of queries, (rows, k) both; returns the bytes."""
        block = np.concatenate([indices.astype(np.float64), values.astype(np.float64)], axis=1)
        self.write_tile(tile, block)
        return block.nbytes

    def read_neighbors(self, tile: Tile) -> tuple[Ints, Block]:
        """The indices and the values of a block of queries, (rows, k) both.

        Raises MissingTileError, and CorruptTileError also for indices of no training sequence.
        """
        block, k = self.read_tile(tile), self.plan.k
        indices = block[:, :k].astype(np.int64)
        inside = (indices >= 0) & (indices < self.plan.n_cols) & (indices == block[:, :k])
        if not inside.all():
            raise CorruptTileError(
                f"block {tile} holds indices of no training sequence: {self._remedy(tile)}"
            )
        return indices, block[:, k:].astype(self.manifest.dtype)

    def damaged_tiles(self) -> list[Tile]:
        """Stored blocks that cannot be read as what was written; reads all of them."""
        return [tile for tile in sorted(self.stored_tiles()) if self._is_damaged(tile)]

    def _is_damaged(self, tile: Tile) -> bool:
        try:
            self.read_neighbors(tile)
        except CorruptTileError:
            return True
        return False

    def stored_tiles(self) -> frozenset[Tile]:
        """The blocks of queries whose chunks are listed, by one listing."""
        return frozenset(NeighborTile(tile.row, 0) for tile in super().stored_tiles())

    def all_neighbors(self) -> Iterator[tuple[Ints, Block]]:
        """`read_neighbors` of all blocks, in the order of the queries."""
        return (self.read_neighbors(tile) for tile in self.plan.tiles())

    def _recorded_tile(self, key: str) -> Tile:
        tile = super()._recorded_tile(key)
        return NeighborTile(tile.row, tile.col)

    def _region(self, tile: Tile) -> tuple[int | slice, ...]:
        return slice(*self.plan.rows(tile)), slice(None)

    def _remedy(self, tile: Tile) -> str:
        return f"rd.neighbors with this store computes {self._chunk_key(tile)} anew"

    def _check_not_outgrown(self, tile: Tile) -> None:
        """Neighbours do not grow."""


def open_neighbors_for(location: Location, identity: str | None) -> NeighborStore:
    """Open a store of neighbours for writing; by default whatever it holds.

    Raises IdentityError if it is not the one with this SHA-256, and as `GramStore.open`.
    """
    store = NeighborStore.open(location, writable=True)
    if identity not in (None, store.manifest.identity_sha256()):
        raise IdentityError(f"{show(locate(location))} now holds other neighbours than this task's")
    return store
