"""The synthetic experiment: what is drawn, what is chosen by what, and that it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rntk_dist as rd
from rntk_dist.experiments import snr, synthetic, tables
from rntk_dist.experiments.inputs import PaddedInFront
from rntk_dist.experiments.methods import Method
from rntk_dist.experiments.sinusoids import TESTED, Draw, Problem, draw
from rntk_dist.experiments.snr import Row, Summary
from rntk_dist.experiments.synthetic import Outcome, Sweep, choose, methods, predicted

TINY = Problem(length=4, size=6)
SWEEPS = (
    Sweep("size", TINY, "training sequences", "size", (6, 8)),
    Sweep("spread", TINY, "steps", "spread", (0, 3)),
)


# -- what is drawn ---------------------------------------------------------------------------------


def test_a_draw_is_the_same_whenever_and_another_in_each_repeat_and_part() -> None:
    problem = Problem(spread=5)
    first, again, other = draw(problem, 3), draw(problem, 3), draw(problem, 4)
    for one, two in ((first.train, again.train), (first.test, again.test)):
        assert one.sequences.fingerprint == two.sequences.fingerprint
        assert np.array_equal(one.observed, two.observed)
    prints = {d.sequences.fingerprint for d in (first.train, first.test, other.train, other.test)}
    assert len(prints) == 4
    assert (len(first.train.sequences), len(first.test.sequences)) == (40, TESTED)


def test_what_is_to_be_predicted_is_the_next_sample_of_the_sinusoid() -> None:
    """x[t+1] = 2 cos(2 pi f) x[t] - x[t-1] for one f, from the first step to the target."""
    samples = draw(Problem(spread=7, noise=0.0), 0).train
    assert np.array_equal(samples.observed, samples.true)
    assert set(samples.sequences.lengths) == set(range(20, 28))
    for x, target in zip(samples.sequences, samples.true, strict=True):
        whole = np.append(x.ravel(), target)
        factor = (whole[1:-1] @ (whole[2:] + whole[:-2])) / (whole[1:-1] @ whole[1:-1])
        assert np.allclose(whole[2:], factor * whole[1:-1] - whole[:-2])
        assert 1 / 20 <= np.arccos(factor / 2) / (2 * np.pi) <= 1 / 10


def test_noise_is_on_all_samples_and_not_on_what_predictions_are_judged_by() -> None:
    problem = Problem(noise=0.3)
    noisy, clean = draw(problem, 0).test, draw(replace(problem, noise=0.0), 0).test
    added = noisy.sequences.values - clean.sequences.values
    assert added.std() == pytest.approx(0.3, rel=0.05)
    assert (noisy.observed - noisy.true).std() == pytest.approx(0.3, rel=0.2)
    assert np.array_equal(noisy.true, clean.true)


def test_impossible_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 1: give at least 2"):
        Problem(size=1)
    with pytest.raises(ValueError, match="noise is nan: give at least 0"):
        Problem(noise=float("nan"))


def test_zeros_in_front_keep_the_last_steps_of_all_features_together() -> None:
    pairs = rd.Sequences.from_arrays([[[1.0, 10.0]], [[2.0, 20.0], [3.0, 30.0]]])
    seen = PaddedInFront(2)(pairs)
    assert seen.values.tolist() == [[0, 0, 1, 10], [2, 20, 3, 30]]
    assert PaddedInFront(2).shape(pairs) == (1.0, 4)


# -- what is chosen --------------------------------------------------------------------------------


def test_every_method_has_twelve_kernels_of_its_own() -> None:
    equal, different = methods(Problem()), methods(Problem(spread=3))
    assert [m.name for m in equal] == ["RNTK last", "RNTK per_step", "NTK", "RBF", "polynomial"]
    assert len(different) == 2 + 2 * 3
    for method in (*equal, *different):
        assert len({variant.name for variant in method.variants}) == 12


def test_the_kernel_of_the_smallest_error_on_samples_left_out_is_chosen() -> None:
    """Written out: each training sample is predicted by a choice made of that alone."""
    train = draw(TINY, 0).train
    method = methods(TINY)[0]
    errors = {}
    for variant in method.variants:
        square = variant.square(train.sequences)
        for alpha in synthetic.RIDGE.alpha:
            lifted = square + alpha * np.diagonal(square).mean() * np.eye(6)
            wrong = []
            for i in range(6):
                rest = np.delete(np.arange(6), i)
                weights = np.linalg.solve(lifted[np.ix_(rest, rest)], train.observed[rest])
                wrong.append(train.observed[i] - square[i, rest] @ weights)
            errors[variant.name, alpha] = np.mean(np.square(wrong))
    choice = choose(method, train.sequences, train.observed)
    assert choice.error == pytest.approx(min(errors.values()), rel=1e-5)
    assert errors[choice.variant.name, choice.alpha] == pytest.approx(choice.error, rel=1e-5)


def test_other_test_samples_and_targets_leave_every_choice_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = replace(TINY, spread=3)
    outcomes = synthetic.run_repeat(problem, 0)

    def other_test_part(problem: Problem, repeat: int) -> Draw:
        test = draw(problem, repeat + 1).test
        turned = replace(test, true=-test.true, observed=-test.observed)
        return replace(draw(problem, repeat), test=turned)

    monkeypatch.setattr(synthetic, "draw", other_test_part)
    others = synthetic.run_repeat(problem, 0)
    assert [replace(o, snr_db=0.0) for o in outcomes] == [replace(o, snr_db=0.0) for o in others]
    assert all(o.snr_db != p.snr_db for o, p in zip(outcomes, others, strict=True))


def test_the_outcome_is_that_of_the_choice_named() -> None:
    data = draw(TINY, 1)
    for method, outcome in zip(methods(TINY), synthetic.run_repeat(TINY, 1), strict=True):
        choice = choose(method, data.train.sequences, data.train.observed)
        assert (outcome.method, outcome.repeat) == (method.name, 1)
        assert (outcome.kernel, outcome.alpha) == (choice.variant.name, choice.alpha)
        values = predicted(choice, data.train, data.test.sequences)
        error = ((values - data.test.true) ** 2).sum()
        expected = 10 * np.log10((data.test.true**2).sum() / error)
        assert outcome.snr_db == pytest.approx(expected, abs=1e-4)


# -- that it goes on -------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Problem, int]]:
    """Of `run_repeat`, which tells a number without work."""
    made: list[tuple[Problem, int]] = []

    def instead(problem: Problem, repeat: int) -> list[Outcome]:
        made.append((problem, repeat))
        return [Outcome(repeat, "RNTK last", "RNTK()", 1.0, problem.size + problem.spread + repeat)]

    monkeypatch.setattr(synthetic, "run_repeat", instead)
    return made


def test_rows_come_by_sweep_and_each_problem_is_worked_on_once(
    calls: list[tuple[Problem, int]], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    rows = synthetic.run(
        tmp_path, sweeps=SWEEPS, repeats=2, on_problem=lambda _, *now: told.append(now)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(calls) == len(set(calls)) == 6  # size 6 and spread 0 are one problem
    assert rows == [
        Row(sweep, value, "RNTK last", repeat, at + repeat)
        for sweep, value, at in (("size", 6, 6), ("size", 8, 8), ("spread", 0, 6), ("spread", 3, 9))
        for repeat in range(2)
    ]


def test_what_is_kept_is_read_and_more_repeats_are_added(
    calls: list[tuple[Problem, int]], tmp_path: Path
) -> None:
    rows = synthetic.run(tmp_path, sweeps=SWEEPS, repeats=3)
    calls.clear()
    assert synthetic.run(tmp_path, sweeps=SWEEPS, repeats=3) == rows
    fewer = synthetic.run(tmp_path, sweeps=SWEEPS[:1], repeats=1)
    assert fewer == [row for row in rows if row.sweep == "size" and row.repeat == 0]
    assert not calls
    synthetic.run(tmp_path, sweeps=SWEEPS, repeats=5)
    assert {repeat for _, repeat in calls} == {3, 4}


def test_an_interrupted_problem_goes_on_behind_its_last_block(
    calls: list[tuple[Problem, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = synthetic.run_repeat

    def interrupted(problem: Problem, repeat: int) -> list[Outcome]:
        if repeat == 14:
            raise KeyboardInterrupt
        return whole(problem, repeat)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "run_repeat", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthetic.run_problem(TINY, folder=tmp_path, repeats=20)
    calls.clear()
    found = synthetic.run_problem(TINY, folder=tmp_path, repeats=20)
    assert [outcome.repeat for outcome in found] == list(range(20))
    assert [repeat for _, repeat in calls] == list(range(synthetic.BLOCK, 20))


def test_results_of_other_methods_are_refused(
    calls: list[tuple[Problem, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.run_problem(TINY, folder=tmp_path, repeats=1)

    def fewer(problem: Problem) -> tuple[Method, ...]:
        return methods(problem)[:-1]

    monkeypatch.setattr(synthetic, "methods", fewer)
    with pytest.raises(rd.IdentityError, match=r"keeps results of other methods: give another"):
        synthetic.run_problem(TINY, folder=tmp_path, repeats=2)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="repeats is 0: give at least 1"):
        synthetic.run(tmp_path, repeats=0)


def test_results_do_not_depend_on_who_computes(tmp_path: Path) -> None:
    alone = synthetic.run(tmp_path / "alone", sweeps=SWEEPS[1:], repeats=1)
    with ThreadPoolExecutor(2) as executor:
        together = synthetic.run(tmp_path / "both", sweeps=SWEEPS[1:], repeats=1, executor=executor)
    assert alone == together
    assert len(alone) == 5 + 8


def test_the_settings_of_the_experiment_are_those_of_the_paper_in_kind() -> None:
    varied = {sweep.varied for sweep in synthetic.SWEEPS}
    assert varied == {"length", "spread", "noise", "size"}
    assert all(len(sweep.problems) == 5 for sweep in synthetic.SWEEPS)
    for quick, sweep in zip(synthetic.QUICK_SWEEPS, synthetic.SWEEPS, strict=True):
        assert set(quick.problems) < set(sweep.problems)  # one folder will do for both


# -- tables ----------------------------------------------------------------------------------------


def test_means_have_errors_by_student_and_tables_go_to_a_file_and_back(tmp_path: Path) -> None:
    rows = [Row("size", 10.0, "x", r, value) for r, value in enumerate((1.0, 3.0))]
    rows.append(Row("size", 20.0, "x", 0, -4.0))
    first, second = snr.summaries(rows)
    assert first == Summary("size", 10.0, "x", mean=2.0, standard_error=1.0, n=2)
    assert first.half_width == pytest.approx(12.706, abs=1e-3)
    assert (second.mean, second.standard_error, second.half_width) == (-4.0, 0.0, 0.0)
    for kind, written in ((Row, rows), (Summary, [first, second])):
        tables.write_dataclasses(tmp_path / "new" / "table.csv", kind, written)
        assert tables.read_dataclasses(tmp_path / "new" / "table.csv", kind) == written
    with pytest.raises(ValueError, match=r"table.csv: found no usable 'repeat': give a table"):
        tables.read_dataclasses(tmp_path / "new" / "table.csv", Row)


def test_an_advantage_is_counted_within_a_repeat() -> None:
    rows = [
        Row("size", value, method, repeat, snr_db)
        for value, method, repeat, snr_db in (
            (10.0, "ours", 0, 5.0),
            (10.0, "other", 0, 3.0),
            (10.0, "ours", 1, 50.0),
            (10.0, "other", 1, 49.0),
            (20.0, "ours", 0, 1.0),
            (20.0, "other", 0, 4.0),
        )
    ]
    found = snr.advantages(rows, "ours")
    assert [(row.value, row.method, row.snr_db) for row in found] == [
        (10.0, "other", 2.0),
        (10.0, "other", 1.0),
        (20.0, "other", -3.0),
    ]


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM after the first problem: it is not computed again, and all are there at the end."""
    out = tmp_path / "out"
    command = [str(Path(sys.executable).parent / "rntk-dist"), "experiment", "synthetic"]
    command += ["--folder", str(out), "--quick", "--repeats", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 200
        while not (first := sorted((out / "kept").glob("*.json"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "is kept in" in told
    assert not (out / "results.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in first}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "12/12" in done.stderr
    assert "size, different lengths: mean SNR in dB" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == before
    rows = tables.read_dataclasses(out / "results.csv", Row)
    points = tables.read_dataclasses(out / "summary.csv", Summary)
    assert snr.summaries(rows) == points
    assert {(row.sweep, row.value) for row in rows} == {
        (sweep.name, value) for sweep in synthetic.QUICK_SWEEPS for value in sweep.values
    }
    assert {row.repeat for row in rows} == {0, 1}
    above = tables.read_dataclasses(out / "rntk-above.csv", Summary)
    assert above == snr.summaries(snr.advantages(rows, "RNTK last"))
    assert (out / "snr.png").stat().st_size > 20_000
    smallest = {o.method: o.snr_db for o in synthetic.run_repeat(Problem(size=10), 0)}
    point = ("size, equal lengths", 10, 0)
    found = {r.method: r.snr_db for r in rows if (r.sweep, r.value, r.repeat) == point}
    assert found == smallest
