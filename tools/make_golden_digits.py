"""Compute the kernel of every case of tests/digit_cases.py in many digits.

The plain covariance recursion in multiple precision, written apart from the package, walks only the
cells that a readout reads. A case is computed with some digits and with twice as many, until both
agree to 30 in units of the root of k(a, a) k(b, b); tests/golden/digits.json holds 25 of them.
Cases that are there already stay, and cases that are no more leave.

Usage: python tools/make_golden_digits.py [--only GROUP] [--again] [--check N SEED]
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from digit_cases import GROUPS, Array, Case, cases, sequences  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "digits.json"
FIRST_DIGITS, MOST_DIGITS = 80, 20_000
AGREE = 30
KEPT = 25
# The least and the largest value of a sequence with itself that a number type holds in full.
RANGES = {"float64": (1e-290, 1e300), "float32": (1e-30, 3e38)}
FLOAT32_BITS = 24
NAMES = ("value", "self_a", "self_b")

# What values are compared and printed in.
report = mpmath.MPContext()
report.dps = 50

Number = Any  # an mpmath number
Entry = dict[str, Any]
File = dict[str, dict[str, Entry]]


class TooFewDigits(ArithmeticError):
    """The working precision does not tell a covariance from its bound."""


# ----------------------------------------------------------------------------------- recursion
@dataclass(frozen=True)
class Side:
    """One sequence, read in one direction.

    Attributes
    ----------
    x : [t][feature] inputs
    q : [layer][t] variances of the pre-activations
    norm : [layer][t] erf 1 + 2q, else q
    root : [layer][t] square roots of `norm`
    """

    x: list[list[Number]]
    q: list[list[Number]]
    norm: list[list[Number]]
    root: list[list[Number]]


class Recursion:
    """The covariance recursion of one kernel, in a number of digits."""

    def __init__(self, case: Case, digits: int) -> None:
        options = dict(case.options)
        self.mp = mpmath.MPContext()
        self.mp.dps = digits
        self.tangent = case.kind == "ntk"
        self.depth: int = options.get("depth", 1)
        self.frozen: int = options.get("frozen_layers", 0)
        self.activation: str = options.get("activation", "relu")
        self.readout: str = options.get("readout", "last")
        self.directions = (1, -1) if options.get("bidirectional", False) else (1,)
        self.shared = options.get("initial_state", "shared") == "shared"
        defaults = dict(sigma_w=2**0.5, sigma_u=1.0, sigma_b=0.0, sigma_h=0.0, sigma_v=1.0)
        weights = {name: options.get(name, value) for name, value in defaults.items()}
        squares = {name: self.mp.mpf(value) ** 2 for name, value in weights.items()}
        self.ww, self.uu, self.bb, self.hh, self.vv = squares.values()

    # -- one sequence ----------------------------------------------------------------------------
    def sides(self, values: Array) -> list[Side]:
        """The sequence in each direction."""
        return [self._side(values[::direction]) for direction in self.directions]

    def _side(self, values: Array) -> Side:
        x = [[self.mp.mpf(value) for value in step] for step in values.tolist()]
        below = [self._product(step, step) for step in x]
        q: list[list[Number]] = []
        for _ in range(self.depth):
            recurrent, layer = self.hh, []
            for inputs in below:
                layer.append(self.ww * recurrent + self.uu * inputs + self.bb)
                recurrent = self._equal(layer[-1])[0]
            below = [self._equal(value)[0] for value in layer]
            q.append(layer)
        norm = [[1 + 2 * value for value in layer] for layer in q]
        norm = norm if self.activation == "erf" else q
        return Side(x, q, norm, [[self.mp.sqrt(value) for value in layer] for layer in norm])

    def _product(self, x: list[Number], y: list[Number]) -> Number:
        return sum((a * b for a, b in zip(x, y, strict=True)), self.mp.mpf(0)) / len(x)

    # -- dual activations ------------------------------------------------------------------------
    def _equal(self, q: Number) -> tuple[Number, Number]:
        """V and V' of equal arguments of variance q."""
        mp = self.mp
        if self.activation == "linear":
            return q, mp.mpf(1)
        if self.activation == "relu":
            return q / 2, mp.mpf(0.5) if q else mp.mpf(0)
        return 2 / mp.pi * mp.asin(2 * q / (1 + 2 * q)), 4 / mp.pi / mp.sqrt(1 + 4 * q)

    def _dual(self, k: Number, a: Side, b: Side, cell: tuple[int, int, int]) -> tuple[Any, Any]:
        """V and V' of arguments of covariance k, at a cell (layer, t, t')."""
        mp, (layer, t, u) = self.mp, cell
        if self.activation == "linear":
            return k, mp.mpf(1)
        s = a.root[layer][t] * b.root[layer][u]
        if self.activation == "erf":
            square = a.norm[layer][t] * b.norm[layer][u] - 4 * k * k
            if square <= 0:
                raise TooFewDigits(f"1 - c^2 is {mp.nstr(square, 3)}")
            return 2 / mp.pi * mp.asin(2 * k / s), 4 / mp.pi / mp.sqrt(square)
        if s == 0:
            return mp.mpf(0), mp.mpf(0)
        cos = min(max(k / s, mp.mpf(-1)), mp.mpf(1))
        angle = mp.pi - mp.acos(cos)
        return s * (mp.sqrt(1 - cos * cos) + angle * cos) / (2 * mp.pi), angle / (2 * mp.pi)

    # -- two sequences ---------------------------------------------------------------------------
    def value(self, a: list[Side], b: list[Side], same: bool) -> Number:
        """The kernel of two sequences; `same`: they are one sample, not merely equal."""
        pairs = zip(a, b, strict=True)
        return sum((self._direction(x, y, same) for x, y in pairs), self.mp.mpf(0))

    def _direction(self, a: Side, b: Side, same: bool) -> Number:
        n, n2 = len(a.x), len(b.x)
        if self.readout == "mean":
            starts = [(t, 0) for t in range(n)] + [(0, u) for u in range(1, n2)]
            total = sum(sum(self._diagonal(a, b, start, same)) for start in starts)
            return total / (n * n2)
        aligned = list(self._diagonal(a, b, (max(n - n2, 0), max(n2 - n, 0)), same))
        if self.readout == "last":
            return aligned[-1]
        if self.readout == "per_step":
            return sum(aligned) / self.mp.sqrt(n * n2)
        return (sum(aligned) + aligned[-1]) / n  # diagonal_authors

    def _diagonal(self, a: Side, b: Side, start: tuple[int, int], same: bool) -> Iterator[Number]:
        """The kernel of the outputs at (t, t'), (t + 1, t' + 1), ... from `start` on."""
        zero, (t, u) = self.mp.mpf(0), start
        itself = same and t == u
        recurrent = [self.hh if t == u == 0 and (same or self.shared) else zero] * self.depth
        from_past = [zero] * self.depth  # V' Theta of the step before
        while t < len(a.x) and u < len(b.x):
            inputs, from_below = self._product(a.x[t], b.x[u]), zero
            for layer in range(self.depth):
                sigma = self.ww * recurrent[layer] + self.uu * inputs + self.bb
                theta = zero
                if layer >= self.frozen:
                    theta = sigma + self.ww * from_past[layer] + self.uu * from_below
                if itself:
                    inputs, slope = self._equal(a.q[layer][t])
                else:
                    inputs, slope = self._dual(sigma, a, b, (layer, t, u))
                recurrent[layer] = inputs
                from_past[layer] = from_below = slope * theta
            yield self.vv * (inputs + from_below if self.tangent else inputs)
            t, u = t + 1, u + 1


Triple = tuple[Number, Number, Number]


def triple(case: Case, a: Array, b: Array, digits: int) -> Triple:
    """k(a, b), k(a, a) and k(b, b) in a number of digits.

    A copy that the kernel cannot tell from the sample has the sample's own value: one recursion.
    """
    recursion = Recursion(case, digits)
    side_a = recursion.sides(a)
    self_a = recursion.value(side_a, side_a, True)
    if case.is_copy:
        return self_a, self_a, self_a
    side_b = recursion.sides(b)
    self_b = recursion.value(side_b, side_b, True)
    return recursion.value(side_a, side_b, False), self_a, self_b


# ------------------------------------------------------------------------------------- entries
def first_digits(case: Case, *values: Array) -> int:
    """A precision to begin with: of large inputs, erf's 1 - c is about one over their square."""
    largest = max(np.abs(each).max() for each in values)
    large = dict(case.options).get("activation") == "erf" and largest > 1
    return FIRST_DIGITS + (math.ceil(4 * math.log10(largest)) if large else 0)


def agreed(case: Case, a: Array, b: Array, digits: int) -> tuple[Triple, int]:
    """`triple` in so many digits that twice as many change nothing, and how many these are."""
    before = None
    while digits <= MOST_DIGITS:
        try:
            now = triple(case, a, b, digits)
        except TooFewDigits:
            now = None
        if now is not None and before is not None and difference(now, before) < 10.0**-AGREE:
            return now, digits
        before, digits = now, 2 * digits
    raise ArithmeticError(f"no {AGREE} digits with {MOST_DIGITS}: {case.name}")


def difference(values: Triple, others: tuple[Number, ...]) -> Number:
    """The largest difference of two triples, in units of the first one's self values."""
    scale = report.sqrt(values[1]) * report.sqrt(values[2])
    scales = (scale, values[1], values[2])
    if scale == 0 and values[0] != 0:
        raise ArithmeticError("a sequence of value 0 with itself has another with a second one")
    found = [
        abs(x - y) / unit if unit else abs(x - y)
        for x, y, unit in zip(values, others, scales, strict=True)
    ]
    return max(found)


def normalised(values: Triple) -> Triple:
    """The triple after division by the roots of the self values."""
    k, self_a, self_b = values
    scale = report.sqrt(self_a) * report.sqrt(self_b)
    one, zero = report.mpf(1), report.mpf(0)
    return (k / scale if scale else zero, one if self_a else zero, one if self_b else zero)


def out_of_range(values: Triple) -> list[str]:
    """The number types that hold these values only after normalisation."""
    return [
        name
        for name, (least, most) in RANGES.items()
        if any(value and not least <= value <= most for value in values[1:])
    ]


def rounded(values: Array) -> Array:
    """The values with the 24 bits of a float32 number, whatever their exponent."""
    fraction, exponent = np.frexp(values)
    short: Array = np.ldexp(np.round(np.ldexp(fraction, FLOAT32_BITS)), exponent - FLOAT32_BITS)
    return short


def entry(case: Case, extra: int = 0) -> tuple[Entry, int]:
    """What the file says of a case, and in how many digits it was computed.

    `rounding` is how far the values move where the inputs alone are rounded to float32.
    """
    a, b = sequences(case)
    values, digits = agreed(case, a, b, first_digits(case, a, b) + extra)
    moved, _ = agreed(case, rounded(a), rounded(b), digits // 2)
    only_normalised = out_of_range(values)
    if case.normalize or "float32" in only_normalised:
        rounding = difference(normalised(values), normalised(moved))
    else:
        rounding = difference(values, moved)
    made = {name: report.nstr(+report.mpf(x), KEPT) for name, x in zip(NAMES, values, strict=True)}
    made |= {"normalised": only_normalised, "rounding": float(f"{float(rounding):.1e}")}
    return made, digits


# ---------------------------------------------------------------------------------------- file
def read() -> File:
    """The entries of the file, by group and name; none where there is no file."""
    found: File = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    return found


def write(entries: File) -> None:
    """The file, one line a case, groups and cases in the order of their definition."""
    blocks = []
    for group in GROUPS:
        known = entries.get(group, {})
        lines = [
            f"  {json.dumps(case.name)}: {json.dumps(known[case.name])}"
            for case in cases(group)
            if case.name in known
        ]
        blocks.append(f"{json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n}")
    text = "{\n" + ",\n".join(blocks) + "\n}\n"
    beside = GOLDEN.with_suffix(".part")
    beside.write_text(text)
    beside.replace(GOLDEN)


def make(groups: list[str], again: bool) -> None:
    """Compute what the file lacks of these groups, or all of them."""
    entries, begin = read(), time.monotonic()
    for group in groups:
        known = entries.setdefault(group, {})
        for number, case in enumerate(cases(group), start=1):
            if case.name in known and not again:
                continue
            start = time.monotonic()
            known[case.name], digits = entry(case)
            now = time.monotonic()
            times = f"{now - start:6.2f} s, {now - begin:6.0f} s in all"
            print(f"{group} {number}/{len(cases(group))}: {digits} digits, {times}", flush=True)
            write(entries)
    write(entries)


def check(count: int, seed: int) -> bool:
    """Whether cases drawn at random, computed anew with other precisions, are as in the file."""
    entries = read()
    known = [case for group in GROUPS for case in cases(group) if case.name in entries[group]]
    right = True
    for case in random.Random(seed).sample(known, min(count, len(known))):
        a, b = sequences(case)
        values, _ = agreed(case, a, b, first_digits(case, a, b) + 17)
        kept = entries[case.group][case.name]
        apart = difference(values, tuple(report.mpf(kept[name]) for name in NAMES))
        print(f"{float(apart):.1e}  {case.group}: {case.name}", flush=True)
        right = right and apart < 10.0 ** (2 - KEPT)
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(GROUPS), metavar="GROUP", help="this group alone")
    parser.add_argument("--again", action="store_true", help="also what the file has")
    parser.add_argument(
        "--check",
        nargs=2,
        type=int,
        metavar=("N", "SEED"),
        help="compute N cases anew, write nothing",
    )
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if check(*arguments.check) else 1
    make([arguments.only] if arguments.only else list(GROUPS), arguments.again)
    return 0


if __name__ == "__main__":
    sys.exit(main())
