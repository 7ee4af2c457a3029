"""The benchmark runs, and what it shows holds: ratios within one run, with slack, never times."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    alternatives,
    end_to_end,
    jax_scan,
    low_rank,
    neighbors,
    report,
    solvers,
    sweep,
    timing,
)
from benchmarks.__main__ import main
from benchmarks.tiles import (
    DEPTH,
    Headline,
    Problem,
    Setting,
    Size,
    grid_table,
    headline_problems,
    headline_table,
    headline_targets,
    measure,
    measure_headline,
    settings,
)

TINY = Size(8, 6)


def test_pair_steps_are_those_that_a_pair_needs() -> None:
    X = [[1.0], [1.0, 2.0, 3.0]]
    Y = [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
    for readout, expected in (("last", 1 + 1 + 2 + 3), ("per_step", 7), ("mean", 4 * 6)):
        problem = Problem.of(Setting(readout=readout), TINY)
        sides = (type(problem.X).from_arrays(side) for side in (X, Y))
        assert Problem(problem.kernel, *sides).pair_steps == expected


def test_the_grid_has_every_combination() -> None:
    assert len(list(settings())) == len(set(settings())) == 2 * 2 * 3 * 3 * 2


@pytest.mark.slow
def test_a_row_of_the_grid() -> None:
    rows = {
        setting: measure(setting, TINY, repeats=2)
        for setting in (Setting(), Setting(depth=2, readout="mean", ragged=True))
    }
    assert all(spent > 0 for row in rows.values() for spent in row.values())
    lines = grid_table(rows).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 100


def test_the_headline_and_its_targets() -> None:
    others = jax_scan.jax_calls(Problem.of(Setting(), TINY))
    found, rest = measure_headline(TINY, others, repeats=2)
    assert "fused float32, erf" in headline_table(found, rest)
    targets = headline_targets(found, rest)
    assert len(targets) == (12 if others else 10)
    assert max(map(len, report.target_table(targets).splitlines())) <= 100


def test_alternatives_that_are_not_installed_are_left_out() -> None:
    rows = alternatives.measure_alternatives(Size(4, 8), repeats=2)
    others = sum(bool(timing.installed(package)) for package in ("aeon", "tslearn"))
    assert len(rows) == 4 + others
    assert "RNTK mean" in alternatives.alternatives_table(rows)


def test_pure_kernel_time_and_parts_of_a_task(tmp_path: Path) -> None:
    X = end_to_end.sequences(20, 6)
    store = str(tmp_path / "gram")
    made = end_to_end.ensure_store(
        end_to_end.KERNEL, X, None, store=store, tile=8, dtype="float32", backend="numba"
    )
    for tile in made.plan.tiles():
        end_to_end.compute_tile(store, tile, "numba")
    assert end_to_end.kernel_seconds(store) > 0
    parts = end_to_end.parts_of_a_task(store)
    whole = parts.pop("the whole task")
    assert sum(parts.values()) == pytest.approx(whole)


@pytest.mark.slow
def test_fits_on_centres_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact one in a process of its own, as all of them are, the others here: it is quicker."""
    sizes = low_rank.Sizes(falkon=400, centers=30, exact=100, stored=150, test=40, steps=8)
    alone = low_rank._alone

    def here(what: str, sizes: low_rank.Sizes, n: int, *more: str) -> dict[str, Any]:
        return alone(what, sizes, n) if what == "exact" else low_rank._FITS[what](sizes, n, *more)

    monkeypatch.setattr(low_rank, "_alone", here)
    found = low_rank.measure_low_rank(sizes)
    assert all(fit["seconds"] > 0 for fit in found.fits.values())
    assert all(0 < fit["rmse"] < 1 for fit in found.fits.values())
    assert len(low_rank.falkon_table(found).splitlines()) == 2 + len(found.fits)
    assert "computed anew" in low_rank.panels_table(found)
    assert len(low_rank.low_rank_targets(found)) == 4


@pytest.mark.slow
def test_solvers_are_measured_each_in_its_own_process() -> None:
    sizes = solvers.Sizes(products=300, factor=200, held=150, tile=64, rank=20, repeats=2)
    found = solvers.measure_solvers(sizes)
    assert found.nbytes == (300 * 300 + sum(64 * 64 for _ in range(4)) + 44 * 44) // 2 * 4
    assert found.cg["residual"] <= sizes.tol
    assert found.factor["residual"] < 1e-10
    assert "gram @ v" in solvers.products_table(found)
    assert "panels of 200" in solvers.solvers_table(found)
    assert set(found.held) == set(solvers.HELD)
    assert "support vectors" in solvers.held_table(found)
    targets = solvers.solvers_targets(found)
    assert [target.unit for target in targets] == ["%", "%", "MiB", "GiB"]
    assert max(map(len, report.target_table(targets).splitlines())) <= 100


def test_the_target_says_met_or_missed() -> None:
    assert report.Target("faster", 4, 5.0, at_least=True).row()[-1] == "met"
    assert report.Target("faster", 4, 3.0, at_least=True).row()[-1] == "MISSED"
    assert report.Target("memory", 1, 0.5, unit="GiB").row()[1:] == ("<= 1 GiB", "0.5 GiB", "met")


def test_only_what_stands_between_markers_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- bench:begin one -->\nold\n<!-- bench:end one -->\nafter\n")
    sections = [report.Section("one", "", "new"), report.Section("two", "", "lost")]
    for _ in range(2):
        assert report.write_sections(document, sections) == ["two"]
        assert document.read_text() == (
            "before\n<!-- bench:begin one -->\n\nnew\n\n<!-- bench:end one -->\nafter\n"
        )


def test_a_part_of_a_run_says_when_it_was_taken() -> None:
    sections = [report.Section(name, "", "text") for name in ("machine", "one", "targets")]
    [part] = report.part_of_a_run(sections, timing.facts())
    assert part.name == "one"
    assert part.text.startswith(f"text\n\nTaken by itself on {timing.facts()['date']}: ")


@pytest.mark.slow
def test_many_kernels_against_the_same_one_by_one() -> None:
    found = sweep.measure_sweep(sweep.Sizes(6, 2, 24, 10, repeats=2))
    assert min(found.alone, found.together, found.gram.wall, found.sweep.processor) > 0
    lines = sweep.sweep_table(found).splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= 100
    assert len(sweep.sweep_targets(found)) == 2


def test_the_kernels_of_a_sweep_are_spread_over_the_grid() -> None:
    assert len(set(sweep.paper_kernels(900))) == 900
    few = sweep.paper_kernels(12)
    assert {few[0].sigma_w, few[-1].sigma_w} == {1.34, 1.47}


def test_histories_are_those_of_the_recommendation_case() -> None:
    drawn = neighbors.drawn(20_000, 0)
    assert 8.5 < drawn.lengths.mean() < 9.5
    assert (drawn.lengths < 20).mean() > 0.85
    assert drawn.n_items == 12_101
    counts = np.bincount(drawn.values[:, 0])
    assert counts[0] > 50 * np.median(counts)


def test_neighbours_are_told_in_a_table_with_targets() -> None:
    found = neighbors.Found(neighbors.QUICK, 10**7, loops=0.5, search=0.6, seconds=2, peak=2**28)
    assert "1.20" in neighbors.neighbors_table(found)
    assert "at most 256 MiB" in neighbors.neighbors_table(found)
    assert all(target.met for target in neighbors.neighbors_targets(found))


@pytest.mark.parametrize("arguments", [["--quick"], ["--quick", "--only", "jax"], []])
def test_a_quick_run_is_not_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--write", str(tmp_path / "absent.md")])
    assert "--write" in capsys.readouterr().err or not arguments


def test_calls_take_turns_until_the_budget_is_spent() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    ticks = iter(range(100))
    times = timing.best_in_turns(calls, repeats=5, budget=3, clock=lambda: next(ticks))
    assert "".join(order) == "ababab"
    assert times == {"a": 1, "b": 1}


# -- the guard -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headline() -> Headline:
    """Loops alone, best of several turns, in processor time: a busy machine slows down all rows."""
    rows = headline_problems(Size(128, 100))
    loops = {name: problem.loops(*how) for name, (problem, *how) in rows.items()}
    timing.best_in_turns(loops, repeats=1)  # compiles
    times = timing.best_in_turns(loops, repeats=9, clock=time.process_time)
    spent = {name: problem.nanoseconds(times[name]) for name, (problem, *_) in rows.items()}
    return Headline(spent, spent)


def test_fused_loops_are_faster_than_array_loops(headline: Headline) -> None:
    assert headline.loops["NumPy float64"] >= 4 * headline.loops["fused float32"]
    assert headline.loops["NumPy float64"] >= 2 * headline.loops["fused float64"]


def test_float32_is_faster_than_float64(headline: Headline) -> None:
    assert headline.loops["fused float64"] >= 1.4 * headline.loops["fused float32"]


def test_ragged_sequences_cost_what_they_contain(headline: Headline) -> None:
    assert headline.loops["fused float32, ragged"] <= 2 * headline.loops["fused float32"]


def test_layers_cost_alike(headline: Headline) -> None:
    deep, flat = headline.loops["fused float32, 3 layers"], headline.loops["fused float32"]
    assert deep <= 5 / 3 * DEPTH * flat
