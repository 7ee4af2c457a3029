"""Finite networks against their kernel: at the start, and while they are trained.

At the start, the relative Frobenius error of a network's own tangent kernel falls like n^(-1/2)
with its width n. Under gradient descent with a small step on ``|f - y|^2 / 2`` a wide network's
outputs follow, on training and on other sequences alike,

    f_t(x) = f_0(x) + Theta(x, X) Theta(X, X)^-1 (1 - exp(-t Theta(X, X))) (y - f_0(X)),

f_0 being what the network puts out before. The sequences are random, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from rntk_dist.experiments.finite_network import Batch, FiniteNetwork
from rntk_dist.experiments.kept import kept_or
from rntk_dist.experiments.power_law import PowerLaw, fit
from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]

BASE = RNTK(sigma_w=2**0.5, sigma_u=1.0, sigma_b=0.3, sigma_h=0.5)

CASES = {
    "relu, last": BASE,
    "erf, last": replace(BASE, activation="erf"),
    "relu, per_step": replace(BASE, readout="per_step"),
    "erf, mean": replace(BASE, activation="erf", readout="mean"),
    "relu, last, 2 layers": replace(BASE, depth=2),
}
"""Kernels by the name that tables and pictures have."""

TRAINED = ("relu, last", "erf, last")


@dataclass(frozen=True)
class Extent:
    """How much is computed.

    Attributes
    ----------
    widths, seeds : of the networks whose kernel is taken, and how many of each
    trained_widths, trained_seeds : of those that are trained
    steps : of gradient descent
    rate : its step, in units of 1 / the largest eigenvalue of Theta(X, X)
    """

    widths: tuple[int, ...]
    seeds: int
    trained_widths: tuple[int, ...]
    trained_seeds: int
    steps: int
    rate: float


FULL = Extent(tuple(2**k for k in range(6, 14)), 10, (128, 256, 512, 1024, 2048), 4, 200, 0.25)
QUICK = Extent(tuple(2**k for k in range(5, 10)), 4, (64, 256), 2, 60, 0.5)


@dataclass(frozen=True)
class KernelError:
    """``|Theta_n - Theta| / |Theta|``, Frobenius, of one network."""

    case: str
    width: int
    seed: int
    error: float


@dataclass(frozen=True)
class Course:
    """One output of one network in training: after so many steps, beside what is predicted.

    `time` is steps times rate times the largest eigenvalue. `part` is "train" or "test", `flow` the
    closed form above and `descent` the same for steps of this size, with (1 - rate Theta)^steps in
    the exponential's place.
    """

    case: str
    width: int
    seed: int
    step: int
    time: float
    part: str
    sequence: int
    target: float
    network: float
    flow: float
    descent: float


@dataclass(frozen=True)
class Deviation:
    """How far a trained network is from its prediction, relative to the targets.

    Root mean squares over times and sequences, divided by that of the targets of the part: of
    network minus flow, network minus descent, and descent minus flow, which the step is to blame
    for. `residual` is what is left of the targets at the end.
    """

    case: str
    width: int
    seed: int
    part: str
    from_flow: float
    from_descent: float
    of_step: float
    residual: float


# -- at the start ----------------------------------------------------------------------------------


def compared() -> Sequences:
    """Six sequences of two features, 3 to 8 steps; two of them are close to each other."""
    rng = np.random.default_rng(2021)
    drawn = [rng.normal(size=(steps, 2)) for steps in (8, 8, 6, 5, 3)]
    return Sequences.from_arrays([*drawn, drawn[0] + 0.1 * rng.normal(size=(8, 2))])


def kernel_errors(
    folder: Path, extent: Extent, on_part: Callable[[str], None] | None = None
) -> list[KernelError]:
    """Of every case, width and seed; the folder keeps each."""
    rows = []
    for width in extent.widths:
        for case, kernel in CASES.items():
            for seed in range(extent.seeds):
                compute = partial(kernel_error, kernel, width, seed)
                identity = {"kernel": kernel.to_dict(), "sequences": compared().fingerprint}
                path = folder / "kernel" / f"{_file_name(case)}-{width}-{seed}.json"
                rows.append(KernelError(case, width, seed, kept_or(path, identity, compute)))
            if on_part is not None:
                on_part(f"kernel: {case}, width {width}")
    return rows


def kernel_error(kernel: RNTK, width: int, seed: int) -> float:
    """Relative Frobenius error of one network's tangent kernel; parameters are float32.

    Their rounding is 1e-6 of the kernel, far below the error of any width that fits a memory.
    """
    sequences = compared()
    network = FiniteNetwork.draw(
        kernel,
        width,
        n_features=sequences.n_features,
        steps=int(sequences.lengths.max()),
        rng=np.random.default_rng([width, seed]),
        dtype=np.float32,
    )
    exact = kernel(sequences)
    found = network.tangent_kernel(Batch.of(sequences, np.float32))
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def laws(rows: Sequence[KernelError]) -> dict[str, PowerLaw]:
    """The power law of each case over its widths and seeds."""
    cases = dict.fromkeys(row.case for row in rows)
    return {
        case: fit(
            [row.width for row in rows if row.case == case],
            [row.error for row in rows if row.case == case],
        )
        for case in cases
    }


# -- in training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Sequences with targets for training, and others."""

    train: Sequences
    targets: Float64
    test: Sequences
    test_targets: Float64


def task() -> Task:
    """16 sequences for training and 8 others, of three features and 3 to 5 steps.

    The target is a bend of the newest step plus a share of the mean of all, so that neither a
    constant nor the newest step alone fits it.
    """
    rng = np.random.default_rng(2006)
    drawn = [rng.normal(size=(int(steps), 3)) for steps in rng.integers(3, 6, 24)]
    targets = np.array([np.tanh(x[-1] @ [1.0, -1.0, 0.5]) + x.mean() for x in drawn])
    return Task(
        Sequences.from_arrays(drawn[:16]),
        targets[:16],
        Sequences.from_arrays(drawn[16:]),
        targets[16:],
    )


def courses(
    folder: Path, extent: Extent, on_part: Callable[[str], None] | None = None
) -> list[Course]:
    """Of every trained case, width and seed; the folder keeps each network's."""
    rows: list[Course] = []
    for width in extent.trained_widths:
        for case in TRAINED:
            for seed in range(extent.trained_seeds):
                rows += _kept_course(folder, extent, case, width, seed)
                if on_part is not None:
                    on_part(f"training: {case}, width {width}, seed {seed}")
    return rows


def _kept_course(folder: Path, extent: Extent, case: str, width: int, seed: int) -> list[Course]:
    kernel, given = CASES[case], task()
    identity = {
        "kernel": kernel.to_dict(),
        "sequences": Sequences.concatenate([given.train, given.test]).fingerprint,
        "targets": given.targets.tolist(),
        "steps": [extent.steps, extent.rate],
    }

    def compute() -> list[dict[str, Any]]:
        return [asdict(row) for row in course(case, width, seed, extent.steps, extent.rate)]

    path = folder / "training" / f"{_file_name(case)}-{width}-{seed}.json"
    return [Course(**row) for row in kept_or(path, identity, compute)]


def course(case: str, width: int, seed: int, steps: int, rate: float) -> list[Course]:
    """One network trained, with the predictions at the same times; parameters are float64.

    A step changes a parameter by some 1/n of it, which float32 would round away.
    """
    kernel, given = CASES[case], task()
    network = FiniteNetwork.draw(
        kernel,
        width,
        n_features=given.train.n_features,
        steps=int(max(given.train.lengths.max(), given.test.lengths.max())),
        rng=np.random.default_rng([width, seed]),
    )
    prediction = Prediction.of(kernel, given)
    size = rate / prediction.largest
    seen = list(_trained(network, given, steps, size))
    start = seen[0][1]
    rows = []
    for step, outputs in seen:
        flow = prediction.outputs(start, np.exp(-step * size * prediction.eigenvalues))
        descent = prediction.outputs(start, (1 - size * prediction.eigenvalues) ** step)
        for i, values in enumerate(zip(outputs, flow, descent, strict=True)):
            part, index = ("train", i) if i < len(given.train) else ("test", i - len(given.train))
            target = (given.targets if part == "train" else given.test_targets)[index]
            numbers = map(float, (target, *values))
            rows.append(Course(case, width, seed, step, step * rate, part, index, *numbers))
    return rows


def _trained(
    network: FiniteNetwork, given: Task, steps: int, size: float
) -> Iterator[tuple[int, Float64]]:
    """(steps done, outputs of all sequences) at some 20 times, evenly on a logarithmic scale."""
    train = Batch.of(given.train)
    everything = Batch.of(Sequences.concatenate([given.train, given.test]))
    wanted = {0, *np.unique(np.geomspace(1, steps, 20).round().astype(int)).tolist()}
    for step in range(steps + 1):
        if step in wanted:
            yield step, network.outputs(everything)
        if step < steps:
            network.descend(train, given.targets, size)


@dataclass(frozen=True)
class Prediction:
    """The kernel's closed form, in the eigenvectors of Theta(X, X).

    Attributes
    ----------
    eigenvalues : (n,) of Theta(X, X)
    vectors : (n, n) its eigenvectors, in columns
    onto : (all, n) Theta(all, X) vectors / eigenvalues
    targets : (n,)
    """

    eigenvalues: Float64
    vectors: Float64
    onto: Float64
    targets: Float64

    @classmethod
    def of(cls, kernel: RNTK, given: Task) -> Prediction:
        """For a task; "all" are its sequences for training, then the others."""
        everything = Sequences.concatenate([given.train, given.test])
        theta = kernel(everything)[:, : len(given.train)]
        eigenvalues, vectors = eigh(theta[: len(given.train)])
        return cls(eigenvalues, vectors, theta @ vectors / eigenvalues, given.targets)

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[-1])

    def outputs(self, start: Float64, left: Float64) -> Float64:
        """(all,) outputs; `start` are those at first, `left` (n,) is what is left of each mode."""
        modes = self.vectors.T @ (self.targets - start[: len(self.targets)])
        moved: Float64 = self.onto @ ((1 - left) * modes)
        return start + moved


def deviations(rows: Sequence[Course]) -> list[Deviation]:
    """One for each network and part."""
    grouped: dict[tuple[str, int, int, str], list[Course]] = {}
    for row in rows:
        grouped.setdefault((row.case, row.width, row.seed, row.part), []).append(row)
    return [Deviation(*key, *_deviation(group)) for key, group in grouped.items()]


def _deviation(rows: Sequence[Course]) -> Iterator[float]:
    last = rows[-1].step
    targets, network, flow, descent = np.array(
        [(row.target, row.network, row.flow, row.descent) for row in rows]
    ).T
    at_end = np.array([row.step == last for row in rows])
    scale = _size(targets[at_end])
    for difference in (network - flow, network - descent, descent - flow):
        yield _size(difference) / scale
    yield _size((network - targets)[at_end]) / scale


def _size(values: Float64) -> float:
    return float(np.sqrt((values**2).mean()))


# -- tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """The fitted exponent of a case, with its 95 % interval, over so many networks."""

    case: str
    exponent: float
    low: float
    high: float
    factor: float
    networks: int


def slopes(rows: Sequence[KernelError]) -> list[Slope]:
    """`laws` as rows of a table."""
    return [
        Slope(case, law.exponent, law.low, law.high, law.factor, sum(r.case == case for r in rows))
        for case, law in laws(rows).items()
    ]


def by_width(rows: Sequence[Deviation]) -> list[tuple[str, str, int, float, float]]:
    """(case, part, width, from_descent, from_flow), root mean squares over the networks."""
    groups: dict[tuple[str, str, int], list[Deviation]] = {}
    for row in rows:
        groups.setdefault((row.case, row.part, row.width), []).append(row)
    return [
        (
            *key,
            _size(np.array([row.from_descent for row in group])),
            _size(np.array([row.from_flow for row in group])),
        )
        for key, group in sorted(groups.items())
    ]


def _file_name(case: str) -> str:
    return case.replace(", ", "-").replace(" ", "_")
