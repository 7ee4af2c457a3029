"""Who makes a store, what stands in the way, and what an interrupted creation leaves."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

import rntk_dist as rd
from rntk_dist import creation, folder_store
from rntk_dist import lease as lease_module
from rntk_dist.creation import Wanted, ensure_store, owned
from rntk_dist.failures import StoreUnavailableError
from rntk_dist.folder_store import FolderStore
from rntk_dist.lease import StoreBusyError, current_owner, lease
from rntk_dist.plan import TileMemoryError, Workers
from rntk_dist.sequences import Sequences
from rntk_dist.slots import NoCompareAndSwapError
from rntk_dist.store import GramStore, IdentityError, StoreFormatError

KERNEL = rd.RNTK(sigma_w=1.3)
TILE = 4


@pytest.fixture(scope="module")
def X() -> Sequences:
    return Sequences.from_arrays(np.random.default_rng(2).normal(size=(6, 5, 2)))


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "made/on/the/way"


def made(where: Any, X: Sequences, tile: int = TILE) -> GramStore:
    return ensure_store(KERNEL, X, None, store=where, tile=tile, backend="numpy")


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- one creator -----------------------------------------------------------------------------------


def test_a_store_is_created_under_the_lease_of_who_fills_it(where: Path, X: Sequences) -> None:
    with owned(Wanted(str(where), KERNEL, X, tile=TILE), job="night") as (store, held):
        assert store.missing_tiles() == list(store.plan.tiles())
        assert held.owner is not None
        owner = current_owner(where)
        assert owner is not None
        assert (owner.id, owner.job) == (held.owner.id, "night")
        assert store.foreign_keys() == []
        with pytest.raises(StoreBusyError), owned(Wanted(str(where), KERNEL, X)):
            pytest.fail("two hold the store")
    assert current_owner(where) is None


def test_who_finds_the_lease_taken_creates_nothing(where: Path, X: Sequences) -> None:
    with lease(where, new=True), pytest.raises(StoreBusyError, match=f"{where} is being filled by"):
        made(where, X)
    assert GramStore.find(where) is None
    assert made(where, X).plan.tile == TILE  # the lease alone is nothing foreign


def test_a_store_that_another_made_meanwhile_is_taken(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = creation.lease

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(creation, "lease", real)
        made(where, X, tile=3)
        return real(*args, **options)

    monkeypatch.setattr(creation, "lease", late)
    with owned(Wanted(str(where), KERNEL, X)) as (store, _):
        assert store.plan.tile == 3
    monkeypatch.setattr(creation, "lease", late)
    with pytest.raises(IdentityError, match=r"plan\.tile: stored 3, given 5"):
        made(where, X, tile=5)


def test_a_store_that_is_whole_needs_no_lease(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(where, X)
    for tile in store.plan.tiles():
        store.write_tile(tile, np.ones(store.plan.block_shape(tile)))
    store.finish()
    before = content(where)

    def none(*args: object, **options: object) -> None:
        pytest.fail("the lease was taken")

    monkeypatch.setattr(creation, "lease", none)
    assert rd.gram(KERNEL, X, store=where, progress=False, backend="numpy").complete
    assert content(where) == before


def test_a_zarr_store_object_is_created_without_a_lease(tmp_path: Path, X: Sequences) -> None:
    store = LocalStore(tmp_path / "store")
    with owned(Wanted(store, KERNEL, X, tile=TILE)) as (_, held):
        assert held.owner is None
    with owned(Wanted(store, KERNEL, X)) as (again, _):
        assert again.plan.tile == TILE


def test_a_file_url_is_the_path(where: Path, X: Sequences) -> None:
    store = made(f"file://{where}", X)
    assert type(store.array.store) is type(made(where, X).array.store)
    assert GramStore.open(where).manifest == store.manifest


# -- what stands in the way ------------------------------------------------------------------------


def foreign_file(where: Path) -> None:
    where.parent.mkdir(parents=True)
    where.write_text("mine")


def foreign_folder(where: Path) -> None:
    (where / "gram").mkdir(parents=True)
    (where / "gram/notes.txt").write_text("mine")


@pytest.mark.parametrize("make", [foreign_file, foreign_folder])
def test_what_is_not_ours_is_left_as_it_is(
    where: Path, X: Sequences, make: Callable[[Path], None]
) -> None:
    make(where)
    before = content(where.parent)
    with pytest.raises(FileExistsError, match="holds something that is not a Gram store and is"):
        made(where, X)
    assert content(where.parent) == before


def test_a_plan_that_is_refused_leaves_nothing(
    tmp_path: Path, where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Workers(count=1, memory=2**10)
    monkeypatch.setattr(creation, "available_workers", lambda *args, **options: few)
    with pytest.raises(TileMemoryError):
        made(where, X)
    with pytest.raises(ValueError, match="tile"):
        made(where, X, tile=0)
    with pytest.raises(ValueError, match="features"):
        ensure_store(KERNEL, X, Sequences.from_arrays(np.ones((2, 3, 1))), store=where)
    assert list(tmp_path.iterdir()) == []


# -- interrupted creations -------------------------------------------------------------------------


STEPS = {
    "group": "rntk_dist.location.zarr.create_group",
    "array": "rntk_dist.store._new_array",
    "sequences": "rntk_dist.sequences.Sequences._arrays",
    "manifest": "rntk_dist.store.Manifest.to_dict",
}


def interrupt(
    where: Any, X: Sequences, step: str, patch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Create a store that breaks off at a step."""

    def stop(*args: object, **options: object) -> None:
        raise error

    with patch.context() as broken:
        broken.setattr(STEPS[step], stop)
        made(where, X)


def replace(folder: Path, files: dict[str, bytes]) -> None:
    """Put files in the place of all that lies in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)


def history(where: Path, X: Sequences, patch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """What lies there after each request of a creation in place of an interrupted one."""
    seen = [{}]

    async def noted(store: FolderStore, real: Any, *args: Any) -> None:
        await real(store, *args)
        seen.append(content(where))

    for name in ("set", "delete"):
        patch.setattr(FolderStore, name, partialmethod(noted, getattr(FolderStore, name)))
    with pytest.raises(KeyboardInterrupt):
        interrupt(where, X, "manifest", patch, KeyboardInterrupt())
    store = made(where, X)
    for tile in store.plan.tiles():
        store.write_tile(tile, np.ones(store.plan.block_shape(tile)))
    patch.undo()
    return seen


def test_a_creation_may_begin_and_end_while_it_is_looked_for(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process works between any two requests of the look."""
    seen, rng = history(where, X, monkeypatch), np.random.default_rng(5)
    assert [GramStore.is_interrupted(where), len(seen) > 20] == [False, True]
    wanted, stages = Wanted(str(where), KERNEL, X, tile=TILE), list[int]()

    def later(real: Callable[[Any], Any], request: Any) -> Any:
        if stages:
            replace(where, seen[stages.pop()])
        return real(request)

    for name in ("_again", "_repeated"):  # all requests to the store go through them
        monkeypatch.setattr(folder_store, name, partial(later, getattr(folder_store, name)))
    for _ in range(300):
        stages[:] = sorted(rng.integers(len(seen), size=rng.integers(1, 20)), reverse=True)
        replace(where, seen[stages[-1]])
        found = wanted.find()
        if found is None:
            assert wanted.plan_anew().plan.tile == TILE


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_creation_is_begun_anew(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(where, X, step, monkeypatch, KeyboardInterrupt())
    assert GramStore.is_interrupted(where) == (step != "group")
    for name in ("zarr", "sequences/values/zarr"):  # of a writer that was killed
        half = where / f"{name}.{'0123456789abcdef' * 2}.partial"
        if step != "group" or name == "zarr":
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(b"half")
    more = Sequences.concatenate([X, X])  # another matrix: nothing of the first may stay
    store = made(where, more)
    assert store.sequences().fingerprint == more.fingerprint
    assert store.plan.n_rows == 2 * len(X)
    assert set(store.foreign_keys()) <= {f"zarr.{'0123456789abcdef' * 2}.partial"}


def test_nothing_is_removed_from_it_if_anything_else_lies_there(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(where, X, "manifest", monkeypatch, KeyboardInterrupt())
    chunk = where / "gram/c/0/1"  # a tile: then the manifest was lost, and there are results
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"whole")
    before = content(where)
    says = r"whose creation was interrupted, but holds gram/c/0/1, too, and is left as it is"
    with pytest.raises(FileExistsError, match=says):
        made(where, X)
    with pytest.raises(FileExistsError, match=says), lease(where):
        GramStore.clear_interrupted(where)
    after = {name for name in content(where) if "lease" not in name}
    assert after == {name for name in before if "lease" not in name}


def test_without_a_lease_it_may_be_another_s_and_is_refused(
    tmp_path: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        interrupt(store, X, "manifest", monkeypatch, KeyboardInterrupt())
    with pytest.raises(StoreFormatError, match="creation was interrupted; it holds no results: "):
        made(store, X)


def test_a_server_that_grants_no_lease_is_no_reason_to_remove_it(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt(where, X, "manifest", monkeypatch, KeyboardInterrupt())
    before = content(where)

    def old(*args: object) -> None:
        raise NoCompareAndSwapError("501")

    monkeypatch.setattr(lease_module, "_acquire", old)
    with pytest.raises(StoreFormatError, match="cannot be told without a lease: delete it"):
        made(where, X)
    assert content(where) == before


# -- a storage that refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, r"is full \(OSError: .Errno 28. .*\): make room; nothing was computed"),
        (errno.EDQUOT, "is at its quota .*: make room; nothing was computed, and then the same"),
        (errno.EROFS, "is read-only .*: make it writable; nothing was computed"),
        (errno.EACCES, "is not writable .*: give this user access; nothing was computed"),
    ],
)
@pytest.mark.parametrize("step", ["array", "sequences"])
def test_a_storage_that_refuses_is_named_and_the_same_call_goes_on(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch, code: int, says: str, step: str
) -> None:
    with pytest.raises(StoreUnavailableError, match=f"{where} {says}"):
        interrupt(where, X, step, monkeypatch, OSError(code, os.strerror(code)))
    assert current_owner(where) is None
    assert made(where, X).sequences().fingerprint == X.fingerprint


def test_where_not_even_the_lease_can_be_written_nothing_is_left(
    tmp_path: Path, where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreUnavailableError, match=f"{where} is full "):
            made(where, X)
    assert list(tmp_path.iterdir()) == []
    where.mkdir(parents=True)  # what was there before stays
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreUnavailableError):
            made(where, X)
    assert where.exists()
    assert list(where.iterdir()) == []


def test_an_error_of_another_kind_is_not_disguised(
    where: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="torn cable"):
        interrupt(where, X, "array", monkeypatch, OSError(errno.EIO, "torn cable"))
