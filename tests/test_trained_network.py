"""Trained networks: against integration in small steps, special cases, and finite networks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from matrices import gaussian
from sklearn.kernel_ridge import KernelRidge as TheirRidge

import rntk_dist as rd
from rntk_dist.experiments.finite_network import Batch, FiniteNetwork
from rntk_dist.operators import Dense
from rntk_dist.solve.gaussian_process import GaussianProcessRegressor
from rntk_dist.solve.systems import NotPositiveDefiniteError, SolverMemoryError
from rntk_dist.solve.trained_network import TrainedNetwork

N, NEW = 30, 8


@pytest.fixture(scope="module")
def theta() -> np.ndarray:
    """(N + NEW, N + NEW): of training and new samples."""
    return 3.0 * gaussian(np.random.default_rng(0).normal(size=(N + NEW, 3)))


@pytest.fixture(scope="module")
def K() -> np.ndarray:
    points = np.random.default_rng(5).normal(size=(N + NEW, 4))
    return np.exp(points @ points.T / 4)


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, 2)) + 0.5


def agree(found: Any, expected: Any) -> None:
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def fitted(theta: np.ndarray, y: np.ndarray, K: np.ndarray, **options: Any) -> TrainedNetwork:
    return TrainedNetwork(**options).fit(theta[:N, :N], y, nngp=K[:N, :N])


def of_new(K: np.ndarray) -> dict[str, np.ndarray]:
    return {"nngp": K[N:, :N], "square": K[N:, N:]}


# -- the flow itself -------------------------------------------------------------------------------


def flowed(
    theta: np.ndarray, start: np.ndarray, y: np.ndarray, time: float, alpha: float
) -> np.ndarray:
    """Outputs of all samples by fourth-order steps on the parameters of a linear model.

    Its features are a root of theta; gradient flow on the loss of the module's docstring.
    """
    features, steps = np.linalg.cholesky(theta + 1e-12 * np.eye(len(theta))), 4000

    def velocity(w: np.ndarray) -> np.ndarray:
        wrong = features[:N] @ w + start[:N] - y
        return -(features[:N].T @ wrong) - alpha * w

    w, h = np.zeros((len(theta), y.shape[1])), time / steps
    for _ in range(steps):
        a = velocity(w)
        b = velocity(w + h / 2 * a)
        c = velocity(w + h / 2 * b)
        d = velocity(w + h * c)
        w = w + h / 6 * (a + 2 * b + 2 * c + d)
    return features @ w + start


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_it_is_gradient_flow_on_a_linear_model(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray, alpha: float
) -> None:
    """With a start of its own, and from 0; the rate and the time multiply."""
    start = np.random.default_rng(2).normal(size=(N + NEW, 2))
    expected = flowed(theta, start, y, 0.9, alpha)
    network = fitted(theta, y, K, alpha=alpha, learning_rate=0.3)
    known = {"training": start[:N], "new": start[N:]}
    agree(network.predict_from(theta[N:, :N], 3.0, **known), expected[N:])
    agree(network.predict_from(theta[:N, :N], 3.0, training=start[:N], new=start[:N]), expected[:N])
    from_zero = flowed(theta, np.zeros_like(start), y, 0.9, alpha)
    agree(network.predict(theta[N:, :N], 3.0), from_zero[N:])


def test_covariances_are_those_of_moved_starts(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray
) -> None:
    """`predict_from` is linear in the start, so a root of K, moved, is a root of the covariance."""
    network, times = fitted(theta, y, K, alpha=0.05), np.array([0.0, 0.4, 5.0, np.inf])
    rest = network.predict(theta[N:, :N], times)
    root = np.linalg.cholesky(K + 1e-13 * np.eye(N + NEW))
    moved = [
        network.predict_from(
            theta[N:, :N],
            times,
            training=np.stack([column[:N]] * 2, axis=1),
            new=np.stack([column[N:]] * 2, axis=1),
        )
        - rest
        for column in root.T
    ]
    roots = np.stack(moved)[..., 0]
    covariance = network.predict(theta[N:, :N], times, return_cov=True, **of_new(K))[1]
    agree(covariance, np.einsum("ptm,ptk->tmk", roots, roots))
    deviation = network.predict(theta[N:, :N], times, return_std=True, **of_new(K))[1]
    agree(deviation, np.sqrt(np.einsum("tmm->tm", covariance)))
    by_diagonal = network.predict(
        theta[N:, :N], times, return_std=True, nngp=K[N:, :N], diagonal=K[N:, N:].diagonal()
    )
    assert np.array_equal(by_diagonal[1], deviation)


def test_views_are_taken_as_their_values(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    network = TrainedNetwork(0.1).fit(
        2.0 * Dense(theta[:N, :N]), y, nngp=Dense(K[:N, :N]) + Dense(K[:N, :N])
    )
    found = network.predict(
        2.0 * Dense(theta[N:, :N]), 0.7, return_cov=True, nngp=2.0 * Dense(K[N:, :N]),
        square=2.0 * Dense(K[N:, N:]),
    )  # fmt: skip
    expected = fitted(2 * theta, y, 2 * K, alpha=0.1).predict(
        2 * theta[N:, :N], 0.7, return_cov=True, **of_new(2 * K)
    )
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


# -- what is known of its ends ---------------------------------------------------------------------


def test_at_first_it_is_the_prior(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    mean, covariance = fitted(theta, y, K).predict(theta[N:, :N], 0.0, return_cov=True, **of_new(K))
    assert np.array_equal(mean, np.zeros((NEW, 2)))
    assert np.array_equal(covariance, K[N:, N:])


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_in_the_end_it_is_ridge_regression_on_the_tangent_kernel(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray, alpha: float
) -> None:
    own = fitted(theta, y, K, alpha=alpha).predict(theta[N:, :N])
    ridge = TheirRidge(alpha=alpha, kernel="precomputed").fit(theta[:N, :N], y)
    agree(own, ridge.predict(theta[N:, :N]))


def test_long_is_as_good_as_for_ever(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    network = fitted(theta, y, K, alpha=0.01)
    found = network.predict(theta[N:, :N], [1e5, np.inf], return_cov=True, **of_new(K))
    for values in found:
        agree(values[0], values[1])


def test_trained_samples_are_met_for_certain(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray
) -> None:
    """Whatever the network began with: mean y, no variance left."""
    square = K[:N, :N]
    mean, deviation = fitted(theta, y, K).predict(
        theta[:N, :N], np.inf, return_std=True, nngp=square, square=square
    )
    np.testing.assert_allclose(mean, y, atol=1e-8)
    assert (deviation**2).max() < 1e-9


def test_variance_on_training_samples_falls_with_time(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray
) -> None:
    """With K = Theta every mode is damped on its own: their sum, the variance, cannot rise."""
    square = theta[:N, :N]
    times = [0.0, 0.1, 0.5, 2.0, 10.0, 100.0]
    deviation = fitted(theta, y, theta).predict(
        square, times, return_std=True, nngp=square, square=square
    )[1]
    assert (np.diff(deviation**2, axis=0) < 1e-12).all()
    assert (deviation >= 0).all()


def test_with_only_the_readout_trained_the_end_is_bayesian() -> None:
    """Then Theta = K (`frozen_layers` = depth): the NNGP without noise."""
    rng = np.random.default_rng(4)
    X = rd.Sequences.from_arrays([rng.normal(size=length) for length in rng.integers(3, 9, 14)])
    kernel = rd.RNTK(sigma_b=0.3, readout="per_step", frozen_layers=1)
    y = rng.normal(size=10)
    theta, K = (kernel(X, kind=kind, backend="numpy") for kind in ("ntk", "nngp"))
    network = TrainedNetwork().fit(theta[:10, :10], y, nngp=K[:10, :10])
    given = {"return_cov": True, "square": K[10:, 10:]}
    found = network.predict(theta[10:, :10], nngp=K[10:, :10], **given)
    process = GaussianProcessRegressor(0.0).fit(K[:10, :10], y)
    expected = process.predict(K[10:, :10], **given)
    for one, other in zip(found, expected, strict=True):
        agree(one, other)


def test_shapes_follow_times_and_targets(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    for targets, axis in ((y, (2,)), (y[:, 0], ())):
        network = fitted(theta, targets, K)
        for t, first in ((1.0, ()), ([1.0], (1,)), ([1.0, 2.0, np.inf], (3,))):
            mean, deviation = network.predict(theta[N:, :N], t, return_std=True, **of_new(K))
            covariance = network.predict(theta[N:, :N], t, return_cov=True, **of_new(K))[1]
            assert mean.shape == (*first, NEW, *axis)
            assert deviation.shape == (*first, NEW)
            assert covariance.shape == (*first, NEW, NEW)
        assert network.sample_y(theta[N:, :N], 1.0, 5, **of_new(K)).shape == (NEW, *axis, 5)


def test_samples_are_of_the_distribution(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    network, count = fitted(theta, y[:, 0], K), 4000
    drawn = network.sample_y(theta[N:, :N], 0.5, count, random_state=7, **of_new(K))
    mean, expected = network.predict(theta[N:, :N], 0.5, return_cov=True, **of_new(K))
    own = expected.diagonal()
    assert np.abs((drawn.mean(axis=1) - mean) / np.sqrt(own / count)).max() < 5
    error = np.sqrt((np.outer(own, own) + expected**2) / count)
    assert np.abs((np.cov(drawn) - expected) / error).max() < 5


# -- finite networks -------------------------------------------------------------------------------

NETWORKS, WIDTH, STEPS = 160, 256, 20


def ensemble(kernel: rd.RNTK, X: rd.Sequences, y: np.ndarray, size: float) -> np.ndarray:
    """(networks, all): outputs of networks of other draws, each after so many steps.

    The first sequences, as many as there are targets, are trained on.
    """
    train, everything, outputs = Batch.of(X[: len(y)]), Batch.of(X), []
    for seed in range(NETWORKS):
        network = FiniteNetwork.draw(
            kernel,
            WIDTH,
            n_features=1,
            steps=int(X.lengths.max()),
            rng=np.random.default_rng([seed, WIDTH]),
        )
        for _ in range(STEPS):
            network.descend(train, y, size)
        outputs.append(network.outputs(everything))
    return np.array(outputs)


@pytest.mark.slow
def test_finite_networks_trained_by_gradient_descent_agree() -> None:
    """Mean and covariance of 160 networks of width 256, within 4 standard errors.

    A step is 1/40 of what the largest eigenvalue allows, so that descent is flow. The time is that
    in which its mode falls to 1/e: the kernels of finite networks differ from each other by some
    n^(-1/2), and what that adds to the outputs' variance would show where training has left less.
    """
    rng = np.random.default_rng(6)
    X = rd.Sequences.from_arrays([rng.normal(size=length) for length in (5, 4, 5, 3, 5, 4, 3)])
    y = np.array([1.5, -1.0, 0.5, 1.0])
    kernel = rd.RNTK(activation="erf", sigma_b=0.3, sigma_h=0.5)
    theta, K = (kernel(X, kind=kind, backend="numpy") for kind in ("ntk", "nngp"))
    size = 0.05 / np.linalg.eigvalsh(theta[:4, :4])[-1]
    outputs = ensemble(kernel, X, y, size)

    def off(t: float, theta: np.ndarray, K: np.ndarray) -> tuple[float, float]:
        """Largest deviations of mean and covariance, in standard errors."""
        network = TrainedNetwork(1e-9).fit(theta[:4, :4], y, nngp=K[:4, :4])
        mean, covariance = network.predict(
            theta[:, :4], t, return_cov=True, nngp=K[:, :4], square=K
        )
        own = np.maximum(covariance.diagonal(), 1e-9)
        error = np.sqrt((np.outer(own, own) + covariance**2) / NETWORKS)
        of_mean = np.abs((outputs.mean(axis=0) - mean) / np.sqrt(own / NETWORKS)).max()
        return float(of_mean), float(np.abs((np.cov(outputs.T) - covariance) / error).max())

    right = off(STEPS * size, theta, K)
    assert max(right) < 4, right
    # Or agreement would mean nothing: other times, and other kernels.
    assert min(off(0.0, theta, K)) > 4
    assert min(off(np.inf, theta, K)) > 4
    assert min(off(STEPS * size, K, K)) > 4
    assert off(STEPS * size, theta, theta)[1] > 4


# -- what can go wrong -----------------------------------------------------------------------------


def test_coinciding_samples_are_refused_for_ever_alone(y: np.ndarray) -> None:
    """Two samples with one kernel row, of different targets: no end, but every finite time."""
    theta = np.ones((2, 2))
    network = TrainedNetwork().fit(theta, [1.0, 0.0])
    agree(network.predict(theta, 2.0), np.full(2, 0.5 * -np.expm1(-4.0)))
    with pytest.raises(NotPositiveDefiniteError, match=r"shows in an eigenvalue of .* raise alpha"):
        network.predict(theta)
    agree(TrainedNetwork(0.5).fit(theta, [1.0, 0.0]).predict(theta), np.full(2, 0.4))


def test_an_indefinite_matrix_is_refused(y: np.ndarray) -> None:
    theta = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(
        NotPositiveDefiniteError, match=r"eigenvalue of -1.0e\+00: raise alpha to 1"
    ):
        TrainedNetwork().fit(theta, [1.0, 0.0])
    assert TrainedNetwork(1.5).fit(theta, [1.0, 0.0]).predict(theta).shape == (2,)


def test_what_does_not_fit_is_refused(theta: np.ndarray, K: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(SolverMemoryError, match=r"eigenvectors of 30 samples needs .* on fewer"):
        fitted(theta, y, K, memory=0)
    network = fitted(theta, y, K)
    network.memory = 0
    with pytest.raises(
        SolverMemoryError, match=r"weights of 2 times, 8 new and 30 training .* few"
    ):
        network.predict(theta[N:, :N], [1.0, 2.0])


def test_predictions_take_the_memory_that_is_counted() -> None:
    """NumPy's allocations at most, beside what `SolverMemoryError` tells before."""
    n, m, times = 300, 150, [0.1, 1.0, 2.0]
    K = gaussian(np.random.default_rng(3).normal(size=(n + m, 4)))
    given = {"nngp": Dense(K[n:, :n]), "square": Dense(K[n:, n:])}
    network = TrainedNetwork(1.0).fit(K[:n, :n], np.ones(n), nngp=K[:n, :n])
    counted = 8 * m * n * (3 * len(times) + 2)
    for option, more in (("return_std", 0), ("return_cov", 8 * m * m * (3 * len(times) + 1))):
        tracemalloc.start()
        try:
            network.predict(Dense(K[n:, :n]), times, **{option: True}, **given)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert 0.5 * (counted + more) < peak < 1.05 * (counted + more)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, T, K, y: TrainedNetwork(-1.0), "alpha is -1.0: give a finite number of at"),
        (lambda n, T, K, y: TrainedNetwork(learning_rate=0.0), "learning_rate is 0.0: give a fin"),
        (lambda n, T, K, y: n.fit(T[:N], y), "found a rectangular matrix"),
        (lambda n, T, K, y: n.fit(T[:N, :N], y, nngp=K), r"targets of shape \(30, 2\) for 38"),
        (lambda n, T, K, y: n.predict(T[:, :9]), "38 x 9 where 30 samples were trained on"),
        (lambda n, T, K, y: n.predict(T[N:, :N], -1.0), r"times of shape \(1,\), least -1.0"),
        (lambda n, T, K, y: n.predict(T[N:, :N], [[1.0]]), r"times of shape \(1, 1\)"),
        (lambda n, T, K, y: n.predict(T[N:, :N], 1.0, True, True), "ask for one of them"),
        (lambda n, T, K, y: n.predict(T[N:, :N], 1.0, True), "give the diagonal"),
        (
            lambda n, T, K, y: n.predict(T[N:, :N], 1.0, True, square=K[N:, N:]),
            "give nngp, to fit of the training samples and to predict of the new ones",
        ),
        (
            lambda n, T, K, y: n.predict(T[N:, :N], 1.0, True, square=K[N:, N:], nngp=K[:2, :N]),
            "found nngp of 2 new samples, and a tangent kernel of 8",
        ),
        (
            lambda n, T, K, y: n.predict_from(T[N:, :N], 1.0, training=y, new=y),
            r"give them for the training samples, \(30, 2\), and for the new ones, \(8, 2\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    theta: np.ndarray, K: np.ndarray, y: np.ndarray, call: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(fitted(theta, y, K), theta, K, y)
