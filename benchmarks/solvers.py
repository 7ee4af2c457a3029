"""Products with a stored matrix, and solvers past the size of memory: speed, and peak memory.

The matrices are Gaussian kernels of random points, stored through the package's own store: what is
measured is reading, multiplying and solving, and no recurrent kernel. Each solver runs in a process
of its own, so that the peak is its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from scipy.linalg import lapack

from benchmarks.report import Target, table
from benchmarks.timing import best_in_turns, peak_memory
from rntk_dist.gram import Gram, open_gram
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.manifest import Manifest
from rntk_dist.plan import Plan
from rntk_dist.sequences import Sequences
from rntk_dist.solve.conjugate_gradients import Options, solve_by_iteration
from rntk_dist.solve.factor import Factor
from rntk_dist.solve.gaussian_process import GaussianProcessRegressor
from rntk_dist.solve.svm import SVC
from rntk_dist.solve.systems import Systems
from rntk_dist.solve.trained_network import TrainedNetwork
from rntk_dist.store import GramStore

MIB = 2**20
DIMENSIONS = 4


@dataclass(frozen=True)
class Sizes:
    """Samples of products and conjugate gradients, of the factorisation, of what is held in memory.

    `memory` is the budget of the factorisation.
    """

    products: int = 20_000
    factor: int = 12_000
    held: int = 4000
    memory: int = 512 * MIB
    targets: int = 10
    tile: int = 1024
    alpha: float = 1.0
    tol: float = 1e-6
    rank: int = 300
    repeats: int = 5


QUICK = Sizes(
    products=3000, factor=2000, held=1000, memory=320 * MIB, tile=512, rank=100, repeats=3
)


@dataclass(frozen=True)
class Found:
    """Seconds and bytes of everything that was measured."""

    sizes: Sizes
    nbytes: int
    seconds: dict[str, float]
    factor: dict[str, float]
    lapack: dict[str, float]
    cg: dict[str, float]
    held: dict[str, dict[str, float]]


def measure_solvers(sizes: Sizes) -> Found:
    """Store the matrices, and measure on them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with _gaussian(place / "single", sizes.products, sizes.tile, 4) as store:
            nbytes, seconds = _products(store, sizes.repeats)
            cg = _alone("iterate", store.location, sizes)
        with _gaussian(place / "double", sizes.factor, sizes.tile, 8) as store:
            in_place = _alone("factorise", store.location, sizes)
            whole = _alone("in_memory", store.location, sizes)
        with _gaussian(place / "held", sizes.held, sizes.tile, 8) as store:
            held = {name: _alone(name, store.location, sizes) for name in HELD}
    return Found(sizes, nbytes, seconds, in_place, whole, cg, held)


# -- the matrices ----------------------------------------------------------------------------------


@contextmanager
def _gaussian(where: Path, n: int, tile: int, itemsize: int) -> Iterator[GramStore]:
    """exp(-|x - y|^2 / 2) of n points, whole on the disk; removed on leaving."""
    points = np.random.default_rng(0).normal(size=(n, DIMENSIONS))
    X = Sequences.from_arrays(points[:, :1])
    plan = Plan(n, n, tile, True, itemsize)
    store = GramStore.create(where, Manifest(RNTK().to_dict(), "ntk", plan, X.fingerprint), X)
    squares = (points**2).sum(axis=1)
    for each in plan.tiles():
        rows, cols = slice(*plan.rows(each)), slice(*plan.cols(each))
        distances = squares[rows, None] + squares[cols] - 2 * points[rows] @ points[cols].T
        store.write_tile(each, np.exp(-distances / 2).astype(store.manifest.dtype))
    try:
        yield store
    finally:
        store.discard(plan.tiles())


def _targets(n: int, count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, count))


# -- products --------------------------------------------------------------------------------------


def _products(store: GramStore, repeats: int) -> tuple[int, dict[str, float]]:
    """The bytes of the stored tiles, and seconds to read them with Zarr alone, and to multiply."""
    gram, plan = open_gram(store.location), store.plan
    array = zarr.open_array(str(store.location), path="gram", mode="r")
    tiles = list(plan.tiles())
    one, ten = _targets(plan.n_rows, 1), _targets(plan.n_rows, 10)

    def by_tile() -> None:
        for tile in tiles:
            array[slice(*plan.rows(tile)), slice(*plan.cols(tile))]

    def by_row() -> None:
        for block in range(plan.grid[0]):
            start, stop = plan.block_bounds(block, axis=0)
            array[start:stop, start:]

    calls: dict[str, Callable[[], object]] = {
        "plain Zarr, a tile at a time": by_tile,
        "plain Zarr, a row of tiles at a time": by_row,
        "gram @ v": lambda: gram @ one,
        "gram @ V, 10 columns": lambda: gram @ ten,
    }
    nbytes = sum(np.prod(plan.block_shape(tile)) for tile in tiles) * plan.itemsize
    return int(nbytes), best_in_turns(calls, repeats=repeats)


# -- solvers, each in a process of its own ---------------------------------------------------------


def _alone(what: str, location: object, sizes: Sizes) -> dict[str, float]:
    options = json.dumps(vars(sizes))
    command = [sys.executable, "-m", "benchmarks.solvers", what, str(location), options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _iterate(location: str, sizes: Sizes) -> dict[str, float]:
    gram = open_gram(location)
    y = _targets(len(gram), sizes.targets)
    systems = Systems(gram, y, np.full(sizes.targets, sizes.alpha))
    started = time.perf_counter()
    solution = solve_by_iteration(systems, Options(tol=sizes.tol, rank=sizes.rank))
    seconds = time.perf_counter() - started
    iterations = 0 if solution.history is None else len(solution.history) - 1
    residual = float(solution.residuals.max())
    return {
        "seconds": seconds,
        "iterations": iterations,
        "residual": residual,
        "peak": peak_memory(),
    }


def _factorise(location: str, sizes: Sizes) -> dict[str, float]:
    gram = open_gram(location)
    folder = Path(location) / "factor"
    started = time.perf_counter()
    factor = Factor.at(folder, gram, sizes.alpha, sizes.memory)
    factor.factorise(gram)
    seconds = time.perf_counter() - started
    peak = peak_memory()
    y = _targets(len(gram), sizes.targets)
    x = factor.solve(y)
    systems = Systems(gram, y, np.full(sizes.targets, sizes.alpha))
    residual = float(systems.relative(systems.residuals(x)).max())
    whole = max(peak, peak_memory())
    return {"seconds": seconds, "edge": factor.edge, "residual": residual, "peak": whole}


def _in_memory(location: str, sizes: Sizes) -> dict[str, float]:
    square = np.asarray(open_gram(location))
    np.fill_diagonal(square, square.diagonal() + sizes.alpha)
    started = time.perf_counter()
    _, failed = lapack.dpotrf(square.T, lower=0, clean=0, overwrite_a=1)
    assert not failed
    return {"seconds": time.perf_counter() - started, "peak": peak_memory()}


def _process(location: str, sizes: Sizes) -> dict[str, float]:
    gram = open_gram(location)
    process = GaussianProcessRegressor(sizes.alpha)

    def predict() -> None:
        new = _some_rows(gram)
        process.predict(new, return_std=True, diagonal=np.ones(len(new)))

    return _timed(lambda: process.fit(gram, _targets(len(gram), sizes.targets)), predict)


def _trained(location: str, sizes: Sizes) -> dict[str, float]:
    gram, times = open_gram(location), [0.1, 1.0, np.inf]
    network = TrainedNetwork(sizes.alpha)

    def predict() -> None:
        new = _some_rows(gram)
        network.predict(new, times, return_std=True, nngp=new, diagonal=np.ones(len(new)))

    y = _targets(len(gram), sizes.targets)
    return _timed(lambda: network.fit(gram, y, nngp=gram), predict)


def _svc(location: str, sizes: Sizes) -> dict[str, float]:
    gram = open_gram(location)
    machine = SVC(sizes.alpha)
    labels = gram.sequences.values[:, 0] > 0
    found = _timed(lambda: machine.fit(gram, labels), lambda: machine.predict(_some_rows(gram)))
    return found | {"support vectors": len(machine.support_)}


def _some_rows(gram: Gram) -> np.ndarray:
    """The kernel of up to 1000 samples, as if they were new ones."""
    rows: np.ndarray = gram[: min(1000, len(gram)), :]
    return rows


def _timed(fit: Callable[[], object], predict: Callable[[], object]) -> dict[str, float]:
    started = time.perf_counter()
    fit()
    between = time.perf_counter()
    predict()
    ended = time.perf_counter()
    return {"seconds": between - started, "predict": ended - between, "peak": peak_memory()}


# -- the report ------------------------------------------------------------------------------------


def products_table(found: Found) -> str:
    """A row for each way to read all tiles."""
    rows = [
        (name, f"{seconds:.2f}", f"{found.nbytes / seconds / 1e9:.2f}")
        for name, seconds in found.seconds.items()
    ]
    return table(("all tiles once", "s", "GB/s"), rows, left=1)


def solvers_table(found: Found) -> str:
    """A row for each solver."""
    heads = ("solver", "s", "peak, MiB", "relative residual")
    n, c = found.sizes.factor, found.sizes.products
    names = (
        (f"LAPACK's Cholesky, N = {n}, float64, in memory", found.lapack),
        (f"Cholesky on disk, panels of {found.factor['edge']:.0f}", found.factor),
        (f"conjugate gradients, N = {c}, {found.cg['iterations']:.0f} iterations", found.cg),
    )
    rows = [
        (
            name,
            f"{each['seconds']:.1f}",
            f"{each['peak'] / MIB:.0f}",
            f"{each['residual']:.1e}" if "residual" in each else "",
        )
        for name, each in names
    ]
    return table(heads, rows, left=1)


def held_table(found: Found) -> str:
    """A row for each of what holds the matrix in memory."""
    heads = ("", "fit, s", "predict 1000, s", "peak, MiB")
    names = {
        "process": f"Gaussian process, {found.sizes.targets} targets, standard deviations",
        "trained": f"trained network, {found.sizes.targets} targets, standard deviations, 3 times",
        "svc": f"SVC, {found.held['svc']['support vectors']:.0f} support vectors",
    }
    rows = [
        (
            name,
            f"{found.held[key]['seconds']:.1f}",
            f"{found.held[key]['predict']:.2f}",
            f"{found.held[key]['peak'] / MIB:.0f}",
        )
        for key, name in names.items()
    ]
    return table(heads, rows, left=1)


def solvers_targets(found: Found) -> list[Target]:
    """What is asked for of products and solvers."""
    plain = min(seconds for name, seconds in found.seconds.items() if "Zarr" in name)
    sizes = found.sizes
    share = 100 * plain / found.seconds["gram @ v"]
    rate = 100 * found.lapack["seconds"] / found.factor["seconds"]
    budget, peak = sizes.memory / MIB, found.factor["peak"] / MIB
    return [
        Target(f"gram @ v, N = {sizes.products}, against reading", 70, share, True, "%"),
        Target(f"Cholesky on disk, N = {sizes.factor}, against LAPACK", 40, rate, True, "%"),
        Target(f"Cholesky on disk, N = {sizes.factor}, peak memory", budget, peak, unit="MiB"),
        Target(
            f"conjugate gradients, N = {sizes.products}, peak memory",
            1.5,
            found.cg["peak"] / 2**30,
            unit="GiB",
        ),
    ]


HELD = {"process": _process, "trained": _trained, "svc": _svc}

_PARTS = {"iterate": _iterate, "factorise": _factorise, "in_memory": _in_memory} | HELD


if __name__ == "__main__":
    print(json.dumps(_PARTS[sys.argv[1]](sys.argv[2], Sizes(**json.loads(sys.argv[3])))))
