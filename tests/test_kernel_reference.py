"""Every option of RNTK, in every backend, equals the reference on drawn batches of sequences."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import ACTIVATIONS, READOUTS, reference_matrix

import rntk_dist as rd

BACKENDS = ["numpy", "numba"]
TOLERANCE = 1e-9


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    depth = draw(st.integers(1, 3))
    return dict(
        depth=depth,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        readout=draw(st.sampled_from(READOUTS)),
        bidirectional=draw(st.booleans()),
        frozen_layers=draw(st.integers(0, depth)),
        initial_state=draw(st.sampled_from(["shared", "independent"])),
        normalize=draw(st.booleans()),
        sigma_w=draw(st.floats(0.3, 1.8)),
        sigma_u=draw(st.floats(0.2, 2.0)),
        sigma_b=draw(st.just(0.0) | st.floats(0.05, 1.0)),
        sigma_h=draw(st.just(0.0) | st.floats(0.05, 1.0)),
        sigma_v=draw(st.floats(0.5, 2.0)),
    )


@st.composite
def batch(draw: st.DrawFn, features: int, equal_lengths: int | None) -> list[np.ndarray]:
    """One to three sequences, of Gaussians or made from an earlier one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = [0.5, 3.0, 1.1] + [-1.0, -0.7] * (features == 1)  # or see the last test
    made: list[np.ndarray] = []
    for _ in range(draw(st.integers(1, 3))):
        steps = equal_lengths or draw(st.integers(1, 6))
        new = rng.standard_normal((steps, features))
        earlier = made[-1] if made else new
        how = draw(
            st.sampled_from(["new", "zero", "starts with zero", "equal", "near", "multiple"])
        )
        if how == "zero":
            new = np.zeros_like(new)
        elif how == "starts with zero":
            new[0] = 0.0
        elif how == "equal":
            new = earlier.copy()
        elif how == "near":
            new = earlier + 1e-5 * rng.standard_normal(earlier.shape)
        elif how == "multiple":
            new = earlier * draw(st.sampled_from(factors))
        made.append(new)
    return made


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    scale = np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
    assert np.all(np.abs(actual - expected) <= TOLERANCE * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), opts=options(), kind=st.sampled_from(["ntk", "nngp"]))
@settings(
    deadline=None,
    max_examples=300,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_kernel_equals_reference(
    backend: str, data: st.DataObject, opts: dict[str, Any], kind: str
) -> None:
    features = data.draw(st.integers(1, 3))
    equal_lengths = None
    if opts["readout"] == "diagonal_authors":
        equal_lengths = data.draw(st.integers(1, 6))
    x = data.draw(batch(features, equal_lengths))
    y = data.draw(st.none() | batch(features, equal_lengths))
    if y is not None and data.draw(st.booleans()):
        y[0] = x[0].copy()  # equal, yet another sample
    actual = rd.RNTK(**opts)(x, y, kind=kind, backend=backend)
    expected = reference_matrix(x, y, kind=kind, **opts)
    assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_zero_sequence_normalises_to_zero_also_with_itself(activation: str, backend: str) -> None:
    kernel = rd.RNTK(activation=activation, normalize=True)
    x = [np.zeros((3, 1)), np.array([[0.5], [-1.0], [0.3]])]
    expected = np.diag([0.0, 1.0])
    assert_close(kernel(x, backend=backend), expected)
    assert_close(kernel(x, [a.copy() for a in x], backend=backend), expected)
    assert_close(kernel.diag(x), np.diag(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("features", [2, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_opposite_inputs_lose_half_the_digits_at_most(
    backend: str, features: int, depth: int
) -> None:
    """Relu without bias, angle pi at the first step: 1 - w is rounding noise, and theta its root.

    Measured 3e-9 of sqrt(k(x,x) k(y,y)); a bias, one feature or a positive factor costs nothing.
    """
    rng = np.random.default_rng(0)
    for steps in (1, 2, 4):
        x = list(rng.standard_normal((8, steps, features)))
        y = [-a for a in x] + [-0.7 * a for a in x]
        actual = rd.RNTK(depth=depth)(x, y, backend=backend)
        self_x, self_y = (
            np.array([reference_matrix([a], depth=depth)[0, 0] for a in side]) for side in (x, y)
        )
        error = np.abs(actual - reference_matrix(x, y, depth=depth))
        assert np.all(error <= 1e-8 * np.sqrt(np.outer(self_x, self_y)))
