"""Which time steps matter: over sigma_w and activations, and on a data set.

The first is the paper's figure: on random sequences, the norm of the gradient of the tangent kernel
with respect to each step. The second asks a classifier: the gradient of a support vector machine's
decision with respect to each step of the sequences that it has not seen, and beside it the accuracy
of machines that see a window alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from rntk_dist.experiments.archive import DataSet, labels_of
from rntk_dist.experiments.kept import kept_or
from rntk_dist.kernel import RNTK
from rntk_dist.kernel.sensitivity import gradient
from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]

SIGMA_W = {
    "relu": (1.33, 1.4, 2**0.5, 1.43, 1.5),
    "erf": (0.7, 1.0, 2**0.5, 2.0, 4.0),
    "linear": (0.95, 0.99, 1.0, 1.01, 1.05),
}
"""Recurrent weights by activation, in the middle those where relu and linear neither forget nor
swell."""

STEPS = 100
PAIRS = 200
QUICK_PAIRS = 10

C = (0.1, 1.0, 10.0, 100.0, 1000.0)
WINDOW = 30


@dataclass(frozen=True)
class Profile:
    """Mean ``|d Theta(x, x') / d x_t|`` over pairs, relative to its largest, for t = 1..T."""

    kernel: RNTK
    pairs: int
    relative: tuple[float, ...]


@dataclass(frozen=True)
class ProfileRow:
    """One step of a profile, for a table."""

    activation: str
    sigma_w: float
    step: int
    relative: float


# -- over sigma_w and activations ------------------------------------------------------------------


def kernels() -> list[RNTK]:
    """Of the last step's readout, with sigma_u = 1 and neither bias nor initial state."""
    return [
        RNTK(activation=activation, sigma_w=sigma_w)
        for activation in ("relu", "erf", "linear")
        for sigma_w in SIGMA_W[activation]
    ]


def profiles(
    folder: Path, pairs: int = PAIRS, on_part: Callable[[str], None] | None = None
) -> list[Profile]:
    """Of every kernel; the folder keeps each."""
    rows = []
    for kernel in kernels():
        name = f"{kernel.activation}, sigma_w {kernel.sigma_w:.4g}"
        path = folder / "profiles" / f"{kernel.activation}-{kernel.sigma_w:.4g}.json"
        identity = {"kernel": kernel.to_dict(), "pairs": [pairs, STEPS]}
        found = kept_or(path, identity, partial(profile, kernel, pairs))
        rows.append(Profile(kernel, pairs, tuple(found)))
        if on_part is not None:
            on_part(f"random sequences: {name}")
    return rows


def profile(kernel: RNTK, pairs: int, steps: int = STEPS) -> list[float]:
    """Mean norm of the gradient at each step, relative to the largest, on Gaussian pairs."""
    x, y = np.random.default_rng(0).normal(size=(2, pairs, steps))
    mean = np.mean([kernel.sensitivity(a, b) for a, b in zip(x, y, strict=True)], axis=0)
    relative: list[float] = (mean / mean.max()).tolist()
    return relative


def profile_rows(found: Sequence[Profile]) -> list[ProfileRow]:
    """A row a step."""
    return [
        ProfileRow(each.kernel.activation, each.kernel.sigma_w, step, relative)
        for each in found
        for step, relative in enumerate(each.relative, start=1)
    ]


# -- on a data set ---------------------------------------------------------------------------------

MACHINES = {
    "last step": RNTK(sigma_w=2**0.5, sigma_b=0.1, normalize=True),
    "every step, both directions": RNTK(
        sigma_w=1.34, sigma_b=0.1, readout="per_step", bidirectional=True, normalize=True
    ),
}
"""Kernels by the name that pictures have: the paper's readout, and that which classifies better."""


@dataclass(frozen=True)
class Decision:
    """What a machine decides by, for one test sequence of two classes.

    ``value`` > 0 stands for the second label; ``slopes[t - 1]`` is its derivative with respect to
    step t.
    """

    sequence: int
    label: str
    value: float
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class Window:
    """Accuracy on the test part of a machine that sees the steps ``first`` to ``last``, from 1."""

    first: int
    last: int
    accuracy: float


@dataclass(frozen=True)
class Found:
    """One kernel on one data set.

    Attributes
    ----------
    name, kernel : the machine's
    C, accuracy : chosen by cross-validation in training; share of the test part classified right
    decisions : of test sequences, some of each class
    windows : of machines of the same kernel that see a part
    """

    name: str
    kernel: RNTK
    C: float
    accuracy: float
    decisions: tuple[Decision, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class DecisionRow:
    """Mean over test sequences of a label, for a table: slopes, and their sizes."""

    machine: str
    label: str
    step: int
    mean_slope: float
    mean_size: float


@dataclass(frozen=True)
class WindowRow:
    """A window of a machine, for a table."""

    machine: str
    first: int
    last: int
    accuracy: float


def decided(
    folder: Path,
    data: DataSet,
    *,
    per_class: int | None = None,
    every: int = 5,
    on_part: Callable[[str], None] | None = None,
) -> list[Found]:
    """What each machine decides by on a data set of two classes and one length.

    Parameters
    ----------
    folder : Path
        Keeps each machine's.
    per_class : int, optional
        Only so many test sequences of each class are asked for slopes.
    every : int
        Windows begin at steps 1, 1 + every, and so on.

    Raises
    ------
    ValueError
        The data have more than two classes or more than one length.
    IdentityError
        The folder keeps results of other data or kernels.
    """
    _require_two_classes_of_one_length(data)
    found = []
    for name, kernel in MACHINES.items():
        identity = {
            "kernel": kernel.to_dict(),
            "data": data.sequences.fingerprint,
            "extent": [per_class, every, WINDOW, list(C)],
        }
        path = folder / data.name / f"{name.replace(', ', '-').replace(' ', '_')}.json"
        kept = kept_or(path, identity, partial(_asked, name, kernel, data, per_class, every))
        found.append(_restored(kept))
        if on_part is not None:
            on_part(f"{data.name}: {name}")
    return found


def _asked(
    name: str, kernel: RNTK, data: DataSet, per_class: int | None, every: int
) -> dict[str, Any]:
    return asdict(ask(name, kernel, data, per_class=per_class, every=every))


def _restored(kept: dict[str, Any]) -> Found:
    """From JSON, whose tuples are lists."""
    decisions = (replace(Decision(**row), slopes=tuple(row["slopes"])) for row in kept["decisions"])
    return Found(
        kept["name"],
        RNTK.from_dict(kept["kernel"]),
        kept["C"],
        kept["accuracy"],
        tuple(decisions),
        tuple(Window(**row) for row in kept["windows"]),
    )


def _require_two_classes_of_one_length(data: DataSet) -> None:
    if data.classes != 2 or data.shortest != data.longest:
        raise ValueError(
            f"{data.name} has {data.classes} classes and {data.shortest} to {data.longest} steps: "
            "the picture of what decides is for two classes and one length"
        )


def ask(
    name: str, kernel: RNTK, data: DataSet, *, per_class: int | None = None, every: int = 5
) -> Found:
    """A machine trained on the training part, and what it decides by on the test part."""
    machine = fitted(kernel, data.train)
    across = kernel(data.test, data.train)
    accuracy = float(machine.score(across, data.test.labels))
    chosen = _some_of_each(labels_of(data.test), per_class)
    values = machine.decision_function(across[chosen])
    decisions = [
        Decision(int(i), str(labels_of(data.test)[i]), float(value), tuple(slopes.tolist()))
        for i, value, slopes in zip(
            chosen, values, decision_slopes(kernel, machine, data, chosen), strict=True
        )
    ]
    starts = range(0, data.longest - WINDOW + 1, every)
    windows = [Window(i + 1, i + WINDOW, window_accuracy(kernel, data, i)) for i in starts]
    return Found(name, kernel, float(machine.C), accuracy, tuple(decisions), tuple(windows))


def fitted(kernel: RNTK, train: Sequences) -> SVC:
    """The support vector machine of the C that does best in cross-validation in training."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(SVC(kernel="precomputed"), {"C": C}, cv=folds)
    search.fit(kernel(train), train.labels)
    return search.best_estimator_


def decision_slopes(
    kernel: RNTK, machine: SVC, data: DataSet, chosen: NDArray[np.int64]
) -> Float64:
    """(chosen, T): the derivative of the decision with respect to each step; one feature.

    The decision is ``sum_j a_j k(x, x_j) + b`` over the support vectors, whatever else is in k.
    """
    support, weights = data.train[machine.support_], machine.dual_coef_[0]
    slopes = [gradient(kernel, data.test[[i]], support, "ntk", weights)[:, 0] for i in chosen]
    return np.array(slopes)


def window_accuracy(kernel: RNTK, data: DataSet, first: int) -> float:
    """On the test part, of a machine that sees `WINDOW` steps from ``first``, counted from 0."""
    train, test = (
        Sequences.from_arrays([x[first : first + WINDOW] for x in part], part.labels)
        for part in (data.train, data.test)
    )
    return float(fitted(kernel, train).score(kernel(test, train), test.labels))


def _some_of_each(labels: NDArray[np.generic], per_class: int | None) -> NDArray[np.int64]:
    """Positions of the first few of each label, or of all, in their order."""
    places = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(places))


def decision_rows(found: Sequence[Found]) -> list[DecisionRow]:
    """A row for each machine, label and step."""
    rows = []
    for each in found:
        for label in sorted({decision.label for decision in each.decisions}):
            slopes = np.array([d.slopes for d in each.decisions if d.label == label])
            means = zip(slopes.mean(axis=0), np.abs(slopes).mean(axis=0), strict=True)
            rows += [
                DecisionRow(each.name, label, step, float(mean), float(size))
                for step, (mean, size) in enumerate(means, start=1)
            ]
    return rows


def window_rows(found: Sequence[Found]) -> list[WindowRow]:
    """A row for each machine and window."""
    return [
        WindowRow(each.name, window.first, window.last, window.accuracy)
        for each in found
        for window in each.windows
    ]
