"""A finite recurrent network by hand in NumPy, and its empirical kernels.

    g[l,t] = sigma_w/sqrt(n) W_l h[l,t-1] + sigma_u/sqrt(fan_in) U_l in[l,t] + sigma_b b_l
    h[l,t] = phi(g[l,t]);  in[1,t] = x_t, in[l,t] = h[l-1,t];  h[l,0] = sigma_h N(0, I), not trained

Every parameter is N(0, 1). The readouts of one network:

    last      f = sigma_v/sqrt(n)   V_0 h[L,T]
    mean      f = sigma_v/sqrt(n)   (1/T) sum_t V_0 h[L,t]
    per_step  f = sigma_v/sqrt(n T) sum_i V_i h[L,T-i]

Gradients are never formed. With delta[l,t] = df/dg[l,t], the gradient with respect to W_l is the
sum over t of sigma_w/sqrt(n) delta[l,t] h[l,t-1]^T, and likewise for U_l and b_l, so layer l adds

    sum_{t,t'} <delta_t, delta'_t'> (sigma_w^2/n <h_{t-1}, h'_{t'-1}>
                                     + sigma_u^2/fan_in <in_t, in'_t'> + sigma_b^2)

to the tangent kernel of two sequences, and V adds sigma_v^2/n <h, h'>, which is also the empirical
NNGP kernel given the network below V. Weights and states are float32, every sum of the kernel is
float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray[Any, np.dtype[Any]]
READOUTS = ("last", "per_step", "mean")


def phi(activation: str, g: Array) -> Array:
    if activation == "relu":
        return np.maximum(g, 0)
    return erf(g) if activation == "erf" else g


def phi_prime(activation: str, g: Array) -> Array:
    if activation == "relu":
        return (g > 0).astype(g.dtype)
    if activation == "erf":
        return (2 / np.sqrt(np.pi) * np.exp(-g * g)).astype(g.dtype)
    return np.ones_like(g)


@dataclass(frozen=True)
class Network:
    """The hyper-parameters of section 1 of the theory, and a width."""

    width: int
    depth: int = 1
    activation: str = "relu"
    sigma_w: float = 2**0.5
    sigma_u: float = 1.0
    sigma_b: float = 0.0
    sigma_h: float = 0.0
    sigma_v: float = 1.0
    initial_state: str = "shared"

    def kernel_parts(self, sequences: Sequence[Array], rng: np.random.Generator) -> Array:
        """Draw one network; what its parameters add to the tangent kernels of all pairs.

        Shape (3, depth + 1, n, n): readouts in the order READOUTS; layers 1..depth, then V.
        """
        lengths = [len(x) for x in sequences]
        inputs = np.zeros((max(lengths), len(sequences), sequences[0].shape[1]), np.float32)
        for s, x in enumerate(sequences):
            inputs[: len(x), s] = x
        weights = [self._draw_layer(layer, inputs, rng) for layer in range(self.depth)]
        g, h = self._forward(weights, inputs)
        v = rng.standard_normal((max(lengths), self.width), np.float32)
        delta = self._backward(weights, g, v, lengths)
        parts = np.zeros((len(READOUTS), self.depth + 1, len(lengths), len(lengths)))
        for layer in range(self.depth):
            fed = inputs if layer == 0 else h[layer - 1, 1:]
            features = (
                self.sigma_w**2 / self.width * gram(h[layer, :-1])
                + self.sigma_u**2 / fed.shape[-1] * gram(fed)
                + self.sigma_b**2
            )
            for r in range(len(READOUTS)):
                parts[r, layer] = (gram(delta[layer, :, r]) * features).sum(axis=(0, 2))
        parts[:, self.depth] = self._readout_part(gram(h[-1, 1:]), lengths)
        return parts

    def _draw_layer(self, layer: int, inputs: Array, rng: np.random.Generator) -> dict[str, Array]:
        """The terms of g as scaled matrices, and the initial state of every sequence."""
        n, (_, count, m) = self.width, inputs.shape
        fan_in = m if layer == 0 else n
        own = count if self.initial_state == "independent" else 1
        start = self.sigma_h * rng.standard_normal((own, n), np.float32)
        return dict(
            w=np.float32(self.sigma_w / n**0.5) * rng.standard_normal((n, n), np.float32),
            u=np.float32(self.sigma_u / fan_in**0.5) * rng.standard_normal((n, fan_in), np.float32),
            b=np.float32(self.sigma_b) * rng.standard_normal(n, np.float32),
            h0=np.broadcast_to(start, (count, n)),
        )

    def _forward(self, weights: list[dict[str, Array]], inputs: Array) -> tuple[Array, Array]:
        """g (depth, T, sequences, n) and h (depth, T + 1, sequences, n), h[:, 0] the initial state.

        All start together; a sequence that has ended runs on over zeros, which nobody reads.
        """
        steps, count, _ = inputs.shape
        g = np.zeros((self.depth, steps, count, self.width), np.float32)
        h = np.zeros((self.depth, steps + 1, count, self.width), np.float32)
        for layer, p in enumerate(weights):
            h[layer, 0] = p["h0"]
            for t in range(steps):
                fed = inputs[t] if layer == 0 else h[layer - 1, t + 1]
                g[layer, t] = h[layer, t] @ p["w"].T + fed @ p["u"].T + p["b"]
                h[layer, t + 1] = phi(self.activation, g[layer, t])
        return g, h

    def _backward(
        self, weights: list[dict[str, Array]], g: Array, v: Array, lengths: list[int]
    ) -> Array:
        """delta[l, t] = df/dg[l, t] of every readout: (depth, T, readouts, sequences, n)."""
        depth, steps, count, n = g.shape
        delta = np.zeros((depth, steps, len(READOUTS), count, n), np.float32)
        for t in reversed(range(steps)):
            for layer in reversed(range(depth)):
                dh = np.zeros((len(READOUTS), count, n), np.float32)
                if layer == depth - 1:
                    dh += self._readout_gradient(v, t, lengths)
                else:
                    dh += delta[layer + 1, t] @ weights[layer + 1]["u"]
                if t + 1 < steps:
                    dh += delta[layer, t + 1] @ weights[layer]["w"]
                delta[layer, t] = dh * phi_prime(self.activation, g[layer, t])
        return delta

    def _readout_gradient(self, v: Array, t: int, lengths: list[int]) -> Array:
        """df/dh[L, t] that does not pass through later steps: (readouts, sequences, n)."""
        last, per_step, mean = dh = np.zeros((len(READOUTS), len(lengths), self.width), np.float32)
        for s, length in enumerate(lengths):
            from_end = length - 1 - t
            if from_end == 0:
                last[s] = v[0]
            if from_end >= 0:
                mean[s] = v[0] / length
                per_step[s] = v[from_end] / length**0.5
        return dh * np.float32(self.sigma_v / self.width**0.5)

    def _readout_part(self, products: Array, lengths: list[int]) -> Array:
        """What V adds, from <h_t, h'_t'> as (t, s, t', s')."""
        part = np.zeros((len(READOUTS), len(lengths), len(lengths)))
        for i, n in enumerate(lengths):
            for j, n2 in enumerate(lengths):
                cells = products[:n, i, :n2, j]
                aligned = sum(cells[n - 1 - k, n2 - 1 - k] for k in range(min(n, n2)))
                part[:, i, j] = cells[-1, -1], aligned / (n * n2) ** 0.5, cells.mean()
        return self.sigma_v**2 / self.width * part


def gram(states: Array) -> Array:
    """<a[t, s], a[t', s']> as (t, s, t', s'), summed in float64."""
    flat = states.reshape(-1, states.shape[-1]).astype(np.float64)
    return (flat @ flat.T).reshape(*states.shape[:-1], *states.shape[:-1])
