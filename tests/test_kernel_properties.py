"""What holds for every kernel: symmetry, bounds between values, copies, scaling laws."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from digit_cases import Derived, Recipe, derived, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rntk_dist import RNTK

Array = NDArray[Any]
Options = dict[str, Any]

ACTIVATIONS = ("relu", "erf", "linear")
DTYPES = ("float64", "float32")
KINDS = ("ntk", "nngp")
BACKENDS = ("numpy", "numba")
BOUNDS = {"float64": 1e-12, "float32": 5e-5}
# How far below 0 an eigenvalue may be, for each sequence, in units of the largest.
NEGATIVE = {"float64": 1e-14, "float32": 1e-6}
# Values below are 0 as far as the number type goes.
NOTHING = {"float64": 1e-290, "float32": 1e-35}
# The unit of a value in which all digits cancel.
ANYTHING = 1e100
ROOT_2 = 2**0.5

often = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


# ------------------------------------------------------------------------------- what is drawn
def deviations(largest: float) -> st.SearchStrategy[float]:
    """Standard deviations up to `largest`; 0 and 1 are drawn often."""
    return st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, largest, width=16))


@st.composite
def options(draw: st.DrawFn) -> Options:
    """Arguments of RNTK, but the activation, that give no kernel of zeros alone."""
    depth = draw(st.integers(1, 3))
    sigma_u, sigma_b, sigma_h = (draw(deviations(1.0)) for _ in range(3))
    return dict(
        depth=depth,
        sigma_w=draw(st.one_of(st.sampled_from([0.0, ROOT_2]), st.floats(0.0, 5.0, width=16))),
        sigma_u=sigma_u if sigma_u or sigma_b or sigma_h else 1.0,
        sigma_b=sigma_b,
        sigma_h=sigma_h,
        readout=draw(st.sampled_from(["last", "per_step", "mean", "diagonal_authors"])),
        bidirectional=draw(st.booleans()),
        frozen_layers=draw(st.integers(0, depth)),
        initial_state=draw(st.sampled_from(["shared", "independent"])),
        normalize=draw(st.booleans()),
    )


@st.composite
def batches(draw: st.DrawFn, chosen: Options) -> list[Array]:
    """Some sequences that a kernel can compare: of any amplitude, or made of the first one."""
    count, m = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    first = draw(single(draw(st.integers(1, 8)), m))
    found = [first]
    for _ in range(count - 1):
        length = len(first) if chosen["readout"] == "diagonal_authors" else draw(st.integers(1, 8))
        other = st.builds(derived, relations, st.just(first))
        found.append(draw(st.one_of(single(length, m), single(length, m), other)))
    return found


relations = st.one_of(
    st.builds(Derived, st.just("near"), st.sampled_from([1e-3, 1e-8]), st.integers(0, 100)),
    st.builds(Derived, st.just("multiple"), st.sampled_from([-1.0, 2.0, -0.3])),
)


@st.composite
def single(draw: st.DrawFn, length: int, m: int) -> Array:
    """A sequence (length, m) of an amplitude from 1e-6 to 1e6.

    Values are a bell's, or few: zeros, equal sequences and exact multiples are among these.
    """
    amplitude = 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        return made(Recipe("bell", amplitude, length, m, draw(st.integers(0, 1000))))
    count = length * m
    values = draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count))
    return amplitude / 4 * np.array(values, dtype=np.float64).reshape(length, m)


@st.composite
def options_and_batches(draw: st.DrawFn) -> tuple[Options, list[Array]]:
    """A kernel's arguments and sequences for it."""
    chosen = draw(options())
    return chosen, draw(batches(chosen))


def units(kernel: RNTK, x: list[Array], kind: Any) -> Array:
    """What the errors of k(x, x) are measured in, for each sequence.

    The value itself; of a mean over time, in which terms may cancel, the mean of the terms t = t',
    which is no less.
    """
    plain = replace(kernel, normalize=False)
    value = plain.diag(x, kind=kind)
    size = value
    if kernel.readout == "mean":
        size = replace(plain, readout="per_step").diag(x, kind=kind)
    if not kernel.normalize:
        return size
    relative: Array = np.divide(size, value, out=np.where(size > 0, ANYTHING, 0.0), where=value > 0)
    return relative


def of_pairs(each: Array) -> Array:
    """The roots of the products of all pairs."""
    root = np.sqrt(each.astype(np.float64))
    found: Array = np.outer(root, root)
    return found


def assert_close(values: Array, expected: Array, scale: Array, dtype: str) -> None:
    """Equal to the number type's bound, in units of `scale`."""
    error = np.abs(values.astype(np.float64) - expected)
    assert (error <= BOUNDS[dtype] * scale + NOTHING[dtype]).all(), (values, expected, scale)


def runs(backend: str) -> list[Any]:
    """The arguments of a call, for each kind and number type."""
    return [dict(kind=kind, dtype=dtype, backend=backend) for kind, dtype in product(KINDS, DTYPES)]


def without_backend(run: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `RNTK.diag`."""
    return {"kind": run["kind"], "dtype": run["dtype"]}


# ------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(drawn=options_and_batches())
@often
def test_a_copy_has_the_value_of_the_sample(
    activation: Any, backend: str, drawn: tuple[Options, list[Array]]
) -> None:
    chosen, x = drawn
    chosen |= {"initial_state": "shared"} if chosen["sigma_h"] else {}
    kernel = RNTK(activation=activation, **chosen)
    copies = [each.copy() for each in x]
    for run in runs(backend):
        values = np.diag(kernel(x, copies, **run))
        diagonal = kernel.diag(x, **without_backend(run)).astype(np.float64)
        assert_close(values, diagonal, units(kernel, x, run["kind"]), run["dtype"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(drawn=options_and_batches())
@often
def test_a_matrix_is_symmetric_bounded_and_positive(
    activation: Any, backend: str, drawn: tuple[Options, list[Array]]
) -> None:
    chosen, x = drawn
    kernel = RNTK(activation=activation, **chosen)
    for run in runs(backend):
        matrix = kernel(x, **run)
        assert np.isfinite(matrix).all()
        assert np.array_equal(matrix, matrix.T)
        assert np.array_equal(np.diag(matrix), kernel.diag(x, **without_backend(run)))
        unit = units(kernel, x, run["kind"])
        assert_bounded_and_positive(matrix.astype(np.float64), unit, run["dtype"])


def assert_bounded_and_positive(matrix: Array, unit: Array, dtype: str) -> None:
    """Cauchy-Schwarz, and no eigenvalue below 0 but by rounding."""
    limit = of_pairs(np.diag(matrix)) + BOUNDS[dtype] * of_pairs(unit) + NOTHING[dtype]
    assert (np.abs(matrix) <= limit).all(), matrix
    eigenvalues = np.linalg.eigvalsh(matrix)
    largest = max(eigenvalues[-1], unit.max())
    lowest = -NEGATIVE[dtype] * len(matrix) * largest - NOTHING[dtype]
    assert eigenvalues[0] >= lowest, (matrix, eigenvalues)


# ---------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "linear"])
@given(drawn=options_and_batches(), factor=st.sampled_from([0.5, 3.0]))
@often
def test_what_comes_in_scales_homogeneous_kernels(
    activation: Any, backend: str, drawn: tuple[Options, list[Array]], factor: float
) -> None:
    """Of relu and linear networks: all that comes in times c, values times c^2.

    sigma_u is also the weight between layers, so that of deep networks stays, and the inputs grow.
    """
    chosen, x = drawn
    names = ("sigma_b", "sigma_h") if chosen["depth"] > 1 else ("sigma_u", "sigma_b", "sigma_h")
    scaled = {**chosen, **{name: factor * chosen[name] for name in names}}
    other = [factor * each for each in x] if chosen["depth"] > 1 else x
    kernels = (RNTK(activation=activation, **each) for each in (chosen, scaled))
    compare_scaled(tuple(kernels), (x, other), factor, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(drawn=options_and_batches(), factor=st.sampled_from([0.5, 3.0]))
@often
def test_the_readout_scales_every_kernel(
    activation: Any, backend: str, drawn: tuple[Options, list[Array]], factor: float
) -> None:
    """sigma_v times c, values times c^2."""
    chosen, x = drawn
    kernels = (RNTK(activation=activation, sigma_v=each, **chosen) for each in (1.0, factor))
    compare_scaled(tuple(kernels), (x, x), factor, backend)


def compare_scaled(
    kernels: tuple[RNTK, ...],
    sequences: tuple[list[Array], list[Array]],
    factor: float,
    backend: str,
) -> None:
    """The second kernel of the second sequences is factor^2 times the first, unless normalised."""
    times = 1.0 if kernels[0].normalize else factor**2
    for run in runs(backend):
        matrix, other = (
            kernel(x, **run).astype(np.float64)
            for kernel, x in zip(kernels, sequences, strict=True)
        )
        unit = times * units(kernels[0], sequences[0], run["kind"])
        assert_close(other, times * matrix, of_pairs(unit), run["dtype"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["erf", "linear"])
@given(drawn=options_and_batches())
@often
def test_odd_activations_make_odd_kernels(
    activation: Any, backend: str, drawn: tuple[Options, list[Array]]
) -> None:
    """Without bias and start, k(x, -y) = -k(x, y)."""
    chosen, x = drawn
    chosen |= dict(sigma_b=0.0, sigma_h=0.0, sigma_u=chosen["sigma_u"] or 1.0)
    kernel = RNTK(activation=activation, **chosen)
    for run in runs(backend):
        plain, mirrored = (
            kernel(x, y, **run).astype(np.float64) for y in (x, [-each for each in x])
        )
        unit = units(kernel, x, run["kind"])
        assert_close(mirrored, -plain, of_pairs(unit), run["dtype"])
