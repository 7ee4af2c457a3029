"""The UCR archive's data sets, where this machine has them beside the repository."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "ucr"
BASELINES = SHARED / "baselines.csv"


def unpacked(root: Path) -> Path:
    """The folder of 73 data sets; skips the test where this machine has none."""
    packed = SHARED / "ucr.tar.xz"
    if not packed.exists():
        pytest.skip("the archive's data is not on this machine")
    with tarfile.open(packed) as content:
        content.extractall(root, filter="data")
    return root
