"""Support vector machines: scikit-learn's results, without a copy, from few columns."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import filled, gaussian
from sklearn import svm

import rntk_dist as rd
from rntk_dist.operators import Dense
from rntk_dist.plan import Tile
from rntk_dist.solve.svm import SVC, SVR
from rntk_dist.solve.systems import SolverMemoryError
from rntk_dist.store import GramStore

N, NEW, TILE = 80, 23, 20


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N + NEW, 2))


@pytest.fixture(scope="module")
def K(points: np.ndarray) -> np.ndarray:
    return gaussian(points)


@pytest.fixture(scope="module")
def gram(K: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    where = tmp_path_factory.mktemp("svm")
    return rd.Gram(filled(where / "gram", np.ascontiguousarray(K[:N, :N]), TILE))


@pytest.fixture(scope="module")
def across(K: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    where = tmp_path_factory.mktemp("svm")
    values = np.ascontiguousarray(K[N:, :N])
    return rd.Gram(filled(where / "across", values, TILE, symmetric=False))


def labels(points: np.ndarray, classes: int) -> np.ndarray:
    angles = np.arctan2(points[:N, 1], points[:N, 0])
    return np.array(list("abcde"))[((angles + np.pi) / (2 * np.pi) * classes).astype(int)]


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


# -- as scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("C", [0.3, 30.0])
def test_classification_is_scikit_learns(
    points: np.ndarray,
    K: np.ndarray,
    gram: rd.Gram,
    across: rd.Gram,
    C: float,
    classes: int,
    shape: str,
) -> None:
    y = labels(points, classes)
    own = SVC(C, decision_function_shape=shape, class_weight="balanced").fit(gram, y)
    theirs = svm.SVC(
        kernel="precomputed", C=C, decision_function_shape=shape, class_weight="balanced"
    ).fit(K[:N, :N], y)
    assert np.array_equal(own.support_, theirs.support_)
    assert np.array_equal(own.classes_, theirs.classes_)
    agree(own.machine_.dual_coef_, theirs.dual_coef_)
    agree(own.machine_.intercept_, theirs.intercept_)
    part = K[N:, :N][:, own.support_]
    for given, columns in ((across, "all"), (np.asarray(across), "all"), (part, "support")):
        assert np.array_equal(own.predict(given, columns=columns), theirs.predict(K[N:, :N]))
        found = own.decision_function(given, columns=columns)
        agree(found, theirs.decision_function(K[N:, :N]))


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_regression_is_scikit_learns(
    points: np.ndarray, K: np.ndarray, gram: rd.Gram, across: rd.Gram, epsilon: float
) -> None:
    y = np.sin(points[:N]).sum(axis=1)
    own = SVR(2.0, epsilon).fit(gram, y)
    theirs = svm.SVR(kernel="precomputed", C=2.0, epsilon=epsilon).fit(K[:N, :N], y)
    assert np.array_equal(own.support_, theirs.support_)
    agree(own.predict(across), theirs.predict(K[N:, :N]))
    part = Dense(K[N:, :N][:, own.support_])
    agree(own.predict(part, columns="support"), theirs.predict(K[N:, :N]))


def test_weights_and_views_are_scikit_learns(
    points: np.ndarray, K: np.ndarray, gram: rd.Gram, across: rd.Gram
) -> None:
    y, weights = labels(points, 3), np.random.default_rng(1).uniform(0.1, 2, N)
    own = SVC(5.0).fit(gram.centered(), y, weights)
    square = np.asarray(gram.centered())
    theirs = svm.SVC(kernel="precomputed", C=5.0).fit(square, y, weights)
    other = np.asarray(across.centered(gram))
    found = own.decision_function(across.centered(gram))
    np.testing.assert_allclose(found, theirs.decision_function(other), atol=1e-6)


def test_a_tube_that_holds_all_needs_no_column(gram: rd.Gram, across: rd.Gram) -> None:
    y = np.linspace(-1, 1, N)
    machine = SVR(epsilon=5.0).fit(gram, y)
    assert machine.support_.shape == (0,)
    found = machine.predict(across)
    assert np.array_equal(found, np.full(NEW, machine.machine_.intercept_[0]))
    assert np.array_equal(found, machine.predict(np.empty((NEW, 0)), columns="support"))


def test_sequences_are_predicted_from_the_support_vectors_alone() -> None:
    rng = np.random.default_rng(3)
    drawn = [rng.normal(size=length) for length in rng.integers(4, 9, 40)]
    X = rd.Sequences.from_arrays(drawn)
    y = np.array([x[-1] > 0 for x in drawn[:30]])
    kernel = rd.RNTK(normalize=True, sigma_b=0.1)
    machine = SVC(10.0).fit(kernel(X[:30], backend="numpy"), y)
    assert len(machine.support_) < 30
    few = kernel(X[30:], X[machine.support_], backend="numpy")
    found = machine.decision_function(few, columns="support")
    agree(found, machine.decision_function(kernel(X[30:], X[:30], backend="numpy")))


# -- few columns -----------------------------------------------------------------------------------


class Counted(Dense):
    """Which columns were read, of how many rows at a time."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values, symmetric=False)
        self.read: list[np.ndarray] = []
        self.most = 0

    @property
    def edge(self) -> int:
        return 10

    def block(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        self.read.append(cols)
        self.most = max(self.most, len(rows))
        return super().block(rows, cols)

    def product(self, V: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        raise AssertionError("a product reads every column")


def test_only_the_support_vectors_columns_are_read(
    points: np.ndarray, K: np.ndarray, gram: rd.Gram
) -> None:
    machine = SVC(10.0).fit(gram, labels(points, 2))
    across = Counted(K[N:, :N])
    machine.predict(across)
    machine.decision_function(across)
    assert len(machine.support_) < N / 2
    assert all(np.array_equal(cols, machine.support_) for cols in across.read)
    assert across.most == 10


def test_only_tiles_with_support_vectors_are_read(
    points: np.ndarray,
    K: np.ndarray,
    gram: rd.Gram,
    across: rd.Gram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Samples that weigh next to nothing are in the first two blocks, and support nothing."""
    order = np.argsort(-np.abs(points[:N, 0]))  # those far from the boundary first
    y = points[:N, 0] > 0
    linear = np.outer(points[:N, 0], points[:N, 0])[np.ix_(order, order)]
    machine = SVC(1e3).fit(linear, y[order])
    blocks = {int(i) for i in machine.support_ // TILE}
    assert blocks < set(range(N // TILE))
    read: set[Tile] = set()
    original = GramStore.read_tile

    def counted(store: GramStore, tile: Tile) -> np.ndarray:
        read.add(tile)
        return original(store, tile)

    monkeypatch.setattr(GramStore, "read_tile", counted)
    machine.predict(across)
    assert {tile.col for tile in read} == blocks
    assert len(read) == len(blocks) * across.plan.grid[0]


# -- memory ----------------------------------------------------------------------------------------


def peak(machine: Any, X: Any, y: np.ndarray) -> int:
    """Bytes that NumPy allocates at most while fitting; LIBSVM's cache is no part of it."""
    tracemalloc.start()
    try:
        machine.fit(X, y)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    x = np.random.default_rng(2).normal(size=(700, 1))
    return gaussian(x)


def test_an_array_is_not_copied(large: np.ndarray, tmp_path: Path) -> None:
    y = np.arange(700) % 2
    machine = SVC(1e-3)
    machine.fit(large[:50, :50].copy(), y[:50])  # what is allocated once
    assert peak(machine, large, y) < large.nbytes / 10
    assert peak(machine, Dense(large, symmetric=True), y) < large.nbytes / 10
    np.save(tmp_path / "large.npy", large)
    mapped = np.load(tmp_path / "large.npy", mmap_mode="r")
    assert peak(machine, mapped, y) < large.nbytes / 10
    assert np.array_equal(machine.support_, SVC(1e-3).fit(large, y).support_)


def test_a_stored_matrix_is_held_once(large: np.ndarray, tmp_path: Path) -> None:
    gram, y = rd.Gram(filled(tmp_path / "gram", large, 70)), np.arange(700) % 2
    assert peak(SVC(1e-3), gram, y) < 1.6 * large.nbytes


def test_what_does_not_fit_is_refused_with_the_way_out(
    gram: rd.Gram, K: np.ndarray, points: np.ndarray
) -> None:
    y = labels(points, 2)
    with pytest.raises(SolverMemoryError, match=r"of 80 samples needs 0.20 GiB.* mmap_mode='r'"):
        SVC(memory=0).fit(gram, y)
    single = K[:N, :N].astype(np.float32)
    with pytest.raises(SolverMemoryError, match=r"float64 \.npy file"):
        SVC(memory=0).fit(single, y)
    with pytest.raises(SolverMemoryError, match="set a smaller cache_size"):
        SVR(memory=0).fit(K[:N, :N].copy(), np.arange(N))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g, a: SVC().fit(a, np.arange(NEW)), "shape 23 x 80 that is not symmetric"),
        (lambda m, g, a: SVC().fit(np.ones((3, 4)), np.arange(3)), "shape 3 x 4 that is not sym"),
        (lambda m, g, a: m.predict(np.ones((2, 3))), "2 x 3 where 80 samples were trained on"),
        (lambda m, g, a: m.predict(a, columns="support"), "give the kernel of new samples"),
        (lambda m, g, a: m.predict(a, columns="few"), "columns is 'few': give all or support"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gram: rd.Gram, across: rd.Gram, points: np.ndarray, call: Any, message: str
) -> None:
    machine = SVC(10.0).fit(gram, labels(points, 2))
    with pytest.raises(ValueError, match=message):
        call(machine, gram, across)
