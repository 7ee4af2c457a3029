"""A sweep of many kernels against the same kernels one by one: the whole way into the store.

`python -m benchmarks.sweep [--kernels 48] [--sequences 800] [--steps 300]`; the kernels are spread
over the paper's grid.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import rntk_dist as rd
from benchmarks.timing import best_in_turns, seconds
from rntk_dist.kernel.many import many_values
from rntk_dist.sweep import grid

SIGMA_W = [1.34 + 0.01 * i for i in range(9)] + [math.sqrt(2)] + [1.43 + 0.01 * i for i in range(5)]
SIGMA_B = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1, 2]
SIGMA_H = [0, 0.01, 0.1, 0.5, 1]


@dataclass(frozen=True)
class Found:
    """Seconds a kernel.

    Of the processor, on one core: `alone` of `kernel(X)` in this process, `together` of the same
    kernels through `many_values`. Of the clock: `gram` of `rd.gram` into a store of its own, and
    `sweep` of `rd.sweep`, both with the same workers.
    """

    alone: float
    together: float
    gram: float
    sweep: float

    def lines(self) -> list[str]:
        return [
            f"| kernel(X), one core | {self.alone * 1e3:.1f} | 1 |",
            f"| side by side, one core | {self.together * 1e3:.1f} | "
            f"{self.together / self.alone:.2f} |",
            f"| rd.gram, one by one, 2 workers | {self.gram * 1e3:.1f} | "
            f"{self.gram / self.alone:.2f} |",
            f"| rd.sweep, 2 workers | {self.sweep * 1e3:.1f} | {self.sweep / self.alone:.2f} |",
            "",
            f"rd.sweep takes {self.sweep / self.gram:.2f} of rd.gram, one by one.",
        ]


def paper_kernels(count: int) -> list[rd.RNTK]:
    """So many kernels, evenly spread over the paper's 900."""
    options = {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B, "sigma_h": SIGMA_H}
    every = grid(rd.RNTK(initial_state="independent"), options)
    return [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]


def measure_sweep(
    kernels: Sequence[rd.RNTK], X: rd.Sequences, client: Client, singles: int
) -> Found:
    """Times of `singles` of the kernels one by one, and of all of them together."""
    with tempfile.TemporaryDirectory() as folder:
        few = [kernels[i] for i in np.linspace(0, len(kernels) - 1, singles).astype(int)]
        rd.sweep(few[:2], X, store=f"{folder}/warm", client=client, progress=False)
        kernels[-1](X)
        shutil.rmtree(f"{folder}/warm")
        cpu = best_in_turns(
            {
                "alone": lambda: [kernel(X, backend="numba") for kernel in few],
                "together": lambda: _together(few, X),
            },
            repeats=3,
            clock=time.thread_time,
        )
        gram = seconds(lambda: _grams(few, X, Path(folder), client))
        sweep = seconds(
            lambda: rd.sweep(kernels, X, store=f"{folder}/sweep", client=client, progress=False)
        )
    return Found(
        cpu["alone"] / singles, cpu["together"] / singles, gram / singles, sweep / len(kernels)
    )


def _together(kernels: Sequence[rd.RNTK], X: rd.Sequences) -> None:
    for _ in many_values(kernels, X, kind="ntk", dtype=np.dtype(np.float64), backend="numba"):
        pass


def _grams(kernels: Sequence[rd.RNTK], X: rd.Sequences, folder: Path, client: Client) -> None:
    for i, kernel in enumerate(kernels):
        rd.gram(kernel, X, store=folder / str(i), client=client, progress=False)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.sweep", description=__doc__)
    for name, default in (("kernels", 48), ("sequences", 800), ("steps", 300), ("singles", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    X = rd.Sequences.from_arrays(rng.standard_normal((given.sequences, given.steps)))
    with ExitStack() as until_done:
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
        until_done.enter_context(cluster)
        client = until_done.enter_context(Client(cluster, set_as_default=False))
        found = measure_sweep(paper_kernels(given.kernels), X, client, given.singles)
    print(f"{given.kernels} kernels, N = {given.sequences}, T = {given.steps}\n")
    print("| | ms a kernel | of kernel(X) |\n|---|---|---|")
    print("\n".join(found.lines()))


if __name__ == "__main__":
    main()
