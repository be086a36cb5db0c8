"""bench.tables: the seed table as it was, crosses with their reasons, few metrics."""

import re
from pathlib import Path

import pytest
from made import PARAMS, failed, figure, figures, record, records_of

from bench import grid, tables

SEED = (Path(__file__).parent / "seed-table.txt").read_text(encoding="utf-8")
CEILING = {"matrix_product": {d: {"tflops": 1.0, "n": 1024} for d in ("float32", "bfloat16", "float16")}}
REFERENCES = ("sdpa", "multihead_torch")


def cells_of(text):
    """The cells of a grid table's rows, header first."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def seed_records(**changes):
    found = [one for one in records_of(grid.load(PARAMS), ["seed"]) if not one.left_out]
    return [one.model_copy(update=changes) for one in found]


def test_the_ten_rows_of_the_seed_table_give_its_table_byte_for_byte():
    rows = cells_of(SEED)[1:]
    assert len(rows) == 10
    assert tables.seed_grid(rows) == SEED.split("\n\n", 1)[1]


def test_the_title_of_the_seed_table_has_the_form_of_the_seed():
    form = [r"Benchmark Results - \d{8}_\d{6}", r"Device: \w+, Dtype: torch\.\w+", ""]
    ours = tables.seed_table(seed_records(), "cpu", REFERENCES)
    for text in (SEED, ours):
        for line, pattern in zip(text.split("\n"), form, strict=False):
            assert re.fullmatch(pattern, line)
    assert ours.startswith("Benchmark Results - 20260102_030405\nDevice: cpu, Dtype: torch.float32\n\n+---")


def test_our_seed_table_has_the_rows_and_columns_of_the_seed_in_its_order():
    ours, theirs = cells_of(tables.seed_table(seed_records(), "cpu", REFERENCES)), cells_of(SEED)
    assert ours[0] == theirs[0]
    assert [row[:4] for row in ours[1:]] == [row[:4] for row in theirs[1:]]
    assert ours[1] == ["standard", "1", "512", "8", "2.00", "7.00", "256000", "✓"]


def test_the_stamp_is_the_latest_measurement_and_says_so_where_there_is_none():
    early, late = record(), record(measured_at="20260203_000000", implementation="improved")
    assert "Results - 20260203_000000\n" in tables.seed_table([late, early], "cpu", REFERENCES)
    assert "Results - nothing measured yet\n" in tables.seed_table([failed()], "cpu", REFERENCES)


@pytest.mark.parametrize("status", ["incorrect", "unsupported", "out_of_memory", "timeout", "crashed", "not_measured"])
def test_every_cross_is_explained_below_the_table(status):
    found = [failed(status=status, reason="for a reason") if i % 2 else one for i, one in enumerate(seed_records())]
    for text in (tables.seed_table(found, "cpu", ()), tables.grid_table(found, CEILING, {})):
        table, _, notes = text.partition("\n\n" if text.startswith("implementation") else "+\n\n")
        notes = [line for line in notes.splitlines() if line.startswith("✗ ")]
        assert len(notes) == sum(one.status != "ok" for one in found) == table.count("✗")
        assert set(notes) == {
            f"✗ standard (8 heads, seq_len 512, float32, full, forward): {status}: for a reason",
        }


def test_a_wrong_row_is_explained_by_the_check_report_and_no_other_is():
    wrong = failed(status="incorrect", reason="wrong in 1 of 2 cases, the first b")
    later = failed(status="incorrect", reason="after timing, on fresh inputs: out is off by 3")
    cases = [{"case": "a", "status": "ok", "reason": None}]
    cases += [{"case": "b", "status": "incorrect", "reason": "out is off by 2; lse is off"}]
    reports = {"standard": {"cases": cases}}
    found = tables.explained([wrong, later, record(), failed()], reports)
    assert [one.reason for one in found] == [
        "wrong in 1 of 2 cases, the first b: out is off by 2", later.reason, None, "it fell over",
    ]  # fmt: skip
    assert tables.explained([wrong], {}) == [wrong]
    assert tables.explained([wrong], {"standard": {"cases": cases[:1]}}) == [wrong]


def test_a_row_without_figures_shows_none():
    row = cells_of(tables.seed_table([failed()], "cpu", REFERENCES))[1]
    assert row == ["standard", "1", "512", "8", "N/A", "N/A", "N/A", "✗"]
    line = next(line for line in tables.grid_table([failed()], CEILING, {}).splitlines() if line.startswith("standard"))
    assert not re.search(r"\d", line.replace("✗ crashed", ""))


def test_a_grid_table_shows_the_axes_that_vary_and_names_the_others():
    text = tables.grid_table(seed_records()[:2], CEILING, {})
    header = text.splitlines()[0]
    assert "n_heads" in header
    assert "seq_len" not in header
    assert "seq_len 512" in text
    assert "All: batch 1," in text
    assert "50 %" in text


def test_more_ranks_than_cores_are_marked_and_not_compared():
    one = record(family="ring", world_size=4, oversubscribed=True, figures=figures(relative_time=None))
    text = tables.grid_table([one], CEILING, {})
    assert "4*" in text
    assert "oversubscribed, not compared" in text


def leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [value]


def test_metrics_of_the_shipped_params_are_at_most_40_numbers_and_no_list():
    found = leaves(tables.metrics(records_of(grid.load(PARAMS))))
    assert len(found) <= 40
    assert {type(leaf) for leaf in found} <= {int, float}


def test_metrics_have_every_row_of_the_seed_and_one_ratio_for_each_other_grid():
    found = tables.metrics(records_of(grid.load(PARAMS)))
    shown = {f"{row[0]}_h{int(row[3]):02d}" for row in cells_of(SEED)[1:]}
    assert set(found["seed_ms"]) == shown
    assert found["relative"]["scaling_core"] == {"standard": 1.5, "improved": 1.5}
    assert found["cells_not_ok"] == 0


def test_metrics_count_what_failed_and_average_ratios_geometrically():
    two = [record(grid="dtypes", figures=figures(relative_time=figure(ratio))) for ratio in (0.5, 8.0)]
    found = tables.metrics([*two, failed(grid="dtypes"), failed(status="incorrect")])
    assert (found["cells_ok"], found["cells_not_ok"]) == (2, 2)
    assert found["relative"] == {"dtypes_core": {"standard": 2.0}}
    assert found["seed_ms"] == {}


def test_a_cell_that_was_not_measured_does_not_count_as_ok():
    found = tables.metrics([failed(status="not_measured", reason="left out in params.yaml: slow")])
    assert found["cells_ok"] == 0


def test_plots_have_one_row_for_each_cell_with_figures():
    rows = tables.plot_rows([record(), failed(), record(implementation="improved")])
    assert [row["implementation"] for row in rows] == ["standard", "improved"]
    assert rows[0]["time_ms"] == 2.0
    assert rows[0]["seq_len"] == 512


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.234, 1.2, 1.309, "1.23 [1.2, 1.31]"),
        (0.012345, 0.01, 0.0199, "0.0123 [0.01, 0.0199]"),
        (1234.5, 999.0, 2345.6, "1234 [999, 2346]"),
        (100.0, 99.96, 101.26, "100 [100, 101]"),
        (999.7, 999.6, 1000.2, "1000 [1000, 1000]"),
    ],
)
def test_an_interval_is_shown_with_three_digits(value, low, high, text):
    assert tables.interval(figure().model_copy(update={"value": value, "low": low, "high": high})) == text


def test_an_interval_that_is_not_there_is_a_dash():
    assert tables.interval(None) == "-"


def test_what_params_leave_out_of_the_seed_grid_is_not_in_the_seed_table_but_in_its_own():
    left = failed("not_measured", "left out in params.yaml: one rank sends nothing", implementation="left")
    assert "left" not in tables.seed_table([record(), left], "cpu", REFERENCES)
    assert "left (8 heads, seq_len 512, float32, full, forward): not_measured: left out" in tables.grid_table(
        [record(), left], CEILING, {}
    )
