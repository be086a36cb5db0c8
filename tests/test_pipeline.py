"""DVC itself, on a tiny grid: what is written, what runs again after which change, what is refused."""

import json
import re
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Finished, Ran, Repo
from made import figure, figures, records_of

from bench import grid, tables

pytestmark = pytest.mark.pipeline

CORE = ["improved", "sdpa"]
MODULE = ["multihead_improved"]
ROWS = [("core", name, g) for name in CORE for g in ("seed", "scaling")]
ROWS += [("module", name, "seed") for name in MODULE] + [("ring", "ring_v2_collective", "seed")]
ORACLES = {"oracle_core@seed", "oracle_core@scaling", "oracle_module@seed", "oracle_ring@seed"}
INPUTS = {"capture", "cases@core", "cases@module"}
CHECKS = {f"check_{family}@local-{name}" for family, name, _ in ROWS}
BENCHES = {f"bench_{family}@local-{name}-{g}" for family, name, g in ROWS}

WRONG = '''"""Attends across heads instead of tokens, as a row of the seed table did."""
from torch.nn.functional import scaled_dot_product_attention

KIND, DEVICES, DTYPES = "core", ("cpu",), ("float32", "bfloat16", "float16")
MASKS, BACKWARD = ("full", "causal"), True


def attention(q, k, v, *, softmax_scale, mask):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, scale=softmax_scale)
'''


def test_a_first_repro_runs_every_stage_and_writes_every_result(finished: Finished) -> None:
    assert set(finished.first.stages) == {"probe@local", "plan", "ceiling@local", "render@local"} | (
        INPUTS | ORACLES | CHECKS | BENCHES
    )
    names = [
        "machine.json",
        "packages.json",
        "launch.json",
        "ceiling.json",
        "seed.txt",
        "report.md",
        "metrics.json",
        "plots.json",
    ]
    names += [f"tables/{table}.txt" for table in ("core-seed", "core-scaling", "module-seed", "ring-seed")]
    names += [
        "tables/core-scaling.png",
        "tables/ring-seed-loss.png",
        "tables/checks.txt",
        "tables/spread.txt",
        "tables/overhead.txt",
    ]
    names += [f"check/{name}{end}" for _, name, _ in ROWS for end in (".json", ".verdict.json")]
    names += [f"bench/{name}-{g}.json" for _, name, g in ROWS]
    assert set(finished.repo.hashes("results/local")) == {f"results/local/{name}" for name in names}
    for _, name, g in ROWS:
        records = json.loads(finished.repo.read(f"results/local/bench/{name}-{g}.json"))
        assert [record["status"] for record in records] == ["ok", "ok"], name


COUNTS_TORCH = """\
import os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            with open(os.environ["TORCH_IMPORTS"], "a") as file:
                file.write(f"{os.getpid()}\\n")

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "stage",
    [
        ("stages.bench", "core", "local", "improved", "scaling"),
        ("stages.check", "local", "improved"),
        ("stages.oracle", "core", "scaling"),
        ("stages.ceiling", "local"),
    ],
    ids=lambda stage: stage[0],
)
def test_a_stage_imports_torch_once_however_many_workers_it_has(
    tiny: Repo, tmp_path: Path, stage: tuple[str, ...]
) -> None:
    log = tmp_path / "imports"
    (tmp_path / "sitecustomize.py").write_text(COUNTS_TORCH, encoding="utf-8")
    done = tiny.run(sys.executable, "-m", *stage, PYTHONPATH=str(tmp_path), TORCH_IMPORTS=str(log))
    assert done.returncode == 0, done.stdout
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1


def test_the_times_of_a_stages_cells_add_up_to_its_wall_time(tiny: Repo) -> None:
    start = time.monotonic()
    done = tiny.run(sys.executable, "-m", "stages.bench", "core", "local", "improved", "scaling")
    most = time.monotonic() - start
    assert done.returncode == 0, done.stdout
    cells = json.loads(tiny.read("results/local/bench/improved-scaling.json"))
    told = sum(sum(cell["spent_s"].values()) for cell in cells)
    of_workers = [process["spent_s"] for cell in cells for process in cell["processes"]]
    assert len(of_workers) == 2
    assert 0 < sum(sum(one.values()) for one in of_workers) < told < most
    for one in of_workers:
        assert {"calls", "warm_up", "judging", "memory", "truth", "start", "sampling"} <= one.keys()
        assert min(one.values()) > -1e-3


def test_where_the_time_went_is_a_table_with_what_dvc_ran(tiny: Repo, finished: Finished) -> None:
    ran = [json.loads(line) for line in tiny.read(".dvc/tmp/attn-bench-stages.jsonl").splitlines()]
    assert [one["name"] for one in ran] == finished.first.stages
    assert len({one["dvc"] for one in ran}) == 1
    assert all(one["began"] < one["ended"] for one in ran)
    shown = tiny.bench("table", "overhead").stdout
    assert len(re.findall(r"^bench .* (?:seed|scaling) ", shown, re.M)) == len(ROWS)
    assert re.search(rf"DVC itself between the {len(ran)} stages", shown), shown
    assert "not recorded" not in shown


def test_a_second_repro_runs_only_probe_and_changes_no_file(tiny: Repo) -> None:
    before, status = tiny.hashes(), tiny.git("status", "--porcelain", "--ignored")
    assert "dvc.lock" in before
    again = tiny.repro()
    assert again.code == 0, again.output
    assert again.stages == ["probe@local"]
    assert tiny.hashes() == before
    assert tiny.git("status", "--porcelain", "--ignored") == status


def test_an_edit_of_a_row_reruns_that_row_and_the_one_that_imports_it(tiny: Repo) -> None:
    name, call = "attn/impl/improved.py", "    return sdpa.attention(q, k, v, softmax_scale=softmax_scale"
    tiny.edit(name, 'KIND = "core"\n', 'KIND = "core"\nONE = 1.0\n')
    tiny.edit(name, call, f"{call} * ONE")
    again = tiny.repro()
    assert again.code == 0, again.output
    assert set(again.stages) == {
        "probe@local", "plan", "check_core@local-improved", "bench_core@local-improved-seed",
        "bench_core@local-improved-scaling", "check_module@local-multihead_improved",
        "bench_module@local-multihead_improved-seed", "render@local",
    }  # fmt: skip


def test_words_rerun_no_oracle_check_or_bench(tiny: Repo) -> None:
    before = tiny.hashes("results/local")
    tiny.edit("attn/impl/improved.py", 'KIND = "core"\n', '# a remark\nKIND = "core"\n')
    tiny.edit("attn/impl/improved.py", "Shapes as in `attn.contract`; returns out, as q.", "Other words.")
    tiny.edit("bench/measure.py", '"""Run a job.', '"""Run one job.')
    tiny.edit("bench/oracle.py", "def solve(", "# a remark\ndef solve(")
    tiny.edit("params.yaml", "machine: local\n", "# a remark\n\nmachine:   local   # another\n")
    again = tiny.repro()
    assert again.code == 0, again.output
    assert again.stages == ["probe@local", "plan"]
    assert tiny.hashes("results/local") == before


def test_an_edit_of_the_judge_reruns_checks_and_benches(tiny: Repo) -> None:
    tiny.edit("bench/judge.py", "    ratio = error / budget\n", "    ratio = error * (1.0 / budget)\n")
    assert tiny.repro("plan").code == 0
    assert _changed(tiny) >= CHECKS | BENCHES
    assert not _changed(tiny) & (INPUTS | ORACLES | {"ceiling@local"})


def test_another_machine_reruns_ceiling_checks_and_benches_but_no_oracle(tiny: Repo) -> None:
    again = tiny.repro("plan", ATTN_BENCH_IMAGE="other")
    assert again.code == 0, again.output
    assert json.loads(tiny.read("results/local/machine.json"))["image"] == "other"
    assert _changed(tiny) - {"probe@local"} == {"ceiling@local", "render@local"} | CHECKS | BENCHES
    assert tiny.repro("ceiling@local", ATTN_BENCH_IMAGE="other").stages[-1] == "ceiling@local"


@pytest.fixture(scope="module")
def longer(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repo, Ran]:
    """After a seq_len more in one grid, committed."""
    repo = finished.repo.copied_to(tmp_path_factory.mktemp("longer") / "repo")
    repo.edit("params.yaml", "seq_len: [32, 64]", "seq_len: [32, 64, 96]")
    ran = repo.repro()
    repo.commit("longer")
    return repo, ran


def test_a_longer_grid_reruns_its_oracle_and_benches_only(longer: tuple[Repo, Ran]) -> None:
    _, ran = longer
    assert ran.code == 0, ran.output
    assert set(ran.stages) == {
        "probe@local", "oracle_core@scaling", "bench_core@local-improved-scaling",
        "bench_core@local-sdpa-scaling", "render@local",
    }  # fmt: skip


def test_dvc_compares_params_and_metrics_of_two_commits_on_one_screen(longer: tuple[Repo, Ran]) -> None:
    repo, _ = longer
    params = repo.run("dvc", "params", "diff", "HEAD~1", "HEAD").stdout
    assert re.search(r"params\.yaml +grids\.scaling\.seq_len +\[32, 64\] +\[32, 64, 96\]", params), params
    metrics = repo.run("dvc", "metrics", "diff", "HEAD~1", "HEAD").stdout
    assert re.search(r"relative\.scaling_core\.improved +[\d.]+ +[\d.]+ +-?[\d.]+", metrics), metrics
    for shown in (params, metrics):
        _assert_one_screen(shown)


def test_our_diff_of_two_commits_reads_what_dvc_recorded(longer: tuple[Repo, Ran]) -> None:
    repo, _ = longer
    shown = repo.bench("diff", "HEAD~1", "HEAD", "--json")
    found = json.loads(shown.stdout)
    assert shown.returncode == found["exit_code"] == 2, shown.stdout  # one process: nothing can be told
    changes = {(one["cell"]["implementation"], one["workload"]["seq_len"]): one["by"] for one in found["changes"]}
    assert changes == {("improved", n): "ratio" for n in (32, 64)} | {("sdpa", n): "time" for n in (32, 64)}
    assert {(one["implementation"], one["workload"][9:15]) for one in found["appeared"]} >= {("improved", "000096")}
    assert (len(found["not_measured_anew"]), found["went"], found["statuses"]) == (8, [], [])
    _assert_one_screen(repo.bench("diff", "HEAD~1", "HEAD").stdout)


def test_a_metrics_diff_of_the_whole_benchmark_fits_a_screen(source: Repo, tmp_path: Path) -> None:
    repo = source.copied_to(tmp_path / "repo")
    for factor in (1.0, 1.5):
        times = figures(time_ms=figure(factor), relative_time=figure(factor))
        every = records_of(grid.load(ROOT / "params.yaml"))
        found = tables.metrics([one.model_copy(update={"figures": one.figures and times}) for one in every])
        path = repo.path / "results/local/metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        repo.commit(f"times {factor}")
    shown = repo.run("dvc", "metrics", "diff", "HEAD~1", "HEAD").stdout
    assert shown.count("results/local/metrics.json") > 10, shown
    _assert_one_screen(shown)


ONE_CHANGE = [  # what stands in params.yaml, what shall stand there, what dvc says of it
    ("      sdpa: true\n", "      sdpa: true\n      tiled: true\n", r"core\.implementations\.tiled +- +True"),
    ("      improved: true\n", "", r"core\.implementations\.improved +True +-"),
    ("dtypes: true, ", "dtypes: true, decode: true, ", r"core\.grids\.decode +- +True"),
    ("seed: true, ring: true", "ring: true", r"families\.ring\.grids\.seed +True +-"),
    ("float16 is slow on CPUs", "too slow where there are", r"too slow where there are\.seq_len +- +2048"),
    ("dtype: float16, ", "dtype: bfloat16, ", r"float16 is slow on CPUs\.dtype +float16 +bfloat16"),
    ("          ring_tree_decode: true\n", "", r"one rank sends nothing\.rows\.ring_tree_decode +True +-"),
    (
        "  backward:\n",
        "  backward:\n    exclude: {in as many as 24 letters: {rows: {multihead_standard: true}}}\n",
        r"in as many as 24 letters\.rows\.multihead_standard +- +True",
    ),
    ("[512, 1024, 2048, 4096]", "[512, 1024, 2048, 4096, 8192]", r"scaling\.seq_len .*4096, 8192\]"),
    ("dtype: [float32, bfloat16, float16]", "dtype: [float32]", r"dtypes\.dtype .*\['float32'\]"),
    ("pass: [forward, forward_backward]", "pass: [forward]", r"grids\.ring\.pass .*\['forward'\]"),
    ("world_size: [2]   #", "world_size: [2, 4, 8]   #", r"grids\.ring\.world_size +\[2\] +\[2, 4, 8\]"),
    ("\nprotocol:", "  wide:\n    seq_len: [512]\n    head_dim: [64, 128]\n\nprotocol:", r"grids\.wide\.head_dim"),
    ("processes: 3 ", "processes: 5 ", r"protocol\.processes +3 +5"),
    ("module: multihead_torch\n", "module: multihead_standard\n", r"module +multihead_torch +multihead_standard"),
    ("hosts: [] ", "hosts: [node1, node2, node3, node4] ", r"launch\.hosts .*node4"),
]


def test_a_params_diff_of_any_one_change_fits_a_screen(source: Repo, tmp_path: Path) -> None:
    repo = source.copied_to(tmp_path / "repo")
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for number, (old, new, _) in enumerate(ONE_CHANGE):
        (repo.path / "params.yaml").write_text(shipped, encoding="utf-8")
        repo.commit("shipped")
        repo.git("tag", f"was{number}")
        repo.edit("params.yaml", old, new)
        grid.Params.model_validate(yaml.safe_load(repo.read("params.yaml")))
        repo.commit("changed")
        repo.git("tag", f"is{number}")
    program = (
        "from dvc.cli import main\n"
        f"for n in range({len(ONE_CHANGE)}):\n"
        "    print('=====', flush=True)\n"
        "    assert main(['params', 'diff', f'was{n}', f'is{n}']) == 0\n"
    )
    said = repo.run(sys.executable, "-c", program).stdout.split("=====\n")[1:]
    for (_, _, told), shown in zip(ONE_CHANGE, said, strict=True):
        assert re.search(told, shown), shown
        _assert_one_screen(shown)


def test_invalid_params_stop_in_probe_with_one_line_a_fault_and_touch_no_result(tiny: Repo) -> None:
    before = tiny.hashes("results") | {"dvc.lock": tiny.hashes()["dvc.lock"]}
    tiny.edit("params.yaml", "n_heads: [2, 4]", "n_heads: [2, -4]\n    heads: 3")
    tiny.edit("params.yaml", "deadline_s: 60", "deadline_s: soon")
    again = tiny.repro()
    assert again.code != 0
    assert again.stages == ["probe@local"]
    faults = [line for line in again.output.splitlines() if line.startswith("params.yaml: ")]
    assert [fault.split()[1].rstrip(":") for fault in faults] == [
        "grids.seed.n_heads[1]", "grids.seed.heads", "protocol.deadline_s",
    ]  # fmt: skip
    assert "grids.seed.n_heads[1] = -4, allowed: a whole number above 0" in faults[0]
    assert tiny.hashes("results") | {"dvc.lock": tiny.hashes()["dvc.lock"]} == before


def test_an_unknown_row_stops_in_probe_with_the_nearest_name(tiny: Repo) -> None:
    before = tiny.hashes("results")
    tiny.edit("params.yaml", "{improved: true, sdpa: true}", "{improvd: true, sdpa: true}")
    again = tiny.repro()
    assert again.code != 0
    assert again.stages == ["probe@local"]
    assert "no file attn/impl/improvd.py, did you mean improved?" in again.output
    assert tiny.hashes("results") == before


def test_publish_copies_and_never_overwrites_and_another_machine_is_refused(tiny: Repo) -> None:
    assert tiny.bench("publish", "lab").returncode == 0
    ours = {name.removeprefix("results/local/"): one for name, one in tiny.hashes("results/local").items()}
    lab = tiny.hashes("results/lab")
    assert {name.removeprefix("results/lab/"): one for name, one in lab.items()} == ours
    again = tiny.bench("publish", "lab")
    assert again.returncode == 2
    assert "results/lab is there already" in again.stdout
    tiny.edit("params.yaml", "machine: local", "machine: lab")
    refused = tiny.repro(ATTN_BENCH_IMAGE="other")
    assert refused.code != 0
    assert refused.stages == ["probe@lab"]
    assert "results/lab/machine.json was measured on another machine" in refused.output
    assert "image 'unavailable' there, 'other' here" in refused.output
    assert "set machine: local, or a new name" in refused.output
    assert tiny.hashes("results/lab") == lab


@pytest.fixture(scope="module")
def faulty(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repo, Ran]:
    """With a row that cannot be parsed and one that computes something else."""
    repo = finished.repo.copied_to(tmp_path_factory.mktemp("faulty") / "repo")
    (repo.path / "attn/impl/broken.py").write_text('KIND = "core"\ndef attention(:\n', encoding="utf-8")
    (repo.path / "attn/impl/wrong.py").write_text(WRONG, encoding="utf-8")
    rows = "{improved: true, broken: true, wrong: true, sdpa: true}"
    repo.edit("params.yaml", "{improved: true, sdpa: true}", rows)
    return repo, repo.repro()


def test_new_rows_are_all_that_runs_whatever_is_wrong_with_them(faulty: tuple[Repo, Ran]) -> None:
    _, ran = faulty
    assert ran.code == 0, ran.output
    new = {f"check_core@local-{name}" for name in ("broken", "wrong")}
    new |= {f"bench_core@local-{name}-{g}" for name, g in product(("broken", "wrong"), ("seed", "scaling"))}
    assert set(ran.stages) == {"probe@local", "plan", "render@local"} | new


def test_a_row_that_cannot_be_parsed_says_so_and_the_others_have_times(faulty: tuple[Repo, Ran]) -> None:
    repo, _ = faulty
    seed = repo.read("results/local/seed.txt")
    assert len(re.findall(r"^\| broken .*\| N/A .*\| ✗", seed, re.MULTILINE)) == 2, seed
    assert len(re.findall(r"^✗ broken .*: broken file broken\.py: line 2: invalid syntax$", seed, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| improved .*\| \d+\.\d\d .*\| ✓", seed, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| ring_v2_collective .*\| ✓", seed, re.MULTILINE)) == 2
    table = repo.read("results/local/tables/core-scaling.txt")
    assert len(re.findall(r"^✗ broken .* line 2: invalid syntax$", table, re.MULTILINE)) == 2, table


def test_a_wrong_row_is_incorrect_with_its_case_and_error_and_gets_no_time(faulty: tuple[Repo, Ran]) -> None:
    repo, _ = faulty
    report = json.loads(repo.read("results/local/check/wrong.json"))
    assert report["status"] == "incorrect"
    assert re.search(r"b01_h02_s000001_\S+: out is off by .* times the budget of", report["reason"])
    for g in ("seed", "scaling"):
        for record in json.loads(repo.read(f"results/local/bench/wrong-{g}.json")):
            assert (record["status"], record["figures"], record["processes"]) == ("incorrect", None, [])
            assert re.fullmatch(r"wrong in \d of \d cases, the first b01_h02_s000001_\S+", record["reason"])
    seed = repo.read("results/local/seed.txt")
    assert len(re.findall(r"^\| wrong .*\| N/A +\| N/A +\| N/A +\| ✗", seed, re.MULTILINE)) == 2, seed
    told = r"wrong .*: incorrect: wrong in \d of \d cases, the first b01_h02_s000001_\S+: out is off by \S+ at row "
    texts = {"seed.txt": 2, "tables/core-seed.txt": 2, "tables/core-scaling.txt": 2, "report.md": 6}
    for name, cells in texts.items():
        text = repo.read(f"results/local/{name}")
        assert len(re.findall(f"^✗ {told}", text, re.MULTILINE)) == cells, text
    assert len(re.findall(f"^{told}", repo.bench("gate").stdout, re.MULTILINE)) == 4
    verdict = repo.read("results/local/check/wrong.verdict.json")
    assert "off by" not in verdict, "a figure that moves would measure again"


def test_the_gate_fails_on_a_wrong_row_and_passes_without_one(faulty: tuple[Repo, Ran], finished: Finished) -> None:
    gate = faulty[0].bench("gate")
    assert gate.returncode == 1
    assert len(re.findall(r"^wrong \w+ .*: incorrect: ", gate.stdout, re.MULTILINE)) == 4, gate.stdout
    clean = finished.repo.bench("gate")
    assert clean.returncode == 0, clean.stdout


def _changed(repo: Repo) -> set[str]:
    """Stages of dvc.yaml; `dvc status` tells of the kernels' build, which nothing here has run, too."""
    found = json.loads(repo.run("dvc", "status", "--json").stdout.splitlines()[-1])
    return {stage for stage in found if not stage.startswith("build/")}


def _assert_one_screen(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= 45, f"{len(lines)} lines\n{text}"
    assert max(map(len, lines)) <= 100, text
