"""Dataclasses as rows of CSV files, there and back."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

_KINDS: dict[str, type] = {"str": str, "int": int, "float": float}


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A header and rows, in a new file or in place of an old one; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_dataclasses(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """One row for each object of a dataclass, one column for each field, in order."""
    names = [field.name for field in fields(kind)]
    write(path, names, ([row.__dict__[name] for name in names] for row in rows))


def read_dataclasses[T](path: Path, kind: type[T]) -> list[T]:
    """What `write_dataclasses` wrote, of fields that are str, int or float.

    Raises ValueError where a column is missing or no number.
    """
    types = {field.name: _KINDS[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [
                kind(**{name: convert(row[name]) for name, convert in types.items()})
                for row in csv.DictReader(file)
            ]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: found no usable {error}: give a table that this experiment wrote"
            ) from error
