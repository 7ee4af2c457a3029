"""How a command ends: the exit codes, and what is said where it goes wrong."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from rntk_dist.neighbor_store import NeighborStore
from rntk_dist.store import (
    CorruptTileError,
    GramStore,
    IdentityError,
    Location,
    MissingTileError,
    NeighborsFoundError,
    StoreFormatError,
    show,
)
from rntk_dist.sweep_store import open_any


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    ANOTHER_MATRIX = 3
    INTERRUPTED = 130


_FAILURES = (RuntimeError, OverflowError, MemoryError, MissingTileError, CorruptTileError)
"""The work was begun and did not succeed: tiles failed, workers, store or scheduler went away."""

_REFUSALS = (OSError, ValueError, TypeError, ImportError)
"""The question is wrong: no such file, no such scheduler, an option that cannot be."""


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of a command that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, IdentityError):
        return ExitCode.ANOTHER_MATRIX
    return ExitCode.FAILED if isinstance(error, _FAILURES) else ExitCode.USAGE


class Commands(TyperGroup):
    """Commands whose errors are a sentence on stderr and an exit code, never a traceback.

    With `--debug` the traceback comes before the sentence. What none of them is expected to raise
    is a defect of this package, and goes through as it is.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (KeyboardInterrupt, *_FAILURES, *_REFUSALS) as error:
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            typer.echo(f"rntk-dist {ctx.invoked_subcommand}: {_sentence(error)}", err=True)
            raise typer.Exit(exit_code(error)) from error


def _sentence(error: BaseException) -> str:
    silent = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
    return "\n".join([str(error) or silent, *getattr(error, "__notes__", ())])


@contextmanager
def interruptible(store: Location) -> Iterator[None]:
    """Have an interruption say what the store holds, at whatever moment it comes."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:  # said already, by who was interrupted
            raise
        raise KeyboardInterrupt(f"interrupted: {_kept(store)}") from error


def _kept(store: Location) -> str:
    opened: GramStore | None
    try:
        opened = open_any(store)
    except NeighborsFoundError:
        opened = NeighborStore.open(store)
    except FileNotFoundError:
        opened = None
    except StoreFormatError:  # before its manifest was written
        opened = None
    if opened is None:
        return "nothing was computed"
    stored, total = len(opened.stored_chunks()), len(opened.chunk_tiles())
    where = show(opened.location)
    return f"{stored} of {total} tiles are kept in {where}, and the same call resumes"


def interrupt_on_sigterm() -> None:
    """Have SIGTERM, which batch systems send, end a command as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
