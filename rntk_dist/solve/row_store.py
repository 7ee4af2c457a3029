"""An array (n, m) in a folder, made of panels of rows, each stored whole or not at all.

It knows again what it belongs to, so that a killed process goes on behind the last panel that it
has stored. Each panel is a Zarr chunk with a CRC-32C.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from rntk_dist.operators import Block
from rntk_dist.solve.folder_array import FolderArray
from rntk_dist.store import IdentityError

_KIND = FolderArray("rows", "no rows", 1)


class DamagedRowsError(ValueError):
    """A stored panel does not match its checksum; the message says what to do."""


@dataclass(frozen=True, eq=False)
class RowStore:
    """Panels of `height` rows, the last one perhaps lower."""

    folder: Path
    array: zarr.Array[Any]
    height: int

    @classmethod
    def at(
        cls,
        folder: Path,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        height: int,
        identity: str,
    ) -> RowStore:
        """What is in the folder, which keeps its height, or an empty one.

        Raises IdentityError if the folder holds other values, StoreFormatError if something else.
        """
        wanted = {"identity": identity, "shape": list(shape), "dtype": dtype.name}
        found = _KIND.found(folder)
        if found is None:
            found = _KIND.begin(folder, {**wanted, "height": min(height, shape[0])})
        if any(found.get(name) != value for name, value in wanted.items()):
            raise IdentityError(
                f"{folder} holds rows of another matrix, or of other landmarks: choose another "
                "folder, or remove this one"
            )
        height = found["height"]
        return cls(folder, _KIND.opened(folder, shape, (height, shape[1]), dtype), height)

    @property
    def panels(self) -> int:
        """How many there are."""
        return -(-int(self.array.shape[0]) // self.height)

    def rows(self, panel: int) -> slice:
        """Which rows a panel has."""
        start = panel * self.height
        return slice(start, min(start + self.height, int(self.array.shape[0])))

    def stored(self, panel: int) -> bool:
        """Whether it is there."""
        return self._path(panel).exists()

    def write(self, panel: int, values: Block) -> None:
        """Store a panel; it is on the disk when this returns."""
        self.array[self.rows(panel), :] = values

    def read(self, panel: int) -> Block:
        """A panel that is stored; raises DamagedRowsError where it does not match its checksum."""
        try:
            return np.asarray(self.array[self.rows(panel), :])
        except ValueError as error:  # what Zarr's crc32c codec raises
            raise DamagedRowsError(
                f"{self._path(panel)} is damaged ({error}): remove it, and the same call makes it "
                "again"
            ) from error

    def forget(self, panel: int) -> None:
        """Have the system drop a panel from its cache, where it can, so that a read is of disk."""
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = os.open(self._path(panel), os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def _path(self, panel: int) -> Path:
        return _KIND.chunk(self.folder, panel, 0)
