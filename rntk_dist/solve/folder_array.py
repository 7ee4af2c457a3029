"""A Zarr array in a folder of its own, a chunk a block: each is whole on the disk, with a CRC-32C.

The folder says in its attributes what the array is of, so that a killed process knows it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from rntk_dist.folder_store import FolderStore
from rntk_dist.store import StoreFormatError


@dataclass(frozen=True)
class FolderArray:
    """A kind of such arrays, by its name in the folder and the number of its format.

    `no_such` says in messages that something is none, such as "not a factor".
    """

    name: str
    no_such: str
    format: int

    @property
    def _namespace(self) -> str:
        return f"rntk_dist_{self.name}"

    def found(self, folder: Path) -> dict[str, Any] | None:
        """What the folder says of its array; None if the folder is empty or not there.

        Raises StoreFormatError if it holds something else.
        """
        if not folder.exists() or not any(p for p in folder.iterdir() if p.suffix != ".partial"):
            return None
        said: Any = None
        if (folder / "zarr.json").exists():
            said = zarr.open_group(FolderStore(folder), mode="r").attrs.asdict()
            said = said.get(self._namespace)
        if not isinstance(said, dict) or said.get("format") != self.format:
            raise StoreFormatError(
                f"{folder} holds something that is {self.no_such} of this version and is left as "
                "it is: choose another folder"
            )
        return said

    def begin(self, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Make the folder, which says these facts and the format from now on."""
        said = {"format": self.format, **facts}
        folder.mkdir(parents=True, exist_ok=True)
        zarr.create_group(FolderStore(folder), attributes={self._namespace: said})
        return said

    def opened(
        self, folder: Path, shape: tuple[int, int], chunks: tuple[int, int], dtype: np.dtype[Any]
    ) -> zarr.Array[Any]:
        """The array; made if there is none yet, or a creation was interrupted before it."""
        store = FolderStore(folder)
        config: Any = {"write_empty_chunks": True, "read_missing_chunks": False}
        if not (folder / self.name / "zarr.json").exists():
            zarr.create_array(
                store,
                name=self.name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=float("nan"),
                filters=None,
                serializer=BytesCodec(endian="little"),
                compressors=(Crc32cCodec(),),
            )
        return zarr.open_array(store, path=self.name, mode="r+", config=config)

    def chunk(self, folder: Path, row: int, col: int) -> Path:
        """The file of a block."""
        return folder / self.name / "c" / str(row) / str(col)
