"""Ridge regression on a few centres, against dense LAPACK on the same equations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matrices import filled, gaussian
from scipy.linalg import eigh, lstsq

import rntk_dist as rd
from rntk_dist.computed import Computed
from rntk_dist.operators import Dense
from rntk_dist.solve import panels
from rntk_dist.solve.center_factors import factorised
from rntk_dist.solve.checkpoint import CheckpointError
from rntk_dist.solve.conjugate_gradients import Options
from rntk_dist.solve.falkon import EVERY_ITERATION, Falkon, FalkonWay, falkon_path
from rntk_dist.solve.kernel_ridge import KernelRidge
from rntk_dist.solve.landmarks import choose_landmarks
from rntk_dist.solve.panels import Panels
from rntk_dist.solve.row_store import DamagedRowsError
from rntk_dist.solve.systems import NotConvergedError, NotPositiveDefiniteError, SolverMemoryError
from rntk_dist.store import IdentityError, StoreFormatError

N, M, TARGETS = 240, 40, 3
ROOT = Path(__file__).parent.parent
PLENTY = 2**40
FINE = Options(tol=1e-12, every=1)


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    return gaussian(np.random.default_rng(0).normal(size=(N, 3)))


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, TARGETS)) + 1.0


@pytest.fixture(scope="module")
def centers() -> np.ndarray:
    return np.sort(np.random.default_rng(2).choice(N, M, replace=False))


@pytest.fixture(autouse=True)
def low_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL_BYTES", 64 * M * 8)


def restricted(K: np.ndarray, y: np.ndarray, centers: np.ndarray, alpha: float) -> np.ndarray:
    """The predictions (n, targets) that minimise over the centres, by one least squares problem."""
    values, vectors = eigh(K[np.ix_(centers, centers)])
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    features = K[:, centers] @ (vectors[:, kept] / np.sqrt(values[kept]))
    r = features.shape[1]
    rows = np.vstack([features, np.sqrt(alpha) * np.eye(r)])
    found = lstsq(rows, np.vstack([y, np.zeros((r, y.shape[1]))]))[0]
    return features @ found


# -- it is what it says ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["compute", "memory", "store", "auto"])
@pytest.mark.parametrize("alpha", [10.0, 0.1, 1e-3])
def test_it_is_the_solution_on_the_centres(
    K: np.ndarray, y: np.ndarray, centers: np.ndarray, alpha: float, way: Any, tmp_path: Path
) -> None:
    fit = Falkon(alpha, way=FalkonWay(way, PLENTY, tmp_path / "fit", FINE))
    fit.fit(Dense(K), y, centers)
    expected = restricted(K, y, centers, alpha)
    found = fit.predict(K[:, centers])
    assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()
    assert fit.choice_.way == {"auto": "memory"}.get(way, way)
    assert fit.residuals_.max() <= 1e-12
    assert fit.history_.shape[1] == TARGETS


@pytest.mark.parametrize("alpha", [1.0, (1.0, 0.1, 0.02)], ids=str)
def test_with_all_samples_as_centres_it_is_ridge_regression(
    K: np.ndarray, y: np.ndarray, alpha: Any
) -> None:
    fit = Falkon(alpha, way=FalkonWay(iteration=FINE)).fit(Dense(K), y, np.arange(N))
    expected = KernelRidge(alpha).fit(Dense(K), y).predict(K)
    assert np.abs(fit.predict(K) - expected).max() < 1e-8 * np.abs(expected).max()


def test_one_target_is_one_axis(K: np.ndarray, y: np.ndarray, centers: np.ndarray) -> None:
    fit = Falkon(0.1, way=FalkonWay(iteration=FINE)).fit(K, y[:, 0], centers)
    assert (fit.dual_coef_.shape, fit.residuals_.shape) == ((M,), ())
    expected = restricted(K, y[:, :1], centers, 0.1)[:, 0]
    np.testing.assert_allclose(fit.predict(K[:, centers]), expected, atol=1e-8)


def test_alphas_share_the_walks(
    K: np.ndarray, y: np.ndarray, centers: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: Counter[str] = Counter()
    normal = Panels.normal_product

    def counted(self: Panels, V: np.ndarray) -> np.ndarray:
        walks["normal"] += 1
        return normal(self, V)

    monkeypatch.setattr(Panels, "normal_product", counted)
    alphas = [10.0, 0.1, 1e-3]
    path = falkon_path(Dense(K), y, alphas, centers, FalkonWay(iteration=FINE))
    assert path.dual_coef.shape == (3, M, TARGETS)
    assert path.history.shape == (walks["normal"], 3 * TARGETS)  # the last walk measures
    for alpha, dual in zip(alphas, path.dual_coef, strict=True):
        expected = restricted(K, y, centers, alpha)
        np.testing.assert_allclose(K[:, centers] @ dual, expected, atol=1e-8)
    one = falkon_path(Dense(K), y[:, 0], alphas, centers, FalkonWay(iteration=FINE))
    np.testing.assert_allclose(one.dual_coef, path.dual_coef[..., 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["uniform", "leverage", "kmeans++", "cholesky"])
def test_few_iterations_whatever_the_centres(K: np.ndarray, y: np.ndarray, rule: Any) -> None:
    """Against hundreds without a preconditioner."""
    landmarks = choose_landmarks(Dense(K), M, rule, seed=3)
    path = falkon_path(Dense(K), y, [0.1], landmarks)
    assert len(path.history) <= 31
    assert path.residuals.max() <= 1e-6
    expected = restricted(K, y, landmarks.indices, 0.1)
    np.testing.assert_allclose(K[:, landmarks.indices] @ path.dual_coef[0], expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_takes_what_is_computed_and_what_is_stored(dtype: str, tmp_path: Path) -> None:
    X = np.random.default_rng(4).normal(size=(200, 6))
    y, kernel = X[:, :3].sum(axis=1), rd.RNTK(readout="per_step")
    computed = Computed(kernel, X, dtype=dtype, edge=64)
    fine = Options(tol=1e-8, every=1)
    fit = Falkon(0.01, 50, seed=1, way=FalkonWay("compute", iteration=fine)).fit(computed, y)
    stored = rd.Gram(filled(tmp_path / "gram", np.asarray(computed), 64))
    again = Falkon(0.01, 50, seed=1, way=FalkonWay(iteration=fine)).fit(stored, y)
    assert np.array_equal(fit.centers_, again.centers_)
    across = Computed(kernel, X, X[fit.centers_])
    close = 1e-5 if dtype == "float64" else 1e-3
    np.testing.assert_allclose(fit.predict(across), again.predict(across), atol=close)
    exact = restricted(kernel(X), y[:, None], fit.centers_, 0.01)[:, 0]
    np.testing.assert_allclose(fit.predict(across), exact, atol=close)


def test_a_kernel_of_low_rank_is_no_exception(y: np.ndarray, centers: np.ndarray) -> None:
    """K_mm is singular: what is added to its diagonal is rounding, and its root is the error."""
    points = np.random.default_rng(5).normal(size=(N, 4))
    K = points @ points.T
    fit = Falkon(0.5).fit(Dense(K), y, centers)
    assert 0 < fit.jitter_ < 1e-10
    np.testing.assert_allclose(
        fit.predict(K[:, centers]), restricted(K, y, centers, 0.5), atol=1e-6
    )


# -- where panels come from ------------------------------------------------------------------------


class Counted(Dense):
    """Counts the rows that are asked of it."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values)
        self.rows = 0

    def block(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        self.rows += len(rows)
        return super().block(rows, cols)


@pytest.mark.parametrize("way", ["memory", "store"])
def test_panels_that_are_kept_are_computed_once(
    K: np.ndarray, y: np.ndarray, centers: np.ndarray, way: Any, tmp_path: Path
) -> None:
    kept, anew = Counted(K), Counted(K)
    path = falkon_path(kept, y, [0.1], centers, FalkonWay(way, PLENTY, tmp_path))
    assert kept.rows == N + M
    falkon_path(anew, y, [0.1], centers, FalkonWay("compute"))
    assert anew.rows == N * (len(path.history) + 1) + M  # and one walk for K_nm^T y


def test_auto_measures_where_memory_does_not_suffice(
    K: np.ndarray, centers: np.ndarray, tmp_path: Path
) -> None:
    found = Panels(Dense(K), centers, "auto", 0, tmp_path / "panels")
    choice = found.choice
    assert choice.compute is not None
    assert choice.write is not None
    assert choice.read is not None
    pays = choice.write / panels.WALKS + choice.read < choice.compute
    assert choice.way == ("store" if pays else "compute")
    assert (tmp_path / "panels").exists() == pays
    np.testing.assert_allclose(found.product(np.eye(M)), K[:, centers], atol=1e-15)
    assert Panels(Dense(K), centers, "auto", 0, None).choice.way == "compute"


def test_a_slow_kernel_is_stored_and_a_fast_one_is_not(
    K: np.ndarray, centers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(times: list[float], name: str) -> str:
        clock = iter(times)
        monkeypatch.setattr(panels.time, "perf_counter", lambda: next(clock))
        return Panels(Dense(K), centers, "auto", 0, tmp_path / name).choice.way

    assert chosen([0.0, 1.0, 6.0, 6.0, 6.4], "slow") == "store"  # 0.5 + 0.4 < 1 a walk
    assert chosen([0.0, 1.0, 6.0, 6.0, 6.6], "fast") == "compute"
    assert not (tmp_path / "fast").exists()


def test_products_are_those_of_the_columns(K: np.ndarray, centers: np.ndarray) -> None:
    found, columns = Panels(Dense(K), centers, "compute", 0, None), K[:, centers]
    assert found.height == 64
    V, W = (np.random.default_rng(n).normal(size=(n, 2)) for n in (M, N))
    np.testing.assert_allclose(found.product(V), columns @ V, atol=1e-12)
    np.testing.assert_allclose(found.transposed_product(W), columns.T @ W, atol=1e-12)
    np.testing.assert_allclose(found.normal_product(V), columns.T @ (columns @ V), atol=1e-11)


def test_damage_is_found(K: np.ndarray, y: np.ndarray, centers: np.ndarray, tmp_path: Path) -> None:
    way = FalkonWay("store", PLENTY, tmp_path)
    first = Falkon(0.1, way=way).fit(Dense(K), y, centers)
    chunk = tmp_path / "panels/rows/c/1/0"
    chunk.write_bytes(b"?" + chunk.read_bytes()[1:])
    (tmp_path / "state/state.npz").unlink()
    with pytest.raises(DamagedRowsError, match=r"rows/c/1/0 is damaged .*: remove it"):
        Falkon(0.1, way=way).fit(Dense(K), y, centers)
    chunk.unlink()
    again = Falkon(0.1, way=way).fit(Dense(K), y, centers)
    assert np.array_equal(first.dual_coef_, again.dual_coef_)
    state = tmp_path / "state/state.npz"
    state.write_bytes(state.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"state.npz is damaged"):
        Falkon(0.1, way=way).fit(Dense(K), y, centers)


def test_another_fit_in_the_folder_is_refused(
    K: np.ndarray, y: np.ndarray, centers: np.ndarray, tmp_path: Path
) -> None:
    way = FalkonWay("store", PLENTY, tmp_path)
    Falkon(0.1, way=way).fit(Dense(K), y, centers)
    for other in (
        lambda: Falkon(0.2, way=way).fit(Dense(K), y, centers),
        lambda: Falkon(0.1, way=way).fit(Dense(K), y + 1, centers),
    ):
        with pytest.raises(IdentityError, match="checkpoint of another solve"):
            other()
    with pytest.raises(IdentityError, match="rows of another matrix, or of other landmarks"):
        Falkon(0.1, way=way).fit(Dense(K), y, centers[1:])
    foreign = tmp_path / "foreign" / "panels"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="is no rows of this version and is left as it is"):
        Panels(Dense(K), centers, "store", 0, foreign)


# -- killed ----------------------------------------------------------------------------------------

DIES = """
import os, signal, sys
from pathlib import Path
import numpy as np
import rntk_dist as rd
from dataclasses import replace
from rntk_dist.computed import Computed
from rntk_dist.solve.falkon import EVERY_ITERATION, Falkon, FalkonWay

def die(count, residuals):
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

X = np.load(sys.argv[1])
matrix = Computed(rd.RNTK(readout="per_step"), X, backend="numpy", edge=64)
way = FalkonWay("store", 2**40, sys.argv[2], replace(EVERY_ITERATION, tol=1e-8))
Falkon(1e-3, 40, way=way).fit(matrix, X[:, 0], on_iteration=die)
"""


def test_a_killed_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(6).normal(size=(200, 5))
    np.save(tmp_path / "X.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", DIES, tmp_path / "X.npy", tmp_path / "fit"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = sorted(path.name for path in (tmp_path / "fit/state").iterdir())
    assert kept == ["factor.npz", "right.npz", "state.npz"]

    matrix = Computed(rd.RNTK(readout="per_step"), X, backend="numpy", edge=64)
    # Closer than the predictions are compared: by which way a fit gets there, rounding decides.
    closely = replace(EVERY_ITERATION, tol=1e-8)
    undisturbed = Falkon(1e-3, 40, way=FalkonWay("store", PLENTY, tmp_path / "other", closely))
    undisturbed.fit(matrix, X[:, 0])

    def refuse(*given: object) -> None:
        raise AssertionError("a value was computed again")

    monkeypatch.setattr(Computed, "block", refuse)
    seen: list[int] = []
    again = Falkon(1e-3, 40, way=FalkonWay("store", PLENTY, tmp_path / "fit", closely))
    again.fit(matrix, X[:, 0], on_iteration=lambda count, _: seen.append(count))
    assert seen[0] == 3  # the state of iteration 2 was kept: 3 died before it was
    monkeypatch.undo()
    across = matrix[:, again.centers_]
    np.testing.assert_allclose(again.predict(across), undisturbed.predict(across), atol=1e-6)
    assert len(again.history_) == len(undisturbed.history_)


# -- what is refused -------------------------------------------------------------------------------


def test_too_little_memory_is_refused_with_figures(
    K: np.ndarray, y: np.ndarray, centers: np.ndarray
) -> None:
    with pytest.raises(SolverMemoryError, match=r"on 40 centres needs .* are left: take fewer"):
        Falkon(way=FalkonWay(memory=1)).fit(Dense(K), y, centers)
    with pytest.raises(SolverMemoryError, match='are left for them: use panels "compute" or'):
        Panels(Dense(K), centers, "memory", N * M * 8 - 1, None)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda K, y: Falkon(-1.0, 5).fit(K, y), "alpha holds -1.0"),
        (lambda K, y: Falkon([1.0, 2.0], 5).fit(K, y), "found 2 alphas for 3 targets"),
        (lambda K, y: Falkon(1.0, 0).fit(K, y), "0 landmarks are asked of 240 samples"),
        (lambda K, y: Falkon(1.0, 5, rule="best").fit(K, y), "the rule for landmarks is 'best'"),
        (lambda K, y: Falkon().fit(K, y, [1, 1]), "give different indices of the 240 samples"),
        (lambda K, y: Falkon().fit(K, y, [N]), "give different indices of the 240 samples"),
        (lambda K, y: Falkon(1.0, 5).fit(K, y[:9]), "found targets of shape"),
        (lambda K, y: Falkon(1.0, 5).fit(K[:9], y), "symmetric one of all samples"),
        (lambda K, y: Falkon(1.0, 5, way=FalkonWay("disk")).fit(K, y), "panels is 'disk': give"),
        (lambda K, y: Falkon(1.0, 5, way=FalkonWay("store")).fit(K, y), "in a folder: give one"),
    ],
)
def test_what_makes_no_sense_is_refused(
    K: np.ndarray, y: np.ndarray, fit: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(K, y)


def test_what_does_not_converge_says_so(K: np.ndarray, y: np.ndarray, centers: np.ndarray) -> None:
    way = FalkonWay(iteration=Options(tol=1e-12, max_iter=1, every=1))
    with pytest.raises(NotConvergedError, match="raise max_iter, the number of centres, or alpha"):
        Falkon(1e-3, way=way).fit(Dense(K), y, centers)


def test_a_matrix_that_is_no_kernel_is_refused() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="give a positive semi-definite kernel"):
        factorised(np.diag([1.0, 1.0, -0.5]))
