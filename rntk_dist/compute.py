"""Fill a Gram store with Dask: one tile's task, and the bounded window of tasks in flight.

The only module that submits to Dask. A task gets the store's location and a tile, and returns a
small record: sequences and values travel between workers and store alone, never through the client
or the scheduler. What is missing is found by listing the store, so a run that stops for any reason
is resumed by the same call.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, as_completed
from threadpoolctl import threadpool_limits

from rntk_dist.cluster import (
    WAIT_FOR_WORKERS,
    Crew,
    NoWorkersError,
    Roster,
    available_workers,
)
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.plan import (
    Plan,
    Samples,
    Tile,
    TileMemoryError,
    Work,
    Workers,
    check_memory,
    choose_tile,
    tile_costs,
    total_pair_steps,
)
from rntk_dist.progress import Progress
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Location, Manifest, in_memory, locate, provenance, show

_POLL = 0.02

_MOST_STRANDED = 3
"""How often a tile may lose all its workers before it is taken to be what kills them; Dask allows a
task as many, but a tile given out anew is another task to it."""


class TileError(RuntimeError):
    """Some tiles failed for good; the others are kept. `failed` maps each to its cause."""

    def __init__(self, message: str, failed: dict[Tile, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failed = failed or {}


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


# -- one tile --------------------------------------------------------------------------------------


def compute_tile(location: Location, tile: Tile, backend: Backend = "auto") -> TileRecord:
    """Compute one tile and store it: the task. Running it twice leaves the same bytes.

    All it needs is in the store; it reads the two slabs of the tile and no other sequences.
    """
    started = time.perf_counter()
    store = GramStore.open(location, writable=True)
    row, col = _slabs(store, tile)
    kernel = RNTK.from_dict(dict(store.manifest.kernel))
    # A worker process has one core: BLAS threads on top of it would only get into each other's way.
    with threadpool_limits(1), _named_in_tile(store.plan, tile):
        block = kernel(
            row, col, kind=store.manifest.kind, dtype=store.manifest.dtype, backend=backend
        )
    store.write_tile(tile, block)
    seconds = time.perf_counter() - started
    steps = total_pair_steps(work_of(store), samples_of(row, col))
    host, pid = socket.gethostname(), os.getpid()
    return TileRecord(tile, seconds, steps, block.nbytes, host, pid, backend)


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
        raise OverflowError(f"in tile ({tile.row}, {tile.col}), whose {starts}: {error}") from error


def samples_of(X: Sequences, Y: Sequences | None) -> Samples:
    """What a plan needs to know of the sequences of the rows and, unless symmetric, the columns."""
    return Samples(X.lengths.tolist(), None if Y is None else Y.lengths.tolist(), X.n_features)


def work_of(store: GramStore) -> Work:
    """What the store's kernel does with a pair of sequences."""
    return Work.of(store.manifest.kernel)


# -- the store of a run ----------------------------------------------------------------------------


def ensure_store(
    kernel: RNTK,
    X: Sequences,
    Y: Sequences | None,
    *,
    store: Location,
    kind: Kind = "ntk",
    tile: int | None = None,
    dtype: DType = "float64",
    backend: Backend = "auto",
    client: Client | None = None,
) -> GramStore:
    """Create the store for this matrix, or open it if it is there and holds the same matrix.

    `tile` None takes the stored tile, or chooses one for the client's workers (the local machine's
    without a client).

    Raises IdentityError if the store holds another matrix, TileMemoryError if a worker cannot hold
    a tile, ValueError for a store that workers cannot see.
    """
    where = locate(store)
    if in_memory(where):
        raise ValueError(
            f"{show(where)} is in this process's memory, unseen by workers: give a path or a URL"
        )
    itemsize = check_run_options(kind, dtype, backend).itemsize
    kernel.check_sequences(X, Y)
    samples = samples_of(X, Y)
    existing = GramStore.find(where, writable=True)
    if existing is None:
        work = Work.of(kernel.to_dict())
        plan = _new_plan(work, samples, tile, itemsize, available_workers(client, backend=backend))
    else:
        plan = samples.plan(existing.plan.tile if tile is None else tile, itemsize)
    manifest = Manifest(
        kernel=kernel.to_dict(),
        kind=kind,
        plan=plan,
        fingerprint=X.fingerprint,
        fingerprint_y=None if Y is None else Y.fingerprint,
        provenance=provenance(backend=backend),
    )
    if existing is None:
        return GramStore.create(where, manifest, X, Y)
    existing.check_identity(manifest)
    return existing


def _new_plan(
    work: Work, samples: Samples, tile: int | None, itemsize: int, workers: Workers
) -> Plan:
    if tile is None:
        tile = choose_tile(work, samples, workers, itemsize=itemsize)
    plan = samples.plan(tile, itemsize)
    check_memory(plan, work, samples, workers)
    return plan


# -- the window ------------------------------------------------------------------------------------


def fill(
    store: GramStore,
    client: Client,
    *,
    backend: Backend = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    retries: int = 3,
    wait: float = WAIT_FOR_WORKERS,
) -> list[TileRecord]:
    """Compute the tiles missing from the store; returns their records in order of completion.

    Each crew of workers has a window of tasks in flight, which follows workers that come and go,
    and tops it up from one queue of tiles. A task is tried again `retries` times; a tile that still
    fails does not stop the others. A tile whose crew has gone is given to who is there.

    Raises TileError at the end if tiles failed, NoWorkersError if the cluster has no worker for
    `wait` seconds, TileMemoryError if a worker cannot hold a tile. KeyboardInterrupt cancels what
    is in flight. Stored tiles are kept in every case, and the same call resumes.
    """
    missing = store.missing_tiles()
    if not missing:
        return []
    _check_workers(store, available_workers(client, wait, backend))
    run = _Run(store, client, backend, missing, retries, wait)
    try:
        for _ in run.outcomes():
            if on_progress is not None:
                on_progress(run.progress())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {run.kept()}") from None
    finally:
        run.cancel()
    if run.failed:
        raise TileError(f"{_failures(run.failed, len(missing))}; {run.kept()}", run.failed)
    return run.records


def _check_workers(store: GramStore, workers: Workers) -> None:
    """A resumed run may have smaller workers than the one that chose the tile."""
    try:
        check_memory(store.plan, work_of(store), store.samples(), workers)
    except TileMemoryError as error:
        error.add_note(
            f"{show(store.location)} is cut into tiles of {store.plan.tile}: "
            "another tile needs another store"
        )
        raise


@dataclass(frozen=True, slots=True)
class _Task:
    """A tile in flight, and the crew that it was given to."""

    tile: Tile
    crew: Crew


class _Run:
    """The state of one `fill`: what is pending, in flight, stored and failed."""

    def __init__(
        self,
        store: GramStore,
        client: Client,
        backend: Backend,
        missing: list[Tile],
        retries: int,
        wait: float,
    ) -> None:
        self.store, self.client = store, client
        self.retries, self.wait = retries, wait
        self.pending = deque(missing)
        self.in_flight: dict[Future[Any], _Task] = {}
        self.stranded: Counter[Tile] = Counter()
        self.records: list[TileRecord] = []
        self.pair_steps = 0
        self.failed: dict[Tile, BaseException] = {}
        self.job = uuid.uuid4().hex[:8]
        self.n_missing = len(missing)
        self.completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.roster = Roster(client, backend)
        costs = tile_costs(store.plan, work_of(store), store.samples(), missing)
        self.total = sum(costs.values())

    def outcomes(self) -> Iterator[Tile]:
        """Run to the end; yields each tile as it is stored or has failed for good."""
        while self.pending or self.in_flight:
            self._top_up()
            batch = self.completed.next_batch(block=False)
            if not batch:
                self._check_alive()
                time.sleep(_POLL)
            for future, result in batch:
                if future in self.in_flight:  # else taken back, and cancelled
                    yield self._settle(future, result)

    def _top_up(self) -> None:
        if self.roster.refresh():
            self._take_back()
        for crew in self.roster.crews:
            busy = sum(task.crew.on_gpu == crew.on_gpu for task in self.in_flight.values())
            while self.pending and busy < crew.window:
                self._submit(self.pending.popleft(), crew)
                busy += 1

    def _submit(self, tile: Tile, crew: Crew) -> None:
        # A key is never used twice: what the scheduler still says of the first use would hit both.
        again = f"-{self.stranded[tile]}" if self.stranded[tile] else ""
        future = self.client.submit(
            compute_tile,
            self.store.location,
            tile,
            crew.backend,
            key=f"rntk-tile-{self.job}-{tile.row}-{tile.col}{again}",
            pure=False,
            retries=self.retries,
            **crew.restrictions(),
        )
        self.in_flight[future] = _Task(tile, crew)
        self.completed.add(future)

    def _take_back(self) -> None:
        """Put back the tiles of tasks that wait for workers that have all gone."""
        stranded = [
            future
            for future, task in self.in_flight.items()
            if not task.crew.can_run(self.roster.workers) and not future.done()
        ]
        if stranded:
            self.client.cancel(stranded)
        for future in stranded:
            tile = self.in_flight.pop(future).tile
            self.stranded[tile] += 1
            if self.stranded[tile] > _MOST_STRANDED:
                times = self.stranded[tile]
                self.failed[tile] = RuntimeError(f"all its workers went away, {times} times")
            else:
                self.pending.appendleft(tile)

    def _settle(self, future: Future[Any], result: object) -> Tile:
        tile = self.in_flight.pop(future).tile
        if isinstance(result, TileRecord):
            self.records.append(result)
            self.pair_steps += result.pair_steps
        else:
            # A failed future gives (type, exception, traceback), a cancelled one an exception.
            cause = result[1] if isinstance(result, tuple) else result
            self.failed[tile] = (
                cause if isinstance(cause, BaseException) else RuntimeError(repr(cause))
            )
        return tile

    def _check_alive(self) -> None:
        if self.roster.seconds_without() > self.wait:
            raise NoWorkersError(f"{self.roster.nobody(self.wait)}; {self.kept()}")

    def cancel(self) -> None:
        """Cancel what is in flight; a task that already runs still stores its tile."""
        if self.in_flight:
            self.client.cancel(list(self.in_flight))

    def progress(self) -> Progress:
        """How far this run is."""
        plan = self.store.plan
        return Progress(
            tiles=plan.n_tiles - self.n_missing + len(self.records),
            tiles_total=plan.n_tiles,
            pair_steps=self.pair_steps,
            pair_steps_total=self.total,
            failed=len(self.failed),
            in_flight=len(self.in_flight),
        )

    def kept(self) -> str:
        """What the store holds now, and how to go on."""
        plan = self.store.plan
        kept = plan.n_tiles - self.n_missing + len(self.records)
        where = show(self.store.location)
        return f"{kept} of {plan.n_tiles} tiles are kept in {where}, and the same call resumes"


def _failures(failed: dict[Tile, BaseException], n: int, shown: int = 10) -> str:
    """One sentence: how many tiles failed, which, and why the first did."""
    names = ", ".join(f"({tile.row}, {tile.col})" for tile in sorted(failed)[:shown])
    more = f" and {len(failed) - shown} more" if len(failed) > shown else ""
    cause = next(iter(failed.values()))
    reason = (str(cause).splitlines() or ["no message"])[0]
    first = f"the first with {type(cause).__name__}: {reason}"
    return f"{len(failed)} of {n} tiles failed, {names}{more}, {first}"
