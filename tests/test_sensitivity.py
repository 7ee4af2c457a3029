"""Gradients with respect to the inputs: against differences, and the paper's figure."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import mp, output_cells, read_out

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.sensitivity import gradient

DIGITS = 150
STEP = mp.mpf(10) ** -40


# ---------------------------------------------------------------------- derivatives in many digits
type Numbers = list[list[Any]]
"""A sequence: features of each step, in many digits."""


def in_digits(x: np.ndarray) -> Numbers:
    """A sequence (T, m), as it is."""
    return [[mp.mpf(float(each)) for each in step] for step in x]


def exact_value(kernel: RNTK, x: Numbers, y: Numbers, kind: str, *, same: bool = False) -> Any:
    """k(x, y), not normalised, from the cells of `reference.output_cells`."""
    options = kernel.to_dict()
    sigmas = {name: mp.mpf(each) for name, each in options.items() if name.startswith("sigma")}
    diagonal = kernel.readout in ("last", "per_step")
    total = mp.mpf(0)
    for direction in (1, -1) if kernel.bidirectional else (1,):
        sides = x[::direction], y[::direction]
        out = output_cells(*sides, options | sigmas, same, diagonal)
        chosen = {cell: both[("ntk", "nngp").index(kind)] for cell, both in out.items()}
        total += read_out(chosen, len(x), len(y), kernel.readout)
    return total


def changed(x: Numbers, step: int, feature: int, by: Any) -> Numbers:
    """The sequence with one number changed."""
    return [
        [each + by if (t, j) == (step, feature) else each for j, each in enumerate(row)]
        for t, row in enumerate(x)
    ]


def exact_gradient(
    kernel: RNTK, x: np.ndarray, y: np.ndarray, kind: str, every: int = 1, side: int = 1
) -> np.ndarray:
    """d k(x, y) / d x_t of every so many steps: a difference so small that nothing else shows.

    ``side``: 1 or -1, to where x moves.
    """
    with mp.workdps(DIGITS):
        a, b = in_digits(x), in_digits(y)
        size = mp.mpf(float(np.abs(x).max() or 1.0))
        by = side * size * STEP

        def value(side_x: Numbers) -> Any:
            found = exact_value(kernel, side_x, b, kind)
            if kernel.normalize:
                found /= mp.sqrt(exact_value(kernel, side_x, side_x, kind, same=True))
            return found

        unit = mp.sqrt(exact_value(kernel, b, b, kind, same=True)) if kernel.normalize else 1
        start = value(a)
        found = [
            [float((value(changed(a, t, j, by)) - start) / by / unit) for j in range(x.shape[1])]
            for t in range(0, len(x), every)
        ]
    return np.array(found)


def found_gradient(kernel: RNTK, x: np.ndarray, y: np.ndarray, kind: Any) -> np.ndarray:
    """The package's."""
    return gradient(kernel, Sequences.from_arrays([x]), Sequences.from_arrays([y]), kind)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, in units of the largest component."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def steps(*numbers: float) -> np.ndarray:
    """A sequence of one feature."""
    return np.array(numbers)[:, None]


def finite_difference(kernel: RNTK, x: np.ndarray, y: np.ndarray, kind: Any) -> np.ndarray:
    step = 1e-5
    moved = []
    for index in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved.append(x.copy())
            moved[-1][index] += sign * step
    values = kernel(np.array(moved), [y], kind=kind)[:, 0].reshape(*x.shape, 2)
    slopes: np.ndarray = (values[..., 0] - values[..., 1]) / (2 * step)
    return slopes


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


# ------------------------------------------------------------------------------------ digits
APART = {None: 1e-12, 1e-3: 1e-10, 1e-5: 1e-8}
"""How far sequences are apart, as a part of them; None: independent. The bound of the error."""


def pair(
    seed: int, shape: tuple[int, int], amplitude: float, apart: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Two sequences, independent or near each other."""
    x, other = amplitude * np.random.default_rng(seed).normal(size=(2, *shape))
    return x, other if apart is None else x + apart * other


@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("amplitude", [1e-6, 0.3, 1e4, 1e8])
def test_erf_keeps_its_digits(amplitude: float, m: int, apart: float | None) -> None:
    x, y = pair(0, (5, m), amplitude, apart)
    for normalize in (False, True):
        for kind in ("ntk", "nngp"):
            kernel = RNTK(activation="erf", normalize=normalize)
            exact = exact_gradient(kernel, x, y, kind)
            assert error(found_gradient(kernel, x, y, kind), exact) <= APART[apart]


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("apart", [None, 1e-3])
@pytest.mark.parametrize(
    "options",
    [
        {"depth": 2, "sigma_b": 0.3, "sigma_h": 0.5, "readout": "mean"},
        {"depth": 3, "frozen_layers": 1, "readout": "per_step", "bidirectional": True},
        {"sigma_h": 0.5, "initial_state": "independent", "normalize": True},
    ],
)
def test_erf_keeps_its_digits_with_all_options(
    options: dict[str, Any], apart: float | None, kind: str
) -> None:
    x, y = pair(1, (4, 2), 100.0, apart)
    kernel = RNTK(activation="erf", **options)
    exact = exact_gradient(kernel, x, y, kind)
    assert error(found_gradient(kernel, x, y, kind), exact) <= APART[apart]


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("amplitude", [1e-6, 0.3, 1e4])
def test_erf_keeps_its_digits_1e_8_apart(amplitude: float, kind: str) -> None:
    """Without normalisation. A normalised kernel is near its largest value, and flat, there."""
    x, y = pair(2, (5, 2), amplitude, 1e-8)
    kernel = RNTK(activation="erf")
    assert error(found_gradient(kernel, x, y, kind), exact_gradient(kernel, x, y, kind)) <= 1e-8


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("apart", [None, 1e-3, 1e-5])
def test_chaos_keeps_its_digits(apart: float | None, kind: str) -> None:
    x, y = pair(3, (40, 1), 0.3, apart)
    kernel = RNTK(activation="erf", sigma_w=2.0, normalize=True)
    exact = exact_gradient(kernel, x, y, kind, every=5)
    bound = 1e-12 if apart is None else 1e-8
    assert error(found_gradient(kernel, x, y, kind)[::5], exact) <= bound


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("normalize", [False, True])
def test_chaos_of_many_steps_keeps_its_digits(normalize: bool, kind: str) -> None:
    x, y = pair(4, (120, 1), 0.3, None)
    kernel = RNTK(activation="erf", sigma_w=2.0, normalize=normalize)
    exact = exact_gradient(kernel, x, y, kind, every=40)
    assert error(found_gradient(kernel, x, y, kind)[::40], exact) <= 1e-12


# ------------------------------------------------------------------------------------- scale
HOMOGENEOUS = [
    RNTK(),
    RNTK(activation="linear"),
    RNTK(depth=2, readout="mean", bidirectional=True),
    RNTK(depth=2, readout="per_step", activation="linear", bidirectional=True),
]


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("kernel", HOMOGENEOUS, ids=repr)
def test_inputs_times_a_number_have_gradients_times_it(
    kernel: RNTK, size: float, kind: Any
) -> None:
    x, y = pair(5, (6, 2), 1.0, None)
    expected = kernel.sensitivity(x, y, kind=kind)
    found = kernel.sensitivity(size * x, size * y, kind=kind)
    np.testing.assert_allclose(found, size * expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_normalised_gradients_are_divided_by_the_size(activation: Any, size: float) -> None:
    x, y = pair(6, (6, 2), 1.0, None)
    kernel = RNTK(activation=activation, normalize=True)
    expected = kernel.sensitivity(x, y)
    np.testing.assert_allclose(kernel.sensitivity(size * x, size * y), expected / size, rtol=1e-12)


@pytest.mark.parametrize("size", [1e-150, 1e-30, 1e30, 1e150])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_bias_and_start_scale_with_the_inputs(activation: Any, size: float) -> None:
    x, y = pair(7, (6, 2), 1.0, None)

    def kernel(factor: float) -> RNTK:
        return RNTK(activation=activation, sigma_b=0.3 * factor, sigma_h=0.5 * factor)

    expected = kernel(1.0).sensitivity(x, y)
    found = kernel(size).sensitivity(size * x, size * y)
    np.testing.assert_allclose(found, size * expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("kernel", HOMOGENEOUS, ids=repr)
def test_each_sequence_has_a_size_of_its_own(kernel: RNTK, ratio: float, kind: Any) -> None:
    """Gradients with respect to x are proportional to y, and do not depend on the size of x."""
    x, y = pair(8, (6, 2), 1.0, None)
    expected = kernel.sensitivity(x, y, kind=kind)
    found = kernel.sensitivity(x, y / ratio, kind=kind)
    np.testing.assert_allclose(found, expected / ratio, rtol=1e-12)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("sizes", [(1e3, 1.0), (1e6, 1.0), (1.0, 1e6)])
def test_erf_keeps_its_digits_where_sizes_differ(sizes: tuple[float, float], kind: str) -> None:
    x, y = pair(9, (5, 2), 1.0, None)
    x, y = sizes[0] * x, sizes[1] * y
    kernel = RNTK(activation="erf")
    assert error(found_gradient(kernel, x, y, kind), exact_gradient(kernel, x, y, kind)) <= 1e-11


# ------------------------------------------------------------------------------ zeros and kinks
def test_a_linear_network_has_a_gradient_at_a_first_step_of_zero() -> None:
    kernel = RNTK(activation="linear")
    np.testing.assert_allclose(kernel.sensitivity([0.0, 1.0], [1.0, 1.0]), [6.0, 2.0], rtol=1e-15)


SMOOTH: list[Any] = ["linear", "erf"]
WITH_ZEROS = [(0.0, 0.0, 1.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)]


@pytest.mark.parametrize("numbers", WITH_ZEROS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("activation", SMOOTH)
def test_linear_and_erf_are_smooth_at_zeros(
    activation: Any, bidirectional: bool, numbers: tuple[float, ...]
) -> None:
    x, y = steps(*numbers), steps(1.0, 1.0, 0.3)
    kernel = RNTK(activation=activation, bidirectional=bidirectional)
    for kind in ("ntk", "nngp"):
        exact = exact_gradient(kernel, x, y, kind)
        assert error(found_gradient(kernel, x, y, kind), exact) <= 1e-13


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_each_direction_has_kinks_of_its_own(kind: Any) -> None:
    """A last step of zero is where the other direction of time begins; forward, it is smooth."""
    x, y = steps(0.5, -1.0, 0.0), steps(1.0, 0.4, -0.3)
    forward, both = RNTK(sigma_w=1.2), RNTK(sigma_w=1.2, bidirectional=True)
    found = found_gradient(both, x, y, kind)
    np.testing.assert_allclose(found[:2], exact_gradient(both, x, y, kind)[:2], rtol=1e-12)
    alone = exact_gradient(forward, x, y, kind)[2]
    assert alone != 0
    np.testing.assert_allclose(found[2], alone, rtol=1e-12)
    numeric = finite_difference(forward, x, y, kind)[2]
    np.testing.assert_allclose(found[2], numeric, rtol=1e-6)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_first_steps_of_zero_count_as_zero_without_a_bias(kind: Any) -> None:
    x, y = steps(0.0, 0.0, 1.0, 0.5), steps(1.0, 0.5, -1.0, 0.3)
    found = found_gradient(RNTK(), x, y, kind)
    assert (found[:2] == 0).all()
    np.testing.assert_allclose(found[2:], exact_gradient(RNTK(), x, y, kind)[2:], rtol=1e-12)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("options", [{"sigma_b": 0.3}, {"sigma_h": 0.5}])
def test_a_bias_or_a_start_makes_first_steps_smooth(options: dict[str, Any], kind: Any) -> None:
    x, y = steps(0.0, 0.0, 1.0), steps(1.0, 0.5, -1.0)
    kernel = RNTK(**options)
    exact = exact_gradient(kernel, x, y, kind)
    assert (exact != 0).all()
    np.testing.assert_allclose(found_gradient(kernel, x, y, kind), exact, rtol=1e-12)


def both_sides(
    kernel: RNTK, x: np.ndarray, y: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives from below and from above."""
    below, above = (exact_gradient(kernel, x, y, kind, side=side) for side in (-1, 1))
    return below, above


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "options", [{}, {"sigma_b": 0.1}, {"depth": 2, "readout": "mean", "sigma_h": 0.5}]
)
def test_an_angle_of_zero_or_pi_counts_the_mean_of_both_sides(
    options: dict[str, Any], sign: float, kind: Any
) -> None:
    x, kernel = steps(0.3, -1.0, 0.5), RNTK(**options)
    below, above = both_sides(kernel, x, sign * x, kind)
    assert error(found_gradient(kernel, x, sign * x, kind), (below + above) / 2) <= 1e-12


def test_first_steps_that_agree_are_kinks() -> None:
    """As long as two sequences agree, their angle is 0."""
    x, y = steps(1.0, 0.0, 0.5), steps(1.0, 1.0, 0.3)
    kernel = RNTK(sigma_b=0.3)
    below, above = both_sides(kernel, x, y, "ntk")
    assert above[0] - below[0] < -0.01
    assert error(found_gradient(kernel, x, y, "ntk"), (below + above) / 2) <= 1e-12


# --------------------------------------------------------------------------------- what is refused
def test_inputs_must_be_single_sequences() -> None:
    with pytest.raises(ValueError, match=r"x must be one sequence.*found shape \(2, 3, 1\)"):
        RNTK().sensitivity(np.ones((2, 3, 1)), np.ones(3))


def test_identical_sequences_have_finite_gradients() -> None:
    x = np.array([0.3, -1.0, 0.5])
    assert np.isfinite(RNTK(sigma_b=0.1).sensitivity(x, x)).all()
    assert (RNTK(normalize=True).sensitivity(np.zeros(3), x) == 0).all()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_overflow_is_refused(bidirectional: bool) -> None:
    x = np.random.default_rng(0).normal(size=(2, 1200))
    with pytest.raises(OverflowError, match="smaller sigma_w"):
        RNTK(sigma_w=2.0, bidirectional=bidirectional).sensitivity(x[0], x[1])


@pytest.mark.parametrize(
    ("kernel", "sizes", "message"),
    [
        (RNTK(activation="erf"), (1e60, 1e60), "up to .*e.60, .* erf is computed up to 1e.50"),
        (RNTK(), (1e-60, 1e60), "takes a ratio of 1e.80"),
        (RNTK(activation="linear", normalize=True), (1.0, 1e100), "takes a ratio of 1e.80"),
    ],
    ids=["erf", "relu", "linear"],
)
def test_sizes_whose_products_leave_float64_are_refused(
    kernel: RNTK, sizes: tuple[float, float], message: str
) -> None:
    x, y = np.random.default_rng(23).normal(size=(2, 4, 2))
    with pytest.raises(OverflowError, match=message):
        kernel.sensitivity(sizes[0] * x, sizes[1] * y)


def test_steps_of_very_different_weight_keep_their_gradients() -> None:
    """Their squares would be 0 beside the largest."""
    found = RNTK(activation="linear").sensitivity([1e60, 1e-20], [1e60, 2e-20])
    np.testing.assert_allclose(found, [6e60, 4e-20], rtol=1e-14)
