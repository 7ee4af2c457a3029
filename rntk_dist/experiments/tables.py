"""Tables as CSV files: one observation a row, names in the first line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A file of these rows; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_dataclasses(path: Path, rows: Sequence[Any]) -> None:
    """A row for each dataclass of one kind, a column for each field; no file without any."""
    if rows:
        names = [field.name for field in fields(rows[0])]
        write_table(path, names, ([row.__dict__[name] for name in names] for row in rows))
