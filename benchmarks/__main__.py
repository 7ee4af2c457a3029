"""`python -m benchmarks`: everything that is measured, as Markdown tables, in one run.

Only ratios within one run say something about the code; times say something about the machine.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import (
    alternatives,
    end_to_end,
    jax_scan,
    low_rank,
    neighbors,
    scale,
    scheduler,
    solvers,
    sweep,
    tiles,
)
from benchmarks.report import (
    Section,
    Target,
    fact_list,
    part_of_a_run,
    target_table,
    write_sections,
)
from benchmarks.timing import facts, installed, one_core

type Measure = Callable[[bool, list[Target]], Iterator[Section]]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and, where asked to, write."""
    options = _options(argv)
    machine, targets = facts(), list[Target]()
    sections = [Section("machine", "Machine and versions", fact_list(machine))]
    _show(sections[0])
    for measure in PARTS[options.only]:
        _say(f"measuring {measure.__name__.strip('_').replace('_', ' ')} ...")
        for section in measure(options.quick, targets):
            sections.append(section)
            _show(section)
    if targets:
        sections.append(Section("targets", "Targets", target_table(targets)))
        _show(sections[-1])
    if options.write:
        if options.only:
            sections = part_of_a_run(sections, machine)
        absent = write_sections(options.write, sections)
        _say(f"wrote {options.write}" + (f", without {', '.join(absent)}" if absent else ""))


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rows")
    parser.add_argument("--only", choices=[name for name in PARTS if name], help="one part of it")
    help_ = "replace the text between the markers <!-- bench:begin NAME --> of this file; with "
    help_ += "--only, those of that part alone, which then say when they were taken"
    parser.add_argument("--write", type=Path, metavar="FILE", help=help_)
    options = parser.parse_args(argv)
    if options.write and options.quick:
        parser.error("--write takes whole sizes: leave out --quick")
    if options.write and not options.write.exists():
        parser.error(f"{options.write} is not there: write it first, with its markers")
    return options


# -- the parts: each yields its sections and adds its targets --------------------------------------


def _headline(quick: bool, targets: list[Target], jax: bool = False) -> Iterator[Section]:
    size = tiles.Size(128, 100) if quick else tiles.HEADLINE
    with one_core():
        others = jax_scan.jax_calls(tiles.Problem.of(tiles.Setting(), size)) if jax else {}
        found, rest = tiles.measure_headline(size, others, repeats=5 if quick else 9)
    targets += tiles.headline_targets(found, rest)
    title = f"One tile of {size.sequences} x {size.sequences} pairs, T = {size.steps}, one core"
    yield Section("headline", title, tiles.headline_table(found, rest))


def _headline_and_jax(quick: bool, targets: list[Target]) -> Iterator[Section]:
    _name_missing("jax")
    return _headline(quick, targets, jax=True)


def _grid(quick: bool, targets: list[Target]) -> Iterator[Section]:
    rows = {}
    with one_core():
        for setting in tiles.settings(quick):
            rows[setting] = tiles.measure(setting, tiles.size_of(setting, quick))
            _say(".", end="")
    _say("")
    title = "Whole calls on one core, ns a pair-step"
    yield Section("grid", title, tiles.grid_table(rows))


def _alternatives(quick: bool, targets: list[Target]) -> Iterator[Section]:
    size = alternatives.QUICK if quick else alternatives.SIZE
    _name_missing("aeon", "tslearn")
    with one_core():
        rows = alternatives.measure_alternatives(size)
    title = f"What else compares sequences, {size.sequences} x {size.sequences}, T = {size.steps}"
    yield Section("alternatives", title, alternatives.alternatives_table(rows))


def _end_to_end(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = end_to_end.measure_end_to_end(end_to_end.QUICK if quick else end_to_end.Sizes())
    targets += end_to_end.end_to_end_targets(found)
    title = "rd.gram on two worker processes, float32, local store"
    yield Section("end-to-end", title, end_to_end.summary_table(found))
    yield Section("task", "Where the time of one task goes", end_to_end.parts_table(found))
    yield Section("scaling", "Cost against N and T", end_to_end.scaling_table(found))


def _scheduler(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = scheduler.measure_scheduler(scheduler.QUICK if quick else scheduler.BLOCKS)
    targets += scheduler.scheduler_targets(found)
    title = f"{found.tiles} tiles of no work on two worker processes: what the scheduler keeps"
    yield Section("scheduler", title, scheduler.scheduler_table(found))


def _sweep(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = sweep.measure_sweep(sweep.QUICK if quick else None)
    targets += sweep.sweep_targets(found)
    sizes = found.sizes
    title = f"{sizes.kernels} kernels over {sizes.sequences} sequences, T = {sizes.steps}, float64"
    yield Section("sweep", title, sweep.sweep_table(found))


def _solvers(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = solvers.measure_solvers(solvers.QUICK if quick else solvers.Sizes())
    targets += solvers.solvers_targets(found)
    title = f"Products with a stored float32 matrix, N = {found.sizes.products}"
    yield Section("products", title, solvers.products_table(found))
    yield Section("solvers", "Solvers past the size of memory", solvers.solvers_table(found))
    title = f"Solvers in memory, N = {found.sizes.held}"
    yield Section("solvers-in-memory", title, solvers.held_table(found))


def _scale(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = scale.measure_scale(*((scale.QUICK, 1.0) if quick else (scale.SIZES,)))
    targets += scale.scale_targets(found)
    title = f"Seconds of rd.gram, as `plan --samples` predicts them, T = {scale.STEPS}, float32"
    yield Section("scale", title, scale.scale_table(found))
    yield Section("routes", "What each route would cost", scale.routes_table(found))


def _neighbors(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = neighbors.measure_neighbors(neighbors.QUICK if quick else neighbors.Sizes())
    targets += neighbors.neighbors_targets(found)
    sizes = found.sizes
    title = f"Nearest neighbours, {sizes.queries} x {sizes.training} item sequences, float32"
    yield Section("neighbors", title, neighbors.neighbors_table(found))


def _low_rank(quick: bool, targets: list[Target]) -> Iterator[Section]:
    found = low_rank.measure_low_rank(low_rank.QUICK if quick else low_rank.Sizes())
    targets += low_rank.low_rank_targets(found)
    sizes = found.sizes
    title = f"Ridge regression on {sizes.centers} centres, T = {sizes.steps}, float32"
    yield Section("falkon", title, low_rank.falkon_table(found))
    title = f"A walk over the columns of the centres, N = {sizes.falkon}"
    yield Section("panels", title, low_rank.panels_table(found))


PARTS: dict[str | None, tuple[Measure, ...]] = {
    None: (
        _headline_and_jax,
        _grid,
        _alternatives,
        _end_to_end,
        _scheduler,
        _sweep,
        _solvers,
        _scale,
        _neighbors,
        _low_rank,
    ),
    "tiles": (_headline, _grid),
    "jax": (_headline_and_jax,),
    "alternatives": (_alternatives,),
    "end-to-end": (_end_to_end,),
    "scheduler": (_scheduler,),
    "sweep": (_sweep,),
    "solvers": (_solvers,),
    "scale": (_scale,),
    "neighbors": (_neighbors,),
    "low-rank": (_low_rank,),
}


def _name_missing(*packages: str) -> None:
    missing = [name for name in packages if not installed(name)]
    if missing:
        _say(f"not installed, rows left out: {', '.join(missing)} (the extra `bench` has them)")


def _show(section: Section) -> None:
    print(f"## {section.title}\n\n{section.text}\n", flush=True)


def _say(words: str, end: str = "\n") -> None:
    print(words, file=sys.stderr, end=end, flush=True)


if __name__ == "__main__":
    main()
