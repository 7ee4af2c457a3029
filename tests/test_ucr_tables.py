"""The tables of the full UCR run: every number that follows from others is computed again here."""

from __future__ import annotations

import csv
import re
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from real_archive import BASELINES
from scipy import stats

from rntk_dist.experiments import archive, report, statistics, tables, ucr
from rntk_dist.experiments.networks import KINDS
from rntk_dist.experiments.results import NO_PROCEDURE
from rntk_dist.experiments.statistics import AccuracyTable, PairTest, Summary

PAGE = Path(__file__).parent.parent / "docs/experiments/ucr.md"
FOLDER = PAGE.with_suffix("")
NAMES = sorted(path.name.removesuffix("-accuracy.csv") for path in FOLDER.glob("*-accuracy.csv"))
PUBLISHED = "(published)"


@pytest.fixture(scope="module")
def results() -> list[ucr.Result]:
    return report.read_results(FOLDER / "results.csv")


def accuracies(name: str) -> AccuracyTable:
    return report.read_accuracies(FOLDER / f"{name}-accuracy.csv")


def exact(table: AccuracyTable) -> list[list[Fraction]]:
    """By data set, each accuracy as the share that it is: of 3 times 3840 samples, at most."""
    return [[Fraction(x).limit_denominator(3 * 3840) for x in row] for row in table.accuracy]


def places(values: list[Fraction]) -> list[int]:
    """Whole numbers that are ordered, and tied, as these."""
    distinct = sorted(set(values))
    return [distinct.index(value) for value in values]


def test_each_procedure_has_66_data_sets_of_one_length_and_7_of_several() -> None:
    sizes = {name: len(accuracies(name).sets) for name in NAMES}
    assert sizes == {
        "normalised-one-length": 66,
        "normalised-several-lengths": 7,
        "paper-one-length": 66,
        "paper-several-lengths": 7,
    }


def test_every_method_was_run_on_every_data_set(results: list[ucr.Result]) -> None:
    """By the procedures that it has; sets of one length know fewer ways of padding."""
    found: dict[str, set[tuple[str, str]]] = {}
    for result in results:
        found.setdefault(result.data_set, set()).add((result.method, result.procedure))
    assert len(found) == 73
    assert sum(map(len, found.values())) == len(results)
    kinds = {frozenset(methods) for methods in found.values()}
    assert len(kinds) == 2
    for methods in kinds:
        assert {(kind, NO_PROCEDURE) for kind in KINDS} < methods
        assert {(ucr.SUM, "normalised"), (ucr.NEAREST, NO_PROCEDURE)} < methods
        assert {(ucr.CHOSEN, "paper"), (ucr.CHOSEN, "normalised")} < methods


def test_the_papers_grid_is_whole_and_reduced_ones_are_marked(results: list[ucr.Result]) -> None:
    assert all(1 <= result.kernels <= result.grid for result in results if result.grid)
    papers = [result for result in results if result.method == ucr.THE_PAPERS]
    assert {(result.kernels, result.grid) for result in papers} == {(900, 900)}
    assert "*RNTK last* saw all 900 kernels on every data set" in PAGE.read_text()


def test_accuracies_are_those_of_the_results(results: list[ucr.Result]) -> None:
    again = report.comparisons(results)
    assert sorted(again) == NAMES
    for name, table in again.items():
        kept = accuracies(name)
        own = [i for i, method in enumerate(kept.methods) if not method.endswith(PUBLISHED)]
        assert table.sets == kept.sets
        assert table.methods == tuple(kept.methods[i] for i in own)
        assert np.array_equal(table.accuracy, kept.accuracy[:, own])


def test_times_are_those_of_the_results(results: list[ucr.Result]) -> None:
    kept = tables.read_dataclasses(FOLDER / "times.csv", report.SetTime)
    assert kept == report.times(results)
    assert len(kept) == 73


@pytest.mark.parametrize("name", NAMES)
def test_summaries_follow_from_the_accuracies(name: str) -> None:
    table = accuracies(name)
    rows = exact(table)
    shares = [[value / max(row) for value in row] for row in rows]
    rank = np.mean([stats.rankdata(places([-value for value in row])) for row in rows], axis=0)
    kept = tables.read_dataclasses(FOLDER / f"{name}-summary.csv", Summary)
    assert tuple(row.method for row in kept) == table.methods
    for i, row in enumerate(kept):
        own = [share[i] for share in shares]
        assert row.mean == pytest.approx(table.accuracy[:, i].mean())
        assert row.p90 == pytest.approx(sum(x >= Fraction(9, 10) for x in own) / len(own))
        assert row.p95 == pytest.approx(sum(x >= Fraction(19, 20) for x in own) / len(own))
        assert row.pma == pytest.approx(float(sum(own)) / len(own))
        assert row.rank == pytest.approx(rank[i])


@pytest.mark.parametrize("name", NAMES)
def test_tests_of_pairs_follow_from_the_accuracies(name: str) -> None:
    """From differences of exact fractions: of those that are equal none is before another."""
    table = accuracies(name)
    values = dict(zip(table.methods, zip(*exact(table), strict=True), strict=True))
    kept = tables.read_dataclasses(FOLDER / f"{name}-pairs.csv", PairTest)
    assert [(row.first, row.second) for row in kept] == list(combinations(table.methods, 2))
    for row in kept:
        pairs = zip(values[row.first], values[row.second], strict=True)
        differences = [first - second for first, second in pairs]
        signs = np.sign([float(difference) for difference in differences])
        assert row.wins == (signs > 0).sum()
        assert row.ties == (signs == 0).sum()
        assert row.losses == (signs < 0).sum()
        sizes = 1 + np.array(places([abs(difference) for difference in differences]))
        if signs.any():
            expected = stats.wilcoxon(signs * sizes, zero_method="pratt").pvalue
            assert row.p == pytest.approx(expected)
    assert statistics.holm([row.p for row in kept]) == pytest.approx([r.p_holm for r in kept])


@pytest.mark.parametrize("name", NAMES)
def test_the_code_writes_the_same_tables_again(name: str, tmp_path: Path) -> None:
    report.write_comparison(tmp_path, name, accuracies(name))
    for part, kind in (("summary", Summary), ("pairs", PairTest)):
        file = f"{name}-{part}.csv"
        again = tables.read_dataclasses(tmp_path / file, kind)
        kept = tables.read_dataclasses(FOLDER / file, kind)
        for one, other in zip(again, kept, strict=True):
            assert one.__dict__ == pytest.approx(other.__dict__)
    file = f"{name}-accuracy.csv"
    assert (tmp_path / file).read_text() == (FOLDER / file).read_text()


def test_published_accuracies_are_those_of_the_archive(results: list[ucr.Result]) -> None:
    """Of all that is published of these data sets one error is that of no number of samples."""
    if not BASELINES.exists():
        pytest.skip("the archive's data is not on this machine")
    published = archive.read_published(BASELINES)
    others = set()
    for name, table in report.comparisons(results, published).items():
        assert np.array_equal(table.accuracy, accuracies(name).accuracy)
        for i, method in enumerate(table.methods):
            for data_set, accuracy in zip(table.sets, table.accuracy[:, i], strict=True):
                row = published[data_set]
                if method.endswith(PUBLISHED):
                    learned = "learned" in method
                    error = row.error_dtw_learned_window if learned else row.error_dtw_full_window
                    assert 1 - accuracy == pytest.approx(error, abs=0.501e-4)
                    if abs(round(accuracy * row.test) / row.test - accuracy) > 1e-12:
                        others.add((data_set, error))
    assert others == {("ShapesAll", 0.198)}


def test_the_nearest_neighbours_errors_are_the_published_ones(results: list[ucr.Result]) -> None:
    """Exactly, where lengths are equal: data, splits and normalisation are the archive's."""
    if not BASELINES.exists():
        pytest.skip("the archive's data is not on this machine")
    published = archive.read_published(BASELINES)
    one_length = set(accuracies("normalised-one-length").sets)
    nearest = [r for r in results if r.method == ucr.NEAREST and r.data_set in one_length]
    assert len(nearest) == 66
    for result in nearest:
        assert round(1 - result.accuracy, 4) == published[result.data_set].error_euclidean


def test_the_page_says_what_the_tables_hold() -> None:
    """Each of its tables is named in a comment before it: '<!-- normalised-one-length -->'."""
    parts = re.split(r"<!-- (\S+) -->\n", PAGE.read_text())[1:]
    shown = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(shown) == set(NAMES)
    for name, text in shown.items():
        summary = {
            row.method: row
            for row in tables.read_dataclasses(FOLDER / f"{name}-summary.csv", Summary)
        }
        lines = text.strip().split("\n\n")[0].splitlines()[2:]
        rows = [line.strip("|").split("|") for line in lines]
        assert len(rows) == len(summary)
        for method, *cells in rows:
            row = summary[method.strip(" *")]
            told = [cell.strip(" *") for cell in cells]
            mean, p90, p95, pma = (f"{100 * v:.1f}" for v in (row.mean, row.p90, row.p95, row.pma))
            assert told == [mean, p90, p95, pma, f"{row.rank:.2f}"]


def test_tables_are_plain_and_whole() -> None:
    for path in FOLDER.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            lengths = {len(row) for row in csv.reader(file)}
        assert len(lengths) == 1, path
