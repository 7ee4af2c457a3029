"""Growth: a finished symmetric matrix of n samples becomes one of n + m, in place.

The old matrix stays whole and readable all the while, since all that is added lies outside of it:
the new sequences behind the old ones, the new chunks behind the old ones, and the new values of a
chunk at the ragged edge in the part of it that reaches beyond the matrix (chunks are stored whole).
The old manifest says what belongs to the matrix until every tile is there. Then the array is
resized, and one write puts the new manifest in the place of the old one.

In between the group's attributes hold a second manifest, `growing`, and the tiles that belong to it
have records with its SHA-256: that tells an edge tile that was extended from one that was not yet,
though their chunks have one key. Growth that was interrupted goes on from there.

Knows no kernel and no Dask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import zarr

from rntk_dist.manifest import IdentityError, Manifest, provenance
from rntk_dist.plan import Tile
from rntk_dist.records import Report
from rntk_dist.sequences import Sequences
from rntk_dist.store import Block, GramStore, Location, show

_LOG = logging.getLogger(__name__)

type Compare = Callable[[Sequences, Sequences | None], Block]
"""The kernel's values of one slab with another, or with itself."""


@dataclass(frozen=True, kw_only=True)
class GrowingStore(GramStore):
    """The matrix that the store at `base` is growing into, of which tiles are still missing.

    Reads and writes as any store; what it writes is no part of the old matrix.
    """

    base: GramStore

    def is_extended(self, tile: Tile) -> bool:
        """True for a tile at the old matrix's edge, of which a part is stored already."""
        return tile in self.base.plan and self._differs(tile)

    def extended(self, tile: Tile, compare: Compare) -> Block:
        """The values of a tile at the old edge: what is stored, and what `compare` adds.

        Raises CorruptTileError where the stored part is damaged.
        """
        old, end = self.base.read_tile(tile), self.base.plan.n_rows
        fresh = self.sequences(end, self.plan.cols(tile)[1])
        added = compare(self.base.row_slab(tile), fresh)
        if not self.plan.is_diagonal(tile):
            return np.hstack([old, added])
        return np.block([[old, added], [added.T, compare(fresh, None)]])

    def write_tile(self, tile: Tile, block: Block) -> None:
        """As in any store; the record of the former chunk goes first, for it is not of this one."""
        if tile in self.base.plan:
            self.drop_record(tile)
        super().write_tile(tile, block)

    def missing_tiles(self) -> list[Tile]:
        """The tiles not computed so far: those at the old edge count only once extended."""
        stored, identity = self.stored_tiles(), self.manifest.identity_sha256()
        touched = [tile for tile in self.plan.tiles() if self._differs(tile)]
        grown = {
            tile
            for tile, record in self.records(touched).items()
            if record.identity == identity and self._is_recorded(tile, record.crc32c)
        }
        done = (stored - frozenset(touched)) | (stored & grown)
        return [tile for tile in self.plan.tiles() if tile not in done]

    def finish(self) -> Report | None:
        """If all tiles are there, make this the store's matrix. None if some are missing."""
        if self.missing_tiles():
            return None
        report = Report.of(self.plan.n_tiles, self.records().values())
        self.publish(report)
        return report

    def _differs(self, tile: Tile) -> bool:
        plan, old = self.plan, self.base.plan
        return tile not in old or plan.block_shape(tile) != old.block_shape(tile)

    def _is_recorded(self, tile: Tile, checksum: str) -> bool:
        """Whether an edge tile still is what its record says: a late task may have undone it."""
        return tile not in self.base.plan or self.checksum(tile) == checksum


def begin(store: GramStore, X: Sequences | None = None) -> GrowingStore | None:
    """Store new sequences X behind those of a finished matrix, or go on with interrupted growth.

    To be called by the owner of the store. None if the stored sequences end in X already: that is
    what a growth leaves that came to its end before its caller did.

    Raises ValueError for a rectangular or unfinished matrix, for sequences that cannot stand beside
    the stored ones, and without X where no growth was interrupted; IdentityError where one was, of
    other sequences.
    """
    where = show(store.location)
    _refuse_unfinished(store, where)
    if X is None:
        return _interrupted(store, where)
    if store.growing is None and _ends_in(store, X):
        _LOG.warning("%s ends in these %d sequences: nothing is appended", where, len(X))
        return None
    manifest = _grown(store, X)
    if store.growing is None:
        store.announce(X, manifest)
    elif store.growing != manifest:
        raise IdentityError(
            f"{where} is being extended by {store.growing.plan.n_rows - store.plan.n_rows} other "
            "sequences, and that was interrupted: append() without sequences finishes it first"
        )
    return view(GramStore.open(store.location, writable=True))


def view(store: GramStore) -> GrowingStore:
    """What a store grows into. Raises ValueError if it does not grow."""
    if store.growing is None:
        raise ValueError(f"{show(store.location)} is not being extended")
    stored = store.array.async_array
    metadata = stored.metadata.update_shape(store.growing.plan.shape)
    array = zarr.Array(zarr.AsyncArray(metadata, stored.store_path, stored.config))
    return GrowingStore(store.location, store.growing, store.group, array, base=store)


def open_for(location: Location, identity: str) -> GramStore:
    """Open the matrix with this SHA-256 for writing: the store's own or the one it grows into.

    Raises IdentityError if it is neither, and as `GramStore.open`.
    """
    store = GramStore.open(location, writable=True)
    if store.manifest.identity_sha256() == identity:
        return store
    if store.growing is not None and store.growing.identity_sha256() == identity:
        return view(store)
    raise IdentityError(
        f"{show(store.location)} now holds another matrix than the one this task belongs to"
    )


def _refuse_unfinished(store: GramStore, where: str) -> None:
    if not store.plan.symmetric:
        rows, cols = store.plan.shape
        raise ValueError(
            f"{where} holds a rectangular {rows} x {cols} matrix, and only symmetric ones grow: "
            "compute the new part into another store"
        )
    missing = len(store.missing_tiles())
    if missing:
        raise ValueError(
            f"{where} lacks {missing} of {store.plan.n_tiles} tiles: finish it with rd.gram "
            "before anything is appended"
        )


def _interrupted(store: GramStore, where: str) -> GrowingStore:
    if store.growing is None:
        raise ValueError(f"{where} has no interrupted growth to go on with: give sequences")
    return view(store)


def _ends_in(store: GramStore, X: Sequences) -> bool:
    n = store.plan.n_rows
    return len(X) < n and store.sequences(n - len(X)).fingerprint == X.fingerprint


def _grown(store: GramStore, X: Sequences) -> Manifest:
    """The manifest of all sequences together."""
    old, n = store.manifest, store.plan.n_rows + len(X)
    return replace(
        old,
        plan=replace(old.plan, n_rows=n, n_cols=n),
        fingerprint=Sequences.concatenate([store.sequences(), X]).fingerprint,
        provenance=provenance(**_kept(old)),
    )


def _kept(old: Manifest) -> dict[str, str]:
    """Of the first manifest's provenance, what `provenance` does not say of this process."""
    created = old.provenance.get("created", "")
    backend = old.provenance.get("backend")
    return {"first_created": old.provenance.get("first_created", created)} | (
        {"backend": backend} if backend else {}
    )
