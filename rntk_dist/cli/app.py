"""The commands of rntk-dist, in the order in which help lists them."""

from importlib.metadata import version
from typing import Annotated

import typer

from rntk_dist.cli import demo, experiments, jobs, matrices, neighbors, stores, sweeps
from rntk_dist.cli.exits import Commands, interrupt_on_sigterm

app = typer.Typer(
    name="rntk-dist",
    help="Recurrent neural tangent kernels at scale: exact, tiled, resumable.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the store holds another matrix, "
    "130 interrupted (what is stored is kept).",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _panel, _commands in {
    "Compute": (
        matrices.plan,
        matrices.run,
        matrices.resume,
        matrices.append,
        sweeps.sweep,
        neighbors.neighbors,
    ),
    "Jobs on a cluster": (jobs.submit, jobs.status, jobs.jobs, jobs.cancel),
    "Stores": (stores.info, stores.verify, stores.repair, stores.export),
    "Try it": (demo.demo,),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)

app.add_typer(experiments.app, name="experiment", rich_help_panel="Try it")


def main() -> None:
    """Run the command line."""
    interrupt_on_sigterm()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rntk_dist {version('rntk_dist')}")
        raise typer.Exit


@app.callback()
def _options(
    print_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from (traceback).")
    ] = False,
) -> None:
    del print_version, debug  # the one's callback has printed it, `Commands` looks at the other
