"""RNTK: golden values, invariants, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest
from golden_cases import kernel_of, read_cases

from rntk_dist import RNTK, Sequences

CASES = [
    pytest.param(case, id=f"{name}{number}")
    for name in ("short", "long")
    for number, case in enumerate(read_cases(name))
]
BACKENDS = ["numpy", "numba"]


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
