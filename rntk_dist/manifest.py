"""What a store holds: its identity, guarded by a SHA-256, and how it came about."""

from __future__ import annotations

import hashlib
import json
import platform
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import zarr

from rntk_dist.plan import Plan

FORMAT = 2
"""Of a store of one matrix."""

NEIGHBORS_FORMAT = 4
"""Of a store of nearest neighbours."""

SWEEP_FORMAT = 3
"""Of a store of many kernels' matrices, which versions that know only the former must not touch."""

NEWEST_FORMAT = max(FORMAT, NEIGHBORS_FORMAT, SWEEP_FORMAT)
"""Of any store that this version can know."""

type Kind = Literal["ntk", "nngp"]


class IdentityError(ValueError):
    """The store holds another matrix than was asked for; the message lists what differs."""


class StoreFormatError(ValueError):
    """The location holds no Gram store that this version reads; the message says what it is."""


class CreationBegunError(StoreFormatError):
    """A creation of the store has begun: it goes on in another process, or was interrupted."""


class SweepFoundError(StoreFormatError):
    """The store holds a sweep, where one matrix was asked for."""


class NeighborsFoundError(StoreFormatError):
    """The store holds nearest neighbours, where matrices were asked for."""


@dataclass(frozen=True)
class Manifest:
    """What a store holds. `provenance` takes no part in comparisons.

    `kernel` is the kernel's JSON-able dict, `kind` "ntk" or "nngp", `fingerprint_y` None for a
    symmetric matrix.
    """

    kernel: Mapping[str, Any]
    kind: Kind
    plan: Plan
    fingerprint: str
    fingerprint_y: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False)

    format: ClassVar[int] = FORMAT
    dimensions: ClassVar[tuple[str, ...]] = ("row", "col")  # as in Gram.to_xarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored array."""
        return self.plan.shape

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Of the stored array's chunks, a tile each."""
        return self.plan.chunk_shape

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """Either float32 or float64."""
        return np.dtype(np.float32 if self.plan.itemsize == 4 else np.float64)

    @property
    def stored_dtype(self) -> np.dtype[np.floating[Any]]:
        """Of the stored array."""
        return self.dtype

    def identity(self) -> dict[str, Any]:
        """The JSON-able part that is compared."""
        return {
            "kernel": dict(self.kernel),
            "kind": self.kind,
            "dtype": self.dtype.name,
            "plan": self.plan.to_dict(),
            "fingerprint": self.fingerprint,
            "fingerprint_y": self.fingerprint_y,
        }

    def identity_sha256(self) -> str:
        """SHA-256, in hex, of the identity as canonical JSON."""
        return _sha256(self.identity())

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the group's attributes."""
        return {
            "format": self.format,
            "identity": self.identity(),
            "identity_sha256": self.identity_sha256(),
            "provenance": dict(self.provenance),
        }

    def differences(self, other: Manifest) -> list[str]:
        """A line for each field of the identity that `other` has otherwise."""
        stored, given = _flat(self.identity()), _flat(other.identity())
        return [
            f"  {name}: stored {stored.get(name)!r}, given {given.get(name)!r}"
            for name in {**stored, **given}
            if stored.get(name) != given.get(name)
        ]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_dict`."""
        identity = data["identity"]
        return cls(
            kernel=identity["kernel"],
            kind=identity["kind"],
            plan=Plan.from_dict(identity["plan"]),
            fingerprint=identity["fingerprint"],
            fingerprint_y=identity["fingerprint_y"],
            provenance=data["provenance"],
        )


def versions() -> dict[str, str]:
    """Versions of what computes and stores here."""
    return {
        "rntk_dist": _own_version(),
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "python": platform.python_version(),
    }


@cache
def _own_version() -> str:
    return version("rntk_dist")  # which reads a file: as long as a small tile takes to compute


def provenance(**extra: str) -> dict[str, str]:
    """Versions, host and time, with `extra` (for example the backend) added."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {**versions(), "host": socket.gethostname(), "created": created, **extra}


def read_manifest(where: str, data: Any) -> Manifest:
    """The manifest of a matrix in a group's attributes; `where` is the store's place, in messages.

    Raises StoreFormatError for anything but a whole manifest that this version reads,
    SweepFoundError for that of a sweep, NeighborsFoundError for that of nearest neighbours.
    """
    refuse_neighbors(where, data)
    if _is_sweep(data):
        raise SweepFoundError(
            f"{where} holds a sweep of many kernels, not one Gram matrix: rd.open_sweep reads it, "
            "rd.sweep goes on with it; for a Gram matrix choose another store"
        )
    read_identity(where, data, FORMAT)
    return decoded(where, data, Manifest.from_dict)


def refuse_neighbors(where: str, data: Any) -> None:
    """Raise NeighborsFoundError if this is the manifest of nearest neighbours."""
    if isinstance(data, dict) and "k" in data.get("identity", {}).get("plan", {}):
        raise NeighborsFoundError(
            f"{where} holds nearest neighbours, no Gram matrix: rd.open_neighbors reads them, "
            "rd.neighbors goes on with them; for matrices choose another store"
        )


def _is_sweep(data: Any) -> bool:
    """Of a format that may become newer: what it is shows in any."""
    return isinstance(data, dict) and "kernels" in data.get("identity", {})


def read_identity(where: str, data: Any, newest: int) -> Mapping[str, Any]:
    """What a manifest up to the format `newest` identifies; its SHA-256 is checked.

    Raises StoreFormatError as `read_manifest`.
    """
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise StoreFormatError(
            f"{where} is a Zarr group, but not a Gram store: choose another store"
        )
    if data["format"] > newest:
        raise StoreFormatError(
            f"{where} has format {data['format']}, this version reads up to {newest}: "
            "upgrade rntk_dist"
        )
    if "identity" not in data:
        raise CreationBegunError(
            f"{where} is a Gram store whose creation was interrupted; it holds no results: "
            "rd.gram creates it anew where one process can hold it (a local path, s3://), else "
            "delete it"
        )
    _check_hash(where, data)
    identity: Mapping[str, Any] = data["identity"]
    return identity


def decoded[M: Manifest](
    where: str, data: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], M]
) -> M:
    """The manifest that `decode` makes; raises StoreFormatError if that cannot be."""
    try:
        return decode(data)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreFormatError(f"{where}: its manifest is damaged: {error}") from error


def _check_hash(where: str, data: Mapping[str, Any]) -> None:
    """Refuse an identity that is not the one its SHA-256 was made of; format 1 had none."""
    stored = data.get("identity_sha256")
    if stored is None and data["format"] == 1:
        return
    found = _sha256(data["identity"])
    if found != stored:
        raise StoreFormatError(
            f"{where}: its manifest was altered or damaged: the identity has SHA-256 "
            f"{found}, stored is {stored}; put zarr.json back as it was or choose another store"
        )


def _sha256(identity: Mapping[str, Any]) -> str:
    """Of canonical JSON: sorted keys, no spaces, floats by the digits that give them back."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, with values as they come back from JSON."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat
