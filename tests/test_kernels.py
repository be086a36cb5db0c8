"""attn.kernels and attn.ring: blocks, their gradients, their merge, and how tokens are dealt to ranks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attn.contract import Mask, Workload
from attn.impl import improved
from attn.kernels import block, query_blocks
from attn.reference import plain_attention
from attn.ring import layouts, merge
from bench import oracle
from bench.judge import judge

EXAMPLES = settings(deadline=None, max_examples=40)
DEALT = ("contiguous", "zigzag", "striped")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["fused", "formulas"])
def kernel(request, monkeypatch):
    """attn.kernels.block as the CPU runs it, and as it does for what PyTorch's kernel gets wrong."""
    if request.param == "formulas":
        monkeypatch.setattr(block, "_fused", lambda *_: False)
    return block


def solve(seq_len, kv_seq_len=0, *, heads=(2, 2), dtype="float32", mask="full", pass_="forward_backward", batch=1):
    workload = Workload(batch, seq_len, *heads, 16, dtype, mask, pass_, kv_seq_len=kv_seq_len, softmax_scale=0.3)
    return workload, oracle.solve("core", workload, oracle.inputs("core", workload, 7), 7)


def block_cases():
    for length in (1, 2, 63, 127):
        for mask in ("full", "causal"):
            yield pytest.param({"seq_len": length, "mask": mask}, id=f"{length}-{mask}")
    yield pytest.param({"seq_len": 65, "kv_seq_len": 33}, id="cross-65-33")
    yield pytest.param({"seq_len": 33, "kv_seq_len": 65}, id="cross-33-65")
    yield pytest.param({"seq_len": 33, "heads": (4, 2), "mask": "causal", "batch": 2}, id="gqa")
    yield pytest.param({"seq_len": 33, "heads": (4, 1)}, id="mqa")
    yield pytest.param({"seq_len": 63, "heads": (4, 2), "dtype": "bfloat16", "mask": "causal"}, id="bfloat16")
    yield pytest.param({"seq_len": 63, "dtype": "float16"}, id="float16")


@pytest.mark.parametrize("case", list(block_cases()))
def test_a_block_and_its_gradients_are_within_budget(kernel, case):
    workload, solved = solve(**case)
    x, how = solved.inputs, {"softmax_scale": 0.3, "causal": workload.mask == "causal"}
    out, lse = kernel.forward(x["q"], x["k"], x["v"], **how)
    found = {"out": out, "lse": lse}
    gradients = kernel.backward(x["dout"], x["q"], x["k"], x["v"], out, lse, **how)
    dtype = x["q"].dtype
    found |= {f"d{name}": gradient.to(dtype) for name, gradient in zip("qkv", gradients, strict=True)}
    assert judge(found, solved, workload.dtype).reason is None


@pytest.mark.parametrize(("seq_len", "kv_seq_len"), [(5, 9), (9, 5)])
def test_causal_in_a_block_means_that_query_i_sees_keys_0_to_i(kernel, seq_len, kv_seq_len):
    _, solved = solve(seq_len, kv_seq_len)
    q, k, v = (solved.inputs[name] for name in "qkv")
    out, lse = kernel.forward(q, k, v, softmax_scale=0.3, causal=True)
    for i in range(seq_len):
        seen = slice(0, i + 1)
        row, row_lse = plain_attention(q[:, i : i + 1], k[:, seen], v[:, seen], softmax_scale=0.3, mask=Mask("full"))
        torch.testing.assert_close(out[:, i : i + 1], row)
        torch.testing.assert_close(lse[:, :, i : i + 1], row_lse)


@pytest.mark.parametrize("split", [1, 30, 64])
def test_gradients_of_two_blocks_under_the_lse_of_the_whole_are_those_of_the_whole(kernel, split):
    workload, solved = solve(33, 65, heads=(4, 2))
    x, how = solved.inputs, {"softmax_scale": 0.3, "causal": False}
    out, lse = merge.empty(x["q"])
    halves = [(x["k"][:, part], x["v"][:, part]) for part in (slice(0, split), slice(split, None))]
    for k, v in halves:
        merge.merge_(out, lse, *kernel.forward(x["q"], k, v, **how))
    (dq, dk, dv), (dq_, dk_, dv_) = (kernel.backward(x["dout"], x["q"], k, v, out, lse, **how) for k, v in halves)
    found = {"out": out, "lse": lse, "dq": dq + dq_, "dk": torch.cat((dk, dk_), 1), "dv": torch.cat((dv, dv_), 1)}
    assert judge(found, solved, workload.dtype).reason is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(
    ("seq_len", "kv_seq_len"), [(1, 1), (255, 255), (257, 257), (300, 520), (65, 127), (127, 65), (600, 300)]
)
def test_query_blocks_with_lse_are_within_budget(seq_len, kv_seq_len, mask, dtype):
    workload, solved = solve(seq_len, kv_seq_len, heads=(6, 2), dtype=dtype, mask=mask, pass_="forward", batch=2)
    q, k, v = (solved.inputs[name] for name in "qkv")
    out, lse = query_blocks.forward(q, k, v, softmax_scale=0.3, mask=Mask(mask), with_lse=True)
    assert judge({"out": out, "lse": lse}, solved, workload.dtype).reason is None
    again, nothing = query_blocks.forward(q, k, v, softmax_scale=0.3, mask=Mask(mask))
    assert nothing is None
    assert torch.equal(out, again)


@pytest.mark.parametrize("capable", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}, {}])
def test_bfloat16_goes_in_query_blocks_where_the_processor_multiplies_it(capable, monkeypatch):
    calls, forward = [], query_blocks.forward
    monkeypatch.setattr(query_blocks, "forward", lambda *args, **told: calls.append(1) or forward(*args, **told))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    monkeypatch.setattr(improved, "multiplies_bfloat16", improved.multiplies_bfloat16.__wrapped__)
    workload, solved = solve(65, 65, heads=(6, 2), dtype="bfloat16", mask="causal", pass_="forward", batch=2)
    q, k, v = (solved.inputs[name] for name in "qkv")
    out, lse = improved.attention_with_lse(q, k, v, softmax_scale=0.3, mask=Mask("causal"))
    assert judge({"out": out, "lse": lse}, solved, workload.dtype).reason is None
    out = improved.attention(q, k, v, softmax_scale=0.3, mask=Mask("causal"))
    assert judge({"out": out}, solved, workload.dtype).reason is None
    assert len(calls) == 2 * any(capable.values())


def whole(draw_seed, kv_seq_len):
    generator = torch.Generator().manual_seed(draw_seed)
    q, k, v = (torch.randn(2, s, 2, 8, generator=generator) for s in (5, kv_seq_len, kv_seq_len))
    return q, k, v


def attend(q, k, v):
    return plain_attention(q, k, v, softmax_scale=1.0, mask=Mask("full"))


@EXAMPLES
@given(seed=st.integers(0, 99), kv_seq_len=st.integers(1, 12), data=st.data())
def test_keys_split_anywhere_and_merged_are_the_whole(seed, kv_seq_len, data):
    q, k, v = whole(seed, kv_seq_len)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, kv_seq_len - 1)), max_size=4)))
    edges = [0, *(cut for cut in cuts if cut < kv_seq_len), kv_seq_len]
    out, lse = merge.empty(q)
    for start, end in data.draw(st.permutations(list(itertools.pairwise(edges)))):
        merge.merge_(out, lse, *attend(q, k[:, start:end], v[:, start:end]))
    wanted_out, wanted_lse = attend(q, k, v)
    torch.testing.assert_close(out, wanted_out)
    torch.testing.assert_close(lse, wanted_lse)


def test_the_first_block_is_taken_as_it_is():
    q, k, v = whole(0, 7)
    out, lse = merge.empty(q)
    block_out, block_lse = attend(q, k, v)
    merge.merge_(out, lse, block_out, block_lse)
    assert torch.equal(out, block_out)
    assert torch.equal(lse, block_lse)


def test_merging_with_an_empty_block_changes_nothing():
    q, k, v = whole(0, 7)
    out, lse = attend(q, k, v)
    before = out.clone(), lse.clone()
    merge.merge_(out, lse, *merge.empty(q))
    assert torch.equal(out, before[0])
    assert torch.equal(lse, before[1])


def test_two_empty_blocks_are_empty():
    q, _, _ = whole(0, 7)
    out, lse = merge.empty(q)
    merge.merge_(out, lse, *merge.empty(q))
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_a_block_that_is_empty_for_some_rows_leaves_only_those_as_they_are():
    q, k, v = whole(0, 8)
    out, lse = attend(q, k[:, :4], v[:, :4])
    block_out, block_lse = attend(q, k[:, 4:], v[:, 4:])
    block_out[:, :2], block_lse[:, :, :2] = 0.0, -math.inf
    before = out.clone(), lse.clone()
    merge.merge_(out, lse, block_out, block_lse)
    wanted_out, wanted_lse = attend(q, k, v)
    assert torch.equal(out[:, :2], before[0][:, :2])
    assert torch.equal(lse[:, :, :2], before[1][:, :, :2])
    torch.testing.assert_close(out[:, 2:], wanted_out[:, 2:])
    torch.testing.assert_close(lse[:, :, 2:], wanted_lse[:, :, 2:])


def test_what_an_empty_block_has_in_out_does_not_matter():
    q, _, _ = whole(0, 7)
    out, lse = merge.empty(q)
    merge.merge_(out, lse, torch.full_like(q, 7.0), torch.full_like(lse, -math.inf))
    assert (out == 0).all()
    assert (lse == -math.inf).all()


def test_a_block_that_outweighs_the_rest_by_far_stays_finite():
    q, _, _ = whole(0, 8)
    out, lse = merge.empty(q)
    for weight in (-1e4, 1e4):
        merge.merge_(out, lse, torch.full_like(q, weight), torch.full_like(lse, weight))
    assert (out == 1e4).all()
    assert (lse == 1e4).all()


@EXAMPLES
@given(seq_len=st.integers(1, 40), world_size=st.integers(1, 8), layout=st.sampled_from(DEALT))
def test_shards_put_together_again_are_the_whole(seq_len, world_size, layout):
    x = torch.arange(1.0, 2 * seq_len * 3 + 1).reshape(2, seq_len, 3)
    shards = [layouts.shard(x, layout, rank, world_size) for rank in range(world_size)]
    local = layouts.local_seq_len(seq_len, world_size)
    assert {tuple(one.shape) for one in shards} == {(2, local, 3)}
    assert local == math.ceil(seq_len / world_size)
    assert torch.equal(layouts.unshard(shards, layout, seq_len), x)
    lengths = layouts.lengths(seq_len, layout, world_size)
    assert sum(lengths) == seq_len
    assert [int((one[0, :, 0] != 0).sum()) for one in shards] == list(lengths)  # the rest is padding, zeros
    for rank, one in enumerate(shards):
        assert (one[:, : lengths[rank]] != 0).all()  # padding comes last


@EXAMPLES
@given(
    seq_len=st.integers(1, 40),
    world_size=st.integers(1, 8),
    layout=st.sampled_from(DEALT),
    mask=st.sampled_from(["full", "causal"]),
)
def test_what_ranks_see_of_shards_is_what_the_mask_allows(seq_len, world_size, layout, mask):
    held = [layouts.tokens(seq_len, layout, rank, world_size) for rank in range(world_size)]
    lengths, local = layouts.lengths(seq_len, layout, world_size), layouts.local_seq_len(seq_len, world_size)
    found = torch.zeros(seq_len, seq_len, dtype=torch.int64)
    for rank, source in itertools.product(range(world_size), repeat=2):
        seen = layouts.seen(Mask(mask), layout, lengths, local, rank, source)
        if seen:
            queries, keys = held[rank][seen.queries], held[source][seen.keys]
            assert len(queries)
            assert len(keys)
            block = torch.ones(len(queries), len(keys), dtype=torch.int64)
            found[queries[:, None], keys] += block.tril() if seen.causal else block
    allowed = Mask(mask).allowed(seq_len, seq_len)
    assert torch.equal(found, torch.ones_like(found) if allowed is None else allowed.long())  # each pair once


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["zigzag", "striped"])
def test_causal_work_is_the_same_on_all_ranks(layout, world_size):
    local, mask = 64, Mask("causal")
    lengths = layouts.lengths(local * world_size, layout, world_size)

    def pairs(rank: int) -> int:
        every = [layouts.seen(mask, layout, lengths, local, rank, source) for source in range(world_size)]
        sizes = [(one, one.queries.stop - one.queries.start, one.keys.stop - one.keys.start) for one in every if one]
        return sum(q * (q + 1) // 2 if one.causal else q * k for one, q, k in sizes)

    work = [pairs(rank) for rank in range(world_size)]
    assert max(work) / min(work) < 1 + 2 * world_size / (local * world_size)  # striped: one token apart a block


def test_a_shard_is_a_copy_of_its_own():
    x = torch.ones(1, 4, 2)
    for layout in (*DEALT, "replicated_q"):
        layouts.shard(x, layout, 0, 1).zero_()
        assert (x == 1).all()


def test_where_all_ranks_have_the_same_queries_what_differs_is_no_number():
    q = torch.arange(8.0).view(1, 4, 2)
    q[0, 0, 0] = torch.nan
    copies = [layouts.shard(q, "replicated_q", rank, 3) for rank in range(3)]
    assert torch.equal(layouts.unshard(copies, "replicated_q", 4).nan_to_num(-1), q.nan_to_num(-1))
    copies[2][0, 3, 1] += 1
    assert layouts.unshard(copies, "replicated_q", 4).isnan().nonzero().tolist() == [[0, 0, 0], [0, 3, 1]]
    assert [layouts.of_tensor("replicated_q", name) for name in "qkv"] == ["replicated_q", "contiguous", "contiguous"]
