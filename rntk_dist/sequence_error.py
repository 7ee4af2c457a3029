"""What is raised for one sequence of a batch that cannot be used."""

from __future__ import annotations

from typing import SupportsIndex


class SequenceError(ValueError):
    """One sequence cannot be used; `index`, from 0, says which, so a reader can name its line."""

    index: int = -1


def bad_sequence(index: SupportsIndex, message: str) -> SequenceError:
    """The error of a sequence, whose number begins the message."""
    number = int(index)
    error = SequenceError(f"sequence {number} {message}")
    error.index = number
    return error
