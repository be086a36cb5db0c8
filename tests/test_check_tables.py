"""bench.check_tables: check reports as people read them."""

import pytest

from bench import check_tables


def case(name="a", world_size=1, **more):
    fields = {"case": name + (f"_n{world_size}" if world_size > 1 else ""), "variant": "normal", "dtype": "float32"}
    fields |= {"mask": "causal", "pass": "forward_backward", "seq_len": 513, "world_size": world_size, "status": "ok"}
    fields |= {"over_budget": {"out": 0.25}, "max_abs_error": {"out": 2e-7}, "nan_leaks": False, "spread": {}}
    return {**fields, **more}


def report(name="improved", kind="core", cases=(), no_ranks=None, **summary):
    worst = {"case": "a", "tensor": "out", "over_budget": 0.5, "max_abs_error": 3e-7}
    real = {"float32": {**worst, "over_budget": 0.75}}
    made = {"worst": worst, "real": real, "nan_leaks": [], "spread": {}, **summary}
    fields = {"implementation": name, "kind": kind, "status": "ok", "reason": None}
    return {**fields, "summary": made, "no_ranks": no_ranks or {}, "cases": list(cases)}


def test_real_inputs_have_a_column_of_their_own_for_each_dtype():
    text = check_tables.checks([report(cases=[case()])])
    header, _, line = text.splitlines()[:3]
    assert header.index("real, float32") == line.index("out 3.0e-07 (0.75)")
    assert line[header.index("real, bfloat16") :].startswith("-")


def test_a_row_whose_runs_differ_and_whose_nan_leaks_says_so():
    leaky = case("b", variant="nan-v", nan_leaks=True)
    text = check_tables.checks([report(cases=[leaky], nan_leaks=["b"], spread={"b": {"out": 1e-9, "dq": 3e-8}})])
    assert "up to 3.0e-08 apart" in text
    assert "leaks" in text.splitlines()[2]
    assert "bitwise the same" in check_tables.checks([report(cases=[case("b", variant="nan-v")])])


def test_a_row_that_never_got_as_far_as_a_case_is_a_line_with_its_reason():
    crashed = {**report("mine", worst=None, real={}), "status": "crashed", "reason": "fell over"}
    lines = check_tables.checks([crashed]).splitlines()
    assert lines[2].split() == ["mine", "crashed", *["-"] * 8]
    assert lines[-1] == "mine: fell over"


def test_rings_are_shown_against_the_number_of_ranks_in_the_cases_of_that_comparison():
    cases = [case(world_size=n) for n in (4, 1, 8, 2)] + [case("other", n, seq_len=127) for n in (1, 2)]
    text = check_tables.world_sizes([report("ring", "ring", cases), report()]) or ""
    lines = [line.split() for line in text.splitlines()[2:6]]
    assert [line[4] for line in lines] == ["1", "2", "4", "8"]
    assert all(line[0] == "ring" and line[-2:] == ["2.0e-07", "(0.25)"] for line in lines)
    assert "other" not in text
    assert "✗" not in text


def test_without_rings_or_on_one_rank_only_there_is_no_such_table():
    assert check_tables.world_sizes([report()]) is None
    assert check_tables.world_sizes([report("ring", "ring", [case()])]) is None


@pytest.mark.parametrize("here", [(1, 2, 4), (1,), ()])
def test_ranks_that_cannot_be_had_are_said_and_the_others_shown(here):
    lacking = {str(n): f"{n} ranks could not be started here" for n in (1, 2, 4, 8) if n not in here}
    ring = report("ring", "ring", [case(world_size=n) for n in here], lacking)
    text = check_tables.world_sizes([ring]) or ""
    assert [line.split()[4] for line in text.splitlines() if line.startswith("ring ")] == [str(n) for n in here]
    for n, reason in lacking.items():
        assert f"\n✗ ring: not judged on {n} ranks: {reason}\n" in text
        assert f"\nring: not judged on {n} ranks: {reason}\n" in check_tables.checks([ring])


def test_a_ring_that_fell_or_refused_on_some_ranks_says_so_in_its_cell_and_below():
    fallen = case("b", 8, status="crashed", reason="fell over", over_budget={}, max_abs_error={})
    ring = {**report("ring", "ring", [case(), fallen]), "status": "crashed", "reason": "fell over, in case b_n8"}
    text = check_tables.world_sizes([ring]) or ""
    assert text.splitlines()[3].split()[4:] == ["8", "✗", "crashed"]
    assert "\n✗ ring: crashed: fell over, in case b_n8\n✗ ring: b_n8: crashed: fell over\n" in text
