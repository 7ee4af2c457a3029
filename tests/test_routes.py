"""Routes for many samples: their costs follow from a few rates, and the cheapest is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rntk_dist.plan import MIB, Plan, Samples, Work, Workers, choose_tile
from rntk_dist.routes import SCHEDULER_BYTES_A_TILE, Problem, Rates, Route, filling, plan_for, scale

RATES = Rates(
    start=5.0, tile=0.01, pair_steps=1e9, reading=1e9, flops=2e10, workers=Workers(2, 8 * 2**30)
)
PROBLEM = Problem(20_000, pair_steps=100.0)


def routes(problem: Problem, rates: Rates = RATES) -> dict[str, Route]:
    return {route.name: route for route in scale(problem, rates).routes}


def test_the_matrix_is_cut_as_a_run_would_cut_it() -> None:
    for n in (300, 3000, 20_000):
        for workers in (Workers(2, 8 * 2**30), Workers(64, 2**30, threads=4)):
            chosen = choose_tile(Work(), Samples([100] * n), workers, itemsize=4)
            assert plan_for(Problem(n, 100.0), replace(RATES, workers=workers)).tile == chosen


def test_a_stored_matrix_costs_its_tiles_its_pairs_and_its_products() -> None:
    plan = plan_for(PROBLEM, RATES)
    work = 20_000 * 20_001 // 2 * 100
    found = routes(PROBLEM)["store"]
    assert found.pair_steps == work
    assert found.bytes_stored == plan.bytes_stored
    assert filling(plan, work, RATES) == 5.0 + 0.01 * plan.n_tiles + work / 1e9
    assert found.seconds == filling(plan, work, RATES) + 30 * plan.bytes_stored / 1e9
    assert found.scheduler_bytes - 105 * MIB == SCHEDULER_BYTES_A_TILE * plan.n_tiles


def test_what_is_computed_again_costs_its_pairs_each_time() -> None:
    again, once = routes(PROBLEM)["recompute"], routes(PROBLEM)["store"]
    assert (again.pair_steps, again.bytes_stored) == (30 * once.pair_steps, 0)
    assert again.tasks == 30 * once.tasks


def test_panels_on_centres_are_stored_where_reading_is_faster_and_there_is_room() -> None:
    stored = routes(PROBLEM)["nystroem"]
    assert PROBLEM.centres == 896  # 6 sqrt(N), in blocks of 64
    assert stored.bytes_stored == 20_000 * 896 * 4
    computed = routes(replace(PROBLEM, room=MIB))["nystroem"]
    assert computed.bytes_stored == 0
    assert computed.pair_steps == 22 * stored.pair_steps
    assert routes(PROBLEM, replace(RATES, reading=1e6))["nystroem"].bytes_stored == 0


def test_neighbors_take_every_pair_twice_and_next_to_no_room() -> None:
    found = routes(PROBLEM)["neighbors"]
    assert found.pair_steps == 20_000**2 * 100
    assert found.bytes_stored == 20_000 * 10 * 12


def test_the_cheapest_is_named_with_what_speaks_against_the_others() -> None:
    found = scale(replace(PROBLEM, n=10**6, room=2**30), RATES)
    assert found.cheapest is not None
    assert found.cheapest.name == "nystroem"
    assert found.why.startswith("store: needs 1,8")
    assert "GiB of storage, and 1 are left; recompute: " in found.why
    assert found.why.endswith(" times as long")
    assert found.hours(found.cheapest) == found.cheapest.seconds * 2 / 3600
    told = found.to_dict()
    assert told["cheapest"] == "nystroem"
    assert {"core_hours", "scheduler_bytes"} <= told["routes"][0].keys()
    assert "gpu_hours" in scale(PROBLEM, replace(RATES, on_gpu=True)).to_dict()["routes"][0]


@given(
    n=st.integers(2, 10**7),
    pair_steps=st.floats(1, 1e4),
    count=st.integers(1, 1000),
    memory=st.sampled_from([0, 2**30, 2**36]),
)
def test_more_samples_never_cost_less(n: int, pair_steps: float, count: int, memory: int) -> None:
    rates = replace(RATES, workers=Workers(count, memory))
    few, many = (Problem(each, pair_steps) for each in (n, 2 * n))
    plan = plan_for(few, rates)
    assert plan == Plan(n, n, plan.tile, True, 4)
    for name, route in routes(few, rates).items():
        other = routes(many, rates)[name]
        assert route.seconds > 0
        assert other.pair_steps > route.pair_steps or name == "nystroem"
        if plan_for(many, rates).tile == plan.tile and name != "nystroem":
            assert other.seconds >= route.seconds
            assert other.tasks >= route.tasks


def test_nothing_is_cheapest_where_nothing_can_be_done() -> None:
    found = scale(replace(PROBLEM, room=0), RATES)
    refused = tuple(replace(route, refused=f"no {route.name}") for route in found.routes)
    none = replace(found, routes=refused)
    assert none.cheapest is None
    assert none.why == "none can be taken: no store; no recompute; no nystroem; no neighbors"
    assert none.to_dict()["cheapest"] is None


def test_a_problem_of_few_samples_uses_all_of_them_as_centres() -> None:
    assert Problem(50, 10.0).centres == 50
    assert Problem(10**6, 10.0).centres == pytest.approx(6000, abs=64)
