"""Cases for the digits of the kernel: recipes that make the same sequences on every machine.

A recipe draws from splitmix64 in plain Python and uses nothing but +, - and * of float64 numbers,
so its numbers depend on no library. tools/make_golden_digits.py computes the kernel of every case
in many digits and writes it to golden/digits.json; test_digits.py compares the package with that
file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = Literal["bell", "coarse", "constant", "zeros", "impulse", "gaps", "outlier"]
Relation = Literal["copy", "near", "mirrored", "multiple", "suffix", "turned"]
Kind = Literal["ntk", "nngp"]

KINDS: tuple[Kind, Kind] = ("ntk", "nngp")
ROOT_2 = 2**0.5
ROOT_3 = 1.7320508075688772
MASK = 2**64 - 1
OUTLIER = 1e6


# ------------------------------------------------------------------------------------- recipes
@dataclass(frozen=True)
class Recipe:
    """A sequence from nothing.

    Attributes
    ----------
    shape : what the values look like
        bell      independent values of mean 0 and deviation 1 (the sum of four uniforms)
        coarse    the same, rounded to multiples of 1/64: small multiples of them are exact
        constant  1 everywhere
        zeros     0 everywhere
        impulse   a first step of bell, zeros after it
        gaps      bell, where two steps of five are zero, the first two among them
        outlier   bell, where the middle step is a million times larger
    amplitude : the factor of all values
    length, features : steps T and values m of a step
    seed : where the draws begin
    """

    shape: Shape
    amplitude: float
    length: int
    features: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """The recipe in a few words."""
        size = f"{self.length}x{self.features}"
        return f"{self.shape} {self.amplitude!r} {size} seed {self.seed}"


@dataclass(frozen=True)
class Derived:
    """A sequence made of another one.

    Attributes
    ----------
    relation : how
        copy      equal values, another sample
        near      each value times 1 + amount * bell
        mirrored  the same, and the sign of all values turned
        multiple  all values times amount
        suffix    without its first steps, so many as amount
        turned    with the sign of the last steps turned, so many as amount
    amount : relative noise, factor or number of steps
    seed : of the noise
    """

    relation: Relation
    amount: float = 1.0
    seed: int = 0

    @property
    def name(self) -> str:
        """The derivation in a few words."""
        return self.relation if self.relation == "copy" else f"{self.relation} {self.amount!r}"


@dataclass(frozen=True)
class Case:
    """A pair of sequences and the kernel that compares them.

    Attributes
    ----------
    group : the group of cases
    kind : "ntk" or "nngp"
    options : arguments of RNTK other than `normalize`, as (name, value) in order of the names
    normalize : the case is of the normalised kernel
    a, b : the sequences
    """

    group: str
    kind: Kind
    options: tuple[tuple[str, Any], ...]
    normalize: bool
    a: Recipe
    b: Recipe | Derived

    @property
    def name(self) -> str:
        """What tells the case from all others of its group: its key in the file."""
        options = [f"{name}={value}" for name, value in self.options]
        if self.normalize:
            options.append("normalize")
        return f"{self.kind} {' '.join(options)} | {self.a.name} | {self.b.name}"

    @property
    def is_copy(self) -> bool:
        """Whether b has the values of a and the kernel sees no difference between the samples."""
        options = dict(self.options)
        own_start = options.get("initial_state") == "independent" and options.get("sigma_h", 0) > 0
        return isinstance(self.b, Derived) and self.b.relation == "copy" and not own_start


@cache
def sequences(case: Case) -> tuple[Array, Array]:
    """Both sequences of a case, each (T, m), read-only."""
    a = made(case.a)
    b = derived(case.b, a) if isinstance(case.b, Derived) else made(case.b)
    a.flags.writeable = b.flags.writeable = False
    return a, b


def uniforms(seed: int) -> Iterator[float]:
    """Numbers in [0, 1) without end, of 53 bits (splitmix64)."""
    state = seed * 0x632BE59BD9B4E019 & MASK
    while True:
        state = state + 0x9E3779B97F4A7C15 & MASK
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        yield ((z ^ z >> 31) >> 11) * 2.0**-53


def bells(seed: int) -> Iterator[float]:
    """Numbers of mean 0, deviation 1 and a bell's shape, without end."""
    draw = uniforms(seed)
    while True:
        total = next(draw) + next(draw)
        total = total + next(draw)
        yield (total + next(draw) - 2.0) * ROOT_3


def made(recipe: Recipe) -> Array:
    """The sequence of a recipe, (T, m)."""
    draw, m = bells(recipe.seed), recipe.features
    rows = [[next(draw) for _ in range(m)] for _ in range(recipe.length)]
    shaped = [[_shaped(recipe, t, value) for value in row] for t, row in enumerate(rows)]
    return np.array([[recipe.amplitude * value for value in row] for row in shaped])


def _shaped(recipe: Recipe, t: int, value: float) -> float:
    """The value at step t, counted from 0, of a recipe whose draw there is `value`."""
    if recipe.shape == "coarse":
        return round(value * 64) / 64
    if recipe.shape == "outlier" and t == recipe.length // 2:
        return value * OUTLIER
    if recipe.shape == "constant":
        return 1.0
    silent = {"zeros": True, "impulse": t > 0, "gaps": t % 5 < 2}
    return 0.0 if silent.get(recipe.shape, False) else value


def derived(recipe: Derived, a: Array) -> Array:
    """The sequence that a derivation makes of a, (T, m)."""
    if recipe.relation == "copy":
        return a.copy()
    if recipe.relation == "multiple":
        return np.array([[value * recipe.amount for value in row] for row in a.tolist()])
    steps = int(recipe.amount)
    if recipe.relation == "suffix":
        return a[steps:].copy()
    if recipe.relation == "turned":
        return np.concatenate([a[:-steps], -a[-steps:]])
    draw, sign = bells(recipe.seed), -1.0 if recipe.relation == "mirrored" else 1.0
    noisy = [[value * (1.0 + recipe.amount * next(draw)) for value in row] for row in a.tolist()]
    return sign * np.array(noisy)


# --------------------------------------------------------------------------------------- cases
Group = Callable[[], Iterator[Case]]
GROUPS: dict[str, Group] = {}


@cache
def cases(group: str) -> tuple[Case, ...]:
    """All cases of a group. Raises ValueError if two have one name."""
    found = tuple(GROUPS[group]())
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{group}: these cases are there twice: {twice}")
    return found


def group(name: str) -> Callable[[Group], Group]:
    """Enter a function that lists the cases of a group."""

    def enter(function: Group) -> Group:
        GROUPS[name] = function
        return function

    return enter


def case(
    group: str,
    a: Recipe,
    b: Recipe | Derived,
    kind: Kind = "ntk",
    normalize: bool = False,
    **options: Any,
) -> Case:
    """A case; `options` as of RNTK."""
    return Case(group, kind, tuple(sorted(options.items())), normalize, a, b)


PARTLY_EQUAL = (Derived("suffix", 7), Derived("turned", 2))


@group("erf amplitudes")
def erf_amplitudes() -> Iterator[Case]:
    """Inputs from almost nothing to almost everything, all readouts, one to three features."""
    small = [1e-150, 1e-30, 1e-8, 1e-3, 0.3, 1.0, 3.0, 10.0]
    large = [30.0, 100.0, 1e3, 1e4, 1e6, 1e8, 1e30, 1e150]
    variants: list[tuple[Kind, str, int, int, int]] = [
        ("ntk", "last", 1, 40, 40),
        ("nngp", "per_step", 2, 25, 60),
        ("ntk", "mean", 3, 5, 7),
        ("ntk", "per_step", 1, 60, 31),
        ("nngp", "last", 1, 12, 12),
        ("ntk", "diagonal_authors", 2, 9, 9),
    ]
    for (kind, readout, m, n, n2), amplitude in product(variants, small + large):
        options: dict[str, Any] = dict(activation="erf", sigma_w=1.3, readout=readout)
        a, b = Recipe("bell", amplitude, n, m, 1), Recipe("bell", amplitude, n2, m, 2)
        yield case("erf amplitudes", a, b, kind, **options)
    for amplitude in (1e-8, 1e-3, 1.0, 1e4):
        a, b = Recipe("bell", amplitude, 1, 1, 3), Recipe("bell", amplitude, 12, 1, 4)
        yield case("erf amplitudes", a, b, activation="erf", sigma_w=1.3)
        yield case("erf amplitudes", a, Derived("near", 1e-8, 5), activation="erf", sigma_w=1.3)


@group("erf chaotic")
def erf_chaotic() -> Iterator[Case]:
    """Gains at which nearby sequences part: strangers and copies."""
    copy = Derived("copy")
    for sigma_w, amplitude in product([ROOT_2, 2.0, 3.0, 5.0], [0.1, 0.3, 1.0, 2.0]):
        options: dict[str, Any] = dict(activation="erf", sigma_w=sigma_w)
        for length, readout in ((10, "per_step"), (100, "last")):
            a, b = (Recipe("bell", amplitude, length, 1, seed) for seed in (3, 4))
            yield case("erf chaotic", a, b, readout=readout, **options)
        yield case("erf chaotic", a, copy, readout="last", **options)
        a, b = (Recipe("bell", amplitude, 1000, 1, seed) for seed in (5, 6))
        if amplitude in (0.3, 1.0):
            yield case("erf chaotic", a, b, **options)
            yield case("erf chaotic", a, copy, **options)
    for sigma_w in (ROOT_2, 3.0):
        a, b = (Recipe("bell", 0.3, 50, 2, seed) for seed in (7, 8))
        yield case("erf chaotic", a, b, "nngp", activation="erf", sigma_w=sigma_w)
        yield case("erf chaotic", a, copy, "nngp", activation="erf", sigma_w=sigma_w)


@group("erf near-duplicates")
def erf_near_duplicates() -> Iterator[Case]:
    """Pairs that differ by a little, at gains that keep, shrink and blow up the difference."""
    grid = product(enumerate([1e-3, 1e-5, 1e-8]), enumerate([0.5, 1.0, ROOT_2, 2.0]))
    for (i, eps), (j, sigma_w) in grid:
        for k, amplitude in enumerate([0.3, 3.0, 30.0, 1e4]):
            length, m = (5, 40, 150)[(i + j + k) % 3], 1 + (i + j + k // 2) % 2
            options: dict[str, Any] = dict(activation="erf", sigma_w=sigma_w)
            options["readout"] = "per_step" if k == 1 else "last"
            a = Recipe("bell", amplitude, length, m, 11 + k)
            yield case("erf near-duplicates", a, Derived("near", eps, 21 + k), **options)
    # The difference is neither small nor at its limit after so many steps.
    for eps, length in ((1e-8, 70), (1e-8, 80), (1e-8, 90), (1e-5, 45), (1e-3, 25)):
        a = Recipe("bell", 0.3, length, 1, 31)
        near = Derived("near", eps, 32)
        yield case("erf near-duplicates", a, near, activation="erf", sigma_w=2.0)
    for eps in (1e-3, 1e-8):
        a, near = Recipe("bell", 3.0, 40, 2, 33), Derived("near", eps, 34)
        yield case("erf near-duplicates", a, near, "nngp", activation="erf", sigma_w=ROOT_2)
    yield from _mirrored()
    # Equal but for the first steps, and but for the last.
    for sigma_w, amplitude in product([0.5, 1.0, ROOT_2, 2.0], [0.3, 30.0]):
        for relation in PARTLY_EQUAL:
            a = Recipe("bell", amplitude, 120, 1, 35)
            yield case("erf near-duplicates", a, relation, activation="erf", sigma_w=sigma_w)


def _mirrored() -> Iterator[Case]:
    grid = product([1e-3, 1e-8], [0.3, 30.0, 1e4], [1, 2], [1.0, 2.0])
    for eps, amplitude, m, sigma_w in grid:
        a, mirrored = Recipe("bell", amplitude, 25, m, 36), Derived("mirrored", eps, 37)
        yield case("erf near-duplicates", a, mirrored, activation="erf", sigma_w=sigma_w)


@group("erf multiples")
def erf_multiples() -> Iterator[Case]:
    """One sequence and a multiple of it, with and without bias."""
    for sigma_b, m, factor in product([0.0, 0.3], [1, 2], [2.0, -1.0, -3.0, 1e-3]):
        options: dict[str, Any] = dict(activation="erf", sigma_b=sigma_b)
        multiple = Derived("multiple", factor)
        a = Recipe("coarse", 0.5, 30, m, 41)
        yield case("erf multiples", a, multiple, sigma_w=ROOT_2, **options)
        a = Recipe("coarse", 64.0, 20, m, 42)
        yield case("erf multiples", a, multiple, sigma_w=1.0, readout="per_step", **options)


@group("erf depths")
def erf_depths() -> Iterator[Case]:
    """Layers, trained and frozen, both directions, initial states, bias, unequal lengths."""
    number = 0
    starts = ["shared", "independent"]
    for depth, frozen, start in product([2, 3], [0, 1, 2, 3], starts):
        if frozen > depth:
            continue
        options: dict[str, Any] = dict(activation="erf", depth=depth, frozen_layers=frozen)
        options |= dict(initial_state=start, sigma_h=0.5, sigma_b=(0.0, 0.3, 0.1)[number % 3])
        options |= dict(sigma_w=(0.8, ROOT_2)[number % 2], bidirectional=number % 4 < 2)
        options["readout"] = ("last", "mean", "per_step")[(number // 2) % 3]
        n, n2 = ((6, 6), (4, 7), (9, 5))[number % 3]
        amplitude = (0.3, 1.0, 30.0)[number // 3 % 3]
        a, b = (Recipe("bell", amplitude, n, 2, 51), Recipe("bell", amplitude, n2, 2, 52))
        yield case("erf depths", a, b, "nngp" if number % 5 == 4 else "ntk", **options)
        near = Derived("near", 1e-5, 53)
        yield case("erf depths", a, near, **options)
        number += 1
    yield from _deep_and_long()


def _deep_and_long() -> Iterator[Case]:
    for depth, sigma_w in product([1, 2, 3], [1.0, 2.0]):
        options: dict[str, Any] = dict(activation="erf", depth=depth, sigma_w=sigma_w, sigma_h=0.4)
        a, b = (Recipe("bell", 0.5, 40, 1, 54), Recipe("bell", 0.5, 40, 1, 55))
        yield case("erf depths", a, b, **options)
        yield case("erf depths", a, Derived("copy"), **options)
        yield case("erf depths", a, Derived("copy"), initial_state="independent", **options)


@group("erf mixed")
def erf_mixed() -> Iterator[Case]:
    """Pairs of unlike size, silence, constants, outliers, and kernels without a part."""
    unit = Recipe("bell", 1.0, 30, 1, 61)
    pairs: list[tuple[Recipe, Recipe | Derived]] = [
        (Recipe("bell", 1e-6, 30, 1, 62), unit),
        (Recipe("bell", 1e4, 30, 1, 63), Recipe("bell", 1e-2, 30, 1, 64)),
        (Recipe("bell", 1e8, 20, 2, 65), Recipe("bell", 1e-8, 30, 2, 66)),
        (Recipe("gaps", 1.0, 33, 1, 67), unit),
        (Recipe("gaps", 0.3, 30, 2, 68), Recipe("gaps", 30.0, 29, 2, 69)),
        (Recipe("zeros", 1.0, 30), unit),
        (Recipe("constant", 2.0, 30), Recipe("constant", 2.0, 25)),
        (Recipe("constant", 2.0, 30), Recipe("constant", -0.7, 30)),
        (Recipe("outlier", 1.0, 30, 1, 71), unit),
        (Recipe("outlier", 1.0, 30, 1, 71), Derived("near", 1e-5, 72)),
    ]
    for a, b in pairs:
        for sigma_w, sigma_b in ((1.0, 0.0), (ROOT_2, 0.2)):
            readout = "per_step" if sigma_b else "last"
            options: dict[str, Any] = dict(activation="erf", sigma_w=sigma_w, sigma_b=sigma_b)
            yield case("erf mixed", a, b, readout=readout, **options)
    for length, sigma_u in product([1, 4], [1.0, 0.03]):
        tiny, middle = Recipe("bell", 1e-7, length, 1, 75), Recipe("bell", 20.0, length, 1, 76)
        yield case("erf mixed", tiny, middle, activation="erf", sigma_u=sigma_u)
        yield case("erf mixed", tiny, middle, "nngp", activation="erf", sigma_u=sigma_u)
    silence, options = Recipe("zeros", 1.0, 20), dict(activation="erf")
    yield case("erf mixed", silence, Derived("copy"), **options)
    yield case("erf mixed", silence, Recipe("zeros", 1.0, 17), sigma_b=0.3, **options)
    small, large = Recipe("bell", 0.5, 12, 1, 73), Recipe("bell", 20.0, 9, 1, 74)
    for kind, readout in product(KINDS, ("last", "mean")):
        options = dict(activation="erf", readout=readout)
        yield case("erf mixed", small, large, kind, sigma_w=0.0, **options)
        yield case("erf mixed", small, large, kind, sigma_u=0.0, sigma_b=0.4, **options)


@group("erf long")
def erf_long() -> Iterator[Case]:
    """Long sequences at gains that forget and remember."""
    for length, sigma_w in product([1000, 5000], [0.5, 1.0, ROOT_2]):
        a, b = (Recipe("bell", 0.3, length, 1, 81), Recipe("bell", 1.0, length, 1, 82))
        options: dict[str, Any] = dict(activation="erf", sigma_w=sigma_w)
        yield case("erf long", a, b, readout="last", **options)
        yield case("erf long", a, b, readout="per_step", sigma_b=0.1, **options)


@group("relu corners")
def relu_corners() -> Iterator[Case]:
    """Exact multiples without bias, where the angle is 0 or pi at every step."""
    grid = product([1, 2, 3], [2.0, -1.0, -3.0, 2.0**-10], [0.0, 1e-8, ROOT_2])
    for number, (m, factor, sigma_w) in enumerate(grid):
        a, multiple = Recipe("coarse", 1.0, 20, m, 91), Derived("multiple", factor)
        kind = KINDS[number % 4 == 3]
        readout = "per_step" if number % 2 else "last"
        yield case("relu corners", a, multiple, kind, sigma_w=sigma_w, readout=readout)


@group("relu long")
def relu_long() -> Iterator[Case]:
    """Long sequences, among them silent and constant ones."""
    for length in (1000, 5000):
        bell, other = (Recipe("bell", 1.0, length, 1, seed) for seed in (101, 102))
        constant = Recipe("constant", 1.0, length)
        yield case("relu long", bell, other, sigma_w=ROOT_2)
        yield case("relu long", bell, other, sigma_w=1.0, readout="per_step")
        yield case("relu long", bell, Derived("near", 1e-5, 103), sigma_w=ROOT_2)
        yield case("relu long", Recipe("impulse", 1.0, length, 1, 104), other, sigma_w=ROOT_2)
        yield case("relu long", Recipe("zeros", 1.0, length), other, sigma_w=ROOT_2)
        yield case("relu long", constant, other, sigma_w=0.5, sigma_b=0.1)
        yield case("relu long", constant, Recipe("constant", 3.0, length), sigma_w=ROOT_2)


@group("relu underflow")
def relu_underflow() -> Iterator[Case]:
    """Normalised kernels of what has almost decayed, and of almost nothing."""
    decayed = Recipe("impulse", 1.0, 361, 2, 111)
    one = Recipe("impulse", 1.0, 361, 1, 112)
    for kind, readout in product(KINDS, ("last", "per_step")):
        options: dict[str, Any] = dict(normalize=True, sigma_w=0.5, readout=readout)
        other = Recipe("impulse", 0.7, 361, 2, 113)
        yield case("relu underflow", decayed, other, kind, **options)
        yield case("relu underflow", one, Derived("multiple", -2.0), kind, **options)
        long = Recipe("impulse", 1.0, 1500, 2, 111)
        yield case("relu underflow", long, Recipe("bell", 1.0, 1500, 2, 114), kind, **options)
    for kind, amplitude in product(KINDS, (1e-160, 1e-25)):
        a, b = (Recipe("bell", amplitude, 20, 2, seed) for seed in (115, 116))
        yield case("relu underflow", a, b, kind, normalize=True)
        unit = Recipe("bell", 1.0, 25, 2, 117)
        yield case("relu underflow", a, unit, kind, normalize=True, readout="per_step")


@group("normalised growth")
def normalised_growth() -> Iterator[Case]:
    """Normalised kernels whose values before normalisation grow beyond every number type."""
    for length, activation, sigma_w in (
        (1500, "relu", 2.0),
        (5000, "relu", 2.0),
        (1500, "erf", 3.0),
        (3000, "linear", 2.0),
    ):
        a, b = (Recipe("bell", 1.0, length, 1, seed) for seed in (121, 122))
        options: dict[str, Any] = dict(normalize=True, activation=activation, sigma_w=sigma_w)
        yield case("normalised growth", a, b, **options)
        yield case("normalised growth", a, b, "nngp", **options)
        yield case("normalised growth", a, b, readout="per_step", **options)
        yield case("normalised growth", a, Derived("multiple", -0.5), **options)
        short = Recipe("bell", 1.0, 40, 1, 123)
        yield case("normalised growth", a, short, readout="per_step", **options)


@group("normalised longest")
def normalised_longest() -> Iterator[Case]:
    """The same at a length that takes seconds."""
    a, b = (Recipe("bell", 1.0, 100_000, 1, seed) for seed in (124, 125))
    yield case("normalised longest", a, b, normalize=True, sigma_w=2.0)


@group("linear")
def linear() -> Iterator[Case]:
    """The linear network: amplitudes, readouts, layers."""
    grid = product([1e-8, 1.0, 1e6], ["last", "per_step", "mean"])
    for number, (amplitude, readout) in enumerate(grid):
        options: dict[str, Any] = dict(activation="linear", readout=readout)
        options |= dict(depth=1 + number % 3, sigma_w=(0.7, 1.0)[number % 2])
        options |= dict(sigma_b=0.2 * (number % 2), bidirectional=number % 3 == 1)
        a, b = (Recipe("bell", amplitude, n, 2, n + 130) for n in (8, 11))
        yield case("linear", a, b, "nngp" if number % 4 == 3 else "ntk", **options)
    a = Recipe("bell", 1.0, 500, 1, 131)
    yield case("linear", a, Recipe("bell", 1.0, 500, 1, 132), activation="linear", sigma_w=0.99)
    yield case("linear", a, Derived("near", 1e-8, 133), activation="linear", sigma_w=1.0)


@group("relu general")
def relu_general() -> Iterator[Case]:
    """Amplitudes, depths, readouts, near-duplicates, copies."""
    grid = product([1e-8, 1e-2, 1.0, 1e4, 1e8], ["last", "per_step", "mean"])
    for number, (amplitude, readout) in enumerate(grid):
        depth, sigma_b = 1 + number % 3, (0.0, 0.3)[number % 2]
        options: dict[str, Any] = dict(readout=readout, depth=depth, sigma_b=sigma_b)
        options |= dict(sigma_w=(ROOT_2, 1.0, 1.8)[number // 3 % 3], bidirectional=number % 4 == 1)
        options |= dict(frozen_layers=number // 5 % 2, sigma_h=0.5 * (number % 3 == 2))
        options["initial_state"] = ("shared", "independent")[number // 2 % 2]
        n, n2 = ((7, 7), (9, 5))[number % 2]
        a, b = Recipe("bell", amplitude, n, 2, 141), Recipe("bell", amplitude, n2, 2, 142)
        yield case("relu general", a, b, "nngp" if number % 4 == 2 else "ntk", **options)
    for eps, sigma_w, m in product([1e-3, 1e-8], [1.0, ROOT_2, 2.0], [1, 2]):
        a, near = Recipe("bell", 1.0, 60, m, 143), Derived("near", eps, 144)
        yield case("relu general", a, near, sigma_w=sigma_w)
        yield case("relu general", a, Derived("mirrored", eps, 144), sigma_w=sigma_w)
    for sigma_w, relation in product([0.5, ROOT_2, 2.0], PARTLY_EQUAL):
        a = Recipe("bell", 1.0, 60, 1, 146)
        yield case("relu general", a, relation, sigma_w=sigma_w)
    for sigma_h, start in product([0.0, 0.5], ["shared", "independent"]):
        a, copy = Recipe("bell", 1.0, 100, 1, 145), Derived("copy")
        yield case("relu general", a, copy, sigma_h=sigma_h, initial_state=start)
