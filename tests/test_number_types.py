"""Which pairs of a tile in float32 are computed in float64, and that the others do not notice."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.backends import tile_function
from rntk_dist.kernel.number_types import tile_values_in
from rntk_dist.kernel.variances import Slab, make_slab

Array = NDArray[Any]
Backend = Literal["numpy", "numba"]

BACKENDS: tuple[Backend, ...] = ("numpy", "numba")
FLOAT32 = np.dtype(np.float32)
# Two roundings to float32: of a value in units of the sequences' scales, and of the value.
ROUNDED = 1.25e-7

KERNELS = [
    RNTK(activation="erf"),
    RNTK(activation="erf", normalize=True),
    RNTK(activation="erf", sigma_h=0.7, initial_state="independent"),
    RNTK(activation="erf", sigma_h=0.7, initial_state="independent", depth=2, readout="mean"),
    RNTK(activation="erf", bidirectional=True, readout="per_step", normalize=True),
]
# What float32 holds the kernel of; a normalised one holds more.
AMPLITUDES = (1.0, 1e15, 0.3, 1e20, 100.0, 1e30, 1e14)
WIDE = np.array([False, True, False, True, False, True, False])


def sequences(kernel: RNTK, m: int = 2) -> list[Array]:
    """Ragged sequences, some of them with a pre-activation beyond 2.5e14."""
    rng = np.random.default_rng(0)
    found = [rng.normal(size=(3 + i % 3, m)) * amplitude for i, amplitude in enumerate(AMPLITUDES)]
    if kernel.normalize:
        found[5] *= 1e100
    return found


def assert_rounded(values: Array, exact: Array) -> None:
    """Values of float64, rounded to float32."""
    assert values.dtype == np.float32
    least = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(values.astype(np.float64), exact, rtol=ROUNDED, atol=least)


# -------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_pairs_of_large_sequences_are_those_of_float64(
    kernel: RNTK, backend: Backend, kind: Any
) -> None:
    x = sequences(kernel)
    values = kernel(x, kind=kind, dtype="float32", backend=backend)
    exact = kernel(x, kind=kind, backend=backend)
    with_large = WIDE[:, None] | WIDE
    assert_rounded(values[with_large], exact[with_large])
    assert np.array_equal(values, values.T)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_pairs_of_other_sequences_keep_their_bits(kernel: RNTK, backend: Backend) -> None:
    x = sequences(kernel)
    usual = np.flatnonzero(~WIDE)
    values = kernel(x, dtype="float32", backend=backend)
    alone = kernel([x[i] for i in usual], dtype="float32", backend=backend)
    assert np.array_equal(values[np.ix_(usual, usual)], alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_value_does_not_depend_on_its_tile(kernel: RNTK, backend: Backend) -> None:
    """Of the whole matrix, of a tile beside the diagonal, and of one pair alone."""
    given = Sequences.from_arrays(sequences(kernel))
    whole = kernel(given, dtype="float32", backend=backend)
    tile = kernel(given[:4], given[4:], dtype="float32", backend=backend)
    assert np.array_equal(tile, whole[:4, 4:])
    assert np.array_equal(kernel(given[4:], given[:4], dtype="float32", backend=backend), tile.T)
    for i, j in ((0, 1), (1, 3), (2, 4), (5, 6)):
        one = kernel(given[[i]], given[[j]], dtype="float32", backend=backend)
        assert one[0, 0] == whole[i, j]


@pytest.mark.parametrize("backend", BACKENDS)
def test_independent_starts_count_for_the_same_sample_alone(backend: Backend) -> None:
    """Also of large sequences: equal ones are other samples, on and beside the diagonal."""
    kernel = RNTK(activation="erf", sigma_w=3.0, sigma_h=0.7, initial_state="independent")
    large = np.array([[0.0], [0.0], [0.1]])
    beyond = np.array([[1e15], [0.0], [0.1]])
    x = [large, beyond, large.copy(), beyond.copy()]
    values, exact = kernel(x, dtype="float32", backend=backend), kernel(x, backend=backend)
    assert_rounded(values[1::2, 1::2], exact[1::2, 1::2])
    np.testing.assert_allclose(values, exact, rtol=1e-5)
    assert (np.diag(values, 2) < 0.9 * np.diag(values)[:2]).all()
    others = kernel(x, x, dtype="float32", backend=backend)
    assert np.array_equal(others[1], values[1, [0, 3, 2, 3]])


# --------------------------------------------------------------------------- which are computed
def recorded(kernel: RNTK, x: list[Array], y: list[Array] | None) -> list[tuple[str, int, int]]:
    """The tiles that the loops were given: number type, rows and columns; 0 columns for none."""
    seen: list[tuple[str, int, int]] = []
    loops: Callable[[Recursion, Slab, Slab | None], Array] = tile_function("numpy")

    def record(recursion: Recursion, rows: Slab, columns: Slab | None) -> Array:
        dtype = rows.directions[0].output.dtype.name
        seen.append((dtype, len(rows), 0 if columns is None else len(columns)))
        return loops(recursion, rows, columns)

    rows = make_slab(kernel, Sequences.from_arrays(x))
    columns = None if y is None else make_slab(kernel, Sequences.from_arrays(y))
    values = tile_values_in(FLOAT32, record, kernel.recursion("ntk"), rows, columns)
    assert values.dtype == np.float32
    return sorted(seen)


def steps(*numbers: float) -> Array:
    """A sequence of one feature."""
    return np.array(numbers)[:, None]


def test_a_tile_is_split_at_pre_activations_of_a_quarter_over_the_least_cap() -> None:
    kernel, small = RNTK(activation="erf"), steps(1.0, 2.0)
    assert recorded(kernel, [small, steps(2.4e14, 1.0)], None) == [("float32", 2, 0)]
    parts = [("float32", 1, 0), ("float64", 1, 0), ("float64", 1, 1), ("float64", 1, 1)]
    assert recorded(kernel, [small, steps(1.0, -2.6e14, 1.0)], None) == parts


def test_a_rectangle_is_split_on_both_sides() -> None:
    kernel, small, large = RNTK(activation="erf"), steps(1.0), steps(1e16)
    sides = [small, large, large], [small, small, small, large]
    expected = [("float32", 1, 3), ("float64", 1, 1), ("float64", 2, 1), ("float64", 2, 3)]
    assert recorded(kernel, *sides) == expected
    assert recorded(kernel, [large], [small, small]) == [("float64", 1, 2)]
    assert recorded(kernel, [small], [small, small]) == [("float32", 1, 2)]


def test_only_steps_of_its_own_make_a_sequence_wide() -> None:
    """A slab's rows may be some of the sequences whose features it holds."""
    kernel = RNTK(activation="erf")
    given = Sequences.from_arrays([steps(1.0, 2.0), steps(1e16), steps(3.0)])
    slab = make_slab(kernel, given).take(np.array([2, 0]))
    seen = []

    def record(recursion: Recursion, rows: Slab, columns: Slab | None) -> Array:
        seen.append(rows.directions[0].output.dtype.name)
        return np.zeros((len(rows), len(rows)), np.float32)

    tile_values_in(FLOAT32, record, kernel.recursion("ntk"), slab, None)
    assert seen == ["float32"]


def test_either_direction_makes_a_sequence_wide() -> None:
    """Memory that is large in one direction of time alone."""
    kernel = RNTK(activation="erf", sigma_w=1e16, bidirectional=True)
    assert {part[0] for part in recorded(kernel, [steps(1.0, 1.0)], None)} == {"float64"}


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_other_activations_are_never_split(activation: Any) -> None:
    kernel = RNTK(activation=activation)
    x = [steps(1.0, 2.0), steps(1e16, 1.0)]
    assert recorded(kernel, x, None) == [("float32", 2, 0)]
    assert recorded(kernel, x, [steps(1e18)]) == [("float32", 2, 1)]


def test_float64_is_never_split() -> None:
    kernel, calls = RNTK(activation="erf"), []
    slab = make_slab(kernel, Sequences.from_arrays([steps(1.0), steps(1e16)]))

    def record(recursion: Recursion, rows: Slab, columns: Slab | None) -> Array:
        calls.append(len(rows))
        return np.zeros((len(rows), len(rows)))

    tile_values_in(np.dtype(np.float64), record, kernel.recursion("ntk"), slab, None)
    assert calls == [2]
