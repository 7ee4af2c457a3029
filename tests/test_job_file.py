"""Job files: what they say is what is computed, and what they cannot say is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rntk_dist.creation import Wanted, ensure_store
from rntk_dist.job_file import JobFile, JobFileError
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.sequences import Sequences
from rntk_dist.store import locate

KERNEL = RNTK(depth=2, activation="erf", sigma_w=1.3, sigma_b=0.1, readout="per_step")
WHOLE = JobFile(KERNEL, "/data/x.tsv", "/data/y.tsv", "s3://bucket/g.zarr", "nngp", "float32", 64)
LEAST = JobFile(RNTK(), "/data/x.tsv")


@pytest.fixture
def X() -> Sequences:
    rng = np.random.default_rng(3)
    return Sequences.from_arrays(
        [rng.normal(size=(t, 2)) for t in (3, 5, 2, 4, 6)], labels=[*"abcab"]
    )


@pytest.mark.parametrize("job", [WHOLE, LEAST], ids=["whole", "least"])
def test_a_job_round_trips_through_dict_toml_and_yaml(job: JobFile, tmp_path: Path) -> None:
    assert JobFile.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    (tmp_path / "job.toml").write_text(job.to_toml())
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.to_dict()))
    assert JobFile.read(tmp_path / "job.toml") == job
    assert JobFile.read(tmp_path / "job.yaml") == job


def test_the_example_in_the_module_is_a_job_file(tmp_path: Path) -> None:
    from rntk_dist import job_file

    assert job_file.__doc__ is not None
    (tmp_path / "job.toml").write_text(job_file.__doc__.partition("\n\n")[2])
    job = JobFile.read(tmp_path / "job.toml")
    assert job.kernel == RNTK(depth=2, sigma_w=1.3)
    assert (job.x, job.store) == (str(tmp_path / "train.tsv"), str(tmp_path / "gram.zarr"))


def test_relative_paths_start_from_the_folder_of_the_job_file(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    text = "[data]\nx = '../x.npy'\ny = 's3://bucket/y.zarr'\n[run]\nstore = 'g.zarr'\n"
    (folder / "job.toml").write_text(text)
    job = JobFile.read(folder / "job.toml")
    assert (job.x, job.y, job.store) == (
        f"{folder}/../x.npy",
        "s3://bucket/y.zarr",
        f"{folder}/g.zarr",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[kernel]\ndetph = 2\n[data]\nx = 'x'",
            r"\[kernel\] has no 'detph': did you mean 'depth'",
        ),
        ("[data]\nx = 'x'\n[run]\nsotre = 'g'", r"\[run\] has no 'sotre': did you mean 'store'"),
        ("[data]\nx = 'x'\nqq = 'y'", r"\[data\] has no 'qq': it has x, y"),
        ("[krnel]\ndepth = 2", "the job file has no 'krnel': did you mean 'kernel'"),
        ("[kernel]\ndepth = 2", r"\[data\] has no x: name the file of the sequences"),
        ("[data]\nx = 3", "x must be a path or a URL, found 3"),
        ("[data]\nx = ''", "x must be a path or a URL, found ''"),
        (
            "[data]\nx = 'x'\n[run]\ntile = '64'",
            "tile must be an integer of at least 1, found '64'",
        ),
        ("[data]\nx = 'x'\n[run]\ntile = 0", "tile must be an integer of at least 1, found 0"),
        ("[data]\nx = 'x'\n[run]\nkind = 'ntkk'", "kind is 'ntkk': choose one of ntk, nngp"),
        ("[kernel]\ndepth = 1.5\n[data]\nx = 'x'", "depth must be an integer, found 1.5"),
        ("kernel = 3\n[data]\nx = 'x'", "kernel must be a table, found 3"),
        ("[data\nx = 'x'", "line 1"),
        ("", r"\[data\] has no x"),
    ],
)
def test_what_a_job_file_cannot_say_is_refused(tmp_path: Path, text: str, message: str) -> None:
    place = tmp_path / "job.toml"
    place.write_text(text)
    with pytest.raises(JobFileError, match=f"^{place}: .*{message}"):
        JobFile.read(place)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("job.yaml", "data: [x", "expected"),
        ("job.yml", "- x", "found no tables"),
        ("job.json", "{}", "suffix '.json' is none of .toml, .yaml, .yml"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(JobFileError, match=message):
        JobFile.read(tmp_path / name)


def test_a_job_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"job\.toml"):
        JobFile.read(tmp_path / "job.toml")


def test_options_take_the_place_of_what_the_file_says() -> None:
    job = WHOLE.changed({"depth": 3}, {"store": "h.zarr", "tile": 128})
    assert job.kernel == RNTK(
        depth=3, activation="erf", sigma_w=1.3, sigma_b=0.1, readout="per_step"
    )
    assert (job.store, job.tile, job.kind) == ("h.zarr", 128, "nngp")
    with pytest.raises(ValueError, match="frozen_layers is 4"):
        WHOLE.changed({"frozen_layers": 4}, {})


@pytest.mark.parametrize("rectangular", [False, True])
def test_the_job_of_a_store_is_its_matrix(X: Sequences, tmp_path: Path, rectangular: bool) -> None:
    Y = X[[1, 3]] if rectangular else None
    where, options = tmp_path / "no-suffix", {"kind": "nngp", "dtype": "float32"}
    store = ensure_store(KERNEL, X, Y, store=where, tile=3, **options)  # type: ignore[arg-type]
    (tmp_path / "job.toml").write_text(JobFile.of_store(store).to_toml())
    job = JobFile.read(tmp_path / "job.toml")
    rows, cols = job.sequences()
    assert np.array_equal(rows.labels, X.labels)
    again = Wanted(locate(where), job.kernel, rows, cols, job.kind, job.tile, job.dtype)
    assert again.find() is not None  # IdentityError if it were another matrix
    anew = ensure_store(
        job.kernel, rows, cols, store=tmp_path / "b", kind=job.kind, tile=job.tile, dtype=job.dtype
    )
    assert anew.manifest == store.manifest


def test_a_symmetric_store_has_no_sequences_of_columns(X: Sequences, tmp_path: Path) -> None:
    ensure_store(KERNEL, X, None, store=tmp_path / "g", tile=3)
    job = JobFile(KERNEL, f"{tmp_path}/g/sequences", f"{tmp_path}/g/sequences_y")
    with pytest.raises(ValueError, match="holds a symmetric matrix"):
        job.sequences()


def test_sequences_of_files_are_read(X: Sequences, tmp_path: Path) -> None:
    X.write(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", np.array([[1.0, 2.0, np.nan]]))
    rows, cols = JobFile(KERNEL, f"{tmp_path}/x.npz", f"{tmp_path}/y.npy").sequences()
    assert rows.fingerprint == X.fingerprint
    assert cols is not None
    assert cols.lengths.tolist() == [2]


def test_unknown_names_are_refused_in_a_dict_too() -> None:
    data: dict[str, Any] = {"data": {"x": "x"}, "run": {"backends": "numpy"}}
    with pytest.raises(JobFileError, match=r"\[run\] has no 'backends': did you mean 'backend'"):
        JobFile.from_dict(data)
