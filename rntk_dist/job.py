"""Jobs: a matrix that a cluster computes on its own, whoever is connected.

    job = rd.submit(kernel, X, store="s3://bucket/gram", client=client)   # returns at once
    print(job.status())
    job.wait()

    job = rd.connect("s3://bucket/gram")       # another day, another machine, no cluster

Everything that is known of a job is in its store (see `job_record`), so it can be asked about from
wherever the store can be read. A client adds what the store cannot tell: whether the scheduler
still knows of a job that nobody has begun.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from distributed import Client

from rntk_dist.cluster import NoWorkersError, find_workers
from rntk_dist.coordinator import coordinate, name_of, place_of, tile_of, withdraw
from rntk_dist.creation import ensure_store
from rntk_dist.failures import StoreUnavailableError, TileError, in_a_line
from rntk_dist.gram import Gram
from rntk_dist.job_record import (
    BEAT,
    JobRecord,
    JobStatus,
    ask_to_cancel,
    is_driven,
    is_to_cancel,
    now,
    read_record,
    status_now,
    write_record,
)
from rntk_dist.job_view import job_html, show_live
from rntk_dist.kernel.backends import fastest_backend
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.lease import current_owner, lease
from rntk_dist.plan import TileMemoryError
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Location, locate, show

_PATIENCE = 60.0
"""Seconds to wait for a job that is being cancelled, or submitted by another, to let go."""

_AHEAD = 1000
"""What a coordinator's priority has before that of tiles: it takes no thread from them."""

_FIRST_POLL, _LAST_POLL = 0.1, 1.0

_PREFIX = place_of("")


class NoJobError(LookupError):
    """The store has never had a job."""


class JobInterruptedError(RuntimeError):
    """Nobody drives the job any more; what is stored is kept, and submitting it again resumes."""


def submit(
    kernel: RNTK,
    X: Any,
    Y: Any = None,
    *,
    store: Location,
    client: Client,
    kind: Kind = "ntk",
    tile: int | None = None,
    dtype: DType = "float64",
    backend: Backend = "auto",
    priority: int = 0,
) -> Job:
    """Have a cluster compute the Gram matrix of X, or of X against Y, into a store.

    Returns as soon as the sequences are stored; the client, and its whole process, may then go. A
    job that already fills the store is returned as it is; an interrupted, cancelled or failed one
    is resumed by a new job; on a complete store there is nothing to do, and the job is done.

    Parameters
    ----------
    kernel, X, Y, store, kind, tile, dtype, backend
        As for `rd.gram`.
    client
        A Dask client of the cluster.
    priority
        Tiles of a job with a higher number go before those of another; equal ones share.

    Raises
    ------
    IdentityError, StoreFormatError, FileExistsError, TileMemoryError
        As `rd.gram`.
    NoWorkersError
        Without a worker the size of a tile cannot be chosen; or `backend` is "cupy" and no worker
        has a GPU.
    StoreBusyError
        Another process fills the store by `rd.gram`.
    """
    if backend == "cupy":
        check_gpu(client)
    rows = Sequences.from_arrays(X)
    cols = None if Y is None else Sequences.from_arrays(Y)
    opened = ensure_store(
        kernel,
        rows,
        cols,
        store=store,
        kind=kind,
        tile=tile,
        dtype=dtype,
        backend=backend,
        client=client,
    )
    return _submitted(opened, client, backend, priority)


def connect(store: Location, client: Client | None = None) -> Job:
    """The store's last job, from any process; with a client it can be asked of the scheduler, too.

    Raises NoJobError if there has been none, FileNotFoundError if there is no store.
    """
    opened = GramStore.open(store)
    record = read_record(opened)
    if record is None:
        raise NoJobError(f"{show(opened.location)} has had no job: rd.submit starts one")
    return Job(opened.location, record.id, client)


def jobs(client: Client) -> list[Job]:
    """The jobs that the cluster has in hand, oldest first; one that has ended is in its store."""
    names = sorted(name for name in client.list_datasets() if str(name).startswith(_PREFIX))
    # Between the list and the look, a job may have ended.
    places = {name: client.get_dataset(name, default=None) for name in names}
    return [
        Job(place, name.removeprefix(_PREFIX), client)
        for name, place in places.items()
        if place is not None
    ]


@dataclass(frozen=True)
class Job:
    """A matrix that a cluster computes on its own; from `submit`, `connect` and `jobs`.

    `store` is its store's location, `id` its name. Without `client` all is told from the store.
    """

    store: Location
    id: str
    client: Client | None = field(default=None, compare=False)

    def status(self) -> JobStatus:
        """How the job is now. Raises OSError if the store cannot be read."""
        store = GramStore.open(self.store)
        status = status_now(store, self.id, self._is_on_cluster)
        if status.state != "interrupted":
            return status
        # It may have ended between the look at its record and that at the scheduler.
        status = status_now(store, self.id, self._is_on_cluster)
        why = "" if self.client is None else _why_erred(self.client, self.id)
        return replace(status, message=f"{status.message}{why}")

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Return when the job is done or cancelled.

        Raises TimeoutError after `timeout` seconds, what the job failed with (TileError,
        StoreUnavailableError, ...), JobInterruptedError if nobody drives it any more.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        poll = _FIRST_POLL
        while self._is_under_way() or not self.status().has_ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._too_late(timeout or 0.0)
            time.sleep(min(poll, left))
            poll = min(1.5 * poll, _LAST_POLL)
        status = self.status()
        _raise_failure(status)
        return status

    def cancel(self) -> None:
        """Ask the job to stop, which it does within seconds; what it has stored is kept.

        Works from any process that can write to the store. Nothing happens to a job that has ended.
        """
        store = GramStore.open(self.store, writable=True)
        record = read_record(store)
        if record is None or record.id != self.id or record.has_ended:
            return
        ask_to_cancel(store, self.id)
        # Who has not begun looks at nothing; who has stops by itself, with all its tiles.
        if self.client is not None and not is_driven(store, record):
            withdraw(self.client, self.id)  # the scheduler then drops its task

    def gram(self) -> Gram:
        """The matrix, whole; waits for the job and raises as `wait`."""
        self.wait()
        return Gram(GramStore.open(self.store))

    def _is_under_way(self) -> bool:
        """Whether the record was renewed just now: one small read, while a status lists tiles."""
        record = read_record(GramStore.open(self.store))
        if record is None or record.id != self.id or record.state != "running":
            return False
        return abs(record.age()) < 2 * BEAT

    def _too_late(self, timeout: float) -> TimeoutError:
        status = self.status()
        done = f"{status.tiles_done} of {status.tiles_total} tiles"
        return TimeoutError(f"job {self.id} is {status.state} after {timeout:g} s: {done}")

    def _is_on_cluster(self, record: JobRecord) -> bool | None:
        """None for a job of another cluster than the client's."""
        if self.client is None or self.client.scheduler_info()["address"] != record.scheduler:
            return None
        return _is_on(self.client, self.id)

    def __repr__(self) -> str:
        return f"Job({self.id!r}, store={show(locate(self.store))!r})"

    def _repr_html_(self) -> str:
        return job_html(self._without_client().status())

    def _ipython_display_(self) -> None:
        """Where Jupyter shows it, the job goes on being shown until it has ended."""
        show_live(self._without_client().status)

    def _without_client(self) -> Job:
        """Who looks on in the background asks the store alone: clients are closed meanwhile."""
        return Job(self.store, self.id)


# -- submitting ------------------------------------------------------------------------------------


def check_gpu(client: Client) -> None:
    """Raise NoWorkersError if no worker of the cluster has a GPU.

    A worker may declare one (`--resources GPU=1`) or not; those that do not are asked.
    """
    if any(worker.gpus for worker in find_workers(client).values()):
        return
    if "cupy" not in client.run(fastest_backend, on_error="ignore").values():
        address = client.scheduler_info()["address"]
        raise NoWorkersError(
            f"no worker of the cluster at {address} has a GPU that CuPy sees: start one beside a "
            f"GPU, for example `dask worker {address} --resources GPU=1`, or use backend 'auto'"
        )


def _submitted(store: GramStore, client: Client, backend: Backend, priority: int) -> Job:
    at_work = _job_at_work(store, client)
    if at_work is not None:
        return at_work
    record = _new_record(client, backend, priority)
    if not store.missing_tiles():
        return Job(store.location, (read_record(store) or record).id, client)
    with lease(store.location, _patience(store), job=record.id):
        at_work = _job_at_work(store, client)  # another may have submitted meanwhile
        return at_work or _launched(store, client, record)


def _job_at_work(store: GramStore, client: Client) -> Job | None:
    """The job that fills the store already."""
    record = read_record(store)
    if record is None or record.has_ended or is_to_cancel(store, record.id):
        return None
    if is_driven(store, record) or _is_on(client, record.id):
        return Job(store.location, record.id, client)
    return None


def _patience(store: GramStore) -> float:
    """How long to wait for the lease: not at all for a process that fills the store itself."""
    owner = current_owner(store.location)
    return _PATIENCE if owner is not None and owner.job else 0.0


def _new_record(client: Client, backend: Backend, priority: int) -> JobRecord:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    info = client.scheduler_info()
    return JobRecord(
        id=f"{stamp}-{uuid.uuid4().hex[:6]}",
        state="queued",
        submitted=now(),
        updated=now(),
        backend=backend,
        priority=priority,
        scheduler=info["address"],
        dashboard=client.dashboard_link if "dashboard" in info["services"] else "",
    )


def _launched(store: GramStore, client: Client, record: JobRecord) -> Job:
    """Write the job down and give it to the cluster."""
    former = read_record(store)
    if former is not None:
        withdraw(client, former.id)  # one that was left behind when its store was taken over
    write_record(store, record)
    name = name_of(record.id)
    future = client.submit(
        coordinate,
        store.location,
        record.id,
        key=name,
        pure=False,
        priority=record.priority + _AHEAD,
    )
    client.publish_dataset(future, name=name)
    client.publish_dataset(store.location, name=place_of(record.id))
    return Job(store.location, record.id, client)


# -- on the cluster --------------------------------------------------------------------------------


def _is_on(client: Client, job: str) -> bool:
    """Whether the scheduler has a coordinator of the job that waits or runs."""
    return _task_state(client, job) in ("released", "waiting", "no-worker", "queued", "processing")


def _task_state(client: Client, job: str) -> str | None:
    """What the scheduler says of a coordinator; None if it knows of none."""
    key, scheduler = name_of(job), client.scheduler
    if scheduler is None:  # the client is closed
        return None
    state: str | None = client.sync(scheduler.get_task_status, keys=[key])[key]
    return state


def _why_erred(client: Client, job: str) -> str:
    """What a coordinator died of before it could write that down; "" if it did not."""
    if _task_state(client, job) != "erred":
        return ""
    coordinator = client.get_dataset(name_of(job), default=None)
    return f" (its coordinator failed with {in_a_line(coordinator.exception())})"


# -- how a job has failed --------------------------------------------------------------------------


_FAILURES = {
    error.__name__: error for error in (StoreUnavailableError, NoWorkersError, TileMemoryError)
}


def _raise_failure(status: JobStatus) -> None:
    """Raise what the status tells of, if that is no good end."""
    if status.state in ("interrupted", "replaced"):
        raise JobInterruptedError(
            f"job {status.id} is {status.state} at {status.tiles_done} of {status.tiles_total} "
            f"tiles: {status.message}"
        )
    if status.state == "failed" and status.error == TileError.__name__:
        causes = {tile_of(tile): RuntimeError(why) for tile, why in status.failures.items()}
        raise TileError(status.message, dict(causes))
    if status.state == "failed":
        raise _FAILURES.get(status.error, RuntimeError)(status.message)
