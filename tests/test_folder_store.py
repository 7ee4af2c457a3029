"""The store in a folder: what it asks again, when a value is there, and what it never makes."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from rntk_dist import folder_store
from rntk_dist.folder_store import FolderStore, folder_of

PROTOTYPE = default_buffer_prototype()


def buffer(content: bytes) -> Any:
    return PROTOTYPE.buffer.from_bytes(content)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_store, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """With the values a/1 and a/b/2."""
    (tmp_path / "store/a/b").mkdir(parents=True)
    (tmp_path / "store/a/1").write_bytes(b"one")
    (tmp_path / "store/a/b/2").write_bytes(b"two")
    return FolderStore(tmp_path / "store")


def files(store: FolderStore) -> list[str]:
    return sorted(p.relative_to(store.root).as_posix() for p in store.root.rglob("*.*"))


async def collected(names: Any) -> list[str]:
    return sorted([name async for name in names])


# -- requests that fail ----------------------------------------------------------------------------


class Unlucky:
    """Put before a function or method: the first `n` calls fail."""

    def __init__(self, real: Callable[..., Any], n: int, code: int | None) -> None:
        self.real, self.n, self.code, self.calls = real, n, code, 0

    def fail(self) -> None:
        self.calls += 1
        if self.calls <= self.n:
            raise OSError("unlucky") if self.code is None else OSError(self.code, "unlucky")

    def as_method(self) -> Callable[..., Any]:
        def method(store: object, *args: Any, **options: Any) -> Any:
            self.fail()
            return self.real(store, *args, **options)

        return method

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.fail()
        return self.real(*args, **options)


type Ask = Callable[[FolderStore], Awaitable[Any]]


async def in_a_thread(request: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(request, *args)


REQUESTS: dict[str, tuple[Ask, Any]] = {
    "get": (lambda s: s.get("a/1", PROTOTYPE), b"one"),
    "get_sync": (lambda s: in_a_thread(s.get_sync, "a/1"), b"one"),
    "get_partial_values": (lambda s: s.get_partial_values(PROTOTYPE, iter([("a/1", None)])), "one"),
    "exists": (lambda s: s.exists("a/1"), True),
    "getsize": (lambda s: s.getsize("a/1"), 3),
    "list_dir": (lambda s: collected(s.list_dir("a")), ["1", "b"]),
    "set": (lambda s: s.set("c/3", buffer(b"three")), None),
    "set_if_not_exists": (lambda s: s.set_if_not_exists("c/3", buffer(b"three")), None),
    "delete": (lambda s: s.delete("a/1"), None),
    "delete_sync": (lambda s: in_a_thread(s.delete_sync, "a/1"), None),
    "delete_dir": (lambda s: s.delete_dir("a/b"), None),
}


@pytest.mark.parametrize("verb", REQUESTS)
def test_every_request_is_repeated(
    store: FolderStore,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unlucky = Unlucky(vars(LocalStore)[verb], 3, errno.EIO)
    monkeypatch.setattr(LocalStore, verb, unlucky.as_method())
    ask, expected = REQUESTS[verb]
    found = asyncio.run(ask(store))  # type: ignore[arg-type]
    assert unlucky.calls == 4
    if verb.startswith("set"):
        assert (store.root / "c/3").read_bytes() == b"three"
    elif verb.startswith("delete"):
        assert len(asyncio.run(collected(store.list()))) == 1
    elif expected == "one":
        assert [part.to_bytes() for part in found] == [b"one"]
    else:
        assert (found.to_bytes() if isinstance(expected, bytes) else found) == expected
    assert caplog.text.count("failed and is repeated: [Errno 5] unlucky") == 3


@pytest.mark.parametrize("name", ["os.scandir", "os.stat", "os.fsync", "os.mkdir"])
def test_what_the_file_system_refuses_now_and_then_is_repeated(
    store: FolderStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = Unlucky(getattr(os, name[3:]), 3, errno.ESTALE)
    with monkeypatch.context() as patch:
        patch.setattr(name, unlucky)
        asyncio.run(store.set("c/3", buffer(b"three")))
        assert asyncio.run(collected(store.list_prefix(""))) == ["a/1", "a/b/2", "c/3"]
    assert unlucky.calls >= 4
    assert files(store) == []


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, None],
)
def test_what_will_not_pass_is_raised_at_once(
    store: FolderStore, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = Unlucky(LocalStore.set, 1, code)
    monkeypatch.setattr(LocalStore, "set", unlucky.as_method())
    with pytest.raises(OSError, match="unlucky"):
        asyncio.run(store.set("c/3", buffer(b"three")))
    assert unlucky.calls == 1


def test_after_four_tries_the_error_is_raised(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = Unlucky(os.fsync, 100, errno.EIO)
    monkeypatch.setattr("os.fsync", unlucky)
    with pytest.raises(OSError, match="unlucky"):
        asyncio.run(store.set("c/3", buffer(b"three")))
    assert unlucky.calls == 4
    assert asyncio.run(collected(store.list())) == ["a/1", "a/b/2"]


def test_what_is_not_there_is_not_asked_for_again(
    store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    assert asyncio.run(store.get("none", PROTOTYPE)) is None
    assert asyncio.run(store.get("a/1/none", PROTOTYPE)) is None
    assert asyncio.run(collected(store.list_prefix("none"))) == []
    assert asyncio.run(collected(store.list_prefix("a/1"))) == []
    assert caplog.text == ""


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = Unlucky(os.scandir, 100, errno.EIO)
    monkeypatch.setattr("os.scandir", unlucky)
    with pytest.raises(OSError, match="unlucky"):
        asyncio.run(collected(store.list_prefix("a")))


# -- writing ---------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(what, bytes of the file) of each `fsync` of a file or folder and each renaming."""
    done: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def brought(descriptor: int) -> None:
        is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        done.append(("folder", 0) if is_folder else ("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(("rename", path.stat().st_size))
        return replace(path, target)

    monkeypatch.setattr("os.fsync", brought)
    monkeypatch.setattr(Path, "replace", renamed)
    return done


@pytest.mark.parametrize("size", [0, 1, 2**20, 2 * 2**20 + 5])
@pytest.mark.parametrize("verb", ["set", "set_sync"])
def test_a_value_is_on_the_disk_before_it_has_its_name(
    store: FolderStore, verb: str, size: int, steps: list[tuple[str, int]]
) -> None:
    content = np.random.default_rng(0).bytes(size)
    if verb == "set":
        asyncio.run(store.set("gram/c/0/1", buffer(content)))
    else:
        store.set_sync("gram/c/0/1", buffer(content))
    assert steps == [("fsync", size), ("rename", size)]
    assert (store.root / "gram/c/0/1").read_bytes() == content
    assert files(store) == []


def test_a_manifest_keeps_its_name_and_a_record_need_not(
    store: FolderStore, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(store.set("zarr.json", buffer(b"{}")))
    assert steps == [("fsync", 2), ("rename", 2), ("folder", 0)]
    steps.clear()
    asyncio.run(store.set("gram/records/0.1.json", buffer(b"{}")))
    assert steps == [("rename", 2)]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_knows_no_fsync_will_do(
    store: FolderStore, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", Unlucky(os.fsync, 100, code))
    asyncio.run(store.set("zarr.json", buffer(b"{}")))
    assert (store.root / "zarr.json").read_bytes() == b"{}"


def test_a_writer_that_fails_leaves_the_former_value(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", Unlucky(os.fsync, 100, errno.ENOSPC))
    with pytest.raises(OSError, match="unlucky"):
        asyncio.run(store.set("a/1", buffer(b"another")))
    assert (store.root / "a/1").read_bytes() == b"one"
    assert files(store) == []


def test_what_is_there_is_not_replaced_where_it_must_not(
    store: FolderStore, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(store.set_if_not_exists("a/1", buffer(b"another")))
    assert (store.root / "a/1").read_bytes() == b"one"
    assert steps == []


def test_a_folder_that_is_gone_is_not_made_again(store: FolderStore, tmp_path: Path) -> None:
    assert asyncio.run(store.exists("a/1"))
    store.set_sync("a/3", buffer(b"three"))
    store.root.rename(tmp_path / "away")
    for fresh in (store, FolderStore(store.root)):
        with pytest.raises(FileNotFoundError):
            asyncio.run(fresh.set("gram/c/0/1", buffer(b"late")))
    assert not store.root.exists()


# -- a store of Zarr's -----------------------------------------------------------------------------


def test_it_travels_and_may_be_read_only(store: FolderStore) -> None:
    there = pickle.loads(pickle.dumps(store))
    assert isinstance(there, FolderStore)
    assert there == store
    assert asyncio.run(there.exists("a/1"))
    reader = store.with_read_only(True)
    assert isinstance(reader, FolderStore)
    for write in (reader.set("c/3", buffer(b"three")), reader.delete("a/1")):
        with pytest.raises(ValueError, match="read-only"):
            asyncio.run(write)  # type: ignore[arg-type]


@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_zarr_reads_and_writes_through_it(
    tmp_path: Path, pipeline: str, steps: list[tuple[str, int]]
) -> None:
    if not hasattr(zarr.core.codec_pipeline, pipeline):
        pytest.skip("this version of Zarr does not have it")
    values = np.arange(12.0).reshape(3, 4)
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        array = zarr.create_array(
            FolderStore(tmp_path), shape=(3, 4), chunks=(2, 2), dtype="f8", compressors=None
        )
        array[:] = values
        assert np.array_equal(zarr.open_array(FolderStore(tmp_path), mode="r")[:], values)
    assert steps.count(("fsync", 32)) == steps.count(("rename", 32)) == 4


def test_paths_and_file_urls_name_folders() -> None:
    assert folder_of("/a/b") == folder_of("file:///a/b") == Path("/a/b")
    assert folder_of("s3://bucket/b") is None
