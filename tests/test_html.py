"""What notebooks show of kernels, sequences, matrices and jobs: escaped, bounded, and live."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import filled
from PIL import Image

import rntk_dist as rd
from rntk_dist.gram_view import LIMITS, gram_html, thumbnail
from rntk_dist.job_record import JobRecord, JobStatus, write_record
from rntk_dist.job_view import job_html
from rntk_dist.markup import TOP, card, curves, image, link, picture
from rntk_dist.plan import Plan, Tile
from rntk_dist.sampling import Limits, Sample, sampled
from rntk_dist.store import GramStore, chunk_key
from rntk_dist.sweep import grid
from rntk_dist.sweep_creation import wanted_sweep
from rntk_dist.sweep_store import SweepStore
from rntk_dist.sweep_view import sweep_html

EVIL = "<script>alert('x')</script>\"&"

STATUS = JobStatus(
    id="20260131-120000-abcdef",
    store="/data/gram.zarr",
    state="running",
    tiles_done=30,
    tiles_total=120,
    tiles_per_second=1.5,
    pair_steps_per_second=3e9,
    eta_seconds=90.0,
    workers=8,
    retries=2,
    failures={},
    dashboard="http://10.0.0.1:8787/status",
    submitted="2026-01-31T12:00:00.123+00:00",
    updated="2026-01-31T12:01:00.123+00:00",
    message="",
)


class Page(HTMLParser):
    """The texts, tags and attributes of a view; AssertionError where a tag is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str] = {}
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update({name: value or "" for name, value in attrs})

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.texts.append(data)

    def fact(self, name: str) -> str:
        """What stands beside a name in a table."""
        return self.texts[self.texts.index(name) + 1]


def pixels(html: str) -> np.ndarray:
    """The picture in a view, (rows, columns, 4)."""
    found = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert found is not None, "there is no picture"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA"))


# -- markup ----------------------------------------------------------------------------------------


def test_text_is_escaped_wherever_it_goes() -> None:
    part = picture(image([b"\1"], EVIL), EVIL)
    for html in (card(EVIL, EVIL, part), card("", "", curves([[1.0, 2.0]], EVIL))):
        page = Page(html)
        assert "script" not in page.tags
        assert EVIL in [*page.texts, *page.attributes.values()]


def test_only_web_addresses_become_links() -> None:
    assert Page(str(link("https://host/status"))).attributes["href"] == "https://host/status"
    assert link("javascript:alert(1)") == "javascript:alert(1)"
    assert Page(str(link(f"http://host/{EVIL}"))).tags == ["a"]


def test_pictures_have_the_colours_of_viridis() -> None:
    drawn = pixels(str(image([bytes(range(128)), bytes(range(128, 256))], "all colours")))
    assert drawn.shape == (2, 128, 4)
    colours = drawn.reshape(256, 4).astype(int)
    assert colours[0, 3] == 0, "what is not there is transparent"
    assert (colours[1:, 3] == 255).all()
    expected = mpl.colormaps["viridis"](np.linspace(0, 1, TOP))[:, :3] * 255
    assert np.abs(colours[1:, :3] - expected).max() < 7


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 1e308, -1e308]])
def test_curves_stay_in_their_picture(values: list[float]) -> None:
    page = Page(str(curves([values, values], "two")))
    numbers = [float(number) for number in re.split("[ ,]", page.attributes["points"])]
    assert len(numbers) >= 4
    assert all(0 <= x <= 240 for x in numbers[::2])
    assert all(32 <= y <= 58 for y in numbers[1::2]), "the second line stands below the first"


# -- which samples ---------------------------------------------------------------------------------


@given(
    n_rows=st.integers(1, 300),
    n_cols=st.one_of(st.none(), st.integers(1, 300)),
    tile=st.integers(1, 64),
    limits=st.builds(Limits, st.integers(1, 50), st.integers(1, 20), st.integers(1, 100_000)),
)
@settings(deadline=None)
def test_a_sample_keeps_to_its_limits(
    n_rows: int, n_cols: int | None, tile: int, limits: Limits
) -> None:
    plan = Plan(n_rows, n_cols or n_rows, tile, n_cols is None)
    found = sampled(plan, limits)
    chunk = plan.chunk_shape[0] * plan.chunk_shape[1] * 8
    if found is None:
        assert chunk > limits.bytes
        return
    touched = {plan.tile_of(i, j) for i in found.rows for j in found.cols}
    of_blocks = {
        tile
        for row in found.row_blocks
        for col in found.col_blocks
        if (tile := Tile(row, col)) in plan
    }
    assert touched <= of_blocks
    assert len(of_blocks) <= limits.tiles
    assert len(of_blocks) * chunk <= limits.bytes
    for axis, taken in zip(plan.shape, (found.rows, found.cols), strict=True):
        assert 1 <= len(taken) <= limits.samples
        assert list(taken) == sorted(set(taken))
        assert set(taken) <= set(range(axis))


def test_a_small_matrix_is_taken_whole_and_a_large_one_from_end_to_end() -> None:
    small = sampled(Plan(30, 20, 10, symmetric=False), Limits(100, 16, 10**6))
    assert small == Sample(tuple(range(30)), tuple(range(20)), (0, 1, 2), (0, 1))
    large = sampled(Plan(10**5, 10**5, 1000, symmetric=True), LIMITS)
    assert large is not None
    assert large.row_blocks == (0, 49, 99), "6 tiles of 8 MB; 10 are more than the limit"
    assert (large.rows[0], large.rows[-1], len(large.rows)) == (0, 99_999, LIMITS.samples)


# -- matrices --------------------------------------------------------------------------------------


@pytest.fixture
def ramp() -> np.ndarray:
    """Entry (i, j) of 30 x 30 is i + j."""
    return np.add.outer(np.arange(30.0), np.arange(30.0))


def test_the_thumbnail_of_a_small_matrix_is_the_matrix(tmp_path: Path, ramp: np.ndarray) -> None:
    store = filled(tmp_path / "gram", ramp, 10)
    sample = sampled(store.plan, LIMITS)
    assert sample is not None
    assert np.array_equal(thumbnail(store, sample, store.stored_tiles()).values, ramp)
    drawn = pixels(gram_html(store)).astype(int)
    assert drawn.shape == (30, 30, 4)
    assert (drawn[0, 0] == [68, 1, 84, 255]).all(), "the smallest is dark"
    assert (drawn[-1, -1] == [253, 231, 37, 255]).all(), "the largest is bright"


def test_missing_tiles_are_left_open(tmp_path: Path, ramp: np.ndarray) -> None:
    html = gram_html(filled(tmp_path / "gram", ramp, 10, without={Tile(1, 2)}))
    opaque = pixels(html)[:, :, 3] == 255
    assert not opaque[10:20, 20:].any()
    assert not opaque[20:, 10:20].any()
    assert opaque.sum() == 700
    page = Page(html)
    assert page.fact("tiles") == "5 of 6 stored, edge 10"
    assert "1 of 6 tiles missing" in " ".join(page.texts)
    assert "not computed" in page.texts[-1]


def test_a_matrix_with_no_tile_yet_has_a_view(tmp_path: Path, ramp: np.ndarray) -> None:
    store = filled(tmp_path / "gram", ramp, 30, without={Tile(0, 0)})
    assert (pixels(rd.open_gram(store.location)._repr_html_())[:, :, 3] == 0).all()


def test_a_damaged_tile_is_named_and_the_rest_shown(tmp_path: Path, ramp: np.ndarray) -> None:
    store = filled(tmp_path / "gram", ramp, 10)
    chunk = tmp_path / "gram" / chunk_key(Tile(0, 1))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    html = gram_html(store)
    assert (pixels(html)[:, :, 3] == 255).sum() == 700
    assert "damaged (tiles: 1): run rd.verify" in Page(html).texts[-1]


def test_a_rectangular_matrix_keeps_its_shape(tmp_path: Path) -> None:
    values = np.arange(300.0).reshape(30, 10)
    html = gram_html(filled(tmp_path / "gram", values, 8, symmetric=False))
    page = Page(html)
    assert pixels(html).shape == (30, 10, 4)
    assert "30 × 10" in page.texts
    assert (page.attributes["height"], page.attributes["width"]) == ("200", "67")


def test_few_tiles_of_a_large_matrix_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "gram", np.ones((120, 120)), 10)
    read: list[Tile] = []
    real = GramStore.read_tile
    monkeypatch.setattr(
        GramStore, "read_tile", lambda self, tile: read.append(tile) or real(self, tile)
    )
    html = gram_html(store)
    assert len(read) == len(set(read)) == 15 <= LIMITS.tiles
    assert Tile(0, 11) in read
    assert "from 15 of 78 tiles" in Page(html).texts[-1]


def test_tiles_too_large_for_a_view_are_not_read(
    tmp_path: Path, ramp: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntk_dist.gram_view.LIMITS", Limits(100, 16, 799))
    page = Page(gram_html(filled(tmp_path / "gram", ramp, 10)))
    assert page.texts[-1] == "no picture: a tile has 800 B, and a view reads 799 B"
    assert "img" not in page.tags


# -- kernels and sequences -------------------------------------------------------------------------


def empty_sweep(where: Path, kernels: list[rd.RNTK], tile: int = 3) -> SweepStore:
    X = rd.Sequences.from_arrays(np.arange(1.0, 7.0)[:, None])
    wanted = wanted_sweep(kernels, X, None, where=str(where), tile=tile)
    return SweepStore.create(where, wanted.plan_anew(), X)


def write_some(store: SweepStore, tiles: list[int]) -> None:
    """So many tiles of each kernel."""
    for i, count in enumerate(tiles):
        one = store.slice(i)
        for tile in list(one.plan.tiles())[:count]:
            one.write_tile(tile, np.ones(one.plan.block_shape(tile)))


def test_a_sweep_shows_what_varies_and_how_far_each_kernel_is(tmp_path: Path) -> None:
    kernels = grid(rd.RNTK(), {"sigma_w": [1.3, 1.4], "sigma_b": [0.0, 0.1, 0.2]})
    store = empty_sweep(tmp_path / "sweep", kernels)
    write_some(store, [3, 3, 1, 0, 2, 3])
    html = sweep_html(store)
    page = Page(html)
    assert "6 kernels, 6 × 6 each" in page.texts
    assert page.fact("sigma_w") == "1.3, 1.4"
    assert page.fact("sigma_b") == "0, 0.1, 0.2"
    assert page.fact("kernels") == "3 of 6 whole"
    assert page.fact("tiles") == "12 of 18 stored, edge 3"
    assert "6 of 18 tiles missing" in html
    assert page.fact("2") == "sigma_w 1.3, sigma_b 0.2, 1 of 3 tiles"
    drawn = pixels(html)
    assert drawn.shape == (2, 3, 4), "a row for each value of the first option"
    assert (drawn[..., 3] > 0).tolist() == [[True, True, True], [False, True, True]]
    assert (drawn[0, 0] == drawn[1, 2]).all()
    assert drawn[0, 0, 0] > drawn[1, 1, 0] > drawn[0, 2, 0], "the more, the brighter"


def test_of_many_kernels_some_are_listed(tmp_path: Path) -> None:
    kernels = [rd.RNTK(sigma_b=i / 7) for i in range(211)]
    store = empty_sweep(tmp_path / "sweep", kernels, tile=6)
    write_some(store, [1] * 205)
    html = rd.open_sweep(tmp_path / "sweep")._repr_html_()
    page = Page(html)
    assert page.fact("sigma_b").endswith(", …, 30 (211 values)")
    assert page.fact("210") == "sigma_b 30, 0 of 1 tiles"
    assert "200 of the kernels, the unfinished first" in page.texts
    assert pixels(html).shape == (15, 15, 4)
    assert "the last row is not full" in html


def test_a_kernel_shows_its_options_and_marks_what_was_chosen() -> None:
    html = rd.RNTK(sigma_w=1.3, readout="mean", bidirectional=True)._repr_html_()
    page = Page(html)
    assert (page.fact("sigma_w"), page.fact("readout"), page.fact("depth")) == ("1.3", "mean", "1")
    assert re.findall("<b>(.*?)</b>", html) == ["RNTK", "1.3", "mean", "True"]


def test_sequences_show_their_sizes_and_labels() -> None:
    ragged = [np.ones((length, 3)) for length in (2, 9, 4)]
    page = Page(rd.Sequences.from_arrays(ragged, labels=["b", EVIL, "b"])._repr_html_())
    assert page.fact("length") == "2 to 9 steps, median 4"
    assert page.fact("features") == "3"
    assert page.fact("labels") == f"{EVIL} (1), b (2)"
    assert page.tags.count("polyline") == 3


def test_many_labels_are_counted_and_long_sequences_thinned() -> None:
    long = rd.Sequences.from_arrays(np.zeros((50, 5000)), labels=np.arange(50.0))
    html = long._repr_html_()
    page = Page(html)
    assert page.fact("labels") == "50 different ones, 0.0 to 49.0"
    assert page.fact("length") == "5000 steps"
    assert page.tags.count("polyline") == 4
    assert len(html) < 15_000


# -- jobs ------------------------------------------------------------------------------------------


def test_a_running_job_shows_how_far_it_is() -> None:
    page = Page(job_html(STATUS))
    assert page.fact("state") == "running"
    assert page.fact("tiles") == "30 of 120 (25%)"
    assert page.fact("speed") == "1.5 tiles/s, 3e+09 pair-steps/s, 2 min left"
    assert page.fact("heard of") == "2026-01-31 12:01:00 UTC"
    assert page.attributes["href"] == STATUS.dashboard
    assert "width: 25%" in page.attributes["style"]


def test_a_failed_job_shows_some_causes_as_text() -> None:
    failures = {str(Tile(0, k)): f"RuntimeError: {EVIL}" for k in range(7)}
    failed = replace(STATUS, state="failed", failures=failures, message=EVIL, eta_seconds=None)
    page = Page(job_html(failed))
    assert f"tile (0, 4): RuntimeError: {EVIL}" in page.texts
    assert "tile (0, 5)" not in " ".join(page.texts)
    assert page.texts[-2:] == ["2 more tiles failed", EVIL]
    assert {"workers", "dashboard"}.isdisjoint(page.texts)
    assert "script" not in page.tags


def test_a_job_is_told_from_its_store_alone(tmp_path: Path, ramp: np.ndarray) -> None:
    store = filled(tmp_path / "gram", ramp, 10, without={Tile(1, 2)})
    stamp = "2026-01-31T12:00:00.123+00:00"
    write_record(store, JobRecord("a job", "cancelled", stamp, stamp, message=EVIL))
    job = replace(rd.connect(store.location), client=NoCluster())
    page = Page(job._repr_html_())
    assert "a job" in page.texts
    assert (page.fact("state"), page.fact("tiles")) == ("cancelled", "5 of 6 (83%)")
    assert page.texts[-1] == EVIL


class NoCluster:
    """A client that fails whatever it is asked, as a closed one does."""

    def __getattr__(self, name: str) -> None:
        raise RuntimeError(f"{name} of a closed client")


LIVE = """
import sys
from dataclasses import replace

from IPython.testing.globalipapp import start_ipython
from rntk_dist import job_view
from test_html import STATUS

shell = start_ipython()
shell.kernel = object()  # what distributed.utils.is_kernel looks for
job_view._EVERY = 0.01

told = iter([replace(STATUS, tiles_done=k, state="done" if k == 120 else "running")
             for k in (30, 60, 120)])
last = sys.argv[1:]


def read():
    status = next(told)
    if last and status.tiles_done == 60:
        raise FileNotFoundError("there is no Gram store any more")
    return status


shown = []
shell.display_pub.publish = lambda data, **options: shown.append((data, options))
job_view.show_live(read)
import threading, time
deadline = time.monotonic() + 20
while any(t.name.startswith("display of job") for t in threading.enumerate()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
for data, options in shown:
    assert set(data) == {"text/plain", "text/html"}
    line = data["text/plain"].splitlines()[2].strip()
    print(options.get("update", False), line, "cannot be read" in data["text/html"], sep="; ")
print(len({options["transient"]["display_id"] for _, options in shown}))
"""


def live(*arguments: str) -> list[str]:
    """What a display in a kernel of its own publishes."""
    done = subprocess.run(
        [sys.executable, "-c", LIVE, *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_job_is_shown_anew_until_it_has_ended() -> None:
    assert live() == [
        "False; tiles      30 of 120 (25%); False",
        "True; tiles      60 of 120 (50%); False",
        "True; tiles      120 of 120 (100%); False",
        "1",
    ]


@pytest.mark.slow
def test_a_display_ends_with_its_store_and_says_so() -> None:
    assert live("gone") == [
        "False; tiles      30 of 120 (25%); False",
        "True; tiles      30 of 120 (25%); True",
        "1",
    ]


# -- in a browser ----------------------------------------------------------------------------------

WIDTH = 900


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_views_are_legible_and_fit_900_pixels(theme: str, tmp_path: Path, ramp: np.ndarray) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed")
    seen = screenshot(browser, theme, page_of_views(tmp_path, ramp), tmp_path)
    paper, ink = seen[2, 2], np.abs(seen[:, :, :3] - seen[2, 2, :3]).max(axis=2)
    assert (paper[:3] > 240).all() if theme == "light" else (paper[:3] < 40).all()
    assert ink.max() > 180, "the text stands out from its paper"
    assert (ink[:, -8:] == 0).all(), "nothing reaches the right edge"


def page_of_views(folder: Path, ramp: np.ndarray) -> Path:
    """All views, with the longest of texts."""
    where = folder / ("a name with nothing to break " + "x" * 150) / ("y" * 200)
    gram = rd.open_gram(filled(where, ramp, 10, without={Tile(0, 1)}).location)
    failed = replace(STATUS, state="failed", failures={"(0, 1)": "z" * 900}, message="w" * 500)
    views = [rd.RNTK()._repr_html_(), gram._repr_html_(), gram.sequences._repr_html_()]
    kernels = grid(
        rd.RNTK(), {name: [0.1 * i for i in range(7)] for name in ("sigma_b", "sigma_h")}
    )
    views.append(sweep_html(empty_sweep(where.with_name("z" * 200), kernels)))
    page = folder / "page.html"
    body = "\n".join([*views, job_html(STATUS), job_html(failed)])
    style = "<style>:root { color-scheme: light dark; } body { margin: 12px; }</style>"
    # A sentinel: a page that is wider than the window scrolls.
    wide = "<script>if (document.documentElement.scrollWidth > innerWidth)"
    wide += " document.body.innerHTML = '';</script>"
    page.write_text(f"<!doctype html><meta charset='utf-8'>{style}{body}{wide}")
    return page


def screenshot(browser: str, theme: str, page: Path, folder: Path) -> np.ndarray:
    """(rows, columns, 4) of integers."""
    out = folder / f"{theme}.png"
    scheme = {"light": 1, "dark": 0}[theme]
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={folder / 'user'}"),
        *(f"--window-size={WIDTH},2000", f"--screenshot={out}", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return np.asarray(Image.open(out)).astype(int)
