"""bench.judge: wrong attentions are rejected for their reason, right ones are accepted."""

import math
import re
from functools import cache

import pytest
import torch

from attn.contract import Mask, Workload
from attn.reference import plain_attention
from bench import oracle
from bench.judge import judge

GQA = Workload(1, 65, 4, 2, 16, "float32", "causal", "forward_backward", softmax_scale=0.3)
WRONG = {}  # name -> (the function, what the reason must say)


pytestmark = pytest.mark.usefixtures("one_thread")


def wrong(reason):
    def keep(function):
        WRONG[function.__name__] = (function, reason)
        return function

    return keep


def plain(q, k, v, softmax_scale=GQA.softmax_scale, allowed=None):
    """Attention with a mask of one's own; heads of k and v as q's. Returns out and lse."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = softmax_scale * (q @ k.mT)
    if allowed is None:
        allowed = Mask("causal").allowed(q.shape[2], k.shape[2])
    scores = scores.masked_fill(~allowed, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).detach()


def results(attention, given):
    """What a row would return: `attention` takes q, k, v with k and v repeated for every head of q."""
    q, k, v = (given[name].clone().requires_grad_() for name in "qkv")
    out, lse = attention(q, *(x.repeat_interleave(2, dim=2) for x in (k, v)))
    out.backward(given["dout"].to(out.dtype).reshape(out.shape))
    return {"out": out.detach(), "lse": lse, "dq": q.grad, "dk": k.grad, "dv": v.grad}


@cache
def solved(kind, workload, seed):
    return oracle.solve(kind, workload, oracle.inputs(kind, workload, seed), seed)


@wrong("out is off")
def no_mask_at_all(given):
    return results(lambda q, k, v: plain(q, k, v, allowed=torch.ones(65, 65, dtype=torch.bool)), given)


@wrong("^out is 1x4x65x16 float32, not 1x65x4x16 float32$")
def out_with_heads_first(given):
    found = results(plain, given)
    return {**found, "out": found["out"].transpose(1, 2)}


@wrong("^lse is 1x4x65 bfloat16, not 1x4x65 float32$")
def lse_of_fewer_bits(given):
    found = results(plain, given)
    return {**found, "lse": found["lse"].bfloat16()}


@wrong("^dv was not returned$")
def no_dv(given):
    return {name: x for name, x in results(plain, given).items() if name != "dv"}


@wrong(r"^out is off .* at row \(0, 0, 0\).*\(1 of 260 rows over\)")
def one_element_of_one_row(given):
    found = results(plain, given)
    found["out"][0, 0, 0, 0] += 1e-3
    return found


@wrong("out is off")
def weights_over_queries_not_keys(given):
    def attention(q, k, v):
        return plain(k, q, v)

    return results(attention, given)


def test_every_wrong_attention_is_rejected_for_its_reason():
    torch.manual_seed(0)
    kept = []
    for name, (attention, reason) in WRONG.items():
        for seed in range(2):
            truth = solved("core", GQA, seed)
            verdict = judge(attention(truth.inputs), truth, "float32")
            if verdict.right or not re.search(reason, verdict.reason):
                kept.append(f"{name}, seed {seed}: {verdict.reason}")
    assert kept == []


@pytest.mark.parametrize("seed", range(3))
def test_the_attention_that_the_wrong_ones_are_made_from_is_accepted(seed):
    truth = solved("core", GQA, seed)
    assert judge(results(plain, truth.inputs), truth, "float32").reason is None


def test_rows_that_see_no_key_must_be_0_with_lse_minus_infinity():
    workload = Workload(1, 6, 2, 2, 8, "float32", "causal", "forward", kv_seq_len=4)
    truth = solved("core", workload, 0)
    mask = Mask("causal")
    out, lse = plain_attention(*truth.inputs.values(), softmax_scale=workload.softmax_scale, mask=mask)
    assert judge({"out": out, "lse": lse}, truth, "float32").right
    verdict = judge({"out": out, "lse": lse.clamp_min(-1e30)}, truth, "float32")
    assert "lse has 4 values that are not finite, or should not be: -1e+30" in (verdict.reason or "")
    out[:, 0] = truth.inputs["v"].mean(1)
    assert "out is off" in (judge({"out": out}, truth, "float32").reason or "")


@pytest.mark.parametrize("head", [None, 2])
def test_what_is_within_every_row_may_be_too_much_for_a_head_and_says_which(head):
    workload = Workload(1, 65, 4, 4, 16, "float16", "full", "forward")
    truth = solved("core", workload, 0)
    out = truth.truth["out"].half()
    assert judge({"out": out}, truth, "float16").right
    heads = slice(None) if head is None else slice(head, head + 1)
    scaled = out.clone()
    scaled[:, :, heads] *= 1.002
    verdict = judge({"out": scaled}, truth, "float16")
    where = r"\d" if head is None else str(head)
    assert re.fullmatch(rf"out is off on the whole in head {where}: [\d.]+ times what .* may be", verdict.reason)
    assert verdict.over_budget["out"] > 1


def test_a_verdict_reports_every_tensor_that_is_wrong_and_the_worst_multiple():
    truth = solved("core", GQA, 0)
    found = results(plain, truth.inputs)
    verdict = judge({**found, "dq": found["dq"] + 1, "dk": found["dk"] + 1}, truth, "float32")
    assert re.fullmatch(r"dq is off .*; dk is off [^;]*", verdict.reason)
    assert max(verdict.over_budget["dq"], verdict.over_budget["dk"]) > 1000
    assert verdict.max_abs_error["dq"] == pytest.approx(1, rel=1e-4)
    assert "\n" not in verdict.reason
