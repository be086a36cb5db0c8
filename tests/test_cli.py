"""`python -m bench`: exit codes, one sentence for what cannot be, JSON alone where JSON is asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from made import PARAMS, failed, record, records_of

from attn import registry
from attn.contract import DTYPES
from bench import commands, grid, records
from bench.__main__ import main
from bench.files import write_json

COMMANDS = [
    ["validate"], ["list"], ["list", "--json"], ["check", "improved"], ["run", "improved", "--grid", "seed"],
    ["table"], ["table", "seed"], ["publish", "laptop"], ["gate"], ["docs", "--check"],
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the shipped params.yaml and nothing else."""
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def said(capsys):
    """Run a command: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


def measured(folder: Path, *changed):
    """Records for all that params.yaml asks for; `changed` replace those of their row and grid."""
    params, results = grid.load(), folder / "results" / "local"
    stages = {}
    for one in records_of(params):
        stages.setdefault((one.implementation, one.grid), []).append(one)
    for one in changed:
        there = stages[one.implementation, one.grid]
        stages[one.implementation, one.grid] = [one, *(r for r in there if r.workload != one.workload)]
    for (name, chosen), found in stages.items():
        records.write(records.bench_path(results, name, chosen), found)
    write_json(results / "machine.json", {"device": "cpu"})
    rates = {dtype: {"tflops": 1.0, "n": 1024} for dtype in DTYPES}
    write_json(results / "ceiling.json", {"matrix_product": rates, "copy_gb_per_s": 1.0})
    return results


def one_sentence(text):
    assert text.endswith("\n")
    assert "\n" not in text[:-1]
    assert "Traceback" not in text
    return text[:-1]


def test_validate_says_how_much_there_is(said):
    assert said("validate") == (0, "params.yaml is valid: 13 implementations, 7 grids\n", "")


def test_validate_refuses_hosts_and_an_interface_that_are_not_known_here(said, folder):
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("hosts: []", "hosts: [localhost, no.such.host.invalid]")
    path.write_text(text.replace('interface: ""', "interface: nope"), encoding="utf-8")
    code, out, err = said("validate")
    assert (code, out) == (2, "")
    host, interface = err.splitlines()
    assert host.startswith("params.yaml: launch.hosts[1] = no.such.host.invalid: no way from ")
    assert interface.startswith("params.yaml: launch.interface = nope: interface nope has no address on ")


def test_list_shows_every_row(said):
    code, out, err = said("list")
    assert (code, err) == (0, "")
    for name in registry.find():
        assert f"\n{name} " in out


def test_list_as_json_is_one_document_and_nothing_else(said):
    code, out, err = said("list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["implementation"] for row in rows] == list(registry.find())
    listed = [row["implementation"] for row in rows if row["listed"] == "yes"]
    assert sorted(listed) == sorted(grid.load().implementations())
    assert {row["here"] for row in rows if row["listed"] == "yes" and row["kind"] != "ring"} == {"runs"}


def test_list_shows_why_a_broken_or_unlisted_row_does_not_run(said, monkeypatch):
    broken = registry.Implementation("idea", Path("idea.py"), fault="broken file idea.py: line 1: bad")
    known = {**registry.find(), "idea": broken}
    monkeypatch.setattr(registry, "find", lambda: known)
    row = json.loads(said("list", "--json")[1])[-1]
    assert (row["implementation"], row["listed"], row["here"]) == ("idea", "no", broken.fault)


def test_list_says_which_package_is_missing_where_there_is_a_gpu_and_where_there_is_none():
    row = registry.find()["flash_attn_3"]
    assert commands._why_not_here(row, "cuda") == "needs flash_attn_interface"
    assert commands._why_not_here(row, "cpu") == "only on cuda, needs flash_attn_interface"
    assert commands._why_not_here(registry.find()["flex_attention"], "cuda") is None


@pytest.mark.parametrize("command", [["table"], ["table", "seed"], ["gate"]])
def test_without_results_a_command_says_what_to_do(said, command):
    code, out, err = said(*command)
    assert (code, out) == (2, "")
    assert one_sentence(err).endswith("results/local: nothing measured yet; run `make bench`")


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        (["table", "sead"], [*grid.load(PARAMS).grids, "spread", "overhead"]),
        (["remeasure", "sead"], ["seed", "backward", "ring"]),
        (["remeasure"], ["results/local/machine.json is not there: run `make bench` first"]),
        (["check", "improved", "--grid", "sead"], list(grid.load(PARAMS).grids)),
        (["check", "improved", "--only", "(s513"], ["not a regular expression"]),
        (
            ["check", "improved", "--only", "no such case"],
            ["matches none of the ", "the first is b01_h02_s000001_"],
        ),
        (["run", "improved", "--grid", "sead"], list(grid.load(PARAMS).grids)),
        (["check", "improvd"], list(registry.find())),
        (["run", "improvd", "--grid", "seed"], list(registry.find())),
        (["check", "no/such/file.py"], ["no such file"]),
        (["table", "--machine", "../x"], ["letters, digits, _ and -"]),
        (["gate", "--machine", "../x"], ["letters, digits, _ and -"]),
        (["publish", "../x"], ["letters, digits, _ and -"]),
        (["publish", "local"], ["not local"]),
        (["publish", "a b"], ["letters, digits, _ and -"]),
        (["publish", ""], ["letters, digits, _ and -"]),
        (["publish", "laptop"], ["make bench"]),
    ],
)
def test_what_cannot_be_exits_2_with_one_sentence_that_names_what_is_allowed(said, folder, command, allowed):
    code, out, err = said(*command)
    assert (code, out) == (2, "")
    sentence = one_sentence(err)
    assert sentence.startswith(f"python -m bench {command[0]}: ")
    assert [word for word in allowed if word not in sentence] == []
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_a_row_from_outside_can_be_judged_but_not_measured(said, folder):
    shutil.copy(registry.find()["sdpa"].path, folder / "idea.py")
    code, _, err = said("run", "idea.py", "--grid", "seed")
    assert code == 2
    assert "`check` judges any file" in one_sentence(err)


def test_running_a_broken_row_that_is_not_listed_is_no_traceback(said, monkeypatch):
    path = registry.IMPL_DIR / "idea.py"
    broken = registry.Implementation("idea", path, fault="broken file idea.py: line 1: bad")
    known = {**registry.find(), "idea": broken}
    monkeypatch.setattr(registry, "find", lambda: known)
    code, _, err = said("run", "idea", "--grid", "seed")
    assert code == 2
    assert "broken file idea.py" in one_sentence(err)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("text", ["", "machine: [", "machine: local\ncolour: 1\n", None])
def test_no_command_begins_with_an_invalid_params_yaml(said, folder, command, text):
    path = folder / "params.yaml"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    code, out, err = said(*command)
    assert (code, out) == (2, "")
    assert err
    assert all(line.startswith("params.yaml: ") for line in err.splitlines())


def test_the_help_has_an_example_for_each_common_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    for command in ("list", "check", "run", "duel", "selftest", "table", "diff", "publish", "prune", "gate"):
        assert f"\n  python -m bench {command}" in out


@pytest.mark.parametrize(
    "command",
    ["validate", "list", "check", "run", "duel", "selftest", "table", "diff", "publish", "prune", "gate", "docs"],
)
def test_the_help_of_every_command_has_an_example_that_parses(command, capsys):
    from bench.__main__ import parser

    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    example = text.split("example: python -m bench ")[1].split()
    assert left.value.code == 0
    assert parser().parse_args(example).command == command


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["run", "improved"], ["check"]])
def test_a_command_line_that_is_wrong_exits_2_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: python -m bench" in capsys.readouterr().err


def test_table_prints_the_seed_table_and_with_details_all_columns(said, folder):
    measured(folder)
    code, out, err = said("table", "seed")
    assert (code, err) == (0, "")
    assert out.startswith("Benchmark Results - 20260102_030405\n")
    details = said("table", "seed", "--details")[1]
    assert [
        name for name in ("core-seed", "module-seed", "ring-seed", "error (of budget)") if name not in details
    ] == []
    assert "core-scaling" in said("table")[1]


def test_table_says_which_file_is_not_json(said, folder):
    results = measured(folder)
    (results / "machine.json").write_text("{", encoding="utf-8")
    code, _, err = said("table", "seed")
    assert code == 2
    assert "results/local/machine.json is not JSON: " in one_sentence(err)


def test_an_answer_that_nobody_read_is_no_success(folder):
    measured(folder)
    reader, writer = os.pipe()
    os.close(reader)
    for short_or_long in (["table", "seed"], ["table"]):
        command = [sys.executable, "-m", "bench", *short_or_long]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        told = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        assert (told.returncode, told.stderr) == (141, "")
    os.close(writer)


def test_gate_passes_where_all_is_well_and_names_what_is_not(said, folder):
    results = measured(folder, failed(status="unsupported", reason="no such device"))
    code, out, _ = said("gate")
    assert (code, out.count("\n")) == (0, 1)
    measured(folder, failed(status="crashed", reason="it fell over"))
    code, out, _ = said("gate")
    assert code == 1
    assert "standard seed (8 heads, seq_len 512, float32, full, forward): crashed: it fell over\n" in out
    measured(folder, record())
    records.bench_path(results, "sdpa", "backward").unlink()
    code, out, _ = said("gate")
    assert code == 1
    assert out.startswith("sdpa backward: no record of b01_h08_s000512_d064_float32_causal_forward_backward, 1 ranks\n")


def test_gate_tells_of_a_wrong_row_its_case_and_error(said, folder):
    results = measured(folder, failed(status="incorrect", reason="wrong in 1 of 9 cases, the first b01"))
    one = {"case": "b01", "status": "incorrect", "reason": "out is off by 2.0"}
    write_json(records.check_path(results, "standard"), {"cases": [one]})
    code, out, _ = said("gate")
    assert code == 1
    assert ": incorrect: wrong in 1 of 9 cases, the first b01: out is off by 2.0\n" in out


def test_publish_copies_once_and_replaces_only_when_told_to(said, folder):
    results = measured(folder)
    (results / "report.md").write_text("one\n", encoding="utf-8")
    assert said("publish", "laptop")[0] == 0
    (results / "report.md").write_text("two\n", encoding="utf-8")
    code, _, err = said("publish", "laptop")
    assert code == 2
    assert "--replace" in one_sentence(err)
    copy = folder / "results" / "laptop" / "report.md"
    assert copy.read_text(encoding="utf-8") == "one\n"
    for name in ("selftest.jsonl", "ring-model.json"):
        copy.with_name(name).write_text("hours of work\n", encoding="utf-8")
    assert said("publish", "laptop", "--replace")[0] == 0
    for name in ("selftest.jsonl", "ring-model.json"):
        assert copy.with_name(name).read_text(encoding="utf-8") == "hours of work\n"
    assert copy.read_text(encoding="utf-8") == "two\n"
    assert sorted(path.name for path in (folder / "results").iterdir()) == ["laptop", "local"]


def test_a_check_can_be_of_some_cases_only_and_says_how_near_they_came(said, tmp_path):
    code, out, _ = said("check", "standard", "--only", "_s00000[12]_.*float32", "--json")
    report = json.loads(out)
    assert code == 0
    assert {one["seq_len"] for one in report["cases"]} == {1, 2}
    assert 0 < report["summary"]["worst"]["over_budget"] <= 1
    code, out, _ = said("check", "standard", "--only", "huge-row")
    assert code == 0
    assert "worst error (of its budget): " in out
    assert out.count("huge-row") == 1
