"""The mathematics of one pair for erf, written once for every backend, as `cell` is for relu.

With ``A = 1 + 2 q``, ``B = 1 + 2 q'`` of two sequences and k the covariance of their
pre-activations (Williams 1997)

    V = 2/pi asin c,   V' = 4/pi / sqrt(A B - 4 k^2),   c = 2 k / sqrt(A B).

``sigma_w^2 V'`` may exceed 1: then the distance of two near sequences grows at every step, and with
it each rounding error of k. So what is carried is the distance, as for relu: a sum of non-negative
terms, but for one subtraction of what S and S' differ by. Let ``U = (1/2, u)``, ``n = |U|`` and

    W = |U/n - U'/n'|^2 / 4 = sin^2 of half the angle between U and U',   W* the same of u and -u'
    tan p = 1 / (2 n),  sec p = 1 / cos p                  of each sequence
    w = sin^2((p + p')/2) / (cos p cos p')                 of two that have no distance
    Q = sqrt((w + W) (w + W*)),   Q0 = (tan p + tan p')/2

The angle ``phi = acos(c) / 2`` decides everything, and what it exceeds ``(p + p')/2`` by has the
tangent ``W / (Q + Q0)``. For the states, with ``S^2 = V(q, q)``,

    h = (1 - V/(S S'))/2 = (4/pi (phi - (p + p')/2) - (S - S')^2/2) / (2 S S'),   V' = 1/(pi n n' Q)

and h* = 1 - h. Where k < 0, u and -u' take the places of u and u', so that the angle is at most
pi/4. A pair carries the lesser of h and h*, and r = h* - h = V / (S S'): then h, h* and r all keep
their digits where they are small. Where r is small the difference in h would lose digits; there the
angle comes from ``tan(asin(c)/2) = |k| / (n n' (sec p sec p' + 2 Q))`` instead.

The tangent part is ``tau = Theta / sqrt(Theta_aa Theta_bb)`` over ``2 sqrt(n n') Q``: the share of
V' Theta in that of each sequence with itself, at most 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rntk_dist.kernel.cell import ARC, Operations, make_horner


class ErfCell(NamedTuple):
    """The arithmetic of erf in one number type.

    ``a``, ``b`` are halves of normalised parts of u and u' (the recurrent one, the one from below),
    ``own_a``, ``own_b`` the features of `rntk_dist.kernel.erf_features` as tuples. The state of a
    pair is s, r, g: the lesser of h and h*, their difference (above), and the tangent part.

    Attributes
    ----------
    combine : (x, y) -> contribution of one coordinate of two directions to the haversine of their
        angle; ``mirror`` -> that to the haversine of one and the opposite of the other
    combine_items, mirror_items : (x, y, same) -> the same of one-hot directions
    first : (inputs, a, b, s, r, own_a, own_b) -> (W, W*, k / (n n')) of the first layer; ``inputs``
        are the two sequences' halves of inputs with their signs, or both sums over their directions
    upper : (below, parts, a, b, s, r, own_a, own_b) -> the same of another layer; ``below`` are s
        and r of the layer below, ``parts`` the two sequences' halves of what it brings
    settle : (W, W*, k, own_a, own_b) -> (s, r, 1 / Q)
    tangent : (k, carry, 1 / Q, own_a, own_b) -> g
    carry : (g, own_a, own_b) -> what the past adds; ``lift`` the same from the layer below
    """

    combine: Callable[[Any, Any], Any]
    mirror: Callable[[Any, Any], Any]
    combine_items: Callable[[Any, Any, Any], Any]
    mirror_items: Callable[[Any, Any, Any], Any]
    first: Callable[..., Any]
    upper: Callable[..., Any]
    settle: Callable[..., Any]
    tangent: Callable[..., Any]
    carry: Callable[[Any, Any, Any], Any]
    lift: Callable[[Any, Any, Any], Any]


def _identity(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def make_erf(  # noqa: C901 - a closure of small functions, as compiled code needs them
    dtype: type[np.floating[Any]],
    ops: Operations,
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] = _identity,
    *,
    bias: bool,
    single: bool,
) -> ErfCell:
    """The erf cell.

    Parameters
    ----------
    bias : whether sigma_b > 0; its share is then feature 4
    single : whether the inputs have one feature, and are numbers with a sign
    """
    zero, half, one, two, four = (dtype(x) for x in (0, 0.5, 1, 2, 4))
    steep = dtype(2**0.5 - 1)
    sqrt, minimum, maximum, absolute = ops.sqrt, ops.minimum, ops.maximum, ops.absolute
    choose, less, copysign = ops.choose, ops.less, ops.copysign
    arc = compile(make_horner(ARC[dtype]))
    covariance, past, extra = 4 + bias, 5 + bias, 6 + bias

    @compile
    def combine(x: Any, y: Any) -> Any:
        difference = x - y
        return difference * difference

    @compile
    def mirror(x: Any, y: Any) -> Any:
        total = x + y
        return total * total

    @compile
    def combine_items(x: Any, y: Any, same: Any) -> Any:
        return choose(same, zero, half)

    @compile
    def mirror_items(x: Any, y: Any, same: Any) -> Any:
        return choose(same, one, half)

    @compile
    def constant(own_a: Any, own_b: Any) -> Any:
        difference = own_a[0] - own_b[0]
        return difference * difference

    @compile
    def add_bias(W: Any, Z: Any, k: Any, own_a: Any, own_b: Any) -> Any:
        x, y = own_a[4], own_b[4]
        d = x - y
        d = d * d
        product = (four * x) * y
        return W + d, Z + d + product, k + product

    @compile
    def add_part(W: Any, Z: Any, k: Any, a: Any, b: Any, h: Any, o: Any, r: Any) -> Any:
        """Add vectors of lengths a and b; of their angle h, o = 1 - h and r = o - h."""
        d = a - b
        d = d * d
        product = (four * a) * b
        return W + d + product * h, Z + d + product * o, k + product * r

    @compile
    def add_outputs(W: Any, Z: Any, k: Any, a: Any, b: Any, s: Any, r: Any) -> Any:
        """Add what activations give, whose state is s and r."""
        rest, aligned = one - s, less(zero, r)
        h, o = choose(aligned, s, rest), choose(aligned, rest, s)
        return add_part(W, Z, k, a, b, h, o, r)

    @compile
    def add_numbers(W: Any, Z: Any, k: Any, x: Any, y: Any) -> Any:
        """Add numbers with signs."""
        d, s = x - y, x + y
        return W + d * d, Z + s * s, k + (four * x) * y

    @compile
    def first(inputs: Any, a: Any, b: Any, s: Any, r: Any, own_a: Any, own_b: Any) -> Any:
        c = constant(own_a, own_b)
        x, y = inputs
        W, Z, k = add_outputs(c, c, zero, a, b, s, r)
        if single:
            W, Z, k = add_numbers(W, Z, k, x, y)
        else:
            W, Z, k = add_part(W, Z, k, own_a[extra], own_b[extra], x, y, y - x)
        if bias:
            W, Z, k = add_bias(W, Z, k, own_a, own_b)
        return W, Z, k

    @compile
    def upper(
        below: Any, parts: Any, a: Any, b: Any, s: Any, r: Any, own_a: Any, own_b: Any
    ) -> Any:
        c = constant(own_a, own_b)
        W, Z, k = add_outputs(c, c, zero, a, b, s, r)
        W, Z, k = add_outputs(W, Z, k, parts[0], parts[1], below[0], below[1])
        if bias:
            W, Z, k = add_bias(W, Z, k, own_a, own_b)
        return W, Z, k

    @compile
    def settle(W: Any, Z: Any, k: Any, own_a: Any, own_b: Any) -> Any:
        t, u = own_a[0], own_b[0]
        secant = own_a[1] + own_b[1]
        secant += (two * own_a[1]) * own_b[1]  # (sec p sec p' - 1)/2
        w = secant + (two * t) * u
        Q = sqrt((w + W) * (w + Z))
        inverse = own_a[3] * own_b[3]  # 1/(2 S S')
        gap = own_a[2] - own_b[2]
        gap *= gap
        gap *= inverse
        size, lesser = absolute(k), minimum(W, Z)
        apart = less(size, lesser)
        rise = choose(apart, half * size, lesser)
        run = Q + choose(apart, half + secant, t + u)
        # A slope beyond tan(pi/8) is taken less pi/4: the polynomial is short then.
        turned = less(steep * run, rise)
        top, bottom = choose(turned, rise - run, rise), choose(turned, rise + run, run)
        quotient = one / (bottom * Q)
        slope = top * (Q * quotient)
        angle = slope * arc(slope * slope)
        angle += choose(turned, one, zero)  # in units of pi/4
        angle *= inverse
        least = choose(apart, half - angle, maximum(angle - gap, zero))
        share = choose(apart, angle + angle, one - (least + least))
        return least, copysign(share, k), bottom * quotient

    @compile
    def carry(g: Any, own_a: Any, own_b: Any) -> Any:
        return (own_a[past] * own_b[past]) * g

    @compile
    def lift(g: Any, own_a: Any, own_b: Any) -> Any:
        return (own_a[extra] * own_b[extra]) * g

    @compile
    def tangent(k: Any, carry: Any, reciprocal: Any, own_a: Any, own_b: Any) -> Any:
        tau = (own_a[covariance] * own_b[covariance]) * k + carry
        return tau * reciprocal

    sums = combine, mirror, combine_items, mirror_items
    return ErfCell(*sums, first, upper, settle, tangent, carry, lift)
