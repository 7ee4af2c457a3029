"""Options that several commands share, made from the fields of the dataclasses that they fill.

A decorated command takes one value, such as `job`, and has one flag for each field of its class:
names, types and defaults stand in the class alone, and what help says of each stands here.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from rntk_dist.job_file import SUFFIXES, JobFile
from rntk_dist.kernel.rntk import RNTK

if TYPE_CHECKING:
    from distributed import Client

Store = Annotated[
    str, typer.Argument(metavar="STORE", help="A local path or a URL, such as s3://bucket/path.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Wait = Annotated[
    float,
    typer.Option(min=0, help="Seconds to wait for another process that fills the same store."),
]

_DATA = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A file of sequences (.npy, .npz, .tsv, .ts, .zarr), or a job file (.toml, .yaml).",
    ),
]
_AGAINST = Annotated[
    str | None,
    typer.Option(
        metavar="DATA2",
        help="A second file: the rectangular matrix of DATA with it.",
        rich_help_panel="Matrix",
    ),
]

_MATRIX_HELP = {
    "store": "Where the matrix goes: a path or a URL",
    "kind": "Tangent kernel or covariance",
    "dtype": "Number type of the matrix",
    "tile": "Edge of a tile; by default what is stored, or what suits the workers",
    "backend": "What computes",
}

KERNEL_HELP = {
    "depth": "Recurrent layers",
    "activation": "What the units apply",
    "sigma_w": "Standard deviation of the recurrent weights",
    "sigma_u": "Of the input weights",
    "sigma_b": "Of the biases",
    "sigma_h": "Of the initial state",
    "sigma_v": "Of the readout",
    "readout": "What the output is",
    "bidirectional": "Add the kernel of the reversed sequences",
    "frozen_layers": "So many first layers are not trained",
    "initial_state": "One for all sequences, or one for each",
    "normalize": "k(x, y) / sqrt(k(x, x) k(y, y))",
}
"""A line for each field of RNTK."""

_CLUSTER_HELP = {
    "scheduler": "A Dask scheduler, such as tcp://host:8786, or its scheduler file (.json)",
    "tls_ca_file": "Certificates of who may sign for the cluster",
    "tls_cert": "This client's certificate",
    "tls_key": "The key of that certificate",
}


# -- a cluster -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster by the address or the file of its scheduler; None: this machine."""

    scheduler: str | None = None
    tls_ca_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @contextmanager
    def client(self) -> "Iterator[Client | None]":
        """A client that is closed on leaving; None for this machine.

        Raises OSError if there is no such file, or nobody answers at the address.
        """
        if self.scheduler is None:
            if self.tls_ca_file or self.tls_cert or self.tls_key:
                raise ValueError("--tls-... are for a cluster: add --scheduler tls://HOST:PORT")
            yield None
            return
        from distributed import Client

        with Client(
            _address(self.scheduler), security=self._security(), timeout=10, set_as_default=False
        ) as client:
            yield client

    @contextmanager
    def required(self) -> "Iterator[Client]":
        """As `client`; raises ValueError without an address."""
        with self.client() as client:
            if client is None:
                raise ValueError("a scheduler is needed: add --scheduler ADDRESS")
            yield client

    def _security(self) -> Any:
        if not (self.tls_ca_file or self.tls_cert or self.tls_key):
            return None
        from distributed import Security

        files = (self.tls_ca_file, self.tls_cert, self.tls_key)
        for file in files:
            if file is not None and not file.is_file():
                raise FileNotFoundError(f"{file}: no such file, named by a --tls- option")
        if None in files:
            raise ValueError("TLS takes --tls-ca-file, --tls-cert and --tls-key: give all three")
        ca_file, cert, key = (None if file is None else str(file) for file in files)
        return Security(
            tls_ca_file=ca_file, tls_client_cert=cert, tls_client_key=key, require_encryption=True
        )


def _address(scheduler: str) -> str:
    """An address as it is; that in a file which `dask scheduler --scheduler-file` wrote."""
    if not scheduler.endswith(".json"):
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text())["address"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{scheduler}: no such scheduler file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{scheduler} is no file that a scheduler has written") from error


# -- commands that take such values ----------------------------------------------------------------


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of a job, in place of its parameter `job`."""
    kernel, run = _flags(RNTK, KERNEL_HELP, "Kernel"), _flags(JobFile, _MATRIX_HELP, "Matrix")

    def job(data: str, against: str | None, **given: Any) -> JobFile:
        chosen = {name: value for name, value in given.items() if value is not None}
        of_kernel = {name: chosen.pop(name) for name in list(chosen) if name in KERNEL_HELP}
        if against is not None:
            chosen["y"] = against
        return _base(data).changed(of_kernel, chosen)

    head = [
        Parameter("data", Parameter.KEYWORD_ONLY, annotation=_DATA),
        Parameter("against", Parameter.KEYWORD_ONLY, default=None, annotation=_AGAINST),
    ]
    return _expanded(command, "job", [*head, *run, *kernel], job)


def takes_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of a cluster, in place of its parameter `cluster`."""
    flags = _flags(Cluster, _CLUSTER_HELP, "Cluster")
    return _expanded(command, "cluster", flags, Cluster)


def _base(data: str) -> JobFile:
    """The job of a job file, or the default one of a file of sequences."""
    if Path(data).suffix.lower() in SUFFIXES:
        return JobFile.read(data)
    return JobFile(RNTK(), data)


def _expanded(
    command: Callable[..., None],
    name: str,
    flags: Sequence[Parameter],
    make: Callable[..., object],
) -> Callable[..., None]:
    """The command with these parameters in place of the one of this name, which `make` fills."""
    names = [flag.name for flag in flags]

    def expanded(**given: Any) -> None:
        value = make(**{flag: given.pop(flag) for flag in names})
        command(**given, **{name: value})

    parameters: list[Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        own = parameter.replace(kind=Parameter.KEYWORD_ONLY)
        parameters += flags if parameter.name == name else [own]
    parameters.sort(key=_is_option)
    expanded.__name__, expanded.__doc__ = command.__name__, command.__doc__
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    # What inspect.signature, and so Typer, takes for the function's own.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return expanded


def _is_option(parameter: Parameter) -> bool:
    """Arguments come first: in the order in which they are declared."""
    return parameter.default is not Parameter.empty


def _flags(cls: type, helps: Mapping[str, str], panel: str) -> list[Parameter]:
    """A flag for each of these fields of a dataclass; None is what was not given."""
    hints, known = get_type_hints(cls), {field.name: field for field in fields(cls)}
    return [_flag(known[name], hints[name], text, panel) for name, text in helps.items()]


def _flag(field: Field[Any], hint: Any, text: str, panel: str) -> Parameter:
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    option = typer.Option(
        help=f"{text}{_choices(choices)}{_default(field)}.",
        show_default=False,
        rich_help_panel=panel,
        metavar="NAME" if choices else _METAVARS.get(field.name),
    )
    annotation = Annotated[hint | None, option]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_METAVARS = {"scheduler": "ADDRESS", "store": "STORE", "tile": "EDGE"} | dict.fromkeys(
    ("tls_ca_file", "tls_cert", "tls_key"), "FILE"
)


def _choices(names: Sequence[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is None or value is MISSING or isinstance(value, bool):
        return ""
    return f" (default {value:.6g})" if isinstance(value, float) else f" (default {value})"


def required_store(job: JobFile) -> str:
    """Where the job's matrix goes; raises ValueError if nobody has said so."""
    if job.store is None:
        raise ValueError(
            "no store is given: add --store STORE, or `store` to [run] of the job file"
        )
    return job.store
