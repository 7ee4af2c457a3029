"""The infinitely wide network, trained for a time: the mean and covariance of its outputs.

Before training the outputs f_0 are a Gaussian process with the NNGP kernel K. Gradient flow on

    |f(X) - y|^2 / 2 + alpha |parameters - those before training|^2 / 2

with a learning rate eta moves them, with the tangent kernel Theta and M = Theta(X, X) + alpha I, to

    f_t(x) = f_0(x) + A_t(x) (y - f_0(X)),   A_t(x) = Theta(x, X) M^-1 (1 - exp(-eta t M)),

so that over the draws of the initial parameters f_t is a Gaussian process, too:

    mean        A_t(x) y
    covariance  K(x, x') + A_t(x) K(X, X) A_t(x')' - A_t(x) K(X, x') - K(x, X) A_t(x')'

(Lee et al., Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent, 2019,
equations 14 to 16, there with alpha = 0). It is no Bayesian posterior, unless only the readout is
trained: then Theta = K, and for t = inf and alpha = 0 the two agree.

The loss is the sum over samples, so s steps of gradient descent of a small size are s of size eta,
and only eta t matters. A loss that is the mean over n samples and k targets, as that of
neural-tangents, has the same course with a learning rate n k times as large: theirs, divided by
n k, is the one to give here.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh

from rntk_dist.operators import Operator
from rntk_dist.solve.memory import require_room, whole
from rntk_dist.solve.posterior import Seed, deviations, draws, own_diagonal, own_square
from rntk_dist.solve.systems import (
    Float64,
    across_of,
    not_positive,
    operator_of,
    require_training,
    rounding,
    targets_of,
)

_FIT_WAY_OUT = (
    "fit on fewer samples; the mean for t = inf alone is that of KernelRidge on the tangent "
    "kernel, which also solves on disk and by iteration"
)

_PREDICT_WAY_OUT = "ask for fewer times or samples at once"


class TrainedNetwork:
    """An infinitely wide network under gradient flow, from its two Gram matrices.

    Parameters
    ----------
    alpha : float
        What keeps the parameters near their initial values; at least 0. For t = inf the mean is
        kernel ridge regression with this alpha.
    learning_rate : float
        Eta, which multiplies every time.
    memory : int, optional
        Bytes that this process may take in all; by default what it has and half of what is free.

    After `fit`: `eigenvalues_` (n,) of Theta(X, X), increasing, and `eigenvectors_` (n, n) in
    columns; all times share them.

    >>> import numpy as np
    >>> theta, K = np.array([[2.0, 1.0], [1.0, 2.0]]), np.eye(2)
    >>> network = TrainedNetwork().fit(theta, [1.0, 0.0], nngp=K)
    >>> network.predict(theta, [0.0, 1.0, np.inf]).round(3) + 0.0
    array([[0.   , 0.   ],
           [0.791, 0.159],
           [1.   , 0.   ]])
    """

    def __init__(
        self, alpha: float = 0.0, *, learning_rate: float = 1.0, memory: int | None = None
    ) -> None:
        _require_least("alpha", alpha, positive=False)
        _require_least("learning_rate", learning_rate, positive=True)
        self.alpha, self.learning_rate, self.memory = alpha, learning_rate, memory

    def fit(
        self, ntk: Operator | ArrayLike, y: ArrayLike, nngp: Operator | ArrayLike | None = None
    ) -> Self:
        """Decompose Theta(X, X).

        Takes 16 n^2 bytes and some 9 n^3 operations. Means need no more.

        Parameters
        ----------
        ntk : Operator or (n, n) array
            Symmetric: Theta(X, X) of the training samples.
        y : (n,) or (n, targets) array
        nngp : Operator or (n, n) array, optional
            K(X, X), for standard deviations and covariances. It is not read here.

        Raises
        ------
        NotPositiveDefiniteError
            Theta(X, X) + alpha I has an eigenvalue further below 0 than rounding explains.
        SolverMemoryError
            The decomposition does not fit into the memory.
        ValueError
            Shapes do not fit each other.
        """
        self._ntk, self._targets = operator_of(ntk), targets_of(y)
        require_training(self._ntk, self._targets)
        self._nngp = None if nngp is None else operator_of(nngp)
        if self._nngp is not None:
            require_training(self._nngp, self._targets)
        n = len(self._targets)
        needed = 8 * n * (2 * n + 2 * min(self._ntk.edge, n))
        require_room(needed, self.memory, f"the eigenvectors of {n} samples", _FIT_WAY_OUT)
        theta = whole(self._ntk)
        self._scale = float(theta.diagonal().max())
        # LAPACK overwrites what is in Fortran's order; the transpose of a symmetric array is.
        self.eigenvalues_, self.eigenvectors_ = eigh(theta.T, overwrite_a=True, driver="evr")
        self._require_positive(-rounding(self._ntk, self._scale))
        return self

    def predict(
        self,
        X: Operator | ArrayLike,
        t: ArrayLike = np.inf,
        return_std: bool = False,
        return_cov: bool = False,
        *,
        nngp: Operator | ArrayLike | None = None,
        diagonal: ArrayLike | None = None,
        square: Operator | ArrayLike | None = None,
    ) -> Float64 | tuple[Float64, Float64]:
        """The outputs for m new samples at time t, over the draws of the initial parameters.

        Parameters
        ----------
        X : Operator or (m, n) array
            Theta of the new samples with the training samples.
        t : float or (times,) array
            At least 0; np.inf is what training converges to.
        return_std, return_cov : bool
            Whether to return standard deviations, or covariances, too.
        nngp : Operator or (m, n) array
            K of the new samples with the training samples, for both of these.
        diagonal : (m,) array
            K of each new sample with itself, for standard deviations.
        square : Operator or (m, m) array
            K of the new samples with each other, for covariances; it will do for standard
            deviations.

        Returns
        -------
        mean : ([times, ]m[, targets]) array
        deviation or covariance : ([times, ]m) or ([times, ]m, m) array, if asked for
            The same for every target; outputs are independent of each other.

        Raises
        ------
        NotPositiveDefiniteError
            t is np.inf, and Theta(X, X) + alpha I has no inverse.
        SolverMemoryError
            (times, m, n) weights, or covariances, do not fit into the memory.
        ValueError
            What is asked for needs more, t is negative, or shapes do not fit.
        """
        if return_std and return_cov:
            raise ValueError("found return_std and return_cov: ask for one of them")
        across = across_of(X, len(self._targets))
        modes = self._modes(across, _times(t))
        mean = self._shaped(self._moved(modes, self._targets), t)
        if return_std:
            prior = own_diagonal(diagonal, square, len(across))
            weights, changes = self._changes(modes, nngp)
            variances = prior + 2 * np.einsum("tmn,tnm->tm", weights, changes)
            return mean, self._shaped(deviations(variances, prior), t)
        if return_cov:
            return mean, self._shaped(self._covariances(modes, nngp, square), t)
        return mean

    def predict_from(
        self, X: Operator | ArrayLike, t: ArrayLike, *, training: ArrayLike, new: ArrayLike
    ) -> Float64:
        """The outputs at time t of one network, whose outputs before training are known.

        Parameters
        ----------
        X : Operator or (m, n) array
            Theta of the new samples with the training samples.
        t : float or (times,) array
            At least 0; np.inf is what training converges to.
        training : (n,) or (n, targets) array
            The outputs f_0(X) for the training samples.
        new : (m,) or (m, targets) array
            Those for the new samples.

        Returns
        -------
        ([times, ]m[, targets]) array

        Raises what `predict` raises.
        """
        across, times = across_of(X, len(self._targets)), _times(t)
        start, others = np.asarray(training, np.float64), np.asarray(new, np.float64)
        wanted = self._targets.shape, (len(across), *self._targets.shape[1:])
        if (start.shape, others.shape) != wanted:
            raise ValueError(
                f"found outputs before training of shapes {start.shape} and {others.shape}: give "
                f"them for the training samples, {wanted[0]}, and for the new ones, {wanted[1]}"
            )
        moved = self._moved(self._modes(across, times), self._targets - start)
        return self._shaped(moved + others, t)

    def sample_y(
        self,
        X: Operator | ArrayLike,
        t: float = np.inf,
        n_samples: int = 1,
        random_state: Seed = 0,
        *,
        nngp: Operator | ArrayLike,
        square: Operator | ArrayLike,
    ) -> Float64:
        """Outputs of so many networks, each trained to time t.

        Returns (m, n_samples) or (m, targets, n_samples). Arguments and errors are those of
        `predict`.
        """
        modes = self._modes(across_of(X, len(self._targets)), _times(float(t)))
        covariance = self._covariances(modes, nngp, square)[0]
        return draws(self._moved(modes, self._targets)[0], covariance, n_samples, random_state)

    # -- the eigenvectors' way -----------------------------------------------------------------

    def _modes(self, across: Operator, times: Float64) -> Float64:
        """Theta(x, X) Q (1 - exp(-eta t L)) / L, (times, m, n), where M = Q L Q'."""
        n = len(self._targets)
        what = f"weights of {len(times)} times, {len(across)} new and {n} training samples"
        needed = 8 * len(across) * n * (3 * len(times) + 2)
        require_room(needed, self.memory, what, _PREDICT_WAY_OUT)
        return across.product(self.eigenvectors_) * self._gains(times)[:, None]

    def _gains(self, times: Float64) -> Float64:
        """(1 - exp(-eta t rate)) / rate (times, n) for each eigenvalue of M; eta t for one of 0."""
        if np.isinf(times).any():
            self._require_positive(len(self._ntk) * np.finfo(np.float64).eps * self._scale)
        rates = np.maximum(self.eigenvalues_ + self.alpha, 0.0)
        passed = (self.learning_rate * times)[:, None]
        limit = np.broadcast_to(passed, (len(times), len(rates))).copy()
        return np.divide(-np.expm1(-passed * rates), rates, out=limit, where=rates > 0)

    def _moved(self, modes: Float64, left: Float64) -> Float64:
        """A(t) times what is left of the targets before training: (times, m[, targets])."""
        along = self.eigenvectors_.T @ left.reshape(len(left), -1)
        return (modes @ along).reshape(*modes.shape[:2], *left.shape[1:])

    def _covariances(
        self,
        modes: Float64,
        nngp: Operator | ArrayLike | None,
        square: Operator | ArrayLike | None,
    ) -> Float64:
        """(times, m, m)."""
        count, m, n = modes.shape
        what = f"covariances of {count} times and {m} new samples"
        needed = 8 * m * (n * (2 * count + 1) + m * (3 * count + 1))
        require_room(needed, self.memory, what, _PREDICT_WAY_OUT)
        prior = own_square(square, m)
        weights, changes = self._changes(modes, nngp)
        half = weights @ changes
        return prior + half + half.swapaxes(1, 2)

    def _changes(
        self, modes: Float64, nngp: Operator | ArrayLike | None
    ) -> tuple[Float64, Float64]:
        """A(t), (times, m, n), and K(X, X) A(t)' / 2 - K(X, x), (times, n, m).

        Their product is half of what training adds to the covariance; its transpose is the rest.
        """
        if nngp is None or self._nngp is None:
            raise ValueError(
                "standard deviations and covariances are those of the network before training, "
                "moved on: give nngp, to fit of the training samples and to predict of the new ones"
            )
        count, m, n = modes.shape
        across = across_of(nngp, n)
        if len(across) != m:
            raise ValueError(
                f"found nngp of {len(across)} new samples, and a tangent kernel of {m}: give both "
                "of the same samples"
            )
        weights = modes @ self.eigenvectors_.T
        # In place, for this is as large as all that has been made.
        changes = self._nngp.product(weights.reshape(count * m, n).T).reshape(n, count, m)
        changes *= 0.5
        changes -= across[:, :].T[:, None]
        return weights, changes.swapaxes(0, 1)

    def _shaped(self, values: Float64, t: ArrayLike) -> Float64:
        """Without the axis of times if t is one number."""
        return values if np.ndim(t) else values[0]

    def _require_positive(self, least: float) -> None:
        """Raise NotPositiveDefiniteError unless all eigenvalues of M are above `least`."""
        smallest = float(self.eigenvalues_[0])
        if smallest + self.alpha <= least:
            where = f"which shows in an eigenvalue of {smallest:.1e}"
            lift = max(-smallest, 0.0) + rounding(self._ntk, self._scale)
            raise not_positive(self._ntk, self.alpha, where, lift)


def _times(t: ArrayLike) -> Float64:
    """(times,); raises ValueError for several axes, or a time that is negative or NaN."""
    times = np.atleast_1d(np.asarray(t, np.float64))
    if times.ndim > 1 or not (times >= 0).all():
        raise ValueError(
            f"found times of shape {times.shape}, least {times.min()}: give numbers of at least 0, "
            "or np.inf"
        )
    return times


def _require_least(name: str, value: float, *, positive: bool) -> None:
    """Raise ValueError unless the value is finite and at least 0, or above 0."""
    if not np.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"{name} is {value}: give a finite number {bound}")
