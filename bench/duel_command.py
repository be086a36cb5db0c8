"""`python -m bench duel BASE [HEAD]`: what it prints, and its exit code."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from tabulate import tabulate

from bench import machine, noise
from bench.commands import BadInput
from bench.grid import Params

if TYPE_CHECKING:
    from bench.duel import Outcome
    from bench.duel_cells import Chosen
    from bench.worktrees import Side

SLOWER, INCONCLUSIVE, COULD_NOT = 1, 2, 3
_SHOWN = 3
BUDGET_S = 40
HELP = """\
Is HEAD slower than BASE? Both revisions are judged and timed by the harness of the work tree, in pairs of fresh
processes that take turns, on the cells of params.yaml whose code differs. After 8, 12 and 16 pairs there is a look,
and the first that decides ends the cell. Pairs are made so long that 16 fill the budget, but of small cells at most 3
s; what a larger budget leaves adds looks (24, 32, 48, 64, 96, 128). Of more than 6 cells the first look is at 12.
`slower` and `faster`: by more than 1 %; `same`: within 3 %. Rings, and what does not fit into memory twice, go in
whole processes, with looks at 8 and 16. Exit code: 0 the same or faster, 1 slower, 2 inconclusive, 3 could not
compare.
"""


def arguments(sub: argparse.ArgumentParser) -> None:
    """What `duel` can be told."""
    sub.add_argument("base", metavar="BASE", help="a revision: a branch, a tag, a commit")
    sub.add_argument("head", metavar="HEAD", nargs="?", help="another; left out, the work tree as it is")
    sub.add_argument("--cells", metavar="REGEX", help="cells whose names match, also where their code is the same")
    sub.add_argument(
        "--budget", metavar="SECONDS", type=float, default=BUDGET_S, help=f"of a cell; {BUDGET_S} when left out"
    )
    sub.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time on one thread, for a busy machine"
    )
    sub.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")


def duel(params: Params, asked: Namespace) -> int:
    """Exit 0 the same or faster, 1 slower, 2 inconclusive, 3 could not compare."""
    from bench import duel as duels
    from bench import duel_cells, worktrees
    from bench.duel_pairs import Failed

    if not 0 < asked.budget < float("inf"):
        raise BadInput(f"--budget {asked.budget:g}, allowed: seconds above 0")
    try:
        re.compile(asked.cells or "")
    except re.error as error:
        raise BadInput(f"--cells {asked.cells}: not a regular expression: {error}") from None
    identity = machine.identity(params)
    if asked.clock == "cpu" and identity["device"] != "cpu":
        raise BadInput(f"--clock cpu: the device is {identity['device']}, allowed: wall")
    try:
        with stopped_by_signals(), worktrees.sides(asked.base, asked.head) as both:
            chosen = duel_cells.choose(params, identity, both, asked.cells, asked.clock)
            if asked.cells is not None and not (chosen.cells or chosen.skipped or chosen.broken):
                raise BadInput(f"--cells {asked.cells}: no cell of params.yaml matches")
            state = machine.state() | noise.before()
            if chosen.cells:
                noise.warn(state)
            outcomes = duels.run(params, identity, both, chosen, budget_s=asked.budget, clock=asked.clock)
            left_out = chosen.rows | chosen.skipped
            outcomes += [duels.Outcome(name, "skipped", reason) for name, reason in left_out.items()]
    except (worktrees.NoSuchRevision, Failed) as error:
        raise BadInput(f"could not compare: {error}") from None
    code, sentence = conclusion(outcomes, both, chosen)
    if asked.json:
        document = _document(identity, both, outcomes, sentence) | {"state": state}
        print(json.dumps({**document, "clock": asked.clock, "exit_code": code}, indent=1, allow_nan=False))
    else:
        print("\n".join([*_lines(outcomes), sentence]))
    return code


def conclusion(outcomes: list[Outcome], both: tuple[Side, Side], chosen: Chosen) -> tuple[int, str]:
    """The exit code and one sentence. What could not be compared counts most, then what is slower."""
    base, head = (side.words for side in both)
    by = {one.verdict: [o for o in outcomes if o.verdict == one.verdict] for one in outcomes}
    failed, slower, unsure = (by.get(word, []) for word in ("could not compare", "slower", "inconclusive"))
    compared = [one for one in outcomes if one.verdict != "skipped"]
    if failed:
        first = f"{failed[0].cell}: {failed[0].reason}"
        return COULD_NOT, f"Could not compare {len(failed)} of {len(compared)} cells; {first}."
    if slower:
        named = [f"{one.cell} by {one.change_percent.value:.1f} %" for one in slower if one.change_percent]
        return SLOWER, f"{head} is slower than {base} in {len(slower)} of {len(compared)} cells: {_some(named)}."
    if unsure:
        sees = max(one.sees_percent or 0.0 for one in unsure)
        words = f"{len(unsure)} of {len(compared)} cells; a difference of {sees:.1f} % would have been seen"
        return INCONCLUSIVE, f"Inconclusive, {head} against {base}: {words}."
    if compared:
        counts = ", ".join(f"{len(by[word])} {word}" for word in ("faster", "same") if word in by)
        return 0, f"{head} is not slower than {base}: {counts}."
    if chosen.cells or chosen.skipped:
        return COULD_NOT, f"Could not compare {head} with {base}: every cell was skipped."
    return 0, f"No row that both have differs between {base} and {head}: there is nothing to measure."


def _lines(outcomes: list[Outcome]) -> list[str]:
    """The table, and below it whatever needs words."""
    rows = [
        [
            one.cell,
            f"{one.base_ms:.4g}",
            f"{one.head_ms:.4g}",
            f"{one.change_percent.value:+.1f} [{one.change_percent.low:+.1f}, {one.change_percent.high:+.1f}]",
            f"{one.verdict} (sees {one.sees_percent:.1f} %)" if one.sees_percent else one.verdict,
            len(one.pairs),
            f"{one.seconds:.0f}",
        ]
        for one in outcomes
        if one.change_percent
    ]
    headers = ["cell", "base ms", "head ms", "change % [interval]", "verdict", "pairs", "seconds"]
    lines = [tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True), ""] if rows else []
    lines += [f"{one.cell}: {one.verdict}: {one.reason}" for one in outcomes if one.reason and one.verdict != "skipped"]
    reasons: dict[str, list[str]] = {}
    for one in outcomes:
        if one.verdict == "skipped":
            reasons.setdefault(str(one.reason), []).append(one.cell)
    return lines + [f"not measured, {reason}: {_some(names)}" for reason, names in reasons.items()]


def _some(names: list[str]) -> str:
    """The first few by name; --json has all."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _document(
    identity: dict[str, Any], both: tuple[Side, Side], outcomes: list[Outcome], sentence: str
) -> dict[str, Any]:
    sides = {side.name: {"revision": side.revision, "commit": side.commit or None} for side in both}
    return {**sides, "machine": identity, "cells": [asdict(one) for one in outcomes], "sentence": sentence}


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end this as Ctrl-C does: with everything put away."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
