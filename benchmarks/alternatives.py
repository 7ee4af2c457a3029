"""What a user would pick instead, on the same sequences: DTW of aeon, GAK of tslearn."""

import warnings
from dataclasses import dataclass

import numpy as np

from benchmarks.report import table
from benchmarks.tiles import Problem, Setting, Size
from benchmarks.timing import Call, best_in_turns, installed

SIZE = Size(64, 200)
QUICK = Size(12, 50)


@dataclass(frozen=True)
class Row:
    """ns per pair; `cells` is what a pair visits: T steps, or the T x T grid."""

    name: str
    per_pair: float
    cells: int


def measure_alternatives(size: Size, *, repeats: int = 3) -> list[Row]:
    """Rows of ours and of the others, all in turns; what is not installed is left out."""
    problem = Problem.of(Setting(), size)
    both = _ours(problem, size) | _aeon(problem) | _tslearn(problem)
    calls = {name: call for name, (call, _) in both.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others' compilations warn of
        best_in_turns(calls, repeats=1)
    times = best_in_turns(calls, repeats=repeats)
    return [
        Row(name, times[name] / size.sequences**2 * 1e9, size.steps ** (2 if grid else 1))
        for name, (_, grid) in both.items()
    ]


def _ours(problem: Problem, size: Size) -> dict[str, tuple[Call, bool]]:
    mean = Problem.of(Setting(readout="mean"), size)
    step = Problem.of(Setting(readout="per_step"), size)
    return {
        "RNTK last, float32": (problem.call("numba", "float32"), False),
        "RNTK last, float64": (problem.call("numba", "float64"), False),
        "RNTK per_step, float64": (step.call("numba", "float64"), False),
        "RNTK mean, float64": (mean.call("numba", "float64"), True),
    }


def _aeon(problem: Problem) -> dict[str, tuple[Call, bool]]:
    if not installed("aeon"):
        return {}
    from aeon.distances import dtw_pairwise_distance

    x, y = (_padless(side.values, len(side)).swapaxes(1, 2) for side in (problem.X, problem.Y))
    return {"aeon DTW": (lambda: dtw_pairwise_distance(x, y), True)}


def _tslearn(problem: Problem) -> dict[str, tuple[Call, bool]]:
    if not installed("tslearn"):
        return {}
    from tslearn.metrics import cdist_gak, sigma_gak

    x, y = (_padless(side.values, len(side)) for side in (problem.X, problem.Y))
    sigma = sigma_gak(x, n_samples=min(100, len(x)), random_state=0)
    return {"tslearn GAK": (lambda: cdist_gak(x, y, sigma=sigma), True)}


def _padless(values: np.ndarray, n: int) -> np.ndarray:
    """(n, T, m) of packed equal lengths, contiguous and writable."""
    return values.reshape(n, -1, values.shape[1]).copy()


def alternatives_table(rows: list[Row]) -> str:
    """ns per pair and per visited cell, and against the fastest row."""
    base = min(row.per_pair for row in rows)
    heads = ("on one core", "ns a pair", "cells a pair", "ns a cell", "times the fastest")
    lines = [
        (
            row.name,
            f"{row.per_pair:,.0f}",
            f"{row.cells:,}",
            f"{row.per_pair / row.cells:.2f}",
            f"{row.per_pair / base:,.0f}",
        )
        for row in rows
    ]
    return table(heads, lines, left=1)
