"""Every option of RNTK, in every backend, equals the reference on drawn batches of sequences."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import ACTIVATIONS, READOUTS, reference_matrix

import rntk_dist as rd

BACKENDS = ["numpy"]
TOLERANCE = 1e-9
# Whole sequences that are multiples of each other, without bias: section 4 of the theory allows
# relu 5e-8 there in float64. Leading zero steps shorten a sequence to such a one.
CORNER_TOLERANCE = 1e-7


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
            new = earlier * draw(st.sampled_from([-1.0, 0.5, 3.0, 1.1]))
        made.append(new)
    return made


def is_corner(opts: dict[str, Any], x: np.ndarray, y: np.ndarray) -> bool:
    """Whether an angle beyond the common first step is 0 or pi up to rounding, in the pair x, y.

    So it is when, from steps before which both were zero or not begun, the sequences run as
    multiples of each other, and neither a bias nor the initial state adds anything.
    """
    if opts["activation"] != "relu" or opts["sigma_b"] > 0 or np.array_equal(x, y):
        return False
    for a, b in [(x, y), (x[::-1], y[::-1])][: 1 + opts["bidirectional"]]:
        for t, u in np.ndindex(len(a), len(b)):
            if a[:t].any() or b[:u].any():
                continue
            for length in range(1, min(len(a) - t, len(b) - u) + 1):
                runs = np.stack([a[t : t + length].ravel(), b[u : u + length].ravel()])
                ratio = np.linalg.svd(runs, compute_uv=False)[-1] / (np.abs(runs).max() or 1.0)
                first_step = t == u == 0 and length == 1
                if runs.any(axis=1).all() and ratio < 1e-6 and not first_step:
                    return True
    return False


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: np.ndarray) -> None:
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    scale = np.maximum(np.abs(expected), 1e-3 * np.abs(expected).max())
    assert np.all(np.abs(actual - expected) <= tolerance * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), opts=options(), kind=st.sampled_from(["ntk", "nngp"]))
@settings(
    deadline=None,
    max_examples=150,
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
    corner = [[is_corner(opts, a, b) for b in (x if y is None else y)] for a in x]
    assert_close(actual, expected, np.where(corner, CORNER_TOLERANCE, TOLERANCE))
