"""The UCR experiment: how sequences are seen, what is tried, and that no choice sees the test part.

Data sets here are made up and tiny; `test_archive` proves that real ones are read right.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from real_archive import BASELINES, unpacked

import rntk_dist as rd
from rntk_dist.experiments import archive, budget, report, tables, ucr
from rntk_dist.experiments.archive import Published
from rntk_dist.experiments.budget import Budget, affordable
from rntk_dist.experiments.inputs import Averaged, Delays, Padded, Rescaled, WithDifferences
from rntk_dist.experiments.methods import (
    RBF,
    MeanOf,
    Method,
    Polynomial,
    Variant,
    methods,
    normalised,
)
from rntk_dist.experiments.ucr import PROCEDURES, Result

TINY = Budget(other=0.1, paper=0.2)


def sequences(n: int = 12, shortest: int = 9, longest: int = 14, seed: int = 0) -> rd.Sequences:
    """Noisy sine waves of two frequencies, labelled 1 and 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2 + 1
    lengths = rng.integers(shortest, longest + 1, n)
    waves = [
        np.sin(label * np.arange(length) + rng.uniform(0, 0.5)) + rng.normal(scale=0.1, size=length)
        for label, length in zip(labels, lengths, strict=True)
    ]
    return rd.Sequences.from_arrays(waves, labels)


def write_part(root: Path, name: str, part: str, content: rd.Sequences) -> None:
    longest = int(content.lengths.max())
    (root / name).mkdir(parents=True, exist_ok=True)
    with (root / name / f"{name}_{part}.tsv").open("w") as file:
        for label, x in zip(archive.labels_of(content), content, strict=True):
            padded = np.pad(x.ravel(), (0, longest - len(x)), constant_values=np.nan)
            file.write("\t".join([str(label), *map(repr, padded.tolist())]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two data sets: one of one length, one of several."""
    for name, shortest in (("Even", 14), ("Ragged", 9)):
        write_part(tmp_path / "ucr", name, "TRAIN", sequences(shortest=shortest))
        write_part(tmp_path / "ucr", name, "TEST", sequences(20, shortest=shortest, seed=1))
    return tmp_path / "ucr"


# -- how sequences are seen ------------------------------------------------------------------------


def test_every_way_of_seeing_keeps_order_and_labels_and_tells_its_shape() -> None:
    given = sequences()
    ways = (Delays(3), Averaged(5), WithDifferences(), Padded(11), Rescaled(11))
    for way in ways:
        seen = way(given)
        assert archive.labels_of(seen).tolist() == archive.labels_of(given).tolist()
        assert way.shape(given) == (pytest.approx(seen.lengths.mean()), seen.n_features)
        alone = way(given[4:5])
        assert np.array_equal(alone[0], seen[4])


def test_windows_of_short_sequences_stand_behind_zeros() -> None:
    two = rd.Sequences.from_arrays([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], [[4.0, 40.0]]])
    first, second = Delays(2)(two)
    assert first.tolist() == [[1, 10, 2, 20], [2, 20, 3, 30]]
    assert second.tolist() == [[0, 0, 4, 40]]


def test_differences_are_a_feature_of_deviation_one() -> None:
    (x,) = WithDifferences()(rd.Sequences.from_arrays([[1.0, 2.0, 4.0]]))
    assert x[:, 0].tolist() == [1.0, 2.0, 4.0]
    changes = np.array([0.0, 1.0, 2.0])
    assert np.allclose(x[:, 1], (changes - 1) / changes.std())


def test_averages_are_of_equal_parts() -> None:
    ((*means,), short) = Averaged(3)(rd.Sequences.from_arrays([np.arange(6.0), [5.0, 7.0]]))
    assert np.ravel(means).tolist() == [0.5, 2.5, 4.5]
    assert short.ravel().tolist() == [5.0, 7.0]


# -- kernels and methods ---------------------------------------------------------------------------


def test_the_network_of_one_step_is_the_tangent_kernel_of_a_plain_network() -> None:
    """(T = 1, no bias: K = q V + q V' cos with q = sigma_u² |x|²/m; Cho and Saul's of degree 1.)"""
    x = np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    variant = Variant(Padded(3), rd.RNTK())
    found = variant.square(rd.Sequences.from_arrays(x))
    theta = np.arccos(x[0] @ x[1] / 9)
    s = 9 / 3
    expected = s * (np.sin(theta) + 2 * (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    assert found[0, 1] == pytest.approx(expected)


@pytest.mark.parametrize("kernel", [RBF(0.3), Polynomial(3, 0.5), rd.RNTK(sigma_b=0.1)])
def test_a_variant_is_one_matrix_in_parts(kernel: object) -> None:
    given = sequences()
    variant = Variant(Padded(10), kernel)  # type: ignore[arg-type]
    whole = variant.square(given)
    assert np.allclose(variant.across(given[7:], given[:7]), whole[7:, :7])
    assert np.allclose(variant.diagonal(given), np.diagonal(whole))
    assert np.linalg.eigvalsh(whole).min() > -1e-9 * np.trace(whole)


def test_the_mean_of_normalised_kernels_is_normalised() -> None:
    given = sequences()
    parts = (Variant(Padded(10), Polynomial(2, 0.1)), Variant(Delays(2), rd.RNTK(sigma_b=0.1)))
    both = MeanOf(parts)
    expected = (normalised(parts[0].square(given)) + normalised(parts[1].square(given))) / 2
    assert np.allclose(both.square(given), expected)
    assert np.allclose(both.across(given[7:], given[:7]), expected[7:, :7])
    assert np.allclose(both.diagonal(given), 1.0)


def test_methods_have_variants_of_distinct_names_and_the_papers_grid_900() -> None:
    for train in (sequences(), sequences(shortest=14)):
        tried = {method.name: method for method in methods(train)}
        assert len(tried) == len(methods(train))
        assert len(tried["RNTK last"].variants) == 900
        for method in tried.values():
            names = [variant.name for variant in method.variants]
            assert len(set(names)) == len(names)
        assert ("RBF" in tried) == train.equal_length
        assert ("RBF, truncated" in tried) == (not train.equal_length)
    assert tried["NTK"].variants[0].name == "RNTK(sigma_b=0.1) on Padded(length=14)"


def test_every_method_depends_on_lengths_of_the_training_part_alone() -> None:
    train = sequences()
    for method in methods(train):
        variant = method.variants[-1]
        other = sequences(5, shortest=3, longest=30, seed=2)
        assert variant.across(other, train).shape == (5, len(train))


def test_long_sequences_are_averaged_where_every_pair_of_steps_counts() -> None:
    long = rd.Sequences.from_arrays(np.random.default_rng(0).normal(size=(300, 400)))
    for work, n_test, steps in ((4e8, 0, 50), (1e8, 0, 25), (4e8, 3000, 50), (4e8, 12000, 25)):
        for method in methods(long, work, n_test):
            if method.name.startswith("RNTK mean"):
                assert {variant.inputs for variant in method.variants} == {Averaged(steps)}


def test_a_small_budget_keeps_the_default_and_the_same_kernels_for_all() -> None:
    train = sequences()
    paper = methods(train)[0]
    one = budget.fit_seconds(train, PROCEDURES)
    few = affordable(paper, train, PROCEDURES, 20.2 * one)
    more = affordable(paper, train, PROCEDURES, 50.2 * one)
    assert (len(few.variants), len(more.variants)) == (20, 50)
    assert few.variants[0] == paper.variants[0]
    assert set(few.variants) < set(more.variants)
    places = [paper.variants.index(variant) for variant in more.variants]
    assert places == sorted(places)
    assert affordable(paper, train, PROCEDURES, 0.0).variants == paper.variants[:1]
    assert affordable(paper, train, PROCEDURES, 1e6) == paper


# -- the experiment --------------------------------------------------------------------------------


@pytest.fixture
def few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variant of each third method: the experiment's course without its work."""

    def some(train: rd.Sequences, mean_work: float, n_test: int) -> tuple[Method, ...]:
        named = {"RNTK last", "RNTK per_step", "NTK", "RBF", "RBF, padded"}
        every = methods(train, mean_work, n_test)
        return tuple(Method(m.name, m.variants[:3]) for m in every if m.name in named)

    monkeypatch.setattr(ucr, "methods", some)


def choices(results: list[Result]) -> list[Result]:
    """All but what may depend on the test part or the clock."""
    return [replace(r, accuracy=0.0, seconds=0.0, core_seconds=0.0) for r in results]


@pytest.mark.usefixtures("few_methods")
def test_permuted_test_labels_leave_every_choice_unchanged(root: Path, tmp_path: Path) -> None:
    results = ucr.run(root, tmp_path / "results", budget=TINY)
    shuffled = tmp_path / "shuffled"
    for name in archive.names(root):
        data = archive.read(root, name)
        labels = np.random.default_rng(3).permutation(archive.labels_of(data.test))
        write_part(shuffled, name, "TRAIN", data.train)
        write_part(shuffled, name, "TEST", replace(data.test, labels=labels))
    others = ucr.run(shuffled, tmp_path / "others", budget=TINY)
    nothing_chosen = [r for r in results if r.method == ucr.NEAREST]
    # And on both a sum, and by both procedures the best of the RNTK's readouts.
    assert len(results) - len(nothing_chosen) == 2 * (4 + 3) + 2 + 2 * 2
    assert choices(results) == choices(others)
    assert [r.accuracy for r in results] != [r.accuracy for r in others]


@pytest.mark.usefixtures("few_methods")
def test_results_are_kept_and_those_of_other_data_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    told: list[tuple[str, int, int]] = []
    results = ucr.run(root, folder, budget=TINY, on_set=lambda *now: told.append(now))
    assert sorted(name for name, _, _ in told) == ["Even", "Ragged"]
    assert [(done, total) for _, done, total in told] == [(1, 2), (2, 2)]
    assert all(0 <= r.accuracy <= 1 and r.kernels <= r.grid for r in results)
    with monkeypatch.context() as patch:
        patch.setattr(ucr, "cross_validate", None)
        assert ucr.run(root, folder, sets=["Ragged", "Even"], budget=TINY)[-1] in results
        (folder / "Even" / "RBF.json").unlink()
        with pytest.raises(TypeError, match="not callable"):
            ucr.run(root, folder, budget=TINY)
    write_part(root, "Even", "TRAIN", sequences(shortest=14, seed=7))
    with pytest.raises(rd.IdentityError, match=r"Even.*keeps results of other data: give another"):
        ucr.run(root, folder, budget=TINY)


def test_the_accuracy_is_that_of_the_kernel_named(root: Path, tmp_path: Path) -> None:
    """Written out by scikit-learn alone, for one method and both procedures."""
    from sklearn.svm import SVC

    data = archive.read(root, "Even").z_normalised()
    work = ucr.SetRun(data, tmp_path, TINY)
    method = Method("RBF", (Variant(Padded(14), RBF(0.1)), Variant(Padded(14), RBF(1.0))))
    for result in work._tried(method):
        variant = next(v for v in method.variants if v.name == result.kernel)
        machine = SVC(kernel="precomputed", C=result.C)
        machine.fit(variant.square(data.train), data.train.labels)
        across = variant.across(data.test, data.train)
        assert result.accuracy == machine.score(across, data.test.labels)


def test_the_best_validated_method_stands_for_all_of_its_kind() -> None:
    blank = Result("A", "", "paper", 3, 9, "RNTK()", 1.0, 0.75, 2, 0.0, 1.5, 2.5)
    tried = [
        replace(blank, method="RNTK a", validation=0.7, accuracy=1.0),
        replace(blank, method="RNTK b", kernel="b", accuracy=0.25),
        replace(blank, method="RNTK c", tied=3, accuracy=0.5),
    ]
    other = [replace(result, procedure="normalised", kernel="n") for result in tried]
    found = list(ucr.best_of([*tried, *other]))
    assert [result.procedure for result in found] == ["paper", "normalised"]
    best = replace(tried[1], method=ucr.CHOSEN, kernels=9, grid=27, tied=5)
    assert found[0] == replace(best, seconds=4.5, core_seconds=7.5)


def test_quick_sets_are_the_smallest_files(root: Path) -> None:
    write_part(root, "Big", "TRAIN", sequences(100))
    write_part(root, "Big", "TEST", sequences(100))
    assert "Big" not in ucr.smallest(root, 2)
    assert len(ucr.smallest(root)) == 3


# -- tables ----------------------------------------------------------------------------------------


def made_up() -> list[Result]:
    blank = Result("", "", "paper", 3, 9, "RNTK()", 1.0, 0.75, 2, 0.0, 1.5, 2.5)
    found = [
        replace(blank, data_set=name, method=method, procedure=procedure, accuracy=accuracy)
        for name, base in (("A", 0.2), ("B", 0.4))
        for method, procedure, accuracy in (
            ("x", "paper", base),
            ("x", "normalised", base + 0.1),
            ("y", "paper", 1 - base),
            ("1-NN Euclidean", "none", 1 / 3),
        )
    ]
    return [*found, replace(blank, data_set="A", method="y", procedure="normalised", accuracy=1.0)]


def test_results_go_to_a_file_and_back(tmp_path: Path) -> None:
    report.write_results(tmp_path / "results.csv", made_up())
    assert report.read_results(tmp_path / "results.csv") == made_up()
    (tmp_path / "results.csv").write_text("data_set,method\nA,x\n")
    with pytest.raises(ValueError, match=r"results.csv: found no usable 'procedure': give"):
        report.read_results(tmp_path / "results.csv")


def test_tables_hold_the_methods_that_have_every_set_and_give_the_same_statistics_again(
    tmp_path: Path,
) -> None:
    paper = report.accuracies(made_up(), "paper")
    assert (paper.sets, paper.methods) == (("A", "B"), ("x", "y", "1-NN Euclidean"))
    assert report.accuracies(made_up(), "normalised").methods == ("x", "1-NN Euclidean")
    assert report.accuracies(made_up(), "normalised", sets=["A"]).methods[-1] == "y"
    published = {
        name: Published(name, "", 1, 1, 2, None, 0.1, 0.2, 0.3, 0.5) for name in ("A", "B")
    }
    with_dtw = report.accuracies(made_up(), "paper", published=published)
    assert with_dtw.accuracy[:, 3:].tolist() == [[0.7, 0.8]] * 2
    report.write_comparison(tmp_path, "paper", paper)
    again = report.read_accuracies(tmp_path / "paper-accuracy.csv")
    assert (again.sets, again.methods) == (paper.sets, paper.methods)
    assert np.array_equal(again.accuracy, paper.accuracy)
    lines = (tmp_path / "paper-summary.csv").read_text().splitlines()
    assert lines[0] == "method,mean,p90,p95,pma,rank"
    assert len(lines) == 4
    assert len((tmp_path / "paper-pairs.csv").read_text().splitlines()) == 4


def test_a_methods_time_on_a_data_set_counts_once() -> None:
    """And that of the best of several methods, which is theirs, not at all."""
    best = replace(made_up()[0], method=ucr.CHOSEN, seconds=99.0, core_seconds=99.0)
    assert report.times([*made_up(), best]) == [
        report.SetTime("A", 3 * 1.5, 3 * 2.5),
        report.SetTime("B", 3 * 1.5, 3 * 2.5),
    ]


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_tables_and_diagrams_and_goes_on(root: Path, tmp_path: Path) -> None:
    """On data sets of one and of several lengths, every method, with Dask workers."""
    command = [str(Path(sys.executable).parent / "rntk-dist"), "experiment", "ucr"]
    arguments = ["--data", str(root), "--folder", str(tmp_path / "out"), "--quick", "--seconds=0"]
    write_part(root, "Other", "TRAIN", sequences(shortest=14, seed=5))
    write_part(root, "Other", "TEST", sequences(shortest=14, seed=6))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=280, check=False
        )

    done = run()
    assert done.returncode == 0, done.stderr
    assert "3/3" in done.stderr
    assert "normalised-one-length: 2 data sets" in done.stdout
    results = report.read_results(tmp_path / "out" / "results.csv")
    assert {r.data_set for r in results} == {"Even", "Other", "Ragged"}
    assert {r.kernels for r in results if r.method == ucr.THE_PAPERS} == {1}
    for name, table in report.comparisons(results).items():
        again = report.read_accuracies(tmp_path / "out" / f"{name}-accuracy.csv")
        assert np.array_equal(again.accuracy, table.accuracy)
        picture = tmp_path / "out" / f"{name}-ranks.png"
        assert picture.exists() == name.endswith("one-length")
    assert all(r.seconds > 0 and r.core_seconds > 0 for r in results)
    spent = tables.read_dataclasses(tmp_path / "out" / "times.csv", report.SetTime)
    assert spent == report.times(results)
    second = run()
    assert second.returncode == 0
    assert report.read_results(tmp_path / "out" / "results.csv") == results


@pytest.mark.slow
def test_eight_real_data_sets_in_three_minutes_of_one_core(tmp_path: Path) -> None:
    """The quick run: every choice by cross-validation, and better than the nearest neighbour."""
    command = [str(Path(sys.executable).parent / "rntk-dist"), "experiment", "ucr", "--quick"]
    root = unpacked(tmp_path / "ucr")
    compile_loops_for(root, ucr.smallest(root))
    options = ["--data", root, "--folder", tmp_path / "out"]
    options += ["--baselines", BASELINES]
    subprocess.run([*command, *map(str, options)], check=True, capture_output=True, timeout=290)
    results = report.read_results(tmp_path / "out" / "results.csv")
    assert len({r.data_set for r in results}) == 8
    # Not by the clock: other programs of the machine would count.
    assert sum(spent.core_seconds for spent in report.times(results)) < 180
    table = report.read_accuracies(tmp_path / "out" / "normalised-one-length-accuracy.csv")
    mean = dict(zip(table.methods, table.accuracy.mean(axis=0), strict=True))
    assert "1-NN DTW (published)" in mean
    assert mean["RNTK mean"] > mean["1-NN Euclidean"] + 0.03
    assert mean["sum of kernels"] > mean["1-NN Euclidean"] + 0.03


def compile_loops_for(root: Path, names: tuple[str, ...]) -> None:
    """Once a machine it takes as long as the quick run itself, which is not to be measured."""
    for name in names:
        data = archive.read(root, name).z_normalised()
        few = data.train[:2]
        for method in methods(data.train, budget.QUICK.mean_work, len(data.test)):
            for variant in method.variants[::9]:
                variant.square(few)
                variant.across(few, few)
