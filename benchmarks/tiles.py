"""The kernel on one tile, on one core: every backend, number type and kind of kernel.

A *pair-step* is one time step of one pair of sequences, all layers together. Only the steps that a
pair needs are counted: min(T, T') on the one diagonal of "last" and "per_step", T T' on the grid of
"mean".
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.report import Target, table
from benchmarks.timing import Call, best_in_turns
from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.arrays import block_edge, tile_values
from rntk_dist.kernel.fused_cpu import fused_tile_values
from rntk_dist.kernel.variances import make_slab

DEPTH = 3
VARIANTS = tuple(product(("numpy", "numba"), ("float64", "float32")))


@dataclass(frozen=True)
class Setting:
    """One row of the grid: what is computed, whoever computes it."""

    activation: Any = "relu"
    depth: int = 1
    features: int = 1
    readout: Any = "last"
    ragged: bool = False

    def kernel(self) -> RNTK:
        """With the default standard deviations."""
        return RNTK(depth=self.depth, activation=self.activation, readout=self.readout)


@dataclass(frozen=True)
class Size:
    """Sequences on each side of the tile, and the steps of the longest."""

    sequences: int
    steps: int


HEADLINE = Size(256, 200)
WIDE = Size(256, 50)
"""For 64 features, most of whose time the plain backends spend on the inputs."""
WHOLE_GRID = Size(128, 24)
"""For "mean", whose pairs have T^2 steps."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Sequences for one tile of one kernel."""

    kernel: RNTK
    X: Sequences
    Y: Sequences

    @classmethod
    def of(cls, setting: Setting, size: Size) -> "Problem":
        """Gaussian sequences, of equal lengths T or of lengths uniform in [T/4, T]."""
        rng = np.random.default_rng(0)
        X, Y = (gaussian(rng, size, setting.features, setting.ragged) for _ in range(2))
        return cls(setting.kernel(), X, Y)

    @property
    def pair_steps(self) -> int:
        """Those that are really needed."""
        if self.kernel.readout == "mean":
            return int(self.X.lengths.sum()) * int(self.Y.lengths.sum())
        return int(np.minimum.outer(self.X.lengths, self.Y.lengths).sum())

    def call(self, backend: Any, dtype: Any) -> Call:
        """The whole call: variances, loops and scales, from sequences to the matrix."""
        return lambda: self.kernel(self.X, self.Y, dtype=dtype, backend=backend)

    def loops(self, backend: str, dtype: str) -> Call:
        """The loops over pairs and steps alone."""
        recursion, number = self.kernel.recursion("ntk"), np.dtype(dtype)
        rows, columns = (
            make_slab(self.kernel, side).transfer(lambda array: array.astype(number))
            for side in (self.X, self.Y)
        )
        if backend == "numba":
            return lambda: fused_tile_values(recursion, rows, columns)
        return lambda: tile_values(recursion, rows, columns, edge=block_edge(number))

    def nanoseconds(self, spent: float) -> float:
        """Seconds of the whole tile as ns per pair-step."""
        return spent / self.pair_steps * 1e9


def gaussian(rng: np.random.Generator, size: Size, features: int, ragged: bool) -> Sequences:
    """Standard normal sequences."""
    if not ragged:
        return Sequences.from_arrays(rng.normal(size=(size.sequences, size.steps, features)))
    lengths = rng.integers(max(1, size.steps // 4), size.steps + 1, size.sequences)
    return Sequences.from_arrays([rng.normal(size=(length, features)) for length in lengths])


# -- the grid --------------------------------------------------------------------------------------


def settings(quick: bool = False) -> Iterator[Setting]:
    """All rows of the grid, or a few."""
    depths, features = ((1,), (1, 8)) if quick else ((1, DEPTH), (1, 8, 64))
    readouts = ("last", "per_step", "mean")
    choices = product(("relu", "erf"), depths, features, readouts, (False, True))
    return (Setting(*choice) for choice in choices)


def size_of(setting: Setting, quick: bool = False) -> Size:
    """A size at which a row is measured in seconds."""
    if setting.readout == "mean":
        return Size(32, 16) if quick else WHOLE_GRID
    if quick:
        return Size(64, 50)
    return WIDE if setting.features > 8 else HEADLINE


def measure(
    setting: Setting, size: Size, *, repeats: int = 5, budget: float = 0.3
) -> dict[str, float]:
    """ns per pair-step of whole calls, by "backend dtype"."""
    problem = Problem.of(setting, size)
    calls = {f"{backend} {dtype}": problem.call(backend, dtype) for backend, dtype in VARIANTS}
    _warm(setting)
    times = best_in_turns(calls, repeats=repeats, budget=budget)
    return {name: problem.nanoseconds(spent) for name, spent in times.items()}


def _warm(setting: Setting) -> None:
    problem = Problem.of(setting, Size(8, 4))
    for backend, dtype in VARIANTS:
        problem.call(backend, dtype)()


def grid_table(rows: dict[Setting, dict[str, float]]) -> str:
    """The grid, one setting a row."""
    names = [f"{backend} {dtype}" for backend, dtype in VARIANTS]
    short = [name.replace("float", "f") for name in names]
    heads = ("phi", "L", "m", "readout", "lengths", *short, "f64 / f32")
    lines = []
    for setting, found in rows.items():
        what = asdict(setting) | {"ragged": "ragged" if setting.ragged else "equal"}
        ratio = found["numpy float64"] / found["numba float32"]
        lines.append([*what.values(), *(f"{found[name]:.2f}" for name in names), f"{ratio:.1f}"])
    return table(heads, lines, left=5)


# -- the headline ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """The rows that targets are about, all in turns: ns per pair-step by name."""

    calls: dict[str, float]
    loops: dict[str, float]


def headline_problems(size: Size) -> dict[str, tuple[Problem, str, str]]:
    """The problem, backend and number type of each row."""
    plain = Problem.of(Setting(), size)
    return {
        "NumPy float64": (plain, "numpy", "float64"),
        "NumPy float32": (plain, "numpy", "float32"),
        "fused float64": (plain, "numba", "float64"),
        "fused float32": (plain, "numba", "float32"),
        "fused float32, 3 layers": (Problem.of(Setting(depth=DEPTH), size), "numba", "float32"),
        "fused float32, ragged": (Problem.of(Setting(ragged=True), size), "numba", "float32"),
        "fused float32, erf": (Problem.of(Setting(activation="erf"), size), "numba", "float32"),
    }


def measure_headline(
    size: Size, others: dict[str, Call], *, repeats: int = 9
) -> tuple[Headline, dict[str, float]]:
    """The headline rows, and in turns with them `others`: whole calls on the plain problem."""
    problems = headline_problems(size)
    plain = problems["fused float32"][0]
    calls = {name: problem.call(*how) for name, (problem, *how) in problems.items()}
    loops = {f"{name} loops": problem.loops(*how) for name, (problem, *how) in problems.items()}
    together = calls | loops | others
    best_in_turns(together, repeats=1)  # compiles
    times = best_in_turns(together, repeats=repeats)
    found = {name: problem.nanoseconds(times[name]) for name, (problem, *_) in problems.items()}
    alone = {
        name: problem.nanoseconds(times[f"{name} loops"])
        for name, (problem, *_) in problems.items()
    }
    return Headline(found, alone), {name: plain.nanoseconds(times[name]) for name in others}


def headline_table(found: Headline, others: dict[str, float]) -> str:
    """ns per pair-step of the headline rows."""
    rows = [(name, f"{found.calls[name]:.3f}", f"{found.loops[name]:.3f}") for name in found.calls]
    rows += [(name, f"{spent:.3f}", "") for name, spent in others.items()]
    return table(("ns a pair-step", "whole call", "loops alone"), rows, left=1)


def headline_targets(found: Headline, others: dict[str, float]) -> list[Target]:
    """The targets of the kernel on one tile, for the whole call and for the loops alone."""
    return [
        target
        for of, how in ((found.calls, "whole call"), (found.loops, "loops alone"))
        for target in _targets(of, others, how)
    ]


def _targets(of: dict[str, float], others: dict[str, float], how: str) -> Iterator[Target]:
    fast, slow = of["fused float32"], of["NumPy float64"]
    erf, ragged = of["fused float32, erf"], of["fused float32, ragged"] / fast
    deep = of["fused float32, 3 layers"] / fast / DEPTH
    yield Target(f"fused float32 against NumPy float64, {how}", 12, slow / fast, True)
    yield Target(
        f"fused float64 against NumPy float64, {how}", 3.5, slow / of["fused float64"], True
    )
    if "JAX float32" in others:
        ratio = others["JAX float32"] / fast
        yield Target(f"fused float32 against JAX float32, {how}", 25, ratio, True)
    yield Target(f"3 layers against 3 times one layer, float32, {how}", 1.2, deep)
    yield Target(f"ragged against equal lengths, float32, {how}", 1.35, ragged)
    yield Target(f"erf float32, {how}", 0.6, erf, unit="ns")
