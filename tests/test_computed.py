"""A matrix that is computed whenever it is needed, against the kernel's own."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clusters import client_of
from matrices import filled

import rntk_dist as rd
from rntk_dist.computed import Computed, Pairs
from rntk_dist.plan import Tile
from rntk_dist.solve.kernel_ridge import KernelRidge, Way

N, M, EDGE = 150, 40, 32
KERNEL = rd.RNTK(readout="per_step", sigma_b=0.1)
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def ragged(n: int, seed: int) -> rd.Sequences:
    rng = np.random.default_rng(seed)
    return rd.Sequences.from_arrays([rng.normal(size=rng.integers(3, 12)) for _ in range(n)])


X, Y = ragged(N, 0), ragged(M, 1)


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    return KERNEL(X)


@pytest.fixture
def matrix() -> Computed:
    return Computed(KERNEL, X, edge=EDGE, threads=2)


def test_it_is_the_stored_matrix_to_rounding(
    matrix: Computed, K: np.ndarray, tmp_path: Path
) -> None:
    store = rd.Gram(filled(tmp_path / "gram", K, EDGE))
    V = np.random.default_rng(2).normal(size=(N, 3))
    np.testing.assert_allclose(matrix @ V, store @ V, **CLOSE)
    np.testing.assert_allclose(np.asarray(matrix), K, **CLOSE)
    np.testing.assert_allclose(np.asarray(matrix.to_dask()), K, **CLOSE)
    assert np.array_equal(matrix.diag(), store.diag())
    assert (matrix.shape, matrix.dtype, matrix.symmetric) == ((N, N), np.float64, True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_a_rectangle_both_ways(dtype: str, kind: str) -> None:
    values = KERNEL(X, Y, kind=kind, dtype=dtype)
    found = Computed(KERNEL, X, Y, kind=kind, dtype=dtype, edge=EDGE)
    assert (found.dtype.name, found.symmetric) == (dtype, False)
    close = CLOSE if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
    V, W = (np.random.default_rng(n).normal(size=(n, 2)) for n in (M, N))
    np.testing.assert_allclose(found.product(V), values.astype(np.float64) @ V, **close)
    np.testing.assert_allclose(
        found.product(W, transposed=True), values.T.astype(np.float64) @ W, **close
    )
    np.testing.assert_allclose(found[5:9, [0, -1]], values[5:9, [0, -1]], rtol=1e-6)
    with pytest.raises(ValueError, match="150 x 40 kernel of two sets of samples has no diagonal"):
        found.diag()


def test_every_pair_is_computed_once_in_a_product(
    matrix: Computed, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[Tile] = Counter()
    read = Pairs.read_tile

    def counted(self: Pairs, tile: Tile) -> np.ndarray:
        counts[tile] += 1
        return read(self, tile)

    monkeypatch.setattr(Pairs, "read_tile", counted)
    matrix @ np.ones(N)
    assert counts == dict.fromkeys(matrix.pairs.plan.tiles(), 1)
    assert len(counts) == 15  # of 25 tiles those on and above the diagonal


def test_threads_leave_the_bits_alone() -> None:
    V = np.random.default_rng(3).normal(size=(N, 2))
    one, three = (Computed(KERNEL, X, edge=EDGE, threads=threads) for threads in (1, 3))
    assert np.array_equal(one @ V, three @ V)
    everything = np.arange(N)
    assert np.array_equal(one.block(everything, everything[:7]), three[:, :7])


@pytest.mark.parametrize("initial_state", ["shared", "independent"])
def test_a_sample_meets_itself_wherever_it_stands(initial_state: str) -> None:
    """With a start of its own, a sample is not another one of equal values."""
    kernel = rd.RNTK(sigma_h=0.7, initial_state=initial_state)
    twins = X[np.r_[np.arange(30), [3, 4]]]
    K, matrix = kernel(twins), Computed(kernel, twins, edge=8)
    assert (K[3, 30] == K[3, 3]) == (initial_state == "shared")
    assert np.array_equal(matrix.diag(), np.diag(K))
    for rows, cols in (
        ([3, 30, 4], [30, 3]),
        ([3, 3, 30], [3, 3, 30]),
        ([5, 30, 3], [5, 30, 3]),
        (range(32), [31, 4, 4]),
    ):
        found = matrix[list(rows), list(cols)]
        np.testing.assert_allclose(found, K[np.ix_(rows, cols)], **CLOSE)
        own = np.equal.outer(list(rows), list(cols))
        assert np.array_equal(found[own], K[np.ix_(rows, cols)][own])


def test_views_and_solvers_take_it(matrix: Computed, K: np.ndarray) -> None:
    y = np.random.default_rng(4).normal(size=N)
    roots = np.sqrt(np.diag(K))
    np.testing.assert_allclose(np.asarray(matrix.normalized()), K / roots / roots[:, None], **CLOSE)
    found = KernelRidge(0.5, way=Way("cg")).fit(matrix.centered(), y)
    centring = np.eye(N) - 1 / N
    expected = np.linalg.solve(centring @ K @ centring + 0.5 * np.eye(N), y)
    np.testing.assert_allclose(found.dual_coef_, expected, atol=1e-4)


def test_its_identity_is_of_what_it_computes() -> None:
    identities = {
        Computed(kernel, samples, others, kind=kind, dtype=dtype).identity
        for kernel in (KERNEL, rd.RNTK())
        for samples, others in ((X, None), (Y, None), (X, Y), (X, X))
        for kind in ("ntk", "nngp")
        for dtype in ("float32", "float64")
    }
    assert len(identities) == 2 * 4 * 2 * 2
    assert Computed(KERNEL, X, edge=7).identity == Computed(KERNEL, X, threads=1).identity


def test_a_product_holds_tiles_and_no_matrix() -> None:
    """8 N^2 bytes would be 72 MB; here are two tiles, with what they are prepared from."""
    n, edge, threads = 3000, 128, 2
    short = np.random.default_rng(5).normal(size=(n, 2))
    matrix = Computed(rd.RNTK(), short, edge=edge, threads=threads)
    v = np.ones(n)
    matrix[:10, :10]  # compiles
    tracemalloc.start()
    matrix @ v
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n * n * 8 / 10


def test_an_overflow_says_where() -> None:
    kernel, huge = rd.RNTK(sigma_w=30.0), np.ones((6, 300))
    with pytest.raises(OverflowError, match=r"rows begin at sequence \d.* exceeds float"):
        Computed(kernel, huge, dtype="float32", edge=2) @ np.ones(6)


def test_what_cannot_be_compared_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="X has 1 features a step and Y has 2"):
        Computed(KERNEL, X, np.ones((3, 4, 2)))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        Computed(KERNEL, X, dtype="int8")
    assert Computed(KERNEL, X).block(np.zeros(0, np.int64), np.arange(3)).shape == (0, 3)


@pytest.mark.slow
def test_workers_compute_their_share_and_keep_what_fits(matrix: Computed, K: np.ndarray) -> None:
    with client_of(2, threads_per_worker=1) as client:
        with matrix.distribute(client) as remote:
            np.testing.assert_allclose(remote @ K, K @ K, rtol=1e-10)
            assert sum(remote.kept().values()) == 15
            np.testing.assert_allclose(remote.centered() @ np.ones(N), 0.0, atol=1e-9)
        with matrix.distribute(client, room=0) as remote:
            for _ in range(2):
                np.testing.assert_allclose(remote @ np.ones(N), K.sum(axis=1), rtol=1e-12)
            assert sum(remote.kept().values()) == 0
