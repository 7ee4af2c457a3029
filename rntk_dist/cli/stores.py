"""Commands about a store: info, verify, repair, export."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rntk_dist.cli.exits import ExitCode, interruptible
from rntk_dist.cli.options import Cluster, Store, takes_cluster
from rntk_dist.cli.output import Json, print_facts, print_table, shown
from rntk_dist.cli.sweeps import readable, sweep_facts
from rntk_dist.job_file import JobFile
from rntk_dist.store import GramStore, show
from rntk_dist.sweep_store import SweepStore, open_any

if TYPE_CHECKING:
    from rntk_dist.gram import Gram
    from rntk_dist.verify import Verification


def info(
    store: Store,
    job_file: Annotated[
        bool,
        typer.Option("--job-file", help="Only a job file (TOML) that computes the same matrix."),
    ] = False,
    as_json: Json = False,
) -> None:
    """What a store holds, how far it is, and how it came about; reads no values."""
    opened = open_any(store)
    if isinstance(opened, SweepStore):
        if job_file:
            raise ValueError(f"{show(opened.location)} holds a sweep: a job file is of one matrix")
        facts = sweep_facts(opened)
        print_facts(facts if as_json else readable(facts), as_json)
        return
    job = JobFile.of_store(opened)
    if job_file:
        print_facts(job.to_dict(), as_json) if as_json else typer.echo(job.to_toml(), nl=False)
        return
    facts = _facts(opened)
    if as_json:
        print_facts({**facts, "job_file": job.to_dict()}, as_json)
        return
    print_facts(facts, as_json)
    if Console().is_terminal:
        typer.echo(f"\nAs a job file (rntk-dist info --job-file):\n\n{job.to_toml()}", nl=False)


def _facts(store: GramStore) -> dict[str, Any]:
    """Of a store of one matrix, JSON-able."""
    manifest, plan = store.manifest, store.plan
    stored = len(store.stored_tiles())
    return {
        "store": show(store.location),
        "kernel": dict(manifest.kernel),
        "kind": manifest.kind,
        "dtype": manifest.dtype.name,
        "shape": list(plan.shape),
        "growing_to": None if store.growing is None else list(store.growing.plan.shape),
        "symmetric": plan.symmetric,
        "tile": plan.tile,
        "tiles": {"stored": stored, "total": plan.n_tiles},
        "bytes": {"stored": plan.bytes_stored * stored // plan.n_tiles, "total": plan.bytes_stored},
        "identity_sha256": manifest.identity_sha256(),
        "provenance": dict(manifest.provenance),
        "report": store.report(),
    }


def verify(
    store: Store,
    recompute: Annotated[
        int, typer.Option(min=0, help="Entries to compute again from the stored sequences.")
    ] = 1000,
    as_json: Json = False,
) -> None:
    """Read every tile, name each that is not sound, and compute some entries again."""
    from rntk_dist.verify import verify

    _print_verification(verify(store, recompute), as_json)


@takes_cluster
def repair(store: Store, *, cluster: Cluster, as_json: Json = False) -> None:
    """Delete exactly the tiles that are not sound, compute them again, and verify."""
    from rntk_dist.verify import repair

    with interruptible(store), cluster.client() as client:
        found = repair(store, client)
    _print_verification(found, as_json)


def _print_verification(found: "Verification", as_json: bool) -> None:
    """Print what was found; ends with exit code 1 if that is not all well."""
    if as_json:
        print_facts(found.to_dict(), as_json)
    else:
        _print_problems(found)
    raise typer.Exit(ExitCode.DONE if found.ok else ExitCode.FAILED)


def _print_problems(found: "Verification") -> None:
    if found.problems:
        header = ("tile", "verdict", "detail")
        print_table((*header, "kernel") if found.kernels else header, _rows(found))
    for key in found.foreign:
        typer.echo(f"not part of the store, and harmless: {key}")
    of_kernels = f" of {found.kernels} kernels" if found.kernels else ""
    typer.echo(
        f"{found.sound} of {found.tiles} tiles{of_kernels} are sound; {found.entries} entries "
        f"recomputed, "
        f"largest relative difference {found.largest_error:.1e}"
    )


def _rows(found: "Verification") -> list[tuple[str, ...]]:
    """Tile, verdict and detail; of a sweep, what chooses the kernel, too."""
    rows = [
        (str(problem.tile or "-"), problem.kind, problem.detail, shown(problem.options or {}))
        for problem in found.problems
    ]
    return [row if found.kernels else row[:3] for row in rows]


def export(
    store: Store,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A new file: .npy of any size, or .csv of a small matrix."
        ),
    ],
    kernel: Annotated[
        int | None,
        typer.Option(metavar="I", help="Of a sweep: the position of the kernel, from 0."),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="The labels, too: in OUT.labels.npy or .csv.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the whole matrix as one file for other programs, tile by tile, both triangles."""
    from rntk_dist.export import export

    gram = _chosen(store, kernel)
    with _tile_bar() as on_tile:
        written = export(gram, out, labels=labels, on_tile=on_tile)
    facts = {
        "files": [str(path) for path in written],
        "shape": list(gram.shape),
        "dtype": gram.dtype.name,
        "bytes": out.stat().st_size,
    }
    if as_json:
        print_facts(facts, as_json)
    else:
        rows, cols = gram.shape
        typer.echo(f"{rows} x {cols} {gram.dtype.name}: {', '.join(map(str, written))}")


def _chosen(store: str, kernel: int | None) -> "Gram":
    """The matrix of a store; of a sweep, that of one kernel."""
    from rntk_dist.gram import Gram

    opened = open_any(store)
    where = show(opened.location)
    if not isinstance(opened, SweepStore):
        if kernel is not None:
            raise ValueError(f"{where} holds one matrix, of no sweep: leave out --kernel")
        return Gram(opened)
    last = len(opened.manifest.kernels) - 1
    if kernel is None or not 0 <= kernel <= last:
        given = "none is given" if kernel is None else f"there is no kernel {kernel}"
        raise ValueError(
            f"{where} holds a sweep, and {given}: choose one with --kernel, from 0 to {last}"
        )
    return Gram(opened.slice(kernel))


@contextmanager
def _tile_bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar that goes away at the end; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tiles", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
