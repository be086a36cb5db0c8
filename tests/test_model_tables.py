"""The model of rings against rings: what is compared, the tables, and the measurement on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hosts
import pytest
from conftest import ROOT

from attn import registry
from attn.contract import Workload
from bench import calibration, docs, launch, model_cells, model_tables
from bench.device import Cpu
from bench.grid import Launch
from bench.team import Solo

W = Workload(1, 1024, 8, 8, 64, "float32", "full", "forward")


def made(cells: dict[str, float], ms_per_message: tuple[float, ...] = (0.0, 10.0, 40.0)) -> dict[str, Any]:
    """What two ranks might have measured: blocks at 1 TFLOP/s, copies and merges and processor time of nothing."""
    of_blocks = {f"full {n}": 4e3 * n * n * 8 * 64 / 1e12 for n in calibration.SIDES}
    ms = of_blocks | {f"causal {n}": of_blocks[f"full {n}"] / 2 for n in calibration.SIDES} | {"copy": 0, "merge": 0}
    messages = {f"message {n}": one for n, one in zip(calibration.MESSAGE_BYTES, ms_per_message, strict=True)}
    named = {f"{schedule} {W.key}": one for schedule, one in cells.items()}
    ranks = {name: [[one / 2] * 3, [one, one, 9 * one]] for name, one in (ms | messages | named).items()}
    link = {"ms": ranks, "processor_ms": {name: [[0.0], [0.0]] for name in messages}}
    return {
        "measured_at": "2026-01-02T03:04:05+00:00", "machine": "a machine", "workloads": [W.as_dict()],
        "state": {"before": {"load_1min": 0.5}, "after": {"load_1min": 1.5}}, "links": {"800mbit": link},
    }  # fmt: skip


def compared() -> dict[str, Any]:
    """Of 2 MiB that take 20 ms, and blocks of 0.5 and 1 ms; two cells are off."""
    found = made(dict(zip(model_cells.SCHEDULES, (20.0, 21.0, 40.0, 10.0), strict=True)))
    found["cells"] = model_tables.compared(found)
    return found


def test_a_cell_is_predicted_from_its_own_links_rates_and_is_the_slowest_ranks_median() -> None:
    found = compared()
    cells = {cell["schedule"]: cell for cell in found["cells"]}
    assert [cell["measured_ms"] for cell in found["cells"]] == [20.0, 21.0, 40.0, 10.0]
    block_ms = 4e3 * 8 * 512 * 512 * 64 / 1e12
    assert cells["ring_v1_p2p"]["predicted_ms"] == pytest.approx(20 + block_ms)
    assert cells["ring_v2_collective"]["predicted_ms"] == pytest.approx(20 + 2 * block_ms)
    assert cells["ring_ulysses"]["predicted_ms"] == pytest.approx(20 + 2 * block_ms)
    assert found["links"]["800mbit"]["calibration"]["link"]["bytes_per_s"] == pytest.approx((3 << 20) / 0.03)


def test_the_tables_count_what_is_close_and_name_the_fastest() -> None:
    found = compared()
    model, crossover = model_tables.model(found), model_tables.crossover(found)
    lines = {line.split()[1]: line.split() for line in model.splitlines() if line.startswith("800mbit ")}
    assert [lines[one][-1] for one in ("ring_v1_p2p", "ring_zigzag", "ring_ulysses")] == ["1.03", "0.51", "2.11"]
    assert "2 of 4 cells are predicted within 15 %." in model
    assert "800mbit: 105 MB/s one way" in model
    (line,) = [line for line in crossover.splitlines() if line.startswith("800mbit ")]
    assert line.split()[-6:] == ["20", "21", "40", "10", "ring_ulysses", "ring_v1_p2p"]
    for text in (model, crossover):
        assert "a machine; load 0.5 to 1.5." in text
        assert len({len(row) for row in text.splitlines()[:2]}) == 1


def test_the_docs_show_either_table_of_a_file_and_refuse_another(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "found.json").write_text(json.dumps(compared()), encoding="utf-8")
    page = tmp_path / "docs/page.md"
    page.write_text("".join(f"<!-- generated: found.json#{part} -->\n<!-- end -->\n" for part in model_tables.PARTS))
    assert docs.fill(write=True, root=tmp_path) == [page]
    assert "2 of 4 cells" in page.read_text(encoding="utf-8")
    assert "fastest" in page.read_text(encoding="utf-8")
    page.write_text("<!-- generated: found.json#other -->\n<!-- end -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="other: no such table, allowed: model, crossover"):
        docs.fill(write=False, root=tmp_path)


def test_a_link_has_the_rate_of_two_messages_and_a_burst_and_none_where_the_larger_is_no_slower() -> None:
    small, large, largest = calibration.MESSAGE_BYTES
    bucket, rate, latency = 100_000, 2e8, 1e-3
    seconds = {small: latency} | {n: latency + (n - bucket) / rate for n in (large, largest)}
    link = calibration.link(seconds, {largest: largest / 1e9})
    assert (link.bytes_per_s, link.latency_s) == (pytest.approx(rate), latency)
    assert link.burst_bytes == pytest.approx(bucket)
    assert link.processor_s_per_byte == pytest.approx(1e-9)
    assert [link.seconds(n) for n in seconds] == pytest.approx(list(seconds.values()))
    with pytest.raises(ValueError, match="4194304 bytes took 1 s, 1048576 bytes 1 s: no rate"):
        calibration.link(dict.fromkeys(seconds, 1.0), dict.fromkeys(seconds, 0.0))


ZEROS = '''"""Zeros."""
KIND, DEVICES, DTYPES, MASKS, BACKWARD, LAYOUT = "ring", ("cpu",), ("float32",), ("full",), False, "contiguous"


def attention(q, k, v, *, softmax_scale, mask, comm):
    return q * 0
'''
SMALL = Workload(1, 64, 4, 2, 16, "float32", "full", "forward")


def test_a_schedule_that_computes_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zeros.py"
    path.write_text(ZEROS, encoding="utf-8")
    rows = registry.find() | {"zeros": registry.read(path)}
    monkeypatch.setattr(registry, "find", lambda: rows)
    monkeypatch.setattr(model_cells, "SCHEDULES", ("ring_v1_p2p",))
    job = {"seed": 1, "device": "cpu"}
    assert len(model_cells._cells([SMALL], job, Solo())) == 1
    monkeypatch.setattr(model_cells, "SCHEDULES", ("ring_v1_p2p", "zeros"))
    with pytest.raises(ValueError, match=r"zeros b01_h04-kv02_s000064.*: not what sdpa computes, within rtol 0.0001"):
        model_cells._cells([SMALL], job, Solo())


@pytest.mark.mpi
def test_two_ranks_measure_every_part_as_often_and_it_can_be_compared() -> None:
    workloads = [SMALL, Workload(1, 65, 4, 4, 16, "float32", "causal", "forward")]
    job = {"workloads": [w.as_dict() for w in workloads], "rounds": 2, "seed": 1, "threads": 1, "device": "cpu"}
    on = Launch(transport="gloo")
    (result,) = launch.run("measure_model", [job], 2, deadline_s=120, where=ROOT, on=on)
    assert result["status"] == "ok", result
    assert (result["transport"], len(result["hosts"])) == ("gloo", 2)
    cells = {f"{schedule} {w.key}" for schedule in model_cells.SCHEDULES for w in workloads}
    messages = {f"message {size}" for size in calibration.MESSAGE_BYTES}
    blocks = {f"{mask} {side}" for mask in ("full", "causal") for side in calibration.SIDES}
    assert set(result["ms"]) == cells | messages | blocks | {"copy", "merge"}
    assert set(result["processor_ms"]) == messages
    assert {len(of_rank) for ranks in result["ms"].values() for of_rank in ranks} == {2}
    assert all(ms > 0 for ranks in result["ms"].values() for of_rank in ranks for ms in of_rank)
    for size in calibration.MESSAGE_BYTES:  # two rounds over loopback may say that a larger message is faster: no rate
        result["ms"][f"message {size}"] = [[1 + size / 1e6]] * 2
    found = {"workloads": job["workloads"], "links": {"loopback": result}}
    assert {cell["schedule"] for cell in model_tables.compared(found)} == set(model_cells.SCHEDULES)


def test_here_calibrates_every_size_of_both_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SIDES", (16, 32))
    found = calibration.here(SMALL, Cpu())
    assert [set(found[name]) for name in ("block_tflops", "causal_tflops")] == [{16, 32}, {16, 32}]
    assert found["copy_s_per_byte"] > 0
    assert found["merge_s_per_byte"] > 0


def script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.ring_model", *words]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_where_no_hosts_can_be_made_the_script_says_so_in_a_sentence(tmp_path: Path) -> None:
    done = script("--out", str(tmp_path / "found.json"), PATH="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("tests.ring_model: needs unshare and ip and tc and mount: install util-linux and iproute2\n")
    assert not list(tmp_path.iterdir())


def test_a_named_machines_folder_takes_no_figures_from_another(tmp_path: Path) -> None:
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop/machine.json").write_text('{"cpu_model": "another"}', encoding="utf-8")
    done = script("--out", str(tmp_path / "laptop/found.json"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "cpu_model 'another' there" in done.stderr
    assert len(list((tmp_path / "laptop").iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "argument --rounds: 0, allowed: a whole number above 0"),
        (["--rates", "fast"], "argument --rates: fast, allowed: a whole number and kbit, mbit or gbit"),
    ],
)
def test_what_the_script_cannot_do_is_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    done = script("--out", str(tmp_path / "found.json"), *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(said)


@pytest.mark.slow
@pytest.mark.hosts
def test_the_script_measures_over_hosts_and_keeps_every_sample(tmp_path: Path) -> None:
    if reason := hosts.why_not():
        pytest.skip(reason)
    out = tmp_path / "found.json"
    done = script("--out", str(out), "--rates", "1gbit", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found["links"]) == ["1gbit"]
    assert (found["links"]["1gbit"]["hosts"], found["links"]["1gbit"]["transport"]) == (["h0", "h1"], "gloo")
    assert len(found["cells"]) == 4 * len(found["workloads"])
    assert {len(one) for ranks in found["links"]["1gbit"]["ms"].values() for one in ranks} == {2}
    assert done.stdout == model_tables.model(found) + "\n" + model_tables.crossover(found) + "\n"
