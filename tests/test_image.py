"""What can be known of the image and of cluster/ without building or starting them; `make image-test` does."""

import copy
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
ENTRYPOINT = ROOT / "docker/entrypoint.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCHEMA = json.loads((ROOT / "tests/data/mpijob-v2beta1.schema.json").read_text(encoding="utf-8"))
MPIJOB = yaml.safe_load((ROOT / "cluster/mpijob.yaml").read_text(encoding="utf-8"))
SCRIPTS = [*ROOT.glob("docker/*.sh"), ROOT / "docker/run", *ROOT.glob("cluster/*.sh"), ROOT / "cluster/slurm.sbatch"]


@pytest.fixture
def entrypoint(tmp_path):
    """Run the entrypoint in a folder, as the image does: (exit code, stdout, stderr)."""
    (tmp_path / "work").mkdir()

    def run(*command, where=tmp_path / "work", **environment):
        kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "cache/home"), "TMPDIR": str(tmp_path / "cache/tmp")}
        done = subprocess.run(
            [ENTRYPOINT, *command], cwd=where, env={**kept, "ATTN_BENCH_MIN_SHM_MIB": "0", **environment},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_entrypoint_runs_what_it_is_given_with_its_exit_code(entrypoint, tmp_path):
    assert entrypoint("sh", "-c", 'echo "$1 in $PWD"; exit 7', "x", "a b") == (7, f"a b in {tmp_path}/work\n", "")


def test_given_nothing_it_runs_dvc_repro(entrypoint, tmp_path):
    (tmp_path / "work/dvc.yaml").touch()
    (tmp_path / "dvc").write_text('#!/bin/sh\necho "dvc $*"\n')
    (tmp_path / "dvc").chmod(0o755)
    assert entrypoint(PATH=f"{tmp_path}:{os.environ['PATH']}") == (0, "dvc repro\n", "")


@pytest.mark.parametrize("command", [[], ["dvc", "repro"], ["make", "bench"], ["python", "-m", "bench", "list"]])
def test_without_a_clone_it_says_what_to_mount(entrypoint, tmp_path, command):
    code, out, err = entrypoint(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there is no dvc.yaml in {tmp_path}/work: mount a clone of the repository there" in err


def test_too_little_shared_memory_is_refused_with_both_numbers_and_the_options(entrypoint):
    code, _, err = entrypoint("true", ATTN_BENCH_MIN_SHM_MIB="99999999")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(r"/dev/shm has \d+ MiB, ranks need at least 99999999: --ipc=host, or --shm-size=", err)
    assert entrypoint("true", ATTN_BENCH_MIN_SHM_MIB="99999999", ATTN_BENCH_SHM="/nowhere")[2].count("has 0 MiB") == 1


def test_a_cache_that_cannot_be_written_is_refused(entrypoint, tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, _, err = entrypoint("true")
    assert (code, err.count("\n")) == (2, 1)
    assert "mount a volume at /cache" in err


@pytest.fixture
def docker_run(tmp_path):
    """docker/run with an engine that prints what it is asked for: its words."""

    def run(*command, **environment):
        engine = tmp_path / "docker"
        engine.write_text(
            '#!/bin/sh\nif [ "$1 $2" = "image inspect" ]; then echo repo@sha256:1; else printf "%s\\n" "$@"; fi\n'
        )
        engine.chmod(0o755)
        done = subprocess.run(
            [ROOT / "docker/run", *command], env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
            capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_docker_run_mounts_the_clone_as_ones_own_user_and_records_the_digest(docker_run):
    said = docker_run("dvc", "repro", "-s", "a b", OPTIONS="--shm-size 8g")
    pairs = set(itertools.pairwise(said))
    assert said[-5:] == ["attn-bench", "dvc", "repro", "-s", "a b"]
    assert {("-v", f"{ROOT}:/work"), ("-e", "ATTN_BENCH_IMAGE=repo@sha256:1")} <= pairs
    assert ("--user", f"{os.getuid()}:{os.getgid()}") in pairs
    assert ("--shm-size", "8g") in pairs
    assert {"--rm", "--init", "--read-only", "--ipc=host"} <= set(said)


def test_gpus_are_asked_for_where_there_are_some_in_the_engines_own_words(docker_run, tmp_path):
    assert "--gpus" not in docker_run()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    said = docker_run()
    assert said[said.index("--gpus") + 1] == "all"


def test_docker_run_without_an_engine_says_so():
    done = subprocess.run(
        [ROOT / "docker/run"],
        env={"PATH": "/usr/bin:/bin", "ENGINE": "no-engine"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no no-engine here" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script):
    first = script.read_text(encoding="utf-8").splitlines()[0]
    shell = "sh" if first == "#!/bin/sh" else "bash"
    assert subprocess.run([shell, "-n", script], timeout=30, check=False).returncode == 0


def test_every_stage_ends_as_a_user_that_is_not_root_and_the_base_has_a_full_name():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    ends = {re.search(r"AS (\w+)", stage)[1]: re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages}
    assert ends == {"base": [], "test": ["10001"], "code": [], "cluster": ["10001"], "runtime": ["10001"]}
    assert list(ends)[-1] == "runtime"  # what is built where no stage is named
    assert re.search(r"^ARG BASE_IMAGE=docker\.io/nvidia/cuda:13\.0\.\d+-devel-ubuntu24\.04$", DOCKERFILE, re.MULTILINE)


def test_every_lock_that_is_not_torchs_is_installed_with_hashes():
    installs = re.findall(r"pip install ([^\n\\]*)", DOCKERFILE)
    assert len(installs) == 5
    assert [line for line in installs if "--require-hashes" not in line] == [
        '--no-cache-dir ${TORCH_OPTIONS} -r "${TORCH}"'
    ]


def test_what_git_ignores_and_what_is_secret_stays_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines():
        name = line.rstrip("/")
        assert {name, f"**/{name}", name.split("/")[0]} & set(ignored), f"{line} is not in .dockerignore"
    assert {".git", ".dvc/config.local", "**/.env", "**/.netrc", "**/*.key", "**/*.pem"} <= set(ignored)


def faults(document):
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(document)]


def test_the_mpijob_fits_the_schema_of_v2beta1():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert faults(MPIJOB) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("apiVersion",), "kubeflow.org/v1"),
        (("spec", "mpiImplementation"), "mpich"),
        (("spec", "cleanPodPolicy"), "Running"),
        (("spec", "mpiReplicaSpecs", "Launcher", "replicas"), 2),
        (("spec", "mpiReplicaSpecs", "Worker", "template", "spec", "containers"), []),
        (("spec", "mpiReplicaSpecs", "Worker", "template", "spec", "hostIpc"), True),
    ],
)
def test_an_mpijob_that_the_operator_would_refuse_does_not_fit(place, value):
    wrong = copy.deepcopy(MPIJOB)
    parent = wrong
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    assert len(faults(wrong)) >= 1


def test_the_mpijob_and_the_image_agree():
    sshd = (ROOT / "docker/sshd_config").read_text(encoding="utf-8")
    port = int(re.search(r"^Port (\d+)", sshd, re.MULTILINE)[1])
    keys = MPIJOB["spec"]["sshAuthMountPath"]
    assert f"HostKey {keys}/id_rsa" in sshd
    assert f"Port {port}" in (ROOT / "docker/ssh_config").read_text(encoding="utf-8")
    for kind, replica in MPIJOB["spec"]["mpiReplicaSpecs"].items():
        pod = replica["template"]["spec"]
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/work", "/cache", "/dev/shm"}
        assert "attn-bench_sshd_config" in " ".join(container["command"])
        assert (kind != "Worker") or container["readinessProbe"]["tcpSocket"]["port"] == port
