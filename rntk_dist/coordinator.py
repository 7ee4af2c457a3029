"""Drive a job from a worker of its cluster: a long task that submits the tiles, client or not.

The task gets the store's location and the job's id; all else is in the job's record. It takes no
thread of its worker from the tiles. Where its worker dies, the scheduler starts it again on
another, and it goes on from the store.

*Who is to blame.* Dask holds a worker's death against every task that the worker had, and gives up
a task after four. A coordinator is the task that is always there, so it has the scheduler forget
what it held against it, and counts by itself: from the scheduler's log it learns which tiles were
on the worker that died. One that was there twice is tried alone and elsewhere, one that was there
four times is given up (see `compute.Drive`). So a tile that kills workers ends as one failed tile.
A coordinator that dies again and again with nothing gained ends its job.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from distributed import Client, get_worker, worker_client

from rntk_dist.compute import MOST_DEATHS, Drive, fill
from rntk_dist.failures import SchedulerLostError, TileError, in_a_line
from rntk_dist.job_record import (
    BEAT,
    JobRecord,
    State,
    is_to_cancel,
    now,
    read_record,
    write_record,
)
from rntk_dist.lease import Lease, LeaseLostError, StoreBusyError, lease
from rntk_dist.plan import Tile, tile_costs
from rntk_dist.progress import Progress
from rntk_dist.store import GramStore, Location
from rntk_dist.tile_task import work_of

MOST_FRUITLESS = 10
"""As many coordinators died in a row with no tile stored or given up: the job fails."""

_LOOK = 1.0
"""Seconds between two looks whether the job is to be cancelled."""

_TURN = 30.0
"""Seconds to wait for another owner of the store between two such looks."""

_RATED = 60.0
"""Seconds over which rates are taken."""

_TILE_KEY = re.compile(r"rntk-tile-(.+)\.\d+-(\d+)-(\d+)(?:-\d+)?")
_TILE_NAME = re.compile(r"\((\d+), (\d+)\)")

_LOG = logging.getLogger(__name__)


class _CancelledError(Exception):
    """Somebody has asked to cancel the job."""


class _ReplacedError(Exception):
    """The job has ended, or the store has another by now."""


def name_of(job: str) -> str:
    """The key of a job's coordinator, which is also the name that it is published under."""
    return f"rntk-job-{job}"


def place_of(job: str) -> str:
    """The name that the location of a job's store is published under.

    Not with the coordinator: who reads that asks the scheduler for a task that may just have ended.
    """
    return f"rntk-store-{job}"


def tile_of(name: str) -> Tile:
    """Inverse of `str(tile)`."""
    match = _TILE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no tile: (row, column) was expected")
    return Tile(int(match[1]), int(match[2]))


def coordinate(location: Location, job: str) -> None:
    """Drive a job to its end: the task. Of a job that has ended, it does nothing.

    Raises what ends the run, once it is written down.
    """
    with worker_client() as client:
        try:
            store = GramStore.open(location, writable=True)
        except FileNotFoundError:
            withdraw(client, job)
            raise
        try:
            _drive(store, job, client)
        except (LeaseLostError, _CancelledError, _ReplacedError) as error:
            _LOG.warning("this coordinator of job %s stops: %s", job, error)
        finally:
            # A scheduler that is lost, or a store that cannot be read, has nothing to be tidied.
            with suppress(OSError):
                _withdraw(store, job, client)


def _drive(store: GramStore, job: str, client: Client) -> None:
    with _held(store, job) as held:
        record = _taken_over(store, job, client)
        # Only now: a coordinator that dies before it can count is the scheduler's to give up.
        client.run_on_scheduler(_forgive, key=name_of(job))
        pulse = _Pulse(store, record, held)
        try:
            _fill(store, client, pulse)
        except (LeaseLostError, SchedulerLostError, _ReplacedError):
            raise
        except _CancelledError:
            pulse.end("cancelled")
        except Exception as error:
            # Where this worker is leaving, anything may fail: its successor will tell.
            if client.status == "running":
                pulse.end("failed", error)
            raise
        else:
            pulse.end("done")


def _fill(store: GramStore, client: Client, pulse: _Pulse) -> None:
    record = pulse.record
    if record.fruitless >= MOST_FRUITLESS:
        raise RuntimeError(
            f"{record.fruitless} workers died one after another while they drove job {record.id}, "
            "and no tile was stored meanwhile: see their logs, then submit the job again"
        )
    drive = Drive(
        name=f"{record.id}.{record.coordinators}",
        priority=record.priority,
        worker=record.worker,
        deaths={tile_of(name): times for name, times in record.deaths.items()},
    )
    fill(
        store,
        client,
        backend=record.backend,
        on_progress=pulse.see,
        check=pulse.check,
        drive=drive,
    )
    store.finish()  # a coordinator may have died between the last tile and this


@contextmanager
def _held(store: GramStore, job: str) -> Iterator[Lease]:
    """The lease, after whoever has it now; raises as `_look`."""
    with ExitStack() as stack:
        held = None
        while held is None:
            _look(store, job)
            with suppress(StoreBusyError):
                held = stack.enter_context(lease(store.location, _TURN, job=job))
        yield held


def _look(store: GramStore, job: str) -> JobRecord:
    """The record as it is; raises _CancelledError or _ReplacedError if the job is not to go on."""
    record = read_record(store)
    if record is None or record.id != job:
        raise _ReplacedError("the store has another job")
    if record.has_ended:
        raise _ReplacedError(f"it is {record.state}")
    if is_to_cancel(store, job):
        raise _CancelledError("it is to be cancelled")
    return record


def _withdraw(store: GramStore, job: str, client: Client) -> None:
    """Take a job that has ended, or that another has followed, off the scheduler's list.

    The scheduler then forgets the task. A job that has not ended stays there for its successor.
    """
    record = read_record(store)
    ended = record is None or record.id != job or record.has_ended or is_to_cancel(store, job)
    if ended and client.status == "running":
        withdraw(client, job)


def withdraw(client: Client, job: str) -> None:
    """Take a job off the scheduler's list, if it is on it."""
    for name in (place_of(job), name_of(job)):
        client.unpublish_dataset(name)  # which is silent where there is none


def _forgive(key: str, dask_scheduler: Any = None) -> None:
    """Have the scheduler forget the deaths that it holds against a task. Runs on the scheduler."""
    task = dask_scheduler.tasks.get(key)
    if task is not None:
        task.suspicious = -1  # not 0: where no failure is allowed, the first would be one too many


# -- taking over -----------------------------------------------------------------------------------


def _taken_over(store: GramStore, job: str, client: Client) -> JobRecord:
    """Write down that this worker drives the job now, and what became of those before."""
    last = _look(store, job)
    stored = len(store.stored_tiles())
    deaths = _deaths(last, client)
    gained = stored > last.tiles_at_start or _given_up(deaths) > _given_up(last.deaths)
    costs = tile_costs(store.plan, work_of(store), store.samples(), store.plan.tiles())
    record = replace(
        last,
        state="running",
        started=last.started or now(),
        host=socket.gethostname(),
        pid=os.getpid(),
        worker=get_worker().address,
        coordinators=last.coordinators + 1,
        deaths=deaths,
        fruitless=0 if gained or not last.coordinators else last.fruitless + 1,
        tiles_at_start=stored,
        pair_steps=sum(costs.values()) - sum(costs[tile] for tile in store.missing_tiles()),
        pair_steps_total=sum(costs.values()),
    )
    return write_record(store, record)


def _given_up(deaths: Mapping[str, int]) -> int:
    return sum(times >= MOST_DEATHS for times in deaths.values())


def _deaths(last: JobRecord, client: Client) -> dict[str, int]:
    """How many coordinators' workers have died with which tiles, the last one's included."""
    events = client.get_events(last.worker) if last.coordinators else ()
    lost = Counter(last.deaths)
    for _, event in events:
        if event.get("action") == "remove-worker" and not event.get("expected"):
            keys = filter(None, map(_TILE_KEY.fullmatch, event.get("processing-tasks", ())))
            tiles = {Tile(int(key[2]), int(key[3])) for key in keys if key[1] == last.id}
            lost.update(map(str, tiles))
    return dict(lost)


# -- the pulse -------------------------------------------------------------------------------------


class _Pulse:
    """Keeps a job's record up to date, and looks whether the job is to go on."""

    def __init__(self, store: GramStore, record: JobRecord, held: Lease) -> None:
        self.store, self.record, self.held = store, record, held
        self.looked = self.written = time.monotonic()
        self.done_before = record.pair_steps
        self.rated = deque([(self.written, record.tiles_at_start, record.pair_steps)])
        self.last: Progress | None = None

    def see(self, progress: Progress) -> None:
        """Take note of how far the run is."""
        self.last = progress

    def check(self) -> None:
        """To be called all the time; raises what is to end the run."""
        self.held.check()
        present = time.monotonic()
        if present - self.looked >= _LOOK:
            self.looked = present
            with _survived(self.record.id):
                _look(self.store, self.record.id)
        if present - self.written >= BEAT:
            self.written = present
            with _survived(self.record.id):
                self.record = write_record(self.store, self._present())

    def end(self, state: State, error: Exception | None = None) -> None:
        """Write down how the job has ended."""
        self.record = replace(self._present(), state=state)
        if error is not None:
            kind, message = type(error).__name__, str(error)
            self.record = replace(self.record, error=kind, message=message)
        if isinstance(error, TileError):
            self.record = replace(self.record, failures=_causes(error.failed))
        write_record(self.store, self.record)

    def _present(self) -> JobRecord:
        numbers = {} if self.last is None else self._numbers(self.last)
        return replace(self.record, **numbers)

    def _numbers(self, last: Progress) -> dict[str, Any]:
        steps, present = self.done_before + last.pair_steps, time.monotonic()
        self.rated.append((present, last.tiles, steps))
        while len(self.rated) > 2 and present - self.rated[0][0] > _RATED:
            self.rated.popleft()
        since, tiles_then, steps_then = self.rated[0]
        return {
            "pair_steps": steps,
            "tiles_per_second": (last.tiles - tiles_then) / (present - since),
            "pair_steps_per_second": (steps - steps_then) / (present - since),
            "workers": last.workers,
            "retries": last.retries,
            "failures": _causes(last.causes),
        }


def _causes(failed: Mapping[Tile, BaseException]) -> dict[str, str]:
    return {str(tile): in_a_line(why) for tile, why in failed.items()}


@contextmanager
def _survived(job: str) -> Iterator[None]:
    """What the store refuses of a record does not end the job: that is for its tiles to do."""
    try:
        yield
    except OSError as error:
        _LOG.warning("job %s: its record is out of date: %s", job, in_a_line(error))
