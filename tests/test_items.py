"""Sequences of discrete items: ids that are never vectors, and the kernel of the vectors."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rntk_dist as rd
from rntk_dist.creation import samples_of
from rntk_dist.experiments.archive import rescaled, z_normalised, zero_padded
from rntk_dist.experiments.finite_network import Batch
from rntk_dist.experiments.inputs import Averaged, Delays, WithDifferences
from rntk_dist.experiments.methods import RBF, Polynomial
from rntk_dist.items import ONE_HOT_BYTES, ItemIds
from rntk_dist.kernel.many import many_values
from rntk_dist.kernel.sensitivity import gradient
from rntk_dist.store import GramStore

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


def drawn(rng: np.random.Generator, n: int, n_items: int, longest: int = 9) -> rd.Sequences:
    lengths = rng.integers(1, longest + 1, n)
    return rd.Sequences.from_items([rng.integers(0, n_items, t) for t in lengths], n_items)


LISTS = [[3, 1, 3], [0], (4, 4, 2, 1)]
X = rd.Sequences.from_items(LISTS, 5, labels=["a", "b", "c"])


# -- what is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lists",
    [
        LISTS,
        tuple(LISTS),
        [np.array(ids, np.uint8) for ids in LISTS],
        [np.array(LISTS[0], np.uint64), np.array(LISTS[1], np.int64), LISTS[2]],
        np.array([np.array(ids) for ids in LISTS], dtype=object),
    ],
    ids=["lists", "tuples", "arrays", "mixed", "objects"],
)
def test_lists_of_ids(lists: Any) -> None:
    read = rd.Sequences.from_items(lists, 5)
    assert [x.tolist() for x in read] == [list(ids) for ids in LISTS]
    assert read.fingerprint == X.fingerprint
    assert (len(read), read.n_features, read.n_items) == (3, 5, 5)
    assert list(read.lengths) == [3, 1, 4]
    assert not read.equal_length


def test_a_table_of_ids() -> None:
    read = rd.Sequences.from_items(np.array([[1, 2], [0, 3]]), 4)
    assert read.equal_length
    assert read.values.tolist() == [[1], [2], [0], [3]]


@pytest.mark.parametrize(
    ("n_items", "dtype"),
    [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "int32")],
)
def test_ids_take_as_little_as_they_can(n_items: int, dtype: str) -> None:
    top = rd.Sequences.from_items([[n_items - 1, 0]], n_items)
    assert top.values.dtype == dtype
    assert top[0].tolist() == [n_items - 1, 0]
    assert top.nbytes == 2 * np.dtype(dtype).itemsize + top.offsets.nbytes


def test_a_million_items_take_no_vectors() -> None:
    many = rd.Sequences.from_items([[10**6, 5], [7]], 2**31 - 1)
    assert many.nbytes < 100
    assert rd.RNTK()(many, backend="numpy").shape == (2, 2)
    with pytest.raises(ValueError, match="one-hot vectors of 2147483647 features take"):
        many.one_hot()


@pytest.mark.parametrize(
    ("lists", "n_items", "error", "words"),
    [
        ([[1, 5]], 5, ValueError, "sequence 0 holds the id 5 at time step 1, outside 0..4"),
        ([[0], [2, -1]], 5, ValueError, "sequence 1 holds the id -1 at time step 1"),
        ([[0], np.array([2**64 - 1], np.uint64)], 5, ValueError, "sequence 1 holds the id -1"),
        ([[0], []], 5, ValueError, r"sequence 1 is empty \(0 time steps\)"),
        ([], 5, ValueError, "no sequence at all"),
        ([[0.0]], 5, TypeError, "sequence 0 has dtype float64, not integer ids"),
        ([[True]], 5, TypeError, "sequence 0 has dtype bool"),
        ([["a"]], 5, TypeError, "sequence 0 has dtype <U1"),
        ([[2**80]], 5, TypeError, "sequence 0 has dtype object"),
        ([0, 1], 5, TypeError, "sequence 0 is 0, not a list of ids"),
        (["ab"], 5, TypeError, "sequence 0 is 'ab', not a list of ids"),
        ([[0, [1]]], 5, ValueError, "sequence 0 has lists inside"),
        ([[[0], [1]]], 5, ValueError, r"sequence 0 has shape \(2, 1\)"),
        (np.zeros((2, 2, 2), int), 5, ValueError, r"the ids have shape \(2, 2, 2\)"),
        ([[0]], 0, ValueError, "n_items is 0"),
        ([[0]], 2**31, ValueError, "n_items is 2147483648"),
        ([[0]], 2.0, TypeError, "n_items is 2.0"),
        (X, 6, ValueError, "is not of 6 items"),
    ],
)
def test_what_is_no_item_is_refused(lists: Any, n_items: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        rd.Sequences.from_items(lists, n_items)


def test_a_batch_stays_a_batch_of_items() -> None:
    parts = [X[1:], X[[2, 0]], X[np.array([True, False, True])], X.reversed()]
    assert all(part.n_items == 5 for part in parts)
    assert [ids.tolist() for ids in X.reversed()] == [[3, 1, 3], [0], [1, 2, 4, 4]]
    assert X[[2, 0]].labels is not None
    joined = rd.Sequences.concatenate([X[:1], X[1:]])
    assert joined.fingerprint == X.fingerprint
    copy = pickle.loads(pickle.dumps(X))
    assert copy.fingerprint == X.fingerprint
    assert not copy.values.flags.writeable
    assert rd.Sequences.from_arrays(X) is X
    assert rd.Sequences.from_items(X, 5) is X
    assert repr(X) == "Sequences(n=3, length=1..4, items=5, uint8)"
    assert not isinstance(X[0], rd.Sequences)
    assert isinstance(X[0], ItemIds)


def test_fingerprints_tell_items_from_numbers_and_vocabularies() -> None:
    numbers = rd.Sequences.from_arrays([np.array(ids, float) for ids in LISTS])
    others = [numbers, X.one_hot(), rd.Sequences.from_items(LISTS, 6), X.reversed(), X[:2]]
    assert len({each.fingerprint for each in [X, *others]}) == 6
    wider = rd.Sequences(X.values.astype(np.int64), X.offsets, None, 5)
    assert wider.fingerprint == X.fingerprint


@pytest.mark.parametrize("suffix", [".npz", ".zarr"])
def test_written_and_read(tmp_path: Path, suffix: str) -> None:
    X.write(tmp_path / f"x{suffix}")
    read = rd.Sequences.read(tmp_path / f"x{suffix}")
    assert read.fingerprint == X.fingerprint
    assert read.labels is not None
    assert read.labels.tolist() == ["a", "b", "c"]


def test_a_lost_chunk_of_ids_is_found(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x")
    rd.Sequences.from_items([[0] * 10], 255).write_to(group)
    (tmp_path / "x" / "values" / "c" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"lack a chunk or are damaged.*holds the id 255"):
        rd.Sequences.from_group(group)


def test_items_are_appended_to_items_alone(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x")
    X.write_to(group)
    X[1:].append_to(group, 3)
    assert (
        rd.Sequences.from_group(group).fingerprint
        == rd.Sequences.concatenate([X, X[1:]]).fingerprint
    )
    sixth, number = (
        rd.Sequences.from_items([[0]], 6, ["d"]),
        rd.Sequences.from_arrays([[0.0]], ["d"]),
    )
    for other in (sixth, number):
        with pytest.raises(ValueError, match="the stored ones of 5 items"):
            other.append_to(group, 3)
    with pytest.raises(ValueError, match="only batches of the same items"):
        rd.Sequences.concatenate([X, X.one_hot()])


def test_a_notebook_lists_ids() -> None:
    html = X._repr_html_()
    assert "4, 4, 2, 1" in html
    assert "5, of which 5 occur" in html


# -- ids are no numbers ----------------------------------------------------------------------------

USES: list[Callable[[], object]] = [
    lambda: rd.Sequences.from_arrays([X[0], X[1]]),
    lambda: rd.RNTK()([X[0], X[2]]),
    lambda: rd.RNTK().sensitivity(X[0], X[2]),
    lambda: gradient(rd.RNTK(), X[:1], X[1:], "ntk"),
    lambda: z_normalised(X),
    lambda: zero_padded(X, 4),
    lambda: rescaled(X, 4),
    lambda: Delays(2)(X),
    lambda: Averaged(2)(X),
    lambda: WithDifferences()(X),
    lambda: RBF()(X),
    lambda: Polynomial()(X),
    lambda: Polynomial().diag(X),
    lambda: Batch.of(X),
]


@pytest.mark.parametrize("use", USES)
def test_what_takes_numbers_refuses_ids(use: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="ids"):
        use()


def test_items_are_compared_with_items() -> None:
    for Y in (X.one_hot(), rd.Sequences.from_items(LISTS, 6)):
        with pytest.raises(ValueError, match="X "):
            rd.RNTK()(X, Y)
    with pytest.raises(ValueError, match="has no items"):
        X.one_hot().one_hot()
    assert ONE_HOT_BYTES == 2**28


# -- the kernel ------------------------------------------------------------------------------------

KERNELS = st.builds(
    rd.RNTK,
    depth=st.integers(1, 3),
    activation=st.sampled_from(["relu", "erf", "linear"]),
    sigma_w=st.floats(0.5, 1.6),
    sigma_u=st.floats(0.5, 2.0),
    sigma_b=st.sampled_from([0.0, 0.3]),
    sigma_h=st.sampled_from([0.0, 0.5]),
    readout=st.sampled_from(["last", "per_step", "mean"]),
    bidirectional=st.booleans(),
    frozen_layers=st.integers(0, 1),
    initial_state=st.sampled_from(["shared", "independent"]),
    normalize=st.booleans(),
)


def assert_as_one_hot(
    kernel: rd.RNTK, rows: rd.Sequences, columns: rd.Sequences | None, **options: Any
) -> None:
    dense = None if columns is None else columns.one_hot()
    expected = kernel(rows.one_hot(), dense, **{**options, "backend": "numpy", "dtype": "float64"})
    found = kernel(rows, columns, **options)
    tolerance = TOLERANCE[options["dtype"]]
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * abs(expected).max()
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kernel=KERNELS,
    seed=st.integers(0, 2**32),
    n_items=st.integers(1, 7),
    dtype=st.sampled_from(["float64", "float32"]),
    kind=st.sampled_from(["ntk", "nngp"]),
)
def test_equals_dense_one_hot(
    kernel: rd.RNTK, seed: int, n_items: int, dtype: str, kind: Any
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = drawn(rng, 5, n_items), drawn(rng, 4, n_items)
    for other in (None, columns):
        assert_as_one_hot(kernel, rows, other, dtype=dtype, kind=kind, backend="numpy")
    np.testing.assert_allclose(
        kernel.diag(rows, kind=kind), kernel.diag(rows.one_hot(), kind=kind), rtol=1e-12
    )
    whole = kernel(rows, columns, dtype=dtype, kind=kind, backend="numpy")
    crop = kernel(rows[1:4], columns[2:], dtype=dtype, kind=kind, backend="numpy")
    assert np.array_equal(crop, whole[1:4, 2:])


def check_compiled(kernel: rd.RNTK, dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows, columns = drawn(rng, 30, 6), drawn(rng, 290, 6)
    options: Any = {"dtype": dtype, "backend": "numba"}
    assert_as_one_hot(kernel, rows, None, **options)
    assert_as_one_hot(kernel, rows, columns, **options)
    whole = kernel(rows, columns, **options)
    assert np.array_equal(kernel(rows[3:20], columns[100:130], **options), whole[3:20, 100:130])
    assert np.array_equal(kernel(columns, rows, **options), whole.T)
    symmetric = kernel(rows, **options)
    assert np.array_equal(symmetric, symmetric.T)


@pytest.mark.parametrize(
    "dtype", [pytest.param("float64", marks=pytest.mark.slow), "float32"]
)  # loops are compiled for each
@pytest.mark.parametrize("depth", [1, 2])
def test_compiled_loops_equal_dense_one_hot(dtype: str, depth: int) -> None:
    check_compiled(rd.RNTK(depth=depth, readout="per_step"), dtype)
    check_compiled(rd.RNTK(depth=depth, sigma_h=0.4, readout="mean", bidirectional=True), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bias"), [("float64", 0.3), ("float32", 0.0)])
@pytest.mark.parametrize("activation", ["relu", "erf", "linear"])
def test_compiled_loops_of_every_activation(activation: Any, dtype: str, bias: float) -> None:
    for readout in ("last", "per_step", "mean"):
        kernel = rd.RNTK(activation=activation, sigma_w=1.2, sigma_b=bias, readout=readout)
        check_compiled(kernel, dtype)


def test_more_ids_than_float32_has_are_refused() -> None:
    many = rd.Sequences.from_items([[2**24], [2**24 + 1]], 2**25)
    with pytest.raises(ValueError, match="id 16777217 is no float32 number"):
        rd.RNTK()(many, dtype="float32", backend="numpy")
    assert (
        rd.RNTK()(many, backend="numpy")[0, 1]
        == rd.RNTK()(rd.Sequences.from_items([[0], [1]], 2**25), backend="numpy")[0, 1]
    )


def test_many_kernels_side_by_side() -> None:
    kernels = [rd.RNTK(sigma_w=1.0), rd.RNTK(sigma_w=1.4, normalize=True)]
    options: Any = {"kind": "ntk", "backend": "numpy"}
    for i, values in many_values(kernels, X, dtype=np.dtype("float64"), **options):
        assert np.array_equal(values, kernels[i](X, backend="numpy"))


# -- stores ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_matrix_of_items_is_stored_resumed_extended_and_verified(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    items, kernel = drawn(rng, 90, 20), rd.RNTK(normalize=True)
    options: Any = {"tile": 64, "progress": False, "backend": "numpy"}
    gram = rd.gram(kernel, items, store=tmp_path / "k", **options)
    expected = kernel(items, backend="numpy")
    assert np.array_equal(np.asarray(gram), expected)
    assert gram.sequences.fingerprint == items.fingerprint
    assert gram.store.samples().n_features == samples_of(items, None).n_features
    for chunk in (tmp_path / "k" / "gram" / "c").rglob("1"):
        if chunk.is_file():
            chunk.unlink()
    again = rd.gram(kernel, items, store=tmp_path / "k", **options)
    assert np.array_equal(np.asarray(again), expected)
    assert rd.verify(tmp_path / "k", recompute=20).ok
    with pytest.raises(rd.IdentityError):
        rd.gram(kernel, items.one_hot(), store=tmp_path / "k", **options)
    assert GramStore.open(tmp_path / "k").sequences(3, 5)[0].tolist() == items[3].tolist()
