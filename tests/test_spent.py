"""bench.spent, bench.stage_log, bench.overhead_tables: where time goes, by a clock that a test turns."""

import json
import re
import shutil

import pytest
from made import PARAMS, failed, record

from bench import grid, overhead_tables, report, spent, stage_log
from bench.overhead_tables import Line
from bench.stage_log import Ran


@pytest.fixture
def turn(monkeypatch):
    """A clock that stands still but for `turn(seconds)`."""
    now = [100.0]
    monkeypatch.setattr(spent.time, "perf_counter", lambda: now[0])

    def ahead(seconds):
        now[0] += seconds

    return ahead


def test_every_moment_belongs_to_one_phase(turn):
    clock = spent.Spent()
    turn(1)
    with clock.during("warm_up"):
        turn(2)
        clock.around("judging", lambda: turn(4))()
        turn(8)
    turn(16)
    assert clock.seconds() == {"rest": 17.0, "warm_up": 10.0, "judging": 4.0}


def test_a_phase_ends_with_what_is_raised_in_it(turn):
    clock = spent.Spent()

    def falls():
        turn(3)
        raise ValueError("fell")

    with pytest.raises(ValueError, match="fell"):
        clock.around("memory", falls)()
    turn(1)
    assert clock.seconds() == {"memory": 3.0, "rest": 1.0}


def test_calls_are_taken_out_of_sampling_and_of_nothing_else(turn):
    clock = spent.Spent()
    with clock.during("warm_up"):
        turn(1)
        assert clock.called(500.0) == 500.0
    with clock.during("sampling"):
        turn(2)
        clock.called(1500.0)
    assert clock.seconds() == {"rest": 0.0, "warm_up": 1.0, "sampling": 0.5, "calls": 1.5}


@pytest.mark.parametrize(
    ("told", "found"),
    [({"calls": 2.0, "judging": 1.0}, {"calls": 2.0, "judging": 1.0, "start": 4.0}), ({}, {"failed": 7.0})],
)
def test_what_a_worker_took_is_its_own_and_adds_up_to_the_wait_for_it(turn, told, found):
    clock = spent.Spent()

    def run():
        turn(7)
        return {"status": "ok", **({"spent_s": told} if told else {})}

    turn(1)
    assert clock.of_worker(run) == {"status": "ok", "spent_s": found}
    assert clock.seconds() == {"rest": 1.0}


def test_a_process_knows_how_long_it_has_lived():
    first, second = (spent.Spent.of_process().seconds()["start"] for _ in range(2))
    assert 0 < first <= second


def test_shares_of_a_stage_add_up_to_it():
    share = spent.total([{"start": 3.0, "truth": 1.5}], 1 / 3)
    assert spent.total([share] * 3) == {"start": 3.0, "truth": 1.5}


def test_a_line_adds_up_and_waiting_is_no_part_of_it():
    phases = {"calls": 2.0, "warm_up": 1.0, "judging": 0.5, "memory": 0.25, "breakdown": 0.25}
    line = Line("bench made seed", ring=False, spent={**phases, "start": 0.6, "rest": 0.4, "waiting": 60.0})
    assert (line.wall, line.left) == (5.0, 1.0)
    assert line.cells()[:9] == ["bench made seed", "5.0", "2.0", "1.0", "0.5", "0.2", "0.2", "1.0", "20 %"]


def test_the_table_sums_checks_and_benches_rings_apart_and_counts_what_has_no_times():
    took = {"calls": 1.0, "start": 1.0}
    found = [record(spent_s=took), record(spent_s=took), record(spent_s={"calls": 6.0}, grid="dtypes")]
    found += [failed("crashed", implementation="improved", spent_s={"failed": 3.0}), record(implementation="sdpa")]
    found += [record(family="ring", implementation="ring_made", spent_s={"breakdown": 2.0, "waiting": 8.0})]
    reports = [
        {"implementation": "standard", "kind": "core", "spent_s": {"judging": 5.0}},
        {"implementation": "ring_made", "kind": "ring"},
    ]
    shown = overhead_tables.text(found, reports)
    lines = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:9] for line in shown.splitlines()}
    assert lines["bench standard seed"] == ["4.0", "2.0", "0.0", "0.0", "0.0", "0.0", "2.0", "50 %"]
    assert lines["bench improved seed"][-2:] == ["3.0", "100 %"]
    assert lines["bench, without rings"] == ["13.0", "8.0", "0.0", "0.0", "0.0", "0.0", "5.0", "38 %"]
    assert lines["bench, rings"][0] == lines["bench, rings"][5] == "2.0"
    assert lines["check, without rings"][3] == "5.0"
    assert "check, rings" not in lines
    assert "Time not recorded, of an older program: 2 of 7 stages." in shown
    assert "Waited for the device: 8 s." in shown


def test_the_share_of_the_whole_pipeline_counts_truths_as_asked_for_and_dvc_as_our_own():
    found = [record(spent_s={"calls": 50.0, "start": 10.0})]
    names = ["probe@m", "plan", "oracle_core@seed", "oracle_ring@ring", "bench_core@m-standard-seed"]
    at = [0.0, 2.0, 4.0, 26.0, 40.0]
    ran = [
        Ran(name, 1, began, ended) for name, began, ended in zip(names, at, (1.0, 3.0, 24.0, 36.0, 100.0), strict=True)
    ]
    shown = overhead_tables.text(found, [], ran)
    assert "The pipeline without rings: 90 s, of which nobody asked for 20 s, 22 %." in shown  # 60 + 20 + 2 + 8 of dvc
    assert "truths to judge by 20 s (1 stages" in shown
    assert "DVC itself between the 5 stages of its last run, rings included: 8 s." in shown


def test_of_two_dvc_runs_the_time_between_them_is_nobodys():
    ran = [Ran("plan", 1, 0.0, 1.0), Ran("render@m", 2, 100.0, 101.0), Ran("probe@m", 2, 103.0, 104.0)]
    assert overhead_tables.dvc_own(ran) == (2.0, 2)


def test_the_log_holds_the_last_run_of_each_stage_and_outlives_a_torn_line(tmp_path):
    log = tmp_path / "log"
    assert stage_log.read(log) == []
    lines = [{"name": name, "dvc": 7, "began": n, "ended": n + 0.5} for n, name in enumerate(["plan", "probe", "plan"])]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"name": "pla', encoding="utf-8")
    assert [(one.name, one.began, one.wall_s) for one in stage_log.read(log)] == [("probe", 1, 0.5), ("plan", 2, 0.5)]


def test_outside_of_dvc_no_stage_is_noted(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(stage_log.atexit, "register", lambda _: pytest.fail("registered"))
    stage_log.note(tmp_path / "log")


@pytest.mark.parametrize(
    ("name", "said"), [("overhead", "Time not recorded, of an older program"), ("spread", "Processors: not recorded")]
)
def test_records_of_an_older_program_are_still_shown(name, said, tmp_path):
    results = shutil.copytree(PARAMS.parent / "results/amd-epyc-2-cores", tmp_path / "results")
    for path in [*(results / "bench").iterdir(), *(results / "check").iterdir()]:
        path.write_text(json.dumps(_aged(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    shown = report.table(grid.load(PARAMS), results, name)
    assert said in shown
    assert "None" not in shown


def _aged(document):
    """A record, or a list of them, without what older programs did not write down."""
    if isinstance(document, list):
        return [_aged(one) for one in document]
    newer = {"spent_s", "cpus", "pinned", "binding", "others_busy", "steal", "freed_memory"}
    return {key: _aged(value) if key == "state" else value for key, value in document.items() if key not in newer}
