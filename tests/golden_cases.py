"""Golden values with 50 digits, and which of a case's fields are options of the kernel."""

import json
from pathlib import Path
from typing import Any

from rntk_dist import RNTK

OPTIONS = (
    "depth",
    "frozen_layers",
    "activation",
    "readout",
    "bidirectional",
    "initial_state",
    "sigma_w",
    "sigma_u",
    "sigma_b",
    "sigma_h",
    "sigma_v",
)


def read_cases(name: str) -> list[dict[str, Any]]:
    """The cases of a file: short or long sequences."""
    path = Path(__file__).parent / "golden" / f"{name}.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text())
    return cases


def kernel_of(case: dict[str, Any]) -> RNTK:
    return RNTK(**{name: case[name] for name in OPTIONS})
