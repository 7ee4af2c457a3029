"""Job files: what is to be computed, of which sequences, into which store, in TOML or YAML.

[kernel]                  # the fields of RNTK; those left out have its defaults
depth = 2
sigma_w = 1.3

[data]                    # paths relative to the job file, or URLs
x = "train.tsv"
y = "test.tsv"            # only for a rectangular matrix

[run]
store = "gram.zarr"
kind = "ntk"
dtype = "float64"
tile = 512
backend = "auto"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import tomli_w
import yaml

from rntk_dist.kernel.rntk import RNTK, Backend, DType, Kind, check_run_options
from rntk_dist.sequences import Sequences
from rntk_dist.store import GramStore, show

SUFFIXES = (".toml", ".yaml", ".yml")

_DATA = ("x", "y")
_RUN = ("store", "kind", "dtype", "tile", "backend")


class JobFileError(ValueError):
    """A job file cannot be used; the message says where, and what is expected."""


@dataclass(frozen=True)
class JobFile:
    """One Gram matrix to compute; checks itself, and round-trips to a dict of three tables.

    Parameters
    ----------
    kernel : RNTK
        The kernel and its hyper-parameters.
    x : str
        File or store of the sequences of the rows; of the columns, too, without `y`.
    y : str or None
        File or store of the sequences of the columns.
    store : str or None
        Where the matrix goes: a local path or a URL, such as s3://bucket/gram.zarr.
    kind : {"ntk", "nngp"}
        Tangent kernel, or covariance kernel.
    dtype : {"float64", "float32"}
        Number type of the matrix.
    tile : int or None
        Edge of a tile; without it, what suits the workers, or what is stored.
    backend : {"auto", "numpy", "numba", "cupy"}
        What computes a tile; "auto" is the fastest that works.
    """

    kernel: RNTK
    x: str
    y: str | None = None
    store: str | None = None
    kind: Kind = "ntk"
    dtype: DType = "float64"
    tile: int | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        _check_place("x", self.x)
        for name, place in (("y", self.y), ("store", self.store)):
            if place is not None:
                _check_place(name, place)
        if self.tile is not None:
            _check_tile(self.tile)
        check_run_options(self.kind, self.dtype, self.backend)

    # -- files and dicts ---------------------------------------------------------------------------

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a .toml, .yaml or .yml file; relative paths in it start from its folder.

        Raises FileNotFoundError, or JobFileError, naming the file and what is wrong in it.
        """
        place = Path(path)
        try:
            return cls.from_dict(_tables(place), place.parent)
        except (TypeError, ValueError) as error:
            raise JobFileError(f"{place}: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], folder: Path | None = None) -> Self:
        """Inverse of `to_dict`; relative paths start from `folder`, where one is given.

        Raises JobFileError for unknown or missing keys, TypeError or ValueError for values that
        cannot be.
        """
        _refuse_unknown(data, ("kernel", "data", "run"), "the job file")
        kernel, files, run = (_table(data, name) for name in ("kernel", "data", "run"))
        _refuse_unknown(kernel, [field.name for field in fields(RNTK)], "[kernel]")
        _refuse_unknown(files, _DATA, "[data]")
        _refuse_unknown(run, _RUN, "[run]")
        if "x" not in files:
            raise JobFileError("[data] has no x: name the file of the sequences")
        given = {**files, **run}
        places = {name: _from(folder, given[name]) for name in (*_DATA, "store") if name in given}
        return cls(RNTK.from_dict(kernel), **{**given, **places})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The three tables, JSON-able; what is None is left out, for TOML has no such value."""
        return {
            "kernel": self.kernel.to_dict(),
            "data": self._given(_DATA),
            "run": self._given(_RUN),
        }

    def to_toml(self) -> str:
        """As a job file that `read` gives back."""
        return tomli_w.dumps(self.to_dict())

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        values = ((name, self.__dict__[name]) for name in names)
        return {name: value for name, value in values if value is not None}

    # -- other ways to one -------------------------------------------------------------------------

    @classmethod
    def of_store(cls, store: GramStore) -> Self:
        """The job whose matrix the store holds, with the sequences that are in it."""
        where, manifest = show(store.location), store.manifest
        return cls(
            kernel=RNTK.from_dict(dict(manifest.kernel)),
            x=f"{where}/sequences",
            y=None if store.plan.symmetric else f"{where}/sequences_y",
            store=where,
            kind=manifest.kind,
            dtype="float32" if store.plan.itemsize == 4 else "float64",
            tile=store.plan.tile,
        )

    def changed(self, kernel: Mapping[str, Any], run: Mapping[str, Any]) -> Self:
        """The same job with some options of the kernel, and some of its own, in place of others."""
        return replace(self, kernel=replace(self.kernel, **kernel), **run)

    def sequences(self) -> tuple[Sequences, Sequences | None]:
        """The sequences of the rows and, unless symmetric, of the columns, read whole.

        Raises as `read_sequences`.
        """
        return read_sequences(self.x), None if self.y is None else read_sequences(self.y)


def _check_place(name: str, value: object) -> None:
    if not (isinstance(value, str) and value):
        raise JobFileError(f"{name} must be a path or a URL, found {value!r}")


def _check_tile(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise JobFileError(f"tile must be an integer of at least 1, found {value!r}")


def read_sequences(place: str) -> Sequences:
    """Read a file, as `Sequences.read`; STORE/sequences and STORE/sequences_y are a store's own.

    Raises as `Sequences.read` and `GramStore.open`.
    """
    where, _, side = place.rpartition("/")
    if where and side == "sequences":
        return GramStore.open(where).sequences()
    if where and side == "sequences_y":
        columns = GramStore.open(where).sequences_y()
        if columns is None:
            raise ValueError(
                f"{where} holds a symmetric matrix: its sequences are {where}/sequences"
            )
        return columns
    return Sequences.read(place)


# -- reading ---------------------------------------------------------------------------------------


def _tables(place: Path) -> dict[str, Any]:
    if place.suffix.lower() not in SUFFIXES:
        raise JobFileError(f"suffix {place.suffix!r} is none of {', '.join(SUFFIXES)}: rename it")
    text = place.read_text(encoding="utf-8")
    try:
        data = tomllib.loads(text) if place.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise JobFileError(" ".join(str(error).split())) from error
    if not isinstance(data, dict):
        raise JobFileError("found no tables: write [kernel], [data] and [run]")
    return data


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = data.get(name) or {}  # a YAML table without entries is None
    if not isinstance(table, dict):
        raise JobFileError(f"{name} must be a table, found {table!r}")
    return table


def _refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for name in table:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise JobFileError(f"{where} has no {name!r}: {hint}")


def _from(folder: Path | None, place: Any) -> Any:
    """A path seen from a folder; a URL, and what is no text at all, as it is."""
    if folder is None or not isinstance(place, str) or "://" in place or not place:
        return place
    return str(folder / Path(place).expanduser())
