"""Which kernels are multiples of each other, so that one of them need be computed.

Hyper-parameters that only rescale a kernel, for all sequences:

* sigma_v: the kernel is sigma_v^2 times that of sigma_v = 1, and a normalised one is the same.
* sigma_u, sigma_b, sigma_h together, for relu and linear, whose outputs are proportional to their
  inputs: c times each makes c^2 times the kernel.
* sigma_h and the kind of initial state make no difference where sigma_w sigma_h = 0.

Values of a multiple are equal to the last bit where the factor is a power of four, else to rounding
(a few units in the last place). sigma_b / sigma_u and sigma_h / sigma_u are compared by 14 digits.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.rntk import RNTK

_OF_A_FAMILY = ("sigma_u", "sigma_b", "sigma_h", "sigma_v", "initial_state")
"""The options in which the kernels of a family may differ."""


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that are multiples of one: `factors[i]` times that one is `members[i]`.

    Members are positions in the list of kernels. The first is the one to compute: its factor is 1,
    and no other's is smaller, so that what does not overflow for others does not for it.
    """

    members: tuple[int, ...]
    factors: tuple[float, ...]


def families(kernels: Sequence[RNTK]) -> list[Family]:
    """The kernels in families, which are in the order of their first members."""
    found: dict[RNTK, list[tuple[int, float]]] = {}
    for i, kernel in enumerate(kernels):
        unit, scale = _in_units(kernel)
        found.setdefault(unit, []).append((i, scale))
    return [_family(group) for group in found.values()]


def families_of(options: Sequence[Mapping[str, Any]], chosen: Collection[int]) -> list[Family]:
    """The families that have one of the chosen kernels, with all their members of the whole list.

    `options` are the kernels' dicts; members are positions in it.
    """
    kinds = {_kind(options[i]) for i in chosen}
    near = [i for i, each in enumerate(options) if _kind(each) in kinds]
    found = families([RNTK.from_dict(options[i]) for i in near])
    placed = (replace(f, members=tuple(near[i] for i in f.members)) for f in found)
    return [family for family in placed if not set(chosen).isdisjoint(family.members)]


def _kind(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is the same in all kernels of a family."""
    return tuple(value for name, value in options.items() if name not in _OF_A_FAMILY)


def _family(group: list[tuple[int, float]]) -> Family:
    ordered = sorted(group, key=lambda member: member[1])
    least = ordered[0][1]
    return Family(tuple(i for i, _ in ordered), tuple(scale / least for _, scale in ordered))


def _in_units(kernel: RNTK) -> tuple[RNTK, float]:
    """The kernel that stands for its family, and what it is to be multiplied by."""
    plain = _without_idle(kernel)
    unit = 1.0
    if plain.activation != "erf":
        unit = plain.sigma_u or plain.sigma_b or plain.sigma_h
    standard = replace(
        plain,
        sigma_u=_rounded(plain.sigma_u / unit),
        sigma_b=_rounded(plain.sigma_b / unit),
        sigma_h=_rounded(plain.sigma_h / unit),
        sigma_v=1.0,
    )
    return standard, 1.0 if plain.normalize else (unit * plain.sigma_v) ** 2


def _without_idle(kernel: RNTK) -> RNTK:
    """The same kernel, without what makes no difference to it."""
    if kernel.sigma_w * kernel.sigma_h > 0:
        return kernel
    # A kernel needs one of the three; with sigma_h alone and no way from it, all values are 0.
    driven = kernel.sigma_u > 0 or kernel.sigma_b > 0
    return replace(kernel, sigma_h=0.0 if driven else kernel.sigma_h, initial_state="shared")


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.14g}")


def multiple(values: NDArray[Any], factor: float) -> NDArray[Any]:
    """The values times a family member's factor. Raises OverflowError if one exceeds its type."""
    if factor == 1.0:
        return values
    with np.errstate(over="ignore"):
        scaled: NDArray[Any] = values * values.dtype.type(factor)
    if not np.isfinite(scaled).all():
        raise OverflowError(
            f"{factor:g} times the values of another kernel exceeds {values.dtype}: use smaller "
            "sigma_u, sigma_b, sigma_h or sigma_v, or normalize=True"
        )
    return scaled
