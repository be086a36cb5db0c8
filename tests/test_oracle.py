"""bench.oracle: inputs by seed, truth, budgets, and the mirrored inputs that are judged after timing."""

from dataclasses import replace

import pytest
import torch

from attn.contract import Workload
from bench import oracle
from bench.solved import mirrored as mirrored_inputs
from bench.solved import read

BASE = Workload(2, 9, 4, 4, 8, "float32", "causal", "forward_backward")
GQA = replace(BASE, n_kv_heads=2)
CASES = [
    pytest.param("core", BASE, id="core"),
    pytest.param("core", GQA, id="core-gqa"),
    pytest.param("core", replace(GQA, dtype="bfloat16", mask="full"), id="core-gqa-bfloat16"),
    pytest.param("core", replace(BASE, pass_="forward"), id="core-forward"),
    pytest.param("core", replace(GQA, seq_len=6, kv_seq_len=11), id="core-cross"),
    pytest.param("module", BASE, id="module"),
    pytest.param("module", GQA, id="module-gqa"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def by_row(name, x):
    """Largest magnitude of what one budget is for: a row, and of lse a single number."""
    return x.abs() if name == "lse" else x.abs().amax(-1)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("kind", "workload"), CASES)
def test_inputs_are_the_same_for_the_same_seed(kind, workload):
    assert same(oracle.inputs(kind, workload, 5), oracle.inputs(kind, workload, 5))


@pytest.mark.parametrize(("kind", "workload"), CASES)
@pytest.mark.parametrize("other", ["seed", "workload"])
def test_every_input_differs_for_another_seed_or_workload(kind, workload, other):
    first = oracle.inputs(kind, workload, 5)
    mask = "full" if workload.mask == "causal" else "causal"
    second = (
        oracle.inputs(kind, workload, 6) if other == "seed" else oracle.inputs(kind, replace(workload, mask=mask), 5)
    )
    assert [name for name in first if torch.equal(first[name], second[name])] == []


def test_inputs_of_one_workload_differ_from_each_other():
    given = oracle.inputs("core", BASE, 5)
    assert not torch.equal(given["k"], given["v"])
    assert not torch.equal(given["q"], given["dout"])


def test_inputs_have_the_shapes_of_the_contract_and_the_dtype_of_the_row():
    workload = replace(GQA, seq_len=6, kv_seq_len=11, dtype="bfloat16")
    given = oracle.inputs("core", workload, 0)
    assert {name: tuple(x.shape) for name, x in given.items()} == {
        "q": (2, 6, 4, 8), "k": (2, 11, 2, 8), "v": (2, 11, 2, 8), "dout": (2, 6, 4, 8),
    }  # fmt: skip
    assert {x.dtype for x in given.values()} == {torch.bfloat16}
    module = oracle.inputs("module", GQA, 0)
    assert {name: tuple(x.shape) for name, x in module.items()} == {
        "x": (2, 9, 32), "wq": (32, 32), "wk": (16, 32), "wv": (16, 32), "wo": (32, 32), "dout": (2, 9, 32),
    }  # fmt: skip


def test_gradients_have_a_truth_only_where_they_are_asked_for():
    forward = replace(BASE, pass_="forward")
    assert set(oracle.solve("core", forward, oracle.inputs("core", forward, 0)).truth) == {"out", "lse"}
    assert set(oracle.solve("core", BASE, oracle.inputs("core", BASE, 0)).truth) == {"out", "lse", "dq", "dk", "dv"}
    names = {"out", "dx", "dwq", "dwk", "dwv", "dwo"}
    assert set(oracle.solve("module", BASE, oracle.inputs("module", BASE, 0)).truth) == names


def test_the_truth_is_float64_attention_of_the_rounded_inputs():
    workload = Workload(1, 7, 1, 1, 4, "bfloat16", "full", "forward")
    given = oracle.inputs("core", workload, 0)
    q, k, v = (given[name][0, :, 0].double() for name in "qkv")
    scores = q @ k.T / 2
    solved = oracle.solve("core", workload, given)
    torch.testing.assert_close(solved.truth["out"][0, :, 0], scores.softmax(-1) @ v, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(solved.truth["lse"][0, 0], scores.exp().sum(-1).log(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("kind", "workload"), CASES)
def test_what_is_written_is_read_bit_for_bit(kind, workload, tmp_path):
    path = tmp_path / "deep" / "case.safetensors"
    oracle.write(path, kind, workload, 5)
    given = oracle.inputs(kind, workload, 5)
    solved, found = oracle.solve(kind, workload, given, 5), read(path)
    assert same(found.inputs, given)
    assert same(found.truth, solved.truth)
    assert same(found.budget, solved.budget)
    assert same(found.rms, solved.rms)
    assert [one.name for one in path.parent.iterdir()] == ["case.safetensors"]


@pytest.mark.parametrize(("kind", "workload"), CASES)
def test_the_mirrored_truth_is_the_truth_of_the_mirrored_inputs(kind, workload):
    solved = oracle.solve(kind, workload, oracle.inputs(kind, workload, 5), 5)
    mirrored = mirrored_inputs(kind, solved, workload.mask)
    again = oracle.solve(kind, workload, mirrored.inputs, 5)
    for name, truth in again.truth.items():  # weight gradients are summed over tokens in another order
        torch.testing.assert_close(truth, mirrored.truth[name], rtol=1e-12, atol=1e-13)
    assert {name: x.shape for name, x in mirrored.budget.items()} == {n: x.shape for n, x in again.budget.items()}


@pytest.mark.parametrize(("kind", "workload"), CASES)
def test_every_mirrored_tensor_is_far_over_budget_for_results_kept_from_before(kind, workload):
    solved = oracle.solve(kind, workload, oracle.inputs(kind, workload, 5), 5)
    mirrored = mirrored_inputs(kind, solved, workload.mask)
    for name, truth in solved.truth.items():
        ratio = by_row(name, truth - mirrored.truth[name]) / mirrored.budget[name]
        assert float(ratio.max()) > 2, name


@pytest.mark.parametrize(("kind", "workload"), CASES)
def test_every_mirrored_row_keeps_its_own_budget(kind, workload):
    solved = oracle.solve(kind, workload, oracle.inputs(kind, workload, 5), 5)
    mirrored = mirrored_inputs(kind, solved, workload.mask)
    for name in solved.truth:
        shares = [(by_row(name, x.truth[name]) / x.budget[name]).flatten().sort()[0] for x in (solved, mirrored)]
        assert torch.equal(*shares), name


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "kv_seq_len"), [("core", 9), ("core", 4), ("module", 9)])
def test_budgets_are_positive_and_finite_one_for_each_row(kind, kv_seq_len, dtype, mask):
    workload = replace(GQA, dtype=dtype, mask=mask, kv_seq_len=kv_seq_len)
    solved = oracle.solve(kind, workload, oracle.inputs(kind, workload, 5), 5)
    for name, budget in solved.budget.items():
        assert budget.dtype == torch.float64, name
        assert budget.shape == by_row(name, solved.truth[name]).shape, name
        assert bool((budget.isfinite() & (budget > 0)).all()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["core", "module"])
def test_on_the_whole_a_head_may_be_off_by_less_than_each_of_its_rows(kind, dtype):
    workload = replace(GQA, dtype=dtype)
    solved = oracle.solve(kind, workload, oracle.inputs(kind, workload, 5), 5)
    assert set(solved.rms) == set(solved.truth) - {"lse"}
    assert all(0 < float(x) < 1 for x in solved.rms.values())
    assert same(mirrored_inputs(kind, solved, workload.mask).rms, solved.rms)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("kind", ["core", "module"])
def test_every_baseline_is_right_in_float64_whatever_its_order(kind, mask, sampled, monkeypatch):
    workload = Workload(1, 150, 4, 2, 8, "float32", mask, "forward_backward")
    if sampled:
        monkeypatch.setattr(oracle, "MAX_SCORES", 2 * 64 * 150 * (4 if kind == "module" else 2))
    given = {name: x.double() for name, x in oracle.inputs(kind, workload, 5).items()}
    rows = oracle.sampled_rows(kind, workload)
    assert (rows is not None) == sampled
    first, *others = oracle._baselines(kind, workload, given, 5, rows)
    assert len(others) >= 5
    for other in others:
        for name, x in first.items():  # the naive one sums in float32, whatever the dtype
            torch.testing.assert_close(other[name].double(), x.double(), rtol=1e-4, atol=1e-4)


def test_a_budget_is_a_few_roundings_of_the_row_not_more():
    """Float32 attention over 9 keys: each row's budget stays under a thousand units of its largest element."""
    solved = oracle.solve("core", BASE, oracle.inputs("core", BASE, 5), 5)
    largest = solved.truth["out"].abs().amax(-1)
    assert bool((solved.budget["out"] < 1000 * 2**-23 * largest).all())
    assert bool((solved.budget["out"] > 2**-24 * largest).all())


@pytest.fixture
def few_scores(monkeypatch):
    """As if memory held 64 x 300 x 2 scores: of 1000 queries, blocks of 64."""
    monkeypatch.setattr(oracle, "MAX_SCORES", 5 * 64 * 300 * 2)


@pytest.mark.parametrize("pass_", ["forward", "forward_backward"])
@pytest.mark.parametrize(("kind", "mask"), [("core", "causal"), ("core", "full"), ("module", "causal")])
def test_sampled_queries_have_the_truth_that_they_have_in_the_whole(kind, mask, pass_, monkeypatch):
    workload = Workload(1, 300, 4, 2, 8, "float32", mask, pass_)
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "MAX_SCORES", 3 * 64 * 300 * (4 if kind == "module" else 2))
        given = oracle.inputs(kind, workload, 5)
        part = oracle.solve(kind, workload, given, 5)
    whole = oracle.solve(kind, workload, given, 5)
    assert part.rows is not None
    assert whole.rows is None
    assert part.rows.tolist() == [*range(64), *range(118, 182), *range(236, 300)]
    for name, truth in part.truth.items():
        torch.testing.assert_close(truth, part.judged_part(name, whole.truth[name]), rtol=1e-9, atol=1e-12)
    assert set(part.truth) == set(whole.truth)


def test_where_queries_are_sampled_dout_is_0_elsewhere_and_small_workloads_are_never_sampled(few_scores):
    big, small = Workload(1, 1000, 2, 1, 8, "float32", "full", "forward_backward"), BASE
    rows, given = oracle.sampled_rows("core", big), oracle.inputs("core", big, 5)
    others = [i for i in range(1000) if i not in set(rows.tolist())]
    assert not given["dout"][:, others].any()
    assert bool(given["dout"][:, rows].any(-1).all())
    assert oracle.sampled_rows("core", small) is None
    assert bool(oracle.inputs("core", small, 5)["dout"].any(-1).all())


def test_the_sampled_queries_are_written_and_read(few_scores, tmp_path):
    big = Workload(1, 1000, 2, 1, 8, "float32", "full", "forward")
    oracle.write(tmp_path / "big.safetensors", "core", big, 5)
    assert torch.equal(read(tmp_path / "big.safetensors").rows, oracle.sampled_rows("core", big))
