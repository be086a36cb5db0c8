# shellcheck shell=bash disable=SC2154  # what docker/test.sh, which reads this, has set
# The images in use. No network, nothing writable but /work and a cache, users that the image has no name for.

run() {
  podman --runtime runc run --rm --init --network none --read-only --read-only-tmpfs=false \
    --ulimit nofile=8192:8192 --ulimit nproc=8192:8192 "$@"
}
refused() { # SENTENCE OPTIONS...
  local said code=0
  said=$(run "${@:2}" 2>&1) || code=$?
  [ "$code" = 2 ] && [ "$(wc -l <<<"$said")" = 1 ] && [[ $said == *"$1"* ]] ||
    fail "the entrypoint should have refused with one sentence holding \"$1\"; exit $code: $said"
}
runtime=localhost/attn-bench:runtime test=localhost/attn-bench:test

step "refusals"
mkdir -p "$W/work/foreign" "$W/work/closed"
touch "$W/work/foreign/dvc.yaml"
chown 4321:4321 "$W/work/foreign"
refused "mount a clone of the repository" --shm-size 1g "$runtime"
refused "/dev/shm has 62 MiB, ranks need at least 1024" --shm-size 62m "$runtime"
refused "--user 4321:4321" --shm-size 1g -v "$W/work/foreign:/work" "$runtime"
refused "mount a volume at /cache" --shm-size 1g -v "$W/work/closed:/cache" "$runtime"

step "what is in the image"
run --shm-size 1g "$runtime" sh -c 'cd /opt/attn-bench && find . -type f -printf "%P\0"' | LC_ALL=C sort -z >"$W/inside"
LC_ALL=C sort -z "$W/tracked" | cmp -s - "$W/inside" ||
  fail "the image does not hold exactly what git does: $(LC_ALL=C sort -z "$W/tracked" | comm -z3 - "$W/inside" | tr '\0' ' ')"
label() { podman image inspect --format "{{index .Config.Labels \"$1\"}}" "$runtime"; }
[ "$(label org.opencontainers.image.revision)" = "$revision" ] || fail "the label of the revision"
[ "$(label attn-bench.locks)" = "$locks" ] || fail "the label of the locks"
run --shm-size 1g "$runtime" sh -ec '
  [ "$(id -u)" = 10001 ] || { echo "runs as user $(id -u)"; exit 1; }
  found=$(find / -xdev -name "mpiexec*" -perm -100 2>/dev/null | grep -v ^/opt/venv/bin/ || true)
  [ -z "$found" ] || { echo "MPI besides that of the wheel: $found"; exit 1; }
  ! touch /usr/x 2>/dev/null
  echo "#include <Python.h>" | gcc -fsyntax-only $(python3-config --includes) -x c - # as Triton does when it runs
' || fail "the user, MPI, what can be written, or the compiler"

step "tests"
mkdir -p "$W/work/tests"
chown 10001:10001 "$W/work/tests"
run --shm-size 1g -v "$W/work/tests:/work" "$test" sh -ec '
  cp -a /opt/attn-bench/. .
  git init -q && git add -A && git -c user.name=test -c user.email=test@localhost commit -q -m source
  timeout 400 python -m pytest -q -m "not slow and not pipeline" '"${TESTS:-$(tr '\n' ' ' <docker/tests.txt)}" || fail "tests"

step "dvc repro of a tiny grid, rings of 2 ranks, as a user that the image does not know"
"$PYTHON" - "$W/work/tiny" <<'PY'
import shutil, sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
import conftest
target = Path(sys.argv[1])
shutil.copytree(target.parent / "tests", target, ignore=shutil.ignore_patterns(".git", "results", "__pycache__"))
head, _, protocol = conftest.PARAMS.partition("protocol:")
text = head.replace("ring_v2_collective: true}\n    grids: {seed: true}", "ring_v2_collective: true}\n    grids: {ranks: true}")
assert text != head
text += "  ranks:\n    seq_len: [64]\n    n_heads: [2]\n    mask: [causal]\n    world_size: [2]\nprotocol:" + protocol
(target / "params.yaml").write_text(text)
for name, more in conftest._FEWER.items():
    with (target / name).open("a") as file:
        file.write(more)
PY
chown -R 4321:4321 "$W/work/tiny"
ours=(--user 4321:4321 --shm-size 1g -v "$W/work/tiny:/work" -v attn-bench-test:/cache -e ATTN_BENCH_IMAGE=sha256:of-this-test)
run "${ours[@]}" "$runtime" sh -ec 'git init -q && git add -A && git -c user.name=t -c user.email=t@localhost commit -q -m source'
run "${ours[@]}" "$runtime" >"$W/repro.log" 2>&1 || fail "dvc repro: $(tail -n 20 "$W/repro.log")"
run "${ours[@]}" "$runtime" python -m bench gate || fail "a row of the tiny grid does not pass"
again=$(run "${ours[@]}" "$runtime" dvc repro 2>&1)
[ "$(grep "Running stage" <<<"$again")" = "Running stage 'probe@local':" ] || fail "a second repro ran more than probe: $again"
"$PYTHON" - "$W/work/tiny/results/local" <<'PY' || fail "the records of the tiny grid"
import json, sys
from pathlib import Path
results = Path(sys.argv[1])
assert json.loads((results / "machine.json").read_text())["image"] == "sha256:of-this-test"
[ring] = json.loads((results / "bench" / "ring_v2_collective-ranks.json").read_text())
assert (ring["status"], ring["world_size"]) == ("ok", 2), ring
PY
run "${ours[@]}" "$runtime" sh -ec 'git add -A && git -c user.name=t -c user.email=t@localhost commit -q -m measured'
chmod -R a+rwX "$W/work/tiny"
shown=$(run --user 5555:5555 --shm-size 1g -v "$W/work/tiny:/work" "$runtime" \
  sh -ec 'git status --short && dvc metrics diff HEAD~1 HEAD' 2>&1) && [[ $shown == *results/local/metrics.json* ]] ||
  fail "git and dvc on a clone that another user owns: $shown"
