"""Fill a Gram store with Dask: one tile's task, and the bounded window of tasks in flight.

The only module that submits to Dask. A task gets the store's location and a tile, and returns a
small record: sequences and values travel between workers and store alone, never through the client
or the scheduler. What is missing is found by listing the store, so a run that stops for any reason
is resumed by the same call.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rich.progress
from dask.system import CPU_COUNT
from distributed import Client, Future, LocalCluster, as_completed
from distributed.system import MEMORY_LIMIT
from rich.console import Console
from threadpoolctl import threadpool_limits

from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.plan import (
    BASE_BYTES,
    MIB,
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
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Location, Manifest, in_memory, locate, provenance, show

WAIT_FOR_WORKERS = 60.0
"""Seconds to wait for a first worker, and for one to come back when all are gone."""

TASKS_PER_THREAD = 2
"""Size of the window: one task running on a thread and one queued for it."""

_GUARD = 'call rd.gram under `if __name__ == "__main__":`, for each worker imports the script'

_POLL = 0.02
_RECOUNT = 1.0


class TileError(RuntimeError):
    """Some tiles failed for good; the others are kept. `failed` maps each to its cause."""

    def __init__(self, message: str, failed: dict[Tile, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failed = failed or {}


class NoWorkersError(RuntimeError):
    """The client's cluster has had no worker for longer than the stated wait."""


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What a task reports of the tile it has stored: never its values.

    `seconds` of wall time from opening the store to the written chunk, `nbytes` of the block,
    `host` and `pid` of the worker.
    """

    tile: Tile
    seconds: float
    pair_steps: int
    nbytes: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: tiles of the whole matrix, pair-steps of what this run computes."""

    tiles: int
    tiles_total: int
    pair_steps: int
    pair_steps_total: int
    failed: int
    in_flight: int


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
    return TileRecord(tile, seconds, steps, block.nbytes, socket.gethostname(), os.getpid())


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
        plan = _new_plan(work, samples, tile, itemsize, available_workers(client))
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


# -- workers ---------------------------------------------------------------------------------------


def available_workers(client: Client | None, wait: float = WAIT_FOR_WORKERS) -> Workers:
    """The workers that a run would have: the client's, or those of a cluster on this machine.

    Raises NoWorkersError if no worker joins the client's cluster within `wait` seconds.
    """
    if client is None:
        return local_workers()
    wait_for_worker(client, wait)
    # Some releases of distributed list five workers unless asked for all.
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] for worker in found if worker["memory_limit"]]
    threads = [worker["nthreads"] for worker in found]
    return Workers(sum(threads), min(limits, default=0), max(threads))


def local_workers() -> Workers:
    """One worker process a core, or fewer, to leave each half a GiB above its base."""
    count = max(1, min(CPU_COUNT, MEMORY_LIMIT // (BASE_BYTES + 512 * MIB)))
    return Workers(count, MEMORY_LIMIT // count)


def wait_for_worker(client: Client, wait: float = WAIT_FOR_WORKERS) -> None:
    """Return once the cluster has a worker; raise NoWorkersError after `wait` seconds without."""
    try:
        client.wait_for_workers(1, timeout=wait)
    except TimeoutError as error:
        raise _no_workers(client, wait) from error


def _no_workers(client: Client, wait: float) -> NoWorkersError:
    address = client.scheduler.address if client.scheduler else "an unknown address"
    return NoWorkersError(
        f"no worker in the cluster at {address} for {wait:g} s: "
        f"start one, for example `dask worker {address}`"
    )


@contextmanager
def local_client(n_tiles: int) -> Iterator[Client]:
    """A client of a cluster on this machine, with no more workers than tiles; closed on leaving.

    Raises RuntimeError where worker processes cannot start, for example because the main script
    would run again in each of them.
    """
    _refuse_inside_spawn()
    with (
        _local_cluster(n_tiles) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _local_cluster(n_tiles: int) -> LocalCluster:
    workers = local_workers()
    try:
        return LocalCluster(
            n_workers=min(workers.count, n_tiles),
            threads_per_worker=1,
            processes=True,
            memory_limit=workers.memory,
            host="127.0.0.1",
            dashboard_address=None,
            # What fails is told once, in the error at the end, not by every worker at every try.
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"worker processes could not start ({error}); in a script, {_GUARD}"
        ) from error


def _refuse_inside_spawn() -> None:
    # A spawned process imports the main script first; multiprocessing itself has this flag.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(f"a worker process that imports your script ran rd.gram: {_GUARD}")


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

    At most `TASKS_PER_THREAD` tasks a worker thread are in flight; the window follows workers that
    come and go. A task is tried again `retries` times; a tile that still fails does not stop the
    others.

    Raises TileError at the end if tiles failed, NoWorkersError if the cluster has no worker for
    `wait` seconds, TileMemoryError if a worker cannot hold a tile. KeyboardInterrupt cancels what
    is in flight. Stored tiles are kept in every case, and the same call resumes.
    """
    missing = store.missing_tiles()
    if not missing:
        return []
    _check_workers(store, available_workers(client, wait))
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
        self.store, self.client, self.backend = store, client, backend
        self.retries, self.wait = retries, wait
        self.pending = deque(missing)
        self.in_flight: dict[Future[Any], Tile] = {}
        self.records: list[TileRecord] = []
        self.pair_steps = 0
        self.failed: dict[Tile, BaseException] = {}
        self.job = uuid.uuid4().hex[:8]
        self.n_missing = len(missing)
        self.completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.threads = _ThreadCount(client)
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
                yield self._settle(future, result)

    def _top_up(self) -> None:
        window = max(1, TASKS_PER_THREAD * self.threads.now())
        while self.pending and len(self.in_flight) < window:
            self._submit(self.pending.popleft())

    def _submit(self, tile: Tile) -> None:
        future = self.client.submit(
            compute_tile,
            self.store.location,
            tile,
            self.backend,
            key=f"rntk-tile-{self.job}-{tile.row}-{tile.col}",
            pure=False,
            retries=self.retries,
        )
        self.in_flight[future] = tile
        self.completed.add(future)

    def _settle(self, future: Future[Any], result: object) -> Tile:
        tile = self.in_flight.pop(future)
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
        if self.threads.seconds_without() > self.wait:
            error = _no_workers(self.client, self.wait)
            raise NoWorkersError(f"{error}; {self.kept()}")

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


class _ThreadCount:
    """The cluster's worker threads, asked for at most once a second."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.asked = self.alive = -float("inf")
        self.count = 0

    def now(self) -> int:
        """Threads of all workers."""
        now = time.monotonic()
        if now - self.asked > _RECOUNT:
            self.count = sum(self.client.nthreads().values())
            self.asked = now
            if self.count or self.alive < 0:
                self.alive = now
        return self.count

    def seconds_without(self) -> float:
        """For how long there has been no worker; 0 while there is one."""
        return 0.0 if self.now() else time.monotonic() - self.alive


def _failures(failed: dict[Tile, BaseException], n: int, shown: int = 10) -> str:
    """One sentence: how many tiles failed, which, and why the first did."""
    names = ", ".join(f"({tile.row}, {tile.col})" for tile in sorted(failed)[:shown])
    more = f" and {len(failed) - shown} more" if len(failed) > shown else ""
    cause = next(iter(failed.values()))
    reason = (str(cause).splitlines() or ["no message"])[0]
    first = f"the first with {type(cause).__name__}: {reason}"
    return f"{len(failed)} of {n} tiles failed, {names}{more}, {first}"


# -- progress -----------------------------------------------------------------------------------


@contextmanager
def progress_report(show: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """An `on_progress` for `fill` that draws a bar on stderr, or lines where that is no terminal.

    None, for silence, unless `show`.
    """
    console = Console(stderr=True)
    if not show:
        yield None
    elif console.is_terminal or console.is_jupyter:
        with rich.progress.Progress(*_columns(), console=console) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(console)


def _columns() -> list[rich.progress.ProgressColumn]:
    return [
        rich.progress.TextColumn("{task.fields[tiles]}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(),
    ]


class _Bar:
    """Draws a bar that advances by pair-steps, for tiles differ in work where lengths do."""

    def __init__(self, bar: rich.progress.Progress) -> None:
        self.bar, self.started = bar, time.monotonic()
        self.task = bar.add_task("", total=None, tiles="starting workers", speed="")

    def __call__(self, now: Progress) -> None:
        speed = now.pair_steps / max(time.monotonic() - self.started, 1e-9)
        self.bar.update(
            self.task,
            completed=now.pair_steps,
            total=now.pair_steps_total,
            tiles=_tiles(now),
            speed=f"{speed:.2g} pair-steps/s",
        )


class _Lines:
    """Prints a line at most every ten seconds, and the last."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.started = self.printed = time.monotonic()

    def __call__(self, now: Progress) -> None:
        time_now = time.monotonic()
        if now.in_flight and time_now - self.printed < self.every:
            return
        self.printed = time_now
        line = f"rntk_dist: {_tiles(now)}"
        speed = now.pair_steps / max(time_now - self.started, 1e-9)
        if speed:
            left = (now.pair_steps_total - now.pair_steps) / speed
            line = f"{line}, {speed:.2g} pair-steps/s, {left:.0f} s left"
        self.console.print(line, highlight=False, soft_wrap=True)


def _tiles(now: Progress) -> str:
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{now.tiles}/{now.tiles_total} tiles{failed}"
