"""bench.project: cases that can be worked out by hand, and what the command says."""

import json
from dataclasses import replace

import pytest

from attn.contract import Workload
from bench import __main__ as cli
from bench import calibration, project
from bench.project import Cluster, Link

W = Workload(1, 1000, 8, 8, 50, "float32", "full", "forward")
BLOCK_S = 4 * 8 * 500 * 500 * 50 / 1e12  # of a quarter of all pairs, at 1 TFLOP/s
HOP_BYTES = 2 * 500 * 8 * 50 * 4


def two(bytes_per_s: float, latency_s: float = 0.0) -> Cluster:
    """Two nodes of one rank."""
    return Cluster(2, 1, Link(bytes_per_s, latency_s), Link(1e30, 0.0), {1: 1.0})


@pytest.mark.parametrize("schedule", ["ring_v1_p2p", "ring_zigzag", "ring_striped"])
def test_a_fast_link_hides_behind_the_block_and_a_slow_one_does_not(schedule: str):
    assert project.project(schedule, W, two(1e30)).seconds == pytest.approx(2 * BLOCK_S)
    slow = project.project(schedule, W, two(HOP_BYTES, 1.0))
    assert slow.seconds == pytest.approx(1 + 1 + BLOCK_S)
    assert (slow.compute_s, slow.payload_bytes) == (pytest.approx(2 * BLOCK_S), HOP_BYTES)


def test_the_collective_hides_nothing():
    assert project.project("ring_v2_collective", W, two(HOP_BYTES, 1.0)).seconds == pytest.approx(2 + 2 * BLOCK_S)


def test_ulysses_sends_four_halves_of_a_tensor_and_computes_one_block():
    found = project.project("ring_ulysses", W, two(HOP_BYTES))
    assert found.payload_bytes == HOP_BYTES
    assert found.seconds == pytest.approx(1 + 2 * BLOCK_S)


def test_usp_of_one_rank_a_node_is_the_ring():
    assert project.project("ring_usp", W, two(1e6)) == project.project("ring_v1_p2p", W, two(1e6))


def test_usp_rotates_the_heads_of_k_and_v_that_it_has_repeated():
    grouped, link = replace(W, n_kv_heads=2), Link(1e6, 0.0)  # 2 heads shared out to 4 ranks: each is there twice
    cluster = Cluster(2, 4, link, Link(1e30, 0.0), {1: 1e9})
    repeated = replace(W, n_kv_heads=4)
    assert project.project("ring_usp", grouped, cluster) == project.project("ring_usp", repeated, cluster)
    kv_bytes = 2 * 125 * 4 * 50 * 4
    assert project.project("ring_usp", grouped, cluster).seconds == pytest.approx(4 * kv_bytes / 1e6, rel=1e-3)


def test_a_causal_ring_of_contiguous_shards_waits_for_its_last_rank_and_zigzag_does_not():
    w = Workload(1, 8000, 8, 8, 64, "float32", "causal", "forward")
    cluster = Cluster(1, 4, Link(1e30, 0), Link(1e30, 0), {1: 1.0})
    contiguous, zigzag = (project.project(name, w, cluster).seconds for name in ("ring_v1_p2p", "ring_zigzag"))
    assert contiguous / zigzag == pytest.approx(7 / 4, rel=0.01)  # N / (2 N - 1) of the ideal speed


def test_between_calibrated_sizes_the_rate_is_interpolated_and_beyond_them_it_stays():
    cluster = Cluster(1, 1, Link(1, 0), Link(1, 0), {100: 1.0, 400: 4.0})
    seconds = [cluster.block_s(W, 1, side, side, causal=False) * 1e12 / (200 * side * side) for side in (50, 200, 800)]
    assert [1 / x for x in seconds] == pytest.approx([1.0, 2.0, 4.0])


def test_causal_blocks_have_rates_of_their_own():
    cluster = Cluster(1, 1, Link(1, 0), Link(1, 0), {1: 1.0}, {1: 0.5})
    full, causal = (cluster.block_s(W, 8, 100, 100, causal=causal) for causal in (False, True))
    assert causal == pytest.approx(full)
    assert two(1).block_s(W, 8, 100, 100, causal=True) == pytest.approx(full / 2)


def test_a_burst_goes_at_once_and_a_message_within_it_takes_the_latency():
    link = Link(100.0, 1.0, 50.0)
    assert [link.seconds(sent) for sent in (10, 50, 150)] == [1.0, 1.0, 2.0]


COSTS = [
    ("ring_v1_p2p", 1, 1),  # packed once, one merge
    ("ring_v2_collective", 6, 0),  # packed, into gloo's buffer, out of it twice, joined twice
    ("ring_ulysses", 3 * 4 / 2, 0),  # q, k, v and out are 4 halves of a KV, three times
    ("ring_usp", 1, 1),
]


@pytest.mark.parametrize(("schedule", "copies_of_kv", "merges"), COSTS)
def test_copies_and_merges_are_in_the_time_and_in_what_is_computed(schedule: str, copies_of_kv: float, merges: int):
    free = project.project(schedule, W, two(1e30))
    costly = project.project(schedule, W, replace(two(1e30), copy_s_per_byte=1.0, merge_s_per_byte=10.0))
    due = copies_of_kv * HOP_BYTES + merges * 10 * HOP_BYTES / 2
    assert costly.seconds - free.seconds == pytest.approx(due)
    assert costly.compute_s - free.compute_s == pytest.approx(due)


@pytest.mark.parametrize("schedule", ["ring_v1_p2p", "ring_v2_collective", "ring_ulysses"])
def test_shared_heads_are_repeated_before_every_block(schedule: str):
    w = replace(W, n_kv_heads=4)
    cluster = replace(two(1e30), copy_s_per_byte=1.0)
    repeated = cluster.block_s(w, 8, 500, 500, causal=False) - cluster.block_s(W, 8, 500, 500, causal=False)
    assert repeated == pytest.approx(HOP_BYTES)
    more = project.project(schedule, w, cluster).compute_s - project.project(schedule, W, cluster).compute_s
    fewer = {"ring_v1_p2p": 1, "ring_v2_collective": 6, "ring_ulysses": 3}[schedule] * HOP_BYTES / 2
    whole = 1 if schedule == "ring_ulysses" else 2  # all keys of half the heads, or every key of all
    assert more == pytest.approx(whole * repeated - fewer)


def test_the_collective_of_a_causal_mask_waits_for_its_last_rank():
    w = replace(W, mask="causal")
    found = project.project("ring_v2_collective", w, replace(two(1e30), merge_s_per_byte=1.0))
    assert found.compute_s == pytest.approx(1.5 * BLOCK_S + HOP_BYTES / 2)


def test_what_sending_takes_of_a_processor_lengthens_the_block_beside_it_and_nothing_else():
    """A block as long as the hop gives all of it up; a short one only its share."""
    seconds = [
        project.project("ring_v1_p2p", W, Cluster(2, 1, Link(rate, 0, 0, busy), Link(1, 0), {1: 1.0})).seconds
        for rate, busy in ((HOP_BYTES / (BLOCK_S / 2), BLOCK_S / 4 / HOP_BYTES), (HOP_BYTES, BLOCK_S / 4 / HOP_BYTES))
    ]
    assert seconds[0] == pytest.approx(2.25 * BLOCK_S)
    assert seconds[1] == pytest.approx(1 + BLOCK_S)


def test_what_a_schedule_cannot_do_is_its_reason():
    found = project.all_of(
        Workload(1, 96, 2, 2, 8, "float32", "full", "forward"), Cluster(3, 1, Link(1, 0), Link(1, 0), {1: 1.0})
    )
    assert found["ring_ulysses"] == "2 heads cannot be shared out evenly to 3 ranks"


ASKED = ["project", "--nodes", "64", "--per-node", "1", "--link", "50e9", "--seq-len", "100000", "--tflops", "400"]


def test_the_command_says_that_it_projects(capsys: pytest.CaptureFixture[str]):
    assert cli.main(ASKED) == 0
    text = capsys.readouterr().out
    assert text.startswith("projected ")
    assert "Projected, not measured" in text
    assert cli.main([*ASKED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["inputs"]["cluster"]["nodes"]) == ("projected", 64)


def test_without_a_rate_the_command_calibrates_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration, "SIDES", (16, 32))
    assert cli.main([*ASKED[:-2], "--head-dim", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["inputs"]
    assert found["block_rate"].startswith("calibrated here, ")
    assert set(found["cluster"]["block_tflops"]) == set(found["cluster"]["causal_tflops"]) == {"16", "32"}
    assert all(rate > 0 for rate in found["cluster"]["block_tflops"].values())
    assert found["cluster"]["copy_s_per_byte"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--link", "-1"], "-1, allowed: a number above 0"),
        (["--nodes", "many"], "many, allowed: a whole number above 0"),
        (["--per-node", "100"], "= 6400 ranks, allowed: up to 2048"),
        (["--n-kv-heads", "3"], "n_heads 8 is not a multiple of n_kv_heads 3"),
    ],
)
def test_bad_input_is_one_sentence(more: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    try:
        code = cli.main([*ASKED, *more])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err
