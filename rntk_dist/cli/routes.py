"""What `plan --samples` prints: the routes for many samples, and what each would cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from rntk_dist.cli.options import Cluster
from rntk_dist.cli.output import print_table, shown_bytes, shown_hours, shown_seconds
from rntk_dist.cli.workers import workers_client

if TYPE_CHECKING:
    from rntk_dist.creation import Wanted
    from rntk_dist.routes import Rates, Route, Scale

_HEADER = ("N", "route", "stored", "time", "hours", "tasks", "scheduler", "memory", "gives")


def print_scales(
    wanted: "Wanted",
    samples: Sequence[int],
    cluster: Cluster,
    workers: int | None,
    as_json: bool,
) -> None:
    """A table of routes for each number of samples, and which is the cheapest, and why."""
    from rntk_dist.kernel.rntk import check_run_options
    from rntk_dist.routes import Problem, scale
    from rntk_dist.trial import measured_rates, pair_steps_of, room

    itemsize = check_run_options(wanted.kind, wanted.dtype, wanted.backend).itemsize
    with workers_client(cluster, workers) as client:
        rates = measured_rates(wanted, client)
    pair_steps, left = pair_steps_of(wanted.X, wanted.work), room(wanted.where)
    scales = [scale(Problem(n, pair_steps, itemsize, room=left), rates) for n in samples]
    if as_json:
        facts = {"rates": asdict(rates), "pair_steps_a_pair": pair_steps, "room": left}
        typer.echo(json.dumps({**facts, "scales": [each.to_dict() for each in scales]}))
        return
    typer.echo(_rates(rates, pair_steps))
    rows = [_row(each, route) for each in scales for route in each.routes]
    print_table(_HEADER, rows)
    for each in scales:
        best = "no route" if each.cheapest is None else each.cheapest.name
        typer.echo(f"N = {each.problem.n:,}: regression is cheapest by {best} ({each.why})")


def _rates(rates: "Rates", pair_steps: float) -> str:
    who = "GPUs" if rates.on_gpu else "workers"
    return (
        f"measured with {rates.workers.count} {who}: {shown_seconds(rates.start)} to start, "
        f"{rates.tile * 1e3:.1f} ms a tile, {rates.pair_steps:.3g} pair-steps/s "
        f"({pair_steps:.4g} a pair), products at {shown_bytes(int(rates.reading))}/s"
    )


def _row(scale: "Scale", route: "Route") -> tuple[str, ...]:
    unit = "GPU-h" if scale.rates.on_gpu else "core-h"
    return (
        f"{scale.problem.n:,}",
        route.name,
        shown_bytes(route.bytes_stored),
        shown_seconds(route.seconds),
        f"{shown_hours(scale.hours(route))} {unit}",
        f"{route.tasks:,}",
        shown_bytes(route.scheduler_bytes),
        shown_bytes(route.memory),
        route.refused or route.gives,
    )
