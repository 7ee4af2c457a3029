"""Model selection: what is counted is right, is counted once, and decides by the stated rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from matrices import gaussian
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.svm import SVC

import rntk_dist as rd
from rntk_dist.solve import machines, selection
from rntk_dist.solve.machines import SVM, Ridge
from rntk_dist.solve.selection import (
    BLOCK,
    Candidate,
    Procedure,
    Scores,
    cosine,
    cross_validate,
    folds_of,
    predicted,
    select,
)

C = (0.01, 1.0, 100.0)
PLAIN, NORMAL = Procedure("plain", SVM(C)), Procedure("normal", SVM(C), normalize=True)


@pytest.fixture
def points() -> np.ndarray:
    """60 points of three overlapping clouds."""
    centres = np.repeat([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]], [30, 20, 10], axis=0)
    return centres + np.random.default_rng(1).normal(scale=0.6, size=(60, 2))


@pytest.fixture
def labels() -> np.ndarray:
    return np.repeat(["b", "a", "c"], [30, 20, 10])


class Counted:
    """Candidates that note how often each matrix was asked for."""

    def __init__(self, points: np.ndarray, n: int, failing: int | None = None) -> None:
        self.points, self.n, self.failing = points, n, failing
        self.calls: Counter[int] = Counter()

    def candidates(self) -> list[Candidate]:
        return [Candidate(f"width {i}", self._gram(i)) for i in range(self.n)]

    def _gram(self, i: int) -> Callable[[], np.ndarray]:
        def gram() -> np.ndarray:
            if i == self.failing:
                raise InterruptedError
            self.calls[i] += 1
            return (i + 1) * gaussian(self.points * 2.0 ** (i % 8 - 4))

        return gram


# -- machines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e12])
def test_the_machine_is_that_of_libsvm_for_a_kernel_of_any_scale(
    points: np.ndarray, labels: np.ndarray, scale: float
) -> None:
    gram, across = gaussian(points), np.exp(-((points[:7, None] - points) ** 2).sum(axis=2) / 2)
    found = SVM(tuple(c / scale for c in C)).predictions(scale * gram, labels, scale * across)
    expected = [SVC(kernel="precomputed", C=c).fit(gram, labels).predict(across) for c in C]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("order", ["C", "F"])
def test_several_classes_are_decided_as_libsvm_does(classes: int, order: Literal["C", "F"]) -> None:
    """One against one, also where classes are unequal and names are words."""
    rng = np.random.default_rng(classes)
    points = rng.normal(size=(60, 4))
    names = np.array([f"class {k}" for k in rng.binomial(classes - 1, 0.4, size=60)])
    gram = np.asarray(gaussian(points), order=order)
    found = SVM(C).predictions(gram[:40, :40], names[:40], gram[40:, :40])
    machines = [SVC(kernel="precomputed", C=c).fit(gram[:40, :40], names[:40]) for c in C]
    assert np.array_equal(found, [machine.predict(gram[40:, :40]) for machine in machines])


def test_a_constant_on_top_of_the_kernel_changes_nothing(
    points: np.ndarray, labels: np.ndarray
) -> None:
    """LIBSVM alone, in float32, is left with 0 here."""
    gram = gaussian(points)
    plain, lifted = (SVM(C).predictions(gram + c, labels, gram[:9] + c) for c in (0.0, 1e8))
    assert np.array_equal(plain, lifted)


def test_a_machine_of_a_larger_c_is_not_made_where_none_reaches_the_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[float] = []
    fitted = SVM._fitted
    monkeypatch.setattr(
        SVM, "_fitted", lambda self, *args: made.append(args[2]) or fitted(self, *args)
    )
    x = np.array([-2.0, -1.0, 1.0, 2.0])
    found = SVM((0.1, 10.0, 1e3, 1e5)).predictions(np.outer(x, x), x > 0, np.outer([0.5], x))
    assert found.tolist() == [[True]] * 4
    assert np.allclose(np.array(made) / 2.5, [0.1, 10.0])  # 2.5: the mean of the diagonal


def test_what_does_not_converge_is_left_after_some_steps_for_each_sample(
    points: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw kernel of long sequences: its diagonal spans 20 orders of magnitude."""
    scales = 10.0 ** np.linspace(-10, 10, len(points))
    hard = gaussian(points) * np.outer(scales, scales)
    taken: list[int] = []
    fit = machines._libsvm.fit

    def counted(*args: Any, **options: Any) -> Any:
        found = fit(*args, **options)
        taken.append(int(found[8].max()))
        return found

    monkeypatch.setattr(machines._libsvm, "fit", counted)
    for steps in (2, 100):
        SVM((100.0,), steps=steps).predictions(hard, labels, hard)
    assert taken == [2 * len(points), 100 * len(points)]
    with pytest.raises(ValueError, match="steps is 0: give at least 1"):
        SVM(C, steps=0)


def test_one_class_alone_is_always_predicted() -> None:
    found = SVM(C).predictions(np.eye(3), np.array(["x"] * 3), np.zeros((2, 3)))
    assert found.tolist() == [["x", "x"]] * 3


def test_ridge_is_the_regression_of_its_formula(points: np.ndarray, labels: np.ndarray) -> None:
    n, alpha = len(points), 1e-2
    gram = 5.0 * gaussian(points)
    centring = np.eye(n) - 1 / n
    kernel = centring @ gram @ centring
    kernel *= n / np.trace(kernel)
    classes = np.unique(labels)
    targets = np.where(labels[:, None] == classes, 1.0, -1.0)
    fit = kernel @ np.linalg.solve(kernel + alpha * np.eye(n), targets - targets.mean(axis=0))
    expected = classes[(fit + targets.mean(axis=0)).argmax(axis=1)]
    found = Ridge((1.0, alpha)).predictions(gram, labels, gram)
    assert np.array_equal(found[1], expected)
    assert np.array_equal(Ridge((alpha,)).predictions(gram, labels, gram)[0], expected)


def test_strengths_run_from_the_most_regularised() -> None:
    with pytest.raises(ValueError, match=r"C is \(1.0, 0.1\): give finite numbers above 0"):
        SVM((1.0, 0.1))
    with pytest.raises(ValueError, match="each larger than the last"):
        Ridge((0.1, 1.0))
    with pytest.raises(ValueError, match=r"alpha holds 0.0: give positive numbers"):
        Ridge((1.0, 0.0))


# -- folds -----------------------------------------------------------------------------------------


def test_folds_are_stratified_and_depend_on_the_seed_alone(labels: np.ndarray) -> None:
    fold_of = folds_of(labels)
    assert np.bincount(fold_of).tolist() == [6] * 10
    for label in "abc":
        assert len(set(np.bincount(fold_of[labels == label], minlength=10))) == 1
    assert np.array_equal(fold_of, folds_of(labels))
    assert not np.array_equal(fold_of, folds_of(labels, seed=1))


def test_small_classes_have_fewer_folds_and_none_is_empty() -> None:
    assert np.bincount(folds_of([0, 0, 0, 1])).tolist() == [2, 1, 1]
    assert folds_of([5, 6, 7]).tolist() == [0, 1, 2]
    assert np.bincount(folds_of(range(25))).tolist() == [3] * 5 + [2] * 5
    with pytest.raises(ValueError, match="found 1 samples and 10 folds"):
        folds_of([1])


# -- counts ----------------------------------------------------------------------------------------


def test_counts_are_those_of_scikit_learn(points: np.ndarray, labels: np.ndarray) -> None:
    grams = Counted(points, 3)
    scores = cross_validate(grams.candidates(), labels, [PLAIN, NORMAL])
    split = PredefinedSplit(scores.fold_of)
    for procedure in (PLAIN, NORMAL):
        assert scores.correct[procedure.name].shape == (3, len(C), 10)
        for i, candidate in enumerate(Counted(points, 3).candidates()):
            gram = np.asarray(candidate.gram())
            kernel = gram / gram[0, 0] if procedure.normalize else gram
            for j, c in enumerate(C):
                machine = SVC(kernel="precomputed", C=c)
                right = cross_val_predict(machine, kernel, labels, cv=split) == labels
                expected = np.bincount(scores.fold_of, weights=right)
                assert scores.correct[procedure.name][i, j].tolist() == expected.tolist()
    assert set(grams.calls.values()) == {1}


def test_the_tidy_table_has_a_row_for_each_count(points: np.ndarray, labels: np.ndarray) -> None:
    scores = cross_validate(Counted(points, 2).candidates(), labels, [PLAIN])
    rows = list(scores.rows())
    assert len(rows) == 2 * len(C) * 10
    assert rows[0] == ("plain", "width 0", 0.01, 0, int(scores.correct["plain"][0, 0, 0]), 6)
    assert sum(row[4] for row in rows) == scores.correct["plain"].sum()


def test_threads_count_alike_and_progress_is_told(points: np.ndarray, labels: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    n = BLOCK + 3
    with ThreadPoolExecutor(2) as threads:
        scores = cross_validate(
            Counted(points, n).candidates(),
            labels,
            [NORMAL],
            folds=3,
            executor=threads,
            on_progress=lambda done, total: told.append((done, total)),
        )
    plain = cross_validate(Counted(points, n).candidates(), labels, [NORMAL], folds=3)
    assert np.array_equal(scores.correct["normal"], plain.correct["normal"])
    assert told == [(BLOCK, n), (n, n)]


# -- resuming --------------------------------------------------------------------------------------


def test_an_interrupted_selection_goes_on_where_it_was(
    points: np.ndarray, labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BLOCK", 4)
    store, n = tmp_path / "scores.zarr", 10
    broken = Counted(points, n, failing=5)
    with pytest.raises(InterruptedError):
        cross_validate(broken.candidates(), labels, [PLAIN, NORMAL], store=store, folds=3)
    rest = Counted(points, n)
    scores = cross_validate(rest.candidates(), labels, [PLAIN, NORMAL], store=store, folds=3)
    assert sorted(rest.calls) == list(range(4, n))
    whole = cross_validate(Counted(points, n).candidates(), labels, [PLAIN, NORMAL], folds=3)
    for name in ("plain", "normal"):
        assert np.array_equal(scores.correct[name], whole.correct[name])


def test_candidates_may_be_added_and_nothing_is_computed_again(
    points: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    store = tmp_path / "scores.zarr"
    cross_validate(Counted(points, 5).candidates(), labels, [PLAIN], store=store)
    more = Counted(points, 7)
    scores = cross_validate(more.candidates(), labels, [PLAIN], store=store)
    assert sorted(more.calls) == [5, 6]
    assert (scores.correct["plain"] >= 0).all()
    again = Counted(points, 7)
    cross_validate(again.candidates(), labels, [PLAIN], store=store)
    assert not again.calls


def test_counts_of_another_selection_are_refused(
    points: np.ndarray, labels: np.ndarray, tmp_path: Path
) -> None:
    store, grams = tmp_path / "scores.zarr", Counted(points, 3).candidates()
    cross_validate(grams, labels, [PLAIN], store=store, data="first")
    refused = r"scores.zarr: holds the counts of another selection, which differs in {}: use"
    for difference, options in {
        "data": {"data": "second"},
        "folds, labels and folds": {"folds": 5},
        "labels and folds": {"seed": 3},
        "procedures": {"procedures": [NORMAL]},
        "candidates": {"candidates": grams[1:]},
    }.items():
        usual = {"candidates": grams, "procedures": [PLAIN], "data": "first"}
        with pytest.raises(rd.IdentityError, match=refused.format(difference)):
            cross_validate(labels=labels, store=store, **(usual | options))


def test_what_cannot_be_compared_is_refused(points: np.ndarray, labels: np.ndarray) -> None:
    gram = Counted(points, 1).candidates()[0].gram
    for candidates, message in (
        ([], "there is no candidate to choose from"),
        ([Candidate("a", gram)] * 2, "the candidate a stands twice"),
        ([Candidate("a", lambda: np.eye(3))], r"a has a matrix of shape \(3, 3\) for 60 labels"),
        ([Candidate("a", lambda: np.full((60, 60), np.nan))], "a has a matrix with NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            cross_validate(candidates, labels, [PLAIN])


# -- choosing --------------------------------------------------------------------------------------


def scores_of(correct: list[list[list[int]]]) -> Scores:
    counts = np.array(correct, dtype=np.int32)
    names = tuple("abcdef"[: len(counts)])
    return Scores(names, (PLAIN,), {"plain": counts}, np.arange(20) % 2)


def test_the_most_right_wins_then_the_smallest_c_then_the_first_candidate() -> None:
    unequal = scores_of(
        [[[5, 5], [6, 6], [9, 2]], [[9, 4], [9, 4], [9, 3]], [[8, 5], [1, 1], [9, 5]]]
    )
    found = select(unequal, PLAIN)
    assert (found.candidate, found.name, found.strength, found.tied) == (2, "c", 100.0, 1)
    assert found.validation == 14 / 20
    tied = scores_of([[[5, 5], [9, 4], [5, 9]], [[9, 4], [7, 7], [7, 7]], [[8, 5], [8, 6], [9, 5]]])
    found = select(tied, PLAIN)
    assert (found.name, found.strength, found.tied) == ("b", 1.0, 5)


def test_the_choice_is_good_and_predicts(points: np.ndarray, labels: np.ndarray) -> None:
    """Of a training and a test part; in both procedures, and with the plain kernel's diagonal."""
    rng = np.random.default_rng(4)
    order = rng.permutation(60)
    train, test = order[:40], order[40:]
    whole = 3.0 * gaussian(points) * np.outer(1 + np.arange(60), 1 + np.arange(60))
    square, across = whole[np.ix_(train, train)], whole[np.ix_(test, train)]
    scores = cross_validate([Candidate("only", lambda: square)], labels[train], [NORMAL])
    choice = select(scores, NORMAL)
    found = predicted(
        NORMAL, choice.strength, square, labels[train], across, np.diagonal(whole)[test]
    )
    expected = SVC(kernel="precomputed", C=choice.strength).fit(
        gaussian(points[train]), labels[train]
    )
    plain = gaussian(points)[np.ix_(test, train)]
    assert np.array_equal(found, expected.predict(plain))
    assert (found == labels[test]).mean() > 0.6


def test_a_sample_of_kernel_zero_is_normalised_to_zero() -> None:
    values = np.array([[4.0, 0.0], [0.0, 0.0]])
    assert cosine(values, [4.0, 0.0], [4.0, 0.0]).tolist() == [[1.0, 0.0], [0.0, 0.0]]
