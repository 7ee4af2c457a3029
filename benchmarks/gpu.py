"""Pair-steps a second of the CUDA kernel on this machine's GPU: ``python -m benchmarks.gpu``.

A pair-step is one time step of one pair of sequences, one computed triangle of a Gram matrix
counting once. Kernel times are taken by CUDA events, values staying on the device; times with
transfer are of the whole call, from slabs on the host to a matrix on the host. Before anything is
timed a sample of the values is compared with the CPU's.

    --blocks   also time the first row with other shapes of a thread's pairs, to tune `block_for`
    --small    a tenth of the sequences, for a quick look
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.arrays import tile_values
from rntk_dist.kernel.fused_gpu import (
    Block,
    _CupyDevice,
    gpu_is_seen,
    gpu_tile_values,
    make_sweeps,
)
from rntk_dist.kernel.variances import Slab, make_slab

STEPS, SEQUENCES, COLUMNS = 256, 32768, 8192
TARGETS = {"float32": 5e11, "float64": 1.5e11}
BOUNDS = {"float32": 1e-4, "float64": 1e-11}
PAIRS_OF_A_THREAD = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


@dataclass(frozen=True)
class Case:
    activation: Any
    dtype: Any
    depth: int

    @property
    def kernel(self) -> RNTK:
        return RNTK(activation=self.activation, depth=self.depth)

    def slab(self, X: Sequences) -> Slab:
        return make_slab(self.kernel, X).transfer(lambda array: array.astype(self.dtype))


def main() -> int:
    if not gpu_is_seen():
        print("no GPU seen: CuPy is not installed, or finds no CUDA device or driver")
        return 1
    scale = 10 if "--small" in sys.argv else 1
    rng = np.random.default_rng(0)
    X = Sequences.from_arrays(rng.normal(size=(SEQUENCES // scale, STEPS)))
    print("\n".join(facts()) + "\n")
    print(
        f"{len(X)} sequences with themselves, {STEPS} steps, one feature; pair-steps/s, in 1e9\n\n"
        "| activation | dtype   | layers | largest error | kernel only | with transfer | target |\n"
        "| ---------- | ------- | -----: | ------------: | ----------: | ------------: | -----: |"
    )
    failed = False
    for activation, dtype, depth in product(("relu", "erf"), ("float32", "float64"), (1, 3)):
        case = Case(activation, dtype, depth)
        error = largest_error(case, X)
        failed |= not error < BOUNDS[dtype]
        alone, whole = rate(kernel_seconds(case, X), X), rate(whole_seconds(case, X), X)
        asked = TARGETS[dtype] if (activation, depth) == ("relu", 1) else None
        target = "" if asked is None else f"{asked / 1e9:.0f}"
        print(
            f"| {activation:10} | {dtype:7} | {depth:6} | {error:13.1e} | {alone / 1e9:11.1f} "
            f"| {whole / 1e9:13.1f} | {target:>6} |",
            flush=True,
        )
    if "--blocks" in sys.argv:
        time_blocks(X)
    if failed:
        print("\nvalues differ from the CPU's: the times mean nothing")
    return int(failed)


def facts() -> Iterator[str]:
    """The device and the versions, a line each."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    yield f"* date: {date.today().isoformat()}"
    yield f"* device: {properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"
    yield f"* CUDA of the driver: {cuda_version(runtime.driverGetVersion())}"
    yield f"* CUDA runtime: {cuda_version(runtime.runtimeGetVersion())}"
    for package in ("numba", "numba-cuda", "numpy", "rntk_dist"):
        yield f"* {package}: {version(package)}"
    yield f"* CuPy: {cupy.__version__}"


def cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def rate(seconds: float, X: Sequences) -> float:
    """Pair-steps a second of a symmetric matrix."""
    return len(X) * (len(X) + 1) / 2 * STEPS / seconds


def largest_error(case: Case, X: Sequences) -> float:
    """Of some entries against the array loops in float64, relative to the largest of these."""
    rng = np.random.default_rng(1)
    rows, columns = (X[np.sort(rng.choice(len(X), 100, replace=False))] for _ in range(2))
    recursion = case.kernel.recursion("ntk")
    found = gpu_tile_values(recursion, case.slab(rows), case.slab(columns))
    slabs = make_slab(case.kernel, rows), make_slab(case.kernel, columns)
    exact = tile_values(recursion, *slabs, edge=100)
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def kernel_seconds(case: Case, X: Sequences, block: Block | None = None) -> float:
    """One triangle, a stripe of rows at a time on one stream, values left on the device."""
    import cupy

    device = _CupyDevice()
    slab = case.slab(X).transfer(cupy.asarray)
    (sweep,) = make_sweeps(case.kernel.recursion("ntk"), slab, None, cupy, block)
    values = device.empty(COLUMNS * len(X), np.dtype(case.dtype))
    device.synchronize()
    stream = device.stream()
    raw = stream._stream  # type: ignore[attr-defined]

    def once() -> float:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(raw)
        for top in range(0, len(X), COLUMNS):
            shape = min(COLUMNS, len(X) - top), len(X) - top
            out = values[: shape[0] * shape[1]].reshape(shape)
            sweep.launch(stream, out, top, top, add=False)
        end.record(raw)
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3

    return best(once)


def whole_seconds(case: Case, X: Sequences) -> float:
    """The call that a tile is: from host to host."""
    recursion, slab = case.kernel.recursion("ntk"), case.slab(X)

    def once() -> float:
        started = time.perf_counter()
        gpu_tile_values(recursion, slab, None)
        return time.perf_counter() - started

    return best(once)


def best(once: Callable[[], float]) -> float:
    """The best of three, after one that compiles."""
    once()
    return min(once() for _ in range(3))


def time_blocks(X: Sequences) -> None:
    """How the shape of a thread's pairs matters."""
    print("\nrelu, one layer, kernel only, in 1e9\n")
    print("| threads | pairs of a thread | float32 | float64 |")
    print("| ------- | ----------------- | ------: | ------: |")
    for threads, pairs in product([(16, 16), (8, 16)], PAIRS_OF_A_THREAD):
        block = Block(*threads, *pairs)
        cells = [
            rate(kernel_seconds(Case("relu", dtype, 1), X, block), X) / 1e9 for dtype in TARGETS
        ]
        print(f"| {threads!s:7} | {pairs!s:17} | {cells[0]:7.1f} | {cells[1]:7.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
