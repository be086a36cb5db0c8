"""Results that travel: remotes, clones, branches, merges, and rows that are gone. As a user types it."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from conftest import Finished, Ran, Repo
from moto.server import ThreadedMotoServer

from bench import blocks, merge

CODE = {"improved": "attn/impl/improved.py", "ring_v2_collective": "attn/impl/ring_v2_collective.py"}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test", "AWS_DEFAULT_REGION": "us-east-1"}
ALWAYS = {"probe@local", "plan", "render@local"}


def dvc(repo: Repo, *arguments: str, **environment: str) -> str:
    """What dvc prints; it must succeed."""
    done = repo.run("dvc", *arguments, **environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def cloned(repo: Repo, folder: Path) -> Repo:
    """What someone else has after `git clone`."""
    repo.git("clone", "-q", str(repo.path), str(folder))
    return Repo(folder)


def measured(ran: Ran) -> set[str]:
    """Stages of a run that took more than looking."""
    assert ran.code == 0, ran.output
    return set(ran.stages) - ALWAYS


def oracles(repo: Repo) -> dict[str, str]:
    return {name: digest for name, digest in repo.hashes().items() if name.startswith("data/")}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server of this test's own, with the bucket `results`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    client.create_bucket(Bucket="results")
    yield address
    server.stop()


@pytest.mark.pipeline
def test_pushed_to_a_folder_and_pulled_elsewhere_nothing_is_measured_again(tiny: Repo, tmp_path: Path) -> None:
    dvc(tiny, "remote", "add", "--default", "shared", str(tmp_path / "shared"))
    tiny.commit("a remote")
    dvc(tiny, "push")
    there = cloned(tiny, tmp_path / "there")
    assert oracles(there) == {}
    dvc(there, "pull", "--force")
    assert oracles(there) == oracles(tiny) != {}
    again = there.repro()
    assert (again.code, again.stages) == (0, ["probe@local"]), again.output
    assert there.git("status", "--short") == ""


@pytest.mark.pipeline
def test_on_another_identity_only_measurements_run_and_no_secret_is_recorded(tiny: Repo, tmp_path: Path) -> None:
    dvc(tiny, "remote", "add", "--default", "shared", str(tmp_path / "shared"))
    tiny.commit("a remote")
    dvc(tiny, "push")
    there = cloned(tiny, tmp_path / "there")
    dvc(there, "pull", "--force")
    assert there.repro("ceiling@local", ATTN_BENCH_IMAGE="another", **KEYS).code == 0
    changed = json.loads(dvc(there, "status", "--json").splitlines()[-1])
    ours = [stage for stage in changed if not stage.startswith("build/")]  # the kernels' build is nobody's measurement
    again = {stage.partition("_")[0].partition("@")[0] for stage in ours}
    assert again == {"probe", "check", "bench", "render"}
    tell = [
        path
        for path in there.path.rglob("*")
        if path.is_file() and path.name != Path(__file__).name
        if KEYS["AWS_SECRET_ACCESS_KEY"].encode() in path.read_bytes()
    ]
    assert tell == []


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", ["bench core local sdpa seed", "check local sdpa", "ceiling local"])
def test_a_stage_on_other_hardware_than_probe_saw_is_refused_and_leaves_all_as_it_was(tiny: Repo, stage: str) -> None:
    path = tiny.path / "results/local/machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cpu_count": 999}), encoding="utf-8")
    before = tiny.hashes()
    module, *arguments = stage.split()
    done = tiny.run(sys.executable, "-m", f"stages.{module}", *arguments)
    assert done.returncode == 1
    assert "probe saw other hardware than this stage (cpu_count 999 there, " in done.stdout
    assert done.stdout.count("\n") == 1
    assert tiny.hashes() == before


@pytest.mark.pipeline
def test_pushed_to_s3_and_pulled_elsewhere(tiny: Repo, tmp_path: Path, s3: str) -> None:
    dvc(tiny, "remote", "add", "--default", "bucket", "s3://results/attn-bench")
    dvc(tiny, "remote", "modify", "bucket", "endpointurl", s3)
    tiny.commit("a remote")
    assert "file" in dvc(tiny, "push", **KEYS)
    there = cloned(tiny, tmp_path / "there")
    dvc(there, "pull", "--force", **KEYS)
    assert oracles(there) == oracles(tiny) != {}
    assert dvc(there, "status", "--cloud", **KEYS).strip().endswith("in sync.")


@pytest.mark.pipeline
def test_an_experiment_and_what_branches_differ_in_are_shown_as_typed(tiny: Repo) -> None:
    dvc(tiny, "exp", "run", "-S", "grids.scaling.seq_len=[32]", "--name", "shorter")
    assert "# " not in tiny.git("diff", "--", "params.yaml") or "seq_len: [32]" in tiny.read("params.yaml")
    assert re.search(r"scaling\.seq_len +\[32, 64\] +\[32\]", dvc(tiny, "params", "diff"))
    assert "shorter" in dvc(tiny, "exp", "show", "--only-changed", "--no-pager", "--csv")
    tiny.git("checkout", "-q", "-b", "shorter-scaling")
    tiny.commit("a shorter grid")
    assert re.search(r"scaling\.seq_len +\[32, 64\] +\[32\]", dvc(tiny, "params", "diff", "main", "shorter-scaling"))
    assert "scaling_core" in dvc(tiny, "metrics", "diff", "main", "shorter-scaling")
    page = dvc(tiny, "plots", "diff", "main", "shorter-scaling", "--out", "page").strip()
    drawn = Path(page.removeprefix("file://")).read_text(encoding="utf-8")
    assert "main" in drawn
    assert "shorter-scaling" in drawn


@pytest.fixture(scope="module")
def branches(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """Two branches of the finished pipeline: each edited another row and measured it; both measured `sdpa` again."""
    repo = finished.repo.copied_to(tmp_path_factory.mktemp("branches") / "repo")
    for branch, row in (("one", "improved"), ("two", "ring_v2_collective")):
        repo.git("checkout", "-q", "-B", branch, "main")
        path = repo.path / CODE[row]
        path.write_text(path.read_text(encoding="utf-8") + "\n_EDITED = True\n", encoding="utf-8")
        assert any(row in stage for stage in measured(repo.repro()))
        again = repo.run("dvc", "repro", "--force", "--single-item", "bench_core@local-sdpa-seed")
        assert again.returncode == 0, again.stdout
        repo.commit(f"{row} edited and measured")
    return repo


def tell_git(repo: Repo) -> None:
    """`make merge-driver`, with the environment of these tests instead of the one that make would set up."""
    ours = Path(sys.executable).parent
    done = repo.run("make", "merge-driver", "VENV=none", f"BIN={ours}", "--assume-old=none/.runtime")
    assert done.returncode == 0, done.stdout


@pytest.mark.pipeline
def test_a_merge_of_two_measured_branches_measures_nothing_again(branches: Repo, tmp_path: Path) -> None:
    repo = branches.copied_to(tmp_path / "repo")
    repo.git("checkout", "-q", "one")
    tell_git(repo)
    ours = repo.read("results/local/bench/sdpa-seed.json")
    merged = repo.run("git", "merge", "--no-edit", "two")
    assert merged.returncode == 0, merged.stdout
    assert "dvc.lock: both branches ran bench_core@local-sdpa-seed; this branch's is kept" in merged.stdout
    assert "results/local/bench/sdpa-seed.json: both branches measured it; this branch's is kept" in merged.stdout
    assert repo.read("results/local/bench/sdpa-seed.json") == ours
    assert measured(repo.repro()) == set()
    for row in CODE:
        theirs = branches.git("show", f"{'one' if row == 'improved' else 'two'}:results/local/bench/{row}-seed.json")
        assert json.loads(repo.read(f"results/local/bench/{row}-seed.json")) == json.loads(theirs)


@pytest.mark.pipeline
def test_prune_removes_what_a_removed_row_and_grid_left_behind_and_nothing_else(tiny: Repo) -> None:
    kept = tiny.path / "results/elsewhere/bench/improved-seed.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("[]\n", encoding="utf-8")
    before = tiny.hashes()
    tiny.edit("params.yaml", "implementations: {improved: true, sdpa: true}", "implementations: {sdpa: true}")
    tiny.edit("params.yaml", "grids: {seed: true, scaling: true}", "grids: {seed: true}")
    looked = tiny.bench("prune", "--dry-run")
    assert looked.returncode == 0, looked.stdout
    assert {name: digest for name, digest in tiny.hashes().items() if name != "params.yaml"} == {
        name: digest for name, digest in before.items() if name != "params.yaml"
    }
    pruned = tiny.bench("prune")
    assert pruned.stdout.startswith(looked.stdout)
    gone = before.keys() - tiny.hashes().keys()
    results = {f"results/local/bench/{name}.json" for name in ("improved-seed", "improved-scaling", "sdpa-scaling")}
    results |= {f"results/local/check/improved{end}.json" for end in ("", ".verdict")}
    assert {name for name in gone if not name.startswith("data/oracle/core/scaling/")} == results
    assert not (tiny.path / "data/oracle/core/scaling").exists()
    stages = blocks.split(tiny.read("dvc.lock"))
    assert [stage for stage in stages if "improved" in stage.split("-") or "scaling" in stage] == []
    assert "9 entries" not in pruned.stdout
    assert tiny.bench("prune").stdout == "0 files and folders and 0 entries of dvc.lock removed\n"
    assert measured(tiny.repro()) == set()
    assert kept.exists()


LOCK = (
    "schema: '2.0'\nstages:\n"
    "  a:\n    cmd: python -m a\n    outs:\n    - path: x\n      md5: {0}\n"
    "  b@one:\n    cmd: {1}\n"
)


@pytest.mark.parametrize(
    ("ours", "theirs", "merged", "both"),
    [
        (("1", "b"), ("1", "b"), ("1", "b"), []),
        (("2", "b"), ("1", "c"), ("2", "c"), []),
        (("1", "c"), ("2", "b"), ("2", "c"), []),
        (("2", "b"), ("3", "b"), ("2", "b"), ["a"]),
        (("2", "b"), ("2", "b"), ("2", "b"), []),
    ],
)
def test_a_stage_comes_from_the_side_that_ran_it(ours, theirs, merged, both):
    assert merge.lock(LOCK.format("1", "b"), LOCK.format(*ours), LOCK.format(*theirs)) == (LOCK.format(*merged), both)


def test_stages_that_came_or_went_on_one_side():
    base, new = LOCK.format("1", "b"), "  c:\n    cmd: c\n"
    without = base[: base.index("  b@one")]
    assert merge.lock(base, without, base + new) == (without + new, [])
    assert merge.lock(base, base + new, without) == (without + new, [])
    assert merge.lock(base, without, LOCK.format("1", "changed")) == (LOCK.format("1", "changed"), [])
    assert merge.lock("", base, base + new) == (base + new, [])


@pytest.fixture
def parted(source: Repo, tmp_path: Path) -> Repo:
    """Two branches of made-up records: each ran a stage of its own, both ran a third; on the first of them."""
    repo = source.copied_to(tmp_path / "parted")
    stages = {"bench_core@local-a-seed": "1", "bench_core@local-b-seed": "1", "bench_core@local-c-seed": "1"}

    def record(branch: str, ran: str) -> None:
        repo.git("checkout", "-q", "-B", branch, "main")
        text = "schema: '2.0'\nstages:\n"
        for stage in stages:
            row = stage.split("-")[1]
            said = branch if row in ran else "main"
            text += f"  {stage}:\n    cmd: bench {row}\n    outs:\n    - path: {row}\n      md5: {said}\n"
            path = repo.path / f"results/local/bench/{row}-seed.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'["{said}"]\n', encoding="utf-8")
        (repo.path / "dvc.lock").write_text(text, encoding="utf-8")
        repo.commit(branch)

    record("main", "abc")
    record("two", "bc")
    record("one", "ac")
    return repo


def _told(repo: Repo) -> list[tuple[str, str]]:
    """(what dvc.lock says, what the record says) of each row."""
    lock = blocks.split(repo.read("dvc.lock"))
    records = (json.loads(repo.read(f"results/local/bench/{row}-seed.json")) for row in "abc")
    return [(text.split()[-1], said) for text, [said] in zip(lock.values(), records, strict=True)]


def test_git_takes_each_stage_with_its_record_from_the_branch_that_ran_it(parted: Repo) -> None:
    tell_git(parted)
    merged = parted.run("git", "merge", "--no-edit", "two")
    assert merged.returncode == 0, merged.stdout
    assert _told(parted) == [("one", "one"), ("two", "two"), ("one", "one")]
    assert "dvc.lock: both branches ran bench_core@local-c-seed; this branch's is kept" in merged.stdout
    assert "results/local/bench/c-seed.json: both branches measured it; this branch's is kept" in merged.stdout


def test_a_merge_that_stopped_for_want_of_the_driver_is_taken_up_again(parted: Repo) -> None:
    stopped = parted.run("git", "merge", "--no-edit", "two")
    assert "CONFLICT (content): Merge conflict in dvc.lock" in stopped.stdout
    tell_git(parted)
    parted.git("checkout", "--merge", "--", "dvc.lock", "results")
    parted.git("add", "dvc.lock", "results")
    parted.git("commit", "-q", "--no-edit")
    assert _told(parted) == [("one", "one"), ("two", "two"), ("one", "one")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<<<<<<< ours\n" + LOCK.format("1", "b"), "not valid YAML"),
        (LOCK.format("1", "b")[:-3], "not whole"),
        ("schema: '1.0'\nstages: {}\n", "of another schema than 2.0"),
        ("schema: '2.0'\nstages:\n    a: {cmd: x}\n", "do not begin where DVC begins them"),
    ],
)
def test_what_is_no_lock_is_refused_and_left_alone(tmp_path, capsys, text, said):
    paths = [tmp_path / name for name in ("base", "ours", "theirs")]
    for path, content in zip(paths, (text, LOCK.format("2", "b"), LOCK.format("3", "b")), strict=True):
        path.write_text(content, encoding="utf-8")
    assert merge.main(["lock", *map(str, paths)]) == 1
    assert said in capsys.readouterr().err
    assert paths[1].read_text(encoding="utf-8") == LOCK.format("2", "b")


def test_a_lock_is_split_into_its_stages_and_joined_to_the_same_bytes(finished: Finished) -> None:
    text = finished.repo.read("dvc.lock")
    found = blocks.split(text)
    assert blocks.join(found) == text
    assert {"probe@local", "plan", "bench_core@local-sdpa-seed", "cases@core"} <= found.keys()
