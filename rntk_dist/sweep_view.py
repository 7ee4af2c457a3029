"""How a sweep looks in a notebook: what it is, which options vary, and how far each kernel is.

Of the store its keys are listed, once; no value is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import batched
from math import isqrt
from typing import Any

from dask.utils import format_bytes

from rntk_dist.markup import TOP, Html, bar, card, facts, folded, group, image, note, picture
from rntk_dist.store import show
from rntk_dist.sweep_store import SweepStore

MOST_LISTED = 200
"""Kernels that are listed one by one, folded away."""

_KINDS = {"ntk": "tangent kernel", "nngp": "covariance kernel"}
_SHORT, _WIDEST = 16, 80
"""Kernels in a row: of a sweep that is no grid, and at most."""


def sweep_html(store: SweepStore) -> str:
    """The card of a sweep. Raises OSError if the store cannot be read."""
    manifest, plan = store.manifest, store.manifest.plan
    stored, count = store.stored_a_kernel(), len(manifest.kernels)
    whole, total = sum(n == plan.n_tiles for n in stored), count * plan.n_tiles
    symmetry = "symmetric" if plan.symmetric else "of two sets of samples"
    about = facts(
        [
            ("matrices", f"{_KINDS[manifest.kind]}, {symmetry}, {manifest.dtype.name}"),
            *((name, listed(values)) for name, values in distinct(manifest.varying).items()),
            ("kernels", f"{whole} of {count} whole"),
            ("tiles", f"{sum(stored)} of {total} stored, edge {plan.tile}"),
            ("size", f"{format_bytes(count * plan.bytes_stored)} when whole"),
            ("store", show(store.location)),
        ]
    )
    notes = [] if sum(stored) == total else [_missing(total - sum(stored), total)]
    left = group(about, bar(sum(stored), total), *notes, _each(store, stored), _same(store))
    shape = f"{count} kernels, {plan.n_rows} × {plan.n_cols} each"
    return card("Sweep", shape, left, _drawn(store, stored))


def distinct(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The values that each option takes, in the order in which they first come."""
    return {name: list(dict.fromkeys(values)) for name, values in columns.items()}


def listed(values: Sequence[Any], most: int = 6) -> str:
    """Values in words: all of few, of many the first and the last, and how many there are."""
    words = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    if len(words) <= most:
        return ", ".join(words)
    return f"{', '.join([*words[: most - 1], '…', words[-1]])} ({len(words)} values)"


def _missing(missing: int, total: int) -> Html:
    return note(f"{missing} of {total} tiles missing: rd.sweep with the same arguments goes on")


def _same(store: SweepStore) -> Html:
    rows = [(name, str(value)) for name, value in store.manifest.same.items()]
    rows.append(("sequences", store.manifest.fingerprint))
    return folded("what is the same in all kernels, and fingerprint", facts(rows))


def _each(store: SweepStore, stored: Sequence[int]) -> Html:
    """The kernels by position, as far as a list is of use; first those that are not whole."""
    n_tiles, manifest = store.manifest.plan.n_tiles, store.manifest
    order = sorted(range(len(stored)), key=lambda i: stored[i] == n_tiles)[:MOST_LISTED]
    rows = []
    for i in order:
        options = [f"{name} {listed([value])}" for name, value in manifest.chosen(i).items()]
        rows.append((str(i), ", ".join([*options, f"{stored[i]} of {n_tiles} tiles"])))
    more = len(stored) - len(order)
    title = f"{len(order)} of the kernels, the unfinished first" if more else "each kernel"
    return folded(title, facts(rows))


# -- the picture -----------------------------------------------------------------------------------


def _drawn(store: SweepStore, stored: Sequence[int]) -> Html:
    """A square for each kernel, in rows."""
    n_tiles, width = store.manifest.plan.n_tiles, _width(store.manifest.varying, len(stored))
    shades = [0 if n == 0 else 1 + round((TOP - 1) * n / n_tiles) for n in stored]
    rows = [bytes(row).ljust(width, b"\0") for row in batched(shades, width)]
    said = "a square a kernel, in their order, row by row; bright: whole, hatched: nothing stored"
    if n_tiles > 1:
        said += ", between: so much of it"
    if len(stored) % width:
        said += "; the last row is not full"
    return picture(image(rows, f"how much of each of {len(stored)} kernels is stored"), said)


def _width(varying: Mapping[str, Sequence[Any]], count: int) -> int:
    """Kernels a row: of a grid those of one value of the first option, if they fit, or a square."""
    for values in varying.values():
        run = next((i for i, value in enumerate(values) if value != values[0]), count)
        if 1 < run <= _WIDEST and count % run == 0 and count // run <= _WIDEST:
            return run
    return count if count <= _SHORT else isqrt(count - 1) + 1
