"""One tile's task, as a worker runs it: read, compare, store, report.

Of a sweep a tile is of many kernels; of nearest neighbours it is a block of queries.

A task gets the store's location and a tile, and returns a small record. All else it needs is in the
store, and its values go there: nothing travels through the scheduler or the client.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter

import numpy as np
from threadpoolctl import threadpool_limits

from rntk_dist.creation import samples_of
from rntk_dist.failures import Refusal, in_a_line
from rntk_dist.growth import GrowingStore, open_for
from rntk_dist.kernel.backends import fastest_backend
from rntk_dist.kernel.families import Family, families_of, multiple
from rntk_dist.kernel.many import many_values
from rntk_dist.kernel.rntk import RNTK, Backend
from rntk_dist.metrics import count_failure, count_tile
from rntk_dist.neighbor_manifest import NeighborTile
from rntk_dist.neighbor_search import Search, Training
from rntk_dist.neighbor_store import open_neighbors_for
from rntk_dist.plan import Plan, Tile, Work, tile_costs, total_pair_steps
from rntk_dist.records import Record
from rntk_dist.sequences import Sequences
from rntk_dist.store import Block, GramStore, Location, versions
from rntk_dist.sweep_creation import sweep_work
from rntk_dist.sweep_manifest import SweepTile
from rntk_dist.sweep_store import SweepStore, open_sweep_for

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What a task reports of the tile it has stored: never its values.

    `seconds` of wall time from opening the store to the written chunk, `nbytes` of the block,
    `host` and `pid` of the worker, `backend` as the task was told.
    """

    tile: Tile
    seconds: float
    pair_steps: int
    nbytes: int
    host: str
    pid: int
    backend: Backend


def compute_tile(
    location: Location,
    tile: Tile,
    backend: Backend = "auto",
    identity: str | None = None,
    attempt: int = 1,
) -> TileRecord:
    """Compute one tile and store it: the task. Running it twice leaves the same bytes.

    All it needs is in the store; it reads the two slabs of the tile and no other sequences.
    `identity` is the SHA-256 of the matrix it belongs to, by default the store's present one.

    Raises IdentityError if the store holds another matrix by now.
    """
    started = time.perf_counter()
    store = open_for(location, identity) if identity else GramStore.open(location, writable=True)
    compare = _Comparison(store, backend)
    # A worker process has one core: BLAS threads on top of it would only get into each other's way.
    with threadpool_limits(1), _named_in_tile(store.plan, tile):
        block = _values(store, tile, compare)
    store.write_tile(tile, block)
    seconds = time.perf_counter() - started
    host, pid = socket.gethostname(), os.getpid()
    record = TileRecord(tile, seconds, compare.pair_steps, block.nbytes, host, pid, backend)
    _write_down(store, record, attempt)
    return record


def compute_batch(
    location: Location,
    tile: SweepTile,
    backend: Backend = "auto",
    identity: str | None = None,
    attempt: int = 1,
) -> TileRecord:
    """Compute one tile of some kernels of a sweep, and store each: the task of a sweep.

    It reads the two slabs of the tile once. A kernel that overflows does not keep the others of the
    task from being stored, and what is stored already, by a worker that died in the middle of the
    task, is not computed again.

    Raises OverflowError at the end where kernels have overflowed, IdentityError as `compute_tile`.
    """
    started = time.perf_counter()
    store = open_sweep_for(location, identity)
    left = store.lacking(tile)
    work = _Batch(store, left or tile, backend, attempt)
    if left is not None:
        with threadpool_limits(1), _named_in_tile(store.plan, tile):
            work.run()
    seconds = time.perf_counter() - started
    host, pid = socket.gethostname(), os.getpid()
    return TileRecord(tile, seconds, work.pair_steps, work.nbytes, host, pid, backend)


def compute_neighbors(
    location: Location,
    tile: NeighborTile,
    backend: Backend = "auto",
    identity: str | None = None,
    attempt: int = 1,
    *,
    threads: int = 1,
) -> TileRecord:
    """Find the nearest neighbours of a block of queries and store them: the task of a search.

    It reads the queries of the block, and the training sequences some at a time; `threads` slabs of
    them are compared at once. Raises as `compute_tile`.
    """
    started = time.perf_counter()
    store = open_neighbors_for(location, identity)
    manifest, plan, samples = store.manifest, store.plan, store.samples()
    kernel = RNTK.from_dict(dict(manifest.kernel))
    search = Search(kernel, plan.k, manifest.kind, manifest.dtype, backend)
    lengths = np.asarray(samples.columns, dtype=np.int64)
    training = Training(store.training, lengths, samples.n_features)
    with threadpool_limits(1):
        best = search.nearest(store.row_slab(tile), plan.rows(tile)[0], training, threads)
    nbytes = store.write_neighbors(tile, best.indices, best.values)
    pair_steps = tile_costs(plan, work_of(store), samples, (tile,))[tile]
    seconds = time.perf_counter() - started
    host, pid = socket.gethostname(), os.getpid()
    record = TileRecord(tile, seconds, pair_steps, nbytes, host, pid, backend)
    _write_down(store, record, attempt)
    return record


class _Batch:
    """One tile of some kernels of a sweep: what is stored of it, and what was to be computed."""

    def __init__(self, store: SweepStore, tile: SweepTile, backend: Backend, attempt: int) -> None:
        self.store, self.tile, self.backend, self.attempt = store, tile, backend, attempt
        self.pair_steps = self.nbytes = 0

    def run(self) -> None:
        """Store each kernel's tile as soon as it is there; raise what has overflowed at the end."""
        manifest, started = self.store.manifest, time.perf_counter()
        X, Y = _slabs(self.store, self.tile)
        # Of whole families: a kernel's bits must not depend on which others are left to compute.
        found, samples = families_of(manifest.kernels, self.tile.kernels), samples_of(X, Y)
        leads = [RNTK.from_dict(manifest.kernels[family.members[0]]) for family in found]
        overflown: list[tuple[int, OverflowError]] = []
        computed = many_values(
            leads, X, Y, kind=manifest.kind, dtype=manifest.dtype, backend=self.backend
        )
        for i, values in computed:
            steps = total_pair_steps(Work.of(leads[i].to_dict()), samples)
            self.pair_steps += steps
            overflown += self._store_family(found[i], values, steps, started)
            started = time.perf_counter()
        if overflown:
            raise _overflow(sorted(overflown, key=itemgetter(0)))

    def _store_family(
        self, family: Family, values: Block | OverflowError, steps: int, started: float
    ) -> Iterator[tuple[int, OverflowError]]:
        """Store the family's kernels that are in the task; yields those that overflow."""
        for kernel, factor in zip(family.members, family.factors, strict=True):
            if kernel not in self.tile.kernels:
                continue
            try:
                if isinstance(values, OverflowError):
                    raise values
                self._store(kernel, multiple(values, factor), steps, started)
            except OverflowError as error:
                yield kernel, error
            started, steps = time.perf_counter(), 0

    def _store(self, kernel: int, block: Block, steps: int, started: float) -> None:
        tile, one = Tile(self.tile.row, self.tile.col), self.store.slice(kernel)
        one.write_tile(tile, block)
        self.nbytes += block.nbytes
        seconds, host, pid = time.perf_counter() - started, socket.gethostname(), os.getpid()
        done = TileRecord(tile, seconds, steps, block.nbytes, host, pid, self.backend)
        _write_down(one, done, self.attempt)


def _overflow(overflown: list[tuple[int, OverflowError]]) -> OverflowError:
    (kernel, first), more = overflown[0], len(overflown) - 1
    names = ", ".join(str(other) for other, _ in overflown[1:11]) + (", ..." if more > 10 else "")
    others = f", and so with {more} others of this task ({names})" if more else ""
    return OverflowError(f"with kernel {kernel} of the sweep{others}: {first}")


def _values(store: GramStore, tile: Tile, compare: _Comparison) -> Block:
    if isinstance(store, GrowingStore) and store.is_extended(tile):
        return store.extended(tile, compare)
    return compare(*_slabs(store, tile))


class _Comparison:
    """The store's kernel of one slab with another, or with itself; counts the pair-steps."""

    def __init__(self, store: GramStore, backend: Backend) -> None:
        self.manifest, self.backend, self.work = store.manifest, backend, work_of(store)
        self.kernel = RNTK.from_dict(dict(store.manifest.kernel))
        self.pair_steps = 0

    def __call__(self, X: Sequences, Y: Sequences | None) -> Block:
        self.pair_steps += total_pair_steps(self.work, samples_of(X, Y))
        kind, dtype = self.manifest.kind, self.manifest.dtype
        return self.kernel(X, Y, kind=kind, dtype=dtype, backend=self.backend)


def _write_down(store: GramStore, done: TileRecord, attempt: int) -> None:
    """Store the record of a tile beside its chunk: after it, for only what is stored has one."""
    record = Record(
        crc32c=store.checksum(done.tile) or "",
        seconds=round(done.seconds, 6),
        pair_steps=done.pair_steps,
        host=done.host,
        pid=done.pid,
        backend=_used(done.backend),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        versions=versions(),
        attempt=attempt,
        identity=store.manifest.identity_sha256(),
    )
    store.write_record(done.tile, record)


def attempt_tile(
    location: Location, tile: Tile, backend: Backend, identity: str, attempt: int, job: str
) -> TileRecord | Refusal:
    """`compute_tile` as it is submitted: what is raised is tried again, what is returned is not.

    Logs what came of it, with `job`, `tile` and figures as fields for structured logs, and counts
    it for Prometheus.
    """
    facts = {"job": job, "tile": [tile.row, tile.col], "attempt": attempt}
    try:
        if isinstance(tile, SweepTile):
            record = compute_batch(location, tile, backend, identity, attempt)
        elif isinstance(tile, NeighborTile):
            record = compute_neighbors(location, tile, backend, identity, attempt)
        else:
            record = compute_tile(location, tile, backend, identity, attempt)
    except Exception as error:
        count_failure(_used(backend))
        refusal = Refusal.of(error, location)
        if refusal is None:
            why = in_a_line(error)
            _LOG.warning("tile %s failed with %s, at try %d", tile, why, attempt, extra=facts)
            raise
        return refusal
    facts |= {"seconds": record.seconds, "pair_steps": record.pair_steps}
    _LOG.info("tile %s is stored after %.3g s", tile, record.seconds, extra=facts)
    count_tile(_used(backend), record.pair_steps, record.seconds, record.nbytes, attempt)
    return record


def _used(backend: Backend) -> str:
    """What computes here where a task is told `backend`."""
    return fastest_backend() if backend == "auto" else backend


def _slabs(store: GramStore, tile: Tile) -> tuple[Sequences, Sequences | None]:
    """The sequences of the tile's two sides; one and None if it compares a slab with itself."""
    row = store.row_slab(tile)
    return row, None if store.plan.is_diagonal(tile) else store.col_slab(tile)


@contextmanager
def _named_in_tile(plan: Plan, tile: Tile) -> Iterator[None]:
    """Say in an OverflowError where its sequence numbers, which count from the slab's, start."""
    try:
        yield
    except OverflowError as error:
        starts = f"rows start at sequence {plan.rows(tile)[0]}, columns at {plan.cols(tile)[0]}"
        raise OverflowError(f"in tile {tile}, whose {starts}: {error}") from error


def work_of(store: GramStore) -> Work:
    """What the store's kernel does with a pair of sequences; of a sweep's, the most demanding."""
    kernel = store.manifest.kernel
    return sweep_work(kernel) if isinstance(store, SweepStore) else Work.of(kernel)


def works_of(store: SweepStore, tile: SweepTile) -> list[Work]:
    """What a task of a sweep does with a pair of sequences: once for each family of kernels."""
    kernels = store.manifest.kernels
    return [Work.of(kernels[family.members[0]]) for family in families_of(kernels, tile.kernels)]
