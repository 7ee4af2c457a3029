"""The demo: two real data sets, from files to a classifier and a picture."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the Zarr stores and pictures go; kept, and used again.")
    ] = Path("rntk-demo"),
) -> None:
    """Classify two real data sets with the kernel, from files to a picture, on this machine."""
    # Imported here: `rntk-dist --help` must not wait for scikit-learn and matplotlib.
    from rntk_dist import plot
    from rntk_dist.cluster import local_client
    from rntk_dist.experiments import demo as experiment

    console, started = Console(), time.perf_counter()
    sets = [experiment.bundled(name) for name in experiment.PUBLISHED]
    folder.mkdir(parents=True, exist_ok=True)
    with local_client(n_tiles=len(experiment.SIGMA_W)) as client:
        for data in sets:
            console.print(f"\n[bold]{data.name}[/]  train {data.train}, test {data.test}")
            outcome = experiment.run(data, folder, client)
            console.print(_accuracy_table(outcome.measured, outcome.published))
            picture = folder / f"{data.name}.png"
            name = f"{data.name}, sigma_w = {outcome.chosen.gram.kernel.sigma_w:.4g}"
            plot.save_heat_map(outcome.chosen.gram, picture, name)
            console.print(f"{outcome.chosen.gram}\npicture: {picture}", soft_wrap=True)
    console.print(
        f"\n{time.perf_counter() - started:.0f} s; run it again and nothing is computed twice"
    )


def _accuracy_table(measured: dict[str, float], published: dict[str, float]) -> Table:
    table = Table("method", "test accuracy")
    for position, (method, accuracy) in enumerate(measured.items()):
        table.add_row(method, f"{accuracy:.3f}", style="bold" if position == 0 else "")
    for method, accuracy in published.items():
        table.add_row(f"{method} (published)", f"{accuracy:.3f}")
    return table
