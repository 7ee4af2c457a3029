"""What compiled loops read: the features of a direction side by side, step by step, in flat arrays.

A compiled loop, on a CPU or a GPU, takes a slab as a `Side` and the run-time facts of a sweep as a
`Shape`. The features of one step are, in this order: of the first layer the recurrent share, then
the inputs (of items the weight and the id, then the bias); of every other layer the recurrent
share, the share of the layer below, then the bias if there is one. What else the activation needs
of a step follows in each layer.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rntk_dist.kernel.arrays import Recursion
from rntk_dist.kernel.variances import Array, Direction, Slab

MIRROR_EDGE = 256
"""Rows and columns of a triangle that are mirrored at once."""


class Shape(NamedTuple):
    """Run-time facts of a sweep, as compiled code takes them.

    Attributes
    ----------
    features : numbers a step, of all layers
    depth : layers
    inputs : numbers that the first layer takes in, with the bias where there is one
    bias : inputs of every other layer: 1 with a bias, else 0
    first_trained : layers below it have no tangent part; ``depth`` for the NNGP kernel
    grid : whether every diagonal t - t' is walked ("mean"), else the one that ends in both ends
    every_step, last_step : which cells of the end-aligned diagonal are read out; a cell that is
        both is read twice
    shared_start : whether different sequences start from one hidden state
    items : whether the first two inputs are an item's weight and its id
    outputs : weights of a step in the readout
    """

    features: int
    depth: int
    inputs: int
    bias: int
    first_trained: int
    grid: bool
    every_step: bool
    last_step: bool
    shared_start: bool
    items: bool = False
    outputs: int = 1


@dataclass(frozen=True)
class Side:
    """One direction of a slab, longest sequence first.

    Attributes
    ----------
    features : flat, ``Shape.features`` numbers a step
    output : flat, ``Shape.outputs`` weights of each step in the readout
    first : (n,) each sequence's first step, a row of ``features``
    lengths : (n,) steps of each sequence
    """

    features: Array
    output: Array
    first: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def part(self, start: int, stop: int) -> tuple[Array, Array, Array, Array]:
        """Some of the sequences, as compiled code takes them."""
        return self.features, self.output, self.first[start:stop], self.lengths[start:stop]


def make_side(direction: Direction, slab: Slab, order: NDArray[np.int64]) -> Side:
    """One direction of a slab, its sequences in the given order, its features side by side."""
    features = step_features(direction)
    output = np.ascontiguousarray(direction.output.T).reshape(-1)
    return Side(features, output, slab.first[order], slab.lengths[order])


def step_features(direction: Direction, *, weighted: bool = False, xp: Any = np) -> Array:
    """The features of all steps, flat, as arrays of ``xp``; the readout weights last if wanted."""
    parts = [part for layer in direction.layers for part in layer.numbers()]
    if weighted:
        parts.append(direction.output)
    flat: Array = xp.ascontiguousarray(xp.concatenate(parts).T).reshape(-1)
    return flat


def make_shape(recursion: Recursion, direction: Direction) -> Shape:
    """What a sweep over this direction does."""
    depth, first = len(direction.layers), direction.layers[0]
    return Shape(
        features=sum(len(part) for layer in direction.layers for part in layer.numbers()),
        depth=depth,
        inputs=len(first.inputs) + (first.items is not None),
        items=first.items is not None,
        bias=len(direction.layers[-1].inputs) if depth > 1 else 0,
        first_trained=recursion.frozen if recursion.tangent else depth,
        grid=recursion.readout == "mean",
        every_step=recursion.readout in ("per_step", "diagonal_authors"),
        last_step=recursion.readout in ("last", "diagonal_authors"),
        shared_start=recursion.shared_start,
        outputs=len(direction.output),
    )


def in_given_order(
    values: Array, rows: NDArray[np.int64], columns: NDArray[np.int64], *, symmetric: bool
) -> Array:
    """From longest-first to the order of the slabs, the lower triangle filled in."""
    if symmetric:
        for start in range(0, len(values), MIRROR_EDGE):
            stop = start + MIRROR_EDGE
            square = values[start:stop, start:stop]
            square[...] = np.triu(square) + np.triu(square, 1).T
            values[stop:, start:stop] = values[start:stop, stop:].T
    if (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all():
        return values
    given = np.empty_like(values)
    given[rows[:, None], columns] = values
    return given
