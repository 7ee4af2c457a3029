"""The UCR archive as it lies on disk: data sets, their sizes, the published errors.

The layout is that of the archive of 2018 (Dau et al. 2019): ROOT/NAME/NAME_TRAIN.tsv and
NAME_TEST.tsv, a sequence a line, the label first. Sequences shorter than the longest of their file
are padded at the end with NaN; NaN before a sequence's last value is a value that is missing.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]

_PARTS = ("TRAIN", "TEST")
_FOUR_DIGITS = 0.5e-4 + 1e-9
"""How far a number is from itself to 4 digits, at most."""


@dataclass(frozen=True)
class DataSet:
    """Train and test sequences with their labels.

    `filled` counts the values that were missing inside sequences and are interpolated now.
    """

    name: str
    train: Sequences
    test: Sequences
    filled: int = 0

    @property
    def sequences(self) -> Sequences:
        """All sequences, those for training first."""
        return Sequences.concatenate([self.train, self.test])

    @property
    def classes(self) -> int:
        """How many labels the training part has."""
        return len(np.unique(labels_of(self.train)))

    @property
    def shortest(self) -> int:
        """Steps of the shortest sequence."""
        return int(min(self.train.lengths.min(), self.test.lengths.min()))

    @property
    def longest(self) -> int:
        """Steps of the longest sequence."""
        return int(max(self.train.lengths.max(), self.test.lengths.max()))

    def z_normalised(self) -> DataSet:
        """Each sequence with mean 0 and standard deviation 1 in every feature.

        The published errors are of sequences so normalised; most of the archive is so already.
        """
        return DataSet(
            self.name, z_normalised(self.train), z_normalised(self.test), filled=self.filled
        )


@dataclass(frozen=True)
class Published:
    """What the archive publishes of a data set; errors on its split, as shares of 1.

    `length` is None where lengths vary.
    """

    name: str
    kind: str
    train: int
    test: int
    classes: int
    length: int | None
    error_euclidean: float
    error_dtw_learned_window: float
    error_dtw_full_window: float
    error_majority: float


def names(root: Path) -> tuple[str, ...]:
    """The data sets under a folder, in alphabetical order.

    Raises ValueError where there is none.
    """
    found = sorted(path.parent.name for path in root.glob("*/*_TRAIN.tsv") if _is_set(path))
    if not found:
        raise ValueError(
            f"{root}: found no NAME/NAME_TRAIN.tsv: give the folder that holds the data sets"
        )
    return tuple(found)


def _is_set(train: Path) -> bool:
    return train.name == f"{train.parent.name}_TRAIN.tsv"


def read(root: Path, name: str) -> DataSet:
    """One data set, values as they are in its files; labels are integers, or floats.

    Raises FileNotFoundError without the files, ValueError for lines that are not a label and
    numbers, or a sequence of no value.
    """
    (train, first), (test, second) = (_part(root, name, part) for part in _PARTS)
    return DataSet(name, train, test, filled=first + second)


def _part(root: Path, name: str, part: str) -> tuple[Sequences, int]:
    """The sequences of a file, and how many values inside them were missing."""
    path = root / name / f"{name}_{part}.tsv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file: give a name that stands under {root}, as NAME/NAME_{part}.tsv"
        )
    try:
        table = np.loadtxt(path, ndmin=2, encoding="utf-8")
        values, filled = _without_gaps(table[:, 1:])
        return Sequences.from_nan_padded(values, _whole(table[:, 0])), filled
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _whole(labels: Float64) -> NDArray[np.integer] | Float64:
    """Labels as integers if they all are."""
    rounded = labels.astype(np.int64)
    return rounded if np.array_equal(rounded, labels) else labels


def _without_gaps(table: Float64) -> tuple[Float64, int]:
    """Missing values before a row's last value on the line between their neighbours.

    Before its first value a row has that value. This is what the archive does with its own.
    """
    filled, total = table.copy(), 0
    for i in np.flatnonzero(np.isnan(table).any(axis=1)):
        known = np.flatnonzero(~np.isnan(table[i]))
        if len(known):
            steps = np.arange(known[-1] + 1)
            filled[i, steps] = np.interp(steps, known, table[i, known])
            total += len(steps) - len(known)
    return filled, total


def read_published(path: Path) -> dict[str, Published]:
    """The archive's own table, by data set; columns as in `baselines.csv`.

    Raises FileNotFoundError, or ValueError where a column is missing or no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return {row["name"]: _published(row) for row in csv.DictReader(file)}
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: found no usable {error}: give the archive's table of baselines"
            ) from error


def _published(row: dict[str, str]) -> Published:
    return Published(
        row["name"],
        row["type"],
        int(row["train"]),
        int(row["test"]),
        int(row["classes"]),
        None if row["length"] == "Vary" else int(row["length"]),
        float(row["error_1nn_euclidean"]),
        float(row["error_1nn_dtw_learned_window"]),
        float(row["error_1nn_dtw_full_window"]),
        float(row["error_majority"]),
    )


def published_accuracy(error: float, test: int) -> float:
    """The accuracy of which an error on so many test sequences, in four digits, is published.

    It is a number of right sequences over that of all, so that it ties with an equal accuracy of
    another method: of 30 sequences 0.3333 are 10 wrong, and the accuracy is 2/3 and not 0.6667.
    Below 10,000 sequences no other number has the same digits. An error that is of no number of
    sequences is taken as it is.
    """
    wrong = round(error * test)
    return (test - wrong) / test if abs(wrong / test - error) <= _FOUR_DIGITS else 1 - error


# -- sequences as other methods take them ----------------------------------------------------------


def labels_of(sequences: Sequences) -> NDArray[np.generic]:
    """The labels (n,).  Raises ValueError where there are none."""
    if sequences.labels is None:
        raise ValueError("the sequences have no labels: give them some, they are to be classified")
    return sequences.labels


def z_normalised(sequences: Sequences) -> Sequences:
    """Each sequence with mean 0 and standard deviation 1 in every feature; 0 where it is constant.

    The deviation is the root of the mean square (divided by T, not T - 1).
    """
    sequences.require_numbers("z-normalisation")
    return Sequences.from_arrays([_standard(x) for x in sequences], sequences.labels)


def _standard(x: NDArray[np.floating]) -> Float64:
    centred = x - x.mean(axis=0)
    deviation = centred.std(axis=0)
    # What rounding leaves of a constant is not stretched to noise of deviation 1.
    varies = deviation > 1e-12 * np.abs(x).max(axis=0)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=varies)


def zero_padded(sequences: Sequences, length: int) -> Float64:
    """Vectors (n, length * features): zeros after the end, steps past `length` cut off."""
    sequences.require_numbers("padding with zeros")
    out = np.zeros((len(sequences), length, sequences.n_features))
    for row, sequence in zip(out, sequences, strict=True):
        row[: len(sequence)] = sequence[:length]
    return out.reshape(len(sequences), -1)


def rescaled(sequences: Sequences, length: int) -> Float64:
    """Vectors (n, length * features): each sequence stretched over `length` steps, linearly."""
    sequences.require_numbers("stretching")
    places = np.linspace(0.0, 1.0, length)
    out = np.empty((len(sequences), length, sequences.n_features))
    for row, sequence in zip(out, sequences, strict=True):
        own = np.linspace(0.0, 1.0, len(sequence))
        for feature, channel in enumerate(sequence.T):
            row[:, feature] = np.interp(places, own, channel)
    return out.reshape(len(sequences), -1)


def nearest_neighbour_error(data: DataSet) -> float:
    """Test error of the nearest training sequence in Euclidean distance, as published.

    The archive pads with zeros to the longest sequence, then normalises each to mean 0 and
    deviation 1, the padding included; of equally near sequences the first decides.
    """
    train, test = (
        z_normalised(Sequences.from_arrays(zero_padded(part, data.longest))).values.reshape(
            len(part), -1
        )
        for part in (data.train, data.test)
    )
    nearest = cdist(test, train, "sqeuclidean").argmin(axis=1)
    wrong = labels_of(data.train)[nearest] != labels_of(data.test)
    return float(wrong.mean())
