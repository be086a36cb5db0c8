#!/bin/sh
# The image under Apptainer, as docker/run does it: the clone at /work, a cache that stays, GPUs where there are any.
#   apptainer build attn-bench.sif docker-daemon://attn-bench:latest     (or docker://REGISTRY/attn-bench@sha256:...)
#   SIF      the image (attn-bench.sif)      CACHE    a folder to write to (~/.cache/attn-bench)
set -eu
cd "$(dirname "$0")/.."
sif=${SIF:-attn-bench.sif}
cache=${CACHE:-$HOME/.cache/attn-bench}
command -v apptainer >/dev/null || { echo "cluster/apptainer.sh: no apptainer here" >&2; exit 2; }
[ -f "$sif" ] || { echo "cluster/apptainer.sh: no file $sif; its head says how to make it" >&2; exit 2; }
mkdir -p "$cache"
digest=sha256:$(sha256sum "$sif" | cut -c1-64)
nv=
if command -v nvidia-smi >/dev/null; then nv=--nv; fi
# Apptainer takes HOME from the host and keeps TMPDIR out: both are set to what the image expects.
# shellcheck disable=SC2086  # an option or none
exec apptainer run --contain --cleanenv $nv --bind "$PWD:/work,$cache:/cache,/dev/shm:/dev/shm" --pwd /work --home "$cache/home:/cache/home" \
  --env "ATTN_BENCH_IMAGE=$digest,TMPDIR=/cache/tmp" "$sif" "$@"
