"""A grid measured twice, one after the other, by what `make bench` has judged: do its relative times come out again?"""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from bench import machine, noise, records, runner, tables
from bench.commands import RESULTS, BadInput
from bench.grid import FAMILIES, Params
from bench.records import Record
from bench.stats import Estimate

HELP = f"""\
Measure every row of a grid twice, one pass after the other, and compare the relative times cell by cell. Verdicts and
truths are those that `make bench` left; nothing under results/ is touched. The machine should have nothing else to do.
Exit code: 0 all differ by at most {noise.PROMISED:g} %; 1 some do not; 2 bad input, or no cell could be compared."""


_Row = tuple[str, str]  # family, implementation


@dataclass(frozen=True)
class Again:
    """A cell in both passes; why_not: what kept it from being compared."""

    cell: str
    first: Estimate | None
    second: Estimate | None
    why_not: str | None = None

    @property
    def percent(self) -> float | None:
        """By how much the second relative time is the larger one."""
        return 100 * (self.second.value / self.first.value - 1) if self.first and self.second else None

    @property
    def within(self) -> bool:
        """Whether it came out again; False where it could not be compared."""
        return self.percent is not None and abs(self.percent) <= noise.PROMISED


def run(params: Params, asked: Namespace) -> int:
    """`python -m bench remeasure [GRID]`."""
    families = [family for family in FAMILIES if asked.grid in params.family(family).grids]
    chosen: list[_Row] = [(family, name) for family in families for name in params.family(family).implementations]
    if not chosen:
        raise BadInput(f"grid {asked.grid}: no family has it, allowed: {', '.join(_listed(params))}")
    results = RESULTS / params.machine
    for path in _needed(params, results, chosen, asked.grid):
        if not path.exists():
            raise BadInput(f"{path} is not there: run `make bench` first")
    try:
        identity = machine.recorded(results)
    except machine.OtherMachine as error:
        raise BadInput(str(error)) from None
    first, second = (_pass(params, results, identity, chosen, asked.grid) for _ in range(2))
    found = [compared(*both) for both in zip(first, second, strict=True)]
    counted = [one for one in found if one.percent is not None]
    print(_json(found) if asked.json else text(found, [*first, *second]))
    return 2 if not counted else int(not all(one.within for one in counted))


def text(found: list[Again], measured: list[Record]) -> str:
    """One line a cell, then how many came out again."""
    rows = [
        [one.cell, tables.interval(one.first), tables.interval(one.second), _percent(one)]
        for one in found
        if one.percent is not None
    ]
    headers = ["cell", "first", "second", "difference"]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 3))
    within = sum(one.within for one in found)
    lines = [f"{within} of {len(rows)} relative times came out again within {noise.PROMISED:g} %."]
    lines += [f"- {one.cell}: not compared, {one.why_not}" for one in found if one.why_not]
    return "\n".join([table, "", *lines, *noise.notes(measured)])


def _listed(params: Params) -> dict[str, None]:
    return dict.fromkeys(grid for family in FAMILIES for grid in params.family(family).grids)


def _needed(params: Params, results: Path, chosen: list[_Row], grid: str) -> list[Path]:
    verdicts = [records.verdict_path(results, name) for _, name in chosen]
    return [results / "machine.json", *verdicts, *(runner.ORACLE / family / grid for family, _ in chosen)]


def _pass(params: Params, results: Path, identity: dict[str, object], chosen: list[_Row], grid: str) -> list[Record]:
    found = []
    for family, name in chosen:
        with tempfile.TemporaryDirectory(prefix="attn-bench-") as scratch:
            campaign = runner.Campaign.recorded(params, identity, results, family, name, grid, Path(scratch))
            found += runner.run(campaign)
    return found


def compared(first: Record, second: Record) -> Again:
    """The same cell in both passes."""
    cell = f"{first.implementation} {tables.where(first)}"
    one, other = (_relative(record) for record in (first, second))
    reasons = [record.reason or record.not_compared for record in (first, second)]
    return Again(cell, one, other, None if one and other else next(filter(None, reasons), "no relative time"))


def _relative(record: Record) -> Estimate | None:
    found = record.figures and record.figures.relative_time
    return Estimate(found.value, found.low, found.high) if found else None


def _percent(one: Again) -> str:
    return f"{one.percent:+.1f} %{'' if one.within else ' !'}"


def _json(found: list[Again]) -> str:
    return json.dumps([asdict(one) | {"percent": one.percent, "within": one.within} for one in found], indent=1)
