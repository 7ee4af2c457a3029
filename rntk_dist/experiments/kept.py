"""Results kept in files, so that an experiment that is run again goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rntk_dist.manifest import IdentityError

type Rows = list[dict[str, Any]]


def read(path: Path, identity: Mapping[str, str]) -> Rows:
    """The rows that `write` kept; none where there is no file.

    Raises IdentityError where they belong to another identity: data, methods, whatever it names.
    """
    if not path.exists():
        return []
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in identity.items() if kept["identity"].get(key) != value]
    if differing:
        raise IdentityError(
            f"{path}: keeps results of other {' and '.join(differing)}: "
            "give another folder, or remove this one"
        )
    rows: Rows = kept["results"]
    return rows


def write(path: Path, identity: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    content = {"identity": dict(identity), "results": [dict(row) for row in rows]}
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(path)
