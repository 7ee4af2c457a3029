"""How far a run is: rates by a clock of the test's, and what is drawn."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rntk_dist.progress import RATED, Progress, Rate, progress_report

START = Progress(
    tiles=2, tiles_total=12, pair_steps=0, pair_steps_total=1000, failed=0, in_flight=4
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    rate = Rate(clock)
    assert rate.per_second() == 0.0
    assert rate.seconds_left(START) is None
    clock.now += 20.0  # workers start, and compute their first tile
    rate.note(replace(START, pair_steps=100))
    assert rate.per_second() == 5.0
    for second in range(1, 41):
        clock.now += 1.0
        now = replace(START, pair_steps=100 + 20 * second)
        rate.note(now)
    assert rate.per_second() == pytest.approx(20.0)
    assert rate.seconds_left(now) == pytest.approx((1000 - 900) / 20)
    assert len(rate.seen) <= RATED + 2


def test_a_rate_falls_where_tiles_take_longer_than_what_it_looks_back() -> None:
    clock = Clock()
    rate = Rate(clock)
    for steps in (100, 200, 300):
        clock.now += 4 * RATED
        rate.note(replace(START, pair_steps=steps))
    assert rate.per_second() == pytest.approx(100 / (4 * RATED))


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_report() as report:
        assert report is not None
        report(START)  # too soon for a line
        report(replace(START, tiles=12, pair_steps=1000, in_flight=0, workers=2, failed=1))
    out, err = capsys.readouterr()
    assert out == ""
    line = r"rntk_dist: 12/12 tiles, 1 failed, \S+ pair-steps/s, 0 s left, 2 workers\n"
    assert re.fullmatch(line, err)


def test_nothing_where_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_report(show=False) as report:
        assert report is None
    assert capsys.readouterr() == ("", "")


def test_a_bar_and_a_line_for_each_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    workers = {f"host:{n}": n for n in range(1, 12)}
    with progress_report() as report:
        assert report is not None
        report(replace(START, tiles=7, pair_steps=500, workers=11, by_worker=workers))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    last = shown.rpartition("7/12 tiles")[2]
    assert re.match(r" ━.* 50% \S+ pair-steps/s, .* left, 11 workers", last)
    assert "host:11  11 tiles" in last
    assert "host:3 " not in last
    assert "and 3 more" in last
