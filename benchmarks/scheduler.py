"""What a run costs the scheduler and its driver: many tiles that take no time at all.

The window is `compute.fill`'s own, and so is every task on the wire; only the worker processes are
told to compute nothing. Scheduler, workers and driver are processes of their own, so that each
one's memory and processor time is its own.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client

from benchmarks.report import Target, table
from rntk_dist import tile_task
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import Tile
from rntk_dist.progress import Progress
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Location
from rntk_dist.tile_task import TileRecord

WORKERS = 2
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BLOCKS = 447
"""As many blocks of one sequence a side: 100 128 tiles."""

_NO_PROFILE = {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
"""Dask's sampling profiler keeps stacks by the hour, not by the tile, until it has enough."""

_COSTS = ("scheduler, us a tile", "driver, us a tile")

QUICK = 40


@dataclass(frozen=True)
class Sample:
    """One moment of the run: the scheduler's RSS in bytes and how many tasks it knows.

    `scheduler` and `driver` are seconds of processor time of the two processes so far.
    """

    tiles: int
    rss: int
    tasks: int
    scheduler: float
    driver: float
    wall: float


@dataclass(frozen=True)
class Found:
    """What was seen of the scheduler from the start of a run to its end."""

    tiles: int
    samples: tuple[Sample, ...]

    @property
    def growth(self) -> float:
        """Bytes a tile that the scheduler has grown by since a quarter of the tiles was done."""
        before, after = self.samples[1], self.samples[-1]
        return (after.rss - before.rss) / (after.tiles - before.tiles)


@dataclass(frozen=True)
class _Unwritten(GramStore):
    """A store whose tiles count as missing, and then as stored, though nobody writes any."""

    def missing_tiles(self) -> list[Tile]:
        return list(self.plan.tiles())

    def stored_tiles(self) -> frozenset[Tile]:
        return frozenset(self.plan.tiles())

    def finish(self) -> None:
        return None


@dataclass
class _Sampler:
    """An `on_progress` that looks at the scheduler when a share of the tiles is done."""

    client: Client
    process: psutil.Process
    samples: list[Sample] = field(default_factory=list)

    def look(self, tiles: int) -> None:
        tasks = self.client.run_on_scheduler(_n_tasks)
        its, own = self.process.cpu_times(), os.times()
        spent = its.user + its.system, own.user + own.system
        rss = self.process.memory_info().rss
        self.samples.append(Sample(tiles, rss, tasks, *spent, time.perf_counter()))

    def __call__(self, now: Progress) -> None:
        if now.tiles >= SHARES[min(len(self.samples), len(SHARES) - 1)] * now.tiles_total:
            self.look(now.tiles)


def measure_scheduler(blocks: int = BLOCKS) -> Found:
    """Run as many no-op tiles as a symmetric matrix of so many blocks has."""
    with tempfile.TemporaryDirectory() as folder, _cluster(Path(folder)) as client:
        X = Sequences.from_arrays(np.ones((blocks, 1)))
        made = ensure_store(RNTK(), X, None, store=Path(folder) / "gram", tile=1, client=client)
        store = _Unwritten(made.location, made.manifest, made.group, made.array)
        client.run(do_nothing)
        sampler = _Sampler(client, psutil.Process(client.run_on_scheduler(os.getpid)))
        sampler.look(0)
        fill(store, client, backend="numpy", on_progress=sampler)
        return Found(store.plan.n_tiles, tuple(sampler.samples))


def scheduler_table(found: Found) -> str:
    """A row for each sample, and what a tile has cost since the one before."""
    heads = ("tiles done", "scheduler RSS, MiB", "tasks it knows", "tiles/s", *_COSTS)
    first = found.samples[0]
    rows = [(0, f"{first.rss / 2**20:.1f}", first.tasks, "", "", "")]
    for before, now in pairwise(found.samples):
        n = now.tiles - before.tiles
        costs = (now.scheduler - before.scheduler, now.driver - before.driver)
        rate = f"{n / (now.wall - before.wall):.0f}"
        micros = (f"{spent / n * 1e6:.0f}" for spent in costs)
        rows.append((now.tiles, f"{now.rss / 2**20:.1f}", now.tasks, rate, *micros))
    return table(heads, rows, left=0)


def scheduler_targets(found: Found) -> list[Target]:
    """Flat is: no tasks but those in flight, and what Dask keeps to a bounded length.

    Its logs are full after a quarter of a whole run; its cache of the names of the last 100 000
    tasks grows by some 400 bytes a tile until then.
    """
    tasks = max(sample.tasks for sample in found.samples)
    return [
        Target("scheduler's growth, last 3/4 of the tiles", 1024, found.growth, unit="B/tile"),
        Target("tasks that the scheduler knows", 4 * WORKERS, tasks, unit="tasks"),
    ]


# -- the processes ---------------------------------------------------------------------------------


def do_nothing() -> None:
    """Have this worker process compute no tile. Runs on workers."""
    tile_task.compute_tile = _nothing


def _nothing(
    location: Location, tile: Tile, backend: Any, identity: str | None = None, attempt: int = 1
) -> TileRecord:
    return TileRecord(tile, 0.0, 0, 0, "", os.getpid(), backend)


def _n_tasks(dask_scheduler: Any = None) -> int:
    return len(dask_scheduler.tasks)


@contextmanager
def _cluster(folder: Path) -> Iterator[Client]:
    """A scheduler and its workers, each a process of its own."""
    file, local = folder / "scheduler.json", ("--no-dashboard", "--host=127.0.0.1")
    with ExitStack() as stack:
        stack.enter_context(_process("scheduler", f"--scheduler-file={file}", "--port=0", *local))
        _await(file)
        for _ in range(WORKERS):
            options = (f"--scheduler-file={file}", "--no-nanny", "--nthreads=1", *local)
            stack.enter_context(_process("worker", *options))
        client = stack.enter_context(Client(scheduler_file=str(file), set_as_default=False))
        client.wait_for_workers(WORKERS, timeout=60)
        yield client


@contextmanager
def _process(what: str, *options: str) -> Iterator[None]:
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{what}", *options],
        env={**os.environ, "PYTHONPATH": root, **_NO_PROFILE},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _await(file: Path) -> None:
    """Raises TimeoutError after a minute."""
    deadline = time.monotonic() + 60
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file} was not written: the scheduler has not started")
        time.sleep(0.05)
