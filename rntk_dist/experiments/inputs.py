"""How a kernel sees sequences: as they are, in windows, with differences, or as vectors.

Each is a frozen dataclass that takes sequences and gives sequences; none looks at labels, and
lengths that vectors need are given, so that they can be those of the training part alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rntk_dist.experiments.archive import rescaled, z_normalised, zero_padded
from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]


class Inputs(Protocol):
    """Sequences to sequences, one for one, in order."""

    def __call__(self, sequences: Sequences) -> Sequences:
        """The sequences as a kernel is to see them."""
        ...

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """Mean steps and the features that a kernel will see, without making them."""
        ...


@dataclass(frozen=True)
class AsTheyAre:
    """The sequences themselves."""

    def __call__(self, sequences: Sequences) -> Sequences:
        """The same object."""
        return sequences

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """Their own."""
        return float(sequences.lengths.mean()), sequences.n_features


@dataclass(frozen=True)
class Delays:
    """Delay embedding: each step holds its value and those of the `window` - 1 steps before.

    A sequence of T steps keeps T - window + 1 (steps without a full past are left out); one of
    fewer steps than the window is put behind zeros, and keeps one.

    >>> Delays(2)(Sequences.from_arrays([[1.0, 2.0, 4.0]]))[0].tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """

    window: int

    def __call__(self, sequences: Sequences) -> Sequences:
        """(T - window + 1) steps of window * features."""
        sequences.require_numbers("a delay embedding")
        return Sequences.from_arrays([self._windows(x) for x in sequences], sequences.labels)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """Fewer steps of more features."""
        steps = np.maximum(sequences.lengths - self.window + 1, 1).mean()
        return float(steps), self.window * sequences.n_features

    def _windows(self, x: NDArray[np.floating]) -> Float64:
        lacking = max(0, self.window - len(x))
        padded = np.pad(x, ((lacking, 0), (0, 0)))
        views = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=0)
        # (steps, features, window): the oldest value of all features first.
        return views.swapaxes(1, 2).reshape(len(views), -1)


@dataclass(frozen=True)
class Averaged:
    """Longer sequences by the means of `steps` equal parts of their time; shorter ones unchanged.

    >>> Averaged(2)(Sequences.from_arrays([[1.0, 2.0, 6.0, 7.0, 9.0], [3.0]]))[0].tolist()
    [[1.5], [7.333333333333333]]
    """

    steps: int

    def __call__(self, sequences: Sequences) -> Sequences:
        """At most `steps` steps; parts differ by one step where they cannot be equal."""
        sequences.require_numbers("averaging")
        return Sequences.from_arrays([self._means(x) for x in sequences], sequences.labels)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """Fewer steps."""
        return float(np.minimum(sequences.lengths, self.steps).mean()), sequences.n_features

    def _means(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        if len(x) <= self.steps:
            return x
        bounds = np.arange(self.steps + 1) * len(x) // self.steps
        means: Float64 = np.add.reduceat(x, bounds[:-1]) / np.diff(bounds)[:, np.newaxis]
        return means


@dataclass(frozen=True)
class WithDifferences:
    """First differences as further features, each normalised as the sequences themselves are.

    The first step's difference is 0.
    """

    def __call__(self, sequences: Sequences) -> Sequences:
        """Twice the features."""
        sequences.require_numbers("differencing")
        steps = [np.diff(x, axis=0, prepend=x[:1]) for x in sequences]
        changes = z_normalised(Sequences.from_arrays(steps))
        both = [np.hstack(pair) for pair in zip(sequences, changes, strict=True)]
        return Sequences.from_arrays(both, sequences.labels)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """The same steps."""
        return float(sequences.lengths.mean()), 2 * sequences.n_features


@dataclass(frozen=True)
class Padded:
    """One step that holds the whole sequence: zeros after its end, cut after `length` steps."""

    length: int

    def __call__(self, sequences: Sequences) -> Sequences:
        """(n, 1, length * features)."""
        return _as_one_step(zero_padded(sequences, self.length), sequences)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """One step."""
        return 1.0, self.length * sequences.n_features


@dataclass(frozen=True)
class PaddedInFront:
    """One step that holds the whole sequence: zeros before its start, only the last `length` steps.

    Unlike `Padded` it keeps the last steps of all sequences in the same places.

    >>> PaddedInFront(3)(Sequences.from_arrays([[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]])).values.tolist()
    [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]
    """

    length: int

    def __call__(self, sequences: Sequences) -> Sequences:
        """(n, 1, length * features)."""
        turned = zero_padded(sequences.reversed(), self.length)
        steps = turned.reshape(len(sequences), self.length, -1)[:, ::-1]
        return _as_one_step(steps.reshape(len(sequences), -1), sequences)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """One step."""
        return 1.0, self.length * sequences.n_features


@dataclass(frozen=True)
class Rescaled:
    """One step that holds the whole sequence, stretched over `length` steps."""

    length: int

    def __call__(self, sequences: Sequences) -> Sequences:
        """(n, 1, length * features)."""
        return _as_one_step(rescaled(sequences, self.length), sequences)

    def shape(self, sequences: Sequences) -> tuple[float, int]:
        """One step."""
        return 1.0, self.length * sequences.n_features


def _as_one_step(vectors: Float64, sequences: Sequences) -> Sequences:
    return Sequences.from_arrays(vectors[:, np.newaxis, :], sequences.labels)
