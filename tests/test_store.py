"""The store: what is in it, what it refuses, and what is left after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from rntk_dist.plan import Plan, Samples, Tile
from rntk_dist.records import Record, Report
from rntk_dist.sequences import Sequences
from rntk_dist.store import (
    CorruptTileError,
    GramStore,
    IdentityError,
    Manifest,
    MissingTileError,
    StoreFormatError,
    chunk_key,
    locate,
    provenance,
    record_key,
    versions,
)

KERNEL = {"depth": 1, "readout": "last", "sigma_w": 2**0.5, "bidirectional": False}


@pytest.fixture
def X() -> Sequences:
    rng = np.random.default_rng(3)
    return Sequences.from_arrays([rng.normal(size=(3 + i % 4, 2)) for i in range(10)])


@pytest.fixture
def Y() -> Sequences:
    return Sequences.from_arrays(np.random.default_rng(4).normal(size=(6, 5, 2)))


def manifest(X: Sequences, Y: Sequences | None = None, **changes: Any) -> Manifest:
    plan = Plan(len(X), len(X if Y is None else Y), changes.pop("tile", 4), Y is None, 8)
    fields = {
        "kernel": KERNEL,
        "kind": "ntk",
        "plan": plan,
        "fingerprint": X.fingerprint,
        "fingerprint_y": None if Y is None else Y.fingerprint,
        "provenance": provenance(backend="auto"),
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def store(tmp_path: Path, X: Sequences) -> GramStore:
    return GramStore.create(tmp_path / "gram", manifest(X), X)


def block(store: GramStore, tile: Tile, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, tile.row, tile.col])
    return rng.normal(size=store.plan.block_shape(tile))


def chunk(store: GramStore, tile: Tile) -> Path:
    return Path(str(store.location)) / chunk_key(tile)


def record(store: GramStore, tile: Tile, **changes: Any) -> Record:
    fields = {
        "crc32c": store.checksum(tile),
        "seconds": 2.5,
        "pair_steps": 100,
        "host": "a",
        "pid": 7,
        "backend": "numba",
        "finished": "2026-01-02T03:04:05.000+00:00",
        "versions": {"numpy": "2.4"},
    }
    return Record(**{**fields, **changes})


def filled(store: GramStore) -> GramStore:
    for tile in store.plan.tiles():
        store.write_tile(tile, block(store, tile))
        store.write_record(tile, record(store, tile))
    return store


def attributes(store: GramStore) -> dict[str, Any]:
    return json.loads((Path(str(store.location)) / "zarr.json").read_text())["attributes"][
        "rntk_dist"
    ]


def rewrite_attributes(store: GramStore, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(str(store.location)) / "zarr.json"
    document = json.loads(path.read_text())
    change(document["attributes"]["rntk_dist"])
    path.write_text(json.dumps(document))


# -- what is in it --------------------------------------------------------------------------------


def test_a_store_comes_back_from_its_path_alone(tmp_path: Path, X: Sequences) -> None:
    made = GramStore.create(tmp_path / "gram", manifest(X), X)
    opened = GramStore.open(str(tmp_path / "gram"))
    assert opened.manifest == made.manifest
    assert opened.manifest.provenance == made.manifest.provenance
    assert opened.sequences().fingerprint == X.fingerprint
    assert opened.sequences_y() is None
    assert opened.samples() == Samples(X.lengths.tolist(), None, 2)


def test_slabs_hold_the_samples_of_a_tile(tmp_path: Path, X: Sequences, Y: Sequences) -> None:
    symmetric = GramStore.create(tmp_path / "a", manifest(X), X)
    assert symmetric.row_slab(Tile(1, 2)).fingerprint == X[4:8].fingerprint
    assert symmetric.col_slab(Tile(1, 2)).fingerprint == X[8:10].fingerprint
    rectangular = GramStore.create(tmp_path / "b", manifest(X, Y), X, Y)
    assert rectangular.row_slab(Tile(2, 1)).fingerprint == X[8:10].fingerprint
    assert rectangular.col_slab(Tile(2, 1)).fingerprint == Y[4:6].fingerprint
    stored_y = rectangular.sequences_y()
    assert stored_y is not None
    assert stored_y.fingerprint == Y.fingerprint
    assert rectangular.samples() == Samples(X.lengths.tolist(), Y.lengths.tolist(), 2)


def test_the_array_is_plain_zarr(store: GramStore) -> None:
    array = json.loads((Path(str(store.location)) / "gram" / "zarr.json").read_text())
    assert array["codecs"] == [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
    ]
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [4, 4]
    assert array["fill_value"] == "NaN"


def test_every_tile_is_one_chunk_and_comes_back_bitwise(store: GramStore) -> None:
    for tile in store.plan.tiles():
        store.write_tile(tile, block(store, tile))
        assert np.array_equal(store.read_tile(tile), block(store, tile))
    chunks = [path for path in chunk(store, Tile(0, 0)).parents[1].rglob("*") if path.is_file()]
    assert len(chunks) == store.plan.n_tiles == 6
    assert sum(path.stat().st_size for path in chunks) == store.plan.bytes_stored


def test_float32_is_stored_as_float32(tmp_path: Path, X: Sequences) -> None:
    store = GramStore.create(tmp_path / "g", manifest(X, plan=Plan(10, 10, 4, True, 4)), X)
    values = block(store, Tile(0, 2)).astype(np.float32)
    store.write_tile(Tile(0, 2), values)
    assert store.read_tile(Tile(0, 2)).dtype == np.float32
    with pytest.raises(ValueError, match="is stored as float32, got float64"):
        store.write_tile(Tile(0, 2), values.astype(np.float64))


def test_chunks_are_no_larger_than_the_matrix(tmp_path: Path, X: Sequences, Y: Sequences) -> None:
    few = Y[:2]
    store = GramStore.create(tmp_path / "g", manifest(X, few, tile=8), X, few)
    assert store.array.chunks == (8, 2)


def test_writing_twice_leaves_the_same_bytes(store: GramStore) -> None:
    tile = Tile(0, 2)
    store.write_tile(tile, block(store, tile))
    before = chunk(store, tile).read_bytes()
    store.write_tile(tile, block(store, tile))
    assert chunk(store, tile).read_bytes() == before


def test_stored_and_missing_tiles_make_up_the_plan(store: GramStore) -> None:
    written = [Tile(0, 1), Tile(2, 2)]
    for tile in written:
        store.write_tile(tile, block(store, tile))
    assert store.stored_tiles() == frozenset(written)
    assert store.missing_tiles() == [t for t in store.plan.tiles() if t not in written]


def test_locations_are_absolute_or_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("gram") == locate(Path("gram")) == str(tmp_path / "gram")
    assert locate("s3://bucket/gram") == "s3://bucket/gram"
    memory = zarr.storage.MemoryStore()
    assert locate(memory) is memory


def test_a_zarr_store_serves_as_location(X: Sequences) -> None:
    store = GramStore.create(zarr.storage.MemoryStore(), manifest(X), X)
    store.write_tile(Tile(0, 1), block(store, Tile(0, 1)))
    assert GramStore.open(store.location).stored_tiles() == {Tile(0, 1)}


# -- writing what is no tile ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "shape", "value", "message"),
    [
        (Tile(1, 0), (4, 4), 1.0, r"tile \(1, 0\) is not in the upper triangle of a grid of 3 x 3"),
        (Tile(0, 3), (4, 4), 1.0, r"tile \(0, 3\) is not in"),
        (Tile(0, 2), (4, 4), 1.0, r"tile \(0, 2\) has shape \(4, 2\), got \(4, 4\)"),
        (Tile(0, 1), (4, 4), np.nan, "not finite"),
        (Tile(0, 1), (4, 4), np.inf, "not finite"),
        (Tile(0, 1), (4, 4), -np.inf, "not finite"),
    ],
)
def test_what_is_no_tile_is_not_written(
    store: GramStore, tile: Tile, shape: tuple[int, int], value: float, message: str
) -> None:
    values = np.ones(shape)
    values[1, 1] = value
    with pytest.raises(ValueError, match=message):
        store.write_tile(tile, values)
    assert not store.stored_tiles()


# -- gaps, damage, interruptions ------------------------------------------------------------------


def test_a_gap_is_an_error_and_not_nan(store: GramStore) -> None:
    with pytest.raises(MissingTileError, match=r"tile \(0, 1\) is not stored in "):
        store.read_tile(Tile(0, 1))


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda data: data[:-1],
        lambda data: data[:50],
        lambda data: data[:3],
        lambda data: b"",
        lambda data: data + b"x",
    ],
    ids=["bit", "cut-1", "cut-50", "cut-3", "empty", "longer"],
)
def test_a_damaged_chunk_is_named(store: GramStore, damage: Callable[[bytes], bytes]) -> None:
    tile = Tile(1, 2)
    store.write_tile(tile, block(store, tile))
    path = chunk(store, tile)
    path.write_bytes(damage(path.read_bytes()))
    says = rf"tile \(1, 2\) is damaged: `rntk-dist repair {store.location}` .*gram/c/1/2"
    with pytest.raises(CorruptTileError, match=says):
        store.read_tile(tile)
    path.unlink()
    assert tile in store.missing_tiles()
    store.write_tile(tile, block(store, tile))
    assert np.array_equal(store.read_tile(tile), block(store, tile))


def test_a_killed_writer_leaves_no_tile(store: GramStore) -> None:
    # What Zarr's LocalStore leaves behind if the process dies before the rename.
    path = chunk(store, Tile(0, 1))
    path.parent.mkdir(parents=True)
    path.with_suffix(".0123456789abcdef.partial").write_bytes(b"half a tile")
    assert Tile(0, 1) in store.missing_tiles()
    store.write_tile(Tile(0, 1), block(store, Tile(0, 1)))
    assert store.stored_tiles() == {Tile(0, 1)}


def test_a_failed_write_leaves_no_tile(store: GramStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write_tile(Tile(0, 1), block(store, Tile(0, 1)))
    assert not store.stored_tiles()


@pytest.mark.parametrize("step", ["array", "sequences", "manifest"])
def test_an_interrupted_creation_is_recognised(
    tmp_path: Path, X: Sequences, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    targets = {
        "array": ("rntk_dist.store._new_array", stop),
        "sequences": ("rntk_dist.sequences.Sequences.write_to", stop),
        "manifest": ("rntk_dist.store.Manifest.to_dict", stop),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*targets[step])
        with pytest.raises(KeyboardInterrupt):
            GramStore.create(tmp_path / "gram", manifest(X), X)
    with pytest.raises(StoreFormatError, match="creation was interrupted; it holds no results: "):
        GramStore.open(tmp_path / "gram")
    with pytest.raises(FileExistsError):
        GramStore.create(tmp_path / "gram", manifest(X), X)


def test_a_newer_format_is_refused_with_both_versions(store: GramStore) -> None:
    data = dict(store.group.attrs["rntk_dist"])  # type: ignore[arg-type]
    zarr.open_group(store.location, mode="r+").attrs["rntk_dist"] = {**data, "format": 3}
    with pytest.raises(StoreFormatError, match="has format 3, this version reads up to 2: upgrade"):
        GramStore.open(store.location)


# -- what else may lie there ----------------------------------------------------------------------


def test_nothing_there_is_found_as_nothing(tmp_path: Path) -> None:
    assert GramStore.find(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="there is no Gram store at "):
        GramStore.open(tmp_path / "none")


def test_a_store_without_its_array_is_none(store: GramStore) -> None:
    """Removed by hand, or while it was being opened."""
    assert isinstance(store.location, str)
    (Path(store.location) / "gram/zarr.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no Gram store at .*: its array gram is"):
        GramStore.open(store.location)


def test_an_empty_directory_may_become_a_store(tmp_path: Path, X: Sequences) -> None:
    assert GramStore.find(tmp_path) is None
    GramStore.create(tmp_path, manifest(X), X)


def make_file(path: Path) -> None:
    path.write_text("mine")


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def make_group(path: Path) -> None:
    zarr.create_group(path, attributes={"mine": True})


def make_array(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="f8")[:] = 1.0


@pytest.mark.parametrize("make", [make_file, make_directory, make_group, make_array])
def test_what_is_not_ours_is_never_overwritten(
    tmp_path: Path, X: Sequences, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "precious"
    make(path)

    def content() -> dict[str, bytes]:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return {str(p): p.read_bytes() for p in files}

    before = content()
    with pytest.raises((StoreFormatError, FileNotFoundError), match=r"not a Gram|no Gram store"):
        GramStore.open(path)
    with pytest.raises(FileExistsError, match="is left as it is: choose another store"):
        GramStore.create(path, manifest(X), X)
    assert content() == before


# -- identity -------------------------------------------------------------------------------------


def test_the_same_matrix_is_recognised_whatever_its_provenance(
    store: GramStore, X: Sequences
) -> None:
    store.check_identity(manifest(X, provenance={"rntk_dist": "another"}))


def test_every_differing_field_is_listed_with_both_values(
    store: GramStore, X: Sequences, Y: Sequences
) -> None:
    other = manifest(X, kernel={**KERNEL, "depth": 2}, kind="nngp", tile=5)
    with pytest.raises(IdentityError) as refused:
        store.check_identity(other)
    first, *lines = str(refused.value).splitlines()
    assert (
        first == f"{store.location} holds another Gram matrix: choose another store; these differ:"
    )
    assert lines == [
        "  kernel.depth: stored 1, given 2",
        "  kind: stored 'ntk', given 'nngp'",
        "  plan.tile: stored 4, given 5",
    ]
    with pytest.raises(IdentityError, match=r"fingerprint: stored '\w{64}', given '\w{64}'"):
        store.check_identity(manifest(Y))
    with pytest.raises(IdentityError, match="dtype: stored 'float64', given 'float32'"):
        store.check_identity(manifest(X, plan=Plan(10, 10, 4, True, 4)))


def test_floats_of_the_kernel_survive_json_exactly(tmp_path: Path, X: Sequences) -> None:
    kernel = {**KERNEL, "sigma_b": 0.1, "sigma_u": 1 / 3, "sigma_h": 5e-324}
    store = GramStore.create(tmp_path / "g", manifest(X, kernel=kernel), X)
    GramStore.open(store.location).check_identity(manifest(X, kernel=kernel))


# -- the identity's hash --------------------------------------------------------------------------


def test_the_hash_is_of_canonical_json(store: GramStore) -> None:
    text = json.dumps(store.manifest.identity(), sort_keys=True, separators=(",", ":"))
    data = attributes(store)
    assert data["format"] == 2
    assert data["identity_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert data["provenance"].keys() == {*versions(), "host", "created", "backend"}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["identity"]["kernel"].update(sigma_w=1.4142135623730954),
        lambda data: data["identity"].update(kind="nngp"),
        lambda data: data["identity"]["plan"].update(tile=5),
        lambda data: data["identity"].update(fingerprint="0" * 64),
        lambda data: data["identity"].update(more=1),
        lambda data: data["identity"].pop("plan"),
        lambda data: data.update(identity_sha256="0" * 64),
        lambda data: data.pop("identity_sha256"),
    ],
    ids=["sigma_w", "kind", "tile", "fingerprint", "more", "less", "hash", "no-hash"],
)
def test_an_altered_manifest_is_refused(
    store: GramStore, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite_attributes(store, change)
    with pytest.raises(StoreFormatError, match="its manifest was altered or damaged: the identity"):
        GramStore.open(store.location)


def test_provenance_may_be_altered(store: GramStore) -> None:
    rewrite_attributes(store, lambda data: data["provenance"].update(host="elsewhere"))
    assert GramStore.open(store.location).manifest.provenance["host"] == "elsewhere"


def test_cut_metadata_is_named(store: GramStore) -> None:
    path = Path(str(store.location)) / "zarr.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreFormatError, match=r"zarr\.json is damaged"):
        GramStore.open(store.location)


# -- format 1 -------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path, X: Sequences) -> GramStore:
    """A store as format 1 was written: no hash, no records, no names of dimensions."""
    what = manifest(X)
    group = zarr.open_group(tmp_path / "old", mode="w-", zarr_format=3)
    array = group.create_array(
        "gram",
        shape=(10, 10),
        chunks=(4, 4),
        dtype="f8",
        fill_value=float("nan"),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=(Crc32cCodec(),),
    )
    X.write_to(group.create_group("sequences"))
    old = {"format": 1, "identity": what.identity(), "provenance": {"created": "2026-01-01"}}
    group.attrs["rntk_dist"] = old
    array[0:4, 4:8] = np.full((4, 4), 2.0)
    return GramStore.open(tmp_path / "old", writable=True)


def test_format_1_is_read_and_resumed(old: GramStore, X: Sequences) -> None:
    old.check_identity(manifest(X))
    assert old.stored_tiles() == {Tile(0, 1)}
    assert (old.read_tile(Tile(0, 1)) == 2).all()
    assert old.records() == {}
    for tile in old.missing_tiles():
        old.write_tile(tile, block(old, tile))
        old.write_record(tile, record(old, tile))
    report = old.finish()
    assert report is not None
    assert (report.tiles, report.recorded) == (6, 5)
    # It stays what it is: its identity was never hashed.
    assert attributes(old)["format"] == 1
    assert "identity_sha256" not in attributes(old)
    assert GramStore.open(old.location).report() == report.to_dict()


def test_a_damaged_manifest_of_format_1_is_named(old: GramStore) -> None:
    rewrite_attributes(old, lambda data: data["identity"].pop("kind"))
    with pytest.raises(StoreFormatError, match="its manifest is damaged: 'kind'"):
        GramStore.open(old.location)


# -- records and the report -----------------------------------------------------------------------


def test_records_come_back(store: GramStore) -> None:
    tile = Tile(0, 2)
    store.write_tile(tile, block(store, tile))
    written = record(store, tile, attempt=2)
    store.write_record(tile, written)
    assert store.records() == {tile: written}
    assert bytes.fromhex(written.crc32c)[::-1] == chunk(store, tile).read_bytes()[-4:]
    assert store.checksum(Tile(0, 1)) is None
    store.write_record(tile, record(store, tile, pid=8))
    assert store.records()[tile].pid == 8
    assert store.stored_tiles() == {tile}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"crc32c": "00"}'],
)
def test_a_record_that_cannot_be_read_is_a_lost_one(store: GramStore, text: str) -> None:
    filled(store)
    (Path(str(store.location)) / record_key(Tile(0, 1))).write_text(text)
    assert store.records().keys() == {t for t in store.plan.tiles() if t != Tile(0, 1)}


def test_a_record_of_a_newer_version_is_read(store: GramStore) -> None:
    filled(store)
    path = Path(str(store.location)) / record_key(Tile(0, 1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    assert store.records()[Tile(0, 1)] == record(store, Tile(0, 1))


def test_a_finished_store_has_its_report(store: GramStore) -> None:
    tiles = list(store.plan.tiles())
    for tile in tiles:
        assert store.finish() is None
        store.write_tile(tile, block(store, tile))
    store.write_record(tiles[0], record(store, tiles[0]))
    other = {"host": "b", "attempt": 3, "finished": "2026-01-02T04:04:05+00:00"}
    store.write_record(tiles[1], record(store, tiles[1], versions={"numpy": "2.5"}, **other))
    report = store.finish()
    assert report == Report(
        tiles=6,
        recorded=2,
        pair_steps=200,
        core_seconds=5.0,
        retries=2,
        hosts=("a", "b"),
        backends=("numba",),
        versions={"numpy": ("2.4", "2.5")},
        started="2026-01-02T03:04:02.500+00:00",
        finished="2026-01-02T04:04:05.000+00:00",
    )
    assert attributes(store)["report"] == report.to_dict() == store.report()
    assert GramStore.open(store.location).manifest == store.manifest


def test_finishing_again_writes_nothing(store: GramStore) -> None:
    first = filled(store).finish()
    before = (Path(str(store.location)) / "zarr.json").stat().st_mtime_ns
    assert store.finish() == first
    assert (Path(str(store.location)) / "zarr.json").stat().st_mtime_ns == before


def test_discarded_tiles_are_missing_and_the_report_is_gone(store: GramStore) -> None:
    filled(store).finish()
    gone = [Tile(0, 1), Tile(2, 2)]
    store.discard(gone)
    store.discard(gone)
    assert store.missing_tiles() == gone
    assert not store.records().keys() & set(gone)
    assert store.report() is None
    with pytest.raises(ValueError, match=r"tile \(1, 0\) is not in"):
        store.discard([Tile(1, 0)])


def test_records_work_in_any_zarr_store(X: Sequences) -> None:
    store = filled(GramStore.create(zarr.storage.MemoryStore(), manifest(X), X))
    assert len(store.records()) == 6
    assert store.finish() is not None
    assert store.clean() == 0
    assert store.foreign_keys() == []
    store.discard([Tile(0, 1)])
    assert store.missing_tiles() == [Tile(0, 1)]


# -- what lies about ------------------------------------------------------------------------------


def leave(store: GramStore, name: str, age: float) -> Path:
    path = Path(str(store.location)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_leftovers_of_dead_writers_are_removed_and_nothing_else(store: GramStore) -> None:
    mark = "0123456789abcdef" * 2
    dead = [
        leave(store, f"gram/c/0/1.{mark}.partial", 3700),
        leave(store, f"gram/records/0.1.{mark}.partial", 3700),
        leave(store, f"zarr.{mark}.partial", 3700),
    ]
    kept = [
        leave(store, f"gram/c/0/2.{mark}.partial", 3500),
        leave(store, "mine.partial", 1e6),
        leave(store, "mine.txt", 1e6),
    ]
    assert store.clean() == 3
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)
    assert store.clean(older_than=0) == 1


def test_foreign_files_are_listed(store: GramStore) -> None:
    filled(store).finish()
    assert store.foreign_keys() == []
    names = [
        "gram/c/0/01",
        "gram/c/1/0",
        "gram/c/9/9",
        "gram/records/1.0.json",
        "notes.txt",
        "sequences/values/c/0/0.partial",
    ]
    for name in names:
        leave(store, name, 0)
    assert store.foreign_keys() == names


def test_a_copy_of_a_half_finished_store_goes_on(store: GramStore, tmp_path: Path) -> None:
    tiles = list(store.plan.tiles())
    for tile in tiles[:3]:
        store.write_tile(tile, block(store, tile))
        store.write_record(tile, record(store, tile))
    shutil.copytree(str(store.location), tmp_path / "copy")
    copy = GramStore.open(tmp_path / "copy", writable=True)
    assert copy.missing_tiles() == tiles[3:]
    assert copy.records() == store.records()
    for tile in tiles[3:]:
        copy.write_tile(tile, block(store, tile))
    assert copy.finish() is not None
    assert store.missing_tiles() == tiles[3:]


# -- other readers --------------------------------------------------------------------------------


def test_plain_zarr_reads_a_finished_store(store: GramStore) -> None:
    filled(store).finish()
    leave(store, "gram/lease-1.json", 0)
    assert store.foreign_keys() == []
    group = zarr.open_group(str(store.location), mode="r")
    assert sorted(name for name, _ in group.members(max_depth=None)) == [
        "gram",
        "sequences",
        "sequences/offsets",
        "sequences/values",
    ]
    array = group["gram"]
    assert np.array_equal(array[0:4, 8:10], store.read_tile(Tile(0, 2)))
    assert np.isnan(array[4:8, 0:4]).all()
    finished = group.attrs["rntk_dist"]["report"]["finished"]
    assert datetime.fromisoformat(finished).utcoffset() is not None


def test_xarray_reads_a_finished_store(store: GramStore) -> None:
    filled(store).finish()
    leave(store, "gram/lease-1.json", 0)
    with xr.open_zarr(str(store.location), consolidated=False) as data:
        assert data["gram"].dims == ("row", "col")
        assert np.array_equal(data["gram"][0:4, 8:10], store.read_tile(Tile(0, 2)))
        assert data.attrs["rntk_dist"]["report"]["tiles"] == 6
