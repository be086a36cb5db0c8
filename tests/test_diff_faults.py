"""`python -m bench diff` where it cannot compare: exit 3 and one sentence; and what only DVC's cache has."""

import hashlib
import re
import shutil

import pytest
from history import IDENTITY, refused, timed


def test_two_machines_are_refused_with_every_field_that_differs(history, says):
    history.write(timed(), identity={**IDENTITY, "torch": "2.13", "threads": 4, "image": "new"})
    sentence = refused(says, "v1")
    for part in ("'2.12' at v1, '2.13' at the work tree", "threads 2 at v1, 4 at", "image None at v1, 'new' at"):
        assert part in sentence
    assert "cpu_model" not in sentence


def test_the_machine_is_that_of_params_or_the_one_asked_for(history, tells, says):
    history.tagged("v2", timed(implementation="improved"), machine="lab")
    history.write(timed(2.2, implementation="improved"), machine="lab")
    assert tells("v2").changes == []
    found = tells("v2", "--machine", "lab")
    assert (found.machine, found.changes[0].cell.implementation) == ("lab", "improved")
    assert "there: lab, local\n" in refused(says, "v2", "--machine", "other")
    assert "there: local\n" in refused(says, "v1", "--machine", "lab")
    assert "letters, digits, _ and -" in refused(says, "v1", "--machine", "../x")


@pytest.mark.parametrize("name", ["v9", "", "v1..v2", "-v", "HEAD:params.yaml", "HEAD~9"])
def test_a_revision_that_does_not_exist_is_one_sentence(history, says, name):
    assert f"git knows no revision {name!r}" in refused(says, *(["--"] if name.startswith("-") else []), name)


def test_where_there_is_no_repository_git_says_so(history, says):
    shutil.rmtree(history.path / ".git")
    assert "not a git repository" in refused(says, "v1")


def test_no_results_at_a_revision_is_one_sentence(history, says):
    history.repo.git("rm", "-rq", "results")
    history.tagged("empty")
    sentence = refused(says, "empty", "v1")
    assert "empty has no measurements in results/local: commit the results of that revision" in sentence
    assert "the work tree has no measurements" in refused(says, "v1")


def test_no_machine_json_is_one_sentence(history, says):
    (history.path / "results/local/machine.json").unlink()
    assert "the work tree has no results/local/machine.json" in refused(says, "v1")


CORRUPT = {
    "half a file": (lambda text: text[: len(text) // 2], "JSONDecodeError"),
    "no text": (lambda _: "\udcff", "UnicodeDecodeError"),
    "empty": (lambda _: "", "JSONDecodeError"),
    "no list": (lambda _: "{}", "not a list of records"),
    "a list of numbers": (lambda _: "[1]", "Record"),
    "a merge conflict": (lambda text: f"<<<<<<< HEAD\n{text}", "JSONDecodeError"),
    "no samples": (lambda text: re.sub(r'"samples_ms": \[[^]]*\]', '"samples_ms": []', text), "samples_ms"),
    "a time of 0": (lambda text: re.sub(r'"samples_ms": \[[^,]*,', '"samples_ms": [0.0,', text), "greater than 0"),
    "a yardstick of 0": (lambda text: re.sub(r"\b1\.0,\n", "0.0,\n", text), "ZeroDivisionError"),
    "pairs that are none": (lambda text: text.replace('"reference_ms": [', '"reference_ms": [1.0,'), "zip()"),
    "a word": (lambda text: text.replace('"world_size": 1', '"world_size": "one"'), "world_size"),
    "an axis too few": (lambda text: text.replace('"seq_len": 512,', ""), "seq_len"),
    "figures of a failure": (lambda text: text.replace('"ok",\n  "reason"', '"crashed",\n  "reason"'), "figures"),
    "another schema": (lambda text: text.replace('_version": 2', '_version": 3'), "schema_version 3, this"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "fault"), list(CORRUPT.values()), ids=CORRUPT)
def test_a_record_that_cannot_be_is_one_sentence_with_revision_and_file(history, says, change, fault):
    path = history.path / "results/local/bench/standard-seed.json"
    text = path.read_text(encoding="utf-8")
    changed = change(text)
    assert changed != text
    path.write_text(changed, encoding="utf-8", errors="surrogateescape")
    history.tagged("bad")
    for arguments in (["bad", "v1"], ["v1", "bad"]):
        sentence = refused(says, *arguments)
        assert "bad:results/local/bench/standard-seed.json cannot be read (" in sentence
        assert fault in sentence
    assert "the work tree:results/local/bench/standard-seed.json cannot be read" in refused(says, "v1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results/local/check/standard.json", '{"implementation": "standard"}'),
        ("results/local/machine.json", "[]"),
        ("dvc.lock", "<<<<<<< HEAD\nstages: {}\n"),
        ("dvc.lock", "stages: [1]\n"),
    ],
)
def test_any_other_file_that_cannot_be_is_one_sentence_too(history, says, name, text):
    (history.path / name).parent.mkdir(exist_ok=True)
    (history.path / name).write_text(text, encoding="utf-8")
    history.tagged("bad")
    assert f"bad:{name} cannot be read (" in refused(says, "bad", "v1")


@pytest.mark.parametrize("settings", [None, "[core]\n    analytics = false\n[cache]\n    dir = ../elsewhere\n"])
def test_what_git_does_not_have_comes_out_of_dvcs_cache(history, tells, says, settings):
    name, cache = "results/local/bench/standard-seed.json", history.path / ".dvc/cache"
    history.write(timed(1.0))
    text = (history.path / name).read_bytes()
    digest = hashlib.md5(text).hexdigest()
    history.lock("one", **{name: digest, "results/local/tables": f"{digest}.dir"})
    history.repo.git("rm", "-q", "--cached", name)
    (history.path / name).unlink()
    if settings:
        cache = history.path / "elsewhere"
        (history.path / ".dvc").mkdir()
        (history.path / ".dvc/config").write_text(settings, encoding="utf-8")
    history.tagged("cached")
    sentence = refused(says, "cached", "v1")
    assert f"cached:{name} is named in dvc.lock there, but neither git nor DVC's cache has it: `dvc pull`" in sentence
    kept = cache / "files/md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(text)
    assert tells("cached", "v1").changes[0].change_percent == pytest.approx(100)


def test_invalid_params_are_not_taken_for_a_change_that_is_inconclusive(history, says):
    (history.path / "params.yaml").write_text("machine: [", encoding="utf-8")
    code, out, err = says("v1")
    assert (code, out) == (3, "")
    assert err.startswith("params.yaml: ")


def test_records_of_the_schema_before_are_still_read(history, says):
    path = history.path / "results/local/bench/standard-seed.json"
    before = path.read_text(encoding="utf-8").replace('_version": 2', '_version": 1')
    assert before != path.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    code, _, said = says("HEAD")
    assert code != 3, said
