"""Who computes: the workers of a Dask cluster, the crews they form, and a cluster on this machine.

A worker started with the resource GPU (`dask worker --resources GPU=1`) computes one tile at a time
on each GPU; every other worker computes one on each thread. Workers that take the same tasks are a
*crew*: without GPU workers there is one, of all; with them there are two, which draw from one queue
of tiles, so that each gets as many as it is fast.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

from rntk_dist.kernel.rntk import Backend
from rntk_dist.plan import BASE_BYTES, MIB, Workers

WAIT_FOR_WORKERS = 60.0
"""Seconds to wait for a first worker, and for one to come back when all are gone."""

TASKS_PER_SLOT = 2
"""Size of the window: one task running on a thread or a GPU and one queued for it."""

_GUARD = 'call rd.gram under `if __name__ == "__main__":`, for each worker imports the script'

_RARE_LOOKS = {
    "distributed.admin.tick.interval": "500ms",
    "distributed.worker.profile.interval": "100ms",
}
"""Dask's processes look after their own loops and tasks 50 and 100 times a second, which takes
4 to 5 % of a core each. Workers that are busy with tiles need it less often."""

_RECOUNT = 1.0

_ASKED = 3
"""How often the scheduler is asked for its workers, where it answers another question."""


class NoWorkersError(RuntimeError):
    """The cluster has had no worker for longer than the stated wait, or none that is not paused."""


# -- workers and crews -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process: its threads, its whole GPUs, its memory limit in bytes (0: none)."""

    threads: int
    gpus: int = 0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Crew:
    """Workers that take the same tasks, by address.

    `on_gpu`: a task takes a GPU, not a thread. `apart`: tasks are kept to these workers, for there
    are others that compute otherwise. `backend` is what a task of theirs computes with.
    """

    workers: Mapping[str, Worker]
    backend: Backend
    on_gpu: bool = False
    apart: bool = False

    def slots(self, address: str) -> int:
        """Tiles that one of the workers computes at once."""
        worker = self.workers[address]
        return min(worker.gpus, worker.threads) if self.on_gpu else worker.threads

    @property
    def size(self) -> int:
        """Tiles that all of them compute at once."""
        return sum(map(self.slots, self.workers))

    @property
    def window(self) -> int:
        """Tasks in flight at most; none without workers."""
        # Beside GPUs nothing is queued for a thread: once no tile is pending, the GPUs wait for one
        # tile of the slowest thread at worst, never for another queued behind it.
        beside_gpus = self.apart and not self.on_gpu
        tasks = self.size * (1 if beside_gpus else TASKS_PER_SLOT)
        return max(1, tasks) if self.workers else 0

    def restrictions(self) -> dict[str, Any]:
        """The arguments of `Client.submit` that keep a task to this crew."""
        if self.on_gpu:
            return {"resources": {"GPU": 1}}
        return {"workers": list(self.workers)} if self.apart else {}

    def can_run(self, workers: Mapping[str, Worker]) -> bool:
        """Whether one of the cluster's present workers may run a task submitted to this crew."""
        if self.on_gpu:
            return any(worker.gpus for worker in workers.values())
        return not self.apart or not self.workers.keys().isdisjoint(workers)


def find_workers(client: Client) -> dict[str, Worker]:
    """The cluster's workers by address."""
    return {
        address: Worker(
            threads=worker["nthreads"],
            gpus=int(worker["resources"].get("GPU", 0)),
            memory=worker["memory_limit"] or 0,
        )
        for address, worker in _worker_infos(client).items()
    }


def _worker_infos(client: Client) -> dict[str, Any]:
    """What the scheduler says of each worker of the cluster, by address."""
    info: dict[str, Any] = {}
    for _ in range(_ASKED):
        # Some releases of distributed list five workers unless asked for all.
        info = client.scheduler_info(n_workers=-1)
        # The client asks by itself every two seconds, for no worker, and may give that answer.
        if len(info["workers"]) >= info.get("n_workers", 0):
            break
    found: dict[str, Any] = info["workers"]
    return found


def form_crews(workers: Mapping[str, Worker], backend: Backend) -> list[Crew]:
    """The crews that compute with `backend`, GPU workers first.

    "auto" is "cupy" on GPU workers and "numba" on the others; "cupy" leaves the others idle;
    "numpy" and "numba" run on the threads of all. Where no worker declares a GPU, all are one crew
    that takes `backend` as it is: "cupy" too, for a worker may have a GPU without declaring it.
    """
    with_gpu = {address: worker for address, worker in workers.items() if worker.gpus}
    if not with_gpu or backend in ("numpy", "numba"):
        return [Crew(workers, backend)]
    crews = [Crew(with_gpu, "cupy", on_gpu=True, apart=True)]
    others = {address: worker for address, worker in workers.items() if not worker.gpus}
    if others and backend == "auto":
        crews.append(Crew(others, "numba", apart=True))
    return crews


class Roster:
    """The cluster's workers and crews as a run goes on, looked up at most once a second.

    A scheduler that does not answer for `wait` seconds, though its connection stands, is a
    TimeoutError.
    """

    def __init__(self, client: Client, backend: Backend, wait: float = WAIT_FOR_WORKERS) -> None:
        self.client, self.backend, self.wait = client, backend, wait
        self.workers: dict[str, Worker] = {}
        self.crews: list[Crew] = []
        self.asked = self.asked_paused = self.alive = -float("inf")
        self.paused_since: float | None = None
        self.seen_gpus = False

    def refresh(self) -> bool:
        """Look again if a second has passed; True if workers have come or gone."""
        now = time.monotonic()
        if now - self.asked <= _RECOUNT:
            return False
        self.asked = now
        # A list of threads is small; only when it has changed are all their details asked for.
        threads = self.client.nthreads(callback_timeout=max(self.wait, _RECOUNT))
        changed = not self.crews or threads.keys() != self.workers.keys()
        if changed:
            self.workers = find_workers(self.client)
            self._form_crews()
        if self.workers_now() or self.alive < 0:
            self.alive = now
        return changed

    def _form_crews(self) -> None:
        self.crews = form_crews(self.workers, self.backend)
        on_gpu = any(crew.on_gpu for crew in self.crews)
        self.seen_gpus = self.seen_gpus or on_gpu
        if self.backend == "cupy" and self.seen_gpus and not on_gpu:
            # Workers beside declared GPUs have none: wait for the GPUs to come back.
            self.crews = [Crew({}, "cupy", on_gpu=True, apart=True)]

    def workers_now(self) -> int:
        """Number of workers in all crews, as last seen."""
        return sum(len(crew.workers) for crew in self.crews)

    def seconds_without(self) -> float:
        """For how long there has been no worker to compute; 0 while there is one."""
        return 0.0 if self.workers_now() else time.monotonic() - self.alive

    def seconds_paused(self) -> float:
        """For how long all workers have been paused and computed nothing; 0 while one does.

        To be called again and again; looks at most once a second, and sees what workers have told
        the scheduler last.
        """
        now = time.monotonic()
        if now - self.asked_paused > _RECOUNT:
            self.asked_paused = now
            asleep = _all_paused(self.client)
            self.paused_since = (self.paused_since or now) if asleep else None
        return now - self.paused_since if self.paused_since else 0.0

    def nobody(self, wait: float) -> NoWorkersError:
        """The error to raise after so many seconds without a worker."""
        return _no_workers(self.client, wait, on_gpu=self.backend == "cupy" and self.seen_gpus)

    def asleep(self, wait: float) -> NoWorkersError:
        """The error to raise after so many seconds with all workers paused."""
        return _paused(self.client, wait)


def available_workers(
    client: Client | None, wait: float = WAIT_FOR_WORKERS, backend: Backend = "auto"
) -> Workers:
    """The workers that a run would have: the client's, or those of a cluster on this machine.

    A GPU counts as one thread. Raises NoWorkersError if no worker joins the client's cluster within
    `wait` seconds.
    """
    if client is None:
        return local_workers()
    wait_for_worker(client, wait)
    crews = form_crews(find_workers(client), backend)
    limits = [worker.memory for crew in crews for worker in crew.workers.values() if worker.memory]
    at_once = [crew.slots(address) for crew in crews for address in crew.workers]
    at_once = at_once or [1]  # the only worker may have left since
    return Workers(sum(at_once), min(limits, default=0), max(at_once))


def wait_for_worker(client: Client, wait: float = WAIT_FOR_WORKERS) -> None:
    """Return once the cluster has a worker; raise NoWorkersError after `wait` seconds without."""
    try:
        client.wait_for_workers(1, timeout=wait)
    except TimeoutError as error:
        if _all_paused(client):
            raise _paused(client, wait) from error
        raise _no_workers(client, wait) from error


def _all_paused(client: Client) -> bool:
    """Whether there are workers, all are paused, and none still computes what it had begun."""
    found = _worker_infos(client).values()
    return bool(found) and not any(
        worker["status"] != "paused" or worker["metrics"].get("task_counts", {}).get("executing")
        for worker in found
    )


def _paused(client: Client, wait: float) -> NoWorkersError:
    address = client.scheduler_info()["address"]
    return NoWorkersError(
        f"all workers of the cluster at {address} have been paused for {wait:g} s: Dask gives a "
        "worker nothing to do while its memory is nearly full"
    )


def _no_workers(client: Client, wait: float, on_gpu: bool = False) -> NoWorkersError:
    address = client.scheduler.address if client.scheduler else "an unknown address"
    what, how = ("GPU worker", " --resources GPU=1") if on_gpu else ("worker", "")
    return NoWorkersError(
        f"no {what} in the cluster at {address} for {wait:g} s: "
        f"start one, for example `dask worker {address}{how}`"
    )


# -- a cluster on this machine ---------------------------------------------------------------------


def local_workers() -> Workers:
    """One worker process a core, or fewer, to leave each half a GiB above its base."""
    count = max(1, min(CPU_COUNT, MEMORY_LIMIT // (BASE_BYTES + 512 * MIB)))
    return Workers(count, MEMORY_LIMIT // count)


@contextmanager
def local_client(n_tiles: int) -> Iterator[Client]:
    """A client of a cluster on this machine, with no more workers than tiles; closed on leaving.

    Raises RuntimeError where worker processes cannot start, for example because the main script
    would run again in each of them.
    """
    _refuse_inside_spawn()
    with ExitStack() as until_done:
        with _interrupt_later():
            cluster = until_done.enter_context(_local_cluster(n_tiles))
            client = until_done.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Hold Ctrl-C back: a cluster that is interrupted while it starts cannot be closed.

    Threads and processes that are started inside never get it, so a terminal's Ctrl-C reaches this
    process alone, and workers have nothing to say of it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which lets Ctrl-C through where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _local_cluster(n_tiles: int) -> LocalCluster:
    workers = local_workers()
    try:
        with dask.config.set(_RARE_LOOKS):
            return LocalCluster(
                n_workers=min(workers.count, n_tiles),
                threads_per_worker=1,
                processes=True,
                memory_limit=workers.memory,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                # What fails is told once, in the error at the end, not by every worker and try.
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
