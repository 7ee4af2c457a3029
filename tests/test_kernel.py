"""RNTK: golden values, invariants, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
from golden_cases import kernel_of, read_cases
from reference import reference

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.scaling import scale_block, scaled_entries

CASES = [
    pytest.param(case, id=f"{name}{number}")
    for name in ("short", "long")
    for number, case in enumerate(read_cases(name))
]
BACKENDS = ["numpy", "numba"]
# Of normalised values of thousands of steps.
LONG_BOUNDS = {"float64": 1e-11, "float32": 5e-5}


def draw(rng: np.random.Generator, lengths: list[int], m: int = 2) -> list[np.ndarray]:
    return [rng.normal(size=(length, m)) for length in lengths]


def relative_error(values: np.ndarray, exact: np.ndarray) -> float:
    floor = 1e-3 * np.abs(exact).max()
    return float((np.abs(values - exact) / np.maximum(np.abs(exact), floor)).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_golden_values(
    case: dict[str, Any], dtype: str, bound: float, kind: str, backend: str
) -> None:
    """Fifty-digit values; the proportional cases too, whose corner the haversine form cures."""
    kernel = kernel_of(case)
    values = kernel(case["a"], case["b"], kind=kind, dtype=dtype, backend=backend)
    assert values.dtype == dtype
    assert relative_error(values, np.array(case[kind])) < bound


KERNELS = [
    RNTK(),
    RNTK(sigma_w=1.3, sigma_b=0.2, sigma_h=0.4, readout="per_step", bidirectional=True),
    RNTK(depth=2, activation="erf", sigma_h=0.5, initial_state="independent", readout="mean"),
    RNTK(depth=3, frozen_layers=1, sigma_b=0.1, readout="mean", normalize=True),
    RNTK(activation="linear", sigma_w=0.9, sigma_h=0.3, initial_state="independent"),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_tile_is_the_crop_of_the_whole_to_the_last_bit(kernel: RNTK, dtype: str) -> None:
    rng = np.random.default_rng(0)
    sequences = Sequences.from_arrays(draw(rng, [5, 3, 9, 9, 1, 4, 7, 3, 2, 9]))
    whole = kernel(sequences, dtype=dtype)
    assert np.array_equal(kernel(sequences[:4], dtype=dtype), whole[:4, :4])
    assert np.array_equal(kernel(sequences[:4], sequences[4:], dtype=dtype), whole[:4, 4:])
    assert np.array_equal(kernel(sequences[4:], sequences[:4], dtype=dtype), whole[4:, :4])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("readout", ["last", "per_step"])
@pytest.mark.parametrize("activation", ["relu", "linear", "erf"])
def test_a_sequence_of_unusual_size_leaves_the_bits_of_others(
    activation: Any, readout: Any, dtype: Any
) -> None:
    x = draw(np.random.default_rng(21), [5, 3, 9, 1, 4])
    kernel = RNTK(activation=activation, readout=readout, sigma_w=0.5, normalize=True)
    alone = kernel(x, dtype=dtype)
    for other in (1e-160 * x[0], np.eye(400, 2)):
        assert np.array_equal(kernel([*x, other], dtype=dtype)[:-1, :-1], alone)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_symmetric_positive_semidefinite_with_its_diagonal(kernel: RNTK, kind: str) -> None:
    rng = np.random.default_rng(1)
    sequences = Sequences.from_arrays(draw(rng, [4, 6, 6, 1, 3, 5, 2, 6]))
    matrix = kernel(sequences, kind=kind)
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(np.diag(matrix), kernel.diag(sequences, kind=kind))
    assert np.linalg.eigvalsh(matrix).min() > -1e-12 * np.trace(matrix)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_permuting_sequences_permutes_the_matrix(kernel: RNTK) -> None:
    rng = np.random.default_rng(2)
    sequences = Sequences.from_arrays(draw(rng, [4, 6, 2, 6, 1, 3, 5]))
    order = rng.permutation(len(sequences))
    assert np.array_equal(kernel(sequences[order]), kernel(sequences)[np.ix_(order, order)])


@pytest.mark.parametrize("n", [1, 127, 129, 300])
def test_blocks_meet_at_their_edges(n: int) -> None:
    """More sequences than one cache block holds."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 4))
    matrix = RNTK()(x)
    pairs = RNTK()(x, x)
    assert np.array_equal(matrix[~np.eye(n, dtype=bool)], pairs[~np.eye(n, dtype=bool)])
    np.testing.assert_allclose(np.diag(matrix), np.diag(pairs), rtol=1e-14)


def test_scaling_inputs_bias_and_start_scales_relu() -> None:
    rng = np.random.default_rng(4)
    x = draw(rng, [4, 6, 3])
    one = RNTK(sigma_u=0.7, sigma_b=0.2, sigma_h=0.3)
    three = RNTK(sigma_u=2.1, sigma_b=0.6, sigma_h=0.9, sigma_v=2.0)
    np.testing.assert_allclose(three(x), 9 * 4 * one(x), rtol=1e-13)


def test_one_step_is_the_feed_forward_tangent_kernel() -> None:
    """T = 1, no start: the arc-cosine recursion of a plain network of the same depth."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(6, 1, 3))
    covariance = x[:, 0] @ x[:, 0].T / 3
    tangent = covariance.copy()
    for _ in range(3):
        norms = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        theta = np.arccos(np.clip(covariance / norms, -1, 1))
        slope = (np.pi - theta) / (2 * np.pi)
        covariance = norms * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
        tangent = covariance + slope * tangent
    matrix = RNTK(depth=3, sigma_u=1.0)(x)
    np.testing.assert_allclose(matrix, tangent, rtol=1e-6)


def test_duplicates_keep_the_digits_of_the_diagonal() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1, 200))
    for dtype, bound in (("float64", 1e-13), ("float32", 1e-5)):
        value = RNTK()(x, x, dtype=dtype)[0, 0]
        assert abs(value / RNTK().diag(x)[0] - 1) < bound


def test_multiples_of_each_other_are_exact() -> None:
    """k(x, c x) = c k(x, x) for relu without bias, in the corner where the angle is 0."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3, 60, 2))
    for factor in (3.0, 1e-3):
        values = RNTK()(x, factor * x)
        np.testing.assert_allclose(np.diag(values), factor * RNTK().diag(x), rtol=1e-13)


def test_independent_starts_count_only_for_the_same_sample() -> None:
    x = np.ones((2, 3))
    kernel = RNTK(sigma_h=0.8, initial_state="independent")
    matrix = kernel(x)
    assert matrix[0, 1] < matrix[0, 0] == matrix[1, 1]
    assert kernel(x, x)[0, 0] == matrix[0, 1]
    shared = RNTK(sigma_h=0.8)
    np.testing.assert_allclose(shared(x), shared(x)[0, 0], rtol=1e-14)
    assert RNTK()(x)[0, 1] == RNTK(initial_state="independent")(x)[0, 1]


def test_zero_sequences_give_zeros() -> None:
    x = [np.zeros((3, 1)), np.ones((4, 1)), np.array([[0.0], [0.0], [2.0]])]
    for normalize in (False, True):
        matrix = RNTK(readout="per_step", normalize=normalize)(x)
        assert np.isfinite(matrix).all()
        assert (matrix[0] == 0).all()
        assert (matrix[1:, 1:] > 0).any()


def test_normalized_diagonal_is_one_however_long() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(4, 400))
    for dtype in ("float64", "float32"):
        matrix = RNTK(sigma_w=2.0, normalize=True)(x, dtype=dtype)
        assert (np.diag(matrix) == 1).all()
        assert np.abs(matrix).max() <= 1 + 1e-6


def test_overflow_names_the_sequence_and_the_remedy() -> None:
    rng = np.random.default_rng(9)
    x = [rng.normal(size=5), rng.normal(size=300), rng.normal(size=4)]
    with pytest.raises(OverflowError, match=r"sequence 1 \(length 300\).*float32.*sigma_w"):
        RNTK(sigma_w=2.0)(x, dtype="float32")
    with pytest.raises(OverflowError, match=r"sequence 1 \(length 300\).*float32"):
        RNTK(sigma_w=2.0).diag(x, dtype="float32")
    assert np.isfinite(RNTK(sigma_w=2.0)(x)).all()
    with pytest.raises(OverflowError, match=r"sequence 0 \(length 1200\).*float64.*step 10"):
        RNTK(sigma_w=2.0)(rng.normal(size=(2, 1200)))


# ---------------------------------------------------------------------- numbers of any size
def impulses(length: int) -> list[np.ndarray]:
    """Two sequences that have long decayed."""
    x, y = np.zeros((2, length, 1))
    x[0], y[0], y[1] = 1.0, 0.3, -1.0
    return [x, y]


def of_each(backend: Any, kernel: RNTK, x: Any, y: Any = None, kind: Any = "ntk") -> list[Any]:
    """The name of each number type, and the matrix in it."""
    dtypes: list[Any] = list(LONG_BOUNDS)
    return [(name, kernel(x, y, kind=kind, dtype=name, backend=backend)) for name in dtypes]


def of_all(kernel: RNTK, x: Any) -> list[Any]:
    """The name of each backend, with each of what `of_each` gives."""
    return [(backend, each) for backend in BACKENDS for each in of_each(backend, kernel, x)]


@pytest.mark.parametrize(
    ("activation", "sigma_w", "length"),
    [("relu", 0.5, 360), ("linear", 0.2, 240), ("erf", 0.2, 250)],
)
def test_a_decayed_pair_keeps_its_normalised_value(
    activation: Any, sigma_w: float, length: int
) -> None:
    """Variances end below 1e-308."""
    x, y = impulses(length)
    options: dict[str, Any] = dict(activation=activation, sigma_w=sigma_w, normalize=True)
    exact = reference(x, y, diagonal_only=True, **options)
    for backend, (dtype, values) in of_all(RNTK(**options), [x, y]):
        assert values.diagonal().tolist() == [1.0, 1.0], backend
        assert abs(values[0, 1] - exact) <= LONG_BOUNDS[dtype], backend
        assert values[1, 0] == values[0, 1], backend


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pair_that_decays_below_float64_has_an_angle(backend: str) -> None:
    for _, values in of_each(backend, RNTK(sigma_w=0.5, normalize=True), impulses(360)):
        np.testing.assert_allclose(values, [[1.0, 0.258], [0.258, 1.0]], rtol=0, atol=5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma_w", [0.5, 2.0])
@pytest.mark.parametrize(
    ("activation", "neutral", "length"), [("relu", 2**0.5, 3000), ("linear", 1.0, 1200)]
)
def test_growth_and_decay_only_weigh_the_inputs(
    activation: Any, neutral: float, length: int, sigma_w: float, backend: str
) -> None:
    """sigma_w = c neutral is neutral with inputs times c^-t: nothing grows there, nor decays."""
    x = np.random.default_rng(10).normal(size=(2, length))
    given = 20 if sigma_w < neutral else length
    x[:, given:] = 0.0
    weighted = x.copy()
    weighted[:, :given] *= (sigma_w / neutral) ** -np.arange(float(given))
    exact = RNTK(activation=activation, sigma_w=neutral, normalize=True)(weighted)
    kernel = RNTK(activation=activation, sigma_w=sigma_w, normalize=True)
    for dtype, values in of_each(backend, kernel, x):
        np.testing.assert_allclose(values, exact, rtol=0, atol=LONG_BOUNDS[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "linear", "erf"])
def test_a_memory_that_fades_leaves_the_last_steps(activation: Any, backend: str) -> None:
    x = np.random.default_rng(11).normal(size=(3, 1000))
    kernel = RNTK(activation=activation, sigma_w=0.5, normalize=True)
    for dtype, values in of_each(backend, kernel, x):
        last = kernel(x[:, -300:])
        np.testing.assert_allclose(values, last, rtol=0, atol=LONG_BOUNDS[dtype])


def chaotic() -> RNTK:
    """A kernel in which the tangent kernel of each sequence grows with every step."""
    return RNTK(activation="erf", sigma_w=2.0, normalize=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chaos_of_many_steps_stays_within_float64(backend: str) -> None:
    """Of each sequence alone it exceeds 1e308; independent ones forget their beginnings."""
    x = np.random.default_rng(12).normal(size=(3, 2000))
    last = chaotic()(x[:, -300:], kind="nngp")
    for dtype, values in of_each(backend, chaotic(), x, kind="nngp"):
        np.testing.assert_allclose(values, last, rtol=0, atol=LONG_BOUNDS[dtype])
    for _, values in of_each(backend, chaotic(), x):
        np.testing.assert_allclose(values, np.eye(3), rtol=0, atol=1e-30)


@pytest.mark.parametrize("backend", BACKENDS)
def test_chaos_makes_tiny_sequences_large(backend: str) -> None:
    """They start at 1e-160, and their ends are as if that had not been."""
    x = np.random.default_rng(13).normal(size=(3, 1000))
    last = chaotic()(x[:, -300:], kind="nngp")
    x[:, :600] *= 1e-160
    for dtype, values in of_each(backend, chaotic(), x, kind="nngp"):
        np.testing.assert_allclose(values, last, rtol=0, atol=LONG_BOUNDS[dtype])
    for _, values in of_each(backend, chaotic(), x):
        np.testing.assert_allclose(values, np.eye(3), rtol=0, atol=1e-30)


TINY_AND_LIKE = [
    (RNTK(normalize=True), RNTK(normalize=True)),
    (
        RNTK(depth=2, readout="mean", bidirectional=True, normalize=True),
        RNTK(depth=2, readout="mean", bidirectional=True, normalize=True),
    ),
    (RNTK(activation="linear", normalize=True), RNTK(activation="linear", normalize=True)),
    # erf is 2 / sqrt(pi) times as steep at 0.
    (
        RNTK(activation="erf", sigma_w=0.8, normalize=True),
        RNTK(activation="linear", sigma_w=1.6 / np.pi**0.5, normalize=True),
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kernel", "like"), TINY_AND_LIKE, ids=repr)
def test_inputs_of_1e_160_have_a_normalised_kernel(kernel: RNTK, like: RNTK, backend: str) -> None:
    x = draw(np.random.default_rng(14), [5, 9, 3, 1])
    y = draw(np.random.default_rng(15), [4, 6])
    tiny_x, tiny_y = ([1e-160 * each for each in side] for side in (x, y))
    for dtype, values in of_each(backend, kernel, tiny_x):
        np.testing.assert_allclose(values, like(x), rtol=0, atol=LONG_BOUNDS[dtype])
    for dtype, values in of_each(backend, kernel, tiny_x, tiny_y):
        np.testing.assert_allclose(values, like(x, y), rtol=0, atol=LONG_BOUNDS[dtype])


SIZES = [1.0, 1e-160, 1e150, 1e-250, 1e-40, 1e300]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("readout", ["last", "per_step"])
def test_a_batch_holds_sequences_of_very_different_size(
    activation: Any, readout: Any, backend: str
) -> None:
    """A normalised kernel does not depend on the size, and 0 stays 0."""
    x = draw(np.random.default_rng(16), [5, 9, 3, 1, 6, 7])
    x[2][:2] = 0.0
    kernel = RNTK(activation=activation, readout=readout, normalize=True)
    sized = [size * each for size, each in zip(SIZES, x, strict=True)]
    for dtype, values in of_each(backend, kernel, [*sized, np.zeros((4, 2))]):
        np.testing.assert_allclose(values[:-1, :-1], kernel(x), rtol=0, atol=LONG_BOUNDS[dtype])
        assert (values[-1] == 0).all()
        assert (values[:, -1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_erf_compares_sequences_of_very_different_size(backend: str) -> None:
    x = draw(np.random.default_rng(17), [5, 9, 3, 1, 6])
    x = [size * each for size, each in zip([1.0, 1e-9, 1e4, 1e-7, 30.0], x, strict=True)]
    kernel = RNTK(activation="erf", normalize=True)
    for dtype, values in of_each(backend, kernel, x):
        for i, j in np.argwhere(~np.eye(len(x), dtype=bool)):
            exact = reference(x[i], x[j], activation="erf", normalize=True)
            assert abs(values[i, j] - exact) <= LONG_BOUNDS[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e-100, 1e150, 1e200])
def test_a_small_and_a_large_sequence_have_an_ordinary_value(size: float, backend: str) -> None:
    x, y = draw(np.random.default_rng(18), [5, 7])
    kernel = RNTK()
    exact = kernel([x], [y])
    for dtype, values in of_each(backend, kernel, [x / size], [y * size]):
        np.testing.assert_allclose(values, exact, rtol=LONG_BOUNDS[dtype])


def test_products_of_factors_may_exceed_float64() -> None:
    """Where the whole product does not."""
    rows, columns = np.array([1e200, 1e-200, 1.0]), np.array([1e200, 1.0])
    values = np.array([[1e-200, 0.5], [0.5, 0.5], [0.0, 0.5]])
    expected = np.array([[1e200, 0.5e200], [0.5, 0.5e-200], [0.0, 0.5]])
    scaled = values.copy()
    scale_block(scaled, rows, columns)
    np.testing.assert_allclose(scaled, expected, rtol=1e-15)
    i, j = np.indices(values.shape)
    assert np.array_equal(
        scaled_entries(values.ravel(), rows[i.ravel()], columns[j.ravel()]), scaled.ravel()
    )
    beyond = np.ones((1, 1))
    scale_block(beyond, rows[:1], columns[:1])
    assert beyond[0, 0] == np.inf


SMALL: list[tuple[Any, float, str]] = [
    ("float32", 1e-22, "or dtype float64"),
    ("float64", 1e-160, "normalize=True$"),
]


@pytest.mark.parametrize("activation", ["relu", "linear", "erf"])
@pytest.mark.parametrize(("dtype", "size", "remedy"), SMALL)
def test_a_value_below_the_smallest_normal_number_is_refused(
    activation: Any, dtype: Any, size: float, remedy: str
) -> None:
    kernel = RNTK(activation=activation)
    x, y, zero = *draw(np.random.default_rng(19), [5, 4]), np.zeros((3, 2))
    small = rf"is below the smallest {dtype} number.*scale the inputs up.*{remedy}"
    with pytest.raises(OverflowError, match=rf"sequence 2 \(length 4\) and sequence 2 .*{small}"):
        kernel([x, zero, size * y], dtype=dtype)
    with pytest.raises(OverflowError, match=rf"sequence 0 \(length 5\) and sequence 1 .*{small}"):
        kernel([size * x, x], [zero, size * y], dtype=dtype)
    with pytest.raises(OverflowError, match=rf"sequence 2 \(length 4\) with itself {small}"):
        kernel.diag([x, zero, size * y], dtype=dtype)
    assert kernel([x], [size * y], dtype=dtype)[0, 0] != 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "linear", "erf"])
def test_sequences_of_zeros_are_never_too_small(activation: Any, backend: str) -> None:
    kernel, zeros = RNTK(activation=activation), [np.zeros((3, 2)), np.zeros((4, 2))]
    x = draw(np.random.default_rng(20), [5])
    for _, values in of_each(backend, kernel, zeros):
        assert (values == 0).all()
    for _, values in of_each(backend, kernel, [*x, *zeros], zeros):
        assert (values == 0).all()
    assert kernel.diag(zeros).tolist() == [0.0, 0.0]


def test_erf_refuses_what_is_too_large_by_name_and_step() -> None:
    x = [np.ones(3), np.array([1.0, -0.5, 1e160, 1e170])]
    for normalize in (False, True):
        kernel = RNTK(activation="erf", normalize=normalize)
        with pytest.raises(OverflowError, match=r"sequence 1 \(length 4\).*at step 2.*scale"):
            kernel(x)
        with pytest.raises(OverflowError, match=r"sequence 0 \(length 4\).*at step 2"):
            kernel.diag(x[1:])
    assert np.isfinite(RNTK(activation="erf")([0.9e152 * x[0]])).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_the_last_step_is_read_whatever_came_before(activation: Any, backend: Any) -> None:
    """Squares of the middle exceed float64, and have decayed at the end."""
    x, y = np.zeros((2, 60, 1))
    x[3], y[2], y[3] = 1e200, -0.7e200, 1e199
    options: dict[str, Any] = dict(activation=activation, sigma_w=0.01)
    values = RNTK(**options)([x, y], backend=backend)
    exact = [reference(x, y, diagonal_only=True, **options) for y in (x, y)]
    np.testing.assert_allclose(values[0], exact, rtol=1e-12)
    np.testing.assert_allclose(RNTK(**options).diag([x]), exact[:1], rtol=1e-12)
    with pytest.raises(OverflowError, match=r"variance of sequence 0 .* at step 3"):
        RNTK(readout="per_step", **options)([x, y], backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": 1.5}, "depth must be an integer"),
        ({"depth": True}, "depth must be an integer"),
        ({"activation": "tanh"}, "activation is 'tanh': choose one of relu, linear, erf"),
        ({"readout": "max"}, "readout is 'max'"),
        ({"initial_state": "zero"}, "initial_state is 'zero'"),
        ({"sigma_w": -1.0}, "sigma_w is a standard deviation"),
        ({"sigma_b": float("nan")}, "sigma_b is a standard deviation"),
        ({"sigma_u": "1"}, "sigma_u must be a number"),
        ({"frozen_layers": 2}, "frozen_layers is 2 but the network has depth 1"),
        ({"bidirectional": 1}, "bidirectional must be True or False"),
        ({"sigma_u": 0.0}, "would be 0 everywhere"),
        ({"sigma_v": 0.0}, "sigma_v is 0"),
    ],
)
def test_bad_hyper_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        RNTK(**options)


def test_bad_calls_are_refused() -> None:
    kernel, x = RNTK(), np.ones((2, 3))
    with pytest.raises(ValueError, match="kind is 'ck'"):
        kernel(x, kind="ck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        kernel(x, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend is 'torch'"):
        kernel(x, backend="torch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="X has 1 features a step and Y has 2"):
        kernel(x, np.ones((2, 3, 2)))
    with pytest.raises(ValueError, match="needs equal lengths, found 3 and 4"):
        RNTK(readout="diagonal_authors")(x, np.ones((1, 4)))


def test_options_round_trip() -> None:
    kernel = RNTK(depth=np.int64(2), sigma_w=np.float32(1.5), bidirectional=np.True_)
    assert RNTK.from_dict(json.loads(json.dumps(kernel.to_dict()))) == kernel
    with pytest.raises(ValueError, match=r"unknown kernel options \['sigma'\]"):
        RNTK.from_dict({"sigma": 1})
