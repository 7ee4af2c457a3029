"""Ridge regression by all three ways, against scikit-learn and against leaving out for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from matrices import filled, gaussian
from sklearn.kernel_ridge import KernelRidge as TheirRidge

import rntk_dist as rd
from rntk_dist.operators import Dense
from rntk_dist.solve import conjugate_gradients
from rntk_dist.solve.checkpoint import CheckpointError
from rntk_dist.solve.conjugate_gradients import Options, solve_by_iteration
from rntk_dist.solve.factor import (
    RESERVE,
    DamagedFactorError,
    Factor,
    choose_edge,
    memory_needed,
    solve_on_disk,
)
from rntk_dist.solve.kernel_ridge import KernelRidge, Solver, Way, ridge_path
from rntk_dist.solve.preconditioner import Preconditioner, pivoted_cholesky
from rntk_dist.solve.systems import (
    NotConvergedError,
    NotPositiveDefiniteError,
    SolverMemoryError,
    Systems,
)
from rntk_dist.store import IdentityError, StoreFormatError

N, TILE, TARGETS = 110, 60, 3
ROOT = Path(__file__).parent.parent
PLENTY = 2**40


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    return gaussian(np.random.default_rng(0).normal(size=(N, 3)))


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, TARGETS)) + 1.0


@pytest.fixture(scope="module")
def gram(K: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    return rd.Gram(filled(tmp_path_factory.mktemp("solvers") / "gram", K, TILE))


@pytest.fixture(params=["cholesky", "disk", "cg"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    iteration = Options(tol=1e-11, rank=90)
    folder = tmp_path / "factor" if request.param == "disk" else None
    return Way(request.param, memory=PLENTY, folder=folder, iteration=iteration)


# -- as scikit-learn -------------------------------------------------------------------------------


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("alpha", [1.0, 0.01, (1.0, 0.1, 0.02)], ids=str)
def test_it_is_scikit_learns(
    gram: rd.Gram, K: np.ndarray, y: np.ndarray, way: Way, alpha: Any
) -> None:
    own = KernelRidge(alpha, way=way).fit(gram, y)
    theirs = TheirRidge(alpha=alpha, kernel="precomputed").fit(K, y)
    agree(own.dual_coef_, theirs.dual_coef_)
    across = K[:20] * 0.5
    agree(own.predict(across), theirs.predict(across))
    assert own.solver_ == way.solver
    assert own.residuals_.shape == (TARGETS,)
    assert own.residuals_.max() < 1e-10


def test_one_target_is_one_axis(gram: rd.Gram, K: np.ndarray, y: np.ndarray, way: Way) -> None:
    own = KernelRidge(0.1, way=way).fit(gram, y[:, 0])
    agree(own.dual_coef_, TheirRidge(alpha=0.1, kernel="precomputed").fit(K, y[:, 0]).dual_coef_)
    assert own.residuals_.shape == ()


def test_weights_are_scikit_learns(gram: rd.Gram, K: np.ndarray, y: np.ndarray, way: Way) -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=N)
    own = KernelRidge(0.1, way=way).fit(gram, y, weights)
    theirs = TheirRidge(alpha=0.1, kernel="precomputed").fit(K, y, sample_weight=weights)
    agree(own.dual_coef_, theirs.dual_coef_)


def test_views_are_solved_as_their_values(gram: rd.Gram, y: np.ndarray, way: Way) -> None:
    lazy = gram.normalized().centered() + 0.5 * gram
    own = KernelRidge(0.1, way=way).fit(lazy, y)
    theirs = TheirRidge(alpha=0.1, kernel="precomputed").fit(np.asarray(lazy), y)
    agree(own.dual_coef_, theirs.dual_coef_)


def test_float32_is_solved_in_float64(
    K: np.ndarray, y: np.ndarray, way: Way, tmp_path: Path
) -> None:
    single = K.astype(np.float32)
    own = KernelRidge(0.1, way=way).fit(rd.Gram(filled(tmp_path / "gram", single, TILE)), y)
    theirs = TheirRidge(alpha=0.1, kernel="precomputed").fit(single.astype(np.float64), y)
    agree(own.dual_coef_, theirs.dual_coef_)


def test_interpolation_meets_the_targets(y: np.ndarray, way: Way) -> None:
    """alpha = 0, on a matrix with eigenvalues between 1 and 1000."""
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))
    K = (turn * np.geomspace(1, 1000, N)) @ turn.T
    K = (K + K.T) / 2
    own = KernelRidge(0.0, way=way).fit(Dense(K), y)
    np.testing.assert_allclose(own.predict(K), y, atol=1e-7)


def test_several_alphas_in_one_pass(gram: rd.Gram, K: np.ndarray, y: np.ndarray, way: Way) -> None:
    alphas = [1.0, 0.1, 0.02]
    found = ridge_path(gram, y, alphas, way=way)
    assert (found.dual_coef.shape, found.residuals.shape) == ((3, N, TARGETS), (3, TARGETS))
    for alpha, dual in zip(alphas, found.dual_coef, strict=True):
        agree(dual, TheirRidge(alpha=alpha, kernel="precomputed").fit(K, y).dual_coef_)
    one = ridge_path(gram, y[:, 0], alphas, way=way)
    agree(one.dual_coef, found.dual_coef[..., 0])


def test_alphas_share_the_products(K: np.ndarray, y: np.ndarray) -> None:
    products: list[int] = []

    class Counted(Dense):
        def product(self, V: np.ndarray, *, transposed: bool = False) -> np.ndarray:
            products.append(V.shape[1])
            return super().product(V, transposed=transposed)

    def spent(alphas: list[float]) -> int:
        products.clear()
        ridge_path(Counted(K), y, alphas, way=Way("cg", iteration=Options(rank=20)))
        return len(products)

    alone = max(spent([alpha]) for alpha in (1.0, 0.1, 0.02))
    assert spent([1.0, 0.1, 0.02]) <= alone + 1
    assert products[0] == 3 * TARGETS
    assert min(products[:-1]) < 3 * TARGETS  # columns that have arrived rest


# -- leaving out -----------------------------------------------------------------------------------


def left_out(K: np.ndarray, y: np.ndarray, alpha: float, i: int) -> np.ndarray:
    others = np.delete(np.arange(len(K)), i)
    dual = np.linalg.solve(K[np.ix_(others, others)] + alpha * np.eye(len(others)), y[others])
    return y[i] - K[i, others] @ dual


@pytest.mark.parametrize("solver", ["cholesky", "disk"])
def test_leave_one_out_is_leaving_one_out(
    gram: rd.Gram, K: np.ndarray, y: np.ndarray, solver: Solver, tmp_path: Path
) -> None:
    alphas, way = [0.5, 0.03], Way(solver, memory=2**32, folder=tmp_path)
    found = ridge_path(gram, y, alphas, leave_one_out=True, way=way).leave_one_out
    assert found is not None
    for alpha, errors in zip(alphas, found, strict=True):
        for i in (0, 77, N - 1):
            np.testing.assert_allclose(errors[i], left_out(K, y, alpha, i), rtol=1e-8, atol=1e-10)


def test_the_diagonal_of_the_inverse_is_found_panel_by_panel(
    gram: rd.Gram, K: np.ndarray, tmp_path: Path
) -> None:
    factor = Factor.at(tmp_path, gram, 0.1, 2**32, edge=24)
    assert factor.panels == 5
    factor.factorise(gram)
    expected = np.linalg.inv(K + 0.1 * np.eye(N)).diagonal()
    np.testing.assert_allclose(factor.inverse_diagonal(), expected, rtol=1e-10)


def test_leave_one_out_with_weights(gram: rd.Gram, K: np.ndarray, y: np.ndarray) -> None:
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=N)
    own = KernelRidge(0.1, leave_one_out=True).fit(gram, y, weights)
    others = np.arange(1, N)
    theirs = TheirRidge(alpha=0.1, kernel="precomputed")
    theirs.fit(K[np.ix_(others, others)], y[others], sample_weight=weights[others])
    assert own.leave_one_out_ is not None
    np.testing.assert_allclose(
        own.leave_one_out_[0], y[0] - theirs.predict(K[:1, 1:])[0], rtol=1e-8
    )


# -- the choice ------------------------------------------------------------------------------------


def test_the_first_way_that_fits_is_taken(gram: rd.Gram, y: np.ndarray, tmp_path: Path) -> None:
    assert KernelRidge().fit(gram, y).solver_ == "cholesky"
    assert KernelRidge(way=Way(memory=0)).fit(gram, y).solver_ == "cg"
    little = Way(memory=1, folder=tmp_path)
    with pytest.raises(SolverMemoryError, match=r"a factorisation of 110 samples needs \d+ MiB"):
        KernelRidge(way=little).fit(gram, y)


def test_memory_that_does_not_suffice_is_refused(gram: rd.Gram, y: np.ndarray) -> None:
    with pytest.raises(SolverMemoryError, match=r'solver cholesky needs .* use "disk" or "cg"'):
        KernelRidge(way=Way("cholesky", memory=0)).fit(gram, y)
    with pytest.raises(ValueError, match='errors are of the solvers "cholesky", which needs'):
        KernelRidge(leave_one_out=True, way=Way("cg")).fit(gram, y)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda g, y: KernelRidge().fit(np.ones((3, 4)), y), "found a rectangular matrix"),
        (lambda g, y: KernelRidge().fit(g, y[:9]), "found targets of shape"),
        (lambda g, y: KernelRidge().fit(g, y * np.nan), "found NaN or infinity among the targets"),
        (lambda g, y: KernelRidge().fit(g, y[:, :, None]), "give one or several for each sample"),
        (lambda g, y: KernelRidge(-1.0).fit(g, y), "alpha holds -1.0"),
        (lambda g, y: KernelRidge([1.0, 2.0]).fit(g, y), "found 2 alphas for 3 targets"),
        (lambda g, y: KernelRidge().fit(g, y, np.zeros(N)), "leave samples out that have none"),
        (lambda g, y: Way("qr"), "solver is 'qr': give one of auto, cholesky, disk, cg"),
        (lambda g, y: Way("disk"), "keeps its factor in a folder: give one"),
        (lambda g, y: Options(tol=0), "tol is 0: give a number between 0 and 1"),
        (lambda g, y: Options(every=0), "every is 0: give at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gram: rd.Gram, y: np.ndarray, fit: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(gram, y)


# -- what can go wrong -----------------------------------------------------------------------------


def test_an_indefinite_matrix_says_what_to_raise(y: np.ndarray, way: Way) -> None:
    """A negative eigenvalue of -0.5 is lifted by the alpha that the message names."""
    values = np.linspace(1, 2, N)
    values[0] = -0.5
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(N, N)))
    K = (turn * values) @ turn.T
    K = (K + K.T) / 2
    with pytest.raises(NotPositiveDefiniteError, match=r"raise alpha to .* or more"):
        KernelRidge(0.2, way=way).fit(Dense(K), y)
    assert KernelRidge(0.6, way=way).fit(Dense(K), y).residuals_.max() < 1e-10


def test_too_few_iterations_say_how_far_they_came(gram: rd.Gram, y: np.ndarray) -> None:
    way = Way("cg", iteration=Options(tol=1e-10, max_iter=2, rank=0))
    with pytest.raises(NotConvergedError, match=r"after 2 iterations .* raise max_iter, the rank"):
        KernelRidge(1e-3, way=way).fit(gram, y)


def test_rounding_that_keeps_it_from_the_tolerance_is_told(y: np.ndarray) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))
    K = (turn * np.geomspace(1e-9, 1e3, N)) @ turn.T
    systems = Systems(Dense((K + K.T) / 2), y, np.zeros(TARGETS))
    with pytest.raises((NotConvergedError, NotPositiveDefiniteError), match="raise"):
        solve_by_iteration(systems, Options(tol=1e-14, rank=N, max_iter=3000))


# -- the preconditioner ----------------------------------------------------------------------------


def low_rank(rank: int) -> np.ndarray:
    points = np.random.default_rng(5).normal(size=(N, rank))
    return points @ points.T


@pytest.mark.parametrize("rank", [1, 7, 40, N, 2 * N])
def test_pivots_make_a_matrix_of_that_rank_below_the_kernel(K: np.ndarray, rank: int) -> None:
    F = pivoted_cholesky(Dense(K), rank, np.random.default_rng(0))
    assert F.shape == (N, min(rank, N))
    left = K - F @ F.T
    assert np.linalg.eigvalsh(left).min() > -1e-10
    assert np.trace(left) <= np.trace(K) - min(rank, N) / N


def test_pivots_stop_where_nothing_is_left() -> None:
    K = low_rank(5)
    F = pivoted_cholesky(Dense(K), 60, np.random.default_rng(0))
    assert F.shape[1] < 60
    np.testing.assert_allclose(F @ F.T, K, atol=1e-7)
    zero = Preconditioner.of(Dense(np.zeros((4, 4))), 2, 0)
    assert np.array_equal(zero.solve(np.ones((4, 1)), np.ones(1)), np.ones((4, 1)))


def test_pivots_are_near_the_best_of_their_rank() -> None:
    """Eigenvalues falling as 1 / i^2: the trace left is within a factor of the smallest one."""
    turn, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(N, N)))
    values = 1.0 / np.arange(1, N + 1) ** 2
    K = (turn * values) @ turn.T
    K = (K + K.T) / 2
    F = pivoted_cholesky(Dense(K), 30, np.random.default_rng(0))
    assert np.trace(K - F @ F.T) < 3 * values[20:].sum()


def test_a_preconditioner_of_full_rank_is_the_inverse(K: np.ndarray) -> None:
    found = Preconditioner.of(Dense(K), N, 0)
    R = np.random.default_rng(7).normal(size=(N, 2))
    alphas = np.array([0.5, 2.0])
    for column, alpha in enumerate(alphas):
        exact = np.linalg.solve(K + alpha * np.eye(N), R[:, column])
        z = found.solve(R, alphas)[:, column]
        np.testing.assert_allclose(z / z[0], exact / exact[0], rtol=1e-8)


def test_a_preconditioner_saves_iterations(K: np.ndarray, y: np.ndarray) -> None:
    systems = Systems(Dense(K), y, np.full(TARGETS, 1e-4))
    counts = []
    for rank in (0, 60):
        history = solve_by_iteration(systems, Options(rank=rank)).history
        assert history is not None
        counts.append(len(history))
        assert (history[-1] <= 1e-6).all()
    assert counts[1] < counts[0] / 2


# -- killed ----------------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys
from pathlib import Path
import numpy as np
import rntk_dist as rd
from rntk_dist import folder_store
from rntk_dist.solve.conjugate_gradients import Options, solve_by_iteration
from rntk_dist.solve.factor import solve_on_disk
from rntk_dist.solve.systems import Systems

def die():
    os.kill(os.getpid(), signal.SIGKILL)

gram, folder = rd.open_gram(sys.argv[1]), Path(sys.argv[2])
y = np.load(sys.argv[3])
"""

DIES_ITERATING = """
systems = Systems(gram, y, np.full(y.shape[1], 1e-2))
options = Options(tol=1e-9, rank=10, folder=folder, every=5)
solve_by_iteration(systems, options, lambda count, _: die() if count == 13 else None)
"""

DIES_FACTORISING = """
systems, writes = Systems(gram, y, np.full(y.shape[1], 1e-3)), 0
bring_to_disk = folder_store._bring_to_disk

def dying(descriptor):
    global writes
    writes += 1
    if writes == 9:
        die()  # in the second panel: the manifests took four of the calls, the first panel three
    bring_to_disk(descriptor)

folder_store._bring_to_disk = dying
solve_on_disk(systems, folder, memory=2**40, edge=40)
"""


def dies(script: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def targets_file(y: np.ndarray, tmp_path: Path) -> Path:
    np.save(tmp_path / "y.npy", y)
    return tmp_path / "y.npy"


@pytest.mark.slow
def test_a_killed_iteration_goes_on(
    gram: rd.Gram,
    K: np.ndarray,
    y: np.ndarray,
    tmp_path: Path,
    targets_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "checkpoint"
    dies(DIES_ITERATING, gram.store.location, folder, targets_file)
    assert sorted(path.name for path in folder.iterdir()) == ["preconditioner.npz", "state.npz"]

    def refuse(*given: object) -> None:
        raise AssertionError("the preconditioner was computed again")

    monkeypatch.setattr(conjugate_gradients.Preconditioner, "of", refuse)
    systems = Systems(gram, y, np.full(TARGETS, 1e-2))
    options = Options(tol=1e-9, rank=10, folder=folder, every=5)
    seen: list[int] = []
    found = solve_by_iteration(systems, options, lambda count, _: seen.append(count))
    assert seen[0] == 11  # the state of iteration 10 was kept
    np.testing.assert_allclose(K @ found.x + 1e-2 * found.x, y, atol=1e-7)
    monkeypatch.undo()
    undisturbed = solve_by_iteration(systems, Options(tol=1e-9, rank=10))
    assert np.array_equal(found.x, undisturbed.x)
    assert np.array_equal(found.history, undisturbed.history)

    seen.clear()
    again = solve_by_iteration(systems, options, lambda count, _: seen.append(count))
    assert seen == []
    assert np.array_equal(again.x, found.x)


def test_a_killed_factorisation_goes_on(
    gram: rd.Gram, K: np.ndarray, y: np.ndarray, tmp_path: Path, targets_file: Path
) -> None:
    folder, alpha = tmp_path / "factors", 1e-3
    dies(DIES_FACTORISING, gram.store.location, folder, targets_file)
    made = Factor.at(folder / f"alpha-{alpha!r}", gram, alpha, PLENTY)
    assert (made.edge, made.panels, made.missing()) == (40, 3, [1, 2])
    assert list(made.folder.rglob("*.partial"))
    first = {p: p.stat().st_mtime_ns for p in (made.folder / "factor/c").glob("*/0")}
    seen: list[tuple[int, int]] = []
    systems = Systems(gram, y, np.full(TARGETS, alpha))
    found = solve_on_disk(systems, folder, memory=PLENTY, on_panel=lambda *done: seen.append(done))
    assert seen == [(2, 3), (3, 3)]
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert found.residuals.max() < 1e-10
    lower = np.nan_to_num(np.asarray(zarr.open_array(made.folder / "factor", mode="r")[:]))
    np.testing.assert_allclose(lower @ lower.T, K + alpha * np.eye(N), atol=1e-12)


@pytest.mark.parametrize("edge", [1, 23, 64, N - 1, N, 10 * N])
def test_any_panel_makes_the_factor(
    K: np.ndarray, y: np.ndarray, edge: int, tmp_path: Path
) -> None:
    if edge == 1:
        K, y = K[:5, :5], y[:5]
    systems = Systems(Dense(K), y, np.full(TARGETS, 0.1))
    found = solve_on_disk(systems, tmp_path / "factor", memory=PLENTY, edge=edge)
    agree(found.x, TheirRidge(alpha=0.1, kernel="precomputed").fit(K, y).dual_coef_)


def test_the_widest_panel_that_fits_is_chosen(gram: rd.Gram, y: np.ndarray) -> None:
    big = Sized(100_000)
    taken = psutil.Process().memory_info().rss + RESERVE
    for memory in (taken + 2**29, taken + 2**31):
        edge = choose_edge(big, memory)
        assert edge % big.edge == 0 or edge < big.edge
        assert memory_needed(len(big), edge, big) <= 2**31
        assert memory_needed(len(big), edge + big.edge + 64, big) > memory - taken - 2**26
    assert choose_edge(Dense(np.eye(3)), PLENTY) == 3


class Sized(Dense):
    """As large as it says, and made of nothing."""

    def __init__(self, n: int) -> None:
        super().__init__(np.eye(1))
        self._n = n

    @property
    def shape(self) -> tuple[int, int]:
        return self._n, self._n


# -- what is kept is known again -------------------------------------------------------------------


def test_another_solve_in_the_folder_is_refused(
    gram: rd.Gram, y: np.ndarray, tmp_path: Path
) -> None:
    kept = Way("cg", folder=tmp_path / "cg")
    KernelRidge(0.1, way=kept).fit(gram, y)
    for other in (
        lambda: KernelRidge(0.2, way=kept).fit(gram, y),
        lambda: KernelRidge(0.1, way=kept).fit(gram, y + 1),
        lambda: KernelRidge(0.1, way=kept).fit(gram.centered(), y),
    ):
        with pytest.raises(IdentityError, match="holds the checkpoint of another solve"):
            other()
    stored = Way("disk", memory=PLENTY, folder=tmp_path / "disk")
    KernelRidge(0.1, way=stored).fit(gram, y)
    KernelRidge(0.1, way=stored).fit(gram, y + 1)  # the factor serves other targets, too
    with pytest.raises(IdentityError, match="another matrix, which differs in matrix: choose"):
        KernelRidge(0.1, way=stored).fit(gram.centered(), y)


def test_a_tighter_tolerance_goes_on_from_a_checkpoint(
    K: np.ndarray, y: np.ndarray, tmp_path: Path
) -> None:
    systems = Systems(Dense(K), y, np.full(TARGETS, 1e-2))
    rough = solve_by_iteration(systems, Options(tol=1e-3, rank=10, folder=tmp_path))
    fine = solve_by_iteration(systems, Options(tol=1e-9, rank=10, folder=tmp_path))
    assert rough.history is not None
    assert fine.history is not None
    assert np.array_equal(fine.history[: len(rough.history) - 1], rough.history[:-1])
    assert fine.residuals.max() <= 1e-9


def test_damage_is_found(gram: rd.Gram, y: np.ndarray, tmp_path: Path) -> None:
    kept = Way("cg", folder=tmp_path / "cg")
    KernelRidge(0.1, way=kept).fit(gram, y)
    state = tmp_path / "cg" / "state.npz"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state.npz is damaged .* to begin anew"):
        KernelRidge(0.1, way=kept).fit(gram, y)

    systems = Systems(gram, y, np.full(TARGETS, 0.1))
    solve_on_disk(systems, tmp_path / "disk", memory=PLENTY, edge=40)
    block = tmp_path / "disk/alpha-0.1/factor/c/2/1"
    block.write_bytes(b"?" + block.read_bytes()[1:])
    with pytest.raises(DamagedFactorError, match="remove it, and the same call makes panel 1"):
        solve_on_disk(systems, tmp_path / "disk", memory=PLENTY)
    block.unlink()
    seen: list[int] = []
    again = solve_on_disk(
        systems, tmp_path / "disk", memory=PLENTY, on_panel=lambda done, of: seen.append(done)
    )
    assert seen == [3]
    assert again.residuals.max() < 1e-12


def test_a_folder_with_something_else_is_left_alone(
    gram: rd.Gram, y: np.ndarray, tmp_path: Path
) -> None:
    systems, folder = Systems(gram, y, np.full(TARGETS, 0.1)), tmp_path / "alpha-0.1"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="is not a factor of this version"):
        solve_on_disk(systems, tmp_path, memory=PLENTY)
    (folder / "notes.txt").unlink()
    zarr.create_group(folder)
    with pytest.raises(StoreFormatError, match="is not a factor of this version"):
        solve_on_disk(systems, tmp_path, memory=PLENTY)


# -- memory ----------------------------------------------------------------------------------------

MEASURES = """
from rntk_dist.solve.factor import Factor
factor = Factor.at(folder, gram, 1.0, int(sys.argv[4]))
factor.factorise(gram)
x = factor.solve(y)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
np.save(folder / "x.npy", x)
print(peak, factor.edge)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
def test_a_factorisation_keeps_to_its_budget(tmp_path: Path) -> None:
    """With less memory than the matrix has, whatever the libraries take is part of it."""
    n, budget = 6000, 250 * 2**20  # the matrix alone has 275 MiB
    features = np.random.default_rng(8).normal(size=(n, 5))
    K = features @ features.T
    gram = rd.Gram(filled(tmp_path / "gram", K, 500))
    y = np.random.default_rng(9).normal(size=(n, 2))
    np.save(tmp_path / "y.npy", y)
    arguments = [gram.store.location, tmp_path / "factor", tmp_path / "y.npy", budget]
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + MEASURES, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, edge = map(int, done.stdout.split())
    assert peak <= budget
    assert edge < n / 2
    x = np.load(tmp_path / "factor" / "x.npy")
    np.testing.assert_allclose(K @ x + x, y, atol=1e-9)
