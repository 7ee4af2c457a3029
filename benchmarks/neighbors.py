"""Nearest neighbours of item sequences against the fused loops alone, and the recommendation case.

`python -m benchmarks --only neighbors` takes the default size; `python -m benchmarks.neighbors`
takes the whole case, 22 363 x 131 413 sequences, killed once and resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rntk_dist as rd
from benchmarks.report import Target, table
from benchmarks.timing import best_in_turns, one_core
from rntk_dist.creation import samples_of
from rntk_dist.kernel.fused_cpu import fused_tile_values
from rntk_dist.kernel.rntk import prepared
from rntk_dist.kernel.variances import Slab
from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.plan import Work, total_pair_steps

K = 10
KERNEL = rd.RNTK(readout="per_step", normalize=True)


@dataclass(frozen=True)
class Sizes:
    """Sequences of each side, and of the part that is compared with a brute-force matrix."""

    queries: int = 4096
    training: int = 40_000
    crop: tuple[int, int] = (500, 2000)
    repeats: int = 3


QUICK = Sizes(512, 4000, (100, 500), 2)
WHOLE = Sizes(22_363, 131_413, (2000, 5000))

N_ITEMS, LONGEST = 12_101, 50


@dataclass(frozen=True)
class Found:
    """Processor nanoseconds a pair-step, and of the whole calls seconds and peak bytes."""

    sizes: Sizes
    pair_steps: int
    loops: float
    search: float
    seconds: float
    peak: int


def drawn(n: int, seed: int) -> rd.Sequences:
    """Synthetic histories: lengths 2 to 50, mean 9, most under 20; items by Zipf's law."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(1 + rng.geometric(1 / 8, n), LONGEST)
    shares = 1 / np.arange(1, N_ITEMS + 1)
    ids = rng.choice(N_ITEMS, lengths.sum(), p=shares / shares.sum())
    return rd.Sequences.from_items(np.split(ids, np.cumsum(lengths)[:-1]), N_ITEMS)


def measure_neighbors(sizes: Sizes) -> Found:
    """On one core of this process, float32; the whole call alone in a process of its own."""
    queries, training = drawn(sizes.queries, 0), drawn(sizes.training, 1)
    steps = pair_steps(queries, training)
    check_crop(queries, training, sizes.crop)
    part = training[:2048]  # values of a block that is no larger than tiles usually are
    rows, columns = slab(queries), slab(part)

    def loops() -> None:
        fused_tile_values(KERNEL.recursion("ntk"), rows, columns)

    def search() -> None:
        find(queries, training, threads=1)

    with one_core():
        loops()
        calls = {"loops": loops, "search": search}
        best = best_in_turns(calls, repeats=sizes.repeats, clock=time.thread_time)
    seconds, peak = in_own_process(sizes)
    return Found(
        sizes,
        steps,
        best["loops"] / pair_steps(queries, part) * 1e9,
        best["search"] / steps * 1e9,
        seconds,
        peak,
    )


def neighbors_table(found: Found) -> str:
    """A row for the loops, and one for the search around them."""
    ratio = found.search / found.loops
    rows = [
        ("the fused loops alone", f"{found.loops:.2f}", "1"),
        (f"rd.neighbors, k = {K}, one thread", f"{found.search:.2f}", f"{ratio:.2f}"),
    ]
    text = table(("processor time", "ns a pair-step", "ratio"), rows, left=1)
    megabytes = found.peak / 2**20
    return (
        f"{text}\n\nThe whole call, {found.pair_steps:.3g} pair-steps, in a process of its own: "
        f"{found.seconds:.1f} s, at most {megabytes:.0f} MiB; the matrix would take "
        f"{4 * found.sizes.queries * found.sizes.training / 2**20:.0f} MiB."
    )


def neighbors_targets(found: Found) -> list[Target]:
    """Against the loops, and in memory."""
    return [
        Target("rd.neighbors, time a pair-step against the loops", 1.5, found.search / found.loops),
        Target("rd.neighbors, peak memory", 2.0, found.peak / 2**30, unit="GiB"),
    ]


# -- what is measured ------------------------------------------------------------------------------


def find(queries: rd.Sequences, training: rd.Sequences, **options: Any) -> rd.Neighbors:
    """The search that all figures are of."""
    given = {"dtype": "float32", "backend": "numba", "progress": False, **options}
    return rd.neighbors(KERNEL, queries, training, K, **given)


def slab(sequences: rd.Sequences) -> Slab:
    """Sequences as the loops take them, longest first."""
    made = prepared([KERNEL], sequences, "ntk", with_self=False)[0].slab
    return made.take(made.longest_first()).transfer(lambda array: array.astype(np.float32))


def pair_steps(queries: rd.Sequences, training: rd.Sequences) -> int:
    """Steps of all pairs."""
    return total_pair_steps(Work.of(KERNEL.to_dict()), samples_of(queries, training))


def check_crop(queries: rd.Sequences, training: rd.Sequences, crop: tuple[int, int]) -> None:
    """Refuse to measure what is not equal to a brute-force matrix."""
    X, Y = queries[: crop[0]], training[: crop[1]]
    values = KERNEL(X, Y, dtype="float32", backend="numba")
    index = np.broadcast_to(np.arange(len(Y)), values.shape)
    expected = np.lexsort((index, -values), axis=1)[:, :K]
    if not np.array_equal(find(X, Y).indices, expected):
        raise AssertionError("neighbours are not those of the matrix: measure nothing")


# -- whole calls, each in a process of its own -----------------------------------------------------


def in_own_process(sizes: Sizes) -> tuple[float, int]:
    """Seconds of one call, and the peak memory of its process in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        process = _started(sizes, Path(folder) / "found")
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the search ended with {process.returncode}")
    facts = json.loads(output)
    return facts["seconds"], facts["peak"]


def killed_and_resumed(sizes: Sizes, folder: Path, tile: int | None) -> dict[str, Any]:
    """Both runs' figures: the first is killed as soon as half of the blocks are stored."""
    store, started = folder / "found", time.monotonic()
    first = _started(sizes, store, tile)
    while first.poll() is None and not _is_half(store):
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    until_killed, opened = time.monotonic() - started, NeighborStore.open(store)
    kept = opened.stored_tiles()
    second = _started(sizes, store, tile)
    output, _ = second.communicate()
    if second.returncode:
        raise RuntimeError(f"the resumed search ended with {second.returncode}")
    steps = {tile: record.pair_steps for tile, record in opened.records().items()}
    resumed, left = json.loads(output), sum(n for tile, n in steps.items() if tile not in kept)
    return {
        "pair-steps": sum(steps.values()),
        "blocks kept": f"{len(kept)} of {opened.plan.n_tiles}",
        "seconds until killed": round(until_killed, 1),
        "resumed": resumed,
        "pair-steps resumed": left,
        "processor ns a pair-step resumed": round(resumed["processor"] / left * 1e9, 3),
    }


def _is_half(store: Path) -> bool:
    try:
        opened = NeighborStore.open(store)
    except (FileNotFoundError, ValueError):
        return False
    return 2 * len(opened.stored_tiles()) >= opened.plan.n_tiles


def _started(sizes: Sizes, store: Path, tile: int | None = None) -> subprocess.Popen[str]:
    size = [str(sizes.queries), str(sizes.training)]
    command = [sys.executable, "-m", "benchmarks.neighbors", "--search", *size, str(store)]
    if tile is not None:
        command += ["--tile", str(tile)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _search(queries: int, training: int, store: str, tile: int | None) -> None:
    """One call on one thread, in this process; its figures as JSON."""
    X, Y = drawn(queries, 0), drawn(training, 1)
    started, before = time.monotonic(), time.process_time()
    find(X, Y, store=store, tile=tile, threads=1)
    facts = {
        "seconds": round(time.monotonic() - started, 2),
        "processor": round(time.process_time() - before, 2),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(facts))


def _main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.neighbors", description=__doc__)
    parser.add_argument("--search", nargs=3, metavar=("QUERIES", "TRAINING", "STORE"))
    parser.add_argument("--tile", type=int)
    parser.add_argument("--queries", type=int, default=WHOLE.queries)
    parser.add_argument("--training", type=int, default=WHOLE.training)
    options = parser.parse_args()
    if options.search:
        queries, training, store = options.search
        _search(int(queries), int(training), store, options.tile)
        return
    sizes = Sizes(options.queries, options.training)
    with tempfile.TemporaryDirectory() as folder:
        figures = killed_and_resumed(sizes, Path(folder), options.tile)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    _main()
