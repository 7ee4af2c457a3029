"""Gradients with respect to the inputs: against finite differences, and the paper's figure."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.sensitivity import gradient


def finite_difference(kernel: RNTK, x: np.ndarray, y: np.ndarray, kind: Any) -> np.ndarray:
    step = 1e-5
    moved = []
    for index in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved.append(x.copy())
            moved[-1][index] += sign * step
    values = kernel(np.array(moved), [y], kind=kind)[:, 0].reshape(*x.shape, 2)
    return (values[..., 0] - values[..., 1]) / (2 * step)


@st.composite
def kernels(draw: Any) -> RNTK:
    depth = draw(st.integers(1, 3))
    return RNTK(
        depth=depth,
        activation=draw(st.sampled_from(["relu", "erf", "linear"])),
        sigma_w=draw(st.sampled_from([0.8, 1.4])),
        sigma_u=draw(st.sampled_from([0.6, 1.1])),
        sigma_b=draw(st.sampled_from([0.0, 0.3])),
        sigma_h=draw(st.sampled_from([0.0, 0.5])),
        readout=draw(st.sampled_from(["last", "per_step", "mean", "diagonal_authors"])),
        bidirectional=draw(st.booleans()),
        frozen_layers=draw(st.integers(0, depth)),
        initial_state=draw(st.sampled_from(["shared", "independent"])),
        normalize=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    kernel=kernels(),
    kind=st.sampled_from(["ntk", "nngp"]),
    m=st.integers(1, 2),
    lengths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_equals_a_central_difference(
    kernel: RNTK, kind: Any, m: int, lengths: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if kernel.readout == "diagonal_authors":
        lengths = (lengths[0], lengths[0])
    x, y = (rng.normal(size=(length, m)) for length in lengths)
    exact = gradient(kernel, Sequences.from_arrays([x]), Sequences.from_arrays([y]), kind)
    numeric = finite_difference(kernel, x, y, kind)
    assert np.abs(exact - numeric).max() <= 1e-6 * max(np.abs(numeric).max(), 1e-3)
    norms = kernel.sensitivity(x, y, kind=kind)
    np.testing.assert_allclose(norms, np.linalg.norm(exact, axis=1), rtol=1e-14)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    kernel=kernels(),
    kind=st.sampled_from(["ntk", "nngp"]),
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_weighted_sum_equals_a_central_difference(
    kernel: RNTK, kind: Any, lengths: list[int], seed: int
) -> None:
    """What a kernel machine decides by: one sweep for all its samples, of any lengths."""
    rng = np.random.default_rng(seed)
    if kernel.readout == "diagonal_authors":
        lengths = [lengths[0]] * len(lengths)
    x, *others = (rng.normal(size=(length, 2)) for length in lengths)
    weights = rng.normal(size=len(others))
    given_x, y = Sequences.from_arrays([x]), Sequences.from_arrays(others)
    found = gradient(kernel, given_x, y, kind, weights)
    numeric = sum(
        w * finite_difference(kernel, x, z, kind) for w, z in zip(weights, others, strict=True)
    )
    assert np.abs(found - numeric).max() <= 1e-6 * max(np.abs(numeric).max(), 1e-3)
    one_by_one = sum(
        w * gradient(kernel, given_x, Sequences.from_arrays([z]), kind)
        for w, z in zip(weights, others, strict=True)
    )
    np.testing.assert_allclose(found, one_by_one, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sigma_w": 1.33}, (9e-6, 4e-3, 1.0)),
        ({"sigma_w": 2**0.5}, (0.52, 0.56, 0.46)),
        ({"sigma_w": 1.5}, (1.0, 2e-2, 4e-5)),
        ({"sigma_w": 1.0, "activation": "erf"}, (0.0, 0.0, 1.0)),
    ],
)
def test_which_time_steps_matter(options: dict[str, Any], expected: tuple[float, ...]) -> None:
    """Mean |d k / d x_t| at t = 1, 50, 100 relative to its largest, on Gaussian pairs."""
    rng = np.random.default_rng(0)
    kernel = RNTK(**options)
    x, y = rng.normal(size=(2, 60, 100))
    mean = np.mean([kernel.sensitivity(a, b) for a, b in zip(x, y, strict=True)], axis=0)
    relative = (mean / mean.max())[[0, 49, 99]]
    # 60 pairs: the mean, and the largest, of heavy-tailed values scatter by some ten percent.
    np.testing.assert_allclose(relative, expected, rtol=0.5, atol=1e-12)


def test_inputs_must_be_single_sequences() -> None:
    with pytest.raises(ValueError, match=r"x must be one sequence.*found shape \(2, 3, 1\)"):
        RNTK().sensitivity(np.ones((2, 3, 1)), np.ones(3))


def test_identical_sequences_have_finite_gradients() -> None:
    x = np.array([0.3, -1.0, 0.5])
    assert np.isfinite(RNTK(sigma_b=0.1).sensitivity(x, x)).all()
    assert (RNTK(normalize=True).sensitivity(np.zeros(3), x) == 0).all()


def test_overflow_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(2, 1200))
    with pytest.raises(OverflowError, match="smaller sigma_w"):
        RNTK(sigma_w=2.0).sensitivity(x[0], x[1])
