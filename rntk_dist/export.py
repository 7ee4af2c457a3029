"""A stored Gram matrix as one file for other programs: .npy, written tile by tile, or a small .csv.

Neither is ever half there: it is written under another name beside it, and renamed when whole.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.gram import Gram, IncompleteGramError
from rntk_dist.sequences import Sequences
from rntk_dist.store import show

MOST_CSV = 2000 * 2000
"""Elements of a .csv file at most: some 100 MB of text."""


def export(
    gram: Gram,
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    on_tile: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write the whole matrix, both triangles, to a new .npy or .csv file; returns what is written.

    A .npy file is filled through a memory map, one tile at a time, so no more than a tile is held.
    With `labels` those of the rows, and of the columns of a rectangular matrix, go beside it, as
    NAME.labels.npy and NAME.labels_y.npy, or .csv with one label a line. `on_tile` is told how many
    tiles are written and how many there are.

    Raises IncompleteGramError if tiles are missing, FileExistsError rather than overwrite,
    ValueError for another suffix, a matrix too large for .csv or labels that are not there, OSError
    if the drive has no room. CorruptTileError if a tile is damaged.
    """
    target = Path(path)
    _check_suffix(target, gram)
    tables = _labels(gram, target) if labels else {}
    for place in (target, *tables):
        if place.exists():
            raise FileExistsError(f"{place} exists already: remove it or choose another name")
    _check_complete(gram)
    if target.suffix == ".csv":
        _write_csv(gram, target)
    else:
        _write_npy(gram, target, on_tile or _silent)
    for place, table in tables.items():
        with _whole(place) as partial:
            _write_labels(partial, table, place.suffix)
    return [target, *tables]


def _check_suffix(target: Path, gram: Gram) -> None:
    rows, cols = gram.shape
    if target.suffix not in (".npy", ".csv"):
        raise ValueError(f"{target}: suffix {target.suffix!r} is neither .npy nor .csv: rename it")
    if target.suffix == ".csv" and rows * cols > MOST_CSV:
        raise ValueError(
            f"a matrix of {rows} x {cols} has {rows * cols} elements, and .csv files are for at "
            f"most {MOST_CSV}: export it as .npy"
        )


def _check_complete(gram: Gram) -> None:
    missing = len(gram.missing)
    if missing:
        where = show(gram.store.location)
        raise IncompleteGramError(
            f"{missing} of {gram.plan.n_tiles} tiles of {where} have not been computed: finish it "
            f"with `rntk-dist resume {where}`, then export it"
        )


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A name beside the target, renamed to it at the end, removed if anything goes wrong."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


# -- the matrix ------------------------------------------------------------------------------------


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


def _write_npy(gram: Gram, target: Path, on_tile: Callable[[int, int], None]) -> None:
    _check_room(target.parent, gram.shape[0] * gram.shape[1] * gram.dtype.itemsize)
    with _whole(target) as partial:
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=gram.dtype, shape=gram.shape)
        _reserve(partial)
        for done, tile in enumerate(gram.plan.tiles(), start=1):
            block = gram.store.read_tile(tile)
            rows, cols = slice(*gram.plan.rows(tile)), slice(*gram.plan.cols(tile))
            out[rows, cols] = block
            if gram.plan.symmetric and not gram.plan.is_diagonal(tile):
                out[cols, rows] = block.T
            on_tile(done, gram.plan.n_tiles)
        out.flush()


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(f"the file takes {need} bytes and {folder.absolute()} has {free}: make room")


def _reserve(path: Path) -> None:
    """Take the file's room on the drive now.

    A drive that is full when a page of a memory map is written kills the process (SIGBUS).
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _write_csv(gram: Gram, target: Path) -> None:
    # As many digits as give each number back.
    digits = "%.9g" if gram.dtype == np.float32 else "%.17g"
    with _whole(target) as partial:
        np.savetxt(partial, np.asarray(gram), fmt=digits, delimiter=",")


# -- labels ----------------------------------------------------------------------------------------


def _labels(gram: Gram, target: Path) -> dict[Path, NDArray[Any]]:
    """The files of labels to write, and what is to be in them."""
    sides: dict[str, Sequences | None] = {
        "labels": gram.sequences,
        "labels_y": gram.sequences_y,
    }
    return {
        target.with_name(f"{target.stem}.{name}{target.suffix}"): _labels_of(side, gram)
        for name, side in sides.items()
        if side is not None
    }


def _labels_of(side: Sequences, gram: Gram) -> NDArray[Any]:
    if side.labels is None:
        where = show(gram.store.location)
        raise ValueError(f"the sequences in {where} have no labels: export without them")
    return side.labels


def _write_labels(place: Path, labels: NDArray[Any], suffix: str) -> None:
    if suffix == ".npy":
        with place.open("wb") as file:  # by name, NumPy would add a suffix of its own
            np.save(file, labels, allow_pickle=False)
    else:
        place.write_text("".join(f"{label}\n" for label in labels.tolist()), encoding="utf-8")
