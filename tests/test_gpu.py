"""`python -m bench gpu`, on a CPU and a tiny grid: the same code that a GPU runs, but for what only a GPU has."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PARAMS, Repo

from attn import registry
from attn.contract import Unsupported
from attn.kernels.flash import configs
from bench import gpu, grid, records

ROWS_TOO = "{improved: true, sdpa: true, flash_attn_2: true, triton_flash_tf32: true}"
TRIAL = PARAMS.replace("{improved: true, sdpa: true}", ROWS_TOO)
TRIAL = TRIAL.replace("scaling:\n    seq_len: [32, 64]", "scaling:\n    seq_len: [32, 64]\n    dtype: [bfloat16]")
RUN = ("gpu", "--grid", "trial.yaml", "--device", "cpu", "--machine", "trial")
ROWS = [("improved", "seed"), ("sdpa", "seed"), ("flash_attn_2", "scaling"), ("multihead_improved", "seed")]


@pytest.fixture
def repo(source: Repo, tmp_path: Path) -> Repo:
    repo = source.copied_to(tmp_path / "repo")
    (repo.path / "trial.yaml").write_text(TRIAL, encoding="utf-8")
    return repo


def read(repo: Repo, name: str, grid_name: str) -> list[records.Record]:
    return records.read(records.bench_path(repo.path / "results" / "trial", name, grid_name))


@pytest.mark.pipeline
@pytest.mark.mpi
def test_it_judges_and_measures_grid_by_grid_and_the_same_tables_read_it(repo: Repo) -> None:
    done = repo.bench(*RUN)
    assert done.returncode == 0, done.stdout
    found = {name: read(repo, *name) for name in ROWS}
    assert [one.status for name in ROWS if name[0] != "flash_attn_2" for one in found[name]] == ["ok"] * 6
    (none, _) = found["flash_attn_2", "scaling"]
    assert (none.status, none.reason) == ("unsupported", "device cpu is not among cuda")
    assert [one.world_size for one in read(repo, "ring_v2_collective", "seed")] == [1, 1]
    assert not (repo.path / "results/trial/bench/flash_attn_2-seed.json").exists()  # nothing of it is float32
    assert read(repo, "triton_flash_tf32", "seed")[0].precision == "tf32"
    assert json.loads(repo.read("results/trial/machine.json"))["device"] == "cpu"
    judged = json.loads(repo.read("results/trial/check/improved.json"))
    assert judged["status"] == "ok"
    assert {(one["dtype"], one["head_dim"]) for one in judged["cases"]} <= {("float32", 64), ("bfloat16", 64)}
    shown = repo.bench("table", "--params", "trial.yaml", "--machine", "trial", "--details").stdout
    assert shown in done.stdout
    for words in ("core-seed", "module-seed", "ring-seed", "needs", "products in tf32"):
        assert words in shown or words == "needs"
    assert not (repo.path / "results/local").exists()

    over = repo.bench(*RUN, "--budget", "0.5", "--fresh")
    assert over.returncode == 0, over.stdout
    left = [one for name in ROWS for one in read(repo, *name)]
    assert {one.status for one in left} == {"not_measured"}
    assert {one.reason for one in left} == {"not reached: the time that was given was over"}


@pytest.mark.pipeline
def test_interrupted_it_keeps_its_records_and_goes_on(repo: Repo) -> None:
    command = [sys.executable, "-m", "bench", *RUN]
    log = repo.path.parent / "log"
    first = repo.path / "results/trial/bench/improved-seed.json"
    with log.open("w", encoding="utf-8") as file:
        running = subprocess.Popen(command, cwd=repo.path, env=repo.environment(), stdout=file, stderr=file)
        for _ in range(1200):
            if first.exists() or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        code = running.wait(60)
    assert code == 130, log.read_text(encoding="utf-8")
    assert "interrupted; results/trial has what was measured" in log.read_text(encoding="utf-8")
    before = read(repo, "improved", "seed")
    assert [one.status for one in before] == ["ok", "ok"]
    done = repo.bench(*RUN)
    assert done.returncode == 0, done.stdout
    assert "kept from before" in done.stdout
    assert [one.processes for one in read(repo, "improved", "seed")] == [one.processes for one in before]
    assert (repo.path / "results/trial/bench/ring_v2_collective-seed.json").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--device", "cpu"), "--machine local, allowed: letters, digits, _ and -, and not local; needed where no GPU"),
        (("--device", "cpu", "--machine", "a/b"), "--machine a/b, allowed: letters"),
        (("--grid", "none.yaml"), "none.yaml: no such file"),
        (("--device", "cuda"), "torch sees no CUDA device here"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(repo: Repo, asked: tuple[str, ...], words: str) -> None:
    done = repo.bench("gpu", "--grid", "trial.yaml", *asked)
    assert done.returncode == 2
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert not (repo.path / "results").exists()


@pytest.mark.parametrize(
    ("package", "words"), [("safetensors", "lacks safetensors: install"), ("pydantic", "lacks the package pydantic")]
)
def test_a_python_that_lacks_a_package_is_told_so_in_one_sentence(package: str, words: str) -> None:
    """Real: an import that finds nothing, as where it is not installed."""
    program = f"""
import sys
class Nothing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == {package!r} else found(name)
sys.argv = ["bench", "gpu", "--device", "cpu", "--machine", "trial"]
import runpy
runpy.run_module("bench", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_file_of_make_gpu_is_valid_and_has_the_grid_that_was_promised() -> None:
    params = grid.load(Path("gpu.yaml"))
    shapes = {w for name in params.families.core.grids for w in params.grids[name].workloads()}
    bf16 = {(w.seq_len, w.head_dim, w.mask, w.pass_) for w in shapes if w.dtype == "bfloat16"}
    wanted = [(s, d) for s in (512, 1024, 2048, 4096, 8192, 16384) for d in (64, 128)]
    assert bf16 == {(*sd, m, p) for sd in wanted for m in ("full", "causal") for p in ("forward", "forward_backward")}
    others = {n for n, row in registry.find().items() if row.kind == "core" and row.devices == ("cuda",)}
    assert others <= set(params.families.core.implementations)


def test_a_gpu_gives_its_folder_a_name() -> None:
    assert gpu._name_of("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu._name_of("unavailable") == "local"


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine found of the configurations of one key, the second of which is the faster."""
    key = "forward/sm_90/bfloat16/d64"
    first, second = configs.passed()[key]
    path = tmp_path / "configurations.json"
    path.write_text(json.dumps({key: {first: 2.0, second: 1.0, "m999n999w4s1": 0.1}}), encoding="utf-8")
    monkeypatch.setenv(configs.TUNED, str(path))
    configs.order.cache_clear()
    yield path
    configs.order.cache_clear()


def test_the_fastest_of_those_that_passed_is_chosen_by_name_and_what_failed_or_never_passed_is_not(timed: Path) -> None:
    key = "forward/sm_90/bfloat16/d64"
    first, second = configs.passed()[key]
    assert configs.order()[key] == [second, first]
    assert configs.order()["dq/sm_90/bfloat16/d64"] == configs.passed()["dq/sm_90/bfloat16/d64"]
    timed.write_text(json.dumps({key: {first: "OutOfResources: shared memory", second: 1.0}}), encoding="utf-8")
    configs.order.cache_clear()
    assert configs.order()[key] == [second]


@pytest.mark.usefixtures("timed")
def test_what_was_chosen_is_noted_for_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn.kernels.flash import host

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(configs, "CHOSEN", {})
    q = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.bfloat16, shape=(1, 64, 2, 64))
    key = "forward/sm_90/bfloat16/d64"
    found = host.choose("forward", q)
    assert configs.CHOSEN == {key: found.name} == {key: configs.passed()[key][1]}
    monkeypatch.setattr(configs, "FORCED", {key: configs.passed()[key][0]})
    assert host.choose("forward", q).name == configs.passed()[key][0]
    monkeypatch.setattr(configs, "passed", dict)
    configs.order.cache_clear()
    with pytest.raises(Unsupported, match="no configuration of forward/sm_90/tf32/d256"):
        host.choose(
            "forward", SimpleNamespace(**{**vars(q), "dtype": torch.float32, "shape": (1, 64, 2, 256)}), (), "tf32"
        )
