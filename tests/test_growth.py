"""Growth: a finished matrix is extended in place, and no crash on the way harms the old one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from clusters import client_of
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slow_tiles import PRELOAD
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

import rntk_dist as rd
from rntk_dist.growth import GrowingStore, begin, view
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.manifest import IdentityError, Manifest
from rntk_dist.plan import Plan, Tile
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, Location, chunk_key, record_key
from rntk_dist.tile_task import compute_tile

KERNEL = RNTK(readout="per_step", initial_state="independent", sigma_h=0.3)
N, M, TILE = 21, 9, 8  # the edge block has 5 of 8, then 8; the new edge block 6


def batch(n: int, seed: int, dtype: Any = np.float64, labels: bool = True) -> Sequences:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(t, 2)).astype(dtype) for t in rng.integers(2, 12, size=n)]
    return Sequences.from_arrays(values, labels=np.arange(n) % 3 if labels else None)


OLD, NEW = batch(N, 1), batch(M, 2)
ALL = Sequences.concatenate([OLD, NEW])


def created(location: Location, X: Sequences = OLD, tile: int = TILE) -> GramStore:
    """A finished store, computed in this process."""
    plan = Plan(len(X), len(X), min(tile, len(X)), True, 8)
    backend = {"backend": "numpy"}
    manifest = Manifest(KERNEL.to_dict(), "ntk", plan, X.fingerprint, provenance=backend)
    store = GramStore.create(location, manifest, X)
    compute(store)
    return GramStore.open(location, writable=True)


def compute(store: GramStore) -> int:
    """Compute what is missing in this process; returns how many tiles that were."""
    missing = store.missing_tiles()
    for tile in missing:
        compute_tile(store.location, tile, "numpy", store.manifest.identity_sha256())
    store.finish()
    return len(missing)


def values(location: Location) -> np.ndarray:
    return np.asarray(rd.open_gram(location))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with client_of(2) as client:
        yield client


# -- what becomes of it ---------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(n=st.integers(1, 15), m=st.integers(1, 15), tile=st.integers(2, 9))
def test_a_grown_matrix_is_the_kernels_exactly_and_only_the_new_is_computed(
    n: int, m: int, tile: int
) -> None:
    location = MemoryStore()
    store = created(location, ALL[:n], tile)
    new = ALL[n : n + m] if n + m <= len(ALL) else batch(m, 5)
    whole = Sequences.concatenate([ALL[:n], new])
    growing = begin(store, new)
    assert growing is not None
    plan = growing.plan
    old_edge = n // store.plan.tile  # blocks from here on have something new
    assert growing.missing_tiles() == [t for t in plan.tiles() if t.col >= old_edge]
    compute(growing)
    assert np.array_equal(values(location), KERNEL(whole, backend="numpy"))
    grown = GramStore.open(location)
    assert grown.sequences().fingerprint == whole.fingerprint
    assert grown.growing is None
    # Each pair was compared once, now or before: no edge tile was computed anew.
    assert grown.report() is not None
    pairs = sum(min(len(whole[i]), len(whole[j])) for i in range(n + m) for j in range(i, n + m))
    steps = sum(r.pair_steps for r in grown.records().values())
    untouched = sum(
        min(len(whole[i]), len(whole[j]))
        for i in range(n)
        for j in range(i, n)
        if j // plan.tile >= old_edge
    )
    assert steps == pairs - untouched


def test_append_on_a_cluster(tmp_path: Path, client: Client) -> None:
    old = rd.gram(KERNEL, OLD, store=tmp_path / "g", tile=TILE, client=client, progress=False)
    lazy = old.to_dask()
    new = old.append(NEW, client=client, progress=False)
    K = KERNEL(ALL)
    assert np.array_equal(np.asarray(new), K)
    assert np.array_equal(new.labels, ALL.labels)
    # The view from before goes on showing the old matrix, lazily too.
    assert np.array_equal(np.asarray(old), K[:N, :N])
    assert np.array_equal(lazy.compute(scheduler="sync"), K[:N, :N])
    # The same call again, of a script that was killed after it, appends nothing twice.
    assert new.append(NEW, client=client, progress=False).shape == (N + M, N + M)
    # And it is the store that rd.gram would have made of all.
    again = rd.gram(KERNEL, ALL, store=tmp_path / "g", client=client, progress=False)
    assert again.shape == (N + M, N + M)
    assert rd.verify(tmp_path / "g").ok


def test_growing_again_and_again(tmp_path: Path) -> None:
    store = created(tmp_path / "g", ALL[:3])
    for stop in (4, 9, 10, 26):
        growing = begin(store, ALL[store.plan.n_rows : stop])
        assert growing is not None
        compute(growing)
        store = GramStore.open(tmp_path / "g", writable=True)
    assert store.plan.tile == 3  # the first matrix's
    assert np.array_equal(values(tmp_path / "g"), KERNEL(ALL[:26], backend="numpy"))
    assert rd.verify(tmp_path / "g").ok


def test_others_read_a_growing_store_as_the_old_matrix(tmp_path: Path) -> None:
    growing = begin(created(tmp_path / "g"), NEW)
    assert growing is not None
    K = values(tmp_path / "g")
    for tile in growing.missing_tiles()[:-1]:
        compute_tile(growing.location, tile, "numpy", growing.manifest.identity_sha256())
    opened = xr.open_zarr(tmp_path / "g", consolidated=False)
    assert np.array_equal(np.triu(opened["gram"].values), np.triu(K))  # what is stored of it
    found = rd.verify(tmp_path / "g")
    assert found.ok
    assert found.tiles == 6
    assert not found.foreign
    compute(view(GramStore.open(tmp_path / "g", writable=True)))
    assert xr.open_zarr(tmp_path / "g", consolidated=False)["gram"].shape == (N + M, N + M)


# -- a crash at every write -----------------------------------------------------------------------


class CrashError(Exception):
    pass


class Crashing(MemoryStore):
    """Dies at the k-th change of anything, and stays dead."""

    left = 10**9

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CrashError

    async def set(self, key: str, value: Buffer, byte_range: Any = None) -> None:
        self._count()
        await super().set(key, value, byte_range)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._count()
        super().set_sync(key, value)

    async def delete(self, key: str) -> None:
        self._count()
        await super().delete(key)


def grown(location: Location, X: Sequences) -> int:
    """As `Gram.append` does it, in this process; returns how many tiles were computed."""
    growing = begin(GramStore.open(location, writable=True), X)
    return 0 if growing is None else compute(growing)


def test_a_crash_at_any_write_harms_nothing_and_the_same_call_goes_on() -> None:
    K_old, K_all = KERNEL(OLD, backend="numpy"), KERNEL(ALL, backend="numpy")
    base = MemoryStore()
    created(base)
    for k in range(1000):
        store = Crashing(dict(base._store_dict))
        store.left = k
        try:
            grown(store, NEW)
            crashed = False
        except CrashError:
            crashed = True
        store.left = 10**9
        if not crashed:
            break
        now = values(store)
        assert np.array_equal(now, K_all if len(now) > N else K_old)
        assert rd.verify(store, recompute=0).ok
        grown(store, NEW)
        assert np.array_equal(values(store), K_all)
        assert rd.verify(store, recompute=0).ok
    assert k > 25  # sequences, 9 tiles with their records, the array, the manifest
    assert not crashed


def test_a_tile_is_not_computed_twice() -> None:
    store = Crashing()
    created(store)
    store.left = 18
    with pytest.raises(CrashError):
        grown(store, NEW)
    store.left = 10**9
    growing = view(GramStore.open(store, writable=True))
    missing = len(growing.missing_tiles())
    assert 0 < missing < 7
    assert grown(store, NEW) == missing


def test_a_lost_record_of_an_edge_tile_has_it_extended_again(tmp_path: Path) -> None:
    growing = begin(created(tmp_path / "g"), NEW)
    assert growing is not None
    tile = Tile(0, 2)
    compute_tile(growing.location, tile, "numpy", growing.manifest.identity_sha256())
    assert tile not in growing.missing_tiles()
    (tmp_path / "g" / record_key(tile)).unlink()
    assert tile in growing.missing_tiles()
    compute(growing)
    assert np.array_equal(values(tmp_path / "g"), KERNEL(ALL, backend="numpy"))


def test_repair_of_the_old_matrix_in_the_midst_of_growth(tmp_path: Path, client: Client) -> None:
    growing = begin(created(tmp_path / "g"), NEW)
    assert growing is not None
    tile = Tile(1, 2)
    compute_tile(growing.location, tile, "numpy", growing.manifest.identity_sha256())
    path = tmp_path / "g" / chunk_key(tile)
    path.write_bytes(path.read_bytes()[:-9])
    assert [p.tile for p in rd.verify(tmp_path / "g").problems] == [tile]
    assert rd.repair(tmp_path / "g", client).ok
    assert tile in growing.missing_tiles()  # without its extension
    compute(growing)
    assert np.array_equal(values(tmp_path / "g"), KERNEL(ALL, backend="numpy"))


def test_a_late_task_of_the_old_matrix_undoes_no_extension(tmp_path: Path) -> None:
    store = created(tmp_path / "g")
    late, tile = GramStore.open(tmp_path / "g", writable=True), Tile(0, 2)
    block = late.read_tile(tile)
    growing = begin(store, NEW)
    assert growing is not None
    compute_tile(growing.location, tile, "numpy", growing.manifest.identity_sha256())
    late.write_tile(tile, block)  # before the end: it is seen, and extended again
    assert tile in growing.missing_tiles()
    compute(growing)
    with pytest.raises(IdentityError, match="has grown since tile"):
        late.write_tile(tile, block)
    with pytest.raises(IdentityError, match="another matrix"):
        compute_tile(tmp_path / "g", tile, "numpy", store.manifest.identity_sha256())
    assert np.array_equal(values(tmp_path / "g"), KERNEL(ALL, backend="numpy"))


SCRIPT = """
import sys
import rntk_dist as rd
if __name__ == "__main__":
    new = rd.Sequences.read(sys.argv[2])
    rd.open_gram(sys.argv[1]).append(new, progress=False, wait=30)
"""


@pytest.mark.slow
def test_append_is_killed_with_all_its_workers_and_called_again(
    tmp_path: Path, client: Client
) -> None:
    rng = np.random.default_rng(3)
    X = Sequences.from_arrays(rng.normal(size=(700, 300, 2)))
    store, new = tmp_path / "g", tmp_path / "new.npz"
    old = rd.gram(KERNEL, X[:300], store=store, tile=64, client=client, progress=False)
    X[300:].write(new)
    (tmp_path / "append.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "append.py"), str(store), str(new)]
    slow = tmp_path / "slow"  # while it is there, each tile of `slow_tiles` takes its time
    slow.touch()
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | PRELOAD)
    try:
        late = time.monotonic() + 60
        while not (store / "gram/c/0/7").exists() and time.monotonic() < late:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        slow.unlink()
    assert "growing" in json.loads((store / "zarr.json").read_text())["attributes"]["rntk_dist"]
    assert np.array_equal(np.asarray(rd.open_gram(store)), np.asarray(old))
    stored = view(GramStore.open(store))
    before = {t: (store / chunk_key(t)).stat().st_mtime_ns for t in stored.stored_tiles()}
    missing = set(stored.missing_tiles())
    assert 0 < len(missing) < 56
    subprocess.run(command, check=True, timeout=120)
    now = rd.open_gram(store)
    assert np.array_equal(np.asarray(now), KERNEL(X))
    kept = before.keys() - missing
    assert all((store / chunk_key(t)).stat().st_mtime_ns == before[t] for t in kept)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (batch(3, 4, labels=False), "the stored sequences have labels, the new ones none"),
        (Sequences.from_arrays(np.ones((2, 5)), labels=[0, 1]), "features"),
        (
            Sequences.from_arrays(np.ones((2, 5, 2)), labels=["a", "b"]),
            "stored labels are int64",
        ),
    ],
    ids=["labels", "features", "dtype of labels"],
)
def test_sequences_that_cannot_stand_beside_the_stored_ones(
    tmp_path: Path, new: Sequences, message: str
) -> None:
    created(tmp_path / "g")
    with pytest.raises(ValueError, match=message):
        rd.open_gram(tmp_path / "g").append(new, progress=False)
    assert np.array_equal(values(tmp_path / "g"), KERNEL(OLD, backend="numpy"))


def test_values_that_the_stored_type_would_round(tmp_path: Path) -> None:
    created(tmp_path / "g", batch(5, 1, np.float32))
    with pytest.raises(ValueError, match=r"stored values are float32.*round them"):
        rd.open_gram(tmp_path / "g").append(batch(2, 2), progress=False)
    growing = begin(GramStore.open(tmp_path / "g", writable=True), batch(2, 2, np.float32))
    assert isinstance(growing, GrowingStore)


def test_only_finished_symmetric_matrices_grow(tmp_path: Path, client: Client) -> None:
    path = tmp_path / "oblong"
    oblong = rd.gram(KERNEL, OLD, NEW, store=path, client=client, progress=False)
    with pytest.raises(ValueError, match="rectangular 21 x 9 matrix, and only symmetric ones"):
        oblong.append(NEW, progress=False)
    created(tmp_path / "g").discard([Tile(0, 0)])
    with pytest.raises(ValueError, match="lacks 1 of 6 tiles: finish it"):
        rd.open_gram(tmp_path / "g").append(NEW, progress=False)


def test_other_sequences_in_the_midst_of_growth(tmp_path: Path, client: Client) -> None:
    store = created(tmp_path / "g")
    with pytest.raises(ValueError, match="no interrupted growth"):
        rd.open_gram(tmp_path / "g").append(progress=False)
    begin(store, NEW)
    gram = rd.open_gram(tmp_path / "g")
    with pytest.raises(IdentityError, match="being extended by 9 other sequences"):
        gram.append(batch(4, 9), progress=False)
    with pytest.raises(IdentityError, match="is being extended to this matrix"):
        rd.gram(KERNEL, ALL, store=tmp_path / "g", client=client, progress=False)
    finished = gram.append(client=client, backend="numpy", progress=False)
    assert np.array_equal(np.asarray(finished), KERNEL(ALL, backend="numpy"))


# -- a cross matrix against the stored sequences --------------------------------------------------


def test_a_cross_matrix_against_the_stored_sequences_resumes(
    tmp_path: Path, client: Client
) -> None:
    gram = rd.gram(KERNEL, OLD, store=tmp_path / "g", client=client, tile=TILE, progress=False)

    def cross() -> rd.Gram:
        return rd.gram(
            KERNEL, NEW, gram.sequences, store=tmp_path / "x", client=client, tile=4, progress=False
        )

    first = np.asarray(cross())
    assert np.array_equal(first, KERNEL(NEW, OLD))
    opened = GramStore.open(tmp_path / "x", writable=True)
    opened.discard([Tile(0, 1), Tile(2, 5)])
    kept = {t: (tmp_path / "x" / chunk_key(t)).stat().st_mtime_ns for t in opened.stored_tiles()}
    assert np.array_equal(np.asarray(cross()), first)
    assert all((tmp_path / "x" / chunk_key(t)).stat().st_mtime_ns == kept[t] for t in kept)
