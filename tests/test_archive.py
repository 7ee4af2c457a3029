"""The UCR archive: what is read is what the files say, and gives the published errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from real_archive import BASELINES, unpacked

import rntk_dist as rd
from rntk_dist.experiments import archive

TRAIN = "1\t0.5\t1.5\tNaN\n-2\t1\tNaN\t3\n"
TEST = "1\tNaN\t2\t4\n"


def written(root: Path, name: str, train: str = TRAIN, test: str = TEST) -> Path:
    """A data set in the archive's layout."""
    (root / name).mkdir(parents=True)
    (root / name / f"{name}_TRAIN.tsv").write_text(train)
    (root / name / f"{name}_TEST.tsv").write_text(test)
    return root


def test_a_data_set_has_its_lengths_labels_and_gaps_filled(tmp_path: Path) -> None:
    data = archive.read(written(tmp_path, "Two"), "Two")
    assert [x.ravel().tolist() for x in data.train] == [[0.5, 1.5], [1.0, 2.0, 3.0]]
    assert [x.ravel().tolist() for x in data.test] == [[2.0, 2.0, 4.0]]
    assert archive.labels_of(data.train).tolist() == [1, -2]
    assert archive.labels_of(data.train).dtype == np.int64
    assert (data.name, data.classes, data.shortest, data.longest) == ("Two", 2, 2, 3)
    assert data.filled == 2
    assert len(data.sequences) == 3


def test_names_are_those_of_folders_that_hold_a_set_of_their_name(tmp_path: Path) -> None:
    written(written(tmp_path, "B"), "A")
    (tmp_path / "notes").mkdir()
    (tmp_path / "A" / "Old_TRAIN.tsv").write_text(TRAIN)
    assert archive.names(tmp_path) == ("A", "B")
    with pytest.raises(ValueError, match=r"found no NAME/NAME_TRAIN.tsv: give the folder"):
        archive.names(tmp_path / "notes")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    written(tmp_path, "Bad", train="1\tone\n")
    written(tmp_path, "Empty", test="1\tNaN\tNaN\n")
    with pytest.raises(ValueError, match=r"Bad_TRAIN.tsv: .*'one'.* row 0"):
        archive.read(tmp_path, "Bad")
    with pytest.raises(ValueError, match=r"Empty_TEST.tsv: sequence 0 is empty"):
        archive.read(tmp_path, "Empty")
    with pytest.raises(FileNotFoundError, match=r"None_TRAIN.tsv: no such file: give a name"):
        archive.read(tmp_path, "None")


def test_normalised_sequences_have_mean_0_and_deviation_1_and_constants_are_0() -> None:
    x = rd.Sequences.from_arrays([[1.0, 2.0, 6.0], [0.1] * 7], labels=[3, 4])
    first, second = archive.z_normalised(x)
    assert np.allclose(first.ravel(), np.array([-2.0, -1.0, 3.0]) / np.sqrt(14 / 3))
    assert not second.any()
    assert archive.labels_of(archive.z_normalised(x)).tolist() == [3, 4]


def test_vectors_are_padded_cut_or_stretched() -> None:
    x = rd.Sequences.from_arrays([[[1.0, 10.0], [3.0, 30.0]], [[5.0, 50.0]]])
    assert archive.zero_padded(x, 2).tolist() == [[1, 10, 3, 30], [5, 50, 0, 0]]
    assert archive.zero_padded(x, 1).tolist() == [[1, 10], [5, 50]]
    assert archive.rescaled(x, 3).tolist() == [[1, 10, 2, 20, 3, 30], [5, 50, 5, 50, 5, 50]]


def test_the_nearest_neighbour_is_sought_among_padded_and_normalised_sequences() -> None:
    train = rd.Sequences.from_arrays([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], labels=[1, 2])
    test = rd.Sequences.from_arrays([[7.0], [0.0, 9.0], [1.0, 3.0]], labels=[2, 1, 2])
    data = archive.DataSet("three", train, test)
    assert archive.nearest_neighbour_error(data) == pytest.approx(1 / 3)


def test_published_figures_are_read(tmp_path: Path) -> None:
    header = "name,type,train,test,classes,length,error_1nn_euclidean,"
    header += "error_1nn_dtw_learned_window,error_1nn_dtw_full_window,error_majority\n"
    path = tmp_path / "baselines.csv"
    path.write_text(header + "A,Image,3,4,2,Vary,0.5,0.25,0.125,0.75\n")
    (row,) = archive.read_published(path).values()
    assert row == archive.Published("A", "Image", 3, 4, 2, None, 0.5, 0.25, 0.125, 0.75)
    path.write_text("name,type\nA,Image\n")
    with pytest.raises(ValueError, match=r"baselines.csv: found no usable 'train'"):
        archive.read_published(path)


@pytest.mark.parametrize(
    ("error", "test", "accuracy"),
    [
        (0.3333, 30, 20 / 30),
        (0.6667, 3, 1 / 3),
        (0.0, 7, 1.0),
        (1.0, 7, 0.0),
        (0.0003, 9000, 8997 / 9000),
        (0.198, 600, 1 - 0.198),  # 119 of 600 are 0.1983
    ],
)
def test_a_published_error_is_that_of_a_number_of_sequences(
    error: float, test: int, accuracy: float
) -> None:
    assert archive.published_accuracy(error, test) == accuracy


@pytest.mark.parametrize("test", [1, 3, 28, 391, 3840, 8236, 9999])
def test_every_number_of_sequences_is_found_again_in_four_digits(test: int) -> None:
    for wrong in range(test + 1):
        found = archive.published_accuracy(round(wrong / test, 4), test)
        assert found == (test - wrong) / test


# -- the real archive ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("ucr"))


@pytest.mark.slow
def test_one_nearest_neighbour_has_the_published_error_on_every_set_of_one_length(
    real: Path,
) -> None:
    """Which proves loading, splits and normalisation: the published errors have four digits."""
    published = archive.read_published(BASELINES)
    found, expected = {}, {}
    for name, row in published.items():
        data = archive.read(real, name)
        assert (len(data.train), len(data.test), data.classes) == (row.train, row.test, row.classes)
        assert row.length in (None, data.longest)
        assert (data.shortest == data.longest) == (row.length is not None)
        if row.length is not None:
            found[name] = round(archive.nearest_neighbour_error(data), 4)
            expected[name] = row.error_euclidean
    assert set(archive.names(real)) == set(published)
    assert len(found) == 66
    assert found == expected
