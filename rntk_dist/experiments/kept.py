"""What an experiment has found is kept, a small file a part, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rntk_dist.manifest import IdentityError


def kept_or(path: Path, identity: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """What the file keeps; without it what is computed, which is kept from then on.

    Parameters
    ----------
    path : Path
        A JSON file; it is written whole or not at all.
    identity : dict
        All that the result depends on, as JSON-able values.
    compute : callable
        Gives JSON-able values.

    Raises
    ------
    IdentityError
        The file keeps a result of something else.
    """
    if path.exists():
        return _read(path, identity)
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"identity": identity, "found": found}), encoding="utf-8")
    new.replace(path)
    return found


def _read(path: Path, identity: dict[str, Any]) -> Any:
    kept = json.loads(path.read_text(encoding="utf-8"))
    # As JSON gives it back: tuples are lists there.
    wanted = json.loads(json.dumps(identity))
    differing = [key for key in wanted if kept["identity"].get(key) != wanted[key]]
    if differing:
        raise IdentityError(
            f"{path}: keeps results of another {' and '.join(differing)}: "
            "give another folder, or remove this one"
        )
    return kept["found"]
