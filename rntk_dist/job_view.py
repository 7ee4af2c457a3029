"""How a job looks in a notebook, and how it goes on looking there until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread
from typing import Any, Protocol

from distributed.utils import is_kernel

from rntk_dist.job_record import JobStatus
from rntk_dist.markup import Text, bar, card, facts, group, link, note, strong

_EVERY, _SELDOM = 1.0, 30.0
"""Seconds between two looks at the store: the least, and what a store that is slow to list gets."""

_SHOWN_FAILURES = 5


def job_html(status: JobStatus) -> str:
    """The card of a job."""
    done, total = status.tiles_done, status.tiles_total
    tiles = f"{done} of {total} ({done / total:.0%})"
    rows: list[tuple[str, Text]] = [("state", strong(status.state)), ("tiles", tiles)]
    if status.state == "running":
        rows += [("speed", _speed(status)), ("workers", str(status.workers))]
    if status.retries:
        rows.append(("retries", str(status.retries)))
    rows.append(("store", status.store))
    if status.dashboard and not status.has_ended:
        rows.append(("dashboard", link(status.dashboard)))
    rows += [(name, _moment(at)) for name, at in _moments(status) if at]
    notes = [note(text) for text in (*_failures(status), status.message) if text]
    return card("Job", status.id, group(bar(done, total), facts(rows), *notes))


def show_live(read: Callable[[], JobStatus]) -> None:
    """Display a job in Jupyter, anew every second or so until it has ended; elsewhere once.

    Raises what `read` raises at first; an error later is shown, and is the end of the display.
    """
    # Only IPython displays anything, so it is there.
    from IPython.display import display

    status = read()
    handle = display(_bundle(status), raw=True, display_id=True)
    if is_kernel() and not status.has_ended:
        name = f"display of job {status.id}"
        Thread(target=_keep_showing, args=(handle, read, status), name=name, daemon=True).start()


class _Display(Protocol):
    def update(self, obj: Any, *, raw: bool) -> None: ...


def _keep_showing(handle: _Display, read: Callable[[], JobStatus], status: JobStatus) -> None:
    """Put the newest status in the place of the last one, as long as the job lives."""
    pause = _EVERY
    while not status.has_ended:
        time.sleep(pause)
        start = time.monotonic()
        try:
            status = read()
        except (OSError, ValueError) as error:  # gone, or something else by now
            handle.update(_lost(status, error), raw=True)
            return
        handle.update(_bundle(status), raw=True)
        # Listing a store of a million tiles takes a while: a tenth of the time is enough for that.
        pause = min(max(_EVERY, 9 * (time.monotonic() - start)), _SELDOM)


def _bundle(status: JobStatus) -> dict[str, str]:
    """By MIME type; the plain text is what a terminal shows."""
    return {"text/plain": str(status), "text/html": job_html(status)}


def _lost(status: JobStatus, error: Exception) -> dict[str, str]:
    said = f"this display has ended, for the store cannot be read: {error}"
    html = card("Job", status.id, note(said))
    return {"text/plain": f"{status}\n  {said}", "text/html": html}


def _speed(status: JobStatus) -> str:
    tiles, steps = status.tiles_per_second, status.pair_steps_per_second
    left = "" if status.eta_seconds is None else f", {_duration(status.eta_seconds)} left"
    return f"{tiles:.3g} tiles/s, {steps:.2g} pair-steps/s{left}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _moments(status: JobStatus) -> list[tuple[str, str]]:
    return [("submitted", status.submitted), ("heard of", status.updated)]


def _moment(stamp: str) -> str:
    """2026-01-31T12:00:00.123+00:00 as people read it."""
    return stamp[:19].replace("T", " ") + " UTC"


def _failures(status: JobStatus) -> list[str]:
    shown = [f"tile {tile}: {cause}" for tile, cause in status.failures.items()]
    more = len(shown) - _SHOWN_FAILURES
    return [*shown[:_SHOWN_FAILURES], *([f"{more} more tiles failed"] if more > 0 else [])]
