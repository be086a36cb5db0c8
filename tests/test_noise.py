"""bench.noise, bench.spread_tables, and what bench.machine tells of processors: who disturbs, and how much."""

import dataclasses
import json
import os
import subprocess
import sys

import matplotlib.figure
import pytest
from conftest import ROOT
from made import failed, figure, figures, record, series

from bench import machine, noise, report, spread_tables, tables
from bench.records import Figure

RATES = {"matrix_product": {"float32": {"tflops": 1.0}}}


def timed(*processes, interval=1.0, state=None, **changes):
    """A record of these processes, whose interval reaches so many % to each side."""
    reach = interval / 100
    found = figures(relative_time=Figure(value=1.5, low=1.5 * (1 - reach), high=1.5 * (1 + reach)))
    made = [{"status": "ok", "series": one} for one in processes]
    return record(figures=found, processes=made, state=state or {}, **changes)


def test_spread_inside_and_between_processes_in_percent():
    found = noise.spread(timed(series(2.0, 0.04), series(2.2, 0.04, reference_ms=[2.0] * 5), interval=5))
    assert found.inside_time == pytest.approx(2.0)  # of 4 %, the middle half
    assert found.between_time == pytest.approx(100 * 0.2 / 2.1)
    assert found.inside == pytest.approx(2.0)
    assert found.between == pytest.approx(100 * 0.4 / 1.3)  # relative times 1.5 and 1.1
    assert found.interval == pytest.approx(5)


def test_one_process_has_no_spread_between_and_one_sample_none_inside():
    one = series(samples_ms=[2.0], reference_ms=[1.0], cpu_per_wall=[2.0])
    found = noise.spread(timed(one))
    assert (found.inside, found.between, found.between_time) == (0.0, None, None)


def test_a_cell_that_is_not_compared_is_told_by_its_time():
    found = record(figures=figures(relative_time=None, time_ms=figure(2.0)))
    assert noise.spread(found).interval == pytest.approx(10)
    assert noise.spread(found).inside == noise.spread(found).inside_time > 0


def test_disturbance_is_summed_over_processes():
    calm = series(2.0, preempted=[0] * 5)
    hit = series(2.0, cpu_per_wall=[2.0, 2.0, 1.7, 2.0, 1.0], preempted=[0, 0, 0, 0, 10], outliers=[4])
    hit |= {"steal_ms": [0, 0, 0, 0, 10], "stalled_ms": [0, 0, 0, 0, 40], "throttled_ms": [3.0]}
    found = noise.disturbance(timed(calm, hit))
    assert dataclasses.asdict(found) == {
        "samples": 10, "short": 0.2, "preempted": 1.0, "steal": pytest.approx(0.025), "stalled": pytest.approx(0.1),
        "outliers": 1, "throttled": 1,
    }  # fmt: skip


def test_what_a_machine_does_not_tell_is_unavailable_not_zero():
    found = timed(series(2.0, steal_ms=[None] * 5, stalled_ms=[None] * 5))
    assert (noise.disturbance(found).steal, noise.disturbance(found).stalled) == (None, None)
    assert spread_tables.text([found]).count("unavailable") >= 3  # and between, of one process


@pytest.mark.parametrize("interval", [0.5, 2.99])
def test_an_interval_as_promised_is_no_reason_to_warn(interval, capsys):
    noise.warn_of([timed(series(), series(), interval=interval)])
    assert capsys.readouterr().err == ""


def test_an_interval_that_is_too_wide_is_one_line_with_its_reason(capsys):
    hit = series(2.0, cpu_per_wall=[2.0, 2.0, 1.0, 1.0, 1.0], stalled_ms=[50.0] * 5)
    busy = {"others_busy": 0.5, "steal": 0.0, "governor": "powersave"}
    found = [timed(hit, hit, interval=8, state=busy), timed(series(), series(), interval=4), failed()]
    noise.warn_of(found)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: standard (8 heads, seq_len 512, float32, full): interval ± 8.0 % (")
    for sign in (
        "60 % of the samples got less processor time than the best",
        "tasks waited for a processor 125 % of the time",
        "others take 50 % of its processors",
        "its governor is powersave",
    ):
        assert sign in first
    assert "nothing shows that others ran" in second


def test_below_a_table_stands_how_many_intervals_are_too_wide_and_the_widest():
    found = [timed(series(), series(), interval=x) for x in (1, 4, 9)]
    first, second = noise.notes(found)
    assert first.startswith("Too noisy: 2 of 3 intervals are wider than ± 3 %")
    assert "± 9.0 %" in second
    assert noise.notes(found[:1]) == []
    assert first in tables.grid_table(found, RATES, {})
    assert first in tables.seed_table(found, "cpu", ["sdpa"])


@pytest.fixture
def moved_rows():
    """Two rows of one shape, whose yardstick took 2 and 2.6 ms: medians of three processes."""
    times = {"standard": (2.7, 3.0, 3.1), "mine": (3.9, 3.6, 6.0)}
    return [timed(*(series(ms) for ms in processes), implementation=name) for name, processes in times.items()]


def test_rows_measured_while_the_machine_was_another_are_told_apart_by_their_yardstick(moved_rows):
    calm, slow = moved_rows
    almost = timed(series(3.2), series(3.2), implementation="improved")
    assert tables.moved([calm, almost, failed()]) == []
    (told,) = tables.moved([slow, calm, almost])
    assert "sdpa took 2 ms beside standard and 2.6 ms beside mine (8 heads, seq_len 512" in told
    assert "apart on 1 of 1 shapes" in told


def test_tables_say_that_the_machine_moved(moved_rows):
    for text in (
        tables.grid_table(moved_rows, RATES, {}),
        tables.seed_table(moved_rows, "cpu", ["sdpa"]),
        spread_tables.text(moved_rows),
    ):
        assert "The machine moved" in text


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(0, 2)])
def test_a_picture_says_that_the_machine_moved(moved_rows, chosen, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(matplotlib.figure.Figure, "suptitle", lambda _, title: titles.append(title))
    report._plot(moved_rows[chosen], RATES, tmp_path / "seed.png", "core, grid seed")
    assert ("the machine moved" in titles[0]) is (len(moved_rows[chosen]) > 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": {**record().workload, "seq_len": 1024}},
        {"grid": "dtypes"},
        {"family": "ring"},
        {"family": "ring", "world_size": 2},
        {"reference": "other"},
    ],
)
def test_only_rows_of_one_shape_are_held_against_each_other(changes, moved_rows):
    calm, slow = moved_rows
    assert tables.moved([calm, slow.model_copy(update=changes)]) == []
    other = [one.model_copy(update=changes) for one in (calm, calm)]
    assert "apart on 1 of 2 shapes" in tables.moved([*moved_rows, *other])[0]


def test_a_cell_that_came_out_differently_in_another_grid_is_told():
    once, again = timed(series(), interval=5), timed(series(), interval=5, grid="dtypes")
    higher = Figure(value=1.9, low=1.8, high=2.0)
    apart = again.model_copy(update={"figures": again.figures.model_copy(update={"relative_time": higher})})
    assert "of its moment" not in spread_tables.text([once, again])
    told = spread_tables.text([apart, once])
    assert (
        "An interval is of its moment: standard (8 heads, seq_len 512, float32, full, forward) took 1.5 [1.42, 1.58] "
        "in the grid seed and 1.9 [1.8, 2] in the grid dtypes of the time of sdpa; intervals lie apart in 1 of 1 cells"
    ) in told
    assert "of its moment" not in spread_tables.text([apart, once.model_copy(update={"implementation": "sdpa"})])


def test_a_few_samples_short_of_processor_time_are_no_reason():
    few = series(2.0, cpu_per_wall=[2.0] * 24 + [1.0])
    assert "nothing shows that others ran" in noise.too_wide(timed(few, few, interval=8))


def test_a_row_without_a_yardstick_is_not_held_against_others():
    alone = record(figures=figures(relative_time=None), processes=[{"status": "ok", "series": series(30.0)}])
    assert tables.moved([timed(series(3.0)), alone]) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"others_busy": 0.01, "steal": 0.0, "governor": "performance"}, []),
        ({"others_busy": "unavailable", "steal": "unavailable", "governor": "unavailable"}, []),
        ({"others_busy": 0.51}, ["others take 51 % of its processors"]),
        ({"others_busy": 0.01, "steal": 0.2}, ["its hypervisor takes 20 %"]),
        ({"governor": "schedutil"}, ["its governor is schedutil, which changes the clock, allowed: performance"]),
    ],
)
def test_a_state_that_does_not_allow_the_promise_says_why(state, words, capsys):
    assert noise.warnings(state) == words
    noise.warn(state)
    assert capsys.readouterr().err.count("\n") == bool(words)


def test_a_process_that_computes_beside_us_is_seen():
    beside = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert noise.before(0.5)["others_busy"] > 0.5 / (os.cpu_count() or 1)
    finally:
        beside.kill()
        beside.wait()


@pytest.mark.parametrize(
    ("cpus", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 2, 3, 8], "0,2-3,8"), ([1, 2], "1-2")]
)
def test_processors_are_written_as_taskset_takes_them(cpus, text):
    assert machine.cpu_list(cpus) == text


def test_the_state_says_which_processors_are_ours_and_whether_there_are_others():
    program = (
        "import json, os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from bench import machine; print(json.dumps(machine.state()))"
    )
    environment = {**os.environ, "OMP_PROC_BIND": "true"}
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=True)
    state = json.loads(told.stdout)
    assert state["cpus"] == str(min(os.sched_getaffinity(0)))
    assert state["pinned"] is ((os.cpu_count() or 1) > 1)
    assert "OMP_PROC_BIND=true" in state["binding"]


def test_where_the_system_does_not_tell_processors_are_unavailable(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert {name: machine.state()[name] for name in ("cpus", "pinned")} == dict.fromkeys(
        ("cpus", "pinned"), "unavailable"
    )
    assert machine.cpu_count() == os.cpu_count()


def test_the_table_tells_of_the_machine():
    state = {
        "cpus": "0-1",
        "pinned": True,
        "binding": "none",
        "governor": "unavailable",
        "freed_memory": "kept",
        "others_busy": 0.02,
        "steal": 0.0,
    }
    shown = spread_tables.text(
        [timed(series(), series(), state=state), timed(series(), series(), interval=7, state=state)]
    )
    assert "Processors: 0-1, pinned: True; threads bound: none; governor: unavailable; freed memory: kept." in shown
    assert "others took 2 % / 2 % / 2 % of the processors" in shown
    assert "  !7.0  " in shown
