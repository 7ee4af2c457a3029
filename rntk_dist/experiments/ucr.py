"""The UCR experiment: every method on every data set, chosen in training, judged on the test part.

For each data set and method cross-validation on the training part chooses a kernel of the method's
grid and a C, by two procedures side by side:

* ``paper``: the kernel as it is, C in 10^-2 .. 10^2. The scale of a raw kernel grows with the
  length of the sequences, and what C means with it.
* ``normalised``: the cosine-normalised kernel, C in 10^-2 .. 10^4.

All sequences are z-normalised, as those of the published errors are. Test labels are compared with
predictions, after every choice is made; the functions that choose are not given them.

How long it takes. On one core of an ordinary machine a Gram matrix of 400 sequences of 300 steps
takes 0.05 s (readouts "last" and "per_step"), and more than a minute with readout "mean", which
therefore sees long sequences averaged (`methods.MEAN_WORK`). A support vector machine takes from
0.2 ms (up to 70 sequences, few classes) over 4 ms (400 sequences, 6 classes) to 40 ms (600
sequences, 60 classes), and cross-validation has ten folds and twelve values of C in both
procedures, about half of them saved where no multiplier reaches C. The paper's method alone has 900
kernels for each data set, 13 others (19 where lengths vary) have 9 to 35. `budget.FULL` gives that
method up to 2000 s a data set, which is all 900 kernels on each of the archive's sample of 73, and
each other one up to 4 s: some 4.5 core-hours in all, with what the test parts take, and most of one
more for trained networks. What does not fit is thinned by `budget.affordable`, and every result
says how many kernels of how many were tried.

Trained networks may stand beside the kernels, or be run alone: see `networks` for how they are
chosen and what they may cost, and `trained` for how they are trained.

What is done is not done again: a folder keeps the counts of every cross-validation, and a file of
results for every data set and method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

from threadpoolctl import threadpool_limits

from rntk_dist.experiments import archive
from rntk_dist.experiments.archive import DataSet, labels_of
from rntk_dist.experiments.budget import FULL, Budget, affordable, fit_seconds
from rntk_dist.experiments.methods import (
    Float64,
    MeanOf,
    Method,
    Variant,
    mean_of,
    methods,
    normalised,
)
from rntk_dist.experiments.networks import KINDS, Kind, Setting, Training, choose_setting
from rntk_dist.experiments.networks import affordable as affordable_settings
from rntk_dist.experiments.networks import settings as all_settings
from rntk_dist.experiments.results import NO_PROCEDURE, Result, file_name, timed_or_kept
from rntk_dist.experiments.trained import Trainer, torch_trainer
from rntk_dist.sequences import Sequences
from rntk_dist.solve.machines import SVM
from rntk_dist.solve.selection import (
    Candidate,
    Choice,
    Procedure,
    cross_validate,
    predicted,
    select,
)

PAPER = Procedure("paper", SVM((0.01, 0.1, 1.0, 10.0, 100.0)))
NORMALISED = Procedure("normalised", SVM((0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)), normalize=True)
PROCEDURES = (PAPER, NORMALISED)

type Parts = Literal["kernels", "networks", "both"]
"""What is run: all methods but trained networks, those alone, or all."""

THE_PAPERS = "RNTK last"
CHOSEN = "RNTK, any of these"
SUM = "sum of kernels"
NEAREST = "1-NN Euclidean"
TRAINING = Training()
SUMMED = (
    "RNTK last",
    "RNTK per_step",
    "RNTK per_step, bidirectional",
    "RNTK mean",
    "RNTK per_step, delays",
    "RNTK per_step, differences",
    "NTK",
    "NTK, rescaled",
)
QUICK_SETS = 8
KEPT_BYTES = 2**28
"""Of matrices, for each data set that is worked on."""


# -- the whole experiment --------------------------------------------------------------------------


def run(
    root: Path,
    folder: Path,
    *,
    sets: Iterable[str] | None = None,
    budget: Budget = FULL,
    parts: Parts = "kernels",
    executor: Executor | None = None,
    on_set: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Every method on the data sets under root, or on those named; largest sets first.

    Parameters
    ----------
    root : Path
        The archive: see `archive.names`.
    folder : Path
        Keeps counts and results; run again to go on after an interruption.
    sets : names, optional
    budget : Budget
        How large the grids may be.
    parts : {"kernels", "networks", "both"}
        All methods but trained networks, those alone, or all.
    executor : concurrent.futures.Executor, optional
        Where data sets are worked on, one a task: processes, or a Dask client's
        ``client.get_executor()``. Without it one after another, here.
    on_set : callable, optional
        Gets the name, the number of data sets done and that of all.

    Raises
    ------
    IdentityError
        The folder keeps results of other data, another budget or other methods.
    ModuleNotFoundError
        Networks are to be trained, and PyTorch is not installed.
    """
    if parts != "kernels":
        torch_trainer(TRAINING)  # said at once, and not by a worker
    chosen = tuple(archive.names(root) if sets is None else sets)
    ordered = sorted(chosen, key=lambda name: _size(root, name), reverse=True)
    work = partial(run_set, root, folder=folder, budget=budget, parts=parts)
    found: dict[str, list[Result]] = {}
    answers = (map if executor is None else executor.map)(work, ordered)
    for done, (name, results) in enumerate(zip(ordered, answers, strict=True), start=1):
        found[name] = results
        if on_set is not None:
            on_set(name, done, len(ordered))
    return [result for name in chosen for result in found[name]]


def smallest(root: Path, count: int = QUICK_SETS) -> tuple[str, ...]:
    """The data sets of the smallest files."""
    return tuple(sorted(archive.names(root), key=lambda name: _size(root, name))[:count])


def _size(root: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (root / name).glob(f"{name}_*.tsv"))


def run_set(
    root: Path, name: str, *, folder: Path, budget: Budget = FULL, parts: Parts = "kernels"
) -> list[Result]:
    """Every method on one data set, on one core but for the kernel's own loops."""
    data = archive.read(root, name).z_normalised()
    work = SetRun(data, folder / name, budget)
    with threadpool_limits(1):  # small matrices: threads would only wait for each other
        kernels = [] if parts == "networks" else list(work.results())
        networks = [] if parts == "kernels" else list(work.networks(torch_trainer(TRAINING)))
    return kernels + networks


class Squares:
    """Matrices of the training part, kept while they fit into `KEPT_BYTES`.

    The one that is chosen is needed again, for the last fit.
    """

    def __init__(self, train: Sequences) -> None:
        self.train = train
        self.kept: dict[str, Float64] = {}

    def of(self, variant: Variant | MeanOf) -> Float64:
        """(n, n)."""
        if variant.name in self.kept:
            return self.kept[variant.name]
        square = variant.square(self.train)
        if (len(self.kept) + 1) * square.nbytes <= KEPT_BYTES:
            self.kept[variant.name] = square
        return square


# -- one data set ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetRun:
    """All methods on one data set, with the folder that keeps what is found."""

    data: DataSet
    folder: Path
    budget: Budget

    def results(self) -> Iterator[Result]:
        """Of every method but networks, and procedure; those that are kept are read."""
        choices: dict[str, Variant] = {}
        recurrent: list[Result] = []
        n_test = len(self.data.test)
        for method in methods(self.data.train, self.budget.mean_work, n_test):
            seconds = self.budget.paper if method.name == THE_PAPERS else self.budget.other
            thinned = affordable(method, self.data.train, PROCEDURES, seconds)
            found = self._kept_or(
                method.name, _digest(method.name, thinned.variants), partial(self._tried, thinned)
            )
            for result in found:
                if result.procedure == NORMALISED.name:
                    choices[method.name] = _named(thinned, result.kernel)
                whole = replace(result, grid=len(method.variants))
                if method.name.startswith("RNTK"):
                    recurrent.append(whole)
                yield whole
        yield from best_of(recurrent)
        yield from self._kept_or(NEAREST, _digest(NEAREST, ()), self._nearest)
        parts = [choices[name] for name in SUMMED if name in choices]
        every = [MeanOf(c) for size in (2, 3) for c in combinations(parts, size)]
        sums = every[: max(1, int(self.budget.other / fit_seconds(self.data.train, (NORMALISED,))))]
        for result in self._kept_or(SUM, _digest(SUM, sums), partial(self._summed, parts, sums)):
            yield replace(result, grid=len(every))

    def networks(self, trainer: Trainer) -> Iterator[Result]:
        """Of every kind of trained network; those that are kept are read."""
        for name, kind in KINDS.items():
            tried = affordable_settings(kind, self.data.train, self.budget.trained, TRAINING)
            compute = partial(self._trained, name, tried, trainer)
            for result in self._kept_or(name, _digest_of_networks(kind, tried), compute):
                yield replace(result, grid=len(all_settings(kind)))

    def _tried(self, method: Method) -> list[Result]:
        train = self.data.train
        squares = Squares(train)
        candidates = [Candidate(v.name, partial(squares.of, v)) for v in method.variants]
        found = choose(candidates, train, PROCEDURES, self._counts(method.name))
        return [
            self._judged(method.name, procedure, choice, method.variants, squares)
            for procedure, choice in found
        ]

    def _summed(self, parts: list[Variant], sums: list[MeanOf]) -> list[Result]:
        """Means of kernels that other methods have chosen; each of those is computed once."""
        train = self.data.train
        single = {part: normalised(part.square(train)) for part in parts}
        candidates = [
            Candidate(total.name, partial(_mean_at, single, total.parts)) for total in sums
        ]
        found = choose(candidates, train, (NORMALISED,), self._counts(SUM))
        return [
            self._judged(SUM, procedure, choice, sums, Squares(train))
            for procedure, choice in found
        ]

    def _nearest(self) -> list[Result]:
        """The nearest training sequence in Euclidean distance: nothing is chosen."""
        accuracy = 1 - archive.nearest_neighbour_error(self.data)
        return [
            Result(self.data.name, NEAREST, NO_PROCEDURE, 0, 0, "", 0.0, 0.0, 0, accuracy, 0.0, 0.0)
        ]

    def _trained(self, method: str, tried: Sequence[Setting], trainer: Trainer) -> list[Result]:
        """As in `_judged`, test labels are compared with predictions, when all is chosen."""
        data = self.data
        chosen = choose_setting(tried, data.train, trainer.judge)
        unlabelled = Sequences.from_arrays(list(data.test))
        labels = trainer.predictions(chosen.setting, data.train, unlabelled)
        return [
            Result(
                data_set=data.name,
                method=method,
                procedure=NO_PROCEDURE,
                kernels=len(tried),
                grid=len(tried),
                kernel=chosen.setting.name,
                C=0.0,
                validation=chosen.validation,
                tied=chosen.tied,
                accuracy=float((labels == labels_of(data.test)).mean()),
                seconds=0.0,
                core_seconds=0.0,
            )
        ]

    def _judged(
        self,
        method: str,
        procedure: Procedure,
        choice: Choice,
        variants: Sequence[Variant | MeanOf],
        squares: Squares,
    ) -> Result:
        """The choice on the test part, when all is chosen: its labels are looked at here."""
        data, variant = self.data, variants[choice.candidate]
        labels = predicted(
            procedure,
            choice.strength,
            squares.of(variant),
            labels_of(data.train),
            variant.across(data.test, data.train),
            variant.diagonal(data.test),
        )
        return Result(
            data_set=data.name,
            method=method,
            procedure=procedure.name,
            kernels=len(variants),
            grid=len(variants),
            kernel=variant.name,
            C=choice.strength,
            validation=choice.validation,
            tied=choice.tied,
            accuracy=float((labels == labels_of(data.test)).mean()),
            seconds=0.0,
            core_seconds=0.0,
        )

    def _counts(self, method: str) -> Path:
        return self.folder / f"{file_name(method)}.zarr"

    def _kept_or(
        self, method: str, digest: str, compute: Callable[[], list[Result]]
    ) -> list[Result]:
        """Results that are kept, or computed ones, which are kept from then on."""
        path = self.folder / f"{file_name(method)}.json"
        identity = {"data": self.data.sequences.fingerprint, "kernels": digest}
        return timed_or_kept(path, identity, compute)


def choose(
    candidates: list[Candidate],
    train: Sequences,
    procedures: tuple[Procedure, ...],
    store: Path,
) -> list[tuple[Procedure, Choice]]:
    """For each procedure the best of the candidates on the training part."""
    scores = cross_validate(
        candidates, labels_of(train), procedures, store=store, data=train.fingerprint
    )
    return [(procedure, select(scores, procedure)) for procedure in procedures]


def best_of(results: Sequence[Result]) -> Iterator[Result]:
    """For each procedure the method that validated best, as one that tried all that these tried.

    Of equally good ones the first is taken.
    """
    for procedure in PROCEDURES:
        tried = [result for result in results if result.procedure == procedure.name]
        best = max(tried, key=lambda result: result.validation)
        yield replace(
            best,
            method=CHOSEN,
            kernels=sum(result.kernels for result in tried),
            grid=sum(result.grid for result in tried),
            tied=sum(result.tied for result in tried if result.validation == best.validation),
            seconds=round(sum(result.seconds for result in tried), 3),
            core_seconds=round(sum(result.core_seconds for result in tried), 3),
        )


def _mean_at(single: dict[Variant, Float64], parts: tuple[Variant, ...]) -> Float64:
    return mean_of([single[part] for part in parts])


def _named(method: Method, name: str) -> Variant:
    return next(variant for variant in method.variants if variant.name == name)


# -- what results depend on ------------------------------------------------------------------------


def _digest(method: str, variants: Sequence[Variant | MeanOf]) -> str:
    """Of all that the results depend on but for the data."""
    told = [method, *(variant.name for variant in variants), repr(PROCEDURES)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _digest_of_networks(kind: Kind, tried: Sequence[Setting]) -> str:
    told = [kind, *(setting.name for setting in tried), repr(TRAINING)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()
