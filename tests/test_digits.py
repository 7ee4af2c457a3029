"""The digits of the kernel: every group of digit_cases.py against values of many digits.

The error of a value is its distance from the truth in units of the root of k(a, a) k(b, b).
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from digit_cases import GROUPS, Case, cases, sequences
from numpy.typing import NDArray

from rntk_dist import RNTK

DType = Literal["float64", "float32"]
Column = tuple[str, DType]

BACKENDS = ("numpy", "numba")
DTYPES: tuple[DType, ...] = ("float64", "float32")
BOUNDS: dict[DType, float] = {"float64": 1e-12, "float32": 5e-5}
# Where nearby sequences part, float32 has this bound.
PARTING = ("erf chaotic", "erf near-duplicates")
PARTING_BOUND = 2e-4
# A kernel reads inputs of its number type. It may err by the bound and by so many times what
# rounding the inputs to that type moves the value. That shows only where two sequences agree in
# most digits.
ROUNDINGS = 4.0
# Units of rounding of a number type, in those of float32.
UNITS: dict[DType, float] = {"float64": 2.0**-29, "float32": 1.0}
# Known corners, which docs/mathematics.md tells: exactly opposite sequences whose memory has a
# share of 1e-8, and 5000 steps in which every rounding error is the same.
WIDER = {("relu corners", "float64"): 5e-9, ("relu long", "float64"): 5e-12}
# This group is for compiled loops in one number type: in all columns it takes minutes.
LONGEST = "normalised longest"
FOR_THE_LONGEST = ("numba", "float64")
LONG = ("erf long", "relu long", "normalised growth")
FAILURES = (ArithmeticError, ValueError, IndexError, AssertionError, Warning)

many_digits = Context(prec=40)


@dataclass(frozen=True)
class Truth:
    """What the file holds of a case.

    Attributes
    ----------
    value, self_a, self_b : k(a, b), k(a, a), k(b, b), not normalised
    normalised : the number types that hold these only after normalisation
    rounding : how far they move where the inputs alone are rounded to float32
    """

    value: Decimal
    self_a: Decimal
    self_b: Decimal
    normalised: tuple[str, ...]
    rounding: float

    def scale(self) -> Decimal:
        """The unit of errors."""
        product = many_digits.multiply(self.self_a, self.self_b)
        return many_digits.sqrt(product)


@dataclass(frozen=True)
class Figure:
    """One error found.

    Attributes
    ----------
    case : of which
    what : of which of its values
    error : how large it is
    bound : how large it may be
    sharp : whether the bound is the number type's, not that of rounded inputs
    """

    case: Case
    what: str
    error: float
    bound: float
    sharp: bool

    def __str__(self) -> str:
        return f"{self.error:.1e} > {self.bound:.1e} {self.what} of {self.case.name}"


# ------------------------------------------------------------------------------------- figures
@cache
def golden() -> dict[str, dict[str, Truth]]:
    """The file, by group and name of the case."""
    path = Path(__file__).parent / "golden" / "digits.json"
    return {
        group: {name: _truth(entry) for name, entry in entries.items()}
        for group, entries in json.loads(path.read_text()).items()
    }


def _truth(entry: dict[str, Any]) -> Truth:
    value, self_a, self_b = (Decimal(entry[name]) for name in ("value", "self_a", "self_b"))
    return Truth(value, self_a, self_b, tuple(entry["normalised"]), entry["rounding"])


def truth(case: Case) -> Truth:
    """What is true of a case. Raises LookupError if the file lacks it."""
    found = golden().get(case.group, {}).get(case.name)
    if found is None:
        raise LookupError(f"{case.name}: run tools/make_golden_digits.py")
    return found


def runs_normalised(case: Case, dtype: DType) -> bool:
    """Whether a number type takes the case with `normalize=True`."""
    return case.normalize or dtype in truth(case).normalised


def batches(group: str, dtype: DType) -> list[list[Case]]:
    """The cases of a group, those together that one call can compare."""
    found: dict[Any, list[Case]] = {}
    for case in cases(group):
        key = (case.kind, case.options, case.a.features, runs_normalised(case, dtype))
        found.setdefault(key, []).append(case)
    return list(found.values())


def kernel_of(case: Case, dtype: DType) -> RNTK:
    """The kernel of a case, normalised where the number type needs it."""
    return RNTK(**dict(case.options), normalize=runs_normalised(case, dtype))


def pair_values(batch: list[Case], column: Column) -> list[float]:
    """k(a, b) of each case, all cases of one kernel."""
    backend: Any = column[0]
    dtype = column[1]
    kernel, pairs = kernel_of(batch[0], dtype), [sequences(case) for case in batch]
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    matrix = kernel(a, b, kind=batch[0].kind, dtype=dtype, backend=backend)
    values: list[float] = np.diag(matrix).tolist()
    return values


def self_values(batch: list[Case], dtype: DType) -> list[tuple[float, float]]:
    """k(a, a) and k(b, b) of each case, all cases of one kernel."""
    kernel, n = kernel_of(batch[0], dtype), len(batch)
    pairs = [sequences(case) for case in batch]
    both = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    found: NDArray[Any] = kernel.diag(both, kind=batch[0].kind, dtype=dtype)
    return list(zip(found[:n].tolist(), found[n:].tolist(), strict=True))


def separately[T](compute: Callable[[list[Case]], list[T]], batch: list[Case]) -> list[T | None]:
    """What `compute` gives for a batch; where it raises, for each case, and None where it fails."""
    try:
        return list(compute(batch))
    except FAILURES:
        if len(batch) == 1:
            return [None]
        return [value for case in batch for value in separately(compute, [case])]


def distance(value: float | None, true: Decimal, unit: Decimal) -> float:
    """|value - true| / unit; without a unit the truth is 0, and nothing else will do."""
    if value is None or not math.isfinite(value):
        return math.inf
    if unit == 0:
        return 0.0 if value == true == 0 else math.inf
    apart = many_digits.subtract(Decimal(value), true)
    return float(many_digits.divide(abs(apart), unit))


def figure(case: Case, what: str, error: float, dtype: DType) -> Figure:
    """An error with its bound."""
    bound = WIDER.get((case.group, dtype), BOUNDS[dtype])
    if dtype == "float32" and case.group in PARTING:
        bound = PARTING_BOUND
    moved = ROUNDINGS * UNITS[dtype] * truth(case).rounding
    return Figure(case, what, error, bound + moved, moved <= bound)


def pair_figures(group: str, column: Column) -> Iterator[Figure]:
    """The errors of k(a, b), and of copies against k.diag."""
    dtype = column[1]
    for batch in batches(group, dtype):
        values = separately(lambda part: pair_values(part, column), batch)
        for case, value in zip(batch, values, strict=True):
            yield figure(case, "k(a, b)", pair_error(case, value, dtype), dtype)
        copies = {case: value for case, value in zip(batch, values, strict=True) if case.is_copy}
        if copies:
            selves = separately(lambda part: self_values(part, dtype), list(copies))
            for (case, value), itself in zip(copies.items(), selves, strict=True):
                error = copy_error(value, itself)
                yield figure(case, "k(a, copy) against k.diag(a)", error, dtype)


def pair_error(case: Case, value: float | None, dtype: DType) -> float:
    """The error of k(a, b)."""
    known = truth(case)
    scale = known.scale()
    if scale and runs_normalised(case, dtype):
        return distance(value, many_digits.divide(known.value, scale), Decimal(1))
    return distance(value, known.value, scale)


def copy_error(value: float | None, itself: tuple[float, float] | None) -> float:
    """The error of k(a, copy) where k(a, a) counts as true."""
    if itself is None or not math.isfinite(itself[0]):
        return math.inf
    return distance(value, Decimal(itself[0]), Decimal(itself[0]))


def self_figures(group: str, column: Column) -> Iterator[Figure]:
    """The errors of k.diag."""
    dtype = column[1]
    for batch in batches(group, dtype):
        found = separately(lambda part: self_values(part, dtype), batch)
        for case, values in zip(batch, found, strict=True):
            known = truth(case)
            for side, true in enumerate((known.self_a, known.self_b)):
                if true and runs_normalised(case, dtype):
                    true = Decimal(1)
                error = distance(None if values is None else values[side], true, true)
                yield figure(case, ("k.diag(a)", "k.diag(b)")[side], error, dtype)


def figures(group: str, column: Column) -> list[Figure]:
    """All errors of a group, of the pairs with a backend or of "diag"."""
    return list(self_figures(group, column) if column[0] == "diag" else pair_figures(group, column))


# --------------------------------------------------------------------------------------- table
COLUMNS: list[Column] = [(name, dtype) for name in (*BACKENDS, "diag") for dtype in DTYPES]
PLACES = [
    (group, column)
    for group, column in product(GROUPS, COLUMNS)
    if group != LONGEST or column == FOR_THE_LONGEST
]


def worst(found: list[Figure]) -> float:
    """The largest error of those that no rounded input explains."""
    return max((each.error for each in found if each.sharp), default=0.0)


def markdown(errors: dict[tuple[str, Column], float]) -> str:
    """A table of the worst errors: groups down, backends and number types across."""
    lines = ["| group | cases | " + " | ".join(" ".join(column) for column in COLUMNS) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(COLUMNS)))
    for group in GROUPS:
        row = [errors.get((group, column)) for column in COLUMNS]
        cells = ["" if error is None else f"{error:.0e}" for error in row]
        lines.append(f"| {group} | {len(cases(group))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------- tests
@pytest.fixture(scope="module")
def errors(
    request: pytest.FixtureRequest,
) -> Iterator[dict[tuple[str, Column], float]]:
    """Where tests leave their worst errors, which are printed after the last test."""
    found: dict[tuple[str, Column], float] = {}
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n\nWorst errors\n\n{markdown(found)}\n")


def takes_seconds(group: str, column: Column) -> bool:
    """Whether `make test` leaves the test out: the array loops take long over many steps."""
    return group == LONGEST or (group in LONG and column[0] == "numpy")


@pytest.mark.parametrize(
    ("group", "column"),
    [
        pytest.param(
            group,
            column,
            marks=[pytest.mark.slow] if takes_seconds(group, column) else [],
            id="-".join((group, *column)),
        )
        for group, column in PLACES
    ],
)
def test_digits(group: str, column: Column, errors: dict[tuple[str, Column], float]) -> None:
    found = figures(group, column)
    errors[group, column] = worst(found)
    wrong = sorted((each for each in found if not each.error <= each.bound), key=_by_error)
    if wrong:
        listed = "\n".join(map(str, wrong))
        pytest.fail(f"{len(wrong)} of {len(found)} values are wrong:\n{listed}", pytrace=False)


def _by_error(figure: Figure) -> float:
    return -figure.error


def test_the_file_holds_the_cases_and_no_others() -> None:
    names = {group: {case.name for case in cases(group)} for group in GROUPS}
    assert {group: set(entries) for group, entries in golden().items()} == names


def test_recipes_make_the_same_numbers_everywhere() -> None:
    case = next(case for case in cases("erf near-duplicates") if case.a.features == 2)
    a, b = sequences(case)
    assert [value.hex() for value in (*a[0].tolist(), *b[0].tolist())] == [
        "0x1.fe44525c6a3f5p+0",
        "0x1.54a0b3c09e3afp+5",
        "0x1.fe65963b70646p+0",
        "0x1.54ce23e3f818fp+5",
    ]
