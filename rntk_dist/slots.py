"""Where the record of a lease is kept, and how it is changed by one process at a time.

A slot holds one record of bytes. Every change is a compare-and-swap that the storage itself carries
out: of any number of processes that have seen the same record, one succeeds in replacing it.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential, S3Store

_CREDENTIALS_LAST = timedelta(minutes=10)
"""After which obstore asks anew; botocore renews temporary ones earlier than that."""

_REQUEST: ClientConfig = {"timeout": "10s", "connect_timeout": "5s"}
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=15)}
"""A request must have failed for good before the next renewal is due."""

_PAUSE = 0.01
_FOLDER = "gram"
"""An array: Zarr passes over foreign objects in one, but warns of those in a group."""

_RECORD = re.compile(r"lease-(\d+)\.json")
_TEMPORARY = re.compile(r"\.lease-(\d+)\.[0-9a-f]+\.tmp")


class NoCompareAndSwapError(OSError):
    """The storage is there, but cannot change an object under a condition."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as it was read or written, and `tag`, by which a compare-and-swap knows it."""

    content: bytes
    tag: str


class Slot(Protocol):
    """The place of one record. All methods raise OSError if the storage refuses or is not there."""

    def prepared(self) -> AbstractContextManager[None]:
        """Where there is no store yet: make the place, and unmake it if the block fails."""

    def read(self) -> Seen | None:
        """The record, None if there has never been one."""

    def take(self, content: bytes, over: Seen | None) -> Seen | None:
        """Put a record in the place of the one seen, another's; None if that is no longer so."""

    def renew(self, content: bytes, mine: Seen) -> Seen | None:
        """Put a record in the place of one's own; None if that is no longer there."""


def slot_of(location: str) -> Slot | None:
    """The slot in the store at a path or URL; None if nothing there can be changed atomically.

    Raises ImportError for s3:// without the extra s3.
    """
    if "://" not in location:
        return Folder(Path(location) / _FOLDER)
    url = urlsplit(location)
    if url.scheme == "file":
        return Folder(Path(url.path) / _FOLDER)
    return Bucket(_open_s3(location)) if url.scheme == "s3" else None


# -- a folder --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder on a local or network drive, with one file for each owner in turn: lease-1.json, ...

    The file with the highest number is the record; a successor creates the next number. Creating a
    file under a free name (`os.link`) is atomic, also over NFS, and so decides between processes
    that take over at once. Replacing or renaming a single lease.json would not: the second of two
    that found it stale would take away the fresh record of the first, and a holder that wakes from
    a long stop would overwrite its successor's.

    The races that remain, and what becomes of them:

    - Who has read number n and is then stopped may create n + 1 after n + 1 and n + 2 have come and
      n + 1 has been cleaned up. So it looks again after creating, finds n + 2, and withdraws.
    - A holder that was taken over may renew a file that its successor has just cleaned up. That
      file has a lower number than the successor's, so nobody heeds it; the holder sees the number.
    - NFS may show an old listing. Creating fails on the server then, and one's own creation makes
      the client read the folder anew.
    """

    path: Path

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Make the folder and those above it; remove again those that stay empty."""
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            for path in missing:
                with suppress(OSError):
                    path.rmdir()
            raise

    def read(self) -> Seen | None:
        """The record with the highest number."""
        while number := self._highest():
            # It is gone if a successor has come in between: then there is a higher number.
            with suppress(FileNotFoundError):
                return Seen(self._file(number).read_bytes(), str(number))
            time.sleep(_PAUSE)
        return None

    def take(self, content: bytes, over: Seen | None) -> Seen | None:
        """Create the record with the next number."""
        number = 1 if over is None else int(over.tag) + 1
        if not self._create(number, content) or not self._is_highest(number):
            return None
        self._clean_up(number)
        return Seen(content, str(number))

    def renew(self, content: bytes, mine: Seen) -> Seen | None:
        """Replace the file of one's own number, which nobody else writes."""
        number = int(mine.tag)
        try:
            with self._written(number, content) as temporary:
                temporary.replace(self._file(number))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._overwrite(number, content)
        return Seen(content, mine.tag) if self._is_highest(number) else None

    def _overwrite(self, number: int, content: bytes) -> None:
        """As a full disk lets one: a lease must not stay taken for want of room to give it back.

        For a moment half a record may be seen: that of an unknown owner, at whom one looks again.
        """
        with suppress(FileNotFoundError), self._file(number).open("r+b") as file:  # a successor's
            file.write(content)
            file.truncate()

    def _file(self, number: int) -> Path:
        return self.path / f"lease-{number}.json"

    def _highest(self) -> int:
        matches = map(_RECORD.fullmatch, os.listdir(self.path))
        return max((int(match[1]) for match in matches if match), default=0)

    def _is_highest(self, number: int) -> bool:
        """True if one's own record counts; removes it if not."""
        if self._highest() == number:
            return True
        self._file(number).unlink(missing_ok=True)
        return False

    @contextmanager
    def _written(self, number: int, content: bytes) -> Iterator[Path]:
        """The content in a file of a name that is nobody's, removed on leaving."""
        path = self.path / f".lease-{number}.{uuid.uuid4().hex}.tmp"
        try:
            path.write_bytes(content)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _create(self, number: int, content: bytes) -> bool:
        """Create a record, never seen half written; False if there is one of this number."""
        with self._written(number, content) as temporary:
            try:
                os.link(temporary, self._file(number))
            except FileExistsError:
                return False
            except FileNotFoundError:  # cleaned up by a successor, or the folder itself is gone
                if not self.path.exists():
                    raise
                return False
            except OSError:  # no hard links here: FAT, some network drives
                return self._create_in_place(number, content)
        return True

    def _create_in_place(self, number: int, content: bytes) -> bool:
        """As atomic, but for a moment the record may be seen before its content is there."""
        try:
            with self._file(number).open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _clean_up(self, number: int) -> None:
        """Remove the records of former owners, and what was left by writers that were killed."""
        for name in os.listdir(self.path):
            former, left = _RECORD.fullmatch(name), _TEMPORARY.fullmatch(name)
            if (former and int(former[1]) < number) or (left and int(left[1]) <= number):
                (self.path / name).unlink(missing_ok=True)


# -- a bucket --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bucket:
    """The object lease.json in a store on S3, changed by conditional puts alone.

    Created with ``If-None-Match: *`` and replaced with ``If-Match`` and the ETag that was read: the
    server decides, and no race remains. Two records never share an ETag, for no two are the same.
    """

    store: S3Store
    key: str = f"{_FOLDER}/lease.json"

    def prepared(self) -> AbstractContextManager[None]:
        """Nothing: an object needs no folder."""
        return nullcontext()

    def read(self) -> Seen | None:
        """The object and its ETag."""
        import obstore

        with _as_os_error():
            try:
                found = obstore.get(self.store, self.key)
                return Seen(bytes(found.bytes()), found.meta["e_tag"] or "")
            except FileNotFoundError:
                return None

    def take(self, content: bytes, over: Seen | None) -> Seen | None:
        """Create the object, or replace the one seen."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _as_os_error():
            try:
                put = obstore.put(
                    self.store,
                    self.key,
                    content,
                    mode="create" if over is None else {"e_tag": over.tag},
                )
            except (AlreadyExistsError, PreconditionError):
                # A put whose answer was lost is sent again, and then refused for its own sake.
                now = self.read()
                return now if now is not None and now.content == content else None
            return Seen(content, put["e_tag"] or "")

    def renew(self, content: bytes, mine: Seen) -> Seen | None:
        """Replace one's own object."""
        return self.take(content, mine)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What obstore raises for a storage that cannot be used, as what a file system raises."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, NotImplementedError) as error:
        message = str(error).partition("\n")[0]  # the other lines are obstore's own state
        # Switched off by obstore's own setting AWS_CONDITIONAL_PUT, or unknown to an old server.
        unknown = isinstance(error, NotImplementedError) or "501 Not Implemented" in message
        raise (NoCompareAndSwapError if unknown else OSError)(message) from error


def _open_s3(url: str) -> S3Store:
    """The bucket and path of a URL, with the settings that the tiles are read and written with.

    Zarr reaches s3:// through s3fs, and so through botocore: environment variables such as
    AWS_ENDPOINT_URL, the files in ~/.aws, roles. obstore reads the environment alone, so it is told
    what botocore finds.
    """
    try:
        from botocore.session import get_session
        from obstore.store import S3Store
    except ImportError as error:
        raise ImportError(f"{url} needs the extra s3: pip install 'rntk_dist[s3]'") from error
    session = get_session()
    meta = session.create_client("s3").meta
    options: dict[str, Any] = {"endpoint": meta.endpoint_url}
    if meta.region_name != "aws-global":  # botocore's word for no region
        options["region"] = meta.region_name
    if session.get_credentials() is not None:
        options["credential_provider"] = _Credentials(session)
    client: ClientConfig = {**_REQUEST, "allow_http": meta.endpoint_url.startswith("http://")}
    return S3Store.from_url(url, client_options=client, retry_config=_RETRIES, **options)


@dataclass(frozen=True, slots=True)
class _Credentials:
    """Credentials as botocore finds them, and renews them where they run out."""

    session: Any

    def __call__(self) -> S3Credential:
        now = self.session.get_credentials().get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
        }
