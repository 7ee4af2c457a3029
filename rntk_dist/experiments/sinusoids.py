"""Noisy sinusoids whose next sample is to be predicted: problems, and data drawn for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rntk_dist.sequences import Sequences

type Float64 = NDArray[np.float64]

FREQUENCIES = (0.05, 0.1)
"""Cycles a step, one octave: a period has 10 to 20 steps."""

TESTED = 200
"""Sequences of the test part of each draw."""


@dataclass(frozen=True)
class Problem:
    """What is drawn: `size` training sequences of `length` to `length + spread` steps.

    `noise` is the standard deviation of what is added to sinusoids of amplitude 1.
    """

    length: int = 20
    spread: int = 0
    noise: float = 0.1
    size: int = 40

    def __post_init__(self) -> None:
        for name, value, least in (
            ("length", self.length, 1),
            ("spread", self.spread, 0),
            ("noise", self.noise, 0),
            ("size", self.size, 2),
        ):
            if not (value >= least and math.isfinite(value)):
                raise ValueError(f"{name} is {value}: give at least {least}")

    @property
    def longest(self) -> int:
        """Steps of the longest sequence that may be drawn."""
        return self.length + self.spread

    @property
    def name(self) -> str:
        """All settings, in a form that files can have."""
        return f"length={self.length},spread={self.spread},noise={self.noise:g},size={self.size}"


@dataclass(frozen=True, eq=False)
class Samples:
    """Noisy sequences; `observed` (n,) is the next sample, as noisy, and `true` (n,) without."""

    sequences: Sequences
    observed: Float64
    true: Float64


@dataclass(frozen=True, eq=False)
class Draw:
    """What a method is trained on, and what it is judged by."""

    train: Samples
    test: Samples


def draw(problem: Problem, repeat: int) -> Draw:
    """The data of one repeat: always the same, whatever else is drawn, and wherever.

    Each repeat has a seed of its own, the same for all problems.
    """
    train, test = np.random.SeedSequence(0, spawn_key=(repeat,)).spawn(2)
    return Draw(
        _samples(problem, problem.size, np.random.default_rng(train)),
        _samples(problem, TESTED, np.random.default_rng(test)),
    )


def _samples(problem: Problem, n: int, rng: np.random.Generator) -> Samples:
    """sin(2 pi f t + phase) at t = 0 .. T - 1, and at T the next: f, phase and T uniform."""
    frequencies = rng.uniform(*FREQUENCIES, size=n)
    phases = rng.uniform(0, 2 * np.pi, size=n)
    lengths = rng.integers(problem.length, problem.longest, size=n, endpoint=True)
    waves = [
        np.sin(2 * np.pi * f * np.arange(length + 1) + phase)
        for f, phase, length in zip(frequencies, phases, lengths, strict=True)
    ]
    noisy = [wave + problem.noise * rng.standard_normal(len(wave)) for wave in waves]
    return Samples(
        Sequences.from_arrays([x[:-1] for x in noisy]),
        np.array([x[-1] for x in noisy]),
        np.array([wave[-1] for wave in waves]),
    )
