"""Ridge regression on kernel matrices, against scikit-learn and against leaving samples out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from rntk_dist.solve.regression import Float64, RidgeRegression

ALPHA = (1.0, 1e-2, 1e-5)


@pytest.fixture
def given() -> tuple[Float64, Float64, Float64]:
    """A kernel (12, 12) of full rank, targets, and the kernel (5, 12) of others."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(17, 30)) * 3
    kernel = features @ features.T
    return kernel[:12, :12], rng.normal(size=12), kernel[12:, :12]


def test_predictions_are_scikit_learns(given: tuple[Float64, Float64, Float64]) -> None:
    square, targets, across = given
    found = RidgeRegression(ALPHA).predictions(square, targets, across)
    assert found.shape == (3, 5)
    for alpha, values in zip(ALPHA, found, strict=True):
        ridge = KernelRidge(alpha=alpha * np.diagonal(square).mean(), kernel="precomputed")
        assert np.allclose(values, ridge.fit(square, targets).predict(across), rtol=1e-9)
        assert np.allclose(
            RidgeRegression(ALPHA).only(alpha).predictions(square, targets, across)[0], values
        )


def test_errors_are_those_of_fits_without_the_sample(
    given: tuple[Float64, Float64, Float64],
) -> None:
    square, targets, _ = given
    found = RidgeRegression(ALPHA).left_out(square, targets)
    for alpha, errors in zip(ALPHA, found, strict=True):
        ridge = KernelRidge(alpha=alpha * np.diagonal(square).mean(), kernel="precomputed")
        for i in range(12):
            rest = np.delete(np.arange(12), i)
            ridge.fit(square[np.ix_(rest, rest)], targets[rest])
            assert errors[i] == pytest.approx(targets[i] - ridge.predict(square[[i]][:, rest])[0])


def test_a_scaled_kernel_predicts_the_same(given: tuple[Float64, Float64, Float64]) -> None:
    square, targets, across = given
    ridge = RidgeRegression(ALPHA)
    scaled = ridge.predictions(1e6 * square, targets, 1e6 * across)
    assert np.allclose(scaled, ridge.predictions(square, targets, across))


def test_the_smallest_alpha_interpolates_where_samples_stand_twice() -> None:
    """The kernel is singular, and rounding may leave eigenvalues below 0."""
    points = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 2, axis=0)
    square, targets = points @ points.T, points @ [1.0, -2.0, 0.5]
    ridge = RidgeRegression((1e-2, 1e-8))
    assert np.allclose(ridge.predictions(square, targets, square)[1], targets, atol=1e-6)
    assert np.isfinite(ridge.left_out(square, targets)).all()


def test_what_cannot_be_regressed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha is .* each larger than the last"):
        RidgeRegression((1e-3, 1.0))
    with pytest.raises(ValueError, match=r"alpha holds 0.0: give positive numbers"):
        RidgeRegression((1.0, 0.0))
    with pytest.raises(ValueError, match="mean 0: ridge regression needs a kernel"):
        RidgeRegression().left_out(np.zeros((3, 3)), np.ones(3))
