"""The self-test of the duel: its record, its sums, the rules of others; on made samples whose truth is known."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from bench import closure, docs, rates, rivals, selftest, selftest_records, selftest_tables
from bench.__main__ import main
from bench.duel_pairs import in_slices
from bench.selftest_records import CannotRecord, Condition, Fought, Header, Told, opened, read

MACHINE = {
    "cpu_model": "a cpu", "cpu_count": 2, "memory_gib": 4, "gpu_model": "unavailable", "threads": 2,
    "device": "cpu", "torch": "2.0", "python": "3.11",
}  # fmt: skip
RIVALS = {"pyperf": "2.10.0", "asv": "0.6.6", "pytest-benchmark": "5.3.1", "torch": "2.13.0+cpu"}
HEADER = Header(machine=MACHINE, code="c0de", rivals=RIVALS)
AA, THREE = Condition(extra=(0, 1), budget_s=40), Condition(extra=(3, 100), budget_s=40)


def told(verdict, value=0.0):
    return Told(verdict=verdict, change_percent=value, low_percent=value - 1, high_percent=value + 1, pairs=8)


def fought(number, condition=AA, verdict="same", **more):
    value = condition.truth_percent if verdict in ("same", "inconclusive") else condition.truth_percent + 2
    said = dict.fromkeys(RIVALS, "no difference")
    return Fought(
        **{
            "condition": condition, "number": number, "cell": "sdpa-x", "threads": 1, "busy": number % 2 == 1,
            "at": "2026-11-23T12:00:00+00:00", "load": 0.5, "seconds": 30.0, "calls": 100,
            "wall": told(verdict, value), "cpu": told("same", condition.truth_percent), "rivals": said, **more,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "trials", "low", "high"),
    [
        (0, 300, 0.0, 1.2221), (1, 300, 0.0084, 1.8431), (30, 60, 36.8062, 63.1938), (60, 60, 94.0371, 100.0),
        (1, 1, 2.5, 100.0),
    ],
)  # fmt: skip
def test_a_share_has_the_interval_of_clopper_and_pearson(found, trials, low, high):
    """Expected: quantiles of the beta distribution, by mpmath."""
    share = rates.share(found, trials)
    assert (share.value, share.low, share.high) == pytest.approx((100 * found / trials, low, high), abs=1e-3)


@pytest.mark.parametrize(("found", "trials"), [(0, 0), (2, 1), (-1, 3)])
def test_what_is_no_share_is_refused(found, trials):
    with pytest.raises(ValueError, match="is no share"):
        rates.share(found, trials)


def test_duels_alternate_busy_and_go_through_all_cells_for_each_condition():
    todo = selftest.outstanding([], [AA, THREE], 16)
    assert todo[:4] == [(AA, 0), (THREE, 0), (AA, 1), (THREE, 1)]
    assert len(todo) == 32
    done = [fought(0), fought(1), fought(0, THREE)]
    left = selftest.outstanding(done, [AA, THREE], 3)
    assert left == [(THREE, 1), (AA, 2), (THREE, 2)]
    assert selftest.outstanding(done, [AA], 2) == []
    assert len({(small.one_thread, small.cell.key) for small in selftest.SMALL}) == len(selftest.SMALL)


def test_lines_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "selftest.jsonl"
    with opened(path, HEADER) as writer:
        writer.add(fought(0, samples=[{"orders": ["ABBA"], "wall_us": [1.5] * 4, "cpu_us": [1.25] * 4}]))
        writer.add(fought(1, wall=None, cpu=None, failed="base: crashed: it was"))
    with opened(path, HEADER) as writer:
        assert [one.number for one in writer.fought] == [0, 1]
        writer.add(fought(2))
    header, lines = read(path)
    assert header == HEADER
    assert [one.number for one in lines] == [0, 1, 2]
    assert lines[0].samples[0].orders == ["ABBA"]
    assert lines[1].failed == "base: crashed: it was"


@pytest.mark.parametrize("kept", [1, 30, 500])
def test_what_a_killed_writer_left_of_a_line_is_cut_off(kept, tmp_path):
    path = tmp_path / "selftest.jsonl"
    with opened(path, HEADER) as writer:
        writer.add(fought(0))
    whole = path.read_bytes()
    with opened(path, HEADER) as writer:
        writer.add(fought(1))
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    assert [one.number for one in read(path)[1]] == [0]
    with opened(path, HEADER) as writer:
        assert path.read_bytes() == whole
        writer.add(fought(1))
    assert [one.number for one in read(path)[1]] == [0, 1]


def test_half_a_header_is_a_new_file(tmp_path):
    path = tmp_path / "selftest.jsonl"
    path.write_text('{"schema_ver', encoding="utf-8")
    with opened(path, HEADER) as writer:
        assert writer.fought == []
    assert read(path) == (HEADER, [])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (HEADER.model_copy(update={"machine": {**MACHINE, "threads": 4}}), "another machine: threads 2, here 4; keep"),
        (HEADER.model_copy(update={"code": "0ther"}), r"with other code \(c0de, now 0ther\); keep"),
    ],
)  # fmt: skip
def test_another_machine_or_other_code_begins_a_file_of_its_own(other, words, tmp_path):
    path = tmp_path / "selftest.jsonl"
    with opened(path, HEADER) as writer:
        writer.add(fought(0))
    before = path.read_bytes()
    with pytest.raises(CannotRecord, match=words), opened(path, other):
        pass
    assert path.read_bytes() == before


def test_two_self_tests_do_not_add_to_one_file(tmp_path):
    path = tmp_path / "selftest.jsonl"
    with opened(path, HEADER), pytest.raises(CannotRecord, match="another self-test adds to"), opened(path, HEADER):
        pass


@pytest.mark.parametrize("text", ["[1]\n", "{}\n", HEADER.model_dump_json() + '\n{"number": 1}\n'])
def test_a_file_that_is_not_ours_is_one_sentence(text, tmp_path):
    path = tmp_path / "selftest.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"not a self-test's: .*: \w+"):
        read(path)


def table_of(tmp_path, lines):
    path = tmp_path / "selftest.jsonl"
    with opened(path, HEADER) as writer:
        for line in lines:
            writer.add(line)
    return selftest_tables.text(path)


def row(text, begins):
    """The cells of the line that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{begins}  ")]
    return [cell.strip() for cell in line[len(begins) :].split("  ") if cell.strip()]


def test_the_table_counts_alarms_and_findings_and_whether_intervals_hold_the_truth(tmp_path):
    wolf = dict.fromkeys(RIVALS, "slower") | {"asv": "faster", "torch": "not installed"}
    aa = [fought(n, verdict="slower" if n == 0 else "faster" if n == 1 else "same", rivals=wolf) for n in range(10)]
    three = [fought(n, THREE, "slower" if n < 6 else "faster" if n == 6 else "inconclusive") for n in range(8)]
    text = table_of(tmp_path, [*aa, *three, fought(10, wall=None, cpu=None, failed="base: crashed: it was")])
    assert row(text, "duel") == ["20 [2.5, 55.6] of 10", "75 [34.9, 96.8] of 8"], "faster is no finding of more work"
    assert row(text, "- beside a busy process") == ["20 [0.5, 71.6] of 5", "75 [19.4, 99.4] of 4"]
    assert row(text, "duel --clock cpu") == ["0 [0.0, 30.8] of 10", "0 [0.0, 36.9] of 8"]
    assert row(text, "asv 0.6.6 compare") == ["100 [69.2, 100.0] of 10", "0 [0.0, 36.9] of 8"]
    assert row(text, "torch 2.13.0 Compare") == ["-", "0 [0.0, 36.9] of 8"]
    assert "Intervals that hold the truth: 50 %" in text
    assert "by --clock cpu: 100 %" in text
    assert "Without any difference: 8 same, 1 slower, 1 faster." in text
    assert "19 duels of one small cell, 9 of them beside a busy process; measured 2026-11-23" in text
    assert "1 could not compare: base: crashed: it was" in text
    assert max(map(len, text.splitlines())) <= 100


def test_each_budget_has_a_table_of_its_own(tmp_path):
    long = Condition(extra=(3, 100), budget_s=300)
    text = table_of(tmp_path, [fought(0), fought(0, long, "slower")])
    assert text.index("--budget 40") < text.index("--budget 300")
    only_failed = table_of(tmp_path / "other", [fought(0, wall=None, cpu=None, failed="why")])
    assert "--budget 40: nothing could be compared" in only_failed


def test_docs_show_what_a_record_says(tmp_path):
    said = table_of(tmp_path / "results" / "here", [fought(0)])
    page = "# Page\n<!-- generated: results/here/selftest.jsonl -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    docs.fill(write=True, root=tmp_path)
    assert f"```text\n{said}```" in (tmp_path / "README.md").read_text(encoding="utf-8")


def pairs(more, deviation, between, seed):
    """8 pairs of 16 blocks: head does so much more, slices and processes scatter so much."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(8):
        level = {letter: np.exp(rng.normal(0, between)) for letter in "AB"}
        level["B"] *= 1 + more
        blocks = [
            (order, [float(level[letter] * np.exp(rng.normal(0, deviation))) for letter in order], [1.0] * 4)
            for order in ("ABBA", "BAAB") * 8
        ]
        made.append(in_slices(blocks, "wall"))
    return made


def test_the_rules_of_others_see_a_clear_slow_down_and_a_clear_speed_up():
    installed = {name for name, version in rivals.versions().items() if version != "not installed"}
    assert installed == set(RIVALS), "the requirements of development have all of them"
    assert set(rivals.verdicts(pairs(0.3, 0.001, 0.001, 0)).values()) == {"slower"}
    faster = rivals.verdicts(pairs(-0.3, 0.001, 0.001, 0))
    assert faster == dict.fromkeys(RIVALS, "faster") | {"pytest-benchmark": "no difference"}


def test_the_rules_of_others_have_their_own_thresholds():
    said = rivals.verdicts(pairs(0.07, 0.001, 0.001, 0))
    assert said == dict.fromkeys(RIVALS, "slower") | {"asv": "no difference"}, "asv's factor is 1.1"
    said = rivals.verdicts(pairs(0.04, 0.001, 0.001, 0))
    assert said == {"pyperf": "slower", "asv": "no difference", "pytest-benchmark": "no difference", "torch": "slower"}


def test_processes_that_differ_make_them_cry_wolf_and_not_us():
    alarms = [rivals.verdicts(pairs(0, 0.02, 0.1, seed))["torch"] != "no difference" for seed in range(20)]
    assert sum(alarms) >= 10


def test_a_rival_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyperf", None)
    assert rivals.verdicts(pairs(0.3, 0.001, 0.001, 0))["pyperf"] == "not installed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aa", "--duels", "-1"], "--duels -1, allowed: 0 and above"),
        (["aa", "--budget", "0"], "--budget 0, allowed: seconds above 0"),
        (["aa", "--injection", "3"], "only `power` adds work"),
        (["power", "--injection", "2.5001"], "--injection 2.5001, allowed: above 0 up to 100"),
        (["power", "--injection", "nan"], "--injection nan, allowed: above 0 up to 100"),
        (["aa", "--machine", "../x"], "allowed: letters, digits, _ and -"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, capsys):
    assert main(["selftest", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_what_is_recorded_is_printed_without_a_duel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bench.selftest_command.RESULTS", tmp_path)
    assert main(["selftest", "power", "--duels", "0", "--injection", "3", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    assert "0 duels of one small cell" in printed
    assert main(["selftest", "aa", "--duels", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    (tmp_path / "local" / selftest_records.NAME).write_text("[]\n", encoding="utf-8")
    assert main(["selftest", "aa", "--duels", "0"]) == 2
    assert "not a self-test's" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["duel.py", "duel_pairs.py", "duel_side.py", "stats.py"])
def test_the_code_of_a_record_is_what_takes_slices_and_decides(name, monkeypatch, tmp_path):
    found = selftest.header(MACHINE)
    assert found.machine == MACHINE
    shutil.copytree(ROOT / "bench", tmp_path / "bench")
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    assert selftest.header(MACHINE) == found
    with (tmp_path / "bench" / name).open("a") as file:
        file.write("MORE = 1\n")
    closure._digest.cache_clear()
    assert selftest.header(MACHINE).code != found.code
