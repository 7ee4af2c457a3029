"""The compiled loops equal the array loops, whatever the shape of the tile."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel import fused_cpu
from rntk_dist.kernel.arrays import tile_values
from rntk_dist.kernel.fused_cpu import LANES, VECTOR, fused_tile_values
from rntk_dist.kernel.variances import make_slab


def ragged(rng: np.random.Generator, n: int, m: int, longest: int = 9) -> Sequences:
    lengths = rng.integers(1, longest + 1, n)
    return Sequences.from_arrays([rng.normal(size=(length, m)) for length in lengths])


def both(kernel: RNTK, X: Sequences, Y: Sequences | None, **options: Any) -> tuple[Any, Any]:
    rows = make_slab(kernel, X)
    columns = None if Y is None else make_slab(kernel, Y)
    recursion = kernel.recursion("ntk")
    plain = tile_values(recursion, rows, columns, edge=1000)
    return fused_tile_values(recursion, rows, columns, **options), plain


@pytest.mark.parametrize("n", [1, VECTOR - 1, VECTOR + 1, LANES + 1, 2 * LANES + 40])
def test_any_number_of_lanes(n: int) -> None:
    rng = np.random.default_rng(n)
    X, Y = ragged(rng, n, 1), ragged(rng, 5, 1)
    for kernel in (RNTK(), RNTK(sigma_h=0.5, initial_state="independent", readout="mean")):
        for rows, columns in ((X, None), (X, Y), (Y, X)):
            fused, plain = both(kernel, rows, columns)
            np.testing.assert_allclose(fused, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 8, 11])
def test_any_number_of_features(m: int) -> None:
    rng = np.random.default_rng(m)
    X = ragged(rng, 20, m)
    for bias, depth in itertools.product((0.0, 0.3), (1, 3)):
        fused, plain = both(RNTK(sigma_b=bias, depth=depth, readout="per_step"), X, None)
        np.testing.assert_allclose(fused, plain, rtol=1e-12, atol=1e-14)
        assert np.array_equal(fused, fused.T)


def test_threads_change_nothing() -> None:
    X = ragged(np.random.default_rng(0), 3 * LANES, 1)
    one, _ = both(RNTK(), X, None)
    two, _ = both(RNTK(), X, None, threads=2)
    assert np.array_equal(one, two)


def test_features_that_fill_the_memory_take_narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cpu, "BLOCK_BYTES", 1)
    X = ragged(np.random.default_rng(0), 3 * VECTOR + 1, 1)
    fused, plain = both(RNTK(), X, None)
    np.testing.assert_allclose(fused, plain, rtol=1e-12, atol=1e-14)


def test_the_innermost_loops_are_full_width_vectors() -> None:
    """Square roots of a whole vector register: the loop over pairs was vectorised."""
    X = ragged(np.random.default_rng(0), 20, 1)
    both(RNTK(), X, None)
    loops = fused_cpu._loops("relu", "float64", True, LANES)
    code = "".join(loops.inspect_asm().values())  # type: ignore[attr-defined]
    if not code:
        pytest.skip("the code came from the disk cache, without its assembly")
    assert "sqrtpd" in code or "fsqrt" in code


def test_the_package_loads_without_numba() -> None:
    code = "import sys, rntk_dist; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
