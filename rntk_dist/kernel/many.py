"""Many kernels of the same sequences: what can be done for several at once is.

For small sets of sequences, most of a kernel's time goes into the steps of the single sequences,
which cost the same for a few numbers as for many: kernels of the same kind take them side by side.
The loops over pairs run for one kernel at a time. They compute at the processor's limit already:
carrying several kernels through them together was measured, and is slower, for lack of registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import batched
from typing import Any

import numpy as np

from rntk_dist.kernel.rntk import RNTK, Backend, Kind, Prepared, prepared
from rntk_dist.kernel.variances import Array, shape_of
from rntk_dist.sequences import Sequences

STACK_STEPS = 2**17
"""Time steps of all sequences, times kernels, that are taken side by side: a few MiB an array."""


def many_values(
    kernels: Sequence[RNTK],
    X: Sequences,
    Y: Sequences | None = None,
    *,
    kind: Kind,
    dtype: np.dtype[Any],
    backend: Backend,
) -> Iterator[tuple[int, Array | OverflowError]]:
    """What ``kernel(X, Y)`` is for each kernel, to the last bit, as (position, values).

    They come in any order, each as soon as it is there; an OverflowError stands in the place of the
    values that have one. Sequences must be such as all the kernels take.
    """
    for run in _runs(kernels, max(len(side.values) for side in (X, Y or X))):
        for i, sides in _sides(run, kernels, X, Y, kind):
            try:
                if isinstance(sides, OverflowError):
                    raise sides
                yield i, kernels[i].compare(*sides, kind=kind, dtype=dtype, backend=backend)
            except OverflowError as error:
                yield i, error


def _runs(kernels: Sequence[RNTK], steps: int) -> Iterator[tuple[int, ...]]:
    """Positions of kernels to take side by side."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, kernel in enumerate(kernels):
        alike.setdefault(shape_of(kernel), []).append(i)
    for group in alike.values():
        yield from batched(group, max(1, STACK_STEPS // steps))


type _Sides = tuple[Prepared, Prepared | None]


def _sides(
    run: tuple[int, ...], kernels: Sequence[RNTK], X: Sequences, Y: Sequences | None, kind: Kind
) -> list[tuple[int, _Sides | OverflowError]]:
    """Both sides for each kernel of a run; where one overflows, each by itself."""
    try:
        chosen = [kernels[i] for i in run]
        rows = prepared(chosen, X, kind, with_self=Y is None)
        if Y is None:
            return [(i, (row, None)) for i, row in zip(run, rows, strict=True)]
        cols = prepared(chosen, Y, kind, with_self=False)
        return [(i, (row, col)) for i, row, col in zip(run, rows, cols, strict=True)]
    except OverflowError as error:
        if len(run) == 1:
            return [(run[0], error)]
        return [found for i in run for found in _sides((i,), kernels, X, Y, kind)]
