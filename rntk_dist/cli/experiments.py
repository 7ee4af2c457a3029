"""The paper's experiments: each one command, which goes on where it was when it is run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rntk_dist.experiments.kept import Result
    from rntk_dist.experiments.statistics import AccuracyTable

app = typer.Typer(help="Run one of the paper's experiments.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run one of the paper's experiments; each goes on where it was when it is run again."""


@app.command()
def ucr(
    data: Annotated[
        Path, typer.Option(help="The archive: a folder of NAME/NAME_TRAIN.tsv and _TEST.tsv.")
    ],
    folder: Annotated[
        Path, typer.Option(help="Where results go, and what is done is kept.")
    ] = Path("rntk-ucr"),
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A data set; may be given again. [all]")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="The archive's published errors, as CSV.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The 8 smallest data sets with few kernels: minutes.")
    ] = False,
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

    chosen = tuple(sets or (experiment.smallest(data) if quick else archive.names(data)))
    parts: experiment.Parts = "networks" if only_rnn else "both" if rnn else "kernels"
    if parts != "kernels":
        torch_trainer(experiment.TRAINING)  # without PyTorch no cluster is started
    published = None if baselines is None else archive.read_published(baselines)
    console = Console(stderr=True)
    with local_client(n_tiles=len(chosen)) as client:
        results = experiment.run(
            data,
            folder / "kept",
            sets=chosen,
            budget=budget.QUICK if quick else budget.FULL,
            parts=parts,
            executor=client.get_executor(),
            on_set=lambda name, done, total: console.print(f"{done}/{total}  {name}"),
        )
    _write(folder, results, report.comparisons(results, published))


def _write(folder: Path, results: list[Result], tables: dict[str, AccuracyTable]) -> None:
    from rntk_dist import plot
    from rntk_dist.experiments import report, statistics

    report.write_results(folder / "results.csv", results)
    for name, table in tables.items():
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
