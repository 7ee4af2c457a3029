"""How a batch of sequences looks in a notebook: sizes, labels and a sketch of a few of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from dask.utils import format_bytes

from rntk_dist.markup import Text, card, curves, facts, picture

SKETCHED = 4
"""How many sequences are drawn."""

_POINTS = 120

_IDS = 12
"""Ids of a sequence of items that are listed."""


def sequences_html(
    values: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    labels: npt.NDArray[Any] | None,
    n_items: int | None = None,
) -> str:
    """The card of n sequences, packed: values (steps, m), offsets (n + 1,), labels (n,) or none.

    With `n_items` values are (steps, 1) ids of items, which are listed, not drawn.
    """
    n = len(offsets) - 1
    shown = np.unique(np.linspace(0, n - 1, SKETCHED).astype(int)).tolist()
    if n_items is not None:
        return _items_html(values, offsets, labels, n_items, shown)
    sketches = [_sketch(values[offsets[i] : offsets[i + 1], 0]) for i in shown]
    drawn = curves(sketches, "some sequences as lines")
    caption = f"first feature of no. {', '.join(map(str, shown))}, from 0; each to its own scale"
    about: list[tuple[str, Text]] = [
        ("length", _steps(np.diff(offsets))),
        ("features", str(values.shape[1])),
        ("values", f"{values.dtype}, {format_bytes(values.nbytes)}"),
    ]
    if labels is not None:
        about.append(("labels", _counts(labels)))
    return card("Sequences", f"n = {n}", facts(about), picture(drawn, caption))


def _items_html(
    values: npt.NDArray[Any],
    offsets: npt.NDArray[np.int64],
    labels: npt.NDArray[Any] | None,
    n_items: int,
    shown: list[int],
) -> str:
    used = len(np.unique(values))
    about: list[tuple[str, Text]] = [
        ("length", _steps(np.diff(offsets))),
        ("items", f"{n_items}, of which {used} occur"),
        ("ids", f"{values.dtype}, {format_bytes(values.nbytes)}"),
    ]
    if labels is not None:
        about.append(("labels", _counts(labels)))
    lists = [(f"no. {i}", _listed(values[offsets[i] : offsets[i + 1], 0])) for i in shown]
    return card("Sequences", f"n = {len(offsets) - 1}", facts(about), facts(lists))


def _listed(ids: npt.NDArray[Any]) -> str:
    """The first ids of a sequence."""
    return ", ".join(map(str, ids[:_IDS].tolist())) + (", ..." if len(ids) > _IDS else "")


def _sketch(feature: npt.NDArray[Any]) -> list[float]:
    """One feature (T,) at evenly spread steps."""
    steps = np.unique(np.linspace(0, len(feature) - 1, _POINTS).astype(int))
    values: list[float] = feature[steps].tolist()
    return values


def _steps(lengths: npt.NDArray[np.int64]) -> str:
    low, high = lengths.min(), lengths.max()
    if low == high:
        return f"{low} steps"
    return f"{low} to {high} steps, median {np.median(lengths):g}"


def _counts(labels: npt.NDArray[Any], most: int = 12) -> str:
    """How often each label occurs; where there are many, how many there are."""
    names, counts = np.unique(labels, return_counts=True)
    if len(names) > most:
        return f"{len(names)} different ones, {names[0]} to {names[-1]}"
    return ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
