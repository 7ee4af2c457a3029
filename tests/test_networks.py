"""Trained networks: which are tried, how they are chosen, and that no choice sees the test part.

All but the last part needs no PyTorch: a trainer that only counts stands in its place.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import rntk_dist as rd
from rntk_dist.cli import app
from rntk_dist.experiments import archive, report, ucr
from rntk_dist.experiments.budget import FULL, Budget
from rntk_dist.experiments.inputs import AsTheyAre, Averaged
from rntk_dist.experiments.methods import Method, methods
from rntk_dist.experiments.networks import (
    KINDS,
    Chosen,
    Judged,
    Kind,
    Setting,
    Training,
    affordable,
    choose_setting,
    held_out,
    settings,
    training_seconds,
)
from rntk_dist.experiments.results import Result
from rntk_dist.experiments.trained import TorchTrainer, torch_trainer

SHORT = Training(updates=60, check=5, networks=2)
TINY = Budget(other=0.0, paper=0.0, trained=0.5)
AMPLE = Budget(other=0.0, paper=0.0, trained=1e4)


def waves(n: int = 24, shortest: int = 9, longest: int = 14, seed: int = 0) -> rd.Sequences:
    """Noisy sine waves of two frequencies, labelled 3 and 7."""
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(n) % 2, 7, 3)
    lengths = rng.integers(shortest, longest + 1, n)
    values = [
        np.sin(label * np.arange(length) / 4 + rng.uniform(0, 0.5)) + rng.normal(0, 0.1, length)
        for label, length in zip(labels, lengths, strict=True)
    ]
    return rd.Sequences.from_arrays(values, labels)


def noise(n: int, steps: int) -> rd.Sequences:
    values = np.random.default_rng(0).normal(size=(n, steps))
    return rd.Sequences.from_arrays(values, np.arange(n) % 2)


def write_part(root: Path, name: str, part: str, content: rd.Sequences) -> None:
    longest = int(content.lengths.max())
    (root / name).mkdir(parents=True, exist_ok=True)
    with (root / name / f"{name}_{part}.tsv").open("w") as file:
        for label, x in zip(archive.labels_of(content), content, strict=True):
            padded = np.pad(x.ravel(), (0, longest - len(x)), constant_values=np.nan)
            file.write("\t".join([str(label), *map(repr, padded.tolist())]) + "\n")


def write_set(root: Path, name: str, test: rd.Sequences, shortest: int = 14) -> None:
    write_part(root, name, "TRAIN", waves(shortest=shortest))
    write_part(root, name, "TEST", test)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two data sets: one of one length, one of several."""
    for name, shortest in (("Even", 14), ("Ragged", 9)):
        write_set(tmp_path / "ucr", name, waves(30, shortest=shortest, seed=1), shortest)
    return tmp_path / "ucr"


def shuffled(root: Path, to: Path) -> Path:
    """The same data sets with test labels permuted."""
    for name in archive.names(root):
        data = archive.read(root, name)
        labels = np.random.default_rng(3).permutation(archive.labels_of(data.test))
        write_part(to, name, "TRAIN", data.train)
        write_part(to, name, "TEST", replace(data.test, labels=labels))
    return to


def choices(results: Sequence[Result]) -> list[Result]:
    """All but what may depend on the test part or the clock."""
    return [replace(r, accuracy=0.0, seconds=0.0, core_seconds=0.0) for r in results]


# -- which settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_small_budget_keeps_the_default_and_the_same_settings_for_all(kind: Kind) -> None:
    grid = settings(kind)
    assert len({setting.name for setting in grid}) == len(grid) == 12
    train = noise(40, 24)
    one = training_seconds(replace(grid[0], hidden=64), train, SHORT)
    few = affordable(kind, train, (6 + SHORT.networks + 0.5) * one, SHORT)
    more = affordable(kind, train, (9 + SHORT.networks + 0.5) * one, SHORT)
    assert (len(few), len(more)) == (6, 9)
    assert few[0] == more[0] == grid[0]
    assert set(few) < set(more)
    assert [grid.index(setting) for setting in more] == sorted(map(grid.index, more))
    assert affordable(kind, train, 1e6, SHORT) == grid
    assert affordable(kind, train, 0.0, SHORT) == grid[:1]


def test_long_sequences_are_averaged_until_a_few_settings_fit_and_say_so() -> None:
    train = noise(300, 400)
    largest = Setting("gru", hidden=64, inputs=Averaged(126))
    seconds = (4 + SHORT.networks + 0.5) * training_seconds(largest, train, SHORT)
    tried = affordable("gru", train, seconds, SHORT)
    assert len(tried) == 4
    assert {setting.inputs for setting in tried} == {Averaged(126)}
    assert tried[0].name == "hidden=32, rate=0.003, readout=last on Averaged(steps=126)"
    least = affordable("gru", train, 0.0, SHORT)
    assert [setting.inputs for setting in least] == [Averaged(24)]
    assert affordable("gru", noise(300, 24), 0.0, SHORT)[0].inputs == AsTheyAre()


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_count_of_work_grows_with_steps_samples_hidden_units_and_updates(kind: Kind) -> None:
    base = training_seconds(Setting(kind, hidden=32), noise(20, 30), SHORT)
    assert training_seconds(Setting(kind, hidden=64), noise(20, 30), SHORT) > base
    assert training_seconds(Setting(kind, hidden=32), noise(40, 30), SHORT) > base
    twice = training_seconds(
        Setting(kind, hidden=32), noise(20, 30), replace(SHORT, updates=2 * SHORT.updates)
    )
    assert twice == pytest.approx(2 * base)
    assert training_seconds(Setting(kind, hidden=32), noise(20, 60), SHORT) > 1.5 * base
    averaged = Setting(kind, hidden=32, inputs=Averaged(30))
    assert training_seconds(averaged, noise(20, 60), SHORT) == pytest.approx(base)


def test_all_data_sets_of_the_archive_fit_an_hour_of_two_cores() -> None:
    """73 data sets, three kinds of network, whatever their sizes."""
    assert 73 * len(KINDS) * FULL.trained < 2 * 3600


# -- which is chosen -------------------------------------------------------------------------------


def test_a_quarter_of_each_class_is_held_out_and_none_of_a_single_sample() -> None:
    labels = np.array(["a"] * 8 + ["b"] * 3 + ["c"] + ["d"] * 2)
    out = held_out(labels, seed=0)
    assert Counter(labels[out].tolist()) == {"a": 2, "b": 1, "d": 1}
    assert np.array_equal(out, held_out(labels, seed=0))
    assert not np.array_equal(out, held_out(labels, seed=1))
    assert not held_out(np.arange(5), seed=0).any()


def test_the_best_on_held_out_samples_is_chosen_and_of_equal_ones_the_smaller_loss() -> None:
    train, tried = waves(), settings("gru")[:4]
    found = dict(
        zip(
            tried,
            [Judged(5, 4, 0.1), Judged(7, 5, 0.9), Judged(9, 5, 0.8), Judged(3, 5, 0.8)],
            strict=True,
        )
    )
    seen: list[tuple[int, int]] = []

    def judge(setting: Setting, rest: rd.Sequences, apart: rd.Sequences) -> Judged:
        seen.append((len(rest), len(apart)))
        together = np.sort(np.concatenate([rest.values, apart.values]), axis=None)
        assert np.array_equal(together, np.sort(train.values, axis=None))
        return found[setting]

    chosen = choose_setting(tried, train, judge)
    assert seen == [(18, 6)] * 4
    assert (chosen.setting, chosen.tied) == (tried[2], 3)
    assert chosen.validation == pytest.approx(5 / 6)


def test_where_nothing_can_be_held_out_the_default_is_chosen() -> None:
    single = rd.Sequences.from_arrays(np.eye(5), np.arange(5))
    chosen = choose_setting(settings("gru"), single, never)
    assert chosen == Chosen(settings("gru")[0], validation=0.0, tied=12)


def never(*_: Any) -> Judged:
    raise AssertionError("nothing is left to judge by")


# -- the experiment, with a trainer that only counts -----------------------------------------------


@dataclass
class Counting:
    """Finds the second setting best, and one of two networks always right about `7`."""

    asked: list[str] = field(default_factory=list)
    fails_at: str = ""

    def judge(self, setting: Setting, train: rd.Sequences, apart: rd.Sequences) -> Judged:
        assert {*archive.labels_of(train)} == {*archive.labels_of(apart)} == {3, 7}
        if setting.kind == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(setting.kind)
        return Judged(10, 4 if setting == settings(setting.kind)[1] else 3, 0.5)

    def predictions(
        self, setting: Setting, train: rd.Sequences, others: rd.Sequences
    ) -> np.ndarray[Any, Any]:
        assert others.labels is None
        return np.array([[7] * len(others), [3] * len(others)])


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    trainer = Counting()
    monkeypatch.setattr(ucr, "torch_trainer", lambda training: trainer)
    return trainer


def test_networks_are_chosen_kept_and_marked_like_kernels(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    results = ucr.run(root, tmp_path / "kept", budget=AMPLE, parts="networks")
    assert [r.method for r in results] == [*KINDS, *KINDS]
    assert {(r.procedure, r.kernels, r.grid, r.tied) for r in results} == {("none", 12, 12, 1)}
    assert {r.kernel for r in results} == {"hidden=32, rate=0.003, readout=mean"}
    assert {r.accuracy for r in results} == {0.5}  # the mean of two networks
    assert {r.validation for r in results} == {4 / 6}
    thinned = ucr.run(root, tmp_path / "other", budget=TINY, parts="networks")
    assert all(r.kernels < r.grid == 12 for r in thinned)
    asked = len(counting.asked)
    assert ucr.run(root, tmp_path / "kept", budget=AMPLE, parts="networks") == results
    assert len(counting.asked) == asked
    with pytest.raises(rd.IdentityError, match="keeps results of other kernels: give another"):
        ucr.run(root, tmp_path / "kept", budget=TINY, parts="networks")


def test_an_interrupted_run_goes_on_with_the_networks_it_lacks(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    counting.fails_at = "identity"
    with pytest.raises(KeyboardInterrupt):
        ucr.run(root, tmp_path / "kept", sets=["Even"], budget=AMPLE, parts="networks")
    assert {*counting.asked} == {"gaussian"}
    counting.asked.clear()
    counting.fails_at = ""
    results = ucr.run(root, tmp_path / "kept", sets=["Even"], budget=AMPLE, parts="networks")
    assert {*counting.asked} == {"identity", "gru"}
    assert len(results) == len(KINDS)


@pytest.mark.usefixtures("counting")
def test_networks_stand_beside_the_kernels_of_both_procedures(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(train: rd.Sequences, mean_work: float, n_test: int) -> tuple[Method, ...]:
        every = methods(train, mean_work, n_test)
        named = [m for m in every if m.name in ("RNTK last", "NTK", "RBF")]
        return tuple(Method(m.name, m.variants[:1]) for m in named)

    monkeypatch.setattr(ucr, "methods", few)
    beside = ucr.run(root, tmp_path, sets=["Even"], budget=TINY, parts="both")
    alone = ucr.run(root, tmp_path, sets=["Even"], budget=TINY, parts="networks")
    kernels = ucr.run(root, tmp_path, sets=["Even"], budget=TINY)
    assert beside == kernels + alone
    tables = report.comparisons(beside)
    assert list(tables) == ["paper-one-length", "normalised-one-length"]
    assert all(tables[name].methods[-3:] == tuple(KINDS) for name in tables)
    (name, table), *rest = report.comparisons(alone).items()
    assert (name, table.methods, rest) == ("no-kernels", tuple(KINDS), [])


# -- without PyTorch -------------------------------------------------------------------------------


def test_without_pytorch_one_sentence_says_what_to_install(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    sentence = r"trained networks need PyTorch: pip install 'rntk_dist\[rnn\]'"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        ucr.run(root, tmp_path / "kept", parts="both")
    for option in ("--rnn", "--only-rnn"):
        arguments = ["experiment", "ucr", "--data", str(root), "--folder", str(tmp_path / "out")]
        done = CliRunner().invoke(app, [*arguments, option])
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert line.endswith("PyTorch: pip install 'rntk_dist[rnn]'")
    assert not (tmp_path / "out").exists()


# -- with PyTorch ----------------------------------------------------------------------------------


@pytest.fixture
def trainer() -> TorchTrainer:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch_trainer(SHORT)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("readout", ["last", "mean"])
def test_what_stands_behind_a_sequence_does_not_change_its_class(
    trainer: TorchTrainer, kind: Kind, readout: str
) -> None:
    """In one batch with longer ones as alone."""
    setting = Setting(kind, hidden=5, readout=readout)  # type: ignore[arg-type]
    given = waves(6)
    batch = trainer._batch(setting, given, [3, 7])
    parts = trainer._network(setting, batch, classes=2)
    logits = parts.logits(batch, readout).detach().numpy()
    for place, one in enumerate(given):
        alone = trainer._batch(setting, rd.Sequences.from_arrays([one]), [3, 7])
        assert np.allclose(parts.logits(alone, readout).detach()[0], logits[place], atol=1e-6)


def test_elman_networks_begin_as_they_are_said_to(trainer: TorchTrainer) -> None:
    batch = trainer._batch(Setting("gaussian"), waves(6), [3, 7])
    layer, output = trainer._network(Setting("gaussian", hidden=400), batch, 2).both
    assert layer.nonlinearity == "relu"
    layer.requires_grad_(False)
    output.requires_grad_(False)
    assert float(layer.weight_hh_l0.var()) == pytest.approx(2 / 400, rel=0.02)
    assert float(layer.weight_ih_l0.var()) == pytest.approx(1.0, rel=0.25)
    assert float(layer.bias_ih_l0.std()) == pytest.approx(0.1, rel=0.15)
    assert float(output.weight.var()) == pytest.approx(1 / 400, rel=0.2)
    layer, _ = trainer._network(Setting("identity", hidden=400), batch, 2).both
    layer.requires_grad_(False)
    assert np.array_equal(layer.weight_hh_l0, np.eye(400))
    assert float(layer.weight_ih_l0.std()) == pytest.approx(1e-3, rel=0.15)
    assert not layer.bias_ih_l0.any()
    assert not layer.bias_hh_l0.any()


@pytest.mark.parametrize("kind", KINDS.values())
def test_networks_learn_and_do_the_same_again(trainer: TorchTrainer, kind: Kind) -> None:
    import torch

    train, test = waves(40), waves(30, seed=1)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    setting = Setting(kind, hidden=16, learning_rate=0.02, readout="mean")
    longer = torch_trainer(replace(SHORT, updates=120, networks=1))
    judged = longer.judge(setting, train, test)
    assert judged.updates % SHORT.check == 0
    assert judged == longer.judge(setting, train, test)
    labels = longer.predictions(setting, train, replace(test, labels=None))
    assert labels.shape == (1, 30)
    assert (labels == test.labels).mean() > 0.8
    assert np.array_equal(labels, longer.predictions(setting, train, replace(test, labels=None)))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_ends_when_held_out_samples_are_not_learnt_better(trainer: TorchTrainer) -> None:
    """Labels of chance: the best is found early, and the rest of the updates is not made."""
    patient = replace(SHORT, updates=1000, patience=3)
    apart = waves(20, seed=1)
    unlearnable = replace(apart, labels=np.random.default_rng(0).permutation(apart.labels))
    checks: list[int] = []

    class Watched(TorchTrainer):
        def _judged(self, parts: Any, setting: Setting, batch: Any, updates: int) -> Judged:
            checks.append(updates)
            return super()._judged(parts, setting, batch, updates)

    setting = Setting("gru", hidden=8, learning_rate=0.02)
    best = Watched(trainer.torch, patient).judge(setting, waves(), unlearnable)
    assert checks[-1] == best.updates + patient.patience * patient.check < 1000


def test_networks_that_diverge_still_classify(trainer: TorchTrainer) -> None:
    """A rate beyond all reason: the loss is no number soon, and what came before is kept."""
    wild = Setting("identity", hidden=8, learning_rate=1e18)
    judged = trainer.judge(wild, waves(), waves(seed=1))
    assert judged.right >= -1
    labels = trainer.predictions(wild, waves(), replace(waves(seed=1), labels=None))
    assert set(labels.ravel().tolist()) <= {3, 7}


def test_classes_of_one_sample_each_are_learnt_by_heart(trainer: TorchTrainer) -> None:
    single = rd.Sequences.from_arrays(3 * np.eye(4), np.arange(4) + 5)
    setting = Setting("gru", hidden=16, learning_rate=0.05, readout="mean")
    labels = trainer.predictions(setting, single, replace(single, labels=None))
    assert labels.tolist() == [[5, 6, 7, 8]] * 2


def test_batches_are_all_samples_once_in_parts_of_nearly_one_size(trainer: TorchTrainer) -> None:
    small = replace(trainer, training=replace(SHORT, batch=10))
    batch = small._batch(Setting("gru"), waves(24), [3, 7])
    some = small._batches(batch, seed=0)
    first = [next(some) for _ in range(3)]
    assert [len(one) for one in first] == [8, 8, 8]
    firsts = [values[0, 0] for one in first for values in one.values]
    assert np.array_equal(np.sort(firsts), np.sort(batch.values[:, 0, 0]))
    assert next(trainer._batches(batch, seed=0)) is batch


@pytest.mark.slow
@pytest.mark.usefixtures("trainer")
def test_permuted_test_labels_leave_every_choice_of_trained_networks_unchanged(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ucr, "TRAINING", replace(SHORT, updates=40))
    results = ucr.run(root, tmp_path / "one", budget=TINY, parts="networks")
    again = ucr.run(root, tmp_path / "two", budget=TINY, parts="networks")
    others = ucr.run(
        shuffled(root, tmp_path / "shuffled"), tmp_path / "three", budget=TINY, parts="networks"
    )
    assert choices(results) == choices(others)
    accuracies = [r.accuracy for r in results]
    assert accuracies == [r.accuracy for r in again]
    assert accuracies != [r.accuracy for r in others]
    assert max(accuracies) > 0.8
