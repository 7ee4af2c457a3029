"""How a stored Gram matrix looks in a notebook: what it is, how far it is, and a small picture.

The picture is of a few samples: at most `LIMITS` of tiles and bytes are read, whatever the size.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.utils import format_bytes
from numpy.typing import NDArray

from rntk_dist.markup import TOP, Html, bar, card, facts, folded, group, image, note, picture
from rntk_dist.plan import Plan, Tile
from rntk_dist.sampling import Limits, Sample, chunk_bytes, sampled
from rntk_dist.store import CorruptTileError, GramStore, MissingTileError, show

LIMITS = Limits(samples=160, tiles=16, bytes=64 * 2**20)

_KINDS = {"ntk": "tangent kernel", "nngp": "covariance kernel"}


@dataclass(frozen=True)
class Thumbnail:
    """Values (rows, columns) at sampled places, NaN where there are none.

    `tiles` were looked for; `damaged` of them are stored, but not sound.
    """

    values: NDArray[np.floating[Any]]
    tiles: int
    damaged: int


def gram_html(store: GramStore) -> str:
    """The card of a stored matrix. Raises OSError if the store cannot be read."""
    plan, stored = store.plan, store.stored_tiles()
    manifest = store.manifest
    shape = f"{plan.n_rows} × {plan.n_cols}"
    about = facts(
        [
            ("matrix", f"{_KINDS[manifest.kind]}, {_symmetry(plan)}, {manifest.dtype.name}"),
            ("tiles", f"{len(stored)} of {plan.n_tiles} stored, edge {plan.tile}"),
            ("size", f"{format_bytes(plan.bytes_stored)} when whole"),
            ("store", show(store.location)),
        ]
    )
    kernel = folded(
        "kernel and fingerprint",
        facts(
            [
                *((name, str(value)) for name, value in manifest.kernel.items()),
                ("sequences", manifest.fingerprint),
            ]
        ),
    )
    left = group(about, bar(len(stored), plan.n_tiles), *_notes(store, len(stored)), kernel)
    return card("Gram", shape, left, _drawn(store, stored))


def thumbnail(store: GramStore, sample: Sample, stored: Container[Tile]) -> Thumbnail:
    """The matrix at sampled places; each tile is read once, and a missing or damaged one not."""
    values = np.full((len(sample.rows), len(sample.cols)), np.nan)
    rows, cols = np.array(sample.rows), np.array(sample.cols)
    plan, damaged = store.plan, 0
    tiles = _tiles(plan, sample)
    for tile in tiles:
        try:
            block = store.read_tile(tile) if tile in stored else None
        except (CorruptTileError, MissingTileError):
            damaged, block = damaged + 1, None
        if block is not None:
            _put(values, plan, tile, block, rows, cols)
    return Thumbnail(values, len(tiles), damaged)


def _tiles(plan: Plan, sample: Sample) -> list[Tile]:
    pairs = (Tile(row, col) for row in sample.row_blocks for col in sample.col_blocks)
    return [tile for tile in pairs if tile in plan]


def _put(
    values: NDArray[np.floating[Any]],
    plan: Plan,
    tile: Tile,
    block: NDArray[np.floating[Any]],
    rows: NDArray[np.integer[Any]],
    cols: NDArray[np.integer[Any]],
) -> None:
    """Put what was sampled of a block in its place, and its mirror image where symmetric."""
    at_row, at_col = (
        np.flatnonzero(rows // plan.tile == tile.row),
        np.flatnonzero(cols // plan.tile == tile.col),
    )
    part = block[np.ix_(rows[at_row] % plan.tile, cols[at_col] % plan.tile)]
    values[np.ix_(at_row, at_col)] = part
    if plan.symmetric:
        values[np.ix_(at_col, at_row)] = part.T


def _drawn(store: GramStore, stored: Container[Tile]) -> Html:
    """The picture, or why there is none."""
    plan = store.plan
    sample = sampled(plan, LIMITS)
    if sample is None:
        tile, most = format_bytes(chunk_bytes(plan)), format_bytes(LIMITS.bytes)
        return picture(None, f"no picture: a tile has {tile}, and a view reads {most}")
    drawn = thumbnail(store, sample, stored)
    shown = f"{len(sample.rows)} × {len(sample.cols)} entries"
    return picture(
        image(_pixels(drawn.values), f"the matrix at {shown}"),
        f"{shown} from {drawn.tiles} of {plan.n_tiles} tiles; {_scale(drawn)}",
    )


def _pixels(values: NDArray[np.floating[Any]]) -> list[bytes]:
    """1 for the smallest value to `TOP` for all but the largest thousandth, 0 for NaN."""
    out = np.zeros(values.shape, np.uint8)
    there = np.isfinite(values)
    if there.any():
        low, high = _range(values)
        share = np.clip((values[there] - low) / ((high - low) or 1.0), 0.0, 1.0)
        out[there] = 1 + np.rint(share * (TOP - 1)).astype(np.uint8)
    return [row.tobytes() for row in out]


def _range(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The values of the darkest and the brightest colour; one outlier shall not darken the rest."""
    low, high = np.quantile(values[np.isfinite(values)], (0.0, 0.999))
    return float(low), float(high)


def _scale(drawn: Thumbnail) -> str:
    """What the colours of the picture stand for."""
    there = drawn.values[np.isfinite(drawn.values)]
    said = []
    if there.size:
        low, high = _range(drawn.values)
        said.append(f"dark\N{NO-BREAK SPACE}{low:.3g}, bright\N{NO-BREAK SPACE}{high:.3g}")
    if there.size < drawn.values.size:
        said.append("hatched: not computed")
    if drawn.damaged:
        said.append(f"or damaged (tiles: {drawn.damaged}): run rd.verify")
    return ", ".join(said)


def _notes(store: GramStore, stored: int) -> list[Html]:
    plan = store.plan
    missing = plan.n_tiles - stored
    if not missing:
        return []
    of_all = f"{missing} of {plan.n_tiles} tiles missing"
    return [note(f"{of_all}: {store.filled_by} with the same arguments computes them")]


def _symmetry(plan: Plan) -> str:
    return "symmetric" if plan.symmetric else "of two sets of samples"
