"""What all estimators share: a kernel among their parameters, and where its values come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator

from rntk_dist.computed import Computed
from rntk_dist.estimators.inputs import sequences_of
from rntk_dist.estimators.sources import StoredGram
from rntk_dist.estimators.values import KernelValues
from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind
from rntk_dist.sequences import Sequences

_NESTED = "kernel__"


class KernelEstimator(BaseEstimator):  # type: ignore[misc]
    """An estimator on RNTK values.

    The kernel is frozen; ``set_params(kernel__sigma_w=1.3)`` puts another in its place, with that
    option changed. So a grid may name ``kernel__`` and any option of `RNTK`.
    """

    def __init__(
        self,
        kernel: RNTK | None,
        *,
        kind: Kind,
        dtype: DType,
        backend: Backend,
        store: str | Path | None,
        memory: str | Path | None,
    ) -> None:
        self.kernel = kernel
        self.kind = kind
        self.dtype = dtype
        self.backend = backend
        self.store = store
        self.memory = memory

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; deep: with the kernel's options as ``kernel__<option>``."""
        params: dict[str, Any] = super().get_params(deep=deep)
        kernel = RNTK() if self.kernel is None else self.kernel
        if deep and isinstance(kernel, RNTK):
            params |= {_NESTED + name: value for name, value in kernel.to_dict().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, and options of the kernel as ``kernel__<option>``.

        Raises ValueError for unknown names, and what `RNTK` raises for options it does not take.
        """
        options = {k: v for k, v in params.items() if k.startswith(_NESTED)}
        super().set_params(**{k: v for k, v in params.items() if k not in options})
        if options:
            changed = {k.removeprefix(_NESTED): v for k, v in options.items()}
            self.kernel = RNTK.from_dict(_given(self.kernel).to_dict() | changed)
        return self

    def _begin(self, X: Any) -> Sequences:
        """The training samples, checked; from here on the parameters are no longer looked at."""
        sequences = sequences_of(self, X, reset=True)
        self.values_ = KernelValues(
            _given(self.kernel), self.kind, self.dtype, self.backend, self.store, self.memory
        )
        if self.kernel is None and self.store is not None:
            stored = StoredGram.of(self.store, None, self.kind)
            self.values_ = replace(self.values_, kernel=stored.gram.kernel)
        self.kernel_ = self.values_.kernel
        return sequences

    def _computed(self, X: Sequences) -> Computed:
        """The kernel of samples, never held whole; what store and memory know is not read."""
        return Computed(self.kernel_, X, kind=self.kind, dtype=self.dtype, backend=self.backend)


def _given(kernel: RNTK | None) -> RNTK:
    if kernel is None:
        return RNTK()
    if not isinstance(kernel, RNTK):
        raise TypeError(f"kernel is {kernel!r}: give an RNTK, or None for RNTK()")
    return kernel
