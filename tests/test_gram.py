"""The public `rd.gram` and the view it returns, against the kernel and against NumPy's indexing."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from clusters import client_of
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from zarr.storage import LocalStore

import rntk_dist as rd
from rntk_dist.creation import ensure_store
from rntk_dist.plan import Tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import CorruptTileError, GramStore, IdentityError, chunk_key
from rntk_dist.tile_task import compute_tile

KERNEL = rd.RNTK(sigma_w=1.3, readout="per_step")
N, M, TILE = 33, 12, 5


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(2) as client:
        yield client


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(11)
    values = [rng.normal(size=(t, 2)) for t in rng.integers(1, 20, size=N)]
    return Sequences.from_arrays(values, labels=np.arange(N) % 3)


@pytest.fixture(scope="module")
def Y(X: Sequences) -> Sequences:
    return X[:M].reversed()


@pytest.fixture(scope="module")
def gram(client: Client, X: Sequences, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    path = tmp_path_factory.mktemp("square") / "gram"
    return rd.gram(KERNEL, X, store=path, client=client, tile=TILE, progress=False)


@pytest.fixture(scope="module")
def oblong(
    client: Client, X: Sequences, Y: Sequences, tmp_path_factory: pytest.TempPathFactory
) -> rd.Gram:
    path = tmp_path_factory.mktemp("oblong") / "gram"
    return rd.gram(KERNEL, X, Y, store=path, client=client, tile=TILE, progress=False)


@pytest.fixture(scope="module")
def K(X: Sequences) -> np.ndarray:
    return KERNEL(X)


@pytest.fixture(scope="module")
def KY(X: Sequences, Y: Sequences) -> np.ndarray:
    return KERNEL(X, Y)


def chunk(gram: rd.Gram, tile: Tile) -> Path:
    return Path(str(gram.store.location)) / chunk_key(tile)


def written(gram: rd.Gram) -> dict[Tile, int]:
    return {tile: chunk(gram, tile).stat().st_mtime_ns for tile in gram.plan.tiles()}


@pytest.fixture
def partial(tmp_path: Path, X: Sequences) -> rd.Gram:
    """All of row block 0 and the tile (3, 4), nothing else."""
    store = ensure_store(KERNEL, X, None, store=tmp_path / "gram", tile=TILE)
    for tile in [*(Tile(0, col) for col in range(7)), Tile(3, 4)]:
        compute_tile(store.location, tile)
    return rd.open_gram(tmp_path / "gram")


# -- running and resuming -------------------------------------------------------------------------


def test_the_gram_matrix_is_the_kernels_exactly(gram: rd.Gram, K: np.ndarray) -> None:
    assert np.array_equal(np.asarray(gram), K)
    assert gram.complete
    assert gram.missing == []


def test_the_rectangular_matrix_likewise(oblong: rd.Gram, KY: np.ndarray) -> None:
    assert np.array_equal(np.asarray(oblong), KY)


def test_a_second_call_computes_nothing(gram: rd.Gram, client: Client, X: Sequences) -> None:
    before = written(gram)
    again = rd.gram(KERNEL, X, store=gram.store.location, client=client, progress=False)
    assert written(again) == before


def test_a_second_call_needs_no_worker(gram: rd.Gram, X: Sequences, K: np.ndarray) -> None:
    def refuse(n_tiles: int) -> None:
        raise AssertionError("a cluster was started")

    with pytest.MonkeyPatch.context() as patch:
        # As an attribute of the package, `gram` is the function and not the module.
        patch.setattr(sys.modules["rntk_dist.gram"], "local_client", refuse)
        assert np.array_equal(np.asarray(rd.gram(KERNEL, X, store=gram.store.location)), K)


def test_what_was_deleted_is_computed_again_and_nothing_else(
    client: Client, X: Sequences, K: np.ndarray, tmp_path: Path
) -> None:
    run = {"store": tmp_path / "gram", "client": client, "tile": TILE, "progress": False}
    before = written(rd.gram(KERNEL, X, **run))
    removed = {Tile(0, 3), Tile(2, 2), Tile(5, 6)}
    gram = rd.open_gram(tmp_path / "gram")
    for tile in removed:
        chunk(gram, tile).unlink()
    assert set(gram.missing) == removed
    after = written(rd.gram(KERNEL, X, **run))
    assert {tile for tile in after if after[tile] != before[tile]} == removed
    assert np.array_equal(np.asarray(gram), K)


def test_without_a_client_a_local_cluster_does_it(
    X: Sequences, K: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gram = rd.gram(KERNEL, list(X), store=tmp_path / "gram", kind="nngp", dtype="float32")
    assert gram.kind == "nngp"
    assert gram.plan.tile == N
    assert np.array_equal(np.asarray(gram), KERNEL(X, kind="nngp", dtype="float32"))
    assert capsys.readouterr().err.startswith("rntk_dist: 1/1 tiles, ")


@pytest.mark.parametrize("make", [str, lambda path: f"file://{path}", LocalStore])
def test_a_path_a_url_or_a_zarr_store_will_do(
    client: Client, X: Sequences, K: np.ndarray, tmp_path: Path, make: Any
) -> None:
    store = make(tmp_path / "gram")
    gram = rd.gram(KERNEL, X, store=store, client=client, tile=16, progress=False)
    assert np.array_equal(np.asarray(gram), K)
    assert np.array_equal(client.compute(rd.open_gram(store).to_dask()).result(), K)


def test_another_matrix_in_the_store_is_refused(gram: rd.Gram, X: Sequences) -> None:
    with pytest.raises(IdentityError, match=r"fingerprint: stored "):
        rd.gram(KERNEL, X[:20], store=gram.store.location)
    with pytest.raises(IdentityError, match=r"fingerprint_y: stored None, given '"):
        rd.gram(KERNEL, X, X, store=gram.store.location)


# -- what it is -----------------------------------------------------------------------------------


def test_the_view_knows_what_it_shows(gram: rd.Gram, X: Sequences) -> None:
    assert gram.shape == (N, N)
    assert (len(gram), gram.ndim, gram.dtype, gram.kind) == (N, 2, np.float64, "ntk")
    assert gram.kernel == KERNEL
    assert gram.sequences.fingerprint == X.fingerprint
    assert gram.sequences_y is None
    assert np.array_equal(gram.labels, np.arange(N) % 3)
    assert gram.plan.tile == TILE
    assert repr(gram) == (
        f"Gram(33 x 33 float64 ntk, 28/28 tiles of 5, store={str(gram.store.location)!r})"
    )


def test_a_rectangular_view_knows_both_sides(oblong: rd.Gram, Y: Sequences) -> None:
    assert oblong.shape == (N, M)
    assert oblong.sequences_y is not None
    assert oblong.sequences_y.fingerprint == Y.fingerprint


def test_a_view_travels_to_other_processes(gram: rd.Gram, K: np.ndarray) -> None:
    assert np.array_equal(pickle.loads(pickle.dumps(gram))[3:8, 20:], K[3:8, 20:])


# -- indices --------------------------------------------------------------------------------------


def axis_keys(size: int) -> st.SearchStrategy[Any]:
    integers = st.integers(-size, size - 1)
    return (
        integers
        | st.slices(size)
        | st.lists(integers, max_size=6)
        | arrays(np.int32, st.integers(0, 6), elements=integers)
        | arrays(np.bool_, size)
    )


def expected(K: np.ndarray, row: Any, col: Any) -> np.ndarray:
    """Each axis on its own: NumPy does that if it is given one axis at a time."""
    rows = K[row if not isinstance(row, list) else np.array(row, int)]
    return rows[..., col if not isinstance(col, list) else np.array(col, int)]


@given(row=axis_keys(N), col=axis_keys(N))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_indices_are_numpys_on_each_axis(gram: rd.Gram, K: np.ndarray, row: Any, col: Any) -> None:
    part = gram[row, col]
    assert np.array_equal(part, expected(K, row, col))
    assert np.shape(part) == np.shape(expected(K, row, col))


@given(row=axis_keys(N), col=axis_keys(M))
@settings(deadline=None, max_examples=40)
def test_indices_of_a_rectangular_matrix(
    oblong: rd.Gram, KY: np.ndarray, row: Any, col: Any
) -> None:
    assert np.array_equal(oblong[row, col], expected(KY, row, col))


def test_one_index_takes_rows(gram: rd.Gram, K: np.ndarray) -> None:
    assert np.array_equal(gram[4], K[4])
    assert np.array_equal(gram[4:9], K[4:9])
    assert np.array_equal(gram[[8, 1]], K[[8, 1]])
    assert np.array_equal(gram[...], K)
    assert np.array_equal(gram[..., 2], K[:, 2])
    assert isinstance(gram[1, 2], np.float64)
    assert np.array_equal([row.sum() for row in gram], [row.sum() for row in K])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((33, 0), "index 33 is outside an axis of size 33"),
        ((0, -34), "index -34 is outside"),
        ((np.ones(4, bool), 0), r"a mask has the axis's shape \(33,\), got \(4,\)"),
        ((0, 0, 0), "a Gram matrix has 2 axes, got 3 indices"),
        (1.5, "takes an int, a slice, integers or a mask, got 1.5"),
        ("a", "takes an int"),
        (None, "takes an int"),
        (np.zeros((2, 2), int), "takes an int"),
    ],
)
def test_what_is_no_index_is_refused(gram: rd.Gram, key: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        gram[key]


def test_each_needed_tile_is_read_once(gram: rd.Gram, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Tile] = []
    check_tile = GramStore._check_tile  # every read of a tile begins with it

    def counted(self: GramStore, tile: Tile) -> None:
        reads.append(tile)
        check_tile(self, tile)

    monkeypatch.setattr(GramStore, "_check_tile", counted)
    np.asarray(gram)
    assert sorted(reads) == list(gram.plan.tiles())
    reads.clear()
    gram[[0, 32, 1], [32, 0, 31]]  # blocks 0 and 6, both ways round
    assert sorted(reads) == [Tile(0, 0), Tile(0, 6), Tile(6, 6)]
    reads.clear()
    gram.diag()
    assert reads == [Tile(block, block) for block in range(7)]
    reads.clear()
    gram @ np.ones(N)
    assert sorted(reads) == list(gram.plan.tiles())


# -- as an array ----------------------------------------------------------------------------------


def test_numpy_takes_it_as_an_array(gram: rd.Gram, K: np.ndarray) -> None:
    assert np.asarray(gram, dtype=np.float32).dtype == np.float32
    assert np.array_equal(np.array(gram, copy=True), K)
    assert np.array_equal(np.exp(-np.asarray(gram)), np.exp(-K))
    with pytest.raises(ValueError, match="without a copy"):
        np.array(gram, copy=False)


def test_the_diagonal(gram: rd.Gram, oblong: rd.Gram, K: np.ndarray) -> None:
    assert np.array_equal(gram.diag(), np.diag(K))
    with pytest.raises(ValueError, match="has no diagonal"):
        oblong.diag()


@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_products_stream_the_tiles(
    gram: rd.Gram, oblong: rd.Gram, K: np.ndarray, KY: np.ndarray, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    square, right, left = (rng.normal(size=(size, *shape)) for size in (N, M, N))
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(gram @ square, K @ square, **close)
    np.testing.assert_allclose(square.T @ gram, square.T @ K, **close)
    np.testing.assert_allclose(oblong @ right, KY @ right, **close)
    np.testing.assert_allclose(left.T @ oblong, left.T @ KY, **close)


def test_products_of_integers_and_of_wrong_shapes(gram: rd.Gram, K: np.ndarray) -> None:
    ones = np.ones(N, int)
    np.testing.assert_allclose(gram @ ones, K.sum(1))
    np.testing.assert_allclose(gram @ list(ones), K.sum(1))
    for wrong in (np.ones(5), np.ones((5, N)), np.ones((N, 1, 1)), 3.0):
        with pytest.raises(ValueError, match="cannot multiply the 33 x 33 matrix with an array"):
            gram @ wrong


# -- dask and xarray ------------------------------------------------------------------------------


def test_dask_mirrors_lazily(gram: rd.Gram, oblong: rd.Gram, K: np.ndarray, KY: np.ndarray) -> None:
    lazy = gram.to_dask()
    assert lazy.shape == (N, N)
    assert lazy.chunks == ((5, 5, 5, 5, 5, 5, 3),) * 2
    assert lazy.dtype == np.float64
    with dask.config.set(scheduler="synchronous"):
        assert np.array_equal(lazy.compute(), K)
        assert np.array_equal(oblong.to_dask().compute(), KY)
        np.testing.assert_allclose(lazy.sum(axis=0).compute(), K.sum(axis=0))


def test_dask_blocks_are_opened_on_the_workers(
    gram: rd.Gram, client: Client, K: np.ndarray
) -> None:
    assert np.array_equal(client.compute(gram.to_dask()[20:, :7]).result(), K[20:, :7])


def test_xarray_carries_the_kernel(gram: rd.Gram, K: np.ndarray) -> None:
    table = gram.to_xarray()
    assert table.dims == ("row", "col")
    assert table.name == "ntk"
    assert table.attrs["readout"] == "per_step"
    with dask.config.set(scheduler="synchronous"):
        assert np.array_equal(table.isel(row=3).values, K[3])


def test_without_xarray_the_error_says_what_to_install(
    gram: rd.Gram, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match="pip install xarray"):
        gram.to_xarray()


# -- gaps and damage ------------------------------------------------------------------------------


def test_what_is_there_can_be_read_and_gaps_cannot(partial: rd.Gram, K: np.ndarray) -> None:
    assert not partial.complete
    assert len(partial.missing) == 20
    assert np.array_equal(partial[:5], K[:5])
    assert np.array_equal(partial[:, :5], K[:, :5])
    assert np.array_equal(partial[20:25, 15:20], K[20:25, 15:20])
    assert "8/28 tiles" in repr(partial)


@pytest.mark.parametrize(
    "read",
    [
        lambda gram: gram[7, 7],
        np.asarray,
        lambda gram: gram.diag(),
        lambda gram: gram @ np.ones(N),
        lambda gram: np.ones(N) @ gram,
        lambda gram: gram.to_dask(),
        lambda gram: gram.to_xarray(),
    ],
    ids=["index", "asarray", "diag", "matmul", "rmatmul", "dask", "xarray"],
)
def test_a_gap_is_refused_with_the_way_to_go_on(partial: rd.Gram, read: Any) -> None:
    with pytest.raises(rd.IncompleteGramError) as refused:
        read(partial)
    assert str(refused.value) == (
        "20 of 28 tiles have not been computed, here the first needed is (1, 1): run rd.gram "
        f"again with the same arguments and store={str(partial.store.location)!r} to resume"
    )


def test_a_partial_matrix_is_completed_by_the_same_call(
    partial: rd.Gram, client: Client, X: Sequences, K: np.ndarray
) -> None:
    rd.gram(KERNEL, X, store=partial.store.location, client=client, progress=False)
    assert partial.complete
    assert np.array_equal(np.asarray(partial), K)


def test_a_damaged_tile_is_not_read(partial: rd.Gram) -> None:
    path = chunk(partial, Tile(0, 2))
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(CorruptTileError, match=r"tile \(0, 2\) is damaged"):
        partial[12, 3]


def test_open_gram_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no Gram store at"):
        rd.open_gram(tmp_path / "none")
