"""How facts are shown: tables on a terminal, lines with tabs elsewhere, JSON where asked for."""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="One JSON object in place of a table.")]


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """A fact a line, or all as a JSON object."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        print_table(("", ""), [(name, shown(value)) for name, value in facts.items()])


def print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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


def shown(value: Any) -> str:
    """A JSON-able value in plain words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, list):
        between = " x " if value and isinstance(value[0], int) else ", "
        return between.join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def shown_bytes(n: int) -> str:
    """A number of bytes, rounded, in the largest unit that it fills."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n >= 1 << power:
            return f"{n / (1 << power):.1f} {unit}"
    return f"{n} bytes"


def shown_hours(hours: float) -> str:
    """Hours of work, rounded: 0.04, 3.1, 6,750."""
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def shown_seconds(seconds: float) -> str:
    """A time, rounded: 0.4 s, 12 s, 0:05:12, 2 days, 3:00:00."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))
