"""Where a ring's time goes: transports for diagnosis do what they say, budgets add up, tables say what is off."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import measure_job
from made import PARAMS, figures, loss, record, ring
from pydantic import ValidationError
from torch import Tensor

from attn import registry
from attn.contract import Workload
from attn.ring import merge
from attn.ring.communicator import Communicator
from bench import breakdown, grid, launch, losses, outcomes, ring_tables, runner, tables
from bench.device import Cpu
from bench.replay import Alone, InSequence, Recording

CEILING = {"matrix_product": {"float32": {"tflops": 1.0, "n": 1024}}}
ROWS = ("ring_v1_p2p", "ring_v2_collective", "ring_zigzag", "ring_striped", "ring_ulysses", "ring_usp")


class Pair:
    """Rank 0 of two whose other rank always has the same: counts what it is asked for, and who waits when."""

    name, rank, world_size = "pair", 0, 2

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.memory: Tensor | None = None  # what belongs to the transport

    def begin(self) -> None:
        self.asked.append("begin")

    def message(self, shape: Any, like: Tensor) -> Tensor:
        self.asked.append("message")
        self.memory = like.new_ones(tuple(shape))
        return self.memory

    def keep(self, x: Tensor) -> Tensor:
        return x.clone() if self.memory is not None and x.data_ptr() == self.memory.data_ptr() else x

    def rotate(self, x: Tensor) -> "Pair.Coming":
        self.asked.append(f"rotate {float(x.sum()):g}")
        return Pair.Coming(self, x)

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        self.asked.append("all_gather")
        return torch.cat([x, x], dim)

    def split(self, groups: Any) -> "Pair":
        return self

    class Coming:
        def __init__(self, pair: "Pair", x: Tensor) -> None:
            self.pair, self.x = pair, x

        def wait(self) -> Tensor:
            self.pair.asked.append("wait")
            return self.x.clone()


def schedule(comm: Communicator, computed: list[str]) -> Tensor:
    """One rotation hidden behind a block, then a gathering of what came."""
    comm.begin()
    held = comm.pack(torch.ones(3), torch.ones(3))
    coming = comm.rotate(held[1])
    computed.append("block")
    return comm.all_gather(coming.wait()[1:], 0)


def through(transport: Any, asked: list[str]) -> Tensor:
    return schedule(Communicator(0, 2, 6, transport), asked)


def test_in_sequence_a_rotation_is_over_before_the_block_begins():
    plain, waiting = Pair(), Pair()
    through(plain, plain.asked)
    through(InSequence(waiting), waiting.asked)
    assert plain.asked == ["begin", "message", "rotate 3", "block", "wait", "all_gather"]
    assert waiting.asked == ["begin", "message", "rotate 3", "wait", "block", "all_gather"]


def test_what_was_recorded_is_asked_again_without_the_schedule_and_its_views_are_of_new_memory():
    pair, computed = Pair(), list[str]()
    recording = Recording(pair)
    through(recording, computed)
    assert computed == ["block"]
    replay, pair.asked = recording.replay(), []
    for _ in range(2):
        replay()
    again = ["begin", "message", "rotate 3", "wait", "all_gather"]
    assert pair.asked == 2 * again
    assert computed == ["block"]


def test_alone_asks_for_nothing_and_gives_the_same_memory_in_every_second_pass():
    pair = Pair()
    alone = Alone(pair)
    found = [through(alone, []) for _ in range(4)]
    assert pair.asked == []
    assert all(torch.equal(x, torch.ones(4)) for x in found)
    assert [x.data_ptr() for x in found[:2]] == [x.data_ptr() for x in found[2:]]
    assert found[0].data_ptr() != found[1].data_ptr()


def test_merging_is_timed_once_where_one_function_calls_another_and_is_as_before_afterwards():
    class Ticks(Cpu):
        moments = 0

        def mark(self) -> int:
            self.moments += 1
            return 1_000_000 * self.moments

    clock, plain = breakdown._MergeClock(Ticks()), (merge.add, merge.merge_)
    q = torch.randn(1, 4, 2, 8)
    with clock:
        part = merge.empty(q)
        merge.add(part, slice(0, 4), (q, torch.zeros(1, 2, 4)))
    assert (merge.add, merge.merge_) == plain
    assert clock.spent_ms() == 2  # `empty`, and `add` with `merge_` inside it


def made_results(**more: Any) -> list[dict[str, Any]]:
    ranks = {
        "real": [[10.0, 12.0, 11.0], [9.0, 14.0, 10.0]],
        "compute": [[6.0, 6.0, 6.0], [8.0, 8.0, 8.0]],
        "communication": [[4.0, 4.0, 4.0], [3.0, 4.0, 2.0]],
        "sequence": [[12.0, 12.0, 12.0], [11.0, 11.0, 11.0]],
        "merge": [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]],
    }
    one = {
        "transport": "gloo", "node_of_rank": [0, 1], "hosts": ["a", "b"], "threads": [1, 1], "yardsticks": 2,
        "payload_formula_bytes": 7, "wire_bytes": 9, "rank_peak_mib": [1.0, 2.0],
        "rank_samples_ms": [[9.0, 10.0], [11.0, 12.0]],
        "breakdown": {"ideal_ms": [8.0, 10.0, 9.0], "ranks_ms": ranks},
    }  # fmt: skip
    return [one | more, {"rank_samples_ms": [[9.5, 9.5], [13.5, 13.5]]}]


def test_terms_come_from_the_slowest_the_mean_and_the_yardstick_and_add_up():
    found = losses.ring(made_results(), None)
    assert found.loss is not None
    assert found.loss.model_dump() == {
        "ideal_ms": 4.5, "smaller_blocks_ms": 1.75, "merge_ms": 0.75, "imbalance_ms": 1.0, "exposed_ms": 3.0,
        "real_ms": 11.0,
    }  # fmt: skip
    assert found.rank_ms == [9.5, 12.5]
    assert found.hidden is not None
    assert found.hidden.value == 1 - (11 - 8) / 4


def test_more_is_hidden_than_there_is_where_the_real_ring_was_faster_than_its_computation():
    results = made_results()
    results[0]["breakdown"]["ranks_ms"]["real"] = [[6.0] * 3, [7.0] * 3]
    found = losses.ring(results, None)
    assert found.hidden is not None
    assert found.hidden.value == 1.25
    assert found.loss is not None
    assert found.loss.exposed_ms == -1


def test_a_cell_without_an_ideal_has_its_times_and_says_why_it_has_no_budget():
    found = losses.ring(made_results(), "4 ranks on 2 cores: oversubscribed")
    assert (found.loss, found.no_loss) == (None, "4 ranks on 2 cores: oversubscribed")
    assert found.compute_ms is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loss(real_ms=2.1), "ideal and losses make 2.0 ms, not 2.1"),
        (lambda: ring(2, hosts=["a"]), "not one value a rank"),
        (lambda: ring(2, hidden=None), "none of these"),
        (lambda: ring(1, transport="shm"), "none of these"),
        (lambda: ring(2, no_loss="because"), "either a loss budget or why"),
        (lambda: record(family="ring", world_size=2, ring=None), "exists only with status ok in family ring"),
        (lambda: record(family="core", ring=ring()), "exists only with status ok in family ring"),
        (lambda: record(family="ring", world_size=2, ring=ring(4)), "4 hosts of 2 ranks"),
    ],
)
def test_an_illegal_section_cannot_be_made(make: Any, message: str):
    with pytest.raises(ValidationError, match=message):
        make()


def test_records_of_schema_1_have_no_section():
    assert record(schema_version=1, family="ring", ring=None).ring is None


def cell(sent: int, due: int | None, **more: Any):
    figures_ = figures(payload_bytes=sent, messages=1)
    asked = {"family": "ring", "grid": "ring", "implementation": "ring_x", "world_size": 2}
    return record(**asked, figures=figures_, ring=ring(2, payload_formula_bytes=due, **more))


def test_the_tables_show_bytes_beside_the_formula_overlap_and_a_budget():
    text = ring_tables.text([cell(1 << 20, 1 << 20)], CEILING, {})
    traffic = next(line for line in text.splitlines() if "shm" in line).split()
    assert traffic[:6] == ["ring_x", "2", "shm", "1.00", "1.00", "0.00"]
    assert "0.33 [-0.1, 1.2]" in text
    budget = next(line for line in text.splitlines() if "(15 %)" in line)
    assert re.findall(r"\S+(?: \(\d+ %\))?", budget) == [
        "ring_x",
        "2",
        "1",
        "0.3 (15 %)",
        "0.1 (5 %)",
        "0.1 (5 %)",
        "0.5 (25 %)",
        "2",
    ]
    assert tables.CROSS not in text


def test_what_was_sent_beside_the_formula_is_said():
    where = "(8 heads, seq_len 512, float32, full, forward ranks 2)"
    text = ring_tables.text([cell(1 << 20, 1 << 19), cell(5, None)], CEILING, {})
    assert f"✗ ring_x {where}: 1048576 bytes sent a rank, its formula says 524288" in text
    assert f"- ring_x {where}: no formula of what it sends" in text


def test_a_cell_without_a_budget_is_explained():
    text = ring_tables.text([cell(1, 1, loss=None, no_loss="4 ranks on 2 cores")], CEILING, {})
    assert "no loss budget, 4 ranks on 2 cores" in text
    assert "smaller blocks" not in text


def test_the_picture_of_budgets_is_made_where_there_are_any(tmp_path: Path):
    path = tmp_path / "loss.png"
    assert not ring_tables.plot([cell(1, 1, loss=None, no_loss="none")], path, "nothing")
    assert not path.exists()
    assert ring_tables.plot([cell(1, 1)], path, "one")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.mpi
def test_every_schedule_is_taken_apart_on_ranks_and_sends_what_its_formula_says(tmp_path: Path):
    w = Workload(1, 34, 4, 2, 16, "float32", "causal", "forward_backward")
    jobs = [measure_job(registry.IMPL_DIR / f"{name}.py", w, tmp_path, 2) for name in ROWS]
    for job in jobs:
        job["protocol"]["budget_s"] = 0.01
    for name, result in zip(ROWS, launch.run("measure", jobs, 2, deadline_s=120), strict=True):
        assert result["status"] == "ok", (name, result)
        assert result["payload_bytes"] == result["payload_formula_bytes"], name
        found = losses.ring([result], None)
        assert found.rounds == breakdown.LEAST_ROUNDS
        assert (found.transport, found.wire_bytes, len(found.rank_ms)) == ("shm", 0, 2)
        assert {len(times) for times in result["breakdown"]["ranks_ms"].values()} == {2}
        assert result["breakdown"]["ranks_ms"].keys() == {"real", "compute", "communication", "sequence", "merge"}
        json.dumps(found.model_dump())


def test_one_rank_has_nothing_to_communicate(tmp_path: Path):
    w = Workload(1, 34, 4, 2, 16, "float32", "causal", "forward")
    job = measure_job(registry.IMPL_DIR / "ring_zigzag.py", w, tmp_path, 1)
    job["protocol"]["budget_s"] = 0.01
    from bench.measure import measure

    threads = torch.get_num_threads()
    found = losses.ring([measure(job)], None)
    torch.set_num_threads(threads)
    assert (found.transport, found.communication_ms, found.sequence_ms, found.hidden) == (None, None, None, None)
    assert found.loss is not None


@pytest.mark.parametrize(
    ("threads", "words"), [(1, "2 ranks have a thread each, the yardstick 1: params.yaml, threads"), (2, None)]
)
def test_ranks_with_more_threads_than_the_yardstick_are_not_compared(threads, words):
    params, right = grid.load(PARAMS), {"status": "ok"}
    cell = grid.cells(params, "ring", "ring_zigzag", "ring")[0]
    identity = {"device": "cpu", "cpu_count": 4, "threads": threads}
    campaign = runner.Campaign(params, identity, "ring", "ring_zigzag", "ring", Path(), right, right)
    assert cell.world_size == 2
    assert outcomes.not_compared(campaign, cell, [{"no_reference": None}], oversubscribed=False) == words
