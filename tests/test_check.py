"""bench.check and bench.cases: what a check does with a row, beyond comparing numbers."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from attn import registry
from attn.contract import Workload
from bench import cases, check, checking, grid, kept, oracle, truths
from bench.cases import Case
from bench.jobs import CheckJob
from bench.judge import judge
from bench.team import Solo

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = Workload(1, 33, 2, 2, 16, "float32", "causal", "forward_backward")
ROW = '''"""A row for a test."""
import torch
from attn.impl import standard
KIND, DEVICES, DTYPES, MASKS, BACKWARD = "core", ("cpu",), ("float32",), ("full", "causal"), True
{constants}


def attention(q, k, v, *, softmax_scale, mask):
    out = standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    {line}
'''


def judged(tmp_path: Path, line: str, case: Case, constants: str = "") -> dict:
    path = tmp_path / "row.py"
    path.write_text(ROW.format(line=line, constants=constants), encoding="utf-8")
    row = registry.read(path)
    return check._judged(row, case, cases.solve(case, "core", 7), "cpu", Solo())


def test_a_right_row_is_ok_and_bitwise_the_same_twice(tmp_path):
    found = judged(tmp_path, "return out", Case(BASE))
    assert (found["status"], found["reason"], found["spread"]) == ("ok", None, {})


JITTER = "attention.n = getattr(attention, 'n', 0) + 1; return out * (1 + 1.2e-7 * (attention.n > 3))"


def test_two_runs_that_differ_are_wrong_unless_declared(tmp_path):
    found = judged(tmp_path, JITTER, Case(BASE))
    assert found["status"] == "incorrect"
    assert found["reason"].startswith("two runs on the same inputs differ: out by up to ")


def test_a_row_that_says_so_may_differ_and_how_far_is_recorded(tmp_path):
    found = judged(tmp_path, JITTER, Case(BASE), "DETERMINISTIC = False")
    assert found["reason"] is None
    assert 0 < found["spread"]["out"] < 1e-5


def test_a_gradient_that_is_none_is_wrong_also_where_it_should_be_zero(tmp_path):
    zero = Case(replace(BASE, softmax_scale=0.0))
    cut = "standard.attention(q.detach(), k.detach(), v, softmax_scale=softmax_scale, mask=mask)"
    found = judged(tmp_path, f"return {cut}", zero)
    assert found["status"] == "incorrect"
    assert found["reason"].startswith("dq was not returned; dk was not returned")
    assert judged(tmp_path, f"return {cut} + 0 * (q.sum() + k.sum())", zero)["status"] == "ok"


def test_an_output_that_changes_after_the_call_is_wrong(tmp_path, monkeypatch):
    """The result is copied as the caller would read it; what is written later is noticed."""
    whole = check.CoreCall._whole

    def late(call, found):
        with torch.no_grad():
            call.out += 1
        return whole(call, found)

    monkeypatch.setattr(check.CoreCall, "_whole", late)
    found = judged(tmp_path, "return out", Case(BASE))
    assert "still at work after it returned: out changed" in found["reason"]


def test_what_is_kept_by_address_is_wrong_on_other_inputs(tmp_path):
    line = "return attention.__dict__.setdefault((q.data_ptr(), q.shape), out.detach().clone())"
    found = judged(tmp_path, line, Case(Workload(1, 33, 2, 2, 16, "float32", "full", "forward")))
    assert found["reason"].startswith("on other inputs in the same buffers: out is off")


NAN = [
    Case(Workload(1, 33, 2, 2, 16, "float32", mask, "forward"), f"nan-{x}")
    for mask in ("full", "causal")
    for x in "qkv"
]


@pytest.mark.parametrize("case", NAN, ids=lambda case: case.name)
def test_a_nan_reaches_what_sees_it_and_a_row_that_swallows_it_is_wrong(case, tmp_path):
    assert judged(tmp_path, "return out", case)["status"] == "ok"
    swallowed = judged(tmp_path, "return out.nan_to_num()", case)
    assert "not finite, or should not be: 0 at" in swallowed["reason"]
    everywhere = judged(tmp_path, "return out + out.sum() * 0", case)
    assert everywhere["status"] == "incorrect"


def test_a_nan_in_v_may_leak_into_earlier_rows_of_a_causal_mask_and_is_recorded():
    case = NAN[5]
    problem = cases.solve(case, "core", 7)
    clean = {name: x.float() for name, x in problem.truth.items()}
    assert judge(clean, problem, "float32").leaked is False
    leaked = {**clean, "out": clean["out"].clone()}
    leaked["out"][0, 3, 0, 3] = math.nan  # the column of the NaN, in a row before it
    verdict = judge(leaked, problem, "float32")
    assert (verdict.right, verdict.leaked) == (True, True)
    leaked["out"][0, 3, 0, 4] = math.nan
    assert not judge(leaked, problem, "float32").right


def test_each_rank_of_a_ring_is_judged_by_itself():
    workload = Workload(1, 10, 1, 1, 8, "float32", "full", "forward_backward")
    problem = oracle.solve("core", workload, oracle.inputs("core", workload, 7), 7)
    results = {name: x.float() for name, x in problem.truth.items()}
    held = [torch.arange(0, 4), torch.arange(4, 8), torch.arange(8, 10), torch.arange(0)]
    right = judge(results, problem, "float32", held)
    assert right.right
    assert [set(rank) for rank in right.ranks] == [{"out", "lse", "dq", "dk", "dv"}] * 3 + [set()]
    results["dk"][0, 9] = 0
    wrong = judge(results, problem, "float32", held)
    assert (wrong.reason or "").startswith("rank 2: dk is off")
    assert wrong.ranks[2]["dk"] > 1 > wrong.ranks[1]["dk"]
    del results["dv"]
    reason = judge(results, problem, "float32", held).reason or ""
    assert reason.count("dv was not returned whole") == 4


def test_a_rank_answers_only_for_the_sampled_queries_that_it_holds(monkeypatch):
    workload = Workload(1, 300, 2, 2, 8, "float32", "causal", "forward_backward")
    monkeypatch.setattr(oracle, "MAX_SCORES", 2 * 64 * 300)
    problem = oracle.solve("core", workload, oracle.inputs("core", workload, 7), 7)
    results = {name: torch.zeros(1, 300, 2, 8) for name in ("out", "dq", "dk", "dv")}
    for name in ("dq", "dk", "dv"):
        results[name] = problem.truth[name].float()
    results["out"][:, problem.rows] = problem.truth["out"].float()
    held = [torch.arange(rank, 300, 3) for rank in range(3)]
    verdict = judge(results, problem, "float32", held)
    assert verdict.reason is None
    assert verdict.sampled == "128 of 300 queries"
    assert sum(int(torch.isin(tokens, problem.rows).sum()) for tokens in held) == len(problem.rows) == 128
    results["out"][0, 1] += 1
    assert (judge(results, problem, "float32", held).reason or "").startswith("rank 1: out is off")


def test_cases_have_names_of_their_own_and_all_that_hurts_is_among_them():
    for kind, wanted in {"core": 120, "module": 80, "ring": 70}.items():
        names = [case.name for case in cases.all_cases(kind)]
        assert len(set(names)) == len(names) >= wanted
    core = list(cases.all_cases("core"))
    assert {c.workload.seq_len for c in core} >= {1, 2, 31, 63, 65, 97, 127, 251, 513, 1000}
    assert {c.workload.head_dim for c in core} >= {16, 32, 40, 64, 80, 96, 128, 256}
    assert {c.workload.softmax_scale for c in core} >= {0.0, 1e-6, 0.3}
    assert {c.workload.n_kv_heads for c in core if c.workload.n_heads == 4} == {1, 2}
    assert {c.variant for c in core} >= {
        "huge-row", "equal-rows", "one-hot", "values-1e4", "values-1e-6", "strided", "sliced", "last-stride-2",
        "nan-q", "nan-k", "nan-v", "real-layer-0", "real-layer-1",
    }  # fmt: skip
    assert any(c.workload.batch == 3 for c in core)
    assert any(c.workload.kv_seq_len < c.workload.seq_len for c in core)


@pytest.mark.parametrize("changes", [{"dtypes": ("float16",)}, {"masks": ("full",)}, {"masks": ("causal",)}])
@pytest.mark.parametrize("name", ["standard", "multihead_standard"])
def test_a_row_that_declares_little_is_judged_on_all_that_hurts_in_what_it_declares(name, changes):
    row = replace(registry.find()[name], **changes)
    made = cases.cases(row)
    assert len({case.name for case in made}) == len(made)
    assert all(case.workload.dtype in row.dtypes and case.workload.mask in row.masks for case in made)
    left_out = {"values-1e4"} if changes.get("dtypes") else set()  # overflows
    assert {case.variant for case in made} == {case.variant for case in cases.all_cases(row.kind)} - left_out
    assert {case.workload.head_dim for case in made} >= {16, 32, 40, 64, 80, 96, 128, 256}
    assert {case.workload.batch for case in made} >= {1, 2, 3}


def test_a_ring_is_compared_on_1_2_4_and_8_ranks_in_the_same_cases():
    ring = registry.find()["ring_v2_collective"]
    by_size: dict[int, set[str]] = {}
    for case in cases.cases(ring):
        by_size.setdefault(case.world_size, set()).add(case.problem)
    assert set(by_size) == {1, 2, 4, 8}
    assert by_size[8] < by_size[1] == by_size[2] == by_size[4]


@pytest.mark.parametrize("variant", ["strided", "sliced", "last-stride-2"])
def test_placed_inputs_have_the_same_values_in_other_memory(variant):
    x = torch.randn(2, 5, 3, 4)
    placed = Case(BASE, variant).placed("q", x)
    assert torch.equal(placed, x)
    assert not placed.is_contiguous()


def test_solved_cases_are_kept_and_only_used_for_their_seed_and_code(tmp_path, monkeypatch):
    kept = [Case(BASE), Case(BASE, "huge-row")]
    monkeypatch.setattr(cases, "all_cases", lambda kind: iter(kept))
    cases.solve_cases({"kind": "core", "folder": str(tmp_path), "seed": 7, "threads": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{one.problem}.safetensors" for one in kept)
    fresh, read = cases.solve(kept[1], "core", 7), cases.solve(kept[1], "core", 7, tmp_path)
    assert all(torch.equal(fresh.budget[name], read.budget[name]) for name in fresh.budget)
    assert torch.equal(cases.solve(kept[1], "core", 99, tmp_path).inputs["q"], read.inputs["q"])


def test_the_index_of_kept_cases_names_seed_code_and_real_inputs(tmp_path, monkeypatch):
    params = grid.load(ROOT / "params.yaml")
    monkeypatch.setattr(truths, "CASES", tmp_path)
    assert truths.kept_cases(params, "core") == ""
    (tmp_path / "core").mkdir()
    kept.write_index(tmp_path / "core", **truths._made_from(params.protocol.seed))
    assert truths.kept_cases(params, "ring") == str(tmp_path / "core")
    kept.write_index(tmp_path / "core", **truths._made_from(params.protocol.seed + 1))
    assert truths.kept_cases(params, "core") == ""


def test_without_real_inputs_their_cases_say_how_to_get_them(tmp_path, monkeypatch):
    real = Case(Workload(1, 512, 12, 12, 32, "float32", "full", "forward"), "real-layer-0")
    monkeypatch.setattr(cases, "cases", lambda _: [real])
    job = CheckJob(str(registry.IMPL_DIR / "standard.py"), "cpu", 1, 7, 1, [], real=str(tmp_path / "none"))
    (found,) = check.check(vars(job))["cases"]
    assert found["status"] == "not_measured"
    assert "dvc repro capture" in found["reason"]


def test_the_summary_names_the_worst_case_and_the_worst_on_real_inputs():
    def one(case, variant, ratio, **more):
        found = {"case": case, "variant": variant, "dtype": "float32", "over_budget": {"out": ratio, "dq": 0.1}}
        return {**found, "max_abs_error": {"out": 1e-6, "dq": 1e-7}, "nan_leaks": False, "spread": {}, **more}

    found = [
        one("a", "normal", 0.5), one("b", "real-layer-0", 0.3), one("c", "real-layer-1", 0.4),
        one("d", "nan-v", 0.01, nan_leaks=True, spread={"out": 1e-9}), {"case": "e", "status": "unsupported"},
    ]  # fmt: skip
    summary = checking.summary(found)
    assert (summary["worst"]["case"], summary["worst"]["tensor"]) == ("a", "out")
    assert summary["real"]["float32"]["case"] == "c"
    assert summary["nan_leaks"] == ["d"]
    assert summary["spread"] == {"d": {"out": 1e-9}}


CALLS = "attention.n = getattr(attention, 'n', 0) + 1"
CASE = Case(BASE)


@pytest.mark.parametrize("constants", ["", "DETERMINISTIC = False"])
def test_a_second_call_that_is_not_right_is_wrong_also_where_runs_may_differ(constants, tmp_path):
    found = judged(tmp_path, f"{CALLS}; return out * (1 if attention.n < 3 else torch.nan)", CASE, constants)
    assert found["status"] == "incorrect"
    assert re.match(r"in its second call: out has \d+ values that are not finite", found["reason"])


def test_where_runs_may_differ_each_must_be_right(tmp_path):
    line = f"{CALLS}; return out * (attention.n != 4)"  # the third of the four that are judged with gradients
    found = judged(tmp_path, line, CASE, "DETERMINISTIC = False")
    assert found["reason"].startswith("in its third call: out is off")


def test_two_runs_are_compared_with_the_algorithms_that_are_timed(tmp_path):
    """Poison comes with torch's deterministic algorithms, which are others."""
    line = f"{CALLS}; odd = attention.n % 2 and not torch.are_deterministic_algorithms_enabled()"
    line += "; return out * (1 + 1.2e-7) if odd else out"
    assert judged(tmp_path, line, CASE)["reason"].startswith("two runs on the same inputs differ: out by up to ")


@pytest.mark.parametrize("before", [True, False])
def test_what_torch_was_set_to_is_what_it_is_afterwards(before, tmp_path):
    torch.use_deterministic_algorithms(before)
    try:
        judged(tmp_path, "return out", CASE)
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "torch.set_flush_denormal(True)": "denormal numbers from True to False",
    "torch.set_float32_matmul_precision('high')": "float32 matmul precision from highest to high",
    "torch.backends.cuda.enable_math_sdp(False)": "plain attention from True to False",
    "torch.set_num_threads(3)": "threads from 1 to 3",
}


@pytest.mark.parametrize("line", SETTINGS)
def test_settings_of_torch_that_stay_changed_are_wrong(line, tmp_path):
    try:
        found = judged(tmp_path, f"{line}; return out", CASE)
    finally:
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_math_sdp(True)
        torch.set_num_threads(1)
    assert found["reason"] == f"it changed torch's settings: {SETTINGS[line]}"


def test_memory_beside_the_inputs_is_not_to_be_written_to(tmp_path):
    line = "x = q.detach(); x.as_strided((1,), (1,), x.storage_offset() + x.shape[-1]).fill_(0); return out"
    found = judged(tmp_path, line, Case(replace(BASE, pass_="forward"), "strided"))
    assert found["reason"] == "memory beside its inputs (q) was written to"


def test_a_result_is_a_tensor_and_not_something_that_acts_as_one(tmp_path):
    line = "return out.as_subclass(type('Lazy', (torch.Tensor,), {}))"
    assert judged(tmp_path, line, CASE)["reason"].startswith("out is a Lazy, not a torch.Tensor")


def test_the_result_of_the_first_call_is_the_callers_too(tmp_path):
    """Two buffers that take turns are still two too few."""
    line = (
        f"{CALLS}; kept = attention.__dict__.setdefault(attention.n % 3, torch.empty_like(out)); "
        "return kept.copy_(out.detach()) + 0 * out if out.requires_grad else kept.copy_(out)"
    )
    found = judged(tmp_path, line, Case(Workload(1, 33, 2, 2, 16, "float32", "full", "forward")))
    assert found["reason"] == "on other inputs in the same buffers: out of a call before was overwritten"


def test_a_thread_that_python_does_not_know_of_is_seen_at_work(tmp_path):
    line = "import _thread; _thread.start_new_thread(lambda: [x for x in iter(float, 1)], ()); return out"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
import test_check
print(test_check.judged(Path({str(tmp_path)!r}), {line!r}, test_check.CASE)["reason"])
"""
    asked = [sys.executable, "-c", code]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.match(r"still at work after it returned: \d+ ms of work in 20 ms in which nobody called", said)
