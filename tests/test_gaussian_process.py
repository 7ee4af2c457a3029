"""Gaussian processes against scikit-learn on the matrix in memory, and by what is true of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrices import filled, gaussian
from sklearn.gaussian_process import GaussianProcessRegressor as TheirProcess
from sklearn.gaussian_process.kernels import Kernel

import rntk_dist as rd
from rntk_dist.operators import Dense
from rntk_dist.solve.gaussian_process import GaussianProcessRegressor
from rntk_dist.solve.kernel_ridge import KernelRidge
from rntk_dist.solve.posterior import draws
from rntk_dist.solve.systems import NotPositiveDefiniteError, SolverMemoryError

N, NEW, TILE = 90, 17, 25
ALL = np.arange(N + NEW)
TRAIN, TEST = ALL[:N], ALL[N:]


class Looked(Kernel):
    """A kernel of scikit-learn's whose samples are numbers (n, 1) of rows of a matrix."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> np.ndarray:
        return self.values[np.ix_(X[:, 0], (X if Y is None else Y)[:, 0])]

    def diag(self, X: Any) -> np.ndarray:
        return self.values.diagonal()[X[:, 0]]

    def is_stationary(self) -> bool:
        return False


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    return 2.0 * gaussian(np.random.default_rng(0).normal(size=(N + NEW, 3)))


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 2)) * [1.0, 7.0] + [0.5, -3.0]


@pytest.fixture(scope="module")
def gram(K: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    where = tmp_path_factory.mktemp("process")
    return rd.Gram(filled(where / "gram", np.ascontiguousarray(K[:N, :N]), TILE))


@pytest.fixture(scope="module")
def across(K: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> rd.Gram:
    where = tmp_path_factory.mktemp("process")
    return rd.Gram(filled(where / "across", np.ascontiguousarray(K[N:, :N]), 7, symmetric=False))


def theirs(K: np.ndarray, y: np.ndarray, **options: Any) -> TheirProcess:
    return TheirProcess(Looked(K), optimizer=None, **options).fit(TRAIN[:, None], y)


def agree(found: Any, expected: Any) -> None:
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


NOISES = {"one": 0.05, "each": np.linspace(0.01, 1.0, N)}


@pytest.mark.parametrize("normalize", [False, True], ids=["as is", "normalized"])
@pytest.mark.parametrize("targets", [slice(None), 0, slice(1)], ids=["two", "none", "one column"])
@pytest.mark.parametrize("noise", NOISES)
def test_it_is_scikit_learns(
    K: np.ndarray,
    y: np.ndarray,
    gram: rd.Gram,
    across: rd.Gram,
    noise: str,
    targets: Any,
    normalize: bool,
) -> None:
    options: dict[str, Any] = {"alpha": NOISES[noise], "normalize_y": normalize}
    own = GaussianProcessRegressor(**options).fit(gram, y[:, targets])
    other = theirs(K, y[:, targets], **options)
    agree(own.alpha_, other.alpha_)
    agree(own.log_marginal_likelihood(), other.log_marginal_likelihood())
    square = K[N:, N:]
    deviation = own.predict(across, return_std=True, diagonal=square.diagonal())
    covariance = own.predict(across, return_cov=True, square=square)
    assert isinstance(deviation, tuple)
    assert isinstance(covariance, tuple)
    expected_mean, expected_deviation = other.predict(TEST[:, None], return_std=True)
    expected_covariance = other.predict(TEST[:, None], return_cov=True)[1]
    if y[:, targets].shape[1:] == (1,):  # scikit-learn drops the axis of a single column
        expected_mean, expected_deviation, expected_covariance = (
            values[..., None] for values in (expected_mean, expected_deviation, expected_covariance)
        )
    agree(own.predict(across), expected_mean)
    agree(deviation[0], expected_mean)
    agree(deviation[1], expected_deviation)
    agree(covariance[1], expected_covariance)
    from_square = own.predict(np.asarray(across), return_std=True, square=Dense(square))
    agree(from_square[1], deviation[1])


def test_the_mean_is_ridge_regressions(
    K: np.ndarray, y: np.ndarray, gram: rd.Gram, across: rd.Gram
) -> None:
    own = GaussianProcessRegressor(0.1).fit(gram, y).predict(across)
    agree(own, KernelRidge(0.1).fit(gram, y).predict(across))


def test_more_data_leave_less_variance(K: np.ndarray, y: np.ndarray) -> None:
    """Of every new sample, with each block of training samples; never below 0."""
    prior = K[N:, N:].diagonal()
    last = np.sqrt(prior)
    for n in (1, 5, 20, 60, N):
        process = GaussianProcessRegressor(1e-3).fit(K[:n, :n], y[:n])
        deviation = process.predict(K[N:, :n], return_std=True, diagonal=prior)[1][:, 0]
        assert (deviation >= 0).all()
        assert (deviation <= last * (1 + 1e-12)).all()
        assert deviation.sum() < last.sum()
        last = deviation


def test_without_noise_the_targets_are_met_for_certain(y: np.ndarray) -> None:
    points = np.random.default_rng(2).normal(size=(40, 8))
    K = gaussian(points) + np.eye(40)
    process = GaussianProcessRegressor(0.0).fit(K, y[:40])
    mean, deviation = process.predict(K, return_std=True, square=K)
    np.testing.assert_allclose(mean, y[:40], atol=1e-10)
    assert deviation.max() < 1e-6
    covariance = process.predict(K, return_cov=True, square=K)[1]
    np.testing.assert_allclose(covariance, 0, atol=1e-12)


def test_a_diagonal_covariance_is_the_squared_deviation(
    K: np.ndarray, y: np.ndarray, gram: rd.Gram, across: rd.Gram
) -> None:
    process = GaussianProcessRegressor(0.2, normalize_y=True).fit(gram, y)
    covariance = process.predict(across, return_cov=True, square=K[N:, N:])[1]
    deviation = process.predict(across, return_std=True, square=K[N:, N:])[1]
    agree(np.einsum("iic->ic", covariance), deviation**2)


def test_samples_are_of_the_posterior(
    K: np.ndarray, y: np.ndarray, gram: rd.Gram, across: rd.Gram
) -> None:
    """Mean and covariance of many draws, within 5 standard errors."""
    process, count = GaussianProcessRegressor(0.2, normalize_y=True).fit(gram, y), 4000
    found = process.sample_y(across, K[N:, N:], count, random_state=3)
    mean, covariance = process.predict(across, return_cov=True, square=K[N:, N:])
    assert found.shape == (NEW, 2, count)
    for target in range(2):
        drawn, expected = found[:, target], covariance[..., target]
        own = expected.diagonal()
        assert np.abs((drawn.mean(axis=1) - mean[:, target]) / np.sqrt(own / count)).max() < 5
        error = np.sqrt((np.outer(own, own) + expected**2) / count)
        assert np.abs((np.cov(drawn) - expected) / error).max() < 5
    apart = np.corrcoef(found[0, 0], found[0, 1])[0, 1]
    assert abs(apart) < 5 / np.sqrt(count)
    one = GaussianProcessRegressor(0.2).fit(gram, y[:, 0])
    assert one.sample_y(across, K[N:, N:], 3).shape == (NEW, 3)
    again = process.sample_y(across, K[N:, N:], count, random_state=np.random.default_rng(3))
    assert np.array_equal(again, found)


def test_draws_of_the_prior_have_its_covariance(K: np.ndarray) -> None:
    found = draws(np.zeros(6), K[:6, :6], 5000, 1)
    error = np.sqrt((4.0 + K[:6, :6] ** 2) / 5000)
    assert np.abs((np.cov(found) - K[:6, :6]) / error).max() < 5


def test_draws_of_no_covariance_are_refused() -> None:
    with pytest.raises(ValueError, match="of 2 samples has an eigenvalue of -1: give matrices of"):
        draws(np.zeros(2), np.array([[0.0, 1.0], [1.0, 0.0]]), 1)


def test_the_nngp_is_inference_with_the_covariance_kernel() -> None:
    """Sequences of unequal lengths; the textbook's formula with an inverse."""
    rng = np.random.default_rng(4)
    X = rd.Sequences.from_arrays([rng.normal(size=length) for length in rng.integers(3, 9, 14)])
    kernel, y = rd.RNTK(sigma_b=0.3, readout="per_step"), rng.normal(size=10)
    K = kernel(X, kind="nngp", backend="numpy")
    square, across, new = K[:10, :10], K[10:, :10], K[10:, 10:]
    process = GaussianProcessRegressor(0.1).fit(square, y)
    own = process.predict(across, return_cov=True, square=new)
    inverse = np.linalg.inv(square + 0.1 * np.eye(10))
    agree(own[0], across @ inverse @ y)
    agree(own[1], new - across @ inverse @ across.T)


# -- what can go wrong -----------------------------------------------------------------------------


def test_a_factor_that_does_not_fit_is_refused(gram: rd.Gram, y: np.ndarray) -> None:
    with pytest.raises(SolverMemoryError, match=r"factor of 90 samples needs .* use KernelRidge"):
        GaussianProcessRegressor(memory=0).fit(gram, y)
    process = GaussianProcessRegressor().fit(gram, y)
    process.memory = 0
    with pytest.raises(SolverMemoryError, match=r"covariance of 5 samples needs .* ask for fewer"):
        process.predict(np.ones((5, N)), return_cov=True, square=np.eye(5))


def test_an_indefinite_matrix_says_what_to_raise(y: np.ndarray) -> None:
    K = np.eye(N)
    K[0, 1] = K[1, 0] = 1.5
    with pytest.raises(NotPositiveDefiniteError, match=r"leading 2 samples: raise alpha to"):
        GaussianProcessRegressor(1e-3).fit(K, y)
    assert GaussianProcessRegressor(0.6).fit(K, y).alpha_.shape == (N, 2)


def test_a_variance_far_below_zero_is_refused(
    gram: rd.Gram, across: rd.Gram, y: np.ndarray
) -> None:
    process = GaussianProcessRegressor(1e-3).fit(gram, y)
    wrong = np.full(NEW, 1e-3)
    with pytest.raises(ValueError, match=r"has a posterior variance of -.* matrices of one kernel"):
        process.predict(across, return_std=True, diagonal=wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, g, a, y: p.fit(a, y), "found a rectangular matrix of shape 17 x 90"),
        (lambda p, g, a, y: p.fit(np.triu(np.ones((3, 3))), y[:3]), "found an asymmetric matrix"),
        (lambda p, g, a, y: p.fit(g, y[:4]), r"targets of shape \(4, 2\) for 90 samples"),
        (lambda p, g, a, y: p.fit(g, y + np.inf), "NaN or infinity among the targets"),
        (
            lambda p, g, a, y: GaussianProcessRegressor(-1.0).fit(g, y),
            r"alpha is -1.0: give a finite variance",
        ),
        (
            lambda p, g, a, y: GaussianProcessRegressor(np.ones(3)).fit(g, y),
            r"alpha of shape \(3,\): give a number",
        ),
        (lambda p, g, a, y: p.predict(np.ones((2, 3))), "2 x 3 where 90 samples were trained on"),
        (lambda p, g, a, y: p.predict(a, True, True), "return_std and return_cov: ask for one"),
        (lambda p, g, a, y: p.predict(a, True), "give the diagonal"),
        (lambda p, g, a, y: p.predict(a, True, diagonal=[1.0]), r"diagonal of shape \(1,\) for 17"),
        (lambda p, g, a, y: p.predict(a, False, True), "give the square"),
        (
            lambda p, g, a, y: p.predict(a, False, True, square=np.eye(2)),
            r"square of shape \(2, 2\) for 17",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    gram: rd.Gram, across: rd.Gram, y: np.ndarray, call: Any, message: str
) -> None:
    process = GaussianProcessRegressor(0.1).fit(gram, y)
    with pytest.raises(ValueError, match=message):
        call(process, gram, across, y)
