"""What is true of attention whatever the numbers, of every core row, of the reference, and of blocks and their merge.

Rows are judged as the bench judges them (with twice the budget): what they make of a transformed problem,
against the truth of the original one, which the transformation (exact in the row's dtype) leaves as it is.
The float64 reference is held to `rounding`, the worst case of two evaluations in float64.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from attn import registry
from attn.contract import Mask, Unsupported, Workload
from attn.kernels import block
from attn.reference import plain_attention
from attn.ring import merge
from bench import oracle
from bench.calls import make
from bench.judge import judge

SOME = settings(
    deadline=None, derandomize=True, database=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
MORE = settings(SOME, max_examples=80)  # of the reference, which costs no oracle
ROWS = [name for name, row in registry.find().items() if row.kind == "core" and "cpu" in row.devices]
ROWS.remove("flex_attention")  # compiles for seconds a shape; tests/test_adapters.py
HEADS = [(1, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2)]  # of q, and of k and v
GROUPED = [(4, 2), (6, 2), (6, 3), (4, 1)]

pytestmark = pytest.mark.usefixtures("one_thread")
every_row = pytest.mark.parametrize("row", ROWS)


@dataclass(frozen=True)
class Problem:
    """A workload and its inputs: standard normals times `size`, or on a grid of eighths up to 2."""

    workload: Workload
    seed: int
    size: float
    grid: bool = False

    def inputs(self):
        given = oracle.inputs("core", self.workload, self.seed)
        if self.grid:
            return {name: (x.float().clamp(-2, 2) * 8).round().div(8).to(x.dtype) for name, x in given.items()}
        return {name: x * self.size for name, x in given.items()}


@st.composite
def problems(draw, masks=("full", "causal"), square=False, longest=70, grid=False, heads=HEADS, judged=True):
    """Judged ones have a head_dim of 8 or more: of fewer numbers a row's budget would be a matter of luck."""
    seq_len = draw(st.integers(1, longest))
    head_dim = draw(st.sampled_from([8, 16, 40, 64] if judged else [1, 2, 8, 16, 40, 64]))
    workload = Workload(
        batch=draw(st.integers(1, 2)),
        seq_len=seq_len,
        n_heads=(chosen := draw(st.sampled_from(heads)))[0],
        n_kv_heads=chosen[1],
        head_dim=head_dim,
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        mask=draw(st.sampled_from(masks)),
        pass_=draw(st.sampled_from(["forward_backward", "forward"])) if judged else "forward_backward",
        kv_seq_len=seq_len if square else draw(st.integers(1, longest)),
        softmax_scale=draw(st.sampled_from([head_dim**-0.5, 0.0, 1e-6, 2.0])),
    )
    return Problem(workload, draw(st.integers(0, 999)), draw(st.sampled_from([1.0, 1e-4, 4.0])), grid)


@cache  # the rows of one test see the same problems
def solved(problem):
    return oracle.solve("core", problem.workload, problem.inputs(), problem.seed)


def of_row(row, workload, given):
    """What a row returns; what it does not support is not asked of it."""
    try:
        call = make(registry.find()[row], workload, given, "cpu")
        call()
    except Unsupported:
        reject()
    return call.results()


def of_reference(workload, given):
    """out, lse and, where there is a dout, gradients in float64."""
    leaves = {name: given[name].double().requires_grad_() for name in "qkv"}
    out, lse = plain_attention(**leaves, softmax_scale=workload.softmax_scale, mask=Mask(workload.mask))
    found = {"out": out.detach(), "lse": lse}
    if "dout" in given:
        gradients = torch.autograd.grad(out, list(leaves.values()), given["dout"].double())
        found |= dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return found


def rounding(workload, given):
    """The most by which two float64 evaluations of one problem can differ, for each tensor.

    To first order in eps, in any order of summation: a logit is off by logit * (head_dim + 2) eps, where
    logit bounds |scale| |q||k|; so is lse, and for its sum by kv_seq_len eps more. A weight is off by twice
    that, relatively (`weight`). dP and delta, at most |dout||v|, are off by (head_dim + 1) eps and `weight`
    of it. Sums over keys add kv_seq_len eps, over queries and the heads of a group `terms` eps.
    """
    w, eps = workload, torch.finfo(torch.float64).eps
    q, k, v, dout = (float(given[name].double().norm(dim=-1).max()) for name in ("q", "k", "v", "dout"))
    terms = w.seq_len * w.n_heads // w.n_kv_heads
    logit = abs(w.softmax_scale) * q * k
    lse = ((w.head_dim + 2) * logit + (w.kv_seq_len + 8) * (1 + math.log(w.kv_seq_len))) * eps
    weight = 2 * lse + (w.kv_seq_len + 8) * eps
    dscores = abs(w.softmax_scale) * dout * v * (4 * weight + 4 * (w.head_dim + 2) * eps)
    one = {
        "out": v * weight,
        "lse": lse + logit * eps,
        "dq": k * (dscores + abs(w.softmax_scale) * 2 * dout * v * w.kv_seq_len * eps),
        "dk": q * terms * (dscores + abs(w.softmax_scale) * 2 * dout * v * terms * eps),
        "dv": dout * terms * (weight + terms * eps),
    }
    return {name: 2 * bound + torch.finfo(torch.float64).tiny for name, bound in one.items()}


def assert_equal(one, other, bounds):
    """Tensors of `one` are those of `other` within the bounds."""
    off = {name: float(torch.where(x == other[name], 0.0, (x - other[name]).abs()).max()) for name, x in one.items()}
    assert {name: x for name, x in off.items() if not x <= bounds[name]} == {}


def assert_right(found, truth, workload):
    """Tensors are within twice their budgets: a problem of a few tokens has few rows to pool its budget from."""
    dtype = getattr(torch, workload.dtype)
    found = {name: x.to(torch.float32 if name == "lse" else dtype) for name, x in found.items()}
    known = {name: x for name, x in truth.truth.items() if name in found}
    budget = {name: 2 * x for name, x in truth.budget.items()}
    assert judge(found, replace(truth, truth=known, budget=budget), workload.dtype).reason is None


def permuted(given, order):
    return {**given, "k": given["k"][:, order], "v": given["v"][:, order]}


def in_the_old_order(found, order):
    back = torch.argsort(order)
    return {name: x[:, back] if name in ("dk", "dv") else x for name, x in found.items()}


def an_order(problem):
    generator = torch.Generator().manual_seed(problem.seed)
    return torch.randperm(problem.workload.kv_seq_len, generator=generator)


@MORE
@given(problem=problems(masks=("full",), judged=False))
def test_permuted_keys_change_nothing_in_the_reference(problem):
    workload, x, order = problem.workload, problem.inputs(), an_order(problem)
    found = in_the_old_order(of_reference(workload, permuted(x, order)), order)
    assert_equal(found, of_reference(workload, x), rounding(workload, x))


@every_row
@SOME
@given(problem=problems(masks=("full",)))
def test_permuted_keys_change_nothing_in_a_row(row, problem):
    workload, order = problem.workload, an_order(problem)
    found = of_row(row, workload, permuted(problem.inputs(), order))
    assert_right(in_the_old_order(found, order), solved(problem), workload)


def shifted(problem):
    """The problem with one vector added to every key of a head (exact in every dtype), and what lse gains."""
    workload, x = problem.workload, problem.inputs()
    generator = torch.Generator().manual_seed(problem.seed)
    shift = torch.randint(-16, 17, (workload.batch, 1, workload.n_kv_heads, workload.head_dim), generator=generator) / 8
    assert torch.equal((x["k"] + shift.to(x["k"].dtype)).double(), x["k"].double() + shift)
    by_head = shift.double().repeat_interleave(workload.n_heads // workload.n_kv_heads, dim=2)
    gain = workload.softmax_scale * (x["q"].double() * by_head).sum(-1).mT
    return {**x, "k": x["k"] + shift.to(x["k"].dtype)}, gain


@MORE
@given(problem=problems(grid=True, judged=False))
def test_a_vector_added_to_every_key_changes_nothing_but_lse_in_the_reference(problem):
    workload = problem.workload
    x, gain = shifted(problem)
    wanted = of_reference(workload, problem.inputs())
    wanted["lse"] += gain
    bounds = {name: max(one, rounding(workload, problem.inputs())[name]) for name, one in rounding(workload, x).items()}
    assert_equal(of_reference(workload, x), wanted, bounds)


@cache
def solved_shifted(problem):
    """The truth before the shift, with the budgets after it: larger keys have larger roundings."""
    x, gain = shifted(problem)
    truth = of_reference(problem.workload, problem.inputs())
    truth["lse"] += gain
    return replace(oracle.solve("core", problem.workload, x, problem.seed), truth=truth)


@every_row
@SOME
@given(problem=problems(grid=True))
def test_a_vector_added_to_every_key_changes_nothing_but_lse_in_a_row(row, problem):
    found = of_row(row, problem.workload, shifted(problem)[0])
    assert_right(found, solved_shifted(problem), problem.workload)


def prefixes(workload, given):
    """Of every query its own problem, under a full mask: itself and the keys up to its own."""
    for i in range(workload.seq_len):
        query, seen = slice(i, i + 1), slice(0, i + 1)
        x = {name: tensor[:, seen if name in "kv" else query] for name, tensor in given.items()}
        yield replace(workload, seq_len=1, kv_seq_len=i + 1, mask="full"), x


def put_together(results):
    """The rows of a causal problem from its prefixes; dk and dv are their sums."""
    found = {name: torch.cat([one[name] for one in results], -1 if name == "lse" else 1) for name in results[0]}
    for name in set(found) & {"dk", "dv"}:
        parts = [one[name] for one in results]
        found[name] = parts[-1].clone()
        for part in parts[:-1]:
            found[name][:, : part.shape[1]] += part
    return found


@MORE
@given(problem=problems(masks=("causal",), square=True, longest=24, judged=False))
def test_a_causal_row_of_the_reference_is_full_attention_over_its_prefix(problem):
    workload, x = problem.workload, problem.inputs()
    found = put_together([of_reference(*one) for one in prefixes(workload, x)])
    assert_equal(found, of_reference(workload, x), rounding(workload, x))


@every_row
@SOME
@given(problem=problems(masks=("causal",), square=True, longest=24))
def test_a_causal_row_of_a_row_is_full_attention_over_its_prefix(row, problem):
    """Whole and in prefixes, both against the truth in prefixes. (dk and dv of prefixes are rounded too often.)"""
    workload, x = problem.workload, problem.inputs()
    truth = replace(solved(problem), truth=put_together([of_reference(*one) for one in prefixes(workload, x)]))
    assert_right(of_row(row, workload, x), truth, workload)
    parts = [of_row(row, *one) for one in prefixes(workload, x)]
    kept = [{name: x for name, x in part.items() if name not in ("dk", "dv")} for part in parts]
    assert_right(put_together(kept), truth, workload)


@st.composite
def pieces(draw, problem):
    """Where keys are cut (pieces may be empty), and the order in which the pieces are merged."""
    length = problem.workload.kv_seq_len
    edges = [0, *sorted(draw(st.lists(st.integers(0, length), max_size=4))), length]
    return draw(st.permutations(list(pairwise(edges))))


def seen_pieces(workload, parts):
    """(queries, keys, causal) of all pairs of pieces that see each other: a mask cuts queries where it cuts keys."""
    for start, end in parts:
        if workload.mask == "full" and end > start:
            yield slice(0, workload.seq_len), slice(start, end), False
        elif end > start:
            yield slice(start, end), slice(start, end), True
            if end < workload.seq_len:
                yield slice(end, workload.seq_len), slice(start, end), False


@pytest.mark.parametrize("kernel", ["fused", "formulas"])
@settings(SOME, max_examples=40)
@given(data=st.data())
def test_keys_split_anywhere_and_merged_are_the_whole_and_so_are_the_sums_of_gradients(kernel, data):
    square = data.draw(st.booleans())
    problem = data.draw(problems(masks=("full", "causal") if square else ("full",), square=square))
    parts = data.draw(pieces(problem))
    workload, x = problem.workload, problem.inputs()
    with pytest.MonkeyPatch.context() as patch:
        if kernel == "formulas":
            patch.setattr(block, "_fused", lambda *_: False)
        found = merged(workload, x, parts)
    assert_right(found, allowing_for(solved(problem), parts), workload)


def allowing_for(truth, parts):
    """Every piece is rounded, and merged, by itself: a budget for each of them that holds a key."""
    filled = sum(end > start for start, end in parts)
    budget = {name: x * filled for name, x in truth.budget.items()}
    return replace(truth, budget=budget)


def merged(workload, x, parts):
    q = x["q"]
    out, lse = merge.empty(q)
    for queries, keys, causal in seen_pieces(workload, parts):
        how = {"softmax_scale": workload.softmax_scale, "causal": causal}
        found = block.forward(q[:, queries], x["k"][:, keys], x["v"][:, keys], **how)
        merge.merge_(out[:, queries], lse[:, :, queries], *found)
    for start, end in parts:
        if start == end:
            merge.merge_(out, lse, *merge.empty(q))
    whole = out.to(q.dtype)
    if not workload.backward:
        return {"out": whole, "lse": lse}
    sums = {f"d{name}": torch.zeros_like(x[name], dtype=torch.float32) for name in "qkv"}
    for queries, keys, causal in seen_pieces(workload, parts):
        how = {"softmax_scale": workload.softmax_scale, "causal": causal}
        given = (x["dout"][:, queries], q[:, queries], x["k"][:, keys], x["v"][:, keys])
        dq, dk, dv = block.backward(*given, whole[:, queries], lse[:, :, queries].contiguous(), **how)
        sums["dq"][:, queries] += dq
        sums["dk"][:, keys] += dk
        sums["dv"][:, keys] += dv
    return {"out": whole, "lse": lse, **sums}


def halves(workload, given, cut):
    for keys in (slice(0, cut), slice(cut, None)):
        k, v = given["k"][:, keys], given["v"][:, keys]
        yield replace(workload, kv_seq_len=k.shape[1]), {**given, "k": k, "v": v}


def recombined(results):
    """out = sum exp(lse_i - lse) out_i over parts of the keys."""
    lse = torch.stack([one["lse"].double() for one in results]).logsumexp(0)
    shares = [(one["lse"].double() - lse).exp().mT[..., None] for one in results]
    out = sum(share * one["out"].double() for share, one in zip(shares, results, strict=True))
    return {"out": out, "lse": lse}


def cut_in_two(problem):
    assume(problem.workload.kv_seq_len > 1)
    return 1 + problem.seed % (problem.workload.kv_seq_len - 1)


@MORE
@given(problem=problems(masks=("full",), judged=False))
def test_lse_of_the_reference_weighs_two_halves_of_the_keys(problem):
    workload, x, cut = problem.workload, problem.inputs(), cut_in_two(problem)
    found = recombined([of_reference(*half) for half in halves(workload, x, cut)])
    bounds = rounding(workload, x)
    bounds["out"] += 4 * bounds["lse"] * float(x["v"].double().abs().max())  # shares are exp of lse
    assert_equal(found, {name: of_reference(workload, x)[name] for name in found}, bounds)


@every_row
@SOME
@given(problem=problems(masks=("full",)))
def test_lse_of_a_row_weighs_two_halves_of_the_keys(row, problem):
    """A row that gives no lse is weighed by the true one."""
    workload, x, cut = problem.workload, problem.inputs(), cut_in_two(problem)
    parts = [{**of_reference(*half), **of_row(row, *half)} for half in halves(workload, x, cut)]
    assert_right(recombined(parts), solved(problem), workload)
    if "out_with_lse" in parts[0]:
        assert_right(recombined([{**one, "out": one["out_with_lse"]} for one in parts]), solved(problem), workload)


def repeated(workload, given):
    """The same without groups: k and v once for every head of q."""
    group = workload.n_heads // workload.n_kv_heads
    more = {name: given[name].repeat_interleave(group, dim=2) for name in "kv"}
    return replace(workload, n_kv_heads=workload.n_heads), {**given, **more}


def grouped(workload, found):
    """Gradients of repeated keys and values, summed over each group, in float64."""
    heads = (workload.n_kv_heads, workload.n_heads // workload.n_kv_heads)
    sums = {name: found[name].double().unflatten(2, heads).sum(3) for name in set(found) & {"dk", "dv"}}
    return {**found, **sums}


@MORE
@given(problem=problems(heads=GROUPED, judged=False))
def test_grouped_heads_of_the_reference_are_repeated_heads(problem):
    workload, x = problem.workload, problem.inputs()
    found = grouped(workload, of_reference(*repeated(workload, x)))
    assert_equal(found, of_reference(workload, x), rounding(workload, x))


@every_row
@SOME
@given(problem=problems(heads=GROUPED))
def test_grouped_heads_of_a_row_are_repeated_heads(row, problem):
    """Grouped against the truth of repeated heads, repeated against the truth of grouped ones."""
    workload, x = problem.workload, problem.inputs()
    truth = grouped(workload, of_reference(*repeated(workload, x)))
    assert_right(of_row(row, workload, x), replace(solved(problem), truth=truth), workload)
    assert_right(grouped(workload, of_row(row, *repeated(workload, x))), solved(problem), workload)
