"""A sweep of many kernels against the same kernels one by one: the whole way into the store.

`python -m benchmarks --only sweep`; the kernels are spread over the paper's grid of 900.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from distributed import Client, LocalCluster

import rntk_dist as rd
from benchmarks.report import Target, table
from benchmarks.timing import best_in_turns
from rntk_dist.kernel.many import many_values
from rntk_dist.sweep import grid

SIGMA_W = [1.34 + 0.01 * i for i in range(9)] + [math.sqrt(2)] + [1.43 + 0.01 * i for i in range(5)]
SIGMA_B = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1, 2]
SIGMA_H = [0, 0.01, 0.1, 0.5, 1]
WORKERS = 2


@dataclass(frozen=True)
class Sizes:
    """`kernels` in a sweep, `singles` of them one by one, over `sequences` of `steps` steps."""

    kernels: int = 64
    singles: int = 6
    sequences: int = 800
    steps: int = 300
    repeats: int = 3


QUICK = Sizes(8, 2, 100, 50, 2)


@dataclass(frozen=True)
class Spent:
    """Seconds a kernel: of the clock, and of the processor in all workers together."""

    wall: float
    processor: float


@dataclass(frozen=True)
class Found:
    """Seconds a kernel.

    `alone` is `kernel(X)` and `together` the same kernels through `many_values`, both in processor
    time on one core of this process. `gram` is `rd.gram` into a store of its own for each kernel,
    and `sweep` is `rd.sweep`, both with the same two workers; the best of several turns.
    """

    sizes: Sizes
    alone: float
    together: float
    gram: Spent
    sweep: Spent


def paper_kernels(count: int) -> list[rd.RNTK]:
    """So many kernels, evenly spread over the paper's 900."""
    options = {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B, "sigma_h": SIGMA_H}
    every = grid(rd.RNTK(initial_state="independent"), options)
    return [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]


def measure_sweep(sizes: Sizes | None = None) -> Found:
    """All four, in turns: a busy spell of the machine strikes each."""
    sizes = sizes or Sizes()
    rng = np.random.default_rng(0)
    X = rd.Sequences.from_arrays(rng.standard_normal((sizes.sequences, sizes.steps)))
    kernels = paper_kernels(sizes.kernels)
    few = [kernels[i] for i in np.linspace(0, len(kernels) - 1, sizes.singles).astype(int)]
    few[0](X[:8], backend="numba")  # which compiles
    cpu = best_in_turns(_in_this_process(few, X), repeats=sizes.repeats, clock=time.thread_time)
    with _client() as client, tempfile.TemporaryDirectory() as folder:
        stores = _Stores(Path(folder), X, client)
        stores.sweep(few[:2])  # which loads the loops in both workers
        gram, sweep = _best(sizes.repeats, lambda: stores.grams(few), lambda: stores.sweep(kernels))
    return Found(
        sizes,
        cpu["alone"] / len(few),
        cpu["together"] / len(few),
        Spent(gram.wall / len(few), gram.processor / len(few)),
        Spent(sweep.wall / len(kernels), sweep.processor / len(kernels)),
    )


def sweep_table(found: Found) -> str:
    """A row for each way to the matrices of many kernels."""

    def row(name: str, wall: float | None, processor: float) -> tuple[str, ...]:
        cells = (f"{wall * 1e3:.1f}", f"{wall / found.alone:.2f}") if wall else ("", "")
        return name, *cells, f"{processor * 1e3:.1f}", f"{processor / found.alone:.2f}"

    return table(
        ("ms a kernel", "wall", "ratio", "processor", "ratio"),
        [
            row("kernel(X), one core", None, found.alone),
            row("side by side, one core", None, found.together),
            row(f"rd.gram, one by one, {WORKERS} workers", found.gram.wall, found.gram.processor),
            row(f"rd.sweep, {WORKERS} workers", found.sweep.wall, found.sweep.processor),
        ],
        left=1,
    )


def sweep_targets(found: Found) -> list[Target]:
    """Of the sweep against `kernel(X)` on one core, and against `rd.gram` with as many workers."""
    sizes, sweep = found.sizes, found.sweep
    head = f"rd.sweep, N = {sizes.sequences}, T = {sizes.steps}"
    return [
        Target(f"{head}, wall a kernel against kernel(X)", 0.7, sweep.wall / found.alone),
        Target(f"{head}, wall a kernel against rd.gram", 0.7, sweep.wall / found.gram.wall),
    ]


# -- what is measured ------------------------------------------------------------------------------


def _in_this_process(
    kernels: Sequence[rd.RNTK], X: rd.Sequences
) -> dict[str, Callable[[], object]]:
    def alone() -> None:
        for kernel in kernels:
            kernel(X, backend="numba")

    def together() -> None:
        for _ in many_values(kernels, X, kind="ntk", dtype=np.dtype(np.float64), backend="numba"):
            pass

    return {"alone": alone, "together": together}


@dataclass(frozen=True)
class _Stores:
    """Computes into stores of its folder, and removes each."""

    folder: Path
    X: rd.Sequences
    client: Client

    def sweep(self, kernels: Sequence[rd.RNTK]) -> Spent:
        return self._spent(
            lambda: rd.sweep(
                kernels, self.X, store=self.folder / "s", client=self.client, progress=False
            )
        )

    def grams(self, kernels: Sequence[rd.RNTK]) -> Spent:
        def each() -> None:
            for i, kernel in enumerate(kernels):
                store = self.folder / str(i)
                rd.gram(kernel, self.X, store=store, client=self.client, progress=False)

        return self._spent(each)

    def _spent(self, call: Callable[[], object]) -> Spent:
        before, started = self._processor(), time.perf_counter()
        call()
        spent = Spent(time.perf_counter() - started, self._processor() - before)
        for path in self.folder.iterdir():
            shutil.rmtree(path)
        return spent

    def _processor(self) -> float:
        """Seconds of processor time of all workers so far."""
        return sum(self.client.run(_own_seconds).values())


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _best(repeats: int, *calls: Callable[[], Spent]) -> list[Spent]:
    """For each call the least wall and processor time of several turns."""
    turns = [[call() for call in calls] for _ in range(repeats)]
    return [
        Spent(min(spent.wall for spent in each), min(spent.processor for spent in each))
        for each in zip(*turns, strict=True)
    ]


@contextmanager
def _client() -> Iterator[Client]:
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
