"""What erf needs of one sequence: its features, and how large its own tangent kernel is.

The map from a step's pre-activations to its outputs depends on both variances, not on the angle
alone as relu's does. `rntk_dist.kernel.erf_cell` writes it with few numbers of each sequence; here
they are computed, in float64, once a slab. Symbols as in `rntk_dist.kernel.variances`, and

    U = (1/2, u),  n = |U| = sqrt(q + 1/4)
    cap      1 / (4 n)                  the share of the constant in U / (2 n)
    secant   (sqrt(1 + 4 cap^2) - 1)/2
    spread   S / sqrt(2),  and its inverse 1 / (2 spread)
    Theta    the tangent kernel of the sequence with itself, one layer at one step
    V'       2 / (pi n)

A pair's tangent kernel is carried in units of ``sqrt(Theta Theta')``: it can neither overflow nor
underflow, however many steps there are and however chaotic they are.

**Small inputs.** Where q is below 2^-100, erf is linear to the last bit, and the value of a pair is
proportional to each of its sequences. The features of such a step are those of u times a power of
two, so that squares of features stay within the range of float32, too.
"""

from dataclasses import dataclass

import numpy as np

from rntk_dist.kernel.scaled import Float64, Int64, Scaled, divided, stacked_rows
from rntk_dist.kernel.variances import Layer, Step, Walk, sequence_at

LINEAR = -100
"""Variances below two to this power are scaled up."""

LARGEST = 1e152
"""Of a pre-activation: its square, times that of another, is still a float64 number."""


@dataclass(frozen=True)
class Tangents:
    """The tangent kernel of each sequence with itself after one layer, (steps,).

    Attributes
    ----------
    theta : Theta of the pre-activations; 0 where the layer is not trained
    slope : V'
    """

    theta: Scaled
    slope: Float64

    def passed(self, weight: float) -> Scaled:
        """``weight^2 V' Theta``: what the layer above, or the next step, gets of it."""
        return self.theta * (weight**2 * self.slope)


def erf_layer(
    step: Step, walk: Walk, below: Tangents | None, tangent: bool
) -> tuple[Layer, Tangents, Scaled]:
    """The features of one layer, its tangents, and the weights of its steps in a readout.

    Parameters
    ----------
    below : of the layer below, if there is one
    tangent : whether the layer has a tangent part

    Returns
    -------
    The layer; its tangents; (2, steps) weights of V and of V' Theta in the readout.

    Raises
    ------
    OverflowError
        If a pre-activation is too large for its square to be computed with, naming its sequence.
    """
    kernel = step.kernel
    _refuse_large(step.q, walk)
    shift = _shift(step.q)
    q = step.q.shifted(None if shift is None else 2 * shift).plain()
    n = np.sqrt(q + 0.25)
    half = 0.5 / n
    slope = 2 / np.pi / n
    tangents = _tangents(step, walk, below, slope) if tangent else None
    own = [*_shape(step, half, shift)]
    if kernel.sigma_b > 0:
        own.append(_shifted(np.full_like(q, kernel.sigma_b), shift) * half)
    own += _carried(step, walk, tangents, below, n, shift)
    layer = Layer(
        recurrent=step.memory.shifted(shift).plain() * half,
        below=None if step.drive.lift is None else step.drive.lift.shifted(shift).plain() * half,
        inputs=np.empty((0, len(q))),
    )
    if step.drive.inputs is not None:
        length, inputs = _input_features(step, n, half, shift)
        own += length
        layer = Layer(layer.recurrent, None, inputs)
    nothing = Tangents(Scaled(np.zeros_like(q)), slope)
    found = tangents or nothing
    weights = stacked_rows([step.root * kernel.sigma_v, found.passed(1.0).root() * kernel.sigma_v])
    return Layer(layer.recurrent, layer.below, layer.inputs, None, np.array(own)), found, weights


def _refuse_large(q: Scaled, walk: Walk) -> None:
    large = ~(q.root().plain() < LARGEST)
    if not large.any():
        return
    position = np.flatnonzero(large)[0]
    sequences = walk.sequences
    index = sequence_at(sequences, position)
    raise OverflowError(
        f"sequence {index} (length {sequences.lengths[index]}) has a pre-activation beyond "
        f"{LARGEST:g} at step {position - sequences.offsets[index]}, and float64 cannot hold the "
        "products of such numbers: scale the inputs down"
    )


def _shift(q: Scaled) -> Int64 | None:
    """The powers of two that u is multiplied by at each step; None where there are none."""
    logarithm = q.log2()
    small = np.isfinite(logarithm) & (logarithm < LINEAR)
    if not small.any():
        return None
    wanted = np.ceil(np.where(small, LINEAR - logarithm, 0) / 2)
    return wanted.astype(np.int64)


def _shifted(values: Float64, shift: Int64 | None) -> Float64:
    return values if shift is None else Scaled(values, shift).plain()


def _shape(step: Step, half: Float64, shift: Int64 | None) -> tuple[Float64, ...]:
    """cap, secant, spread and its inverse."""
    cap = half / 2
    square = half * half  # 4 cap^2, the square of a tangent
    secant = square / (2 + 2 * np.sqrt(1 + square))
    spread = step.root.shifted(shift).plain() * np.sqrt(0.5)
    return cap, secant, spread, divided(np.full_like(spread, 0.5), spread)


def _tangents(step: Step, walk: Walk, below: Tangents | None, slope: Float64) -> Tangents:
    kernel, starts = step.kernel, walk.sequences.offsets[:-1]
    drive = step.q if below is None else step.q + below.passed(kernel.sigma_u)
    gains = np.append(0.0, kernel.sigma_w**2 * slope[:-1])
    gains[starts] = 0.0
    return Tangents(walk.sums(drive, gains), slope)


def _carried(
    step: Step,
    walk: Walk,
    tangents: Tangents | None,
    below: Tangents | None,
    n: Float64,
    shift: Int64 | None,
) -> list[Float64]:
    """How much of the tangent kernel is the covariance, how much the past, how much from below."""
    count = 2 if below is None else 3
    if tangents is None:
        return [np.zeros_like(n)] * count
    kernel, unit = step.kernel, np.sqrt(0.5 / n)
    theta = tangents.theta.root()
    past = unit * _before(tangents.passed(kernel.sigma_w).root()).over(theta)
    past[walk.sequences.offsets[:-1]] = 0.0
    parts = [Scaled(np.sqrt(n / 2)).over(theta.shifted(shift)), past]
    if below is not None:
        parts.append(unit * below.passed(kernel.sigma_u).root().over(theta))
    return parts


def _before(values: Scaled) -> Scaled:
    """The values of the step before; at a sequence's first step those of another sequence."""
    exponent = None if values.exponent is None else np.roll(values.exponent, 1)
    return Scaled(np.roll(values.mantissa, 1), exponent)


def _input_features(
    step: Step, n: Float64, half: Float64, shift: Int64 | None
) -> tuple[list[Float64], Float64]:
    """The inputs of the first layer: one number with its sign, or a length and a direction."""
    assert step.drive.inputs is not None
    inputs = step.drive.inputs
    inputs = inputs if shift is None else _shifted(inputs, shift[:, None])
    single = inputs.shape[1] == 1 and not step.drive.items
    length = np.sqrt((inputs * inputs).sum(axis=1))
    share = length / n
    # Near 1 by what is lacking: a large input then has exactly the share 1, wherever it comes from.
    others = n * n - length * length
    if (share > 0.5).any():
        others = 0.25 + _shifted(step.memory.plain(), shift) ** 2 + step.kernel.sigma_b**2
    share = np.where(share > 0.5, 1 - others / (n * n * (1 + share)), share)
    if single:
        return [], (np.copysign(share, inputs[:, 0]) / 2)[None]
    direction = divided(inputs, np.broadcast_to(2 * length[:, None], inputs.shape))
    return [share / 2], direction.T


def own_count(bias: bool, below: bool, single: bool) -> int:
    """How many features of its own a layer has."""
    return 6 + bias + (1 if below or not single else 0)
