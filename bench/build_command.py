"""`python -m bench build`: what is recorded of the build of our kernels."""

from __future__ import annotations

from argparse import Namespace

from bench import build as recorded
from bench import build_tables
from bench.commands import BadInput
from bench.files import read_json
from bench.grid import Params


def build(_: Params, asked: Namespace) -> int:
    """The gate: exit 1 with one line a fault. With --table what was found, with --keep what can be chosen from it."""
    try:
        found = read_json(recorded.REPORT)
    except FileNotFoundError:
        raise BadInput(f"{recorded.REPORT} is not there; run `make build` first") from None
    if asked.table:
        print(build_tables.table(found["configurations"]), build_tables.comparison(found["comparison"]), sep="\n\n")
        return 0
    ours = found["configurations"]
    if asked.keep:
        build_tables.keep(ours)
    faults = build_tables.faults(ours)
    for line in faults:
        print(line)
    chosen = sum(entry["verdict"] == "passed" for entry in ours)
    print(f"{len(ours)} configurations, {chosen} can be chosen, {len(faults)} faults")
    return 1 if faults else 0
