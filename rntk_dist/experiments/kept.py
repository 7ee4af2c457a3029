"""What an experiment has found is kept, a small file a part, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rntk_dist.manifest import IdentityError


def read(path: Path, identity: Mapping[str, Any]) -> Any:
    """What `write` kept; None where there is no file.

    Raises IdentityError where it belongs to another identity: data, methods, whatever it names.
    """
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    # As JSON gives it back: tuples are lists there.
    wanted = json.loads(json.dumps(dict(identity)))
    differing = [key for key, value in wanted.items() if kept["identity"].get(key) != value]
    if differing:
        raise IdentityError(
            f"{path}: keeps results of other {' and '.join(differing)}: "
            "give another folder, or remove this one"
        )
    return kept["results"]


def write(path: Path, identity: Mapping[str, Any], results: Any) -> None:
    """Results (JSON-able values), and all that they depend on; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    content = {"identity": dict(identity), "results": results}
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(path)


def kept_or(path: Path, identity: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """What the file keeps; without it what is computed, which is kept from then on.

    `compute` gives JSON-able values. Raises IdentityError as `read`.
    """
    found = read(path, identity)
    if found is None:
        found = compute()
        write(path, identity, found)
    return found
