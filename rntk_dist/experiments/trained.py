"""Recurrent networks trained by PyTorch: the one place that imports it, when a trainer is made.

Sequences of several lengths stand side by side with zeros behind their ends. A network reads
forward, so its states up to a sequence's last step know nothing of the zeros, and what comes after
is left out by the readout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rntk_dist.experiments.archive import labels_of, zero_padded
from rntk_dist.experiments.networks import Judged, Setting, Training, parted
from rntk_dist.sequences import Sequences

type Tensor = Any

INSTALL = "pip install 'rntk_dist[rnn]'"

ROOT_2 = math.sqrt(2)
SMALL = 1e-3
"""Deviation of the input weights of an identity network."""


class Trainer(Protocol):
    """What the experiment needs; `TorchTrainer` is one."""

    def judge(self, setting: Setting, train: Sequences, apart: Sequences) -> Judged:
        """One network trained, judged by sequences apart."""
        ...

    def predictions(
        self, setting: Setting, train: Sequences, others: Sequences
    ) -> NDArray[np.generic]:
        """Labels (networks, m)."""
        ...


@dataclass(frozen=True)
class Batch:
    """Sequences as tensors: values (n, T, m), lengths (n,) and classes (n,)."""

    values: Tensor
    lengths: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def only(self, places: Tensor) -> Batch:
        """Some of them, as long as the longest."""
        lengths = self.lengths[places]
        longest = int(lengths.max())
        return Batch(self.values[places, :longest], lengths, self.classes[places])


@dataclass(frozen=True)
class Parts:
    """A network: its recurrent layer and its output layer, in a ModuleList."""

    both: Any

    def logits(self, batch: Batch, readout: str) -> Tensor:
        """(n, classes)."""
        recurrent, output = self.both
        states = recurrent(batch.values)[0]
        steps = batch.lengths[:, None, None]
        if readout == "last":
            places = (steps - 1).expand(-1, 1, states.shape[2])
            return output(states.gather(1, places)[:, 0])
        present = batch.lengths.new_ones(states.shape[1]).cumsum(0)[None, :, None] <= steps
        return output((states * present).sum(1) / steps[:, 0])


@dataclass(frozen=True)
class TorchTrainer:
    """Trains on one thread, the same network for the same seed.

    torch : the module; use `torch_trainer` to make one.
    """

    torch: Any
    training: Training

    def judge(self, setting: Setting, train: Sequences, apart: Sequences) -> Judged:
        """Train with early stopping on other sequences, of labels that `train` has too."""
        classes = np.unique(labels_of(train))
        rest, other = (self._batch(setting, part, classes) for part in (train, apart))
        with self._alone(seed=0):
            return self._stopped(setting, rest, other, len(classes), seed=0)[1]

    def predictions(
        self, setting: Setting, train: Sequences, others: Sequences
    ) -> NDArray[np.generic]:
        """Labels (networks, m) that networks of as many seeds give to unlabelled others.

        Each has samples of its own held out to stop by; where none can be, it stops by the loss of
        its training.
        """
        classes = np.unique(labels_of(train))
        asked = self._batch(setting, others, classes)
        found = []
        for seed in range(1, self.training.networks + 1):
            known, unknown = parted(train, seed)
            rest = self._batch(setting, known, classes)
            apart = rest if unknown is None else self._batch(setting, unknown, classes)
            with self._alone(seed):
                parts, _ = self._stopped(setting, rest, apart, len(classes), seed)
                found.append(self._forward(parts, setting, asked).argmax(1).numpy())
        labels: NDArray[np.generic] = classes[np.stack(found)]
        return labels

    def _stopped(
        self, setting: Setting, rest: Batch, apart: Batch, classes: int, seed: int
    ) -> tuple[Parts, Judged]:
        """A network trained on `rest`, as it was when its loss on `apart` was least."""
        parts = self._network(setting, rest, classes)
        best, kept = Judged(0, -1, math.inf), deepcopy(parts.both.state_dict())
        for updates in self._updates(parts, setting, rest, seed):
            found = self._judged(parts, setting, apart, updates)
            if found.loss < best.loss:
                best, kept = found, deepcopy(parts.both.state_dict())
            if updates - best.updates >= self.training.patience * self.training.check:
                break
        parts.both.load_state_dict(kept)
        return parts, best

    # -- training ----------------------------------------------------------------------------------

    def _updates(self, parts: Parts, setting: Setting, batch: Batch, seed: int) -> Iterator[int]:
        """Train, and yield the number of updates whenever the network is to be judged."""
        torch = self.torch
        parameters = list(parts.both.parameters())
        adam = torch.optim.Adam(parameters, lr=setting.learning_rate)
        some = self._batches(batch, seed)
        for update in range(1, self.training.updates + 1):
            now = next(some)
            adam.zero_grad()
            torch.nn.functional.cross_entropy(
                parts.logits(now, setting.readout), now.classes
            ).backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip)
            adam.step()
            if update % self.training.check == 0:
                yield update

    def _batches(self, batch: Batch, seed: int) -> Iterator[Batch]:
        """All at once where they fit; else each once in a random order, then again."""
        size, rng = self.training.batch, np.random.default_rng(seed)
        if len(batch) <= size:
            while True:
                yield batch
        while True:
            order = self.torch.from_numpy(rng.permutation(len(batch)))
            # Parts of nearly one size: a last one of a few samples would be mostly noise.
            for places in self.torch.tensor_split(order, math.ceil(len(batch) / size)):
                yield batch.only(places)

    def _judged(self, parts: Parts, setting: Setting, batch: Batch, updates: int) -> Judged:
        """A loss that is no number counts as infinite."""
        logits = self._forward(parts, setting, batch)
        loss = float(self.torch.nn.functional.cross_entropy(logits, batch.classes))
        right = int((logits.argmax(1) == batch.classes).sum())
        return Judged(updates, right, loss) if math.isfinite(loss) else Judged(0, -1, math.inf)

    def _forward(self, parts: Parts, setting: Setting, batch: Batch) -> Tensor:
        """Logits (n, classes), some sequences at a time."""
        with self.torch.no_grad():
            places = self.torch.arange(len(batch)).split(4 * self.training.batch)
            return self.torch.cat(
                [parts.logits(batch.only(some), setting.readout) for some in places]
            )

    # -- networks and tensors ----------------------------------------------------------------------

    def _network(self, setting: Setting, batch: Batch, classes: int) -> Parts:
        nn, features = self.torch.nn, batch.values.shape[2]
        if setting.kind == "gru":
            layer = nn.GRU(features, setting.hidden, batch_first=True)
            return Parts(nn.ModuleList([layer, nn.Linear(setting.hidden, classes)]))
        layer = nn.RNN(features, setting.hidden, nonlinearity="relu", batch_first=True)
        output = nn.Linear(setting.hidden, classes)
        init = nn.init
        if setting.kind == "gaussian":
            init.normal_(layer.weight_hh_l0, std=ROOT_2 / math.sqrt(setting.hidden))
            init.normal_(layer.weight_ih_l0, std=1 / math.sqrt(features))
            init.normal_(layer.bias_ih_l0, std=0.1)
        else:
            init.eye_(layer.weight_hh_l0)
            init.normal_(layer.weight_ih_l0, std=SMALL)
            init.zeros_(layer.bias_ih_l0)
        init.zeros_(layer.bias_hh_l0)
        init.normal_(output.weight, std=1 / math.sqrt(setting.hidden))
        init.zeros_(output.bias)
        return Parts(nn.ModuleList([layer, output]))

    def _batch(self, setting: Setting, given: Sequences, classes: ArrayLike) -> Batch:
        """Tensors of float32; the class of a sequence without a label is 0."""
        seen = setting.inputs(given)
        longest = int(seen.lengths.max())
        values = zero_padded(seen, longest).reshape(len(seen), longest, seen.n_features)
        labels = (
            np.zeros(len(seen))
            if seen.labels is None
            else np.searchsorted(np.asarray(classes), seen.labels)
        )
        torch = self.torch
        return Batch(
            torch.from_numpy(values.astype(np.float32)),
            torch.from_numpy(np.array(seen.lengths, dtype=np.int64)),
            torch.from_numpy(labels.astype(np.int64)),
        )

    @contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        """One thread and a seed of its own; PyTorch is left as it was found."""
        torch = self.torch
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield
        finally:
            torch.set_num_threads(threads)


def torch_trainer(training: Training) -> TorchTrainer:
    """A trainer.  Raises ModuleNotFoundError without PyTorch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"trained networks need PyTorch: {INSTALL}") from error
    return TorchTrainer(torch, training)
