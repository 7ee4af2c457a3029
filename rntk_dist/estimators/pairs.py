"""Part of a kernel matrix, put together from what is known of its pairs of sequences.

A sequence is known by its content, whatever batch it came in: a training fold, its validation part
and the next fold's all ask for pairs of one set of samples, and no pair need be computed twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rntk_dist.sequences import Sequences

type Key = bytes
"""The SHA-256 of a sequence."""

type Ints = NDArray[np.int64]
type Block = NDArray[np.floating[Any]]
type Float64 = NDArray[np.float64]


def keys_of(sequences: Sequences) -> list[Key]:
    """Of each sequence a digest that it shares with those of equal values alone.

    As in `Sequences.fingerprint`, values are hashed as little-endian float64 with one zero.
    """
    kind = "sequence" if sequences.n_items is None else "sequence of items"
    head = hashlib.sha256(f"rntk_dist {kind} {sequences.n_features}\n".encode())
    values, offsets = sequences.values.astype("<f8") + 0.0, sequences.offsets.tolist()
    keys = []
    for start, stop in pairwise(offsets):
        digest = head.copy()
        digest.update(values[start:stop].data)
        keys.append(digest.digest())
    return keys


def positions(keys: Sequence[Key]) -> dict[Key, int]:
    """Where each key stands first."""
    return {key: len(keys) - 1 - i for i, key in enumerate(reversed(keys))}


class Part:
    """The kernel of distinct sequences (n) with distinct sequences (m), in float64.

    `values` (n, m) hold where `known` (n, m) is true. If the rows are the columns, what is known of
    a pair is known of its mirror image.
    """

    def __init__(self, rows: Sequence[Key], columns: Sequence[Key]) -> None:
        self.rows, self.columns = tuple(rows), tuple(columns)
        self.symmetric = self.rows == self.columns
        self.values: Float64 = np.zeros((len(rows), len(columns)))
        self.known = np.zeros(self.values.shape, dtype=np.bool_)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.known.all())

    def take(
        self,
        rows: Mapping[Key, int],
        columns: Mapping[Key, int],
        read: Callable[[Ints, Ints], Block],
    ) -> None:
        """Take from another matrix what is missing here, if any.

        `rows` and `columns` are where the other has its sequences; `read` gives the values at
        positions of both.
        """
        i, there_i = _shared(self.rows, rows)
        j, there_j = _shared(self.columns, columns)
        if not self.known[np.ix_(i, j)].all():
            self.put(i, j, read(there_i, there_j))

    def put(self, i: Ints, j: Ints, values: Block) -> None:
        """The values (len(i), len(j)) of rows i with columns j."""
        self.values[np.ix_(i, j)] = values
        self.known[np.ix_(i, j)] = True
        if self.symmetric:
            self.values[np.ix_(j, i)] = values.T
            self.known[np.ix_(j, i)] = True

    def gaps(self) -> Iterator[tuple[Ints, Ints]]:
        """Rows and columns of rectangles that make up all that is missing, and overlap nowhere.

        Where rows are columns, a rectangle stands for its mirror image, too, and one on the
        diagonal has the same rows and columns.
        """
        missing = ~self.known
        while missing.any():
            columns = missing[missing.any(axis=1).argmax()].copy()
            group = (missing == columns).all(axis=1)
            rest = columns.copy()
            if self.symmetric and columns[group].all():
                # What is missing is its own mirror image: of the group it is all or nothing.
                yield np.flatnonzero(group), np.flatnonzero(group)
                rest &= ~group
            if rest.any():
                yield np.flatnonzero(group), np.flatnonzero(rest)
            missing[np.ix_(group, columns)] = False
            if self.symmetric:
                missing[np.ix_(columns, group)] = False


class Source(Protocol):
    """Something that knows pairs."""

    def fill(self, part: Part) -> None:
        """Put into the part what is known and missing there."""
        ...


def _shared(keys: Sequence[Key], there: Mapping[Key, int]) -> tuple[Ints, Ints]:
    """The positions of the keys that both have, here and there."""
    pairs = [(i, there[key]) for i, key in enumerate(keys) if key in there]
    here, other = np.array(pairs, np.int64).reshape(-1, 2).T
    return here, other
