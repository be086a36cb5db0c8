"""Ranks that really start: the ring's results and what it sends."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import measure_job

from attn import registry
from attn.contract import Workload
from bench import cases, launch

pytestmark = pytest.mark.mpi

RING = registry.IMPL_DIR / "ring_v2_collective.py"
NO_REAL = "^(?!.*real)"  # a fresh clone has captured nothing yet


def check_job(path: Path, world_size: int, *workloads: Workload) -> dict[str, Any]:
    asked = [workload.as_dict() for workload in workloads]
    job = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": 7, "only": NO_REAL}
    return {**job, "world_size": world_size, "workloads": asked}


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every case of rings but those of real inputs, solved once for all numbers of ranks."""
    folder = tmp_path_factory.mktemp("truths")
    made_up = [case for case in cases.all_cases("ring") if re.search(NO_REAL, case.name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "all_cases", lambda _: iter(made_up))
        cases.solve_cases({"kind": "ring", "folder": str(folder), "seed": 7, "threads": 1})
    return str(folder)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_collective_ring_is_right_in_every_case(world_size: int, truths: str) -> None:
    job = {**check_job(RING, world_size), "truths": truths}
    (result,) = launch.run("check", [job], world_size, deadline_s=300)
    assert result["status"] == "ok", result
    wrong = [case for case in result["cases"] if case["status"] != "ok"]
    assert not wrong
    assert len(result["cases"]) > 30


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_counted_as_sent_is_what_the_schedule_says(world_size: int, tmp_path: Path) -> None:
    cells = [
        Workload(2, length, 4, 2, 16, dtype, "causal", pass_)
        for length, dtype in ((64, "float32"), (65, "bfloat16"))
        for pass_ in ("forward", "forward_backward")
    ]
    jobs = [measure_job(RING, cell, tmp_path, world_size) for cell in cells]
    results = list(launch.run("measure", jobs, world_size, deadline_s=120))
    for cell, result in zip(cells, results, strict=True):
        assert result["status"] == "ok", result
        numbers = 2 * cell.batch * -(-cell.seq_len // world_size) * cell.n_kv_heads * cell.head_dim  # of k and v
        forward = (world_size - 1) * numbers * (4 if cell.dtype == "float32" else 2)
        # backward, k and v travel again, and dk and dv in float32
        backward = forward + (world_size - 1) * numbers * 4 if cell.backward else 0
        assert result["payload_bytes"] == forward + backward, cell.key
        assert result["messages"] == (world_size - 1) * (3 if cell.backward else 1), cell.key


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    cell = Workload(1, 33, 2, 2, 16, "float32", "full", "forward_backward")
    (result,) = launch.run("measure", [measure_job(RING, cell, tmp_path, 1)], 1, deadline_s=120)
    assert (result["status"], result["payload_bytes"], result["messages"]) == ("ok", 0, 0)
