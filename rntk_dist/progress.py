"""How far a run is, and how it is shown: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import rich.progress
from rich.console import Console, RenderableType
from rich.text import Text

RATED = 30.0
"""Seconds over which a rate is taken, so that the start of the workers is forgotten."""

_SHOWN_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: tiles of the whole matrix, pair-steps of what this run computes.

    `causes` maps each tile that has failed so far to why. `by_worker` is how many tiles each worker
    has computed in this run, by a name such as host:pid.
    """

    tiles: int
    tiles_total: int
    pair_steps: int
    pair_steps_total: int
    failed: int
    in_flight: int
    retries: int = 0
    workers: int = 0
    causes: Mapping[Any, BaseException] = field(default_factory=dict)
    by_worker: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def progress_report(show: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """An `on_progress` for `fill` that draws a bar on stderr, or lines where that is no terminal.

    None, for silence, unless `show`.
    """
    console = Console(stderr=True)
    if not show:
        yield None
    elif console.is_terminal or console.is_jupyter:
        with _Display(*_columns(), console=console) as bar:
            yield _Bar(bar)
    else:
        yield _Lines(console)


class Rate:
    """Pair-steps a second over the last `RATED` seconds, and what is left at that rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen = deque([(clock(), 0)])

    def note(self, now: Progress) -> None:
        """Take down how far the run is; called at every outcome."""
        moment = self.clock()
        self.seen.append((moment, now.pair_steps))
        while len(self.seen) > 2 and self.seen[1][0] < moment - RATED:
            self.seen.popleft()

    def per_second(self) -> float:
        """0 as long as nothing is computed."""
        (start, before), (end, after) = self.seen[0], self.seen[-1]
        return (after - before) / max(end - start, 1e-9)

    def seconds_left(self, now: Progress) -> float | None:
        """None where nobody can tell."""
        rate = self.per_second()
        return (now.pair_steps_total - now.pair_steps) / rate if rate else None


def _columns() -> list[rich.progress.ProgressColumn]:
    return [
        rich.progress.TextColumn("{task.fields[tiles]}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[speed]}"),
    ]


class _Display(rich.progress.Progress):
    """A bar with lines below it that say what each worker has done."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim")


class _Bar:
    """Draws a bar that advances by pair-steps, for tiles differ in work where lengths do."""

    def __init__(self, bar: _Display) -> None:
        self.bar, self.rate = bar, Rate()
        self.task = bar.add_task("", total=None, tiles="starting workers", speed="")

    def __call__(self, now: Progress) -> None:
        self.rate.note(now)
        self.bar.below = _workers(now)
        self.bar.update(
            self.task,
            completed=now.pair_steps,
            total=now.pair_steps_total,
            tiles=_tiles(now),
            speed=_speed(now, self.rate),
        )


class _Lines:
    """Prints a line at most every ten seconds, and the last."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every = console, every
        self.rate, self.printed = Rate(), time.monotonic()

    def __call__(self, now: Progress) -> None:
        self.rate.note(now)
        time_now = time.monotonic()
        if now.in_flight and time_now - self.printed < self.every:
            return
        self.printed = time_now
        parts = ["rntk_dist: " + _tiles(now), _speed(now, self.rate)]
        line = ", ".join(part for part in parts if part)
        self.console.print(line, highlight=False, soft_wrap=True)


def _tiles(now: Progress) -> str:
    failed = f", {now.failed} failed" if now.failed else ""
    return f"{now.tiles}/{now.tiles_total} tiles{failed}"


def _speed(now: Progress, rate: Rate) -> str:
    left = rate.seconds_left(now)
    if left is None:
        return ""
    workers = f", {now.workers} worker{'s' if now.workers > 1 else ''}" if now.workers else ""
    return f"{rate.per_second():.2g} pair-steps/s, {_time(left)} left{workers}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def _workers(now: Progress) -> str:
    """A line for each of the workers that have computed most, if there is more than one."""
    if len(now.by_worker) < 2:
        return ""
    ranked = sorted(now.by_worker.items(), key=lambda item: -item[1])
    lines = [f"  {name}  {tiles} tiles" for name, tiles in ranked[:_SHOWN_WORKERS]]
    more = len(ranked) - _SHOWN_WORKERS
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])
