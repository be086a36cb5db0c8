"""A git repository with made-up records in it, and `python -m bench diff` on it; conftest.py takes the fixtures."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from made import PARAMS, figure, figures, record

from attn.contract import Workload
from bench import records
from bench.__main__ import main
from bench.diff import Difference
from bench.files import write_json

if TYPE_CHECKING:
    from conftest import Repo

IDENTITY = {"schema_version": 1, "cpu_model": "made up", "torch": "2.12", "threads": 2}
SDPA = '"""Made up."""\nfrom attn.contract import Mask\n'


def timed(ms=2.0, reference_ms=1.0, processes=3, **changes):
    """A record with samples: processes lie 0.2 % apart, samples within 0.1 %."""
    spread = [1 + 0.002 * p + np.linspace(0, 0.001, 5) for p in range(processes)]
    series = [{"samples_ms": list(ms * s), "reference_ms": [reference_ms] * 5} for s in spread]
    found = figures(relative_time=figure(ms / reference_ms) if reference_ms else None)  # 0: not compared
    return record(figures=found, processes=[{"status": "ok", "series": one} for one in series], **changes)


def shaped(**axes):
    """The workload of `made.record`, with other axes."""
    return Workload(**{**vars(Workload(1, 512, 8, 8, 64, "float32", "full", "forward")), **axes}).as_dict()


@dataclass(frozen=True)
class History:
    """A repository with recorded results in it; the folder is where a test works."""

    repo: "Repo"

    @property
    def path(self) -> Path:
        return self.repo.path

    def write(self, *found, machine="local", identity=None):
        """These records, and no other, are the machine's."""
        results = self.path / "results" / machine
        shutil.rmtree(results / "bench", ignore_errors=True)
        stages = {}
        for one in found:
            stages.setdefault((one.implementation, one.grid), []).append(one)
        for (name, chosen), of_stage in stages.items():
            records.write(records.bench_path(results, name, chosen), of_stage)
        write_json(results / "machine.json", identity or IDENTITY)
        return results

    def check(self, name, status="ok", reason=None, **over_budget):
        """A check report with one case a keyword, its share of the budget."""
        cases = [
            {"case": case, "status": "ok", "reason": None, "over_budget": {"out": share}}
            for case, share in over_budget.items()
        ]
        report = {"implementation": name, "kind": "core", "status": status, "reason": reason, "cases": cases}
        write_json(records.check_path(self.path / "results/local", name), report)

    def tagged(self, tag, *found, **more):
        """Written, committed, and named."""
        if found:
            self.write(*found, **more)
        self.repo.commit(tag)
        self.repo.git("tag", tag)

    def lock(self, closure, elsewhere="other", **outs):
        """A dvc.lock that tells of the yardstick's code and names files by their hashes."""
        stages = {
            "bench_core@local-sdpa-seed": {
                "params": {"results/plan.json": {"closure.sdpa": closure, "harness.bench": 1}}
            },
            "bench_core@local-sdpa-2-seed": {"params": {"results/plan.json": {"closure.sdpa-2": "other"}}},
            "bench_core@lab-sdpa-seed": {"params": {"results/plan.json": {"closure.sdpa": elsewhere}}},
            "made": {"outs": [{"path": path, "hash": "md5", "md5": md5} for path, md5 in outs.items()]},
        }
        (self.path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}), encoding="utf-8")


@pytest.fixture
def history(tmp_path, monkeypatch):
    """Version 1 has one row, of 2 ms, and a yardstick."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    from conftest import Repo  # which imports this

    made = History(Repo(tmp_path))
    made.repo.git("init", "-q", "-b", "main")
    (tmp_path / "attn/impl").mkdir(parents=True)
    (tmp_path / "attn/impl/sdpa.py").write_text(SDPA, encoding="utf-8")
    (tmp_path / "attn/contract.py").write_text("class Mask: ...\n", encoding="utf-8")
    made.tagged("v1", timed())
    return made


@pytest.fixture
def says(capsys):
    """Run `python -m bench diff`: (exit code, stdout, stderr)."""

    def run(*arguments):
        code = main(["diff", *arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tells(says):
    """The difference, by way of --json, and its exit code."""

    def run(*arguments):
        code, out, err = says(*arguments, "--json")
        found = Difference.model_validate_json(out)
        assert (code, err) == (found.exit_code, "")
        return found

    return run


def refused(says, *arguments):
    code, out, err = says(*arguments)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert err.startswith("python -m bench diff: ")
    return err
