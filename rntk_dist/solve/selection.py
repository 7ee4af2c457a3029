"""Which kernel and which strength classify best: cross-validation on Gram matrices.

Only training samples and their labels come in; nothing here takes a test label.

The scores lie in a Zarr group, an array for each procedure: how many held-out samples of each fold
were classified right, by (candidate, strength, fold), and -1 where nobody has counted yet. What is
counted there is not computed again: not after an interruption, and not when candidates are added.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedKFold
from zarr.storage import MemoryStore, StoreLike

from rntk_dist.solve.machines import Float64, Labels, Machine
from rntk_dist.store import IdentityError

type Counts = NDArray[np.int32]
type Ints = NDArray[np.int64]

BLOCK = 16
"""Candidates whose counts are written together, in one chunk of each array."""

_UNKNOWN = -1
_DIMENSIONS = ("candidate", "strength", "fold")


@dataclass(frozen=True)
class Candidate:
    """A kernel by name, and how to get its matrix (n, n) of the training samples.

    `gram` is called at most once in a run, and not at all where the counts are stored; it may read
    a stored matrix. With an executor of other processes it must be picklable.
    """

    name: str
    gram: Callable[[], ArrayLike]


@dataclass(frozen=True)
class Procedure:
    """How a kernel is used: as it is or cosine-normalised, and by which machine."""

    name: str
    machine: Machine
    normalize: bool = False


@dataclass(frozen=True, eq=False)
class Scores:
    """What cross-validation counted.

    correct[procedure name] is (candidates, strengths, folds); `fold_of` (n,) is the fold in which
    each training sample was held out.
    """

    candidates: tuple[str, ...]
    procedures: tuple[Procedure, ...]
    correct: dict[str, Counts]
    fold_of: Ints

    def rows(self) -> Iterator[tuple[str, str, float, int, int, int]]:
        """A tidy table: procedure, candidate, strength, fold, correct and held-out samples."""
        sizes = np.bincount(self.fold_of).tolist()
        for procedure in self.procedures:
            counts = self.correct[procedure.name]
            for (i, j, fold), count in np.ndenumerate(counts):
                strength = procedure.machine.strengths[j]
                yield procedure.name, self.candidates[i], strength, fold, int(count), sizes[fold]


@dataclass(frozen=True)
class Choice:
    """A candidate, by its position and name, and a strength.

    `validation` is the share of training samples classified right while held out; `tied` says how
    many pairs of candidate and strength reached it, this one included.
    """

    candidate: int
    name: str
    strength: float
    validation: float
    tied: int


def select(scores: Scores, procedure: Procedure) -> Choice:
    """The pair of most held-out samples classified right.

    Of equal ones the most regularised strength (the smallest C) is taken, and of those the first
    candidate.
    """
    total = scores.correct[procedure.name].sum(axis=2).T
    most = total.max()
    best = np.argwhere(total == most)
    strength, candidate = best[0].tolist()
    return Choice(
        candidate,
        scores.candidates[candidate],
        procedure.machine.strengths[strength],
        float(most) / len(scores.fold_of),
        len(best),
    )


def cross_validate(
    candidates: Sequence[Candidate],
    labels: ArrayLike,
    procedures: Sequence[Procedure],
    *,
    store: StoreLike | None = None,
    data: str = "",
    folds: int = 10,
    seed: int = 0,
    executor: Executor | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Count for every candidate, procedure, strength and fold what is classified right.

    Parameters
    ----------
    candidates : sequence of Candidate
    labels : (n,) array
        Of the training samples.
    procedures : sequence of Procedure
        All use one matrix of each candidate.
    store : path or URL, optional
        A Zarr group that keeps the counts; of this function alone. Without it they are kept in
        memory. One process at a time may use it.
    data : str
        What the matrices are computed from, such as the fingerprint of the sequences; a store
        filled from other data is refused.
    folds, seed : int
        See `folds_of`.
    executor : concurrent.futures.Executor, optional
        Where candidates are evaluated, one a task: threads, processes, or a Dask client's
        ``client.get_executor()``. Without it one after another, here.
    on_progress : callable, optional
        Gets the number of candidates counted and of all, whenever a block is stored.

    Raises
    ------
    IdentityError
        The store holds counts of other data, labels, folds, procedures or candidates; candidates
        behind the stored ones are none.
    ValueError
        Names stand twice, there is nothing to choose from, or a matrix has another shape than
        (n, n) or is not finite.
    """
    names = tuple(candidate.name for candidate in candidates)
    _require_distinct("candidate", names)
    _require_distinct("procedure", tuple(procedure.name for procedure in procedures))
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    fold_of = folds_of(codes, folds, seed)
    group = _opened(store, names, procedures, _identity(codes, fold_of, data, procedures))
    evaluate = partial(_counts, codes, fold_of, tuple(procedures))
    missing = _missing(group, procedures)
    done = len(names) - len(missing)
    for block in _blocks(missing):
        grams = [candidates[i] for i in block]
        found = list((map if executor is None else executor.map)(evaluate, grams))
        _write(group, procedures, block, found)
        done += len(block)
        if on_progress is not None:
            on_progress(done, len(names))
    correct = {p.name: np.asarray(_array(group, p.name)[:], dtype=np.int32) for p in procedures}
    return Scores(names, tuple(procedures), correct, fold_of)


def folds_of(labels: ArrayLike, folds: int = 10, seed: int = 0) -> Ints:
    """The fold (n,) in which each sample is held out: stratified, shuffled by a fixed seed.

    There are as many folds as asked for, but no more than the largest class has samples: a class
    of fewer samples than folds is missing in some. Where no class has two samples, none can be
    recognised when held out: folds are then dealt in turn, and every choice is a tie.

    Raises ValueError for fewer than 2 samples or folds.
    """
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    if len(codes) < 2 or folds < 2:
        raise ValueError(
            f"found {len(codes)} samples and {folds} folds: cross-validation needs at least 2 each"
        )
    largest = int(np.bincount(codes).max())
    if largest == 1:
        return np.arange(len(codes)) % min(folds, len(codes))
    splitter = StratifiedKFold(min(folds, largest), shuffle=True, random_state=seed)
    fold_of = np.empty(len(codes), dtype=np.int64)
    with warnings.catch_warnings():
        # Of classes of fewer samples than folds; the docstring says what becomes of them.
        warnings.filterwarnings("ignore", message="The least populated class")
        for fold, (_, held_out) in enumerate(splitter.split(codes, codes)):
            fold_of[held_out] = fold
    return fold_of


def predicted(
    procedure: Procedure,
    strength: float,
    square: ArrayLike,
    labels: ArrayLike,
    across: ArrayLike,
    diagonal: ArrayLike,
) -> Labels:
    """The labels (m,) that the machine, trained on all training samples, gives to others.

    Parameters
    ----------
    procedure : Procedure
    strength : float
    square : (n, n) array
        Kernel of the training samples.
    labels : (n,) array
        Theirs.
    across : (m, n) array
        Kernel of the others with the training samples.
    diagonal : (m,) array
        Kernel of each of the others with itself.
    """
    kernel, other = np.asarray(square, np.float64), np.asarray(across, np.float64)
    if procedure.normalize:
        own = np.diagonal(kernel)
        kernel, other = cosine(kernel, own, own), cosine(other, np.asarray(diagonal), own)
    machine = procedure.machine.only(strength)
    labels_found: Labels = machine.predictions(kernel, np.asarray(labels), other)[0]
    return labels_found


def cosine(values: Float64, rows: ArrayLike, columns: ArrayLike) -> Float64:
    """k(x, y) / sqrt(k(x, x) k(y, y)) from the values (m, n) and both diagonals; 0 where one is."""
    left, right = (_inverse_root(np.asarray(each, np.float64)) for each in (rows, columns))
    return values * left[:, None] * right


def _inverse_root(diagonal: Float64) -> Float64:
    root = np.sqrt(diagonal)
    return np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)


# -- one candidate ---------------------------------------------------------------------------------


def _counts(
    codes: Ints, fold_of: Ints, procedures: tuple[Procedure, ...], candidate: Candidate
) -> list[Counts]:
    """For each procedure (strengths, folds)."""
    gram = np.asarray(candidate.gram(), dtype=np.float64)
    _require_square(candidate.name, gram, len(codes))
    diagonal = np.diagonal(gram)
    found = []
    for procedure in procedures:
        kernel = cosine(gram, diagonal, diagonal) if procedure.normalize else gram
        folds = [_fold(procedure.machine, kernel, codes, fold_of == k) for k in _folds(fold_of)]
        found.append(np.stack(folds, axis=1).astype(np.int32))
    return found


def _folds(fold_of: Ints) -> range:
    return range(int(fold_of.max()) + 1)


def _fold(machine: Machine, kernel: Float64, codes: Ints, held_out: NDArray[np.bool_]) -> Ints:
    """How many of those held out each strength classifies right: (strengths,)."""
    others = np.flatnonzero(~held_out)
    square = kernel[np.ix_(others, others)]
    across = kernel[np.ix_(np.flatnonzero(held_out), others)]
    found = machine.predictions(square, codes[others], across)
    counts: Ints = (found == codes[held_out]).sum(axis=1)
    return counts


def _require_square(name: str, gram: Float64, n: int) -> None:
    if gram.shape != (n, n):
        raise ValueError(
            f"candidate {name} has a matrix of shape {gram.shape} for {n} labels: "
            f"give the ({n}, {n}) matrix of the training samples"
        )
    if not np.isfinite(gram).all():
        raise ValueError(
            f"candidate {name} has a matrix with NaN or infinity: give finite values, "
            "or leave the candidate out"
        )


# -- the store of counts ---------------------------------------------------------------------------


def _identity(
    codes: Ints, fold_of: Ints, data: str, procedures: Sequence[Procedure]
) -> dict[str, Any]:
    """What must agree for stored counts to be used again."""
    digest = hashlib.sha256(codes.astype("<i8").tobytes() + fold_of.astype("<i8").tobytes())
    return {
        "version": 1,
        "data": data,
        "samples": len(codes),
        "folds": len(_folds(fold_of)),
        "labels and folds": digest.hexdigest(),
        "procedures": [repr(procedure) for procedure in procedures],
    }


def _opened(
    store: StoreLike | None,
    names: tuple[str, ...],
    procedures: Sequence[Procedure],
    identity: dict[str, Any],
) -> zarr.Group:
    """The group, with room for each candidate."""
    group = zarr.open_group(MemoryStore() if store is None else store, mode="a")
    stored = dict(group.attrs)
    if stored:
        _require_same(group, stored, identity, names)
    else:
        _create(group, procedures, identity["folds"])
    for procedure in procedures:
        array = _array(group, procedure.name)
        array.resize((len(names), *array.shape[1:]))
    # Last: a group with attributes is whole.
    group.attrs.put(identity | {"candidates": list(names)})
    return group


def _require_same(
    group: zarr.Group, stored: dict[str, Any], identity: dict[str, Any], names: tuple[str, ...]
) -> None:
    differing = [key for key, value in identity.items() if stored.get(key) != value]
    known = stored.get("candidates", [])
    if list(names[: len(known)]) != known:
        differing.append("candidates")
    if differing:
        raise IdentityError(
            f"{group.store_path}: holds the counts of another selection, which differs in "
            f"{', '.join(differing)}: use another store, or remove this one"
        )


def _create(group: zarr.Group, procedures: Sequence[Procedure], folds: int) -> None:
    for procedure in procedures:
        rest = (len(procedure.machine.strengths), folds)
        group.create_array(
            procedure.name,
            shape=(0, *rest),
            chunks=(BLOCK, *rest),
            dtype=np.int32,
            fill_value=_UNKNOWN,
            dimension_names=_DIMENSIONS,
            overwrite=True,  # what an interrupted creation left
        )


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{group.store_path}: found a group {name}, not an array: remove it")
    return array


def _missing(group: zarr.Group, procedures: Sequence[Procedure]) -> list[int]:
    """Candidates that lack a count."""
    counts = [np.asarray(_array(group, p.name)[:]) for p in procedures]
    lacking = [(count == _UNKNOWN).any(axis=(1, 2)) for count in counts]
    found: list[int] = np.flatnonzero(np.any(lacking, axis=0)).tolist()
    return found


def _blocks(missing: Sequence[int]) -> list[list[int]]:
    """Those of one chunk together: it is written once."""
    return [list(block) for _, block in groupby(missing, key=lambda i: i // BLOCK)]


def _write(
    group: zarr.Group,
    procedures: Sequence[Procedure],
    block: Sequence[int],
    found: Sequence[Sequence[Counts]],
) -> None:
    """found[candidate][procedure], for the candidates of one chunk."""
    rows = slice(block[0], block[-1] + 1)
    for position, procedure in enumerate(procedures):
        array = _array(group, procedure.name)
        values = np.asarray(array[rows]).copy()
        values[np.array(block) - block[0]] = [counts[position] for counts in found]
        array[rows] = values


def _require_distinct(what: str, names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(f"there is no {what} to choose from: give at least one")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the {what} {twice[0]} stands twice: give each a name of its own")
