"""Markdown tables, targets with their verdict, and the marked parts of a document."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """A part of the report: printed under its title, written between the markers of its name."""

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Target:
    """What is asked for, and what this run measured."""

    what: str
    limit: float
    measured: float
    at_least: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether the measured figure is on the right side of the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def row(self) -> tuple[str, str, str, str]:
        """As a row of the table of targets."""
        sign = ">=" if self.at_least else "<="
        asked, found = f"{sign} {self.limit:g} {self.unit}", f"{self.measured:.3g} {self.unit}"
        return self.what, asked, found, "met" if self.met else "MISSED"


def target_table(targets: Iterable[Target]) -> str:
    """All targets, one a row."""
    heads = ("target", "asked", "measured", "verdict")
    return table(heads, [target.row() for target in targets], left=1)


def fact_list(facts: Mapping[str, str]) -> str:
    """Facts one a line."""
    return "\n".join(f"* {name}: {value}" for name, value in facts.items())


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, left: int) -> str:
    """A Markdown table in columns; the first `left` of them are text, the others numbers."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(_line(line, widths, left) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    aligned = (
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return f"| {' | '.join(aligned)} |"


def part_of_a_run(sections: Iterable[Section], machine: Mapping[str, str]) -> list[Section]:
    """The sections of a run of one part, each with when and where it was taken.

    Those on the machine and on all targets are of whole runs.
    """
    load = machine["load before the run"]
    taken = f"Taken by itself on {machine['date']}: {machine['machine']}, load before it {load}."
    own = [section for section in sections if section.name not in ("machine", "targets")]
    return [replace(section, text=f"{section.text}\n\n{taken}") for section in own]


def write_sections(path: Path, sections: Iterable[Section]) -> list[str]:
    """Replace the text between the markers of each section; all else stays as it is.

    The markers of a section stand on lines of their own: `<!-- bench:begin NAME -->` and
    `<!-- bench:end NAME -->`. Returns the names of the sections that the file has no markers for.
    """
    text, absent = path.read_text(encoding="utf-8"), []
    for section in sections:
        begin, end = (f"<!-- bench:{word} {section.name} -->" for word in ("begin", "end"))
        start = text.find(begin)
        stop = text.find(end, start)
        if start < 0 or stop < 0:
            absent.append(section.name)
            continue
        text = f"{text[:start]}{begin}\n\n{section.text}\n\n{text[stop:]}"
    path.write_text(text, encoding="utf-8")
    return absent
