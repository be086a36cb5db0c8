"""The command line: `python -m bench COMMAND`. Every command begins by validating params.yaml."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

try:
    from bench import (
        build_command,
        commands,
        duel_command,
        grid,
        kept,
        project_command,
        prune,
        remeasure,
        selftest_command,
    )
    from bench import gpu as gpu_command
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] in ("attn", "bench"):
        raise
    how = "use .venv/bin/python, which `make bench` sets up, or, beside a torch that is there, `make gpu-packages`"
    sys.exit(f"{sys.executable} lacks the package {error.name}: {how}")

_EXAMPLES = """\
examples:
  python -m bench list                          what there is, what it can do, why it cannot run here
  python -m bench check improved                judge a row; exit 1 when it is wrong
  python -m bench check my/idea.py --json       judge a file from anywhere
  python -m bench run improved --grid seed      measure without DVC
  python -m bench duel main                     is the work tree slower than main? exit 1 when it is
  python -m bench selftest aa                   how often does duel cry wolf on this machine?
  python -m bench table seed                    the seed table, from what is recorded
  python -m bench remeasure seed                do relative times come out again on this machine?
  python -m bench table overhead                where the time of a measurement went
  python -m bench diff main                     what is slower than what main has recorded
  python -m bench publish my-laptop             keep what was measured here under a name
  python -m bench prune                         remove what removed rows left behind
  python -m bench gpu                           on a GPU: judge and measure gpu.yaml in 9 minutes
  python -m bench gate                          exit 1 where a row is wrong, crashed or timed out
"""

_DIFF = """\
Compare the recorded results of two revisions, read from git and DVC without a checkout. A row is compared by the ratio
to its yardstick, taken in turns in one process, where the yardstick is the same at both, else by its time. Two recorded
runs are two moments of a machine: for a decision use `python -m bench duel`. Exit code: 0 nothing is slower; 1 a cell
is slower, or was ok and is incorrect, crashed, timed out or out of memory; 2 neither, but some changes are
inconclusive; 3 could not compare: bad input, nothing recorded, another machine, or no cell with figures at both."""

_Command = Callable[[grid.Params, argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Bad input has the exit code of its command."""

    bad_input = 2

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(self.bad_input, f"{self.prog}: error: {message}\n")


_Add = Callable[..., _Parser]


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = _Parser(
        prog="python -m bench",
        description="Benchmarks of attention: judged, then measured, then recorded.",
        epilog=_EXAMPLES,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),  # the README shows it
    )
    subs = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: _Command, help_: str, example: str, words: str = "", bad_input: int = 2) -> _Parser:
        epilog = f"example: python -m bench {example}"
        sub = subs.add_parser(name, help=help_, description=words or help_, epilog=epilog)
        sub.bad_input = bad_input
        sub.set_defaults(run=run, parser=sub)
        return sub

    as_json = [*_of_rows(add), *_between_revisions(add), *_of_records(add)]
    _of_kernels_and_docs(add)
    for sub in as_json:
        sub.add_argument("--json", action="store_true", help="one JSON document on stdout, nothing else")
    return top


def _of_rows(add: _Add) -> list[_Parser]:
    """What there is, judged and measured. Those that can answer in JSON, here and below."""
    add("validate", commands.validate, "check params.yaml and all that it names", "validate")
    listed = add("list", commands.list_, "implementations, and why one cannot run here", "list")
    checked = add("check", commands.check, "judge one implementation on all cases", "check improved --json")
    checked.add_argument("implementation", help="a row's name, or a path to a file that follows the contract")
    checked.add_argument("--grid", help="also judge it on the shapes of this grid")
    checked.add_argument("--only", metavar="REGEX", default="", help="only cases whose names match, to look at one")
    ran = add("run", commands.run, "check and measure one implementation without DVC", "run improved --grid seed")
    ran.add_argument("implementation", help="a row's name")
    ran.add_argument("--grid", required=True, help="a grid of params.yaml")
    told = "measure a grid twice: do its relative times come out again?"
    again = add("remeasure", remeasure.run, told, "remeasure seed", remeasure.HELP)
    again.add_argument("grid", nargs="?", default="seed", help="a grid of params.yaml; seed when left out")
    return [listed, checked, ran, again]


def _of_records(add: _Add) -> list[_Parser]:
    """What is recorded: shown, kept, cleared, let pass."""
    example = "project --nodes 64 --per-node 8 --link 50e9 --seq-len 1000000 --tflops 400"
    projected = add("project", project_command.run, "a model of rings on a cluster", example, project_command.HELP)
    project_command.arguments(projected)
    shown = add("table", commands.table, "print a table from what is recorded", "table seed")
    shown.add_argument("grid", nargs="?", help="a grid of params.yaml, `spread` or `overhead`; all grids when left out")
    shown.add_argument("--params", metavar="FILE", help="of what the records are, such as gpu.yaml")
    shown.add_argument("--details", action="store_true", help="all columns, for the seed grid too")
    published = add("publish", commands.publish, "copy the records of `local` under a name", "publish my-laptop")
    published.add_argument("name", help="letters, digits, _ and -")
    published.add_argument("--replace", action="store_true", help="overwrite what has that name")
    told = "remove what rows and grids that left params.yaml left behind"
    pruned = add("prune", prune.prune, told, "prune --dry-run")
    pruned.add_argument("--dry-run", action="store_true", help="remove nothing, only say what")
    gated = add("gate", commands.gate, "exit 1 where a row is incorrect, crashed or timed out", "gate")
    for sub in (shown, pruned, gated):
        _of_machine(sub)
    return [projected]


def _of_kernels_and_docs(add: _Add) -> None:
    """What is made ahead of time: kernels, and the generated parts of the docs."""
    told = "exit 1 where the build has nothing to choose; its table"
    what = add("build", build_command.build, told, "build --table").add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="what the compiler says of every configuration")
    what.add_argument("--keep", action="store_true", help="write the list that kernels choose from")
    on_gpu = add(
        "gpu", gpu_command.gpu, "judge and measure what gpu.yaml asks for, in a given time", "gpu", gpu_command.HELP
    )
    gpu_command.arguments(on_gpu)
    written = add("docs", commands.docs, "fill in the generated parts of README.md and docs/", "docs --check")
    written.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file is out of date")


def _of_machine(sub: _Parser) -> None:
    sub.add_argument("--machine", help="a folder of results/; the one of params.yaml when left out")


def _between_revisions(add: _Add) -> list[_Parser]:
    """What tells two revisions apart, and how well: `diff`, `duel`, `selftest`. Of the first two, 2 is an answer."""
    told = "compare the recorded results of two revisions"
    compared = add("diff", commands.diff, told, "diff main --json", _DIFF, bad_input=3)
    compared.add_argument("base", metavar="BASE", help="a revision, by any name that git knows")
    compared.add_argument("head", metavar="HEAD", nargs="?", help="another; the work tree as it is when left out")
    told = "is a revision slower than another?"
    duel_command.arguments(add("duel", duel_command.duel, told, "duel main", duel_command.HELP, bad_input=3))
    told = "this machine's own false-alarm rate and power"
    tested = add("selftest", selftest_command.selftest, told, "selftest aa --duels 20", selftest_command.HELP)
    selftest_command.arguments(tested)
    for sub in (compared, tested):
        _of_machine(sub)
    return [compared]


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the answer is no, 2 bad input (`duel` and `diff`: 3), 130 interrupted, 141 nobody read."""
    asked, unknown = parser().parse_known_args(arguments)
    if unknown:
        asked.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        named = getattr(asked, "params", None)
        code = int(asked.run(grid.load(Path(named)) if named else grid.load(), asked))
        sys.stdout.flush()
        return code
    except grid.InvalidParams as error:
        print(error, file=sys.stderr)
    except (commands.BadInput, kept.Damaged) as error:
        print(f"python -m bench {asked.command}: {error}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest is not to fail at exit again
        return 128 + signal.SIGPIPE  # as a program that a closed pipe ends: its answer was not read
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return int(asked.parser.bad_input)


if __name__ == "__main__":
    sys.exit(main())
