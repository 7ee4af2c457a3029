"""Nearest neighbours: what a brute-force matrix gives, however it is cut, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import client_of
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import rntk_dist as rd
from rntk_dist import neighbor_search
from rntk_dist.cli.app import app
from rntk_dist.kernel.nearest import Nearest
from rntk_dist.neighbor_manifest import MOST_QUERIES, NeighborPlan, choose_queries
from rntk_dist.neighbor_search import Training
from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.plan import Samples, Work, Workers
from rntk_dist.store import CorruptTileError, MissingTileError, NeighborsFoundError

QUIET: Any = {"backend": "numpy", "progress": False}


def items(seed: int, n: int, n_items: int = 8, longest: int = 7) -> rd.Sequences:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    return rd.Sequences.from_items([rng.integers(0, n_items, t) for t in lengths], n_items)


def dense(seed: int, n: int, longest: int = 7) -> rd.Sequences:
    rng = np.random.default_rng(seed)
    return rd.Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, longest, n)])


def best_of(K: Any, k: int) -> tuple[Any, Any]:
    """The k largest of each row of a matrix; of equal values the smaller index first."""
    order = np.lexsort((np.broadcast_to(np.arange(K.shape[1]), K.shape), -K), axis=1)[:, :k]
    return order, np.take_along_axis(K, order, axis=1)


def assert_brute_force(found: rd.Neighbors, K: Any) -> None:
    indices, values = best_of(K, found.indices.shape[1])
    assert np.array_equal(found.indices, indices)
    assert np.array_equal(found.values, values)
    assert found.indices.dtype == np.int64
    assert found.values.dtype == K.dtype


# -- against a matrix ------------------------------------------------------------------------------

KERNELS = [
    rd.RNTK(),
    rd.RNTK(readout="per_step", normalize=True),
    rd.RNTK(activation="erf", sigma_b=0.3, bidirectional=True),
    rd.RNTK(activation="linear", sigma_w=0.9, normalize=True, readout="mean"),
    rd.RNTK(depth=2, sigma_h=0.5, initial_state="independent"),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("draw", [items, dense])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equals_a_brute_force_matrix(kernel: rd.RNTK, draw: Any, dtype: Any) -> None:
    X, Y = draw(0, 40), draw(1, 330)
    K = kernel(X, Y, dtype=dtype, backend="numpy")
    for k, tile in ((1, None), (7, 16), (330, 40)):
        assert_brute_force(rd.neighbors(kernel, X, Y, k, dtype=dtype, tile=tile, **QUIET), K)


def test_ties_go_to_the_smaller_index() -> None:
    X = rd.Sequences.from_items([[0, 1], [2]], 3)
    Y = rd.Sequences.from_items([[2], [0, 1], [1, 0]] * 200, 3)
    found = rd.neighbors(rd.RNTK(normalize=True), X, Y, 4, **QUIET)
    assert found.indices.tolist() == [[1, 4, 7, 10], [0, 3, 6, 9]]
    assert (found.values[0] == found.values[0, 0]).all()


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_compiled_loops_and_threads_give_the_same(kind: Any) -> None:
    X, Y = items(0, 50), items(1, 2500)
    kernel: Any = rd.RNTK(readout="per_step", normalize=True)
    options: Any = {"dtype": "float32", "backend": "numba", "kind": kind}
    K = kernel(X, Y, **options)
    for threads in (1, 3):
        found = rd.neighbors(kernel, X, Y, 10, threads=threads, progress=False, **options)
        assert_brute_force(found, K)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    k=st.integers(1, 9),
    levels=st.integers(1, 40),
    scale=st.sampled_from([1.0, 1e-25, 1e25]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_cut_of_any_values(seed: int, k: int, levels: int, scale: float, dtype: Any) -> None:
    """Few levels make ties, negative values and factors of any size what is compared quickly."""
    rng = np.random.default_rng(seed)
    units = rng.integers(-levels, levels, (70, 120)).astype(dtype)
    rows, columns = rng.uniform(0.1, 3, 70) * scale, rng.uniform(0.1, 3, 120) ** 5 / scale
    rows[3] = 0.0
    K = (units * (rows[:, None] * columns)).astype(dtype)
    best, start = Nearest(70, k, np.dtype(dtype)), 0
    while start < 120:
        stop = min(120, start + int(rng.integers(k, 40)))
        order = rng.permutation(np.arange(start, stop))
        best.take(best.select(units[:, order], rows, columns[order]), order)
        start = stop
    indices, values = best_of(K, k)
    assert np.array_equal(best.values, values)
    assert np.array_equal(best.indices, indices)


def test_factors_of_any_range() -> None:
    """In float32 what is small beside the largest factor is still found."""
    Y = rd.Sequences.from_arrays([np.full(3, 10.0**e) for e in range(-18, 18)] * 20)
    X = rd.Sequences.from_arrays([np.full(2, 1e-15), np.full(4, 1e15)])
    kernel = rd.RNTK(activation="linear")
    found = rd.neighbors(kernel, X, Y, 700, dtype="float32", **QUIET)
    assert_brute_force(found, kernel(X, Y, dtype="float32", backend="numpy"))


# -- memory ----------------------------------------------------------------------------------------


def test_slabs_cover_the_training_sequences_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_search, "PIECE_NUMBERS", 500)
    monkeypatch.setattr(neighbor_search, "SLAB", 60)
    Y = items(3, 1000)
    read: list[tuple[int, int]] = []

    def some(start: int, stop: int) -> rd.Sequences:
        read.append((start, stop))
        return Y[start:stop]

    slabs = list(Training(some, Y.lengths, 2).slabs(100))
    starts = [start for start, _ in slabs]
    assert starts[0] == 0
    assert starts[1:] == [start + len(slab) for start, slab in slabs][:-1]
    assert rd.Sequences.concatenate([slab for _, slab in slabs]).fingerprint == Y.fingerprint
    assert len(slabs[0][1]) == 100
    assert max(len(slab) for _, slab in slabs[1:]) <= 60
    assert all(2 * Y[a:b].lengths.sum() <= 500 for a, b in read[1:])


def test_one_slab_of_values_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    compare = rd.RNTK.compare_unscaled

    def noted(*args: Any, **options: Any) -> Any:
        values = compare(*args, **options)
        shapes.append(values.shape)
        return values

    monkeypatch.setattr(rd.RNTK, "compare_unscaled", noted)
    rd.neighbors(rd.RNTK(), items(0, 30), items(1, 3000), 3, tile=20, threads=1, **QUIET)
    assert [shape[0] for shape in shapes] == [20] * 4 + [10] * 4
    assert max(shape[1] for shape in shapes) == 1024


def test_blocks_of_queries_suit_the_work() -> None:
    work = Work()
    large = Samples([9] * 22_363, [9] * 131_413)
    assert 1024 <= choose_queries(work, large, Workers(2)) <= MOST_QUERIES
    assert choose_queries(work, Samples([9] * 100, [9] * 100), Workers(2)) == MOST_QUERIES
    assert choose_queries(work, Samples([10**5] * 10, [10**5] * 10**6), Workers(1)) == 64


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (0, "k is 0: ask for at least 1 neighbour"),
        (7, "k is 7 and there are 6 training sequences"),
    ],
)
def test_impossible_numbers_of_neighbours(tmp_path: Path, k: int, words: str) -> None:
    for store in (None, tmp_path / "s"):
        with pytest.raises(ValueError, match=words):
            rd.neighbors(rd.RNTK(), items(0, 3), items(1, 6), k, store=store, **QUIET)
    assert not (tmp_path / "s").exists()


def test_a_client_needs_a_store() -> None:
    client: Any = object()
    with pytest.raises(ValueError, match="give store= with client="):
        rd.neighbors(rd.RNTK(), items(0, 3), items(1, 6), 2, client=client)


def test_items_and_numbers_have_no_neighbours_in_each_other() -> None:
    with pytest.raises(ValueError, match="compare items with items"):
        rd.neighbors(rd.RNTK(), items(0, 3), dense(1, 6), 2, **QUIET)


def test_an_overflow_names_the_sequences() -> None:
    X = rd.Sequences.from_arrays([[1.0], [1e15, 1e15]])
    Y = rd.Sequences.from_arrays([[1.0]] * 300 + [[1.0, 2.0], [1e30, 1e30], [3.0]])
    words = r"training sequences 256 on: .*sequence 1 \(length 2\) and sequence 45 \(length 2\)"
    with pytest.raises(OverflowError, match=words):
        rd.neighbors(rd.RNTK(), X, Y, 2, dtype="float32", **QUIET)
    Y = rd.Sequences.from_arrays([[1.0]] * 300 + [[1e200]])
    fits = rd.neighbors(rd.RNTK(), X, Y, 2, **QUIET)
    assert (fits.indices[:, 0] == 300).all()
    words = "training sequences 256 on: the variance of sequence 44"
    with pytest.raises(OverflowError, match=words):
        rd.neighbors(rd.RNTK(), [[1e150]], Y, 2, **QUIET)


# -- stores ----------------------------------------------------------------------------------------

KERNEL = rd.RNTK(normalize=True)
X, Y = items(0, 90), items(1, 300)


def stored(where: Path, **changed: Any) -> rd.Neighbors:
    options: Any = {"store": where, "tile": 20, **QUIET, **changed}
    return rd.neighbors(KERNEL, X, Y, 5, **options)


@pytest.fixture(scope="module")
def matrix() -> Any:
    return KERNEL(X, Y, backend="numpy")


def test_a_store_holds_what_was_found(tmp_path: Path, matrix: Any) -> None:
    assert_brute_force(stored(tmp_path / "s"), matrix)
    store = NeighborStore.open(tmp_path / "s")
    assert store.report() is not None
    assert len(store.records()) == store.plan.n_tiles == 5
    assert store.foreign_keys() == []
    assert store.sequences().fingerprint == X.fingerprint
    assert store.training(0, len(Y)).fingerprint == Y.fingerprint
    assert_brute_force(rd.open_neighbors(tmp_path / "s"), matrix)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert_brute_force(stored(tmp_path / "s", tile=None), matrix)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_float32_values_come_back_as_they_were(tmp_path: Path) -> None:
    found = stored(tmp_path / "s", dtype="float32")
    assert_brute_force(found, KERNEL(X, Y, dtype="float32", backend="numpy"))


def test_another_search_is_refused(tmp_path: Path) -> None:
    stored(tmp_path / "s")
    where: Any = {"store": tmp_path / "s", **QUIET}
    for kernel, queries, training, k, field in (
        (rd.RNTK(), X, Y, 5, "kernel.normalize"),
        (KERNEL, X[:80], Y, 5, "fingerprint"),
        (KERNEL, X, Y.reversed(), 5, "fingerprint_y"),
        (KERNEL, X, Y, 6, r"holds other nearest neighbours: [^\n]*\n  plan.k: stored 5, given 6"),
    ):
        with pytest.raises(rd.IdentityError, match=field):
            rd.neighbors(kernel, queries, training, k, **where)
    with pytest.raises(rd.IdentityError, match="dtype"):
        stored(tmp_path / "s", dtype="float32")


def test_stores_of_other_kinds_say_so(tmp_path: Path) -> None:
    stored(tmp_path / "s")
    for read in (rd.open_gram, rd.open_sweep, rd.verify):
        with pytest.raises(NeighborsFoundError, match=r"rd\.open_neighbors reads them"):
            read(tmp_path / "s")


def chunk(where: Path, block: int) -> Path:
    return where / "gram" / "c" / str(block) / "0"


def test_what_is_missing_or_damaged_is_computed_and_nothing_else(
    tmp_path: Path, matrix: Any
) -> None:
    where = tmp_path / "s"
    stored(where)
    chunk(where, 1).unlink()
    with pytest.raises(MissingTileError):
        rd.open_neighbors(where)
    content = bytearray(chunk(where, 3).read_bytes())
    content[11] ^= 1
    chunk(where, 3).write_bytes(content)
    chunk(where, 4).write_bytes(content[:50])
    assert [tile.row for tile in NeighborStore.open(where).damaged_tiles()] == [3, 4]
    before = {block: chunk(where, block).stat().st_mtime_ns for block in (0, 2)}
    assert_brute_force(stored(where), matrix)
    assert before == {block: chunk(where, block).stat().st_mtime_ns for block in before}
    assert NeighborStore.open(where).damaged_tiles() == []


def test_damage_in_a_finished_store_is_found(tmp_path: Path, matrix: Any) -> None:
    where = tmp_path / "s"
    stored(where)
    content = bytearray(chunk(where, 2).read_bytes())
    content[0] ^= 255
    chunk(where, 2).write_bytes(content)
    with pytest.raises(CorruptTileError, match=r"rd\.neighbors with this store computes"):
        rd.open_neighbors(where)
    assert_brute_force(stored(where), matrix)


def test_indices_of_no_training_sequence_are_damage(tmp_path: Path) -> None:
    stored(tmp_path / "s")
    store = NeighborStore.open(tmp_path / "s", writable=True)
    tile = next(store.plan.tiles())
    indices, values = store.read_neighbors(tile)
    store.write_neighbors(tile, indices + len(Y), values)
    assert store.damaged_tiles() == [tile]


def test_killed_and_resumed(tmp_path: Path, matrix: Any) -> None:
    X.write(tmp_path / "x.npz")
    Y.write(tmp_path / "y.npz")
    script = Path(__file__).with_name("slow_neighbors.py")
    where = tmp_path / "s"
    command = [sys.executable, str(script), *(str(tmp_path / n) for n in ("x.npz", "y.npz", "s"))]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 120
            while not chunk(where, 1).exists():
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    kept = {tile.row for tile in NeighborStore.open(where).stored_tiles()}
    assert {0, 1} <= kept < {0, 1, 2, 3, 4}
    before = {block: chunk(where, block).stat().st_mtime_ns for block in kept}
    assert_brute_force(stored(where), matrix)
    assert before == {block: chunk(where, block).stat().st_mtime_ns for block in before}


def run_command(*arguments: object) -> Result:
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(app, ["neighbors", *(str(argument) for argument in arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    X.write(tmp_path / "x.npz")
    Y.write(tmp_path / "y.npz")
    return [tmp_path / "x.npz", "--against", tmp_path / "y.npz", "--normalize"]


def test_the_command_line(tmp_path: Path, files: list[object], matrix: Any) -> None:
    where = ["--store", tmp_path / "s", "--output", tmp_path / "found.npz", "--backend", "numpy"]
    done = run_command(*files, "-k", 5, *where, "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["queries"], facts["training"], facts["k"]) == (90, 300, 5)
    with np.load(tmp_path / "found.npz") as found:
        assert_brute_force(rd.Neighbors(found["indices"], found["values"]), matrix)
    assert_brute_force(rd.open_neighbors(tmp_path / "s"), matrix)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "{}/s", "--k", 301], "k is 301 and there are 300 training sequences"),
        ([], "nothing would be kept: add --store"),
        (["--output", "{}/found.csv"], "suffix '.csv' cannot be written"),
        (["--output", "{}/x.npz"], "exists already"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, files: list[object], arguments: list[Any], words: str
) -> None:
    done = run_command(*files, *(str(each).format(tmp_path) for each in arguments))
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.slow
def test_two_workers_of_a_cluster(tmp_path: Path, matrix: Any) -> None:
    with client_of(2) as client:
        assert_brute_force(stored(tmp_path / "s", client=client), matrix)
        chunk(tmp_path / "s", 2).unlink()
        assert_brute_force(stored(tmp_path / "s", client=client), matrix)
    records = NeighborStore.open(tmp_path / "s").records()
    assert {record.attempt for record in records.values()} == {1}
    here = stored(tmp_path / "t")
    assert np.array_equal(here.indices, rd.open_neighbors(tmp_path / "s").indices)


@pytest.mark.slow
def test_a_crop_of_the_recommendation_case() -> None:
    """2000 x 5000 item sequences of mean length 9 from 12 101 items, popular ones often."""
    rng, n_items = np.random.default_rng(0), 12_101
    shares = 1 / np.arange(1, n_items + 1)

    def drawn(n: int) -> rd.Sequences:
        lengths = np.minimum(1 + rng.geometric(1 / 8, n), 50)
        ids = rng.choice(n_items, lengths.sum(), p=shares / shares.sum())
        return rd.Sequences.from_items(np.split(ids, np.cumsum(lengths)[:-1]), n_items)

    queries, training = drawn(2000), drawn(5000)
    kernel: Any = rd.RNTK(readout="per_step", normalize=True)
    options: Any = {"dtype": "float32", "backend": "numba"}
    K = kernel(queries, training, **options)
    assert_brute_force(rd.neighbors(kernel, queries, training, 10, progress=False, **options), K)


def test_a_search_takes_no_more_than_it_says() -> None:
    """The plan counts what a task holds, and nothing of the whole."""
    plan = NeighborPlan(10**6, 10**7, 2048, False, 4, 10)
    assert plan.chunk_shape == (2048, 1024)
    assert plan.n_tiles == 489
