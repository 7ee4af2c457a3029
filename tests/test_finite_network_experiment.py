"""The experiments' finite network: kernel and descent against differences of its own outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from network import Network

import rntk_dist as rd
from rntk_dist.experiments.finite_network import Batch, FiniteNetwork

WEIGHTS = dict(sigma_w=1.2, sigma_u=0.9, sigma_b=0.3, sigma_h=0.7, sigma_v=1.1)


def sequences(m: int = 2) -> rd.Sequences:
    rng = np.random.default_rng(3)
    return rd.Sequences.from_arrays([rng.normal(size=(steps, m)) for steps in (3, 1, 4, 4)])


def drawn(kernel: rd.RNTK, width: int = 5, seed: int = 0) -> FiniteNetwork:
    rng = np.random.default_rng(seed)
    return FiniteNetwork.draw(kernel, width, n_features=2, steps=4, rng=rng)


def parameters(network: FiniteNetwork) -> Iterator[np.ndarray]:
    """All that are trained."""
    yield network.V
    for layer in network.layers[network.kernel.frozen_layers :]:
        yield from (layer.W, layer.U, layer.b)


def output_gradients(network: FiniteNetwork, batch: Batch) -> np.ndarray:
    """(count, parameters), by central differences."""
    step, columns = 1e-6, []
    for array in parameters(network):
        for index in np.ndindex(*array.shape):
            value, ends = array[index], []
            for sign in (1, -1):
                array[index] = value + sign * step
                ends.append(network.outputs(batch))
            array[index] = value
            columns.append((ends[0] - ends[1]) / (2 * step))
    return np.array(columns).T


KERNELS = [
    rd.RNTK(activation=activation, depth=depth, readout=readout, frozen_layers=frozen, **WEIGHTS)
    for activation, depth, readout, frozen in [
        ("relu", 1, "last", 0),
        ("erf", 1, "per_step", 0),
        ("erf", 2, "mean", 0),
        ("relu", 2, "per_step", 1),
        ("linear", 2, "last", 2),
    ]
]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.activation}-{k.depth}-{k.readout}")
def test_the_kernel_is_that_of_explicit_gradients(kernel: rd.RNTK) -> None:
    network, batch = drawn(kernel), Batch.of(sequences())
    gradients = output_gradients(network, batch)
    found = network.tangent_kernel(batch)
    np.testing.assert_allclose(found, gradients @ gradients.T, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k.activation}-{k.depth}-{k.readout}")
def test_descent_moves_against_the_gradient_of_the_loss(kernel: rd.RNTK) -> None:
    network, batch = drawn(kernel), Batch.of(sequences())
    targets, rate = np.array([1.0, -1.0, 0.5, 0.0]), 0.01
    expected = rate * (network.outputs(batch) - targets) @ output_gradients(network, batch)
    before = np.concatenate([array.ravel().copy() for array in parameters(network)])
    outputs = network.outputs(batch)
    assert np.array_equal(network.descend(batch, targets, rate), outputs)
    after = np.concatenate([array.ravel() for array in parameters(network)])
    np.testing.assert_allclose(before - after, expected, rtol=1e-6, atol=1e-10)


def test_a_sequence_does_not_depend_on_those_beside_it() -> None:
    network = drawn(KERNELS[2])
    together = network.outputs(Batch.of(sequences()))
    alone = [network.outputs(Batch.of(sequences()[i : i + 1]))[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("readout", ["last", "per_step", "mean"])
def test_wide_networks_agree_with_the_kernel_and_with_another_program(readout: str) -> None:
    """The mean over 30 networks, and the spread of the tests' own network."""
    kernel = rd.RNTK(depth=2, readout=readout, **WEIGHTS)
    batch, exact = Batch.of(sequences()), kernel(sequences())
    found = np.array([drawn(kernel, 150, seed).tangent_kernel(batch) for seed in range(30)])
    reference = Network(150, depth=2, **WEIGHTS)
    place = ("last", "per_step", "mean").index(readout)
    others = np.array(
        [
            reference.kernel_parts(list(sequences()), np.random.default_rng([7, seed]))[place].sum(
                0
            )
            for seed in range(30)
        ]
    )
    error = found.std(axis=0, ddof=1) / 30**0.5
    assert np.all(np.abs(found.mean(axis=0) - exact) < 5 * error + 0.03 * exact.max())
    assert error.max() < 0.1 * exact.max()
    ratio = found.std(axis=0).sum() / others.std(axis=0).sum()
    assert 0.5 < ratio < 2


def test_float32_is_the_same_network_rounded() -> None:
    kernel, batch, rng = KERNELS[0], sequences(), np.random.default_rng(0)
    single = FiniteNetwork.draw(kernel, 64, n_features=2, steps=4, rng=rng, dtype=np.float32)
    wide = drawn(kernel, 64)
    for array, other in zip(parameters(wide), parameters(single), strict=True):
        array[...] = other
    wide.layers[0].h0[...] = single.layers[0].h0
    exact = wide.tangent_kernel(Batch.of(batch))
    rounded = single.tangent_kernel(Batch.of(batch, np.float32))
    assert rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=1e-4 * exact.max())


def test_kernels_of_no_single_network_are_refused() -> None:
    rng = np.random.default_rng(0)
    for options in ({"bidirectional": True}, {"normalize": True}):
        with pytest.raises(ValueError, match="not the kernel of one network that starts from one"):
            FiniteNetwork.draw(rd.RNTK(**options), 4, n_features=1, steps=1, rng=rng)
    own = replace(KERNELS[0], initial_state="independent")
    with pytest.raises(ValueError, match="take one without"):
        FiniteNetwork.draw(own, 4, n_features=1, steps=1, rng=rng)
    with pytest.raises(ValueError, match="no network has the readout"):
        FiniteNetwork.draw(rd.RNTK(readout="diagonal_authors"), 4, n_features=1, steps=1, rng=rng)
