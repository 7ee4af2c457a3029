"""Zarr's store in a folder, for disks that fail: requests are repeated, writes outlive power cuts.

`FolderStore` is Zarr's LocalStore with three differences.

*A request that fails is repeated*, each by itself, up to four times, where the error may pass: an
I/O error of a cable or a disk, a stale handle of NFS. A tile takes some twenty requests, so trying
the whole tile again instead would soon not help any more. What will not pass (no such file, a full
or read-only disk, no permission) is raised at once.

*What is stored survives a power cut.* A value is written under a name that nobody reads, brought to
the disk, and only then renamed; without that a file may have its name before it has its content.

*The folder is made once*, by who creates the store. A late write into a store that was deleted is
an error; LocalStore would make the folder anew, with one chunk in it.

Knows nothing of what is in it, but for the keys that need not outlive a power cut.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

PAUSES = (0.02, 0.1, 0.5)
"""Seconds before each further try of a request."""

PASSING = "gram/records/"
"""Keys that a power cut may take. A record only says how a tile came about, and a tile without one
is as good; to wait for the disk would cost each tile a second time."""

_PIECE = 2**20
"""Bytes a `write`: some kernels take a whole chunk far more slowly than its pieces, none faster."""

_LASTING_ERRORS = frozenset(
    {
        *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP),
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG),
        *(errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP),
    }
)
"""Errors that the same request meets again."""

_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""What file systems answer that cannot bring one file to the disk; some network drives."""

_LOG = logging.getLogger(__name__)


def folder_of(location: str) -> Path | None:
    """The folder that a path or a file:// URL names; None for another URL."""
    if "://" not in location:
        return Path(location)
    url = urlsplit(location)
    return Path(url.path) if url.scheme == "file" else None


def existing(folder: Path) -> Path:
    """The folder, or where it is not there yet the nearest one above it that is."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def free_bytes(folder: Path) -> int:
    """What is left on the drive that a folder is on, or will be."""
    return shutil.disk_usage(existing(folder)).free


class FolderStore(LocalStore):
    """A Zarr store in a folder that is there: see the module.

    Every method raises what LocalStore raises, an OSError that may pass only after four tries, and
    FileNotFoundError on opening and writing where the folder itself is gone.
    """

    # -- opening -----------------------------------------------------------------------------------

    # LocalStore would take a folder that it cannot look at for one that is not there, and make one
    # that is not there.

    async def _ensure_open(self) -> None:
        await asyncio.to_thread(self._ensure_open_sync)

    def _ensure_open_sync(self) -> None:
        if not self._is_open:
            _repeated(partial(os.stat, self.root))
            self._is_open = True

    # -- reading -----------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value of a key, None if there is none."""
        return await _again(partial(super().get, key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`."""
        get = partial(super().get_sync, key, prototype=prototype, byte_range=byte_range)
        return _repeated(get)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of the values of keys."""
        return await _again(partial(super().get_partial_values, prototype, list(key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        return await _again(partial(super().exists, key))

    async def getsize(self, key: str) -> int:
        """The bytes of a value."""
        return await _again(partial(super().getsize, key))

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys in a folder, in no order; those of one folder at a time are in memory.

        LocalStore passes over folders that it cannot read, so tiles would seem to be missing.
        """
        folders = [prefix.rstrip("/")]
        while folders:
            folder = folders.pop()
            look = partial(_entries, self.root / folder)
            for name, is_folder in await asyncio.to_thread(_repeated, look):
                key = f"{folder}/{name}" if folder else name
                if is_folder:
                    folders.append(key)
                else:
                    yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names in a folder."""
        folder = super().list_dir

        async def names() -> list[str]:
            return [name async for name in folder(prefix)]

        for name in await _again(names):
            yield name

    # -- writing -----------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Store a value, all or nothing."""
        await _again(partial(super().set, key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store a value unless there is one."""
        await _again(partial(super().set_if_not_exists, key, value))

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        """One try of both: LocalStore calls this."""
        await self._ensure_open()
        self._check_writable()
        await asyncio.to_thread(_put, self.root, key, value, exclusive)

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`."""
        self._ensure_open_sync()
        self._check_writable()
        _repeated(partial(_put, self.root, key, value))

    async def delete(self, key: str) -> None:
        """Remove a key; silent where there is nothing."""
        await _again(partial(super().delete, key))

    def delete_sync(self, key: str) -> None:
        """As `delete`."""
        _repeated(partial(super().delete_sync, key))

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys in a folder."""
        await _again(partial(super().delete_dir, prefix))


# -- trying again ----------------------------------------------------------------------------------


async def _again[T](request: Callable[[], Awaitable[T]]) -> T:
    """The answer of a request, which is repeated while its error may pass."""
    for pause in PAUSES:
        try:
            return await request()
        except OSError as error:
            _raise_lasting(error)
        await asyncio.sleep(pause)
    return await request()


def _repeated[T](request: Callable[[], T]) -> T:
    """As `_again`, where nothing is awaited."""
    for pause in PAUSES:
        try:
            return request()
        except OSError as error:
            _raise_lasting(error)
        time.sleep(pause)
    return request()


def _raise_lasting(error: OSError) -> None:
    """Raise what trying again will not change; an error without a number is no file system's."""
    if error.errno is None or error.errno in _LASTING_ERRORS:
        raise error
    _LOG.warning("a request to the store failed and is repeated: %s", error)


# -- files -----------------------------------------------------------------------------------------


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of all files and folders in a folder, none if it is none."""
    try:
        with os.scandir(folder) as found:
            entries = [(entry, entry.is_dir(follow_symlinks=False)) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(entry.name, is_dir) for entry, is_dir in entries if is_dir or entry.is_file()]


def _put(root: Path, key: str, value: Buffer, exclusive: bool = False) -> None:
    """Write a file that appears under its name when all of it is on the disk."""
    path = root / key
    if exclusive and path.exists():  # most often; and not every drive has the hard links below
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.partial")  # as LocalStore names them
    try:
        with _created(root, temporary) as file:
            _write(file, value)
            if not key.startswith(PASSING):
                _bring_to_disk(file.fileno())
        if exclusive:
            os.link(temporary, path)
            temporary.unlink()
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if path.name == "zarr.json":
        _bring_name_to_disk(path.parent)


def _created(root: Path, path: Path) -> BinaryIO:
    """A new file; makes the folders between the root, which must be there, and the file."""
    with suppress(FileNotFoundError):
        return path.open("xb")
    for folder in reversed(path.relative_to(root).parents[:-1]):
        with suppress(FileExistsError):
            (root / folder).mkdir()
    return path.open("xb")


def _write(file: BinaryIO, value: Buffer) -> None:
    content = memoryview(value.as_buffer_like())
    for start in range(0, len(content), _PIECE):
        file.write(content[start : start + _PIECE])
    file.flush()


def _bring_to_disk(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _bring_name_to_disk(folder: Path) -> None:
    """So that a manifest that was stored is still found after a power cut.

    A chunk without its name is a tile that is missing, and computed again; but a manifest without
    its name is a store that seems to hold nothing, whatever lies beside it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _bring_to_disk(descriptor)
    finally:
        os.close(descriptor)
