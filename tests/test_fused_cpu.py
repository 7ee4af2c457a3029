"""The compiled loops equal the array loops, whatever the shape of the tile."""

import itertools
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
from numba.core.caching import NullCache

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


@pytest.mark.slow
def test_features_that_fill_the_memory_take_narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cpu, "BLOCK_BYTES", 1)
    X = ragged(np.random.default_rng(0), 3 * VECTOR + 1, 1)
    fused, plain = both(RNTK(), X, None)
    np.testing.assert_allclose(fused, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "root", "items"),
    [
        ("float64", "sqrtpd", False),
        ("float32", "sqrtps", False),
        pytest.param("float64", "sqrtpd", True, marks=pytest.mark.slow),
        pytest.param("float32", "sqrtps", True, marks=pytest.mark.slow),
    ],
)
def test_the_innermost_loops_are_full_width_vectors(dtype: str, root: str, items: bool) -> None:
    """Square roots of whole vector registers: the loop over pairs was vectorised."""
    features = llvmlite.binding.get_host_cpu_features()
    # With AVX-512 compilers may still prefer 256 bits.
    registers = ("%ymm", "%zmm") if features.get("avx2") else ("%xmm",)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip(f"registers have other names on {platform.machine()}")
    loops = fused_cpu._loops.__wrapped__("relu", dtype, True, LANES, items)
    loops._cache = NullCache()  # code from the disk comes without its assembly
    X = Sequences.from_items([[0, 1], [1]], 2) if items else Sequences.from_arrays([[0.5], [1.0]])
    slab = make_slab(RNTK(), X).transfer(lambda array: array.astype(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_cpu, "_loops", lambda *_: loops)
        fused_tile_values(RNTK().recursion("ntk"), slab, None)
    (code,) = loops.inspect_asm().values()
    roots = [line for line in code.splitlines() if root in line]
    assert any(name in line for line in roots for name in registers), roots


@pytest.mark.slow
def test_compiled_loops_are_read_by_other_processes(tmp_path: Path) -> None:
    code = "import rntk_dist as rd; print(rd.RNTK()([[1.0, 2.0], [0.5, 1.0]], backend='numba'))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )

    first, second = call(), call()
    assert first.stderr.count("compiling") == 1
    assert second.stderr == ""
    assert second.stdout == first.stdout


def test_names_tell_what_loops_are_made_of() -> None:
    variants = [
        ("relu", "float64", 0, 256, False),
        ("erf", "float64", 0, 256, False),
        ("relu", "float32", 0, 256, False),
        ("relu", "float64", 1, 256, False),
        ("relu", "float64", 0, 16, False),
        ("relu", "float64", 1, 256, True),
    ]
    loops = [fused_cpu._loops(*variant) for variant in variants]
    assert len({each.py_func.__qualname__ for each in loops}) == len(variants)
    operations = fused_cpu._operations()
    names = {each.py_func.__qualname__ for each in operations}
    assert len(names) == len(operations)


def test_where_nothing_can_be_kept_it_computes_all_the_same() -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_cpu, "_Kept", refuse)
        assert isinstance(fused_cpu._packing.__wrapped__()._cache, NullCache)


def test_the_package_loads_without_numba() -> None:
    code = "import sys, rntk_dist; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
