"""Ridge regression on a few centres, beside the exact solver and a stored matrix; and its panels.

The task is the paper's synthetic one: of noisy sinusoids of random frequency and phase, predict the
next sample. Each fit runs in a process of its own, so that the peak memory is its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Target, table
from benchmarks.timing import peak_memory
from rntk_dist.computed import Computed
from rntk_dist.gram import gram
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.sequences import Sequences
from rntk_dist.solve.conjugate_gradients import Options
from rntk_dist.solve.falkon import Falkon, FalkonWay
from rntk_dist.solve.kernel_ridge import KernelRidge, Way
from rntk_dist.solve.panels import Panels, add_normal

MIB = 2**20
KERNEL = RNTK(readout="per_step", normalize=True)


@dataclass(frozen=True)
class Sizes:
    """Samples of the large fit, of the exact one and of the stored matrix, and of the test.

    `noise` is the standard deviation of what is added to sinusoids of amplitude 1.
    """

    falkon: int = 100_000
    centers: int = 2000
    exact: int = 10_000
    stored: int = 20_000
    test: int = 2000
    steps: int = 64
    noise: float = 0.3
    alpha: float = 0.1
    tol: float = 1e-4
    memory: int = 2**31


QUICK = Sizes(falkon=4000, centers=200, exact=1000, stored=2000, test=500, steps=32)


@dataclass(frozen=True)
class Found:
    """Of each fit its figures: seconds, peak, rmse and what else it has."""

    sizes: Sizes
    fits: dict[str, dict[str, Any]]
    panels: dict[str, Any]


def measure_low_rank(sizes: Sizes) -> Found:
    """Fit and measure, one after another."""
    fits = {
        "compute": _alone("falkon", sizes, sizes.falkon, "compute"),
        "store": _alone("falkon", sizes, sizes.falkon, "store"),
        "memory": _alone("falkon", sizes, sizes.falkon, "memory"),
        "falkon, exact": _alone("falkon", sizes, sizes.exact, "memory"),
        "exact": _alone("exact", sizes, sizes.exact),
        "falkon, stored": _alone("falkon", sizes, sizes.stored, "memory"),
        "stored": _alone("stored", sizes, sizes.stored),
    }
    return Found(sizes, fits, _alone("panels", sizes, sizes.falkon))


def sinusoids(n: int, steps: int, noise: float, seed: int) -> tuple[Sequences, np.ndarray]:
    """n sequences, and the next sample of each."""
    rng = np.random.default_rng(seed)
    turns, phases = rng.uniform(0.02, 0.1, (n, 1)), rng.uniform(0, 2 * np.pi, (n, 1))
    clean = np.sin(2 * np.pi * turns * np.arange(steps + 1) + phases)
    seen = clean + noise * rng.standard_normal(clean.shape)
    return Sequences.from_arrays(seen[:, :-1].astype(np.float32)), seen[:, -1]


# -- fits, each in a process of its own ------------------------------------------------------------


def _alone(what: str, sizes: Sizes, n: int, *more: str) -> dict[str, Any]:
    options = json.dumps(asdict(sizes))
    command = [sys.executable, "-m", "benchmarks.low_rank", what, options, str(n), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _samples(sizes: Sizes, n: int) -> tuple[Computed, np.ndarray]:
    X, y = sinusoids(n, sizes.steps, sizes.noise, seed=0)
    KERNEL(X[:64], X[:64], dtype="float32")  # compiles
    KERNEL(X[:64], dtype="float32")
    return Computed(KERNEL, X, dtype="float32"), y


def _rmse(sizes: Sizes, model: Any, training: Sequences) -> float:
    X, y = sinusoids(sizes.test, sizes.steps, sizes.noise, seed=1)
    found = model.predict(Computed(KERNEL, X, training, dtype="float32"))
    return float(np.sqrt(np.mean((found - y) ** 2)))


def _falkon(sizes: Sizes, n: int, panels: Any) -> dict[str, Any]:
    matrix, y = _samples(sizes, n)
    with tempfile.TemporaryDirectory() as folder:
        iteration = Options(tol=sizes.tol, every=1)
        way = FalkonWay(panels, sizes.memory, folder, iteration)
        started = time.perf_counter()
        model = Falkon(sizes.alpha, sizes.centers, way=way).fit(matrix, y)
        seconds = time.perf_counter() - started
    peak = peak_memory()
    rmse = _rmse(sizes, model, matrix.pairs.X[model.centers_])
    iterations = len(model.history_) - 1
    return {"seconds": seconds, "peak": peak, "rmse": rmse, "iterations": iterations}


def _exact(sizes: Sizes, n: int) -> dict[str, Any]:
    matrix, y = _samples(sizes, n)
    started = time.perf_counter()
    model = KernelRidge(sizes.alpha, way=Way("cholesky")).fit(matrix, y)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak": peak_memory(),
        "rmse": _rmse(sizes, model, matrix.pairs.X),
    }


def _stored(sizes: Sizes, n: int) -> dict[str, Any]:
    """The matrix by `rd.gram` on worker processes, and conjugate gradients that read it."""
    matrix, y = _samples(sizes, n)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "gram"
        started = time.perf_counter()
        made = gram(KERNEL, matrix.pairs.X, store=place, dtype="float32", progress=False)
        between = time.perf_counter()
        way = Way("cg", iteration=Options(tol=sizes.tol, rank=300))
        model = KernelRidge(sizes.alpha, way=way).fit(made, y)
        ended = time.perf_counter()
    return {
        "seconds": ended - started,
        "matrix": between - started,
        "peak": peak_memory(),
        "rmse": _rmse(sizes, model, matrix.pairs.X),
    }


def _panels(sizes: Sizes, n: int) -> dict[str, Any]:
    """Seconds of one panel of all, computed, written, read from the disk, and multiplied."""
    matrix, _ = _samples(sizes, n)
    centers = np.arange(0, n, n // sizes.centers)[: sizes.centers]
    with tempfile.TemporaryDirectory() as folder:
        walk = Panels(matrix, centers, "auto", 0, Path(folder) / "panels")
        choice = walk.choice
        rows, panel = next(iter(walk))
        V, out = np.ones((len(centers), 1)), np.zeros((len(centers), 1))
        started = time.perf_counter()
        add_normal(out, panel, V)
        multiplied = time.perf_counter() - started
    share = n / (rows.stop - rows.start)
    return {
        "computed anew": (choice.compute or 0.0) * share,
        "written to a folder": (choice.write or 0.0) * share,
        "read from the folder, not cached": (choice.read or 0.0) * share,
        "multiplied, both ways, one column": multiplied * share,
        "bytes": choice.nbytes,
        "way": choice.way,
    }


# -- the report ------------------------------------------------------------------------------------


def falkon_table(found: Found) -> str:
    """A row for each fit."""
    sizes, fits = found.sizes, found.fits
    matrix = f"of which the matrix {fits['stored']['matrix']:.0f} s"
    names = {
        "compute": f"Falkon, N = {sizes.falkon}, panels computed anew",
        "store": f"Falkon, N = {sizes.falkon}, panels in a folder",
        "memory": f"Falkon, N = {sizes.falkon}, panels in memory",
        "falkon, exact": f"Falkon, N = {sizes.exact}",
        "exact": f"exact, N = {sizes.exact}, Cholesky in memory",
        "falkon, stored": f"Falkon, N = {sizes.stored}",
        "stored": f"stored matrix and CG, N = {sizes.stored}, {matrix}",
    }
    heads = ("fit", "s", "iterations", "peak, MiB", "test RMSE")
    rows = [
        (
            name,
            f"{fits[key]['seconds']:.1f}",
            str(fits[key].get("iterations", "")),
            f"{fits[key]['peak'] / MIB:.0f}",
            f"{fits[key]['rmse']:.4f}",
        )
        for key, name in names.items()
    ]
    return table(heads, rows, left=1)


def panels_table(found: Found) -> str:
    """A row for each thing that is done with the columns of the centres."""
    size = found.panels["bytes"]
    rows = [
        (name, f"{seconds:.2f}", f"{size / seconds / 1e9:.2f}" if seconds else "")
        for name, seconds in found.panels.items()
        if name not in ("bytes", "way")
    ]
    chosen = f'"auto" takes "{found.panels["way"]}" where memory does not suffice.'
    return table(("all panels once", "s", "GB/s"), rows, left=1) + f"\n\n{chosen}"


def low_rank_targets(found: Found) -> list[Target]:
    """What is asked for of ridge regression on centres."""
    sizes, fits = found.sizes, found.fits
    peak = max(fits[way]["peak"] for way in ("compute", "store", "memory")) / 2**30
    worse = 100 * (fits["memory"]["rmse"] / fits["exact"]["rmse"] - 1)
    same = 100 * (fits["falkon, exact"]["rmse"] / fits["exact"]["rmse"] - 1)
    beside = fits["falkon, stored"]["seconds"] / fits["stored"]["seconds"]
    name = f"Falkon, N = {sizes.falkon}"
    return [
        Target(f"{name}, peak memory", 2.0, peak, unit="GiB"),
        Target(f"{name}, test error above the exact at {sizes.exact}", 1.0, worse, unit="%"),
        Target(f"Falkon, N = {sizes.exact}, test error above the exact", 1.0, same, unit="%"),
        Target(f"Falkon, N = {sizes.stored}, time against a stored matrix", 1.0, beside),
    ]


_FITS = {"falkon": _falkon, "exact": _exact, "stored": _stored, "panels": _panels}


if __name__ == "__main__":
    _, name, options, samples, *rest = sys.argv
    print(json.dumps(_FITS[name](Sizes(**json.loads(options)), int(samples), *rest)))
