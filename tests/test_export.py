"""A matrix as one file: the same values, whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rntk_dist import export as module
from rntk_dist.creation import ensure_store
from rntk_dist.export import export
from rntk_dist.gram import Gram, IncompleteGramError, open_gram
from rntk_dist.kernel.rntk import RNTK, DType
from rntk_dist.sequences import Sequences
from rntk_dist.store import CorruptTileError, chunk_key
from rntk_dist.tile_task import compute_tile

KERNEL = RNTK(sigma_b=0.1)
X = Sequences.from_arrays(np.random.default_rng(1).normal(size=(11, 4)), labels=[*"abcdefghijk"])
Y = Sequences.from_arrays(np.random.default_rng(2).normal(size=(7, 6)), labels=range(7))


def filled(where: Path, other: Sequences | None = None, dtype: DType = "float64") -> Gram:
    store = ensure_store(KERNEL, X, other, store=where, tile=4, dtype=dtype)
    for tile in store.plan.tiles():
        compute_tile(store.location, tile, "numpy")
    return open_gram(where)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("other", [None, Y], ids=["symmetric", "rectangular"])
@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_an_export_has_the_bits_of_the_matrix(
    tmp_path: Path, suffix: str, other: Sequences | None, dtype: DType
) -> None:
    gram, out = filled(tmp_path / "g", other, dtype), tmp_path / f"out{suffix}"
    assert export(gram, out) == [out]
    read = np.load(out) if suffix == ".npy" else np.loadtxt(out, delimiter=",", dtype=dtype)
    assert read.dtype == dtype
    assert np.array_equal(read, np.asarray(gram))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", out.name]


def test_tiles_are_counted_as_they_are_written(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export(filled(tmp_path / "g"), tmp_path / "a.npy", on_tile=lambda *at: seen.append(at))
    assert seen == [(n, 6) for n in range(1, 7)]


def test_labels_go_beside_the_matrix(tmp_path: Path) -> None:
    gram = filled(tmp_path / "g", Y)
    files = export(gram, tmp_path / "a.npy", labels=True)
    assert [file.name for file in files] == ["a.npy", "a.labels.npy", "a.labels_y.npy"]
    assert np.load(files[1]).tolist() == [*"abcdefghijk"]
    assert np.load(files[2]).tolist() == list(range(7))
    files = export(gram, tmp_path / "b.csv", labels=True)
    assert files[1].read_text().split() == [*"abcdefghijk"]


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    bare = Sequences(X.values, X.offsets)
    ensure_store(KERNEL, bare, None, store=tmp_path / "g", tile=4)
    with pytest.raises(ValueError, match="have no labels: export without them"):
        export(open_gram(tmp_path / "g"), tmp_path / "a.npy", labels=True)


def test_a_matrix_that_is_not_whole_is_not_exported(tmp_path: Path) -> None:
    gram = filled(tmp_path / "g")
    (tmp_path / "g" / "gram" / "c" / "0" / "1").unlink()
    with pytest.raises(IncompleteGramError, match=r"1 of 6 tiles .*rntk-dist resume"):
        export(gram, tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_a_damaged_tile_leaves_no_file(tmp_path: Path) -> None:
    gram = filled(tmp_path / "g")
    chunk = tmp_path / "g" / chunk_key(gram.plan.tile_of(10, 10))
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with pytest.raises(CorruptTileError):
        export(gram, tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    gram = filled(tmp_path / "g")
    (tmp_path / "a.npy").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a\.npy exists already"):
        export(gram, tmp_path / "a.npy")
    (tmp_path / "b.labels.npy").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b\.labels\.npy exists already"):
        export(gram, tmp_path / "b.npy", labels=True)
    assert not (tmp_path / "b.npy").exists()
    assert (tmp_path / "a.npy").read_text() == "mine"


def test_other_suffixes_and_large_tables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gram = filled(tmp_path / "g")
    with pytest.raises(ValueError, match=r"suffix '\.txt' is neither \.npy nor \.csv"):
        export(gram, tmp_path / "a.txt")
    monkeypatch.setattr(module, "MOST_CSV", 120)
    with pytest.raises(ValueError, match=r"11 x 11 has 121 elements, .* at most 120: .*\.npy"):
        export(gram, tmp_path / "a.csv")


def test_a_drive_without_room_is_told_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gram = filled(tmp_path / "g")
    usage = module.shutil.disk_usage(tmp_path)._replace(free=967)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"takes 968 bytes and .* has 967: make room"):
        export(gram, tmp_path / "a.npy")
