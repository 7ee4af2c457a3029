"""Trained recurrent networks for the UCR experiment: which are tried, and what they cost.

Nothing here needs PyTorch: the training itself is in `trained`. For each data set and kind of
network a quarter of the training part, stratified, is held out; every setting of the grid is
trained on the rest, with early stopping on what is held out, and the setting of most held-out
samples classified right is chosen. Networks of that setting are then trained from several seeds,
each with a quarter of its own held out to stop by. How long one network was best to train says
little of the next: with few samples held out none is trained without any.

The same data set gets the same settings, and sees the same steps, on every machine: the budget is a
count of work, as in `budget`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.experiments.archive import labels_of
from rntk_dist.experiments.inputs import AsTheyAre, Averaged, Inputs
from rntk_dist.sequences import Sequences

type Kind = Literal["gaussian", "identity", "gru"]
type Readout = Literal["last", "mean"]

KINDS: dict[str, Kind] = {
    "RNN, Gaussian": "gaussian",
    "RNN, identity": "identity",
    "GRU": "gru",
}
"""By the name of the method."""

# The default of each first.
LEARNING_RATES = (0.003, 0.01, 0.001)
HIDDEN = (32, 64)
READOUTS: tuple[Readout, ...] = ("last", "mean")

FEW = 4
"""Settings that are tried at least, as long as that leaves sequences more than `LEAST_STEPS`."""

LEAST_STEPS = 24
"""Sequences are not averaged to fewer."""

UPDATE = 2e-3
"""Seconds of an update, whatever its batch."""

STEP: dict[Kind, float] = {"gaussian": 7e-5, "identity": 7e-5, "gru": 3e-4}
"""Seconds of a step of a batch, forward and back, however small."""

STEP_UNIT: dict[Kind, float] = {"gaussian": 1.3e-8, "identity": 1.3e-8, "gru": 5.5e-8}
"""What each sequence of the batch and hidden unit adds to it."""


@dataclass(frozen=True)
class Training:
    """How a network is trained, by Adam on the cross-entropy.

    `updates` at most, each on `batch` sequences, the gradient's norm cut to `clip`; every `check`
    updates the network is judged, and training ends after `patience` checks without a smaller loss.
    `networks` are trained in the end, from as many seeds.
    """

    updates: int = 300
    batch: int = 64
    check: int = 10
    patience: int = 10
    clip: float = 1.0
    networks: int = 3


@dataclass(frozen=True)
class Setting:
    """A network, how it learns, and how it sees sequences.

    kind : "gaussian" and "identity" are Elman networks of one ReLU layer. The weights of the first
        begin as those of the RNTK with sigma_w = √2 and sigma_b = 0.1: recurrent ones of variance
        2/hidden, input ones of 1/features, output ones of 1/hidden, biases of deviation 0.1. The
        second begins as Le et al. 2015 have it: recurrent weights the identity, input weights of
        deviation 0.001, biases zero. "gru" begins as PyTorch has it.
    readout : "last" classifies by the state after a sequence's last step, "mean" by the mean of the
        states after all its steps.
    """

    kind: Kind
    hidden: int = HIDDEN[0]
    learning_rate: float = LEARNING_RATES[0]
    readout: Readout = READOUTS[0]
    inputs: Inputs = field(default_factory=AsTheyAre)

    @property
    def name(self) -> str:
        """All but the kind, which is the method's name."""
        told = f"hidden={self.hidden}, rate={self.learning_rate:g}, readout={self.readout}"
        return told if isinstance(self.inputs, AsTheyAre) else f"{told} on {self.inputs}"


@dataclass(frozen=True)
class Judged:
    """A network on samples held out from its training.

    `right` of them are classified right, at a mean cross-entropy of `loss`, after `updates`.
    """

    updates: int
    right: int
    loss: float

    @property
    def rank(self) -> tuple[int, float]:
        """Greater is better: of equally many right ones the smaller loss."""
        return self.right, -self.loss


@dataclass(frozen=True)
class Chosen:
    """The setting chosen, and how it was found.

    `validation` is the share of held-out samples classified right, 0 where none could be held out;
    `tied` settings had as many right, this one included.
    """

    setting: Setting
    validation: float
    tied: int


# -- which settings --------------------------------------------------------------------------------


def settings(kind: Kind, inputs: Inputs | None = None) -> tuple[Setting, ...]:
    """The whole grid, the default first."""
    grid = product(HIDDEN, LEARNING_RATES, READOUTS)
    return tuple(Setting(kind, h, rate, how, inputs or AsTheyAre()) for h, rate, how in grid)


def affordable(
    kind: Kind, train: Sequences, seconds: float, training: Training
) -> tuple[Setting, ...]:
    """The settings that the seconds of one core suffice for, at least the first of the grid.

    Longer sequences are averaged over parts of their time, to fewer and fewer steps, until `FEW`
    settings can be tried. Which ones are left is the same for all data sets of the same
    number: the first, and then a fixed random order. They keep the order of the grid.
    """
    inputs = _inputs(kind, train, seconds, training)
    grid = settings(kind, inputs)
    count = _count(grid[0], train, seconds, training)
    order = [0, *(1 + np.random.default_rng(0).permutation(len(grid) - 1))]
    return tuple(grid[i] for i in sorted(order[:count]))


def _inputs(kind: Kind, train: Sequences, seconds: float, training: Training) -> Inputs:
    steps = int(train.lengths.max())
    inputs: Inputs = AsTheyAre()
    while (
        steps > LEAST_STEPS and _count(Setting(kind, inputs=inputs), train, seconds, training) < FEW
    ):
        steps = max(LEAST_STEPS, steps * 3 // 4)
        inputs = Averaged(steps)
    return inputs


def _count(default: Setting, train: Sequences, seconds: float, training: Training) -> int:
    """Settings for which the seconds suffice, the networks trained in the end taken off; 1 if 0.

    All are counted as the largest.
    """
    largest = replace(default, hidden=max(HIDDEN))
    trainings = int(seconds / training_seconds(largest, train, training))
    return max(1, trainings - training.networks)


def training_seconds(setting: Setting, train: Sequences, training: Training) -> float:
    """Of one core, for one network and all updates."""
    batch = min(len(train), training.batch)
    step = STEP[setting.kind] + STEP_UNIT[setting.kind] * batch * setting.hidden
    # Batches are as long as their longest sequence; and what judges a network goes forward alone.
    longest = int(train.lengths.max())
    if isinstance(setting.inputs, Averaged):
        longest = min(longest, setting.inputs.steps)
    judged = 0.05 * len(train) / batch / training.check
    return training.updates * (UPDATE + longest * step) * (1 + judged)


# -- which is chosen -------------------------------------------------------------------------------


def held_out(labels: ArrayLike, seed: int) -> NDArray[np.bool_]:
    """Whether each sample (n,) is held out: a quarter of each class, at least one of two.

    Of a class of one sample none is, for what is held out could not be learnt.
    """
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    out = np.zeros(len(codes), dtype=np.bool_)
    rng = np.random.default_rng(seed)
    for code in range(int(codes.max()) + 1):
        own = rng.permutation(np.flatnonzero(codes == code))
        out[own[: max(len(own) // 4, int(len(own) > 1))]] = True
    return out


def parted(train: Sequences, seed: int) -> tuple[Sequences, Sequences | None]:
    """Those to train on, and those held out, if any: see `held_out`."""
    out = held_out(labels_of(train), seed)
    if not out.any():
        return train, None
    return train[np.flatnonzero(~out)], train[np.flatnonzero(out)]


def choose_setting(
    tried: Sequence[Setting],
    train: Sequences,
    judge: Callable[[Setting, Sequences, Sequences], Judged],
) -> Chosen:
    """The setting that judge(setting, sequences to train on, those held out) finds best.

    Of equal ones the first. Where nothing can be held out it is the first of all.
    """
    rest, apart = parted(train, seed=0)
    if apart is None:
        return Chosen(tried[0], 0.0, len(tried))
    found = [judge(setting, rest, apart) for setting in tried]
    best = max(range(len(found)), key=lambda i: found[i].rank)
    tied = sum(one.right == found[best].right for one in found)
    return Chosen(tried[best], found[best].right / len(apart), tied)
