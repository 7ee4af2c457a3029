"""The cell against 80 digits, and the loop over time on a foreign array type."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from rntk_dist import RNTK, Sequences
from rntk_dist.kernel.arrays import cell_for, erf_cell_for, tile_values
from rntk_dist.kernel.cell import ANGLE, ARC, RESIDUE, make_horner
from rntk_dist.kernel.variances import make_slab

ROOT = Path(__file__).parent.parent
POINTS = np.concatenate([np.linspace(0, 0.5, 401)[1:], np.logspace(-30, -1, 60)])


def exact_angle(z: Any) -> Any:
    return 2 * mpmath.asin(mpmath.sqrt(z)) / mpmath.sqrt(z) / mp.pi


def exact_residue(z: Any) -> Any:
    theta = 2 * mpmath.asin(mpmath.sqrt(z))
    difference = (1 - 2 * z) * theta - 2 * mpmath.sqrt(z * (1 - z))
    return difference / z ** mpf("1.5") / (2 * mp.pi)


def exact_arc(y: Any) -> Any:
    return 4 / mp.pi * mpmath.atan(mpmath.sqrt(y)) / mpmath.sqrt(y)


@pytest.fixture(autouse=True)
def _many_digits() -> Any:
    with mpmath.workdps(80):
        yield


@pytest.mark.parametrize(
    ("dtype", "angle_bound", "residue_bound", "arc_bound"),
    [(np.float64, 8e-16, 4e-16, 2e-16), (np.float32, 6e-8, 6e-8, 1e-7)],
)
def test_polynomials_reach_their_stated_error(
    dtype: Any, angle_bound: float, residue_bound: float, arc_bound: float
) -> None:
    """The coefficients as stored, evaluated without rounding and then with it."""
    for table, exact, points, bound in (
        (ANGLE, exact_angle, POINTS, angle_bound),
        (RESIDUE, exact_residue, POINTS, residue_bound),
        (ARC, exact_arc, POINTS * (2 * np.tan(np.pi / 8) ** 2), arc_bound),
    ):
        polynomial = make_horner(tuple(mpf(float(c)) for c in table[dtype]))
        rounded = make_horner(table[dtype])(points.astype(dtype))
        for z, value in zip(points.astype(dtype), rounded, strict=True):
            truth = exact(mpf(float(z)))
            assert abs(polynomial(mpf(float(z))) / truth - 1) < bound
            assert abs(mpf(float(value)) / truth - 1) < bound + 3 * np.finfo(dtype).eps


def test_coefficients_are_those_of_the_script() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "fit_polynomials.py", "--check"], check=False
    )
    assert done.returncode == 0


def test_relu_cell_over_the_whole_range_of_angles() -> None:
    cell = cell_for("relu", "float64", np)
    w = np.concatenate([[0.0, 1.0], np.logspace(-30, -2, 50), np.linspace(0.01, 1, 60)])
    w = np.concatenate([w, 1 - np.logspace(-15, -2, 20)])
    h, slope = cell.tangent(w, 0.5 + w)
    assert np.array_equal(h, cell.covariance(w))
    for value, got_h, got_slope in zip(w, h, slope, strict=True):
        theta = 2 * mpmath.asin(mpmath.sqrt(mpf(float(value))))
        f = (mpmath.sin(theta) + (mp.pi - theta) * mpmath.cos(theta)) / mp.pi
        assert abs(float(got_h) - (1 - f) / 2) <= 4e-16 * max((1 - f) / 2, 0) + mpf(10) ** -60
        assert abs(float(got_slope) - (1 - theta / mp.pi)) < 4e-16


def exact_erf(u: list[Any], v: list[Any]) -> tuple[Any, Any, Any]:
    """V / (S S'), (S - S')^2 / (2 S S') and V' of two pre-activations, in many digits."""

    def dot(x: list[Any], y: list[Any]) -> Any:
        return sum(a * b for a, b in zip(x, y, strict=True))

    def value(x: list[Any], y: list[Any]) -> Any:
        sizes = (1 + 2 * dot(x, x)) * (1 + 2 * dot(y, y))
        return mpmath.asin(2 * dot(x, y) / mpmath.sqrt(sizes))

    slope = 4 / mp.pi / mpmath.sqrt((1 + 2 * dot(u, u)) * (1 + 2 * dot(v, v)) - 4 * dot(u, v) ** 2)
    roots = mpmath.sqrt(value(u, u)), mpmath.sqrt(value(v, v))
    product = roots[0] * roots[1]
    if product == 0:
        return mpf(0), mpf(0), slope
    return value(u, v) / product, (roots[0] - roots[1]) ** 2 / (2 * product), slope


@pytest.mark.parametrize("size", [1e-120, 1e-3, 1.0, 1e3, 1e120])
@pytest.mark.parametrize("other", [1.0, 1.0 + 1e-7, 30.0, -1.0, -1.0 - 1e-7, -1e-6, 0.0])
@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_erf_cell_keeps_its_digits_for_every_pair_of_numbers(
    size: float, other: float, bias: float
) -> None:
    """One step of one feature: the share of the distance, and the slope, of any two inputs."""
    kernel = RNTK(activation="erf", sigma_b=bias)
    x = Sequences.from_arrays([[size], [size * other]])
    layer = make_slab(kernel, x).directions[0].layers[0]
    assert layer.own is not None
    cell = erf_cell_for("float64", np, bias=bias > 0, single=True)
    own_a, own_b = layer.own[:, 0], layer.own[:, 1]
    W, Z, k = cell.first(layer.inputs[0], 0.0, 0.0, 0.5, 0.0, own_a, own_b)
    least, share, reciprocal = cell.settle(W, Z, k, own_a, own_b)
    slope = 16 / np.pi * own_a[0] * own_b[0] * reciprocal
    u, v = ([mpf(float(value)), mpf(bias)] for value in (size, size * other))
    with mpmath.workdps(600):
        exact_share, gap, exact_slope = exact_erf(u, v)
        lack = (1 - abs(exact_share)) / 2 if exact_share else mpf(0.5)
        assert abs(share - exact_share) < 1e-15
        # In units of the whole distance, of which S - S' is a part; features are rounded, too.
        whole = max(min(lack + gap, mpf(1)), mpf(10) ** -60)
        assert abs(least - lack) <= 1e-15 * (whole + mpmath.sqrt(whole))
        assert abs(slope / exact_slope - 1) < 1e-14


class DeviceArray:
    """An array that, as CuPy's, computes with its own kind and never silently turns to NumPy."""

    __array_ufunc__ = None

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim"):
            return getattr(self.data, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Any:
        return (DeviceArray(row) for row in self.data)

    @property
    def T(self) -> "DeviceArray":
        return DeviceArray(self.data.T)

    def __getitem__(self, key: Any) -> "DeviceArray":
        return DeviceArray(self.data[_host(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        assert isinstance(value, DeviceArray)
        self.data[_host(key)] = value.data


def _host(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_host(part) for part in value)
    assert not isinstance(value, np.ndarray), "a host array met a device array"
    return value.data if isinstance(value, DeviceArray) else value


def _operator(name: str) -> Any:
    def operate(self: DeviceArray, other: Any) -> Any:
        result = getattr(self.data, name)(_host(other))
        return self if result is self.data else DeviceArray(result)

    return operate


for _name in ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul", "iadd", "isub", "imul", "lt"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))
for _name in ("itruediv", "rtruediv", "gt"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def _function(function: Any) -> Any:
    return lambda *args: DeviceArray(function(*(_host(a) for a in args)))


DEVICE = SimpleNamespace(
    asarray=lambda x: x if isinstance(x, DeviceArray) else DeviceArray(np.asarray(x)),
    empty=lambda *a: DeviceArray(np.empty(*a)),
    zeros=lambda *a: DeviceArray(np.zeros(*a)),
    zeros_like=_function(np.zeros_like),
    where=_function(np.where),
    sqrt=_function(np.sqrt),
    minimum=_function(np.minimum),
    maximum=_function(np.maximum),
    abs=_function(np.abs),
    copysign=_function(np.copysign),
)


class _Namespace(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.mark.parametrize("activation", ["relu", "erf", "linear"])
@pytest.mark.parametrize("readout", ["last", "per_step", "mean"])
def test_the_loop_runs_in_a_foreign_namespace(activation: str, readout: str) -> None:
    """What CuPy needs: every operation through the namespace, no array of the host on the way."""
    rng = np.random.default_rng(0)
    x = Sequences.from_arrays([rng.normal(size=(length, 2)) for length in (3, 5, 4, 5)])
    kernel = RNTK(depth=2, activation=activation, readout=readout, sigma_b=0.1)  # type: ignore[arg-type]
    slab = make_slab(kernel, x)
    recursion = kernel.recursion("ntk")
    device = _Namespace(**vars(DEVICE))
    values = tile_values(recursion, slab.transfer(device.asarray), None, edge=3, xp=device)
    assert isinstance(values, DeviceArray)
    assert np.array_equal(values.data, tile_values(recursion, slab, None, edge=3))
