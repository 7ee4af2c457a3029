"""Which samples of a large matrix to look at, so that few of its tiles are read.

A tile is read whole or not at all. So some blocks of samples are taken, spread evenly over all, and
of these blocks some samples: a part of the matrix that lies in few tiles. Nothing is read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from rntk_dist.plan import Plan


@dataclass(frozen=True, slots=True)
class Limits:
    """How many samples of an axis to take at most, from how many tiles and bytes of tiles."""

    samples: int
    tiles: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Indices of rows and of columns, ascending, and the blocks that they lie in."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    row_blocks: tuple[int, ...]
    col_blocks: tuple[int, ...]


def chunk_bytes(plan: Plan) -> int:
    """Bytes of the values of one full tile."""
    return prod(plan.chunk_shape) * plan.itemsize


def sampled(plan: Plan, limits: Limits) -> Sample | None:
    """Samples spread evenly over the matrix, within the limits; the same of both axes if symmetric.

    None where one tile alone has more bytes than the limit.
    """
    edge = _blocks_a_side(plan, min(limits.tiles, limits.bytes // chunk_bytes(plan)))
    if edge == 0:
        return None
    blocks = [_spread(range(count), edge) for count in plan.grid]
    axes = [_within(plan, axis, blocks[axis], limits.samples) for axis in (0, 1)]
    return Sample(*map(tuple, axes), *map(tuple, blocks))


def _blocks_a_side(plan: Plan, tiles: int) -> int:
    """The most blocks of each axis, as far as it has them, whose tiles are at most so many."""
    rows, cols = plan.grid
    edge = 0
    while edge < max(rows, cols) and _tiles_of(plan, edge + 1) <= tiles:
        edge += 1
    return edge


def _tiles_of(plan: Plan, edge: int) -> int:
    rows, cols = (min(edge, count) for count in plan.grid)
    return rows * (rows + 1) // 2 if plan.symmetric else rows * cols


def _within(plan: Plan, axis: int, blocks: Sequence[int], most: int) -> list[int]:
    """At most so many indices of an axis, spread evenly over some of its blocks."""
    bounds = (plan.block_bounds(block, axis=axis) for block in blocks)
    return _spread([i for start, stop in bounds for i in range(start, stop)], most)


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items at even distances, from the first to the last."""
    if most >= len(items):
        return list(items)
    last = len(items) - 1
    return [items[k * last // max(most - 1, 1)] for k in range(most)]
