"""What `rntk-dist plan --samples` predicts, against real runs: seconds of rd.gram by N.

The trial is made once; then whole matrices are computed on as many workers, and removed again.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import rntk_dist as rd
from benchmarks.report import Target, table
from rntk_dist.cli.output import shown_bytes, shown_hours, shown_seconds
from rntk_dist.creation import Wanted
from rntk_dist.kernel.rntk import RNTK
from rntk_dist.routes import Problem, Rates, filling, plan_for, scale
from rntk_dist.sequences import Sequences
from rntk_dist.trial import SECONDS, measured_rates, pair_steps_of

STEPS = 64
SIZES = (5000, 10_000, 20_000, 40_000)
QUICK = (1000, 2000)
FAR = (100_000, 1_000_000, 5_000_000)


@dataclass(frozen=True)
class Row:
    """A matrix of n sequences: its tiles, and seconds as predicted and as they were."""

    n: int
    tiles: int
    predicted: float
    took: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to the truth."""
        return self.predicted / self.took - 1


@dataclass(frozen=True)
class Found:
    """The rates of the trial with the pair-steps of a pair, and what came of them."""

    rates: Rates
    pair_steps: float
    rows: tuple[Row, ...]


def measure_scale(sizes: Sequence[int], seconds: float = SECONDS) -> Found:
    """A trial on some sequences, then matrices of each size."""
    values = np.random.default_rng(0).normal(size=(max(sizes), STEPS)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        some = Sequences.from_arrays(values[: min(sizes)])
        wanted = Wanted(str(Path(folder) / "gram"), RNTK(), some, dtype="float32")
        rates = measured_rates(wanted, seconds=seconds)
        pair_steps = pair_steps_of(some, wanted.work)
        rows = tuple(_row(values[:n], Problem(n, pair_steps), rates, folder) for n in sizes)
    return Found(rates, pair_steps, rows)


def _row(values: np.ndarray, problem: Problem, rates: Rates, folder: str) -> Row:
    plan, X = plan_for(problem, rates), Sequences.from_arrays(values)
    n = problem.n
    predicted = filling(plan, int(n * (n + 1) / 2 * problem.pair_steps), rates)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        started = time.perf_counter()
        gram = rd.gram(RNTK(), X, store=Path(place) / "gram", dtype="float32", progress=False)
        took = time.perf_counter() - started
    return Row(n, gram.plan.n_tiles, predicted, took)


def scale_table(found: Found) -> str:
    """Predicted and real seconds."""
    rows = [
        [f"{row.n:,}", row.tiles, f"{row.predicted:.1f}", f"{row.took:.1f}", f"{row.error:+.0%}"]
        for row in found.rows
    ]
    rates = found.rates
    head = (
        f"Trial: {rates.start:.1f} s to start, {rates.tile * 1e3:.1f} ms a tile, "
        f"{rates.pair_steps:.3g} pair-steps/s on {rates.workers.count} workers.\n\n"
    )
    return head + table(("N", "tiles", "predicted, s", "took, s", "error"), rows, left=0)


def routes_table(found: Found) -> str:
    """What each route would cost at the same rates, for many more samples; the cheapest marked."""
    heads = ("N", "route", "stored", "time", "core-hours", "tasks", "scheduler", "solver's own")
    scales = [scale(Problem(n, found.pair_steps), found.rates) for n in FAR]
    rows = [
        [
            f"{each.problem.n:,}",
            f"**{route.name}**" if route is each.cheapest else route.name,
            shown_bytes(route.bytes_stored),
            shown_seconds(route.seconds),
            shown_hours(each.hours(route)),
            f"{route.tasks:,}",
            shown_bytes(route.scheduler_bytes),
            shown_bytes(route.memory),
        ]
        for each in scales
        for route in each.routes
    ]
    return table(heads, rows, left=2)


def scale_targets(found: Found) -> list[Target]:
    """Within 15 %."""
    worst = max(abs(row.error) for row in found.rows)
    return [Target("seconds of rd.gram as planned, largest error", 15, 100 * worst, unit="%")]
