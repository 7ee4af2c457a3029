"""The scikit-learn faces: its own checks, the solutions they stand for, and folds as slices."""

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import client_of
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import rntk_dist as rd
from rntk_dist import estimators
from rntk_dist.estimators.pairs import Part, keys_of, positions
from rntk_dist.solve.checkpoint import CheckpointError
from rntk_dist.solve.systems import NotPositiveDefiniteError
from rntk_dist.store import IdentityError

KERNEL = rd.RNTK(sigma_w=1.3, sigma_b=0.2, readout="per_step")
APART = rd.RNTK(sigma_h=0.5, sigma_b=0.1, initial_state="independent")
"""A sample's kernel with itself is not its kernel with a sample of equal values."""

RNG = np.random.default_rng(7)
X = RNG.normal(size=(24, 6))
X_NEW = RNG.normal(size=(5, 6))
Y = X[:, 3:].sum(axis=1)
LABELS = np.where(Y > 0, "up", "down")
RAGGED = [RNG.normal(size=(int(length), 2)) for length in RNG.integers(3, 9, size=30)]
CLASSES = np.array([int(x[:, 0].mean() > 0) for x in RAGGED])

ALL = (rd.RNTKClassifier, rd.RNTKRegressor, rd.RNTKGaussianProcess, rd.RNTKTransformer)


@parametrize_with_checks(
    [
        rd.RNTKClassifier(),
        rd.RNTKRegressor(),
        rd.RNTKGaussianProcess(),
        rd.RNTKTransformer(),
        rd.RNTKTransformer(n_components=1, landmarks="leverage"),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    """No failure is expected."""
    check(estimator)


# -- the solutions they stand for ------------------------------------------------------------------


def test_classifier_is_a_support_vector_machine_on_the_kernel() -> None:
    found = rd.RNTKClassifier(KERNEL, C=2.0).fit(X, LABELS)
    theirs = SVC(C=2.0, kernel="precomputed").fit(KERNEL(X), LABELS)
    across = KERNEL(X_NEW, X)
    assert (found.predict(X_NEW) == theirs.predict(across)).all()
    assert set(found.predict(X)) == {"up", "down"} == set(found.classes_)
    np.testing.assert_allclose(
        found.decision_function(X_NEW), theirs.decision_function(across), rtol=1e-9
    )


def test_only_the_kernel_with_support_vectors_is_computed(pairs: list[int]) -> None:
    found = rd.RNTKClassifier(KERNEL, C=100.0).fit(X, LABELS)
    n_support = len(found.machine_.support_)
    assert n_support < len(X)
    pairs.clear()
    found.predict(X_NEW)
    assert pairs == [len(X_NEW) * n_support]


@pytest.mark.parametrize("targets", [Y, np.stack([Y, Y**2], axis=1)])
def test_regressor_is_kernel_ridge_regression(targets: np.ndarray) -> None:
    found = rd.RNTKRegressor(KERNEL, alpha=0.3).fit(X, targets)
    theirs = KernelRidge(alpha=0.3, kernel="precomputed").fit(KERNEL(X), targets)
    np.testing.assert_allclose(found.predict(X_NEW), theirs.predict(KERNEL(X_NEW, X)), rtol=1e-9)


@pytest.mark.parametrize("targets", [Y, np.stack([Y, Y**2], axis=1)])
def test_gaussian_process_is_a_conditioned_normal_distribution(targets: np.ndarray) -> None:
    found = rd.RNTKGaussianProcess(KERNEL, alpha=0.3, kind="nngp").fit(X, targets)
    noisy = KERNEL(X, kind="nngp") + 0.3 * np.eye(len(X))
    across = KERNEL(X_NEW, X, kind="nngp")
    covariance = KERNEL(X_NEW, kind="nngp") - across @ np.linalg.solve(noisy, across.T)
    mean, deviation = found.predict(X_NEW, return_std=True)
    np.testing.assert_allclose(mean, across @ np.linalg.solve(noisy, targets), rtol=1e-9)
    each_target = (..., *(np.newaxis,) * (targets.ndim - 1))  # as scikit-learn: (m, targets)
    variance = np.broadcast_to(covariance.diagonal()[each_target], mean.shape)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-9)
    covariances = found.predict(X_NEW, return_cov=True)[1]
    assert covariances.shape == (*covariance.shape, *targets.shape[1:])
    np.testing.assert_allclose(covariances - covariance[each_target], 0, atol=1e-12)
    each = targets.reshape(len(X), -1).T
    likelihood = sum(multivariate_normal(np.zeros(len(X)), noisy).logpdf(y) for y in each)
    assert found.log_marginal_likelihood_ == pytest.approx(likelihood)


def test_gaussian_process_normalises_targets_and_draws_functions() -> None:
    scaled = (Y - Y.mean()) / Y.std()
    plain = rd.RNTKGaussianProcess(KERNEL, alpha=0.3).fit(X, scaled)
    found = rd.RNTKGaussianProcess(KERNEL, alpha=0.3, normalize_y=True).fit(X, Y)
    mean, covariance = found.predict(X_NEW, return_cov=True)
    np.testing.assert_allclose(mean, plain.predict(X_NEW) * Y.std() + Y.mean(), rtol=1e-9)
    drawn = found.sample_y(X_NEW, n_samples=20_000, random_state=1)
    assert drawn.shape == (len(X_NEW), 20_000)
    np.testing.assert_allclose(np.cov(drawn), covariance, atol=0.05 * covariance.max())
    error = np.sqrt(covariance.diagonal() / 20_000)
    assert (np.abs(drawn.mean(axis=1) - mean) < 4 * error).all()


def test_regressor_takes_centres_where_the_samples_are_too_many() -> None:
    found = rd.RNTKRegressor(KERNEL, 0.3, n_components=9, random_state=3).fit(X, Y)
    assert len(found.X_fit_) == 9
    C, K = KERNEL(X, found.X_fit_), KERNEL(found.X_fit_)
    dual = np.linalg.solve(C.T @ C + 0.3 * K, C.T @ Y)
    expected = KERNEL(X_NEW, found.X_fit_) @ dual
    np.testing.assert_allclose(found.predict(X_NEW), expected, atol=1e-4)
    whole = rd.RNTKRegressor(KERNEL, 0.3).fit(X, Y).predict(X_NEW)
    every = rd.RNTKRegressor(KERNEL, 0.3, n_components=len(X), landmarks="leverage").fit(X, Y)
    np.testing.assert_allclose(every.predict(X_NEW), whole, atol=1e-4)


def test_transformer_gives_kernel_values_or_nystroems_features() -> None:
    plain = rd.RNTKTransformer(KERNEL).fit(X)
    np.testing.assert_allclose(plain.transform(X_NEW), KERNEL(X_NEW, X))
    assert list(plain.get_feature_names_out()[:2]) == ["rntktransformer0", "rntktransformer1"]
    some = rd.RNTKTransformer(KERNEL, n_components=9, random_state=3).fit(X)
    theirs = Nystroem(kernel=lambda x, y: KERNEL([x], [y])[0, 0], n_components=9, random_state=3)
    expected = theirs.fit(X).transform(X_NEW)
    assert sorted(theirs.component_indices_) == some.component_indices_.tolist()
    found = some.transform(X_NEW)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-6)
    every = rd.RNTKTransformer(KERNEL, n_components=len(X)).fit_transform(X)
    np.testing.assert_allclose(every @ every.T, KERNEL(X), atol=1e-9)


@pytest.mark.parametrize("landmarks", ["leverage", "kmeans++", "cholesky"])
def test_landmarks_may_be_chosen_by_the_kernel(landmarks: Any) -> None:
    some = rd.RNTKTransformer(KERNEL, 9, landmarks=landmarks, random_state=3)
    features = some.fit_transform(X)
    B = X[some.component_indices_]
    expected = KERNEL(X, B) @ np.linalg.solve(KERNEL(B), KERNEL(B, X))
    np.testing.assert_allclose(features @ features.T, expected, rtol=1e-6, atol=1e-8)
    again = rd.RNTKTransformer(KERNEL, 9, landmarks=landmarks, random_state=3).fit(X)
    assert np.array_equal(some.component_indices_, again.component_indices_)
    every = rd.RNTKTransformer(KERNEL, len(X), landmarks=landmarks).fit_transform(X)
    np.testing.assert_allclose(every @ every.T, KERNEL(X), atol=1e-6)


def test_landmarks_that_repeat_each_other_do_no_harm() -> None:
    twice = np.concatenate([X[:6], X[:6]])
    features = rd.RNTKTransformer(KERNEL, n_components=12).fit_transform(twice)
    np.testing.assert_allclose(features @ features.T, KERNEL(twice), atol=1e-9)


# -- what they take --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_tables_lists_and_sequences_are_the_same_samples(kind: Any) -> None:
    targets = LABELS if kind is rd.RNTKClassifier else Y
    forms = [X, X[:, :, None], list(X), list(X[:, :, None]), rd.Sequences.from_arrays(X)]
    found = [kind(KERNEL).fit(form, targets) for form in forms]
    values = [
        each.transform(X_NEW) if kind is rd.RNTKTransformer else each.predict(X_NEW[:, :, None])
        for each in (found if kind is rd.RNTKTransformer else found[1:])
    ]
    for each in values[1:]:
        np.testing.assert_array_equal(each, values[0])
    assert [getattr(each, "n_features_in_", None) for each in found] == [6, 6, None, None, None]


def test_tables_have_one_length_and_lists_any() -> None:
    found = rd.RNTKRegressor(KERNEL).fit(X, Y)
    with pytest.raises(ValueError, match="X has 4 features, but RNTKRegressor is expecting 6"):
        found.predict(X_NEW[:, :4])
    np.testing.assert_allclose(
        found.predict(list(X_NEW[:, :4])),
        KERNEL(X_NEW[:, :4], X) @ found.machine_.dual_coef_,
    )
    with pytest.raises(ValueError, match="X has 2 features a step and Y has 1"):
        found.predict(RAGGED)
    refitted = found.fit(list(X), Y)
    assert not hasattr(refitted, "n_features_in_")
    assert refitted.predict(X_NEW[:, :4]).shape == (5,)


def test_nested_lists_of_one_length_are_a_table_and_of_several_are_ragged() -> None:
    table = rd.RNTKTransformer(KERNEL).fit(X.tolist())
    assert table.n_features_in_ == 6
    ragged = rd.RNTKTransformer(KERNEL).fit([[1.0, 2.0], [3.0]])
    assert ragged.transform([[1.0, 2.0, 4.0], [0.5, 0.5, 0.5]]).shape == (2, 2)


def test_ragged_lists_in_cross_validation_and_search() -> None:
    model = rd.RNTKClassifier(KERNEL, C=10.0)
    found = cross_val_score(model, RAGGED, CLASSES, cv=3)
    folds = StratifiedKFold(3).split(CLASSES, CLASSES)
    expected = []
    for train, test in folds:
        fitted = SVC(C=10.0, kernel="precomputed").fit(
            KERNEL([RAGGED[i] for i in train]), CLASSES[train]
        )
        across = KERNEL([RAGGED[i] for i in test], [RAGGED[i] for i in train])
        expected.append((fitted.predict(across) == CLASSES[test]).mean())
    np.testing.assert_array_equal(found, expected)
    batch = rd.Sequences.from_arrays(RAGGED)
    np.testing.assert_array_equal(cross_val_score(model, batch, CLASSES, cv=3), expected)


@pytest.mark.parametrize("kind", ALL)
def test_fitted_estimators_survive_pickling(kind: Any) -> None:
    found = kind(KERNEL).fit(RAGGED, CLASSES)
    again = pickle.loads(pickle.dumps(found))
    method = "transform" if kind is rd.RNTKTransformer else "predict"
    np.testing.assert_array_equal(
        getattr(again, method)(RAGGED[:4]), getattr(found, method)(RAGGED[:4])
    )


# -- the kernel among the parameters ---------------------------------------------------------------


def test_kernel_options_are_parameters() -> None:
    model = rd.RNTKClassifier(KERNEL)
    assert model.get_params()["kernel__sigma_w"] == 1.3
    assert "kernel__sigma_w" not in model.get_params(deep=False)
    changed = clone(model).set_params(kernel__sigma_w=1.4, C=3.0, kernel__depth=2)
    assert changed.kernel == rd.RNTK(1 + 1, sigma_w=1.4, sigma_b=0.2, readout="per_step")
    assert (changed.C, model.kernel) == (3.0, KERNEL)
    both = model.set_params(kernel__sigma_w=1.1, kernel=APART)
    assert both.kernel == rd.RNTK.from_dict(APART.to_dict() | {"sigma_w": 1.1})
    assert rd.RNTKRegressor().set_params(kernel__depth=2).kernel == rd.RNTK(depth=2)


def test_a_grid_over_kernel_options_in_a_pipeline() -> None:
    pipeline = make_pipeline(StandardScaler(), rd.RNTKClassifier())
    grid = {
        "rntkclassifier__kernel__sigma_b": [0.0, 0.5],
        "rntkclassifier__kernel__readout": ["last", "per_step"],
        "rntkclassifier__C": [0.1, 10.0],
    }
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, LABELS)
    scores = search.cv_results_["mean_test_score"]
    best = search.best_estimator_.named_steps["rntkclassifier"].kernel_
    assert search.best_params_["rntkclassifier__kernel__readout"] == best.readout
    assert len(scores) == 8
    assert scores.std() > 0


def test_what_is_no_kernel_or_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"kernel is 'rbf': give an RNTK"):
        rd.RNTKClassifier("rbf").fit(X, LABELS)
    with pytest.raises(ValueError, match=r"unknown kernel options \['sigma'\]"):
        rd.RNTKClassifier().set_params(kernel__sigma=1.0)
    with pytest.raises(ValueError, match="n_components is 25 for 24 training samples"):
        rd.RNTKTransformer(n_components=25).fit(X)
    with pytest.raises(ValueError, match="landmarks is 'best': choose one of uniform, leverage"):
        rd.RNTKTransformer(n_components=2, landmarks="best").fit(X)
    with pytest.raises(ValueError, match="found return_std and return_cov"):
        rd.RNTKGaussianProcess().fit(X, Y).predict(X, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match=r"alpha is -1.0: give a finite variance"):
        rd.RNTKGaussianProcess(alpha=-1.0).fit(X, Y)
    with pytest.raises(NotPositiveDefiniteError, match="raise alpha to"):
        rd.RNTKGaussianProcess(alpha=0).fit(np.concatenate([X, X]), np.concatenate([Y, Y]))
    with pytest.raises(ValueError, match="X is a list of numbers"):
        rd.RNTKTransformer().fit([1.0, 2.0])


# -- folds as slices -------------------------------------------------------------------------------


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call of the kernel's loops has computed, one triangle where symmetric."""
    counts: list[int] = []
    compare = rd.RNTK.compare

    def counted(self: rd.RNTK, rows: Any, columns: Any, **options: Any) -> Any:
        values = compare(self, rows, columns, **options)
        n, m = values.shape
        counts.append(n * (n + 1) // 2 if columns is None else n * m)
        return values

    monkeypatch.setattr(rd.RNTK, "compare", counted)
    return counts


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def test_a_search_over_C_computes_every_pair_once(tmp_path: Path, pairs: list[int]) -> None:
    grid = {"C": [0.01, 0.1, 1.0, 10.0, 100.0]}
    plain = GridSearchCV(rd.RNTKClassifier(KERNEL), grid, cv=4).fit(RAGGED, CLASSES)
    assert sum(pairs) > 10 * triangle(30)
    pairs.clear()
    kept = rd.RNTKClassifier(KERNEL, memory=tmp_path / "kept")
    search = GridSearchCV(kept, grid, cv=4).fit(RAGGED, CLASSES)
    # Pairs with samples that are no support vectors come with a later fold, or with the refit.
    assert sum(pairs) == triangle(30)
    pairs.clear()
    again = GridSearchCV(kept, grid, cv=4).fit(RAGGED, CLASSES)
    assert pairs == []
    for found in (search, again):
        np.testing.assert_array_equal(
            found.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
        )
    assert again.best_params_ == plain.best_params_


def test_regression_folds_need_one_block_each(tmp_path: Path, pairs: list[int]) -> None:
    model = rd.RNTKRegressor(KERNEL, memory=tmp_path)
    cross_val_score(model, list(X), Y, cv=KFold(4))
    # The first fold's training matrix and what is across; of all others what was held out first.
    assert pairs == [triangle(18), 6 * 18, triangle(6)]


@pytest.mark.parametrize("kernel", [KERNEL, APART, rd.RNTK(normalize=True, readout="mean")])
def test_kept_values_are_those_that_are_computed(kernel: rd.RNTK, tmp_path: Path) -> None:
    """Samples that repeat each other, and new ones that repeat training samples, included."""
    repeated = [*RAGGED[:8], RAGGED[0], RAGGED[3]]
    new = [RAGGED[2], *RAGGED[20:23], RAGGED[0]]
    for _ in range(2):
        kept = rd.RNTKGaussianProcess(kernel, memory=tmp_path).fit(repeated, CLASSES[:10])
        plain = rd.RNTKGaussianProcess(kernel).fit(repeated, CLASSES[:10])
        for square, expected in (
            (kept.values_.square(kept.X_fit_), plain.values_.square(plain.X_fit_)),
            (kept.predict(new, return_cov=True)[1], plain.predict(new, return_cov=True)[1]),
            (kept.predict(new), plain.predict(new)),
        ):
            np.testing.assert_allclose(square, expected, rtol=1e-9, atol=1e-12)


def test_kernels_kinds_and_number_types_are_kept_apart(tmp_path: Path, pairs: list[int]) -> None:
    options: list[dict[str, Any]] = [{}, {"kind": "nngp"}, {"dtype": "float32"}]
    for changes in ({}, {"kernel__sigma_w": 1.4}):
        for option in options:
            model = rd.RNTKRegressor(KERNEL, memory=tmp_path, **option).set_params(**changes)
            found, plain = model.fit(X, Y), clone(model).set_params(memory=None).fit(X, Y)
            np.testing.assert_array_equal(found.machine_.dual_coef_, plain.machine_.dual_coef_)
    assert len(list(tmp_path.iterdir())) == 6
    assert sum(pairs) == 12 * triangle(24)


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    model = rd.RNTKRegressor(KERNEL, memory=tmp_path).fit(X, Y)
    (block,) = tmp_path.glob("*/*.npz")
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        model.fit(X, Y)


@pytest.mark.slow
def test_processes_compute_no_pair_twice(tmp_path: Path) -> None:
    model = rd.RNTKClassifier(KERNEL, memory=tmp_path)
    search = GridSearchCV(model, {"C": [0.1, 1.0, 10.0]}, cv=3, n_jobs=2).fit(RAGGED, CLASSES)
    computed = 0
    for block in tmp_path.glob("*/*.npz"):
        with np.load(block) as arrays:
            n, m = arrays["values"].shape
            alone = np.array_equal(arrays["rows"], arrays["columns"])
        computed += triangle(n) if alone else n * m
    assert computed == triangle(30)
    plain = GridSearchCV(rd.RNTKClassifier(KERNEL), {"C": [0.1, 1.0, 10.0]}, cv=3)
    expected = plain.fit(RAGGED, CLASSES).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], expected)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matrix, one of two sets of samples, and a sweep."""
    folder = tmp_path_factory.mktemp("stores")
    with client_of(1, processes=False, protocol="tcp://") as client:
        rd.gram(KERNEL, RAGGED, store=folder / "gram", client=client, tile=8, progress=False)
        rd.gram(KERNEL, RAGGED, RAGGED[:4], store=folder / "wide", client=client, progress=False)
        kernels = [KERNEL, rd.RNTK(), APART]
        rd.sweep(kernels, RAGGED, store=folder / "sweep", client=client, progress=False)
    return folder


def test_folds_are_slices_of_a_stored_matrix(stores: Path, pairs: list[int]) -> None:
    store = str(stores / "gram")
    search = GridSearchCV(rd.RNTKClassifier(store=store), {"C": [0.1, 10.0]}, cv=3)
    found = search.fit(RAGGED[::-1], CLASSES[::-1])
    assert pairs == []
    assert found.best_estimator_.kernel_ == KERNEL
    plain = GridSearchCV(rd.RNTKClassifier(KERNEL), {"C": [0.1, 10.0]}, cv=3)
    expected = plain.fit(RAGGED[::-1], CLASSES[::-1]).cv_results_["mean_test_score"]
    np.testing.assert_array_equal(found.cv_results_["mean_test_score"], expected)


def test_what_a_store_lacks_is_computed_and_may_be_kept(
    stores: Path, tmp_path: Path, pairs: list[int]
) -> None:
    model = rd.RNTKRegressor(KERNEL, store=stores / "gram", memory=tmp_path)
    samples = [*RAGGED, *RAGGED[:2], np.ones((4, 2)), np.ones((5, 2))]
    targets = np.arange(len(samples), dtype=float)
    for _ in range(2):
        found = model.fit(samples, targets).machine_.dual_coef_
    assert sorted(pairs) == [triangle(2), 2 * 30]
    plain = rd.RNTKRegressor(KERNEL).fit(samples, targets)
    np.testing.assert_allclose(found, plain.machine_.dual_coef_, rtol=1e-9)


def test_a_search_over_kernels_takes_slices_of_a_sweep(stores: Path, pairs: list[int]) -> None:
    model = rd.RNTKClassifier(store=stores / "sweep")
    grid = {"kernel": [KERNEL, rd.RNTK(), APART], "C": [0.1, 10.0]}
    found = GridSearchCV(model, grid, cv=3).fit(RAGGED, CLASSES)
    computed = [count for count in pairs if count > 16**2]
    assert computed == []  # of APART twins alone, in blocks of 16
    plain = GridSearchCV(rd.RNTKClassifier(), grid, cv=3).fit(RAGGED, CLASSES)
    np.testing.assert_array_equal(
        found.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )


def test_stores_of_something_else_are_refused(stores: Path) -> None:
    with pytest.raises(IdentityError, match="holds kind 'ntk' of RNTK"):
        rd.RNTKRegressor(rd.RNTK(), store=stores / "gram").fit(RAGGED, CLASSES)
    with pytest.raises(IdentityError, match="kind 'nngp' of RNTK"):
        rd.RNTKRegressor(store=stores / "gram", kind="nngp").fit(RAGGED, CLASSES)
    with pytest.raises(IdentityError, match="of 3 kernels, and RNTK"):
        rd.RNTKRegressor(rd.RNTK(depth=2), store=stores / "sweep").fit(RAGGED, CLASSES)
    with pytest.raises(ValueError, match="rectangular matrix of two sets"):
        rd.RNTKRegressor(KERNEL, store=stores / "wide").fit(RAGGED, CLASSES)
    with pytest.raises(FileNotFoundError):
        rd.RNTKRegressor(KERNEL, store=stores / "nothing").fit(RAGGED, CLASSES)


# -- pairs -----------------------------------------------------------------------------------------


def test_keys_tell_values_apart_and_nothing_else() -> None:
    base = rd.Sequences.from_arrays([[0.0, 1.0], [1.0], [-0.0, 1.0], [0.0, 1.0, 0.0]])
    first, short, negative, longer = keys_of(base)
    assert first == negative
    assert len({first, short, longer}) == 3
    assert keys_of(rd.Sequences.from_arrays(np.float32([[0.0, 1.0]]))) == [first]
    assert keys_of(rd.Sequences.from_arrays([[[0.0, 1.0]]])) != [first]


def test_gaps_cover_what_is_missing_once() -> None:
    rng = np.random.default_rng(3)
    names = [bytes([i]) for i in range(9)]
    for columns in (names, [bytes([i]) for i in range(20, 26)]):
        for _ in range(20):
            part = Part(names, columns)
            known = rng.random(part.values.shape) < rng.random()
            part.known = known & known.T if part.symmetric else known
            missing, covered = ~part.known, np.zeros(part.values.shape, dtype=int)
            for i, j in part.gaps():
                covered[np.ix_(i, j)] += 1
                if part.symmetric and not np.array_equal(i, j):
                    covered[np.ix_(j, i)] += 1
            np.testing.assert_array_equal(covered, missing)


def test_a_part_takes_only_what_it_lacks() -> None:
    part = Part([b"a", b"b"], [b"a", b"b"])
    other = np.array([[1.0, 2.0], [2.0, 3.0]])
    there = positions([b"b", b"a"])
    read: list[tuple[int, int]] = []

    def values(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        read.append((len(i), len(j)))
        return other[np.ix_(i, j)]

    for _ in range(2):
        part.take(there, there, values)
        part.take({b"z": 0}, there, values)
    assert part.complete
    assert read == [(2, 2)]
    np.testing.assert_array_equal(part.values, other[::-1, ::-1])


# -- without scikit-learn --------------------------------------------------------------------------


def test_the_package_is_imported_without_scikit_learn() -> None:
    script = """
import sys
import rntk_dist as rd
assert "RNTKClassifier" in dir(rd)
assert "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_everything_public_is_there() -> None:
    for name in rd.__all__:
        assert hasattr(rd, name), name
    assert rd.RNTKClassifier is estimators.RNTKClassifier
    with pytest.raises(AttributeError, match="has no attribute 'RNTKClasifier'"):
        rd.RNTKClasifier  # noqa: B018
    assert math.isfinite(rd.to_aeon_metric()(X[0], X[1]))
