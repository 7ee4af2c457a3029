"""Nanoseconds per pair and time step of whole kernel calls, by backend and number type.

One core, in one run: compare the rows with each other, not with another machine's.
"""

import platform
import time
from itertools import product

import numpy as np
from threadpoolctl import threadpool_limits

from rntk_dist import RNTK, Sequences

STEPS, PAIRS = 200, 256


def seconds(kernel: RNTK, X: Sequences, Y: Sequences, dtype: str, backend: str) -> float:
    """The best of five calls, after one that may compile."""
    kernel(X, Y, dtype=dtype, backend=backend)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        kernel(X, Y, dtype=dtype, backend=backend)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    rng = np.random.default_rng(0)
    X, Y = (Sequences.from_arrays(rng.normal(size=(PAIRS, STEPS))) for _ in range(2))
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{PAIRS} x {PAIRS} pairs of {STEPS} steps, one layer, one feature, ns a pair-step")
    with threadpool_limits(1):
        for activation, backend, dtype in product(
            ("relu", "erf"), ("numpy", "numba"), ("float64", "float32")
        ):
            spent = seconds(RNTK(activation=activation), X, Y, dtype, backend)
            print(f"{activation:5} {backend:6} {dtype} {spent / PAIRS**2 / STEPS * 1e9:6.2f}")


if __name__ == "__main__":
    main()
