"""bench.remeasure: two passes over a grid, and what is said of them."""

import json
import re

import pytest
from conftest import Repo
from made import failed, figures, record

from bench import remeasure
from bench.records import Figure


def measured(value):
    """A record with that relative time; without one where there is none."""
    relative = Figure(value=value, low=0.99 * value, high=1.01 * value) if value else None
    return record(figures=figures(relative_time=relative), not_compared=None if value else "the yardstick is wrong")


@pytest.mark.parametrize(
    ("first", "second", "percent", "within"),
    [(2.0, 2.05, 2.5, True), (2.0, 1.95, -2.5, True), (2.0, 2.07, 3.5, False), (2.0, 1.9, -5.0, False)],
)
def test_the_difference_is_of_the_first_in_percent(first, second, percent, within):
    found = remeasure.compared(measured(first), measured(second))
    assert found.percent == pytest.approx(percent)
    assert (found.within, found.why_not) == (within, None)


def test_what_cannot_be_compared_says_why_and_did_not_come_out_again():
    for pair, why in (
        ((measured(1.0), failed()), "it fell over"),
        ((measured(1.0), measured(None)), "the yardstick is wrong"),
        ((failed("not_measured", "left out"), failed("not_measured", "left out")), "left out"),
    ):
        found = remeasure.compared(*pair)
        assert (found.percent, found.within, found.why_not) == (None, False, why)


def test_one_line_a_cell_then_how_many_came_out_again():
    pairs = [(measured(1.5), measured(1.52)), (measured(2.0), measured(2.2)), (measured(1.0), failed())]
    found = [remeasure.compared(*pair) for pair in pairs]
    lines = remeasure.text(found, []).splitlines()
    assert re.search(r"full, forward\) +1\.5 \[.*\] +1\.52 \[.*\] +\+1\.3 %$", lines[2])
    assert lines[3].endswith("+10.0 % !")
    assert lines[5] == "1 of 2 relative times came out again within 3 %."
    assert lines[6].endswith("not compared, it fell over")


@pytest.mark.pipeline
def test_a_grid_is_really_measured_twice_and_nothing_recorded_is_touched(tiny: Repo) -> None:
    before = tiny.hashes()
    done = tiny.run("sh", "-c", "python -m bench remeasure scaling --json 2> said")
    found = json.loads(done.stdout)
    assert [re.sub(r",.*", "", one["cell"]) for one in found] == [
        f"{name} (8 heads" for name in ("improved", "improved", "sdpa", "sdpa")
    ]
    assert all(one["first"]["value"] > 0 and one["second"]["value"] > 0 for one in found)
    assert len({json.dumps(one["first"]) for one in found} | {json.dumps(one["second"]) for one in found}) > 4
    assert done.returncode == int(not all(one["within"] for one in found))
    assert len(re.findall(r"^bench (?:improved|sdpa) scaling 2/2", tiny.read("said"), re.M)) == 4
    (tiny.path / "said").unlink()
    assert tiny.hashes() == before
