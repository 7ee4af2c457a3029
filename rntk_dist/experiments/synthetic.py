"""The synthetic experiment: every method predicts the next sample of noisy sinusoids.

After Alemohammad et al., ICLR 2021: sweeps over the length of the sequences, over how much lengths
differ within one set, over the noise and over the number of training sequences, the last two for
equal and for different lengths; ridge regression on each kernel. In each repeat a method chooses
one of its twelve kernels and of nine alphas, by the errors of training sequences that are left out,
one at a time. It is trained on next samples as noisy as all others, and judged by the
signal-to-noise ratio of its predictions against next samples without noise, in a test part that
nothing is chosen by.

Vectors, which the other kernels need, have room for the longest sequence that a problem may draw.
Zeros fill it after the end of a sequence, as it is usually done, or in front of its start, which
keeps the last steps in the same places: what is known of the task then helps these kernels, too.

What is done is not done again: a folder keeps the results of every problem, repeat for repeat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import batched, product
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rntk_dist.experiments import kept
from rntk_dist.experiments.inputs import AsTheyAre, Inputs, Padded, PaddedInFront
from rntk_dist.experiments.methods import RBF, ROOT_2, Kernel, Method, Polynomial, Variant
from rntk_dist.experiments.sinusoids import Float64, Problem, Samples, draw
from rntk_dist.experiments.snr import Row, snr_db
from rntk_dist.kernel import RNTK
from rntk_dist.kernel.many import many_values
from rntk_dist.sequences import Sequences
from rntk_dist.solve.regression import RidgeRegression

RIDGE = RidgeRegression()
FLOAT64 = np.dtype(np.float64)

SIGMA_W = (ROOT_2, 1.2, 1.34, 1.47)
"""Around sqrt(2), where all steps weigh alike; below it the last ones weigh more."""

SIGMA_B = (0.0, 0.1, 0.5)
BLOCK = 10
"""Repeats after which what is found is written down."""

REPEATS = 200
QUICK_REPEATS = 5


@dataclass(frozen=True)
class Sweep:
    """Problems that differ in one setting, `varied`, a field of Problem; `axis` says what it is."""

    name: str
    base: Problem
    axis: str
    varied: str
    values: tuple[float, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """One for each value."""
        settings: list[dict[str, Any]] = [{self.varied: value} for value in self.values]
        return tuple(replace(self.base, **setting) for setting in settings)

    def ends(self) -> Sweep:
        """The first and the last value alone."""
        return replace(self, values=(self.values[0], self.values[-1]))


EQUAL = Problem()
DIFFERENT = Problem(spread=20)
_NOISE = ("standard deviation of the noise", "noise", (0.0, 0.05, 0.1, 0.2, 0.4))
_SIZE = ("training sequences", "size", (10, 20, 40, 80, 160))

SWEEPS = (
    Sweep("length", EQUAL, "steps of every sequence", "length", (5, 10, 20, 40, 80)),
    Sweep("noise, equal lengths", EQUAL, *_NOISE),
    Sweep("size, equal lengths", EQUAL, *_SIZE),
    Sweep("spread", EQUAL, "steps by which lengths differ at most", "spread", (0, 5, 10, 20, 40)),
    Sweep("noise, different lengths", DIFFERENT, *_NOISE),
    Sweep("size, different lengths", DIFFERENT, *_SIZE),
)
QUICK_SWEEPS = tuple(sweep.ends() for sweep in SWEEPS)


# -- what is compared ------------------------------------------------------------------------------


def methods(problem: Problem) -> tuple[Method, ...]:
    """Twelve kernels each; those on vectors twice where lengths differ."""
    last = [RNTK(sigma_w=w, sigma_b=b) for w, b in product(SIGMA_W, SIGMA_B)]
    per_step = [replace(kernel, readout="per_step") for kernel in last]
    vectors: dict[str, list[Kernel]] = {
        "NTK": [RNTK(depth=d, sigma_b=b) for d, b in product((1, 2, 3, 5), SIGMA_B)],
        "RBF": [RBF(10.0 ** (k / 2)) for k in range(-5, 7)],
        "polynomial": [Polynomial(d, r) for d, r in product((1, 2, 3, 5), (0.0, 0.1, 1.0))],
    }
    seen: dict[str, Inputs] = {"": Padded(problem.longest)}
    if problem.spread:
        seen = {
            ", zeros after": Padded(problem.longest),
            ", zeros in front": PaddedInFront(problem.longest),
        }
    return (
        _method("RNTK last", AsTheyAre(), last),
        _method("RNTK per_step", AsTheyAre(), per_step),
        *(_method(n + s, seen[s], kernels) for s in seen for n, kernels in vectors.items()),
    )


def _method(name: str, inputs: Inputs, kernels: Sequence[Kernel]) -> Method:
    return Method(name, tuple(Variant(inputs, kernel) for kernel in kernels))


@dataclass(frozen=True)
class Choice:
    """A kernel and an alpha, and their mean squared error on training sequences left out."""

    variant: Variant
    alpha: float
    error: float


def choose(method: Method, train: Sequences, observed: Float64) -> Choice:
    """The kernel and alpha of the smallest error; of equal ones the first, the largest alpha."""
    pairs = zip(method.variants, _squares(method.variants, train), strict=True)
    found = [_best_alpha(variant, square, observed) for variant, square in pairs]
    return min(found, key=lambda choice: choice.error)


def _squares(variants: Sequence[Variant], train: Sequences) -> list[Float64]:
    """What `variant.square(train)` is for each: sequences are seen once, RNTKs taken together."""
    seen = {inputs: inputs(train) for inputs in {variant.inputs for variant in variants}}
    found: dict[Variant, Float64] = {}
    for inputs, sequences in seen.items():
        alike = [variant for variant in variants if variant.inputs == inputs]
        recurrent = [v.kernel for v in alike if isinstance(v.kernel, RNTK)]
        values = many_values(recurrent, sequences, kind="ntk", dtype=FLOAT64, backend="auto")
        for i, square in values:
            if isinstance(square, OverflowError):
                raise square
            found[Variant(inputs, recurrent[i])] = square
        found |= {v: v.kernel(sequences) for v in alike if not isinstance(v.kernel, RNTK)}
    return [found[variant] for variant in variants]


def _best_alpha(variant: Variant, square: Float64, observed: Float64) -> Choice:
    errors = (RIDGE.left_out(square, observed) ** 2).mean(axis=1)
    best = int(errors.argmin())
    return Choice(variant, RIDGE.alpha[best], float(errors[best]))


def predicted(choice: Choice, train: Samples, test: Sequences) -> Float64:
    """Next samples (m,) of other sequences by the choice, trained on all training sequences."""
    square = choice.variant.square(train.sequences)
    across = choice.variant.across(test, train.sequences)
    values: Float64 = RIDGE.only(choice.alpha).predictions(square, train.observed, across)[0]
    return values


# -- one problem -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One method in one repeat of a problem."""

    repeat: int
    method: str
    kernel: str
    alpha: float
    snr_db: float


def run_repeat(problem: Problem, repeat: int) -> list[Outcome]:
    """Every method on the data of one repeat, the same for all."""
    data = draw(problem, repeat)
    found = []
    for method in methods(problem):
        choice = choose(method, data.train.sequences, data.train.observed)
        snr = snr_db(data.test.true, predicted(choice, data.train, data.test.sequences))
        found.append(Outcome(repeat, method.name, choice.variant.name, choice.alpha, round(snr, 4)))
    return found


def run_problem(problem: Problem, *, folder: Path, repeats: int) -> list[Outcome]:
    """The first so many repeats of a problem, on one core; those that are kept are read."""
    path = folder / f"{problem.name}.json"
    identity = {"problem": problem.name, "methods": _digest(problem)}
    found = [Outcome(**row) for row in kept.read(path, identity) or []]
    missing = range(1 + max((outcome.repeat for outcome in found), default=-1), repeats)
    with threadpool_limits(1):  # small matrices: threads would only wait for each other
        for block in batched(missing, BLOCK):
            found += [outcome for repeat in block for outcome in run_repeat(problem, repeat)]
            kept.write(path, identity, [asdict(outcome) for outcome in found])
    return [outcome for outcome in found if outcome.repeat < repeats]


def _digest(problem: Problem) -> str:
    """Of all that the results depend on but for the problem."""
    names = [f"{m.name}: {variant.name}" for m in methods(problem) for variant in m.variants]
    return hashlib.sha256("\n".join([repr(RIDGE), *names]).encode()).hexdigest()


# -- the whole experiment --------------------------------------------------------------------------


def run(
    folder: Path,
    *,
    sweeps: Sequence[Sweep] = SWEEPS,
    repeats: int = REPEATS,
    executor: Executor | None = None,
    on_problem: Callable[[Problem, int, int], None] | None = None,
) -> list[Row]:
    """Every method at every point of the sweeps; a problem of several sweeps is worked on once.

    Parameters
    ----------
    folder : Path
        Keeps results; run again to go on after an interruption, or with more repeats.
    sweeps : sequence of Sweep
    repeats : int
        Draws of each problem.
    executor : concurrent.futures.Executor, optional
        Where problems are worked on, one a task: processes, or a Dask client's
        ``client.get_executor()``. Without it one after another, here.
    on_problem : callable, optional
        Gets the problem, the number of problems done and that of all.

    Raises
    ------
    IdentityError
        The folder keeps results of other methods.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}: give at least 1")
    ordered = _problems(sweeps)
    work = partial(run_problem, folder=folder, repeats=repeats)
    found: dict[Problem, list[Outcome]] = {}
    answers = (map if executor is None else executor.map)(work, ordered)
    for done, (problem, outcomes) in enumerate(zip(ordered, answers, strict=True), start=1):
        found[problem] = outcomes
        if on_problem is not None:
            on_problem(problem, done, len(ordered))
    return list(_rows(sweeps, found))


def _problems(sweeps: Sequence[Sweep]) -> list[Problem]:
    """Each once, the largest first, so that no long one is left for the end."""
    distinct = dict.fromkeys(problem for sweep in sweeps for problem in sweep.problems)
    return sorted(distinct, key=lambda p: (p.size, p.longest), reverse=True)


def _rows(sweeps: Sequence[Sweep], found: dict[Problem, list[Outcome]]) -> Iterator[Row]:
    for sweep in sweeps:
        for value, problem in zip(sweep.values, sweep.problems, strict=True):
            for outcome in found[problem]:
                yield Row(sweep.name, value, outcome.method, outcome.repeat, outcome.snr_db)
