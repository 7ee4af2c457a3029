"""Faults done to real stores: `verify` names each, `repair` computes exactly those again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clusters import client_of
from distributed import Client, LocalCluster
from zarr.storage import LocalStore, MemoryStore

import rntk_dist as rd
from rntk_dist.creation import ensure_store
from rntk_dist.kernel.backends import fastest_backend
from rntk_dist.plan import Tile
from rntk_dist.store import GramStore, StoreFormatError, chunk_key, record_key
from rntk_dist.tile_task import compute_tile
from rntk_dist.verify import Problem, Verification

KERNEL = rd.RNTK(sigma_w=1.3, readout="per_step")
N, TILE = 40, 16  # 3 x 3 tiles: six of the upper triangle, the last row and column ragged
COMMAND = Path(sys.executable).parent / "rntk-dist"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Workers that are threads of this process: what is tested is not theirs."""
    with client_of(1, threads_per_worker=2, processes=False, protocol="tcp") as client:
        yield client


def samples(n: int, seed: int = 5) -> rd.Sequences:
    rng = np.random.default_rng(seed)
    return rd.Sequences.from_arrays([rng.normal(size=(t, 2)) for t in rng.integers(2, 12, n)])


def compute(path: Path | str, *, Y: rd.Sequences | None = None, **options: Any) -> GramStore:
    kernel = options.pop("kernel", KERNEL)
    store = ensure_store(kernel, samples(N), Y, store=path, **{"tile": TILE, **options})
    for tile in store.missing_tiles():
        compute_tile(store.location, tile)
    store.finish()
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "gram"
    compute(path)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished store, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "gram"))


def contents(path: Path, pattern: str = "gram/c/*/*") -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.glob(pattern))}


def verdicts(found: Verification) -> dict[Tile | None, str]:
    return {problem.tile: problem.kind for problem in found.problems}


# -- the faults -----------------------------------------------------------------------------------


def cut(path: Path, *tiles: Tile) -> None:
    chunk = path / chunk_key(tiles[0])
    chunk.write_bytes(chunk.read_bytes()[:-100])


def empty(path: Path, *tiles: Tile) -> None:
    (path / chunk_key(tiles[0])).write_bytes(b"")


def lengthen(path: Path, *tiles: Tile) -> None:
    with (path / chunk_key(tiles[0])).open("ab") as file:
        file.write(b"more")


def flip(path: Path, *tiles: Tile) -> None:
    chunk = path / chunk_key(tiles[0])
    data = bytearray(chunk.read_bytes())
    data[77] ^= 4
    chunk.write_bytes(data)


def delete(path: Path, *tiles: Tile) -> None:
    (path / chunk_key(tiles[0])).unlink()


def swap(path: Path, *tiles: Tile) -> None:
    first, second = (path / chunk_key(tile) for tile in tiles)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def swap_all(path: Path, *tiles: Tile) -> None:
    swap(path, *tiles)
    first, second = (path / record_key(tile) for tile in tiles)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def write(path: Path, tile: Tile, value: Callable[[np.ndarray], object]) -> None:
    """Values put in by plain Zarr, with a checksum that is right."""
    config: Any = {"write_empty_chunks": True}
    array = zarr.open_array(path, path="gram", mode="r+", config=config)
    part = np.s_[tile.row * TILE : (tile.row + 1) * TILE, tile.col * TILE : (tile.col + 1) * TILE]
    block = np.array(array[part])
    value(block)
    array[part] = block


def all_nan(path: Path, *tiles: Tile) -> None:
    write(path, tiles[0], lambda block: block.fill(np.nan))


def one_infinity(path: Path, *tiles: Tile) -> None:
    write(path, tiles[0], put_infinity)


def put_infinity(block: np.ndarray) -> None:
    block[1, 2] = np.inf


def scale_one(path: Path, *tiles: Tile) -> None:
    def change(block: np.ndarray) -> None:
        block[0, 0] *= 1 + 1e-15

    write(path, tiles[0], change)


def scale_all(path: Path, *tiles: Tile) -> None:
    def change(block: np.ndarray) -> None:
        block *= 1.001

    write(path, tiles[0], change)


INNER, EDGE, CORNER, DIAGONAL = Tile(0, 1), Tile(1, 2), Tile(2, 2), Tile(1, 1)

FAULTS: list[tuple[Callable[..., None], tuple[Tile, ...], str]] = [
    *(
        (fault, (tile,), kind)
        for tile in (INNER, EDGE, CORNER)
        for fault, kind in (
            (cut, "truncated"),
            (empty, "truncated"),
            (lengthen, "damaged"),
            (flip, "damaged"),
            (delete, "missing"),
            (all_nan, "not finite"),
            (one_infinity, "not finite"),
            (scale_one, "altered"),
            (scale_all, "wrong"),
        )
    ),
    (swap, (INNER, DIAGONAL), "misplaced"),
    (swap, (Tile(0, 2), EDGE), "misplaced"),
    (swap, (INNER, EDGE), "misplaced"),
    (swap, (EDGE, CORNER), "misplaced"),
    (swap_all, (Tile(0, 2), EDGE), "wrong"),
    (swap_all, (Tile(0, 0), DIAGONAL), "wrong"),
]


def name_of(value: object) -> str | None:
    if isinstance(value, tuple):
        return "+".join(f"{tile.row}.{tile.col}" for tile in value)
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("fault", "tiles", "kind"), FAULTS, ids=name_of)
def test_a_fault_is_named_and_repaired(
    whole: Path,
    path: Path,
    client: Client,
    fault: Callable[..., None],
    tiles: tuple[Tile, ...],
    kind: str,
) -> None:
    fault(path, *tiles)
    found = rd.verify(path)
    assert verdicts(found) == dict.fromkeys(tiles, kind)
    assert not found.ok
    assert (found.tiles, found.sound) == (6, 6 - len(tiles))
    assert found.unsound == sorted(tiles)
    assert found.largest_error < 1e-12
    before = contents(path, "gram/records/*")
    after = rd.repair(path, client)
    assert after.ok
    assert (after.tiles, after.sound) == (6, 6)
    assert contents(path) == contents(whole)
    records = contents(path, "gram/records/*")
    again = {name for name in records if records[name] != before.get(name)}
    assert again == {record_key(tile) for tile in tiles}


def test_several_faults_at_once(whole: Path, path: Path, client: Client) -> None:
    flip(path, INNER)
    delete(path, EDGE)
    swap(path, Tile(0, 0), CORNER)
    expected = {
        Tile(0, 0): "misplaced",
        INNER: "damaged",
        EDGE: "missing",
        CORNER: "misplaced",
    }
    assert verdicts(rd.verify(path)) == expected
    assert rd.repair(path, client).ok
    assert contents(path) == contents(whole)


def test_a_misplaced_tile_says_which_tile_it_holds(path: Path) -> None:
    swap(path, INNER, EDGE)
    assert rd.verify(path).problems == (
        Problem(INNER, "misplaced", "it holds tile (1, 2)"),
        Problem(EDGE, "misplaced", "it holds tile (0, 1)"),
    )


def test_without_records_the_kernel_finds_a_swap(whole: Path, path: Path, client: Client) -> None:
    shutil.rmtree(path / "gram" / "records")
    assert rd.verify(path).ok
    swap(path, INNER, EDGE)
    found = rd.verify(path, recompute=6)
    # A chunk of the ragged edge is filled up with NaN, which show inside.
    assert verdicts(found) == {INNER: "not finite", EDGE: "wrong"}
    assert "the kernel gives" in found.problems[1].detail
    assert rd.repair(path, client).ok
    assert contents(path) == contents(whole)


def test_details_name_numbers(path: Path) -> None:
    cut(path, INNER)
    write(path, EDGE, put_infinity)
    by_tile = {problem.tile: problem.detail for problem in rd.verify(path).problems}
    assert by_tile == {
        INNER: "its chunk has 1952 of 2052 bytes",
        EDGE: "1 of its 128 values are not finite",
    }


# -- what is sound --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float32"},
        {"kind": "nngp"},
        {"kernel": rd.RNTK(bidirectional=True, depth=2, activation="erf", sigma_b=0.2)},
        {"kernel": rd.RNTK(normalize=True)},
        {"kernel": rd.RNTK(sigma_h=0.5, initial_state="independent")},
        {"kernel": rd.RNTK(readout="mean")},
        {"backend": "numpy"},
        {"Y": samples(21, seed=6)},
        {"tile": 64},
    ],
    ids=str,
)
def test_what_was_computed_is_sound(tmp_path: Path, options: dict[str, Any]) -> None:
    store = compute(tmp_path / "gram", **options)
    found = rd.verify(tmp_path / "gram", seed=3)
    assert found.problems == ()
    assert found.ok
    assert found.tiles == found.sound == store.plan.n_tiles
    assert found.foreign == ()
    # A tile that is smaller than its share is computed whole, and no tile more than its share.
    n, m = store.plan.shape
    distinct = n * (n + 1) // 2 if store.plan.symmetric else n * m
    assert found.entries >= min(1000, distinct) * 0.75
    assert found.largest_error < (1e-5 if store.plan.itemsize == 4 else 1e-12)


@pytest.mark.parametrize("recompute", [0, 1, 5, 6, 7, 100, 10**6])
def test_entries_are_spread_over_the_tiles(path: Path, recompute: int) -> None:
    found = rd.verify(path, recompute)
    assert found.ok
    distinct = N * (N + 1) // 2
    # A grid of rows and columns, and two samples at least on the diagonal: a few more than asked.
    assert min(recompute, distinct) <= found.entries <= min(2 * recompute + 18, distinct)
    if recompute >= 6:
        for tile in (INNER, CORNER):
            scale_all(path, tile)
        (path / record_key(INNER)).unlink()
        assert set(verdicts(rd.verify(path, recompute)).values()) == {"wrong"}


def test_the_seed_chooses_the_entries(path: Path) -> None:
    def change(block: np.ndarray) -> None:
        block[3:5] *= 2

    write(path, INNER, change)
    (path / record_key(INNER)).unlink()
    found = [rd.verify(path, 6, seed=seed).ok for seed in range(8)]
    assert len(set(found)) == 2
    assert found == [rd.verify(path, 6, seed=seed).ok for seed in range(8)]


def test_a_negative_number_of_entries_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        rd.verify(path, -1)


def test_workers_find_what_threads_find(path: Path, client: Client) -> None:
    swap(path, INNER, EDGE)
    flip(path, CORNER)
    assert rd.verify(path, client=client) == rd.verify(path)


def test_verify_writes_nothing(path: Path) -> None:
    delete(path, INNER)
    before = contents(path, "**/*.*")
    rd.verify(path)
    rd.verify(LocalStore(path, read_only=True))
    assert contents(path, "**/*.*") == before


def test_repair_of_a_sound_store_computes_nothing(path: Path, client: Client) -> None:
    before = contents(path, "gram/records/*.json")
    after = rd.repair(path, client)
    assert after == rd.verify(path)
    assert contents(path, "gram/records/*.json") == before


def test_repair_keeps_to_the_backend_of_the_store(tmp_path: Path, client: Client) -> None:
    store = ensure_store(
        KERNEL, samples(N), None, store=tmp_path / "gram", tile=TILE, backend="numpy"
    )
    for tile in store.missing_tiles():
        compute_tile(store.location, tile, "numpy")
    before = contents(tmp_path / "gram")
    flip(tmp_path / "gram", INNER)
    assert rd.repair(tmp_path / "gram", client).ok
    assert contents(tmp_path / "gram") == before
    assert store.records()[INNER].backend == "numpy"


def test_repair_completes_a_half_finished_store(whole: Path, path: Path, client: Client) -> None:
    for tile in (INNER, EDGE):
        delete(path, tile)
        (path / record_key(tile)).unlink()
    old = contents(path, "gram/records/*")
    assert rd.repair(path, client).ok
    assert contents(path) == contents(whole)
    assert old.items() < contents(path, "gram/records/*").items()


def test_a_copy_of_a_half_finished_store_resumes(
    whole: Path, path: Path, tmp_path: Path, client: Client
) -> None:
    delete(path, INNER)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", path, copy], check=True)
    gram = rd.gram(KERNEL, samples(N), store=copy, client=client, progress=False)
    assert gram.complete
    assert contents(copy) == contents(whole)
    assert rd.verify(copy).ok
    assert verdicts(rd.verify(path)) == {INNER: "missing"}


def test_the_report_follows_a_repair(path: Path, client: Client) -> None:
    store = GramStore.open(path)
    first = store.report()
    assert first is not None
    assert (first["tiles"], first["recorded"], first["backends"]) == (6, 6, [fastest_backend()])
    assert first["pair_steps"] > 0
    assert first["started"] < first["finished"]
    flip(path, INNER)
    rd.repair(path, client)
    second = store.report()
    assert second is not None
    assert second["finished"] > first["finished"]
    assert second["pair_steps"] == first["pair_steps"]


# -- files that do not belong ---------------------------------------------------------------------


def test_foreign_files_are_named_and_harm_nothing(path: Path, client: Client) -> None:
    names = ["gram/c/0/1 copy", "gram/c/0/1." + "0f" * 16 + ".partial", "gram/c/2/0", "notes.txt"]
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"half a tile")
    found = rd.verify(path)
    assert found.ok
    assert list(found.foreign) == sorted(names)
    rd.repair(path, client)
    # The partial file may have a living writer; the others are somebody's.
    assert list(rd.verify(path).foreign) == sorted(names)


# -- what cannot be judged or repaired ------------------------------------------------------------


def test_damaged_sequences_are_named_and_nothing_is_deleted(path: Path, client: Client) -> None:
    chunk = path / "sequences/values/c/0/0"
    data = bytearray(chunk.read_bytes())
    data[30] ^= 1
    chunk.write_bytes(data)
    flip(path, INNER)
    before = contents(path)
    found = rd.verify(path)
    assert verdicts(found) == {None: "sequences", INNER: "damaged"}
    assert (found.sound, found.entries) == (5, 0)
    assert found.to_dict()["problems"][0]["tile"] is None
    with pytest.raises(StoreFormatError, match="nothing can be computed from its sequences"):
        rd.repair(path, client)
    assert contents(path) == before


def test_other_sequences_are_named(path: Path, tmp_path: Path) -> None:
    other = compute(tmp_path / "other", Y=samples(N, seed=9))
    shutil.rmtree(path / "sequences")
    shutil.copytree(Path(str(other.location)) / "sequences_y", path / "sequences")
    found = rd.verify(path)
    assert [problem.detail for problem in found.problems] == [
        "sequences: they are not the ones that the manifest names"
    ]
    shutil.rmtree(path / "sequences")
    assert "they cannot be read" in rd.verify(path).problems[0].detail


def test_an_altered_manifest_is_refused(path: Path) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["rntk_dist"]["identity"]["kernel"]["sigma_w"] = 1.2
    (path / "zarr.json").write_text(json.dumps(document))
    for refuse in (rd.verify, rd.repair):
        with pytest.raises(StoreFormatError, match="altered or damaged"):
            refuse(path)


def test_a_store_that_vanishes_is_said_to_have_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = GramStore.read_tile

    def vanish(self: GramStore, tile: Tile) -> Any:
        shutil.rmtree(path, ignore_errors=True)
        return read(self, tile)

    monkeypatch.setattr(GramStore, "read_tile", vanish)
    with pytest.raises(FileNotFoundError, match="there is no Gram store at"):
        rd.verify(path)


def test_a_read_only_store_is_verified_but_not_repaired(path: Path, client: Client) -> None:
    flip(path, INNER)
    store = LocalStore(path, read_only=True)
    assert verdicts(rd.verify(store)) == {INNER: "damaged"}
    with pytest.raises(PermissionError, match="is read-only: it can be verified, but not repaired"):
        rd.repair(store, client)


def test_a_store_that_refuses_writes_is_not_repaired(
    path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: GramStore, tiles: object) -> None:
        raise OSError(30, "Read-only file system", "x")

    flip(path, INNER)
    before = contents(path)
    monkeypatch.setattr(GramStore, "discard", refuse)
    with pytest.raises(PermissionError, match="cannot be written to: it can be verified"):
        rd.repair(path, client)
    assert contents(path) == before


def test_a_store_in_memory_is_verified_but_not_repaired(path: Path) -> None:
    memory = MemoryStore()
    sequences = samples(N)
    disk = GramStore.open(path)
    store = GramStore.create(memory, disk.manifest, sequences)
    for tile in store.missing_tiles():
        store.write_tile(tile, disk.read_tile(tile))
    assert rd.verify(memory).ok
    with pytest.raises(ValueError, match="is in this process's memory"):
        rd.repair(memory)


@pytest.mark.slow
def test_a_store_on_s3_is_like_any_other(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto.server", reason="moto's server is not installed")
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    s3_servers = pytest.importorskip("s3_servers")
    with s3_servers.moto() as address:
        s3_servers.use(monkeypatch, address)
        url = f"s3://{s3_servers.BUCKET}/{uuid.uuid4().hex}"
        store = compute(url)
        report = store.report()
        assert report is not None
        assert report["recorded"] == 6
        assert rd.verify(url).ok
        array = zarr.open_array(url, path="gram", mode="r+")
        block = np.array(array[0:TILE, TILE : 2 * TILE])
        array[0:TILE, TILE : 2 * TILE] = block * 2
        store.discard([EDGE])
        assert verdicts(rd.verify(url)) == {INNER: "wrong", EDGE: "missing"}
        assert rd.repair(url, client).ok
        assert np.array_equal(array[0:TILE, TILE : 2 * TILE], block)


# -- the command line -----------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_verify_and_repair_as_commands(whole: Path, path: Path) -> None:
    assert run("verify", path).returncode == 0
    flip(path, INNER)
    delete(path, EDGE)
    plain = run("verify", path, "--recompute", 10)
    assert plain.returncode == 1, plain.stderr
    assert plain.stdout.splitlines() == [
        "(0, 1)\tdamaged\tits chunk does not match its checksum",
        "(1, 2)\tmissing\tit is not stored",
        plain.stdout.splitlines()[-1],
    ]
    assert plain.stdout.splitlines()[-1].startswith("4 of 6 tiles are sound; ")
    found = run("verify", path, "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout) == rd.verify(path).to_dict()
    assert [p["tile"] for p in json.loads(found.stdout)["problems"]] == [[0, 1], [1, 2]]
    done = run("repair", path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sound"] == 6
    assert contents(path) == contents(whole)


@pytest.mark.slow
def test_info_as_a_command(path: Path) -> None:
    delete(path, INNER)
    done = run("info", path, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kernel"] == KERNEL.to_dict()
    assert facts["shape"] == [N, N]
    assert facts["tiles"] == {"stored": 5, "total": 6}
    assert facts["bytes"] == {"stored": 5 * 2052, "total": 6 * 2052}
    document = json.loads((path / "zarr.json").read_text())["attributes"]["rntk_dist"]
    assert facts["identity_sha256"] == document["identity_sha256"]
    assert facts["report"] == document["report"]
    plain = run("info", path)
    assert plain.returncode == 0
    assert "tiles\tstored 5, total 6" in plain.stdout.splitlines()


@pytest.mark.parametrize("command", ["verify", "repair", "info"])
def test_what_cannot_be_answered_is_said_in_one_sentence(tmp_path: Path, command: str) -> None:
    none = run(command, tmp_path / "none")
    assert none.returncode == 2
    sentence = f"rntk-dist {command}: there is no Gram store at {tmp_path / 'none'}"
    assert none.stderr.splitlines() == [sentence]
    assert none.stdout == ""


@pytest.mark.slow
def test_a_command_without_a_store_is_refused() -> None:
    assert run("verify").returncode == 2


@pytest.mark.slow
def test_repair_on_a_scheduler_that_is_not_there(path: Path) -> None:
    done = run("repair", path, "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9" in done.stderr


@pytest.mark.slow
def test_repair_on_a_scheduler(whole: Path, path: Path) -> None:
    flip(path, INNER)
    with LocalCluster(
        n_workers=1,
        processes=False,
        host="127.0.0.1",
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        done = run("repair", path, "--scheduler", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert contents(path) == contents(whole)
