"""Every ring on ranks that really start: right on what its layout makes hard, and sending what its formula says."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from attn import registry
from attn.contract import Unsupported, Workload
from attn.ring import formulas
from bench import cases, launch, placement, solved

pytestmark = pytest.mark.mpi

ROWS = {name: row for name, row in registry.find().items() if name in formulas.SCHEDULES}  # others send for themselves
SIZES = [pytest.param(n, marks=[] if n in (1, 2, 4) else pytest.mark.slow) for n in range(1, 9)]
HARD = [  # one token, fewer tokens than ranks, uneven shards of every kind, odd halves, groups of heads, a batch
    *(
        Workload(1, length, 4, 4, 16, "float32", mask, "forward_backward")
        for length in (1, 3, 5, 65)
        for mask in ("full", "causal")
    ),
    Workload(2, 34, 8, 2, 40, "float32", "causal", "forward_backward"),
    Workload(1, 37, 4, 1, 16, "bfloat16", "causal", "forward_backward"),
    Workload(1, 66, 4, 4, 16, "float32", "causal", "forward_backward", softmax_scale=20.0),  # an exponential overflows
    Workload(1, 1, 4, 2, 16, "float32", "full", "forward", kv_seq_len=65),
    Workload(2, 3, 4, 4, 16, "float32", "causal", "forward", kv_seq_len=40),
    Workload(1, 40, 4, 4, 16, "float32", "causal", "forward", kv_seq_len=7),  # most queries see no key
]


def ranks(world_size: int, module: str) -> str:
    """What a module of tests prints on so many ranks."""
    mpiexec = placement.find_mpiexec()
    assert mpiexec is not None
    done = subprocess.run(
        [mpiexec, "-n", str(world_size), sys.executable, "-m", "mpi4py", "-m", module], cwd=ROOT, text=True,
        timeout=150, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("world_size", SIZES)
def test_what_every_rank_hands_over_is_what_the_formula_says(world_size: int, count: Any) -> None:
    found = [json.loads(line) for line in ranks(world_size, "tests.rows_on_ranks").splitlines() if line[0] == "{"]
    assert {one["row"] for one in found} == set(ROWS)
    compared = 0
    for one in found:
        workload = Workload.from_dict(one["workload"])
        if "unsupported" in one:
            with pytest.raises(Unsupported, match=one["unsupported"]):
                formulas.due(one["row"], workload, world_size, one["ulysses_size"])
            continue
        due = formulas.due(one["row"], workload, world_size, one["ulysses_size"])
        assert one["sent"] == [[due.payload_bytes, due.messages]] * world_size, one
        assert (due.payload_bytes > 0) == (world_size > 1)
        compared += 1
    count(f"on {world_size} ranks {compared} calls sent what their formula says")
    assert compared > 40


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of HARD, solved once for all rows and numbers of ranks."""
    folder = tmp_path_factory.mktemp("truths")
    for workload in HARD + [replace(w, pass_="forward") for w in HARD if w.backward]:
        case = cases.Case(workload)
        solved.write(folder / f"{case.problem}.safetensors", cases.solve(case, "ring", seed=7))
    return folder


@pytest.mark.parametrize("world_size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4, 5, 8))])
def test_every_row_is_right_on_uneven_shards(world_size: int, truths: Path, count: Any) -> None:
    jobs = []
    for row in ROWS.values():
        asked = [w if row.backward else replace(w, pass_="forward") for w in HARD]
        jobs.append({
            "implementation": str(row.path), "device": "cpu", "threads": 1, "seed": 7, "truths": str(truths),
            "only": "^$", "world_size": world_size, "workloads": [w.as_dict() for w in asked],
        })  # fmt: skip
    judged = 0
    for row, found in zip(ROWS.values(), launch.run("check", jobs, world_size, deadline_s=200), strict=True):
        assert found["status"] == "ok", (row.name, found)
        wrong = [one for one in found["cases"] if one["status"] not in ("ok", "unsupported")]
        assert not wrong, row.name
        refused = [one["reason"] for one in found["cases"] if one["status"] == "unsupported"]
        assert all(re.fullmatch(r"\d heads cannot be shared out evenly to \d ranks", reason) for reason in refused)
        assert not refused or row.name in ("ring_ulysses", "ring_usp")
        judged += len(found["cases"]) - len(refused)
    count(f"on {world_size} ranks {judged} calls judged")
    assert judged > 50
