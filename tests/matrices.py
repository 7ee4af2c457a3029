"""Stores whose values are given instead of computed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

import rntk_dist as rd
from rntk_dist.manifest import Manifest
from rntk_dist.plan import Plan, Tile
from rntk_dist.store import GramStore


def filled(
    where: Path,
    values: np.ndarray,
    tile: int,
    *,
    without: Collection[Tile] = (),
    labels: Any = None,
    symmetric: bool = True,
) -> GramStore:
    """A store of values (n, m), float64 or float32, in all tiles but some."""
    X = rd.Sequences.from_arrays(np.arange(1.0, len(values) + 1)[:, None], labels=labels)
    Y = None if symmetric else rd.Sequences.from_arrays(np.ones((values.shape[1], 1)))
    plan = Plan(*values.shape, tile, symmetric, values.dtype.itemsize)
    other = None if Y is None else Y.fingerprint
    manifest = Manifest(rd.RNTK().to_dict(), "ntk", plan, X.fingerprint, other)
    store = GramStore.create(where, manifest, X, Y)
    for each in plan.tiles():
        if each not in without:
            store.write_tile(each, values[slice(*plan.rows(each)), slice(*plan.cols(each))])
    return store


def gaussian(points: np.ndarray) -> np.ndarray:
    """exp(-|x - y|²) of points (n, d): (n, n), positive definite, 1 on the diagonal."""
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    return np.exp(-squares)
