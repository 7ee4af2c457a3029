"""The product of a stored matrix with a few columns, tile by tile.

Every stored tile is read once in a product. A symmetric matrix stores the tiles on and above its
diagonal; each one above serves for itself and, transposed, for its mirror. Values are multiplied
and added in float64, whatever they are stored in.

Memory: `threads` tiles are in hand, each as its chunk's bytes and as its values, besides the
columns, the result, and for each thread a stripe of one MiB and the results of two tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rntk_dist.in_order import in_order
from rntk_dist.plan import Plan, Tile
from rntk_dist.store import Block

type Float64 = NDArray[np.float64]

STRIPE_BYTES = 2**20
"""Of a tile in float64 at a time: near enough to a core for both of its products."""


def multiply(
    read: Callable[[Tile], Block],
    plan: Plan,
    V: Float64,
    *,
    transposed: bool = False,
    tiles: Iterable[Tile] | None = None,
    threads: int = 1,
) -> Float64:
    """The product (rows, k) with V (columns, k), or of the transpose (columns, k) with V (rows, k).

    `read` gives the values of a tile, `tiles` says of which (by default all) the product is a sum.
    The bits of the result do not depend on `threads`.
    """
    out = np.zeros((plan.shape[1 if transposed else 0], V.shape[1]))
    work = partial(_parts, read, plan, np.ascontiguousarray(V), transposed)
    # BLAS threads of their own would get into the way of these, each busy with a tile.
    with threadpool_limits(1, user_api="blas"):
        for parts in in_order(work, plan.tiles() if tiles is None else tiles, threads):
            for place, values in parts:
                out[place] += values
    return out


def _parts(
    read: Callable[[Tile], Block], plan: Plan, V: Float64, transposed: bool, tile: Tile
) -> list[tuple[slice, Float64]]:
    """What one tile adds to the product, and where: once or twice."""
    rows, cols = slice(*plan.rows(tile)), slice(*plan.cols(tile))
    n_rows, n_cols = plan.block_shape(tile)
    # The store may have grown since: what it holds beyond the plan is of another matrix.
    block = read(tile)[:n_rows, :n_cols]
    # A symmetric matrix is its own transpose.
    above = plan.symmetric or not transposed
    below = not plan.is_diagonal(tile) if plan.symmetric else transposed
    across, down = V[cols] if above else None, V[rows] if below else None
    here, there = _both_products(block, across, down)
    parts = ((rows, here), (cols, there))
    return [(place, values) for place, values in parts if values is not None]


def _both_products(
    block: Block, across: Float64 | None, down: Float64 | None
) -> tuple[Float64 | None, Float64 | None]:
    """`block @ across` and `block.T @ down` in float64, each if asked for, in one walk over it."""
    n_rows, n_cols = block.shape
    here = None if across is None else np.empty((n_rows, across.shape[1]))
    there = None if down is None else np.zeros((n_cols, down.shape[1]))
    height = max(1, STRIPE_BYTES // (8 * n_cols))
    for start in range(0, n_rows, height):
        part = slice(start, start + height)
        stripe = block[part].astype(np.float64, copy=False)
        if here is not None and across is not None:
            np.matmul(stripe, across, out=here[part])
        if there is not None and down is not None:
            there += stripe.T @ down[part]
    return here, there
