"""bench.records: what cannot be true cannot be written."""

import json
import math

import pytest
from made import PARAMS, failed, figure, figures, record
from pydantic import ValidationError

from bench import grid, outcomes, records
from bench.records import Figure, Record
from bench.runner import Campaign

ILLEGAL = {
    "figures without ok": ({"status": "crashed", "reason": "fell over"}, "figures exist only with status ok"),
    "ok without figures": ({"figures": None}, "figures exist only with status ok"),
    "no reason": ({"status": "crashed", "figures": None}, "every status but ok has a reason"),
    "an empty reason": ({"status": "crashed", "figures": None, "reason": " "}, "one line of words"),
    "ok with a reason": ({"reason": "because"}, "every status but ok has a reason, and ok has none"),
    "a reason of two lines": ({"status": "crashed", "figures": None, "reason": "a\nb"}, "one line of words"),
    "figures without their samples": ({"processes": []}, "figures come with all their samples"),
    "ok but over budget": (
        {"over_budget": {"out": 0.5, "dq": 1.01}, "max_abs_error": {"out": 0.1, "dq": 0.1}},
        "ok, but over its error budget",
    ),
    "an unknown status": ({"status": "fine"}, "status"),
    "another schema": ({"schema_version": 3}, "schema_version"),
    "an extra field": ({"colour": "blue"}, "colour"),
}


@pytest.mark.parametrize(("changes", "message"), list(ILLEGAL.values()), ids=ILLEGAL)
def test_an_illegal_record_cannot_be_made(changes, message):
    with pytest.raises(ValidationError, match=message):
        record(**changes)


@pytest.mark.parametrize(("changes", "message"), list(ILLEGAL.values()), ids=ILLEGAL)
def test_an_illegal_record_cannot_be_read(changes, message, tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([record().model_dump() | changes]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        records.read(path)


@pytest.mark.parametrize("field", ["tflops", "peak_mib", "throughput_tok_per_s", "first_call_ms", "rss_growth_mib"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_finite_number_cannot_be_made(field, value):
    with pytest.raises(ValidationError, match=field):
        figures(**{field: value})


@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_an_interval_that_is_no_finite_number_cannot_be_made(field):
    with pytest.raises(ValidationError, match=field):
        Figure(**{**figure().model_dump(), field: math.nan})


def test_an_error_that_is_no_number_is_not_ok():
    """NaN is not above 1, and must not pass for that."""
    with pytest.raises(ValidationError):
        record(over_budget={"out": math.nan})


def test_a_figure_lies_within_its_interval():
    with pytest.raises(ValidationError):
        Figure(value=2.0, low=3.0, high=1.0)


def test_extra_fields_of_figures_are_refused():
    with pytest.raises(ValidationError, match="colour"):
        figures(colour="blue")


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        record().status = "crashed"


@pytest.mark.parametrize("status", ["incorrect", "unsupported", "out_of_memory", "timeout", "crashed", "not_measured"])
def test_every_status_but_ok_is_a_record_with_a_reason_alone(status):
    assert failed(status=status).figures is None


def test_an_incorrect_record_keeps_its_errors():
    judged = {"over_budget": {"out": 12.0}, "max_abs_error": {"out": 1e-3}}
    assert failed(status="incorrect", reason="out is off", **judged).over_budget == {"out": 12.0}


def test_an_error_comes_with_its_share_of_the_budget():
    with pytest.raises(ValidationError, match="both its error and its share"):
        failed(status="incorrect", reason="out is off", over_budget={"out": 12.0}, max_abs_error={})


def test_what_is_written_is_read_again(tmp_path):
    path = records.bench_path(tmp_path, "standard", "seed")
    written = [record(), failed(), record(figures=figures(relative_time=None, payload_bytes=12, messages=3))]
    records.write(path, written)
    assert records.read(path) == written
    assert [one.name for one in path.parent.iterdir()] == ["standard-seed.json"]
    assert all(isinstance(one, Record) for one in records.read(path))
    assert {path.name for path in tmp_path.rglob("*.json")} == {"standard-seed.json"}


def test_paths_of_a_row_do_not_collide(tmp_path):
    paths = {
        records.bench_path(tmp_path, "sdpa", "seed"),
        records.check_path(tmp_path, "sdpa"),
        records.verdict_path(tmp_path, "sdpa"),
    }
    assert len(paths) == 3


def test_what_a_gate_lets_not_pass_are_statuses():
    for status in records.FAILED:
        failed(status=status)
    assert "unsupported" not in records.FAILED


@pytest.mark.parametrize("keep", [True, False])
def test_what_ran_out_of_memory_that_it_kept_says_how_it_needs_less(keep, tmp_path):
    params = grid.load(PARAMS)
    identity = {"device": "cpu", "threads": 2, "cpu_count": 2}
    campaign = Campaign(params, identity, "core", "standard", "seed", tmp_path, {}, {}, tmp_path)
    cell = grid.cells(params, "core", "standard", "seed")[0]
    state = {"freed_memory": records.KEPT if keep else records.NOT_KEPT}
    found = outcomes.record(campaign, cell, None, [{"status": "out_of_memory", "reason": "no more"}], state)
    assert found.reason == "no more" + ("; with protocol.keep_memory: false it needs less" if keep else "")
