"""What each ring row hands to its communicator: `mpiexec -n N python -m mpi4py -m tests.rows_on_ranks`.

Rank 0 prints a line of JSON a call: row, workload, ulysses_size, and payload_bytes and messages of every rank, or why
it is unsupported.
"""

import json
from dataclasses import replace

import torch
from mpi4py import MPI

from attn import registry
from attn.contract import Unsupported, Workload
from attn.impl import ring_usp
from attn.ring import formulas
from attn.ring.communicator import Sent
from bench import calls, oracle
from bench.team import Ranks

ROWS = {name: row for name, row in registry.find().items() if name in formulas.SCHEDULES}
SHAPES = [
    Workload(2, 64, 8, 8, 16, "float32", "causal", "forward_backward"),
    Workload(1, 65, 8, 2, 16, "bfloat16", "full", "forward_backward"),
    Workload(1, 7, 8, 4, 16, "float16", "causal", "forward_backward"),
    Workload(1, 33, 6, 3, 8, "float32", "full", "forward_backward"),
    Workload(3, 1, 8, 8, 16, "float32", "full", "forward", kv_seq_len=65),
    Workload(1, 3, 8, 2, 16, "bfloat16", "causal", "forward", kv_seq_len=40),
]


def main() -> None:
    torch.set_num_threads(1)
    team = Ranks(MPI.COMM_WORLD.size, "cpu", timeout_s=60)
    workloads = [*SHAPES, *(replace(w, pass_="forward") for w in SHAPES if w.backward)]
    for name, row in ROWS.items():
        sizes = [n for n in range(1, team.world_size + 1) if team.world_size % n == 0] if name == "ring_usp" else [0]
        for workload in workloads:
            if not row.why_not(workload, "cpu"):
                for size in (0, *sizes) if name == "ring_usp" else sizes:
                    one(row, workload, size, team)
    team.close()


def one(row: registry.Implementation, workload: Workload, size: int, team: Ranks) -> None:
    call = calls.make(row, workload, oracle.inputs("core", workload, seed=7), "cpu", team)
    call.comm.ulysses_size, call.comm.sent = size, Sent()
    found = {"row": row.name, "workload": workload.as_dict()}
    try:
        found["ulysses_size"] = ring_usp.group_size(call.comm)
        call()
        sent = team.gather([call.comm.payload_bytes, call.comm.messages])
        found["sent"] = [[int(value) for value in of_rank] for of_rank in sent]
    except Unsupported as error:
        found["unsupported"] = str(error)
    if team.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
