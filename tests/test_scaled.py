"""Numbers with powers of two of their own: their arithmetic, and walks in it.

The truth are numbers of mpmath, whose exponents know no bounds.
"""

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import mp

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel import variances
from rntk_dist.kernel.scaled import Scaled, stacked_rows
from rntk_dist.kernel.variances import NORMS, Walk

Activation = Literal["relu", "linear", "erf"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "linear", "erf")
ROUNDING = 1e-15
LARGEST, SMALLEST = np.finfo(np.float64).max, np.finfo(np.float64).tiny

often = settings(max_examples=100, deadline=None, derandomize=True)


# ------------------------------------------------------------------------------- what is drawn
def plain_numbers(largest: float = 1e60) -> st.SearchStrategy[float]:
    """Numbers of some sizes; 0 is drawn often."""
    return st.one_of(st.just(0.0), st.floats(1 / largest, largest), st.floats(0.5, 2.0))


def powers(largest: int = 10**6) -> st.SearchStrategy[int]:
    """Even powers of two, often near each other."""
    half = largest // 2
    return st.one_of(st.integers(-40, 40), st.integers(-half, half)).map(lambda each: 2 * each)


@st.composite
def scaled_numbers(draw: st.DrawFn, count: int = 4) -> Scaled:
    """Some numbers, of float64 alone or with powers of two."""
    mantissa = np.array(draw(st.lists(plain_numbers(), min_size=count, max_size=count)))
    if draw(st.booleans()):
        return Scaled(mantissa)
    exponent = draw(st.lists(powers(), min_size=count, max_size=count))
    return Scaled(mantissa, np.array(exponent, dtype=np.int64))


def exact(numbers: Scaled) -> list[Any]:
    """What the numbers are."""
    pairs = zip(numbers.mantissa.ravel(), numbers.exponents.ravel(), strict=True)
    return [mp.ldexp(mp.mpf(float(mantissa)), int(exponent)) for mantissa, exponent in pairs]


def assert_equal(found: Scaled, expected: list[Any]) -> None:
    """Equal but for rounding; zeros are zeros."""
    for value, true in zip(exact(found), expected, strict=True):
        assert abs(value - true) <= ROUNDING * abs(true)


# ---------------------------------------------------------------------------------- arithmetic
@given(a=scaled_numbers(), b=scaled_numbers())
@often
def test_sums(a: Scaled, b: Scaled) -> None:
    assert_equal(a + b, [x + y for x, y in zip(exact(a), exact(b), strict=True)])
    assert exact(a + b) == exact(b + a)


@given(a=scaled_numbers(), b=scaled_numbers())
@often
def test_sums_keep_even_powers_and_plain_numbers_plain(a: Scaled, b: Scaled) -> None:
    both = a + b
    assert (both.exponents % 2 == 0).all()
    assert (both.exponent is None) == (a.exponent is None and b.exponent is None)


@given(a=scaled_numbers(), factors=st.lists(plain_numbers(), min_size=4, max_size=4))
@often
def test_products(a: Scaled, factors: list[float]) -> None:
    expected = [x * mp.mpf(factor) for x, factor in zip(exact(a), factors, strict=True)]
    assert_equal(a * np.array(factors), expected)


@given(a=scaled_numbers(), b=scaled_numbers())
@often
def test_roots(a: Scaled, b: Scaled) -> None:
    """Of sums, too, which bring their exponents themselves."""
    for numbers in (a, a + b):
        assert_equal(numbers.root(), [mp.sqrt(x) for x in exact(numbers)])


@given(a=scaled_numbers(), moved=st.lists(powers(200), min_size=4, max_size=4))
@often
def test_ratios(a: Scaled, moved: list[int]) -> None:
    """Of numbers that are not too far from each other."""
    other = Scaled(a.mantissa[::-1].copy(), a.exponents + np.array(moved))
    for part, whole in ((a, other), (other, a)):
        expected = [
            x / y if y else mp.mpf(0) for x, y in zip(exact(part), exact(whole), strict=True)
        ]
        assert_equal(Scaled(part.over(whole)), expected)


@given(a=scaled_numbers())
@often
def test_a_number_over_itself_is_one_to_the_last_bit(a: Scaled) -> None:
    assert a.over(a).tolist() == (a.mantissa > 0).astype(float).tolist()
    assert a.over(a.with_exponents()).tolist() == a.over(a).tolist()


def test_ratios_below_every_number_are_zero() -> None:
    one, large = Scaled(np.ones(1)), Scaled(np.ones(1), np.array([10**6]))
    assert one.over(large) == 0
    assert large.over(Scaled(np.zeros(1), np.array([-(10**6)]))) == 0


def test_powers_of_two_may_exceed_32_bits() -> None:
    one, large = Scaled(np.ones(1)), Scaled(np.ones(1), np.array([2**33]))
    assert large.plain() == np.inf
    assert large.over(large) == 1
    assert one.over(large) == 0
    assert exact(large + Scaled(np.ones(1), np.array([-(2**33)]))) == exact(large)


rows = st.lists(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    min_size=1,
    max_size=4,
)


@given(values=rows)
@often
def test_sums_of_squares(values: list[list[float]]) -> None:
    """Of numbers from float64's smallest to its largest, none of whose squares it holds."""
    found = Scaled.sum_of_squares(np.array(values))
    assert_equal(found, [sum(mp.mpf(each) ** 2 for each in row) for row in values])
    assert (found.exponents % 2 == 0).all()


@given(a=scaled_numbers())
@often
def test_plain_numbers(a: Scaled) -> None:
    """Infinity and 0 stand for what float64 does not hold."""
    for found, true in zip(a.plain().tolist(), exact(a), strict=True):
        if true > LARGEST:
            assert found == np.inf
        elif true >= SMALLEST:
            assert found == true
        else:
            assert abs(found - true) <= 5e-324


@given(a=scaled_numbers())
@often
def test_canonical_numbers_compare_by_their_exponents(a: Scaled) -> None:
    found = a.canonical()
    assert exact(found) == exact(a)
    some = found.mantissa > 0
    assert ((found.mantissa[some] >= 0.5) & (found.mantissa[some] < 1)).all()
    assert (found.exponents[~some] < found.exponents[some].min(initial=0)).all()


@given(a=scaled_numbers())
@often
def test_logarithms(a: Scaled) -> None:
    for found, true in zip(a.log2().tolist(), exact(a), strict=True):
        if true == 0:
            assert found == -np.inf
        else:
            expected = mp.log(true, 2)
            assert abs(found - expected) <= ROUNDING * max(abs(expected), 1)


@given(a=scaled_numbers(), moved=st.lists(powers(), min_size=4, max_size=4))
@often
def test_shifts(a: Scaled, moved: list[int]) -> None:
    expected = [mp.ldexp(x, power) for x, power in zip(exact(a), moved, strict=True)]
    assert exact(a.shifted(np.array(moved))) == expected
    assert a.shifted(None) is a


@given(parts=st.lists(scaled_numbers(), min_size=1, max_size=4))
@often
def test_stacked_rows(parts: list[Scaled]) -> None:
    """Rows of plain numbers beside rows with powers of two."""
    found = stacked_rows(parts)
    assert found.mantissa.shape == (len(parts), 4)
    assert (found.exponent is None) == all(part.exponent is None for part in parts)
    for row, part in enumerate(parts):
        assert exact(found[row]) == exact(part)
        assert exact(found[row, 1:3]) == exact(part)[1:3]


@given(a=scaled_numbers())
@often
def test_exponents_of_plain_numbers_are_zeros(a: Scaled) -> None:
    assert exact(a.with_exponents()) == exact(a)
    assert a.exponents.shape == a.mantissa.shape
    assert a.with_exponents().exponent is not None


# --------------------------------------------------------------------------------------- walks
LENGTHS = [5, 1, 9, 3, 9, 2]


def ragged(m: int = 1) -> Sequences:
    """Sequences of several lengths, one of them silent, one that begins with zeros."""
    rng = np.random.default_rng(0)
    found = [rng.normal(size=(length, m)) for length in LENGTHS]
    found[3][:] = 0.0
    found[4][:4] = 0.0
    return Sequences.from_arrays(found)


def kernels(activation: Activation) -> list[RNTK]:
    """Kernels whose steps are taken together."""
    weights = ((0.5, 0.3), (2.0, 0.0), (2**0.5, 1.0))
    return [RNTK(activation=activation, sigma_w=w, sigma_h=h) for w, h in weights]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_variances_with_powers_of_two_are_those_without(activation: Activation) -> None:
    sequences, many = ragged(), kernels(activation)
    drives = [Scaled(sequences.values[:, 0] ** 2) for _ in many]
    walk = Walk.through(sequences)
    plain = walk.variances(many, NORMS[activation], drives)
    scaled = walk.variances(many, NORMS[activation], [each.with_exponents() for each in drives])
    for one, other in zip(plain, scaled, strict=True):
        assert one.exponent is None
        assert other.exponent is not None
        np.testing.assert_allclose(other.plain(), one.plain(), rtol=1e-14)


def test_sums_along_the_walk_with_powers_of_two_are_those_without() -> None:
    sequences, rng = ragged(), np.random.default_rng(1)
    drive, gains = Scaled(sequences.values[:, 0] ** 2), rng.uniform(0.1, 3.0, sum(LENGTHS))
    gains[sequences.offsets[:-1]] = 0.0
    walk = Walk.through(sequences)
    plain, scaled = walk.sums(drive, gains), walk.sums(drive.with_exponents(), gains)
    expected, before = np.empty(sum(LENGTHS)), 0.0
    for at in range(len(expected)):
        before = expected[at] = drive.mantissa[at] + gains[at] * before
    np.testing.assert_allclose(plain.plain(), expected, rtol=1e-14)
    np.testing.assert_allclose(scaled.plain(), expected, rtol=1e-14)


@pytest.mark.parametrize("sigma_w", [0.1, 10.0])
def test_a_walk_leaves_the_range_of_float64(sigma_w: float) -> None:
    """Variances of an impulse are multiplied by the same number at every step."""
    length = 1000
    sequences = Sequences.from_arrays([np.eye(1, length)[0], np.eye(1, 7)[0]])
    kernel, drive = RNTK(sigma_w=sigma_w), Scaled(sequences.values[:, 0] ** 2)
    (q,) = Walk.through(sequences).variances([kernel], NORMS["relu"], [drive])
    steps = np.concatenate([np.arange(length), np.arange(7)])
    np.testing.assert_allclose(q.log2(), steps * np.log2(sigma_w**2 / 2), rtol=1e-12, atol=1e-12)


def never(numbers: NDArray[np.float64], positive: Any) -> bool:
    """Says of all numbers that they need powers of two."""
    return False


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 2, "readout": "mean", "sigma_b": 0.2}, {"bidirectional": True, "sigma_h": 0.5}],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_kernel_with_powers_of_two_is_that_without(
    monkeypatch: pytest.MonkeyPatch, activation: Activation, options: dict[str, Any], kind: Any
) -> None:
    kernel, x = RNTK(activation=activation, **options), ragged(2)
    plain, diagonal = kernel(x, kind=kind), kernel.diag(x, kind=kind)
    monkeypatch.setattr(variances, "_usual", never)
    scaled = kernel(x, kind=kind)
    unit = np.sqrt(np.outer(diagonal, diagonal))
    assert (np.abs(scaled - plain) <= 1e-14 * unit).all()
    np.testing.assert_allclose(kernel.diag(x, kind=kind), diagonal, rtol=1e-14)
