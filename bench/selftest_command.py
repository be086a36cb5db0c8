"""`python -m bench selftest aa` and `power`: what they can be told, and what they print."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from fractions import Fraction

from bench import machine
from bench.commands import RESULTS, BadInput
from bench.duel_command import BUDGET_S, stopped_by_signals
from bench.grid import Params, valid_name
from bench.progress import steps

DUELS = {"aa": 300, "power": 60}
INJECTED = (3.0, 5.0, 10.0)
MOST_N = 100  # calls: so many must fit into a slice
HELP = """\
Does `duel` say the truth on this machine? `aa` duels this tree against itself: whatever comes out slower or faster
is a false alarm. `power` adds real work to one side, k more calls in every n, and counts how often it is found.
Every second duel has a busy process beside it. Each is recorded in results/MACHINE/selftest.jsonl when it is over,
and an interrupted self-test goes on where it stopped. A duel takes half a minute; --duels says how many of a kind
there shall be in all, those recorded already included, so that 0 just prints what there is. Exit code: 0 done, 2
bad input.
"""


def arguments(sub: argparse.ArgumentParser) -> None:
    """What `selftest` can be told."""
    sub.add_argument("kind", choices=sorted(DUELS), help="false alarms, or power")
    sub.add_argument("--duels", type=int, metavar="N", help="of a kind; 300 of aa, 60 of each injection of power")
    sub.add_argument(
        "--injection", type=float, nargs="+", metavar="PERCENT", help="of power: how much more work; 3 5 10"
    )
    sub.add_argument("--budget", metavar="SECONDS", type=float, default=BUDGET_S, help=f"of a duel; {BUDGET_S}")
    sub.add_argument("--json", action="store_true", help="the lines of these duels without samples, as one document")


def selftest(params: Params, asked: Namespace) -> int:
    """Fight what is still to be fought, then say what was found."""
    from bench import selftest as tests
    from bench import selftest_records as records
    from bench import selftest_tables, worktrees

    if not 0 < asked.budget < float("inf"):
        raise BadInput(f"--budget {asked.budget:g}, allowed: seconds above 0")
    duels = DUELS[asked.kind] if asked.duels is None else asked.duels
    if duels < 0:
        raise BadInput(f"--duels {duels}, allowed: 0 and above")
    conditions = [records.Condition(extra=extra, budget_s=asked.budget) for extra in _extras(asked)]
    name = asked.machine or params.machine
    if not valid_name(name):
        raise BadInput(f"machine {name}, allowed: letters, digits, _ and -")
    path, identity = RESULTS / name / records.NAME, machine.identity(params)
    try:
        machine.refuse_other_machine(name, identity, path.with_name("machine.json"))
        with stopped_by_signals(), records.opened(path, tests.header(identity)) as writer:
            todo = tests.outstanding(writer.fought, conditions, duels)
            with steps(f"selftest {asked.kind}", len(todo)) as progress:
                tests.run(params, identity, todo, writer, progress)
            shown = [one for one in writer.fought if one.condition in conditions]
    except (records.CannotRecord, machine.OtherMachine, worktrees.NoSuchRevision, ValueError) as error:
        raise BadInput(" ".join(str(error).split())) from None
    if asked.json:
        print(json.dumps([one.model_dump(mode="json", exclude={"samples"}) for one in shown], indent=1))
    else:
        print(selftest_tables.text(path), end="")
    return 0


def _extras(asked: Namespace) -> list[tuple[int, int]]:
    """Of each injection, k and n."""
    if asked.kind == "aa":
        if asked.injection:
            raise BadInput("--injection: only `power` adds work")
        return [(0, 1)]
    found = []
    for percent in asked.injection or INJECTED:
        share = Fraction(str(percent)) / 100 if 0 < percent <= 100 else Fraction(0)
        if not 0 < share <= 1 or share.denominator > MOST_N:
            raise BadInput(f"--injection {percent:g}, allowed: above 0 up to 100, k in n with n up to {MOST_N}, as 2.5")
        found.append((share.numerator, share.denominator))
    return list(dict.fromkeys(found))
