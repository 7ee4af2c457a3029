"""How far a run is, and how it is shown: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rich.progress
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: tiles of the whole matrix, pair-steps of what this run computes."""

    tiles: int
    tiles_total: int
    pair_steps: int
    pair_steps_total: int
    failed: int
    in_flight: int


@contextmanager
def progress_report(show: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """An `on_progress` for `fill` that draws a bar on stderr, or lines where that is no terminal.

    None, for silence, unless `show`.
    """
    console = Console(stderr=True)
    if not show:
        yield None
    elif console.is_terminal or console.is_jupyter:
        with rich.progress.Progress(*_columns(), console=console) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(console)


def _columns() -> list[rich.progress.ProgressColumn]:
    return [
        rich.progress.TextColumn("{task.fields[tiles]}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(),
    ]


class _Bar:
    """Draws a bar that advances by pair-steps, for tiles differ in work where lengths do."""

    def __init__(self, bar: rich.progress.Progress) -> None:
        self.bar, self.started = bar, time.monotonic()
        self.task = bar.add_task("", total=None, tiles="starting workers", speed="")

    def __call__(self, now: Progress) -> None:
        speed = now.pair_steps / max(time.monotonic() - self.started, 1e-9)
        self.bar.update(
            self.task,
            completed=now.pair_steps,
            total=now.pair_steps_total,
            tiles=_tiles(now),
            speed=f"{speed:.2g} pair-steps/s",
        )


class _Lines:
    """Prints a line at most every ten seconds, and the last."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.started = self.printed = time.monotonic()

    def __call__(self, now: Progress) -> None:
        time_now = time.monotonic()
        if now.in_flight and time_now - self.printed < self.every:
            return
        self.printed = time_now
        line = f"rntk_dist: {_tiles(now)}"
        speed = now.pair_steps / max(time_now - self.started, 1e-9)
        if speed:
            left = (now.pair_steps_total - now.pair_steps) / speed
            line = f"{line}, {speed:.2g} pair-steps/s, {left:.0f} s left"
        self.console.print(line, highlight=False, soft_wrap=True)


def _tiles(now: Progress) -> str:
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{now.tiles}/{now.tiles_total} tiles{failed}"
