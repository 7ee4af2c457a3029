"""Which of several classifiers is better, from their accuracies on many data sets.

The tests are those of Demšar (2006, "Statistical comparisons of classifiers over multiple data
sets"): Friedman's over all methods, then Nemenyi's or Wilcoxon's over pairs. P90, P95 and PMA are
those of Fernández-Delgado et al. (2014), which the RNTK paper reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

type Float64 = NDArray[np.float64]
type Test = Literal["wilcoxon", "nemenyi"]

_UNITS = 2.0**33
"""Numbers are equal that round to the same multiple of 1 / 2^33, which is about 1e-10.

As floats 2/3 - 1/3 and 1/3 - 0 differ in the last bit. Where a number lies in the middle between
two multiples such a bit decides; a share p / q never does, nor so near to it, for q up to 100,000.
In the middle between two decimals of 10 digits lies 1/2048, and 1/8192 between two of 12.
"""


@dataclass(frozen=True, eq=False)
class AccuracyTable:
    """Accuracies (data sets, methods), shares of 1; every method has one on every data set.

    Raises ValueError for a shape that does not fit the names, no entry at all, names that stand
    twice, or a number outside 0..1 (NaN too).
    """

    sets: tuple[str, ...]
    methods: tuple[str, ...]
    accuracy: Float64

    def __post_init__(self) -> None:
        _refuse_twice("data set", self.sets)
        _refuse_twice("method", self.methods)
        expected = (len(self.sets), len(self.methods))
        if self.accuracy.shape != expected or not self.accuracy.size:
            raise ValueError(
                f"found accuracies of shape {self.accuracy.shape} for {expected[0]} data sets and "
                f"{expected[1]} methods: give one for each, and at least one"
            )
        bad = np.argwhere(~((self.accuracy >= 0) & (self.accuracy <= 1)))
        if len(bad):
            i, j = bad[0]
            raise ValueError(
                f"{self.methods[j]} has the accuracy {self.accuracy[i, j]} on {self.sets[i]}: "
                "give shares of 1, and leave out what was not run"
            )

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str, float]]) -> AccuracyTable:
        """From (data set, method, accuracy) in any order; names keep the order of their first row.

        Raises ValueError where a pair stands twice, or a method lacks a data set.
        """
        found: dict[tuple[str, str], float] = {}
        for name, method, accuracy in rows:
            if (name, method) in found:
                raise ValueError(f"{method} stands twice on {name}: give one accuracy for each")
            found[name, method] = accuracy
        sets = tuple(dict.fromkeys(name for name, _ in found))
        methods = tuple(dict.fromkeys(method for _, method in found))
        lacking = [(s, m) for s in sets for m in methods if (s, m) not in found]
        if lacking:
            raise ValueError(
                f"{lacking[0][1]} has no accuracy on {lacking[0][0]} ({len(lacking)} are missing): "
                "compare only data sets that every method has"
            )
        values = np.array([[found[s, m] for m in methods] for s in sets], dtype=np.float64)
        return cls(sets, methods, values.reshape(len(sets), len(methods)))

    def ranks(self) -> Float64:
        """(sets, methods): 1 for the best of a data set; equal ones share the mean of theirs."""
        ranked: Float64 = stats.rankdata(-_rounded(self.accuracy), axis=1)
        return ranked


def _rounded(values: Float64) -> Float64:
    """Numbers of which equal ones are the same float; give what is compared, and round it once.

    A difference of rounded numbers has the errors of both: 2/3 and 1/3 rounded differ by another
    number than 1/3 and 0 rounded.
    """
    rounded: Float64 = np.rint(values * _UNITS) / _UNITS
    return rounded


def _refuse_twice(what: str, names: tuple[str, ...]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the {what} {twice[0]} stands twice: give each once")


@dataclass(frozen=True)
class Summary:
    """One method over all data sets.

    p90 and p95 are the shares of data sets on which it has at least 90 % and 95 % of the best
    method's accuracy, pma the mean of accuracy / best accuracy, rank the mean of its ranks.
    """

    method: str
    mean: float
    p90: float
    p95: float
    pma: float
    rank: float


def summaries(table: AccuracyTable) -> tuple[Summary, ...]:
    """One for each method, in the order of the table.

    On a data set on which every method is always wrong all are the best.
    """
    best = table.accuracy.max(axis=1, keepdims=True)
    share = np.divide(table.accuracy, best, out=np.ones_like(table.accuracy), where=best > 0)
    columns = (
        table.accuracy.mean(axis=0),
        (_rounded(share - 0.90) >= 0).mean(axis=0),
        (_rounded(share - 0.95) >= 0).mean(axis=0),
        share.mean(axis=0),
        table.ranks().mean(axis=0),
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(
        Summary(method, *numbers) for method, numbers in zip(table.methods, rows, strict=True)
    )


# -- tests -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Friedman:
    """Whether the methods differ at all: the statistic, corrected for ties, and its p-value."""

    chi_square: float
    p: float


def friedman(table: AccuracyTable) -> Friedman:
    """Friedman's test that all methods rank alike.

    The p-value is that of the chi-square distribution, good for more than 10 data sets and 5
    methods.  Raises ValueError for fewer than 3 methods.
    """
    if len(table.methods) < 3:
        raise ValueError(
            f"Friedman's test compares at least 3 methods, found {len(table.methods)}: "
            "use wilcoxon for two"
        )
    ranks = table.ranks()
    if (ranks == ranks[:, :1]).all():  # the statistic would be 0/0
        return Friedman(0.0, 1.0)
    found = stats.friedmanchisquare(*ranks.T)
    return Friedman(float(found.statistic), float(found.pvalue))


def critical_difference(methods: int, sets: int, alpha: float = 0.05) -> float:
    """Nemenyi's: mean ranks of two of so many methods that differ by more, differ.

    q(alpha) sqrt(k (k + 1) / (6 N)), with q the studentised range at infinite degrees of freedom,
    over sqrt 2.
    """
    q = float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * sets))


@dataclass(frozen=True)
class PairTest:
    """Wilcoxon's signed-rank test of two methods.

    wins, ties and losses count data sets, seen from the first; `p` is two-sided, `p_holm` that
    corrected for the number of pairs.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    p: float
    p_holm: float


def pair_tests(table: AccuracyTable) -> tuple[PairTest, ...]:
    """Every pair of methods, in the order of the table.

    Data sets on which two are equal keep their rank and count for neither (Pratt's rule). Equal
    differences share the mean of their ranks: accuracies are subtracted as they are, and only the
    difference is rounded.
    """
    pairs = list(combinations(range(len(table.methods)), 2))
    differences = [_rounded(table.accuracy[:, i] - table.accuracy[:, j]) for i, j in pairs]
    raw = [_signed_rank(difference) for difference in differences]
    return tuple(
        PairTest(
            table.methods[i],
            table.methods[j],
            int((difference > 0).sum()),
            int((difference == 0).sum()),
            int((difference < 0).sum()),
            p,
            p_holm,
        )
        for (i, j), difference, p, p_holm in zip(pairs, differences, raw, holm(raw), strict=True)
    )


def _signed_rank(differences: Float64) -> float:
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p: Iterable[float]) -> list[float]:
    """p-values corrected by Holm's step-down rule, in the given order.

    The i-th smallest of m is multiplied by m - i + 1; none falls below a smaller one's, none
    exceeds 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    raw = np.array(list(p), dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    steps = raw[order] * np.arange(len(raw), 0, -1)
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


# -- the whole comparison --------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Methods by their mean rank, the best first, and which of them are not told apart.

    Each of `groups` is (first, last), positions in `methods`: no two of that run differ at the
    level alpha. `difference` is Nemenyi's critical difference where his test was asked for.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    groups: tuple[tuple[int, int], ...]
    sets: int
    alpha: float
    friedman: Friedman
    difference: float | None = None


def compare(table: AccuracyTable, *, test: Test = "wilcoxon", alpha: float = 0.05) -> Comparison:
    """Friedman's test, then one of pairs: Wilcoxon's with Holm's correction, or Nemenyi's.

    Where Friedman's finds no difference at the level alpha, all are one group.
    Raises ValueError for fewer than 3 methods or another test.
    """
    if test not in ("wilcoxon", "nemenyi"):
        raise ValueError(f"test is {test!r}: choose wilcoxon or nemenyi")
    overall = friedman(table)
    means = table.ranks().mean(axis=0)
    order = np.argsort(means, kind="stable")
    difference = critical_difference(len(order), len(table.sets), alpha)
    if overall.p >= alpha:
        differ = np.zeros((len(order), len(order)), dtype=np.bool_)
    elif test == "nemenyi":
        differ = np.abs(means[:, None] - means) > difference
    else:
        differ = _wilcoxon_differ(table, alpha)
    return Comparison(
        tuple(table.methods[i] for i in order),
        tuple(float(means[i]) for i in order),
        tuple(_groups(differ[np.ix_(order, order)])),
        len(table.sets),
        alpha,
        overall,
        difference if test == "nemenyi" else None,
    )


def _wilcoxon_differ(table: AccuracyTable, alpha: float) -> NDArray[np.bool_]:
    """(methods, methods): whether two differ, in the order of the table."""
    differ = np.zeros((len(table.methods),) * 2, dtype=np.bool_)
    pairs = combinations(range(len(table.methods)), 2)
    for (i, j), found in zip(pairs, pair_tests(table), strict=True):
        differ[i, j] = differ[j, i] = found.p_holm < alpha
    return differ


def _groups(differ: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The longest runs of two or more in which no two differ; none lies within another."""
    groups: list[tuple[int, int]] = []
    for first in range(len(differ)):
        last = first
        while last + 1 < len(differ) and not differ[first : last + 1, last + 1].any():
            last += 1
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups
