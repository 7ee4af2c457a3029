"""CPU and GPU workers in one run: worker processes on this machine, with a stand-in for the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import client_of
from distributed import Client

from rntk_dist import compute
from rntk_dist.cluster import (
    NoWorkersError,
    Roster,
    Worker,
    available_workers,
    find_workers,
    form_crews,
)
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.failures import TileError
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.plan import MIB, Workers
from rntk_dist.progress import Progress
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore
from rntk_dist.tile_task import TileRecord

KERNEL = RNTK(sigma_w=1.3, sigma_b=0.1)
TILE = 4  # 30 sequences: 8 x 8 tiles, 36 of them stored

STAND_IN = """
import os, threading, time
from rntk_dist.kernel.rntk import RNTK

gpu = threading.Lock()
if not hasattr(RNTK, "real"):  # Dask runs this file more than once
    RNTK.real = RNTK.__call__

def stand_in(self, X, Y=None, *, backend, **options):
    if backend != "cupy":
        time.sleep(float(os.environ["CPU_SECONDS"]))
        return self.real(X, Y, backend=backend, **options)
    if not os.environ["GPUS"]:
        raise AssertionError("a worker without a GPU was told to compute on it")
    if not gpu.acquire(blocking=False):
        raise AssertionError("two tiles at once on one GPU")
    try:
        time.sleep(float(os.environ["GPU_SECONDS"]))
        return self.real(X, Y, backend="numpy", **options)
    finally:
        gpu.release()

RNTK.__call__ = stand_in
"""
"""Runs in a worker before any task: computes with NumPy, at the speed of whatever it was told."""


@dataclass
class Machines:
    """A scheduler on this machine, and worker processes that start and are killed one by one."""

    client: Client
    stand_in: Path
    running: dict[int, subprocess.Popen[bytes]]

    def start(
        self,
        *,
        threads: int = 1,
        gpus: int = 0,
        cpu_seconds: float = 0.05,
        gpu_seconds: float = 0.05,
        memory: int = 0,
    ) -> int:
        """Start a worker process without a nanny, so that killed is gone; returns its pid."""
        scheduler = self.client.scheduler_info()["address"]
        options = ["--no-nanny", "--no-dashboard", "--host=127.0.0.1", f"--nthreads={threads}"]
        options += [f"--preload={self.stand_in}", f"--memory-limit={memory}"]
        options += [f"--resources=GPU={gpus}"] if gpus else []
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(compute.__file__).parents[1]),
                "CPU_SECONDS": str(cpu_seconds),
                "GPU_SECONDS": str(gpu_seconds),
                "GPUS": "some" if gpus else "",
            },
        )
        self.running[process.pid] = process
        return process.pid

    def wait(self) -> None:
        self.client.wait_for_workers(len(self.running), timeout=60)

    def kill(self, pid: int) -> None:
        process = self.running.pop(pid)
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        for pid in list(self.running):
            self.kill(pid)


@contextmanager
def machines(stand_in: Path) -> Iterator[Machines]:
    with client_of(0) as client:
        started = Machines(client, stand_in, {})
        try:
            yield started
        finally:
            started.kill_all()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preload") / "stand_in.py"
    path.write_text(STAND_IN)
    return path


@pytest.fixture
def alone(stand_in: Path) -> Iterator[Machines]:
    with machines(stand_in) as started:
        yield started


@pytest.fixture(scope="module")
def mixed(stand_in: Path) -> Iterator[Machines]:
    """A CPU worker of one thread, and a GPU worker of two threads that is six times as fast."""
    with machines(stand_in) as started:
        started.start(cpu_seconds=0.3, memory=900 * MIB)
        started.start(threads=2, gpus=1, cpu_seconds=0.3, memory=1000 * MIB)
        started.wait()
        yield started


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(3)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 20, size=30)])


@pytest.fixture
def store(tmp_path: Path, X: Sequences) -> GramStore:
    return ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)


def tiles_by_pid(records: list[TileRecord]) -> Counter[int]:
    return Counter(record.pid for record in records)


def after(tiles: int, act: Callable[[], object]) -> Callable[[Progress], None]:
    """An `on_progress` that acts once, when so many tiles are stored."""
    left = [act]

    def watch(now: Progress) -> None:
        if left and now.tiles >= tiles:
            left.pop()()

    return watch


def assert_whole(store: GramStore, X: Sequences, records: list[TileRecord]) -> None:
    assert sorted(record.tile for record in records) == list(store.plan.tiles())
    K = KERNEL(X)
    for tile in store.plan.tiles():
        rows, cols = slice(*store.plan.rows(tile)), slice(*store.plan.cols(tile))
        np.testing.assert_allclose(store.read_tile(tile), K[rows, cols], rtol=1e-12)


# -- crews: plain values --------------------------------------------------------------------------

CPU, GPU = Worker(threads=4, memory=100), Worker(threads=2, gpus=1, memory=200)
PLAIN: dict[str, Worker] = {"a": CPU, "b": CPU}
MIXED: dict[str, Worker] = {"a": CPU, "g": GPU}


@pytest.mark.parametrize("backend", ["auto", "numpy", "numba", "cupy"])
def test_without_gpu_workers_all_are_one_unrestricted_crew(backend: Any) -> None:
    (crew,) = form_crews(PLAIN, backend)
    assert (crew.backend, crew.size, crew.window, crew.restrictions()) == (backend, 8, 16, {})
    assert crew.can_run({})


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_cpu_backend_ignores_the_resource(backend: Any) -> None:
    (crew,) = form_crews(MIXED, backend)
    assert (crew.backend, crew.size, crew.window, crew.restrictions()) == (backend, 6, 12, {})


def test_auto_makes_two_crews_of_a_mixed_cluster() -> None:
    on_gpu, on_cpu = form_crews(MIXED, "auto")
    assert (on_gpu.backend, on_gpu.size, on_gpu.window) == ("cupy", 1, 2)
    assert on_gpu.restrictions() == {"resources": {"GPU": 1}}
    assert (on_cpu.backend, on_cpu.size, on_cpu.window) == ("numba", 4, 4)
    assert on_cpu.restrictions() == {"workers": ["a"]}
    assert on_gpu.can_run({"other": GPU})
    assert not on_gpu.can_run(PLAIN)
    assert on_cpu.can_run(PLAIN)
    assert not on_cpu.can_run({"b": CPU, "g": GPU})


def test_cupy_leaves_cpu_workers_idle() -> None:
    (crew,) = form_crews(MIXED, "cupy")
    assert (crew.backend, list(crew.workers), crew.on_gpu) == ("cupy", ["g"], True)


def test_a_worker_of_four_gpus_runs_no_more_tiles_than_it_has_threads() -> None:
    (crew,) = form_crews({"g": Worker(threads=3, gpus=4)}, "auto")
    assert (crew.size, crew.window) == (3, 6)


# -- a mixed cluster ------------------------------------------------------------------------------


def test_a_gpu_counts_as_one_thread_in_the_plan(mixed: Machines) -> None:
    assert sorted(find_workers(mixed.client).values(), key=lambda worker: worker.gpus) == [
        Worker(threads=1, gpus=0, memory=900 * MIB),
        Worker(threads=2, gpus=1, memory=1000 * MIB),
    ]
    assert available_workers(mixed.client) == Workers(2, 900 * MIB, 1)
    assert available_workers(mixed.client, backend="cupy") == Workers(1, 1000 * MIB, 1)
    assert available_workers(mixed.client, backend="numpy") == Workers(3, 900 * MIB, 2)


def test_both_kinds_compute_and_the_faster_one_more(
    mixed: Machines, store: GramStore, X: Sequences
) -> None:
    on_cpu, on_gpu = mixed.running
    # Without retries a second tile at once on the GPU would fail the run: see STAND_IN.
    records = fill(store, mixed.client, retries=0)
    assert_whole(store, X, records)
    assert {(record.pid, record.backend) for record in records} == {
        (on_cpu, "numba"),
        (on_gpu, "cupy"),
    }
    tiles = tiles_by_pid(records)
    assert tiles[on_gpu] > 2 * tiles[on_cpu]


def test_no_more_is_in_flight_than_a_cpu_tile_and_two_gpu_tiles(
    mixed: Machines, store: GramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    futures: dict[bool, list[Any]] = {True: [], False: []}
    submit = mixed.client.submit

    def counted(*args: Any, **kwargs: Any) -> Any:
        on_gpu = "resources" in kwargs
        futures[on_gpu].append(submit(*args, **kwargs))
        seen.append((on_gpu, sum(future.status == "pending" for future in futures[on_gpu])))
        return futures[on_gpu][-1]

    monkeypatch.setattr(mixed.client, "submit", counted)
    fill(store, mixed.client)
    assert max(count for on_gpu, count in seen if on_gpu) == 2
    assert max(count for on_gpu, count in seen if not on_gpu) == 1


def test_numpy_uses_the_threads_of_all_workers(
    mixed: Machines, store: GramStore, X: Sequences
) -> None:
    records = fill(store, mixed.client, backend="numpy")
    assert_whole(store, X, records)
    assert {record.backend for record in records} == {"numpy"}
    assert set(tiles_by_pid(records)) == set(mixed.running)


def test_cupy_uses_the_gpu_workers_alone(mixed: Machines, store: GramStore, X: Sequences) -> None:
    records = fill(store, mixed.client, backend="cupy", retries=0)
    assert_whole(store, X, records)
    assert {record.backend for record in records} == {"cupy"}
    assert set(tiles_by_pid(records)) == {list(mixed.running)[1]}


# -- workers that come and go ---------------------------------------------------------------------


@pytest.mark.slow
def test_gpu_workers_complete_what_dead_cpu_workers_had(
    alone: Machines, store: GramStore, X: Sequences
) -> None:
    # So slow that their tiles are certain to be on their way when they die.
    slow = [alone.start(cpu_seconds=100.0) for _ in range(2)]
    on_gpu = alone.start(threads=2, gpus=1)
    alone.wait()
    records = fill(
        store, alone.client, on_progress=after(5, lambda: [alone.kill(pid) for pid in slow])
    )
    assert_whole(store, X, records)
    assert set(tiles_by_pid(records)) == {on_gpu}


@pytest.mark.slow
def test_cpu_workers_complete_what_dead_gpu_workers_had(
    alone: Machines, store: GramStore, X: Sequences
) -> None:
    on_cpu = alone.start()
    stuck = alone.start(threads=2, gpus=1, gpu_seconds=100.0)
    alone.wait()
    records = fill(store, alone.client, on_progress=after(5, lambda: alone.kill(stuck)))
    assert_whole(store, X, records)
    assert set(tiles_by_pid(records)) == {on_cpu}


@pytest.mark.slow
def test_workers_that_join_are_given_tiles(alone: Machines, store: GramStore, X: Sequences) -> None:
    on_cpu = alone.start(cpu_seconds=0.2)
    alone.wait()
    joined: list[int] = []

    def join() -> None:
        joined.extend([alone.start(threads=2, gpus=1), alone.start(cpu_seconds=0.2)])
        alone.wait()

    records = fill(store, alone.client, on_progress=after(3, join))
    assert_whole(store, X, records)
    assert set(tiles_by_pid(records)) == {on_cpu, *joined}
    assert {record.backend for record in records if record.pid == joined[0]} >= {"cupy"}
    assert all(record.backend != "cupy" for record in records if record.pid != joined[0])


@pytest.mark.slow
def test_cupy_waits_for_a_gpu_to_come_back_and_then_gives_up(
    alone: Machines, store: GramStore
) -> None:
    alone.start()
    on_gpu = alone.start(gpus=1)
    alone.wait()
    with pytest.raises(NoWorkersError, match=r"no GPU worker .* --resources GPU=1`; \d+ of 36"):
        fill(
            store,
            alone.client,
            backend="cupy",
            on_progress=after(5, lambda: alone.kill(on_gpu)),
            wait=1.5,
        )
    assert 5 <= len(store.stored_tiles()) < 36


@pytest.mark.slow
def test_a_tile_that_loses_its_workers_again_and_again_fails(
    alone: Machines, store: GramStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = alone.start()
    doomed = alone.start(gpus=1, gpu_seconds=100.0)
    alone.wait()
    monkeypatch.setattr(compute, "_MOST_STRANDED", 0)
    with pytest.raises(
        TileError, match="RuntimeError: all its workers died or went away, in each of 1 attempts"
    ) as error:
        fill(store, alone.client, on_progress=after(3, lambda: alone.kill(doomed)))
    assert len(error.value.failed) == 2
    assert len(store.stored_tiles()) == 34
    assert on_cpu in alone.running


def test_the_roster_follows_the_cluster(alone: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rntk_dist.cluster._RECOUNT", 0.0)
    roster = Roster(alone.client, "auto")
    assert roster.refresh()
    assert roster.workers_now() == 0
    pid = alone.start(gpus=1)
    alone.wait()
    assert roster.refresh()
    assert not roster.refresh()
    assert [crew.on_gpu for crew in roster.crews] == [True]
    assert roster.seconds_without() == 0.0
    alone.kill(pid)
    deadline = time.monotonic() + 30
    while not roster.refresh():
        assert time.monotonic() < deadline
    assert roster.seconds_without() > 0.0
