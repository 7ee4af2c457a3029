"""Landmarks, Nystroem's features, eigenvalues and kernel PCA, against dense LAPACK."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import filled, gaussian
from scipy.linalg import eigh
from sklearn.decomposition import KernelPCA as TheirPCA

import rntk_dist as rd
from rntk_dist.computed import Computed
from rntk_dist.low_rank import LowRank
from rntk_dist.operators import Dense
from rntk_dist.solve import nystroem
from rntk_dist.solve.eigen import largest_eigenpairs
from rntk_dist.solve.kernel_pca import KernelPCA
from rntk_dist.solve.landmarks import RULES, Landmarks, choose_landmarks
from rntk_dist.solve.nystroem import Nystroem, trace_residual
from rntk_dist.solve.systems import SolverMemoryError
from rntk_dist.store import IdentityError

N, M = 200, 30


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Nine in ten in one heap, the others far from it and from each other."""
    rng = np.random.default_rng(0)
    heap = 0.2 * rng.normal(size=(N * 9 // 10, 2))
    return np.vstack([heap, 4.0 * rng.normal(size=(N - len(heap), 2))])


@pytest.fixture(scope="module")
def K(points: np.ndarray) -> np.ndarray:
    return gaussian(points)


# -- landmarks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, M, N])
def test_landmarks_are_different_samples_and_stand_for_all(
    K: np.ndarray, rule: Any, count: int
) -> None:
    found = choose_landmarks(Dense(K), count, rule, seed=1)
    assert len(found) == count or rule in ("kmeans++", "cholesky")
    assert (np.diff(found.indices) > 0).all()
    assert found.indices[0] >= 0
    assert found.indices[-1] < N
    assert found.weights.sum() == pytest.approx(N)
    again = choose_landmarks(Dense(K), count, rule, seed=1)
    assert np.array_equal(found.indices, again.indices)


@pytest.mark.parametrize("rule", ["leverage", "kmeans++", "cholesky"])
def test_rules_that_look_leave_less_than_chance(K: np.ndarray, rule: Any) -> None:
    def left(rule: Any, seed: int) -> float:
        found = Nystroem(M, rule=rule, seed=seed).fit(Dense(K))
        return trace_residual(Dense(K), found.approximation(Dense(K)))

    assert np.mean([left(rule, seed) for seed in range(5)]) < 0.7 * np.mean(
        [left("uniform", seed) for seed in range(5)]
    )


def test_each_is_drawn_by_its_distance_from_those_before() -> None:
    """Three heaps far apart: the first three are one of each, whatever the heaps' sizes."""
    rng = np.random.default_rng(1)
    heaps = np.repeat([0, 1, 2], [150, 40, 10])
    points = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])[heaps] + 1e-4 * rng.normal(
        size=(200, 2)
    )
    for seed in range(10):
        found = choose_landmarks(Dense(points @ points.T), 3, "kmeans++", seed)
        assert sorted(heaps[found.indices]) == [0, 1, 2]
        sizes = dict(zip(heaps[found.indices], found.weights, strict=True))
        assert sizes == {0: 150, 1: 40, 2: 10}


def test_the_second_is_drawn_with_the_odds_of_its_squared_distance() -> None:
    """Of points on a line with the first one known; 0.05 is more than four standard errors."""
    line = np.array([0.0, 1.0, 2.0, 3.0])
    K, counts = Dense(np.outer(line, line)), np.zeros((4, 4))
    for seed in range(1500):
        first, second = choose_landmarks(K, 2, "kmeans++", seed).indices
        counts[first, second] += 1
    odds = (line[:, None] - line) ** 2
    odds /= odds.sum(axis=1, keepdims=True)
    expected = np.triu((odds + odds.T) / 4)  # the first is any of four
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.05)


def test_leverage_scores_are_those_of_the_whole_matrix(K: np.ndarray) -> None:
    """From all samples with weight 1 they are exact: the diagonal of K (K + ridge I)^-1."""
    from rntk_dist.solve.landmarks import _ridge, _scores

    everything, ones = np.arange(N), np.ones(N)
    found = _scores(Dense(K), np.diag(K), everything, everything, ones, M)
    ridge = _ridge(K, ones, M, np.finfo(float).eps)
    exact = np.diag(K @ np.linalg.inv(K + ridge * np.eye(N)))
    np.testing.assert_allclose(found, exact, atol=1e-8)


def test_samples_that_are_all_one_leave_nothing_to_choose() -> None:
    found = choose_landmarks(Dense(np.ones((9, 9))), 4, "kmeans++")
    assert len(found) == 1
    assert found.weights == [9]
    assert len(choose_landmarks(Dense(np.ones((9, 9))), 4, "leverage")) == 4


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda K: choose_landmarks(Dense(K[:5]), 2), "symmetric one of all samples"),
        (lambda K: choose_landmarks(Dense(K), N + 1), "201 landmarks are asked of 200 samples"),
        (lambda K: choose_landmarks(Dense(K), 2, "nearest"), "uniform, leverage, kmeans"),
        (lambda K: Nystroem().fit(Dense(K), [0.5]), "give different indices of the 200 samples"),
        (lambda K: largest_eigenpairs(Dense(K[:5]), 2), "give a symmetric one for eigenvalues"),
        (lambda K: largest_eigenpairs(Dense(K), 0), "0 eigenvalues are asked"),
        (lambda K: largest_eigenpairs(Dense(K), 2, tol=-1.0), "tol is -1.0 and max_products 30"),
    ],
)
def test_what_makes_no_sense_is_refused(K: np.ndarray, choose: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(K)


# -- Nystroem --------------------------------------------------------------------------------------


def nystroem_of(K: np.ndarray, at: np.ndarray) -> np.ndarray:
    return K[:, at] @ np.linalg.pinv(K[np.ix_(at, at)], rcond=1e-12, hermitian=True) @ K[at]


def test_features_are_nystroems(K: np.ndarray, tmp_path: Path) -> None:
    found = Nystroem(M, rule="kmeans++").fit(Dense(K))
    expected = nystroem_of(K, found.component_indices_)
    features = found.transform(K[:, found.component_indices_])
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-8)
    in_memory = found.approximation(Dense(K))
    in_folder = found.approximation(Dense(K), tmp_path / "features")
    V = np.random.default_rng(3).normal(size=(N, 2))
    for each in (in_memory, in_folder):
        assert (each.shape, each.rank, each.symmetric) == ((N, N), M, True)
        np.testing.assert_allclose(np.asarray(each), features @ features.T, atol=1e-12)
        np.testing.assert_allclose(each @ V, features @ (features.T @ V), atol=1e-12)
        np.testing.assert_allclose(each.diag(), (features**2).sum(axis=1), atol=1e-12)
        np.testing.assert_allclose(np.asarray(each.to_dask()), np.asarray(each), atol=1e-12)
        np.testing.assert_allclose(each[[7, 3], 150:], np.asarray(each)[[7, 3], 150:], atol=1e-12)
    assert in_memory.identity == in_folder.identity
    assert LowRank(features).identity != in_memory.identity


def test_what_is_left_is_positive_and_its_trace_is_told(K: np.ndarray) -> None:
    found = Nystroem(M).fit(Dense(K)).approximation(Dense(K))
    left = np.linalg.eigvalsh(K - np.asarray(found))
    share = trace_residual(Dense(K), found)
    assert left[0] > -1e-7  # the smallest eigenvalues of K(B, B) are rounding, and divided by
    assert share == pytest.approx(np.trace(K - np.asarray(found)) / N)
    assert left[-1] <= share * N
    assert trace_residual(Dense(K), Nystroem(N).fit(Dense(K)).approximation(Dense(K))) < 1e-10


def test_features_in_a_folder_go_on_and_are_known_again(K: np.ndarray, tmp_path: Path) -> None:
    found = Nystroem(M).fit(Dense(K))
    whole = found.approximation(Dense(K), tmp_path / "features")
    (tmp_path / "features/rows/c/0/0").unlink()
    assert np.array_equal(
        np.asarray(found.approximation(Dense(K), tmp_path / "features")),
        np.asarray(Nystroem(M).fit(Dense(K)).approximation(Dense(K), tmp_path / "other")),
    )
    assert whole.rank == M
    other = Nystroem(M, seed=1).fit(Dense(K))
    with pytest.raises(IdentityError, match="or of other landmarks: choose another"):
        other.approximation(Dense(K), tmp_path / "features")
    with pytest.raises(SolverMemoryError, match=r"200 x 30 features needs 0.00 GiB.*: give a fold"):
        found.approximation(Dense(K), memory=1)


def test_it_is_out_of_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 n m bytes would be 10 MB; panels of features have half of one."""
    monkeypatch.setattr(nystroem, "PANEL_BYTES", 2**19)
    n, m = 6000, 200
    X = np.random.default_rng(4).normal(size=(n, 1))
    matrix = Computed(rd.RNTK(sigma_b=0.5), X, edge=128, threads=2)
    matrix[:64, :64]  # compiles
    found = Nystroem(m).fit(matrix, np.arange(0, n, n // m))
    tracemalloc.start()
    stored = found.approximation(matrix, tmp_path / "features")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stored.shape == (n, n)
    assert peak < 8 * n * m / 2


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_nystroem_at_two_thousand(rule: Any) -> None:
    """Against the best approximation of rank k.

    Uniform landmarks are held to what Drineas and Mahoney (JMLR 2005) say of them, the others to
    four times the best of half their rank: Musco and Musco's and Chen's bounds have that form.
    """
    K = gaussian(np.random.default_rng(5).normal(size=(2000, 2)))
    best = np.cumsum(np.linalg.eigvalsh(K))[::-1]  # [k]: the trace that rank k leaves
    found = Nystroem(100, rule=rule).fit(Dense(K)).approximation(Dense(K))
    left = trace_residual(Dense(K), found) * 2000
    assert best[100] <= left * (1 + 1e-9)
    if rule == "uniform":
        assert left <= best[50] + np.sqrt(64 * 50 / 100) * (np.diag(K) ** 2).sum() / np.sqrt(100)
    else:
        assert left <= 4 * best[50]


# -- eigenvalues -----------------------------------------------------------------------------------


def decaying(n: int, seed: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with eigenvalues 1 / i^2, and those."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    values = 1.0 / np.arange(1, n + 1) ** 2
    K = (turn * values) @ turn.T
    return (K + K.T) / 2, values


@pytest.mark.parametrize("kind", ["dense", "stored", "view"])
def test_eigenvalues_are_lapacks(kind: str, tmp_path: Path) -> None:
    K, values = decaying(N)
    matrix = {
        "dense": lambda: Dense(K),
        "stored": lambda: rd.Gram(filled(tmp_path / "gram", K, 64)),
        "view": lambda: 0.5 * Dense(K) + 0.5 * Dense(K),
    }[kind]()
    found = largest_eigenpairs(matrix, 5, tol=1e-9)
    np.testing.assert_allclose(found.values, values[:5], rtol=1e-9)
    assert found.products < 20
    left = np.linalg.norm(K @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, left, atol=1e-13)
    assert found.residuals.max() <= 1e-9
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-12)


def test_residuals_bound_the_error_of_what_is_stopped_early() -> None:
    K, values = decaying(N)
    for products in (1, 2, 3):
        found = largest_eigenpairs(Dense(K), 5, oversampling=2, max_products=products)
        assert found.products == products
        nearest = np.abs(found.values[:, None] - values).min(axis=1)
        assert (nearest <= found.residuals + 1e-14).all()
        assert (found.values <= values[:5] + 1e-14).all()  # Rayleigh-Ritz is from below


def test_all_eigenvalues_take_one_product() -> None:
    K, values = decaying(12)
    found = largest_eigenpairs(Dense(K), 12)
    assert found.products == 1
    np.testing.assert_allclose(found.values, values, rtol=1e-9)


def test_columns_that_do_not_fit_are_refused(K: np.ndarray) -> None:
    with pytest.raises(SolverMemoryError, match=r"15 columns of 200 samples needs .*ask for fewer"):
        largest_eigenpairs(Dense(K), 5, memory=1)


@pytest.mark.slow
def test_eigenvalues_at_two_thousand() -> None:
    """Within the a posteriori residuals, and below 1e-6 of the largest."""
    X = np.random.default_rng(7).normal(size=(2000, 16))
    matrix = Computed(rd.RNTK(readout="per_step"), X, edge=512)
    exact = eigh(np.asarray(matrix), eigvals_only=True, subset_by_index=(1980, 1999))[::-1]
    found = largest_eigenpairs(matrix, 20, oversampling=20, max_products=12)
    assert (np.abs(found.values - exact) <= found.residuals + 1e-12 * exact[0]).all()
    assert (np.abs(found.values - exact) <= 1e-6 * exact[0]).all()


# -- kernel PCA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 4])
def test_kernel_pca_is_scikit_learns(components: int) -> None:
    X = np.random.default_rng(8).normal(size=(90, 6)) * np.geomspace(3, 0.3, 6)
    kernel = rd.RNTK(readout="per_step", sigma_b=0.2)
    K, across = kernel(X[:70]), kernel(X[70:], X[:70])
    theirs = TheirPCA(components, kernel="precomputed", eigen_solver="dense").fit(K)
    own = KernelPCA(components, tol=1e-10, max_products=200)
    scores = own.fit_transform(Computed(kernel, X[:70], edge=32))
    close = {"rtol": 1e-6, "atol": 1e-7 * np.abs(scores).max()}
    np.testing.assert_allclose(own.eigenvalues_, theirs.eigenvalues_, rtol=1e-9)
    np.testing.assert_allclose(own.eigenvectors_, theirs.eigenvectors_, atol=1e-7)
    np.testing.assert_allclose(scores, theirs.fit_transform(K), **close)
    found = own.transform(Computed(kernel, X[70:], X[:70], edge=32))
    np.testing.assert_allclose(found, theirs.transform(across), **close)
    np.testing.assert_allclose(own.transform(K), scores, **close)
    assert own.residuals_.max() <= 1e-10 * own.eigenvalues_[0]
    assert 0 < own.shares_.sum() <= 1 + 1e-12


def test_directions_without_variance_have_no_scores() -> None:
    points = np.random.default_rng(9).normal(size=(40, 2))
    own = KernelPCA(4).fit(points @ points.T)
    assert (own.eigenvalues_[:2] > 1).all()
    assert np.array_equal(own.eigenvalues_[2:], [0, 0])
    assert np.array_equal(own.transform(points @ points.T)[:, 2:], np.zeros((40, 2)))
    assert own.shares_.sum() == pytest.approx(1)


def test_kernel_pca_of_nystroems_features(K: np.ndarray) -> None:
    """All samples as landmarks: the same as of the kernel itself."""
    whole = Nystroem(N).fit(Dense(K)).approximation(Dense(K))
    one, two = (KernelPCA(3).fit(each) for each in (Dense(K), whole))
    np.testing.assert_allclose(one.eigenvalues_, two.eigenvalues_, rtol=1e-6)


def test_landmarks_that_are_given_are_taken(K: np.ndarray) -> None:
    given = Landmarks(np.array([3, 70, 5]), np.array([100.0, 50.0, 50.0]))
    found = Nystroem().fit(Dense(K), given)
    assert np.array_equal(found.component_indices_, [3, 70, 5])
    assert np.array_equal(Nystroem().fit(Dense(K), [3, 70, 5]).landmarks_.weights, [200 / 3] * 3)
