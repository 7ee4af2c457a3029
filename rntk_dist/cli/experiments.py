"""The paper's experiments: each one command, which goes on where it was when it is run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rntk_dist.experiments.convergence import Slope
    from rntk_dist.experiments.results import Result
    from rntk_dist.experiments.sensitivity import Profile
    from rntk_dist.experiments.snr import Row
    from rntk_dist.experiments.snr import Summary as SnrSummary
    from rntk_dist.experiments.statistics import AccuracyTable
    from rntk_dist.experiments.synthetic import Sweep

app = typer.Typer(help="Run one of the paper's experiments.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run one of the paper's experiments; each goes on where it was when it is run again."""


Folder = Annotated[Path, typer.Option(help="Where results go, and what is done is kept.")]


@contextmanager
def _going_on(folder: Path) -> Iterator[None]:
    """Have an interruption say what becomes of what is done."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted: what is done is kept in {folder}, and the same command goes on"
        ) from error


@app.command()
def ucr(
    data: Annotated[
        Path, typer.Option(help="The archive: a folder of NAME/NAME_TRAIN.tsv and _TEST.tsv.")
    ],
    folder: Folder = Path("rntk-ucr"),
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A data set; may be given again. [all]")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="The archive's published errors, as CSV.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The 8 smallest data sets with few kernels: minutes.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of one core, for the paper's 900 kernels on a data set; by the counted work of "
            "each, as many as fit are tried. [2000; 1.2 where quick]",
        ),
    ] = None,
    rnn: Annotated[
        bool,
        typer.Option("--rnn", help="Trained networks too: two Elman RNNs and a GRU, by PyTorch."),
    ] = False,
    only_rnn: Annotated[
        bool, typer.Option("--only-rnn", help="Trained networks and no kernel.")
    ] = False,
) -> None:
    """Classify the UCR archive's data sets by every kernel, chosen by cross-validation."""
    # Imported here: `rntk-dist --help` must not wait for scikit-learn.
    from rntk_dist.cluster import local_client
    from rntk_dist.experiments import archive, budget, report
    from rntk_dist.experiments import ucr as experiment
    from rntk_dist.experiments.trained import torch_trainer

    extent = budget.QUICK if quick else budget.FULL
    if seconds is not None:
        extent = replace(extent, paper=seconds)
    chosen = tuple(sets or (experiment.smallest(data) if quick else archive.names(data)))
    parts: experiment.Parts = "networks" if only_rnn else "both" if rnn else "kernels"
    if parts != "kernels":
        torch_trainer(experiment.TRAINING)  # without PyTorch no cluster is started
    published = None if baselines is None else archive.read_published(baselines)
    console = Console(stderr=True)
    with _going_on(folder), local_client(n_tiles=len(chosen)) as client:
        results = experiment.run(
            data,
            folder / "kept",
            sets=chosen,
            budget=extent,
            parts=parts,
            executor=client.get_executor(),
            on_set=lambda name, done, total: console.print(f"{done}/{total}  {name}"),
        )
    _write(folder, results, report.comparisons(results, published))


def _write(folder: Path, results: list[Result], compared: dict[str, AccuracyTable]) -> None:
    from rntk_dist import plot
    from rntk_dist.experiments import report, statistics, tables

    report.write_results(folder / "results.csv", results)
    tables.write_dataclasses(folder / "times.csv", report.SetTime, report.times(results))
    for name, table in compared.items():
        report.write_comparison(folder, name, table)
        if len(table.sets) > 1:
            picture = folder / f"{name}-ranks.png"
            plot.save_critical_difference(statistics.compare(table), picture)
        _show(name, table)
    typer.echo(f"tables and diagrams: {folder}")


def _show(name: str, table: AccuracyTable) -> None:
    from rntk_dist.experiments.statistics import summaries

    title = f"{name}: {len(table.sets)} data sets"
    shown = Table("method", "mean accuracy", "P90", "P95", "PMA", "mean rank", title=title)
    for row in sorted(summaries(table), key=lambda summary: summary.rank):
        shares = (f"{share:.3f}" for share in (row.mean, row.p90, row.p95, row.pma))
        shown.add_row(row.method, *shares, f"{row.rank:.2f}")
    Console().print(shown)


# -- theory ----------------------------------------------------------------------------------------


@app.command()
def convergence(
    folder: Folder = Path("rntk-convergence"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Narrow networks, and few: seconds.")
    ] = False,
) -> None:
    """Compare finite networks with their kernel, at the start and while they are trained."""
    from rntk_dist import plot
    from rntk_dist.experiments import convergence as experiment
    from rntk_dist.experiments import tables

    extent = experiment.QUICK if quick else experiment.FULL
    tell = Console(stderr=True).print
    errors = experiment.kernel_errors(folder / "kept", extent, tell)
    courses = experiment.courses(folder / "kept", extent, tell)
    slopes, deviations = experiment.slopes(errors), experiment.deviations(courses)
    tables.write_dataclasses(folder / "kernel-errors.csv", experiment.KernelError, errors)
    tables.write_dataclasses(folder / "slopes.csv", experiment.Slope, slopes)
    tables.write_dataclasses(folder / "training-courses.csv", experiment.Course, courses)
    tables.write_dataclasses(folder / "training-deviations.csv", experiment.Deviation, deviations)
    plot.save_convergence(errors, experiment.laws(errors), folder / "kernel-errors.png")
    plot.save_training(courses, deviations, folder / "training.png")
    for shown in (_slopes_table(slopes), _training_table(experiment.by_width(deviations))):
        Console().print(shown)
    typer.echo(f"tables and figures: {folder}")


def _slopes_table(slopes: list[Slope]) -> Table:
    table = Table("case", "slope", "95 % interval", title="error of the kernel over the width")
    for row in slopes:
        table.add_row(row.case, f"{row.exponent:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    return table


def _training_table(rows: list[tuple[str, str, int, float, float]]) -> Table:
    table = Table("case", "part", "width", "rms deviation", title="training, relative to targets")
    for case, part, width, from_descent, _ in rows:
        table.add_row(case, part, str(width), f"{from_descent:.4f}")
    return table


@app.command()
def sensitivity(
    folder: Folder = Path("rntk-sensitivity"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Few sequences and windows: half a minute.")
    ] = False,
) -> None:
    """Which time steps matter: over sigma_w and activations, and for a classifier of GunPoint."""
    from rntk_dist import plot
    from rntk_dist.experiments import sensitivity as experiment
    from rntk_dist.experiments import tables
    from rntk_dist.experiments.demo import bundled

    data = bundled("GunPoint")
    tell = Console(stderr=True).print
    pairs = experiment.QUICK_PAIRS if quick else experiment.PAIRS
    profiles = experiment.profiles(folder / "kept", pairs, tell)
    asked = {"per_class": 5, "every": 30} if quick else {}
    decided = experiment.decided(folder / "kept", data, on_part=tell, **asked)
    tables.write_dataclasses(
        folder / "profiles.csv", experiment.ProfileRow, experiment.profile_rows(profiles)
    )
    tables.write_dataclasses(
        folder / "decisions.csv", experiment.DecisionRow, experiment.decision_rows(decided)
    )
    tables.write_dataclasses(
        folder / "windows.csv", experiment.WindowRow, experiment.window_rows(decided)
    )
    plot.save_profiles(profiles, folder / "profiles.png")
    plot.save_decisions(decided, data, folder / "decisions.png")
    Console().print(_profiles_table(profiles))
    typer.echo(f"tables and figures: {folder}")


def _profiles_table(profiles: list[Profile]) -> Table:
    table = Table("activation", "sigma_w", "t = 1", "t = 50", "t = 100", title="relative gradient")
    for each in profiles:
        values = (f"{each.relative[step - 1]:.1e}" for step in (1, 50, 100))
        table.add_row(each.kernel.activation, f"{each.kernel.sigma_w:.4g}", *values)
    return table


# -- synthetic data --------------------------------------------------------------------------------


@app.command()
def synthetic(
    folder: Folder = Path("rntk-synthetic"),
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Draws of each problem. [200, or 5 if quick]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The ends of each sweep, few repeats: a minute.")
    ] = False,
) -> None:
    """Predict noisy sinusoids: sweeps over length, spread of lengths, noise and training size."""
    from rntk_dist.cluster import local_client
    from rntk_dist.experiments import synthetic as experiment

    sweeps = experiment.QUICK_SWEEPS if quick else experiment.SWEEPS
    console = Console(stderr=True)
    points = sum(len(sweep.values) for sweep in sweeps)
    with _going_on(folder), local_client(n_tiles=points) as client:
        rows = experiment.run(
            folder / "kept",
            sweeps=sweeps,
            repeats=repeats or (experiment.QUICK_REPEATS if quick else experiment.REPEATS),
            executor=client.get_executor(),
            on_problem=lambda problem, done, total: console.print(f"{done}/{total}  {problem}"),
        )
    _write_snr(folder, rows, sweeps)


def _write_snr(folder: Path, rows: list[Row], sweeps: Sequence[Sweep]) -> None:
    from rntk_dist import plot
    from rntk_dist.experiments import snr, tables

    found = snr.summaries(rows)
    tables.write_dataclasses(folder / "results.csv", snr.Row, rows)
    tables.write_dataclasses(folder / "summary.csv", snr.Summary, found)
    above = snr.summaries(snr.advantages(rows, "RNTK last"))
    tables.write_dataclasses(folder / "rntk-above.csv", snr.Summary, above)
    plot.save_sweep_curves(found, sweeps, folder / "snr.png")
    for sweep in sweeps:
        Console().print(_snr_table(sweep, [point for point in found if point.sweep == sweep.name]))
    typer.echo(f"tables and picture: {folder}")


def _snr_table(sweep: Sweep, points: list[SnrSummary]) -> Table:
    """Methods by values."""
    title = f"{sweep.name}: mean SNR in dB by {sweep.axis}, {points[0].n} repeats"
    shown = Table("method", *(f"{value:g}" for value in sweep.values), title=title)
    means = {(point.method, point.value): f"{point.mean:.1f}" for point in points}
    for method in dict.fromkeys(point.method for point in points):
        shown.add_row(method, *(means.get((method, value), "") for value in sweep.values))
    return shown
