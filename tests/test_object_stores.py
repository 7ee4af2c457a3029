"""Stores on S3 behave as on a local path: on moto's server, and on SeaweedFS, a real one."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3_servers
from clusters import client_of
from distributed import Client

import rntk_dist as rd
from rntk_dist.compute import fill
from rntk_dist.creation import ensure_store
from rntk_dist.lease import StoreBusyError, current_owner, lease
from rntk_dist.plan import Plan, Tile
from rntk_dist.progress import Progress
from rntk_dist.sequences import Sequences
from rntk_dist.slots import Bucket, NoCompareAndSwapError, slot_of
from rntk_dist.store import GramStore, IdentityError, Manifest, MissingTileError, chunk_key
from rntk_dist.sweep_creation import wanted_sweep
from rntk_dist.sweep_manifest import SweepTile
from rntk_dist.sweep_store import SweepStore

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
obstore = pytest.importorskip("obstore", reason="the extra s3 is not installed")

KERNEL = rd.RNTK(sigma_w=1.3, sigma_b=0.1)
TILE = 5  # 18 sequences: 4 x 4 tiles, the last row and column ragged


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The servers that have been asked for; they end with the module."""
    with ExitStack() as running:
        yield _Started(running, tmp_path_factory)


class _Started(dict[str, str]):
    def __init__(self, running: ExitStack, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self.running, self.folders = running, folders
        self.skipped: dict[str, str] = {}

    def __missing__(self, server: str) -> str:
        if server in self.skipped:  # one that does not start is waited for once
            pytest.skip(self.skipped[server])
        try:
            self[server] = self.running.enter_context(self._start(server))
        except pytest.skip.Exception as why:
            self.skipped[server] = str(why)
            raise
        return self[server]

    def _start(self, server: str) -> AbstractContextManager[str]:
        if server == "moto":
            pytest.importorskip("moto.server", reason="moto's server is not installed")
            return s3_servers.moto()
        return s3_servers.seaweed(self.folders.mktemp("weed"))


@pytest.fixture(params=["moto", "seaweed"])
def url(
    request: pytest.FixtureRequest, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Where no store is yet, on each server in turn."""
    s3_servers.use(monkeypatch, addresses[request.param])
    return f"s3://{s3_servers.BUCKET}/{uuid.uuid4().hex}/store"


on_moto = pytest.mark.parametrize("url", ["moto"], indirect=True)
on_seaweed = pytest.mark.parametrize(
    "url", ["seaweed", pytest.param("moto", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="module")
def X() -> Sequences:
    rng = np.random.default_rng(7)
    return Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(1, 20, size=18)])


def manifest(X: Sequences, tile: int = TILE) -> Manifest:
    return Manifest(KERNEL.to_dict(), "ntk", Plan(len(X), len(X), tile, True, 8), X.fingerprint)


def block(store: GramStore, tile: Tile) -> np.ndarray:
    return np.random.default_rng([tile.row, tile.col]).normal(size=store.plan.block_shape(tile))


def bucket(url: str) -> Bucket:
    slot = slot_of(url)
    assert isinstance(slot, Bucket)
    return slot


# -- the store -------------------------------------------------------------------------------------


def test_a_store_on_s3_behaves_as_on_a_path(url: str, X: Sequences) -> None:
    assert GramStore.find(url) is None
    made = GramStore.create(url, manifest(X), X)
    assert len(made.missing_tiles()) == made.plan.n_tiles == 10
    first, *others = made.plan.tiles()
    for tile in others:
        made.write_tile(tile, block(made, tile))
    opened = GramStore.open(url)
    assert opened.missing_tiles() == [first]
    assert opened.manifest == made.manifest
    assert opened.sequences().fingerprint == X.fingerprint
    for tile in others:
        np.testing.assert_array_equal(opened.read_tile(tile), block(made, tile))
    with pytest.raises(MissingTileError, match=url):
        opened.read_tile(first)


def test_a_store_on_s3_is_never_overwritten(url: str, X: Sequences) -> None:
    made = GramStore.create(url, manifest(X), X)
    with pytest.raises(FileExistsError, match=url):
        GramStore.create(url, manifest(X), X)
    with pytest.raises(IdentityError, match=r"plan\.tile: stored 5, given 6"):
        made.check_identity(manifest(X, tile=6))


@on_seaweed
def test_a_store_on_s3_is_created_by_the_owner_of_its_lease(
    url: str, X: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lease(url), pytest.raises(StoreBusyError):
        ensure_store(KERNEL, X, None, store=url, tile=TILE)
    assert GramStore.find(url) is None

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "to_dict", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure_store(KERNEL, X, None, store=url, tile=TILE)
    assert GramStore.is_interrupted(url)
    made = ensure_store(KERNEL, X[:10], None, store=url, tile=TILE)  # begun anew, for another X
    assert made.sequences().fingerprint == X[:10].fingerprint
    assert made.foreign_keys() == []
    assert current_owner(url) is None


@on_seaweed
def test_what_is_not_ours_on_s3_is_left_as_it_is(url: str, X: Sequences) -> None:
    obstore.put(bucket(url).store, "notes/of/mine.txt", b"mine")
    with pytest.raises(FileExistsError, match=f"{url} holds something that is not a Gram store"):
        ensure_store(KERNEL, X, None, store=url, tile=TILE)
    listed = [item["path"] for page in obstore.list(bucket(url).store) for item in page]
    assert listed == ["notes/of/mine.txt"]


def test_what_was_listed_before_is_not_taken_for_what_is_there(url: str, X: Sequences) -> None:
    store = GramStore.create(url, manifest(X), X)
    first, second, *_ = store.plan.tiles()
    for tile in (first, second):
        store.write_tile(tile, block(store, tile))
    there = pickle.loads(pickle.dumps(store))
    chunk = obstore.get(bucket(url).store, chunk_key(second)).bytes()
    obstore.delete(bucket(url).store, chunk_key(second))  # through another client each time
    assert there.stored_tiles() == store.stored_tiles() == {first}
    obstore.put(bucket(url).store, chunk_key(second), bytes(chunk))
    np.testing.assert_array_equal(store.read_tile(second), block(store, second))
    assert there.stored_tiles() == {first, second}


@on_seaweed
def test_more_tiles_than_a_page_of_a_listing_holds(url: str) -> None:
    wide = Sequences.from_arrays(np.zeros((49, 1, 1)))
    made = GramStore.create(url, manifest(wide, tile=1), wide)
    store = bucket(url).store

    async def put_all() -> None:
        await asyncio.gather(
            *(obstore.put_async(store, chunk_key(tile), b"x") for tile in made.plan.tiles())
        )

    asyncio.run(put_all())
    assert made.plan.n_tiles == 1225
    assert made.missing_tiles() == []


# -- a whole run -----------------------------------------------------------------------------------


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """Two worker processes, started where the environment says where the server is."""
    with client_of(2) as client:
        yield client


@on_seaweed
def test_an_interrupted_run_on_s3_resumes_to_the_same_bits(
    url: str, client: Client, X: Sequences, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"tile": TILE, "backend": "numpy"}
    local = rd.gram(KERNEL, X, store=tmp_path / "gram", client=client, progress=False, **options)

    def interrupt(progress: Any) -> None:
        if progress.tiles == 4:
            raise KeyboardInterrupt

    store = ensure_store(KERNEL, X, None, store=url, client=client, **options)
    with pytest.raises(KeyboardInterrupt, match=f"tiles are kept in {url}"):
        fill(store, client, backend="numpy", on_progress=interrupt)
    assert 4 <= len(store.stored_tiles()) < store.plan.n_tiles

    resumed = rd.gram(KERNEL, X, store=url, client=client, progress=False, **options)
    assert resumed.complete
    assert np.asarray(resumed).tobytes() == np.asarray(local).tobytes()
    opened = rd.open_gram(url)
    assert opened.sequences.fingerprint == X.fingerprint
    np.testing.assert_array_equal(opened.to_dask().compute(scheduler="sync"), np.asarray(local))
    for tile in store.plan.tiles():
        chunk = obstore.get(bucket(url).store, chunk_key(tile)).bytes()
        assert bytes(chunk) == (tmp_path / "gram" / chunk_key(tile)).read_bytes()


# -- the lease -------------------------------------------------------------------------------------


def test_the_server_honours_conditions(url: str) -> None:
    slot = bucket(url)
    assert slot.read() is None
    first = slot.take(b"first", None)  # If-None-Match: *
    assert first is not None
    assert slot.read() == first
    assert slot.take(b"again", None) is None
    second = slot.renew(b"second", first)  # If-Match
    assert second is not None
    assert slot.renew(b"third", first) is None
    assert slot.read() == second
    gone = bucket(f"{url}/elsewhere")
    assert gone.take(b"over nothing", first) is None
    assert gone.read() is None


def test_of_many_that_take_at_once_one_succeeds(url: str) -> None:
    slot = bucket(url)
    for _ in range(3):
        seen, ready, won = slot.read(), threading.Barrier(6), []

        def take(k: int, seen: Any = seen, ready: Any = ready, won: Any = won) -> None:
            ready.wait()
            if slot.take(b"%d" % k + uuid.uuid4().bytes, seen) is not None:
                won.append(k)

        threads = [threading.Thread(target=take, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = slot.read()
        assert now is not None
        assert [b"%d" % k for k in won] == [now.content[:1]]


def test_a_put_that_was_sent_twice_is_not_a_lost_race(url: str) -> None:
    slot = bucket(url)
    slot.take(b"record", None)  # its answer was lost: the client sends it again
    taken = slot.take(b"record", None)
    assert taken is not None
    assert slot.renew(b"next", taken) is not None


@on_seaweed
def test_two_processes_and_one_store_on_s3(url: str) -> None:
    code = (
        "import sys, time\nfrom rntk_dist.lease import lease\n"
        "with lease(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreBusyError, match=f"{url} is .* by process {process.pid} on "):
            lease(url).__enter__()
        process.kill()
        process.wait()
        with lease(url, ttl=0.6) as held:  # it died on this machine, so nobody need wait
            time.sleep(1)
            held.check()
        assert current_owner(url) is None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_who_was_taken_over_on_s3_is_told(url: str) -> None:
    with lease(url, ttl=0.4) as held:
        slot = bucket(url)
        while slot.take(b"another's", slot.read()) is None:
            pass
        assert held.lost.wait(10)
    now = slot.read()
    assert now is not None
    assert now.content == b"another's"


@on_moto
def test_settings_may_stand_in_the_files_of_aws(
    url: str, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    config, keys = tmp_path / "config", tmp_path / "credentials"
    config.write_text(f"[profile ours]\nregion = eu-west-1\nendpoint_url = {addresses['moto']}\n")
    keys.write_text("[ours]\naws_access_key_id = somebody\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    with lease(url):
        assert current_owner(url) is not None


@on_moto
def test_conditions_may_be_switched_off(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    with pytest.raises(NoCompareAndSwapError):
        bucket(url).take(b"1", None)
    with lease(url) as held:
        held.check()
    assert "can have no lease" in caplog.text


@on_moto
def test_a_bucket_that_is_not_there_is_an_os_error(url: str) -> None:
    with pytest.raises(OSError, match=r"[Nn]o.?[Ss]uch.?[Bb]ucket|404"):
        lease("s3://no-such-bucket/store").__enter__()


# -- sweeps ----------------------------------------------------------------------------------------


@pytest.mark.slow
@on_seaweed
def test_a_sweep_on_s3_is_resumed_verified_and_repaired(
    url: str, X: Sequences, tmp_path: Path
) -> None:
    kernels = [KERNEL, rd.RNTK(sigma_w=1.3, sigma_b=0.1, sigma_v=1.7), rd.RNTK(sigma_w=1.4)]

    def stop(now: Progress) -> None:
        if now.tiles >= 6:
            raise KeyboardInterrupt

    with client_of(1, threads_per_worker=2, processes=False, protocol="tcp") as client:
        options: Any = {"tile": TILE, "client": client, "backend": "numba", "progress": False}
        local = rd.sweep(kernels, X, store=tmp_path / "sweep", **options)
        wanted = wanted_sweep(kernels, X, None, where=url, tile=TILE, backend="numba")
        made = SweepStore.create(url, wanted.plan_anew(client), X)
        with pytest.raises(KeyboardInterrupt):
            fill(made, client, backend="numba", on_progress=stop)
        before = made.stored()
        assert 6 <= len(before) < 30
        sweep = rd.sweep(kernels, X, store=url, **options)
        assert sweep.complete
        for gram, expected in zip(sweep, local, strict=True):
            np.testing.assert_array_equal(np.asarray(gram), np.asarray(expected))
        lost = SweepTile(1, 2, (1,))
        SweepStore.open(url, writable=True).discard([lost])
        found = rd.verify(url)
        assert [(problem.tile, problem.kind) for problem in found.problems] == [(lost, "missing")]
        assert (rd.repair(url, client).ok, found.foreign) == (True, ())
    np.testing.assert_array_equal(np.asarray(rd.open_sweep(url)[1]), np.asarray(local[1]))
