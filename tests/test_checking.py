"""bench.checking: a row that falls in one case keeps the cases before it; ranks that cannot be had are no fault."""

import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made import PARAMS

from attn import registry
from bench import checking, grid, kept, machine, placement, truths
from bench.__main__ import main

ROW = '''"""Right, but for two tokens."""
import os, signal, time
from attn.contract import Unsupported
from attn.impl import standard
KIND, DEVICES, DTYPES, MASKS, BACKWARD = "core", ("cpu",), ("float32",), ("full", "causal"), True


def attention(q, k, v, *, softmax_scale, mask):
    if q.shape[1] == 2:
        {line}
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask){wrong}
'''
FAULTS = {
    "raise": ("raise ValueError('two are too many')", "crashed", "ValueError: two are too many (row.py:"),
    "exit": ("os._exit(3)", "crashed", "ended with exit code 3"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "killed by SIGKILL"),
    "hang": ("time.sleep(600)", "timeout", "no result within its deadline of 15 s, in case "),
}
ONLY = "_s00000[12]_|_s000031_"  # two cases each, in this order


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, and real inputs that are there already."""
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # ranks are started here
    truths.CAPTURED.parent.mkdir(parents=True)
    truths.CAPTURED.write_bytes(b"none of the cases here reads it")
    kept.write_index(truths.CAPTURED.parent)
    return tmp_path


def checked(folder: Path, capsys: pytest.CaptureFixture[str], line: str, wrong: str = "") -> dict[str, Any]:
    (folder / "row.py").write_text(ROW.format(line=line, wrong=wrong), encoding="utf-8")
    assert main(["check", "row.py", "--only", ONLY, "--json"]) == 1
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_falls_keeps_the_cases_before_it(
    fault: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, status, words = FAULTS[fault]
    if fault == "hang":
        text = re.sub(r"deadline_s: \d+", "deadline_s: 5", PARAMS.read_text(encoding="utf-8"))
        (folder / "params.yaml").write_text(text, encoding="utf-8")
    report = checked(folder, capsys, line)
    first, second, fallen = report["cases"]
    assert (first["status"], second["status"], fallen["status"]) == ("ok", "ok", status)
    assert report["status"] == status
    assert words in report["reason"] == fallen["reason"]
    assert fallen["case"] in report["reason"]
    assert fallen["seq_len"] == 2
    assert report["summary"]["worst"]["case"] in (first["case"], second["case"])
    assert checking.verdict(report) == {"status": status, "reason": report["reason"], "failed": []}


def test_a_row_that_is_wrong_before_it_falls_names_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = checked(folder, capsys, FAULTS["raise"][0], " * 1.5")
    assert [one["status"] for one in report["cases"]] == ["incorrect", "incorrect", "crashed"]
    assert report["status"] == "crashed"
    verdict = checking.verdict(report)
    assert verdict["failed"] == [one["case"] for one in report["cases"][:2]]
    assert "ValueError: two are too many" in verdict["reason"]


def test_a_case_that_is_refused_ends_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "row.py").write_text(ROW.format(line="raise Unsupported('no pairs')", wrong=""), encoding="utf-8")
    assert main(["check", "row.py", "--only", ONLY]) == 0
    out = capsys.readouterr().out
    assert out.startswith("row: ok (4 ok, 2 unsupported)\n")
    assert "unsupported: no pairs\n" in out


def test_a_row_that_never_ran_has_a_summary_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "row.py").write_text("def attention(:\n", encoding="utf-8")
    assert main(["check", "row.py", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["summary"] == {"worst": None, "real": {}, "nan_leaks": [], "spread": {}}
    assert (report["cases"], report["no_ranks"]) == ([], {})


RING = """
import os
from attn.impl.ring_v2_collective import attention as right

KIND, DEVICES, DTYPES, MASKS, BACKWARD = "ring", ("cpu",), ("float32",), ("full", "causal"), True


def attention(q, k, v, *, softmax_scale, mask, comm):
    if comm.seq_len == 3 and comm.rank == 1:
        raise ValueError("rank 1 has enough")
    return right(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm)
"""


def ring(monkeypatch: pytest.MonkeyPatch, path: Path, sizes: tuple[int, ...], only: str) -> dict[str, Any]:
    monkeypatch.setattr(checking, "CHECKED_WORLD_SIZES", sizes)
    params = grid.load(PARAMS)
    return checking.check(path, params, machine.identity(params), only=only)


@pytest.mark.mpi
def test_a_ring_that_falls_keeps_the_cases_of_all_ranks_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "row.py").write_text(RING, encoding="utf-8")
    report = ring(monkeypatch, folder / "row.py", (1, 2), "_s00000[13]_d016_float32")
    assert [one["status"] for one in report["cases"]] == ["ok"] * 6 + ["crashed"]
    assert report["cases"][-1]["case"].endswith("_n2")
    assert report["status"] == "crashed"
    assert "ValueError: rank 1 has enough" in report["reason"]
    assert report["cases"][-1]["case"] in report["reason"]


REFUSES = """#!/bin/sh
if [ "$2" = 8 ]; then
    echo "--------------------------------------------------" >&2
    echo "There are not enough slots available in the system to satisfy the 8" >&2
    echo "slots that were requested by the application:" >&2
    echo "--------------------------------------------------" >&2
    exit 1
fi
exec {mpiexec} "$@"
"""


@pytest.mark.mpi
def test_too_few_slots_are_the_machines_lack_and_no_crash_of_the_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mpiexec = folder / "mpiexec"
    mpiexec.write_text(REFUSES.format(mpiexec=placement.find_mpiexec()), encoding="utf-8")
    mpiexec.chmod(mpiexec.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(placement, "find_mpiexec", lambda: str(mpiexec))
    path = registry.IMPL_DIR / "ring_v2_collective.py"
    report = ring(monkeypatch, path, (1, 8), "_s000001_d016_float32")
    assert (report["status"], report["reason"]) == ("ok", None)
    assert {one["status"] for one in report["cases"]} == {"ok"}
    reason = "8 ranks could not be started here (exit code 1): There are not enough slots available in the system"
    assert list(report["no_ranks"]) == ["8"]
    assert report["no_ranks"]["8"].startswith(reason)
    nowhere = ring(monkeypatch, path, (8,), "_s000513_")
    assert (nowhere["status"], nowhere["reason"]) == ("unsupported", report["no_ranks"]["8"])
