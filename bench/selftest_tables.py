"""What a self-test has found, in words and a table: generated from its record, for the screen and for the docs."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from bench import machine
from bench.rates import share
from bench.selftest_records import Condition, Fought, Header, Told, read

COLUMNS = 100
_RULES = {
    "pyperf": "pyperf {version} compare_to",
    "asv": "asv {version} compare",
    "pytest-benchmark": "pytest-benchmark {version} mean:5%",
    "torch": "torch {version} Compare",
}

_Calls = Callable[[Fought], str | None]  # what a rule calls head; None where it was not asked


def text(path: Path) -> str:
    """All of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what we wrote.
    """
    header, fought = read(path)
    lines = _about(header, fought)
    for budget_s in sorted({one.condition.budget_s for one in fought}):
        lines += ["", *_of_budget(header, [one for one in fought if one.condition.budget_s == budget_s], budget_s)]
    return "\n".join(lines) + "\n"


def _about(header: Header, fought: Sequence[Fought]) -> list[str]:
    days = sorted({one.at[:10] for one in fought}) or ["never"]
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    failed = Counter(one.failed for one in fought if one.failed)
    lines = [
        f"machine: {machine.in_words(header.machine)}",
        f"{len(fought)} duels of one small cell, {sum(one.busy for one in fought)} of them beside a busy process; "
        f"measured {when}, code {header.code}",
        *(f"{count} could not compare: {reason}" for reason, count in failed.items()),
    ]
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ")]


def _of_budget(header: Header, fought: list[Fought], budget_s: float) -> list[str]:
    compared = [one for one in fought if one.wall]
    if not compared:
        return [f"--budget {budget_s:g}: nothing could be compared"]
    conditions = sorted({one.condition for one in compared}, key=lambda one: one.truth_percent)
    rows = [
        [words, *(_rate([one for one in of if one.condition == condition], calls) for condition in conditions)]
        for words, of, calls in _rules(header, compared)
    ]
    headers = [f"--budget {budget_s:g}", *(_what(condition) for condition in conditions)]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
    return [*table.splitlines(), "", *_sentences(compared)]


def _what(condition: Condition) -> str:
    if not condition.extra[0]:
        return "false alarms,\n%"
    return f"{condition.truth_percent:g} % more work\nfound, %"


def _rules(header: Header, fought: list[Fought]) -> list[tuple[str, list[Fought], _Calls]]:
    """A line of the table each: its words, of which duels, and what is called slower or faster."""
    quiet, busy = ([one for one in fought if one.busy is wanted] for wanted in (False, True))
    one_thread = [one for one in fought if one.cpu]
    lines: list[tuple[str, list[Fought], _Calls]] = [
        ("duel", fought, _by_wall),
        ("- with nothing beside it", quiet, _by_wall),
        ("- beside a busy process", busy, _by_wall),
        ("duel --clock cpu", one_thread, _by_cpu),
    ]
    for name, words in _RULES.items():
        asked = [one for one in fought if one.rivals.get(name, "not installed") != "not installed"]
        said = words.format(version=header.rivals[name].partition("+")[0])
        lines.append((said if asked else f"{name}: not installed", asked, _by_rival(name)))
    return lines


def _by_wall(one: Fought) -> str | None:
    return one.wall.verdict if one.wall else None


def _by_cpu(one: Fought) -> str | None:
    return one.cpu.verdict if one.cpu else None


def _by_rival(name: str) -> _Calls:
    return lambda one: one.rivals[name]


def _rate(fought: list[Fought], calls: _Calls) -> str:
    """How often something was called slower, or without any difference, slower or faster."""
    if not fought:
        return "-"
    alarms = ("slower", "faster") if not fought[0].condition.extra[0] else ("slower",)
    found = share(sum(calls(one) in alarms for one in fought), len(fought))
    return f"{found.value:.3g} [{found.low:.1f}, {found.high:.1f}] of {len(fought)}"


def _sentences(fought: list[Fought]) -> list[str]:
    seconds = np.percentile([one.seconds for one in fought], [5, 50, 95])
    walls = [(one.condition, one.wall) for one in fought if one.wall]
    cpus = [(one.condition, one.cpu) for one in fought if one.cpu]
    verdicts = Counter(told.verdict for condition, told in walls if not condition.extra[0])
    lines = [
        f"A duel took {seconds[1]:.0f} s (median; nine of ten {seconds[0]:.0f} to {seconds[2]:.0f} s) and "
        f"{np.median([told.pairs for _, told in walls]):.0f} pairs (median).",
        f"Intervals that hold the truth: {_holding(walls)}" + (f"; by --clock cpu: {_holding(cpus)}." if cpus else "."),
    ]
    if verdicts:
        words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        lines.append(f"Without any difference: {words}.")
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ")]


def _holding(told: list[tuple[Condition, Told]]) -> str:
    held = [one.low_percent <= condition.truth_percent <= one.high_percent for condition, one in told]
    found = share(sum(held), len(held))
    return f"{found.value:.3g} % [{found.low:.1f}, {found.high:.1f}] of {len(held)}"
