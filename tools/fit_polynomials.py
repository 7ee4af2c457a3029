"""Fit the polynomials of rntk_dist/kernel/cell.py and write them into it.

The functions are smooth once a root is taken out: of z = sin(theta/2)^2 <= 1/2 the first two, of
y = tan(theta)^2 for theta up to pi/8 the last:

    theta / pi                                = sqrt(z)   ANGLE(z)
    (theta cos theta - sin theta) / (2 pi)    = z sqrt(z) RESIDUE(z)
    4 theta / pi                              = sqrt(y)   ARC(y)

The coefficients minimise the largest relative error (Remez exchange, 50 digits).
Usage: python tools/fit_polynomials.py [--check]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import mpmath
from mpmath import mp, mpf

CELL = Path(__file__).parent.parent / "rntk_dist" / "kernel" / "cell.py"
BEGIN, END = "# begin generated\n", "# end generated\n"
# The lowest degrees whose error is below the rounding of the type.
DEGREES = {
    "ANGLE": {"float64": 16, "float32": 7},
    "RESIDUE": {"float64": 15, "float32": 6},
    "ARC": {"float64": 10, "float32": 4},
}


def angle(z: mpf) -> mpf:
    """theta / pi / sqrt(z)."""
    if z == 0:
        return 2 / mp.pi
    return 2 * mpmath.asin(mpmath.sqrt(z)) / mpmath.sqrt(z) / mp.pi


def residue(z: mpf) -> mpf:
    """(theta cos theta - sin theta) / (2 pi) / z^(3/2)."""
    if z == 0:
        return mpf(-4) / 3 / mp.pi
    theta = 2 * mpmath.asin(mpmath.sqrt(z))
    difference = (1 - 2 * z) * theta - 2 * mpmath.sqrt(z * (1 - z))
    return difference / z ** mpf(1.5) / (2 * mp.pi)


def arc(y: mpf) -> mpf:
    """4 theta / pi / sqrt(y)."""
    if y == 0:
        return 4 / mp.pi
    return 4 / mp.pi * mpmath.atan(mpmath.sqrt(y)) / mpmath.sqrt(y)


FUNCTIONS: dict[str, tuple[Callable[[mpf], mpf], Callable[[], mpf]]] = {
    "ANGLE": (angle, lambda: mpf(1) / 2),
    "RESIDUE": (residue, lambda: mpf(1) / 2),
    "ARC": (arc, lambda: mpmath.tan(mp.pi / 8) ** 2),
}
"""Each with the largest argument that it is fitted for."""


def remez(function: Callable[[mpf], mpf], degree: int, top: mpf, rounds: int = 5) -> list[mpf]:
    """Coefficients, lowest power first, of least maximal relative error on [0, top]."""
    count = degree + 2
    points = _chebyshev(count, top)
    grid = _chebyshev(40 * count, top)
    values = [function(z) for z in grid]
    coefficients: list[mpf] = []
    for _ in range(rounds):
        coefficients = _levelled(function, points, degree)
        errors = [
            mpmath.polyval(coefficients[::-1], z) / value - 1
            for z, value in zip(grid, values, strict=True)
        ]
        extrema = _alternating(errors)
        if len(extrema) != count:
            raise RuntimeError(f"expected {count} alternations, found {len(extrema)}")
        points = [grid[k] for k in extrema]
    return coefficients


def _chebyshev(count: int, top: mpf) -> list[mpf]:
    return [(1 - mpmath.cos(mp.pi * k / (count - 1))) * (top / 2) for k in range(count)]


def _levelled(function: Callable[[mpf], mpf], points: list[mpf], degree: int) -> list[mpf]:
    """The polynomial whose relative error is +e, -e, +e, ... at the points."""
    system = mpmath.matrix(len(points), len(points))
    for i, z in enumerate(points):
        for power in range(degree + 1):
            system[i, power] = z**power / function(z)
        system[i, degree + 1] = (-1) ** i
    solution = mpmath.lu_solve(system, mpmath.ones(len(points), 1))
    return [solution[power] for power in range(degree + 1)]


def _alternating(errors: list[mpf]) -> list[int]:
    """The position of the largest error in each run of one sign."""
    best: list[int] = []
    for k, error in enumerate(errors):
        if best and errors[best[-1]] * error > 0:
            if abs(error) > abs(errors[best[-1]]):
                best[-1] = k
        else:
            best.append(k)
    return best


def generate() -> str:
    """The generated lines of cell.py."""
    lines = []
    for name, (function, top) in FUNCTIONS.items():
        lines.append(f"{name}: dict[Any, tuple[Any, ...]] = {{")
        for dtype, degree in DEGREES[name].items():
            lines.append(f"    np.{dtype}: (")
            coefficients = remez(function, degree, top())[::-1]
            lines += [f"        np.{dtype}({float(c)!r})," for c in coefficients]
            lines.append("    ),")
        lines.append("}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether cell.py is current")
    arguments = parser.parse_args()
    mp.dps = 50
    source = CELL.read_text()
    head, rest = source.split(BEGIN)
    _, tail = rest.split(END)
    current = head + BEGIN + generate() + END + tail
    if arguments.check:
        return int(current != source)
    CELL.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
