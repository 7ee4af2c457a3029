"""Where a store is: how a location is named, how Zarr reaches it, and what lies there already.

A creation puts the root's zarr.json first, with a mark that it has begun, and the manifest last.
Other processes look at a location at any moment of it, so what is asked here is asked in an order
in which no answer is out of date in a way that matters: first which keys there are, then how far
the creation is that may have put them there.

Knows of a store which keys its creation writes, and nothing of matrices.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.store import Store
from zarr.core.sync import collect_aiterator, sync
from zarr.errors import ContainsArrayError, ContainsGroupError, GroupNotFoundError
from zarr.storage import FsspecStore, MemoryStore

from rntk_dist.folder_store import FolderStore, folder_of
from rntk_dist.manifest import (
    FORMAT,
    NEWEST_FORMAT,
    CreationBegunError,
    StoreFormatError,
    read_identity,
)

NAMESPACE = "rntk_dist"
"""The attribute of the root that holds the manifest."""

CREATED = re.compile(
    r"(gram/)?zarr\.json|gram/\.?lease[-.][^/]*"  # the latter says who fills the store now
    r"|gram/(job|cancel)\.json"
    r"|sequences(_y)?/(zarr\.json|(values|offsets|labels)/(zarr\.json|c(/\d+)*))"
)
"""Keys of a store that belong to no tile."""

_LEASE_KEY = re.compile(r"gram/\.?lease[-.][^/]*")
_CREATION_PARTIAL = re.compile(
    r"((gram|sequences(_y)?(/(values|offsets|labels)(/c(/\d+)*)?)?)/)?[^/]*\.[0-9a-f]{32}\.partial"
)
_FIRST_PARTIAL = re.compile(r"zarr\.[0-9a-f]{32}\.partial")

type Location = str | Path | Store
"""A local path, an fsspec URL, or a Zarr store."""


def locate(location: Location) -> str | Store:
    """The location as workers can open it: a local path absolute, a URL or Zarr store as it is."""
    if isinstance(location, Store):
        return location
    text = str(location)
    if "://" in text:
        return text
    return str(Path(text).expanduser().absolute())


def in_memory(location: str | Store) -> bool:
    """True if only this process can see the store."""
    return isinstance(location, MemoryStore) or (
        isinstance(location, str) and location.startswith("memory://")
    )


def show(location: str | Store) -> str:
    """The location in an error message."""
    return str(location)


# -- reaching it -----------------------------------------------------------------------------------


def zarr_store(where: str | Store, *, read_only: bool) -> Store:
    """What Zarr reads and writes the location through; a folder need not be there yet."""
    if isinstance(where, Store):
        return where
    folder = folder_of(where)
    if folder is not None:
        return FolderStore(folder, read_only=read_only)
    # From a cache of what it listed before, s3fs says of a tile that another process has written
    # since that it is missing.
    options = None if where.startswith("memory:") else {"use_listings_cache": False}
    return FsspecStore.from_url(where, storage_options=options, read_only=read_only)


def open_group(where: str | Store, mode: Any) -> zarr.Group:
    """The root; FileNotFoundError if there is none, StoreFormatError if it is something else."""
    try:
        return zarr.open_group(zarr_store(where, read_only=mode == "r"), mode=mode)
    except ContainsArrayError as error:
        raise StoreFormatError(
            f"{show(where)} is a Zarr array, not a Gram store: choose another store"
        ) from error
    except (GroupNotFoundError, FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"there is no Gram store at {show(where)}") from error
    except json.JSONDecodeError as error:
        raise StoreFormatError(f"{show(where)}: zarr.json is damaged: {error}") from error


def attributes(group: zarr.Group) -> Any:
    """What the root says of the store; None if it is no Gram store's."""
    return group.attrs.asdict().get(NAMESPACE)


# -- what lies there -------------------------------------------------------------------------------


def progress(where: str | Store) -> Literal["none", "begun", "whole"]:
    """How far the creation of a store has come; "none" also for what is no Gram store."""
    try:
        read_identity(show(where), attributes(open_group(where, "r")), NEWEST_FORMAT)
    except CreationBegunError:
        return "begun"
    except (FileNotFoundError, StoreFormatError):
        return "none"
    return "whole"


def obstacle(where: str | Store) -> FileExistsError | None:
    """What keeps a store from being created there; a store that is there is none."""
    # Twice: who holds the lease may just have removed what an interrupted creation had left.
    return _obstacle(where) and _obstacle(where)


def _obstacle(where: str | Store) -> FileExistsError | None:
    store = zarr_store(where, read_only=True)
    keys = _keys(store)  # first: if the creation is still no further, it has written these
    match progress(where):
        case "none" if not _is_free(store, keys):
            return _occupied(where)
        case "begun":
            return _foreign(where, keys)
    return None


def clear_begun(where: str | Store) -> None:
    """Remove what an interrupted creation has left, but for the lease; for its owner alone.

    Raises FileExistsError, and removes nothing, if anything else lies there.
    """
    store = zarr_store(where, read_only=False)
    keys = _keys(store)
    foreign = _foreign(where, keys)
    if foreign is not None:
        raise foreign
    # The root's zarr.json last: it tells whose the others are.
    for key in sorted(keys, key=lambda key: key == "zarr.json"):
        sync(store.delete(key))


def new_group(where: str | Store) -> zarr.Group:
    """The root of a creation that begins; FileExistsError if anything but its lease lies there."""
    store = zarr_store(where, read_only=False)
    if not _is_free(store, _keys(store)):
        raise _occupied(where)
    if isinstance(store, FolderStore):
        store.root.mkdir(parents=True, exist_ok=True)
    try:
        return zarr.create_group(store, zarr_format=3, attributes={NAMESPACE: {"format": FORMAT}})
    except (ContainsArrayError, ContainsGroupError) as error:  # another's, where there is no lease
        raise _occupied(where) from error


def _keys(store: Store) -> list[str]:
    """All keys but those of the lease."""
    keys: Any = collect_aiterator(store.list_prefix(""))
    return [key for key in keys if not _LEASE_KEY.fullmatch(key)]


def _is_free(store: Store, keys: list[str]) -> bool:
    """Whether there is nothing, or what a creation leaves that was killed before it wrote."""
    is_file = isinstance(store, FolderStore) and store.root.exists() and not store.root.is_dir()
    return not is_file and all(map(_FIRST_PARTIAL.fullmatch, keys))


def _foreign(where: str | Store, keys: list[str]) -> FileExistsError | None:
    """Names a key that no creation writes, if there is one."""
    for key in keys:
        if not (CREATED.fullmatch(key) or _CREATION_PARTIAL.fullmatch(key)):
            return FileExistsError(
                f"{show(where)} is a Gram store whose creation was interrupted, but holds {key}, "
                "too, and is left as it is: choose another store, or delete this one"
            )
    return None


def _occupied(where: str | Store) -> FileExistsError:
    return FileExistsError(
        f"{show(where)} holds something that is not a Gram store and is left as it is: "
        "choose another store"
    )
