"""The plan against brute force over all pairs, and the words with which it refuses."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rntk_dist.plan import (
    BASE_BYTES,
    MIB,
    SECONDS_PER_PAIR_STEP,
    Plan,
    Samples,
    Tile,
    TileMemoryError,
    Work,
    Workers,
    check_memory,
    choose_tile,
    largest_tile,
    pair_steps,
    step_bytes,
    tile_costs,
    total_pair_steps,
    worker_bytes,
)

GIB = 1024 * MIB
sizes = st.integers(1, 40)
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=30)
works = st.builds(
    Work,
    st.sampled_from(["last", "per_step", "diagonal_authors", "mean"]),
    st.integers(1, 3),
    st.booleans(),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    n, tile, symmetric = draw(sizes), draw(sizes), draw(st.booleans())
    return Plan(n, n if symmetric else draw(sizes), tile, symmetric, draw(st.sampled_from([4, 8])))


@st.composite
def samples(draw: st.DrawFn) -> Samples:
    return Samples(draw(lengths), draw(st.none() | lengths), draw(st.integers(1, 9)))


def cost_of_pair(work: Work, a: int, b: int) -> int:
    steps = a * b if work.readout == "mean" else min(a, b)
    return steps * work.depth * (2 if work.bidirectional else 1)


def brute_cost(plan: Plan, work: Work, samples: Samples, tile: Tile) -> int:
    return sum(
        cost_of_pair(work, samples.row_lengths[i], samples.columns[j])
        for i in range(*plan.rows(tile))
        for j in range(*plan.cols(tile))
        if i <= j or not plan.is_diagonal(tile)
    )


# -- tiles ----------------------------------------------------------------------------------------


@given(plans())
def test_tiles_cover_the_upper_triangle_exactly_once(plan: Plan) -> None:
    covered: dict[tuple[int, int], int] = {}
    for tile in plan.tiles():
        for i in range(*plan.rows(tile)):
            for j in range(*plan.cols(tile)):
                if i <= j or not plan.is_diagonal(tile):
                    covered[i, j] = covered.get((i, j), 0) + 1
    wanted = {
        (i, j)
        for i in range(plan.n_rows)
        for j in range(plan.n_cols)
        if i <= j or not plan.symmetric
    }
    assert set(covered) == wanted
    assert set(covered.values()) == {1}


@given(plans())
def test_tiles_are_counted_ordered_and_members(plan: Plan) -> None:
    tiles = list(plan.tiles())
    assert len(tiles) == plan.n_tiles
    assert tiles == sorted(tiles)
    assert all(tile in plan for tile in tiles)
    rows, cols = plan.grid
    around = {Tile(r, c) for r in range(-1, rows + 1) for c in range(-1, cols + 1)}
    assert {tile for tile in around if tile in plan} == set(tiles)


@given(plans(), st.data())
def test_tile_of_finds_the_tile_that_holds_an_element(plan: Plan, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, plan.n_rows - 1))
    j = data.draw(st.integers(0, plan.n_cols - 1))
    tile = plan.tile_of(i, j)
    assert tile in plan
    holds = [
        range(*plan.rows(tile)).count(a) * range(*plan.cols(tile)).count(b)
        for a, b in ([(i, j), (j, i)] if plan.symmetric else [(i, j)])
    ]
    assert any(holds)


def test_tile_of_refuses_what_is_outside() -> None:
    with pytest.raises(IndexError, match=r"\(0, 5\) is outside a matrix of shape 5 x 5"):
        Plan(5, 5, 2, symmetric=True).tile_of(0, 5)


@given(plans())
def test_stored_bytes_are_whole_chunks_with_a_checksum(plan: Plan) -> None:
    rows, cols = plan.chunk_shape
    assert plan.bytes_stored == plan.n_tiles * (rows * cols * plan.itemsize + 4)
    assert all(plan.block_shape(tile) <= plan.chunk_shape for tile in plan.tiles())


@given(plans())
def test_plans_round_trip_through_json(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_from_dict_refuses_missing_and_unknown_fields() -> None:
    data = Plan(5, 5, 2, symmetric=True).to_dict()
    with pytest.raises(ValueError, match="a plan has the fields"):
        Plan.from_dict({**data, "colour": 3})
    del data["tile"]
    with pytest.raises(ValueError, match="a plan has the fields"):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, 1, 1, False), "n_rows must be at least 1"),
        ((1, 1, 0, False), "tile must be at least 1"),
        ((2, 3, 1, True), "a symmetric plan is square, got 2 x 3"),
        ((1, 1, 1, True, 2), "itemsize must be 4"),
    ],
)
def test_impossible_plans_are_refused(args: tuple[int, int, int, bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(*args)


# -- work -----------------------------------------------------------------------------------------


@given(samples(), works, sizes)
def test_costs_are_exact(samples: Samples, work: Work, tile: int) -> None:
    plan = samples.plan(tile)
    costs = tile_costs(plan, work, samples, plan.tiles())
    assert costs == {t: brute_cost(plan, work, samples, t) for t in plan.tiles()}
    assert all(pair_steps(plan, work, samples, t) == cost for t, cost in costs.items())


@given(samples(), works, sizes)
def test_the_total_is_the_sum_over_tiles(samples: Samples, work: Work, tile: int) -> None:
    plan = samples.plan(tile)
    costs = tile_costs(plan, work, samples, plan.tiles())
    assert total_pair_steps(work, samples) == sum(costs.values())


def test_a_kernels_dict_gives_its_work() -> None:
    options = {"readout": "mean", "depth": 2, "bidirectional": True, "sigma_w": 1.0}
    assert Work.of(options) == Work("mean", 2, True)
    assert Work("mean", 2, True).factor == 4
    with pytest.raises(TypeError, match="depth must be an int"):
        Work.of({**options, "depth": "2"})


# -- memory ---------------------------------------------------------------------------------------


@given(samples(), works, st.integers(1, 4))
def test_a_larger_tile_of_equal_lengths_never_needs_less(
    samples: Samples, work: Work, threads: int
) -> None:
    equal = Samples([5] * len(samples.row_lengths), None, samples.n_features)
    needs = [worker_bytes(equal.plan(t), work, equal, threads) for t in range(1, 41)]
    assert needs == sorted(needs)
    assert needs[0] > BASE_BYTES


def test_a_tile_that_does_not_fit_is_refused_with_figures_and_a_way_out() -> None:
    samples, work = Samples([10] * 20000), Work()
    workers = Workers(count=2, memory=GIB)
    with pytest.raises(TileMemoryError) as refused:
        check_memory(samples.plan(8192), work, samples, workers)
    assert str(refused.value) == (
        "tile 8192 needs 1.8 GiB on a worker limited to 1.0 GiB: use tile=5440"
    )
    check_memory(samples.plan(5440), work, samples, workers)
    with pytest.raises(TileMemoryError):
        check_memory(samples.plan(5504), work, samples, workers)
    assert largest_tile(samples.plan(8192), work, samples, workers) == 5440


def test_a_worker_too_small_for_any_tile_is_told_what_it_needs() -> None:
    samples = Samples([10] * 20000)
    with pytest.raises(TileMemoryError, match=r"no tile fits, give each worker 321 MiB"):
        check_memory(samples.plan(8192), Work(), samples, Workers(1, 200 * MIB))


def test_no_limit_is_no_refusal() -> None:
    samples = Samples([10] * 10**6)
    check_memory(samples.plan(10**6), Work(), samples, Workers(1, 0))


def test_steps_take_more_memory_with_features_layers_and_directions() -> None:
    base = step_bytes(Work(), 1)
    assert base == 112
    assert step_bytes(Work(), 8) > base
    assert step_bytes(Work(depth=3), 1) > base
    assert step_bytes(Work(bidirectional=True), 1) > base
    assert step_bytes(Work("mean"), 1) > base


# -- choice ---------------------------------------------------------------------------------------


@given(
    st.integers(1, 10**6), st.integers(1, 2000), st.booleans(), st.integers(1, 500), st.integers(1)
)
def test_the_chosen_tile_is_round_and_leaves_enough_tiles(
    n: int, length: int, symmetric: bool, workers: int, seed: int
) -> None:
    # Equal lengths by their count alone: the lists would be the slow part of the test.
    m = n if symmetric else 1 + seed % n
    samples = Samples([length] * min(n, 2000), None if symmetric else [length] * min(m, 2000))
    n, m = len(samples.row_lengths), len(samples.columns)
    tile = choose_tile(Work(), samples, Workers(workers))
    assert tile % 64 == 0 or tile == max(n, m)
    seconds = total_pair_steps(Work(), samples) * SECONDS_PER_PAIR_STEP
    if seconds >= 4 * workers and tile > 64:
        assert samples.plan(tile).n_tiles >= 8 * workers
    # A task is never short for want of a larger tile: it is long enough, or it is the whole.
    pairs = int(0.5 / (length * SECONDS_PER_PAIR_STEP))
    assert tile >= min(max(n, m), 64 * max(1, math.isqrt(pairs) // 64))


def test_the_choice_for_a_long_a_medium_and_a_short_job() -> None:
    long, medium, short = ([100] * n for n in (50000, 10000, 100))
    assert choose_tile(Work(), Samples(long), Workers(16)) == 3072  # 2 s a task
    assert choose_tile(Work(), Samples(medium), Workers(8)) == 1536  # half a second, 28 tiles
    assert choose_tile(Work(), Samples(short), Workers(8)) == 100


def test_the_choice_stays_within_the_workers_memory() -> None:
    samples = Samples([5] * 100_000)
    unlimited = choose_tile(Work(), samples, Workers(4))
    limited = choose_tile(Work(), samples, Workers(4, GIB))
    assert limited < unlimited
    assert limited**2 * 8 <= GIB // 8
    check_memory(samples.plan(limited), Work(), samples, Workers(4, GIB))
    many_threads = choose_tile(Work(), samples, Workers(4, GIB, threads=4))
    assert many_threads < limited


def test_long_sequences_make_the_tile_smaller_until_nothing_fits() -> None:
    samples = Samples([200_000] * 1000)
    workers = Workers(1, 4 * GIB)
    tile = choose_tile(Work(), samples, workers, seconds_per_pair_step=1e-12)
    assert tile == 64
    with pytest.raises(TileMemoryError, match="no tile fits"):
        choose_tile(Work(), samples, Workers(1, GIB))
