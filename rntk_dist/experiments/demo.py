"""Two real data sets, from sequences to stored Gram matrices to a classifier.

GunPoint has sequences of one length; JapaneseVowels has 12 features and lengths from 7 to 29, which
kernels on vectors can only take padded. Both come inside the package sktime (extra ``datasets``):
no network is needed.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed import Client
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from rntk_dist.experiments.archive import DataSet, zero_padded
from rntk_dist.gram import Gram, gram
from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences

SIGMA_W = (2**0.5, 1.34, 1.47, 1.2, 0.85, 0.5)
"""Candidates, nearest to sqrt(2) first: of equally good ones the first is taken."""

C = (0.01, 0.1, 1.0, 10.0, 100.0)
PUBLISHED = {
    # Dau et al. 2019, the UCR archive; Bagnall et al. 2018, the UEA multivariate archive.
    "GunPoint": {"1-NN Euclidean": 0.913, "1-NN DTW": 0.907, "1-NN DTW, learned window": 0.913},
    "JapaneseVowels": {"1-NN Euclidean": 0.924, "1-NN DTW": 0.949, "1-NN DTW, independent": 0.959},
}


@dataclass(frozen=True)
class Choice:
    """A kernel and an SVM parameter, with their cross-validated accuracy on the training part."""

    gram: Gram
    C: float
    validation: float


@dataclass(frozen=True)
class Outcome:
    """What the demo found on one data set: test accuracies, measured and published."""

    data: DataSet
    chosen: Choice
    measured: dict[str, float]
    published: dict[str, float]


def bundled(name: str) -> DataSet:
    """A data set that sktime carries.

    Raises
    ------
    ModuleNotFoundError
        Without sktime.
    """
    spec = importlib.util.find_spec("sktime")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the demo's data sets come inside sktime: pip install 'rntk_dist[datasets]'"
        )
    folder = Path(spec.origin).parent / "datasets" / "data" / name
    train, test = (Sequences.read(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    return DataSet(name, train, test)


def kernels() -> list[RNTK]:
    """The kernels to choose from."""
    return [
        RNTK(sigma_w=sigma_w, sigma_b=0.1, readout="per_step", bidirectional=True, normalize=True)
        for sigma_w in SIGMA_W
    ]


def run(data: DataSet, folder: Path, client: Client, *, progress: bool = True) -> Outcome:
    """Gram matrices of train and test for all kernels, the best SVM on them, and the comparison.

    Stores are ``folder/NAME/sigma_w=VALUE.zarr``; those that are there are not computed again.
    """
    grams = [
        gram(
            kernel,
            data.sequences,
            store=folder / data.name / f"sigma_w={kernel.sigma_w:.4g}.zarr",
            client=client,
            progress=progress,
        )
        for kernel in kernels()
    ]
    chosen = choose(grams, data)
    ours = f"RNTK-SVM (sigma_w = {chosen.gram.kernel.sigma_w:.4g}, C = {chosen.C:g})"
    rbf = "RBF-SVM" if data.sequences.equal_length else "RBF-SVM, zero-padded"
    measured = {ours: accuracy_on_test(chosen, data), rbf: rbf_accuracy(data)}
    return Outcome(data, chosen, measured, PUBLISHED[data.name])


def choose(grams: list[Gram], data: DataSet) -> Choice:
    """The kernel and C of best cross-validated accuracy in training; the first of equal ones."""
    return max(_choices(grams, data), key=lambda choice: choice.validation)


def _choices(grams: list[Gram], data: DataSet) -> Iterator[Choice]:
    n = len(data.train)
    for candidate in grams:
        search = GridSearchCV(SVC(kernel="precomputed"), {"C": C}, cv=_folds())
        search.fit(candidate[:n, :n], data.train.labels)
        yield Choice(candidate, float(search.best_params_["C"]), float(search.best_score_))


def _folds() -> StratifiedKFold:
    return StratifiedKFold(10, shuffle=True, random_state=0)


def accuracy_on_test(choice: Choice, data: DataSet) -> float:
    """Accuracy on the test part of the SVM trained on the training part."""
    n = len(data.train)
    classifier = SVC(kernel="precomputed", C=choice.C)
    classifier.fit(choice.gram[:n, :n], data.train.labels)
    return float(classifier.score(choice.gram[n:, :n], data.test.labels))


def rbf_accuracy(data: DataSet) -> float:
    """The same protocol with the radial basis function on sequences padded with zeros."""
    values = zero_padded(data.sequences, data.longest)
    n = len(data.train)
    model = make_pipeline(StandardScaler(), SVC(kernel="rbf"))
    gamma = ["scale", *(10.0**k / values.shape[1] for k in (-2, -1, 1))]
    search = GridSearchCV(model, {"svc__C": C, "svc__gamma": gamma}, cv=_folds())
    search.fit(values[:n], data.train.labels)
    return float(search.score(values[n:], data.test.labels))
