"""HTML for notebooks: cards of facts, bars and small pictures, from plain values alone.

What is put in is text, and is escaped: a label, a path or the cause of a failure may hold anything.
Only what these functions return is taken for HTML. A card keeps to the theme of JupyterLab and VS
Code, and elsewhere to the reader's light or dark; where styles are stripped a plain table is left.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

from markupsafe import Markup

type Html = Markup
"""HTML that was made here."""

type Text = str | Html
"""Text, which is escaped, or HTML."""

_STYLE = Markup("""<style>
.rntk { --rntk-ink: var(--jp-content-font-color0, var(--vscode-editor-foreground, #1b1b1b));
  --rntk-dim: var(--jp-content-font-color2, var(--vscode-descriptionForeground, #5a5a5a));
  --rntk-paper: var(--jp-layout-color0, var(--vscode-editor-background, #ffffff));
  --rntk-line: var(--jp-border-color2, var(--vscode-panel-border, #d0d0d0));
  --rntk-done: #2b8cc4; --rntk-bad: #c8560a; --rntk-hatch: #8a8a8a;
  color: var(--rntk-ink); background: var(--rntk-paper); border: 1px solid var(--rntk-line);
  border-radius: 4px; padding: 8px 12px; margin: 2px 0; max-width: 860px; box-sizing: border-box;
  font-family: var(--jp-content-font-family, system-ui, sans-serif); font-size: 13px;
  line-height: 1.45; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .rntk {
  --rntk-ink: var(--jp-content-font-color0, var(--vscode-editor-foreground, #e6e6e6));
  --rntk-dim: var(--jp-content-font-color2, var(--vscode-descriptionForeground, #a8a8a8));
  --rntk-paper: var(--jp-layout-color0, var(--vscode-editor-background, #161616));
  --rntk-line: var(--jp-border-color2, var(--vscode-panel-border, #454545)); } }
.rntk .rntk-head { display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline; }
.rntk .rntk-dim, .rntk .rntk-facts th, .rntk summary { color: var(--rntk-dim); }
.rntk .rntk-body { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: flex-start; }
.rntk .rntk-body > div { flex: 0 1 400px; min-width: 0; }
.rntk .rntk-body > .rntk-picture { flex: 0 1 auto; max-width: 100%; }
.rntk table.rntk-facts { border: 0; border-collapse: collapse; margin: 4px 0; font-size: 13px;
  table-layout: auto; color: inherit; }
.rntk table.rntk-facts tbody tr:nth-child(n) { background: none; border: 0; }
.rntk .rntk-facts th, .rntk .rntk-facts td { text-align: left; vertical-align: top; border: 0;
  padding: 1px 14px 1px 0; font-weight: normal; white-space: normal; max-width: none;
  overflow-wrap: anywhere; }
.rntk .rntk-facts th { white-space: nowrap; }
.rntk .rntk-bar { height: 8px; max-width: 360px; border: 1px solid var(--rntk-line);
  border-radius: 4px; overflow: hidden; margin: 4px 0; }
.rntk .rntk-bar > div { height: 100%; background: var(--rntk-done); }
.rntk .rntk-note { margin: 4px 0 2px; padding-left: 8px; border-left: 3px solid var(--rntk-bad); }
.rntk .rntk-picture img { display: block; max-width: 100%; margin: 0;
  image-rendering: pixelated; background: repeating-linear-gradient(45deg, transparent 0 3px,
  var(--rntk-hatch) 3px 4px); }
.rntk .rntk-picture svg { display: block; max-width: 100%; }
.rntk .rntk-caption { color: var(--rntk-dim); font-size: 12px; max-width: 280px; }
.rntk a { color: var(--jp-content-link-color, inherit); text-decoration: underline; }
</style>""")

_VIRIDIS = bytes.fromhex(
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c"
    "1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
"""Matplotlib's colour map at 17 even places; between them it is all but straight."""

TOP = 255
"""The brightest pixel of `image`; 1 is the darkest, and 0 shows the hatching behind the picture."""


# -- the parts of a card ---------------------------------------------------------------------------


def card(title: Text, summary: Text, *parts: Html) -> str:
    """A whole view: a headline and parts, side by side where there is room."""
    head = Markup('<div class="rntk-head"><b>{}</b> <span class="rntk-dim">{}</span></div>')
    body = Markup('<div class="rntk-body">{}</div>').format(join(parts))
    return str(
        Markup('{}<div class="rntk">{}{}</div>').format(_STYLE, head.format(title, summary), body)
    )


def group(*parts: Html) -> Html:
    """Parts that stand one under another."""
    return Markup("<div>{}</div>").format(join(parts))


def join(parts: Iterable[Html]) -> Html:
    """Parts one after another."""
    return Markup("").join(parts)


def facts(rows: Iterable[tuple[str, Text]]) -> Html:
    """A table of names and values."""
    row = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>')
    table = Markup('<table class="rntk-facts"><tbody>{}</tbody></table>')
    return table.format(join(row.format(name, value) for name, value in rows))


def strong(text: str) -> Html:
    """Text that stands out."""
    return Markup("<b>{}</b>").format(text)


def note(text: str) -> Html:
    """A sentence that asks for attention."""
    return Markup('<div class="rntk-note">{}</div>').format(text)


def folded(summary: str, part: Html) -> Html:
    """A part that is shown when its summary is clicked."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, part)


def bar(done: int, total: int) -> Html:
    """A bar filled to done / total, which is said in words too for who cannot see it."""
    share = 100 * done / total if total else 100
    said = f"{done} of {total}"
    return Markup(
        '<div class="rntk-bar" role="img" aria-label="{}"><div style="width: {}%"></div></div>'
    ).format(said, f"{share:.4g}")


def link(url: str) -> Text:
    """A link to a web page; any other scheme, which could be a script, stays text."""
    if not url.startswith(("http://", "https://")):
        return url
    return Markup('<a href="{0}" target="_blank" rel="noopener">{0}</a>').format(url)


# -- pictures --------------------------------------------------------------------------------------


def picture(drawn: Html | None, caption: str) -> Html:
    """A picture and what is to be said of it; None where that says why there is no picture."""
    said = Markup('<div class="rntk-caption">{}</div>').format(caption)
    return Markup('<div class="rntk-picture">{}{}</div>').format(drawn or "", said)


def image(pixels: Sequence[bytes], alt: str, *, longest: int = 200) -> Html:
    """A picture from rows of one byte a pixel, in the colours of viridis.

    0 is transparent and shows hatching, 1 is dark, `TOP` is bright. Scaled so that its longer side
    has `longest` screen pixels.
    """
    height, width = len(pixels), len(pixels[0])
    scale = longest / max(height, width)
    data = base64.b64encode(_png(pixels)).decode()
    return Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">').format(
        alt, max(1, round(scale * width)), max(1, round(scale * height)), data
    )


def curves(series: Sequence[Sequence[float]], alt: str) -> Html:
    """Finite series of numbers as lines one above another, each over its own range."""
    width, height, gap = 240, 26, 6
    lines = [_line(values, width, height, (height + gap) * i) for i, values in enumerate(series)]
    total = (height + gap) * len(series)
    return Markup(
        '<svg role="img" aria-label="{}" width="{}" height="{}" viewBox="-1 -1 {} {}" '
        'xmlns="http://www.w3.org/2000/svg">{}</svg>'
    ).format(alt, width, total, width + 2, total, join(lines))


def _line(values: Sequence[float], width: int, height: int, top: int) -> Html:
    low, high = min(values), max(values)
    # Halved first: the range of two finite numbers may exceed the largest one.
    spread = (high / 2 - low / 2) or 1.0
    step = width / max(len(values) - 1, 1)
    points = [
        f"{step * k:.1f},{top + height - height * ((value / 2 - low / 2) / spread):.1f}"
        for k, value in enumerate(values)
    ]
    if len(points) == 1:
        points.append(f"{width},{points[0].split(',')[1]}")
    return Markup(
        '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="1.2"/>'
    ).format(" ".join(points))


def _png(pixels: Sequence[bytes]) -> bytes:
    """An 8-bit picture with a palette; see the PNG specification, section 11."""
    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 3, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in pixels)  # each begins with its filter, which is none
    parts = (
        (b"IHDR", header),
        (b"PLTE", bytes(3) + _palette(TOP)),
        (b"tRNS", b"\0"),  # how opaque the first colour is
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _palette(size: int) -> bytes:
    """`size` colours of viridis, 3 bytes each."""
    anchors = [_VIRIDIS[k : k + 3] for k in range(0, len(_VIRIDIS), 3)]
    pairs = list(pairwise(anchors))
    out = bytearray()
    for k in range(size):
        place = k * len(pairs) / (size - 1)
        left, right = pairs[min(int(place), len(pairs) - 1)]
        share = place - min(int(place), len(pairs) - 1)
        out += bytes(round(a + share * (b - a)) for a, b in zip(left, right, strict=True))
    return bytes(out)
