"""What knows kernel values already: a stored Gram matrix, and a folder of blocks that grows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.estimators.pairs import Block, Ints, Key, Part, keys_of, positions
from rntk_dist.gram import Gram, open_gram
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.lease import lease
from rntk_dist.manifest import SweepFoundError
from rntk_dist.solve.checkpoint import Checkpoint, CheckpointError
from rntk_dist.store import IdentityError
from rntk_dist.sweep import open_sweep

_FORMAT = 1


@dataclass(frozen=True)
class StoredGram:
    """A matrix that `rd.gram` or `rd.sweep` has stored; its samples are found by their content."""

    gram: Gram

    @classmethod
    def of(cls, store: str | Path, kernel: RNTK | None, kind: str) -> StoredGram:
        """The symmetric matrix of a kernel in a store; without a kernel that of the store.

        Raises IdentityError where the store holds other kernels, ValueError for a rectangular
        matrix, and what `open_gram` raises.
        """
        gram = _opened(store, kernel)
        if not gram.symmetric:
            raise ValueError(
                f"{store} holds the rectangular matrix of two sets of samples: give the store of "
                "a symmetric one"
            )
        wanted = gram.kernel if kernel is None else kernel
        if (gram.kernel, gram.kind) != (wanted, kind):
            raise IdentityError(
                f"{store} holds kind {gram.kind!r} of {gram.kernel}, and kind {kind!r} of {wanted} "
                "is asked for: give the store of that, or leave the store out"
            )
        return cls(gram)

    def fill(self, part: Part) -> None:
        """Read what is missing; raises IncompleteGramError where a tile has not been computed."""
        there = positions(keys_of(self.gram.sequences))
        part.take(there, there, self.gram.block)


def _opened(store: str | Path, kernel: RNTK | None) -> Gram:
    try:
        return open_gram(store)
    except SweepFoundError:
        sweep = open_sweep(store)
    wanted = RNTK() if kernel is None else kernel
    if wanted not in sweep.kernels:
        raise IdentityError(
            f"{store} holds the matrices of {len(sweep)} kernels, and {wanted} is none of them: "
            "give one of them, or leave the store out"
        )
    return sweep[sweep.index(wanted)]


@dataclass(frozen=True)
class KeptBlocks:
    """The blocks of one kernel in a folder of its own, each a file with the keys of its samples.

    A block is added whole, and never changed. Reading takes no lock; who computes holds the
    folder's lease, so that several processes compute no pair twice.
    """

    checkpoint: Checkpoint

    @classmethod
    def of(cls, memory: str | Path, kernel: RNTK, kind: str, dtype: str) -> KeptBlocks:
        """The folder of a kernel, a kind and a number type inside `memory`."""
        what = {"format": _FORMAT, "kernel": kernel.to_dict(), "kind": kind, "dtype": dtype}
        identity = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return cls(Checkpoint(Path(memory).absolute() / identity, identity))

    def fill(self, part: Part) -> None:
        """Put in what is kept; raises CheckpointError where a file is damaged."""
        for path in sorted(self.checkpoint.folder.glob("*.npz")):
            if part.complete:
                return
            self._put_block(part, path.stem)

    def keep(self, rows: list[Key], columns: list[Key], values: Block) -> None:
        """Add a block (len(rows), len(columns))."""
        name = hashlib.sha256(b"".join([*rows, b"|", *columns])).hexdigest()
        self.checkpoint.save(name, rows=_table(rows), columns=_table(columns), values=values)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Alone among all processes; waits as long as another one lives and computes."""
        with lease(self.checkpoint.folder, math.inf, new=True):
            yield

    def _put_block(self, part: Part, name: str) -> None:
        arrays = self.checkpoint.load(name)
        if arrays is None:  # removed by hand meanwhile
            return
        try:
            rows, columns = _places(arrays["rows"]), _places(arrays["columns"])
            values: Block = arrays["values"]
        except KeyError as error:
            raise CheckpointError(
                f"{self.checkpoint.folder / name}.npz has no array {error}: remove that file, and "
                "its pairs are computed anew"
            ) from error

        def read(i: Ints, j: Ints) -> Block:
            return values[np.ix_(i, j)]

        def mirrored(i: Ints, j: Ints) -> Block:
            return values[np.ix_(j, i)].T

        part.take(rows, columns, read)
        part.take(columns, rows, mirrored)


def _table(keys: list[Key]) -> NDArray[np.uint8]:
    """(n, 32): NumPy's own bytes lose zeros at the end."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)


def _places(table: NDArray[Any]) -> dict[Key, int]:
    return positions([row.tobytes() for row in table])
