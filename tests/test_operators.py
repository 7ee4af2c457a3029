"""Products and views of matrices that are not held whole, against NumPy on the whole."""

from __future__ import annotations

import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import filled
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg
from sklearn.preprocessing import KernelCenterer
from zarr.storage import LocalStore

import rntk_dist as rd
from rntk_dist.in_order import in_order
from rntk_dist.operators import Centered, Dense, Operator
from rntk_dist.plan import Plan, Tile
from rntk_dist.store import CorruptTileError, GramStore, chunk_key
from rntk_dist.tile_product import multiply

N, M = 23, 9
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def kernel_of(n: int, seed: int = 0) -> np.ndarray:
    features = np.random.default_rng(seed).normal(size=(n, 4)) + 1.0
    return features @ features.T + np.eye(n)


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    return kernel_of(N)


@pytest.fixture(scope="module")
def KY() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(M, N)) + 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operators")


@pytest.fixture(scope="module")
def gram(K: np.ndarray, folder: Path) -> rd.Gram:
    return rd.Gram(filled(folder / "square", K, 5))


@pytest.fixture(scope="module")
def cross(KY: np.ndarray, folder: Path) -> rd.Gram:
    return rd.Gram(filled(folder / "cross", KY, 4, symmetric=False))


# -- the product -----------------------------------------------------------------------------------


@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    edge=st.integers(1, 35),
    symmetric=st.booleans(),
    transposed=st.booleans(),
    columns=st.integers(0, 4),
    threads=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=60)
def test_any_cut_gives_the_product(
    n: int,
    m: int,
    edge: int,
    symmetric: bool,
    transposed: bool,
    columns: int,
    threads: int,
    dtype: Any,
) -> None:
    """Tiles above the diagonal serve twice, ragged edges and all."""
    values = (kernel_of(n) if symmetric else np.random.default_rng(n).normal(size=(n, m))).astype(
        dtype
    )
    plan = Plan(*values.shape, edge, symmetric, values.itemsize)
    reads: list[Tile] = []

    def read(tile: Tile) -> np.ndarray:
        reads.append(tile)
        return values[slice(*plan.rows(tile)), slice(*plan.cols(tile))]

    whole = values.T if transposed else values
    V = np.random.default_rng(2).normal(size=(whole.shape[1], columns))
    found = multiply(read, plan, V, transposed=transposed, threads=threads)
    assert found.dtype == np.float64
    assert sorted(reads) == list(plan.tiles())
    np.testing.assert_allclose(found, whole.astype(np.float64) @ V, rtol=1e-12, atol=1e-11)


def test_float32_is_multiplied_and_added_in_float64(folder: Path) -> None:
    values = kernel_of(40).astype(np.float32) * 1e4
    gram = rd.Gram(filled(folder / "single", values, 7))
    v = np.random.default_rng(0).normal(size=40)
    exact = values.astype(np.float64) @ v
    np.testing.assert_allclose(gram @ v, exact, rtol=1e-13, atol=1e-8)
    assert (gram @ v).dtype == np.float64
    assert (gram @ v.astype(np.float32)).dtype == np.float32


def test_any_number_of_threads_gives_the_same_bits(gram: rd.Gram) -> None:
    V = np.random.default_rng(3).normal(size=(N, 3))
    found = [gram.product(V, threads=threads) for threads in (1, 2, 5)]
    assert all(np.array_equal(found[0], other) for other in found)


def test_no_more_tiles_are_in_hand_than_threads(
    gram: rd.Gram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile is in hand from when it is read to when its product is there."""
    inside, most, lock = 0, 0, threading.Lock()
    everybody = threading.Barrier(3, timeout=60)
    view_tile = GramStore.view_tile

    def counted(self: GramStore, tile: Tile) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if tile in first:
            everybody.wait()
        with lock:
            inside -= 1
        return view_tile(self, tile)

    first = list(gram.plan.tiles())[:3]
    monkeypatch.setattr(GramStore, "view_tile", counted)
    gram.product(np.ones((N, 1)), threads=3)
    assert most == 3


def test_results_come_in_order_and_an_error_in_its_turn() -> None:
    started = []

    def halve(n: int) -> int:
        started.append(n)
        if n == 5:
            raise ArithmeticError("five")
        return n // 2

    results = in_order(halve, range(1000), 2)
    assert [next(results) for _ in range(5)] == [0, 0, 1, 1, 2]
    with pytest.raises(ArithmeticError, match="five"):
        next(results)
    assert len(started) < 20
    with pytest.raises(ValueError, match="threads is 0: give at least 1"):
        next(in_order(halve, range(3), 0))


def test_a_tile_is_viewed_as_it_is_read(gram: rd.Gram, cross: rd.Gram, K: np.ndarray) -> None:
    for store in (gram.store, cross.store):
        for tile in store.plan.tiles():
            assert np.array_equal(store.view_tile(tile), store.read_tile(tile))
            assert store.view_tile(tile).dtype == store.read_tile(tile).dtype


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"?" + b[1:], lambda b: b""])
def test_damage_is_found_in_a_product(K: np.ndarray, tmp_path: Path, damage: Any) -> None:
    gram = rd.Gram(filled(tmp_path / "gram", K, 10))
    chunk = tmp_path / "gram" / chunk_key(Tile(0, 1))
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(CorruptTileError, match=r"tile \(0, 1\) is damaged: `rntk-dist repair"):
        gram @ np.ones(N)
    chunk.unlink()
    with pytest.raises(rd.IncompleteGramError, match="1 of 6 tiles have not been computed"):
        gram @ np.ones(N)


def test_products_read_any_zarr_store(gram: rd.Gram, K: np.ndarray) -> None:
    other = rd.open_gram(LocalStore(gram.store.location, read_only=True))
    assert np.array_equal(other @ np.ones(N), gram @ np.ones(N))


def test_products_with_what_is_not_real_are_refused(gram: rd.Gram) -> None:
    with pytest.raises(ValueError, match="complex128: give reals"):
        gram @ np.ones(N, complex)


# -- the views -------------------------------------------------------------------------------------


def cosine(K: np.ndarray) -> np.ndarray:
    roots = np.sqrt(np.diag(K))
    return K / roots / roots[:, None]


def view(name: str) -> tuple[Callable[[Operator], Operator], Callable[[np.ndarray], np.ndarray]]:
    """A view of an operator, and the same of an array."""
    twice: dict[str, Any] = {
        "itself": (lambda g: g, lambda K: K),
        "normalized": (lambda g: g.normalized(), cosine),
        "centered": (lambda g: g.centered(), lambda K: KernelCenterer().fit_transform(K)),
        "sum": (lambda g: g + 2.0 * g.normalized(), lambda K: K + 2 * cosine(K)),
        "multiple": (lambda g: np.float64(0.5) * (g + g) * 3, lambda K: 3.0 * K),
        "both": (
            lambda g: g.normalized().centered(),
            lambda K: KernelCenterer().fit_transform(cosine(K)),
        ),
    }
    found: tuple[Any, Any] = twice[name]
    return found


VIEWS = ("itself", "normalized", "centered", "sum", "multiple", "both")


@pytest.mark.parametrize("source", ["stored", "dense"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_what_it_is_of_the_whole(
    name: str, source: str, gram: rd.Gram, K: np.ndarray
) -> None:
    of_operator, of_array = view(name)
    lazy, whole = of_operator(gram if source == "stored" else Dense(K)), of_array(K)
    V = np.random.default_rng(4).normal(size=(N, 3))
    np.testing.assert_allclose(np.asarray(lazy), whole, **CLOSE)
    np.testing.assert_allclose(lazy @ V, whole @ V, **CLOSE)
    np.testing.assert_allclose(V.T @ lazy, V.T @ whole, **CLOSE)
    np.testing.assert_allclose(lazy @ V[:, 0], whole @ V[:, 0], **CLOSE)
    np.testing.assert_allclose(lazy.diag(), np.diag(whole), **CLOSE)
    np.testing.assert_allclose(lazy[[3, -1], 4:20:3], whole[[3, -1], 4:20:3], **CLOSE)
    assert lazy.symmetric
    assert (lazy.shape, len(lazy), lazy.dtype) == ((N, N), N, np.float64)
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_allclose(lazy.to_dask().compute(), whole, **CLOSE)


@pytest.mark.parametrize("name", VIEWS)
def test_scipy_takes_a_view_as_an_operator(name: str, gram: rd.Gram, K: np.ndarray) -> None:
    of_operator, of_array = view(name)
    linear, whole = of_operator(gram).as_linear_operator(), of_array(K)
    assert isinstance(linear, LinearOperator)
    v, V = np.arange(N), np.arange(2.0 * N).reshape(N, 2)
    np.testing.assert_allclose(linear @ v, whole @ v, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(linear.rmatvec(v), whole @ v, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(linear @ V, whole @ V, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(linear.rmatmat(V), whole @ V, rtol=1e-11, atol=1e-11)


def test_scipys_solver_solves_with_it(gram: rd.Gram, K: np.ndarray) -> None:
    y = np.random.default_rng(5).normal(size=N)
    solution, failed = cg(aslinearoperator(gram.as_linear_operator()), y, rtol=1e-12)
    assert not failed
    np.testing.assert_allclose(K @ solution, y, atol=1e-9)


def test_rectangular_views(cross: rd.Gram, KY: np.ndarray, gram: rd.Gram, K: np.ndarray) -> None:
    """As scikit-learn's KernelCenterer transforms what it was not fitted on."""
    own = np.arange(1.0, M + 1)
    scaled = cross.normalized(own, gram.diag())
    centred = cross.centered(gram)
    V, W = np.ones((N, 2)), np.arange(2.0 * M).reshape(M, 2)
    for lazy, whole in (
        (scaled, KY / np.sqrt(own)[:, None] / np.sqrt(np.diag(K))),
        (centred, KernelCenterer().fit(K).transform(KY)),
        (cross + cross, 2 * KY),
    ):
        assert not lazy.symmetric
        np.testing.assert_allclose(np.asarray(lazy), whole, **CLOSE)
        np.testing.assert_allclose(lazy @ V, whole @ V, **CLOSE)
        np.testing.assert_allclose(W.T @ lazy, W.T @ whole, **CLOSE)
        with pytest.raises(ValueError, match="is not symmetric: it has no diagonal"):
            lazy.diag()


def test_a_normalised_diagonal_is_one_and_a_zero_stays_zero() -> None:
    found = np.asarray(Dense(np.diag([4.0, 0.0])).normalized())
    assert np.array_equal(found, np.diag([1.0, 0.0]))


def test_views_are_lazy(gram: rd.Gram, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Tile] = []
    key = GramStore._check_tile  # every read of a tile begins with it
    monkeypatch.setattr(
        GramStore, "_check_tile", lambda self, tile: (reads.append(tile), key(self, tile))[1]
    )
    both = gram.centered() + gram
    assert reads == []
    both.diag()
    assert len(reads) == gram.plan.n_tiles + 2 * gram.plan.grid[0]
    reads.clear()
    both @ np.ones(N)
    assert len(reads) == 2 * gram.plan.n_tiles  # the means are known by now


def test_an_identity_is_that_of_the_values(gram: rd.Gram, cross: rd.Gram, K: np.ndarray) -> None:
    views = [view(name)[0](gram) for name in VIEWS]
    others = [cross, Dense(K), Dense(K + 1), Dense(K.astype(np.float32)), cross.centered(gram)]
    names = [each.identity for each in (*views, *others)]
    assert len(set(names)) == len(names)
    assert [view(name)[0](rd.open_gram(gram.store.location)).identity for name in VIEWS] == names[
        : len(VIEWS)
    ]


def test_views_travel_to_other_processes(gram: rd.Gram) -> None:
    both = gram.normalized() + gram
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(both))), np.asarray(both))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g, c: c.normalized(), "holds no diagonal: give normalized the diagonals"),
        (lambda g, c: c.normalized(np.ones(M), np.ones(3)), "found 9 and 3 factors for a matrix"),
        (lambda g, c: c.centered(), "give centered the matrix of those"),
        (lambda g, c: c.centered(c), r"found training samples of shape \(9, 23\)"),
        (lambda g, c: g + c, r"cannot add matrices of shapes \[\(23, 23\), \(9, 23\)\]"),
        (lambda g, c: g * np.nan, "cannot multiply a matrix with NaN"),
        (lambda g, c: Dense(-np.eye(2)).normalized(), "entry 0 of the diagonal is -1.0"),
        (lambda g, c: Dense(np.ones(3)), "give one of two axes"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gram: rd.Gram, cross: rd.Gram, make: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(gram, cross)


def test_a_view_adds_no_array(gram: rd.Gram) -> None:
    with pytest.raises(TypeError):
        gram + 1.0


@given(edge=st.integers(1, 12), n=st.integers(2, 12), dtype=st.sampled_from(["f4", "f8"]))
@settings(deadline=None, max_examples=5)
def test_stores_of_any_tile_give_one_product(edge: int, n: int, dtype: str) -> None:
    values = kernel_of(n).astype(dtype)
    with tempfile.TemporaryDirectory() as where:
        gram = rd.Gram(filled(Path(where) / "gram", values, edge))
        V = np.random.default_rng(6).normal(size=(n, 2))
        np.testing.assert_allclose(gram @ V, values.astype(np.float64) @ V, **CLOSE)
        np.testing.assert_allclose(Centered(gram) @ np.ones(n), np.zeros(n), atol=1e-11)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("rntk_dist")]
