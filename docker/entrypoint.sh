#!/bin/sh
# Runs what it is given in /work, `dvc repro` where nothing is given. What cannot work is refused in one sentence.
set -eu

refuse() {
  echo "attn-bench: $1" >&2
  exit 2
}

me="$(id -u):$(id -g)"
mkdir -p "$HOME" "$TMPDIR" 2>/dev/null && [ -w "$HOME" ] && [ -w "$TMPDIR" ] ||
  refuse "$HOME and $TMPDIR cannot be written by user $me: mount a volume at /cache (-v attn-bench-cache:/cache), one for each user"

shm_mib=$(df -Pk "${ATTN_BENCH_SHM:-/dev/shm}" 2>/dev/null | awk 'NR == 2 { print int($2 / 1024) }')
wanted_mib=${ATTN_BENCH_MIN_SHM_MIB:-1024}
[ "${shm_mib:-0}" -ge "$wanted_mib" ] ||
  refuse "/dev/shm has ${shm_mib:-0} MiB, ranks need at least $wanted_mib: --ipc=host, or --shm-size=8g (less where no ranks run: -e ATTN_BENCH_MIN_SHM_MIB=0)"

[ $# -gt 0 ] || set -- dvc repro
case $1 in
  dvc | make | python | python3)
    [ -f dvc.yaml ] ||
      refuse "there is no dvc.yaml in $PWD: mount a clone of the repository there (cd clone; docker run -v \"\$PWD\":/work ...)"
    [ -w . ] ||
      refuse "$PWD belongs to user $(stat -c %u:%g .) and cannot be written by $me: --user $(stat -c %u:%g .)"
    ;;
esac
exec "$@"
