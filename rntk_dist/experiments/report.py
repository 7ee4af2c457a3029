"""Results of the UCR experiment as tables: read, written, and brought side by side."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rntk_dist.experiments import tables
from rntk_dist.experiments.archive import Published, published_accuracy
from rntk_dist.experiments.results import NO_PROCEDURE, Result
from rntk_dist.experiments.statistics import (
    AccuracyTable,
    PairTest,
    Summary,
    pair_tests,
    summaries,
)
from rntk_dist.experiments.ucr import CHOSEN, PROCEDURES

ONE_LENGTH_ONLY = "RBF"
"""Where lengths vary it goes by other names: see `methods`."""


def write_results(path: Path, results: Iterable[Result]) -> None:
    """One row a result, in a CSV file that `read_results` gives back."""
    tables.write_dataclasses(path, Result, results)


def read_results(path: Path) -> list[Result]:
    """What `write_results` wrote.

    Raises ValueError where a column is missing or no number.
    """
    return tables.read_dataclasses(path, Result)


@dataclass(frozen=True)
class SetTime:
    """Seconds of all methods on one data set: by the clock, one after another, and of all cores."""

    data_set: str
    seconds: float
    core_seconds: float


def times(results: Iterable[Result]) -> list[SetTime]:
    """One for each data set.

    A method's time stands in the rows of all its procedures, and counts once; the best of several
    methods took no time of its own.
    """
    own: dict[str, dict[str, Result]] = {}
    for result in results:
        if result.method != CHOSEN:
            own.setdefault(result.data_set, {})[result.method] = result
    return [
        SetTime(
            name,
            round(sum(result.seconds for result in methods.values()), 3),
            round(sum(result.core_seconds for result in methods.values()), 3),
        )
        for name, methods in own.items()
    ]


def accuracies(
    results: Iterable[Result],
    procedure: str,
    *,
    sets: Collection[str] | None = None,
    published: Mapping[str, Published] | None = None,
) -> AccuracyTable:
    """Accuracies of one procedure on all data sets, or on some: (data sets, methods).

    Methods that lack a data set are left out: on data sets of one and of several lengths together
    those remain that know no length. With `published`, which must know every data set, the 1-NN
    with dynamic time warping stands beside them.

    Raises ValueError where nothing is left.
    """
    rows = [
        (result.data_set, result.method, result.accuracy)
        for result in results
        if result.procedure in (procedure, NO_PROCEDURE)
        and (sets is None or result.data_set in sets)
    ]
    names = {name for name, _, _ in rows}
    if published is not None:
        rows += _published_rows(sorted(names), published)
    known: dict[str, set[str]] = {}
    for name, method, _ in rows:
        known.setdefault(method, set()).add(name)
    return AccuracyTable.from_rows(row for row in rows if known[row[1]] == names)


def comparisons(
    results: Sequence[Result], published: Mapping[str, Published] | None = None
) -> dict[str, AccuracyTable]:
    """Tables by name: each procedure on the data sets of one length, and on those of several.

    On the latter more methods were run; published errors stand beside where all sets have them.
    Where no kernel was run, there is one table of all data sets.
    """
    names = {result.data_set for result in results}
    if all(result.procedure == NO_PROCEDURE for result in results):
        known = published if published and names <= published.keys() else None
        return {"no-kernels": accuracies(results, NO_PROCEDURE, published=known)}
    one_length = {result.data_set for result in results if result.method == ONE_LENGTH_ONLY}
    groups = {"one-length": one_length, "several-lengths": names - one_length}
    return {
        f"{procedure.name}-{group}": accuracies(
            results,
            procedure.name,
            sets=sets,
            published=published if published and sets <= published.keys() else None,
        )
        for procedure in PROCEDURES
        for group, sets in groups.items()
        if sets
    }


def _published_rows(
    names: Sequence[str], published: Mapping[str, Published]
) -> Iterator[tuple[str, str, float]]:
    for name in names:
        row = published[name]
        for method, error in (
            ("1-NN DTW (published)", row.error_dtw_full_window),
            ("1-NN DTW, learned window (published)", row.error_dtw_learned_window),
        ):
            yield name, method, published_accuracy(error, row.test)


def write_comparison(folder: Path, name: str, table: AccuracyTable) -> None:
    """NAME-accuracy.csv, NAME-summary.csv and NAME-pairs.csv.

    Accuracies are written in full, so that everything else can be computed from them again.
    """
    rows = zip(table.sets, table.accuracy.tolist(), strict=True)
    tables.write(
        folder / f"{name}-accuracy.csv",
        ["data_set", *table.methods],
        ([data_set, *values] for data_set, values in rows),
    )
    tables.write_dataclasses(folder / f"{name}-summary.csv", Summary, summaries(table))
    if pairs := pair_tests(table):
        tables.write_dataclasses(folder / f"{name}-pairs.csv", PairTest, pairs)


def read_accuracies(path: Path) -> AccuracyTable:
    """A table NAME-accuracy.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return AccuracyTable.from_rows(
        (name, method, float(value))
        for name, *values in rows
        for method, value in zip(header[1:], values, strict=True)
    )
