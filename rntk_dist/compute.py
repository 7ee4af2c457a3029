"""Fill a Gram store with Dask: one tile's task, and the bounded window of tasks in flight.

The only module that submits to Dask. A task gets the store's location and a tile, and returns a
small record: sequences and values travel between workers and store alone, never through the client
or the scheduler. What is missing is found by listing the store, so a run that stops for any reason
is resumed by the same call.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distributed import CancelledError, Client, Future, KilledWorker, as_completed
from threadpoolctl import threadpool_limits

from rntk_dist.cluster import (
    WAIT_FOR_WORKERS,
    Crew,
    NoWorkersError,
    Roster,
    available_workers,
)
from rntk_dist.failures import (
    Refusal,
    SchedulerLostError,
    TileError,
    check_all_stored,
    check_writable,
    failures,
    in_a_line,
    kept,
    memory_remedy,
    stopped,
)
from rntk_dist.kernel.backends import fastest_backend
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
    worker_bytes,
)
from rntk_dist.progress import Progress
from rntk_dist.records import Record
from rntk_dist.sequences import Sequences
from rntk_dist.store import (
    GramStore,
    Location,
    Manifest,
    in_memory,
    locate,
    provenance,
    show,
    versions,
)

_LOG = logging.getLogger(__name__)

_POLL = 0.02

_QUIET = 5.0
"""Seconds without an outcome after which a run asks whether all workers are paused."""

_MOST_STRANDED = 3
"""How often a tile may lose all its workers before it is taken to be what kills them; Dask allows a
task as many, but a tile given out anew is another task to it."""


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
    record = TileRecord(tile, seconds, steps, block.nbytes, host, pid, backend)
    _write_down(store, record)
    return record


def _write_down(store: GramStore, done: TileRecord) -> None:
    """Store the record of a tile beside its chunk: after it, for only what is stored has one."""
    record = Record(
        crc32c=store.checksum(done.tile) or "",
        seconds=round(done.seconds, 6),
        pair_steps=done.pair_steps,
        host=done.host,
        pid=done.pid,
        backend=fastest_backend() if done.backend == "auto" else done.backend,
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        versions=versions(),
    )
    store.write_record(done.tile, record)


def attempt_tile(location: Location, tile: Tile, backend: Backend) -> TileRecord | Refusal:
    """`compute_tile` as it is submitted: what is raised is tried again, what is returned is not."""
    try:
        return compute_tile(location, tile, backend)
    except Exception as error:
        refusal = Refusal.of(error, location)
        if refusal is None:
            what = f"tile {tile} failed with {in_a_line(error)}"
            _LOG.warning("%s; it is tried again, unless this was the last try", what)
            raise
        return refusal


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
    check: Callable[[], None] | None = None,
    retries: int = 3,
    wait: float = WAIT_FOR_WORKERS,
) -> list[TileRecord]:
    """Compute the tiles missing from the store; returns their records in order of completion.

    Each crew of workers has a window of tasks in flight, which follows workers that come and go,
    and tops it up from one queue of tiles. A task is tried again `retries` times, unless its own
    data make it fail; a tile that still fails does not stop the others. A tile whose crew has gone
    is given to who is there; one whose workers have died is tried alone, at the end. A store that
    is whole at the end is marked as finished. `check` is called now and then: what it raises ends
    the run.

    Raises TileError at the end if tiles failed, StoreUnavailableError at once if the store is full,
    read-only or gone, SchedulerLostError if the scheduler is, NoWorkersError if for `wait` seconds
    the cluster has no worker or all are paused, TileMemoryError if a worker cannot hold a tile.
    KeyboardInterrupt cancels what is in flight. Stored tiles are kept in every case, and the same
    call resumes.
    """
    missing = store.missing_tiles()
    if not missing:
        return []
    check_writable(store)
    store.clean()
    workers = available_workers(client, wait, backend)
    _check_workers(store, workers)
    run = _Run(store, client, backend, missing, retries, wait, _memory(store, workers))
    try:
        for _ in run.outcomes():
            if check is not None:
                check()
            if on_progress is not None:
                on_progress(run.progress())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {run.kept()}") from None
    finally:
        run.cancel()
    check_all_stored(store, {record.tile for record in run.records})
    if run.failed:
        why = failures(run.failed, len(missing), run.memory)
        raise TileError(f"{why}; {run.kept()}", run.failed)
    store.finish()
    return run.records


def _memory(store: GramStore, workers: Workers) -> str:
    need = worker_bytes(store.plan, work_of(store), store.samples(), workers.threads)
    return memory_remedy(need, workers.memory, store.plan.tile)


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
        memory: str,
    ) -> None:
        self.store, self.client = store, client
        self.retries, self.wait = retries, wait
        self.pending = deque(missing)
        self.in_flight: dict[Future[Any], _Task] = {}
        self.memory = memory
        self.address = client.scheduler_info()["address"]
        self.submitted: Counter[Tile] = Counter()
        self.stranded: Counter[Tile] = Counter()
        self.suspects: deque[Tile] = deque()
        self.alone: set[Tile] = set()
        self.records: list[TileRecord] = []
        self.pair_steps = 0
        self.failed: dict[Tile, BaseException] = {}
        self.job = uuid.uuid4().hex[:8]
        self.n_missing = len(missing)
        self.completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.roster = Roster(client, backend)
        self.last_outcome = time.monotonic()
        costs = tile_costs(store.plan, work_of(store), store.samples(), missing)
        self.total = sum(costs.values())

    def outcomes(self) -> Iterator[Tile]:
        """Run to the end; yields each tile as it is stored or has failed for good."""
        while self.pending or self.in_flight or self.suspects:
            batch = self._await_some()
            for future, result in batch:
                tile = self._settle(future, result) if future in self.in_flight else None
                if tile is not None:
                    yield tile

    def _await_some(self) -> list[tuple[Future[Any], object]]:
        """Keep the window full; what has ended since, or nothing after a short sleep."""
        if self.client.status != "running":
            raise self._lost(f"the client is {self.client.status}")
        try:
            self._top_up()
            batch = self.completed.next_batch(block=False)
            if not batch:
                self._check_alive()
                time.sleep(_POLL)
        except OSError as error:  # what distributed raises where the scheduler does not answer
            raise self._lost(in_a_line(error)) from error
        return list(batch)

    def _top_up(self) -> None:
        if self.roster.refresh():
            self._take_back()
        for crew in self.roster.crews:
            busy = sum(task.crew.on_gpu == crew.on_gpu for task in self.in_flight.values())
            while self.pending and busy < crew.window:
                self._submit(self.pending.popleft(), crew)
                busy += 1
        if self.suspects and not self.in_flight:
            self._submit_alone()

    def _submit_alone(self) -> None:
        """Try a tile whose workers have died: beside it, another may have been what killed them."""
        crew = next((crew for crew in self.roster.crews if crew.window), None)
        if crew is not None and not self.pending:
            tile = self.suspects.popleft()
            self.alone.add(tile)
            self._submit(tile, crew)

    def _submit(self, tile: Tile, crew: Crew) -> None:
        # A key is never used twice: what the scheduler still says of the first use would hit both.
        again = f"-{self.submitted[tile]}" if self.submitted[tile] else ""
        self.submitted[tile] += 1
        future = self.client.submit(
            attempt_tile,
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

    def _settle(self, future: Future[Any], result: object) -> Tile | None:
        """Note what came of a task; None if its tile is to be tried again, alone."""
        tile = self.in_flight.pop(future).tile
        future.release()  # not only when the last trace of an error is gone that refers to it
        self.last_outcome = time.monotonic()
        if isinstance(result, TileRecord):
            self.records.append(result)
            self.pair_steps += result.pair_steps
            return tile
        cause = self._cause(result)
        if isinstance(cause, KilledWorker) and tile not in self.alone:
            self.suspects.append(tile)
            return None
        self.failed[tile] = cause
        return tile

    def _cause(self, result: object) -> BaseException:
        """Why a task failed; raises what ends the run."""
        if isinstance(result, Refusal):
            if result.stops_the_run:
                raise stopped(result, self.store) from result.cause
            return result.cause
        # A failed future gives (type, exception, traceback), a cancelled one an exception.
        cause = result[1] if isinstance(result, tuple) else result
        if isinstance(cause, CancelledError):  # not by this run: it forgets what it cancels
            raise self._lost(in_a_line(cause)) from cause
        return cause if isinstance(cause, BaseException) else RuntimeError(repr(cause))

    # -- what a run waits for ----------------------------------------------------------------------

    def _lost(self, why: str) -> SchedulerLostError:
        return SchedulerLostError(
            f"the scheduler at {self.address} is lost, and with it all that was in flight ({why}): "
            f"start a cluster and connect a new client; {self.kept()}"
        )

    def _check_alive(self) -> None:
        if self.roster.seconds_without() > self.wait:
            raise NoWorkersError(f"{self.roster.nobody(self.wait)}; {self.kept()}")
        # Asked only where nothing happens: the state of all workers is a large answer.
        quiet = time.monotonic() - self.last_outcome > min(self.wait, _QUIET)
        if quiet and self.roster.seconds_paused() > self.wait:
            raise NoWorkersError(f"{self.roster.asleep(self.wait)}; {self.memory}; {self.kept()}")

    def cancel(self) -> None:
        """Cancel what is in flight; a task that already runs still stores its tile."""
        if self.in_flight and self.client.status == "running":
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
        return kept(self.store, self.store.plan.n_tiles - self.n_missing + len(self.records))
