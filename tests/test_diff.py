"""`python -m bench diff`: made-up records in a git repository of their own; what changed, and how it is told."""

import json
import re

import numpy as np
import pytest
from history import SDPA, shaped, timed
from made import PARAMS, failed, records_of

from bench import diff, grid
from bench.diff import Difference
from bench.records import Figure


@pytest.mark.parametrize(
    ("ms", "verdict", "code"), [(2.2, "slower", 1), (1.8, "faster", 0), (2.001, "same", 0), (2.02, "inconclusive", 2)]
)
def test_a_change_is_told_with_its_interval_and_the_exit_code_follows(history, tells, ms, verdict, code):
    history.write(timed(ms))
    found = tells("v1")
    (change,) = found.changes
    assert (change.verdict, change.by, found.exit_code) == (verdict, "ratio", code)
    assert change.change_percent == pytest.approx(100 * (ms / 2 - 1), abs=1e-9)
    assert change.low_percent <= change.change_percent <= change.high_percent
    assert 0 < change.high_percent - change.low_percent < 2


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.1, 9, "slower"), (1.0, 9, "inconclusive"), (-9, -1.1, "faster"), (-9, -1.0, "inconclusive"),
        (-2.9, 2.9, "same"), (-3.1, 2.9, "inconclusive"), (-2.9, 3.1, "inconclusive"), (0.1, 0.9, "inconclusive"),
        (0, 0, "same"), (-50, 50, "inconclusive"),
    ],
)  # fmt: skip
def test_a_verdict_needs_all_of_the_interval(low, high, verdict):
    assert diff.verdict(low, high) == verdict


def test_a_machine_that_was_twice_as_busy_changes_no_ratio(history, tells):
    history.write(timed(4.0, reference_ms=2.0))
    (change,) = tells("v1").changes
    assert (change.by, change.verdict) == ("ratio", "same")
    assert change.head_ms / change.base_ms == pytest.approx(2)


def test_a_row_whose_code_is_the_same_did_not_become_slower(history, tells, says):
    row = history.path / "attn/impl/standard.py"
    row.write_text("one = 1\n", encoding="utf-8")
    history.tagged("v2", timed())
    history.write(timed(4.0))
    (change,) = tells("v2").changes
    assert (change.by, change.verdict, change.change_percent) == ("ratio", "machine", pytest.approx(100))
    assert says("v2")[0] == 0
    row.write_text("one = 2\n", encoding="utf-8")
    assert [one.verdict for one in tells("v2").changes] == ["slower"]


def test_what_is_too_noisy_is_named_with_its_side(history, tells, says):
    def within(figure):
        one = timed(figure.value)
        return one.model_copy(update={"figures": one.figures.model_copy(update={"relative_time": figure})})

    history.tagged("v2", within(Figure(value=2.0, low=1.99, high=2.01)))
    history.write(within(Figure(value=4.0, low=3.0, high=5.0)))
    found = tells("v2")
    assert (found.base.noise, len(found.head.noise)) == ([], 2)
    told = " ".join(says("v2")[1].split())
    assert "head: Too noisy: 1 of 1 intervals are wider than ± 3 %" in told
    assert "head: The widest, standard (8 heads, seq_len 512, float32, full): ± 25.0 %" in told


def test_a_yardstick_is_compared_by_its_own_time(history, tells, says):
    history.tagged("v2", timed(implementation="sdpa"))
    history.write(timed(4.0, reference_ms=2.0, implementation="sdpa"))
    (change,) = tells("v2").changes
    assert (change.by, change.verdict, change.why_time) == ("time", "machine", "it is the yardstick itself")
    code, out, _ = says("v2")
    assert code == 0
    assert "of time, it is the yardstick itself: sdpa: seed (1)." in out
    (history.path / "attn/impl/sdpa.py").write_text("", encoding="utf-8")
    assert [(one.verdict, one.change_percent) for one in tells("v2").changes] == [("slower", pytest.approx(100))]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reference": "improved"}, "its yardstick was sdpa and is improved"),
        ({"reference_ms": 0.0, "not_compared": "it crashed"}, "not compared with sdpa at head: it crashed"),
    ],
)
def test_without_a_common_yardstick_times_are_compared_and_the_reason_is_given(history, tells, says, changes, why):
    history.write(timed(4.0, **({"reference_ms": 2.0} | changes)))
    (change,) = tells("v1").changes
    assert (change.by, change.verdict, change.why_time) == ("time", "slower", why)
    assert why in says("v1")[1]


def test_across_kept_memory_nothing_counts(history, tells, says):
    (history.path / "attn/impl/standard.py").write_text("changed = 1\n", encoding="utf-8")
    history.write(timed(4.0, reference_ms=2.0, state={"freed_memory": "kept"}))
    (change,) = tells("v1").changes
    assert (change.by, change.verdict) == ("time", "machine")
    assert "freed memory was kept at one of both only" in says("v1")[1]
    history.tagged("kept")
    (history.path / "attn/impl/standard.py").write_text("changed = 2\n", encoding="utf-8")
    history.write(timed(8.0, reference_ms=2.0, state={"freed_memory": "kept"}))
    assert tells("kept").changes[0].verdict == "slower"


@pytest.mark.parametrize("name", ["attn/impl/sdpa.py", "attn/contract.py"])
def test_a_yardstick_whose_code_changed_is_none(history, tells, name):
    history.write(timed(4.0, reference_ms=2.0))
    (history.path / name).write_text("class Mask: other = 1\n", encoding="utf-8")
    (change,) = tells("v1").changes
    assert (change.by, change.why_time) == ("time", "the code of sdpa changed, or is not known")


def test_what_dvc_recorded_of_the_yardsticks_code_goes_before_its_files(history, tells):
    history.lock("one")
    history.tagged("v2")
    history.write(timed(4.0, reference_ms=2.0))
    (history.path / "attn/impl/sdpa.py").write_text("# words\n" + SDPA, encoding="utf-8")
    assert tells("v2").changes[0].by == "ratio"
    history.lock("one", elsewhere="changed")  # what another machine measured
    assert tells("v2").changes[0].by == "ratio"
    history.lock("two")
    assert tells("v2").changes[0].by == "time"


def test_one_process_says_nothing_of_how_processes_differ(history, tells):
    history.write(timed(4.0, processes=1))
    assert tells("v1").changes[0].verdict == "inconclusive"


def test_revisions_with_the_same_records_were_not_measured_anew(history, tells, says):
    history.tagged("v2")
    for arguments in (["v1", "v2"], ["v1"], ["v1", "v1"]):
        found = tells(*arguments)
        assert (found.changes, found.statuses, found.errors, found.exit_code) == ([], [], [], 0)
        assert len(found.not_measured_anew) == 1
    assert "1 cells were not measured anew: the same record at both." in says("v1", "v2")[1]


def test_the_same_samples_measured_at_another_time_are_the_same(history, tells):
    history.write(timed(measured_at="20270102_030405"))
    (change,) = tells("v1").changes
    assert (change.verdict, change.change_percent) == ("same", 0)


def test_the_work_tree_is_read_as_it_is_and_a_head_as_it_was(history, tells):
    history.tagged("v2", timed(2.2))
    history.write(timed(1.8))
    assert [tells(*names).changes[0].verdict for names in (["v1", "v2"], ["v2", "v1"], ["v1"])] == [
        "slower", "faster", "faster",
    ]  # fmt: skip
    assert tells("v1", "v2").head.commit == history.repo.git("rev-parse", "v2").strip()
    assert (tells("v1").head.revision, tells("v1").head.commit) == ("the work tree", None)
    assert history.repo.git("status", "--porcelain").split() == ["M", "results/local/bench/standard-seed.json"]


def test_the_largest_change_comes_first(history, says):
    three = [shaped(seq_len=n) for n in (64, 128, 256)]
    history.tagged("v2", *(timed(workload=one) for one in three))
    history.write(*(timed(ms, workload=one) for ms, one in zip((2.1, 1.0, 2.6), three, strict=True)))
    code, out, _ = says("v2")
    shown = re.findall(r"^standard +seed +s(\d+) +\S+ +\S+ +ratio +(\S+) ", out, re.MULTILINE)
    assert (code, shown) == (1, [("128", "-50"), ("256", "+30"), ("64", "+5.0")])


def test_a_row_of_another_name_came_and_went(history, tells, says):
    history.write(timed(implementation="plain"))
    found = tells("v1")
    assert [cell.implementation for cell in found.appeared + found.went] == ["plain", "standard"]
    assert (found.changes, found.exit_code) == ([], 3)
    out = says("v1")[1]
    assert "Cells that appeared:\n- plain: seed (1)\n\nCells that went:\n- standard: seed (1)\n" in out
    assert "A row under another name is another row" in out
    assert "nothing could be compared" in out


def test_a_status_that_changed_is_shown_with_both_reasons_and_a_lost_cell_is_no_success(history, tells, says):
    two = [timed(workload=shaped(seq_len=64)), failed(reason="no memory for it", status="out_of_memory")]
    history.tagged("v2", *two)
    history.write(failed("crashed", "it fell over", workload=two[0].workload), timed())
    found = tells("v2")
    assert [(one.was, one.was_reason, one.now, one.now_reason) for one in found.statuses] == [
        ("ok", None, "crashed", "it fell over"), ("out_of_memory", "no memory for it", "ok", None),
    ]  # fmt: skip
    assert found.exit_code == 1
    out = says("v2")[1]
    assert re.search(r"- standard seed \(8 heads, seq_len 64.*\): was ok;\s+is crashed \(it\s+fell\s+over\)", out)
    assert re.search(r"was\s+out_of_memory\s+\(no\s+memory\s+for\s+it\);\s+is\s+ok", out)


@pytest.mark.parametrize("status", ["unsupported", "not_measured"])
def test_a_cell_that_is_left_out_on_purpose_is_not_lost(history, tells, status):
    two = [timed(workload=shaped(seq_len=64)), timed()]
    history.tagged("v2", *two)
    history.write(failed(status, "left out", workload=two[0].workload), two[1])
    assert tells("v2").exit_code == 0


def test_a_check_that_turned_wrong_shows_its_reason(history, tells, says):
    history.check("standard")
    history.tagged("v2")
    history.check("standard", "incorrect", "wrong in 1 of 9 cases: b01: out is off")
    assert tells("v2").exit_code == 1
    assert "- standard check: was ok; is incorrect (wrong in 1 of 9 cases: b01: out is off)" in says("v2")[1]


def test_errors_that_grew_by_more_than_half_are_named_the_largest_first(history, tells, says):
    history.check("standard", a=0.2, b=0.2, c=0.0, gone=0.1)
    history.tagged("v2", timed(over_budget={"out": 0.3}))
    history.check("standard", a=0.29, b=0.31, c=0.01, new=0.9)
    history.write(timed(over_budget={"out": 0.6}))
    found = tells("v2")
    assert [(one.where.split()[:2], one.base, one.head) for one in found.errors] == [
        (["seed", "(8"], 0.3, 0.6), (["case", "b"], 0.2, 0.31), (["case", "c"], 0.0, 0.01),
    ]  # fmt: skip
    assert "- standard case b: out 0.2 -> 0.31\n" in says("v2")[1]


def test_many_errors_are_counted(history, tells, says):
    history.check("standard", **{f"case_{n}": 0.1 for n in range(30)})
    history.tagged("v2")
    history.check("standard", **{f"case_{n}": 0.2 for n in range(30)})
    assert len(tells("v2").errors) == 30
    assert says("v2")[1].endswith("- and 25 more, see --json\n")


def test_json_is_the_whole_difference_and_nothing_else(history, tells, says):
    history.check("standard", a=0.1)
    history.tagged("v2", timed(), timed(implementation="old"), timed(workload=shaped(seq_len=64)))
    history.check("standard", a=0.2)
    history.write(timed(2.2), timed(implementation="new"), failed(workload=shaped(seq_len=64)))
    found = tells("v2")
    assert Difference.model_validate_json(found.model_dump_json()) == found
    assert json.loads(says("v2", "--json")[1]) == found.model_dump()
    assert all((found.changes, found.appeared, found.went, found.statuses, found.errors))
    assert says("v2", "--json") == says("v2", "--json")


def test_the_default_grids_fit_100_columns(history, says):
    measured = [one for one in records_of(grid.load(PARAMS)) if not one.left_out]

    def all_records(factor):
        found = []
        for number, one in enumerate(measured):
            own = 1 + (factor - 1) * np.cos(number)
            like = timed(10.0 ** (number % 4) * 1.234 * own, reference_ms=1.0)
            over = {"oversubscribed": True} if one.world_size == 2 else {}
            found.append(one.model_copy(update={"processes": like.processes, "figures": like.figures, **over}))
        return found

    history.tagged("v2", *all_records(1.0))
    history.write(*all_records(1.8))
    code, out, _ = says("v2")
    assert code == 1
    rows = [line for line in out.splitlines() if re.search(r" (slower|faster|same|inconclusive|machine)$", line)]
    assert len(rows) == len(measured)
    assert max(map(len, out.splitlines())) <= 100, out
    for shape in (" s4096 causal ", " h16 ", " s2048 bfloat16 ", " fwd+bwd n2* "):
        assert shape in out
    assert "decision use `python -m bench duel`" in out


def test_long_reasons_and_names_of_revisions_are_wrapped(history, says):
    name = "a-branch-with-a-name-" + "x" * 90
    history.tagged(name)
    history.write(failed(reason="word " * 60 + "x" * 150))
    assert max(map(len, says(name)[1].splitlines())) <= 100


def test_the_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_should(monkeypatch):
    """Processes of mean 10 +- 0.5, then 11 +- 0.5: the interval is wanted neither blind nor endless."""
    monkeypatch.setattr(diff.stats, "RESAMPLES", 200)
    rng = np.random.default_rng(2307)

    def processes(mean):
        return [list(rng.normal(rng.normal(mean, 0.5), 0.3, 15)) for _ in range(8)]

    found = [diff.ratio_of_medians(processes(10), processes(11)) for _ in range(60)]
    assert sum(one.low <= 1.1 <= one.high for one in found) >= 48
    assert 0.03 < float(np.median([one.high - one.low for one in found])) < 0.2


def test_a_ratio_is_drawn_as_an_estimate_is():
    rng = np.random.default_rng(7)
    processes = [list(rng.normal(5 + p, 0.5, 20)) for p in range(4)]
    one, ratio = diff.stats.estimate(processes), diff.ratio_of_medians([[1.0]], processes)
    assert ratio.value == one.value
    assert (ratio.low, ratio.high) == pytest.approx((one.low, one.high), rel=0.02)
    assert ratio == diff.ratio_of_medians([[1.0]], processes)
