"""Statistics over data sets: published and hand-computed examples, and what must always hold."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from rntk_dist.experiments import statistics
from rntk_dist.experiments.statistics import AccuracyTable

# Demšar (2006), table 6: AUC of C4.5, with -m, with -cf, with both, on 14 data sets.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def table_of(values: np.ndarray, methods: str = "") -> AccuracyTable:
    columns = methods or "abcdefgh"[: values.shape[1]]
    return AccuracyTable(tuple(f"set {i}" for i in range(len(values))), tuple(columns), values)


accuracies = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 12), st.integers(3, 6)),
    elements=st.integers(0, 20).map(lambda k: k / 20),
).map(table_of)


# Of each data set a number of test samples, and how many of them each of four methods has right.
counted = st.lists(
    st.sampled_from((3, 7, 9, 21, 30, 49, 66, 2048, 3 * 8192)).flatmap(
        lambda n: st.tuples(st.just(n), st.tuples(*[st.integers(0, min(n, 30))] * 4))
    ),
    min_size=2,
    max_size=9,
)


def in_floats(counts: list[tuple[int, tuple[int, ...]]]) -> AccuracyTable:
    """Each method has its accuracy in another way: from what is right or wrong, or as a mean."""
    rows = [
        (a / n, 1 - (n - b) / n, (c / n + c / n + c / n) / 3, d / n) for n, (a, b, c, d) in counts
    ]
    return table_of(np.array(rows))


def signed_ranks(differences: list[Fraction]) -> np.ndarray:
    """Whole numbers that are ordered, and tied, as exact differences are."""
    sizes = sorted({Fraction(0), *map(abs, differences)})
    return np.array([math.copysign(sizes.index(abs(d)), d) for d in differences])


# -- numbers that can be checked by hand -----------------------------------------------------------


def test_ranks_and_friedman_are_those_of_demsars_example() -> None:
    table = table_of(DEMSAR)
    assert table.ranks()[7].tolist() == [2.5, 2.5, 4.0, 1.0]
    assert table.ranks().mean(axis=0).round(3).tolist() == [3.143, 2.0, 2.893, 1.964]
    found = statistics.friedman(table)
    # His 9.28 is not corrected for ties: divide by 1 - (sum of t³ - t) / (N (k³ - k)), where two
    # pairs, one of them twice, and one four are tied.
    ties = 3 * (2**3 - 2) + (4**3 - 4)
    assert found.chi_square == pytest.approx(9.28 / (1 - ties / (14 * (4**3 - 4))), abs=0.01)
    assert 0.01 < found.p < 0.05


@pytest.mark.parametrize(("alpha", "difference"), [(0.05, 1.25), (0.10, 1.12)])
def test_nemenyis_difference_is_that_of_demsars_example(alpha: float, difference: float) -> None:
    assert statistics.critical_difference(4, 14, alpha) == pytest.approx(difference, abs=0.005)


def test_the_summary_of_three_data_sets() -> None:
    table = table_of(np.array([[0.9, 1.0, 0.95], [0.5, 0.25, 0.5], [0.0, 0.0, 0.0]]))
    a, b, c = statistics.summaries(table)
    assert (a.method, a.mean) == ("a", pytest.approx(1.4 / 3))
    assert (a.p90, a.p95, c.p95) == (1.0, pytest.approx(2 / 3), 1.0)
    assert (b.p90, b.pma) == (pytest.approx(2 / 3), pytest.approx((1 + 0.5 + 1) / 3))
    assert [s.rank for s in (a, b, c)] == [
        pytest.approx((3 + 1.5 + 2) / 3),
        pytest.approx((1 + 3 + 2) / 3),
        pytest.approx((2 + 1.5 + 2) / 3),
    ]


def test_signed_ranks_by_hand() -> None:
    """Five wins of different size and no loss: 2 / 2^5; the same with a loss of the smallest."""
    wins = np.array([[0.6, 0.5], [0.7, 0.5], [0.8, 0.5], [0.9, 0.5], [1.0, 0.5]])
    (found,) = statistics.pair_tests(table_of(wins))
    assert (found.wins, found.ties, found.losses) == (5, 0, 0)
    assert found.p == found.p_holm == pytest.approx(2 / 32)
    wins[0] = wins[0, ::-1]
    (found,) = statistics.pair_tests(table_of(wins))
    assert (found.wins, found.losses) == (4, 1)
    assert found.p == pytest.approx(4 / 32)


def test_equal_differences_of_thirds_and_sevenths_tie() -> None:
    """2/3 - 1/3 is 1/3 - 0, and 6/7 - 3/7 is 3/7 - 0, though not so in floats.

    Two losses have the rank 1.5, two wins 3.5. Of 16 ways to lose, 4 have a sum of ranks of at
    most 3: no loss, either of 1.5, both. Ranks 1 to 4 would have 5: the loss of 3 alone, too.
    """
    third, seventh = 1 / 3, 1 / 7
    first = np.array([1 / 3, 0, 6 * seventh, 3 * seventh])
    second = np.array([2 / 3, third, 3 * seventh, 0])
    (found,) = statistics.pair_tests(table_of(np.column_stack([first, second])))
    assert (found.wins, found.ties, found.losses) == (2, 0, 2)
    assert found.p == pytest.approx(8 / 16)


def test_thirds_of_three_methods_rank_alike() -> None:
    """Every difference is 0, 1/3 or 2/3, and halves, which floats hold exactly, rank as these."""
    thirds = np.array([[2, 1, 0], [1, 0, 2], [2, 1, 0], [1, 0, 1], [2, 0, 1], [0, 1, 2], [1, 0, 2]])
    found = statistics.pair_tests(table_of(thirds / 3))
    expected = statistics.pair_tests(table_of(thirds / 2))
    assert [pair.p for pair in found] == [pair.p for pair in expected]


@pytest.mark.parametrize("n", [3, 7, 21, 1024, 2048, 8192, 3 * 2048, 3 * 7711, 3 * 8192])
def test_equal_shares_round_to_the_same_float(n: int) -> None:
    """k / n, for every k, by what is counted, by its complement, and as differences both ways."""
    k = np.arange(n)
    shares = np.arange(n + 1) / n
    start = np.random.default_rng(0).integers(0, n - k + 1)
    ways = (
        shares[k],
        1 - shares[n - k],
        shares[start + k] - shares[start],
        -(shares[start] - shares[start + k]),
        (1 - shares[n - start - k]) - shares[start],
        np.mean([shares[k]] * 3, axis=0),
    )
    first, *others = map(statistics._rounded, ways)
    for other in others:
        assert np.array_equal(other, first)
    assert (np.diff(first) > 0).all()


def test_holm_by_hand() -> None:
    """Of 4: 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to what stands before."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_groups_are_the_runs_that_no_test_tells_apart() -> None:
    rng = np.random.default_rng(5)
    base = rng.uniform(0.4, 0.8, 40)
    noise = rng.normal(scale=0.01, size=(40, 4))
    values = base[:, None] + noise + np.array([0.10, 0.10, 0.0, -0.10])
    found = statistics.compare(table_of(values))
    assert set(found.methods[:2]) == {"a", "b"}
    assert found.methods[2:] == ("c", "d")
    assert found.groups == ((0, 1),)
    assert (found.sets, found.difference) == (40, None)
    nemenyi = statistics.compare(table_of(values), test="nemenyi")
    assert nemenyi.groups == ((0, 1),)
    assert nemenyi.difference == pytest.approx(statistics.critical_difference(4, 40))


def test_overlapping_groups_by_nemenyi() -> None:
    """Mean ranks 1.5, 1.9, 2.6 of 20 sets: k = 3 has the difference 2.343 sqrt(12 / 120) = 0.741,
    so that the first and the last differ and no others."""
    orders = [[1, 2, 3]] * 12 + [[2, 1, 3]] * 2 + [[3, 2, 1]] * 2 + [[2, 3, 1]] * 4
    values = 1 - np.array(orders) / 4
    found = statistics.compare(table_of(values), test="nemenyi", alpha=0.05)
    assert found.ranks == pytest.approx((1.5, 2.1, 2.4))
    assert found.difference == pytest.approx(0.741, abs=0.001)
    assert found.groups == ((0, 1), (1, 2))


def test_where_nothing_differs_all_are_one_group() -> None:
    same = table_of(np.full((5, 3), 0.5))
    assert statistics.friedman(same) == statistics.Friedman(0.0, 1.0)
    assert [pair.p_holm for pair in statistics.pair_tests(same)] == [1.0, 1.0, 1.0]
    assert statistics.compare(same).groups == ((0, 2),)


# -- tables ----------------------------------------------------------------------------------------


def test_a_table_is_made_of_rows_in_any_order() -> None:
    rows = [("B", "x", 0.1), ("A", "y", 0.4), ("A", "x", 0.3), ("B", "y", 0.2)]
    table = AccuracyTable.from_rows(rows)
    assert (table.sets, table.methods) == (("B", "A"), ("x", "y"))
    assert table.accuracy.tolist() == [[0.1, 0.2], [0.3, 0.4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("A", "x", 0.1), ("A", "x", 0.1)], r"x stands twice on A"),
        ([("A", "x", 0.1), ("B", "y", 0.1)], r"y has no accuracy on A \(2 are missing\)"),
        ([("A", "x", math.nan)], r"x has the accuracy nan on A"),
        ([("A", "x", 57.0)], r"x has the accuracy 57.0 on A: give shares of 1"),
        ([], r"found accuracies of shape \(0, 0\) for 0 data sets"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(
    rows: list[tuple[str, str, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AccuracyTable.from_rows(rows)


def test_names_stand_once_and_friedman_needs_three_methods() -> None:
    with pytest.raises(ValueError, match="the method a stands twice"):
        table_of(np.zeros((2, 2)), "aa")
    with pytest.raises(ValueError, match="at least 3 methods, found 2: use wilcoxon"):
        statistics.compare(table_of(np.zeros((2, 2))))
    with pytest.raises(ValueError, match="test is 'sign': choose wilcoxon or nemenyi"):
        statistics.compare(table_of(DEMSAR), test="sign")  # type: ignore[arg-type]


# -- what must always hold -------------------------------------------------------------------------


@given(accuracies)
def test_ranks_sum_up_and_the_best_has_every_share(table: AccuracyTable) -> None:
    k = len(table.methods)
    assert np.allclose(table.ranks().sum(axis=1), k * (k + 1) / 2)
    for row in statistics.summaries(table):
        assert row.pma <= 1
        assert row.p95 <= row.p90
        assert 1 <= row.rank <= k
    best = np.column_stack([table.accuracy, table.accuracy.max(axis=1)])
    last = statistics.summaries(table_of(best))[-1]
    assert (last.p90, last.p95, last.pma) == (1.0, 1.0, 1.0)


@settings(max_examples=5, deadline=None)  # exact p-values of tied ranks take their time
@given(accuracies, st.randoms(use_true_random=False))
def test_the_order_of_methods_changes_no_result(table: AccuracyTable, random: object) -> None:
    order = list(range(len(table.methods)))
    random.shuffle(order)  # type: ignore[attr-defined]
    methods = tuple(table.methods[i] for i in order)
    other = AccuracyTable(table.sets, methods, table.accuracy[:, order])
    assert statistics.friedman(other).p == pytest.approx(statistics.friedman(table).p)
    expected = {frozenset((t.first, t.second)): t.p_holm for t in statistics.pair_tests(table)}
    for found in statistics.pair_tests(other):
        assert found.p_holm == pytest.approx(expected[frozenset((found.first, found.second))])


@settings(deadline=None)
@given(counted)
def test_wins_ties_and_ranks_are_those_of_exact_fractions(
    counts: list[tuple[int, tuple[int, ...]]],
) -> None:
    table = in_floats(counts)
    exact = [[Fraction(k, n) for k in right] for n, right in counts]
    assert table.ranks().tolist() == [
        stats.rankdata([sorted(row, reverse=True).index(k) for k in row]).tolist() for row in exact
    ]
    shares = [[k / max(row) if max(row) else Fraction(1) for k in row] for row in exact]
    for row, own in zip(statistics.summaries(table), zip(*shares, strict=True), strict=True):
        assert row.p90 == sum(share >= Fraction(9, 10) for share in own) / len(own)
        assert row.p95 == sum(share >= Fraction(19, 20) for share in own) / len(own)
        assert row.pma == pytest.approx(float(sum(own)) / len(own))
    pairs = combinations(range(4), 2)
    for (i, j), found in zip(pairs, statistics.pair_tests(table), strict=True):
        ranks = signed_ranks([row[i] - row[j] for row in exact])
        assert (found.wins, found.ties, found.losses) == (
            (ranks > 0).sum(),
            (ranks == 0).sum(),
            (ranks < 0).sum(),
        )
        if ranks.any():
            assert found.p == stats.wilcoxon(ranks, zero_method="pratt").pvalue


@given(
    st.lists(st.integers(1, 300), min_size=4, max_size=4),
    st.lists(st.integers(0, 300), min_size=4, max_size=4),
)
@example([3, 3, 3, 7], [2, 1, 1, 0])
@example([6, 2, 3, 2], [5, 1, 1, 0])
@example([7, 21, 3, 21], [6, 4, 2, 0])
def test_differences_are_equal_where_those_of_exact_fractions_are(
    denominators: list[int], counts: list[int]
) -> None:
    """One difference of four shares with four denominators, in three ways, beside another."""
    a, b, c, d = (Fraction(k % (n + 1), n) for k, n in zip(counts, denominators, strict=True))
    ways = [float(a) - float(b), -(float(b) - float(a)), (1 - float(1 - a)) - float(b)]
    rounded = statistics._rounded(np.array([*ways, float(c) - float(d)]))
    assert len(set(rounded[:3].tolist())) == 1
    assert (rounded[0] == rounded[3]) == (a - b == c - d)
    assert (abs(rounded[0]) == abs(rounded[3])) == (abs(a - b) == abs(c - d))


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_lies_between_the_raw_value_and_bonferronis(p: list[float]) -> None:
    corrected = statistics.holm(p)
    for raw, value in zip(p, corrected, strict=True):
        assert raw <= value <= min(1.0, raw * len(p))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
