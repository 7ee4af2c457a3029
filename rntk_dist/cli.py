"""The command line: rntk-dist.

Exit codes of `verify`, `repair` and `info`: 0 all is well, 1 something is wrong with the matrix, 2
the question cannot be answered (no such store, no such scheduler), said in one sentence.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from distributed import Client
from rich.console import Console
from rich.table import Table
from rich.text import Text

import rntk_dist
from rntk_dist.store import GramStore, show
from rntk_dist.verify import Verification

app = typer.Typer(
    name="rntk-dist",
    help="Recurrent neural tangent kernels at scale: exact, tiled, resumable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rntk_dist {rntk_dist.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    del version  # its callback has printed it


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Where the Zarr stores and pictures go; kept, and used again.")
    ] = Path("rntk-demo"),
) -> None:
    """Classify two real data sets with the kernel, from files to a picture, on this machine."""
    try:
        _demo(folder, Console())
    except (ModuleNotFoundError, OSError, ValueError) as error:
        typer.echo(f"rntk-dist demo: {error}", err=True)
        raise typer.Exit(1) from error


_Store = Annotated[str, typer.Argument(help="A local path or a URL, such as s3://bucket/path.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object in place of a table.")]


@app.command()
def verify(
    store: _Store,
    recompute: Annotated[
        int, typer.Option(min=0, help="Entries to compute again from the stored sequences.")
    ] = 1000,
    as_json: _Json = False,
) -> None:
    """Read every tile, name each that is not sound, and compute some entries again."""
    with _refusals("verify"):
        found = rntk_dist.verify(store, recompute)
    _print_verification(found, as_json)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def repair(
    store: _Store,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler; else this machine's cores.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Delete exactly the tiles that are not sound, compute them again, and verify."""
    with _refusals("repair"), _client(scheduler) as client:
        found = rntk_dist.repair(store, client)
    _print_verification(found, as_json)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def info(store: _Store, as_json: _Json = False) -> None:
    """What a store holds, how far it is, and how it came about; reads no values."""
    with _refusals("info"):
        facts = _facts(GramStore.open(store))
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _print_table(("", ""), [(name, _shown(value)) for name, value in facts.items()])


@contextmanager
def _refusals(command: str) -> Iterator[None]:
    """End with one sentence: 2 where the question is wrong, 1 where the work has failed."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        typer.echo(f"rntk-dist {command}: {error}", err=True)
        raise typer.Exit(2) from error
    except RuntimeError as error:  # tiles that failed, no workers, a store that is full
        typer.echo(f"rntk-dist {command}: {error}", err=True)
        raise typer.Exit(1) from error


def _client(address: str | None) -> AbstractContextManager[Client | None]:
    return nullcontext() if address is None else Client(address, timeout=10, set_as_default=False)


def _facts(store: GramStore) -> dict[str, Any]:
    manifest, plan = store.manifest, store.plan
    stored = len(store.stored_tiles())
    return {
        "store": show(store.location),
        "kernel": dict(manifest.kernel),
        "kind": manifest.kind,
        "dtype": manifest.dtype.name,
        "shape": list(plan.shape),
        "symmetric": plan.symmetric,
        "tile": plan.tile,
        "tiles": {"stored": stored, "total": plan.n_tiles},
        "bytes": {"stored": plan.bytes_stored * stored // plan.n_tiles, "total": plan.bytes_stored},
        "identity_sha256": manifest.identity_sha256(),
        "provenance": dict(manifest.provenance),
        "report": store.report(),
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list):
        return (
            " x ".join(map(str, value)) if value and isinstance(value[0], int) else ", ".join(value)
        )
    return "none" if value is None else str(value)


def _print_verification(found: Verification, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    if found.problems:
        rows = [(str(tile or "-"), kind, detail) for tile, kind, detail in found.problems]
        _print_table(("tile", "verdict", "detail"), rows)
    for key in found.foreign:
        typer.echo(f"not part of the store, and harmless: {key}")
    typer.echo(
        f"{found.sound} of {found.tiles} tiles are sound; {found.entries} entries recomputed, "
        f"largest relative difference {found.largest_error:.1e}"
    )


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on a terminal; elsewhere lines with tabs, which other programs read."""
    console = Console()
    if not console.is_terminal:
        for row in rows:
            typer.echo("\t".join(row))
        return
    table = Table(show_header=any(header))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as plain text: brackets in it are no styles
    console.print(table)


def _demo(folder: Path, console: Console) -> None:
    # Imported here: `rntk-dist --help` must not wait for scikit-learn and matplotlib.
    from rntk_dist import plot
    from rntk_dist.cluster import local_client
    from rntk_dist.experiments import demo as experiment

    started = time.perf_counter()
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
