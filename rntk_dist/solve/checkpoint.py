"""Arrays of a solver that is to go on after it was killed: a folder of .npz files.

A file is written under another name, brought to the disk and then renamed, so it is there whole or
not at all. Each carries the identity of what is solved; every array in it has a CRC-32.
"""

from __future__ import annotations

import os
import uuid
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rntk_dist.store import IdentityError


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The folder, which is made when something is first kept, and whose systems are solved."""

    folder: Path
    identity: str

    def load(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays kept under a name; None if there are none.

        Raises IdentityError if they are of other systems, CheckpointError if they are damaged.
        """
        path = self._path(name)
        try:
            # NumPy leaves a file that it has opened itself and cannot read unclosed.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            identity = str(arrays.pop("identity"))
        except FileNotFoundError:
            return None
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}): remove {self.folder} to begin anew"
            ) from error
        if identity != self.identity:
            raise IdentityError(
                f"{self.folder} holds the checkpoint of another solve, whose matrix, targets, "
                "alphas, rank or seed differ: choose another folder, or remove this one"
            )
        return arrays

    def save(self, name: str, **arrays: NDArray[Any]) -> None:
        """Keep arrays in place of what the name held."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.{uuid.uuid4().hex}.partial"
        try:
            with temporary.open("xb") as file:
                np.savez(file, identity=np.array(self.identity), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path(name))
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        self._remove_partial(name)

    def _remove_partial(self, name: str) -> None:
        """Remove what killed writers left; one process at a time uses the folder."""
        for path in self.folder.glob(f"{name}.*.partial"):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"
