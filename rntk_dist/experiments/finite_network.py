"""A finite recurrent network in NumPy: its outputs, its tangent kernel, and its training.

The network is that of `docs/mathematics.md`, with every parameter drawn from N(0, 1) and its scale
kept beside it, so that gradient descent on the parameters is what the tangent kernel describes:

    g[l,t] = sigma_w/sqrt(n) W_l h[l,t-1] + sigma_u/sqrt(fan_in) U_l in[l,t] + sigma_b b_l

The gradient of an output with respect to W_l is a sum of outer products over steps,
``sigma_w/sqrt(n) sum_t delta[l,t] h[l,t-1]^T`` with ``delta[l,t] = d f / d g[l,t]``. Products of
the gradients of two sequences are therefore products of vectors,

    sum_{t,t'} <delta_t, delta'_t'> (sigma_w^2/n <h_{t-1}, h'_{t'-1}>
                                     + sigma_u^2/fan_in <in_t, in'_t'> + sigma_b^2),

and no gradient, which is as large as the network, is formed for the kernel. Sequences are laid out
so that all end together: the readouts count steps from the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from rntk_dist.kernel import RNTK
from rntk_dist.sequences import Sequences

type Array = NDArray[np.floating[Any]]
type Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Sequences of m features side by side, ending together at step T - 1.

    Attributes
    ----------
    inputs : (T, count, m), zero before a sequence's first step
    active : (T, count), whether the sequence has the step
    """

    inputs: Array
    active: NDArray[np.bool_]

    @classmethod
    def of(cls, sequences: Sequences, dtype: Any = np.float64) -> Batch:
        """The layout of some sequences."""
        sequences.require_numbers("a finite network")
        steps = int(sequences.lengths.max())
        inputs = np.zeros((steps, len(sequences), sequences.n_features), dtype)
        for s, x in enumerate(sequences):
            inputs[steps - len(x) :, s] = x
        return cls(inputs, np.arange(steps)[:, None] >= steps - sequences.lengths)

    def shares(self, readout: str) -> Float64:
        """(T, count): how much of each state the output of a sequence takes."""
        lengths = self.active.sum(axis=0)
        if readout == "last":
            return np.eye(len(self.active))[:, -1:] * np.ones(len(lengths))
        power = {"per_step": 0.5, "mean": 1.0}[readout]
        return np.where(self.active, lengths**-power, 0.0)


@dataclass
class Layer:
    """Parameters of one layer, as drawn: W (n, n), U (n, fan_in), b (n,); h0 (n,) is no parameter.

    W, U and b change where the network is trained.
    """

    W: Array
    U: Array
    b: Array
    h0: Array


@dataclass(frozen=True)
class Trace:
    """What one pass left of a layer: (T, count, n) each, (T, count, fan_in) for ``fed``.

    Attributes
    ----------
    before : the layer's states one step earlier
    fed : what came in
    g : pre-activations
    """

    before: Array
    fed: Array
    g: Array


@dataclass
class FiniteNetwork:
    """A network of width n, as one draw of its parameters.

    Attributes
    ----------
    kernel : hyper-parameters, and the kernel that the network's own approaches with its width
    layers : from the input up
    V : (steps, n) readout vectors, step 0 the last; of other readouts than "per_step" one
    """

    kernel: RNTK
    layers: list[Layer]
    V: Array

    @classmethod
    def draw(
        cls,
        kernel: RNTK,
        width: int,
        *,
        n_features: int,
        steps: int,
        rng: np.random.Generator,
        dtype: Any = np.float64,
    ) -> FiniteNetwork:
        """A network of fresh parameters for sequences of so many features and at most ``steps``.

        Raises ValueError for a kernel that is not of one network with one initial state.
        """
        _require_one_network(kernel)
        layers = []
        for fan_in in [n_features] + [width] * (kernel.depth - 1):
            shapes = (width, width), (width, fan_in), (width,), (width,)
            layer = Layer(*(rng.standard_normal(shape, dtype) for shape in shapes))
            layer.h0 *= layer.h0.dtype.type(kernel.sigma_h)
            layers.append(layer)
        vectors = steps if kernel.readout == "per_step" else 1
        return cls(kernel, layers, rng.standard_normal((vectors, width), dtype))

    @property
    def width(self) -> int:
        """n."""
        return int(self.V.shape[1])

    def outputs(self, batch: Batch) -> Float64:
        """f (count,)."""
        return self._read(batch, self.forward(batch))

    def tangent_kernel(self, batch: Batch) -> Float64:
        """The products of the gradients of all pairs of outputs, (count, count), in float64."""
        traces = self.forward(batch)
        found = self._readout_part(batch, traces)
        deltas = self.backward(batch, traces)
        for k in range(self.kernel.frozen_layers, len(self.layers)):
            found += self._layer_part(k, traces[k], deltas[k])
        return found

    def descend(self, batch: Batch, targets: Float64, rate: float) -> Float64:
        """One step of gradient descent on ``|f - targets|^2 / 2``; the outputs before it."""
        traces = self.forward(batch)
        outputs = self._read(batch, traces)
        moves = (rate * (outputs - targets)).astype(self.V.dtype)
        deltas = self.backward(batch, traces)
        self._descend_readout(batch, traces, moves)
        for k in range(self.kernel.frozen_layers, len(self.layers)):
            self._descend_layer(k, traces[k], deltas[k] * moves[:, None])
        return outputs

    # -- through time --------------------------------------------------------------------------

    def forward(self, batch: Batch) -> list[Trace]:
        """The traces of all layers, from the input up."""
        traces: list[Trace] = []
        fed = batch.inputs
        for k, layer in enumerate(self.layers):
            traces.append(self._forward_layer(k, layer, fed, batch))
            fed = _phi(self.kernel.activation, traces[-1].g)
        return traces

    def _forward_layer(self, k: int, layer: Layer, fed: Array, batch: Batch) -> Trace:
        recurrent, below, bias = self._scales(k)
        g = below * (fed @ layer.U.T) + bias * layer.b
        before = np.empty_like(g)
        before[0] = layer.h0
        for t in range(len(g)):
            if t > 0:
                # A sequence that has not begun waits in the initial state.
                state = _phi(self.kernel.activation, g[t - 1])
                before[t] = np.where(batch.active[t - 1][:, None], state, layer.h0)
            g[t] += recurrent * (before[t] @ layer.W.T)
        return Trace(before, fed, g)

    def backward(self, batch: Batch, traces: Sequence[Trace]) -> list[Array]:
        """``d f / d g`` of each layer that is trained, (T, count, n); zero before a sequence."""
        deltas: list[Array] = [np.empty(0)] * len(traces)
        direct = self._readout_gradient(batch)
        for k in reversed(range(self.kernel.frozen_layers, len(traces))):
            deltas[k] = self._backward_layer(k, direct, traces[k], batch)
            if k > self.kernel.frozen_layers:
                direct = self._scales(k)[1] * (deltas[k] @ self.layers[k].U)
        return deltas

    def _backward_layer(self, k: int, direct: Array, trace: Trace, batch: Batch) -> Array:
        """From ``d f / d h`` past the layer's own later steps; walks back through time."""
        recurrent, W = self._scales(k)[0], self.layers[k].W
        slopes = _phi_prime(self.kernel.activation, trace.g) * batch.active[..., None]
        delta = np.empty_like(trace.g)
        delta[-1] = direct[-1] * slopes[-1]
        for t in reversed(range(len(delta) - 1)):
            delta[t] = (direct[t] + recurrent * (delta[t + 1] @ W)) * slopes[t]
        return delta

    def _scales(self, k: int) -> tuple[Any, Any, Any]:
        """What multiplies W, U and b in layer k; numbers of the parameters' type."""
        kernel, number = self.kernel, self.V.dtype.type
        fan_in = self.layers[k].U.shape[1]
        recurrent, below = kernel.sigma_w / self.width**0.5, kernel.sigma_u / fan_in**0.5
        return number(recurrent), number(below), number(kernel.sigma_b)

    # -- the readout ---------------------------------------------------------------------------

    def _weighed_shares(self, batch: Batch) -> Array:
        """(T, count, 1): what multiplies <V, h_t> in the output."""
        shares = batch.shares(self.kernel.readout) * (self.kernel.sigma_v / self.width**0.5)
        weighed: Array = shares.astype(self.V.dtype)[..., None]
        return weighed

    def _vectors(self, steps: int) -> Array:
        """(steps, n): the readout vector of each step."""
        return np.broadcast_to(self.V[:steps][::-1], (steps, self.width))

    def _read(self, batch: Batch, traces: Sequence[Trace]) -> Float64:
        weighed = self._weighed_shares(batch) * _phi(self.kernel.activation, traces[-1].g)
        found: Float64 = np.einsum(
            "tcn,tn->c", weighed, self._vectors(len(weighed)), dtype=np.float64
        )
        return found

    def _readout_gradient(self, batch: Batch) -> Array:
        """``d f / d h`` of the top layer, without what passes through later steps."""
        gradient: Array = self._weighed_shares(batch) * self._vectors(len(batch.inputs))[:, None]
        return gradient

    def _readout_features(self, batch: Batch, traces: Sequence[Trace]) -> Array:
        """(vectors, count, n): ``d f / d V``, the vector of the last step first."""
        weighed = self._weighed_shares(batch) * _phi(self.kernel.activation, traces[-1].g)
        if self.kernel.readout == "per_step":
            return weighed[::-1]
        return weighed.sum(axis=0, keepdims=True)

    def _readout_part(self, batch: Batch, traces: Sequence[Trace]) -> Float64:
        features = self._readout_features(batch, traces).astype(np.float64)
        part: Float64 = np.einsum("vin,vjn->ij", features, features, optimize=True)
        return part

    def _descend_readout(self, batch: Batch, traces: Sequence[Trace], moves: Array) -> None:
        features = self._readout_features(batch, traces)
        self.V[: len(features)] -= np.einsum("vcn,c->vn", features, moves)

    # -- one layer's parameters ----------------------------------------------------------------

    def _layer_part(self, k: int, trace: Trace, delta: Array) -> Float64:
        recurrent, below, bias = map(float, self._scales(k))
        features = (
            recurrent**2 * _products(trace.before) + below**2 * _products(trace.fed) + bias**2
        )
        steps, count, _ = delta.shape
        cells = (_products(delta) * features).reshape(steps, count, steps, count)
        part: Float64 = cells.sum(axis=(0, 2))
        return part

    def _descend_layer(self, k: int, trace: Trace, moved: Array) -> None:
        """Steps along minus the gradient, ``moved`` being delta times rate and residual."""
        layer, (recurrent, below, bias) = self.layers[k], self._scales(k)
        rows = _rows(moved)
        layer.W -= (recurrent * rows).T @ _rows(trace.before)
        layer.U -= (below * rows).T @ _rows(trace.fed)
        layer.b -= bias * rows.sum(axis=0)


def _require_one_network(kernel: RNTK) -> None:
    plain = kernel.initial_state == "shared" or kernel.sigma_h == 0
    if kernel.bidirectional or kernel.normalize or not plain:
        raise ValueError(
            f"{kernel} is not the kernel of one network that starts from one state: take one "
            'without bidirectional and normalize, and initial_state "shared"'
        )
    if kernel.readout == "diagonal_authors":
        raise ValueError('no network has the readout "diagonal_authors": take another readout')


def _phi(activation: str, g: Array) -> Array:
    if activation == "linear":
        return g
    values: Array = erf(g) if activation == "erf" else np.maximum(g, 0)
    return values


def _phi_prime(activation: str, g: Array) -> Array:
    if activation == "erf":
        slope: Array = g.dtype.type(2 / np.pi**0.5) * np.exp(-g * g)
        return slope
    return np.ones_like(g) if activation == "linear" else (g > 0).astype(g.dtype)


def _rows(states: Array) -> Array:
    """(T * count, n)."""
    return states.reshape(-1, states.shape[-1])


def _products(states: Array) -> Float64:
    """<a, b> of all pairs of steps and sequences, summed in float64: (T * count, T * count)."""
    rows = _rows(states).astype(np.float64)
    products: Float64 = rows @ rows.T
    return products
