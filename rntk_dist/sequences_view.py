"""How a batch of sequences looks in a notebook: sizes, labels and a sketch of a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.utils import format_bytes

from rntk_dist.markup import Text, card, curves, facts, picture

SKETCHED = 4
"""How many sequences are drawn."""

_POINTS = 120


def sequences_html(
    batch: Sequence[npt.NDArray[Any]], labels: npt.NDArray[Any] | None, nbytes: int
) -> str:
    """The card of n sequences (T_i, m) with labels (n,) or none, `nbytes` in all."""
    lengths = np.array([len(sequence) for sequence in batch])
    shown = np.unique(np.linspace(0, len(batch) - 1, SKETCHED).astype(int)).tolist()
    drawn = curves([_sketch(batch[i]) for i in shown], "some sequences as lines")
    caption = f"first feature of no. {', '.join(map(str, shown))}, from 0; each to its own scale"
    about: list[tuple[str, Text]] = [
        ("length", _steps(lengths)),
        ("features", str(batch[0].shape[1])),
        ("values", f"{batch[0].dtype}, {format_bytes(nbytes)}"),
    ]
    if labels is not None:
        about.append(("labels", _counts(labels)))
    return card("Sequences", f"n = {len(batch)}", facts(about), picture(drawn, caption))


def _sketch(sequence: npt.NDArray[Any]) -> list[float]:
    """The first feature at evenly spread steps."""
    steps = np.unique(np.linspace(0, len(sequence) - 1, _POINTS).astype(int))
    values: list[float] = sequence[steps, 0].tolist()
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
