"""rd.gram on two worker processes of this machine against the loops alone, and how its cost grows.

*Pure kernel time* is that of the loops over pairs and steps alone: those of one tile of the same
plan, off the diagonal, in one process on one core, times the pair-steps of the matrix over those of
the tile. It has no sequences to read, no variances, no scales, no values to write and no Dask. The
tile is measured before and after the run, and the shorter time counts.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster

import rntk_dist as rd
from benchmarks.report import Target, table
from benchmarks.timing import Call, best_in_turns, one_core, seconds
from rntk_dist.creation import ensure_store
from rntk_dist.kernel.fused_cpu import fused_tile_values
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.kernel.variances import Slab, make_slab
from rntk_dist.plan import Samples, Tile, Work, pair_steps, total_pair_steps
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore
from rntk_dist.tile_task import compute_tile

WORKERS = 2
KERNEL = RNTK()
DTYPE: Any = "float32"
BACKEND: Any = "numba"


@dataclass(frozen=True)
class Sizes:
    """Sequences and steps of the headline, and what is varied around it."""

    sequences: int = 20_000
    steps: int = 128
    more_sequences: tuple[int, ...] = (2000, 5000, 10_000, 20_000)
    more_steps: tuple[int, ...] = (64, 128, 256)
    steps_at: int = 10_000
    """Sequences while the steps are varied."""


QUICK = Sizes(4000, 64, (2000, 4000), (32, 64), 2000)


@dataclass(frozen=True)
class Run:
    """One Gram matrix: seconds of wall time, those of processor time in all workers together.

    `others` is the number of cores that other programs kept busy meanwhile.
    """

    sequences: int
    steps: int
    pair_steps: int
    tile: int
    tasks: int
    wall: float
    processor: float
    others: float

    @property
    def wall_per_step(self) -> float:
        """ns of a core for a pair-step, all workers taken as busy throughout."""
        return WORKERS * self.wall / self.pair_steps * 1e9

    @property
    def processor_per_step(self) -> float:
        """ns of a core for a pair-step, as the workers really used it."""
        return self.processor / self.pair_steps * 1e9


@dataclass(frozen=True)
class Found:
    """What a run of this module measured; seconds and bytes."""

    start: float
    first: Run
    second: Run
    kernel: float
    kernel_in_both: float
    peak: int
    parts: dict[str, float]
    by_sequences: list[Run]
    by_steps: list[Run]


def measure_end_to_end(sizes: Sizes) -> Found:
    """Everything of this module, in a temporary folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with _client() as client:
            start = time.perf_counter() - began
            return _measure(sizes, client, start, Path(folder))


def _measure(sizes: Sizes, client: Client, start: float, folder: Path) -> Found:
    X = sequences(sizes.sequences, sizes.steps)
    with _empty_store(X, folder, client) as store:
        before = kernel_seconds(store)
    with _gram(X, folder, client) as (first, _):
        pass
    with _gram(X, folder, client) as (second, store):
        peak = max(client.run(peak_bytes).values())
        kernel = min(before, kernel_seconds(store))
        both = max(client.run(kernel_seconds, store, pin=False).values())
        parts = parts_of_a_task(store)
    known = {(second.sequences, second.steps): second}
    by_sequences = [_best(n, sizes.steps, folder, client, known) for n in sizes.more_sequences]
    by_steps = [_best(sizes.steps_at, T, folder, client, known) for T in sizes.more_steps]
    return Found(start, first, second, kernel, both, peak, parts, by_sequences, by_steps)


def sequences(n: int, steps: int) -> Sequences:
    """Gaussian, one feature, equal lengths."""
    rng = np.random.default_rng(0)
    return Sequences.from_arrays(rng.normal(size=(n, steps)).astype(np.float32))


@contextmanager
def _client() -> Iterator[Client]:
    """Two worker processes of one thread, as rd.gram starts them itself on two cores."""
    with (
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            memory_limit="2GiB",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _empty_store(X: Sequences, folder: Path, client: Client) -> Iterator[str]:
    """The location of a store without tiles; removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = str(Path(place) / "gram")
        ensure_store(KERNEL, X, None, store=path, dtype=DTYPE, backend=BACKEND, client=client)
        yield path


@contextmanager
def _gram(X: Sequences, folder: Path, client: Client) -> Iterator[tuple[Run, str]]:
    """rd.gram into a new store, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = str(Path(place) / "gram")
        workers, here, machine = _in_workers(client), time.process_time(), _busy()
        wall = seconds(
            lambda: rd.gram(
                KERNEL, X, store=path, client=client, dtype=DTYPE, backend=BACKEND, progress=False
            )
        )
        workers = _in_workers(client) - workers
        others = _busy() - machine - workers - (time.process_time() - here)
        yield _run(GramStore.open(path), wall, workers, max(0.0, others / wall)), path


def _in_workers(client: Client) -> float:
    """Seconds of processor time that all workers have used."""
    return sum(client.run(time.process_time).values())


def _busy() -> float:
    """Seconds of processor time that all programs of this machine have used."""
    used = psutil.cpu_times()
    return used.user + used.system


def _best(
    n: int, steps: int, folder: Path, client: Client, known: dict[tuple[int, int], Run]
) -> Run:
    """The better of a few runs, the large ones once."""
    if (n, steps) not in known:
        X, runs = sequences(n, steps), []
        for _ in range(3 if n <= 5000 else 1):
            with _gram(X, folder, client) as (run, _):
                runs.append(run)
        known[n, steps] = min(runs, key=lambda run: run.wall)
    return known[n, steps]


def _run(store: GramStore, wall: float, processor: float, others: float) -> Run:
    samples, plan = store.samples(), store.plan
    n, steps = plan.n_rows, int(samples.row_lengths[0])
    work = total_pair_steps(_work(), samples)
    return Run(n, steps, work, plan.tile, plan.n_tiles, wall, processor, others)


def _work() -> Work:
    return Work.of(KERNEL.to_dict())


# -- one tile --------------------------------------------------------------------------------------


def kernel_seconds(location: str, pin: bool = True) -> float:
    """Pure kernel time of the whole matrix on one core, from one of its tiles."""
    store = GramStore.open(location)
    tile, samples = _whole_tile(store), store.samples()
    loops = _loops(*(_slab(side) for side in _sides(store, tile)))
    loops()  # compiles
    if pin:
        with one_core():
            spent = best_in_turns({"loops": loops}, repeats=5)["loops"]
    else:
        spent = best_in_turns({"loops": loops}, repeats=5)["loops"]
    return spent * total_pair_steps(_work(), samples) / _tile_steps(store, tile, samples)


def parts_of_a_task(location: str) -> dict[str, float]:
    """Seconds of what a task does, on one core, and of the whole task."""
    store = GramStore.open(location, writable=True)
    tile = _whole_tile(store)
    sides = _sides(store, tile)
    slabs = tuple(_slab(side) for side in sides)
    block = store.read_tile(tile)
    calls: dict[str, Call] = {
        "open the store": lambda: GramStore.open(location, writable=True),
        "read two slabs": lambda: _sides(store, tile),
        "variances and features of two slabs": lambda: [make_slab(KERNEL, side) for side in sides],
        "loops": _loops(*slabs),
        "write the tile": lambda: store.write_tile(tile, block),
        "the whole task": lambda: compute_tile(location, tile, BACKEND),
    }
    with one_core():
        times = best_in_turns(calls, repeats=5)
    whole = times.pop("the whole task")
    return {**times, "what else": whole - sum(times.values()), "the whole task": whole}


def _whole_tile(store: GramStore) -> Tile:
    """Off the diagonal and, where there is one, not at the ragged edge."""
    return Tile(0, min(1, store.plan.grid[1] - 1))


def _sides(store: GramStore, tile: Tile) -> tuple[Sequences, Sequences]:
    return store.row_slab(tile), store.col_slab(tile)


def _slab(side: Sequences) -> Slab:
    return make_slab(KERNEL, side).transfer(lambda array: array.astype(DTYPE))


def _loops(rows: Slab, columns: Slab) -> Call:
    recursion = KERNEL.recursion("ntk")
    return lambda: fused_tile_values(recursion, rows, columns)


def _tile_steps(store: GramStore, tile: Tile, samples: Samples) -> int:
    if not store.plan.is_diagonal(tile):
        return pair_steps(store.plan, _work(), samples, tile)
    # The whole square is computed, as if the two sides were different.
    return sum(map(int, samples.row_lengths)) * len(samples.row_lengths)


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says is inherited from the process that started this one
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(found["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- tables ----------------------------------------------------------------------------------------


def summary_table(found: Found) -> str:
    """The headline run in seconds, beside the pure kernel time."""
    half = found.kernel / WORKERS
    rows = {
        "pure kernel time / 2": half,
        "the same, loops running in both workers at once": found.kernel_in_both / WORKERS,
        "rd.gram, first call on new workers, which load Numba": found.first.wall,
        "rd.gram, again into another store": found.second.wall,
        "  of it processor time of a worker": found.second.processor / WORKERS,
        "starting the two workers, not in the above": found.start,
    }
    lines = [(what, f"{spent:.2f}", f"{spent / half:.2f}") for what, spent in rows.items()]
    busy = f"{found.first.others:.1f} and {found.second.others:.1f}"
    words = f"Other programs kept {busy} of {os.cpu_count()} cores busy during the two calls."
    heads = (_described(found.second), "seconds", "ratio")
    return f"{table(heads, lines, left=1)}\n\n{words}"


def _described(run: Run) -> str:
    return f"N = {run.sequences}, T = {run.steps}, {run.tasks} tiles of {run.tile}"


def parts_table(found: Found) -> str:
    """Where the time of one tile's task goes."""
    whole = found.parts["the whole task"]
    lines = [
        (what, f"{spent * 1e3:.1f}", f"{spent / whole:.1%}") for what, spent in found.parts.items()
    ]
    return table((f"one task of tile {found.second.tile}", "ms", "share"), lines, left=1)


def scaling_table(found: Found) -> str:
    """Cost against N and T: ns of a core for a pair-step, beside that of the largest matrix."""
    lines = [_scaling_row(run, last) for runs, last in _series(found) for run in runs]
    heads = (
        "N",
        "T",
        "tiles",
        "wall, s",
        "2 wall, ns",
        "ratio",
        "processor, ns",
        "ratio",
        "others",
    )
    return table(heads, lines, left=0)


def _scaling_row(run: Run, last: Run) -> tuple[str, ...]:
    return (
        f"{run.sequences}",
        f"{run.steps}",
        f"{run.tasks}",
        f"{run.wall:.2f}",
        f"{run.wall_per_step:.3f}",
        f"{run.wall_per_step / last.wall_per_step:.2f}",
        f"{run.processor_per_step:.3f}",
        f"{run.processor_per_step / last.processor_per_step:.2f}",
        f"{run.others:.1f}",
    )


def _series(found: Found) -> list[tuple[list[Run], Run]]:
    """Each row of runs with the largest matrix of all, whose cost is 1."""
    largest = found.by_sequences[-1]
    return [(found.by_sequences, largest), (found.by_steps, largest)]


def end_to_end_targets(found: Found) -> list[Target]:
    """The targets of whole matrices."""
    half, run = found.kernel / WORKERS, found.second
    name = f"rd.gram, N = {run.sequences}, T = {run.steps}"
    walls, processor = (_worst(found, figure) for figure in ("wall_per_step", "processor_per_step"))
    used = run.processor / WORKERS
    return [
        Target(f"{name}, wall against kernel / 2, new workers", 1.35, found.first.wall / half),
        Target(f"{name}, wall against kernel / 2, warm workers", 1.35, run.wall / half),
        Target(f"{name}, processor time against kernel / 2", 1.35, used / half),
        Target(f"{name}, peak memory of a worker", 1.0, found.peak / 2**30, unit="GiB"),
        Target("furthest cost from N^2 T, wall", 10, 100 * walls, unit="%"),
        Target("furthest cost from N^2 T, processor time", 10, 100 * processor, unit="%"),
    ]


def _worst(found: Found, figure: str) -> float:
    return max(
        abs(getattr(run, figure) / getattr(last, figure) - 1)
        for runs, last in _series(found)
        for run in runs
    )
