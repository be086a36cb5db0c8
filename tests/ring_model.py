"""The model of rings against rings: two hosts of one rank each, one thread a rank, over links of several rates.

    python -m tests.ring_model --out results/NAME/ring-model.json      as root; a few minutes; see tests/hosts.py

In one launch a rate: rates of the ranks, of the link, and the forward pass of every schedule, in turns.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attn.contract import Workload
from bench import grid, launch, machine, model_tables
from bench.files import write_json
from bench.grid import Launch
from tests import hosts

RATES = ("200mbit", "1gbit", "4gbit")
WORKLOADS = tuple(
    Workload(1, seq_len, 8, n_kv_heads, 64, "float32", mask, "forward")
    for seq_len in (1024, 4096)
    for n_kv_heads, mask in ((8, "causal"), (2, "full"))
)
ROUNDS, SEED, DEADLINE_S = 9, 2307, 240
ON_H0 = "on-h0"


def main() -> int:
    """Exit 0, or 2 where there can be no hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument(
        "--rates", nargs="+", type=shaped, default=RATES, help=f"as tc writes them; default {' '.join(RATES)}"
    )
    parser.add_argument("--rounds", type=count, default=ROUNDS, help=f"default {ROUNDS}")
    asked = parser.parse_args()
    identity = machine.identity(grid.load(Path("params.yaml")))
    if reason := other_machine(asked.out.resolve(), identity) or hosts.why_not():
        print(f"tests.ring_model: {reason}", file=sys.stderr)
        return 2
    state, links = machine.state(), {}
    for rate in asked.rates:
        print(f"{rate}: two hosts, {asked.rounds} rounds", file=sys.stderr, flush=True)
        links[rate] = over(rate, asked.rounds)
    found = {
        "schema_version": 1,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.in_words(identity | {"threads": 1}),
        "state": {"before": state, "after": machine.state()},
        "workloads": [w.as_dict() for w in WORKLOADS],
        "links": links,
    }
    found["cells"] = model_tables.compared(found)
    write_json(asked.out, found)
    print(model_tables.model(found))
    print(model_tables.crossover(found))
    return 0


def other_machine(out: Path, identity: dict[str, Any]) -> str | None:
    """Why the folder of a named machine takes no figures from here."""
    try:
        machine.refuse_other_machine(out.parent.name, identity, out.with_name("machine.json"))
    except machine.OtherMachine as error:
        return str(error)
    return None


def count(text: str) -> int:
    """Of rounds."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}, allowed: a whole number above 0")
    return int(text)


def shaped(text: str) -> str:
    """A rate of a link."""
    if not re.fullmatch(r"[1-9]\d*[kmg]bit", text):
        raise argparse.ArgumentTypeError(f"{text}, allowed: a whole number and kbit, mbit or gbit")
    return text


def over(rate: str, rounds: int) -> dict[str, Any]:
    """What two ranks have measured over a link of that rate."""
    with hosts.hosts(2, rate) as up:
        job = {"workloads": [w.as_dict() for w in WORKLOADS], "rounds": rounds, "seed": SEED}
        job |= {"threads": 1, "device": "cpu"}
        command = [sys.executable, "-m", "tests.ring_model", ON_H0]
        done: subprocess.CompletedProcess[str] = up.run("h0", command, input=json.dumps(job), timeout=DEADLINE_S + 20)
    if done.returncode:
        sys.exit(f"{rate}: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["status"] != "ok":
        sys.exit(f"{rate}: {result['status']}: {result['reason']}")
    return result


def on_h0() -> int:
    """The launch, from the host that it is part of: the job from standard input, the result to standard output."""
    job = json.loads(sys.stdin.read())
    (result,) = launch.run("measure_model", [job], 2, deadline_s=DEADLINE_S, on=Launch(hosts=["h0", "h1"]))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(on_h0() if sys.argv[1:] == [ON_H0] else main())
