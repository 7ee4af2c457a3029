"""Fill a Gram store with Dask: the bounded window of tasks in flight, and what becomes of each.

Sequences and values travel between workers and store alone (see `tile_task`). What is missing is
found by listing the store, so a run that stops for any reason is resumed by the same call.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distributed import CancelledError, Client, Future, KilledWorker, as_completed

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
from rntk_dist.growth import GrowingStore
from rntk_dist.kernel.rntk import Backend
from rntk_dist.plan import (
    Tile,
    TileMemoryError,
    Work,
    Workers,
    check_memory,
    tile_costs,
    worker_bytes,
)
from rntk_dist.progress import Progress
from rntk_dist.store import GramStore, show
from rntk_dist.sweep_manifest import SweepTile
from rntk_dist.sweep_store import SweepStore
from rntk_dist.tile_task import TileRecord, attempt_tile, work_of, works_of

_POLL = 0.02

_QUIET = 5.0
"""Seconds without an outcome after which a run asks whether all workers are paused."""

_MOST_STRANDED = 3
"""How often a tile may lose all its workers before it is taken to be what kills them; Dask allows a
task as many, but a tile given out anew is another task to it."""

MOST_DEATHS = _MOST_STRANDED + 1
"""As many workers that drove a run died with a tile: it is not computed again."""


@dataclass(frozen=True, slots=True)
class Drive:
    """From where a run is driven, and how its tasks are submitted.

    `name` begins the keys of the tasks, `priority` is Dask's: higher goes first. `worker` is the
    address of the worker that the run is driven from, if it is one, and `deaths` says how many
    workers that did so before died with a tile: such a tile is computed after the others, after a
    second death alone and elsewhere if it can be, and not any more after `MOST_DEATHS`.
    """

    name: str = ""
    priority: int = 0
    worker: str = ""
    deaths: Mapping[Tile, int] = field(default_factory=dict)

    def in_turn(self, missing: list[Tile]) -> list[Tile]:
        """The tiles to compute beside others, in this order."""
        return sorted((t for t in missing if self._died(t) < 2), key=self._died)

    def alone(self, missing: list[Tile]) -> list[Tile]:
        """The tiles to compute alone."""
        return [tile for tile in missing if 2 <= self._died(tile) < MOST_DEATHS]

    def given_up(self, missing: list[Tile], why: str) -> dict[Tile, BaseException]:
        """The tiles not to compute, each with the error to report; `why` they may have failed."""
        return {
            tile: RuntimeError(
                f"{self._died(tile)} workers died while they computed it, most likely for want of "
                f"memory: {why}"
            )
            for tile in missing
            if self._died(tile) >= MOST_DEATHS
        }

    def elsewhere(self, crew: Crew) -> Crew:
        """The crew without the worker that drives the run, if that leaves any."""
        others = {at: worker for at, worker in crew.workers.items() if at != self.worker}
        if crew.on_gpu or not others or len(others) == len(crew.workers):
            return crew
        return replace(crew, workers=others, apart=True)

    def _died(self, tile: Tile) -> int:
        return self.deaths.get(tile, 0)


def fill(
    store: GramStore,
    client: Client,
    *,
    backend: Backend = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    check: Callable[[], None] | None = None,
    retries: int = 3,
    wait: float = WAIT_FOR_WORKERS,
    drive: Drive | None = None,
) -> list[TileRecord]:
    """Compute the tiles missing from the store; returns their records in order of completion.

    Each crew of workers has a window of tasks in flight, which follows workers that come and go,
    and tops it up from one queue of tiles. A tile is tried again `retries` times, unless its own
    data make it fail; a tile that still fails does not stop the others. A tile whose crew has gone
    is given to who is there; one whose workers have died is tried alone, at the end. A store that
    is whole at the end is marked as finished. `check` is called some fifty times a second: what it
    raises ends the run. `drive` says where the run itself takes place, if that is on a worker.

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
    run = _Run(
        store, client, backend, missing, retries, wait, _memory(store, workers), drive or Drive()
    )
    try:
        for tile in run.outcomes():
            if check is not None:
                check()
            if tile is not None and on_progress is not None:
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


def _pair_steps(store: GramStore, tiles: list[Tile]) -> int:
    """Of all these tiles; of one that is extended, only what is added to it."""
    if isinstance(store, SweepStore):
        return _sweep_pair_steps(store, tiles)
    work = work_of(store)
    steps = sum(tile_costs(store.plan, work, store.samples(), tiles).values())
    if isinstance(store, GrowingStore):
        old, stored = store.base, filter(store.is_extended, tiles)
        steps -= sum(tile_costs(old.plan, work, old.samples(), stored).values())
    return steps


def _sweep_pair_steps(store: SweepStore, tasks: list[Tile]) -> int:
    """Of all these tasks; kernels that are multiples of each other count once in a task."""
    times: Counter[tuple[Work, Tile]] = Counter()
    works: dict[tuple[int, ...], list[Work]] = {}  # of all tasks of a batch
    for task in tasks:
        if isinstance(task, SweepTile):
            tile = Tile(task.row, task.col)
            if task.kernels not in works:
                works[task.kernels] = works_of(store, task)
            times.update((work, tile) for work in works[task.kernels])
    plan, samples = store.manifest.plan, store.samples()
    by_work = {
        work: tile_costs(plan, work, samples, {tile for of, tile in times if of == work})
        for work in {work for work, _ in times}
    }
    return sum(n * by_work[work][tile] for (work, tile), n in times.items())


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
        drive: Drive,
    ) -> None:
        self.store, self.client = store, client
        self.retries, self.wait = retries, wait
        self.drive = drive
        self.pending = deque(drive.in_turn(missing))
        self.in_flight: dict[Future[Any], _Task] = {}
        self.memory = memory
        self.address = client.scheduler_info()["address"]
        self.identity = store.manifest.identity_sha256()
        self.submitted: Counter[Tile] = Counter()
        self.n_submitted = 0  # their sum, which is too long a one to take for each tile
        self.stranded: Counter[Tile] = Counter()
        self.raised: Counter[Tile] = Counter()
        self.suspects = deque(drive.alone(missing))
        self.alone: set[Tile] = set()
        self.records: list[TileRecord] = []
        self.by_worker: Counter[str] = Counter()
        self.pair_steps = 0
        self.failed = drive.given_up(missing, memory)
        self.job = drive.name or uuid.uuid4().hex[:8]
        self.n_missing = len(missing)
        self.completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.roster = Roster(client, backend, wait)
        self.last_outcome = time.monotonic()
        self.total = _pair_steps(store, missing)

    def outcomes(self) -> Iterator[Tile | None]:
        """Run to the end; yields each tile as it is stored or has failed for good, and often None.

        The None is for who has to look at other things meanwhile.
        """
        while self.pending or self.in_flight or self.suspects:
            batch = self._await_some()
            yield None
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
            self._submit(tile, self.drive.elsewhere(crew))

    def _submit(self, tile: Tile, crew: Crew) -> None:
        # A key is never used twice: what the scheduler still says of the first use would hit both.
        again = f"-{self.submitted[tile]}" if self.submitted[tile] else ""
        self.submitted[tile] += 1
        self.n_submitted += 1
        future = self.client.submit(
            attempt_tile,
            self.store.location,
            tile,
            crew.backend,
            self.identity,
            self.submitted[tile],
            self.job,
            key=f"rntk-tile-{self.job}-{tile.name}{again}",
            pure=False,
            priority=self.drive.priority,
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
                self.failed[tile] = RuntimeError(
                    f"all its workers died or went away, in each of {self.stranded[tile]} "
                    f"attempts, most likely for want of memory: {self.memory}"
                )
            else:
                (self.suspects if tile in self.alone else self.pending).appendleft(tile)

    def _settle(self, future: Future[Any], result: object) -> Tile | None:
        """Note what came of a task; None if its tile is to be tried again."""
        tile = self.in_flight.pop(future).tile
        future.release()  # not only when the last trace of an error is gone that refers to it
        self.last_outcome = time.monotonic()
        if isinstance(result, TileRecord):
            self.records.append(result)
            self.by_worker[f"{result.host}:{result.pid}"] += 1
            self.pair_steps += result.pair_steps
            return tile
        cause = self._cause(result)
        if self._is_tried_again(tile, cause, refused=isinstance(result, Refusal)):
            return None
        self.failed[tile] = cause
        return tile

    def _is_tried_again(self, tile: Tile, cause: BaseException, *, refused: bool) -> bool:
        """Put a tile back that may succeed another time; one that killed its workers alone."""
        if isinstance(cause, KilledWorker):
            again, queue = tile not in self.alone, self.suspects
        else:
            again, queue = not refused and self.raised[tile] < self.retries, self.pending
            self.raised[tile] += 1
        if again:
            queue.append(tile)
        return again

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
            retries=self.n_submitted - len(self.submitted),
            workers=self.roster.workers_now(),
            causes=self.failed,
            by_worker=self.by_worker,
        )

    def kept(self) -> str:
        """What the store holds now, and how to go on."""
        return kept(self.store, self.store.plan.n_tiles - self.n_missing + len(self.records))
